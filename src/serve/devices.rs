//! What caches of one plan on several devices have in common: an encoder each, submitted together, and calls that all of them record.

use crate::cache::{Cache, Step};
use crate::error::{Error, Result};
use crate::gpu::Rows;

/// As many as there are devices?
pub(crate) fn expect(caches: &[Cache], name: &'static str, had: usize) -> Result<()> {
    let wanted = caches.len();
    if had == wanted { Ok(()) } else { Err(Error::argument(name, format!("{wanted}, one for each device"), had)) }
}

/// A new encoder for each device.
pub(crate) fn encoders(caches: &[Cache], label: &str) -> Vec<wgpu::CommandEncoder> {
    let encoder = |cache: &Cache| cache.gpu().device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some(label) });
    caches.iter().map(encoder).collect()
}

/// Submits what was recorded, to each device its own.
pub(crate) fn submit(caches: &[Cache], encoders: Vec<wgpu::CommandEncoder>) -> Result<()> {
    expect(caches, "encoders", encoders.len())?;
    for (cache, encoder) in caches.iter().zip(encoders) {
        cache.gpu().queue().submit([encoder.finish()]);
    }
    Ok(())
}

/// Records on every device that has a step, each with its own encoder and rows, when it is known that all have theirs.
pub(crate) fn record<'a, 's, const N: usize>(
    caches: &[Cache],
    encoders: &mut [wgpu::CommandEncoder],
    steps: impl IntoIterator<Item = Option<&'s Step>>,
    rows: [(&'static str, &[Rows<'a>]); N],
    record: impl Fn(&Cache, &mut wgpu::CommandEncoder, &Step, [Rows<'a>; N]) -> Result<()>,
) -> Result<()> {
    expect(caches, "encoders", encoders.len())?;
    rows.iter().try_for_each(|(name, rows)| expect(caches, name, rows.len()))?;
    for (n, ((cache, encoder), step)) in caches.iter().zip(encoders).zip(steps).enumerate() {
        if let Some(step) = step {
            record(cache, encoder, step, rows.map(|(_, rows)| rows[n]))?;
        }
    }
    Ok(())
}
