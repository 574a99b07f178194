//! `capacity`: how many sequences fit beside a model's weights, codec by codec, from the plans
//! alone; and the same numbers held against what a GPU really allocates.

use std::path::{Path, PathBuf};

use serde::Serialize;
use wgkv::layers::{LayeredCache, LayeredPlan, LayeredPlanBuilder};
use wgkv::learned::Learned;
use wgkv::{Bits, Cache, Capability, Capacity, ChannelOrder, Codec, Cost, Format, Gpu, Means, Plan, PlanBuilder, Protection, Scales, Shape, Sinks};
use wgkv_decoder::{Config, LayerGroup};

use crate::device;
use crate::error::{Error, Result};
use crate::hybrid::Hybrid;
use crate::options::{MASSIVE, planned};

/// Bytes of one buffer of stand-in weights.
const BUFFER: u64 = 1 << 30;
/// Batches beyond this are not looked for.
const MOST: u32 = 1 << 24;

/// Options of `capacity`.
#[derive(Debug, Clone, clap::Args)]
pub struct CapacityOptions {
    /// The model's config.json; no weights are read.
    #[arg(long)]
    pub config: PathBuf,
    /// Memory for weights and cache: bytes, or a number with KiB, MiB, GiB, KB, MB or GB.
    #[arg(long, value_parser = bytes)]
    pub memory: u64,
    /// Tokens of every sequence.
    #[arg(long)]
    pub context: u32,
    /// Bits of a weight.
    #[arg(long, default_value_t = 16)]
    pub weights_bits: u64,
    /// Numbers in the model's weights; without it they are counted, which takes a model all of
    /// whose layers have attention.
    #[arg(long)]
    pub parameters: Option<u64>,
    /// Elements that share a scale.
    #[arg(long, default_value_t = 128)]
    pub group: u32,
    /// Tokens kept in f16 for good: none, first:N or massive:N; without it massive:20 for rotate-kv
    /// and none for the others.
    #[arg(long)]
    pub sinks: Option<Sinks>,
    /// Recent tokens kept in f16.
    #[arg(long, default_value_t = 0)]
    pub window: u32,
    /// Only this codec.
    #[arg(long)]
    pub codec: Option<Codec>,
    /// Allocate the weights' bytes and each cache on a GPU, and hold the computed numbers against
    /// the cache's.
    #[arg(long)]
    pub allocate: bool,
    /// Part of the GPU's name, for --allocate; the fastest one without it.
    #[arg(long)]
    pub adapter: Option<String>,
    /// Print one JSON object, on the last line, instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// What fits.
#[derive(Debug, Clone, Serialize)]
pub struct CapacityReport {
    /// Numbers in the model's weights.
    pub parameters: u64,
    /// Layers of the model.
    pub layers: u32,
    /// Those with attention, which alone have a cache.
    pub attention_layers: u32,
    /// Bytes of the weights.
    pub weight_bytes: u64,
    /// Bytes that were asked about.
    pub memory: u64,
    /// Tokens of every sequence.
    pub context: u32,
    /// The GPU, where one was asked.
    pub adapter: Option<String>,
    /// One for each codec.
    pub rows: Vec<CapacityRow>,
}

/// What fits with one codec.
#[derive(Debug, Clone, Serialize)]
pub struct CapacityRow {
    /// Codec's name.
    pub codec: String,
    /// Bits of a key's element.
    pub k_bits: u32,
    /// Bits of a value's element.
    pub v_bits: u32,
    /// How scales and zeros are stored.
    pub scales: String,
    /// Tokens kept in f16 for good.
    pub sinks: String,
    /// Stored bits for each key or value element.
    pub bits_per_element: f64,
    /// Bytes of a cache of one sequence.
    pub sequence_bytes: u64,
    /// Sequences that fit beside the weights, scratch memory included.
    pub batch: u32,
    /// Bytes of their cache.
    pub cache_bytes: u64,
    /// Bytes that attention to them works in.
    pub scratch_bytes: u64,
    /// What a GPU said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocated: Option<Allocated>,
}

/// What a GPU said of the largest batch, and of one sequence more.
#[derive(Debug, Clone, Serialize)]
pub struct Allocated {
    /// Bytes of the cache as it says itself; none where it could not be made.
    pub cache_bytes: Option<u64>,
    /// Is that what was computed? (A buffer has 16 bytes or a multiple of it, even where it holds
    /// nothing.)
    pub equal: bool,
    /// Bytes of all buffers on the device, as the allocator says.
    pub device_bytes: Option<u64>,
    /// One sequence more: "fits", or why it does not.
    pub next: String,
}

/// Reads a number of bytes.
pub fn bytes(text: &str) -> std::result::Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim() {
        "" | "B" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1_048_576.0,
        "GiB" => 1_073_741_824.0,
        "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        other => return Err(format!("{other:?} is no unit of bytes: KiB, MiB, GiB, KB, MB or GB")),
    };
    let number: f64 = number.parse().map_err(|_| format!("{number:?} is no number"))?;
    Ok((number * unit) as u64)
}

