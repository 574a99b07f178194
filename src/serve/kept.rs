//! What prefixes and stores ask of a cache, and of a plan: of one for layers that are alike, or of
//! groups of layers.

use super::layered_cache::LayeredCache;
use super::layered_plan::LayeredPlan;
use crate::cache::{Admission, Cache, Chunk, Sequence};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::plan::Plan;
use std::ops::RangeInclusive;

/// A cache whose prefixes can be kept: [`Cache`] or [`LayeredCache`](crate::layers::LayeredCache).
pub trait PrefixCache: KeptCache {}

/// A plan of such a cache: [`Plan`] or [`LayeredPlan`](crate::layers::LayeredPlan).
pub trait PrefixPlan: KeptPlan {}

impl PrefixCache for Cache {}
impl PrefixCache for LayeredCache {}
impl PrefixPlan for Plan {}
impl PrefixPlan for LayeredPlan {}

/// What a cache lacks for a step, and what ending sequences would do about it.
#[derive(Debug)]
pub struct Shortage {
    /// What the step would take, where pages are scarcest.
    pub admission: Admission,
    /// Whether ending all of the sequences would be enough.
    pub curable: bool,
    /// By sequence, whether pages that are lacking become free with it.
    pub frees: Vec<bool>,
}

/// What [`PrefixIndex`](super::PrefixIndex) does with a cache.
pub trait KeptCache {
    fn gpu(&self) -> &Gpu;
    fn begin(&mut self) -> Result<Sequence>;
    fn end(&mut self, sequence: Sequence) -> Result<()>;
    fn fork_prefix(&mut self, encoder: &mut wgpu::CommandEncoder, sequence: Sequence, tokens: u32) -> Result<Sequence>;
    fn truncate(&mut self, encoder: &mut wgpu::CommandEncoder, sequence: Sequence, tokens: u32) -> Result<()>;
    fn can_append(&self, chunks: &[Chunk]) -> Result<Admission>;

    /// Returns the lengths to which a sequence that holds `tokens` tokens or more can be cut back
    /// and be as if nothing had ever followed, if there are any.
    fn exact_lengths(&self, sequence: Sequence, tokens: u32) -> Result<Option<RangeInclusive<u32>>>;

    /// Returns what a step lacks, and which of these sequences would give it.
    fn shortage(&self, chunks: &[Chunk], kept: &[Sequence]) -> Result<Shortage>;
}

/// What texts are known by in caches of a plan.
pub trait KeptPlan {
    /// Returns the fingerprints of the plan, and of what was learned.
    fn fingerprints(&self) -> [String; 2];

    /// Checks that these are the bytes of a snapshot of `tokens` tokens that a cache of this plan
    /// would load.
    #[cfg(feature = "store")]
    fn check_snapshot(&self, tokens: usize, bytes: &[u8]) -> Result<()>;
}

/// Returns which lengths one cache's sequence can be cut back to.
fn lengths_of(cache: &Cache, sequence: Sequence, tokens: u32) -> Result<Option<RangeInclusive<u32>>> {
    let pool = cache.pool();
    let live = pool.find(sequence)?;
    if tokens > live.at.tokens {
        return Err(Error::Range { first: 0, end: tokens, have: live.at.tokens });
    }
    live.expect_whole(live.at.tokens)?;
    Ok(live.exact_lengths(cache.plan()))
}

/// Returns what one cache lacks for a step that takes as much.
fn shortage_of(cache: &Cache, admission: Admission, kept: &[Sequence]) -> Result<Shortage> {
    let (freed, frees) = cache.pool().held_only_by(kept)?;
    let lacks = !admission.fits();
    Ok(Shortage { admission, curable: freed >= admission.pages_missing(), frees: frees.into_iter().map(|frees| frees && lacks).collect() })
}

impl KeptCache for Cache {
    fn gpu(&self) -> &Gpu {
        self.gpu()
    }

    fn begin(&mut self) -> Result<Sequence> {
        self.begin()
    }

    fn end(&mut self, sequence: Sequence) -> Result<()> {
        self.end(sequence)
    }

