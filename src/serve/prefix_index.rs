//! Prefixes that sequences of one cache share, found by their tokens.

use super::kept::{PrefixCache, PrefixPlan};
use crate::cache::{Admission, Chunk, Sequence};
use crate::error::{Error, Result};
use crate::format::PAGE_TOKENS;
use crate::format::tensors::Hash;
use crate::gpu::trace::event;

/// What a text is known by.
type Name = [u8; 32];

/// Returns the hash that texts of a model in caches of a plan begin with.
fn root(model: &str, plan: &impl PrefixPlan) -> Hash {
    let mut hash = Hash::default();
    let [plan, learned] = plan.fingerprints();
    for piece in ["wgkv-prefix 1", model, &plan, &learned] {
        hash.add(piece.as_bytes());
    }
    hash
}

/// Returns the name of each page's end among a text's tokens, and of its own end if that is none,
/// after what they all begin with.
fn names(mut hash: Hash, tokens: &[u32]) -> impl Iterator<Item = Name> {
    tokens.chunks(PAGE_TOKENS as usize).map(move |page| {
        hash.add(&page.iter().flat_map(|token| token.to_le_bytes()).collect::<Vec<u8>>());
        hash.digest()
    })
}

/// Returns what a text is known by: the SHA-256 of model, plan, what was learned, and tokens.
#[cfg(feature = "store")]
pub(crate) fn name(model: &str, plan: &impl PrefixPlan, tokens: &[u32]) -> Name {
    let root = root(model, plan);
    let empty = root.digest();
    names(root, tokens).last().unwrap_or(empty)
}

/// A sequence that holds what was found of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// The sequence.
    pub sequence: Sequence,
    /// How many of the text's first tokens it holds: the rest is to be appended.
    pub tokens: u32,
}

/// How often prefixes were found, counted since the index was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixCounters {
    /// Texts that were begun.
    pub begun: u64,
    /// Those of which a prefix was found.
    pub hits: u64,
    /// Tokens of all texts that were begun.
    pub tokens: u64,
    /// Tokens that need not be computed, since they were found.
    pub tokens_saved: u64,
    /// Prefixes given back for want of sequences or pages.
    pub evictions: u64,
}

/// A prefix that is kept.
#[derive(Debug)]
struct Entry {
    sequence: Sequence,
    /// Pages of the shortest text that it can be cut back to.
    first: usize,
    /// The name of each page's end.
    names: Vec<Name>,
    /// When it was used last.
    used: u64,
}

impl Entry {
    /// Returns how many pages of a text of these names can be had from it.
    fn pages_of(&self, names: &[Name]) -> Option<usize> {
        let shared = self.names.iter().zip(names).take_while(|(own, other)| own == other).count();
        Some(shared).filter(|shared| *shared >= self.first)
    }
}

/// An index of the prefixes that a cache holds, by the SHA-256 of [plan](crate::Plan::fingerprint),
/// what was learned ([order](crate::ChannelOrder::fingerprint) or
/// [means](crate::Means::fingerprint)) and tokens, page by page.
///
/// A text is begun from the longest prefix that was remembered: its pages are shared, whatever the
/// number of sequences, and read bit for bit as if the sequence had been appended by itself, in the
/// same steps. A prefix that is kept takes one of the plan's sequences, so plan some more than are
/// to grow at once. The least recently used is given back when a sequence or, by
/// [`PrefixIndex::make_room`], pages are wanted.
///
/// | plan | prefixes found of a remembered text |
/// |---|---|
/// | no window, no sinks by massive activations | up to every end of a page (128 tokens) |
/// | a window | up to the one end of a page at which the same tokens were f16 as are now: later ones, of a text that was shorter then, are packed by now |
/// | sinks by massive activations | all of it, if it ends with a page: a shorter prompt would have elected others |
/// | a sliding window or chunks | from the first end of a page at which the next query sees no token that slid away |
/// | groups of layers ([`LayeredCache`](crate::layers::LayeredCache)) | what every group has of it |
///
/// So with a window, such sinks or layers that slide, append a prompt up to the end of a page that
/// others will share, remember it, and go on. Layers that slide by themselves have what the latest
/// step brought, and [`keep`](crate::layers::LayeredPlanBuilder::keep) tokens before it.
///
/// ```no_run
/// use wgkv::{Cache, Chunk, Result};
/// use wgkv::prefix::{Begun, PrefixIndex};
///
/// /// Begins a prompt, and returns how much of it is there already.
/// fn begin(prefixes: &mut PrefixIndex, cache: &mut Cache, prompt: &[u32]) -> Result<Begun> {
///     let mut encoder = cache.gpu().device().create_command_encoder(&Default::default());
///     let begun = prefixes.begin(cache, &mut encoder, prompt)?;
///     let rest = Chunk { sequence: begun.sequence, tokens: prompt.len() as u32 - begun.tokens };
///     if !prefixes.make_room(cache, &[rest])?.fits() {
///         // wait until other sequences end
///     }
///     cache.gpu().queue().submit([encoder.finish()]);
///     Ok(begun) // step and append the rest, and then: prefixes.remember(cache, &mut encoder, begun.sequence, prompt)?
/// }
/// ```
#[derive(Debug)]
pub struct PrefixIndex {
    root: Hash,
    entries: Vec<Entry>,
    clock: u64,
    counters: PrefixCounters,
}

