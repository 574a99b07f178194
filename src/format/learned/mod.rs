//! What a codec learns from a model's sample text: RotateKV's order of key channels, Centred's
//! means and weights.

mod channel_order;
mod means;

pub(crate) use channel_order::check_channels;
pub use channel_order::{ChannelOrder, Reach};
pub use means::Means;
pub(crate) use means::partner;

/// What a codec learned from sample text.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Learned {
    /// For [`Codec::RotateKv`](crate::Codec::RotateKv).
    ChannelOrder(ChannelOrder),
    /// For [`Codec::Centred`](crate::Codec::Centred).
    Means(Means),
}

impl Learned {
    /// Returns the channel order, if it is one.
    pub fn channel_order(&self) -> Option<&ChannelOrder> {
        if let Self::ChannelOrder(order) = self { Some(order) } else { None }
    }

    /// Returns the means, if they are some.
    pub fn means(&self) -> Option<&Means> {
        if let Self::Means(means) = self { Some(means) } else { None }
    }

    /// SHA-256, in hex, of what decides how tokens are stored.
    pub fn fingerprint(&self) -> String {
        match self {
            Self::ChannelOrder(order) => order.fingerprint(),
            Self::Means(means) => means.fingerprint(),
        }
    }
}

impl From<ChannelOrder> for Learned {
    fn from(order: ChannelOrder) -> Self {
        Self::ChannelOrder(order)
    }
}

impl From<Means> for Learned {
    fn from(means: Means) -> Self {
        Self::Means(means)
    }
}

impl From<ChannelOrder> for Option<Learned> {
    fn from(order: ChannelOrder) -> Self {
        Some(order.into())
    }
}

impl From<Means> for Option<Learned> {
    fn from(means: Means) -> Self {
        Some(means.into())
    }
}
