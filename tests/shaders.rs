//! Every kernel in every variant, by naga alone: no GPU, any machine.
//!
//! The contract of a variant: its parts join into one module whose constants are exactly those the kernel declares; naga
//! accepts it with only the capabilities that the variant declares; it stays within WebGPU's default limits; its bindings
//! and its parameters are those of the Rust side; and it translates to every language that a driver may want. House rules
//! that no compiler knows are checked on the parsed module.
//!
//! All variants are looked at before a test fails, so that one run tells everything.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use naga::back::{glsl, hlsl, msl, spv};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Block, Module, ShaderStage, Statement, StorageAccess, TypeInner};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Write as _;
use std::mem::offset_of;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use wgkv::aligned::Alignment;
use wgkv::low_level::kernel::{self, Binding, Kernel, Variant};
use wgkv::low_level::{Dialect, Linked, Source};
use wgkv::{Bits, Capability, Capacity, ChannelOrder, Codec, Element, Format, Means, Plan, PlanBuilder, Protection, Rope, Scales, Shape, Sinks};

/// WebGPU's default limits, which the portable variants keep to.
const INVOCATIONS: u32 = 256;
const WORKGROUP_BYTES: u32 = 16_384;
const STORAGE_BUFFERS: usize = 8;

/// Invocations of attend_merge where a device allows more than the default.
const WIDE_INVOCATIONS: u32 = 1024;

/// Workgroup memory of variants that compute in halves: they are made only for devices that have more than the default, as much as
/// all desktop GPUs of today have.
const HALVES_WORKGROUP_BYTES: u32 = 49_152;

/// The same for RotateKV's rotations over more than 512 channels, whose four tokens take 16 bytes a channel, and for its tiles of 32
/// keys of 256 halves.
const WIDE_WORKGROUP_BYTES: u32 = 32_768;

/// Kernels that may use atomics: they list broken tokens in `status` (append_reordered finds the extents of groups that lie
/// anywhere in a row, align_plan counts weights). Everything else owns the words it writes.
const ATOMIC_KERNELS: [&str; 5] = ["align_plan", "append", "append_block", "append_reordered", "protect"];

/// Variants that naga's GLSL writer cannot write as `310 es` compute, each a part of the variant's label, with the reason.
/// Packed dot products are polyfilled and subgroups have an extension. One that starts to pass fails the test.
const GLSL_EXCLUDED: [(&str, &str); 2] =
    [("restore_straight", "GLSL ES has no halves, and devices of OpenGL never offer the feature"), ("restore_shuffled", "the same")];

const HEAD_DIMS: [u32; 5] = [64, 80, 96, 128, 256];
const BITS: [Bits; 4] = [Bits::Two, Bits::Three, Bits::Four, Bits::Eight];
const WIDTHS: [Bits; 5] = [Bits::Two, Bits::Three, Bits::Four, Bits::Eight, Bits::Sixteen];
/// One query head, two, four; three and seven leave places of the last block of four empty; eight and sixteen need several blocks.
const SHARES: [u32; 7] = [1, 2, 3, 4, 7, 8, 16];

/// The plans whose variants are looked at. Bits, head dimensions and groups, which decide where everything lies in a page,
/// are all combined; the other columns go round beside them at lengths that have no common divisor.
fn plans() -> Vec<Plan> {
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
        let builder =
            Plan::builder(shape, format).protection(protections[i % 3]).capacity(Capacity::tokens(1, 1024)).element([Element::F32, Element::F16][i / 3 % 2]);
        // The kernels of planes that count their loads, too.
        (if i % 2 == 0 { builder } else { builder.counted_loads() }, capability)
    };
    // Codes of 4 and 8 bits in planes, too.
    let both = |(builder, capability): (PlanBuilder, Capability)| {
        let plan = builder.clone().build(&capability).unwrap();
        std::iter::once(plan).chain(builder.alignment(Alignment::budget(1.0, 1.0)).build(&capability).ok())
    };
    formats.into_iter().enumerate().map(plan).chain(centred_plans()).flat_map(both).chain(rotated_plans()).collect()
}

