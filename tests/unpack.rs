//! `unpack` makes halves of the keys and values that prefilling rows see, whatever they are stored as.
//!
//! - It agrees with its twin: exactly where a number is a scale times a code, up to the rounding of
//!   f32 where a mean is added or a rotation undone.
//! - What is stored in f16 comes out bit for bit.
//! - It writes its tiles, all of each, and nothing else; places without a token are zeros.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use wgkv::low_level::reference;
use wgkv_testing::*;

/// Error of a number that is a sum: half a unit in the last place of a half, where f32's error meets a
/// tie between two; 2^-11 of the number, and below 2^-14 of that unit.
const SUM_ERROR: f32 = 1.0 / 1024.0;

/// Of a small number that is a difference of large ones: f32's rounding of magnitudes up to 30, through
/// two factors of a rotation.
const CANCELLED_ERROR: f32 = 1e-5;

#[test]
fn unpack_agrees_with_its_reference() {
    let gpu = gpu();
    for case in prefill_cases() {
        let mut walk = Walk::new(&gpu, case);
        let steps = walk.case.steps.clone();
        for chunks in &steps {
            let taken = walk.take(chunks, true);
            let words = taken.step.words();
            let mut twin = vec![POISON; taken.unpacked.len()];
            for (((params, items), c), pages) in words.unpack.iter().zip(&walk.slab_constants).zip(&taken.after.pages) {
                let State { marks, key_scales, protected_rows, .. } = &taken.after;
                reference::unpack(params, c, *items, &words.tables, &walk.turns, marks, key_scales, pages, protected_rows, &mut twin);
            }
            let sums = walk.constants.restore || walk.constants.position_quads > 0;
            for (i, (got, want)) in taken.unpacked.iter().zip(&twin).enumerate().filter(|(_, (got, want))| got != want) {
                let name = format!("{}: word {i}", walk.case.why);
                assert!(sums && ![*got, *want].contains(&POISON), "{name} is {got:x}, wanted {want:x}; WGKV_SEED={}", walk.seed);
                let [got, want] = [got, want].map(|word| reference::half::unpack(*word));
                close(&name, &got, &want, CANCELLED_ERROR, SUM_ERROR, walk.seed);
            }
        }
    }
}