    fn fork_prefix(&mut self, encoder: &mut wgpu::CommandEncoder, sequence: Sequence, tokens: u32) -> Result<Sequence> {
        self.fork_prefix(encoder, sequence, tokens)
    }

    fn truncate(&mut self, encoder: &mut wgpu::CommandEncoder, sequence: Sequence, tokens: u32) -> Result<()> {
        self.truncate(encoder, sequence, tokens)
    }

    fn can_append(&self, chunks: &[Chunk]) -> Result<Admission> {
        self.can_append(chunks)
    }

    fn exact_lengths(&self, sequence: Sequence, tokens: u32) -> Result<Option<RangeInclusive<u32>>> {
        lengths_of(self, sequence, tokens)
    }

    fn shortage(&self, chunks: &[Chunk], kept: &[Sequence]) -> Result<Shortage> {
        shortage_of(self, self.can_append(chunks)?, kept)
    }
}

impl KeptCache for LayeredCache {
    fn gpu(&self) -> &Gpu {
        self.gpu()
    }

    fn begin(&mut self) -> Result<Sequence> {
        self.begin()
    }

    fn end(&mut self, sequence: Sequence) -> Result<()> {
        self.end(sequence)
    }

    fn fork_prefix(&mut self, encoder: &mut wgpu::CommandEncoder, sequence: Sequence, tokens: u32) -> Result<Sequence> {
        self.fork_prefix(encoder, sequence, tokens)
    }

    fn truncate(&mut self, encoder: &mut wgpu::CommandEncoder, sequence: Sequence, tokens: u32) -> Result<()> {
        self.truncate(encoder, sequence, tokens)
    }

    fn can_append(&self, chunks: &[Chunk]) -> Result<Admission> {
        self.can_append(chunks)
    }

    /// Those of all groups: each begins where its own do.
    fn exact_lengths(&self, sequence: Sequence, tokens: u32) -> Result<Option<RangeInclusive<u32>>> {
        let own = self.sequences_of(sequence)?;
        let lengths = self.each(own, |cache, _, sequence| lengths_of(cache, sequence, tokens))?;
        let all = lengths.into_iter().collect::<Option<Vec<_>>>();
        let both = |a: RangeInclusive<u32>, b: RangeInclusive<u32>| *a.start().max(b.start())..=*a.end().min(b.end());
        Ok(all.and_then(|all| all.into_iter().reduce(both)).filter(|lengths| !lengths.is_empty()))
    }

    /// Ending all sequences must be enough in every group; those count that free what a group
    /// lacks.
    fn shortage(&self, chunks: &[Chunk], kept: &[Sequence]) -> Result<Shortage> {
        let mut all = Shortage { admission: self.can_append(chunks)?, curable: true, frees: vec![false; kept.len()] };
        let kept: Vec<&[Sequence]> = kept.iter().map(|sequence| self.sequences_of(*sequence)).collect::<Result<_>>()?;
        for (group, admission) in self.admissions(chunks)?.into_iter().enumerate() {
            let own: Vec<Sequence> = kept.iter().map(|kept| kept[group]).collect();
            let shortage = shortage_of(&self.groups()[group], admission, &own)?;
            all.curable &= shortage.curable;
            all.frees.iter_mut().zip(shortage.frees).for_each(|(any, frees)| *any |= frees);
        }
        Ok(all)
    }
}

impl KeptPlan for Plan {
    fn fingerprints(&self) -> [String; 2] {
        [self.fingerprint(), self.learned_fingerprint().unwrap_or_default()]
    }

    #[cfg(feature = "store")]
    fn check_snapshot(&self, tokens: usize, bytes: &[u8]) -> Result<()> {
        crate::cache::check_snapshot(self, tokens, bytes)
    }
}

impl KeptPlan for LayeredPlan {
    fn fingerprints(&self) -> [String; 2] {
        let learned: Vec<String> = self.groups().iter().map(|plan| plan.learned_fingerprint().unwrap_or_default()).collect();
        [self.fingerprint(), learned.join(" ")]
    }

    #[cfg(feature = "store")]
    fn check_snapshot(&self, tokens: usize, bytes: &[u8]) -> Result<()> {
        super::layered_snapshot::check(self, tokens, bytes)
    }
}