/// Centred's plans: bits, head dimensions and both walks, with means that turn, with slow pairs of RoPE alone, and without means.
fn centred_plans() -> Vec<(PlanBuilder, Capability)> {
    let widths = || WIDTHS.into_iter().flat_map(|key| WIDTHS.map(|value| (key, value)));
    let formats = HEAD_DIMS.into_iter().enumerate().flat_map(|(d, head_dim)| widths().map(move |(key, value)| (d, head_dim, key, value)));
    let plan = |(i, (d, head_dim, key_bits, value_bits)): (usize, (usize, u32, Bits, Bits))| {
        let slow = Rope::none().with_frequencies(vec![0.01; head_dim as usize / 4]);
        let ropes = [Rope::new(10_000.0, head_dim), slow, Rope::new(500_000.0, head_dim / 2).interleaved(), Rope::new(10_000.0, head_dim), Rope::none()];
        let protections = [Protection::NONE, Protection::default(), Protection { sinks: Sinks::First(1), window: 0 }];
        let group = [32, 64, 128].into_iter().cycle().skip(i).find(|g| *g == 128 || head_dim % g == 0).unwrap_or(128);
        let shape = Shape { layers: 1, query_heads: 2 * SHARES[i % 7], kv_heads: 2, head_dim, rope: ropes[i % 5].clone() };
        let capability = Capability { straight: d % 2 == 0, subgroups: (i % 2 == 0).then_some((32, 64)), ..Capability::webgpu_default() };
        let format = Format::new(Codec::Centred, key_bits, value_bits, group);
        let builder = Plan::builder(shape.clone(), format)
            .protection(protections[i % 3])
            .capacity(Capacity::tokens(1, 1024))
            .element([Element::F32, Element::F16][i / 3 % 2]);
        let layer = || vec![1.0; 2 * head_dim as usize];
        let means = || Means::new(&shape, "", vec![[layer(), layer(), layer()]]).unwrap();
        (if i % 4 == 3 { builder } else { builder.learned(means()) }, capability)
    };
    formats.enumerate().map(plan).collect()
}

/// Head dimension, heads that are rotated together, bits of keys, scales, and bits of values where they matter; numbered.
type Numbered = (usize, (u32, u32, Bits, Scales, Option<Bits>));

/// RotateKV's plans: bits, head dimensions and heads that are rotated together are all combined, on a device of WebGPU's default
/// limits and on one that computes in halves.
fn rotated_plans() -> Vec<Plan> {
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
        let group = [32, 64, 128].into_iter().cycle().skip(i).find(|g| *g == 128 || head_dim % g == 0).unwrap_or(128);
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
            .learned(ChannelOrder::natural(&shape, heads).unwrap())
            .element([Element::F32, Element::F16][i / 3 % 2]);
        builder.build(&capability).unwrap()
    };
    let served = |(_, (head_dim, heads, ..)): &Numbered| [64, 128].contains(head_dim) && *heads <= 4;
    // What has ways of its own to restore keys in halves, with every width of keys and values; numbered so that every width of the
    // keys meets shares of 1, 2, 3 and 4.
    let every_pair = [(64, 1), (128, 4)].into_iter().flat_map(|(head_dim, heads)| {
        let bits = (0..16).flat_map(|n| [Scales::Half, Scales::Byte].map(|scales| (n, BITS[n / 4], BITS[n % 4], scales)));
        let allowed = bits.filter(|(_, key, value, scales)| *scales == Scales::Half || (*key != Bits::Eight && *value != Bits::Eight));
        allowed.map(move |(n, key, value, scales)| (7 * (n / 4) + n % 4, (head_dim, heads, key, scales, Some(value))))
    });
    let straight = formats.clone().into_iter().enumerate().filter(served).map(|format| plan(format, true, format.0 / 2 % 2 == 0));
    let portable = formats.iter().cloned().enumerate().map(|format| plan(format, false, format.0 / 2 % 2 == 0));
    portable.chain(straight).chain(every_pair.map(|format| plan(format, true, true))).collect()
}

/// A variant that naga has read and found valid.
struct Proven {
    variant: Variant,
    module: Module,
    info: ModuleInfo,
}

/// Reads and validates with the capabilities that the variant declares and no other: subgroups, halves. Packed dot products need none.
/// `unpack2x16float` is core WGSL, and naga's flag for it stands for what every WebGPU adapter has (only some of OpenGL's
/// lack it): halves in 32-bit words are how all kernels read scales.
fn prove(linked: &Linked, subgroups: bool, halves: bool) -> Result<(Module, ModuleInfo), String> {
    let module = naga::front::wgsl::parse_str(&linked.source).map_err(|e| linked.locate(&e.emit_to_string(&linked.source)))?;
    let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    capabilities.set(Capabilities::SUBGROUP, subgroups);
    capabilities.set(Capabilities::SHADER_FLOAT16, halves);
    let info = Validator::new(ValidationFlags::all(), capabilities).validate(&module).map_err(|e| linked.locate(&e.emit_to_string(&linked.source)))?;
    Ok((module, info))
}

