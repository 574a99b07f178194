//! `attend_matrices` computes what `attend_prefill` does, by cooperative matrices, where the device
//! has them; elsewhere there is nothing to test.
//!
//! - It agrees with its twin on the same query rows and unpacked tokens, up to the rounding of queries
//!   and weights to halves.
//! - The output is f64 attention over the stored rows, up to the rounding of queries, keys, weights and
//!   values to halves.
//! - It writes the rows of its items and no others.
//! - A row whose scores grow with the position loses nothing, and neither does one beside it.

use wgkv_testing::*;

#[test]
fn attend_matrices_agrees_with_its_reference() {
    let gpu = gpu();
    if !gpu.capability().matrices {
        return println!("{} has no cooperative matrices", gpu.adapter_name());
    }
    for case in prefill_cases().into_iter().filter(|case| [64, 128].contains(&case.shape.head_dim)) {
        let mut walk = Walk::new(&gpu, case);
        assert!(walk.plan().matrices());
        let steps = walk.case.steps.clone();
        for chunks in &steps {
            let taken = walk.take(chunks, true);
            check_prefill(&walk, &taken);
            check_prefilled(&walk, &taken);
        }
    }
}

/// Keys that grow with the position raise the peaks of most rows at most tiles.
#[test]
fn peaks_that_grow_lose_nothing() {
    let gpu = gpu();
    for (head_dim, query_heads) in [(64, 3), (128, 4)] {
        for matrices in [false, true] {
            let case = case("peaks that grow", head_dim, query_heads, 1, Format::f16()).rope(Rope::none());
            let mut walk = Walk::new(&gpu, if matrices { case } else { case.no_matrices() });
            if matrices && !walk.plan().matrices() {
                continue;
            }
            let tokens = 300;
            let [mut keys, values, mut queries] = walk.draw(tokens);
            // A score is some log2 units a token more than the one before, for queries that point
            // along the first channel; the others are of another sign.
            for (t, key) in keys.chunks_exact_mut(head_dim as usize).enumerate() {
                key[0] = t as f32 / 8.0;
            }
            for (r, query) in queries.chunks_exact_mut(head_dim as usize).enumerate() {
                query[0] = if r % 3 == 0 { -4.0 } else { 2.0 * (r % 7) as f32 };
            }
            let taken = walk.take_rows(&[(0, tokens)], [keys, values, queries], true);
            check_prefill(&walk, &taken);
            check_prefilled(&walk, &taken);
        }
    }
}
