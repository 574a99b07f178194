//! `chat`: a conversation in the form that the model was trained on.
//!
//! The cache keeps the conversation. For each turn all of it is written by the model's template,
//! and only the tokens after those that the cache holds already are read.

use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use wgkv::{Capacity, Sinks};
use wgkv_decoder::{ChatTemplate, Decoder, KvCache, Message, Model, Session};

use crate::error::{Error, Result};
use crate::generate::f16_bytes;
use crate::options::{CacheOptions, ChoiceOptions, Layered, ModelOptions, open, open_layers, planned};

/// Tokens of a conversation, where neither the user nor the model says how many.
const CONTEXT: u32 = 4096;

/// Options of `chat`.
#[derive(Debug, Clone, clap::Args)]
pub struct ChatOptions {
    /// The model.
    #[command(flatten)]
    pub model: ModelOptions,
    /// The cache.
    #[command(flatten)]
    pub cache: CacheOptions,
    /// What the model is told before the conversation; the template's own words without it.
    #[arg(long)]
    pub system: Option<String>,
    /// Tokens of an answer at most.
    #[arg(long, default_value_t = 1024)]
    pub tokens: usize,
    /// Tokens of the whole conversation, which the cache is made for; 4096, or as many as the model
    /// was trained for if these are fewer.
    #[arg(long)]
    pub context: Option<u32>,
    /// 0 takes the likeliest token; larger is more varied.
    #[arg(long, default_value_t = 0.7)]
    pub temperature: f32,
    /// How tokens are chosen.
    #[command(flatten)]
    pub choice: ChoiceOptions,
    /// Tokens of a message that are processed at once.
    #[arg(long, default_value_t = 512)]
    pub chunk: u32,
}

/// What Ctrl-C does: it ends an answer that is being written, or else the program.
#[derive(Debug, Default)]
pub struct Interrupt {
    answering: AtomicBool,
    stopped: AtomicBool,
}

impl Interrupt {
    /// Returns the flag of a program that writes no answer at present.
    pub const fn new() -> Self {
        Self { answering: AtomicBool::new(false), stopped: AtomicBool::new(false) }
    }

    /// Takes Ctrl-C. Returns whether an answer ends by it; else, or at the second time, the program
    /// should.
    pub fn take(&self) -> bool {
        self.answering.load(Ordering::SeqCst) && !self.stopped.swap(true, Ordering::SeqCst)
    }

    fn answering(&self, answering: bool) {
        self.stopped.store(false, Ordering::SeqCst);
        self.answering.store(answering, Ordering::SeqCst);
    }

    fn stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }
}

/// Where a conversation takes place.
pub struct Console<'a> {
    /// Lines of the user.
    pub input: &'a mut dyn BufRead,
    /// Where answers are written.
    pub out: &'a mut dyn Write,
    /// What is not part of the conversation.
    pub notes: &'a mut dyn Write,
    /// Whether a person sits there, who is shown a prompt and how fast it went.
    pub interactive: bool,
    /// What Ctrl-C does.
    pub interrupt: &'a Interrupt,
}

impl Console<'_> {
    /// Asks for a line; none at the end of the input.
    fn ask(&mut self) -> Result<Option<String>> {
        if self.interactive {
            self.write("> ")?;
        }
        let mut line = Vec::new();
        let read = self.input.read_until(b'\n', &mut line).map_err(|source| Error::Read { path: "standard input".into(), source })?;
        Ok((read > 0).then(|| String::from_utf8_lossy(&line).trim().to_owned()))
    }

    fn write(&mut self, text: &str) -> Result<()> {
        self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()).map_err(Error::Write)
    }

    fn note(&mut self, text: &str) {
        // Nobody misses a note that cannot be written.
        let _ = writeln!(self.notes, "{text}");
    }
}

/// A conversation.
struct Chat<'a, C> {
    model: &'a Model,
    template: &'a ChatTemplate,
    session: Session<C>,
    /// Role and words of each message.
    messages: Vec<(&'static str, String)>,
    /// Tokens that the cache holds.
    held: Vec<u32>,
    /// Tokens that the cache has room for.
    context: u32,
    /// Tokens of an answer at most.
    most: usize,
}

