//! Bad input is refused by a typed error that names the thing, the number wanted and the number
//! had; and after a refusal the cache holds what it held and can be used on.
//!
//! What is wrong with shape, format, protection, budget or device is refused by `Plan`, without a
//! GPU. What is wrong with a step, a sequence or a buffer is refused by the cache before anything
//! is recorded.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use rand::RngExt;
use rand::rngs::StdRng;
use std::sync::LazyLock;
use wgkv::Capability;
use wgkv::low_level::kernel::rotate;
use wgkv_testing::*;

/// One device, so that its kernels are compiled once.
static GPU: LazyLock<Gpu> = LazyLock::new(gpu);

/// Asserts that it is this error, and that its message holds these words and numbers.
#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T>, want: &Error, words: &[&str]) {
    let Err(error) = result else { panic!("should be refused: {want}") };
    assert_eq!(error, *want);
    let message = error.to_string();
    for word in words {
        assert!(message.contains(word), "{message:?} does not say {word:?}");
    }
}

fn shape() -> Shape {
    Shape { layers: 2, query_heads: 4, kv_heads: 2, head_dim: 64, rope: Rope::new(10_000.0, 64) }
}

fn plan(shape: Shape, format: Format, protection: Protection, budget: Capacity, capability: &Capability) -> Result<Plan> {
    let order = natural_order(&shape, &format);
    learning(Plan::builder(shape, format).protection(protection).capacity(budget), order.as_ref()).build(capability)
}

#[test]
fn names_and_numbers_that_mean_nothing_are_refused() {
    refused(
        "int4".parse::<Codec>(),
        &Error::Codec { had: "int4".into(), known: Codec::names() },
        &["int4", "f16, rtn, hadamard, rotate-kv, aligned-f16 and centred"],
    );
    refused(Bits::try_from(5), &Error::Bits { had: 5 }, &["2, 3, 4, 8 or 16", "5"]);
    for text in ["last:3", "first:", "first:x", "massive:", "massive:-1", "4", ""] {
        refused(text.parse::<Sinks>(), &Error::argument("sinks", "none, first:N or massive:N", text), &["none, first:N or massive:N", text]);
    }
    refused("f4".parse::<Scales>(), &Error::argument("scales", "f16, f8 or symmetric", "f4"), &["scales", "f16, f8 or symmetric", "f4"]);
    for sinks in [Sinks::None, Sinks::First(4), Sinks::Massive(20)] {
        assert_eq!(sinks.to_string().parse::<Sinks>().unwrap(), sinks);
    }
    for codec in [Codec::F16, Codec::Rtn, Codec::Hadamard, Codec::RotateKv, Codec::AlignedF16, Codec::Centred] {
        assert_eq!(codec.to_string().parse::<Codec>().unwrap(), codec);
    }
    for (text, printed) in [("2/128", "2/128"), ("16", "16"), ("16/64", "16")] {
        let precision: Precision = text.parse().unwrap();
        assert_eq!((precision.to_string().as_str(), printed.parse()), (printed, Ok(precision)), "{text}");
    }
}

#[test]
fn shapes_that_no_kernel_serves_are_refused() {
    let fields = |edit: &dyn Fn(&mut Shape)| {
        let mut shape = shape();
        edit(&mut shape);
        plan(shape, Format::f16(), Protection::NONE, Capacity::tokens(1, 1), &Capability::webgpu_default())
    };
    let error = |name, wanted: &str, had: &str| Error::argument(name, wanted, had);
    let case = |edit: &dyn Fn(&mut Shape), name, wanted: &str, had: &str| refused(fields(edit), &error(name, wanted, had), &[name, wanted, had]);
    case(&|s| s.layers = 0, "layers", "1 or more", "0");
    case(&|s| s.layers = u32::MAX, "layers", "4096 at most", "4294967295");
    case(&|s| s.kv_heads = 0, "kv_heads", "1 or more", "0");
    case(&|s| s.query_heads = 0, "query_heads", "1 or more", "0");
    case(&|s| s.head_dim = 100, "head_dim", "64, 80, 96, 128, 192, 256 or 512", "100");
    case(&|s| s.query_heads = 5, "query_heads", "a multiple of kv_heads (2), 16 times at most", "5");
    case(&|s| s.query_heads = 34, "query_heads", "a multiple of kv_heads (2), 16 times at most", "34");
    case(&|s| (s.query_heads, s.kv_heads) = (5000, 5000), "kv_heads", "4095 at most", "5000");
    case(&|s| s.rope = Rope::new(1e4, 66), "rope pairs", "32 at most", "33");
    case(&|s| s.rope = Rope::none().with_frequencies(vec![1.0, f64::NAN]), "rope frequency", "finite", "NaN");
    case(&|s| s.rope = Rope::none().with_frequencies(vec![f64::INFINITY]), "rope frequency", "finite", "inf");
}

#[test]
fn what_rotate_kv_cannot_serve_is_refused() {
    let format = Format::new(Codec::RotateKv, Bits::Two, Bits::Two, 64);
    let make = |format: Format, kv_heads, head_dim, protection: Protection| {
        let shape = Shape { kv_heads, query_heads: kv_heads, head_dim, rope: Rope::none(), ..shape() };
        plan(shape, format, protection, Capacity::tokens(1, 1), &Capability::webgpu_default())
    };
    let strict = Protection::NONE;
    let shape_error = |name, wanted: &str, had: &str| Error::argument(name, wanted, had);
    for (heads, kv_heads, head_dim) in [(0, 4, 64), (3, 6, 64), (16, 16, 64), (4, 6, 64)] {
        let wanted = format!("1, 2, 4 or 8 and divide kv_heads ({kv_heads})");
        let error = shape_error("heads_per_group", &wanted, &heads.to_string());
        refused(make(format.with_heads_per_group(heads), kv_heads, head_dim, strict), &error, &["heads_per_group", &heads.to_string()]);
    }
    let wide = make(format.with_heads_per_group(8), 8, 256, strict);
    refused(wide, &shape_error("heads_per_group * head_dim", "1024 at most", "2048"), &["2048"]);
    let eight = Format::new(Codec::RotateKv, Bits::Eight, Bits::Four, 64).with_scales(Scales::Byte);
    refused(make(eight, 4, 64, strict), &shape_error("bits", "2, 3, 4 or 16 with scales of 8 bits", "8"), &["bits", "8"]);
    for rows in [0, 65] {
        let massive = Protection { sinks: Sinks::Massive(rows), window: 0 };
        refused(make(format, 4, 64, massive), &shape_error("massive sinks", "1 to 64", &rows.to_string()), &["massive sinks"]);
    }
    // Heads that are rotated together must share a binding.
    let shape = Shape { kv_heads: 4, query_heads: 4, ..shape() };
    let tight = Capability { binding_bytes: 5 << 20, ..Capability::webgpu_default() };
    let planned = plan(shape, format, strict, Capacity::tokens(1, 80_000), &tight);
    assert!(matches!(planned, Err(Error::Limit { reason: "the pages of a group of KV heads", .. })), "{planned:?}");
}

