//! How long each rule takes to choose the bits of every head of a model:
//! `cargo bench --bench bit_rules`.
//!
//! The units are those of Llama-3.1-8B, 512 of them with 10 candidates each, with invented numbers.
//! A rule runs on the host alone and should take less than a second, so that budgets can be tried
//! one after another.
#![allow(clippy::unwrap_used, reason = "a bench may stop at the first surprise")]

use std::time::Instant;
use wgkv::Bits;
use wgkv::bits::{BitBudget, BitPlan, Sensitivity};
use wgkv_testing::{BIT_RULES, full_rope, hadamard, made_up, seeded, with_norms};

fn main() {
    let (mut random, _) = seeded();
    let (shape, format) = (full_rope(32, 32, 8, 128), hadamard(Bits::Four, Bits::Four, 128));
    let candidates = Sensitivity::default_candidates(&shape, &format);
    let sensitivity = made_up(&mut random, &shape, &format, &candidates);
    let sensitivity = with_norms(&mut random, sensitivity);
    println!("{:>32} {:>8} {:>10}", "rule", "budget", "ms");
    for rule in &BIT_RULES[..6] {
        for budget in [2.5, 3.0, 3.5, 4.0] {
            let start = Instant::now();
            BitPlan::choose(&shape, &sensitivity, BitBudget::BitsPerElement(budget), *rule).unwrap();
            println!("{:>32} {budget:>8} {:>10.2}", rule.to_string(), start.elapsed().as_secs_f64() * 1e3);
        }
    }
}
