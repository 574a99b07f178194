//! Axes with their ticks chosen for the numbers at hand: plotters' own put a fixed number of ticks on a logarithmic axis, however
//! short or long it is, and know no axis of unevenly spaced bit widths.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

/// Decades below the greatest number that a logarithmic axis shows at most: what lies lower is rounding noise, and would press
/// everything else into the top of the picture.
const DECADES: f64 = 8.0;
/// How far apart the numbers of an axis may lie, as a factor, before it is made logarithmic.
const WIDE: f64 = 30.0;

/// One axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    log: bool,
    ticks: Vec<(f64, String)>,
}

impl Axis {
    /// Linear from zero, for numbers that are not negative.
    pub(super) fn linear(values: impl IntoIterator<Item = f64>, ticks: usize) -> Self {
        let (low, high) = ends(values.into_iter().filter(|value| value.is_finite())).unwrap_or((0.0, 1.0));
        let low = low.min(0.0);
        let high = if high > low { (high + (high - low) * 0.06).min(f64::MAX) } else { low + 1.0 };
        Self { low, high, log: false, ticks: round_ticks(low, high, ticks) }
    }

    /// Logarithmic over the positive ones among the numbers.
    pub(super) fn log(values: impl IntoIterator<Item = f64>, ticks: usize) -> Self {
        let (low, high) = ends(values.into_iter().filter(|&value| drawable(value))).unwrap_or((0.1, 1.0));
        let low = low.max(high / 10_f64.powf(DECADES));
        let margin = (high / low).powf(0.05).max(1.15);
        let (low, high) = ((low / margin).max(f64::MIN_POSITIVE), (high * margin).min(f64::MAX));
        Self { low, high, log: true, ticks: log_ticks(low, high, ticks) }
    }

    /// Logarithmic if the numbers lie far apart, linear otherwise.
    pub(super) fn fitting(values: impl IntoIterator<Item = f64>, ticks: usize) -> Self {
        let values: Vec<f64> = values.into_iter().collect();
        match ends(values.iter().copied().filter(|&value| drawable(value))) {
            Some((low, high)) if high / low > WIDE => Self::log(values, ticks),
            _ => Self::linear(values, ticks),
        }
    }

    /// Places 0, 1, 2… with a name each; as many names are shown as `ticks` allows.
    pub(super) fn places(names: &[u32], ticks: usize) -> Self {
        let steps = [1, 2, 5, 10, 20, 50, 100];
        let step = steps.into_iter().find(|step| names.len().div_ceil(*step) <= ticks.max(1)).unwrap_or(names.len());
        let ticks = names.iter().enumerate().step_by(step.max(1)).map(|(place, name)| (place as f64, name.to_string())).collect();
        Self { low: -0.5, high: names.len().max(1) as f64 - 0.5, log: false, ticks }
    }

    /// Places 0, 1, 2… with these names.
    pub(super) fn named(names: &[&str]) -> Self {
        let ticks = names.iter().enumerate().map(|(place, name)| (place as f64, (*name).to_owned())).collect();
        Self { low: -0.5, high: names.len().max(1) as f64 - 0.5, log: false, ticks }
    }

    /// Between two ends, with the ticks given.
    pub(super) fn marked(low: f64, high: f64, ticks: &[u32]) -> Self {
        Self { low, high, log: false, ticks: ticks.iter().map(|&tick| (f64::from(tick), tick.to_string())).collect() }
    }

    /// Where its ticks are, and their names.
    pub(super) fn ticks(&self) -> &[(f64, String)] {
        &self.ticks
    }

    pub(super) fn is_log(&self) -> bool {
        self.log
    }

    /// Whether a number lies on it.
    pub(super) fn shows(&self, value: f64) -> bool {
        value.is_finite() && self.low.min(self.high) <= value && value <= self.high.max(self.low)
    }

    /// How far along it a number lies, from 0 to 1; numbers beyond an end are put at the end.
    pub(super) fn part(&self, value: f64) -> f64 {
        let part = if self.log {
            (value.max(f64::MIN_POSITIVE).ln() - self.low.ln()) / (self.high.ln() - self.low.ln())
        } else {
            (value - self.low) / (self.high - self.low)
        };
        if part.is_nan() { 0.0 } else { part.clamp(0.0, 1.0) }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        from + (self.part(*value) * f64::from(to - from)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        // Grid lines at the ticks only: a finer grid is more ink than help.
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.iter().map(|(value, _)| *value).collect() }
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        self.ticks.iter().find(|(tick, _)| tick == value).map(|(_, name)| name.clone()).unwrap_or_default()
    }
}

/// Whether a logarithmic axis has a place for it.
pub(super) fn drawable(value: f64) -> bool {
    value.is_finite() && value >= f64::MIN_POSITIVE
}

fn ends(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |ends, value| match ends {
        None => Some((value, value)),
        Some((low, high)) => Some((value.min(low), value.max(high))),
    })
}

/// Multiples of a round step.
fn round_ticks(low: f64, high: f64, most: usize) -> Vec<(f64, String)> {
    let rough = (high - low) / most.max(1) as f64;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= rough * 0.999).unwrap_or(10.0 * power);
    if !step.is_finite() || step <= 0.0 {
        return Vec::new();
    }
    let first = (low / step).ceil();
    let values: Vec<f64> = (0..=most).map(|index| (first + index as f64) * step).filter(|value| *value <= high).collect();
    let greatest = values.iter().fold(0.0_f64, |greatest, value| greatest.max(value.abs()));
    if !(1e-3..1e5).contains(&greatest) {
        return values.into_iter().map(|value| (value, short(value))).collect();
    }
    let digits = (-step.log10().floor()).max(0.0) as usize;
    values.into_iter().map(|value| (value, format!("{value:.digits$}"))).collect()
}