impl PrefixIndex {
    /// Returns an empty index, for one cache of this plan.
    pub fn new(plan: &impl PrefixPlan) -> Self {
        Self { root: root("", plan), entries: Vec::new(), clock: 0, counters: PrefixCounters::default() }
    }

    /// Begins a sequence of a text: of its longest prefix that is kept, shared by copies recorded
    /// on `encoder`, or of no tokens. The text's last token is always left to be appended, since a
    /// model goes on from its output.
    ///
    /// Steps made before cannot be appended any more, as after [`Cache::fork`](crate::Cache::fork).
    ///
    /// # Errors
    /// [`Error::Sequences`] if all of the plan's are in use by others than this index;
    /// [`Error::UnknownSequence`] if the cache is another than before; [`Error::Lost`].
    pub fn begin(&mut self, cache: &mut impl PrefixCache, encoder: &mut wgpu::CommandEncoder, tokens: &[u32]) -> Result<Begun> {
        cache.gpu().alive()?;
        let whole = &tokens[..tokens.len().saturating_sub(1)];
        let names: Vec<Name> = names(self.root.clone(), whole).take(whole.len() / PAGE_TOKENS as usize).collect();
        let found = self.entries.iter().enumerate().filter_map(|(n, entry)| Some((entry.pages_of(&names)?, n))).max();
        let begun = match found {
            None => Begun { sequence: self.with_a_slot(cache, None, |cache| cache.begin())?, tokens: 0 },
            Some((pages, n)) => {
                self.clock += 1;
                self.entries[n].used = self.clock;
                let (kept, tokens) = (self.entries[n].sequence, pages as u32 * PAGE_TOKENS);
                let sequence = match self.with_a_slot(cache, Some(kept), |cache| cache.fork_prefix(encoder, kept, tokens)) {
                    // The last place is its own: the prefix is kept no longer, but it is used.
                    Err(Error::Sequences { .. }) => {
                        cache.truncate(encoder, kept, tokens)?;
                        self.forget(kept);
                        kept
                    }
                    sequence => sequence?,
                };
                Begun { sequence, tokens }
            }
        };
        self.counters.begun += 1;
        self.counters.hits += u64::from(found.is_some());
        self.counters.tokens += tokens.len() as u64;
        self.counters.tokens_saved += u64::from(begun.tokens);
        event!(DEBUG, tokens = tokens.len(), hit = found.is_some(), tokens_saved = begun.tokens, "begun");
        Ok(begun)
    }

