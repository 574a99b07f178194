//! `append_block` packs what `append` packs, where it takes its place, and as its own twin does.
//! The cases and the checks are those of tests/append.rs.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use wgkv_testing::*;

#[test]
fn append_block_agrees_with_its_reference_at_every_bit_width() {
    let gpu = gpu();
    let mut blocks = 0;
    for case in append_cases() {
        let walk = Walk::new(&gpu, case);
        if walk.plan().slabs(0).iter().any(|slab| walk.plan().packs_blocks(slab)) {
            blocks += 1;
            check_appends(walk);
        }
    }
    assert!(blocks >= 18, "{blocks} cases were packed by blocks: this test needs an adapter with subgroups of 8 lanes or more; lavapipe has them");
}
