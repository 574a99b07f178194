//! What `index.d.ts` describes as `Options` and `CalibrationOptions`, and the plan that follows.

use serde::Deserialize;
use wgkv::bits::BitPlan;
use wgkv::{Bits, Capability, Capacity, ChannelOrder, Code, Codec, Element, Error, Format, Means, Plan, Protection, Result, Rope, Shape, Storage};

/// Options of a cache or a calibration, but for the device and what was learned. They are one type, since another would add to the module's
/// size what reads it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Options {
    tokens: Option<u32>,
    #[serde(default = "one")]
    sequences: u32,
    #[serde(default = "one")]
    layers: u32,
    query_heads: u32,
    kv_heads: u32,
    head_dim: u32,
    rope: Option<RopeOptions>,
    codec: Option<String>,
    key_bits: Option<u32>,
    value_bits: Option<u32>,
    key_code: Option<String>,
    value_code: Option<String>,
    group: Option<u32>,
    scales: Option<String>,
    bit_plan: Option<String>,
    sinks: Option<String>,
    window: Option<u32>,
    sliding_window: Option<u32>,
    chunked_attention: Option<u32>,
    score_scale: Option<f32>,
    soft_cap: Option<f32>,
    sink_logits: Option<Vec<f32>>,
    #[serde(default)]
    turned_rows: bool,
    max_tokens: Option<u32>,
    element: Option<String>,
    query_rows: Option<u32>,
    split_workgroups: Option<u32>,
    heads_per_group: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RopeOptions {
    theta: Option<f64>,
    frequencies: Option<Vec<f64>>,
    dim: Option<u32>,
    #[serde(default)]
    interleaved: bool,
}

/// KV heads that RotateKV turns together where the caller does not say.
const HEADS_PER_GROUP: u32 = 4;

fn one() -> u32 {
    1
}

/// Reads options, or says which is wrong. The place in a text that the caller never saw would mean nothing to him.
pub fn parse(text: &str) -> std::result::Result<Options, String> {
    serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(text)).map_err(|error| {
        let (path, reason) = (error.path().to_string(), error.inner().to_string());
        let reason = reason.split(" at line ").next().unwrap_or(&reason);
        if path == "." { format!("options: {reason}") } else { format!("options: {path}: {reason}") }
    })
}

fn rope(options: Option<&RopeOptions>, head_dim: u32) -> Result<Rope> {
    let Some(options) = options else {
        return Ok(Rope::none());
    };
    let rope = match (options.theta, &options.frequencies) {
        (Some(theta), None) => Rope::new(theta, options.dim.unwrap_or(head_dim)),
        (None, Some(frequencies)) if options.dim.is_none() => Rope::none().with_frequencies(frequencies.clone()),
        _ => return Err(Error::argument("rope", "of a theta, with dim or without, or of frequencies alone", "of neither or both")),
    };
    Ok(if options.interleaved { rope.interleaved() } else { rope })
}

impl Options {
    /// Returns the attention's shape.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a rotary embedding without frequencies, or with two kinds of them.
    pub fn shape(&self) -> Result<Shape> {
        let rope = rope(self.rope.as_ref(), self.head_dim)?;
        Ok(Shape { layers: self.layers, query_heads: self.query_heads, kv_heads: self.kv_heads, head_dim: self.head_dim, rope })
    }

    fn format(&self) -> Result<Format> {
        let codec = self.codec.as_deref().map_or(Ok(Codec::Hadamard), str::parse)?;
        let bits = |bits: Option<u32>| Bits::try_from(bits.unwrap_or(4));
        let code = |code: &Option<String>| code.as_deref().map_or(Ok(Code::Uniform), str::parse);
        let (key, value) = (code(&self.key_code)?, code(&self.value_code)?);
        // A trellis goes through the whole head, up to 128 channels.
        let group = self.group.unwrap_or(if [key, value].contains(&Code::Trellis) { 128 } else { 64 });
        let format = Format::new(codec, bits(self.key_bits)?, bits(self.value_bits)?, group).with_codes(key, value);
        Ok(match &self.scales {
            Some(scales) => format.with_scales(scales.parse()?),
            None => format,
        })
    }

