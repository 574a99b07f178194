//! A text that goes on, or a conversation: the model, its cache, and one token after another.

use crate::error::{Error, Result};
use crate::kept::{KEPT, Kept};
use crate::model::Model;
use crate::picture::Picture;
use crate::stream::Stream;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use wgkv::{Cache, Rows};
use wgkv_decoder::Sampling;

/// Tokens that one step may have.
const CHUNK: u32 = 128;

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
    /// Tokens to add at most, to a text or in each answer.
    pub tokens: usize,
    /// Tokens that a conversation may have; a text has room for its prompt and what is added.
    #[serde(default)]
    pub context: usize,
}

fn all() -> f32 {
    1.0
}

/// One message of a conversation.
#[derive(Clone, Debug, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
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
    /// Whether the text or the answer is at its end.
    pub ended: bool,
}

/// One text or conversation on one cache.
pub struct Session {
    model: Rc<Model>,
    inner: wgkv_decoder::Session,
    kept: Kept,
    stream: Stream,
    /// Tokens to be read.
    unread: VecDeque<u32>,
    /// Tokens that may still be added.
    left: usize,
    /// Tokens that the cache has room for.
    room: usize,
    tokens: usize,
    /// The last token, after which another was chosen; and whether the cache holds it.
    last: Option<(u32, bool)>,
    /// What a conversation's tokens, read or not, stand for.
    said: String,
}

impl Session {
    /// Begins with a prompt. All memory is taken now, for the prompt and the tokens to add.
    ///
    /// # Errors
    /// [`Error::Prompt`], [`Error::Empty`], and those of the library and the decoder.
    pub async fn new(model: Rc<Model>, settings: &Settings, prompt: &str) -> Result<Self> {
        let config = model.config();
        let begin = config.begin.filter(|_| config.add_bos);
        let mut unread: VecDeque<u32> = begin.into_iter().collect();
        unread.extend(model.text().encode(prompt)?);
        if unread.is_empty() {
            return Err(Error::Empty);
        }
        let room = model.context() - 1;
        if unread.len() > room {
            return Err(Error::Prompt { tokens: unread.len(), room });
        }
        let tokens = unread.len().saturating_add(settings.tokens).min(model.context());
        let left = tokens - unread.len();
        Ok(Self { unread, left, ..Self::empty(model, settings, tokens).await? })
    }

    /// Begins a conversation, in which nothing is said yet. All memory is taken now.
    ///
    /// # Errors
    /// [`Error::NoTemplate`], and those of the library and the decoder.
    pub async fn conversation(model: Rc<Model>, settings: &Settings) -> Result<Self> {
        model.chat()?;
        let tokens = settings.context.clamp(1, model.context());
        Self::empty(model, settings, tokens).await
    }

    async fn empty(model: Rc<Model>, settings: &Settings, tokens: usize) -> Result<Self> {
        let plan = model.plan(settings, tokens)?;
        let gpu = model.decoder().gpu();
        gpu.prepare(&plan).await?;
        let sampling = Sampling { temperature: settings.temperature, top_p: settings.top_p, top_k: 0, seed: settings.seed };
        let kept = Kept::new(gpu, plan.shape());
        let cache = Cache::request(gpu, plan).await?;
        let inner = wgkv_decoder::Session::new(model.decoder(), cache, CHUNK, sampling).await?;
        Ok(Self {
            inner,
            kept,
            stream: Stream::default(),
            unread: VecDeque::new(),
            left: 0,
            room: tokens,
            tokens: settings.tokens,
            last: None,
            said: String::new(),
            model,
        })
    }

    /// Takes a conversation's messages, all of them, to be answered. What the cache holds of them is
    /// not read again.
    ///
    /// # Errors
    /// [`Error::Prompt`] where they leave no room for an answer, after which the conversation stands
    /// where it stood; [`Error::NoTemplate`], and those of the template and the tokenizer.
    pub fn say(&mut self, messages: &[Message]) -> Result<()> {
        self.stop()?;
        let model = self.model.clone();
        let (config, text) = (model.config(), model.text());
        let token = |id: Option<u32>| id.and_then(|id| text.token(id)).unwrap_or_default();
        let messages: Vec<_> = messages.iter().map(|Message { role, content }| wgkv_decoder::Message { role, content }).collect();
        let said = model.chat()?.render(&messages, true, &token(config.begin), &token(config.end.first().copied()))?;
        // A template that writes what was said otherwise now has the conversation read anew.
        let more = said.strip_prefix(self.said.as_str()).filter(|_| !self.said.is_empty());
        let unread = text.encode_with_special(more.unwrap_or(&said))?;
        let tokens = unread.len() + if more.is_some() { self.unread.len() + self.inner.tokens()? as usize } else { 0 };
        if tokens >= self.room {
            return Err(Error::Prompt { tokens, room: self.room - 1 });
        }
        if more.is_none() {
            self.inner.reset()?;
            self.unread.clear();
        }
        self.unread.extend(unread);
        self.left = self.tokens.min(self.room - tokens);
        self.stream = Stream::default();
        self.said = said;
        Ok(())
    }

