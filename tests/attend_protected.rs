//! `attend_protected` computes, for each decoding row, the largest score, the sum of the weights and
//! the weighted row of values over tiles of the tokens that its sequence keeps in f16.
//!
//! - It agrees with its twin on the same query rows and f16 rows, up to f32's rounding.
//! - It writes the rows of its items and no others.

use wgkv_testing::*;

#[test]
fn attend_protected_agrees_with_its_reference() {
    let gpu = gpu();
    for case in prefill_cases().into_iter().filter(|case| case.protection != Protection::NONE) {
        let mut walk = Walk::new(&gpu, case);
        let steps = walk.case.steps.clone();
        for chunks in &steps {
            walk.take(chunks, false);
            let decode: Vec<(usize, u32)> = chunks.iter().map(|(sequence, _)| (*sequence, 1)).collect();
            let taken = walk.take(&decode, true);
            assert!(taken.step.words().attend_prefill.is_empty(), "nothing prefills");
            check_prefill(&walk, &taken);
        }
    }
}
