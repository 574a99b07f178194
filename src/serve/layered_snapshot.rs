//! Snapshots of sequences whose layers differ: the snapshots of all groups in one file.

use super::layered_cache::LayeredCache;
use super::layered_plan::{LayeredPlan, of_layers};
use super::together;
use crate::cache::Sequence;
use crate::error::{Error, Result, Thing};
use crate::format::file::{Envelope, Tensor};
use crate::plan::Span;
use safetensors::tensor::Dtype;

const FORMAT: &str = "wgkv-layered-snapshot";
const VERSION: &str = "1";

/// Bytes of the header at most, but for those of each group.
const HEADER_BYTES: usize = 2048;

/// Calls `of` with the envelope of the snapshots of a plan.
fn with_envelope<T>(plan: &LayeredPlan, of: impl FnOnce(&Envelope<'_>) -> Result<T>) -> Result<T> {
    let fixed = &[("format", FORMAT), ("version", VERSION), ("plan", &plan.fingerprint())];
    let header_bytes = HEADER_BYTES + 256 * plan.groups().len();
    of(&Envelope { thing: Thing::Snapshot, fixed, file_bytes: usize::MAX, header_bytes, hashes_tensors: true })
}

fn name(group: usize) -> String {
    format!("group.{group}")
}

/// Returns the file of a sequence, from each group's.
fn to_bytes(plan: &LayeredPlan, parts: &[Vec<u8>]) -> Result<Vec<u8>> {
    let names: Vec<String> = (0..parts.len()).map(name).collect();
    let tensors: Vec<Tensor<'_>> = names.iter().zip(parts).map(|(name, part)| (name.as_str(), Dtype::U8, vec![part.len()], part.as_slice())).collect();
    with_envelope(plan, |envelope| envelope.write([], &tensors))
}

/// Returns each group's file.
fn from_bytes<'a>(plan: &LayeredPlan, bytes: &'a [u8]) -> Result<Vec<&'a [u8]>> {
    with_envelope(plan, |envelope| {
        let file = envelope.read(bytes)?;
        let part = |group| {
            let name = name(group);
            let shape = file.shape(&name).unwrap_or_default().to_vec();
            file.tensor(&name, Dtype::U8, &shape)
        };
        let parts: Vec<&[u8]> = (0..plan.groups().len()).map(part).collect::<Result<_>>()?;
        file.check(&parts)?;
        Ok(parts)
    })
}

/// Checks that these are the bytes of a snapshot of `tokens` tokens that a cache of this plan would
/// load.
#[cfg(feature = "store")]
pub(super) fn check(plan: &LayeredPlan, tokens: usize, bytes: &[u8]) -> Result<()> {
    for (group, (own, part)) in plan.groups().iter().zip(from_bytes(plan, bytes)?).enumerate() {
        crate::cache::check_snapshot(own, tokens, part).map_err(|error| of_layers(plan.layers_of(group), error))?;
    }
    Ok(())
}

impl LayeredCache {
    /// Returns a sequence as bytes, which [`LayeredCache::load`] turns into a sequence of this or
    /// another cache, as [`Cache::save`](crate::Cache::save): a safetensors file of the metadata
    /// `format`, `version`, `plan` (the plan's [fingerprint](LayeredPlan::fingerprint)) and `hash`,
    /// and a tensor `group.N` of bytes for each group, the snapshot that its cache would make.
    /// Layers that slide save what their next query sees and the plan's
    /// [`keep`](crate::layers::LayeredPlanBuilder::keep) tokens.
    ///
    /// # Errors
    /// Those of [`Cache::save`](crate::Cache::save).
    pub fn save(&self, sequence: Sequence) -> impl Future<Output = Result<Vec<u8>>> + use<> {
        self.save_first(sequence, None)
    }

    /// Returns what [`LayeredCache::save`] would, for a sequence's first `tokens` tokens, as if it
    /// had been [cut back](LayeredCache::truncate) to them.
    ///
    /// # Errors
    /// Those of [`LayeredCache::save`], [`Error::Range`] and [`Error::Dropped`].
    pub fn save_prefix(&self, sequence: Sequence, tokens: u32) -> impl Future<Output = Result<Vec<u8>>> + use<> {
        self.save_first(sequence, Some(tokens))
    }

    fn save_first(&self, sequence: Sequence, tokens: Option<u32>) -> impl Future<Output = Result<Vec<u8>>> + use<> {
        let stage = || {
            let own = self.sequences_of(sequence)?;
            self.each(own, |cache, _, sequence| cache.expect_saved(sequence))?;
            let tokens = tokens.map_or_else(|| self.tokens(sequence), Ok)?;
            self.expect_cut(sequence, tokens)?;
            self.each(own, |cache, group, sequence| cache.stage(sequence, tokens, self.plan().kept(group, tokens)))
        };
        let (staged, plan) = (stage(), self.plan().clone());
        async move {
            let mut parts = Vec::new();
            for staged in staged? {
                parts.push(staged.finish().await?);
            }
            to_bytes(&plan, &parts)
        }
    }

    /// Begins a sequence that holds what a snapshot holds, in all groups, copied by commands on
    /// `encoder`. It goes on as the saved one would have, as with
    /// [`Cache::load`](crate::Cache::load).
    ///
    /// # Errors
    /// Those of [`Cache::load`](crate::Cache::load), and [`Error::Mismatch`] for more pages than a
    /// group that slides has planned for, as a plan with a larger
    /// [`keep`](crate::layers::LayeredPlanBuilder::keep) saves them; then nothing has changed in any
    /// group.
    pub fn load(&mut self, encoder: &mut wgpu::CommandEncoder, bytes: &[u8]) -> Result<Sequence> {
        let parts = from_bytes(self.plan(), bytes)?;
        let mut opened = Vec::with_capacity(parts.len());
        let mut tokens = None;
        for (group, (cache, part)) in self.groups().iter().zip(parts).enumerate() {
            let layers = self.plan().layers_of(group);
            let part = cache.open_snapshot(part).map_err(|error| of_layers(layers, error))?;
            let wrong = |name, wanted: String, had: u32| Err(of_layers(layers, Error::mismatch(Thing::Snapshot, name, wanted, had)));
            let (held, pages, first) = (part.standing.tokens, part.standing.pages(), part.standing.first());
            let wanted = *tokens.get_or_insert(held);
            if held != wanted {
                return wrong("tokens", format!("{wanted}, as in other layers"), held);
            }
            if let Some(most) = self.plan().most_pages(group).filter(|most| pages > *most) {
                return wrong("pages", format!("{most} at most, as planned for the window"), pages);
            }
            let span = cache.plan().span();
            if span != Span::All && span.first(held) < first {
                return wrong("first token", format!("{} or before", span.first(held)), first);
            }
            opened.push(part);
        }
        let mut opened = opened.into_iter();
        let own = together::begin(self.caches(), |group, cache| match opened.next() {
            Some(part) => cache.load_opened(encoder, part),
            None => Err(Error::mismatch(Thing::Snapshot, name(group), "there", "missing")),
        })?;
        Ok(self.keep(own))
    }
}