    /// Ends a text or an answer where it stands.
    ///
    /// # Errors
    /// Those of the library.
    pub fn stop(&mut self) -> Result<()> {
        self.left = 0;
        if let Some((token, submitted)) = self.last.take() {
            if submitted {
                self.inner.take_back()?;
            }
            // The text has it, the cache has not.
            self.unread.push_front(token);
        }
        Ok(())
    }

    /// Reads on in the prompt, or adds a token.
    ///
    /// # Errors
    /// Those of the library and the decoder.
    pub async fn advance(&mut self) -> Result<Progress> {
        if self.left == 0 && self.last.is_some() {
            // The token that the cache does not hold is no prompt.
            return self.progress(String::new(), None, true);
        }
        self.kept.begin(self.inner.tokens()?);
        if !self.unread.is_empty() {
            let chunk: Vec<u32> = self.unread.drain(..self.unread.len().min(CHUNK as usize)).collect();
            let choose = self.unread.is_empty() && self.left > 0;
            self.inner.read(&chunk, choose, Some(&mut self.kept))?;
            self.last = chunk.last().filter(|_| choose).map(|token| (*token, true));
            // So that a reader sees how far it is, and can stop it.
            self.kept.wait().await?;
            return self.progress(String::new(), None, self.unread.is_empty() && self.left == 0);
        }
        if self.left == 0 {
            return self.progress(String::new(), None, true);
        }
        // What follows the last token is not asked for.
        let ahead = self.left > 1;
        let token = self.inner.next_with(ahead, Some(&mut self.kept)).await?;
        if self.model.config().end.contains(&token) {
            if ahead {
                self.inner.take_back()?;
            }
            (self.left, self.last) = (0, None);
            return self.progress(String::new(), None, true);
        }
        self.left -= 1;
        self.last = Some((token, ahead));
        let text = self.stream.next(self.model.text(), token)?;
        self.said += &text;
        self.progress(text, Some(token), self.left == 0)
    }

    fn progress(&self, text: String, token: Option<u32>, ended: bool) -> Result<Progress> {
        let (cache, tokens) = (self.inner.cache(), self.inner.tokens()?);
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

    /// Shows what the cache does to one head's keys.
    ///
    /// # Errors
    /// As [`Picture::new`].
    pub async fn picture(&self, layer: usize, head: usize) -> Result<Picture> {
        let (plan, end) = (self.inner.cache().plan(), self.inner.tokens()?);
        let shape = plan.shape();
        if end == 0 || layer >= shape.layers as usize || head >= shape.kv_heads as usize {
            return Err(Error::NoKeys { layer, head });
        }
        let tokens = end.saturating_sub(KEPT.min(plan.sliding_window().unwrap_or(KEPT)))..end;
        let made = self.kept.read(layer, tokens.clone()).await?;
        let restored = self.restored(layer, tokens.clone()).await?;
        Picture::new(plan, [layer, head], tokens.start, &made, &restored)
    }

    /// Keys as the cache gives them back, after RoPE: `[tokens, kv_heads, head_dim]`.
    async fn restored(&self, layer: usize, tokens: Range<u32>) -> Result<Vec<f32>> {
        let (gpu, cache) = (self.model.decoder().gpu(), self.inner.cache());
        let shape = cache.plan().shape();
        let numbers = u64::from((tokens.end - tokens.start) * shape.kv_heads * shape.head_dim);
        let rows = ["restored keys", "restored values"].map(|label| {
            gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: 4 * numbers,
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            })
        });
        let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("restored") });
        cache.dequantize(&mut encoder, self.inner.sequence(), layer as u32, tokens, Rows::f32(&rows[0]), Rows::f32(&rows[1]))?;
        gpu.queue().submit([encoder.finish()]);
        let keys = gpu.read(&rows[0], 0, numbers).await?;
        rows.iter().for_each(wgpu::Buffer::destroy);
        Ok(bytemuck::cast_vec(keys))
    }

    /// Returns the plan in words.
    pub fn plan(&self) -> String {
        self.inner.cache().plan().to_string()
    }

    /// Gives the GPU's memory back at once.
    pub fn destroy(self) {
        self.kept.destroy();
        self.inner.destroy();
    }
}