/// Powers of ten, or round numbers between them where the axis is short.
fn log_ticks(low: f64, high: f64, most: usize) -> Vec<(f64, String)> {
    let most = most.max(1);
    let (first, last) = (low.log10().ceil() as i32, high.log10().floor() as i32);
    let powers = (last - first + 1).max(0) as usize;
    if powers >= 3 {
        let step = powers.div_ceil(most);
        let exponents: Vec<i32> = (first..=last).filter(|exponent| exponent.rem_euclid(step as i32) == 0).collect();
        let plain = exponents.iter().all(|exponent| (-2..=4).contains(exponent));
        let name = |exponent: i32| if plain { short(10_f64.powi(exponent)) } else { power(exponent) };
        return exponents.into_iter().map(|exponent| (10_f64.powi(exponent), name(exponent))).collect();
    }
    for factors in [&[1.0, 2.0, 5.0][..], &[1.0, 3.0]] {
        let decades = (low.log10().floor() as i32)..=last.max(first);
        let between = decades.flat_map(|exponent| factors.iter().map(move |factor| factor * 10_f64.powi(exponent)));
        let ticks: Vec<f64> = between.filter(|value| low <= *value && *value <= high).collect();
        if (3..=most).contains(&ticks.len()) {
            return ticks.into_iter().map(|value| (value, short(value))).collect();
        }
    }
    round_ticks(low, high, most.min(4))
}

/// Ten to a power, as it is written by hand.
fn power(exponent: i32) -> String {
    const DIGITS: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    exponent.to_string().chars().fold("10".to_owned(), |mut text, digit| {
        text.push(digit.to_digit(10).map_or('⁻', |digit| DIGITS[digit as usize]));
        text
    })
}

/// A number in three digits.
pub(super) fn short(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    if !value.is_finite() {
        return "–".to_owned();
    }
    let exponent = value.abs().log10().floor() as i32;
    if (-3..5).contains(&exponent) {
        let text = format!("{value:.digits$}", digits = (2 - exponent).max(0) as usize);
        return if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text };
    }
    let factor = value / 10_f64.powi(exponent);
    if (factor - 1.0).abs() < 5e-3 { power(exponent) } else { format!("{}·{}", short(factor), power(exponent)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(axis: &Axis) -> Vec<&str> {
        axis.ticks().iter().map(|(_, name)| name.as_str()).collect()
    }

    #[test]
    fn a_long_logarithmic_axis_has_ticks_at_powers_of_ten() {
        assert_eq!(names(&Axis::log([1e-5, 1.0], 7)), ["10⁻⁵", "10⁻⁴", "10⁻³", "10⁻²", "10⁻¹", "10⁰"]);
        assert_eq!(names(&Axis::log([0.2, 2000.0], 7)), ["1", "10", "100", "1000"]);
        assert!(names(&Axis::log([1e-300, 1e300], 6)).len() <= 6);
    }

    #[test]
    fn a_short_one_has_round_numbers() {
        assert_eq!(names(&Axis::log([30.0, 400.0], 7)), ["50", "100", "200"]);
        for values in [[5.0, 5.0], [1.0, 1.2], [3.1e-9, 3.2e-9]] {
            let axis = Axis::log(values, 6);
            assert!((2..=6).contains(&axis.ticks().len()), "{values:?}: {:?}", axis.ticks());
        }
    }

    #[test]
    fn numbers_that_lie_far_apart_make_it_logarithmic() {
        assert!(!Axis::fitting([1.0, 29.0], 5).is_log());
        assert!(Axis::fitting([1.0, 31.0], 5).is_log());
        assert!(!Axis::fitting([], 5).is_log());
    }

    #[test]
    fn odd_numbers_leave_an_axis_that_can_be_drawn() {
        let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -1.0, f64::MAX, f64::MIN_POSITIVE, 5e-324];
        for count in 0..=odd.len() {
            for axis in [Axis::linear(odd[..count].to_vec(), 5), Axis::log(odd[..count].to_vec(), 5), Axis::fitting(odd[..count].to_vec(), 5)] {
                assert!(axis.low < axis.high && axis.ticks().len() <= 6, "{axis:?}");
                for value in odd {
                    assert!((0..=100).contains(&axis.map(&value, (0, 100))));
                }
            }
        }
    }

    #[test]
    fn places_name_as_many_as_fit() {
        assert_eq!(names(&Axis::places(&[0, 1, 2], 12)), ["0", "1", "2"]);
        assert_eq!(names(&Axis::places(&(0..80).collect::<Vec<_>>(), 12)), ["0", "10", "20", "30", "40", "50", "60", "70"]);
        assert!(names(&Axis::places(&[], 12)).is_empty());
    }

    #[test]
    fn numbers_are_short() {
        let cases = [(0.0, "0"), (1234.5, "1234"), (0.05, "0.05"), (12.34, "12.3"), (1e-6, "10⁻⁶"), (2.5e-7, "2.5·10⁻⁷"), (100.0, "100"), (3e8, "3·10⁸")];
        for (value, text) in cases {
            assert_eq!(short(value), text);
        }
    }
}
