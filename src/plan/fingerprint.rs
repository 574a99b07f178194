//! What decides how tokens are stored, as one text.

use super::Plan;
use crate::format::{Learned, Shape, tensors};

impl Plan {
    /// SHA-256, in hex, of what decides how tokens are stored: shape, RoPE, codec, the bits of every layer and head, sinks and
    /// window. Caches whose plans have the same one, and the same [learned](crate::learned::Learned::fingerprint) fingerprint, can load each other's
    /// [snapshots](crate::Cache::save), whatever their budgets and devices.
    pub fn fingerprint(&self) -> String {
        let Shape { layers, query_heads, kv_heads, head_dim, rope } = &self.shape;
        let format = self.format();
        let protected = format!("sinks {} of them elected: {}, ring {}", self.sinks(), self.elects(), self.ring());
        let mut text = format!(
            "wgkv-plan 2: {layers} layers, {query_heads} query heads, {kv_heads} KV heads of {head_dim}; {}{}, scales {}, {} heads a group; {protected}; {:?}",
            format.codec(),
            if self.aligns_codes() { " in planes" } else { "" },
            format.scales(),
            self.group_heads(),
            rope.layout(),
        );
        // Numbers by their bits: nothing that stores tokens alike prints differently, and the other way round. Frequencies are powers, of
        // which the last bit of an f64 depends on the platform.
        text.extend(rope.frequencies().iter().map(|frequency| format!(" {:x}", (*frequency as f32).to_bits())));
        for (layer, head) in (0..*layers).flat_map(|layer| (0..*kv_heads).map(move |head| (layer, head))) {
            text.extend(self.bit_plan.of(layer, head).map(|precision| {
                let (bits, group) = (precision.bits, precision.group(*head_dim));
                format!("; {}/{group}/{:x}", bits.get(), format.clip(bits).to_bits())
            }));
        }
        tensors::hash([text.as_bytes()])
    }

    /// Returns the fingerprint of what the codec learned, if the plan was given any.
    pub(crate) fn learned_fingerprint(&self) -> Option<String> {
        self.learned().map(Learned::fingerprint)
    }
}
