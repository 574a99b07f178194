//! What a cache does to one head's keys, as maps of numbers: tokens down, channels across.

use crate::error::{Error, Result};
use serde::Serialize;
use wgkv::low_level::reference::fit::{Fit, Order, fit};
use wgkv::low_level::reference::{Constants, hadamard, scales, turn, turns};
use wgkv::{Bits, Format, Plan, Scales};

/// A map and what it costs to store it.
#[derive(Clone, Debug, Serialize)]
pub struct Map {
    /// What it shows.
    pub title: &'static str,
    /// `[tokens, channels]`.
    #[serde(skip)]
    pub numbers: Vec<f32>,
    /// Root mean square of the codes' error, divided by that of the keys.
    pub error: f64,
    /// Largest magnitude, divided by the root mean square: what a group's range must reach.
    pub peak: f64,
}

/// One head's keys of the latest tokens.
#[derive(Clone, Debug, Serialize)]
pub struct Picture {
    /// Position of the first token.
    pub first: u32,
    /// Channels of a head.
    pub channels: usize,
    /// As the model makes them, centred, rotated, and the error in the cache.
    pub maps: Vec<Map>,
}

fn rms(numbers: &[f32]) -> f64 {
    (numbers.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / numbers.len().max(1) as f64).sqrt()
}

/// What rounding a row to codes leaves over, by the arithmetic that the format states.
fn leftover(format: &Format, row: &[f32]) -> Vec<f32> {
    let key = format.key();
    if key.bits == Bits::Sixteen {
        return row.iter().map(|x| half::f16::from_f32(*x).to_f32() - x).collect();
    }
    let (bits, form) = (key.bits.get(), format.scales());
    let code = |numbers: &[f32]| {
        let Fit { codes, pair, .. } = fit(form, Order::Eights, numbers, bits, format.clip(key.bits), 0.0);
        let [scale, stored] = scales::pair(form, pair);
        // Symmetric codes have theirs between the two middle ones.
        let zero = if form == Scales::Symmetric { (1_u32 << (bits - 1)) as f32 - 0.5 } else { stored };
        numbers.iter().zip(codes).map(|(x, code)| scale * (code as f32 - zero) - x).collect::<Vec<f32>>()
    };
    row.chunks(key.group(row.len() as u32) as usize).flat_map(code).collect()
}

impl Picture {
    /// Of one KV head in one layer, from all heads' keys before RoPE of the tokens from `first` on,
    /// and from what the cache gives back of them. The first three maps are before RoPE, and their
    /// errors are what the cache's bits would make of each; the last is the error that is really in
    /// the cache, after RoPE.
    ///
    /// # Errors
    /// [`Error::NoKeys`].
    pub fn new(plan: &Plan, [layer, head]: [usize; 2], first: u32, made: &[f32], restored: &[f32]) -> Result<Self> {
        let (channels, heads) = (plan.shape().head_dim as usize, plan.shape().kv_heads as usize);
        let slab = plan.slabs(layer as u32).iter().find(|slab| slab.heads().contains(&(head as u32)));
        let Some(slab) = slab.filter(|_| !made.is_empty()) else {
            return Err(Error::NoKeys { layer, head });
        };
        let of_head = |rows: &[f32]| -> Vec<f32> { rows.chunks_exact(heads * channels).flat_map(|row| &row[head * channels..][..channels]).copied().collect() };
        let (made, restored) = (of_head(made), of_head(restored));

        let tokens = made.len() / channels;
        let mut mean = vec![0.0; channels];
        made.chunks_exact(channels).for_each(|row| mean.iter_mut().zip(row).for_each(|(m, x)| *m += x / tokens as f32));
        let centred: Vec<f32> = made.chunks_exact(channels).flat_map(|row| row.iter().zip(&mean).map(|(x, m)| x - m)).collect();
        let constants = Constants::of(plan, slab);
        let rotated: Vec<f32> = centred.chunks_exact(channels).flat_map(|row| hadamard::row(&constants, row)).collect();
        let table = turns(plan);
        let turned: Vec<f32> = made.chunks_exact(channels).zip(first..).flat_map(|(row, position)| turn::row(&constants, &table, row, position)).collect();
        let lost: Vec<f32> = restored.iter().zip(&turned).map(|(x, y)| x - y).collect();

        let size = rms(&made);
        let peak = |numbers: &[f32]| numbers.iter().fold(0.0_f64, |most, x| most.max(f64::from(x.abs()))) / rms(numbers);
        let coded = |title, numbers: Vec<f32>| {
            let leftover: Vec<f32> = numbers.chunks_exact(channels).flat_map(|row| leftover(slab.format(), row)).collect();
            Map { title, error: rms(&leftover) / size, peak: peak(&numbers), numbers }
        };
        let error = rms(&lost) / size;
        let maps = vec![
            coded("as the model makes them", made),
            coded("minus each channel’s mean", centred),
            coded("and rotated", rotated),
            Map { title: "error in the cache", error, peak: peak(&lost), numbers: lost },
        ];
        Ok(Self { first, channels, maps })
    }
}
