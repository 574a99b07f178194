//! RotateKV's arithmetic (2501.16383) on the CPU, sharing no code with the kernels: keys and values
//! are quantized and read back token by token, and what is left of them goes through an f16 cache.
//!
//! It measures what the codec costs by itself: queries and probabilities are not quantized. It also
//! serves the order that the paper warns of, sorting channels before they are rotated, which the
//! kernels do not offer.

use std::thread;

use half::f16;
use wgkv::low_level::reference;
use wgkv::{ChannelOrder, Format, Scales, Sinks};
use wgkv_decoder::{Config, LayerRows, Recorder, Tap};

use crate::device::read;
use crate::error::{Error, Result};

/// Where the sort of the channels stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reorder {
    /// After the rotation, by the means of the rotated channels: RotateKV.
    AfterRotation,
    /// Before it, by the means of the channels as they come.
    BeforeRotation,
}

/// Codes of one kind of rows.
#[derive(Debug, Clone, Copy)]
struct Quantizer {
    levels: f32,
    clip: f32,
    group: usize,
    scales: Scales,
}

/// What happens to a token's keys and values between the projection and the attention.
#[derive(Debug, Clone)]
pub struct Simulation {
    head: Rotation,
    heads_per_group: usize,
    head_dim: usize,
    reorder: Reorder,
    /// By layer: the channel at each place.
    orders: Vec<Vec<usize>>,
    keys: Quantizer,
    values: Quantizer,
    sinks: Sinks,
}

/// An orthonormal Hadamard matrix over one head's channels.
#[derive(Debug, Clone)]
enum Rotation {
    /// Sylvester's, by butterflies.
    Butterflies,
    /// Of another order, row after row.
    Dense(Vec<f32>),
}

impl Rotation {
    fn new(head_dim: usize) -> Self {
        if head_dim.is_power_of_two() {
            return Self::Butterflies;
        }
        // Symmetric, so its rows are what it makes of unit vectors.
        let unit = |place: usize| (0..head_dim).map(|i| f64::from(u8::from(i == place))).collect::<Vec<_>>();
        Self::Dense((0..head_dim).flat_map(|place| reference::rotate_exact(&unit(place))).map(|entry| entry as f32).collect())
    }

    fn apply(&self, head: &mut [f32]) {
        match self {
            Self::Butterflies => butterflies(head, 1),
            Self::Dense(matrix) => {
                let rotated: Vec<f32> = matrix.chunks_exact(head.len()).map(|row| row.iter().zip(&*head).map(|(a, b)| a * b).sum()).collect();
                head.copy_from_slice(&rotated);
            }
        }
    }
}

