//! `align-report`: what AlignedKV (2409.16546) would read of a model's keys and values, and what
//! that does to products: the table of its paper, layer by layer.
//!
//! The model reads one window of text through an f16 cache. For each layer's last query rows the
//! scores (QK) and the outputs (SV) are computed in f64 three times: from the halves, from the bits
//! that the criterion asks for, and from 13 bits of every half, the paper's control. Outputs of all
//! three have the weights of the halves' scores. The paper rounds results to halves, so that many
//! differ by nothing at all; here only results that are the same to the last bit of f64 do.

use std::fmt;
use std::path::PathBuf;
use std::time::Instant;

use half::f16;
use serde::Serialize;
use wgkv::Shape;
use wgkv::aligned::{Alignment, Criterion};
use wgkv::low_level::reference::aligned::{self, Planes, exponent, filled};
use wgkv::low_level::reference::turn_exact;
use wgkv_decoder::{Decoder, LayerRows, Recorder};

use crate::device::read;
use crate::error::{Error, Result};
use crate::options::{ModelOptions, expect_alike, open_f16, read_text};
use crate::perplexity::windows;
use crate::pictures;
use crate::reading::{Each, Reading, work};

/// Upper edges of the paper's buckets; the first holds only what is equal, the last has no edge.
const EDGES: [f64; 4] = [1.0 / 1024.0, 1.0 / 512.0, 1.0 / 256.0, 1.0 / 128.0];

/// Low bits that the paper's control drops.
const UNIFORM: u16 = 3;

/// Options of `align-report`.
#[derive(Debug, Clone, clap::Args)]
pub struct AlignReportOptions {
    /// The model.
    #[command(flatten)]
    pub model: ModelOptions,
    /// Text that the model reads.
    #[arg(long)]
    pub text: PathBuf,
    /// Tokens of it.
    #[arg(long, default_value_t = 1024)]
    pub context: usize,
    /// Rows of queries that are looked at, the last of them.
    #[arg(long, default_value_t = 8)]
    pub queries: usize,
    /// By what bits are chosen: published, or budgets as in phi-k:64,phi-v:256.
    #[arg(long, default_value = "published")]
    pub align: Alignment,
    /// File for a picture of the tables, as SVG.
    #[arg(long)]
    pub svg: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// How many results differ by how much, relative to themselves: by nothing, below each of the
/// paper's edges, and the rest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Histogram {
    /// Results by bucket.
    pub counts: [u64; 6],
}

impl Histogram {
    /// Counts one result against what it should be.
    pub fn add(&mut self, got: f64, want: f64) {
        let error = ((got - want) / want).abs();
        // What should be nothing and is not has an error without end.
        let bucket = if got == want { 0 } else { 1 + EDGES.iter().filter(|edge| error.is_nan() || error >= **edge).count() };
        self.counts[bucket] += 1;
    }

    /// Each bucket's share.
    pub fn shares(&self) -> [f64; 6] {
        let total = self.counts.iter().sum::<u64>().max(1) as f64;
        self.counts.map(|count| count as f64 / total)
    }
}

/// One layer, or all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Layer {
    /// Bits read of a key.
    pub k_bits: f64,
    /// Bits read of a value.
    pub v_bits: f64,
    /// Scores from the bits that the criterion asks for.
    pub qk: Histogram,
    /// Scores from 13 bits of every key.
    pub qk_uniform: Histogram,
    /// Outputs from the bits that the criterion asks for.
    pub sv: Histogram,
    /// Outputs from 13 bits of every value.
    pub sv_uniform: Histogram,
}

/// What `align-report` found.
#[derive(Debug, Clone, Serialize)]
pub struct AlignReport {
    /// By what bits were chosen.
    pub align: String,
    /// All layers together.
    pub total: Layer,
    /// Layer by layer.
    pub layers: Vec<Layer>,
    /// Tokens read.
    pub tokens: usize,
    /// Time for all of it.
    pub seconds: f64,
    /// The GPU.
    pub adapter: String,
}

/// One layer's rows before RoPE: queries, keys, values.
type Rows = [Vec<f32>; 3];