#[test]
fn a_device_with_little_workgroup_memory_restores_keys_in_loops() {
    let shape = Shape { kv_heads: 32, query_heads: 32, head_dim: 128, rope: Rope::new(10_000.0, 128), ..shape() };
    let format = Format::new(Codec::RotateKv, Bits::Two, Bits::Two, 32);
    let restore = |workgroup_bytes| {
        let capability = Capability { workgroup_bytes, halves: true, ..Capability::webgpu_default() };
        plan(shape.clone(), format, Protection::NONE, Capacity::tokens(1, 128), &capability).unwrap().restore()
    };
    assert_eq!((restore(49_152), restore(32_768), restore(16_384)), (Restore::Straight, Restore::Rolled, Restore::Rolled));
}

#[test]
fn more_rows_than_one_binding_holds_are_refused() {
    let gpu = &*GPU;
    let small = gpu.pretend(Capability { binding_bytes: 16 << 20, ..*gpu.capability() });
    let shape = Shape { layers: 1, query_heads: 1, kv_heads: 1, ..shape() };
    let tokens = 70_000;
    let planned = plan(shape, hadamard(Bits::Two, Bits::Two, 64), Protection::NONE, Capacity::tokens(1, tokens), small.capability()).unwrap();
    let mut cache = Cache::new(&small, planned).unwrap();
    let sequence = cache.begin().unwrap();
    let step = cache.step(&[Chunk { sequence, tokens }]).unwrap();
    let need = 256 * u64::from(tokens);
    let rows = poisoned(gpu, 64 * tokens as usize);
    let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let limit = Error::Limit { what: "max_storage_buffer_binding_size", reason: "keys", need, have: 16 << 20 };
    refused(cache.append(&mut encoder, &step, 0, Rows::f32(&rows), Rows::f32(&rows)), &limit, &["keys", "17920000", "16777216"]);
    // Of rows with strides a binding spans what lies between them, too.
    let padded = poisoned(gpu, 65 * tokens as usize);
    let need = 4 * (65 * u64::from(tokens - 1) + 64);
    let limit = Error::Limit { what: "max_storage_buffer_binding_size", reason: "keys", need, have: 16 << 20 };
    refused(cache.append(&mut encoder, &step, 0, Rows::f32(&padded).strided(65, 64), Rows::f32(&rows)), &limit, &["keys", "18199996", "16777216"]);
}

#[test]
fn an_order_must_be_there_and_fit() {
    let gpu = &*GPU;
    let shape = shape();
    let format = Format::new(Codec::RotateKv, Bits::Two, Bits::Two, 64);
    let builder = Plan::builder(shape.clone(), format).protection(Protection::NONE).capacity(Capacity::tokens(1, 128));
    let error = Error::mismatch(Thing::ChannelOrder, "presence", "given by PlanBuilder::learned, as rotate-kv needs one", "none");
    refused(builder.clone().build(gpu.capability()), &error, &["channel order", "PlanBuilder::learned"]);
    let fits = |edit: &dyn Fn(&mut Shape), heads, name, wanted: &str, had: &str| {
        let mut other = shape.clone();
        edit(&mut other);
        let order = ChannelOrder::natural(&other, heads).unwrap();
        let error = Error::mismatch(Thing::ChannelOrder, name, wanted, had);
        refused(builder.clone().learned(order).build(gpu.capability()), &error, &[name, wanted, had]);
    };
    fits(&|s| s.layers = 3, 2, "layers", "2", "3");
    fits(&|s| (s.kv_heads, s.query_heads) = (4, 4), 2, "kv_heads", "2", "4");
    fits(&|s| (s.head_dim, s.rope) = (128, Rope::none()), 2, "head_dim", "64", "128");
    fits(&|_| (), 1, "heads_per_group", "2", "1");
    let order = ChannelOrder::natural(&shape, 2).unwrap();
    let other = Plan::builder(shape.clone(), Format::f16()).learned(order.clone()).build(gpu.capability());
    refused(other, &Error::mismatch(Thing::ChannelOrder, "codec", "rotate-kv", "f16"), &["rotate-kv", "f16"]);
    assert!(Cache::new(gpu, builder.learned(order).build(gpu.capability()).unwrap()).is_ok());
}

#[test]
fn formats_that_do_not_fit_the_head_are_refused() {
    let make = |format, head_dim| {
        plan(Shape { head_dim, rope: Rope::none(), ..shape() }, format, Protection::NONE, Capacity::tokens(1, 1), &Capability::webgpu_default())
    };
    // (group, head_dim): no such group; not a divisor; larger than the head, but not 128, which
    // means one group.
    for (group, head_dim) in [(48, 96), (16, 64), (0, 64), (256, 256), (32, 80), (64, 80), (64, 96), (128, 192)] {
        refused(make(rtn(Bits::Four, Bits::Four, group), head_dim), &Error::Group { group, head_dim }, &[&group.to_string(), &head_dim.to_string()]);
    }
    for (group, head_dim) in [(128, 64), (128, 80), (128, 96), (32, 96), (64, 192), (64, 256)] {
        assert!(make(rtn(Bits::Four, Bits::Four, group), head_dim).is_ok(), "a group of {group} in a head of {head_dim}");
    }
    for clip in [0.0, -0.5, 1.5, f32::NAN] {
        let error = Error::argument("clip", "above 0 and at most 1", clip);
        refused(make(rtn(Bits::Two, Bits::Two, 64).with_clip(clip), 64), &error, &["clip must", "above 0 and at most 1", &clip.to_string()]);
    }
}

#[test]
fn what_heads_of_512_are_not_served_with_is_refused() {
    let shape = Shape { query_heads: 4, kv_heads: 1, head_dim: 512, rope: Rope::new(1e6, 512), ..shape() };
    let wide = Capability { invocations: 512, workgroup_size_x: 512, ..Capability::webgpu_default() };
    let make = |format| plan(shape.clone(), format, protect(4, 128), Capacity::tokens(1, 1), &wide);
    for format in [Format::f16(), rtn(Bits::Four, Bits::Eight, 64), hadamard(Bits::Two, Bits::Two, 128), centred(Bits::Three, Bits::Two, 64)] {
        assert!(make(format).is_ok(), "{format}");
        let narrow = plan(shape.clone(), format, protect(4, 128), Capacity::tokens(1, 1), &Capability::webgpu_default());
        let limit = Error::Limit { what: "max_compute_invocations_per_workgroup", reason: "an invocation for each of a head's channels", need: 512, have: 256 };
        refused(narrow, &limit, &["max_compute_invocations_per_workgroup", "512", "256"]);
    }
    let of = |name: &'static str, wanted: &str, had: &str| Error::argument(name, wanted, had);
    refused(make(Format::aligned_f16()), &of("head_dim of numbers in planes", "256 at most", "512"), &["planes", "512"]);
    refused(make(Format::new(Codec::RotateKv, Bits::Two, Bits::Two, 64)), &of("head_dim with rotate-kv", "256 at most", "512"), &["rotate-kv", "512"]);
    let groups = of("value group", "64 at least with heads of 512: 8 groups a head are served", "32");
    refused(make(hadamard(Bits::Four, Bits::Four, 32)), &groups, &["value group", "64", "32"]);
    let codes = Plan::builder(shape.clone(), hadamard(Bits::Four, Bits::Four, 64)).alignment(Alignment::budget(1.0, 1.0)).build(&wide);
    refused(codes, &of("head_dim of numbers in planes", "256 at most", "512"), &["planes", "512"]);
    // Means turn by as many fast pairs as the lanes hold.
    let fast = Shape { rope: Rope::new(2.0, 512), ..shape.clone() };
    let means = Means::new(&fast, "", vec![[vec![1.0; 512], vec![1.0; 512], vec![0.0; 512]]; fast.layers as usize]).unwrap();
    let turned = Plan::builder(fast, centred(Bits::Two, Bits::Two, 128)).learned(means).build(&wide);
    refused(turned, &of("rope pairs that have means and turn fast", "128 at most", "256"), &["128", "256"]);
}

