//! Many numbers as three: their mean, and the least and the greatest of them.

/// What is drawn of the numbers at one place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Band {
    pub(super) mean: f64,
    pub(super) least: f64,
    pub(super) greatest: f64,
}

impl Band {
    /// Of the finite ones among `values`, if there are any. The others are added to `left_out`.
    pub(super) fn of(values: impl IntoIterator<Item = f64>, left_out: &mut usize) -> Option<Self> {
        let (mut sum, mut count, mut least, mut greatest) = (0.0, 0_usize, f64::INFINITY, f64::NEG_INFINITY);
        for value in values {
            if value.is_finite() {
                sum += value;
                count += 1;
                least = least.min(value);
                greatest = greatest.max(value);
            } else {
                *left_out += 1;
            }
        }
        (count > 0).then(|| Self { mean: sum / count as f64, least, greatest })
    }

    /// Where nobody counts what was left out.
    pub(super) fn of_finite(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        Self::of(values, &mut 0)
    }

    pub(super) fn ends(self) -> [f64; 2] {
        [self.least, self.greatest]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_not_finite_are_counted_and_left_out() {
        let mut left_out = 0;
        let band = Band::of([1.0, f64::NAN, 5.0, f64::INFINITY, 0.0], &mut left_out);
        assert_eq!(band, Some(Band { mean: 2.0, least: 0.0, greatest: 5.0 }));
        assert_eq!(left_out, 2);
        assert_eq!(Band::of_finite([f64::NAN]), None);
    }
}
