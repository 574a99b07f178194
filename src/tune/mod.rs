//! What is learned from a model: the order of channels, means and weights, the errors of each
//! precision, and the bits to spend on each.

mod bit_rule;
mod columns;
pub mod fuse;
mod means_collector;
mod order_collector;
mod sensitivity;
pub mod solve;

pub use bit_rule::{BitBudget, BitRule, Grain};
pub use means_collector::MeansCollector;
pub use order_collector::OrderCollector;
pub use sensitivity::{Probe, Sensitivity};