fn halves(row: &[f64]) -> Vec<u16> {
    row.iter().map(|x| f16::from_f64(*x).to_bits()).collect()
}

fn number(half: u16) -> f64 {
    f16::from_bits(half).to_f64()
}

/// A half without its last bits, filled with 100.
fn uniform(half: u16) -> u16 {
    half >> UNIFORM << UNIFORM | 1 << (UNIFORM - 1)
}

fn softmax(scores: &[f64]) -> Vec<f64> {
    let peak = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = scores.iter().map(|score| (score - peak).exp()).sum();
    scores.iter().map(|score| (score - peak).exp() / total).collect()
}

/// The levels that the strictest of some heads asks for, each with its own weights.
fn strictest(levels: &[Vec<u32>]) -> Vec<u32> {
    (0..levels.first().map_or(0, Vec::len)).map(|i| levels.iter().map(|head| head[i]).min().unwrap_or(0)).collect()
}

/// Levels of weights under a budget for each head.
fn budgeted(weights: &[Vec<f64>], phi: f32) -> Vec<u32> {
    let together: Vec<f32> = (0..weights.first().map_or(0, Vec::len))
        .map(|i| {
            let share = |head: &Vec<f64>| head[i] / (f64::from(phi) / 2.0 * head.iter().sum::<f64>()).max(f64::MIN_POSITIVE);
            weights.iter().map(share).fold(0.0, f64::max).min(1e30) as f32
        })
        .collect();
    Planes::HALF.levels(&together, 1.0).0
}

fn key_levels(criterion: Criterion, queries: &[Vec<f64>], maxima: &[u32]) -> Vec<u32> {
    match criterion {
        Criterion::Published => {
            let of = |query: &Vec<f64>| aligned::key_levels(&query.iter().map(|x| f16::from_f64(*x).to_f32()).collect::<Vec<f32>>(), maxima);
            strictest(&queries.iter().map(of).collect::<Vec<_>>())
        }
        Criterion::Budget(phi) => {
            let of = |query: &Vec<f64>| query.iter().zip(maxima).map(|(q, e)| q.abs() * aligned::ulp(*e)).collect();
            budgeted(&queries.iter().map(of).collect::<Vec<_>>(), phi)
        }
        // Everything is read.
        _ => vec![0; maxima.len()],
    }
}

fn value_levels(criterion: Criterion, weights: &[Vec<f64>], values: &[Vec<u16>], maxima: &[u32]) -> Vec<u32> {
    match criterion {
        Criterion::Published => {
            let of = |weights: &Vec<f64>| {
                let weights: Vec<f32> = weights.iter().map(|w| *w as f32).collect();
                let sample = aligned::sample(&weights);
                let magnitude = |t: usize, i: usize| number(filled(values[t][i], 2) & 0x7fff);
                let estimate: Vec<f32> =
                    (0..maxima.len()).map(|i| sample.iter().map(|t| f64::from(weights[*t]) * magnitude(*t, i)).sum::<f64>() as f32).collect();
                aligned::value_levels(&weights, &estimate, maxima)
            };
            strictest(&weights.iter().map(of).collect::<Vec<_>>())
        }
        Criterion::Budget(phi) => budgeted(weights, phi),
        _ => vec![0; values.len()],
    }
}

/// The largest exponent of each channel.
fn maxima(rows: &[Vec<u16>]) -> Vec<u32> {
    (0..rows.first().map_or(0, Vec::len)).map(|i| rows.iter().map(|row| exponent(number(row[i]) as f32)).max().unwrap_or(0)).collect()
}

