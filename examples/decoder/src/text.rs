//! Tokenizers: text to ids and back, from `tokenizer.json` or from a GGUF file's vocabulary.

use std::collections::HashMap;
use std::path::Path;
use std::sync::OnceLock;

use serde_json::{Value, json};
use tokenizers::models::bpe::BPE;
use tokenizers::{AddedToken, DecodeStream, DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer};

use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::model::read_error;

/// Bytes of an ordinary token's text. SentencePiece tokens are split at every place to find what
/// they were merged from, which for a text of megabytes would not end.
const TOKEN_BYTES: usize = 1024;
/// Kinds of tokens that are no ordinary text, as GGUF numbers them.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;

/// A model's tokenizer.
pub struct Text {
    /// Takes the names of special tokens in a text for text.
    tokenizer: Tokenizer,
    /// Takes them for what they name. Only chats want it, and it is as large as the other.
    special: OnceLock<Tokenizer>,
}

/// Turns ids into text one by one, see [`Text::stream`].
pub struct Stream<'a> {
    stream: DecodeStream<'a, ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>,
}

impl Text {
    /// Opens the `tokenizer.json` of a model's folder.
    ///
    /// # Errors
    /// [`Error::Read`] and [`Error::Tokenizer`].
    pub fn open(directory: &Path) -> Result<Self> {
        let path = directory.join("tokenizer.json");
        // Read here, so that a missing file is named as such and not as a parser's complaint.
        Self::from_bytes(&std::fs::read(&path).map_err(read_error(&path))?)
    }

    /// Takes the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Ok(Self::new(Tokenizer::from_bytes(bytes).map_err(failed)?))
    }

    fn new(mut tokenizer: Tokenizer) -> Self {
        tokenizer.set_encode_special_tokens(true);
        Self { tokenizer, special: OnceLock::new() }
    }

    /// Returns the ids of a text, with no special token added. The names of special tokens within
    /// it are text like any other, so that a text cannot pass for more than it is.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode_fast(text, false).map_err(failed)?.get_ids().to_vec())
    }

    /// Returns the ids of a text in which the names of special tokens, such as `<|im_start|>`, are
    /// those tokens: for what a chat template has written. No other special token is added.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        let special = self.special.get_or_init(|| {
            let mut tokenizer = self.tokenizer.clone();
            tokenizer.set_encode_special_tokens(false);
            tokenizer
        });
        Ok(special.encode_fast(text, false).map_err(failed)?.get_ids().to_vec())
    }

    /// Returns the text of ids, leaving special tokens out.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer.decode(ids, true).map_err(failed)
    }

    /// Returns a decoder that takes ids one by one and gives text as soon as characters are whole.
    pub fn stream(&self) -> Stream<'_> {
        Stream { stream: self.tokenizer.decode_stream(true) }
    }

    /// Returns a token as the vocabulary writes it, special or not.
    pub fn token(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    /// Returns the id of a token as the vocabulary writes it, special or not.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// Builds what a GGUF file describes.
    pub(crate) fn from_gguf(file: &Gguf) -> Result<Self> {
        let missing = |name: &str| Error::SettingMissing { file: "GGUF", name: name.to_owned() };
        let texts = file.texts("tokenizer.ggml.tokens")?.ok_or_else(|| missing("tokenizer.ggml.tokens"))?;
        let kinds = file.integers("tokenizer.ggml.token_type")?.unwrap_or_else(|| vec![1; texts.len()]);
        if kinds.len() != texts.len() {
            return Err(wrong("tokenizer.ggml.token_type", format!("{} numbers", kinds.len()), format!("{}, one a token", texts.len())));
        }
        let rows = file.shape("token_embd.weight").and_then(|shape| shape.first().copied()).unwrap_or(0);
        if texts.len() > rows {
            return Err(wrong("tokenizer.ggml.tokens", format!("{} tokens", texts.len()), format!("at most {rows}, the rows of token_embd.weight")));
        }
        let mut ids = HashMap::with_capacity(texts.len());
        for (id, text) in texts.iter().enumerate() {
            if let Some(first) = ids.insert(&**text, id as u32) {
                return Err(wrong("tokenizer.ggml.tokens", format!("{text:?} as token {first} and {id}"), "each text once".into()));
            }
            if text.len() > TOKEN_BYTES && !matches!(kinds[id], CONTROL | USER_DEFINED) {
                return Err(wrong("tokenizer.ggml.tokens", format!("token {id} of {} bytes", text.len()), format!("{TOKEN_BYTES} at most")));
            }
        }
        let mut tokenizer = match file.text("tokenizer.ggml.model")?.ok_or_else(|| missing("tokenizer.ggml.model"))? {
            "gpt2" => byte_pairs(file, &ids)?,
            "llama" => sentence_pieces(file, texts, &kinds, &ids)?,
            other => return Err(wrong("tokenizer.ggml.model", other.to_owned(), "gpt2 or llama".into())),
        };
        let added = |kind: i64, special: bool| {
            let of_kind = texts.iter().zip(&kinds).filter(move |(text, found)| **found == kind && !text.is_empty());
            of_kind.map(move |(text, _)| AddedToken::from(text.to_string(), special).normalized(false))
        };
        tokenizer.add_special_tokens(added(CONTROL, true)).map_err(failed)?;
        tokenizer.add_tokens(added(USER_DEFINED, false)).map_err(failed)?;
        Ok(Self::new(tokenizer))
    }
}