/// A GPU that can do everything: only the memory counts.
fn boundless() -> Capability {
    Capability {
        binding_bytes: u64::MAX,
        buffer_bytes: u64::MAX,
        storage_buffers: u32::MAX,
        invocations: u32::MAX,
        workgroup_size_x: u32::MAX,
        workgroup_bytes: u32::MAX,
        workgroups: u32::MAX,
        ..Capability::webgpu_default()
    }
}

/// The formats that are compared.
fn formats(options: &CapacityOptions) -> Vec<(Format, Protection)> {
    let wanted = |codec: &Codec| options.codec.is_none_or(|only| only == *codec);
    let protection = |codec| {
        let sinks = options.sinks.unwrap_or(if codec == Codec::RotateKv { MASSIVE } else { Sinks::None });
        Protection { sinks, window: options.window }
    };
    let mut formats = Vec::new();
    if wanted(&Codec::F16) {
        formats.push((Format::f16(), Protection::NONE));
    }
    for codec in [Codec::Rtn, Codec::Hadamard, Codec::Centred].into_iter().filter(wanted) {
        for bits in [Bits::Four, Bits::Two] {
            formats.push((Format::new(codec, bits, bits, options.group), protection(codec)));
        }
    }
    for codec in [Codec::RotateKv].into_iter().filter(wanted) {
        for bits in [Bits::Four, Bits::Three, Bits::Two] {
            for scales in [Scales::Half, Scales::Byte] {
                formats.push((Format::new(codec, bits, bits, options.group).with_scales(scales), protection(codec)));
            }
        }
    }
    formats
}

/// What a codec is given where nothing was learned: the same memory and work as of what is. For
/// rotate-kv the natural order of channels, for centred means of keys that are 1, so that there is
/// a position term.
pub fn unlearned(shape: &Shape, format: &Format) -> Result<Option<Learned>> {
    Ok(match format.codec() {
        Codec::RotateKv => Some(ChannelOrder::natural(shape, format.heads_per_group(shape.kv_heads))?.into()),
        Codec::Centred => {
            let channels = (shape.kv_heads * shape.head_dim) as usize;
            let layer = || [1.0, 1.0, 0.0].map(|x| vec![x; channels]);
            Some(Means::new(shape, "", (0..shape.layers).map(|_| layer()).collect())?.into())
        }
        _ => None,
    })
}

/// What a cache is planned from: one for all layers, or one of groups where layers differ.
#[expect(clippy::large_enum_variant, reason = "there are few of them")]
enum Planning {
    Alike(PlanBuilder),
    Layered(LayeredPlanBuilder),
}

/// A cache's plan.
#[expect(clippy::large_enum_variant, reason = "there are few of them")]
enum CachePlan {
    Alike(Plan),
    Layered(LayeredPlan),
}

/// The model that is asked about.
enum Subject {
    /// One that the decoder runs.
    Decoded(Box<Config>),
    /// One of which some layers have no attention.
    Hybrid(Hybrid),
}

impl Subject {
    fn read(path: &Path) -> Result<Self> {
        match Hybrid::read(path)? {
            Some(hybrid) => Ok(Self::Hybrid(hybrid)),
            None => Ok(Self::Decoded(Box::new(Config::read(path)?))),
        }
    }