/// Every variant once, proven; the whole list of complaints if one is not.
fn all() -> &'static [Proven] {
    static ALL: OnceLock<Result<Vec<Proven>, String>> = OnceLock::new();
    let proven = ALL.get_or_init(|| {
        let mut seen = HashSet::new();
        let rotations = kernel::rotate::ORDERS
            .into_iter()
            .flat_map(|order| [32, 64, 128].into_iter().flat_map(move |n| [false, true].map(|in_place| kernel::rotate::variant(order, in_place, n))));
        let measures = [Element::F32, Element::F16].into_iter().flat_map(|element| [false, true].map(|squares| kernel::measure::variant(element, squares)));
        let grams = HEAD_DIMS.into_iter().flat_map(|head_dim| [false, true].map(|difference| kernel::gram::variant(head_dim, difference)));
        let variants =
            plans().iter().flat_map(kernel::variants).chain(rotations).chain(measures).chain(grams).filter(|v| seen.insert(v.clone())).collect::<Vec<_>>();
        let mut proven = Vec::new();
        let mut complaints = String::new();
        for variant in variants {
            match prove(&variant.link(Dialect::Naga), variant.subgroups, variant.halves) {
                Ok((module, info)) => proven.push(Proven { variant, module, info }),
                Err(complaint) => _ = writeln!(complaints, "{variant}:\n{complaint}"),
            }
        }
        if complaints.is_empty() { Ok(proven) } else { Err(complaints) }
    });
    match proven {
        Ok(proven) => proven,
        Err(complaints) => panic!("{complaints}"),
    }
}

/// Looks at every variant, then fails with all complaints and the variants they are about.
fn every(mut complaint: impl FnMut(&Proven) -> Vec<String>) {
    let mut complaints = String::new();
    for proven in all() {
        for text in complaint(proven) {
            _ = writeln!(complaints, "{}: {text}", proven.variant);
        }
    }
    assert!(complaints.is_empty(), "{complaints}");
}

fn unequal<T: PartialEq + std::fmt::Debug>(what: &str, got: T, wanted: T) -> Vec<String> {
    if got == wanted { Vec::new() } else { vec![format!("{what} is {got:?}, but {wanted:?} is wanted")] }
}

/// Names of the files `*.wgsl` in a folder, without the ending.
fn files(folder: &str) -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|e| e == "wgsl")).map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

#[test]
fn every_file_is_linked_by_some_variant() {
    let kernels: BTreeSet<String> = all().iter().map(|p| p.variant.kernel.name.to_owned()).collect();
    assert_eq!(kernels, files("shaders"), "left: kernels that a variant links, right: files in shaders/");
    assert_eq!(kernels, kernel::ALL.iter().map(|k| k.name.to_owned()).collect(), "right: kernel::ALL");
    let parts: BTreeSet<String> =
        all().iter().flat_map(|p| &p.variant.parts).map(|part| part.path.trim_start_matches("part/").trim_end_matches(".wgsl").to_owned()).collect();
    assert_eq!(parts, files("shaders/part"), "left: parts that a variant links, right: files in shaders/part/");
    println!("{} variants of {} kernels with {} parts", all().len(), kernels.len(), parts.len());
}

