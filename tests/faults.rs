//! Faults of the device: lost at any moment, without memory. Each is told by a typed error, and
//! what was saved goes on elsewhere.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use pollster::block_on;
use wgkv_testing::*;

fn shape() -> Shape {
    Shape { layers: 2, query_heads: 4, kv_heads: 2, head_dim: 64, rope: Rope::new(10_000.0, 64) }
}

/// Every kind of buffer: pages, key scales, f16 rows of elected sinks and of a window.
fn plan(gpu: &Gpu, order: &ChannelOrder) -> Plan {
    let format = rotated(Bits::Four, Bits::Four, 64, 2);
    let builder = Plan::builder(shape(), format).protection(massive(3, 128)).capacity(Capacity::tokens(3, 512));
    builder.learned(order.clone()).build(gpu.capability()).unwrap()
}

fn order() -> ChannelOrder {
    random_order(&shape(), &rotated(Bits::Four, Bits::Four, 64, 2), Reach::Global, &mut generator())
}

/// Takes the device away, as a crash of its driver would; it is told when the device is polled.
fn lose(gpu: &Gpu) {
    gpu.device().destroy();
    gpu.device().poll(wgpu::PollType::wait_indefinitely()).unwrap();
}

fn encoder(gpu: &Gpu) -> wgpu::CommandEncoder {
    gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
}

#[track_caller]
fn lost<T: std::fmt::Debug>(result: Result<T>) {
    assert!(matches!(&result, Err(Error::Lost { reason }) if reason == "Destroyed"), "{result:?}");
}

#[test]
fn every_call_tells_that_the_device_is_lost_and_a_snapshot_goes_on_elsewhere() {
    let order = order();
    let text = Text::normal(&mut generator(), &shape(), 700);
    let gpu = gpu();
    let mut reader = Reader::new(&gpu, plan(&gpu, &order));
    let sequence = reader.cache.begin().unwrap();
    reader.store(sequence, &text, 400);
    let saved = block_on(reader.cache.save(sequence)).unwrap();
    let (mut prefixes, tokens) = (PrefixIndex::new(reader.cache.plan()), (0..384).collect::<Vec<u32>>());
    let step = reader.cache.step(&[Chunk { sequence, tokens: 2 }]).unwrap();
    let rows = upload(&gpu, &[0.0; 2 * 4 * 64]);
    let (free, all) = (reader.cache.free_pages(), reader.cache.plan().pages());
    // It is told once, by every clone and whatever it pretends; who waits is told, too.
    let pretended = gpu.pretend(Capability::webgpu_default());
    let (soon, later) = (gpu.until_lost(), gpu.until_lost());
    assert_eq!((gpu.lost(), pretended.lost()), (None, None));
    let waiting = std::thread::spawn(move || block_on(soon));
    lose(&gpu);
    assert_eq!((gpu.lost(), pretended.lost()), (Some("Destroyed"), Some("Destroyed")));
    assert_eq!((waiting.join().unwrap(), block_on(later)), ("Destroyed".into(), "Destroyed".into()));
    gpu.report_loss("again");
    assert_eq!(gpu.lost(), Some("Destroyed"), "the first reason stays");

    let mut encoder = encoder(&gpu);
    let (cache, rows) = (&mut reader.cache, Rows::f32(&rows));
    let chunk = [Chunk { sequence, tokens: 1 }];
    lost(cache.can_append(&chunk));
    lost(cache.step(&chunk));
    lost(cache.elect(&mut encoder, &step, 0, rows, 8));
    lost(cache.append(&mut encoder, &step, 0, rows, rows));
    lost(cache.attend(&mut encoder, &step, 0, rows, rows));
    lost(cache.dequantize(&mut encoder, sequence, 0, 0..1, rows, rows));
    lost(cache.fork(&mut encoder, sequence));
    lost(cache.fork_prefix(&mut encoder, sequence, 128));
    lost(cache.truncate(&mut encoder, sequence, 128));
    lost(block_on(cache.save(sequence)));
    lost(block_on(cache.save_prefix(sequence, 10)));
    lost(cache.load(&mut encoder, &saved));
    lost(block_on(cache.status()));
    lost(prefixes.begin(cache, &mut encoder, &tokens));
    lost(prefixes.remember(cache, &mut encoder, sequence, &tokens));
    lost(prefixes.make_room(cache, &chunk));
    lost(block_on(gpu.read(rows.buffer, 0, 1)));
    lost(block_on(gpu.prepare(cache.plan())));
    lost(Cache::new(&gpu, cache.plan().clone()));
    lost(block_on(Cache::request(&pretended, cache.plan().clone())));
    // What needs no device is still known, and nothing that was refused took a page.
    assert_eq!((cache.tokens(sequence), cache.free_pages()), (Ok(402), free));
    cache.check_pages().unwrap();
    cache.end(sequence).unwrap();
    assert_eq!(cache.free_pages(), all);

    // Another device, on which the snapshot goes on as the sequence would have.
    let gpu = wgkv_testing::gpu();
    let mut rebuilt = Reader::new(&gpu, plan(&gpu, &order));
    let loaded = rebuilt.recorded(|cache, encoder| cache.load(encoder, &saved));
    let control = rebuilt.cache.begin().unwrap();
    rebuilt.store(control, &text, 400);
    for chunk in [1, 150, 1] {
        assert!(rebuilt.read(loaded, &text, chunk) == rebuilt.read(control, &text, chunk), "{chunk} more");
    }
}

