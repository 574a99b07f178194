//! What can go wrong: each error names the thing, the number wanted and the number had.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// A result of this library.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of this library. Errors are found before anything is recorded or changed: after one, a
/// [`Cache`](crate::Cache) holds what it held and can still be used. After [`Error::Lost`], nothing
/// on the device can.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Something is not what it must be: an argument, a plan, or what a file holds.
    #[error("{of}{name} must be {wanted}, but is {had}")]
    Mismatch {
        /// What it belongs to.
        of: Thing,
        /// What does not fit.
        name: Cow<'static, str>,
        /// What it must be.
        wanted: String,
        /// What it is.
        had: String,
    },
    /// A file could not be read or written.
    #[error("{doing} {path} failed")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: String,
        /// The system's error.
        source: IoError,
    },
    /// The bits of a code are not 2, 3, 4, 8 or 16.
    #[error("bits must be 2, 3, 4, 8 or 16, but are {had}")]
    Bits {
        /// The number asked for.
        had: u32,
    },
    /// No codec has this name.
    #[error("no codec is called {had:?}; there are {known}")]
    Codec {
        /// The names of all codecs.
        known: String,
        /// The name asked for.
        had: String,
    },
    /// A group of channels does not fit the head.
    #[error("group {group} does not divide head_dim {head_dim}; use 32, 64 or 128 that divides it, or 128 for one group in a smaller head")]
    Group {
        /// Channels that should share a scale.
        group: u32,
        /// Channels of a head.
        head_dim: u32,
    },
    /// A store of snapshots could not be used.
    #[cfg(feature = "store")]
    #[error("{doing} {place} failed: {message}")]
    Store {
        /// What was being done.
        doing: &'static str,
        /// With what: a name in the store.
        place: String,
        /// The store's message.
        message: String,
    },
    /// The residual stream of a prompt was not given to the cache before its keys and values.
    #[error("layer {layer} must be given its residual stream by Cache::elect before Cache::append, since the plan's sinks are {sinks}")]
    Unelected {
        /// The layer.
        layer: u32,
        /// The plan's rule.
        sinks: String,
    },
    /// A layer was given its part of a step twice, or too early.
    #[error("layer {layer}: {call} must come {wanted}, but came {had}")]
    Order {
        /// The call.
        call: &'static str,
        /// The layer.
        layer: u32,
        /// When it must come.
        wanted: &'static str,
        /// When it came.
        had: &'static str,
    },
    /// Tokens of a step that some layers were given and others were not, before a later call made
    /// the step stale. The sequence can be [cut back](crate::Cache::truncate) or ended.
    #[error("sequence {slot} has its first {whole} tokens in every layer, but layer {layer} was not given those of a step that other layers were given")]
    Torn {
        /// The sequence's place.
        slot: u32,
        /// A layer that lacks the step.
        layer: u32,
        /// The first tokens, which all layers have: what it can be cut back to.
        whole: u32,
    },
    /// The device cannot do what the plan needs.
    #[error("the device's {what} is {have}, but {need} is needed for {reason}")]
    Limit {
        /// The limit, by its WebGPU name.
        what: &'static str,
        /// What is needed for.
        reason: &'static str,
        /// The number wanted.
        need: u64,
        /// The number had.
        have: u64,
    },
    /// The capacity asked for is too small to hold anything.
    #[error("the capacity is {have}, but {need} are needed for {reason}")]
    Capacity {
        /// What is needed for, and in which unit.
        reason: &'static str,
        /// How much is wanted.
        need: u64,
        /// How much there is.
        have: u64,
    },
    /// More tokens than free pages can hold.
    #[error("{need} more pages are needed, but {have} are free")]
    Pages {
        /// Pages wanted.
        need: u32,
        /// Pages free.
        have: u32,
    },
    /// All sequences that the plan has room for are in use.
    #[error("all {have} sequences of the plan are in use")]
    Sequences {
        /// The plan's number of sequences.
        have: u32,
    },
    /// A sequence of another cache, or one that was freed.
    #[error("sequence {slot} is not a live sequence of this cache")]
    UnknownSequence {
        /// The handle's place.
        slot: u32,
    },
    /// A step of another cache, or one that a later step replaced.
    #[error("the step is not this cache's latest: {reason}")]
    Stale {
        /// Why it is not.
        reason: &'static str,
    },
    /// A step names a sequence twice.
    #[error("sequence {slot} appears twice in the step")]
    RepeatedSequence {
        /// The handle's place.
        slot: u32,
    },
    /// A chunk of no tokens.
    #[error("the chunk of sequence {slot} must have 1 token or more, but has 0")]
    EmptyChunk {
        /// The handle's place.
        slot: u32,
    },
    /// A sequence would grow beyond the positions the plan holds.
    #[error("sequence {slot} would hold {need} tokens, but the plan has room for {have} in one sequence")]
    Length {
        /// The handle's place.
        slot: u32,
        /// Tokens wanted.
        need: u64,
        /// Tokens possible.
        have: u64,
    },
    /// No such layer.
    #[error("layer {had} does not exist; the plan has {layers} layers")]
    Layer {
        /// The layer asked for.
        had: u32,
        /// Layers of the plan.
        layers: u32,
    },
    /// Tokens that the sequence does not hold.
    #[error("tokens {first} to {end} were asked for, but the sequence holds {have}")]
    Range {
        /// First token.
        first: u32,
        /// Token after the last.
        end: u32,
        /// Tokens held.
        have: u32,
    },
    /// A part of a step that does not begin where its sequence ends.
    #[error("sequence {slot} holds {have} tokens; queries from {first} on can bring it {most} at most, not {tokens}")]
    Share {
        /// The sequence's place in the cache.
        slot: u32,
        /// Position of the first query.
        first: u32,
        /// Tokens that it was to grow by.
        tokens: u32,
        /// Tokens it holds, or that are elsewhere before them: the least that `first` can be.
        have: u32,
        /// Tokens that it could grow by.
        most: u32,
    },
    /// Tokens that the sequence slid beyond ([`Cache::slide`](crate::Cache::slide)).
    #[error("token {token} is gone: the sequence slid beyond it, and holds tokens from {first} on")]
    Dropped {
        /// First token wanted.
        token: u32,
        /// First token held, but for sinks.
        first: u32,
    },
    /// A buffer is shorter than the rows it should hold.
    #[error("{name} must hold {need} bytes from its offset, but holds {have}")]
    Rows {
        /// The argument.
        name: &'static str,
        /// Bytes wanted.
        need: u64,
        /// Bytes had.
        have: u64,
    },
    /// A buffer's offset is not where the device can bind it, or numbers can begin.
    #[error("the offset of {name} must be a multiple of {need}, but is {had}")]
    Offset {
        /// The argument.
        name: &'static str,
        /// The device's alignment, or bytes of a number or word.
        need: u64,
        /// The offset.
        had: u64,
    },
    /// A buffer lacks a usage.
    #[error("the buffer of {name} must be made with usage {need}")]
    Usage {
        /// The argument.
        name: &'static str,
        /// The usage wanted.
        need: &'static str,
    },
    /// No adapter was found.
    #[error("no GPU adapter was found: {0}{advice}", advice = NO_ADAPTER)]
    NoAdapter(String),
    /// The device could not be made.
    #[error("the device could not be made: {0}")]
    Device(String),
    /// The device was lost with all that lay on it: its driver failed, or it was unplugged or
    /// destroyed.
    #[error("the device was lost: {reason}")]
    Lost {
        /// What the device reported.
        reason: String,
    },
    /// The device has no memory left for a buffer.
    #[error("the device has no memory for {need} bytes")]
    Memory {
        /// Bytes wanted.
        need: u64,
    },
    /// A shader did not compile.
    #[error("{kernel} did not compile: {message}")]
    Shader {
        /// The kernel and its variant.
        kernel: String,
        /// The compiler's message, with the file and line where the parts were joined.
        message: String,
    },
    /// A buffer could not be read back.
    #[error("reading back failed: {0}")]
    Readback(String),
}

