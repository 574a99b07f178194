//! What a codec learns from a model's sample text: RotateKV's order of key channels, Centred's
//! means and weights.

mod channel_order;
mod means;

pub(crate) use channel_order::check_channels;
pub use channel_order::{ChannelOrder, Reach};
pub use means::Means;
pub(crate) use means::partner;