#[test]
fn a_device_that_is_lost_before_a_call_knows_is_told_by_the_next() {
    let order = order();
    let text = Text::normal(&mut generator(), &shape(), 300);
    let [kv, _, q, _] = Text::widths(&shape());
    // What happens between the loss and its telling is recorded to no avail, and nothing panics.
    for call in ["append", "attend", "dequantize", "step", "truncate"] {
        let gpu = gpu();
        let mut reader = Reader::new(&gpu, plan(&gpu, &order));
        let sequence = reader.cache.begin().unwrap();
        reader.store(sequence, &text, 140);
        let cache = &mut reader.cache;
        let step = cache.step(&[Chunk { sequence, tokens: 1 }]).unwrap();
        let [keys, values, queries] = [kv, kv, q].map(|width| upload(&gpu, &vec![0.0; width]));
        let out = poisoned(&gpu, q);
        let [k, v, asked, answer] = [&keys, &values, &queries, &out].map(Rows::f32);
        let mut encoder = encoder(&gpu);
        if ["attend", "dequantize"].contains(&call) {
            cache.append(&mut encoder, &step, 0, k, v).unwrap();
        }
        gpu.device().destroy();
        assert_eq!(gpu.lost(), None, "{call}: not told yet");
        match call {
            "append" => cache.append(&mut encoder, &step, 0, k, v).unwrap(),
            "attend" => cache.attend(&mut encoder, &step, 0, asked, answer).unwrap(),
            "dequantize" => cache.dequantize(&mut encoder, sequence, 0, 0..1, k, v).unwrap(),
            "step" => drop(cache.step(&[Chunk { sequence, tokens: 130 }]).unwrap()),
            _ => cache.truncate(&mut encoder, sequence, 1).unwrap(),
        }
        gpu.queue().submit([encoder.finish()]);
        gpu.device().poll(wgpu::PollType::wait_indefinitely()).unwrap();
        lost(cache.append(&mut self::encoder(&gpu), &step, 1, k, v));
        cache.check_pages().unwrap();
    }
}

#[test]
fn a_snapshot_under_way_tells_that_the_device_is_lost() {
    let order = order();
    let text = Text::normal(&mut generator(), &shape(), 300);
    // After the copy was submitted, and before anything was.
    for before in [false, true] {
        let gpu = gpu();
        let mut reader = Reader::new(&gpu, plan(&gpu, &order));
        let sequence = reader.cache.begin().unwrap();
        reader.store(sequence, &text, 140);
        let saving = if before {
            gpu.device().destroy();
            block_on(reader.cache.save(sequence))
        } else {
            let saving = reader.cache.save(sequence);
            gpu.device().destroy();
            block_on(saving)
        };
        lost(saving);
        lost(block_on(reader.cache.status()));
    }
}

#[test]
fn a_device_of_the_callers_is_lost_when_the_caller_says_so() {
    let own = gpu();
    let gpu = Gpu::new(own.device().clone(), own.queue().clone());
    let plan = Plan::builder(shape(), Format::f16()).protection(Protection::NONE).capacity(Capacity::tokens(1, 128)).build(gpu.capability()).unwrap();
    let mut cache = Cache::new(&gpu, plan).unwrap();
    let sequence = cache.begin().unwrap();
    let told = gpu.clone();
    gpu.device().set_device_lost_callback(move |reason, message| told.report_loss(format!("{reason:?}{message}")));
    assert!(cache.step(&[Chunk { sequence, tokens: 1 }]).is_ok());
    lose(&gpu);
    lost(cache.step(&[Chunk { sequence, tokens: 1 }]));
    assert_eq!(own.lost(), None, "its callback was replaced");
}
