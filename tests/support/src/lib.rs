//! What wgkv's tests and benches share: a device, seeded numbers, comparison; cases that are walked
//! step by step, with all that kernels read and wrote; texts that caches read; files in their
//! parts; for benches, caches that are filled and timed.
//!
//! A helper that finds something amiss panics: that fails the test.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a helper fails the test that calls it")]

mod aligned_cases;
mod appends;
pub mod bench;
mod bit_plans;
mod case;
mod compare;
mod device;
mod exact;
mod files;
mod json;
mod packed;
mod prefill;
mod random;
mod rounding;
mod text;
mod walk;

pub use aligned_cases::*;
pub use appends::*;
pub use bit_plans::*;
pub use case::*;
pub use compare::*;
pub use device::*;
pub use exact::*;
pub use files::*;
pub use json::*;
pub use packed::*;
pub use prefill::*;
pub use random::*;
pub use rounding::*;
pub use text::*;
pub use walk::*;
pub use wgkv::aligned::*;
pub use wgkv::bits::*;
pub use wgkv::devices::*;
pub use wgkv::learned::*;
pub use wgkv::low_level::*;
pub use wgkv::prefix::*;
pub use wgkv::*;
