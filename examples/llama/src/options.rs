//! Command-line options that describe a cache, shared by the commands.

use std::path::{Path, PathBuf};

use serde::Serialize;
use wgkv::aligned::Alignment;
use wgkv::bits::BitPlan;
use wgkv::layers::{LayeredCache, LayeredPlan};
use wgkv::learned::{Learned, Reach};
use wgkv::{Bits, Cache, Capacity, ChannelOrder, Code, Codec, Format, Gpu, Means, Plan, PlanBuilder, Protection, Scales, Sinks, Storage};
use wgkv_decoder::{Config, Decoder, Model, Sampling};

use crate::device;
use crate::error::{Error, Result};

/// Entries of the residual stream that RotateKV (2501.16383) takes its sinks from.
pub const MASSIVE: Sinks = Sinks::Massive(20);

/// Which model, on which GPU.
#[derive(Debug, Clone, clap::Args)]
pub struct ModelOptions {
    /// Folder with config.json, tokenizer.json and *.safetensors, or a GGUF file.
    #[arg(long)]
    pub model: PathBuf,
    /// Part of the GPU's name; the fastest one without it.
    #[arg(long)]
    pub adapter: Option<String>,
}

impl ModelOptions {
    /// Opens the model's files; the tensors are not read.
    ///
    /// # Errors
    /// Those of [`Model::open`].
    pub fn open(&self) -> Result<Model> {
        Ok(Model::open(&self.model)?)
    }

    /// Opens the GPU.
    ///
    /// # Errors
    /// Those of [`device::open`].
    pub fn gpu(&self) -> Result<Gpu> {
        device::open(self.adapter.as_deref())
    }
}

/// Returns where a file that was learnt from a model lies: in the model's folder by this name, or
/// beside a GGUF file, whose name it has in front.
pub fn beside(model: &Path, name: &str) -> PathBuf {
    if model.is_dir() { model.join(name) } else { model.with_extension(name) }
}

/// Reads a text file.
///
/// # Errors
/// [`Error::Read`].
pub fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

/// How tokens are chosen.
#[derive(Debug, Clone, clap::Args)]
pub struct ChoiceOptions {
    /// Share of the probability to sample from.
    #[arg(long, default_value_t = 1.0)]
    pub top_p: f32,
    /// Likeliest tokens to sample from; 0 for all.
    #[arg(long, default_value_t = 0)]
    pub top_k: u32,
    /// Seed of the sampling.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

impl ChoiceOptions {
    /// Returns them with a temperature.
    pub fn sampling(&self, temperature: f32) -> Sampling {
        Sampling { temperature, top_p: self.top_p, top_k: self.top_k, seed: self.seed }
    }
}

/// What a trellis codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Trellis {
    /// Keys.
    Keys,
    /// Values.
    Values,
    /// Keys and values.
    Both,
}

impl Trellis {
    /// What codes keys and values by a trellis; nothing where neither does.
    fn of(key: Code, value: Code) -> Option<Self> {
        match (key, value) {
            (Code::Trellis, Code::Trellis) => Some(Self::Both),
            (Code::Trellis, _) => Some(Self::Keys),
            (_, Code::Trellis) => Some(Self::Values),
            _ => None,
        }
    }

    /// The codes of keys and of values.
    fn codes(self) -> [Code; 2] {
        match self {
            Self::Keys => [Code::Trellis, Code::Uniform],
            Self::Values => [Code::Uniform, Code::Trellis],
            Self::Both => [Code::Trellis; 2],
        }
    }
}

