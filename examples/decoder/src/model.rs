//! A model as it lies in its files: settings, tokenizer, chat template, and tensors that are read
//! when they are asked for.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::chat::ChatTemplate;
use crate::config::{Architecture, Config};
use crate::error::{Error, Result};
use crate::format::{Stored, WeightFormat};
use crate::gguf::Gguf;
use crate::text::Text;
use crate::weights::Weights;

/// Bytes of a header that are read at once where each read is slow.
const READ_BYTES: usize = 1 << 20;
/// Element types of safetensors that are read, for errors.
const ELEMENTS: &str = "F16, BF16 or F32";

/// A model's opened files. The headers are read, and every tensor that the settings ask for is
/// there in its shape; the tensors themselves are read one by one by [`Model::tensor`].
pub struct Model {
    config: Config,
    text: Text,
    chat: Option<ChatTemplate>,
    files: Files,
}

enum Files {
    Safetensors {
        /// `config.json` as it stands in the file, for the hash.
        config: Vec<u8>,
        weights: Weights,
    },
    Gguf(Gguf),
}

/// One of a model's tensors, whatever its files call it. The number is that of the layer.
///
/// Rows and columns are named by the fields of [`Config`]; `queries` is `query_heads * head_dim`,
/// `keys` is `kv_heads * head_dim`. Within a head, the channels that RoPE turns together are
/// `rotary / 2` apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// Token embedding, `[vocabulary, hidden]`.
    Embedding,
    /// Weights of the last norm, `[1, hidden]`.
    Norm,
    /// Output head, `[vocabulary, hidden]`: the embedding where [`Config::tied`] says so.
    Head,
    /// Weights of the norm before the attention, `[1, hidden]`.
    AttentionNorm(usize),
    /// Query projection, `[queries, hidden]`.
    Query(usize),
    /// Key projection, `[keys, hidden]`.
    Key(usize),
    /// Value projection, `[keys, hidden]`.
    Value(usize),
    /// Projection of the attention's output, `[hidden, queries]`.
    Output(usize),
    /// Added to the queries, `[1, queries]`.
    QueryBias(usize),
    /// Added to the keys, `[1, keys]`.
    KeyBias(usize),
    /// Added to the values, `[1, keys]`.
    ValueBias(usize),
    /// Added to the attention's projected output, `[1, hidden]`.
    OutputBias(usize),
    /// Weights of the norm of each query head, `[1, head_dim]`.
    QueryNorm(usize),
    /// Weights of the norm of each key head, `[1, head_dim]`.
    KeyNorm(usize),
    /// Logits of the sinks, one a query head, `[1, query_heads]`.
    Sinks(usize),
    /// Weights of the norm of the attention's projected output, `[1, hidden]`.
    AttentionOutNorm(usize),
    /// Weights of the norm before the MLP, `[1, hidden]`.
    MlpNorm(usize),
    /// Weights of the norm of the MLP's output, `[1, hidden]`.
    MlpOutNorm(usize),
    /// The MLP's projection that goes through the activation, `[intermediate, hidden]`.
    Gate(usize),
    /// The MLP's other projection, `[intermediate, hidden]`.
    Up(usize),
    /// The MLP's projection back, `[hidden, intermediate]`.
    Down(usize),
    /// Added to the gate, `[1, intermediate]`.
    GateBias(usize),
    /// Added beside the gate, `[1, intermediate]`.
    UpBias(usize),
    /// Added to the MLP's output, `[1, hidden]`.
    DownBias(usize),
}

impl Part {
    const OUTSIDE: [Self; 3] = [Self::Embedding, Self::Norm, Self::Head];

    /// All parts that a layer can have.
    const fn of_layer(layer: usize) -> [Self; 21] {
        [
            Self::AttentionNorm(layer),
            Self::Query(layer),
            Self::Key(layer),
            Self::Value(layer),
            Self::Output(layer),
            Self::QueryBias(layer),
            Self::KeyBias(layer),
            Self::ValueBias(layer),
            Self::OutputBias(layer),
            Self::QueryNorm(layer),
            Self::KeyNorm(layer),
            Self::Sinks(layer),
            Self::AttentionOutNorm(layer),
            Self::MlpNorm(layer),
            Self::MlpOutNorm(layer),
            Self::Gate(layer),
            Self::Up(layer),
            Self::Down(layer),
            Self::GateBias(layer),
            Self::UpBias(layer),
            Self::DownBias(layer),
        ]
    }

