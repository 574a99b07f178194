//! Whether a device can do what a plan needs.

use super::{Plan, choices};
use crate::error::{Error, Result};
use crate::format::{Bits, Codec};
use crate::gpu::{Capability, Reduce};

/// Workgroup memory of attend_prefill: rows, tokens, sums and a flag.
const PREFILL_BYTES: u32 = 16 * (576 + 288) + 4 * 128 + 16;

impl Plan {
    /// Checks that a device can do what the plan needs. This is called when the plan is made, and
    /// again when a cache is made of it, which may be on another device.
    pub(crate) fn check(&self, capability: &Capability) -> Result<()> {
        self.check_kernels(capability)?;
        self.check_buffers(capability)?;
        let reduce = if self.restores() { capability.reduce_units() } else { capability.reduce() };
        if self.reduce == Reduce::Subgroup && reduce != Reduce::Subgroup {
            let have = capability.subgroups.map_or(0, |(smallest, _)| smallest.into());
            return Err(Error::Limit { what: "min_subgroup_size", reason: "the plan's reduction by subgroups", need: 32, have });
        }
        let lanes = choices::block_lanes(self.shape.head_dim);
        if capability.lanes() < lanes && self.slab_kinds().iter().any(|slab| self.packs_blocks(slab)) {
            return Err(Error::Limit {
                what: "min_subgroup_size",
                reason: "the plan's way of packing blocks",
                need: lanes.into(),
                have: capability.lanes().into(),
            });
        }
        if self.matrices && !choices::multiplies_matrices(&self.shape, capability) {
            return Err(Error::Limit { what: "experimental-cooperative-matrix", reason: "the plan's way of prefilling", need: 1, have: 0 });
        }
        if self.restores() && self.straight && !capability.halves {
            return Err(Error::Limit { what: "shader-f16", reason: "the plan's way of restoring keys", need: 1, have: 0 });
        }
        Ok(())
    }

    pub(crate) fn check_kernels(&self, capability: &Capability) -> Result<()> {
        let limit = |what, reason, need: u32, have: u32| {
            if need > have { Err(Error::Limit { what, reason, need: need.into(), have: have.into() }) } else { Ok(()) }
        };
        // The other kernels have 256 invocations at most, which every device must allow; those that
        // hold a channel an invocation, as many as a head has channels.
        let reason = if self.shape.head_dim > 256 { "an invocation for each of a head's channels" } else { "attend_merge" };
        let invocations = (self.shape.head_dim * self.merge_parts).max(256);
        limit("max_compute_invocations_per_workgroup", reason, invocations, capability.invocations)?;
        limit("max_compute_workgroup_size_x", reason, invocations, capability.workgroup_size_x)?;
        limit("max_storage_buffers_per_shader_stage", "attend_split", 8, capability.storage_buffers)?;
        let merge_bytes = choices::merge_workgroup_bytes(self.shape.head_dim, self.merge_parts);
        limit("max_compute_workgroup_storage_size", "attend_merge's parts", merge_bytes, capability.workgroup_bytes)?;
        limit("max_compute_workgroup_storage_size", "attend_prefill's tiles", PREFILL_BYTES, capability.workgroup_bytes)?;
        if self.restores() {
            let cells = self.group_heads() * self.shape.head_dim;
            let bytes = 12 * cells + 16 * self.most(|slab| slab.layout.row_groups) + 16;
            limit("max_compute_workgroup_storage_size", "append_reordered's row of a group of heads", bytes, capability.workgroup_bytes)?;
        }
        for (reason, bytes) in self.reading_bytes() {
            limit("max_compute_workgroup_storage_size", reason, bytes, capability.workgroup_bytes)?;
        }
        limit("max_compute_workgroups_per_dimension", "query heads", self.shape.query_heads.max(self.query_rows), capability.workgroups)
    }

    pub(crate) fn check_buffers(&self, capability: &Capability) -> Result<()> {
        let slab = self.arrangements.iter().flatten().map(|slab| self.slab_bytes(slab)).max().unwrap_or(0);
        let key_scales = (0..self.shape.layers).map(|layer| self.key_scales_bytes(layer)).max().unwrap_or(0);
        for (reason, need) in [
            ("the pages of one slab", slab),
            ("the query rows of a pass", self.query_rows_bytes()),
            ("the query codes of a pass", self.query_codes_bytes()),
            ("the partial results of a pass", self.partials_bytes()),
            ("the partial rows of a pass", self.row_partials_bytes()),
            ("the unpacked tokens of a pass", self.unpacked_bytes()),
            ("the f16 rows of all sequences", self.protected_bytes()),
            ("the key scales of a layer", key_scales),
            ("the scores of a pass", self.scores_bytes()),
            ("the plans of a pass", self.plans_bytes()),
            ("the terms of positions of a pass", self.position_terms_bytes()),
            ("the table of RoPE's turns", self.turns_bytes()),
        ] {
            for (what, have) in [("max_storage_buffer_binding_size", capability.binding_bytes), ("max_buffer_size", capability.buffer_bytes)] {
                if need > have {
                    return Err(Error::Limit { what, reason, need, have });
                }
            }
        }
        Ok(())
    }

    /// Refuses what heads of more than 256 channels are not served with.
    pub(super) fn check_wide_head(&self) -> Result<()> {
        if self.shape.head_dim <= 256 {
            return Ok(());
        }
        if self.aligns() {
            return Err(Error::argument("head_dim of numbers in planes", "256 at most", self.shape.head_dim));
        }
        // Each lane of attend_split turns four of them.
        if self.position_waves() > 128 {
            return Err(Error::argument("rope pairs that have means and turn fast", "128 at most", self.position_waves()));
        }
        Ok(())
    }

    /// Refuses elected sinks where numbers lie in planes: they are not hidden there.
    pub(super) fn check_planes(&self) -> Result<()> {
        if self.elects() && self.aligns() {
            return Err(Error::argument("the codec of massive sinks", "one without planes", format!("{} in planes", self.format().codec())));
        }
        Ok(())
    }

    /// Refuses to cap scores that are not whole, or that planes are chosen by.
    pub(super) fn check_soft_cap(&self) -> Result<()> {
        if self.soft_cap().is_none() {
            return Ok(());
        }
        if self.aligns() {
            return Err(Error::argument("the codec of capped scores", "one without planes, which are chosen by scores without a cap", self.format().codec()));
        }
        let still = self.shape.head_dim - self.still_channels();
        if still > 0 {
            let wanted = "0, since what they add to every score is left out";
            return Err(Error::argument("channels that have means and do not turn, of capped scores", wanted, still));
        }
        Ok(())
    }

    /// Checks that these codes can be stored in planes.
    pub(crate) fn check_code_planes(&self) -> Result<()> {
        let wrong = |name: &'static str, wanted: &str, had: String| Err(Error::argument(name, wanted, had));
        let codec = self.format().codec();
        if ![Codec::Rtn, Codec::Hadamard, Codec::Centred].contains(&codec) {
            return wrong("the codec of an alignment", "aligned-f16, rtn, hadamard or centred", codec.to_string());
        }
        for slab in self.arrangements.iter().flatten() {
            for (name, precision) in [("key bits", slab.format.key()), ("value bits", slab.format.value())] {
                if precision.is_trellis() {
                    return wrong(name, "4 or 8 with an alignment: the bits of a trellis code have no order of weight to be read by", precision.to_string());
                }
                if ![Bits::Four, Bits::Eight].contains(&precision.bits) {
                    return wrong(name, "4 or 8 with an alignment", precision.bits.get().to_string());
                }
            }
        }
        Ok(())
    }
}
