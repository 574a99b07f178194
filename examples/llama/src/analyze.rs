//! `analyze`: norms, spectra and errors of a model's keys and values, as KV-AdaQuant (2502.15075)
//! section 3 looks at them.

use std::path::PathBuf;

use nalgebra::DMatrix;
use serde::Serialize;
use wgkv::bits::{Kind, Probe, Sensitivity};
use wgkv::{Precision, Sinks};
use wgkv_decoder::{Decoder, Part};

use crate::directions::{self, Gains};
use crate::error::Result;
use crate::options::{CacheOptions, ModelOptions, expect_alike, read_text};
use crate::perplexity::{bar, windows};
use crate::pictures::{self, Analysis, BitsError, HeadAnalysis, LayerAnalysis, WeightAnalysis};
use crate::sensitivity::Subject;

/// Options of `analyze`.
#[derive(Debug, Clone, clap::Args)]
pub struct AnalyzeOptions {
    /// The model.
    #[command(flatten)]
    pub model: ModelOptions,
    /// The codec whose errors are told.
    #[command(flatten)]
    pub cache: CacheOptions,
    /// Sample text.
    #[arg(long)]
    pub text: PathBuf,
    /// Folder to write to: analysis.json, one SVG a picture, and index.html that shows them.
    #[arg(long)]
    pub out: PathBuf,
    /// Windows of the text.
    #[arg(long, default_value_t = 4)]
    pub windows: usize,
    /// Tokens in a window.
    #[arg(long, default_value_t = 2048)]
    pub context: usize,
}

/// What was written, and the shortest summary of it.
#[derive(Debug, Clone, Serialize)]
pub struct AnalyzeReport {
    /// The files.
    pub files: Vec<PathBuf>,
    /// By layer: mean over the heads of the Frobenius norm of keys, and of values.
    pub norms: Vec<[f64; 2]>,
    /// Layers in which that of keys is the larger.
    pub keys_larger: usize,
    /// By layer and head: what bits by direction within the head would divide the error of keys, and
    /// of values, by ([`directions`]).
    pub direction_gains: Gains,
    /// Tokens read.
    pub tokens: u64,
}

/// Singular values, largest first, from the Gram matrix of the rows: the roots of its eigenvalues.
///
/// Those below about 3e-4 of the largest drown in the roundings of the f32 products that the matrix
/// is summed from.
pub fn singular_values(gram: &[f64], size: usize) -> Vec<f64> {
    let mut values: Vec<f64> = DMatrix::from_row_slice(size, size, gram).symmetric_eigenvalues().iter().map(|x| x.max(0.0).sqrt()).collect();
    values.sort_by(|a, b| b.total_cmp(a));
    values
}

/// Norms and spectrum of a weight matrix `[outputs, inputs]`.
fn weights(numbers: &[f32], outputs: usize) -> WeightAnalysis {
    let inputs = numbers.len() / outputs;
    let matrix = DMatrix::from_row_slice(outputs, inputs, &numbers.iter().map(|x| f64::from(*x)).collect::<Vec<_>>());
    // The smaller of the two Gram matrices has all singular values that are not zero.
    let gram = if outputs <= inputs { &matrix * matrix.transpose() } else { matrix.transpose() * &matrix };
    let singular_values = singular_values(gram.as_slice(), outputs.min(inputs));
    WeightAnalysis { frobenius: matrix.norm(), spectral: singular_values.first().copied().unwrap_or(0.0), singular_values }
}

/// The keys or values of one head.
fn head(probe: &Probe, sensitivity: &Sensitivity, layer: u32, head: u32, kind: Kind, direction_gain: f64) -> HeadAnalysis {
    let size = sensitivity.head_dim() as usize;
    let singular_values = singular_values(probe.gram(layer, head, kind), size);
    let elements = sensitivity.tokens() as f64 * size as f64;
    let norm = sensitivity.norm(layer, head, kind);
    let relative = sensitivity.code_errors(layer, head, kind);
    let output = sensitivity.output(layer, head).max(f64::MIN_POSITIVE);
    let errors = sensitivity.candidates().iter().enumerate().map(|(n, precision)| BitsError {
        bits: precision.bits.get(),
        group: precision.group,
        relative: relative[n],
        mse: relative[n] * norm * norm / elements,
        attention: sensitivity.output_errors(layer, head, kind)[n] / output,
    });
    HeadAnalysis { head, frobenius: norm, spectral: singular_values.first().copied().unwrap_or(0.0), singular_values, errors: errors.collect(), direction_gain }
}

