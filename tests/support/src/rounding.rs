//! Whether what a kernel stored is the rounding of what it should have stored.

use crate::Packed;
use wgkv::Scales;
use wgkv::bits::Kind;
use wgkv::low_level::reference;

/// A quotient: 2.5 units in the last place by WGSL's accuracy, 2^-23 each, and a rounding more.
pub const QUOTIENT_ERROR: f64 = 3.0 / 8_388_608.0;

/// Codes, scales and zeros that may be rounded otherwise than the twin does it.
pub const TIES: f64 = 0.001;

/// The same for the halves of f16 pages, whose steps are finer: f32's error is 2^-13 of a half's
/// last place, and more for numbers much smaller than their row.
pub const HALF_TIES: f64 = 0.01;

/// Returns half a unit in the last place of a half near x.
pub fn half_step(x: f64) -> f64 {
    let exponent = x.abs().log2().floor().clamp(-14.0, 15.0);
    (exponent - 11.0).exp2()
}

/// Returns half a unit in the last place of a symmetric scale near x, or all of one that is stored as
/// 0.
fn symmetric_step(x: f64) -> f64 {
    if x < 2_f64.powi(-30) { x } else { (x.log2().floor() - 11.0).exp2() }
}

/// Returns half a unit in the last place of an E4M3 float near x.
fn float8_step(x: f64) -> f64 {
    let exponent = x.abs().log2().floor().clamp(-6.0, 8.0);
    (exponent - 4.0).exp2()
}

/// How many were compared, and how many were rounded otherwise than the twin did it.
#[derive(Debug, Default)]
pub struct Count {
    /// Compared.
    pub all: usize,
    /// Rounded otherwise.
    pub ties: usize,
}

impl Count {
    /// Counts one more.
    pub fn add(&mut self, same: bool) {
        self.all += 1;
        self.ties += usize::from(!same);
    }
}

/// One key or value in f64, and the error that f32 may have made of it.
pub struct Exact {
    /// By channel.
    pub row: Vec<f64>,
    /// Of any channel.
    pub error: f64,
}

/// Returns how far a number that all of its group are may come back from it: half a step, which is
/// 2^-10 of the number or 2^-14 where a group has no range, and is stored as a half, up to 2^-11
/// more; a little is f32's own.
pub fn flat_group_error(x: f32) -> f32 {
    0.501 * (x.abs() / 1024.0).max(2_f32.powi(-14))
}

/// How numbers are packed.
#[derive(Clone, Copy, Debug)]
pub struct Packing {
    /// Bits of a code.
    pub bits: u32,
    /// What a group's range is multiplied by.
    pub clip: f32,
    /// How scales are stored.
    pub scales: Scales,
    /// Whether codes are those of a trellis: of keys or of values, which it goes through in different
    /// orders.
    pub trellis: Option<Kind>,
}

/// Numbers that share a scale, as they are stored.
pub struct Group {
    /// Their scale.
    pub scale: f32,
    /// Their zero, as codes count.
    pub zero: f32,
    /// A code each.
    pub codes: Vec<u32>,
}

/// Checks one key or value against the f64 row and the twin's.
pub fn check_row(context: &str, packing: Packing, group: usize, got: &Packed, twin: &Packed, exact: &Exact, count: &mut Count) {
    if packing.bits == 16 {
        for (i, x) in exact.row.iter().enumerate() {
            let stored = f64::from(half::f16::from_bits(got.codes[i] as u16).to_f32());
            assert!((stored - x).abs() <= half_step(*x) + exact.error, "{context}: channel {i} holds {stored}, should {x}");
            count.add(got.codes[i] == twin.codes[i]);
        }
        return;
    }
    for (g, row) in exact.row.chunks_exact(group).enumerate() {
        let take = |from: &Packed| Group { scale: from.scales[g], zero: from.zeros[g], codes: from.codes[g * group..][..group].to_vec() };
        let check = match packing.trellis {
            Some(_) => check_trellis,
            None if packing.scales == Scales::Symmetric => check_symmetric,
            None => check_group,
        };
        check(&format!("{context}, group {g}"), packing, &take(got), &take(twin), row, exact.error, count);
    }
}