impl Stream<'_> {
    /// Takes the next id and returns the text that it completes, or none while a character is not
    /// whole. Special tokens give no text.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn step(&mut self, id: u32) -> Result<Option<String>> {
        self.stream.step(id).map_err(failed)
    }
}

fn failed(error: tokenizers::Error) -> Error {
    Error::Tokenizer(error.to_string())
}

fn wrong(name: &str, found: String, wanted: String) -> Error {
    Error::Setting { file: "GGUF", name: name.to_owned(), found, wanted }
}

fn vocabulary(ids: &HashMap<&str, u32>) -> tokenizers::models::bpe::Vocab {
    ids.iter().map(|(&text, &id)| (text.to_owned(), id)).collect()
}

/// A part of a tokenizer from what `tokenizer.json` would hold.
fn part<T: serde::de::DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|error| Error::Tokenizer(error.to_string()))
}

/// GPT-2's kind: bytes as letters, merged in the order that the file lists.
fn byte_pairs(file: &Gguf, ids: &HashMap<&str, u32>) -> Result<Tokenizer> {
    const MERGES: &str = "tokenizer.ggml.merges";
    let texts = file.texts(MERGES)?.ok_or_else(|| Error::SettingMissing { file: "GGUF", name: MERGES.into() })?;
    let mut merges = Vec::with_capacity(texts.len());
    for (number, text) in texts.iter().enumerate() {
        let pair = text.split_once(' ').filter(|(left, right)| [*left, *right, &format!("{left}{right}")].iter().all(|token| ids.contains_key(token)));
        let (left, right) = pair.ok_or_else(|| wrong(MERGES, format!("{text:?} as number {number}"), "two tokens that make a third".into()))?;
        merges.push((left.to_owned(), right.to_owned()));
    }
    let pre = file.text("tokenizer.ggml.pre")?.unwrap_or("default");
    let (splits, whole_words, normalizer) = pre_tokenizer(pre)?;
    let model = BPE::builder().vocab_and_merges(vocabulary(ids), merges).ignore_merges(whole_words).build().map_err(failed)?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(part::<PreTokenizerWrapper>(json!({ "type": "Sequence", "pretokenizers": splits }))?));
    tokenizer.with_decoder(Some(part::<DecoderWrapper>(byte_level(false))?));
    if let Some(normalizer) = normalizer {
        tokenizer.with_normalizer(Some(part::<NormalizerWrapper>(normalizer)?)).map_err(failed)?;
    }
    Ok(tokenizer)
}

fn byte_level(splits: bool) -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": splits })
}

