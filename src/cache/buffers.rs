//! The buffers of a cache: what each layer keeps, and what all layers share.

use super::Cache;
use super::pool::PageCopy;
use super::status::STATUS_WORDS;
use crate::error::{Error, Result};
use crate::format::Codec;
use crate::gpu::Gpu;
use crate::plan::Plan;
use crate::plan::tables::{marks, turns};

/// Bytes that a cache has allocated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Memory {
    /// Packed pages, over all layers.
    pub pages: u64,
    /// f16 rows of sinks and windows, over all layers.
    pub protected: u64,
    /// What the codec learned, over all layers: for RotateKV key scales, the group of each key
    /// channel, and the tokens that are sinks; for Centred means and weights.
    pub marks: u64,
    /// Queries and partial results of one pass, and the table of RoPE's turns.
    pub scratch: u64,
}

impl Memory {
    /// Returns what several caches have allocated together.
    pub(crate) fn sum(memories: impl Iterator<Item = Self>) -> Self {
        memories.fold(Self::default(), |a, b| Self {
            pages: a.pages + b.pages,
            protected: a.protected + b.protected,
            marks: a.marks + b.marks,
            scratch: a.scratch + b.scratch,
        })
    }
}

/// The buffers of one layer.
#[derive(Debug)]
pub(super) struct Layer {
    /// By slab: `[physical page, slab head, page]`.
    pub pages: Vec<wgpu::Buffer>,
    /// `[slot, kv_heads, sinks + ring, head_dim]` words.
    pub protected_rows: wgpu::Buffer,
    /// For RotateKV: `[physical page, row_groups, scale_vecs]`.
    pub key_scales: wgpu::Buffer,
    /// For RotateKV: the group of each key channel, a byte each (or for Centred,
    /// `[kv_heads, 3, head_dim]` means of keys, weights, means of values); then `[slot, 3 * sinks]`
    /// words of elected sinks.
    pub marks: wgpu::Buffer,
}

impl Layer {
    /// Returns all of them, in the order of their fields.
    pub fn buffers(&self) -> impl Iterator<Item = &wgpu::Buffer> {
        self.pages.iter().chain([&self.protected_rows, &self.key_scales, &self.marks])
    }
}

/// What all layers share, by the names that kernels bind it by.
#[derive(Debug)]
pub(super) struct Shared {
    pub turns: wgpu::Buffer,
    pub query_rows: wgpu::Buffer,
    pub query_codes: wgpu::Buffer,
    pub partials: wgpu::Buffer,
    pub row_partials: wgpu::Buffer,
    /// Keys and values that prefilling rows see, unpacked.
    pub unpacked_rows: wgpu::Buffer,
    /// For codecs with planes: the scores of a pass and their sums by item, and what to read.
    pub scores: wgpu::Buffer,
    pub plans: wgpu::Buffer,
    /// For Centred: terms of what the mean of the keys adds to the scores of a pass's pages.
    pub position_terms: wgpu::Buffer,
    /// Bound in place of logarithms that the caller does not want.
    pub no_log_sums: wgpu::Buffer,
    pub status: wgpu::Buffer,
}

impl Shared {
    fn buffers(&self) -> [&wgpu::Buffer; 11] {
        let Self { turns, query_rows, query_codes, partials, row_partials, unpacked_rows, scores, plans, position_terms, no_log_sums, status } = self;
        [turns, query_rows, query_codes, partials, row_partials, unpacked_rows, scores, plans, position_terms, no_log_sums, status]
    }
}

/// All buffers of a cache.
#[derive(Debug)]
pub(super) struct Buffers {
    pub layers: Vec<Layer>,
    pub shared: Shared,
}

