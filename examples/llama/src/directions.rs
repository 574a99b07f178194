//! What bits by direction within a head would gain: a prediction, for a codec that is not here yet.
//!
//! A head's keys may be multiplied by any invertible matrix if its queries are divided by it. There
//! is one basis in which both have the same, diagonal second moments s_1 ≥ s_2 ≥ …, the roots of the
//! eigenvalues of the product of their second moments. Codes of b bits err by a share of a channel's
//! variance that falls as 4^-b, so that the error of a score is a multiple of
//!
//! - (Σ s)² / d · 4^-b if a Hadamard rotation spreads all directions over all d channels, which is
//!   what the best weighting makes of today's codecs;
//! - Σ_j (Σ_{i in j} s_i)² / n · 4^-b_j if the directions are parted by size into quarters of n, each
//!   is spread over its own channels, and has b_j bits.
//!
//! The gain is the quotient of the former at [`BITS`] bits and the least of the latter with as many
//! bits on average, none less than 0 and not only whole ones. It is 1 where all directions weigh the
//! same. The same holds of values, with the heads' parts of the output projection in place of queries.

use nalgebra::{DMatrix, SymmetricEigen};
use rayon::prelude::*;
use wgkv_decoder::{Config, Decoder, LayerRows, Model, Part, Recorder};

use crate::device;
use crate::error::Result;
use crate::options::open_f16;
use crate::perplexity::Window;
use crate::reading::{Each, Reading, work};

/// Mean bits of a number at which the gain is predicted.
pub const BITS: f64 = 3.0;

/// Parts of a head that have bits of their own.
const PARTS: usize = 4;

/// Gains of the keys and of the values, by layer and KV head.
pub type Gains = Vec<Vec<[f64; 2]>>;

/// Second moments of one KV head.
#[derive(Clone)]
struct Moments {
    queries: DMatrix<f64>,
    keys: DMatrix<f64>,
    values: DMatrix<f64>,
}

/// Predicts the gains on windows of sample text: of keys without their channels' means and after
/// RoPE, of queries after RoPE, and of values without their means.
///
/// # Errors
/// Those of reading the windows and of the model's files.
pub fn gains(model: &Model, decoder: &Decoder, windows: &[Window], mut progress: impl FnMut(usize)) -> Result<Gains> {
    let (config, gpu) = (decoder.config(), decoder.gpu());
    let context = windows.iter().map(|(input, _)| input.len()).max().unwrap_or(1);
    let none = DMatrix::zeros(config.head_dim, config.head_dim);
    let head = Moments { queries: none.clone(), keys: none.clone(), values: none };
    let mut moments = vec![vec![head; config.kv_heads]; config.layers];
    let mut cache = open_f16(gpu, config, context)?;
    let mut work = work(decoder, context)?;
    for (input, _) in windows {
        let mut reading = Reading::begin(decoder, &mut work, &mut cache)?;
        let add = |recorder: &mut Recorder, rows: &LayerRows<'_>| {
            recorder.submit();
            let read = |part, heads: usize| device::read(gpu, part, rows.rows as usize * heads * config.head_dim);
            let [queries, keys, values] = [read(rows.queries, config.query_heads)?, read(rows.keys, config.kv_heads)?, read(rows.values, config.kv_heads)?];
            let layer = rows.layer as usize;
            let turns = config.layer_frequencies(layer, context);
            let share = config.query_heads / config.kv_heads;
            moments[layer].par_iter_mut().enumerate().for_each(|(head, sums)| {
                let of = |numbers: &[f32], heads, head, turns: &[f64], centre| matrix(config, numbers, heads, head, turns, centre);
                let add = |sum: &mut DMatrix<f64>, rows: DMatrix<f64>| sum.gemm_tr(1.0, &rows, &rows, 1.0);
                add(&mut sums.keys, of(&keys, config.kv_heads, head, &turns, true));
                add(&mut sums.values, of(&values, config.kv_heads, head, &[], true));
                for query in share * head..share * (head + 1) {
                    add(&mut sums.queries, of(&queries, config.query_heads, query, &turns, false));
                }
            });
            Ok(())
        };
        reading.read(input, Some(&mut Each(add)))?;
        reading.end()?;
        progress(input.len());
    }
    let layers = moments.into_iter().enumerate().map(|(layer, heads)| {
        let stored = model.tensor(Part::Output(layer))?;
        let numbers = stored.numbers();
        let projection = DMatrix::from_row_iterator(stored.rows, numbers.len() / stored.rows, numbers.iter().map(|x| f64::from(*x)));
        let (share, d) = (config.query_heads / config.kv_heads, config.head_dim);
        let of_head = |(head, sums): (usize, &Moments)| {
            let of_query = |query: usize| projection.columns(query * d, d).tr_mul(&projection.columns(query * d, d));
            let weights = (share * head..share * (head + 1)).map(of_query).sum::<DMatrix<f64>>();
            [gain(&weighed(&sums.queries, &sums.keys), BITS), gain(&weighed(&weights, &sums.values), BITS)]
        };
        Ok(heads.par_iter().enumerate().map(of_head).collect())
    });
    layers.collect()
}

