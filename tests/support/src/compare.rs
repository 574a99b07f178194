//! Comparison of rows, and of errors.

use wgkv::{Error, Result};

/// Returns the length of a row.
pub fn norm(row: &[f32]) -> f32 {
    row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt() as f32
}

/// Asserts `|got - want| <= atol + rtol |want|` everywhere, and that nothing is NaN.
#[track_caller]
pub fn close(name: &str, got: &[f32], want: &[f32], atol: f32, rtol: f32, seed: u64) {
    assert_eq!(got.len(), want.len(), "{name}: lengths");
    let mut worst: Option<(usize, f32)> = None;
    for (i, (a, b)) in got.iter().zip(want).enumerate() {
        let excess = (a - b).abs() / (atol + rtol * b.abs());
        // A difference of 0 is right also where nothing is allowed.
        if a != b && (excess.is_nan() || excess > 1.0) && worst.is_none_or(|(_, w)| excess.is_nan() || excess > w) {
            worst = Some((i, excess));
        }
    }
    if let Some((i, excess)) = worst {
        let (a, b) = (got[i], want[i]);
        panic!(
            "{name}: number {i} is {a:e}, wanted {b:e}; they differ by {:e}, allowed are {:e} ({excess:.2} times). WGKV_SEED={seed}",
            (a - b).abs(),
            atol + rtol * b.abs()
        );
    }
}

/// Asserts that it is this error.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(result: Result<T>, want: &Error) {
    let Err(error) = result else { panic!("should be refused: {want}") };
    assert_eq!(error, *want);
}

/// Asserts that `doing` something with a file failed because there is no such file.
#[track_caller]
pub fn no_such_file(file: &std::path::Path, result: Result<()>, doing: &str) {
    let error = result.expect_err("there is no such file");
    let Error::Io { doing: did, path, source } = &error else { panic!("{doing} {} must fail, but: {error:?}", file.display()) };
    assert_eq!((*did, path.as_str(), source.get().kind()), (doing, file.display().to_string().as_str(), std::io::ErrorKind::NotFound));
}