#[test]
fn the_table_reaches_every_choice_of_attend_split() {
    let split: Vec<&Variant> = all().iter().map(|p| &p.variant).filter(|v| v.kernel.name == "attend_split").collect();
    // How RotateKV's keys are restored belongs to the keys.
    let stem = |variant: &Variant, prefix: &str| -> Vec<&'static str> {
        let names = variant.parts.iter().map(|p| p.path.trim_start_matches("part/").trim_end_matches(".wgsl"));
        names.filter(|p| p.starts_with(prefix) || (prefix == "keys_" && ["restore_", "codes_", "words_"].iter().any(|prefix| p.starts_with(prefix)))).collect()
    };
    for (one, other) in [
        ("keys_", "values_"),
        ("heads_", "reduce_"),
        ("heads_", "keys_"),
        ("reduce_", "keys_"),
        ("reduce_", "values_"),
        ("heads_", "values_"),
        ("scales_", "keys_"),
        ("scales_", "values_"),
    ] {
        let pairs: BTreeSet<_> = split.iter().map(|v| (stem(v, one), stem(v, other))).collect();
        let (ones, others): (BTreeSet<_>, BTreeSet<_>) = pairs.iter().cloned().unzip();
        let missing: Vec<_> = ones
            .iter()
            .flat_map(|a| others.iter().map(move |b| (a, b)))
            // f16 is keys and values alike, and the walk is straight for both or for neither.
            .filter(|(a, b)| {
                let straight = ["keys_straight", "restore_straight", "restore_shuffled"].iter().any(|part| a.contains(part));
                one != "keys_" || (a.contains(&"keys_f16") == b.contains(&"values_f16") && straight == b.contains(&"values_straight"))
            })
            // Keys are shuffled between the lanes of a subgroup.
            .filter(|(a, b)| !(a.contains(&"reduce_workgroup") && b.contains(&"restore_shuffled")))
            // Neither f16 nor 8 bits have scales of a byte.
            .filter(|(a, b)| {
                !(a.contains(&"scales_byte") && b.iter().any(|part| ["keys_f16", "values_f16", "keys_8", "values_8", "codes_8", "words_8"].contains(part)))
            })
            // Centred restores nothing.
            .filter(|(a, b)| !(a.contains(&"scales_symmetric") && b.contains(&"keys_restored")))
            .filter(|(a, b)| !pairs.contains(&((*a).clone(), (*b).clone())))
            .collect();
        assert!(missing.is_empty(), "attend_split is never linked with {missing:?}");
    }
}

#[test]
fn overrides_are_the_constants_that_the_variant_passes() {
    every(|Proven { variant, .. }| {
        let source = variant.link(Dialect::Naga).source;
        let mut complaints: Vec<String> =
            source.lines().filter(|l| l.trim_start().starts_with("override ")).map(|l| format!("remains after linking: {l}")).collect();
        let declared: BTreeSet<&str> = std::iter::once(variant.kernel.source)
            .chain(variant.parts.iter().map(|part| part.source))
            .flat_map(str::lines)
            .filter_map(|line| line.trim_start().strip_prefix("override ")?.split(':').next())
            .collect();
        let passed: BTreeSet<&str> = variant.constants().iter().map(|(name, _)| *name).collect();
        complaints.extend(declared.difference(&passed).map(|name| format!("{name} is declared, but not passed")));
        complaints.extend(passed.difference(&declared).map(|name| format!("{name} is passed, but not declared")));
        complaints.extend(unequal("the number of constants", variant.constants().len(), passed.len()));
        complaints
    });
}

#[test]
fn variants_that_differ_have_labels_that_differ() {
    let labels: HashSet<String> = all().iter().map(|p| p.variant.to_string()).collect();
    assert_eq!(labels.len(), all().len());
}

#[test]
fn subgroups_are_declared_where_they_are_used_and_only_there() {
    every(|Proven { variant, .. }| unequal("the need of subgroups", prove(&variant.link(Dialect::Naga), false, variant.halves).is_err(), variant.subgroups));
}

#[test]
fn the_dialects_differ_in_the_line_that_enables_subgroups() {
    every(|Proven { variant, .. }| {
        let [naga, standard] = [Dialect::Naga, Dialect::Standard].map(|dialect| variant.link(dialect).source);
        let without: String = standard.lines().filter(|line| *line != "enable subgroups;").map(|line| line.to_owned() + "\n").collect();
        let mut complaints = unequal("the use of the standard's line", standard != without, variant.subgroups);
        complaints.extend(unequal("what else differs", without == naga, true));
        complaints
    });
}

#[test]
fn halves_are_declared_where_they_are_used_and_only_there() {
    every(|Proven { variant, .. }| unequal("the need of halves", prove(&variant.link(Dialect::Naga), variant.subgroups, false).is_err(), variant.halves));
}

#[test]
fn the_one_entry_point_has_the_name_of_the_file() {
    every(|Proven { variant, module, .. }| {
        let points: Vec<_> = module.entry_points.iter().map(|point| (point.name.as_str(), point.stage)).collect();
        unequal("the list of entry points", points, vec![(variant.kernel.name, ShaderStage::Compute)])
    });
}

fn workgroup_bytes(module: &Module) -> u32 {
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).unwrap();
    let shared = module.global_variables.iter().filter(|(_, global)| global.space == AddressSpace::WorkGroup);
    shared.map(|(_, global)| layouter[global.ty].size.next_multiple_of(16)).sum()
}

