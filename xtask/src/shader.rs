//! `cargo xtask shader`: what a kernel is linked from, for a plan that is described in a few words.

#[path = "../../tests/shaders/listing.rs"]
mod listing;
#[path = "../../tests/shaders/plans.rs"]
mod plans;

use crate::command::root;
use anyhow::{Context, Result, anyhow, bail};
use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use wgkv::aligned::Alignment;
use wgkv::low_level::Dialect;
use wgkv::low_level::kernel::{self, Variant};
use wgkv::{Bits, Capability, Capacity, ChannelOrder, Codec, Format, Means, Plan, Rope, Shape};
use wgpu::naga;

/// Options of `shader`.
#[derive(clap::Args)]
pub struct Options {
    /// The kernel, as its file in shaders/ is called.
    #[arg(required_unless_present_any = ["list", "all"])]
    kernel: Option<String>,
    /// How keys and values are stored.
    #[arg(long, default_value = "centred")]
    codec: Codec,
    /// Bits of keys and of values.
    #[arg(long, value_name = "K,V", value_delimiter = ',', num_args = 1.., default_value = "4,4")]
    bits: Vec<u32>,
    /// Channels that share a scale.
    #[arg(long, default_value_t = 64)]
    group: u32,
    /// Channels of a head.
    #[arg(long, default_value_t = 128)]
    head_dim: u32,
    /// Query heads and KV heads.
    #[arg(long, value_name = "Q,KV", value_delimiter = ',', num_args = 1.., default_value = "32,8")]
    heads: Vec<u32>,
    /// Store codes of 4 and 8 bits in planes, of which decoding reads what a budget allows.
    #[arg(long)]
    aligned: bool,
    /// For WebGPU's default device in place of a GPU with subgroups of 32 lanes and halves.
    #[arg(long)]
    portable: bool,
    /// Print the modules, as the compiler of a native device reads them, not their parts.
    #[arg(long)]
    link: bool,
    /// Write shaders/PARTS.md: which parts each kernel links, and when.
    #[arg(long, conflicts_with_all = ["kernel", "all"])]
    list: bool,
    /// Write every module of every kernel to `modules.jsonl` in this folder, for other compilers.
    #[arg(long, value_name = "DIR", conflicts_with = "kernel")]
    all: Option<PathBuf>,
}

/// Prints or writes what the options select.
pub fn run(options: &Options) -> Result<()> {
    if options.list {
        let path = root().join("shaders").join("PARTS.md");
        std::fs::write(&path, listing::listing(&plans::plans()?)).with_context(|| format!("{} cannot be written", path.display()))?;
        println!("{}", path.display());
        return Ok(());
    }
    if let Some(folder) = &options.all {
        println!("{}", write_modules(folder)?.display());
        return Ok(());
    }
    let name = options.kernel.as_deref().unwrap_or_default();
    if !kernel::ALL.iter().any(|kernel| kernel.name == name) {
        bail!("no kernel is called {name}: there are {}", kernel::ALL.map(|kernel| kernel.name).join(", "));
    }
    let linked: Vec<Variant> = kernel::variants(&plan(options)?).into_iter().chain(plans::planless_variants()).collect();
    let named: Vec<&Variant> = linked.iter().filter(|variant| variant.kernel.name == name).collect();
    if named.is_empty() {
        let names: BTreeSet<&str> = linked.iter().map(|variant| variant.kernel.name).collect();
        bail!("this plan has no {name}: it has {}", names.into_iter().collect::<Vec<_>>().join(", "));
    }
    let mut seen = HashSet::new();
    for variant in named {
        let parts: Vec<&str> = variant.parts.iter().map(|part| part.name()).collect();
        if options.link {
            println!("// {variant}\n{}", variant.link(Dialect::Naga).source);
        } else if seen.insert(parts.clone()) {
            println!("{name}: {}", if parts.is_empty() { "no parts".to_owned() } else { parts.join(", ") });
        }
    }
    Ok(())
}