/// How keys and values are stored.
#[derive(Debug, Clone, clap::Args)]
pub struct CacheOptions {
    /// Codec: f16, rtn, hadamard, rotate-kv, centred and the others that wgkv names.
    #[arg(long, default_value = "centred")]
    pub codec: Codec,
    /// File that `wgkv-llama plan` made for this model: codec, and the bits of every layer and
    /// head.
    #[arg(long, conflicts_with_all = ["codec", "k_bits", "v_bits", "trellis", "group", "clip", "scales", "heads_per_group"])]
    pub plan: Option<PathBuf>,
    /// Bits of a key's element.
    #[arg(long, default_value_t = 4)]
    pub k_bits: u32,
    /// Bits of a value's element.
    #[arg(long, default_value_t = 4)]
    pub v_bits: u32,
    /// What is coded by a trellis, for centred with 2 bits: a third less error at the same bits.
    #[arg(long)]
    pub trellis: Option<Trellis>,
    /// Elements that share a scale; without it 64, or 128 with a trellis (or head_dim where that is
    /// less).
    #[arg(long)]
    pub group: Option<u32>,
    /// Part of a group's range that the codes cover, for the codecs that clip; the codec's own
    /// choice without it.
    #[arg(long)]
    pub clip: Option<f32>,
    /// How scales and zeros are stored: f16 or f8; centred has a form of its own.
    #[arg(long)]
    pub scales: Option<Scales>,
    /// Tokens kept in f16 for good: none, first:N or massive:N; massive:20 for rotate-kv without
    /// it.
    #[arg(long)]
    pub sinks: Option<Sinks>,
    /// Recent tokens kept in f16.
    #[arg(long)]
    pub window: Option<u32>,
    /// File that `wgkv-llama calibrate` made from this model, for rotate-kv and centred; for
    /// centred also what lies in the model's folder as centred.safetensors (beside FILE.gguf as
    /// FILE.centred.safetensors) without it, or no means and weights where nothing does.
    #[arg(long)]
    pub calibration: Option<PathBuf>,
    /// KV heads that rotate-kv rotates together; as in the calibration without it.
    #[arg(long)]
    pub heads_per_group: Option<u32>,
    /// How far rotate-kv's order of channels reaches: global, or local to the heads rotated
    /// together; as in the calibration without it.
    #[arg(long, value_parser = reach)]
    pub reach: Option<Reach>,
    /// Planes that decoding reads: of aligned-f16 everything, published, or budgets as in
    /// phi-k:64,phi-v:256; of rtn, hadamard and centred with 4 or 8 bits budgets as in
    /// phi-k:0.25,phi-v:1.
    #[arg(long)]
    pub align: Option<Alignment>,
}

/// The format of a cache with every default filled in, as printed.
#[derive(Debug, Clone, Serialize)]
pub struct CacheSummary {
    /// Codec's name.
    pub codec: String,
    /// Bits of a key's element.
    pub k_bits: u32,
    /// Bits of a value's element.
    pub v_bits: u32,
    /// What is coded by a trellis.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trellis: Option<Trellis>,
    /// Elements that share a scale.
    pub group: u32,
    /// How scales and zeros are stored.
    pub scales: String,
    /// Tokens kept in f16 for good.
    pub sinks: String,
    /// Recent tokens kept in f16.
    pub window: u32,
    /// KV heads that are rotated together, for rotate-kv.
    pub heads_per_group: Option<u32>,
    /// Mean bits of keys' and values' codes, where a plan gives layers and heads bits of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_bits: Option<[f64; 2]>,
}

impl CacheSummary {
    /// The bits of keys and of values in short, with a `t` where a trellis codes them.
    pub fn widths(&self) -> String {
        let [key, value] = self.trellis.map_or([""; 2], |trellis| trellis.codes().map(|code| if code == Code::Trellis { "t" } else { "" }));
        format!("K{}{key}V{}{value}", self.k_bits, self.v_bits)
    }
}

/// The word for a reach, read.
pub fn reach(word: &str) -> std::result::Result<Reach, String> {
    match word {
        "global" => Ok(Reach::Global),
        "local" => Ok(Reach::Local),
        _ => Err("it must be global or local".to_owned()),
    }
}

impl CacheOptions {
    /// The options with what the plan says, if there is one, refused where it was made for another
    /// model; and the plan.
    pub fn with_plan(&self, model: &Model) -> Result<(Self, Option<BitPlan>)> {
        let Some(path) = &self.plan else {
            return Ok((self.clone(), None));
        };
        let allocation = BitPlan::load(path)?;
        let config = model.config();
        allocation.expect_model(&model.hash()?)?;
        allocation.expect_shape(&config.shape())?;
        let format = allocation.format();
        let heads = (format.codec() == Codec::RotateKv).then(|| format.heads_per_group(config.kv_heads as u32));
        let told = Self {
            codec: format.codec(),
            k_bits: format.key().bits.get(),
            v_bits: format.value().bits.get(),
            trellis: Trellis::of(format.key().code, format.value().code),
            group: Some(format.key().group),
            scales: Some(format.scales()),
            heads_per_group: heads,
            ..self.clone()
        };
        Ok((told, Some(allocation)))
    }

    /// The bits of every layer and head: the plan's, or the same for all.
    pub fn allocation(&self, config: &Config, learned: Option<&Learned>, plan: Option<BitPlan>) -> Result<BitPlan> {
        match plan {
            Some(allocation) => Ok(allocation),
            None => Ok(BitPlan::uniform(&config.shape(), self.format(config, learned)?)?),
        }
    }

    /// The format for a model; `learned` is what [`CacheOptions::learned`] found.
    pub fn format(&self, config: &Config, learned: Option<&Learned>) -> Result<Format> {
        if self.codec == Codec::F16 {
            return Ok(Format::f16());
        }
        if self.codec == Codec::AlignedF16 {
            return Ok(Format::aligned_f16());
        }
        let mut format = Format::new(self.codec, Bits::try_from(self.k_bits)?, Bits::try_from(self.v_bits)?, self.group(config));
        if let Some([key, value]) = self.trellis.map(Trellis::codes) {
            format = format.with_codes(key, value);
        }
        if let Some(scales) = self.scales {
            format = format.with_scales(scales);
        }
        if let Some(clip) = self.clip {
            format = format.with_clip(clip);
        }
        Ok(match channel_order(learned) {
            Some(order) => format.with_heads_per_group(order.heads_per_group()),
            None => self.heads_per_group.map_or(format, |heads| format.with_heads_per_group(heads)),
        })
    }

