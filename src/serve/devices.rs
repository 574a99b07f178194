//! Caches of one plan on several devices: an encoder each, submitted together, and calls that all
//! of them record.

use crate::cache::{Cache, Sequence, Step};
use crate::error::{Error, Result};
use crate::gpu::Rows;
use crate::plan::Plan;
use crate::serve::together;
use futures::future::try_join_all;

/// A cache on each device. All of them hold the same sequences: what the first grants, all grant.
#[derive(Debug)]
pub(super) struct Devices {
    pub caches: Vec<Cache>,
    /// What encoders and buffers are called in a debugger.
    pub label: &'static str,
}

impl Devices {
    /// Compiles the pipelines of all devices.
    pub async fn prepare(&self) -> Result<()> {
        together::prepare(&self.caches).await
    }

    /// Returns the bytes allocated for keys and values, on all devices together.
    pub fn bytes(&self) -> u64 {
        together::bytes(&self.caches)
    }

    /// Refuses another number of things than one for each device.
    pub fn expect(&self, name: &'static str, had: usize) -> Result<()> {
        let wanted = self.caches.len();
        if had == wanted { Ok(()) } else { Err(Error::argument(name, format!("{wanted}, one for each device"), had)) }
    }

    /// Begins a sequence on all devices, or on none.
    pub fn begin(&mut self, begin: impl Fn(u32, &mut Cache) -> Result<Sequence>) -> Result<Vec<Sequence>> {
        together::begin(&mut self.caches, |n, cache| begin(n as u32, cache))
    }

    /// Takes back a step of all devices, or of none.
    pub fn abandon(&mut self, steps: Vec<Option<Step>>) -> Result<()> {
        together::abandon(&mut self.caches, steps)
    }

    /// Ends a sequence on all devices.
    pub fn end(&mut self, sequences: &[Sequence]) -> Result<()> {
        together::end(&mut self.caches, sequences)
    }

    /// Forks a sequence on all devices, or on none.
    pub fn fork(&mut self, encoders: &mut [wgpu::CommandEncoder], sequences: &[Sequence]) -> Result<Vec<Sequence>> {
        self.expect("encoders", encoders.len())?;
        let mut encoders = encoders.iter_mut();
        together::begin(&mut self.caches, |n, cache| match (encoders.next(), sequences.get(n)) {
            (Some(encoder), Some(sequence)) => cache.fork(encoder, *sequence),
            _ => Err(Error::UnknownSequence { slot: n as u32 }),
        })
    }

    /// Returns a new encoder for each device.
    pub fn encoders(&self) -> Vec<wgpu::CommandEncoder> {
        let encoder = |cache: &Cache| cache.gpu().device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some(self.label) });
        self.caches.iter().map(encoder).collect()
    }

    /// Submits what was recorded, to each device its own.
    pub fn submit(&self, encoders: Vec<wgpu::CommandEncoder>) -> Result<()> {
        self.expect("encoders", encoders.len())?;
        for (cache, encoder) in self.caches.iter().zip(encoders) {
            cache.gpu().queue().submit([encoder.finish()]);
        }
        Ok(())
    }

    /// Records on every device that has a step, each with its own encoder and rows, once it is
    /// known that all have theirs and none refuses them: a layer is recorded on all or on none.
    pub fn record<'a, 's, const N: usize>(
        &self,
        encoders: &mut [wgpu::CommandEncoder],
        steps: impl IntoIterator<Item = Option<&'s Step>, IntoIter: Clone>,
        rows: [(&'static str, &[Rows<'a>]); N],
        check: impl Fn(&Cache, &Step, [Rows<'a>; N]) -> Result<()>,
        record: impl Fn(&Cache, &mut wgpu::CommandEncoder, &Step, [Rows<'a>; N]) -> Result<()>,
    ) -> Result<()> {
        self.expect("encoders", encoders.len())?;
        rows.iter().try_for_each(|(name, rows)| self.expect(name, rows.len()))?;
        let steps = steps.into_iter();
        for (n, (cache, step)) in self.caches.iter().zip(steps.clone()).enumerate() {
            if let Some(step) = step {
                check(cache, step, rows.map(|(_, rows)| rows[n]))?;
            }
        }
        for (n, ((cache, encoder), step)) in self.caches.iter().zip(encoders).zip(steps).enumerate() {
            if let Some(step) = step {
                record(cache, encoder, step, rows.map(|(_, rows)| rows[n]))?;
            }
        }
        Ok(())
    }

    /// Records on each device what [`Cache::append`] records, of its rows, or nothing on any.
    pub fn append<'s>(
        &self,
        encoders: &mut [wgpu::CommandEncoder],
        steps: impl IntoIterator<Item = Option<&'s Step>, IntoIter: Clone>,
        layer: u32,
        keys: &[Rows<'_>],
        values: &[Rows<'_>],
    ) -> Result<()> {
        self.record(
            encoders,
            steps,
            [("keys", keys), ("values", values)],
            |cache, step, [keys, values]| cache.check_append(step, layer, keys, values).map(|_| ()),
            |cache, encoder, step, [keys, values]| cache.append(encoder, step, layer, keys, values),
        )
    }

    /// Uploads numbers, to each device those that `of` picks for it.
    pub fn upload(&self, of: impl Fn(usize) -> Vec<f32>) -> Vec<wgpu::Buffer> {
        let upload = |(n, cache): (usize, &Cache)| cache.gpu().filled(self.label, bytemuck::cast_slice(&of(n)), wgpu::BufferUsages::STORAGE);
        self.caches.iter().enumerate().map(upload).collect()
    }

    /// Returns buffers for f32 numbers: for device `n` as many as `count` says.
    pub fn buffers(&self, count: impl Fn(usize, &Plan) -> u64) -> Vec<wgpu::Buffer> {
        let buffer = |(n, cache): (usize, &Cache)| {
            cache.gpu().create_buffer(&wgpu::BufferDescriptor {
                label: Some(self.label),
                // A device may have no rows, but a buffer must have some bytes.
                size: (4 * count(n, cache.plan())).max(16),
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            })
        };
        self.caches.iter().enumerate().map(buffer).collect()
    }

    /// Waits for all devices and reads f32 numbers back: of device `n` as many as `count` says.
    pub async fn read(&self, name: &'static str, buffers: &[wgpu::Buffer], count: impl Fn(usize, &Plan) -> u64) -> Result<Vec<Vec<f32>>> {
        self.expect(name, buffers.len())?;
        let mut read = Vec::new();
        for (n, (cache, buffer)) in self.caches.iter().zip(buffers).enumerate() {
            let words = count(n, cache.plan());
            if buffer.size() < 4 * words {
                return Err(Error::Rows { name, need: 4 * words, have: buffer.size() });
            }
            // Nothing can be read of no rows.
            read.push(async move { if words == 0 { Ok(Vec::new()) } else { cache.gpu().read(buffer, 0, words).await } });
        }
        let read = try_join_all(read).await?;
        Ok(read.into_iter().map(|words| words.into_iter().map(f32::from_bits).collect()).collect())
    }
}
