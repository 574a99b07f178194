//! Several texts, several devices or several kinds of layers: prefixes that sequences share,
//! snapshots in a store, caches spread over devices, one cache of layers that differ.

mod context_parallel;
mod devices;
mod head_parallel;
mod kept;
mod layer_map;
mod layered_cache;
mod layered_plan;
mod layered_snapshot;
mod prefix_index;
#[cfg(feature = "store")]
mod snapshot_store;
mod together;

pub use context_parallel::{ContextParallel, ContextSequence, ContextStep};
pub use head_parallel::{HeadParallel, HeadSequence, HeadStep};
pub use kept::{PrefixCache, PrefixPlan};
pub use layered_cache::{LayeredCache, LayeredStep};
pub use layered_plan::{LayeredPlan, LayeredPlanBuilder};
pub use prefix_index::{Begun, PrefixCounters, PrefixIndex};
#[cfg(feature = "store")]
pub use snapshot_store::{SnapshotStore, object_store};