    const fn layer(self) -> Option<usize> {
        match self {
            Self::Embedding | Self::Norm | Self::Head => None,
            Self::AttentionNorm(layer)
            | Self::Query(layer)
            | Self::Key(layer)
            | Self::Value(layer)
            | Self::Output(layer)
            | Self::QueryBias(layer)
            | Self::KeyBias(layer)
            | Self::ValueBias(layer)
            | Self::OutputBias(layer)
            | Self::QueryNorm(layer)
            | Self::KeyNorm(layer)
            | Self::Sinks(layer)
            | Self::AttentionOutNorm(layer)
            | Self::MlpNorm(layer)
            | Self::MlpOutNorm(layer)
            | Self::Gate(layer)
            | Self::Up(layer)
            | Self::Down(layer)
            | Self::GateBias(layer)
            | Self::UpBias(layer)
            | Self::DownBias(layer) => Some(layer),
        }
    }

    /// Its shape in a model of these numbers, or none where that has no such part. A tied head is
    /// none of its own.
    fn shape(self, config: &Config) -> Option<[usize; 2]> {
        if self.layer().is_some_and(|layer| layer >= config.layers) {
            return None;
        }
        let (queries, keys) = (config.query_heads * config.head_dim, config.kv_heads * config.head_dim);
        let only = |there: bool, shape: [usize; 2]| there.then_some(shape);
        match self {
            Self::Embedding => Some([config.vocabulary, config.hidden]),
            Self::Head => only(!config.tied, [config.vocabulary, config.hidden]),
            Self::Norm | Self::AttentionNorm(_) | Self::MlpNorm(_) => Some([1, config.hidden]),
            Self::AttentionOutNorm(_) | Self::MlpOutNorm(_) => only(config.branch_norms, [1, config.hidden]),
            Self::Sinks(_) => only(config.sinks, [1, config.query_heads]),
            Self::Query(_) => Some([queries, config.hidden]),
            Self::Key(_) | Self::Value(_) => Some([keys, config.hidden]),
            Self::Output(_) => Some([config.hidden, queries]),
            Self::QueryBias(_) => only(config.attention_bias, [1, queries]),
            Self::KeyBias(_) | Self::ValueBias(_) => only(config.attention_bias, [1, keys]),
            Self::OutputBias(_) => only(config.output_bias, [1, config.hidden]),
            Self::QueryNorm(_) | Self::KeyNorm(_) => only(config.head_norm, [1, config.head_dim]),
            Self::Gate(_) | Self::Up(_) => Some([config.intermediate, config.hidden]),
            Self::Down(_) => Some([config.hidden, config.intermediate]),
            Self::GateBias(_) | Self::UpBias(_) => only(config.mlp_bias, [1, config.intermediate]),
            Self::DownBias(_) => only(config.mlp_bias, [1, config.hidden]),
        }
    }

    const fn is_norm(self) -> bool {
        matches!(
            self,
            Self::Norm | Self::AttentionNorm(_) | Self::AttentionOutNorm(_) | Self::MlpNorm(_) | Self::MlpOutNorm(_) | Self::QueryNorm(_) | Self::KeyNorm(_)
        )
    }