#[test]
fn protections_that_are_too_large_are_refused() {
    let make = |protection| plan(shape(), rtn(Bits::Two, Bits::Two, 64), protection, Capacity::tokens(1, 1), &Capability::webgpu_default());
    refused(make(protect(128, 0)), &Error::argument("sinks", "127 at most", "128"), &["sinks", "127", "128"]);
    refused(make(protect(0, 65_537)), &Error::argument("window", "65536 at most", "65537"), &["window", "65536", "65537"]);
    assert!(make(protect(127, 0)).is_ok());
}

#[test]
fn budgets_that_hold_nothing_are_refused() {
    let make = |budget| plan(shape(), rtn(Bits::Two, Bits::Two, 64), Protection::default(), budget, &Capability::webgpu_default());
    let none = |name| Error::argument(name, "1 or more", "0");
    refused(make(Capacity::tokens(0, 10)), &none("sequences"), &["sequences", "1 or more", "0"]);
    refused(make(Capacity::tokens(10, 0)), &none("tokens"), &["tokens", "1 or more", "0"]);
    refused(make(Capacity::bytes(0, 1 << 20)), &none("sequences"), &["sequences"]);
    // One sequence's f16 rows: (4 + 128 + 128) rows of 64 words, 2 KV heads, 2 layers; a page is as
    // the layout says.
    let rows = 4 * 260 * 64 * 2 * 2;
    let page = 4 * make(Capacity::tokens(1, 1)).unwrap().slabs(0)[0].layout().bytes();
    let error = Error::Capacity { reason: "the bytes of the f16 rows of all sequences and one page", need: rows + page, have: rows + page - 1 };
    refused(make(Capacity::bytes(1, rows + page - 1)), &error, &[&(rows + page).to_string(), &(rows + page - 1).to_string(), "f16 rows"]);
    assert_eq!(make(Capacity::bytes(1, rows + page)).unwrap().pages(), 1);
}

#[test]
fn no_numbers_make_a_plan_panic() {
    let random = &mut generator();
    let numbers = [0, 1, 2, 3, 4, 5, 8, 16, 32, 63, 64, 65, 80, 96, 128, 255, 256, 4096, 1 << 16, (1 << 24) + 1, 1 << 31, u32::MAX - 128, u32::MAX];
    // Small ones more often than not, so that some plans are good.
    let number = |random: &mut StdRng| {
        let end = if random.random_range(0..4) == 0 { numbers.len() } else { 16 };
        numbers[random.random_range(0..end)]
    };
    let codecs = [Codec::F16, Codec::Rtn, Codec::Hadamard, Codec::RotateKv, Codec::AlignedF16, Codec::Centred];
    let bits = [Bits::Two, Bits::Three, Bits::Four, Bits::Eight, Bits::Sixteen];
    let (mut good, mut refused) = (0, 0);
    // About one in a thousand is good: 60 are expected, and eleven needed.
    for _ in 0..60_000 {
        let [layers, query_heads, kv_heads, head_dim] = [(); 4].map(|()| number(random));
        let shape = Shape { layers, query_heads, kv_heads, head_dim, rope: Rope::none() };
        let [key, value] = [(); 2].map(|()| bits[random.random_range(0..bits.len())]);
        let format = Format::new(codecs[random.random_range(0..codecs.len())], key, value, number(random));
        let sinks = if random.random_range(0..3) == 0 { Sinks::Massive(number(random)) } else { Sinks::First(number(random)) };
        let protection = Protection { sinks, window: number(random) };
        let budget = match random.random_range(0..2) {
            0 => Capacity::tokens(number(random), number(random)),
            _ => Capacity::bytes(number(random), u64::from(number(random)) * u64::from(number(random))),
        };
        let capability = Capability { binding_bytes: u64::from(number(random)) << random.random_range(0..33), ..Capability::webgpu_default() };
        match Plan::builder(shape, format).protection(protection).capacity(budget).build(&capability) {
            Ok(plan) => {
                assert!(plan.pages() > 0 && plan.cost().cache() > 0 && !plan.to_string().is_empty());
                good += 1;
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                refused += 1;
            }
        }
    }
    assert!(good > 10 && refused > 10, "{good} good, {refused} refused");
}

#[test]
fn rows_of_more_bytes_than_a_number_holds_are_refused() {
    let shape = Shape { layers: 4096, query_heads: 1024, kv_heads: 1024, head_dim: 256, rope: Rope::none() };
    let protection = Protection { sinks: Sinks::First(4), window: 1 << 16 };
    let made = plan(shape, hadamard(Bits::Four, Bits::Four, 64), protection, Capacity::bytes(u32::MAX, 1 << 50), &Capability::webgpu_default());
    assert!(matches!(made, Err(Error::Capacity { have, .. }) if have == 1 << 50), "{made:?}");
}

#[test]
fn devices_that_can_do_too_little_are_refused() {
    let full = Capability::webgpu_default();
    let make = |capability: &Capability| plan(shape(), hadamard(Bits::Four, Bits::Four, 64), Protection::default(), Capacity::tokens(2, 4096), capability);
    assert!(make(&full).is_ok(), "WebGPU's default limits are enough");
    let less: [(&str, Capability, u64); 7] = [
        ("max_compute_invocations_per_workgroup", Capability { invocations: 32, ..full }, 32),
        ("max_compute_workgroup_size_x", Capability { workgroup_size_x: 63, ..full }, 63),
        ("max_storage_buffers_per_shader_stage", Capability { storage_buffers: 4, ..full }, 4),
        ("max_compute_workgroup_storage_size", Capability { workgroup_bytes: 4096, ..full }, 4096),
        ("max_compute_workgroups_per_dimension", Capability { workgroups: 3, ..full }, 3),
        ("max_storage_buffer_binding_size", Capability { binding_bytes: 10_000, ..full }, 10_000),
        ("max_buffer_size", Capability { buffer_bytes: 300_000, ..full }, 300_000),
    ];
    for (limit, capability, had) in less {
        let error = make(&capability).expect_err(limit);
        let Error::Limit { what, need, have, reason } = error.clone() else { panic!("{error:?}") };
        // A buffer may be too small for a binding of it, too: then the binding is named.
        assert!(what == limit || limit == "max_buffer_size", "{error}");
        assert!(have == had && need > had, "{error}");
        let message = error.to_string();
        assert!(message.contains(what) && message.contains(&need.to_string()) && message.contains(&had.to_string()) && message.contains(reason), "{message}");
    }
    let pages = plan(shape(), rtn(Bits::Two, Bits::Two, 64), Protection::NONE, Capacity::tokens(1 << 20, 1 << 20), &full);
    refused(pages, &Error::Limit { what: "page number", reason: "the capacity's pages", need: 1 << 33, have: 1 << 24 }, &["8589934592", "16777216"]);
}

