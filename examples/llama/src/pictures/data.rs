//! The numbers, as `analyze` hands them over and as JSON keeps them.

use serde::{Deserialize, Deserializer, Serialize};

/// What `analyze` found of a model's keys and values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Analysis {
    /// The model's name.
    pub model: String,
    /// Where the tokens come from.
    pub text: String,
    /// Tokens that were read: the rows of every matrix of keys or values.
    pub tokens: u64,
    /// The codec that the errors are of.
    pub codec: String,
    /// Numbers that share a scale.
    pub group: u32,
    /// The layers, first to last.
    pub layers: Vec<LayerAnalysis>,
}

/// One layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerAnalysis {
    /// Its number.
    pub layer: u32,
    /// The keys of every KV head.
    pub keys: Vec<HeadAnalysis>,
    /// The values of every KV head.
    pub values: Vec<HeadAnalysis>,
    /// The matrix that makes keys.
    pub key_weights: Option<WeightAnalysis>,
    /// The matrix that makes values.
    pub value_weights: Option<WeightAnalysis>,
}

/// The keys or the values of one KV head: a matrix of tokens by channels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeadAnalysis {
    /// Its number.
    pub head: u32,
    /// Root of the sum of squares.
    #[serde(deserialize_with = "number")]
    pub frobenius: f64,
    /// The greatest singular value.
    #[serde(deserialize_with = "number")]
    pub spectral: f64,
    /// All singular values, greatest first: one a channel.
    #[serde(deserialize_with = "numbers")]
    pub singular_values: Vec<f64>,
    /// What quantization costs, one entry a bit width.
    pub errors: Vec<BitsError>,
    /// What bits by direction would divide the error by ([`crate::directions`]).
    #[serde(default = "not_a_number", deserialize_with = "number")]
    pub direction_gain: f64,
}

/// What quantization to one bit width costs a head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BitsError {
    /// Bits a number.
    pub bits: u32,
    /// Numbers that share a scale.
    pub group: u32,
    /// Squared error over squared norm: ‖A − Â‖²/‖A‖².
    #[serde(deserialize_with = "number")]
    pub relative: f64,
    /// Mean squared error of a number.
    #[serde(deserialize_with = "number")]
    pub mse: f64,
    /// Squared error of the attention output over its own square, when only this head's matrix is quantized.
    #[serde(deserialize_with = "number")]
    pub attention: f64,
}

/// A weight matrix of one layer, all heads of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WeightAnalysis {
    /// Root of the sum of squares.
    #[serde(deserialize_with = "number")]
    pub frobenius: f64,
    /// The greatest singular value.
    #[serde(deserialize_with = "number")]
    pub spectral: f64,
    /// All singular values, greatest first.
    #[serde(deserialize_with = "numbers")]
    pub singular_values: Vec<f64>,
}

fn not_a_number() -> f64 {
    f64::NAN
}

// JSON has no word for a number that is not finite, so it is written as null; it comes back as not-a-number.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

fn numbers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
    Ok(Vec::<Option<f64>>::deserialize(deserializer)?.into_iter().map(|value| value.unwrap_or(f64::NAN)).collect())
}

/// Keys or values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Keys,
    Values,
}

impl Side {
    pub(super) const BOTH: [Self; 2] = [Self::Keys, Self::Values];

    pub(super) fn heads(self, layer: &LayerAnalysis) -> &[HeadAnalysis] {
        match self {
            Self::Keys => &layer.keys,
            Self::Values => &layer.values,
        }
    }

    pub(super) fn weights(self, layer: &LayerAnalysis) -> Option<&WeightAnalysis> {
        match self {
            Self::Keys => layer.key_weights.as_ref(),
            Self::Values => layer.value_weights.as_ref(),
        }
    }

    pub(super) fn letter(self) -> &'static str {
        match self {
            Self::Keys => "K",
            Self::Values => "V",
        }
    }
}

impl Analysis {
    pub(super) fn layer_numbers(&self) -> Vec<u32> {
        self.layers.iter().map(|layer| layer.layer).collect()
    }

    /// Every head of one side, with the number of its layer.
    pub(super) fn heads(&self, side: Side) -> impl Iterator<Item = (u32, &HeadAnalysis)> {
        self.layers.iter().flat_map(move |layer| side.heads(layer).iter().map(|head| (layer.layer, head)))
    }

    /// Bit widths that any head has errors of, ascending.
    pub(super) fn widths(&self) -> Vec<u32> {
        let both = Side::BOTH.iter().flat_map(|&side| self.heads(side));
        both.flat_map(|(_, head)| head.errors.iter().map(|error| error.bits)).collect::<std::collections::BTreeSet<_>>().into_iter().collect()
    }
}

impl HeadAnalysis {
    pub(super) fn at(&self, bits: u32) -> Option<&BitsError> {
        self.errors.iter().find(|error| error.bits == bits)
    }
}
