//! Which kernels a plan got, in words, and what a feature that the device lacks costs.

use super::choices::MATRIX_HEADS;
use super::{Plan, Restore, Span};
use crate::gpu::Reduce;
use std::fmt;

impl Plan {
    /// Writes what scores are, where they are more than the product of key and query.
    pub(super) fn write_scores(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        if self.scoring.scale.is_some() {
            words.push(format!("scale {}", self.score_scale()));
        }
        words.extend(self.soft_cap().map(|cap| format!("soft cap {cap}")));
        if self.scoring.sink_logits.is_some() {
            words.push("sink logits".into());
        }
        if self.span() != Span::All {
            words.push(format!("a query sees {}", self.span()));
        }
        if self.turned_rows() {
            words.push("rows come turned".into());
        }
        if words.is_empty() { Ok(()) } else { writeln!(f, "{:>14} {}", "scores", words.join(", ")) }
    }

    /// Writes the kernels of each call, and what is missing.
    pub(super) fn write_kernels(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:>14} {}", "append", self.append_kernels().join(", "))?;
        if let Some(direct) = self.direct_kernels() {
            writeln!(f, "{:>14} {direct}", "decode")?;
        }
        writeln!(f, "{:>14} {}", "decode", self.decode_kernels().join(", "))?;
        writeln!(f, "{:>14} query, unpack, {}, attend_merge", "prefill", if self.matrices() { "attend_matrices" } else { "attend_prefill" })?;
        for missing in self.missing() {
            writeln!(f, "{:>14} {missing}", "without")?;
        }
        Ok(())
    }

    fn append_kernels(&self) -> Vec<&'static str> {
        let slabs = self.slab_kinds();
        let mut names = Vec::new();
        for (name, used) in [
            ("elect", self.elects()),
            ("append_block", slabs.iter().any(|slab| self.packs_blocks(slab))),
            ("append", slabs.iter().any(|slab| !self.packs_blocks(slab))),
            ("append_reordered", self.restores()),
            ("protect", self.sinks() + self.ring() > 0),
        ] {
            names.extend(used.then_some(name));
        }
        names
    }

    /// Returns the kernels of passes of a few decoding rows, if they have their own.
    fn direct_kernels(&self) -> Option<String> {
        let rows = self.direct_rows();
        let tokens = self.direct_pages() * crate::format::PAGE_TOKENS;
        (rows > 0).then(|| format!("attend_direct, attend_merge for up to {rows} row{} over {tokens} tokens", if rows == 1 { "" } else { "s" }))
    }

    fn decode_kernels(&self) -> Vec<String> {
        let mut names = vec!["query".into()];
        if self.position_quads() > 0 {
            names.push("position".into());
        }
        if self.sinks() + self.ring() > 0 {
            names.push("attend_rows".into());
        }
        if self.aligns() {
            names.extend(["align_plan", "align_scores", "align_values"].map(String::from));
        } else {
            let lanes = if self.reduce() == Reduce::Subgroup { "subgroups" } else { "workgroup memory" };
            let walk = match (self.restores(), self.straight()) {
                (false, true) => "straight-line code",
                (false, false) => "loops",
                (true, _) => match self.restore() {
                    Restore::Shuffled => "keys restored by shuffles",
                    Restore::Straight => "keys restored as straight-line code",
                    Restore::Rolled => "keys restored in loops",
                },
            };
            names.push(format!("attend_split ({lanes}, {walk})"));
        }
        names.push("attend_merge".into());
        names
    }

    /// Returns what the device, or the plan, does without, and what it costs by the tables of
    /// docs/performance.md.
    fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if !self.matrices() {
            missing.push(if MATRIX_HEADS.contains(&self.shape.head_dim) {
                "cooperative matrices: prompts are attended at about a sixth of their rate".into()
            } else {
                format!(
                    "cooperative matrices, which serve heads of 64 and 128, not {}: prompts are attended at about a sixth of their rate",
                    self.shape.head_dim
                )
            });
        }
        if self.reduce() == Reduce::Workgroup {
            missing.push("subgroups of 32 lanes and more: long batches decode 1.15 to 1.3 times as long".into());
        }
        if self.restores() && self.restore() == Restore::Rolled {
            missing.push("keys restored in halves: decoding takes some 20 times as long".into());
        } else if !self.restores() && !self.straight() {
            missing.push("straight-line code, which software adapters do not gain from: on a GPU, decoding would take 1.2 to 1.7 times as long".into());
        }
        missing
    }
}
