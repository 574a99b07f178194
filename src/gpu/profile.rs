//! How long each dispatch took, by the GPU's own clock.

use crate::error::{Error, Result};
use std::sync::{Mutex, PoisonError};

/// Timestamps around dispatches, up to a number of them. Made by
/// [`Gpu::profiled`](super::Gpu::profiled).
#[derive(Debug)]
pub struct Profile {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    capacity: u32,
    labels: Mutex<Vec<&'static str>>,
}

impl Profile {
    pub(crate) fn new(device: &wgpu::Device, dispatches: u32) -> Result<Self> {
        if !device.features().contains(wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES) {
            return Err(Error::Device("it lacks the feature timestamp-query-inside-passes".into()));
        }
        // WebGPU lets a set hold 4096 timestamps, two a dispatch.
        let capacity = dispatches.clamp(1, 2048);
        Ok(Self {
            queries: device.create_query_set(&wgpu::QuerySetDescriptor { label: Some("wgkv profile"), ty: wgpu::QueryType::Timestamp, count: 2 * capacity }),
            resolved: device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("wgkv profile"),
                size: 16 * u64::from(capacity),
                usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            }),
            capacity,
            labels: Mutex::default(),
        })
    }

    /// Marks the start of a dispatch, and returns its number; nothing once the set is full.
    pub(crate) fn begin(&self, pass: &mut wgpu::ComputePass<'_>, label: &'static str) -> Option<u32> {
        let mut labels = self.labels.lock().unwrap_or_else(PoisonError::into_inner);
        let n = labels.len() as u32;
        if n >= self.capacity {
            return None;
        }
        labels.push(label);
        pass.write_timestamp(&self.queries, 2 * n);
        Some(n)
    }

    /// Marks the end of the dispatch that `begin` numbered.
    pub(crate) fn end(&self, pass: &mut wgpu::ComputePass<'_>, n: u32) {
        pass.write_timestamp(&self.queries, 2 * n + 1);
    }

    /// Waits for the submitted dispatches and returns kernel and seconds of each since the last
    /// call, in order.
    ///
    /// # Errors
    /// [`Error::Readback`].
    pub async fn take(&self, gpu: &super::Gpu) -> Result<Vec<(&'static str, f64)>> {
        let labels = std::mem::take(&mut *self.labels.lock().unwrap_or_else(PoisonError::into_inner));
        let count = labels.len() as u32;
        if count == 0 {
            return Ok(Vec::new());
        }
        let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("wgkv profile") });
        encoder.resolve_query_set(&self.queries, 0..2 * count, &self.resolved, 0);
        gpu.queue().submit([encoder.finish()]);
        let words = gpu.read(&self.resolved, 0, 4 * u64::from(count)).await?;
        let period = f64::from(gpu.queue().get_timestamp_period()) * 1e-9;
        let ticks: Vec<u64> = words.chunks_exact(2).map(|w| u64::from(w[0]) | (u64::from(w[1]) << 32)).collect();
        Ok(labels.into_iter().zip(ticks.chunks_exact(2)).map(|(label, t)| (label, t[1].saturating_sub(t[0]) as f64 * period)).collect())
    }
}
