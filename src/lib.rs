#![doc = include_str!("../docs/guide_links.md")]
#![doc = include_str!("../README.md")]

mod cache;
mod error;
mod format;
mod gpu;
mod kernel;
mod plan;
mod serve;
mod tune;

pub use cache::{Admission, Cache, Chunk, Defect, Flag, Memory, Sequence, Status, Step, step_together};
pub use error::{Error, IoError, Result, Thing};
pub use format::{Bits, ChannelOrder, Code, Codec, Element, Format, Means, PAGE_TOKENS, Precision, Protection, Rope, RopeLayout, Scales, Shape, Sinks};
pub use gpu::{Capability, Gpu, RowLayout, Rows};
pub use plan::{Capacity, Cost, Plan, PlanBuilder, Span, Storage};
pub use wgpu;

/// The pages of `docs/`: how the crate is built, what each codec stores, how to serve with it, and
/// how it was measured and tested. They exist in this documentation only.
#[cfg(any(doc, doctest))]
pub mod guide {
    /// Includes a page, with the links between pages first, so that they win over those at its end,
    /// which are for reading the file as it lies.
    macro_rules! page {
        ($name:ident, $file:literal) => {
            #[doc = include_str!("../docs/guide_links.md")]
            #[doc = include_str!($file)]
            pub mod $name {}
        };
    }

    page!(architecture, "../docs/architecture.md");
    page!(codecs, "../docs/codecs.md");
    page!(serving, "../docs/serving.md");
    page!(rotatekv, "../docs/rotatekv.md");
    page!(kv_adaquant, "../docs/kv-adaquant.md");
    page!(alignedkv, "../docs/alignedkv.md");
    page!(performance, "../docs/performance.md");
    page!(reliability, "../docs/reliability.md");
    page!(testing, "../docs/testing.md");
}

/// Different bits for layers, KV heads, keys and values: what each precision costs in accuracy, and
/// rules that choose.
pub mod bits {
    pub use crate::format::{BitPlan, Kind, Report, Unit};
    pub use crate::tune::{BitBudget, BitRule, Grain, Probe, Sensitivity, solve};
}

/// What codecs learn from a model's sample text, and how it is collected.
pub mod learned {
    pub use crate::format::{ChannelOrder, Learned, Means, Reach};
    pub use crate::tune::{MeansCollector, OrderCollector, fuse};
}

/// Reading only the bits that matter: AlignedKV (2409.16546), and the same for integer codes.
pub mod aligned {
    pub use crate::cache::{AlignmentReport, Certificate, Traffic};
    pub use crate::format::{Alignment, Criterion};
}

/// One cache over several devices, by KV heads or by tokens.
pub mod devices {
    pub use crate::cache::Share;
    pub use crate::serve::{ContextParallel, ContextSequence, ContextStep, HeadParallel, HeadSequence, HeadStep};
}

/// One cache for models whose layers differ: in RoPE, sliding window, head dimension, KV heads,
/// codec or bits; and layers that share another's keys and values.
pub mod layers {
    pub use crate::serve::{LayeredCache, LayeredPlan, LayeredPlanBuilder, LayeredStep};
}

/// Prefixes that sequences share, kept on the device or in a store.
pub mod prefix {
    pub use crate::serve::{Begun, PrefixCache, PrefixCounters, PrefixIndex, PrefixPlan};
    #[cfg(feature = "store")]
    pub use crate::serve::{SnapshotStore, object_store};
}

/// The kernels, their twins on the processor, and where things lie, for tests of shaders and for
/// reading along. Any version may change these: this crate's version number promises nothing about
/// them.
pub mod low_level {
    pub use crate::cache::Words;
    pub use crate::format::PageLayout;
    pub use crate::gpu::{Binding, Bindings, Dialect, Kernel, Linked, Pipeline, Profile, Reduce, RowForm, Source, Strides, Variant};
    pub use crate::kernel::reference;
    pub use crate::plan::{Restore, Slab};

    /// The kernels: one module each, under the name of its shader.
    pub mod kernel {
        pub use crate::kernel::*;
    }
}