/// How text is cut into words before the merges, by the name that llama.cpp has for it, as the
/// `tokenizer.json` of these models does; whether a word that is a token needs no merges; and what
/// happens to the text before.
fn pre_tokenizer(name: &str) -> Result<(Vec<Value>, bool, Option<Value>)> {
    const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
    const TEKKEN: &str = concat!(
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    );
    const GPT4O: &str = concat!(
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    );
    let split = |regex: &str| json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false });
    let bytes = || byte_level(false);
    Ok(match name {
        "llama3" | "llama-v3" | "llama-bpe" => (vec![split(LLAMA3), bytes()], true, None),
        "dbrx" | "smaug-bpe" | "glm4" | "chatglm-bpe" => (vec![split(LLAMA3), bytes()], false, None),
        "qwen2" | "deepseek-r1-qwen" => (vec![split(QWEN2), bytes()], false, Some(json!({ "type": "NFC" }))),
        "tekken" => (vec![split(TEKKEN), bytes()], true, None),
        "gpt-4o" => (vec![split(GPT4O), bytes()], false, None),
        "gpt-2" => (vec![byte_level(true)], false, None),
        "smollm" => (vec![json!({ "type": "Digits", "individual_digits": true }), byte_level(true)], false, None),
        "default" => (vec![split(r"[\p{P}\$\+<=>\^~\|]+"), split(GPT2), split(r"\p{N}+"), split("[0-9][0-9][0-9]"), bytes()], false, None),
        other => {
            let wanted = "default, gpt-2, smollm, llama-bpe, qwen2, tekken, gpt-4o, dbrx, smaug-bpe, glm4 or chatglm-bpe";
            return Err(wrong("tokenizer.ggml.pre", other.to_owned(), wanted.into()));
        }
    })
}

/// SentencePiece's kind: characters, merged in the order of the scores of what they become, with
/// bytes for characters that are no token.
fn sentence_pieces(file: &Gguf, texts: &[Box<str>], kinds: &[i64], ids: &HashMap<&str, u32>) -> Result<Tokenizer> {
    const SCORES: &str = "tokenizer.ggml.scores";
    let scores = file.floats(SCORES)?.ok_or_else(|| Error::SettingMissing { file: "GGUF", name: SCORES.into() })?;
    if scores.len() != texts.len() {
        return Err(wrong(SCORES, format!("{} numbers", scores.len()), format!("{}, one a token", texts.len())));
    }
    // Every way to cut a token into two others, those of the best token first, and of one token's
    // the one with the longest left part: the order that Hugging Face's conversion has.
    let mut merges: Vec<(f64, &str, &str)> = Vec::new();
    for ((text, kind), score) in texts.iter().zip(kinds).zip(&scores) {
        if text.len() > TOKEN_BYTES || matches!(*kind, CONTROL | USER_DEFINED | UNKNOWN | UNUSED) {
            continue;
        }
        for (place, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(place);
            if ids.contains_key(left) && ids.contains_key(right) {
                merges.push((*score, left, right));
            }
        }
    }
    let letters = |text: &str| text.chars().count();
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| (letters(b.1), letters(b.2)).cmp(&(letters(a.1), letters(a.2)))));
    let merges = merges.into_iter().map(|(_, left, right)| (left.to_owned(), right.to_owned())).collect();
    let unknown = file.unsigned("tokenizer.ggml.unknown_token_id")?.unwrap_or(0);
    let unknown = usize::try_from(unknown).ok().and_then(|id| texts.get(id));
    let mut model = BPE::builder().vocab_and_merges(vocabulary(ids), merges).fuse_unk(true).byte_fallback(true);
    if let Some(unknown) = unknown {
        model = model.unk_token(unknown.to_string());
    }
    let mut tokenizer = Tokenizer::new(model.build().map_err(failed)?);
    // The space before a text is put before each piece between special tokens, as llama.cpp does.
    let space = file.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mut normalizers = vec![json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" })];
    let mut decoders =
        vec![json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }), json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" })];
    if space {
        normalizers.insert(0, json!({ "type": "Prepend", "prepend": "▁" }));
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let normalizer = part::<NormalizerWrapper>(json!({ "type": "Sequence", "normalizers": normalizers }))?;
    tokenizer.with_normalizer(Some(normalizer)).map_err(failed)?;
    tokenizer.with_decoder(Some(part::<DecoderWrapper>(json!({ "type": "Sequence", "decoders": decoders }))?));
    Ok(tokenizer)
}