impl Buffers {
    /// Makes all buffers and fills those that have contents.
    pub fn new(gpu: &Gpu, plan: &Plan) -> Self {
        let device = gpu.device();
        let buffer = |label, bytes: u64| {
            gpu.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: bytes.max(16).next_multiple_of(16),
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        };
        // A buffer that could not be allocated cannot be written either; the allocation has already
        // reported why.
        let write = |buffer: &wgpu::Buffer, contents: &[u8]| {
            let _scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
            gpu.queue().write_buffer(buffer, 0, contents);
        };
        let layers = (0..plan.shape().layers)
            .map(|layer| {
                let words = buffer("wgkv marks", 4 * plan.marks_words());
                write(&words, bytemuck::cast_slice(&marks(plan, layer)));
                Layer {
                    pages: plan.slabs(layer).iter().map(|slab| buffer("wgkv pages", plan.slab_bytes(slab))).collect(),
                    protected_rows: buffer("wgkv protected_rows", plan.protected_bytes()),
                    key_scales: buffer("wgkv key_scales", plan.key_scales_bytes(layer)),
                    marks: words,
                }
            })
            .collect();
        let turn_table = turns(plan);
        let shared = Shared {
            turns: buffer("wgkv turns", 8 * turn_table.len() as u64),
            query_rows: buffer("wgkv query_rows", plan.query_rows_bytes()),
            query_codes: buffer("wgkv query_codes", plan.query_codes_bytes()),
            partials: buffer("wgkv partials", plan.partials_bytes()),
            row_partials: buffer("wgkv row_partials", plan.row_partials_bytes()),
            unpacked_rows: buffer("wgkv unpacked_rows", plan.unpacked_bytes()),
            scores: buffer("wgkv scores", plan.scores_bytes()),
            plans: buffer("wgkv plans", plan.plans_bytes()),
            position_terms: buffer("wgkv position_terms", plan.position_terms_bytes()),
            no_log_sums: buffer("wgkv no_log_sums", 0),
            status: buffer("wgkv status", 4 * STATUS_WORDS),
        };
        write(&shared.turns, bytemuck::cast_slice(&turn_table));
        Self { layers, shared }
    }

    /// Returns the buffer that kernels bind by a name, for a layer and slab.
    pub fn named(&self, name: &str, layer: usize, slab: usize) -> Option<&wgpu::Buffer> {
        let (layer, shared) = (self.layers.get(layer)?, &self.shared);
        Some(match name {
            "pages" => layer.pages.get(slab)?,
            "protected_rows" => &layer.protected_rows,
            "key_scales" => &layer.key_scales,
            "marks" => &layer.marks,
            "turns" => &shared.turns,
            "query_rows" => &shared.query_rows,
            "query_codes" => &shared.query_codes,
            "partials" => &shared.partials,
            "row_partials" => &shared.row_partials,
            "unpacked_rows" => &shared.unpacked_rows,
            "scores" => &shared.scores,
            "plans" => &shared.plans,
            "position_terms" => &shared.position_terms,
            "status" => &shared.status,
            _ => return None,
        })
    }

    /// Gives the memory back.
    pub fn destroy(&self) {
        self.layers.iter().flat_map(Layer::buffers).chain(self.shared.buffers()).for_each(wgpu::Buffer::destroy);
    }
}

impl Cache {
    /// Returns the bytes allocated, by what for.
    pub fn memory(&self) -> Memory {
        let (layers, shared, plan) = (&self.buffers.layers, &self.buffers.shared, &self.plan);
        let scratch = [&shared.turns, &shared.query_rows, &shared.query_codes, &shared.partials, &shared.row_partials, &shared.unpacked_rows];
        Memory {
            pages: layers.iter().flat_map(|l| &l.pages).map(wgpu::Buffer::size).sum(),
            // A buffer of nothing has a few bytes, which are not the cache's.
            protected: if plan.protected_bytes() > 0 { layers.iter().map(|l| l.protected_rows.size()).sum() } else { 0 },
            marks: match plan.format().codec() {
                Codec::RotateKv => layers.iter().map(|l| l.key_scales.size() + l.marks.size()).sum(),
                Codec::Centred => layers.iter().map(|l| l.marks.size()).sum(),
                _ if plan.marks_words() > 0 => layers.iter().map(|l| l.marks.size()).sum(),
                _ => 0,
            },
            scratch: scratch.map(wgpu::Buffer::size).iter().sum::<u64>()
                + if plan.aligns() { shared.scores.size() + shared.plans.size() } else { 0 }
                + if plan.position_quads() > 0 { shared.position_terms.size() } else { 0 },
        }
    }

    /// Copies what a page holds in all layers.
    pub(super) fn copy_page(&self, encoder: &mut wgpu::CommandEncoder, copy: PageCopy) {
        let Some((from, to)) = copy else { return };
        let [from, to] = [from, to].map(u64::from);
        for (layer, n) in self.buffers.layers.iter().zip(0..) {
            let scales = self.plan.layout_of(n).row_scale_bytes();
            for (slab, pages) in self.plan.slabs(n).iter().zip(&layer.pages) {
                let bytes = slab.layout().bytes() * u64::from(slab.count());
                self.copy_within(encoder, pages, from * bytes, to * bytes, bytes);
            }
            self.copy_within(encoder, &layer.key_scales, from * scales, to * scales, scales);
        }
    }

