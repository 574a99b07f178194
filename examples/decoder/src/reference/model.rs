//! A whole model in f64.

use half::f16;

use super::{activate, capped, normalize, project, turn};
use crate::error::Result;
use crate::layout::Layout;
use crate::model::{Model, Part};

/// Reads tensors as the GPU has them.
struct Reader<'a>(&'a Model);

impl Reader<'_> {
    /// A matrix: numbers that are not codes as halves.
    fn matrix(&self, part: Part) -> Result<(Vec<f32>, usize)> {
        let stored = self.0.tensor(part)?;
        let numbers = stored.numbers();
        let half = |x: &f32| f16::from_f32(x.clamp(-65504.0, 65504.0)).to_f32();
        let numbers = if Layout::of(stored.format) == Layout::F16 { numbers.iter().map(half).collect() } else { numbers };
        Ok((numbers, stored.columns))
    }

    fn vector(&self, part: Part) -> Result<Vec<f32>> {
        Ok(self.0.tensor(part)?.numbers())
    }

    fn product(&self, rows: &[f64], part: Part, bias: Part) -> Result<Vec<f64>> {
        let (weights, columns) = self.matrix(part)?;
        let mut out: Vec<f64> = project(rows, &weights, columns).into_iter().map(|[sum, _]| sum).collect();
        if self.0.has(bias) {
            let bias = self.vector(bias)?;
            out.chunks_exact_mut(bias.len()).for_each(|row| row.iter_mut().zip(&bias).for_each(|(x, b)| *x += f64::from(*b)));
        }
        Ok(out)
    }
}

/// Returns the scores of all tokens of the vocabulary for what follows each token of a text, with
/// keys and values that are not rounded: `[ids, vocabulary]`.
///
/// # Errors
/// Those of [`Model::tensor`].
pub fn logits(model: &Model, ids: &[u32]) -> Result<Vec<f64>> {
    let (config, reader) = (model.config(), Reader(model));
    let (hidden, d) = (config.hidden, config.head_dim);
    let norms = |rows: &[f64], part: Part| -> Result<Vec<f64>> {
        let weights = reader.vector(part)?;
        Ok(rows.chunks_exact(hidden).flat_map(|row| normalize(row, &weights, config.norm_epsilon)).collect())
    };
    let (embedding, _) = reader.matrix(Part::Embedding)?;
    let mut x: Vec<f64> =
        ids.iter().flat_map(|id| embedding[*id as usize * hidden..][..hidden].iter().map(|x| config.embedding_scale * f64::from(*x))).collect();
    let (queries_of_row, keys_of_row) = (config.query_heads * d, config.kv_heads * d);
    // What a branch puts out is normed before it is added, if the model has a norm for it.
    let add = |x: &mut Vec<f64>, rows: Vec<f64>, norm: Part| -> Result<()> {
        let rows = if model.has(norm) { norms(&rows, norm)? } else { rows };
        x.iter_mut().zip(rows).for_each(|(x, y)| *x += y);
        Ok(())
    };
    for n in 0..config.layers {
        let frequencies = config.layer_frequencies(n, 0);
        let normed = norms(&x, Part::AttentionNorm(n))?;
        let mut queries = reader.product(&normed, Part::Query(n), Part::QueryBias(n))?;
        let mut keys = reader.product(&normed, Part::Key(n), Part::KeyBias(n))?;
        let values = reader.product(&normed, Part::Value(n), Part::ValueBias(n))?;
        for (rows, norm) in [(&mut queries, Part::QueryNorm(n)), (&mut keys, Part::KeyNorm(n))] {
            let heads = rows.len() / ids.len() / d;
            let weights = if config.head_norm { Some(reader.vector(norm)?) } else { None };
            for (at, head) in rows.chunks_exact_mut(d).enumerate() {
                if let Some(weights) = &weights {
                    let normed = normalize(head, weights, config.norm_epsilon);
                    head.copy_from_slice(&normed);
                }
                turn(head, frequencies.iter().map(|frequency| (at / heads) as f64 * frequency), frequencies.len());
            }
        }
        let share = config.query_heads / config.kv_heads;
        let scale = config.attention_factor.powi(2) * config.score_scale;
        let sinks = if config.sinks { Some(reader.vector(Part::Sinks(n))?) } else { None };
        let mut mixed = vec![0.0; ids.len() * queries_of_row];
        for token in 0..ids.len() {
            let first = config.layer_window(n).map_or(0, |window| (token + 1).saturating_sub(window as usize));
            for head in 0..config.query_heads {
                let at = token * queries_of_row + head * d;
                let key_at = |other: usize| other * keys_of_row + head / share * d;
                let score_of = |other: usize| {
                    let score = scale * queries[at..at + d].iter().zip(&keys[key_at(other)..]).map(|(q, k)| q * k).sum::<f64>();
                    config.score_cap.map_or(score, |cap| capped(score, cap))
                };
                let scores: Vec<f64> = (first..=token).map(score_of).collect();
                let sink = sinks.as_ref().map(|sinks| f64::from(sinks[head]));
                let top = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().copied().chain(sink).map(|score| (score - top).exp()).sum();
                for (other, score) in (first..=token).zip(&scores) {
                    let weight = (score - top).exp() / total;
                    mixed[at..at + d].iter_mut().zip(&values[key_at(other)..]).for_each(|(x, v)| *x += weight * v);
                }
            }
        }
        add(&mut x, reader.product(&mixed, Part::Output(n), Part::OutputBias(n))?, Part::AttentionOutNorm(n))?;
        let normed = norms(&x, Part::MlpNorm(n))?;
        let gate = reader.product(&normed, Part::Gate(n), Part::GateBias(n))?;
        let up = reader.product(&normed, Part::Up(n), Part::UpBias(n))?;
        let gated: Vec<f64> = gate.iter().zip(up).map(|(gate, up)| activate(config.activation, *gate) * up).collect();
        add(&mut x, reader.product(&gated, Part::Down(n), Part::DownBias(n))?, Part::MlpOutNorm(n))?;
    }
    let normed = norms(&x, Part::Norm)?;
    let head = if config.tied { Part::Embedding } else { Part::Head };
    // No model has a bias on its head: the part that is asked for has none either.
    let scores = reader.product(&normed, head, Part::OutputBias(usize::MAX))?;
    Ok(match config.logit_cap {
        Some(cap) => scores.into_iter().map(|score| capped(score, cap)).collect(),
        None => scores,
    })
}
