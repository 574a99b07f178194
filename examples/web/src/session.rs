//! A text that goes on: the model, its cache, and one token after another.

use crate::attention::{Attention, CHUNK};
use crate::codecs;
use crate::decoder::{Config, Decoder};
use crate::error::{Error, Result};
use crate::picture::Picture;
use crate::sampler::Sampler;
use crate::text::{Stream, Text};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::rc::Rc;
use wgkv::{Capacity, ChannelOrder, Codec, Gpu, Means, Plan, Protection, Sinks};

/// A model with its tokenizer, and what codecs have to know of its keys and values.
pub struct Model {
    /// The layers.
    pub decoder: Decoder,
    text: Text,
    order: ChannelOrder,
    means: Means,
}

/// How to go on, and how to store what was.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The codec's name.
    pub codec: String,
    /// Bits of keys and values.
    pub bits: u32,
    /// Latest tokens that stay in half precision.
    #[serde(default)]
    pub window: u32,
    /// 0 takes the likeliest token.
    #[serde(default)]
    pub temperature: f32,
    /// Share of the probability to sample from.
    #[serde(default = "all")]
    pub top_p: f32,
    /// Seed of the sampling.
    #[serde(default)]
    pub seed: u64,
    /// Tokens to add at most.
    pub tokens: usize,
}

fn all() -> f32 {
    1.0
}

/// Where a session stands.
#[derive(Clone, Debug, Serialize)]
pub struct Progress {
    /// The text that was added.
    pub text: String,
    /// The token that was added; none while the prompt is read.
    pub token: Option<u32>,
    /// Tokens of the prompt that are still to be read.
    pub unread: usize,
    /// Tokens in the cache.
    pub tokens: u32,
    /// Bytes that they need.
    pub bytes: u64,
    /// Bytes that they would need in half precision.
    pub f16_bytes: u64,
    /// Bytes that were allocated for keys and values.
    pub allocated: u64,
    /// Stored bits a number.
    pub bits_per_element: f64,
    /// Whether the text is at its end.
    pub ended: bool,
}

/// One text on one cache.
pub struct Session {
    model: Rc<Model>,
    attention: Attention,
    sampler: Sampler,
    stream: Stream,
    unread: VecDeque<u32>,
    scores: Vec<f32>,
    left: usize,
}

impl Model {
    /// Reads the files of a model's folder.
    ///
    /// # Errors
    /// Those of each file.
    pub fn from_bytes(config: &[u8], tokenizer: &[u8], weights: &[u8], order: &[u8], means: &[u8]) -> Result<Self> {
        Ok(Self {
            decoder: Decoder::from_bytes(Config::from_bytes(config)?, weights)?,
            text: Text::from_bytes(tokenizer)?,
            order: ChannelOrder::from_bytes(order)?,
            means: Means::from_bytes(means)?,
        })
    }

    /// What the cache of a context will be, with what its codec has to know of the model. Four tokens stay in half precision, or RotateKV's
    /// twenty.
    fn plan(&self, gpu: &Gpu, settings: &Settings, tokens: usize) -> Result<Plan> {
        let codec: Codec = settings.codec.parse()?;
        let mut format = codecs::format(codec, settings.bits)?;
        let mut sinks = Sinks::First(4);
        if codec == Codec::RotateKv {
            format = format.with_heads_per_group(self.order.heads_per_group());
            sinks = Sinks::Massive(20);
        }
        let protection = Protection { sinks, window: settings.window };
        let builder = Plan::builder(self.decoder.config().shape(), format).protection(protection).capacity(Capacity::tokens(1, tokens as u32));
        let builder = match codec {
            Codec::RotateKv => builder.learned(self.order.clone()),
            Codec::Centred => builder.learned(self.means.clone()),
            _ => builder,
        };
        Ok(builder.build(gpu.capability())?)
    }
}

impl Session {
    /// Begins with a prompt. All memory is taken now, for the prompt and the tokens to add.
    ///
    /// # Errors
    /// [`Error::Prompt`], and those of the library.
    pub async fn new(model: Rc<Model>, gpu: &Gpu, settings: &Settings, prompt: &str) -> Result<Self> {
        let config = model.decoder.config();
        let mut unread = VecDeque::from([config.bos_token_id]);
        unread.extend(model.text.encode(prompt)?);
        let room = config.max_position_embeddings.saturating_sub(1);
        if unread.len() > room {
            return Err(Error::Prompt { tokens: unread.len(), room });
        }
        let tokens = (unread.len() + settings.tokens).min(config.max_position_embeddings);
        let plan = model.plan(gpu, settings, tokens)?;
        let attention = Attention::new(gpu, plan, config.hidden_size).await?;
        let sampler = Sampler::new(settings.temperature, settings.top_p, settings.seed);
        Ok(Self { left: tokens - unread.len(), attention, sampler, stream: Stream::default(), unread, scores: Vec::new(), model })
    }

    /// Reads on in the prompt, or adds a token.
    ///
    /// # Errors
    /// Those of the library.
    pub async fn advance(&mut self) -> Result<Progress> {
        let model = self.model.clone();
        if !self.unread.is_empty() {
            let chunk: Vec<u32> = self.unread.drain(..self.unread.len().min(CHUNK)).collect();
            self.scores = model.decoder.forward(&chunk, &mut self.attention).await?;
            return self.progress(String::new(), None, self.left == 0 && self.unread.is_empty());
        }
        let token = self.sampler.pick(&self.scores);
        if self.left == 0 || token == model.decoder.config().eos_token_id {
            self.left = 0;
            return self.progress(String::new(), None, true);
        }
        self.left -= 1;
        let text = model.text.next(&mut self.stream, token)?;
        // What follows the last token is not asked for.
        if self.left > 0 {
            self.scores = model.decoder.forward(&[token], &mut self.attention).await?;
        }
        self.progress(text, Some(token), self.left == 0)
    }

    fn progress(&self, text: String, token: Option<u32>, ended: bool) -> Result<Progress> {
        let (cache, tokens) = (self.attention.cache(), self.attention.tokens()?);
        Ok(Progress {
            text,
            token,
            unread: self.unread.len(),
            tokens,
            bytes: cache.bytes_used(),
            f16_bytes: 2 * u64::from(tokens) * cache.plan().shape().elements_per_token(),
            allocated: cache.bytes(),
            bits_per_element: cache.plan().bits_per_element(tokens.into()),
            ended,
        })
    }

    /// What the cache does to one head's keys.
    ///
    /// # Errors
    /// As [`Picture::new`].
    pub async fn picture(&self, layer: usize, head: usize) -> Result<Picture> {
        Picture::new(&self.attention, layer, head).await
    }

    /// The plan in words.
    pub fn plan(&self) -> String {
        self.attention.cache().plan().to_string()
    }

    /// Gives the GPU's memory back at once.
    pub fn destroy(self) {
        self.attention.destroy();
    }
}