    /// Copies bytes inside a buffer, by way of another, since WebGPU refuses a copy from a buffer
    /// to itself.
    pub(super) fn copy_within(&self, encoder: &mut wgpu::CommandEncoder, buffer: &wgpu::Buffer, from: u64, to: u64, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let between = self.gpu.create_buffer(&wgpu::BufferDescriptor {
            label: Some("wgkv copy"),
            size: bytes,
            usage: wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        encoder.copy_buffer_to_buffer(buffer, from, &between, 0, bytes);
        encoder.copy_buffer_to_buffer(&between, 0, buffer, to, bytes);
    }

    /// Returns one layer's buffers.
    pub(super) fn layer(&self, layer: u32) -> Result<&Layer> {
        self.buffers.layers.get(layer as usize).ok_or(Error::Layer { had: layer, layers: self.plan.shape().layers })
    }

    /// Returns the buffers of one layer, for snapshots and for comparing kernels with their
    /// [twins](crate::low_level::reference): the pages by slab, and the f16 rows. All have usage
    /// `COPY_SRC` and `COPY_DST`.
    ///
    /// # Errors
    /// [`Error::Layer`].
    #[doc(hidden)]
    pub fn layer_buffers(&self, layer: u32) -> Result<(&[wgpu::Buffer], &wgpu::Buffer)> {
        let buffers = self.layer(layer)?;
        Ok((&buffers.pages, &buffers.protected_rows))
    }

    /// Returns a layer's key scales and marks, for comparing kernels with their
    /// [twins](crate::low_level::reference).
    #[doc(hidden)]
    pub fn reordered_buffers(&self, layer: u32) -> Result<[&wgpu::Buffer; 2]> {
        let buffers = self.layer(layer)?;
        Ok([&buffers.key_scales, &buffers.marks])
    }

    /// Returns the terms of positions, for comparing kernels with their
    /// [twins](crate::low_level::reference).
    #[doc(hidden)]
    pub fn position_terms(&self) -> &wgpu::Buffer {
        &self.buffers.shared.position_terms
    }

    /// Returns what the kernels of planes hand each other, scores and plans, for comparing them
    /// with their [twins](crate::low_level::reference).
    #[doc(hidden)]
    pub fn align_buffers(&self) -> [&wgpu::Buffer; 2] {
        [&self.buffers.shared.scores, &self.buffers.shared.plans]
    }

    /// Returns what `unpack` wrote for the last round recorded, for comparing it with its
    /// [twin](crate::low_level::reference).
    #[doc(hidden)]
    pub fn unpacked_rows(&self) -> &wgpu::Buffer {
        &self.buffers.shared.unpacked_rows
    }

    /// Returns the buffers that the attention kernels hand each other (query_rows, query_codes,
    /// partials, row_partials of the last pass recorded), for comparing them with their
    /// [twins](crate::low_level::reference).
    #[doc(hidden)]
    pub fn scratch_buffers(&self) -> [&wgpu::Buffer; 4] {
        let shared = &self.buffers.shared;
        [&shared.query_rows, &shared.query_codes, &shared.partials, &shared.row_partials]
    }
}

#[cfg(test)]
mod tests {
    use super::Buffers;
    use crate::format::{Bits, Codec, Format, Rope, Shape};
    use crate::gpu::Gpu;
    use crate::kernel::{ALL, STEP};
    use crate::plan::{Capacity, Plan};

    #[test]
    fn every_name_that_a_kernel_binds_is_a_buffers() {
        let gpu = pollster::block_on(Gpu::request()).unwrap();
        let shape = Shape { layers: 1, query_heads: 1, kv_heads: 1, head_dim: 64, rope: Rope::none() };
        let format = Format::new(Codec::Hadamard, Bits::Four, Bits::Four, 64);
        let plan = Plan::builder(shape, format).capacity(Capacity::tokens(1, 128)).build(gpu.capability()).unwrap();
        let buffers = Buffers::new(&gpu, &plan);
        let own = ALL.iter().filter(|kernel| kernel.groups.get(1) == Some(&STEP)).flat_map(|kernel| kernel.groups[0]);
        let names: Vec<&str> = own.map(|(name, _)| *name).collect();
        assert!(names.len() > 40, "{names:?}");
        for name in names {
            assert!(buffers.named(name, 0, 0).is_some(), "no buffer is called {name}");
        }
    }
}