    /// The names that Hugging Face and GGUF give it where it is stored on its own.
    const fn names(self, architecture: Architecture) -> (&'static str, &'static str) {
        match self {
            // Hugging Face's `post_attention_layernorm` is the MLP's norm, but to Gemma the
            // attention's output's.
            Self::AttentionOutNorm(_) => match architecture {
                Architecture::Glm4 => ("post_self_attn_layernorm.weight", "post_attention_norm.weight"),
                _ => ("post_attention_layernorm.weight", "post_attention_norm.weight"),
            },
            Self::MlpNorm(_) => match architecture {
                Architecture::Gemma2 | Architecture::Gemma3 => ("pre_feedforward_layernorm.weight", "ffn_norm.weight"),
                _ => ("post_attention_layernorm.weight", "ffn_norm.weight"),
            },
            Self::MlpOutNorm(_) => match architecture {
                Architecture::Glm4 => ("post_mlp_layernorm.weight", "post_ffw_norm.weight"),
                _ => ("post_feedforward_layernorm.weight", "post_ffw_norm.weight"),
            },
            Self::Sinks(_) => ("self_attn.sinks", "attn_sinks.weight"),
            Self::Embedding => ("model.embed_tokens.weight", "token_embd.weight"),
            Self::Norm => ("model.norm.weight", "output_norm.weight"),
            Self::Head => ("lm_head.weight", "output.weight"),
            Self::AttentionNorm(_) => ("input_layernorm.weight", "attn_norm.weight"),
            Self::Query(_) => ("self_attn.q_proj.weight", "attn_q.weight"),
            Self::Key(_) => ("self_attn.k_proj.weight", "attn_k.weight"),
            Self::Value(_) => ("self_attn.v_proj.weight", "attn_v.weight"),
            Self::Output(_) => ("self_attn.o_proj.weight", "attn_output.weight"),
            Self::QueryBias(_) => ("self_attn.q_proj.bias", "attn_q.bias"),
            Self::KeyBias(_) => ("self_attn.k_proj.bias", "attn_k.bias"),
            Self::ValueBias(_) => ("self_attn.v_proj.bias", "attn_v.bias"),
            Self::OutputBias(_) => ("self_attn.o_proj.bias", "attn_output.bias"),
            Self::QueryNorm(_) => ("self_attn.q_norm.weight", "attn_q_norm.weight"),
            Self::KeyNorm(_) => ("self_attn.k_norm.weight", "attn_k_norm.weight"),
            Self::Gate(_) => ("mlp.gate_proj.weight", "ffn_gate.weight"),
            Self::Up(_) => ("mlp.up_proj.weight", "ffn_up.weight"),
            Self::Down(_) => ("mlp.down_proj.weight", "ffn_down.weight"),
            Self::GateBias(_) => ("mlp.gate_proj.bias", "ffn_gate.bias"),
            Self::UpBias(_) => ("mlp.up_proj.bias", "ffn_up.bias"),
            Self::DownBias(_) => ("mlp.down_proj.bias", "ffn_down.bias"),
        }
    }
}

/// Where a part is stored: some rows of a tensor.
struct Place {
    name: String,
    /// Of the whole tensor.
    shape: [usize; 2],
    rows: Range<usize>,
}