/// Checks numbers that share a scale: the scale is the rounding of the step, the zero and the codes
/// follow from the stored scale.
pub fn check_group(context: &str, packing: Packing, got: &Group, twin: &Group, row: &[f64], error: f64, count: &mut Count) {
    let (levels, clip) = (f64::from((1_u32 << packing.bits) - 1), f64::from(packing.clip));
    let (low, high) = row.iter().fold((f64::MAX, f64::MIN), |(l, h), x| (l.min(*x), h.max(*x)));
    let (scale, zero) = (f64::from(got.scale), f64::from(got.zero));
    let context = format!("{context} of {low}..{high}");
    let largest = clip * low.abs().max(high.abs());
    let (bound, rounding) = match packing.scales {
        Scales::Half => ((largest / 1024.0).max(2_f64.powi(-14)), half_step as fn(f64) -> f64),
        Scales::Byte => ((largest * 0.012).max(2_f64.powi(-9)), float8_step as fn(f64) -> f64),
        other => panic!("{context}: groups of {other} have no zero"),
    };
    let step = (clip * (high - low) / levels).max(bound);
    let step_error = 2.0 * error / levels.min(1024.0) + QUOTIENT_ERROR * step;
    assert!((scale - step).abs() <= rounding(step) + step_error, "{context}: the scale is {scale}, should be {step}");
    count.add(got.scale == twin.scale);
    let wanted = -clip * low / scale;
    assert!(
        zero.fract() == 0.0 && (zero - wanted).abs() <= 0.5 + error / scale + QUOTIENT_ERROR * wanted.abs(),
        "{context}: the zero is {zero}, should be {wanted}"
    );
    if got.scale == twin.scale {
        count.add(got.zero == twin.zero);
    }
    let alike = got.scale == twin.scale && got.zero == twin.zero;
    for (i, x) in row.iter().enumerate() {
        let code = f64::from(got.codes[i]);
        let quotient = x / scale;
        let error = error / scale + QUOTIENT_ERROR * quotient.abs();
        let off = (quotient + zero).clamp(0.0, levels) - code;
        assert!(off.abs() <= 0.5 + error, "{context}: number {i} is {x}, {} codes, but has code {code} at scale {scale} and zero {zero}", quotient + zero);
        // What rounding to nearest gives where no tie is in reach, and the twin's code if its scale
        // and zero are the same.
        count.add((quotient.round_ties_even() + zero).clamp(0.0, levels) == code);
        if alike {
            let twin = f64::from(twin.codes[i]);
            assert!((twin - code).abs() <= 1.0, "{context}: number {i} is {x} and has code {code}, the twin's is {twin}");
            count.add(twin == code);
        }
    }
}

/// Codes that are rounded otherwise in the rounds of a group's fit: one of the first round, and two
/// that the step, moved by it, lets cross a border in the second.
const STEP_FLIPS: f64 = 3.0;

/// What f32's sums and quotients may move a step that comes of a group's largest number, as a share
/// of it: eight operations.
const EXTENT_ERROR: f64 = 8.0 / 16_777_216.0;

/// What f32 may move a number on its way to a code, as a share of the levels' range: the sum with one
/// half and the product with the levels each round by 2^-24 of it at most.
const CODE_ERROR: f64 = 2.0 / 16_777_216.0;

/// What f32's sums may move the squared error of a group's codes, as a share of the squares of its
/// numbers: three sums of up to 256 terms in blocks of 16, each off by 16 + 16 roundings at most.
const FIT_ERROR: f64 = 3.0 * 32.0 / 16_777_216.0;

/// Of the scale of a group by f32: 32 roundings of a sum of squares or of products in blocks, each a
/// few units of 2^-24, and the quotient.
const SUMS_ERROR: f64 = 1e-5;