#[test]
fn workgroups_stay_within_the_default_limits() {
    let mut largest = BTreeMap::new();
    every(|Proven { variant, module, .. }| {
        let mut complaints = Vec::new();
        let invocations = module.entry_points[0].workgroup_size.iter().product::<u32>();
        // That a plan for the default device has no such variant, tests/attend_merge.rs tells.
        let most = if variant.kernel.name == "attend_merge" { WIDE_INVOCATIONS } else { INVOCATIONS };
        if invocations > most {
            complaints.push(format!("{invocations} invocations, but {most} are allowed"));
        }
        let bytes = workgroup_bytes(module);
        let constant = |name| variant.constants().iter().find(|(n, _)| *n == name).map_or(1.0, |(_, x)| *x);
        let restores = variant.parts.iter().any(|part| ["part/keys_restored.wgsl", "part/tile_restored.wgsl"].contains(&part.path));
        // Values in f16 have a weight a token and unit, which RotateKV has several of.
        let weights = variant.parts.iter().any(|part| part.path == "part/values_f16.wgsl");
        let wide = constant("GROUP_HEADS") * constant("HEAD_DIM") > 512.0 || constant("HEAD_DIM") == 256.0 || weights;
        let allowed = match variant.halves {
            true => HALVES_WORKGROUP_BYTES,
            false if (restores && wide) || invocations > INVOCATIONS => WIDE_WORKGROUP_BYTES,
            false => WORKGROUP_BYTES,
        };
        if bytes > allowed {
            complaints.push(format!("{bytes} bytes of workgroup memory, but {allowed} are allowed"));
        }
        let storage = module.global_variables.iter().filter(|(_, global)| matches!(global.space, AddressSpace::Storage { .. })).count();
        if storage > STORAGE_BUFFERS {
            complaints.push(format!("{storage} storage buffers, but {STORAGE_BUFFERS} are allowed"));
        }
        let most: &mut (u32, u32) = largest.entry(variant.kernel.name).or_default();
        *most = (most.0.max(invocations), most.1.max(bytes));
        complaints
    });
    for (name, (invocations, bytes)) in largest {
        println!("{name}: {invocations} invocations and {bytes} bytes at most");
    }
}

#[test]
fn bindings_are_those_of_the_kernel() {
    every(|Proven { variant, module, .. }| {
        let mut bound: Vec<(u32, u32, String, Binding)> = Vec::new();
        for (_, global) in module.global_variables.iter() {
            let kind = match global.space {
                AddressSpace::Uniform => Binding::Uniform,
                AddressSpace::Storage { access } if access.contains(StorageAccess::STORE) => Binding::Write,
                AddressSpace::Storage { .. } => Binding::Read,
                _ => continue,
            };
            let place = global.binding.unwrap();
            bound.push((place.group, place.binding, global.name.clone().unwrap(), kind));
        }
        bound.sort_by_key(|(group, binding, ..)| (*group, *binding));
        let wanted = variant.kernel.bindings.iter().enumerate().map(|(i, (name, kind))| (0, i as u32, (*name).to_owned(), *kind)).collect();
        let mut complaints = unequal("the list of bindings", bound, wanted);
        complaints.extend(unequal("binding 0", variant.kernel.bindings[0], ("params", Binding::Uniform)));
        complaints
    });
}

/// Name and offset of a parameter struct's fields, as the Rust side has them.
macro_rules! fields {
    ($kernel:ident :: $params:ident { $($field:ident),* }) => {
        (&kernel::$kernel::KERNEL, stringify!($params), size_of::<kernel::$kernel::$params>(),
            vec![$((stringify!($field), offset_of!(kernel::$kernel::$params, $field))),*])
    };
}