impl<C: KvCache> Chat<'_, C> {
    /// The tokens of the conversation, up to where the answer begins.
    fn written(&self) -> Result<Vec<u32>> {
        let (config, text) = (self.model.config(), self.model.text());
        let word = |id: Option<u32>| id.and_then(|id| text.token(id)).unwrap_or_default();
        let messages: Vec<Message<'_>> = self.messages.iter().map(|(role, content)| Message { role, content }).collect();
        let written = self.template.render(&messages, true, &word(config.begin), &word(config.end.first().copied()))?;
        let ids = text.encode_with_special(&written)?;
        if ids.is_empty() {
            return Err(wgkv_decoder::Error::Template("it writes nothing".into()).into());
        }
        Ok(ids)
    }

    /// Begins anew, with what the model is told.
    fn reset(&mut self) -> Result<()> {
        self.messages.retain(|(role, _)| *role == "system");
        self.held.clear();
        Ok(self.session.reset()?)
    }

    /// Cuts back to the first tokens of what is held; returns how many stay.
    fn keep(&mut self, tokens: usize) -> Result<usize> {
        // Not every cache can be cut back to every length; what is gone is read again.
        if self.session.truncate(tokens as u32).is_err() {
            self.session.reset()?;
            self.held.clear();
        }
        self.held.truncate(tokens);
        Ok(self.held.len())
    }

    /// Writes the model's answer to a message.
    fn answer(&mut self, message: String, console: &mut Console<'_>) -> Result<()> {
        self.messages.push(("user", message));
        let ids = self.written()?;
        if ids.len() >= self.context as usize {
            self.messages.pop();
            let context = self.context;
            console.note(&format!(
                "note: the conversation would have {} tokens and the cache holds {context}: /reset begins another, --context N has room for more",
                ids.len()
            ));
            return Ok(());
        }
        console.interrupt.answering(true);
        let answered = self.stream(&ids, console);
        console.interrupt.answering(false);
        self.messages.push(("assistant", answered?));
        Ok(())
    }

    /// Reads what is new of the conversation and writes the answer.
    fn stream(&mut self, ids: &[u32], console: &mut Console<'_>) -> Result<String> {
        let text = self.model.text();
        // One token at least is read, since the answer follows it.
        let known = self.held.iter().zip(&ids[..ids.len() - 1]).take_while(|(held, id)| held == id).count();
        let known = self.keep(known)?;
        self.session.prompt(&ids[known..])?;
        self.held = ids.to_vec();

        // From the first token on: the reading that comes before is not decoding.
        let mut started = Instant::now();
        let (mut answer, mut stream) = (Vec::new(), text.stream());
        let mut room = true;
        while room && answer.len() < self.most && !console.interrupt.stopped() {
            room = self.session.tokens()? < self.context;
            let ahead = room && answer.len() + 1 < self.most;
            let token = pollster::block_on(self.session.next(ahead))?;
            if answer.is_empty() {
                started = Instant::now();
            }
            if ahead {
                self.held.push(token);
            }
            if self.model.config().end.contains(&token) {
                room = true;
                break;
            }
            answer.push(token);
            if let Some(piece) = stream.step(token)? {
                console.write(&piece)?;
            }
        }
        console.write("\n")?;
        if !room {
            console.note(&format!("note: the cache is full, it holds {} tokens: /reset begins another conversation", self.context));
        }
        if console.interactive {
            let (seconds, cache) = (started.elapsed().as_secs_f64(), self.session.cache());
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            console.note(&format!(
                "[{} tokens, {:.1} tokens/s; the cache holds {} of {} tokens in {:.2} MiB, f16 would take {:.2}]",
                answer.len(),
                answer.len().saturating_sub(1) as f64 / seconds,
                self.held.len(),
                self.context,
                mib(cache.bytes_used()),
                mib(f16_bytes(self.model.config(), self.held.len()))
            ));
        }
        Ok(text.decode(&answer)?)
    }
}

/// Converses until the input ends or says `/exit`.
///
/// # Errors
/// [`Error::NoTemplate`]; those of the model, the cache and the device; [`Error::Read`] and
/// [`Error::Write`].
pub fn chat(options: &ChatOptions, console: &mut Console<'_>) -> Result<()> {
    let model = options.model.open()?;
    let template = model.chat().ok_or_else(|| Error::NoTemplate { model: options.model.model.clone() })?;
    let config = model.config();
    let trained = u32::try_from(config.max_tokens).ok().filter(|tokens| *tokens > 0);
    let context = options.context.unwrap_or(CONTEXT.min(trained.unwrap_or(CONTEXT)));
    let (cache_options, bits) = options.cache.with_plan(&model)?;
    let protection = cache_options.protection(Sinks::First(4), 128);
    let learned = cache_options.learned(&model, &options.model.model)?;
    let allocation = cache_options.allocation(config, learned.as_ref(), bits)?;

    let gpu = options.model.gpu()?;
    let decoder = pollster::block_on(Decoder::load(&gpu, &model))?;
    let (alignment, capacity) = (options.cache.align.unwrap_or_default(), Capacity::tokens(1, context));
    let chunk = options.chunk.clamp(1, context.max(1));
    let sampling = options.choice.sampling(options.temperature);
    let messages = options.system.iter().map(|system| ("system", system.clone())).collect();
    if console.interactive {
        console.note(&format!("on {}; /reset begins anew, /exit or Ctrl-D leaves, Ctrl-C ends an answer", gpu.adapter_name()));
    }
    if !config.layers_are_alike() {
        let cache = open_layers(&decoder, &allocation, learned.as_ref(), Layered { protection, alignment, capacity, chunk, keep: 0 })?;
        let session = pollster::block_on(Session::new(&decoder, cache, chunk, sampling))?;
        return converse(Chat { model: &model, template, session, messages, held: Vec::new(), context, most: options.tokens }, console);
    }
    let cache = open(&gpu, planned(config, allocation, learned, protection, capacity).alignment(alignment))?;
    let session = pollster::block_on(Session::new(&decoder, cache, chunk, sampling))?;
    converse(Chat { model: &model, template, session, messages, held: Vec::new(), context, most: options.tokens }, console)
}

fn converse<C: KvCache>(mut chat: Chat<'_, C>, console: &mut Console<'_>) -> Result<()> {
    while let Some(line) = console.ask()? {
        match line.as_str() {
            "" => {}
            "/exit" => break,
            "/reset" => chat.reset()?,
            _ => chat.answer(line, console)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Interrupt;

    #[test]
    fn an_interrupt_ends_an_answer_and_at_the_prompt_the_program() {
        let interrupt = Interrupt::new();
        assert!(!interrupt.take());
        interrupt.answering(true);
        assert!(interrupt.take() && interrupt.stopped());
        assert!(!interrupt.take(), "a second one ends the program");
        interrupt.answering(false);
        assert!(!interrupt.stopped() && !interrupt.take());
    }
}