/// Numbers of a group that f32 may take for either of two integers, at most, for each of which all
/// groups are encoded twice as often: more are so rare that a group that has them is not looked at.
const NEAR_TIES: usize = 6;

/// Checks numbers that share a scale and are coded by a trellis: the symbols are exactly those of the
/// integers that the numbers round to, whichever of two where f32's error meets a tie; the scale is
/// the one that keeps inner products their size with them.
pub fn check_trellis(context: &str, packing: Packing, got: &Group, twin: &Group, row: &[f64], error: f64, count: &mut Count) {
    let key = packing.trellis == Some(Kind::Key);
    let squares: f64 = row.iter().map(|x| x * x).sum();
    let step = 0.44 * (squares / row.len() as f64).sqrt();
    // In sixteenths of a step. The sum of the squares is off by so much, its root by half, and the
    // quotient and the product round.
    let relative = SUMS_ERROR + QUOTIENT_ERROR + error * (row.len() as f64).sqrt() / squares.sqrt();
    let place = |i: usize| reference::trellis::channel(key, i);
    let shares: Vec<f64> = (0..row.len()).map(|i| (16.0 * row[place(i)] / step).clamp(-127.0, 127.0)).collect();
    let near: Vec<usize> = (0..row.len())
        .filter(|i| {
            let off = 16.0 * error / step + relative * shares[*i].abs();
            (shares[*i] - off).round() != (shares[*i] + off).round()
        })
        .collect();
    let symbols: Vec<u32> = (0..row.len()).map(|i| got.codes[place(i)]).collect();
    if near.len() <= NEAR_TIES {
        let found = (0..1_u32 << near.len()).any(|choice| {
            let mut integers: Vec<i32> = shares.iter().map(|x| x.round() as i32).collect();
            for (_, i) in near.iter().enumerate().filter(|(bit, _)| choice >> bit & 1 == 1) {
                let share = shares[*i];
                integers[*i] = if share.round() < share { share.ceil() } else { share.floor() } as i32;
            }
            reference::trellis::symbols(&integers) == symbols
        });
        assert!(found, "{context}: {row:?} has symbols {symbols:?}, of none of the ways to round it; {near:?} are near ties");
    }
    let levels = reference::trellis::channel_levels(key, &got.codes);
    let products: f64 = row.iter().zip(&levels).map(|(x, v)| x * (f64::from(*v) - 4.5)).sum();
    let scale = (squares / products).max(0.9 * step).min(1.3 * step);
    let relative = 2.0 * relative + SUMS_ERROR;
    let stored = f64::from(got.scale);
    assert!((stored - scale).abs() <= symmetric_step(scale) + relative * scale, "{context}: the scale is {stored}, should be {scale}");
    got.codes.iter().zip(&twin.codes).for_each(|(got, twin)| count.add(got == twin));
    count.add(got.scale == twin.scale);
}

