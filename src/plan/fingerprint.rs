//! What decides how tokens are stored, as one text.

use super::Plan;
use crate::format::{Learned, Shape, tensors};

impl Plan {
    /// Returns the SHA-256, in hex, of everything that decides how tokens are stored: shape, RoPE,
    /// codec, the bits of every layer and head, sinks and window. Caches whose plans share it, and
    /// share the fingerprint of what was [learned](crate::learned::Learned::fingerprint), can load
    /// each other's [snapshots](crate::Cache::save), whatever their capacities and devices.
    pub fn fingerprint(&self) -> String {
        let Shape { layers, query_heads, kv_heads, head_dim, rope } = &self.shape;
        let format = self.format();
        let protected = format!("sinks {} of them elected: {}, ring {}", self.sinks(), self.elects(), self.ring());
        let mut text = format!(
            "wgkv-plan 3: {layers} layers, {query_heads} query heads, {kv_heads} KV heads of {head_dim}; {}{}, scales {}, {} heads a group; {protected}; {:?}",
            format.codec(),
            if self.aligns_codes() { " in planes" } else { "" },
            format.scales(),
            self.group_heads(),
            rope.layout(),
        );
        // Numbers go in by their bits, so that two plans have the same text exactly if they store
        // tokens alike. Frequencies are rounded to f32: they are powers, and the last bit of an f64
        // power depends on the platform.
        text.extend(rope.frequencies().iter().map(|frequency| format!(" {:x}", (*frequency as f32).to_bits())));
        for (layer, head) in (0..*layers).flat_map(|layer| (0..*kv_heads).map(move |head| (layer, head))) {
            text.extend(self.bit_plan.of(layer, head).map(|precision| {
                let (bits, group) = (precision.bits, precision.group(*head_dim));
                let code = if precision.is_trellis() { " trellis" } else { "" };
                format!("; {}/{group}/{:x}{code}", bits.get(), format.clip(bits).to_bits())
            }));
        }
        tensors::hash([text.as_bytes()])
    }

    /// Returns the fingerprint of what the codec learned, if the plan was given any of it.
    pub(crate) fn learned_fingerprint(&self) -> Option<String> {
        self.learned().map(Learned::fingerprint)
    }
}
