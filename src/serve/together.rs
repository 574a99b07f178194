//! Several caches that hold the same sequences: what the first grants, all grant.

use crate::cache::{Cache, Sequence, Step};
use crate::error::Result;

/// Compiles the pipelines of all caches.
pub(super) async fn prepare(caches: &[Cache]) -> Result<()> {
    for cache in caches {
        cache.gpu().prepare(cache.plan()).await?;
    }
    Ok(())
}

/// Returns the bytes allocated for keys and values, in all caches together.
pub(super) fn bytes(caches: &[Cache]) -> u64 {
    caches.iter().map(Cache::bytes).sum()
}

/// Begins a sequence in all caches, or in none: by a call that is given the cache and its number.
pub(super) fn begin(caches: &mut [Cache], mut begin: impl FnMut(usize, &mut Cache) -> Result<Sequence>) -> Result<Vec<Sequence>> {
    let mut begun = Vec::with_capacity(caches.len());
    for (n, cache) in caches.iter_mut().enumerate() {
        match begin(n, cache) {
            Ok(sequence) => begun.push(sequence),
            Err(error) => {
                end(caches, &begun)?;
                return Err(error);
            }
        }
    }
    Ok(begun)
}

/// Ends a sequence in all caches.
pub(super) fn end(caches: &mut [Cache], sequences: &[Sequence]) -> Result<()> {
    caches.iter_mut().zip(sequences).try_for_each(|(cache, sequence)| cache.end(*sequence))
}

/// Takes back a step of all caches, or of none.
pub(super) fn abandon(caches: &mut [Cache], steps: Vec<Option<Step>>) -> Result<()> {
    let given = |(cache, step): (&Cache, &Option<Step>)| step.as_ref().map_or(Ok(()), |step| cache.expect_abandoned(step));
    caches.iter().zip(&steps).try_for_each(given)?;
    for (cache, step) in caches.iter_mut().zip(steps) {
        if let Some(step) = step {
            cache.abandon(step)?;
        }
    }
    Ok(())
}
