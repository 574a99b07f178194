//! `append_block` packs what `append` packs, where it takes its place, and as its own twin does: the cases and what must hold are those of
//! tests/append.rs.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

mod support;

use support::*;
use wgkv::kernel::append_block;
use wgkv::*;

#[test]
fn append_block_agrees_with_its_reference_at_every_bit_width() {
    let gpu = gpu();
    let mut blocks = 0;
    for case in append_cases() {
        let start = std::time::Instant::now();
        let steps = case.steps.clone();
        let mut walk = Walk::new(&gpu, case);
        let suits = walk.plan().slabs(0).iter().filter(|slab| append_block::suits(walk.plan(), slab)).count();
        if suits == 0 {
            continue;
        }
        blocks += 1;
        let mut count = Count::default();
        for chunks in &steps {
            let taken = walk.take(chunks, false);
            check_append(&walk, &taken, &mut count);
        }
        let ties = if [Codec::F16, Codec::AlignedF16].contains(&walk.case.format.codec()) { HALF_TIES } else { TIES };
        assert!(count.all > 1000 && (count.ties as f64) < ties * count.all as f64, "{count:?} rounded otherwise than the twin. WGKV_SEED={}", walk.seed);
        assert!(pollster::block_on(walk.cache.status()).unwrap().is_clean());
        println!("  {count:?} {:?}", start.elapsed());
    }
    assert!(blocks >= 18, "{blocks} cases were packed by blocks: this test needs an adapter with subgroups of 8 lanes or more; lavapipe has them");
}
