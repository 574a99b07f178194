//! What is stored and how: shapes, codecs, the layout of a page, the arithmetic of the codes, and
//! what is learned from a model, with its files. Nothing here knows a GPU.

mod alignment;
mod bit_plan;
mod codec;
pub(crate) mod codes;
mod element;
pub(crate) mod file;
pub(crate) mod hadamard;
mod layout;
mod learned;
pub(crate) mod origin;
mod protection;
mod shape;
pub(crate) mod tensors;

pub use alignment::{Alignment, Criterion};
pub use bit_plan::{BitPlan, Kind, Report, Unit};
pub use codec::{Bits, Code, Codec, Format, Precision, Scales};
pub(crate) use codec::{FormatWords, check_heads_per_group};
pub use element::Element;
pub use layout::{PAGE_TOKENS, PageLayout};
pub use learned::{ChannelOrder, Learned, Means, Reach};
pub(crate) use learned::{check_channels, partner};
pub use protection::{Protection, Sinks};
pub(crate) use shape::check_head_dim;
pub use shape::{Rope, RopeLayout, Shape};