#[test]
fn a_plan_for_a_larger_device_is_refused_by_the_cache() {
    let gpu = &*GPU;
    let large = plan(shape(), Format::f16(), Protection::NONE, Capacity::tokens(1, 1 << 17), gpu.capability()).unwrap();
    let head = large.slabs(0)[0].layout().bytes() * u64::from(large.pages()) * 2;
    let small = gpu.pretend(Capability { binding_bytes: head / 2 - 1, ..*gpu.capability() });
    let error = Cache::new(&small, large).expect_err("the slab is larger than a binding");
    assert!(matches!(error, Error::Limit { what: "max_storage_buffer_binding_size", need, have, .. } if need > have && have == head / 2 - 1), "{error:?}");
    assert!(error.to_string().contains(&(head / 2 - 1).to_string()));
    // One made for the smaller device has fewer invocations, and is not refused.
    let small = gpu.pretend(Capability { invocations: 256, ..*gpu.capability() });
    let make = |gpu: &Gpu| Cache::new(&small, plan(shape(), Format::f16(), Protection::NONE, Capacity::tokens(1, 1), gpu.capability()).unwrap());
    let error = make(gpu).expect_err("more invocations than the device allows");
    assert!(matches!(error, Error::Limit { what: "max_compute_invocations_per_workgroup", need: 512.., have: 256, .. }), "{error:?}");
    make(&small).unwrap();
    // One that packs by blocks shuffles between the lanes of a subgroup; one that need not is not
    // refused.
    let small = gpu.pretend(gpu.capability().without_subgroups());
    let make = |format| Cache::new(&small, plan(shape(), format, Protection::NONE, Capacity::tokens(1, 1), gpu.capability()).unwrap());
    let error = make(Format::new(Codec::Rtn, Bits::Four, Bits::Four, 64)).expect_err("more lanes than the device has");
    assert!(matches!(error, Error::Limit { what: "min_subgroup_size", need: 2.., have: 0, .. }), "{error:?}");
    assert!(gpu.capability().reduce() == Reduce::Subgroup || make(Format::f16()).is_ok());
}

#[test]
fn rows_that_rotate_cannot_take_are_refused() {
    let gpu = &*GPU;
    let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let buffer = upload(gpu, &[0.0; 1024]);
    let mut rotate = |rows: Rows<'_>, count, head_dim| rotate::record(gpu, &mut encoder, rows, count, head_dim);
    refused(rotate(Rows::f32(&buffer), 1, 100), &Error::argument("order", "64, 80, 96, 128, 192, 256, 512 or 1024", "100"), &["order", "100"]);
    refused(rotate(Rows::f16(&buffer), 1, 64), &Error::argument("rows", "f32", "f16"), &["rows", "f32", "f16"]);
    refused(rotate(Rows::f32(&buffer), 17, 64), &Error::Rows { name: "rows", need: 17 * 256, have: 4096 }, &["rows", "4352", "4096"]);
    assert!(rotate(Rows::f32(&buffer), 0, 64).is_ok(), "no rows are no error");
}

/// Words of the codes and scales of the two tokens of [`STEP`] that may be rounded otherwise than
/// the twin does it: of 2 KV heads, key and value, with 65 numbers each they are 520, of which a
/// thousandth may be ties ([`TIES`]); half a word is to be expected, more than two in one of sixty
/// runs if there were as many ties as there may be.
const TIED_WORDS: usize = 2;

/// The step that a cache in use takes next: a token of either sequence.
const STEP: [(usize, u32); 2] = [(0, 1), (1, 1)];

fn chunk(sequence: Sequence, tokens: u32) -> Chunk {
    Chunk { sequence, tokens }
}

/// A cache in use, with what must not change when it refuses something, and one beside it that has
/// the same and refuses nothing.
struct Used {
    walk: Walk,
    control: Walk,
    state: State,
    tokens: Vec<u32>,
    free_pages: u32,
}

impl Used {
    /// Fills both by one step of 140 and 30 tokens.
    fn new() -> Self {
        let fill = [(0, 140), (1, 30)];
        let case = case("a cache in use", 64, 4, 2, hadamard(Bits::Four, Bits::Four, 64)).steps(vec![fill.to_vec(), STEP.to_vec()]).protection(protect(4, 0));
        let [mut walk, mut control] = [(); 2].map(|()| Walk::new(&GPU, case.clone()));
        let rows = walk.draw(170);
        for walk in [&mut walk, &mut control] {
            walk.take_rows(&fill, rows.clone(), true);
        }
        let tokens = walk.sequences.iter().map(|s| walk.cache.tokens(*s).unwrap()).collect();
        let used = Self { state: walk.state(), tokens, free_pages: walk.cache.free_pages(), walk, control };
        assert!(used.state == used.control.state());
        used
    }

    #[track_caller]
    fn unchanged(&self) {
        let cache = &self.walk.cache;
        assert_eq!(self.walk.sequences.iter().map(|s| cache.tokens(*s).unwrap()).collect::<Vec<_>>(), self.tokens);
        assert_eq!(cache.free_pages(), self.free_pages);
        assert!(self.walk.state() == self.state, "pages or f16 rows changed");
        assert!(pollster::block_on(cache.status()).unwrap().is_clean());
    }

    /// Begins the next step.
    fn step(mut self) -> Stepping {
        let numbers = self.walk.draw(2);
        let [keys, values, queries] = numbers.each_ref().map(|rows| upload(&GPU, rows));
        let chunks = self.walk.sequences.iter().map(|sequence| chunk(*sequence, 1)).collect::<Vec<_>>();
        let step = self.walk.cache.step(&chunks).unwrap();
        self.tokens = vec![141, 31];
        Stepping { step, output: poisoned(&GPU, numbers[2].len()), keys, values, queries, numbers, encoder: encoder(&GPU), used: self }
    }

    /// Takes the next step on both: what was refused left no trace.
    #[track_caller]
    fn goes_on(self) {
        self.unchanged();
        self.step().goes_on();
    }
}

/// A cache in use whose next step was begun, with good rows for it.
struct Stepping {
    used: Used,
    step: Step,
    numbers: [Vec<f32>; 3],
    keys: wgpu::Buffer,
    values: wgpu::Buffer,
    queries: wgpu::Buffer,
    output: wgpu::Buffer,
    encoder: wgpu::CommandEncoder,
}

impl Stepping {
    /// Takes the step on both: what was refused recorded nothing, and left no trace. Returns both,
    /// and what the step took.
    #[track_caller]
    fn goes_on(self) -> (Used, Taken) {
        let Self { mut used, step, numbers, keys, values, queries, output, encoder: refused } = self;
        // Had any refusal recorded something, it would run now.
        submit(&GPU, refused);
        used.unchanged();
        assert!(words(&GPU, &output).iter().all(|w| *w == POISON), "nothing was attended");
        let mut good = encoder(&GPU);
        used.walk.cache.append(&mut good, &step, 0, Rows::f32(&keys), Rows::f32(&values)).unwrap();
        used.walk.cache.attend(&mut good, &step, 0, Rows::f32(&queries), Rows::f32(&output)).unwrap();
        submit(&GPU, good);
        let taken = used.control.take_rows(&STEP, numbers, true);
        assert!(used.walk.state() == taken.after, "the refusals left a trace in the pages");
        assert!(words(&GPU, &output) == taken.output, "the refusals left a trace in the output");
        (used, taken)
    }
}

