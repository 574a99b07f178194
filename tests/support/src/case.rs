//! Rows of the tests' tables: shapes, formats and devices, and the steps that are walked with them.

use wgkv::aligned::Alignment;
use wgkv::bits::BitPlan;
use wgkv::learned::Reach;
use wgkv::{Bits, Capability, Capacity, ChannelOrder, Code, Codec, Element, Format, Gpu, Means, Plan, Precision, Protection, Rope, Shape, Sinks, Span};

use crate::learning;

/// One row of a test's table: made by [`case`], changed by its methods, walked by a
/// [`Walk`](crate::Walk).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Case {
    /// Why it is in the table.
    pub why: &'static str,
    /// The model's shape.
    pub shape: Shape,
    /// How tokens are stored.
    pub format: Format,
    /// Which tokens stay f16.
    pub protection: Protection,
    /// The type of the caller's rows.
    pub element: Element,
    /// For Centred: means and weights, drawn by [`Walk::new`](crate::Walk::new) if there are none.
    /// The means of the keys are then what keys have in common.
    pub means: Option<Means>,
    /// For RotateKV: the order of channels, drawn by [`Walk::new`](crate::Walk::new) if there is
    /// none.
    pub channel_order: Option<ChannelOrder>,
    /// For RotateKV: how far the order of channels reaches.
    pub reach: Reach,
    /// For AlignedF16, and where integer codes are stored in planes: the planes that decoding
    /// reads.
    pub alignment: Alignment,
    /// Which tokens a query sees.
    pub span: Span,
    /// The factor on products of keys and queries, if not `1 / sqrt(head_dim)`.
    pub score_scale: Option<f32>,
    /// What scores are capped to.
    pub soft_cap: Option<f32>,
    /// A logit for each query head, drawn by [`Walk::new`](crate::Walk::new) where the case asks for
    /// some.
    pub sink_logits: Option<Vec<f32>>,
    /// Whether keys and queries come turned by RoPE.
    pub turned: bool,
    /// Tokens that every sequence holds, or up to 127 more, after it slid before each step.
    pub keep: Option<u32>,
    /// (sequence, new tokens), by step.
    pub steps: Vec<Vec<(usize, u32)>>,
    precisions: Vec<[Precision; 2]>,
    split_workgroups: Option<u32>,
    direct: bool,
    counted: bool,
    /// Whether every KV head has a slab of its own.
    pub slabs: bool,
    straight: Option<bool>,
    subgroups: bool,
    invocations: Option<u32>,
    workgroups: Option<u32>,
    unpacked_tiles: Option<u32>,
    matrices: bool,
}

/// Returns a case of f32 rows with full RoPE in split halves, nothing protected, and two sequences
/// whose chunks begin inside a block of 32 and inside a page, with a decode step between.
pub fn case(why: &'static str, head_dim: u32, query_heads: u32, kv_heads: u32, format: Format) -> Case {
    Case {
        why,
        shape: Shape { layers: 1, query_heads, kv_heads, head_dim, rope: Rope::new(10_000.0, head_dim) },
        format,
        protection: Protection::NONE,
        element: Element::F32,
        means: None,
        channel_order: None,
        reach: Reach::Global,
        alignment: Alignment::EVERYTHING,
        span: Span::All,
        score_scale: None,
        soft_cap: None,
        sink_logits: None,
        turned: false,
        keep: None,
        steps: vec![vec![(0, 45), (1, 131)], vec![(1, 1), (0, 1)], vec![(0, 90), (1, 3)]],
        precisions: Vec::new(),
        split_workgroups: None,
        direct: false,
        counted: false,
        slabs: false,
        straight: None,
        subgroups: true,
        invocations: None,
        workgroups: None,
        unpacked_tiles: None,
        matrices: true,
    }
}

impl Case {
    /// Gives it another reason to be in the table.
    pub fn why(mut self, why: &'static str) -> Self {
        self.why = why;
        self
    }

    /// Replaces the shape.
    pub fn shape(mut self, shape: Shape) -> Self {
        self.shape = shape;
        self
    }

    /// Replaces RoPE.
    pub fn rope(mut self, rope: Rope) -> Self {
        self.shape.rope = rope;
        self
    }

    /// Replaces the format.
    pub fn format(mut self, format: Format) -> Self {
        self.format = format;
        self
    }

    /// Gives every KV head a precision of its keys and one of its values, which are otherwise the
    /// format's.
    pub fn precisions(mut self, precisions: Vec<[Precision; 2]>) -> Self {
        self.precisions = precisions;
        self
    }

    /// Stores the keys and values of four KV heads in three ways, the first and the last alike.
    /// Half of the keys and a fourth of the values are not codes but halves.
    pub fn three_ways(self) -> Self {
        let alike = [Precision::new(Bits::Two, 32), Precision::new(Bits::Eight, 64)];
        let precisions = vec![alike, [Precision::F16, Precision::new(Bits::Three, 32)], [Precision::new(Bits::Four, 128), Precision::F16], alike];
        self.precisions(precisions)
    }