    /// Returns how many numbers its weights are.
    fn parameters(&self, given: Option<u64>) -> Result<u64> {
        match (given, self) {
            (Some(given), _) => Ok(given),
            (None, Self::Decoded(config)) => Ok(config.parameters()),
            (None, Self::Hybrid(hybrid)) => Err(Error::Option {
                name: "--parameters",
                wanted: format!("given, since weights of {} layers without attention are not counted", hybrid.layers - hybrid.attention_layers()),
                had: "nothing".into(),
            }),
        }
    }

    /// Returns its layers, and how many of them have attention.
    fn layers(&self) -> (u32, u32) {
        match self {
            Self::Decoded(config) => (config.layers as u32, config.layers as u32),
            Self::Hybrid(hybrid) => (hybrid.layers, hybrid.attention_layers()),
        }
    }
}

impl Planning {
    fn new(subject: &Subject, format: Format, protection: Protection, context: u32) -> Result<Self> {
        match subject {
            Subject::Decoded(config) => Self::decoded(config, format, protection, context),
            Subject::Hybrid(hybrid) => Self::hybrid(hybrid, format, protection),
        }
    }

    fn hybrid(hybrid: &Hybrid, format: Format, protection: Protection) -> Result<Self> {
        let builder =
            |shape: &Shape| -> Result<PlanBuilder> { Ok(Plan::builder(shape.clone(), format).protection(protection).learned(unlearned(shape, &format)?)) };
        if let [LayerGroup { shape, sliding_window: None, .. }] = &hybrid.groups[..] {
            return Ok(Self::Alike(builder(shape)?));
        }
        let mut layered = LayeredPlan::builder();
        // A cache has no gaps between its layers.
        let mut next = 0;
        for group in &hybrid.groups {
            let own = builder(&group.shape)?;
            let own = group.sliding_window.iter().fold(own, |own, window| own.sliding_window(*window));
            layered = layered.group(next..next + group.shape.layers, own);
            next += group.shape.layers;
        }
        Ok(Self::Layered(layered))
    }

    fn decoded(config: &Config, format: Format, protection: Protection, context: u32) -> Result<Self> {
        if config.layers_are_alike() {
            return Ok(Self::Alike(planned(config, format, unlearned(&config.shape(), &format)?, protection, Capacity::tokens(1, context))));
        }
        let mut layered = LayeredPlan::builder();
        for group in config.groups_for(context as usize) {
            let mut builder = Plan::builder(group.shape.clone(), format).protection(protection);
            if let Some(window) = group.sliding_window {
                builder = builder.sliding_window(window);
            }
            if let Some(cap) = config.score_cap {
                builder = builder.soft_cap(cap as f32);
            }
            if config.sinks {
                // Any logits: they are the weights', which are not read.
                builder = builder.sink_logits(vec![0.0; group.layers.len() * config.query_heads]);
            }
            if let Some(learned) = unlearned(&group.shape, &format)? {
                builder = builder.learned(learned);
            }
            layered = layered.group(group.layers, builder);
        }
        Ok(Self::Layered(layered))
    }

    fn plan(&self, batch: u32, context: u32, capability: &Capability) -> wgkv::Result<CachePlan> {
        let capacity = Capacity::tokens(batch, context);
        match self {
            Self::Alike(builder) => builder.clone().capacity(capacity).build(capability).map(CachePlan::Alike),
            Self::Layered(builder) => builder.clone().capacity(capacity).build(capability).map(CachePlan::Layered),
        }
    }
}

impl CachePlan {
    fn cost(&self) -> Cost {
        match self {
            Self::Alike(plan) => plan.cost(),
            Self::Layered(plan) => plan.cost(),
        }
    }

    fn bits_per_element(&self, tokens: u64) -> f64 {
        let groups = match self {
            Self::Alike(plan) => std::slice::from_ref(plan),
            Self::Layered(plan) => plan.groups(),
        };
        let weighed = |plan: &Plan| (plan.bits_per_element(tokens), plan.shape().elements_per_token() as f64);
        let (bits, all) = groups.iter().map(weighed).fold((0.0, 0.0), |(bits, all), (each, elements)| (bits + each * elements, all + elements));
        bits / all
    }
}

