//! What a codec is told of the model it serves.

use wgkv::{ChannelOrder, Means, Plan};

use crate::error::Result;

/// What was learnt from sample text, by the codec that takes it.
#[derive(Debug, Clone)]
pub enum Learned {
    /// Nothing: the codecs that need none, and centred without means.
    Nothing,
    /// The order of key channels, for rotate-kv.
    Order(ChannelOrder),
    /// Means and weights, for centred.
    Means(Means),
}

impl Learned {
    /// The plan with it.
    pub fn tell(self, plan: Plan) -> Result<Plan> {
        Ok(match self {
            Self::Nothing => plan,
            Self::Order(calibration) => plan.with_calibration(calibration)?,
            Self::Means(centre) => plan.with_centre(centre)?,
        })
    }

    /// The order of key channels, if it is one.
    pub fn order(&self) -> Option<&ChannelOrder> {
        match self {
            Self::Order(calibration) => Some(calibration),
            _ => None,
        }
    }
}

impl From<Option<ChannelOrder>> for Learned {
    fn from(calibration: Option<ChannelOrder>) -> Self {
        calibration.map_or(Self::Nothing, Self::Order)
    }
}