/// Makes the plan that the options describe. Its codec has the learned data with which it links
/// most: means that turn with RoPE, or an order.
fn plan(options: &Options) -> Result<Plan> {
    let ([key, value], [query_heads, kv_heads]) = (pair("--bits", &options.bits)?, pair("--heads", &options.heads)?);
    let head_dim = options.head_dim;
    let shape = Shape { layers: 1, query_heads, kv_heads, head_dim, rope: Rope::new(500_000.0, head_dim) };
    let format = match options.codec {
        Codec::F16 => Format::f16(),
        Codec::AlignedF16 => Format::aligned_f16(),
        codec => Format::new(codec, bits(key)?, bits(value)?, options.group),
    };
    let capability = Capability { binding_bytes: 1 << 30, buffer_bytes: 1 << 30, ..Capability::webgpu_default() };
    let capability = match options.portable {
        true => capability,
        false => Capability {
            straight: true,
            halves: true,
            subgroups: Some((32, 32)),
            workgroup_bytes: plans::HALVES_WORKGROUP_BYTES,
            invocations: plans::WIDE_INVOCATIONS,
            workgroup_size_x: plans::WIDE_INVOCATIONS,
            ..capability
        },
    };
    let builder = Plan::builder(shape.clone(), format).capacity(Capacity::tokens(1, 4096));
    let builder = match options.codec {
        Codec::RotateKv => builder.learned(ChannelOrder::natural(&shape, format.heads_per_group(kv_heads))?),
        Codec::Centred => {
            let ones = || vec![1.0; (kv_heads * head_dim) as usize];
            builder.learned(Means::new(&shape, "", vec![[ones(), ones(), ones()]])?)
        }
        _ => builder,
    };
    let builder = if options.aligned { builder.alignment(Alignment::budget(1.0, 1.0)) } else { builder };
    Ok(builder.build(&capability)?)
}

fn pair(name: &str, numbers: &[u32]) -> Result<[u32; 2]> {
    numbers.try_into().map_err(|_| anyhow!("{name} takes two numbers, not {}", numbers.len()))
}

fn bits(bits: u32) -> Result<Bits> {
    let all = [Bits::Two, Bits::Three, Bits::Four, Bits::Eight, Bits::Sixteen];
    all.into_iter().find(|known| known.get() == bits).ok_or_else(|| anyhow!("{bits} bits are not served: 2, 3, 4, 8 or 16 are"))
}

/// Writes every module as browsers read it, for compilers that are not Rust: one JSON object a line
/// in `modules.jsonl`. `starts` gives the line of the module at which each file begins,
/// `workgroup_bytes` and `invocations` show whether WebGPU's default limits allow it.
///
/// Returns the file's path.
pub fn write_modules(folder: &Path) -> Result<PathBuf> {
    let mut lines = String::new();
    // Browsers have no cooperative matrices.
    for variant in plans::variants()?.into_iter().filter(|variant| !variant.matrices) {
        let linked = variant.link(Dialect::Standard);
        let starts: Vec<(usize, &str)> =
            (1..=linked.source.lines().count()).filter_map(|line| linked.place(line).filter(|(_, at)| *at == 1).map(|(path, _)| (line, path))).collect();
        // What naga reads has the same sizes.
        let module = naga::front::wgsl::parse_str(&variant.link(Dialect::Naga).source).with_context(|| format!("{variant} cannot be read"))?;
        let point = module.entry_points.first().with_context(|| format!("{variant} has no entry point"))?;
        let (name, entry, source) = (variant.to_string(), variant.kernel.name, linked.source);
        let (bytes, invocations) = (workgroup_bytes(&module)?, point.workgroup_size[0]);
        let object =
            serde_json::json!({ "name": name, "entry": entry, "workgroup_bytes": bytes, "invocations": invocations, "starts": starts, "source": source });
        lines += &(object.to_string() + "\n");
    }
    std::fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    let path = folder.join("modules.jsonl");
    std::fs::write(&path, lines).with_context(|| format!("{} cannot be written", path.display()))?;
    Ok(path)
}

/// Returns how much workgroup memory a module takes, as WebGPU counts it.
fn workgroup_bytes(module: &naga::Module) -> Result<u32> {
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx())?;
    let shared = module.global_variables.iter().filter(|(_, global)| global.space == naga::AddressSpace::WorkGroup);
    Ok(shared.map(|(_, global)| layouter[global.ty].size.next_multiple_of(16)).sum())
}
