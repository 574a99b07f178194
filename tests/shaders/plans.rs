//! The plans whose kernels are looked at, and every variant of every kernel: what these tests check and `cargo xtask shader` prints.

use std::collections::HashSet;
use wgkv::aligned::Alignment;
use wgkv::low_level::RowForm;
use wgkv::low_level::kernel::{self, Variant};
use wgkv::{
    Bits, Capability, Capacity, ChannelOrder, Codec, Element, Format, Means, Plan, PlanBuilder, Precision, Protection, Result, Rope, Scales, Shape, Sinks,
};

/// Invocations of attend_merge where a device allows more than WebGPU's default.
pub const WIDE_INVOCATIONS: u32 = 1024;

/// Workgroup memory of variants that compute in halves: they are made only for devices that have more than the default, as much as
/// all desktop GPUs of today have.
pub const HALVES_WORKGROUP_BYTES: u32 = 49_152;

/// The same for RotateKV's rotations over more than 512 channels, whose four tokens take 16 bytes a channel, and for its tiles of 32
/// keys of 256 halves.
pub const WIDE_WORKGROUP_BYTES: u32 = 32_768;

const HEAD_DIMS: [u32; 6] = [64, 80, 96, 128, 192, 256];
const BITS: [Bits; 4] = [Bits::Two, Bits::Three, Bits::Four, Bits::Eight];
const WIDTHS: [Bits; 5] = [Bits::Two, Bits::Three, Bits::Four, Bits::Eight, Bits::Sixteen];
/// One query head, two, four; three and seven leave places of the last block of four empty; eight and sixteen need several blocks.
const SHARES: [u32; 7] = [1, 2, 3, 4, 7, 8, 16];

/// Returns the plans whose variants are looked at. Bits, head dimensions and groups, which decide where everything lies in a page,
/// are all combined; the other columns go round beside them at lengths that have no common divisor.
///
/// # Errors
/// Those of making a plan: none, unless the table asks for what is not served.
pub fn plans() -> Result<Vec<Plan>> {
    let mut formats = Vec::new();
    for head_dim in HEAD_DIMS {
        formats.extend(SHARES.map(|_| (head_dim, Format::f16())));
        formats.extend(SHARES.map(|_| (head_dim, Format::aligned_f16())));
        for group in [32, 64, 128].into_iter().filter(|g| head_dim % (*g).min(head_dim) == 0 && (*g <= head_dim || *g == 128)) {
            for key_bits in WIDTHS {
                formats.extend(WIDTHS.map(|value_bits| (head_dim, Format::new([Codec::Rtn, Codec::Hadamard][formats.len() % 2], key_bits, value_bits, group))));
            }
        }
    }
    let plan = |(i, (head_dim, format)): (usize, (u32, Format))| {
        let ropes = [
            Rope::new(10_000.0, head_dim),
            Rope::new(10_000.0, head_dim).interleaved(),
            Rope::new(500_000.0, head_dim / 2),
            Rope::new(500_000.0, head_dim / 2).interleaved(),
            Rope::none(),
        ];
        let protections = [Protection::NONE, Protection::default(), Protection { sinks: Sinks::First(1), window: 0 }];
        let shape = Shape { layers: 1, query_heads: 2 * SHARES[i % 7], kv_heads: 2, head_dim, rope: ropes[i % 5].clone() };
        let capability = Capability { straight: i / 2 % 2 == 0, subgroups: (i / 4 % 2 == 0).then_some((32, 64)), ..Capability::webgpu_default() };
        let eight = format.key().bits == Bits::Eight || format.value().bits == Bits::Eight;
        let format = if i % 3 == 2 && !eight { format.with_scales(Scales::Byte) } else { format };
        let builder = Plan::builder(shape, format)
            .protection(protections[i % 3])
            .capacity(Capacity::tokens(1, 1024))
            .element([Element::F32, Element::F16, Element::Bf16][i / 3 % 3]);
        let builder = if i % 5 == 3 { builder.strided_rows() } else { builder };
        // The kernels of planes that count their loads, too.
        (if i % 2 == 0 { builder } else { builder.counted_loads() }, capability)
    };
    let mut plans = Vec::new();
    for (builder, capability) in formats.into_iter().enumerate().map(plan).chain(centred_plans()?) {
        plans.push(builder.clone().build(&capability)?);
        // Codes of 4 and 8 bits in planes, too; the others refuse it.
        plans.extend(builder.alignment(Alignment::budget(1.0, 1.0)).build(&capability));
    }
    plans.extend(rotated_plans()?);
    plans.extend(wide_plans()?);
    // Cooperative matrices, by head dimension and share.
    let matrices =
        Capability { halves: true, matrices: true, subgroups: Some((32, 32)), workgroup_bytes: HALVES_WORKGROUP_BYTES, ..Capability::webgpu_default() };
    for (head_dim, share, sinks) in
        [(64, 3, Sinks::First(4)), (64, 1, Sinks::First(0)), (128, 4, Sinks::First(4)), (128, 7, Sinks::First(20)), (256, 2, Sinks::First(4))]
    {
        let shape = Shape { layers: 1, query_heads: 2 * share, kv_heads: 2, head_dim, rope: Rope::new(10_000.0, head_dim) };
        let builder =
            Plan::builder(shape, Format::new(Codec::Hadamard, Bits::Four, Bits::Four, head_dim.min(128))).protection(Protection { sinks, window: 128 });
        plans.push(builder.capacity(Capacity::tokens(1, 1024)).build(&matrices)?);
    }
    Ok(plans)
}

