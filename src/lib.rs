#![doc = include_str!("../README.md")]

mod alignment;
pub mod allocate;
mod allocation;
mod budget;
mod cache;
mod calibration;
mod centre;
mod context_parallel;
mod devices;
mod error;
mod format;
pub mod fuse;
pub mod gpu;
pub mod kernel;
mod layout;
mod plan;
mod pool;
mod position;
mod prefixes;
mod protection;
pub mod reference;
mod rows;
mod sensitivity;
mod shape;
mod sharded;
mod status;
mod step;
#[cfg(feature = "store")]
mod store;
mod tensors;
mod trace;
mod traffic;

pub use alignment::{Alignment, Criterion};
pub use allocation::{Allocation, Allocator, Allowance, Grain, Kind, Report, Unit};
pub use budget::Budget;
pub use cache::{Cache, Memory};
pub use calibration::{Calibration, Collector, Reach};
pub use centre::{Centre, CentreCollector};
pub use context_parallel::{ContextParallel, ContextSequence, ContextStep};
pub use error::{Error, Result};
pub use format::{Bits, Codec, Format, Precision, Scales};
pub use gpu::{Capability, Gpu};
pub use layout::{PAGE_TOKENS, PageLayout};
pub use plan::{Cost, Plan, Restore, Slab};
pub use pool::{Admission, Sequence};
pub use prefixes::{Begun, PrefixCounters, Prefixes};
pub use protection::{Protection, Sinks};
pub use rows::{Element, Rows};
pub use sensitivity::{Probe, Sensitivity};
pub use shape::{Rope, RopeLayout, Shape};
pub use sharded::{Sharded, ShardedSequence, ShardedStep};
pub use status::{Flag, Status};
pub use step::{Chunk, Part, Step};
#[cfg(feature = "store")]
pub use store::{PrefixStore, object_store};
pub use traffic::{AlignmentReport, Certificate, Traffic};
