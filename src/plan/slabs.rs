//! How the KV heads of each layer are spread over buffers, and what each buffer holds.

use super::Plan;
use crate::error::{Error, Result};
use crate::format::{Bits, Codec, Format, PageLayout};
use crate::gpu::Capability;

/// KV heads of one layer whose pages share a buffer: they are stored alike, and a binding may hold
/// no more.
#[derive(Clone, Debug, PartialEq)]
pub struct Slab {
    pub(super) heads: Vec<u32>,
    pub(super) format: Format,
    pub(super) layout: PageLayout,
}

impl Slab {
    /// Returns the KV heads, ascending.
    pub fn heads(&self) -> &[u32] {
        &self.heads
    }

    /// Returns how many they are.
    pub fn count(&self) -> u32 {
        self.heads.len() as u32
    }

    /// Returns how they are stored.
    pub fn format(&self) -> &Format {
        &self.format
    }

    /// Returns where everything lies in a page.
    pub fn layout(&self) -> &PageLayout {
        &self.layout
    }

    /// Returns whether attend_split takes the queries of these heads in f32.
    pub(crate) fn float_queries(&self) -> bool {
        self.format.codec() == Codec::RotateKv || self.format.key().bits == Bits::Sixteen
    }

    /// Returns the entries of one block of these heads among the query codes, without those for
    /// positions.
    pub(crate) fn code_entries(&self, head_dim: u32) -> u32 {
        if self.float_queries() { head_dim } else { head_dim / 4 + 1 + self.layout.key_groups }
    }
}

impl Plan {
    /// Distributes every layer's KV heads over slabs: heads of one format together, as many as
    /// `most` allows, as evenly as can be, so that no slab's dispatch is a small remainder.
    pub(crate) fn arrange(&mut self, most: impl Fn(&Slab) -> Result<u32>) -> Result<()> {
        let together = self.group_heads() as usize;
        let (mut arrangements, mut arranged) = (Vec::<Vec<Slab>>::new(), Vec::new());
        for layer in 0..self.shape.layers {
            let mut alike: Vec<Slab> = Vec::new();
            for head in 0..self.shape.kv_heads {
                let format = self.bit_plan.format_of(layer, head);
                match alike.iter_mut().find(|slab| slab.format == format) {
                    Some(slab) => slab.heads.push(head),
                    None => alike.push(Slab { heads: vec![head], layout: PageLayout::new(&format, &self.shape), format }),
                }
            }
            let mut slabs = Vec::new();
            for slab in alike {
                // Heads that are rotated together stay together.
                let bunches = slab.heads.len() / together;
                let count = bunches.div_ceil(most(&slab)? as usize / together);
                slabs.extend(slab.heads.chunks(bunches.div_ceil(count) * together).map(|heads| Slab { heads: heads.to_vec(), ..slab.clone() }));
            }
            let known = arrangements.iter().position(|other| *other == slabs).unwrap_or(arrangements.len());
            if known == arrangements.len() {
                arrangements.push(slabs);
            }
            arranged.push(known as u32);
        }
        (self.arrangements, self.arranged) = (arrangements, arranged);
        Ok(())
    }

    /// Returns the bytes of one page of all layers.
    pub(crate) fn page_bytes(&self) -> u64 {
        (0..self.shape.layers).map(|layer| self.layer_page_bytes(layer)).sum()
    }

    /// Returns the bytes of one slab's pages.
    pub(crate) fn slab_bytes(&self, slab: &Slab) -> u64 {
        slab.layout.bytes() * u64::from(self.pages) * u64::from(slab.count())
    }

    /// Returns every way in which a layer's KV heads are spread over slabs.
    pub(crate) fn arrangements(&self) -> &[Vec<Slab>] {
        &self.arrangements
    }

    /// Returns which of [`Plan::arrangements`] a layer has.
    pub(crate) fn arrangement(&self, layer: u32) -> usize {
        self.arranged[layer as usize] as usize
    }

    /// Returns all slabs that differ in more than their heads, each once.
    pub(crate) fn slab_kinds(&self) -> Vec<&Slab> {
        let mut kinds: Vec<&Slab> = Vec::new();
        for slab in self.arrangements.iter().flatten() {
            if !kinds.iter().any(|kind| kind.format == slab.format) {
                kinds.push(slab);
            }
        }
        kinds
    }

    /// Returns the bytes that a page of all KV heads of one layer takes, with the key scales beside
    /// it.
    pub(crate) fn layer_page_bytes(&self, layer: u32) -> u64 {
        let slabs = self.slabs(layer);
        slabs.iter().map(|slab| slab.layout.bytes() * u64::from(slab.count())).sum::<u64>() + self.layout_of(layer).row_scale_bytes()
    }

    /// Returns one of a layer's layouts, for what all its slabs have in common.
    pub(crate) fn layout_of(&self, layer: u32) -> &PageLayout {
        &self.slabs(layer)[0].layout
    }

    /// Returns how a layer's KV heads are spread over buffers; nothing for a layer that does not
    /// exist.
    pub fn slabs(&self, layer: u32) -> &[Slab] {
        self.arranged.get(layer as usize).map_or(&[], |n| &self.arrangements[*n as usize])
    }

    /// Returns the largest result of `of` over all slabs.
    pub(crate) fn most(&self, of: impl Fn(&Slab) -> u32) -> u32 {
        self.arrangements.iter().flatten().map(of).max().unwrap_or(0)
    }

    /// Returns the bytes of one layer's plane of key scales.
    pub(crate) fn key_scales_bytes(&self, layer: u32) -> u64 {
        self.layout_of(layer).row_scale_bytes() * u64::from(self.pages)
    }

    /// Returns the bytes of one layer's f16 rows; the most that u64 has where they are more, which no
    /// device and no capacity grants.
    pub(crate) fn protected_bytes(&self) -> u64 {
        let rows = u64::from(self.sequences).saturating_mul(u64::from(self.sinks()) + u64::from(self.ring()));
        rows.saturating_mul(4 * u64::from(self.shape.kv_heads) * u64::from(self.shape.head_dim))
    }
}

/// Returns how many of a slab's heads a buffer can hold; heads that are rotated together count
/// together.
pub(super) fn heads_of_a_slab(slab: &Slab, pages: u32, together: u32, capability: &Capability) -> Result<u32> {
    let head_bytes = slab.layout.bytes() * u64::from(pages);
    let have = capability.binding_bytes.min(capability.buffer_bytes);
    for (reason, need) in [("the pages of one KV head", head_bytes), ("the pages of a group of KV heads", head_bytes * u64::from(together))] {
        if need > have {
            return Err(Error::Limit { what: "max_storage_buffer_binding_size", reason, need, have });
        }
    }
    let bunches = have / (head_bytes * u64::from(together));
    Ok(bunches.min(u64::from(slab.count() / together)) as u32 * together)
}
