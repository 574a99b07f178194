//! The shape of the attention that the cache serves.

use crate::error::{Error, Result};

/// Which channels of a head make a pair that RoPE turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopeLayout {
    /// Channel `i` with channel `i + rotary_dim / 2` (GPT-NeoX, LLaMA in Hugging Face's layout).
    SplitHalves,
    /// Channel `2 i` with channel `2 i + 1` (GPT-J, LLaMA in Meta's layout).
    Interleaved,
}

/// Rotary position embedding: pair `p` of a head turns by `position * frequencies[p]` radians.
///
/// The cache applies it itself, so keys and queries are handed over before RoPE, unless
/// [`PlanBuilder::turned_rows`](crate::PlanBuilder::turned_rows) says that they come turned.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    layout: RopeLayout,
    frequencies: Vec<f64>,
}

impl Rope {
    /// Returns no turning: for learned positions, or none, and for keys and queries that come
    /// turned by positions that are not their places in the sequence (M-RoPE's, or others that
    /// repeat or jump). Every codec serves those as they come. What a codec gains before RoPE is
    /// then lost, so where positions are consecutive, say so by
    /// [`PlanBuilder::turned_rows`](crate::PlanBuilder::turned_rows) instead. A tree of drafts
    /// needs neither: in each branch, a [fork](crate::Cache::fork), positions are consecutive.
    pub fn none() -> Self {
        Self { layout: RopeLayout::SplitHalves, frequencies: Vec::new() }
    }

    /// Returns the usual frequencies `theta^(-2 p / rotary_dim)`, on the first `rotary_dim`
    /// channels of a head, split halves.
    pub fn new(theta: f64, rotary_dim: u32) -> Self {
        let frequencies = (0..rotary_dim / 2).map(|p| theta.powf(-2.0 * f64::from(p) / f64::from(rotary_dim))).collect();
        Self { layout: RopeLayout::SplitHalves, frequencies }
    }

    /// Returns the frequencies as Llama 3 scales them: wavelengths beyond
    /// `original_max_position / low_freq_factor` are stretched by `factor`, those below
    /// `original_max_position / high_freq_factor` stay, and between them it blends linearly.
    pub fn llama3(theta: f64, rotary_dim: u32, factor: f64, low_freq_factor: f64, high_freq_factor: f64, original_max_position: u32) -> Self {
        let mut rope = Self::new(theta, rotary_dim);
        for frequency in &mut rope.frequencies {
            let turns = f64::from(original_max_position) * *frequency / std::f64::consts::TAU;
            let blend = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
            *frequency = *frequency / factor * (1.0 - blend) + *frequency * blend;
        }
        rope
    }

    /// Puts the same frequencies on interleaved pairs.
    pub fn interleaved(mut self) -> Self {
        self.layout = RopeLayout::Interleaved;
        self
    }

    /// Sets the frequencies, in radians a position, one a pair.
    pub fn with_frequencies(mut self, frequencies: Vec<f64>) -> Self {
        self.frequencies = frequencies;
        self
    }

    /// Returns how channels pair up.
    pub fn layout(&self) -> RopeLayout {
        self.layout
    }

    /// Returns the radians a position, one a pair; empty for none.
    pub fn frequencies(&self) -> &[f64] {
        &self.frequencies
    }
}

/// The shape of one model's attention. Every layer has the same.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Layers of the model, each with keys and values of its own.
    pub layers: u32,
    /// Query heads a layer.
    pub query_heads: u32,
    /// KV heads a layer; `query_heads` is a multiple of it, up to 16 times.
    pub kv_heads: u32,
    /// Channels a head: 64, 80, 96, 128, 192, 256 or 512.
    pub head_dim: u32,
    /// How keys and queries carry their position.
    pub rope: Rope,
}

/// The head dimensions that the kernels serve.
const HEAD_DIMS: [u32; 7] = [64, 80, 96, 128, 192, 256, 512];

/// Refuses a head dimension that the kernels do not serve.
pub(crate) fn check_head_dim(head_dim: u32) -> Result<()> {
    if HEAD_DIMS.contains(&head_dim) { Ok(()) } else { Err(Error::argument("head_dim", "64, 80, 96, 128, 192, 256 or 512", head_dim)) }
}

impl Shape {
    /// Returns the query heads that share a KV head (the GQA ratio).
    pub fn share(&self) -> u32 {
        self.query_heads / self.kv_heads.max(1)
    }

    /// Returns how many numbers one token's keys and values are, over all layers.
    pub fn elements_per_token(&self) -> u64 {
        2 * u64::from(self.layers) * u64::from(self.kv_heads) * u64::from(self.head_dim)
    }

    /// Refuses a shape that is not served.
    pub(crate) fn check(&self) -> Result<()> {
        let positive = |name: &'static str, had: u32| {
            if had == 0 { Err(Error::argument(name, "1 or more", "0")) } else { Ok(()) }
        };
        positive("layers", self.layers)?;
        positive("kv_heads", self.kv_heads)?;
        positive("query_heads", self.query_heads)?;
        check_head_dim(self.head_dim)?;
        if !self.query_heads.is_multiple_of(self.kv_heads) || self.share() > 16 {
            return Err(Error::argument("query_heads", format!("a multiple of kv_heads ({}), 16 times at most", self.kv_heads), self.query_heads));
        }
        if self.layers > 4096 {
            return Err(Error::argument("layers", "4096 at most", self.layers));
        }
        if self.kv_heads > 65_535 / 16 {
            return Err(Error::argument("kv_heads", "4095 at most", self.kv_heads));
        }
        let pairs = self.rope.frequencies.len();
        if 2 * pairs > self.head_dim as usize {
            return Err(Error::argument("rope pairs", format!("{} at most", self.head_dim / 2), pairs));
        }
        if let Some(bad) = self.rope.frequencies.iter().find(|f| !f.is_finite()) {
            return Err(Error::argument("rope frequency", "finite", bad));
        }
        Ok(())
    }
}
