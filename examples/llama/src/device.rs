//! The GPU that a command runs on, and numbers on their way to it and back.

use wgkv::{Gpu, Rows};

use crate::error::Result;

/// Opens the first adapter whose name contains `name`, in any case; without a name the one that
/// [`Gpu::request`] chooses.
///
/// # Errors
/// Those of [`Gpu::request_named`] and [`Gpu::request`].
pub fn open(name: Option<&str>) -> Result<Gpu> {
    Ok(match name {
        Some(name) => pollster::block_on(Gpu::request_named(name))?,
        None => pollster::block_on(Gpu::request())?,
    })
}

/// Makes a buffer of these numbers, for kernels to read.
pub fn upload(gpu: &Gpu, label: &'static str, numbers: &[f32]) -> wgpu::Buffer {
    let buffer = storage(gpu, label, numbers.len() as u64);
    gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(numbers));
    buffer
}

/// Makes a buffer of `numbers` numbers that are 0.
pub fn storage(gpu: &Gpu, label: &'static str, numbers: u64) -> wgpu::Buffer {
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
    gpu.device().create_buffer(&wgpu::BufferDescriptor { label: Some(label), size: 4 * numbers.max(1), usage, mapped_at_creation: false })
}

/// Waits for all submitted work and returns the first `numbers` numbers of rows of f32.
///
/// # Errors
/// Those of [`Gpu::read`].
pub fn read(gpu: &Gpu, rows: Rows<'_>, numbers: usize) -> wgkv::Result<Vec<f32>> {
    pollster::block_on(gpu.read(rows.buffer, rows.offset, numbers as u64)).map(bytemuck::allocation::cast_vec)
}

/// Waits for a submission, or for all of them.
///
/// # Errors
/// [`wgkv::Error::Lost`] and [`wgkv::Error::Readback`].
pub fn wait(gpu: &Gpu, until: Option<wgpu::SubmissionIndex>) -> wgkv::Result<()> {
    let polled = gpu.device().poll(wgpu::PollType::Wait { submission_index: until, timeout: None });
    match (gpu.lost(), polled) {
        (Some(reason), _) => Err(wgkv::Error::Lost { reason: reason.to_owned() }),
        (None, Err(error)) => Err(wgkv::Error::Readback(error.to_string())),
        (None, Ok(_)) => Ok(()),
    }
}
