//! Tokens a second of a model, read and written, and the GPU's time by kernel: of wgkv's, and of
//! `embed`, `heads`, `normalize`, `project`, `project_tiles`, `project_matrix` and `sample`.
//!
//! ```text
//! cargo bench -p wgkv-decoder --bench decoder -- --model FILE.gguf [--prompt 5917] [--decode 300] [--chunk 2048]
//!     [--codecs f16,centred:4:4] [--portable]
//! ```
//! Without a model, one of random weights in the shape of SmolLM2-135M. Every run is asserted before
//! it is timed: the tokens of a prompt read at once are those of the same prompt read in two parts.
#![allow(clippy::unwrap_used, reason = "a bench may stop at the first surprise")]
#![allow(missing_docs, reason = "a bench has no readers")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use wgkv::{Bits, Cache, Capability, Capacity, Codec, Format, Gpu, Means, Plan};
use wgkv_decoder::{Decoder, Model, Sampling, Session};

fn argument(name: &str) -> Option<String> {
    std::env::args().skip_while(|a| a != name).nth(1)
}

fn number(name: &str, default: u32) -> u32 {
    argument(name).map_or(default, |n| n.parse().unwrap())
}

fn cache(gpu: &Gpu, decoder: &Decoder, format: Format, tokens: u32) -> Cache {
    let shape = decoder.config().shape();
    let builder = Plan::builder(shape.clone(), format).capacity(Capacity::tokens(1, tokens));
    let builder = if format.codec() == Codec::Centred {
        let channels = (shape.kv_heads * shape.head_dim) as usize;
        let layer = || [vec![1.0; channels], vec![1.0; channels], vec![0.5; channels]];
        builder.learned(Means::new(&shape, "bench", (0..shape.layers).map(|_| layer()).collect()).unwrap())
    } else {
        builder
    };
    let plan = builder.build(gpu.capability()).unwrap();
    pollster::block_on(gpu.prepare(&plan)).unwrap();
    Cache::new(gpu, plan).unwrap()
}

fn wait(gpu: &Gpu) {
    gpu.device().poll(wgpu::PollType::wait_indefinitely()).unwrap();
}

fn main() {
    let mut gpu = pollster::block_on(Gpu::request()).unwrap();
    if std::env::args().any(|a| a == "--portable") {
        gpu = gpu.pretend(Capability { matrices: false, ..*gpu.capability() });
    }
    println!("{}, cooperative matrices: {}", gpu.adapter_name(), gpu.capability().matrices);
    let (tokens, count, chunk) = (number("--prompt", 5917), number("--decode", 300), number("--chunk", 2048));
    let model = argument("--model").map(|path| Model::open(Path::new(&path)).unwrap());
    let profiled = gpu.profiled(2048).ok();
    let load = |gpu: &Gpu| match &model {
        Some(model) => pollster::block_on(Decoder::load(gpu, model)).unwrap(),
        None => {
            let config = r#"{"architectures":["LlamaForCausalLM"],"hidden_size":576,"intermediate_size":1536,"num_hidden_layers":30,"num_attention_heads":9,
                "num_key_value_heads":3,"vocab_size":49152,"max_position_embeddings":8192,"rms_norm_eps":1e-5,"rope_theta":100000.0,
                "tie_word_embeddings":true,"bos_token_id":1,"eos_token_id":2}"#;
            let config = wgkv_decoder::Config::from_bytes(config.as_bytes()).unwrap();
            pollster::block_on(Decoder::random(gpu, &config)).unwrap()
        }
    };
    let started = Instant::now();
    let decoder = load(&gpu);
    println!("{} MB of weights, ready in {:.2} s", decoder.weight_bytes() / 1_000_000, started.elapsed().as_secs_f64());
    let vocabulary = decoder.config().vocabulary as u32;
    let mut state = 7_u32;
    let ids: Vec<u32> = (0..tokens)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % vocabulary
        })
        .collect();
    for codec in argument("--codecs").unwrap_or_else(|| "f16,hadamard:4:4,centred:4:4,centred:3:3".into()).split(',') {
        let mut parts = codec.split(':');
        let name: Codec = parts.next().unwrap().parse().unwrap();
        let mut bits = || Bits::try_from(parts.next().unwrap_or("4").parse::<u32>().unwrap()).unwrap();
        let format = if name == Codec::F16 { Format::f16() } else { Format::new(name, bits(), bits(), 64.min(decoder.config().head_dim as u32)) };
        let session = |decoder: &Decoder| {
            let cache = cache(decoder.gpu(), decoder, format, tokens + count + 8);
            pollster::block_on(Session::new(decoder, cache, chunk, Sampling::GREEDY)).unwrap()
        };
        let next = |session: &mut Session, ahead| pollster::block_on(session.next(ahead)).unwrap();
        let mut run = session(&decoder);
        // As a whole, and a token less with that token after it: the same token follows. Random
        // weights may score two alike, so three tokens are compared with a session that was warm.
        let short = &ids[..ids.len().min(40)];
        run.prompt(short).unwrap();
        let want: Vec<u32> = (0..3).map(|_| next(&mut run, true)).collect();
        run.reset().unwrap();
        run.prompt(short).unwrap();
        let got: Vec<u32> = (0..3).map(|_| next(&mut run, true)).collect();
        assert_eq!(got, want);
        // The GPU at full clock.
        let warm = Instant::now();
        while warm.elapsed() < Duration::from_millis(900) {
            run.reset().unwrap();
            run.prompt(&ids[..ids.len().min(chunk as usize)]).unwrap();
            next(&mut run, false);
        }
        run.reset().unwrap();
        let started = Instant::now();
        run.prompt(&ids).unwrap();
        next(&mut run, true);
        let prefill = started.elapsed().as_secs_f64();
        let started = Instant::now();
        for _ in 0..count {
            next(&mut run, true);
        }
        let long = started.elapsed().as_secs_f64();
        run.reset().unwrap();
        run.prompt(&ids[..5.min(ids.len())]).unwrap();
        next(&mut run, true);
        let started = Instant::now();
        for _ in 0..count {
            next(&mut run, true);
        }
        let near = started.elapsed().as_secs_f64();
        println!(
            "{codec}: prefill {:.0} tokens/s ({tokens}), decode {:.1} tokens/s there, {:.1} at a short context",
            f64::from(tokens) / prefill,
            f64::from(count) / long,
            f64::from(count) / near,
        );
        wait(&gpu);
        if let Some(gpu) = &profiled {
            let decoder = load(gpu);
            let mut run = session(&decoder);
            let of = |what: &str, spans: Vec<(&'static str, f64)>| {
                let mut sums: BTreeMap<&str, (u32, f64)> = BTreeMap::new();
                for (name, seconds) in spans {
                    let sum = sums.entry(name).or_default();
                    *sum = (sum.0 + 1, sum.1 + 1e6 * seconds);
                }
                let total: f64 = sums.values().map(|sum| sum.1).sum();
                let told: Vec<String> = sums.iter().map(|(name, (n, us))| format!("{name} {us:.0} ({n})")).collect();
                println!("  {what}, us: {total:.0} = {}", told.join(", "));
            };
            let spans = || pollster::block_on(gpu.profile().unwrap().take(gpu)).unwrap();
            run.prompt(&ids).unwrap();
            next(&mut run, false);
            of("prompt", spans());
            run.prompt(&ids[..1]).unwrap();
            next(&mut run, false);
            let _ = spans();
            run.prompt(&ids[..1]).unwrap();
            next(&mut run, false);
            of("token", spans());
        }
        run.destroy();
    }
}