/// A head's rows, `[tokens, head_dim]`, less the channels' means if asked to, turned by RoPE.
fn matrix(config: &Config, numbers: &[f32], heads: usize, head: usize, turns: &[f64], centre: bool) -> DMatrix<f64> {
    let d = config.head_dim;
    let rows = numbers.chunks_exact(heads * d).flat_map(|row| &row[head * d..(head + 1) * d]).map(|x| f64::from(*x));
    let mut rows = DMatrix::from_row_iterator(numbers.len() / (heads * d), d, rows);
    if centre {
        for mut column in rows.column_iter_mut() {
            let mean = column.mean();
            column.add_scalar_mut(-mean);
        }
    }
    for (position, mut row) in rows.row_iter_mut().enumerate() {
        for (pair, radians) in turns.iter().enumerate() {
            let (sin, cos) = (position as f64 * radians).sin_cos();
            let (low, high) = (row[pair], row[pair + turns.len()]);
            (row[pair], row[pair + turns.len()]) = (low * cos - high * sin, high * cos + low * sin);
        }
    }
    rows
}

/// Returns what each direction weighs, largest first: the roots of the eigenvalues of the product.
fn weighed(one: &DMatrix<f64>, other: &DMatrix<f64>) -> Vec<f64> {
    let SymmetricEigen { eigenvectors, eigenvalues } = SymmetricEigen::new(one.clone());
    let roots = DMatrix::from_diagonal(&eigenvalues.map(|x| x.max(0.0).sqrt()));
    let root = &eigenvectors * roots * eigenvectors.transpose();
    let product = &root * other * &root;
    // The product is symmetric but for roundings.
    let eigenvalues = ((&product + product.transpose()) * 0.5).symmetric_eigenvalues();
    let mut weights: Vec<f64> = eigenvalues.iter().map(|x| x.max(0.0).sqrt()).collect();
    weights.sort_by(|a, b| b.total_cmp(a));
    weights
}

/// Returns the gain for directions of these weights, largest first.
fn gain(weights: &[f64], bits: f64) -> f64 {
    let alike = weights.iter().sum::<f64>().powi(2) / weights.len() as f64 * 4_f64.powf(-bits);
    let mut parts: Vec<f64> = weights.chunks(weights.len().div_ceil(PARTS).max(1)).map(|part| part.iter().sum::<f64>().powi(2) / part.len() as f64).collect();
    let all = bits * parts.len() as f64;
    // Least error is where all parts err alike; a part that errs less without bits gets none.
    let mut without = 0.0;
    while let Some(&least) = parts.last() {
        let level = (parts.iter().map(|part| part.ln()).sum::<f64>() / parts.len() as f64 - all / parts.len() as f64 * 4_f64.ln()).exp();
        if level < least {
            return alike / (level * parts.len() as f64 + without);
        }
        without += least;
        parts.pop();
    }
    1.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, RngExt, SeedableRng};

    fn random() -> (StdRng, u64) {
        let seed = std::env::var("WGKV_SEED").map_or_else(|_| rand::rng().next_u64(), |seed| seed.parse().unwrap());
        println!("WGKV_SEED={seed}");
        (StdRng::seed_from_u64(seed), seed)
    }

    #[test]
    fn directions_that_weigh_the_same_gain_nothing() {
        assert!((gain(&[2.0; 64], BITS) - 1.0).abs() < 1e-12);
        assert_eq!(gain(&[0.0; 64], BITS), 1.0);
        assert_eq!(gain(&[], BITS), 1.0);
    }

    #[test]
    fn no_bits_on_a_grid_do_better_and_some_come_close() {
        let (mut random, seed) = random();
        for _ in 0..20 {
            let mut weights: Vec<f64> = (0..16).map(|_| (6.0 * random.random::<f64>()).exp()).collect();
            weights.sort_by(|a, b| b.total_cmp(a));
            let parts: Vec<f64> = weights.chunks(4).map(|part| part.iter().sum::<f64>().powi(2) / 4.0).collect();
            let alike = weights.iter().sum::<f64>().powi(2) / 16.0 * 4_f64.powf(-BITS);
            // Eighths of a bit, 12 bits in all.
            let mut best = f64::INFINITY;
            for [a, b, c] in (0..97 * 97 * 97).map(|i| [i % 97, i / 97 % 97, i / 97 / 97]).filter(|bits| bits.iter().sum::<i32>() <= 96) {
                let bits = [a, b, c, 96 - a - b - c].map(|eighths| f64::from(eighths) / 8.0);
                best = best.min(parts.iter().zip(bits).map(|(part, bits)| part * 4_f64.powf(-bits)).sum());
            }
            let (got, found) = (gain(&weights, BITS), alike / best);
            // A point of the grid with that sum is an eighth of a bit away at most: (2 ln 2 / 8)² / 2.
            assert!(found <= got * (1.0 + 1e-9) && got < found * 1.02, "{got}, on the grid {found}. WGKV_SEED={seed}");
        }
    }

    #[test]
    fn what_multiplies_keys_and_divides_queries_changes_nothing() {
        let (mut random, seed) = random();
        let d = 8;
        let mut square = |rows: usize| DMatrix::from_fn(rows, d, |_, _| 2.0 * random.random::<f64>() - 1.0);
        let (queries, keys) = (square(40), square(40));
        // Well away from singular.
        let by = square(d) * 0.3 + DMatrix::identity(d, d) * 2.0;
        let back = by.clone().try_inverse().unwrap();
        let of = |queries: &DMatrix<f64>, keys: &DMatrix<f64>| weighed(&queries.tr_mul(queries), &keys.tr_mul(keys));
        let (plain, changed) = (of(&queries, &keys), of(&(&queries * back.transpose()), &(&keys * &by)));
        assert!(plain.iter().zip(&changed).all(|(a, b)| (a - b).abs() < 1e-8 * plain[0]), "{plain:?}, {changed:?}. WGKV_SEED={seed}");
        let fallen: Vec<f64> = plain.windows(2).map(|pair| pair[0] - pair[1]).collect();
        assert!(fallen.iter().all(|x| *x >= 0.0));
    }
}
