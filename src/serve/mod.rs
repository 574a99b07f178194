//! Several texts or several devices: prefixes that sequences share, snapshots in a store, caches
//! spread over devices.

mod context_parallel;
mod devices;
mod head_parallel;
mod prefix_index;
#[cfg(feature = "store")]
mod snapshot_store;

pub use context_parallel::{ContextParallel, ContextSequence, ContextStep};
pub use head_parallel::{HeadParallel, HeadSequence, HeadStep};
pub use prefix_index::{Begun, PrefixCounters, PrefixIndex};
#[cfg(feature = "store")]
pub use snapshot_store::{SnapshotStore, object_store};