    /// What rotate-kv and centred want, from the file, refused where it was made from another
    /// model; nothing for the codecs that want nothing. The model lies `at` this path. For
    /// rotate-kv a file holds sums of keys before any rotation, so one file gives the order for any
    /// `--heads-per-group` and `--reach`.
    pub fn learned(&self, model: &Model, at: &Path) -> Result<Option<Learned>> {
        expect_absent(model.config(), "--calibration", self.calibration.is_some())?;
        if self.codec == Codec::RotateKv && !model.config().layers_are_alike() {
            let wanted = "one that wants no calibration, for a model whose layers differ".into();
            return Err(Error::Option { name: "--codec", wanted, had: self.codec.to_string() });
        }
        if self.codec != Codec::RotateKv {
            let given = [
                ("--calibration", self.calibration.is_some() && self.codec != Codec::Centred),
                ("--heads-per-group", self.heads_per_group.is_some()),
                ("--reach", self.reach.is_some()),
            ];
            return match given.iter().find(|(_, given)| *given) {
                Some((name, _)) => Err(Error::Option { name, wanted: "left out with this codec".into(), had: format!("given with codec {}", self.codec) }),
                None if self.codec == Codec::Centred => self.means(model, at),
                None => Ok(None),
            };
        }
        let Some(path) = &self.calibration else {
            return Err(Error::CalibrationMissing { model: at.to_owned(), out: beside(at, "rotate-kv.safetensors") });
        };
        let found = ChannelOrder::load(path)?;
        found.expect_model(&model.hash()?)?;
        let heads = self.heads_per_group.unwrap_or(found.heads_per_group());
        let reach = self.reach.unwrap_or(found.reach());
        if heads == found.heads_per_group() && reach == found.reach() {
            return Ok(Some(found.into()));
        }
        let sums = (0..found.layers()).map(|layer| found.sums(layer).to_vec()).collect();
        Ok(Some(ChannelOrder::from_sums(&model.config().shape(), heads, reach, found.model(), found.tokens(), sums)?.into()))
    }

    /// Means and weights from the file, or from what lies beside the model.
    fn means(&self, model: &Model, at: &Path) -> Result<Option<Learned>> {
        let beside = beside(at, "centred.safetensors");
        let path = match &self.calibration {
            Some(path) => path,
            None if beside.is_file() => &beside,
            None => return Ok(None),
        };
        let found = Means::load(path)?;
        found.expect_model(&model.hash()?)?;
        Ok(Some(found.into()))
    }

    /// No order, for the same heads: what calibration is measured against.
    pub fn uncalibrated(&self, config: &Config) -> Result<ChannelOrder> {
        let heads = self.heads_per_group.unwrap_or_else(|| self.default_heads(config));
        Ok(ChannelOrder::natural(&config.shape(), heads)?)
    }

    fn default_heads(&self, config: &Config) -> u32 {
        Format::new(Codec::RotateKv, Bits::Two, Bits::Two, 128).heads_per_group(config.kv_heads as u32)
    }

    /// What stays in f16, unless told otherwise the given defaults; rotate-kv has its own rule for
    /// sinks.
    pub fn protection(&self, sinks: Sinks, window: u32) -> Protection {
        let sinks = if self.codec == Codec::RotateKv { MASSIVE } else { sinks };
        Protection { sinks: self.sinks.unwrap_or(sinks), window: self.window.unwrap_or(window) }
    }

    /// The same in words and numbers.
    pub fn summary(&self, config: &Config, allocation: &BitPlan, protection: Protection) -> CacheSummary {
        let rotating = self.codec == Codec::RotateKv;
        let format = allocation.format();
        CacheSummary {
            codec: self.codec.to_string(),
            k_bits: format.key().bits.get(),
            v_bits: format.value().bits.get(),
            trellis: Trellis::of(format.key().code, format.value().code),
            group: self.group(config),
            scales: format.scales().to_string(),
            sinks: protection.sinks.to_string(),
            window: protection.window,
            heads_per_group: rotating.then(|| format.heads_per_group(config.kv_heads as u32)),
            mean_bits: (!allocation.is_uniform()).then(|| allocation.mean_bits()),
        }
    }

    fn group(&self, config: &Config) -> u32 {
        self.group.unwrap_or((config.head_dim as u32).min(if self.trellis.is_some() { 128 } else { 64 }))
    }
}