type Fields = (&'static Kernel, &'static str, usize, Vec<(&'static str, usize)>);

fn params() -> Vec<Fields> {
    vec![
        fields!(align_plan::AlignPlanParams { rows_at, slab_heads, heads_at, kv_heads, criterion, phi, pad }),
        fields!(align_scores::AlignScoresParams { items_at, slab_heads, heads_at, kv_heads }),
        fields!(align_values::AlignValuesParams { items_at, slab_heads, heads_at, kv_heads, criterion, pad }),
        fields!(append::AppendParams { items_at, items, layer, slab_heads, heads_at, kv_heads, pad }),
        fields!(append_block::AppendBlockParams { items_at, items, layer, slab_heads, heads_at, kv_heads, pad }),
        fields!(append_reordered::AppendReorderedParams { items_at, items, layer, slab_heads, heads_at, kv_heads, places_at, scales }),
        fields!(attend_merge::AttendMergeParams { records_at, row_first, query_heads, kv_heads }),
        fields!(attend_prefill::AttendPrefillParams { items_at, slab_heads, heads_at, kv_heads }),
        fields!(attend_split::AttendSplitParams { items_at, slab_heads, heads_at, kv_heads }),
        fields!(dequantize::DequantizeParams { chunk, first, tokens, slab_heads, heads_at, kv_heads, limit, pad }),
        fields!(elect::ElectParams { items_at, items, width, pad }),
        fields!(gram::GramParams { rows, heads, pad }),
        fields!(measure::MeasureParams { rows, width, zero, pad }),
        fields!(position::PositionParams { items_at, positions_at, row_first, query_heads, kv_heads, pad }),
        fields!(protect::ProtectParams { items_at, items, layer, kv_heads }),
        fields!(query::QueryParams { positions_at, row_first, query_heads, kv_heads, groups_at, pad }),
        fields!(rotate::RotateParams { rows, pad }),
    ]
}

/// Every field as words of four bytes: an array `pad` of two is `pad_a` and `pad_b` in WGSL.
fn words(fields: &[(&str, usize)], bytes: usize) -> Vec<(String, u32)> {
    let ends = fields.iter().skip(1).map(|(_, offset)| *offset).chain([bytes]);
    let words = fields.iter().zip(ends).flat_map(|((name, first), end)| {
        (*first..end).step_by(4).zip('a'..='z').map(move |(offset, letter)| {
            let name = if end - first > 4 { format!("{name}_{letter}") } else { (*name).to_owned() };
            (name, offset as u32)
        })
    });
    words.collect()
}

#[test]
fn params_lie_where_rust_puts_them() {
    let params = params();
    assert_eq!(params.len(), kernel::ALL.len(), "every kernel needs a row in params()");
    every(|Proven { variant, module, .. }| {
        let Some((_, name, bytes, fields)) = params.iter().find(|(kernel, ..)| kernel.name == variant.kernel.name) else {
            return vec!["has no row in params()".to_owned()];
        };
        let Some((_, uniform)) = module.global_variables.iter().find(|(_, global)| global.space == AddressSpace::Uniform) else {
            return vec!["has no uniform".to_owned()];
        };
        let ty = &module.types[uniform.ty];
        let TypeInner::Struct { members, span } = &ty.inner else {
            return vec!["the uniform is no struct".to_owned()];
        };
        let got: Vec<(String, u32)> = members.iter().map(|m| (m.name.clone().unwrap(), m.offset)).collect();
        let mut complaints = unequal("the list of fields", got, words(fields, *bytes));
        let integers = members.iter().all(|m| module.types[m.ty].inner == TypeInner::Scalar(naga::Scalar::U32));
        complaints.extend(unequal("every field is a u32:", integers, true));
        complaints.extend(unequal("the struct's name", ty.name.as_deref(), Some(*name)));
        complaints.extend(unequal("the struct's size", *span as usize, variant.kernel.params_bytes));
        complaints.extend(unequal("the Rust struct's size", *bytes, variant.kernel.params_bytes));
        // A uniform binding of less than 16 bytes is refused by some drivers.
        complaints.extend(unequal("the struct's size modulo 16", span % 16, 0));
        complaints
    });
}

/// Calls `visit` on every statement of a block and of the blocks inside it.
fn walk(block: &Block, visit: &mut impl FnMut(&Statement)) {
    for statement in block.iter() {
        visit(statement);
        match statement {
            Statement::Block(inner) => walk(inner, visit),
            Statement::If { accept, reject, .. } => {
                walk(accept, visit);
                walk(reject, visit);
            }
            Statement::Switch { cases, .. } => cases.iter().for_each(|case| walk(&case.body, visit)),
            Statement::Loop { body, continuing, .. } => {
                walk(body, visit);
                walk(continuing, visit);
            }
            _ => {}
        }
    }
}

#[test]
fn house_rule_only_kernels_that_append_use_atomics() {
    every(|Proven { variant, module, .. }| {
        let atomics = module.types.iter().any(|(_, ty)| matches!(ty.inner, TypeInner::Atomic(_)));
        unequal("the use of atomics", atomics, ATOMIC_KERNELS.contains(&variant.kernel.name))
    });
}

/// A barrier in a called function inside a loop was miscompiled by a driver, and hides where the workgroup meets.
#[test]
fn house_rule_barriers_stand_in_the_entry_point() {
    every(|Proven { module, .. }| {
        let mut complaints = Vec::new();
        for (_, function) in module.functions.iter() {
            walk(&function.body, &mut |statement| {
                if matches!(statement, Statement::ControlBarrier(_) | Statement::MemoryBarrier(_) | Statement::WorkGroupUniformLoad { .. }) {
                    complaints.push(format!("a barrier in function {}", function.name.as_deref().unwrap_or("?")));
                }
            });
        }
        complaints
    });
}

/// What wgpu asks of naga on Vulkan: 1.0 with every packed dot product taken apart, and 1.3 with the instruction.
fn spirv(Proven { variant, module, info }: &Proven, modern: bool) -> Result<Vec<u32>, spv::Error> {
    let mut capabilities = vec![spv::Capability::Shader];
    if variant.subgroups {
        use spv::Capability::{GroupNonUniform, GroupNonUniformArithmetic, GroupNonUniformBallot, GroupNonUniformShuffle};
        capabilities.extend([GroupNonUniform, GroupNonUniformArithmetic, GroupNonUniformBallot, GroupNonUniformShuffle]);
    }
    if variant.halves {
        capabilities.push(spv::Capability::Float16);
    }
    if modern {
        capabilities.extend([spv::Capability::DotProduct, spv::Capability::DotProductInput4x8BitPacked]);
    }
    let options = spv::Options {
        lang_version: match (modern, variant.subgroups) {
            (true, _) => (1, 6),
            (false, true) => (1, 3),
            (false, false) => (1, 0),
        },
        capabilities: Some(capabilities.into_iter().collect()),
        flags: spv::WriterFlags::empty(),
        ..Default::default()
    };
    spv::write_vec(module, info, &options, Some(&spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: variant.kernel.name.to_owned() }))
}

#[test]
fn variants_translate_to_spirv() {
    every(|proven| [false, true].into_iter().filter_map(|modern| spirv(proven, modern).err().map(|e| format!("SPIR-V: {e}"))).collect());
}

#[test]
fn variants_translate_to_msl() {
    every(|Proven { variant, module, info }| {
        let mut complaints = Vec::new();
        // 2.1 is the oldest with packed dot products and subgroups, 3.1 a recent one.
        for lang_version in [(2, 1), (3, 1)] {
            let options = msl::Options { lang_version, ..Default::default() };
            let pipeline = msl::PipelineOptions { entry_point: Some((ShaderStage::Compute, variant.kernel.name.to_owned())), ..Default::default() };
            match msl::write_string(module, info, &options, &pipeline) {
                Ok((_, translated)) => complaints.extend(translated.entry_point_names.into_iter().filter_map(Result::err).map(|e| format!("MSL: {e}"))),
                Err(e) => complaints.push(format!("MSL {lang_version:?}: {e}")),
            }
        }
        complaints
    });
}

#[test]
fn variants_translate_to_hlsl() {
    every(|Proven { variant, module, info }| {
        let mut complaints = Vec::new();
        // 6.0 takes packed dot products apart, 6.4 has the instruction; 5.1 (the old compiler) has no subgroups, and halves are since 6.2.
        let models = [
            (hlsl::ShaderModel::V5_1, !variant.subgroups && !variant.halves),
            (hlsl::ShaderModel::V6_0, !variant.halves),
            (hlsl::ShaderModel::V6_2, variant.halves),
            (hlsl::ShaderModel::V6_4, true),
        ];
        for (shader_model, _) in models.into_iter().filter(|(_, serves)| *serves) {
            let options = hlsl::Options { shader_model, ..Default::default() };
            let pipeline = hlsl::PipelineOptions { entry_point: Some((ShaderStage::Compute, variant.kernel.name.to_owned())) };
            let mut text = String::new();
            let mut writer = hlsl::Writer::new(&mut text, &options, &pipeline);
            match writer.write(module, info, None) {
                Ok(translated) => complaints.extend(translated.entry_point_names.into_iter().filter_map(Result::err).map(|e| format!("HLSL: {e}"))),
                Err(e) => complaints.push(format!("HLSL {shader_model:?}: {e}")),
            }
        }
        complaints
    });
}

#[test]
fn variants_translate_to_glsl_es() {
    let mut excluded = BTreeSet::new();
    every(|Proven { variant, module, info }| {
        let options = glsl::Options { version: glsl::Version::new_gles(310), ..Default::default() };
        let pipeline = glsl::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: variant.kernel.name.to_owned(), multiview: None };
        let mut text = String::new();
        let written =
            glsl::Writer::new(&mut text, module, info, &options, &pipeline, naga::proc::BoundsCheckPolicies::default()).and_then(|mut writer| writer.write());
        let label = variant.to_string();
        let known = GLSL_EXCLUDED.iter().find(|(part, _)| label.contains(part));
        match (written, known) {
            (Ok(_), None) => Vec::new(),
            (Ok(_), Some((part, _))) => vec![format!("is in GLSL_EXCLUDED by {part:?}, but passes")],
            (Err(_), Some((part, _))) => {
                excluded.insert(*part);
                Vec::new()
            }
            (Err(e), None) => vec![format!("GLSL: {e}")],
        }
    });
    assert_eq!(excluded.len(), GLSL_EXCLUDED.len(), "an entry of GLSL_EXCLUDED fits no variant");
}