impl Model {
    /// Opens a folder in Hugging Face's layout (`config.json`, `tokenizer.json`, `*.safetensors`
    /// with or without an index; `tokenizer_config.json`, `chat_template.jinja` and
    /// `generation_config.json` where they are there) or a GGUF file.
    ///
    /// # Errors
    /// [`Error::Read`] for a file that cannot be read; [`Error::Json`], [`Error::Header`],
    /// [`Error::Gguf`] and [`Error::Length`] for one that is damaged; [`Error::Architecture`],
    /// [`Error::Setting`] and [`Error::SettingMissing`] for a model that is not run here;
    /// [`Error::NoWeights`], [`Error::TensorMissing`], [`Error::TensorShape`],
    /// [`Error::TensorElement`] and [`Error::TensorTwice`] for tensors that do not fit the
    /// settings; [`Error::Tokenizer`]. A chat template that cannot be run is refused only when it
    /// is asked to write.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() { Self::folder(path) } else { Self::gguf(Source::File(path.to_owned())) }
    }

    /// Opens a GGUF file that lies in memory, such as one that a browser has fetched.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn from_gguf(bytes: Vec<u8>) -> Result<Self> {
        Self::gguf(Source::Bytes(bytes))
    }

    /// Opens a GGUF file of `length` bytes that `read` reads: it fills a slice from a place on. No
    /// more than a tensor of it is in memory at a time. Errors call the file `name`.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn from_gguf_reader(name: &str, length: u64, read: impl Fn(u64, &mut [u8]) -> std::io::Result<()> + wgpu::WasmNotSendSync + 'static) -> Result<Self> {
        Self::gguf(Source::Reader { name: PathBuf::from(name), length, read: Box::new(read) })
    }

    /// Opens a model from the bytes of its `config.json`, its `tokenizer.json` and its one
    /// safetensors file. It has no chat template; [`ChatTemplate::new`] makes one.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn from_parts(config: &[u8], tokenizer: &[u8], weights: Vec<u8>) -> Result<Self> {
        let files = Files::Safetensors { config: config.to_vec(), weights: Weights::from_bytes(weights)? };
        Self { config: Config::from_bytes(config)?, text: Text::from_bytes(tokenizer)?, chat: None, files }.checked()
    }

    fn folder(path: &Path) -> Result<Self> {
        let config = path.join("config.json");
        let files = Files::Safetensors { config: std::fs::read(&config).map_err(read_error(&config))?, weights: Weights::open(path)? };
        Self { config: Config::open(path)?, text: Text::open(path)?, chat: ChatTemplate::open(path)?, files }.checked()
    }

    fn gguf(source: Source) -> Result<Self> {
        let gguf = Gguf::open(source)?;
        let config = Config::from_gguf(&gguf)?;
        let text = Text::from_gguf(&gguf)?;
        let chat = gguf.text("tokenizer.chat_template")?.map(ChatTemplate::unread);
        Self { config, text, chat, files: Files::Gguf(gguf) }.checked()
    }

    /// Refuses a model whose tensors are not what its settings imply.
    fn checked(self) -> Result<Self> {
        for part in Part::OUTSIDE.into_iter().chain((0..self.config.layers).flat_map(Part::of_layer)) {
            if let Some(shape) = part.shape(&self.config) {
                self.check(&self.place(part, shape))?;
            }
        }
        Ok(self)
    }

    fn check(&self, place: &Place) -> Result<()> {
        let (name, wanted) = (&place.name, if place.shape[0] == 1 { &place.shape[1..] } else { &place.shape[..] });
        let missing = || Error::TensorMissing { name: name.clone(), wanted: wanted.to_vec(), files: self.files.count() };
        let found = match &self.files {
            Files::Gguf(gguf) => gguf.shape(name).ok_or_else(missing)?,
            Files::Safetensors { weights, .. } => {
                let (shape, format) = weights.describe(name).ok_or_else(missing)?;
                format.map_err(|found| Error::TensorElement { name: name.clone(), found, wanted: ELEMENTS })?;
                shape
            }
        };
        if found != wanted {
            return Err(Error::TensorShape { name: name.clone(), wanted: wanted.to_vec(), found: found.to_vec() });
        }
        Ok(())
    }

    fn place(&self, part: Part, shape: [usize; 2]) -> Place {
        let config = &self.config;
        let is_gguf = matches!(self.files, Files::Gguf(_));
        let named = |(folder, gguf): (&str, &str)| match (part.layer(), is_gguf) {
            (Some(layer), true) => format!("blk.{layer}.{gguf}"),
            (Some(layer), false) => format!("model.layers.{layer}.{folder}"),
            (None, true) => gguf.to_owned(),
            (None, false) => folder.to_owned(),
        };
        // Phi-3 stores what is multiplied by the same rows in one tensor, and so does GLM-4's MLP.
        let (queries, keys) = (config.query_heads * config.head_dim, config.kv_heads * config.head_dim);
        let attention = (("self_attn.qkv_proj.weight", "attn_qkv.weight"), queries + 2 * keys);
        let mlp = (("mlp.gate_up_proj.weight", "ffn_up.weight"), 2 * config.intermediate);
        let fused = match (config.architecture, part) {
            (Architecture::Phi3, Part::Query(_)) => Some((attention, 0)),
            (Architecture::Phi3, Part::Key(_)) => Some((attention, queries)),
            (Architecture::Phi3, Part::Value(_)) => Some((attention, queries + keys)),
            (Architecture::Phi3 | Architecture::Glm4, Part::Gate(_)) => Some((mlp, 0)),
            (Architecture::Phi3 | Architecture::Glm4, Part::Up(_)) => Some((mlp, config.intermediate)),
            _ => None,
        };
        match fused {
            Some(((names, rows), first)) => Place { name: named(names), shape: [rows, shape[1]], rows: first..first + shape[0] },
            None => Place { name: named(part.names(config.architecture)), shape, rows: 0..shape[0] },
        }
    }

    /// Returns the model's settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Returns the model's tokenizer.
    pub fn text(&self) -> &Text {
        &self.text
    }

    /// Returns the model's chat template, if its files hold one.
    pub fn chat(&self) -> Option<&ChatTemplate> {
        self.chat.as_ref()
    }

    /// Returns tokenizer and chat template alone, and lets go of the files: for a model whose
    /// weights are on the GPU.
    pub fn into_text(self) -> (Text, Option<ChatTemplate>) {
        (self.text, self.chat)
    }

    /// Returns a name for the model by its content: a SHA-256 in hexadecimal over its settings,
    /// then over every tensor in the order of their names its name, element type, shape and bytes.
    /// It does not depend on how tensors are spread over files, nor on tokenizer and chat template.
    /// The settings are the bytes of `config.json`, or what a GGUF file says of its architecture;
    /// the same weights in both kinds of file are two models.
    ///
    /// Of a tensor with more than 128 KiB only 32 samples of 4 KiB count, evenly spread from its
    /// first byte to its last. Another training run, a fine-tuned or otherwise converted model
    /// differs there; a single number changed by hand need not. The hash guards against a mistake,
    /// not against intent.
    ///
    /// # Errors
    /// [`Error::Read`].
    pub fn hash(&self) -> Result<String> {
        let mut hash = Sha256::new();
        match &self.files {
            Files::Safetensors { config, weights } => {
                hash.update((config.len() as u64).to_le_bytes());
                hash.update(config);
                weights.content(|bytes| hash.update(bytes))?;
            }
            Files::Gguf(gguf) => {
                let architecture = gguf.text("general.architecture")?.unwrap_or_default();
                gguf.content(&format!("{architecture}."), |bytes| hash.update(bytes))?;
            }
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Returns whether the model has such a tensor. A tied head is not one; [`Model::tensor`] gives
    /// the embedding for it.
    pub fn has(&self, part: Part) -> bool {
        part.shape(&self.config).is_some()
    }

    /// Reads one tensor, in the format that its file has. Rows come in the order that turns halves
    /// of a head: those that a file has for interleaved rotation (GGUF's of some architectures,
    /// GLM-4's of both kinds) are moved, and fused tensors are taken apart. Weights of norms are
    /// what a row is multiplied by: where the file's are counted from 1 (Gemma's folders), 1 is
    /// added, in F32.
    ///
    /// # Errors
    /// [`Error::TensorMissing`] for a part that this model does not have, and [`Error::Read`].
    pub fn tensor(&self, part: Part) -> Result<Stored> {
        let part = if part == Part::Head && self.config.tied { Part::Embedding } else { part };
        let Some(shape) = part.shape(&self.config) else {
            return Err(Error::TensorMissing { name: self.place(part, [0, 0]).name, wanted: Vec::new(), files: self.files.count() });
        };
        let Place { name, rows, .. } = self.place(part, shape);
        let config = &self.config;
        let (stored, interleaved) = match &self.files {
            Files::Safetensors { weights, .. } => {
                let stored = weights.rows(&name, rows)?;
                if part.is_norm() && matches!(config.architecture, Architecture::Gemma2 | Architecture::Gemma3) {
                    return Ok(one_more(&stored));
                }
                (stored, config.architecture == Architecture::Glm4)
            }
            Files::Gguf(gguf) => {
                let interleaved = matches!(config.architecture, Architecture::Llama | Architecture::SmolLm3 | Architecture::Glm4);
                (gguf.rows(&name, rows)?, interleaved)
            }
        };
        match part {
            Part::Query(_) | Part::QueryBias(_) if interleaved => unpermute(stored, &name, config.query_heads, config.rotary),
            Part::Key(_) | Part::KeyBias(_) if interleaved => unpermute(stored, &name, config.kv_heads, config.rotary),
            _ => Ok(stored),
        }
    }
}

/// Returns weights that are counted from 1 as they are.
fn one_more(stored: &Stored) -> Stored {
    let bytes = stored.numbers().iter().flat_map(|weight| (1.0 + weight).to_le_bytes()).collect();
    Stored { rows: stored.rows, columns: stored.columns, format: WeightFormat::F32, bytes }
}

/// Puts the channels of each head that rotate, its first ones, into two halves. Where neighbours
/// are turned together, channel `i` of the second half lies right behind channel `i` of the first:
/// GGUF's converter has put them there for the architectures that ggml turns so. Whole rows move,
/// so nothing is lost whatever their format.
fn unpermute(stored: Stored, name: &str, heads: usize, rotary: usize) -> Result<Stored> {
    // A bias is one row; there the elements move.
    let (count, bytes) = if stored.rows > 1 { (stored.rows, stored.bytes.len() / stored.rows) } else { (stored.columns, stored.format.block_bytes()) };
    if stored.rows == 1 && stored.format.block_elements() > 1 {
        return Err(Error::TensorElement { name: name.to_owned(), found: stored.format.name().to_owned(), wanted: ELEMENTS });
    }
    let head_dim = count / heads;
    let mut moved = Vec::with_capacity(stored.bytes.len());
    for row in 0..count {
        let (head, channel) = (row / head_dim, row % head_dim);
        let within = if channel < rotary { channel % (rotary / 2) * 2 + channel / (rotary / 2) } else { channel };
        let from = head * head_dim + within;
        moved.extend_from_slice(&stored.bytes[from * bytes..(from + 1) * bytes]);
    }
    Ok(Stored { bytes: moved, ..stored })
}

impl Files {
    fn count(&self) -> usize {
        match self {
            Self::Safetensors { weights, .. } => weights.files(),
            Self::Gguf(_) => 1,
        }
    }
}

/// Where a file's bytes are.
#[derive(Debug)]
pub(crate) enum Source {
    File(PathBuf),
    Bytes(Vec<u8>),
    Reader { name: PathBuf, length: u64, read: Box<dyn ReadAt> },
}

/// What fills a slice from a place of a file on.
pub(crate) trait ReadAt: wgpu::WasmNotSendSync {
    fn read_at(&self, start: u64, bytes: &mut [u8]) -> std::io::Result<()>;
}

impl<F: Fn(u64, &mut [u8]) -> std::io::Result<()> + wgpu::WasmNotSendSync> ReadAt for F {
    fn read_at(&self, start: u64, bytes: &mut [u8]) -> std::io::Result<()> {
        self(start, bytes)
    }
}

impl std::fmt::Debug for dyn ReadAt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ReadAt")
    }
}