/// What is found of one layer: `queries` rows of the rows that came last.
pub fn layer(shape: &Shape, rows: &Rows, queries: usize, align: Alignment) -> Layer {
    let (d, kv_heads, query_heads) = (shape.head_dim as usize, shape.kv_heads as usize, shape.query_heads as usize);
    let share = query_heads / kv_heads;
    let tokens = rows[1].len() / (kv_heads * d);
    let wide = |numbers: &[f32]| -> Vec<f64> { numbers.iter().map(|x| f64::from(*x)).collect() };
    let mut found = Layer::default();
    let (mut key_bits, mut value_bits, mut readings) = (0.0, 0.0, 0.0);
    for head in 0..kv_heads {
        let row = |which: usize, t: usize| wide(&rows[which][(t * kv_heads + head) * d..][..d]);
        let keys: Vec<Vec<u16>> = (0..tokens).map(|t| halves(&turn_exact(&shape.rope, &row(1, t), t as u32))).collect();
        let values: Vec<Vec<u16>> = (0..tokens).map(|t| halves(&row(2, t))).collect();
        for position in tokens - queries.min(tokens)..tokens {
            let (keys, values) = (&keys[..=position], &values[..=position]);
            let turned: Vec<Vec<f64>> =
                (0..share).map(|h| turn_exact(&shape.rope, &wide(&rows[0][(position * query_heads + head * share + h) * d..][..d]), position as u32)).collect();
            let levels = key_levels(align.keys, &turned, &maxima(keys));
            let mut weights = Vec::new();
            for query in &turned {
                let score = |of: &dyn Fn(usize, u16) -> u16| -> Vec<f64> {
                    keys.iter().map(|key| (0..d).map(|i| query[i] * number(of(i, key[i]))).sum::<f64>() / (d as f64).sqrt()).collect()
                };
                let (exact, read, coarse) = (score(&|_, half| half), score(&|i, half| filled(half, levels[i])), score(&|_, half| uniform(half)));
                exact.iter().zip(&read).for_each(|(want, got)| found.qk.add(*got, *want));
                exact.iter().zip(&coarse).for_each(|(want, got)| found.qk_uniform.add(*got, *want));
                weights.push(softmax(&exact));
            }
            let token_levels = value_levels(align.values, &weights, values, &maxima(values));
            for p in &weights {
                let output = |of: &dyn Fn(usize, u16) -> u16, i: usize| values.iter().enumerate().map(|(t, v)| p[t] * number(of(t, v[i]))).sum::<f64>();
                for i in 0..d {
                    let exact = output(&|_, half| half, i);
                    found.sv.add(output(&|t, half| filled(half, token_levels[t]), i), exact);
                    found.sv_uniform.add(output(&|_, half| uniform(half), i), exact);
                }
            }
            let bits = |levels: &[u32]| levels.iter().map(|level| 16.0 - f64::from(Planes::HALF.dropped(*level))).sum::<f64>() / levels.len() as f64;
            key_bits += bits(&levels);
            value_bits += bits(&token_levels);
            readings += 1.0;
        }
    }
    Layer { k_bits: key_bits / readings, v_bits: value_bits / readings, ..found }
}

/// Makes the report.
pub fn align_report(options: &AlignReportOptions) -> Result<AlignReport> {
    let started = Instant::now();
    if options.queries == 0 {
        return Err(Error::Option { name: "--queries", wanted: "1 or more".into(), had: "0".into() });
    }
    let model = options.model.open()?;
    expect_alike(model.config(), "--model")?;
    let config = model.config();
    let window = windows(&read_text(&options.text)?, &model, &options.model, 1, options.context)?;
    let gpu = options.model.gpu()?;
    let decoder = pollster::block_on(Decoder::load(&gpu, &model))?;
    let (mut cache, mut work) = (open_f16(&gpu, config, options.context)?, work(&decoder, options.context)?);
    let mut reading = Reading::begin(&decoder, &mut work, &mut cache)?;
    let shape = config.shape_for(options.context);
    let mut layers = Vec::new();
    let [queries, keys] = [config.query_heads, config.kv_heads].map(|heads| options.context * heads * config.head_dim);
    let look = |recorder: &mut Recorder, rows: &LayerRows<'_>| {
        recorder.submit();
        let rows = [read(&gpu, rows.queries, queries)?, read(&gpu, rows.keys, keys)?, read(&gpu, rows.values, keys)?];
        layers.push(layer(&shape, &rows, options.queries, options.align));
        Ok(())
    };
    reading.read(&window[0].0, Some(&mut Each(look)))?;
    reading.end()?;
    let mut total = Layer::default();
    for layer in &layers {
        total.k_bits += layer.k_bits / layers.len() as f64;
        total.v_bits += layer.v_bits / layers.len() as f64;
        let pairs =
            [(&mut total.qk, &layer.qk), (&mut total.qk_uniform, &layer.qk_uniform), (&mut total.sv, &layer.sv), (&mut total.sv_uniform, &layer.sv_uniform)];
        for (sum, histogram) in pairs {
            sum.counts.iter_mut().zip(histogram.counts).for_each(|(sum, count)| *sum += count);
        }
    }
    let report = AlignReport {
        align: options.align.to_string(),
        total,
        layers,
        tokens: options.context,
        seconds: started.elapsed().as_secs_f64(),
        adapter: gpu.adapter_name().to_owned(),
    };
    if let Some(path) = &options.svg {
        let svg = pictures::aligned(&report)?;
        std::fs::write(path, svg).map_err(|source| pictures::Error::Write { path: path.clone(), source })?;
    }
    Ok(report)
}

