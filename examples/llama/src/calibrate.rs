//! `calibrate`: what RotateKV must know of a model, or Centred takes, learnt from sample text.
//!
//! The unmodified model reads windows of the text through an f16 cache, and the keys of every layer, before RoPE (for Centred also values
//! and queries), are summed on the GPU on their way into it.

use std::path::PathBuf;
use std::time::Instant;

use burn::tensor::Tensor;
use serde::Serialize;
use wgkv::learned::{MeansCollector, OrderCollector, Reach};
use wgkv::{Codec, Format};

use crate::attention::Attention;
use crate::bridge::{Bridge, View};
use crate::compressed::CompressedAttention;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::options::{ModelOptions, open_f16, reach, shape};
use crate::perplexity::{bar, windows};
use crate::text::Text;
use crate::weights::model_hash;

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
    /// KV heads that are rotated together; 4, or the largest power of two below that divides their number, without it.
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

/// Attention that shows its keys to a collector first.
struct Collecting<'a, A, C> {
    bridge: &'a Bridge,
    collector: &'a C,
    attention: A,
}

/// What takes the rows of a layer: queries, keys, values.
trait Collects {
    fn collect(&self, encoder: &mut wgpu::CommandEncoder, layer: u32, rows: [&View; 3], tokens: u32) -> wgkv::Result<()>;
}

impl Collects for OrderCollector {
    fn collect(&self, encoder: &mut wgpu::CommandEncoder, layer: u32, [_, keys, _]: [&View; 3], tokens: u32) -> wgkv::Result<()> {
        self.add(encoder, layer, keys.rows(), tokens)
    }
}

impl Collects for MeansCollector {
    fn collect(&self, encoder: &mut wgpu::CommandEncoder, layer: u32, [queries, keys, values]: [&View; 3], tokens: u32) -> wgkv::Result<()> {
        self.add(encoder, layer, queries.rows(), keys.rows(), values.rows(), tokens)
    }
}

impl<A: Attention, C: Collects> Attention for Collecting<'_, A, C> {
    fn begin(&mut self, tokens: usize) -> Result<()> {
        self.attention.begin(tokens)
    }

    fn attend(&mut self, layer: usize, queries: Tensor<2>, keys: Tensor<2>, values: Tensor<2>) -> Result<Tensor<2>> {
        let [rows, _] = keys.dims();
        let views = [self.bridge.view(queries.clone())?, self.bridge.view(keys.clone())?, self.bridge.view(values.clone())?];
        self.bridge.flush()?;
        let gpu = self.bridge.gpu();
        let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("collect") });
        self.collector.collect(&mut encoder, layer as u32, views.each_ref(), rows as u32)?;
        gpu.queue().submit([encoder.finish()]);
        self.attention.attend(layer, queries, keys, values)
    }
}

/// Sums the keys of the model over windows of a text.
pub fn collect(model: &Model, bridge: &Bridge, windows: &[(Vec<u32>, Vec<u32>)], heads: u32, progress: impl FnMut(usize)) -> Result<OrderCollector> {
    let collector = OrderCollector::new(bridge.gpu(), &shape(model.config()), heads)?;
    read(model, bridge, windows, &collector, progress)?;
    Ok(collector)
}

/// Sums the keys, values and squares of queries.
pub fn collect_means(model: &Model, bridge: &Bridge, windows: &[(Vec<u32>, Vec<u32>)], progress: impl FnMut(usize)) -> Result<MeansCollector> {
    let collector = MeansCollector::new(bridge.gpu(), &shape(model.config()))?;
    read(model, bridge, windows, &collector, progress)?;
    Ok(collector)
}

/// Reads windows of a text with the unmodified model.
fn read(model: &Model, bridge: &Bridge, windows: &[(Vec<u32>, Vec<u32>)], collector: &impl Collects, mut progress: impl FnMut(usize)) -> Result<()> {
    let config = model.config();
    let context = windows.iter().map(|(input, _)| input.len()).max().unwrap_or(1);
    let mut cache = open_f16(bridge, config, context)?;
    for (input, _) in windows {
        let mut attention = Collecting { bridge, collector, attention: CompressedAttention::new(bridge, &mut cache)? };
        for chunk in input.chunks(CHUNK) {
            model.forward(chunk, &mut attention)?;
            progress(chunk.len());
        }
        attention.attention.end()?;
    }
    Ok(())
}

/// Makes the file.
pub fn calibrate(options: &CalibrateOptions) -> Result<CalibrateReport> {
    let started = Instant::now();
    let text = Text::open(&options.model.model)?;
    let content = std::fs::read_to_string(&options.text).map_err(|source| Error::Read { path: options.text.clone(), source })?;
    let hash = model_hash(&options.model.model)?;
    let bridge = Bridge::open(options.model.adapter.as_deref())?;
    let model = Model::open(&options.model.model, &bridge)?;
    let config = model.config();
    let windows = windows(&text.encode(&content)?, config, options.windows, options.context)?;
    if ![Codec::RotateKv, Codec::Centred].contains(&options.codec) {
        return Err(Error::Option { name: "--codec", wanted: "rotate-kv or centred".into(), had: options.codec.to_string() });
    }
    let any = wgkv::Bits::Two;
    let heads = options.heads_per_group.unwrap_or_else(|| Format::new(Codec::RotateKv, any, any, 128).heads_per_group(config.kv_heads as u32));

    let bar = bar(options.windows * options.context, "");
    let progress = |tokens: usize| bar.inc(tokens as u64);
    let (tokens, heads_per_group) = if options.codec == Codec::Centred {
        let means = pollster::block_on(collect_means(&model, &bridge, &windows, progress)?.finish(&hash))?;
        means.save(&options.out)?;
        (means.tokens(), None)
    } else {
        let order = pollster::block_on(collect(&model, &bridge, &windows, heads, progress)?.finish(&hash, options.reach))?;
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
        adapter: bridge.adapter().to_owned(),
    })
}