/// Returns the plans of heads of 512, whose kernels take as many invocations, and the default's workgroup memory.
fn wide_plans() -> Result<Vec<Plan>> {
    let formats = [Codec::Rtn, Codec::Hadamard, Codec::Centred].into_iter().flat_map(|codec| {
        WIDTHS
            .into_iter()
            .flat_map(move |key| WIDTHS.map(|value| (codec, key, value)))
            .enumerate()
            .map(|(i, (codec, key, value))| Format::new(codec, key, value, [64, 128][i % 2]))
    });
    let plan = |(i, format): (usize, Format)| {
        let ropes = [Rope::new(10_000.0, 512), Rope::new(1_000_000.0, 512), Rope::new(500_000.0, 128).interleaved(), Rope::none()];
        let shape = Shape { layers: 1, query_heads: SHARES[i % 7], kv_heads: 1, head_dim: 512, rope: ropes[i % 4].clone() };
        let subgroups = (i % 2 == 0).then_some((32, 64));
        let capability = Capability { straight: i / 2 % 2 == 0, subgroups, invocations: 512, workgroup_size_x: 512, ..Capability::webgpu_default() };
        let layer = || vec![1.0; 512];
        let means = if format.codec() == Codec::Centred { Some(Means::new(&shape, "", vec![[layer(), layer(), layer()]])?.into()) } else { None };
        let protection = [Protection::NONE, Protection::default(), Protection { sinks: Sinks::Massive(20), window: 16 }][i % 3];
        let builder = Plan::builder(shape, format).protection(protection).capacity(Capacity::tokens(1, 1024)).learned(means);
        builder.element([Element::F32, Element::F16, Element::Bf16][i / 3 % 3]).build(&capability)
    };
    std::iter::once(Format::f16()).chain(formats).enumerate().map(plan).collect()
}