/// One codec's numbers: the largest batch is found by halving.
fn row(options: &CapacityOptions, subject: &Subject, format: Format, protection: Protection, room: u64, capability: &Capability) -> Result<CapacityRow> {
    let planning = Planning::new(subject, format, protection, options.context)?;
    let plan = |batch| planning.plan(batch, options.context, capability);
    let cost = |batch| -> wgkv::Result<(u64, u64)> { plan(batch).map(|plan| (plan.cost().cache(), plan.cost().scratch)) };
    // A batch that the device's limits refuse does not fit either.
    let fits = |batch| cost(batch).is_ok_and(|(cache, scratch)| cache + scratch <= room);
    let one = plan(1)?;
    let (mut fitting, mut over) = (0, 1);
    while over < MOST && fits(over) {
        (fitting, over) = (over, over * 2);
    }
    while over - fitting > 1 {
        let middle = fitting.midpoint(over);
        if fits(middle) { fitting = middle } else { over = middle }
    }
    let (cache_bytes, scratch_bytes) = if fitting > 0 { cost(fitting)? } else { (0, 0) };
    Ok(CapacityRow {
        codec: format.codec().to_string(),
        k_bits: format.key().bits.get(),
        v_bits: format.value().bits.get(),
        scales: format.scales().to_string(),
        sinks: protection.sinks.to_string(),
        bits_per_element: one.bits_per_element(u64::from(options.context)),
        sequence_bytes: one.cost().cache(),
        batch: fitting,
        cache_bytes,
        scratch_bytes,
        allocated: None,
    })
}

/// Memory of the device that is in use, where the allocator tells.
pub fn device_bytes(gpu: &Gpu) -> Option<u64> {
    // Buffers that were dropped are given back when writes to them are done and the device is next
    // asked about its work.
    gpu.queue().submit([]);
    let _ = gpu.device().poll(wgpu::PollType::wait_indefinitely());
    gpu.device().generate_allocator_report().map(|report| report.total_allocated_bytes)
}

/// Makes a cache, unless it is refused by its plan or by the device.
pub fn try_cache<C>(gpu: &Gpu, make: impl FnOnce() -> wgkv::Result<C>) -> Result<C> {
    let (memory, validation) = (gpu.device().push_error_scope(wgpu::ErrorFilter::OutOfMemory), gpu.device().push_error_scope(wgpu::ErrorFilter::Validation));
    let cache = make();
    let errors = [pollster::block_on(validation.pop()), pollster::block_on(memory.pop())];
    match errors.into_iter().flatten().next() {
        Some(error) => Err(Error::Gpu(error.to_string())),
        None => Ok(cache?),
    }
}

/// Allocates `bytes` bytes that stand for weights.
pub fn stand_in(gpu: &Gpu, mut bytes: u64) -> Result<Vec<wgpu::Buffer>> {
    let scope = gpu.device().push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let most = BUFFER.min(gpu.device().limits().max_buffer_size);
    let mut buffers = Vec::new();
    while bytes > 0 {
        let size = bytes.min(most).next_multiple_of(4);
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        buffers.push(gpu.device().create_buffer(&wgpu::BufferDescriptor { label: Some("weights"), size, usage, mapped_at_creation: false }));
        bytes -= size.min(bytes);
    }
    match pollster::block_on(scope.pop()) {
        Some(error) => Err(Error::Gpu(error.to_string())),
        None => Ok(buffers),
    }
}

fn allocate(gpu: &Gpu, subject: &Subject, format: Format, protection: Protection, context: u32, row: &CapacityRow) -> Result<Allocated> {
    let planning = Planning::new(subject, format, protection, context)?;
    // The cache's bytes, and those of the device beside it.
    let make = |batch| {
        try_cache(gpu, || {
            Ok(match planning.plan(batch, context, gpu.capability())? {
                CachePlan::Alike(plan) => {
                    let cache = Cache::new(gpu, plan)?;
                    (cache.bytes(), device_bytes(gpu))
                }
                CachePlan::Layered(plan) => {
                    let cache = LayeredCache::new(gpu, plan)?;
                    (cache.bytes(), device_bytes(gpu))
                }
            })
        })
    };
    let allocated = match make(row.batch) {
        Ok((bytes, device_bytes)) => Allocated { cache_bytes: Some(bytes), equal: bytes == row.cache_bytes, device_bytes, next: String::new() },
        Err(error) => return Ok(Allocated { cache_bytes: None, equal: false, device_bytes: device_bytes(gpu), next: error.to_string() }),
    };
    // The first cache is gone by now: the next must find its memory free.
    let _ = device_bytes(gpu);
    let next = make(row.batch + 1).map_or_else(|error| error.to_string(), |_| "fits".to_owned());
    let _ = device_bytes(gpu);
    Ok(Allocated { next, ..allocated })
}