/// Writes every variant as browsers read it, for compilers that are no Rust: one JSON object a line in `modules.jsonl` of
/// cargo's folder for what tests write. `cargo xtask lint-shaders` gives them to Chromium's. `starts` tells at which line of the
/// module each file begins, `workgroup_bytes` and `invocations` that WebGPU's default limits may not hold it.
#[test]
fn modules_are_written_for_other_compilers() {
    let modules = all().iter().map(|Proven { variant, module, .. }| {
        let linked = variant.link(Dialect::Standard);
        let starts: Vec<(usize, &str)> =
            (1..=linked.source.lines().count()).filter_map(|line| linked.place(line).filter(|(_, at)| *at == 1).map(|(path, _)| (line, path))).collect();
        let (name, entry, bytes) = (variant.to_string(), variant.kernel.name, workgroup_bytes(module));
        let invocations = module.entry_points[0].workgroup_size[0];
        serde_json::json!({ "name": name, "entry": entry, "workgroup_bytes": bytes, "invocations": invocations, "starts": starts, "source": linked.source })
    });
    let lines: String = modules.map(|module| module.to_string() + "\n").collect();
    std::fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join("modules.jsonl"), lines).unwrap();
}

/// Khronos' validator, where it is installed, on one variant of each combination of parts and head dimension; on every variant,
/// which takes minutes, with `WGKV_EVERY_VARIANT` set, as `cargo xtask lint-shaders` does.
#[test]
fn spirv_val_agrees() {
    if Command::new("spirv-val").arg("--version").output().is_err() {
        println!("NOT RUN: spirv-val is not on PATH (Debian, Ubuntu: apt-get install spirv-tools); naga's own checks ran");
        return;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("shaders");
    std::fs::create_dir_all(&folder).unwrap();
    let every_variant = std::env::var_os("WGKV_EVERY_VARIANT").is_some();
    let mut seen = HashSet::new();
    let mut runs = 0;
    every(|proven| {
        let head_dim = proven.variant.constants().iter().find(|(name, _)| *name == "HEAD_DIM").map(|(_, x)| x.to_bits());
        let alike = (proven.variant.kernel.name, proven.variant.parts.clone(), head_dim.filter(|_| proven.variant.kernel.name != "attend_split"));
        if !seen.insert(alike) && !every_variant {
            return Vec::new();
        }
        let mut complaints = Vec::new();
        for (modern, target) in [(false, "vulkan1.1"), (true, "vulkan1.3")] {
            let path = folder.join(format!("{runs}.spv"));
            let bytes: Vec<u8> = spirv(proven, modern).unwrap().into_iter().flat_map(u32::to_le_bytes).collect();
            std::fs::write(&path, bytes).unwrap();
            let output = Command::new("spirv-val").args(["--target-env", target]).arg(&path).output().unwrap();
            if !output.status.success() {
                complaints.push(format!("spirv-val for {target}: {}", String::from_utf8_lossy(&output.stderr).trim()));
            }
            runs += 1;
        }
        complaints
    });
    println!("spirv-val accepted {runs} modules");
}

#[test]
fn a_mistake_is_reported_by_file_and_line() {
    let kernel = Source { path: "sum", source: "@compute @workgroup_size(1)\nfn sum() { _ = part_twice(1u); }" };
    let part = Source { path: "part/twice.wgsl", source: "fn part_twice(x: u32) -> u32 {\n    return x * missing;\n}" };
    let linked = Linked::new("requires packed_4x8_integer_dot_product;\n", &[kernel, part]);
    let message = prove(&linked, false, false).unwrap_err();
    assert!(message.contains("shaders/part/twice.wgsl:2"), "{message}");
    assert_eq!(linked.place(1), None);
    assert_eq!(linked.place(3), Some(("sum", 2)));
}