    /// Returns how all is stored, and by which codec.
    fn storage(&self, order: Option<&ChannelOrder>) -> Result<Storage> {
        let Some(text) = &self.bit_plan else {
            let format = self.format()?;
            return Ok(order.map_or(format, |order| format.with_heads_per_group(order.heads_per_group())).into());
        };
        let words = [("codec", self.codec.is_some()), ("keyBits", self.key_bits.is_some()), ("valueBits", self.value_bits.is_some())];
        let others = [
            ("keyCode", self.key_code.is_some()),
            ("valueCode", self.value_code.is_some()),
            ("group", self.group.is_some()),
            ("scales", self.scales.is_some()),
        ];
        if let Some((name, _)) = words.into_iter().chain(others).find(|(_, given)| *given) {
            return Err(Error::argument(name, "left out beside bitPlan, which says it", "given"));
        }
        Ok(BitPlan::from_json(text)?.into())
    }

    /// Returns the codec.
    ///
    /// # Errors
    /// For a word or a bit plan that names none.
    pub fn codec(&self) -> Result<Codec> {
        Ok(match &self.bit_plan {
            Some(text) => BitPlan::from_json(text)?.format().codec(),
            None => self.format()?.codec(),
        })
    }

    fn protection(&self) -> Result<Protection> {
        let Protection { sinks, window } = Protection::default();
        let sinks = self.sinks.as_deref().map_or(Ok(sinks), str::parse)?;
        Ok(Protection { sinks, window: self.window.unwrap_or(window) })
    }

    fn element(&self) -> Result<Element> {
        match self.element.as_deref() {
            None | Some("f32") => Ok(Element::F32),
            Some("f16") => Ok(Element::F16),
            Some(other) => Err(Error::argument("element", "f32 or f16", other)),
        }
    }

    /// Returns how many KV heads RotateKV turns together.
    pub fn heads_per_group(&self) -> u32 {
        self.heads_per_group.unwrap_or(HEADS_PER_GROUP.min(self.kv_heads))
    }

    /// Makes the plan for a device.
    ///
    /// # Errors
    /// Those of [`wgkv::PlanBuilder::build`], and for words that name nothing.
    pub fn plan(&self, calibration: Option<&[u8]>, capability: &Capability) -> Result<Plan> {
        let tokens = self.tokens.ok_or_else(|| Error::argument("tokens", "given", "missing"))?;
        let shape = self.shape()?;
        let mut builder = match (calibration, self.codec()?) {
            (Some(bytes), Codec::Centred) => Plan::builder(shape, self.storage(None)?).learned(Means::from_bytes(bytes)?),
            (Some(bytes), _) => {
                let order = ChannelOrder::from_bytes(bytes)?;
                Plan::builder(shape, self.storage(Some(&order))?).learned(order)
            }
            (None, Codec::RotateKv) => return Err(Error::argument("calibration", "given, as rotate-kv needs one", "missing")),
            (None, _) => Plan::builder(shape, self.storage(None)?),
        };
        builder = builder.element(self.element()?).turned_rows(self.turned_rows);
        match (self.sliding_window, self.chunked_attention) {
            (None, None) => {}
            (Some(tokens), None) => builder = builder.sliding_window(tokens),
            (None, Some(tokens)) => builder = builder.chunked_attention(tokens),
            (Some(_), Some(_)) => return Err(Error::argument("chunkedAttention", "left out beside slidingWindow", "given")),
        }
        if let Some(scale) = self.score_scale {
            builder = builder.score_scale(scale);
        }
        if let Some(cap) = self.soft_cap {
            builder = builder.soft_cap(cap);
        }
        if let Some(logits) = &self.sink_logits {
            builder = builder.sink_logits(logits.as_slice());
        }
        if let Some(tokens) = self.max_tokens {
            builder = builder.max_tokens(tokens);
        }
        if let Some(rows) = self.query_rows {
            builder = builder.query_rows(rows);
        }
        if let Some(workgroups) = self.split_workgroups {
            builder = builder.split_workgroups(workgroups);
        }
        builder.protection(self.protection()?).capacity(Capacity::tokens(self.sequences, tokens)).build(capability)
    }
}