    /// Stores the keys and values of four KV heads in four ways, with a trellis of both, of keys, of values
    /// and of neither.
    pub fn some_trellis(self) -> Self {
        let [two, four] = [Bits::Two, Bits::Four].map(|bits| Precision::new(bits, 32));
        let coded = Precision::TRELLIS;
        self.precisions(vec![[coded; 2], [coded, Precision::F16], [four, coded], [two, four]])
    }

    /// For RotateKV: stores the values of four KV heads, rotated in pairs, in two ways.
    pub fn two_ways(self) -> Self {
        let key = self.format.key();
        let [first, second] = [Precision::new(Bits::Two, 32), Precision::F16].map(|value| [key, value]);
        self.precisions(vec![first, first, second, second])
    }

    /// Protects tokens.
    pub fn protection(mut self, protection: Protection) -> Self {
        self.protection = protection;
        self
    }

    /// Sets the type of the caller's rows.
    pub fn element(mut self, element: Element) -> Self {
        self.element = element;
        self
    }

    /// Gives Centred its means and weights.
    pub fn means(mut self, means: impl Into<Option<Means>>) -> Self {
        self.means = means.into();
        self
    }

    /// Sets how far RotateKV's order of channels reaches.
    pub fn reach(mut self, reach: Reach) -> Self {
        self.reach = reach;
        self
    }

    /// Chooses the planes that decoding reads.
    pub fn alignment(mut self, alignment: Alignment) -> Self {
        self.alignment = alignment;
        self
    }

    /// Stores integer codes in planes, all of which are read.
    pub fn in_planes(self) -> Self {
        self.alignment(Alignment::budget(0.0, 0.0))
    }

    /// Lets kernels count their loads of planes.
    pub fn counted(mut self) -> Self {
        self.counted = true;
        self
    }

    /// Sets sliding-window attention.
    pub fn sliding_window(mut self, tokens: u32) -> Self {
        self.span = Span::Sliding(tokens);
        self
    }

    /// Sets chunked attention.
    pub fn chunked(mut self, tokens: u32) -> Self {
        self.span = Span::Chunked(tokens);
        self
    }

    /// Sets the factor on products, as a multiple of `1 / sqrt(head_dim)`.
    pub fn score_scale(mut self, times: f32) -> Self {
        self.score_scale = Some(times / (self.shape.head_dim as f32).sqrt());
        self
    }

    /// Caps scores.
    pub fn soft_cap(mut self, cap: f32) -> Self {
        self.soft_cap = Some(cap);
        self
    }

    /// Gives query heads sink logits.
    pub fn sink_logits(mut self) -> Self {
        self.sink_logits = Some(Vec::new());
        self
    }

    /// Lets keys and queries come turned by RoPE.
    pub fn turned(mut self) -> Self {
        self.turned = true;
        self
    }

    /// Lets all sequences slide before every step, so that they hold `tokens` tokens or up to 127
    /// more.
    pub fn keep(mut self, tokens: u32) -> Self {
        self.keep = Some(tokens);
        self
    }

    /// Replaces the steps: (sequence, new tokens) of each.
    pub fn steps(mut self, steps: Vec<Vec<(usize, u32)>>) -> Self {
        self.steps = steps;
        self
    }

    /// Sets how many workgroups a decode pass is split into.
    pub fn split_workgroups(mut self, workgroups: u32) -> Self {
        self.split_workgroups = Some(workgroups);
        self
    }

    /// Lets attend_direct take the passes that it takes by default. Otherwise no pass is its, so that
    /// the other kernels of decoding are seen.
    pub fn direct(mut self) -> Self {
        self.direct = true;
        self
    }

    /// Pretends bindings so small that every KV head has a slab of its own.
    pub fn slabs(mut self) -> Self {
        self.slabs = true;
        self
    }

    /// Pretends a device that prefers straight-line code, or one that does not.
    pub fn straight(mut self, straight: impl Into<Option<bool>>) -> Self {
        self.straight = straight.into();
        self
    }

    /// Pretends a device whose shaders have no subgroup operations: attend_split then reduces
    /// through workgroup memory.
    pub fn no_subgroups(mut self) -> Self {
        self.subgroups = false;
        self
    }

    /// Pretends a device that allows no more than `invocations` invocations of a workgroup.
    pub fn invocations(mut self, invocations: u32) -> Self {
        self.invocations = Some(invocations);
        self
    }

    /// Pretends a device whose grids have no more than `workgroups` workgroups in a dimension.
    pub fn workgroups(mut self, workgroups: u32) -> Self {
        self.workgroups = Some(workgroups);
        self
    }

    /// Leaves room for no more than this many unpacked tiles of 32 tokens, so that prefills take
    /// several rounds.
    pub fn unpacked_tiles(mut self, tiles: u32) -> Self {
        self.unpacked_tiles = Some(tiles);
        self
    }

