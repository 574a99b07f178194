//! A matrix of weights on the GPU.

use half::f16;
use wgkv::Gpu;

use crate::error::Result;
use crate::format::{Stored, WeightFormat};
use crate::layout::{Layout, Planes};

/// A matrix is cut between rows that are a multiple of this, where one binding cannot hold it.
const CUT: usize = 64;

/// Numbers of the block that random matrices repeat.
const RANDOM: usize = 1 << 20;

/// Rows of weights, `[rows, columns]`.
#[derive(Debug)]
pub(crate) struct Matrix {
    pub layout: Layout,
    pub rows: u32,
    pub columns: u32,
    pub blocks: Vec<Block>,
}

/// Neighbouring rows of a matrix in a buffer of their own.
#[derive(Debug)]
pub(crate) struct Block {
    pub buffer: wgpu::Buffer,
    pub first: u32,
    pub rows: u32,
    pub high_at: u32,
    pub scales_at: u32,
}

/// The ranges of rows that a binding holds.
fn cuts(gpu: &Gpu, layout: Layout, rows: usize, columns: usize) -> Vec<(usize, usize)> {
    let capability = gpu.capability();
    let most = capability.binding_bytes.min(capability.buffer_bytes);
    let bytes = 4 * layout.words(CUT, columns) as u64;
    let fit = usize::try_from(most / bytes.max(1)).unwrap_or(usize::MAX).max(1).saturating_mul(CUT);
    (0..rows).step_by(fit).map(|first| (first, fit.min(rows - first))).collect()
}

impl Matrix {
    /// Uploads rows, each `(matrix, row)`, of one number of columns and one layout.
    pub fn upload(gpu: &Gpu, layout: Layout, columns: usize, rows: &[(&Stored, usize)]) -> Result<Self> {
        let block = |(first, count): (usize, usize)| {
            let planes = layout.planes(rows[first..first + count].iter().copied())?;
            Ok(Block::new(gpu, first as u32, count as u32, &planes))
        };
        let blocks = cuts(gpu, layout, rows.len(), columns).into_iter().map(block).collect::<Result<_>>()?;
        Ok(Self { layout, rows: rows.len() as u32, columns: columns as u32, blocks })
    }

    /// Makes a matrix of halves that are drawn from a normal distribution of this deviation. One
    /// block of them is drawn and repeated.
    pub fn random(gpu: &Gpu, rows: usize, columns: usize, spread: f32) -> Self {
        // Each is the sum of twelve uniform numbers, less six: near enough to normal.
        let mut state = 0x9e37_79b9_u32;
        let mut uniform = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32
        };
        let mut normal = || (0..12).map(|_| uniform()).sum::<f32>() - 6.0;
        let numbers: Vec<u16> = (0..RANDOM.min(rows * columns)).map(|_| f16::from_f32(spread * normal()).to_bits()).collect();
        let bytes: &[u8] = bytemuck::cast_slice(&numbers);
        let blocks = cuts(gpu, Layout::F16, rows, columns).into_iter().map(|(first, count)| {
            let size = (2 * count * columns) as u64;
            let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some("weights"),
                size,
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            });
            for at in (0..size).step_by(bytes.len()) {
                gpu.queue().write_buffer(&buffer, at, &bytes[..bytes.len().min((size - at) as usize)]);
            }
            // Staging memory is given back only after a submission.
            gpu.queue().submit([]);
            Block { buffer, first: first as u32, rows: count as u32, high_at: 0, scales_at: 0 }
        });
        Self { layout: Layout::F16, rows: rows as u32, columns: columns as u32, blocks: blocks.collect() }
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        self.blocks.iter().map(|block| block.buffer.size()).sum()
    }
}

impl Block {
    fn new(gpu: &Gpu, first: u32, rows: u32, planes: &Planes) -> Self {
        let buffer = filled(gpu, "weights", bytemuck::cast_slice(&planes.words), wgpu::BufferUsages::STORAGE);
        Self { buffer, first, rows, high_at: planes.high_at, scales_at: planes.scales_at }
    }
}

/// Makes a buffer with these contents.
pub(crate) fn filled(gpu: &Gpu, label: &'static str, contents: &[u8], usage: wgpu::BufferUsages) -> wgpu::Buffer {
    let buffer =
        gpu.device().create_buffer(&wgpu::BufferDescriptor { label: Some(label), size: contents.len().max(16) as u64, usage, mapped_at_creation: true });
    // A lost device maps nothing; what is lost then is reported by the next call that waits.
    if let Ok(mut view) = buffer.get_mapped_range_mut(..contents.len() as u64) {
        view.copy_from_slice(contents);
    }
    buffer.unmap();
    buffer
}

/// Returns rows as f16, whatever they are stored as: for matrices that must be of one format and
/// are not.
pub(crate) fn widened(stored: &Stored) -> Stored {
    let bytes = stored.numbers().iter().flat_map(|x| f16::from_f32(x.clamp(-65504.0, 65504.0)).to_le_bytes()).collect();
    Stored { rows: stored.rows, columns: stored.columns, format: WeightFormat::F16, bytes }
}
