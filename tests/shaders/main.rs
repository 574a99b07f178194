//! Every kernel in every variant, by naga alone: no GPU, any machine.
//!
//! The contract of a variant: its parts join into one module whose constants are those that its files declare; naga
//! accepts it with only the capabilities that the variant declares; it stays within WebGPU's default limits; its bindings
//! and its parameters are those of the Rust side; and it translates to every language that a driver may want. House rules
//! that no compiler knows are checked on the parsed module.
//!
//! All variants are looked at before a test fails, so that one run tells everything.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod linking;
mod listing;
mod plans;
mod proven;
mod reflection;
mod slots;
mod translation;