    /// Keeps what a sequence holds of a text's first tokens, up to an end of a page, for others
    /// that begin with them. The sequence itself is left as it is and may grow or end. Returns how
    /// many tokens are kept: none if there is no whole page that can be shared, or if all of the
    /// plan's sequences are in use by others.
    ///
    /// The last step must have been appended in every layer before. Steps made before cannot be
    /// appended any more, as after [`Cache::fork`](crate::Cache::fork).
    ///
    /// # Errors
    /// [`Error::UnknownSequence`], [`Error::Range`] for more tokens than the sequence holds,
    /// [`Error::Torn`], [`Error::Lost`]; then nothing has changed.
    pub fn remember(&mut self, cache: &mut impl PrefixCache, encoder: &mut wgpu::CommandEncoder, sequence: Sequence, tokens: &[u32]) -> Result<u32> {
        cache.gpu().alive()?;
        let given = tokens.len() as u32;
        let Some(lengths) = cache.exact_lengths(sequence, given)? else { return Ok(0) };
        let (first, pages) = (lengths.start().div_ceil(PAGE_TOKENS).max(1) as usize, (given / PAGE_TOKENS) as usize);
        if pages < first {
            return Ok(0);
        }
        let (names, end) = (names(self.root.clone(), tokens).take(pages).collect::<Vec<Name>>(), pages as u32 * PAGE_TOKENS);
        self.clock += 1;
        if let Some(known) = self.entries.iter_mut().find(|entry| entry.pages_of(&names) == Some(pages)) {
            known.used = self.clock;
            return Ok(end);
        }
        // Others that give no more than the new one are not needed.
        let gives_no_more = |old: &Entry| old.first >= first && old.pages_of(&names) == Some(old.names.len());
        while let Some(n) = self.entries.iter().position(gives_no_more) {
            cache.end(self.entries[n].sequence)?;
            self.entries.remove(n);
        }
        let kept = match self.with_a_slot(cache, None, |cache| cache.fork_prefix(encoder, sequence, end)) {
            Err(Error::Sequences { .. }) => return Ok(0),
            kept => kept?,
        };
        self.entries.push(Entry { sequence: kept, first, names, used: self.clock });
        Ok(end)
    }

    /// Gives prefixes back, the least recently used first, until a [step](crate::Cache::step) of
    /// these chunks finds its pages; none if giving back all of them would not do, and none that
    /// frees no page since other sequences hold its pages, too. Returns what
    /// [`Cache::can_append`](crate::Cache::can_append) returns afterwards. Steps made before cannot
    /// be appended any more, if a prefix is given back.
    ///
    /// # Errors
    /// Those of [`Cache::can_append`](crate::Cache::can_append).
    pub fn make_room(&mut self, cache: &mut impl PrefixCache, chunks: &[Chunk]) -> Result<Admission> {
        let mut admission = cache.can_append(chunks)?;
        while !admission.fits() {
            let kept: Vec<Sequence> = self.entries.iter().map(|entry| entry.sequence).collect();
            let shortage = cache.shortage(chunks, &kept)?;
            if !shortage.curable {
                break;
            }
            let oldest = self.entries.iter().zip(&shortage.frees).filter(|(_, frees)| **frees).min_by_key(|(entry, _)| entry.used);
            let Some(sequence) = oldest.map(|(entry, _)| entry.sequence) else { break };
            self.evict(cache, sequence)?;
            admission = cache.can_append(chunks)?;
        }
        Ok(admission)
    }

    /// Gives all prefixes back.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`] if the cache is another than before.
    pub fn clear(&mut self, cache: &mut impl PrefixCache) -> Result<()> {
        while let Some(entry) = self.entries.pop() {
            cache.end(entry.sequence)?;
        }
        Ok(())
    }

    /// Returns how many prefixes are kept: as many of the plan's sequences are in use for them.
    pub fn kept(&self) -> usize {
        self.entries.len()
    }

    /// Returns how often prefixes were found so far.
    pub fn counters(&self) -> PrefixCounters {
        self.counters
    }

    /// Begins a sequence, for which it gives back the least recently used prefixes, but `but`,
    /// until there is one.
    fn with_a_slot<C: PrefixCache>(&mut self, cache: &mut C, but: Option<Sequence>, mut begin: impl FnMut(&mut C) -> Result<Sequence>) -> Result<Sequence> {
        loop {
            let begun = begin(cache);
            let oldest = self.entries.iter().filter(|entry| Some(entry.sequence) != but).min_by_key(|entry| entry.used);
            match (&begun, oldest.map(|entry| entry.sequence)) {
                (Err(Error::Sequences { .. }), Some(sequence)) => self.evict(cache, sequence)?,
                _ => return begun,
            }
        }
    }

    /// Gives a prefix back.
    fn evict(&mut self, cache: &mut impl PrefixCache, sequence: Sequence) -> Result<()> {
        cache.end(sequence)?;
        self.forget(sequence);
        Ok(())
    }

    /// Keeps a prefix no longer, whose sequence is given back or in use.
    fn forget(&mut self, sequence: Sequence) {
        self.entries.retain(|entry| entry.sequence != sequence);
        self.counters.evictions += 1;
        event!(DEBUG, slot = sequence.slot(), "evicted");
    }
}