/// Measures, and writes the pictures.
pub fn analyze(options: &AnalyzeOptions) -> Result<AnalyzeReport> {
    let model = options.model.open()?;
    expect_alike(model.config(), "--model")?;
    let config = model.config();
    let windows = windows(&read_text(&options.text)?, &model, &options.model, options.windows, options.context)?;
    let learned = options.cache.learned(&model, &options.model.model)?;
    let format = options.cache.format(config, learned.as_ref())?;
    let gpu = options.model.gpu()?;
    let decoder = pollster::block_on(Decoder::load(&gpu, &model))?;
    let sinks = options.cache.protection(Sinks::None, 0).sinks;
    let subject = Subject { model: &model, decoder: &decoder, format, learned: learned.as_ref(), sinks };
    // One group, so that bits alone make the difference.
    let group = format.key().group;
    let mut candidates: Vec<Precision> =
        Sensitivity::default_candidates(&config.shape(), &format).into_iter().map(|candidate| Precision { group, ..candidate }).collect();
    candidates.dedup();
    let bar = bar(2 * windows.iter().map(|(input, _)| input.len()).sum::<usize>(), "");
    let probe = subject.probe(&candidates, &windows, |tokens| bar.inc(tokens as u64))?;
    let gains = directions::gains(&model, &decoder, &windows, |tokens| bar.inc(tokens as u64))?;
    bar.finish_and_clear();
    let sensitivity = probe.finish(&model.hash()?)?;
    let mut layers = Vec::new();
    for layer in 0..sensitivity.layers() {
        let gain = |h: u32, kind| gains[layer as usize][h as usize][usize::from(kind == Kind::Value)];
        let heads = |kind| (0..sensitivity.kv_heads()).map(|h| head(&probe, &sensitivity, layer, h, kind, gain(h, kind))).collect();
        let told = |part| -> Result<_> {
            let stored = model.tensor(part)?;
            Ok(Some(weights(&stored.numbers(), stored.rows)))
        };
        let n = layer as usize;
        layers.push(LayerAnalysis {
            layer,
            keys: heads(Kind::Key),
            values: heads(Kind::Value),
            key_weights: told(Part::Key(n))?,
            value_weights: told(Part::Value(n))?,
        });
    }
    let name = |path: &PathBuf| path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
    let analysis = Analysis {
        model: name(&options.model.model),
        text: name(&options.text),
        tokens: sensitivity.tokens(),
        codec: format.codec().to_string(),
        group,
        layers,
    };
    let files = pictures::write(&analysis, &options.out)?;
    let mean = |heads: &[HeadAnalysis]| heads.iter().map(|head| head.frobenius).sum::<f64>() / heads.len() as f64;
    let norms: Vec<[f64; 2]> = analysis.layers.iter().map(|layer| [mean(&layer.keys), mean(&layer.values)]).collect();
    Ok(AnalyzeReport {
        files,
        keys_larger: norms.iter().filter(|[keys, values]| keys > values).count(),
        norms,
        direction_gains: gains,
        tokens: analysis.tokens,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, RngExt, SeedableRng};

    /// The Gram matrix squares the condition: singular values of 1e-2 of the largest keep four
    /// digits of six when products are f32.
    const LARGEST_ERROR: f64 = 1e-4;
    const SMALL_ERROR: f64 = 1e-2;

    /// Rows of unlike channels around a large mean, as keys have them, from a fresh seed.
    fn rows(tokens: usize, size: usize) -> (Vec<f32>, u64) {
        let seed = std::env::var("WGKV_SEED").map_or_else(|_| rand::rng().next_u64(), |seed| seed.parse().unwrap());
        println!("WGKV_SEED={seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let spread: Vec<f32> = (0..size).map(|_| 0.3 + random.random::<f32>()).collect();
        let mean: Vec<f32> = (0..size).map(|_| 4.0 * random.random::<f32>() - 2.0).collect();
        ((0..tokens * size).map(|i| mean[i % size] + spread[i % size] * (2.0 * random.random::<f32>() - 1.0)).collect(), seed)
    }

    /// As the GPU sums it: f32 products, f32 sums over short runs, f64 over runs.
    fn gram(rows: &[f32], size: usize) -> Vec<f64> {
        let mut gram = vec![0.0; size * size];
        for run in rows.chunks(32 * size) {
            for (at, total) in gram.iter_mut().enumerate() {
                let sum: f32 = run.chunks(size).map(|row| row[at / size] * row[at % size]).sum();
                *total += f64::from(sum);
            }
        }
        gram
    }

    #[test]
    fn the_gram_matrix_has_the_singular_values_of_the_rows() {
        let (tokens, size) = (512, 64);
        let (rows, seed) = rows(tokens, size);
        let got = singular_values(&gram(&rows, size), size);
        let exact = DMatrix::from_row_slice(tokens, size, &rows.iter().map(|x| f64::from(*x)).collect::<Vec<_>>());
        let mut wanted: Vec<f64> = exact.singular_values().iter().copied().collect();
        wanted.sort_by(|a, b| b.total_cmp(a));
        assert!((got[0] / wanted[0] - 1.0).abs() < LARGEST_ERROR, "the largest is {}, should be {}. WGKV_SEED={seed}", got[0], wanted[0]);
        for (a, b) in got.iter().zip(&wanted).filter(|(_, b)| **b > 1e-2 * wanted[0]) {
            assert!((a / b - 1.0).abs() < SMALL_ERROR, "{a}, should be {b}. WGKV_SEED={seed}");
        }
        let norm = got.iter().map(|x| x * x).sum::<f64>().sqrt();
        assert!((norm / exact.norm() - 1.0).abs() < 1e-5, "the Frobenius norm is {norm}, should be {}", exact.norm());
        // Whatever the matrix: the largest number, the spectral norm, the Frobenius norm, the
        // spectral norm times the root of the rank.
        let largest = rows.iter().fold(0.0_f64, |l, x| l.max(f64::from(x.abs())));
        assert!(largest <= got[0] && got[0] <= norm && norm <= (size as f64).sqrt() * got[0]);
    }

    #[test]
    fn equal_singular_values_and_a_rank_of_one_come_out() {
        let two = singular_values(&[9.0, 0.0, 0.0, 0.0, 9.0, 0.0, 0.0, 0.0, 4.0], 3);
        assert!(two.iter().zip([3.0, 3.0, 2.0]).all(|(a, b)| (a - b).abs() < 1e-12), "{two:?}");
        let row = [1.0, 2.0, 2.0];
        let one: Vec<f64> = (0..9).map(|i| row[i / 3] * row[i % 3]).collect();
        let one = singular_values(&one, 3);
        assert!((one[0] - 3.0).abs() < 1e-12 && one[1].abs() < 1e-6 && one[2].abs() < 1e-6, "{one:?}");
    }

    #[test]
    fn weights_wide_and_tall_have_the_same_spectrum() {
        let (numbers, seed) = rows(24, 8);
        let tall = weights(&numbers, 24);
        let turned: Vec<f32> = (0..8 * 24).map(|i| numbers[i % 24 * 8 + i / 24]).collect();
        let wide = weights(&turned, 8);
        assert_eq!((tall.singular_values.len(), wide.singular_values.len()), (8, 8));
        assert!(tall.singular_values.iter().zip(&wide.singular_values).all(|(a, b)| (a - b).abs() < 1e-9 * tall.spectral), "WGKV_SEED={seed}");
        assert!((tall.frobenius - wide.frobenius).abs() < 1e-9 * tall.frobenius);
    }
}