/// Checks numbers that share a scale and have no zero: the stored scale is the one that keeps inner
/// products their size with the stored codes, held near the step; the codes are those of a step
/// that f64 would take, but for the little that another rounding on the way may move it.
pub fn check_symmetric(context: &str, packing: Packing, got: &Group, twin: &Group, row: &[f64], error: f64, count: &mut Count) {
    let half = 2_f64.powi(packing.bits as i32 - 1);
    let level = |x: f64, step: f64| (x / step).floor().clamp(-half, half - 1.0) + 0.5;
    let sum = |of: &dyn Fn(f64) -> f64| row.iter().map(|x| of(*x)).sum::<f64>();
    let squares = sum(&|x| x * x);
    let extent = row.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
    let stored = |i: usize| f64::from(got.codes[i]) - half + 0.5;
    let products: f64 = row.iter().enumerate().map(|(i, x)| x * stored(i)).sum();
    // The scale for levels of a step, and their squared error, less the squares.
    let scale_of = |products: f64, step: f64| (squares / products).max(0.9 * step).min(1.25 * step);
    let error_of = |levels: &[f64], step: f64| {
        let products: f64 = row.iter().zip(levels).map(|(x, level)| x * level).sum();
        let scale = scale_of(products, step);
        scale * (scale * levels.iter().map(|level| level * level).sum::<f64>() - 2.0 * products)
    };
    // How far from a border, in steps, f32 may still take a number for one of the other side.
    let reach = |k: f64, step: f64, moved: f64| moved * k.abs() + 2.0 * error / step + CODE_ERROR * 2.0 * half;
    // The most that the codes of a step may cost: a number at a border that changes sides changes the
    // error, since the scale is not the step.
    let most_of = |step: f64| {
        let levels: Vec<f64> = row.iter().map(|x| level(*x, step)).collect();
        let error = error_of(&levels, step);
        let flips = row.iter().enumerate().map(|(i, x)| {
            let border = (x / step).round();
            let near = (x / step - border).abs() <= reach(border, step, EXTENT_ERROR) && border.abs() < half;
            let mut other = levels.clone();
            other[i] = 2.0 * border - levels[i];
            if near { (error_of(&other, step) - error).max(0.0) } else { 0.0 }
        });
        error + flips.sum::<f64>()
    };
    // Each step that may be taken, and by how much of itself it may be off.
    let (steps, least): (Vec<(f64, f64)>, f64) = if packing.bits == 2 {
        let mut step = 0.9957 * (squares / row.len() as f64).sqrt();
        for _ in 0..2 {
            step = sum(&|x| x * level(x, step)) / sum(&|x| level(x, step).powi(2));
        }
        // The step is a quotient of sums: a number at border k, k steps from zero, that changes
        // sides moves it by k parts in the sum of the squared levels.
        (vec![(step, STEP_FLIPS * (half - 1.0) / sum(&|x| level(x, step).powi(2)))], f64::INFINITY)
    } else {
        let shares: &[f64] = match packing.bits {
            3 => &[0.95, 0.8, 0.67],
            4 => &[0.97, 0.87, 0.77],
            _ => &[1.0],
        };
        let step = |share: &f64| 2.0 * share * extent / (2.0 * half - 1.0);
        let least = shares.iter().map(|share| most_of(step(share))).fold(f64::INFINITY, f64::min);
        (shares.iter().map(|share| (step(share), EXTENT_ERROR)).collect(), least)
    };
    let of = |(step, moved): (f64, f64)| {
        let code_fits = |x: f64, code: f64| {
            // The number is off, and so is the largest, from which the step comes.
            let border = |k: f64| (k - reach(k, step, moved), k + reach(k, step, moved));
            (x / step >= border(code - half).0 || code == 0.0) && (x / step <= border(code - half + 1.0).1 || code == 2.0 * half - 1.0)
        };
        let scale = if packing.bits == 8 { step } else { scale_of(products, step) };
        let relative = moved + 2.0 * error * (row.len() as f64).sqrt() / squares.sqrt() + 1e-5;
        let scale_fits = (f64::from(got.scale) - scale).abs() <= symmetric_step(scale) + relative * scale;
        row.iter().zip(&got.codes).all(|(x, code)| code_fits(*x, f64::from(*code))) && scale_fits
    };
    let Some((step, _)) = steps.iter().copied().find(|step| of(*step)) else {
        let scales: Vec<f64> = steps.iter().map(|(step, _)| scale_of(products, *step)).collect();
        panic!("{context}: {row:?} has codes {:?} and scale {}, of none of the steps {steps:?} with scales {scales:?}", got.codes, got.scale);
    };
    let cost = error_of(&(0..row.len()).map(stored).collect::<Vec<f64>>(), step);
    let slack = FIT_ERROR * squares + 8.0 * error * squares.sqrt();
    assert!(cost <= least + slack || packing.bits == 8, "{context}: the codes cost {cost}, those of another step {least}");
    for (i, x) in row.iter().enumerate() {
        count.add(level(*x, step) + half - 0.5 == f64::from(got.codes[i]));
        count.add(got.codes[i] == twin.codes[i]);
    }
    count.add(got.scale == twin.scale);
}
