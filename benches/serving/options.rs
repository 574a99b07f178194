//! The options of the command line. Values that cannot be served are refused with the option's
//! name.

use std::collections::HashMap;
use std::str::FromStr;
use wgkv::{Bits, Codec, Format, Protection, Sinks};

pub const USAGE: &str = "\
cargo bench --bench serving -- [OPTIONS]

  --sequences N    sequences that are live at once (4096; 16 on a software adapter)
  --shortest N     the least tokens that a sequence ends with (16)
  --longest N      the most (8192; 256 on a software adapter)
  --steps N        decode steps that are measured, of either batch (10000; 64)
  --block N        steps of one batch before the other's turn, 1 to 2048 (50; 8)
  --check N        steps between two checks (1000; 32)
  --depth N        submitted steps that the host is ahead of the GPU (3)
  --minutes M      instead: random operations for so long
  --codec NAME     f16, rtn, hadamard, centred, rotate-kv (hadamard)
  --bits K,V       bits of keys and values (2,2)
  --heads Q/K/D    query heads, KV heads, head_dim (32/8/128)
  --sinks N        first tokens that stay f16 (0)
  --window N       latest tokens that stay f16 (0)
  --pool N         tokens a sequence that there are pages for (what the lengths ask for)
  --rows N         query rows of a pass (a row a sequence, 512 to 4096)
  --prefill        prompts attend, too; else they are only appended
  --workgroup      as if the device had no subgroups
  --seed N         repeats a run (drawn)";

const NAMES: [&str; 16] = [
    "--sequences",
    "--shortest",
    "--longest",
    "--steps",
    "--block",
    "--check",
    "--depth",
    "--minutes",
    "--codec",
    "--bits",
    "--heads",
    "--sinks",
    "--window",
    "--pool",
    "--rows",
    "--seed",
];

const FLAGS: [&str; 3] = ["--prefill", "--workgroup", "--help"];

pub struct Options {
    pub sequences: u32,
    pub shortest: u32,
    pub longest: u32,
    pub steps: u32,
    pub block: u32,
    pub check: u32,
    pub depth: usize,
    pub minutes: Option<f64>,
    pub format: Format,
    pub protection: Protection,
    /// Query heads, KV heads, head_dim.
    pub heads: [u32; 3],
    pub pool: Option<u32>,
    pub rows: u32,
    pub prefill: bool,
    pub seed: Option<u64>,
}

/// The words of the command line by option.
pub struct Words(HashMap<String, String>);

impl Words {
    pub fn new(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut words = HashMap::new();
        // Cargo adds a word of its own.
        let mut arguments = arguments.filter(|word| word != "--bench");
        while let Some(name) = arguments.next() {
            let value = match name.as_str() {
                flag if FLAGS.contains(&flag) => String::new(),
                option if NAMES.contains(&option) => arguments.next().ok_or(format!("{name} needs a value"))?,
                _ => return Err(format!("{name} is no option")),
            };
            if words.insert(name.clone(), value).is_some() {
                return Err(format!("{name} is given twice"));
            }
        }
        Ok(Self(words))
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn value<T: FromStr>(&self, name: &str) -> Result<Option<T>, String> {
        let parse = |text: &String| text.parse().map_err(|_| format!("{name} {text}: that is no value of it"));
        self.0.get(name).map(parse).transpose()
    }

    fn number(&self, name: &str, usual: u32, least: u32, most: u32) -> Result<u32, String> {
        let number = self.value(name)?.unwrap_or(usual);
        if (least..=most).contains(&number) { Ok(number) } else { Err(format!("{name} {number}: must be {least} to {most}")) }
    }

    /// Returns `N` numbers with `between` between them.
    fn numbers<const N: usize>(&self, name: &str, between: char, usual: [u32; N]) -> Result<[u32; N], String> {
        let Some(text) = self.0.get(name) else { return Ok(usual) };
        let numbers: Option<Vec<u32>> = text.split(between).map(|number| number.parse().ok()).collect();
        numbers.and_then(|numbers| numbers.try_into().ok()).ok_or(format!("{name} {text}: must be {N} numbers with {between} between them"))
    }

    fn format(&self) -> Result<Format, String> {
        let codec: Codec = self.value("--codec")?.unwrap_or(Codec::Hadamard);
        if codec == Codec::F16 {
            return if self.has("--bits") { Err("--bits: f16 has no codes".into()) } else { Ok(Format::f16()) };
        }
        if codec == Codec::AlignedF16 {
            return Err("--codec aligned-f16: the bench `aligned` measures it".into());
        }
        let [keys, values] = self.numbers("--bits", ',', [2, 2])?.map(|bits| Bits::try_from(bits).map_err(|error| format!("--bits: {error}")));
        Ok(Format::new(codec, keys?, values?, 128))
    }
}

impl Options {
    /// Reads the options. A software adapter gets small numbers by default: they only show that the
    /// bench runs.
    pub fn new(words: &Words, software: bool) -> Result<Self, String> {
        let usual = |large, small| if software { small } else { large };
        let longest = words.number("--longest", usual(8192, 256), 2, 1 << 20)?;
        let minutes = words.value("--minutes")?;
        if minutes.is_some_and(|minutes: f64| !minutes.is_finite() || minutes <= 0.0) {
            return Err("--minutes: must be more than 0".into());
        }
        let sinks = words.number("--sinks", 0, 0, 127)?;
        let sequences = words.number("--sequences", usual(4096, 16), 1, 1 << 16)?;
        Ok(Self {
            sequences,
            shortest: words.number("--shortest", 16.min(longest), 2, longest)?,
            longest,
            steps: words.number("--steps", usual(10_000, 64), 1, u32::MAX)?,
            block: words.number("--block", usual(50, 8), 1, 2048)?,
            check: words.number("--check", usual(1000, 32), 1, u32::MAX)?,
            depth: words.number("--depth", 3, 1, 64)? as usize,
            minutes,
            format: words.format()?,
            protection: Protection { sinks: if sinks == 0 { Sinks::None } else { Sinks::First(sinks) }, window: words.number("--window", 0, 0, 1 << 16)? },
            heads: words.numbers("--heads", '/', [32, 8, 128])?,
            pool: words.has("--pool").then(|| words.number("--pool", 0, 1, 1 << 20)).transpose()?,
            rows: words.number("--rows", sequences.clamp(512, 4096), 1, 1 << 14)?,
            prefill: words.has("--prefill"),
            seed: words.value("--seed")?,
        })
    }
}