/// Works everything out.
pub fn capacity(options: &CapacityOptions) -> Result<CapacityReport> {
    let subject = Subject::read(&options.config)?;
    let parameters = subject.parameters(options.parameters)?;
    let (layers, attention_layers) = subject.layers();
    let weight_bytes = (u128::from(parameters) * u128::from(options.weights_bits)).div_ceil(8);
    let weight_bytes = u64::try_from(weight_bytes).unwrap_or(u64::MAX);
    let room = options.memory.saturating_sub(weight_bytes);
    let gpu = options.allocate.then(|| device::open(options.adapter.as_deref())).transpose()?;
    let capability = gpu.as_ref().map_or_else(boundless, |gpu| *gpu.capability());
    let weights = gpu.as_ref().map(|gpu| stand_in(gpu, weight_bytes)).transpose()?;
    let mut rows = Vec::new();
    for (format, protection) in formats(options) {
        let mut row = row(options, &subject, format, protection, room, &capability)?;
        if let Some(gpu) = &gpu
            && row.batch > 0
        {
            row.allocated = Some(allocate(gpu, &subject, format, protection, options.context, &row)?);
        }
        rows.push(row);
    }
    drop(weights);
    Ok(CapacityReport {
        parameters,
        layers,
        attention_layers,
        weight_bytes,
        memory: options.memory,
        context: options.context,
        adapter: gpu.map(|gpu| gpu.adapter_name().to_owned()),
        rows,
    })
}

impl std::fmt::Display for CapacityReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let size = |bytes: u64| match bytes >> 30 {
            0 => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
            _ => format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30)),
        };
        let (memory, weights) = (size(self.memory), size(self.weight_bytes));
        writeln!(f, "{memory} for {} weights of {weights} and sequences of {} tokens", self.parameters, self.context)?;
        if self.attention_layers < self.layers {
            let others = self.layers - self.attention_layers;
            writeln!(
                f,
                "{} of {} layers have attention and a cache; what the other {others} keep of a sequence is not counted",
                self.attention_layers, self.layers
            )?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "{:<10} {:>4} {:>6} {:>10} {:>12} {:>15} {:>8} {:>9}",
            "codec", "bits", "scales", "sinks", "bits/element", "bytes/sequence", "batch", "times f16"
        )?;
        let f16 = self.rows.iter().find(|row| row.codec == "f16").map(|row| row.batch).filter(|batch| *batch > 0);
        for row in &self.rows {
            let bits = if row.k_bits == 16 { "16".to_owned() } else { format!("{}/{}", row.k_bits, row.v_bits) };
            let times = f16.map_or("-".to_owned(), |f16| format!("{:.2}", f64::from(row.batch) / f64::from(f16)));
            let scales = if row.k_bits == 16 { "-" } else { &row.scales };
            writeln!(
                f,
                "{:<10} {bits:>4} {scales:>6} {:>10} {:>12.4} {:>15} {:>8} {times:>9}",
                row.codec, row.sinks, row.bits_per_element, row.sequence_bytes, row.batch
            )?;
            if let Some(allocated) = &row.allocated {
                let number = |bytes: Option<u64>| bytes.map_or("unknown".to_owned(), |bytes| bytes.to_string());
                let verdict = if allocated.equal { "equal" } else { "NOT equal" };
                writeln!(
                    f,
                    "    computed {} bytes, the cache says {}: {verdict}; on the device {}; one sequence more: {}",
                    row.cache_bytes,
                    number(allocated.cache_bytes),
                    number(allocated.device_bytes),
                    allocated.next
                )?;
            }
        }
        if let Some(adapter) = &self.adapter {
            writeln!(f, "\non {adapter}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_with_their_units() {
        assert_eq!(bytes("1000"), Ok(1000));
        assert_eq!(bytes("1.5GiB"), Ok(3 << 29));
        assert_eq!(bytes("24 GB"), Ok(24_000_000_000));
        assert!(bytes("3 apples").is_err_and(|error| error.contains("apples")));
        assert!(bytes("GiB").is_err());
    }
}