fn buffer(bytes: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
    GPU.device().create_buffer(&wgpu::BufferDescriptor { label: Some("test"), size: bytes, usage, mapped_at_creation: false })
}

fn at(buffer: &wgpu::Buffer, offset: u64) -> Rows<'_> {
    Rows::f32(buffer).at(offset)
}

#[test]
fn a_step_after_which_nothing_was_refused_is_what_it_should_be() {
    let (used, taken) = Used::new().step().goes_on();
    let (control, tables) = (&used.control, taken.step.words());
    let mut twin = taken.before.pages.clone();
    reference::append(
        &tables.append[0],
        &control.constants,
        &tables.tables,
        &control.turns,
        &taken.keys.words,
        &taken.values.words,
        &taken.before.protected_rows,
        &taken.before.marks,
        &mut twin[0],
        &mut [0; 1028],
    );
    let differing = twin[0].iter().zip(&taken.after.pages[0]).filter(|(a, b)| a != b).count();
    assert!(differing <= TIED_WORDS, "{differing} words differ from the twin's, more than ties of two tokens explain. WGKV_SEED={}", control.seed);
    for (sequence, first) in [(0, 0), (1, 1)] {
        let want = exact_over_stored(control, &taken, sequence, first, 1);
        let error = relative_rms(&floats(&taken.output)[first as usize * want.len()..], &want);
        assert!(error < DECODE_RMS, "sequence {sequence}: relative error {error}. WGKV_SEED={}", control.seed);
    }
}

#[test]
fn more_sequences_than_the_plan_has_are_refused() {
    let mut used = Used::new();
    refused(used.walk.cache.begin(), &Error::Sequences { have: 2 }, &["2"]);
    used.goes_on();
}

#[test]
fn sequences_that_ended_are_refused() {
    let Used { walk: Walk { mut cache, sequences, .. }, .. } = Used::new();
    let gone = sequences[1];
    cache.end(gone).unwrap();
    let error = Error::UnknownSequence { slot: 1 };
    refused(cache.tokens(gone), &error, &["sequence 1"]);
    refused(cache.end(gone), &error, &["sequence 1"]);
    refused(cache.step(&[chunk(gone, 1)]), &error, &["sequence 1"]);
    let again = cache.begin().unwrap();
    assert_eq!((again.slot(), cache.tokens(again)), (1, Ok(0)), "the place is given out again, and is empty");
    refused(cache.tokens(gone), &error, &["sequence 1"]);
}

#[test]
fn sequences_of_other_caches_are_refused() {
    let mut used = Used::new();
    let (own, foreign) = (used.walk.sequences[0], used.control.sequences[0]);
    let gone = {
        let mut other = Used::new();
        let gone = other.walk.sequences[1];
        other.walk.cache.end(gone).unwrap();
        gone
    };
    let cache = &mut used.walk.cache;
    let words = &["live sequence"];
    for stranger in [foreign, gone] {
        let error = Error::UnknownSequence { slot: stranger.slot() };
        refused(cache.step(&[chunk(own, 1), chunk(stranger, 1)]), &error, words);
        refused(cache.can_append(&[chunk(stranger, 1)]), &error, words);
        refused(cache.tokens(stranger), &error, words);
        refused(cache.end(stranger), &error, words);
        let (rows, mut commands) = (upload(&GPU, &[0.0; 256]), encoder(&GPU));
        refused(cache.dequantize(&mut commands, stranger, 0, 0..1, Rows::f32(&rows), Rows::f32(&rows)), &error, words);
    }
    used.goes_on();
}

#[test]
fn steps_that_cannot_be_are_refused() {
    let mut used = Used::new();
    let [first, second] = used.walk.sequences[..] else { panic!("two sequences") };
    let (room, pages) = (used.walk.plan().max_tokens(), used.walk.plan().pages());
    let cache = &mut used.walk.cache;
    refused(cache.step(&[chunk(first, 0)]), &Error::EmptyChunk { slot: 0 }, &["sequence 0", "1 token", "0"]);
    refused(cache.step(&[chunk(first, 1), chunk(first, 2)]), &Error::RepeatedSequence { slot: 0 }, &["sequence 0"]);
    let long = |tokens| Error::Length { slot: 0, need: 140 + tokens, have: room };
    refused(cache.step(&[chunk(first, room as u32)]), &long(room), &["sequence 0", &(140 + room).to_string(), &room.to_string()]);
    refused(cache.step(&[chunk(first, u32::MAX)]), &long(u32::MAX.into()), &[&room.to_string()]);
    // Two sequences that would fit alone: 4 pages in all, 2 and 1 in use.
    assert_eq!((pages, used.free_pages), (4, 1));
    refused(cache.step(&[chunk(second, 128), chunk(first, 128)]), &Error::Pages { need: 2, have: 1 }, &["2 more pages", "1 are free"]);
    used.goes_on();
}

#[test]
fn steps_that_cannot_be_are_not_admitted() {
    let used = Used::new();
    let [first, second] = used.walk.sequences[..] else { panic!("two sequences") };
    let (cache, room) = (&used.walk.cache, used.walk.plan().max_tokens());
    let both = [chunk(second, 128), chunk(first, 128)];
    let admission = cache.can_append(&both).unwrap();
    assert_eq!(admission, Admission { pages_needed: 2, pages_free: 1 });
    assert_eq!((admission.fits(), admission.pages_missing(), cache.can_append(&both[..1]).unwrap().fits()), (false, 1, true));
    refused(cache.can_append(&[chunk(first, 0)]), &Error::EmptyChunk { slot: 0 }, &["sequence 0"]);
    let long = Error::Length { slot: 0, need: 140 + room, have: room };
    refused(cache.can_append(&[chunk(first, room as u32)]), &long, &["sequence 0", &room.to_string()]);
    used.goes_on();
}

#[test]
fn steps_that_a_later_one_replaced_are_refused() {
    let Stepping { mut used, step: old, keys, values, queries, output, mut encoder, .. } = Used::new().step();
    let chunks: Vec<Chunk> = used.walk.sequences.iter().map(|sequence| chunk(*sequence, 1)).collect();
    let cache = &mut used.walk.cache;
    let new = cache.step(&chunks).unwrap();
    let later = Error::Stale { reason: "a later step was made, or a sequence was ended, forked, cut back or slid" };
    refused(cache.append(&mut encoder, &old, 0, Rows::f32(&keys), Rows::f32(&values)), &later, &["later step"]);
    refused(cache.attend(&mut encoder, &old, 0, Rows::f32(&queries), Rows::f32(&output)), &later, &["later step"]);
    cache.end(chunks[0].sequence).unwrap();
    refused(cache.append(&mut encoder, &new, 0, Rows::f32(&keys), Rows::f32(&values)), &later, &["ended"]);
    refused(cache.attend(&mut encoder, &new, 0, Rows::f32(&queries), Rows::f32(&output)), &later, &["ended"]);
    submit(&GPU, encoder);
    assert!(used.walk.state() == used.state, "pages or f16 rows changed");
    assert!(words(&GPU, &output).iter().all(|w| *w == POISON), "nothing was attended");
}

