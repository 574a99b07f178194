//! A model on the GPU with its tokenizer, and the plans of its caches.

use crate::codecs::{self, CODECS, Choice};
use crate::error::{Error, Result};
use crate::session::Settings;
use serde::Serialize;
use wgkv::{Capacity, ChannelOrder, Codec, Gpu, Means, Plan, Protection, Sinks};
use wgkv_decoder::{ChatTemplate, Config, Decoder, Text};

/// A model with its tokenizer, and what codecs have to know of its keys and values.
pub struct Model {
    decoder: Decoder,
    text: Text,
    chat: Option<ChatTemplate>,
    /// For RotateKV.
    order: Option<ChannelOrder>,
    /// For Centred, which goes without where there are none.
    means: Option<Means>,
}

/// A model in numbers.
#[derive(Clone, Debug, Serialize)]
pub struct About {
    /// Numbers in its weights.
    pub parameters: u64,
    /// Bytes of its matrices on the GPU.
    pub bytes: u64,
    /// Its layers.
    pub layers: usize,
    /// KV heads of a layer.
    pub kv_heads: usize,
    /// Tokens that a text may have.
    pub context: usize,
    /// Whether it has a chat template.
    pub chats: bool,
    /// The codecs that can store its keys and values.
    pub codecs: Vec<Choice>,
}

impl Model {
    /// Brings a model to the GPU from the files of its folder, with an order of channels and means.
    ///
    /// # Errors
    /// Those of each file, and of a GPU without the memory.
    pub async fn from_parts(gpu: &Gpu, config: &[u8], tokenizer: &[u8], weights: Vec<u8>, order: &[u8], means: &[u8]) -> Result<Self> {
        let (order, means) = (ChannelOrder::from_bytes(order)?, Means::from_bytes(means)?);
        let files = wgkv_decoder::Model::from_parts(config, tokenizer, weights)?;
        Ok(Self { order: Some(order), means: Some(means), ..Self::load(gpu, files).await? })
    }

    /// Brings a model to the GPU from a GGUF file of `length` bytes, which `read` reads: it fills a
    /// slice from a place on. Of the file, no more than a tensor is here at a time. Errors call it
    /// `name`.
    ///
    /// # Errors
    /// What is wrong with the file, and those of a GPU without the memory.
    pub async fn from_gguf<R>(gpu: &Gpu, name: &str, length: u64, read: R) -> Result<Self>
    where
        R: Fn(u64, &mut [u8]) -> std::io::Result<()> + wgpu::WasmNotSendSync + 'static,
    {
        Self::load(gpu, wgkv_decoder::Model::from_gguf_reader(name, length, read)?).await
    }

    async fn load(gpu: &Gpu, files: wgkv_decoder::Model) -> Result<Self> {
        let decoder = Decoder::load(gpu, &files).await?;
        let (text, chat) = files.into_text();
        Ok(Self { decoder, text, chat, order: None, means: None })
    }

    /// Returns the model in numbers.
    pub fn about(&self) -> About {
        let config = self.config();
        About {
            parameters: config.parameters(),
            bytes: self.decoder.weight_bytes(),
            layers: config.layers,
            kv_heads: config.kv_heads,
            context: self.context(),
            chats: self.chat.is_some(),
            codecs: CODECS.into_iter().filter(|choice| choice.codec != Codec::RotateKv || self.order.is_some()).collect(),
        }
    }

    /// Returns the layers and their weights.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Returns the tokenizer.
    pub fn text(&self) -> &Text {
        &self.text
    }

    pub(crate) fn chat(&self) -> Result<&ChatTemplate> {
        self.chat.as_ref().ok_or(Error::NoTemplate)
    }

    pub(crate) fn config(&self) -> &Config {
        self.decoder.config()
    }

    /// Tokens that a text may have.
    pub(crate) fn context(&self) -> usize {
        match self.config().max_tokens {
            // The file does not say.
            0 => 1 << 15,
            tokens => tokens,
        }
    }

    /// What the cache of a context will be, with what its codec has to know of the model. Four
    /// tokens stay in half precision, or RotateKV's twenty.
    pub(crate) fn plan(&self, settings: &Settings, tokens: usize) -> Result<Plan> {
        let config = self.config();
        let codec: Codec = settings.codec.parse()?;
        let mut format = codecs::format(codec, settings.bits)?;
        let mut sinks = Sinks::First(4);
        if codec == Codec::RotateKv {
            let order = self.order.as_ref().ok_or(Error::NotCalibrated { codec })?;
            format = format.with_heads_per_group(order.heads_per_group());
            sinks = Sinks::Massive(20);
        }
        let protection = Protection { sinks, window: settings.window };
        let mut builder = Plan::builder(config.shape_for(tokens), format).protection(protection).capacity(Capacity::tokens(1, tokens as u32));
        if let Some(window) = config.sliding_window {
            builder = builder.sliding_window(window);
        }
        let builder = match (codec, &self.order, &self.means) {
            (Codec::RotateKv, Some(order), _) => builder.learned(order.clone()),
            (Codec::Centred, _, Some(means)) => builder.learned(means.clone()),
            _ => builder,
        };
        Ok(builder.build(self.decoder.gpu().capability())?)
    }
}