/// Returns Centred's plans: bits, head dimensions and both walks, with means that turn, with slow pairs of RoPE alone, and without means.
fn centred_plans() -> Result<Vec<(PlanBuilder, Capability)>> {
    let widths = || WIDTHS.into_iter().flat_map(|key| WIDTHS.map(|value| (key, value)));
    let plain = HEAD_DIMS.into_iter().enumerate().flat_map(|(d, head_dim)| widths().map(move |(key, value)| (d, head_dim, key, value)));
    let plain = plain.enumerate().map(|(i, (d, head_dim, key, value))| {
        let group = [32, 64, 128].into_iter().cycle().skip(i).find(|g| head_dim % (*g).min(head_dim) == 0).unwrap_or(128);
        (d, head_dim, Precision::new(key, group), Precision::new(value, group))
    });
    // By a trellis: of keys, of values, of both, each as straight-line code and in loops, with subgroups and without, beside all bits.
    let coded = HEAD_DIMS.into_iter().filter(|head_dim| *head_dim != 192).flat_map(|head_dim| [0, 1].map(|d| (d, head_dim))).enumerate().flat_map(
        |(n, (d, head_dim))| {
            let [one, other] = [0, 1].map(|more| Precision::new(WIDTHS[(n + more) % 5], 128));
            [(Precision::TRELLIS, one), (other, Precision::TRELLIS), (Precision::TRELLIS, Precision::TRELLIS), (Precision::TRELLIS, other)]
                .map(|(key, value)| (d, head_dim, key, value))
        },
    );
    // Counted from an odd number, by which shares, walks and subgroups meet each other in all ways.
    let formats = plain.enumerate().chain(coded.enumerate().map(|(i, format)| (i + 125, format)));
    let plan = |(i, (d, head_dim, key, value)): (usize, (usize, u32, Precision, Precision))| {
        let slow = Rope::none().with_frequencies(vec![0.01; head_dim as usize / 4]);
        let ropes = [Rope::new(10_000.0, head_dim), slow, Rope::new(500_000.0, head_dim / 2).interleaved(), Rope::new(10_000.0, head_dim), Rope::none()];
        let protections = [Protection::NONE, Protection::default(), Protection { sinks: Sinks::First(1), window: 0 }];
        let shape = Shape { layers: 1, query_heads: 2 * SHARES[i % 7], kv_heads: 2, head_dim, rope: ropes[i % 5].clone() };
        let capability = Capability { straight: d % 2 == 0, subgroups: (i % 2 == 0).then_some((32, 64)), ..Capability::webgpu_default() };
        let format = Format::new(Codec::Centred, Bits::Two, Bits::Two, 128).with_precisions(key, value);
        let builder = Plan::builder(shape.clone(), format)
            .protection(protections[i % 3])
            .capacity(Capacity::tokens(1, 1024))
            .element([Element::F32, Element::F16, Element::Bf16][i / 3 % 3]);
        let layer = || vec![1.0; 2 * head_dim as usize];
        let means = Means::new(&shape, "", vec![[layer(), layer(), layer()]])?;
        let builder = if i % 7 == 2 { builder.strided_rows() } else { builder };
        Ok((if i % 4 == 3 { builder } else { builder.learned(means) }, capability))
    };
    formats.map(plan).collect()
}

/// Head dimension, heads that are rotated together, bits of keys, scales, and bits of values where they matter; numbered.
type Numbered = (usize, (u32, u32, Bits, Scales, Option<Bits>));