/// The orthonormal Walsh-Hadamard transform over blocks of `unit` numbers; their count must be a
/// power of two.
fn butterflies(row: &mut [f32], unit: usize) {
    let mut stride = unit;
    while stride < row.len() {
        for block in row.chunks_exact_mut(2 * stride) {
            let (low, high) = block.split_at_mut(stride);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        stride *= 2;
    }
    let scale = ((row.len() / unit) as f32).sqrt().recip();
    row.iter_mut().for_each(|x| *x *= scale);
}

/// A positive number as an 8-bit float of 4 exponent and 3 mantissa bits (E4M3); 448 at most.
fn e4m3(x: f32) -> f32 {
    let unit = (x.log2().floor().clamp(-6.0, 8.0) - 3.0).exp2();
    ((x / unit).round_ties_even() * unit).min(448.0)
}

impl Quantizer {
    /// What a group's numbers come back as.
    fn round(&self, group: &mut [f32]) {
        let low = self.clip * group.iter().copied().fold(f32::INFINITY, f32::min);
        let high = self.clip * group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let step = (high - low) / self.levels;
        let far = low.abs().max(high.abs());
        // A group of equal numbers has no range. The step may not vanish, nor the zero leave the
        // integers that it is stored in: 2^11 steps for a half, 2^7 for a byte.
        let step = match self.scales {
            Scales::Byte => e4m3(step.max(0.012 * far).max(1.0 / 512.0)),
            _ => f16::from_f32(step.max(far / 1024.0).max(1.0 / 16_384.0)).to_f32(),
        };
        let zero = (-low / step).round_ties_even();
        for x in group {
            let code = ((*x / step).round_ties_even() + zero).clamp(0.0, self.levels);
            *x = step * (code - zero);
        }
    }

    fn apply(&self, row: &mut [f32]) {
        row.chunks_exact_mut(self.group).for_each(|group| self.round(group));
    }
}

impl Simulation {
    /// For keys and values of this model. `calibration` gives the order and the heads rotated
    /// together.
    ///
    /// # Errors
    /// [`Error::Option`] where the calibration was made for another shape.
    pub fn new(config: &Config, format: &Format, calibration: &ChannelOrder, reorder: Reorder, sinks: Sinks) -> Result<Self> {
        let width = config.kv_heads * config.head_dim;
        let found = (calibration.layers() as usize, calibration.order(0).len());
        if found != (config.layers, width) {
            let told = |(layers, width)| format!("{layers} layers of {width} channels");
            return Err(Error::Option { name: "the calibration", wanted: told((config.layers, width)), had: told(found) });
        }
        let orders = (0..calibration.layers())
            .map(|layer| match reorder {
                Reorder::AfterRotation => calibration.order(layer).iter().map(|&channel| usize::from(channel)).collect(),
                Reorder::BeforeRotation => {
                    let sums = calibration.sums(layer);
                    let mut order: Vec<usize> = (0..width).collect();
                    order.sort_by(|&a, &b| sums[a].total_cmp(&sums[b]));
                    order
                }
            })
            .collect();
        let quantizer = |bits: u32, clip, group| Quantizer { levels: ((1_u32 << bits) - 1) as f32, clip, group: group as usize, scales: format.scales() };
        Ok(Self {
            head: Rotation::new(config.head_dim),
            heads_per_group: calibration.heads_per_group() as usize,
            head_dim: config.head_dim,
            reorder,
            orders,
            keys: quantizer(format.key().bits.get(), format.clip(format.key().bits), format.key().row_group(&config.shape())),
            values: quantizer(format.value().bits.get(), format.clip(format.value().bits), format.value().group(config.head_dim as u32)),
            sinks,
        })
    }

    /// `B`: every group of heads times `H_heads ⊗ H_head_dim`. It is its own inverse.
    fn rotate(&self, row: &mut [f32]) {
        for group in row.chunks_exact_mut(self.heads_per_group * self.head_dim) {
            group.chunks_exact_mut(self.head_dim).for_each(|head| self.head.apply(head));
            butterflies(group, self.head_dim);
        }
    }

    /// A token's keys before RoPE, as they come back from the cache.
    pub fn key(&self, layer: usize, row: &mut [f32]) {
        let order = &self.orders[layer];
        if self.reorder == Reorder::AfterRotation {
            self.rotate(row);
        }
        let mut placed: Vec<f32> = order.iter().map(|&channel| row[channel]).collect();
        if self.reorder == Reorder::BeforeRotation {
            self.rotate(&mut placed);
        }
        self.keys.apply(&mut placed);
        if self.reorder == Reorder::BeforeRotation {
            self.rotate(&mut placed);
        }
        for (&channel, x) in order.iter().zip(placed) {
            row[channel] = x;
        }
        if self.reorder == Reorder::AfterRotation {
            self.rotate(row);
        }
    }

    /// A token's values, as they come back.
    pub fn value(&self, row: &mut [f32]) {
        row.chunks_exact_mut(self.head_dim).for_each(|head| self.head.apply(head));
        self.values.apply(row);
        row.chunks_exact_mut(self.head_dim).for_each(|head| self.head.apply(head));
    }

    /// All rows of one layer, `[tokens, kv_heads × head_dim]` each; those of `sinks` are only
    /// rounded to f16.
    pub fn rows(&self, layer: usize, keys: &mut [f32], values: &mut [f32], sinks: &[bool]) {
        let width = self.orders[layer].len();
        let share = sinks.len().div_ceil(thread::available_parallelism().map_or(1, usize::from)).max(1);
        thread::scope(|scope| {
            for ((keys, values), sinks) in keys.chunks_mut(share * width).zip(values.chunks_mut(share * width)).zip(sinks.chunks(share)) {
                scope.spawn(move || {
                    for ((key, value), sink) in keys.chunks_exact_mut(width).zip(values.chunks_exact_mut(width)).zip(sinks) {
                        if *sink {
                            key.iter_mut().chain(value).for_each(|x| *x = f16::from_f32(*x).to_f32());
                        } else {
                            self.key(layer, key);
                            self.value(value);
                        }
                    }
                });
            }
        });
    }
}

/// Which tokens of one layer hold the largest magnitudes of its residual stream, chunk by chunk of
/// a prompt.
///
/// The largest magnitudes so far are kept, with their tokens. A token of a new chunk becomes a sink
/// if one of its entries is among them and there is room; none is ever dismissed.
#[derive(Debug, Clone, Default)]
struct Election {
    /// Largest first; equal ones in the order they came.
    largest: Vec<(f32, usize)>,
    elected: usize,
}

impl Election {
    /// The sinks among the tokens of a chunk, the first of which has this number.
    fn chunk(&mut self, limit: usize, first: usize, residual: &[f32], width: usize) -> Vec<bool> {
        let mut sinks = vec![false; residual.len() / width];
        for (at, x) in residual.iter().enumerate() {
            let magnitude = x.abs();
            // Nothing is no reason to keep a token, and what is not finite is not large.
            if magnitude == 0.0 || !magnitude.is_finite() {
                continue;
            }
            if self.largest.len() == limit && self.largest.last().is_none_or(|last| magnitude <= last.0) {
                continue;
            }
            let place = self.largest.partition_point(|entry| entry.0 >= magnitude);
            self.largest.insert(place, (magnitude, first + at / width));
            self.largest.truncate(limit);
        }
        for (_, token) in &self.largest {
            if let Some(sink) = token.checked_sub(first).and_then(|token| sinks.get_mut(token))
                && !*sink
                && self.elected < limit
            {
                *sink = true;
                self.elected += 1;
            }
        }
        sinks
    }
}

/// Puts what a [`Simulation`] leaves of a sequence's keys and values in their place.
pub struct SimulatedRows<'a> {
    simulation: &'a Simulation,
    hidden: usize,
    elections: Vec<Election>,
    /// First token of the step, and how many.
    step: (usize, usize),
}