/// The order of key channels, if that is what was learned.
pub fn channel_order(learned: Option<&Learned>) -> Option<&ChannelOrder> {
    match learned {
        Some(Learned::ChannelOrder(order)) => Some(order),
        _ => None,
    }
}

/// Begins the plan of a cache for this model.
pub fn planned(config: &Config, storage: impl Into<Storage>, learned: Option<Learned>, protection: Protection, capacity: Capacity) -> PlanBuilder {
    let tokens = match capacity {
        Capacity::Tokens { tokens, .. } => tokens as usize,
        _ => 0,
    };
    let mut builder = Plan::builder(config.shape_for(tokens), storage).protection(protection).capacity(capacity);
    if let Some(window) = config.sliding_window {
        builder = builder.sliding_window(window);
    }
    match learned {
        Some(learned) => builder.learned(learned),
        None => builder,
    }
}

/// Refuses a model that one plain cache does not serve; `name` is the option that names the model.
///
/// # Errors
/// [`Error::Option`], with what the model has.
pub fn expect_alike(config: &Config, name: &'static str) -> Result<()> {
    let particular =
        [("windows in some layers", config.sliding_layers.is_some()), ("capped scores", config.score_cap.is_some()), ("sinks' logits", config.sinks)];
    let had: Vec<&str> = particular.iter().filter(|(_, there)| *there).map(|(what, _)| *what).collect();
    if had.is_empty() {
        return Ok(());
    }
    let wanted = "a model without windows in some layers, capped scores and sinks' logits".into();
    Err(Error::Option { name, wanted, had: format!("{:?} with {}", config.architecture, had.join(" and ")) })
}

/// Refuses an option that works with one plain cache where the model's layers ask for another.
///
/// # Errors
/// [`Error::Option`].
pub fn expect_absent(config: &Config, name: &'static str, given: bool) -> Result<()> {
    match given && !config.layers_are_alike() {
        true => Err(Error::Option { name, wanted: "left out for a model whose layers differ".into(), had: "given".into() }),
        false => Ok(()),
    }
}

/// What a cache of groups of layers is to be.
#[derive(Debug, Clone, Copy)]
pub struct Layered {
    /// Tokens that stay in f16.
    pub protection: Protection,
    /// Planes that decoding reads.
    pub alignment: Alignment,
    /// Sequences and tokens.
    pub capacity: Capacity,
    /// Tokens of a sequence in a step, at most.
    pub chunk: u32,
    /// Tokens that can be cut off again, beyond those of the latest step.
    pub keep: u32,
}

/// Opens the cache of a model whose layers differ, in groups of those that are alike, for steps of
/// at most `chunk` tokens, of which `keep` tokens can be cut off again.
///
/// # Errors
/// [`Error::Option`] for what was learned, which is of one cache for all layers; those of
/// [`LayeredPlan`], [`Gpu::prepare`] and [`LayeredCache::new`].
pub fn open_layers(decoder: &Decoder, bits: &BitPlan, learned: Option<&Learned>, wanted: Layered) -> Result<LayeredCache> {
    let Layered { protection, alignment, capacity, chunk, keep } = wanted;
    expect_absent(decoder.config(), "--calibration", learned.is_some())?;
    let tokens = match capacity {
        Capacity::Tokens { tokens, .. } => tokens as usize,
        _ => 0,
    };
    let mut builder = LayeredPlan::builder().capacity(capacity).chunk(chunk).keep(keep);
    for group in decoder.config().groups_for(tokens) {
        let of_group = |layer: u32, head: u32| bits.of(group.layers.get(layer as usize).copied().unwrap_or(layer), head);
        let storage = BitPlan::new(&group.shape, *bits.format(), of_group)?;
        let planned = decoder.planned(&group, storage).protection(protection).alignment(alignment);
        builder = builder.group(group.layers, planned);
    }
    let gpu = decoder.gpu();
    let cache = LayeredCache::new(gpu, builder.build(gpu.capability())?)?;
    pollster::block_on(cache.prepare())?;
    Ok(cache)
}

/// Allocates the cache of a plan and compiles its kernels.
///
/// # Errors
/// Those of [`PlanBuilder::build`], [`Gpu::prepare`] and [`Cache::new`].
pub fn open(gpu: &Gpu, planned: PlanBuilder) -> Result<Cache> {
    let plan = planned.build(gpu.capability())?;
    pollster::block_on(gpu.prepare(&plan))?;
    Ok(Cache::new(gpu, plan)?)
}

/// Opens a cache for one sequence that keeps every token in f16: what others are compared with.
///
/// # Errors
/// As [`open`].
pub fn open_f16(gpu: &Gpu, config: &Config, tokens: usize) -> Result<Cache> {
    open(gpu, planned(config, Format::f16(), None, Protection::NONE, Capacity::tokens(1, tokens as u32)))
}