/// Reads such a file from its start on.
struct FromStart<'a> {
    read: &'a dyn ReadAt,
    at: u64,
    length: u64,
}

impl Read for FromStart<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let count = (self.length - self.at).min(bytes.len() as u64) as usize;
        self.read.read_at(self.at, &mut bytes[..count])?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Source {
    /// The file, as errors name it.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::File(path) => path.clone(),
            Self::Bytes(_) => PathBuf::from("<bytes>"),
            Self::Reader { name, .. } => name.clone(),
        }
    }

    pub fn length(&self) -> Result<u64> {
        match self {
            Self::File(path) => Ok(std::fs::metadata(path).map_err(read_error(path))?.len()),
            Self::Bytes(bytes) => Ok(bytes.len() as u64),
            Self::Reader { length, .. } => Ok(*length),
        }
    }

    /// Reads from the start on.
    pub fn reader(&self) -> Result<Box<dyn Read + '_>> {
        match self {
            Self::File(path) => Ok(Box::new(BufReader::new(File::open(path).map_err(read_error(path))?))),
            Self::Bytes(bytes) => Ok(Box::new(bytes.as_slice())),
            Self::Reader { length, read, .. } => {
                let reader = FromStart { read: &**read, at: 0, length: *length };
                Ok(Box::new(BufReader::with_capacity(READ_BYTES, reader)))
            }
        }
    }

    /// Reads a place that the header has been checked to hold.
    pub fn read(&self, start: u64, count: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        match self {
            Self::File(path) => File::open(path).and_then(|mut file| {
                file.seek(SeekFrom::Start(start))?;
                file.read_exact(&mut bytes)
            }),
            Self::Bytes(all) => all.get(start as usize..).unwrap_or_default().read_exact(&mut bytes),
            Self::Reader { read, .. } => read.read_at(start, &mut bytes),
        }
        .map_err(read_error(&self.path()))?;
        Ok(bytes)
    }
}

/// Names the file in an error of the system's.
pub(crate) fn read_error(path: &Path) -> impl Fn(std::io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Read { path: path.clone(), source }
}