/// Returns RotateKV's plans: bits, head dimensions and heads that are rotated together are all combined, on a device of WebGPU's default
/// limits and on one that computes in halves.
fn rotated_plans() -> Result<Vec<Plan>> {
    let mut formats = Vec::new();
    for (head_dim, heads) in HEAD_DIMS.into_iter().flat_map(|d| [1, 2, 4, 8].map(|heads| (d, heads))).filter(|(d, heads)| d * heads <= 1024) {
        for key_bits in BITS {
            for scales in [Scales::Half, Scales::Byte].into_iter().filter(|s| key_bits != Bits::Eight || *s == Scales::Half) {
                formats.push((head_dim, heads, key_bits, scales, None));
            }
        }
    }
    let plan = |(i, (head_dim, heads, key_bits, scales, every)): Numbered, halves: bool, subgroups: bool| {
        let ropes = [Rope::new(10_000.0, head_dim), Rope::none(), Rope::new(10_000.0, head_dim).interleaved(), Rope::new(500_000.0, head_dim / 2)];
        // What has no straight code is left to the default device.
        let rope = ropes[if halves { i % 2 } else { i % 4 }].clone();
        let protections = [Protection::NONE, Protection::default(), Protection { sinks: Sinks::Massive(20), window: 0 }];
        let value_bits = every.unwrap_or(if scales == Scales::Byte { BITS[i % 3] } else { WIDTHS[i / 3 % 5] });
        let group = [32, 64, 128].into_iter().cycle().skip(i).find(|g| head_dim % (*g).min(head_dim) == 0).unwrap_or(128);
        let format = Format::new(Codec::RotateKv, key_bits, value_bits, group).with_heads_per_group(heads).with_scales(scales);
        // More than 32 groups a row are not shuffled.
        let kv_heads = heads * if every.is_some() { 1 } else { [1, 3][i % 2] };
        let shape = Shape { layers: 1, query_heads: kv_heads * SHARES[i % 7], kv_heads, head_dim, rope };
        let subgroups = subgroups.then_some((32, 32));
        // Scratch for 24 KV heads of 16 query heads is more than the default binding holds.
        let capability = Capability { binding_bytes: 1 << 30, buffer_bytes: 1 << 30, ..Capability::webgpu_default() };
        let capability = if halves {
            let (invocations, workgroup_size_x) = (WIDE_INVOCATIONS, WIDE_INVOCATIONS);
            Capability { straight: true, halves: true, workgroup_bytes: HALVES_WORKGROUP_BYTES, invocations, workgroup_size_x, subgroups, ..capability }
        } else {
            // So do values in f16, a weight a token and unit.
            let workgroup_bytes =
                if heads * head_dim > 512 || head_dim == 256 || value_bits == Bits::Sixteen { WIDE_WORKGROUP_BYTES } else { capability.workgroup_bytes };
            Capability { straight: i % 2 == 0, subgroups, workgroup_bytes, ..capability }
        };
        let builder = Plan::builder(shape.clone(), format)
            .protection(protections[i % 3])
            .capacity(Capacity::tokens(1, 1024))
            .learned(ChannelOrder::natural(&shape, heads)?)
            .element([Element::F32, Element::F16, Element::Bf16][i / 3 % 3]);
        if i % 5 == 1 { builder.strided_rows() } else { builder }.build(&capability)
    };
    let served = |(_, (head_dim, heads, ..)): &Numbered| [64, 128].contains(head_dim) && *heads <= 4;
    // What has ways of its own to restore keys in halves, with every width of keys and values; numbered so that every width of the
    // keys meets shares of 1, 2, 3 and 4.
    let every_pair = [(64, 1), (128, 4)].into_iter().flat_map(|(head_dim, heads)| {
        let bits = (0..16).flat_map(|n| [Scales::Half, Scales::Byte].map(|scales| (n, BITS[n / 4], BITS[n % 4], scales)));
        let allowed = bits.filter(|(_, key, value, scales)| *scales == Scales::Half || (*key != Bits::Eight && *value != Bits::Eight));
        let halves = (0..4).map(|n| (n, BITS[n], Bits::Sixteen, Scales::Half));
        let numbered = allowed.map(|(n, key, value, scales)| (7 * (n / 4) + n % 4, key, value, scales)).chain(halves);
        numbered.map(move |(i, key, value, scales)| (i, (head_dim, heads, key, scales, Some(value))))
    });
    let straight = formats.clone().into_iter().enumerate().filter(served).map(|format| plan(format, true, format.0 / 2 % 2 == 0));
    let portable = formats.iter().cloned().enumerate().map(|format| plan(format, false, format.0 / 2 % 2 == 0));
    portable.chain(straight).chain(every_pair.map(|format| plan(format, true, true))).collect()
}

/// Returns the variants of kernels that belong to no plan: those that learn.
pub fn planless_variants() -> Vec<Variant> {
    let rotations = kernel::rotate::ORDERS
        .into_iter()
        .flat_map(|order| [32, 64, 128].into_iter().flat_map(move |n| [false, true].map(|in_place| kernel::rotate::variant(order, in_place, n))));
    let forms = [Element::F32, Element::F16, Element::Bf16].into_iter().flat_map(|element| [false, true].map(|strided| RowForm { element, strided }));
    let ropes = [None, Some(Rope::new(10_000.0, 64)), Some(Rope::new(10_000.0, 32).interleaved())];
    let measures = forms.flat_map(|rows| ropes.each_ref().map(|rope| (rows, rope.as_ref())));
    let measures: Vec<Variant> = measures.flat_map(|(rows, rope)| [false, true].map(|squares| kernel::measure::variant(rows, squares, rope))).collect();
    let grams = HEAD_DIMS.into_iter().chain([512]).flat_map(|head_dim| [false, true].map(|difference| kernel::gram::variant(head_dim, difference)));
    rotations.chain(measures).chain(grams).collect()
}

/// Returns every variant once.
///
/// # Errors
/// Those of making a plan.
pub fn variants() -> Result<Vec<Variant>> {
    let mut seen = HashSet::new();
    let plans = plans()?;
    let variants = plans.iter().flat_map(kernel::variants).chain(planless_variants());
    Ok(variants.filter(|variant| seen.insert(variant.clone())).collect())
}