#[test]
fn steps_of_other_caches_are_refused() {
    let other = Used::new().step().step;
    let mut stepping = Used::new().step();
    let Stepping { used, keys, values, queries, output, encoder, .. } = &mut stepping;
    let stale = Error::Stale { reason: "another cache made it" };
    refused(used.walk.cache.append(encoder, &other, 0, Rows::f32(keys), Rows::f32(values)), &stale, &["another cache"]);
    refused(used.walk.cache.attend(encoder, &other, 0, Rows::f32(queries), Rows::f32(output)), &stale, &["another cache"]);
    stepping.goes_on();
}

#[test]
fn keys_and_values_that_cannot_be_appended_are_refused() {
    let mut stepping = Used::new().step();
    let Stepping { used, step, keys: k, values: v, encoder, .. } = &mut stepping;
    let storage = wgpu::BufferUsages::STORAGE;
    let (short, plain, roomy) = (buffer(1020, storage), buffer(4096, wgpu::BufferUsages::COPY_DST), buffer(4096, storage));
    let mut append = |keys, values, layer| used.walk.cache.append(encoder, step, layer, keys, values);
    let rows = |name, have| Error::Rows { name, need: 1024, have };
    refused(append(Rows::f32(k), Rows::f32(v), 1), &Error::Layer { had: 1, layers: 1 }, &["layer 1", "1 layers"]);
    refused(append(Rows::f32(k), Rows::f16(v), 0), &Error::argument("values", "f32", "f16"), &["values", "f32", "f16"]);
    refused(append(Rows::f32(&short), Rows::f32(v), 0), &rows("keys", 1020), &["keys", "1024", "1020"]);
    refused(append(Rows::f32(k), Rows::f32(&short), 0), &rows("values", 1020), &["values", "1024", "1020"]);
    refused(append(at(k, 256), Rows::f32(v), 0), &rows("keys", 768), &["keys", "1024", "768"]);
    refused(append(at(k, 1 << 40), Rows::f32(v), 0), &rows("keys", 0), &["keys", "1024", "0"]);
    refused(append(at(&roomy, 6), Rows::f32(v), 0), &Error::Offset { name: "keys", need: 4, had: 6 }, &["keys", "4", "6"]);
    refused(append(Rows::f32(k), Rows::f32(&plain), 0), &Error::Usage { name: "values", need: "STORAGE" }, &["values", "STORAGE"]);
    stepping.goes_on();
}

#[test]
fn queries_that_cannot_attend_are_refused() {
    let mut stepping = Used::new().step();
    let Stepping { used, step, keys: k, queries: q, output: out, encoder, .. } = &mut stepping;
    let (plain, roomy) = (buffer(4096, wgpu::BufferUsages::COPY_DST), buffer(4096, wgpu::BufferUsages::STORAGE));
    let mut attend = |queries, output, layer| used.walk.cache.attend(encoder, step, layer, queries, output);
    let rows = |name| Error::Rows { name, need: 2048, have: 1024 };
    refused(attend(Rows::f32(q), Rows::f32(out), 7), &Error::Layer { had: 7, layers: 1 }, &["layer 7", "1 layers"]);
    refused(attend(Rows::f32(q), Rows::f16(out), 0), &Error::argument("output", "f32", "f16"), &["output", "f32", "f16"]);
    refused(attend(Rows::f32(k), Rows::f32(out), 0), &rows("queries"), &["queries", "2048", "1024"]);
    refused(attend(Rows::f32(q), Rows::f32(k), 0), &rows("output"), &["output", "2048", "1024"]);
    refused(attend(Rows::f32(q), at(&roomy, 13), 0), &Error::Offset { name: "output", need: 4, had: 13 }, &["output", "13"]);
    refused(attend(Rows::f32(&plain), Rows::f32(out), 0), &Error::Usage { name: "queries", need: "STORAGE" }, &["queries"]);
    stepping.goes_on();
}

#[test]
fn rows_that_are_written_where_others_lie_are_refused() {
    let mut stepping = Used::new().step();
    let Stepping { used, step, keys: k, values: v, encoder, .. } = &mut stepping;
    let cache = &used.walk.cache;
    let sequence = used.walk.sequences[0];
    let alignment = u64::from(GPU.capability().storage_alignment);
    // A query row has 2048 bytes, its log-sums 32, a token's keys 512.
    let roomy = buffer(4 * 2048, wgpu::BufferUsages::STORAGE);
    let apart = |name, other, beside: std::ops::Range<u64>, bytes: std::ops::Range<u64>| {
        Error::argument(name, format!("apart from {other}, at bytes {beside:?} of the buffer"), format!("at bytes {bytes:?} of the same buffer"))
    };
    let a = alignment;
    let shifted = apart("output", "queries", 0..2048, a..a + 2048);
    refused(cache.attend(encoder, step, 0, at(&roomy, 0), at(&roomy, a)), &shifted, &["output", "apart from queries"]);
    refused(cache.attend(encoder, step, 0, at(&roomy, a), at(&roomy, 0)), &apart("output", "queries", a..a + 2048, 0..2048), &["output"]);
    let mut part = |queries, output, log_sums| cache.attend_part(encoder, step, 0, at(&roomy, queries), at(&roomy, output), at(&roomy, log_sums));
    let within = 2048 - a;
    refused(part(0, 2048, 2048), &apart("log_sums", "output", 2048..4096, 2048..2080), &["log_sums", "apart from output"]);
    refused(part(0, 2048, 2048 + within), &apart("log_sums", "output", 2048..4096, 2048 + within..2080 + within), &["log_sums"]);
    refused(part(0, 2048, within), &apart("log_sums", "queries", 0..2048, within..within + 32), &["log_sums", "apart from queries"]);
    refused(part(0, 0, 0), &apart("log_sums", "queries", 0..2048, 0..32), &["log_sums"]);
    let mut dequantize = |keys, values| cache.dequantize(encoder, sequence, 0, 0..4, at(&roomy, keys), at(&roomy, values));
    refused(dequantize(0, 0), &apart("values", "keys", 0..2048, 0..2048), &["values", "apart from keys"]);
    refused(dequantize(a, 0), &apart("values", "keys", a..a + 2048, 0..2048), &["values"]);
    // In one buffer, but apart; and in place.
    let mut fine = self::encoder(&GPU);
    cache.append(&mut fine, step, 0, Rows::f32(k), Rows::f32(v)).unwrap();
    cache.attend_part(&mut fine, step, 0, at(&roomy, 0), at(&roomy, 2048), at(&roomy, 4096)).unwrap();
    cache.attend_part(&mut fine, step, 0, at(&roomy, 0), at(&roomy, 0), at(&roomy, 2048)).unwrap();
    cache.dequantize(&mut fine, sequence, 0, 0..4, at(&roomy, 0), at(&roomy, 2048)).unwrap();
    drop(fine);
    step.unrecord();
    stepping.goes_on();
}

/// Rows of a layout from a buffer's start.
fn laid(buffer: &wgpu::Buffer, layout: RowLayout) -> Rows<'_> {
    Rows { layout, ..Rows::f32(buffer) }
}