impl fmt::Display for AlignReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "bits read by {}, over {} tokens", self.align, self.tokens)?;
        writeln!(f, "{:>6} {:>8} {:>8}", "layer", "K", "V")?;
        for (n, layer) in self.layers.iter().enumerate() {
            writeln!(f, "{n:>6} {:>8.2} {:>8.2}", layer.k_bits, layer.v_bits)?;
        }
        writeln!(f, "{:>6} {:>8.2} {:>8.2}", "all", self.total.k_bits, self.total.v_bits)?;
        writeln!(f, "\nrelative error, share of results in %")?;
        writeln!(f, "{:>16} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}", "", "0", "<1/1024", "<1/512", "<1/256", "<1/128", "more")?;
        for (name, histogram) in
            [("QK", self.total.qk), ("QK of 13 bits", self.total.qk_uniform), ("SV", self.total.sv), ("SV of 13 bits", self.total.sv_uniform)]
        {
            write!(f, "{name:>16}")?;
            for share in histogram.shares() {
                write!(f, " {:>8.2}", 100.0 * share)?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wgkv::Rope;

    /// Numbers whose channels differ in size by some binades.
    fn rows(tokens: usize, heads: usize, d: usize, seed: usize) -> Vec<f32> {
        (0..tokens * heads * d)
            .map(|n| {
                let size = [1.0, 0.03, 0.2, 4.0, 0.5][n % d % (d / 2) % 5];
                size * ((n * 7919 + seed * 104_729) as f32 * 0.37).sin()
            })
            .collect()
    }

    #[test]
    fn everything_is_exact_and_the_published_rule_reads_less_and_errs_little() {
        let shape = Shape { layers: 1, query_heads: 4, kv_heads: 2, head_dim: 64, rope: Rope::new(10_000.0, 64) };
        let rows = [rows(100, 4, 64, 1), rows(100, 2, 64, 2), rows(100, 2, 64, 3)];
        let all = layer(&shape, &rows, 3, Alignment::EVERYTHING);
        assert_eq!((all.k_bits, all.v_bits), (16.0, 16.0));
        let results = [98 + 99 + 100, 3 * 64].map(|n| 4 * n as u64);
        assert_eq!([all.qk, all.sv].map(|histogram| histogram.counts[0]), results);
        let published = layer(&shape, &rows, 3, Alignment::PUBLISHED);
        assert!(published.k_bits < 15.0 && published.k_bits >= 8.0 && published.v_bits <= 16.0, "{published:?}");
        // Fewer of its scores are off by 1/128 than those of 13 bits are.
        assert!(published.qk.counts[5] <= published.qk_uniform.counts[5], "{published:?}");
        let budget = layer(&shape, &rows, 3, Alignment::budget(1e9, 1e9));
        assert_eq!((budget.k_bits, budget.v_bits), (8.0, 8.0));
    }

    #[test]
    fn results_are_counted_by_the_edges_of_the_paper() {
        let mut histogram = Histogram::default();
        for (got, want) in [(1.0, 1.0), (1.0 + 1.0 / 2048.0, 1.0), (-1.0 - 1.0 / 1024.0, -1.0), (1.003, 1.0), (0.995, 1.0), (1.5, 1.0), (0.1, 0.0)] {
            histogram.add(got, want);
        }
        assert_eq!(histogram.counts, [1, 1, 1, 1, 1, 2]);
    }
}