impl<'a> SimulatedRows<'a> {
    /// An empty sequence.
    pub fn new(simulation: &'a Simulation, config: &Config) -> Self {
        Self { simulation, hidden: config.hidden, elections: vec![Election::default(); config.layers], step: (0, 0) }
    }
}

impl Tap for SimulatedRows<'_> {
    fn layer(&mut self, recorder: &mut Recorder, rows: &LayerRows<'_>) -> wgkv_decoder::Result<()> {
        recorder.submit();
        let (layer, tokens) = (rows.layer as usize, rows.rows as usize);
        if layer == 0 {
            self.step = (self.step.0 + self.step.1, tokens);
        }
        let (gpu, first) = (recorder.gpu(), self.step.0);
        let sinks = match self.simulation.sinks {
            // A token alone is generated, and never a sink.
            Sinks::Massive(limit) if tokens > 1 => {
                let residual = read(gpu, rows.residual, tokens * self.hidden)?;
                self.elections[layer].chunk(limit as usize, first, &residual, self.hidden)
            }
            Sinks::First(count) => (first..first + tokens).map(|token| token < count as usize).collect(),
            _ => vec![false; tokens],
        };
        let numbers = tokens * self.simulation.orders[layer].len();
        let (mut keys, mut values) = (read(gpu, rows.keys, numbers)?, read(gpu, rows.values, numbers)?);
        self.simulation.rows(layer, &mut keys, &mut values, &sinks);
        for (place, numbers) in [(rows.keys, keys), (rows.values, values)] {
            gpu.queue().write_buffer(place.buffer, place.offset, bytemuck::cast_slice(&numbers));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    /// f32 butterflies of 512 numbers against f64 sums of them: nine roundings of 2^-24 of numbers
    /// up to 4, and room.
    const ROTATION_ERROR: f32 = 1e-5;

    fn quantizer(bits: u32, clip: f32, scales: Scales) -> Quantizer {
        Quantizer { levels: ((1 << bits) - 1) as f32, clip, group: 4, scales }
    }

    fn rounded(bits: u32, clip: f32, group: [f32; 4]) -> [f32; 4] {
        let mut group = group;
        quantizer(bits, clip, Scales::Half).round(&mut group);
        group
    }

    fn close(a: &[f32], b: &[f32], error: f32) {
        assert_eq!(a.len(), b.len());
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= error), "{a:?}\n{b:?}");
    }

    fn random(count: usize, seed: u64) -> Vec<f32> {
        let mut random = StdRng::seed_from_u64(seed);
        (0..count).map(|_| 4.0 * random.random::<f32>() - 2.0).collect()
    }

    fn config(kv_heads: usize, head_dim: usize) -> Config {
        let config = serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": kv_heads,
            "num_key_value_heads": kv_heads, "head_dim": head_dim, "vocab_size": 8, "rms_norm_eps": 1e-5, "bos_token_id": 0
        });
        Config::from_bytes(config.to_string().as_bytes()).unwrap()
    }

    fn simulation(config: &Config, bits: wgkv::Bits, heads: u32, sums: Vec<f64>, reorder: Reorder) -> Simulation {
        let shape = config.shape();
        let calibration = ChannelOrder::from_sums(&shape, heads, wgkv::learned::Reach::Global, "model", 1, vec![sums]).unwrap();
        let format = Format::new(wgkv::Codec::RotateKv, bits, bits, 32).with_heads_per_group(heads);
        Simulation::new(config, &format, &calibration, reorder, Sinks::None).unwrap()
    }

    #[test]
    fn the_published_groups_come_back_as_published() {
        // Worked by hand with the paper's formulas: a group around zero, one far below it (its zero
        // lies outside the codes), the same clipped, and one far above.
        let error = 4e-3; // The scale is a half: 2^-11 of it, times codes up to 6.
        close(&rounded(2, 1.0, [-1.0, 0.0, 0.4, 2.0]), &[-1.0, 0.0, 0.0, 2.0], error);
        close(&rounded(2, 1.0, [-5.0, -4.0, -3.4, -2.6]), &[-4.8, -4.0, -3.2, -2.4], error);
        close(&rounded(2, 0.8, [-5.0, -4.0, -3.4, -2.6]), &[-3.84, -3.84, -3.2, -2.56], error);
        close(&rounded(2, 1.0, [2.0, 3.0, 4.0, 5.9]), &[2.6, 2.6, 3.9, 6.5], error);
    }

    #[test]
    fn equal_numbers_come_back() {
        for x in [0.0_f32, 0.3, -7.0, 1000.0] {
            for scales in [Scales::Half, Scales::Byte] {
                let mut group = [x; 4];
                quantizer(2, 1.0, scales).round(&mut group);
                // Within half a step of 0.012, which rounding to an E4M3 number may make an eighth
                // larger.
                close(&group, &[x; 4], x.abs() * 7e-3);
            }
        }
    }

    #[test]
    fn an_e4m3_number_is_its_own_nearest() {
        for exponent in -6..=8 {
            for mantissa in 8..16 {
                let x = mantissa as f32 * (exponent as f32 - 3.0).exp2();
                assert_eq!(e4m3(x), x.min(448.0));
                assert_eq!(e4m3(1.02 * x), x.min(448.0), "2 % above {x}");
            }
        }
        assert_eq!(e4m3(0.9 / 512.0), 1.0 / 512.0);
    }

    #[test]
    fn the_rotation_is_the_librarys_and_its_own_inverse() {
        for (kv_heads, head_dim, heads) in [(4, 128, 4), (4, 64, 2), (2, 80, 2), (4, 96, 4), (8, 64, 8), (3, 64, 1)] {
            let config = config(kv_heads, head_dim);
            let width = kv_heads * head_dim;
            let simulation = simulation(&config, wgkv::Bits::Two, heads, vec![0.0; width], Reorder::AfterRotation);
            let row = random(width, width as u64);
            let mut rotated = row.clone();
            simulation.rotate(&mut rotated);
            let wide: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
            let wanted: Vec<f32> =
                wide.chunks(heads as usize * head_dim).flat_map(|group| reference::rotate_group_exact(group, head_dim as u32)).map(|x| x as f32).collect();
            close(&rotated, &wanted, ROTATION_ERROR);
            simulation.rotate(&mut rotated);
            close(&rotated, &row, ROTATION_ERROR);
        }
    }

    #[test]
    fn eight_bits_return_the_rows_in_either_order() {
        let config = config(4, 64);
        let row = random(256, 3);
        // A channel order that is no permutation of pairs: it and its inverse differ.
        let sums: Vec<f64> = (0..256).map(|channel| f64::from(channel * 7 % 256)).collect();
        for reorder in [Reorder::AfterRotation, Reorder::BeforeRotation] {
            let simulation = simulation(&config, wgkv::Bits::Eight, 4, sums.clone(), reorder);
            let (mut key, mut value) = (row.clone(), row.clone());
            simulation.key(0, &mut key);
            simulation.value(&mut value);
            // Half a step of a range of about 12, and the rotation spreads errors, it does not add
            // them.
            close(&key, &row, 0.1);
            close(&value, &row, 0.1);
        }
    }

    #[test]
    fn sorting_after_the_rotation_beats_the_natural_order_and_sorting_before_it() {
        // Stable channel means, two large ones a head, and noise: what the paper's method is for.
        let config = config(4, 128);
        let mut generator = StdRng::seed_from_u64(11);
        let mut means: Vec<f32> = (0..512).map(|_| 2.0 * generator.random::<f32>() - 1.0).collect();
        for head in 0..4 {
            means[128 * head + 17] = 10.0;
            means[128 * head + 90] = -10.0;
        }
        let tokens: Vec<Vec<f32>> = (0..64).map(|_| means.iter().map(|mean| mean + 2.0 * generator.random::<f32>() - 1.0).collect()).collect();
        let sums: Vec<f64> = (0..512).map(|channel| tokens.iter().map(|token| f64::from(token[channel])).sum()).collect();
        let error = |sums: &[f64], reorder| -> f32 {
            let simulation = simulation(&config, wgkv::Bits::Two, 4, sums.to_vec(), reorder);
            let token_error = |token: &Vec<f32>| {
                let mut key = token.clone();
                simulation.key(0, &mut key);
                key.iter().zip(token).map(|(a, b)| (a - b).powi(2)).sum::<f32>()
            };
            tokens.iter().map(token_error).sum()
        };
        let (sorted, natural, before) =
            (error(&sums, Reorder::AfterRotation), error(&vec![0.0; 512], Reorder::AfterRotation), error(&sums, Reorder::BeforeRotation));
        assert!(2.0 * sorted < natural && 2.0 * sorted < before, "sorted {sorted}, natural {natural}, sorted before the rotation {before}");
    }

    #[test]
    fn rows_are_the_tokens_one_by_one_and_sinks_are_kept() {
        let config = config(4, 64);
        let simulation = simulation(&config, wgkv::Bits::Two, 4, (0..256).map(f64::from).collect(), Reorder::AfterRotation);
        let tokens = 37;
        let (keys, values) = (random(tokens * 256, 5), random(tokens * 256, 6));
        let sinks: Vec<bool> = (0..tokens).map(|token| token % 9 == 2).collect();
        let (mut got_keys, mut got_values) = (keys.clone(), values.clone());
        simulation.rows(0, &mut got_keys, &mut got_values, &sinks);
        for (token, sink) in sinks.into_iter().enumerate() {
            let range = token * 256..(token + 1) * 256;
            let (mut key, mut value) = (keys[range.clone()].to_vec(), values[range.clone()].to_vec());
            if sink {
                close(&got_keys[range.clone()], &key, 1e-3);
                close(&got_values[range], &value, 1e-3);
            } else {
                simulation.key(0, &mut key);
                simulation.value(&mut value);
                assert_eq!(got_keys[range.clone()], key);
                assert_eq!(got_values[range], value);
            }
        }
    }

    #[test]
    fn the_largest_magnitudes_make_their_tokens_sinks_and_none_is_dismissed() {
        let mut election = Election::default();
        // Three tokens of four channels; the largest three entries lie in tokens 0 (twice) and 2.
        let first = [9.0, -8.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, -7.0, 0.0];
        assert_eq!(election.chunk(3, 0, &first, 4), [true, false, true]);
        // Nothing large here.
        assert_eq!(election.chunk(3, 3, &[1.0, 1.0, 1.0, 1.0, f32::NAN, f32::INFINITY, 0.0, 0.0], 4), [false, false]);
        // A token that pushes 7 and 8 out takes the third row; then there is none left.
        assert_eq!(election.chunk(3, 5, &[0.0, 0.0, 50.0, -60.0, 0.0, 0.0, 0.0, 0.0], 4), [true, false]);
        assert_eq!(election.chunk(3, 7, &[70.0, 0.0, 0.0, 0.0], 4), [false]);
    }

    #[test]
    fn of_equal_magnitudes_the_earlier_counts() {
        assert_eq!(Election::default().chunk(2, 0, &[1.0, 5.0, -5.0, 5.0], 1), [false, true, true, false]);
    }
}