#[test]
fn layouts_that_cannot_be_are_refused() {
    let mut stepping = Used::new().step();
    let Stepping { used, step, keys: k, values: v, queries: q, output: out, encoder, .. } = &mut stepping;
    let (storage, mut recorder) = (wgpu::BufferUsages::STORAGE, self::encoder(&GPU));
    // Two rows of two KV heads, or of four query heads, of 64.
    let (roomy, plain) = (buffer(1 << 16, storage), buffer(1 << 16, wgpu::BufferUsages::COPY_DST));
    let strided = |token_stride, head_stride| RowLayout::Strided { token_stride, head_stride };
    let batched = |tokens, sequence_stride| RowLayout::Batched { tokens, sequence_stride, token_stride: 128, head_stride: 64 };
    let mut append = |keys, values| used.walk.cache.append(encoder, step, 0, keys, values);
    for (layout, name, wanted, had) in [
        (strided(128, 63), "head_stride", "64 or more", "63"),
        (strided(128, 0), "head_stride", "64 or more", "0"),
        (strided(0, 64), "token_stride", "64 or more", "0"),
        (strided(127, 64), "token_stride", "128 or more", "127"),
        (strided(64, 127), "head_stride", "128 or more", "127"),
        (batched(1, 127), "sequence_stride", "128 or more", "127"),
        (batched(1, 0), "sequence_stride", "64 or more", "0"),
        (batched(0, 128), "tokens", "all 2, or the 1 of every chunk", "0"),
        (batched(3, 128), "tokens", "all 2, or the 1 of every chunk", "3"),
        (RowLayout::HeadsFirst { tokens: 0 }, "tokens", "all 2, or the 1 of every chunk", "0"),
        (RowLayout::HeadsFirst { tokens: 4 }, "tokens", "all 2, or the 1 of every chunk", "4"),
    ] {
        for of in ["keys", "values"] {
            let error = Error::argument(format!("{name} of {of}"), wanted, had);
            let (keys, values) = if of == "keys" { (laid(&roomy, layout), Rows::f32(v)) } else { (Rows::f32(k), laid(&roomy, layout)) };
            refused(append(keys, values), &error, &[name, of, wanted, had]);
        }
    }
    // One number short: heads of 64 at 70, tokens at 200, from the 5th number on.
    let need = 4 * (200 + 70 + 64);
    let (short, tight) = (buffer(20 + need - 4, storage), buffer(4 * 255, storage));
    let error = Error::Rows { name: "keys", need, have: need - 4 };
    refused(append(laid(&short, strided(200, 70)).at(20), Rows::f32(v)), &error, &["keys", &need.to_string()]);
    let error = Error::Rows { name: "values", need: 4 * 256, have: 4 * 255 };
    refused(append(Rows::f32(k), laid(&tight, RowLayout::HeadsFirst { tokens: 2 })), &error, &["values", "1024", "1020"]);
    // Numbers of 16 bits that end within a word of which the buffer has half.
    let halves = buffer(2 * (200 + 70 + 64) + 2, storage);
    let odd = Rows { element: Element::F16, ..laid(&halves, strided(200, 70)) }.at(2);
    let pair = Rows { element: Element::F16, ..laid(&roomy, strided(200, 70)) }.at(2);
    refused(append(odd, pair), &Error::Rows { name: "keys", need: 670, have: 668 }, &["keys", "670", "668"]);
    refused(append(pair.at(1), pair), &Error::Offset { name: "keys", need: 2, had: 1 }, &["keys", "2", "1"]);
    // Strides whose rows end beyond any buffer, and beyond 64 bits.
    let (far, last) = (strided(u32::MAX, 64), u64::from(u32::MAX));
    let error = Error::Rows { name: "keys", need: 4 * (last + 128), have: 1 << 16 };
    refused(append(laid(&roomy, far), Rows::f32(v)), &error, &["keys"]);
    let error = Error::Rows { name: "keys", need: 4 * (last + 128), have: 0 };
    refused(append(laid(&roomy, far).at(u64::MAX - 3), Rows::f32(v)), &error, &["keys"]);
    refused(append(laid(&plain, strided(200, 70)), Rows::f32(v)), &Error::Usage { name: "keys", need: "STORAGE" }, &["keys", "STORAGE"]);

    let attend = |recorder: &mut wgpu::CommandEncoder, queries, output| used.walk.cache.attend(recorder, step, 0, queries, output);
    refused(
        attend(&mut recorder, laid(&roomy, strided(256, 63)), Rows::f32(out)),
        &Error::argument("head_stride of queries", "64 or more", "63"),
        &["queries"],
    );
    refused(attend(&mut recorder, Rows::f32(q), laid(&roomy, strided(255, 64))), &Error::argument("token_stride of output", "256 or more", "255"), &["output"]);
    // Two invocations would write one word.
    let sixteen = |layout| Rows { element: Element::Bf16, ..laid(&roomy, layout) };
    let even = |name: &str, had: u32| Error::argument(format!("{name} of output"), "even, since a word holds two numbers of 16 bits", had);
    refused(attend(&mut recorder, sixteen(RowLayout::Dense), sixteen(strided(301, 64))), &even("token_stride", 301), &["token_stride", "even", "301"]);
    refused(attend(&mut recorder, sixteen(RowLayout::Dense), sixteen(strided(300, 65))), &even("head_stride", 65), &["head_stride", "65"]);
    refused(attend(&mut recorder, sixteen(RowLayout::Dense), sixteen(strided(300, 64)).at(2)), &Error::Offset { name: "output", need: 4, had: 2 }, &["output"]);
    // Rows that take turns lie apart; the others do not.
    let beside = |token: u32, first: u64| laid(&roomy, strided(token, 64)).at(4 * first);
    let overlap = |first: u64, last: u64| {
        let at = |first: u64| 4 * first..4 * (first + last);
        Error::argument("output", format!("apart from queries, at bytes {:?} of the buffer", at(0)), format!("at bytes {:?} of the same buffer", at(first)))
    };
    refused(attend(&mut recorder, beside(512, 0), beside(512, 255)), &overlap(255, 768), &["output", "apart from queries"]);
    refused(attend(&mut recorder, beside(512, 0), beside(512, 257)), &overlap(257, 768), &["output"]);
    // Log-sums lie dense, and no byte that the dispatch binds for the output is theirs.
    let part = |output, log_sums| used.walk.cache.attend_part(&mut self::encoder(&GPU), step, 0, Rows::f32(q), output, log_sums);
    let dense = Error::argument("layout of log_sums", "dense", "Strided { token_stride: 4, head_stride: 1 }");
    refused(part(Rows::f32(out), laid(&roomy, strided(4, 1))), &dense, &["log_sums", "dense"]);
    let alignment = u64::from(GPU.capability().storage_alignment);
    refused(part(Rows::f32(out), at(&roomy, 4)), &Error::Offset { name: "log_sums", need: alignment, had: 4 }, &["log_sums"]);
    let between = 4 * 256u64.next_multiple_of(alignment);
    let error = Error::argument(
        "log_sums",
        format!("apart from output, at bytes {:?} of the buffer", 0..4 * 1280),
        format!("at bytes {:?} of the same buffer", between..between + 32),
    );
    refused(part(beside(1024, 0), at(&roomy, between)), &error, &["log_sums"]);
    let dense = Error::argument("layout of keys", "dense", "HeadsFirst { tokens: 2 }");
    let sequence = used.walk.sequences[0];
    let heads_first = laid(&roomy, RowLayout::HeadsFirst { tokens: 2 });
    refused(used.walk.cache.dequantize(&mut recorder, sequence, 0, 0..2, heads_first, Rows::f32(v)), &dense, &["keys", "dense"]);
    drop(recorder);
    let fine = &mut self::encoder(&GPU);
    used.walk.cache.append(fine, step, 0, laid(&roomy, strided(512, 64)), laid(&roomy, strided(512, 64)).at(4 * 256)).unwrap();
    used.walk.cache.attend(fine, step, 0, beside(512, 0), beside(512, 256)).unwrap();
    step.unrecord();
    stepping.goes_on();
}