    /// Pretends a device without cooperative matrices.
    pub fn no_matrices(mut self) -> Self {
        self.matrices = false;
        self
    }

    /// Returns the number of sequences, and the most tokens that one of them reaches.
    pub(crate) fn size(&self) -> (u32, u32) {
        let mut tokens = Vec::new();
        for (sequence, new) in self.steps.iter().flatten() {
            tokens.resize(tokens.len().max(sequence + 1), 0);
            tokens[*sequence] += new;
        }
        (tokens.len() as u32, tokens.into_iter().max().expect("a step"))
    }

    /// Returns the device as the case pretends it, but for small bindings.
    pub(crate) fn pretend(&self, gpu: &Gpu) -> Gpu {
        let mut capability = *gpu.capability();
        capability.straight = self.straight.unwrap_or(capability.straight);
        if !self.subgroups {
            capability = capability.without_subgroups();
        }
        capability.matrices &= self.matrices;
        capability.invocations = self.invocations.unwrap_or(capability.invocations);
        capability.workgroups = self.workgroups.unwrap_or(capability.workgroups);
        // Pipelines are compiled anew for every pretended device.
        if capability == *gpu.capability() { gpu.clone() } else { gpu.pretend(capability) }
    }

    /// Returns the plan, with room for `sequences` sequences of `tokens` tokens.
    pub(crate) fn plan(&self, sequences: u32, tokens: u32, capability: &Capability) -> Plan {
        let precisions = |_: u32, head: u32| self.precisions.get(head as usize).copied().unwrap_or([self.format.key(), self.format.value()]);
        let bits = BitPlan::new(&self.shape, self.format, precisions).expect("the case's precisions fit");
        let mut builder = Plan::builder(self.shape.clone(), bits)
            .protection(self.protection)
            .capacity(Capacity::tokens(sequences, tokens))
            .element(self.element)
            .alignment(self.alignment);
        if self.counted {
            builder = builder.counted_loads();
        }
        // Where bindings are to be small, scratch must be.
        if let Some(tiles) = self.unpacked_tiles.or(self.slabs.then_some(16)) {
            builder = builder.unpacked_tiles(tiles);
        }
        builder = match self.span {
            Span::Sliding(tokens) => builder.sliding_window(tokens),
            Span::Chunked(tokens) => builder.chunked_attention(tokens),
            _ => builder,
        };
        if let Some(scale) = self.score_scale {
            builder = builder.score_scale(scale);
        }
        if let Some(cap) = self.soft_cap {
            builder = builder.soft_cap(cap);
        }
        if let Some(logits) = &self.sink_logits {
            builder = builder.sink_logits(logits.clone());
        }
        builder = builder.turned_rows(self.turned);
        if !self.direct {
            builder = builder.direct_rows(0);
        }
        if let Some(workgroups) = self.split_workgroups {
            builder = builder.split_workgroups(workgroups);
        }
        let builder = learning(learning(builder, self.means.as_ref()), self.channel_order.as_ref());
        builder.build(capability).expect("the case's plan can be made")
    }
}

/// Returns the format of rounding to nearest.
pub fn rtn(key: Bits, value: Bits, group: u32) -> Format {
    Format::new(Codec::Rtn, key, value, group)
}

/// Returns Hadamard's format.
pub fn hadamard(key: Bits, value: Bits, group: u32) -> Format {
    Format::new(Codec::Hadamard, key, value, group)
}

/// Returns Centred's format.
pub fn centred(key: Bits, value: Bits, group: u32) -> Format {
    Format::new(Codec::Centred, key, value, group)
}

/// Returns Centred's format with a trellis of both.
pub fn trellis(group: u32) -> Format {
    centred(Bits::Two, Bits::Two, group).with_codes(Code::Trellis, Code::Trellis)
}

/// Returns Centred's format with a trellis of keys, or else of values, beside other bits for the other.
pub fn trellis_beside(keys: bool, other: Bits) -> Format {
    let other = Precision::new(other, 128);
    let (key, value) = if keys { (Precision::TRELLIS, other) } else { (other, Precision::TRELLIS) };
    centred(Bits::Two, Bits::Two, 128).with_precisions(key, value)
}

/// Returns RotateKV's format with `heads` KV heads rotated together.
pub fn rotated(key: Bits, value: Bits, group: u32, heads: u32) -> Format {
    Format::new(Codec::RotateKv, key, value, group).with_heads_per_group(heads)
}

/// Returns the protection of the first `sinks` tokens and of a window.
pub fn protect(sinks: u32, window: u32) -> Protection {
    Protection { sinks: if sinks == 0 { Sinks::None } else { Sinks::First(sinks) }, window }
}

/// Returns the protection of elected sinks and of a window.
pub fn massive(sinks: u32, window: u32) -> Protection {
    Protection { sinks: Sinks::Massive(sinks), window }
}
