//! The step that is open: what it changed of the sequences, and which layers were given their part
//! of it. Kept by the cache as well as by the step, since a step may be dropped.

use super::pool::{Pool, Undo};
use super::sequence::Sequence;
use crate::error::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

const ELECTED: u8 = 1;
const APPENDED: u8 = 2;

/// By layer: whether its election was recorded, and whether its keys and values were.
#[derive(Debug)]
pub(super) struct Recorded(Vec<AtomicU8>);

impl Recorded {
    /// Returns that nothing was recorded.
    pub fn nothing(layers: u32) -> Self {
        Self((0..layers).map(|_| AtomicU8::new(0)).collect())
    }

    fn has(&self, layer: u32, flag: u8) -> bool {
        // The flags publish no other memory, so their order among threads does not matter.
        self.0.get(layer as usize).is_some_and(|flags| flags.load(Ordering::Relaxed) & flag != 0)
    }

    pub fn elected(&self, layer: u32) -> bool {
        self.has(layer, ELECTED)
    }

    pub fn appended(&self, layer: u32) -> bool {
        self.has(layer, APPENDED)
    }

    /// Sets a flag; refuses one that was set before.
    fn once(&self, call: &'static str, layer: u32, flag: u8) -> Result<()> {
        match self.0.get(layer as usize) {
            Some(flags) if flags.fetch_or(flag, Ordering::Relaxed) & flag != 0 => Err(again(call, layer)),
            _ => Ok(()),
        }
    }

    /// Notes the election of a layer, which must be the first.
    pub fn elect(&self, layer: u32) -> Result<()> {
        self.once("Cache::elect", layer, ELECTED)
    }

    /// Notes that a layer was given its keys and values, which must be for the first time.
    pub fn append(&self, layer: u32) -> Result<()> {
        self.once("Cache::append", layer, APPENDED)
    }

    /// Refuses a layer whose election was recorded.
    pub fn expect_unelected(&self, layer: u32) -> Result<()> {
        if self.elected(layer) { Err(again("Cache::elect", layer)) } else { Ok(()) }
    }

    /// Refuses a layer that was given its keys and values.
    pub fn expect_unappended(&self, layer: u32) -> Result<()> {
        if self.appended(layer) { Err(again("Cache::append", layer)) } else { Ok(()) }
    }

    /// Refuses a layer that was not given its keys and values.
    pub fn expect_appended(&self, call: &'static str, layer: u32) -> Result<()> {
        if self.appended(layer) { Ok(()) } else { Err(Error::Order { call, layer, wanted: "after Cache::append", had: "before it" }) }
    }

    /// Returns the first layer of which anything was recorded.
    pub fn first(&self) -> Option<u32> {
        (0..self.0.len() as u32).find(|layer| self.has(*layer, ELECTED | APPENDED))
    }

    /// Returns the first layer that was not given its keys and values.
    pub fn missing(&self) -> Option<u32> {
        (0..self.0.len() as u32).find(|layer| !self.appended(*layer))
    }

    /// Forgets one layer.
    pub fn clear_layer(&self, layer: u32) {
        if let Some(flags) = self.0.get(layer as usize) {
            flags.store(0, Ordering::Relaxed);
        }
    }

    /// Forgets all.
    pub fn clear(&self) {
        self.0.iter().for_each(|flags| flags.store(0, Ordering::Relaxed));
    }
}

fn again(call: &'static str, layer: u32) -> Error {
    Error::Order { call, layer, wanted: "once in a step", had: "again" }
}

/// A step by which sequences grew, as long as no later call made it stale.
#[derive(Debug)]
pub(super) struct Open {
    pub recorded: Arc<Recorded>,
    /// What it changed of each sequence that it grew.
    pub grown: Vec<Undo>,
}

impl Open {
    /// Returns whether it grew the sequence, which must be live.
    pub fn grew(&self, sequence: Sequence) -> bool {
        self.grown.iter().any(|undo| undo.slot() == sequence.slot())
    }

    /// Returns the pool as it is once this step is stale, if that differs from what it is now. A
    /// step of which nothing was recorded is taken back: nobody has the keys of its tokens. One
    /// that some layers were given and others were not leaves its sequences torn.
    pub fn settled(&self, pool: &Pool) -> Option<Pool> {
        let missing = self.recorded.missing()?;
        // Such steps are rare, the price of a copy does not matter: thanks to it a call that is
        // refused leaves the step as it was.
        let mut pool = pool.clone();
        match self.recorded.first() {
            None => pool.take_back(&self.grown),
            Some(_) => pool.tear(&self.grown, missing),
        }
        Some(pool)
    }
}