#[test]
fn a_batch_of_chunks_that_differ_is_refused() {
    let mut used = Used::new();
    let roomy = buffer(1 << 16, wgpu::BufferUsages::STORAGE);
    let chunks = [(0, 1), (1, 3)].map(|(n, tokens)| chunk(used.walk.sequences[n], tokens));
    let step = used.walk.cache.step(&chunks).unwrap();
    let mut encoder = encoder(&GPU);
    let mut append = |tokens| {
        let keys = Rows::f32(&roomy).heads_first(tokens);
        used.walk.cache.append(&mut encoder, &step, 0, keys, Rows::f32(&roomy))
    };
    for tokens in [1, 2, 3] {
        refused(append(tokens), &Error::argument("tokens of keys", "all 4", tokens), &["tokens", "4"]);
    }
    append(4).unwrap();
}

#[test]
fn rows_that_cannot_be_dequantized_are_refused() {
    let mut stepping = Used::new().step();
    let Stepping { used, keys: k, values: v, encoder, .. } = &mut stepping;
    let sequence = used.walk.sequences[0];
    let mut dequantize = |layer, tokens, keys, values| used.walk.cache.dequantize(encoder, sequence, layer, tokens, keys, values);
    refused(dequantize(0, 139..142, Rows::f32(k), Rows::f32(v)), &Error::Range { first: 139, end: 142, have: 141 }, &["139", "142", "141"]);
    #[expect(clippy::reversed_empty_ranges, reason = "it is what must be refused")]
    let backwards = 3..2;
    refused(dequantize(0, backwards, Rows::f32(k), Rows::f32(v)), &Error::Range { first: 3, end: 2, have: 141 }, &["3", "2", "141"]);
    refused(dequantize(5, 0..1, Rows::f32(k), Rows::f32(v)), &Error::Layer { had: 5, layers: 1 }, &["layer 5"]);
    refused(dequantize(0, 0..1, Rows::f16(k), Rows::f32(v)), &Error::argument("keys", "f32", "f16"), &["keys"]);
    refused(dequantize(0, 0..3, Rows::f32(k), Rows::f32(v)), &Error::Rows { name: "keys", need: 1536, have: 1024 }, &["1536", "1024"]);
    assert!(dequantize(0, 5..5, Rows::f32(k), Rows::f32(v)).is_ok(), "no tokens are no error");
    refused(used.walk.cache.layer_buffers(1).map(|_| ()), &Error::Layer { had: 1, layers: 1 }, &["layer 1"]);
    stepping.goes_on();
}

#[test]
fn a_step_of_no_chunks_does_nothing() {
    let gpu = &*GPU;
    let mut walk = Walk::new(gpu, case("nothing", 64, 2, 1, rtn(Bits::Four, Bits::Four, 64)));
    let state = walk.state();
    let step = walk.cache.step(&[]).unwrap();
    assert_eq!(step.rows(), 0);
    let empty = upload(gpu, &[0.0]);
    let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    walk.cache.append(&mut encoder, &step, 0, Rows::f32(&empty), Rows::f32(&empty)).unwrap();
    walk.cache.attend(&mut encoder, &step, 0, Rows::f32(&empty), Rows::f32(&empty)).unwrap();
    gpu.queue().submit([encoder.finish()]);
    assert!(walk.state() == state);
}

#[test]
fn alignments_that_cannot_be_are_refused() {
    for text in ["", "all", "phi-k", "phi-k:", "phi-k:x", "phi-q:1", "phi-k:-1", "phi-v:inf", "phi-v:nan", "phi-k:1;phi-v:1"] {
        refused(
            text.parse::<Alignment>(),
            &Error::argument("alignment", "everything, published, or budgets as in phi-k:64,phi-v:256", text),
            &["everything, published", "phi-k:64"],
        );
    }
    for alignment in [
        Alignment::EVERYTHING,
        Alignment::PUBLISHED,
        Alignment::budget(0.25, 1.0),
        Alignment { keys: Criterion::Everything, values: Criterion::Budget(4.0) },
        Alignment { keys: Criterion::Published, values: Criterion::Everything },
    ] {
        assert_eq!(alignment.to_string().parse::<Alignment>().unwrap(), alignment);
    }
    let planned = |format, alignment| {
        let builder = Plan::builder(shape(), format).protection(Protection::NONE).capacity(Capacity::tokens(1, 1));
        builder.alignment(alignment).build(&Capability::webgpu_default())
    };
    refused(
        planned(Format::f16(), Alignment::PUBLISHED),
        &Error::argument("the codec of an alignment", "aligned-f16, rtn, hadamard or centred", "f16"),
        &["aligned-f16", "f16"],
    );
    let coded = |key, value, alignment| planned(Format::new(Codec::Rtn, key, value, 64), alignment);
    for (bits, name, had) in
        [([Bits::Two, Bits::Four], "key bits", "2"), ([Bits::Four, Bits::Three], "value bits", "3"), ([Bits::Sixteen, Bits::Eight], "key bits", "16")]
    {
        refused(coded(bits[0], bits[1], Alignment::budget(1.0, 1.0)), &Error::argument(name, "4 or 8 with an alignment", had), &[name, had]);
    }
    refused(
        coded(Bits::Four, Bits::Eight, Alignment { keys: Criterion::Published, values: Criterion::Budget(1.0) }),
        &Error::argument("the alignment of integer codes", "a budget", "published-k,phi-v:1"),
        &["a budget", "published-k"],
    );
    // Without an alignment codes are not stored in planes, and a cache has none to choose from.
    let plain = coded(Bits::Four, Bits::Eight, Alignment::EVERYTHING).unwrap();
    assert_eq!(plain, plan(shape(), rtn(Bits::Four, Bits::Eight, 64), Protection::NONE, Capacity::tokens(1, 1), &Capability::webgpu_default()).unwrap());
    refused(
        Cache::new(&GPU, plain).unwrap().align(Alignment::budget(1.0, 1.0)),
        &Error::argument("the plan of an alignment", "one of planes, by PlanBuilder::alignment", "rtn without"),
        &["PlanBuilder::alignment"],
    );
    refused(planned(Format::aligned_f16(), Alignment::budget(1.0, -2.0)), &Error::argument("phi_v", "finite and not negative", "-2"), &["phi_v", "-2"]);
}
