//! Dense arithmetic on rows of f32, in an order of operations that is the same on every machine.

/// Lanes that are summed apart, so that a compiler can use vectors without changing a sum.
const LANES: usize = 8;

/// Rows that share one walk over a weight.
const TOGETHER: usize = 4;

/// `[rows, columns]`, row after row.
#[derive(Clone, Debug)]
pub struct Matrix {
    columns: usize,
    numbers: Vec<f32>,
}

/// Dot products of one row with `N` others of the same length.
fn dots<const N: usize>(weight: &[f32], rows: [&[f32]; N]) -> [f32; N] {
    let mut sums = [[0.0_f32; LANES]; N];
    let (weights, rest) = weight.as_chunks::<LANES>();
    let chunks = rows.map(|row| row.as_chunks::<LANES>());
    for (i, w) in weights.iter().enumerate() {
        for (sum, (row, _)) in sums.iter_mut().zip(&chunks) {
            for ((s, x), w) in sum.iter_mut().zip(&row[i]).zip(w) {
                *s += x * w;
            }
        }
    }
    let mut all = [0.0; N];
    for ((sum, lanes), (_, row)) in all.iter_mut().zip(sums).zip(&chunks) {
        *sum = lanes.iter().sum::<f32>() + row.iter().zip(rest).map(|(x, w)| x * w).sum::<f32>();
    }
    all
}

impl Matrix {
    /// Takes its numbers.
    pub fn new(columns: usize, numbers: Vec<f32>) -> Self {
        Self { columns, numbers }
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.numbers[row * self.columns..][..self.columns]
    }

    /// `rows · selfᵀ`: of every row of `columns` numbers, the dot products with all rows of this matrix.
    pub fn apply(&self, rows: &[f32]) -> Vec<f32> {
        let (outputs, tokens) = (self.numbers.len() / self.columns, rows.len() / self.columns);
        let mut out = vec![0.0; tokens * outputs];
        let row = |token: usize| &rows[token * self.columns..][..self.columns];
        for (n, weight) in self.numbers.chunks_exact(self.columns).enumerate() {
            let mut token = 0;
            while token + TOGETHER <= tokens {
                let products = dots(weight, std::array::from_fn::<_, TOGETHER, _>(|i| row(token + i)));
                for (i, product) in products.into_iter().enumerate() {
                    out[(token + i) * outputs + n] = product;
                }
                token += TOGETHER;
            }
            for token in token..tokens {
                [out[token * outputs + n]] = dots(weight, [row(token)]);
            }
        }
        out
    }
}

/// Every row divided by its root mean square, times the weight.
pub fn rms_norm(rows: &[f32], weight: &[f32], epsilon: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(rows.len());
    for row in rows.chunks_exact(weight.len()) {
        let [square] = dots(row, [row]);
        let root = (square / row.len() as f32 + epsilon).sqrt();
        out.extend(row.iter().zip(weight).map(|(x, w)| x / root * w));
    }
    out
}

/// Adds to every number.
pub fn add(to: &mut [f32], other: &[f32]) {
    to.iter_mut().zip(other).for_each(|(x, y)| *x += y);
}

/// `silu(gate) · up`, in place of the gate.
pub fn gate(gate: &mut [f32], up: &[f32]) {
    gate.iter_mut().zip(up).for_each(|(x, y)| *x = *x / (1.0 + (-*x).exp()) * y);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_is_that_of_its_definition_for_every_number_of_rows() {
        let (columns, outputs) = (11, 3);
        let numbers: Vec<f32> = (0..columns * outputs).map(|i| (i % 7) as f32 - 3.0).collect();
        let matrix = Matrix::new(columns, numbers.clone());
        for tokens in [0, 1, 4, 6] {
            let rows: Vec<f32> = (0..tokens * columns).map(|i| (i % 5) as f32 - 2.0).collect();
            let want: Vec<f32> = rows
                .chunks_exact(columns)
                .flat_map(|row| numbers.chunks_exact(columns).map(|weight| row.iter().zip(weight).map(|(a, b)| a * b).sum()))
                .collect();
            assert_eq!(matrix.apply(&rows), want);
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbours() {
        let matrix = Matrix::new(20, (0..60).map(|i| (i as f32).sin()).collect());
        let rows: Vec<f32> = (0..100).map(|i| (i as f32).cos()).collect();
        let alone: Vec<f32> = rows.chunks_exact(20).flat_map(|row| matrix.apply(row)).collect();
        assert_eq!(matrix.apply(&rows), alone);
    }

    #[test]
    fn a_normed_row_has_a_root_mean_square_of_one() {
        let out = rms_norm(&[3.0, -4.0], &[1.0, 2.0], 0.0);
        let root = 12.5_f32.sqrt();
        assert_eq!(out, [3.0 / root, -4.0 / root * 2.0]);
    }
}