impl Error {
    /// Returns the error that something of a thing is not what it must be.
    pub fn mismatch(of: Thing, name: impl Into<Cow<'static, str>>, wanted: impl ToString, had: impl ToString) -> Self {
        Self::Mismatch { of, name: name.into(), wanted: wanted.to_string(), had: had.to_string() }
    }

    /// Returns the error that an argument is not what it must be.
    pub fn argument(name: impl Into<Cow<'static, str>>, wanted: impl ToString, had: impl ToString) -> Self {
        Self::mismatch(Thing::Argument, name, wanted, had)
    }

    /// Returns what is wanted and had, if it is a mismatch of this thing by this name.
    pub fn wanted_of(&self, thing: Thing, called: &str) -> Option<(&str, &str)> {
        match self {
            Self::Mismatch { of, name, wanted, had } if *of == thing && name == called => Some((wanted, had)),
            _ => None,
        }
    }
}

/// What helps where no adapter is found.
const NO_ADAPTER: &str = if cfg!(target_os = "linux") { ". On Debian or Ubuntu without a GPU driver, install mesa-vulkan-drivers" } else { "" };

/// What a [mismatch](Error::Mismatch) is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Thing {
    /// An argument of the call, or a text that stands for one.
    Argument,
    /// A [`BitPlan`](crate::bits::BitPlan).
    BitPlan,
    /// A [`ChannelOrder`](crate::ChannelOrder).
    ChannelOrder,
    /// [`Means`](crate::Means).
    Means,
    /// A [`Sensitivity`](crate::bits::Sensitivity).
    Sensitivity,
    /// A [snapshot](crate::Cache::save).
    Snapshot,
}

impl fmt::Display for Thing {
    /// Writes "the means' ", so that the name can follow; nothing for an argument.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Argument => "",
            Self::BitPlan => "the bit plan's ",
            Self::ChannelOrder => "the channel order's ",
            Self::Means => "the means' ",
            Self::Sensitivity => "the sensitivity's ",
            Self::Snapshot => "the snapshot's ",
        })
    }
}

/// An error of the operating system, which [`Error`] can clone and compare. Two are equal if their
/// kinds and texts are.
#[derive(Clone, Debug)]
pub struct IoError(Arc<std::io::Error>);

impl IoError {
    /// Returns the system's error.
    pub fn get(&self) -> &std::io::Error {
        &self.0
    }
}

impl From<std::io::Error> for IoError {
    fn from(error: std::io::Error) -> Self {
        Self(Arc::new(error))
    }
}

impl PartialEq for IoError {
    fn eq(&self, other: &Self) -> bool {
        self.0.kind() == other.0.kind() && self.0.to_string() == other.0.to_string()
    }
}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for IoError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}
