//! `calibrate`: what RotateKV must know of a model, or Centred takes, learnt from sample text.
//!
//! The unmodified model reads windows of the text through an f16 cache, and the keys of every
//! layer, before RoPE (for Centred also values and queries), are summed on the GPU on their way
//! into it.

use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;
use wgkv::learned::{MeansCollector, OrderCollector, Reach};
use wgkv::{Codec, Format};
use wgkv_decoder::{Decoder, LayerRows, Recorder, Tap};

use crate::error::{Error, Result};
use crate::options::{ModelOptions, expect_alike, open_f16, reach, read_text};
use crate::perplexity::{Window, bar, windows};
use crate::reading::{Each, Reading, work};

/// Tokens that are processed at once.
const CHUNK: usize = 512;

/// Options of `calibrate`.
#[derive(Debug, Clone, clap::Args)]
pub struct CalibrateOptions {
    /// The model.
    #[command(flatten)]
    pub model: ModelOptions,
    /// Sample text; not the one that the model is measured on.
    #[arg(long)]
    pub text: PathBuf,
    /// File to write, in the format of safetensors.
    #[arg(long)]
    pub out: PathBuf,
    /// What to learn for: rotate-kv or centred.
    #[arg(long, default_value_t = Codec::RotateKv)]
    pub codec: Codec,
    /// Windows to read.
    #[arg(long, default_value_t = 48)]
    pub windows: usize,
    /// Tokens in a window.
    #[arg(long, default_value_t = 2048)]
    pub context: usize,
    /// KV heads that are rotated together; 4, or the largest power of two below that divides their
    /// number, without it.
    #[arg(long)]
    pub heads_per_group: Option<u32>,
    /// How far the order of channels reaches: global, or local to the heads rotated together.
    #[arg(long, value_parser = reach, default_value = "global")]
    pub reach: Reach,
}

/// What a calibration was made of.
#[derive(Debug, Clone, Serialize)]
pub struct CalibrateReport {
    /// The file.
    pub out: PathBuf,
    /// The model's hash.
    pub model: String,
    /// Tokens read.
    pub tokens: u64,
    /// KV heads that are rotated together, for rotate-kv.
    pub heads_per_group: Option<u32>,
    /// Time for all of it.
    pub seconds: f64,
    /// The GPU.
    pub adapter: String,
}

/// Sums the keys of the model over windows of a text.
///
/// # Errors
/// Those of [`OrderCollector`] and of reading the windows.
pub fn collect(decoder: &Decoder, windows: &[Window], heads: u32, progress: impl FnMut(usize)) -> Result<OrderCollector> {
    let collector = OrderCollector::new(decoder.gpu(), &decoder.config().shape(), heads)?;
    let add = |recorder: &mut Recorder, rows: &LayerRows<'_>| Ok(collector.add(recorder.encoder(), rows.layer, rows.keys, rows.rows)?);
    read(decoder, windows, &mut Each(add), progress)?;
    Ok(collector)
}

/// Sums the keys, values and squares of queries.
///
/// # Errors
/// Those of [`MeansCollector`] and of reading the windows.
pub fn collect_means(decoder: &Decoder, windows: &[Window], progress: impl FnMut(usize)) -> Result<MeansCollector> {
    let collector = MeansCollector::new(decoder.gpu(), &decoder.config().shape())?;
    let add =
        |recorder: &mut Recorder, rows: &LayerRows<'_>| Ok(collector.add(recorder.encoder(), rows.layer, rows.queries, rows.keys, rows.values, rows.rows)?);
    read(decoder, windows, &mut Each(add), progress)?;
    Ok(collector)
}

/// Reads windows of a text with the unmodified model.
fn read(decoder: &Decoder, windows: &[Window], tap: &mut dyn Tap, mut progress: impl FnMut(usize)) -> Result<()> {
    let context = windows.iter().map(|(input, _)| input.len()).max().unwrap_or(1);
    let mut cache = open_f16(decoder.gpu(), decoder.config(), context)?;
    let mut work = work(decoder, CHUNK.min(context))?;
    for (input, _) in windows {
        let mut reading = Reading::begin(decoder, &mut work, &mut cache)?;
        for chunk in input.chunks(CHUNK) {
            reading.read(chunk, Some(&mut *tap))?;
            progress(chunk.len());
        }
        reading.end()?;
    }
    Ok(())
}

/// Makes the file.
pub fn calibrate(options: &CalibrateOptions) -> Result<CalibrateReport> {
    let started = Instant::now();
    let model = options.model.open()?;
    expect_alike(model.config(), "--model")?;
    let config = model.config();
    let windows = windows(&read_text(&options.text)?, &model, &options.model, options.windows, options.context)?;
    if ![Codec::RotateKv, Codec::Centred].contains(&options.codec) {
        return Err(Error::Option { name: "--codec", wanted: "rotate-kv or centred".into(), had: options.codec.to_string() });
    }
    let hash = model.hash()?;
    let gpu = options.model.gpu()?;
    let decoder = pollster::block_on(Decoder::load(&gpu, &model))?;
    let any = wgkv::Bits::Two;
    let heads = options.heads_per_group.unwrap_or_else(|| Format::new(Codec::RotateKv, any, any, 128).heads_per_group(config.kv_heads as u32));

    let bar = bar(options.windows * options.context, "");
    let progress = |tokens: usize| bar.inc(tokens as u64);
    let (tokens, heads_per_group) = if options.codec == Codec::Centred {
        let means = pollster::block_on(collect_means(&decoder, &windows, progress)?.finish(&hash))?;
        means.save(&options.out)?;
        (means.tokens(), None)
    } else {
        let order = pollster::block_on(collect(&decoder, &windows, heads, progress)?.finish(&hash, options.reach))?;
        order.save(&options.out)?;
        (order.tokens(), Some(order.heads_per_group()))
    };
    bar.finish_and_clear();
    Ok(CalibrateReport {
        out: options.out.clone(),
        model: hash,
        tokens,
        heads_per_group,
        seconds: started.elapsed().as_secs_f64(),
        adapter: gpu.adapter_name().to_owned(),
    })
}
