//! Which bits every layer, KV head, key and value of a cache has.

mod file;
mod report;

pub use report::{Report, Unit};

use crate::error::{Error, Result, Thing};
use crate::format::{Bits, Code, Codec, Format, Precision, Shape, origin};
use std::fmt;

/// Keys or values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Keys.
    Key,
    /// Values.
    Value,
}

impl Kind {
    /// Both, in the order in which everything lists them.
    pub const BOTH: [Self; 2] = [Self::Key, Self::Value];

    /// Returns the letter that texts and files call it by.
    fn name(self) -> &'static str {
        match self {
            Self::Key => "K",
            Self::Value => "V",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The precision of the keys and of the values of every layer and KV head, and the [`Format`] whose
/// codec, clip and scales they share.
///
/// [`Codec::RotateKv`] shares the scales of keys over all heads of a layer, so there all keys of a
/// layer have one precision, and the values of heads that are rotated together have one, since
/// attention reads those heads together.
#[derive(Clone, Debug, PartialEq)]
pub struct BitPlan {
    format: Format,
    layers: u32,
    kv_heads: u32,
    head_dim: u32,
    /// `[layer, kv_head]`: keys, values.
    precisions: Vec<[Precision; 2]>,
    /// The model that it was made for; empty for any.
    model: String,
    report: Option<Report>,
}

impl BitPlan {
    /// Returns the plan of one precision for all keys and one for all values: those of the format.
    ///
    /// # Errors
    /// [`Error::Mismatch`] and [`Error::Group`] where the format does not fit the shape.
    pub fn uniform(shape: &Shape, format: Format) -> Result<Self> {
        Self::new(shape, format, |_, _| [format.key(), format.value()])
    }

    /// Returns the plan that `of` describes: for each layer and KV head, the precision of its keys
    /// and of its values.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where heads differ that the codec cannot tell apart, and, as
    /// [`Error::Group`], where a precision does not fit the shape.
    pub fn new(shape: &Shape, format: Format, of: impl Fn(u32, u32) -> [Precision; 2]) -> Result<Self> {
        let heads = || (0..shape.layers).flat_map(|layer| (0..shape.kv_heads).map(move |head| (layer, head)));
        // A group means nothing at 16 bits.
        let plain = |precision: Precision| if precision.bits == Bits::Sixteen && precision.code == Code::Uniform { Precision::F16 } else { precision };
        let precisions: Vec<[Precision; 2]> =
            heads().map(|(layer, head)| if format.codec().is_f16() { [Precision::F16; 2] } else { of(layer, head).map(plain) }).collect();
        let plan = Self {
            // Its own precisions are those of the first head, so that one that was saved comes back
            // as it was.
            format: precisions.first().map_or(format, |[key, value]| format.with_precisions(*key, *value)),
            layers: shape.layers,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            precisions,
            model: String::new(),
            report: None,
        };
        plan.format.check(shape)?;
        for (layer, head) in heads() {
            plan.format_of(layer, head).check(shape)?;
            let [keys, values] = Kind::BOTH.map(|kind| plan.first_head(kind, head));
            let wanted = [plan.of(layer, keys)[0], plan.of(layer, values)[1]];
            for ((kind, wanted), had) in Kind::BOTH.into_iter().zip(wanted).zip(plan.of(layer, head)) {
                if wanted != had {
                    return Err(Error::mismatch(
                        Thing::BitPlan,
                        format!("{kind} of layer {layer}, head {head}"),
                        format!("{wanted} as of head {} (rotate-kv stores them together)", plan.first_head(kind, head)),
                        had,
                    ));
                }
            }
        }
        Ok(plan)
    }

    /// Returns the plan with a rule's report and the model that it was made for.
    pub(crate) fn with_report(self, model: &str, report: Report) -> Self {
        Self { model: model.to_owned(), report: Some(report), ..self }
    }

    /// Returns how many KV heads of a layer share one precision, because the codec stores them
    /// together.
    pub fn heads_alike(format: &Format, kind: Kind, kv_heads: u32) -> u32 {
        match (format.codec(), kind) {
            (Codec::RotateKv, Kind::Key) => kv_heads,
            _ => format.heads_per_group(kv_heads),
        }
    }

    /// Returns the first of the heads that share a head's precision.
    fn first_head(&self, kind: Kind, head: u32) -> u32 {
        let alike = Self::heads_alike(&self.format, kind, self.kv_heads);
        head / alike * alike
    }

    /// Returns the codec, clip and scales of all heads. Its own bits are those of the first head.
    pub fn format(&self) -> &Format {
        &self.format
    }

    /// Returns the format of one head; that of all for a head that does not exist.
    pub fn format_of(&self, layer: u32, head: u32) -> Format {
        let [key, value] = self.of(layer, head);
        self.format.with_precisions(key, value)
    }

    /// Returns the precision of one head's keys and values; the format's for a head that does not
    /// exist.
    pub fn of(&self, layer: u32, head: u32) -> [Precision; 2] {
        let at = (layer * self.kv_heads + head) as usize;
        let known = layer < self.layers && head < self.kv_heads;
        self.precisions.get(at).filter(|_| known).copied().unwrap_or([self.format.key(), self.format.value()])
    }

    /// Returns the name of the model that the plan was made for; empty for any.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Refuses a model of another name. A plan that names no model serves all.
    ///
    /// # Errors
    /// [`Error::Mismatch`].
    pub fn expect_model(&self, model: &str) -> Result<()> {
        if self.model.is_empty() { Ok(()) } else { origin::expect_model(Thing::BitPlan, model, &self.model) }
    }

    /// Returns what was spent where, and why, if a rule made the plan.
    pub fn report(&self) -> Option<&Report> {
        self.report.as_ref()
    }

    /// Returns the number of layers.
    pub fn layers(&self) -> u32 {
        self.layers
    }

    /// Returns the KV heads a layer.
    pub fn kv_heads(&self) -> u32 {
        self.kv_heads
    }

    /// Returns whether all keys have one precision, and all values one.
    pub fn is_uniform(&self) -> bool {
        self.precisions.windows(2).all(|two| two[0] == two[1])
    }

    /// Returns the mean bits of a key's and of a value's code.
    pub fn mean_bits(&self) -> [f64; 2] {
        [0, 1].map(|kind| self.precisions.iter().map(|two| f64::from(two[kind].bits.get())).sum::<f64>() / self.precisions.len().max(1) as f64)
    }

    /// Refuses a cache of another shape.
    ///
    /// # Errors
    /// [`Error::Mismatch`].
    pub fn expect_shape(&self, shape: &Shape) -> Result<()> {
        origin::expect_shape(Thing::BitPlan, shape, [self.layers, self.kv_heads, self.head_dim])
    }
}

impl fmt::Display for BitPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.precisions.first() {
            Some([key, value]) if self.is_uniform() => self.format.with_precisions(*key, *value).fmt(f),
            _ => {
                let [keys, values] = self.mean_bits();
                write!(f, "{} with K of {keys:.2} and V of {values:.2} bits on average", self.format.codec())
            }
        }
    }
}
