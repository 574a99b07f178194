//! The latest tokens' keys of every layer as the model makes them, for the picture.

use crate::error::Result;
use wgkv::{Gpu, Shape};
use wgkv_decoder::{LayerRows, Recorder, Tap};

/// Tokens whose keys are kept.
pub const KEPT: u32 = 192;

/// Rings of keys before RoPE, on the GPU: the key of position `p` is row `p % KEPT`.
pub struct Kept {
    gpu: Gpu,
    /// By layer.
    rings: Vec<wgpu::Buffer>,
    /// Numbers of a row.
    width: u32,
    /// Position of the next step's first row.
    first: u32,
}

impl Kept {
    /// Makes the rings of a model.
    pub fn new(gpu: &Gpu, shape: &Shape) -> Self {
        let width = shape.kv_heads * shape.head_dim;
        let ring = |_| {
            gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some("latest keys"),
                size: 4 * u64::from(KEPT * width),
                usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            })
        };
        Self { gpu: gpu.clone(), rings: (0..shape.layers).map(ring).collect(), width, first: 0 }
    }

    /// Says where the next step begins.
    pub fn begin(&mut self, first: u32) {
        self.first = first;
    }

    /// Reads the keys of one layer for positions below `end`, the latest of them: `[tokens,
    /// kv_heads, head_dim]`.
    ///
    /// # Errors
    /// Those of reading back.
    pub async fn read(&self, layer: usize, tokens: std::ops::Range<u32>) -> Result<Vec<f32>> {
        let Some(ring) = self.rings.get(layer) else {
            return Ok(Vec::new());
        };
        let words = self.gpu.read(ring, 0, u64::from(KEPT * self.width)).await?;
        let row = |position: u32| &words[((position % KEPT) * self.width) as usize..][..self.width as usize];
        Ok(tokens.flat_map(row).map(|word| f32::from_bits(*word)).collect())
    }

    /// Waits until everything that was submitted is done.
    ///
    /// # Errors
    /// Those of reading back.
    pub async fn wait(&self) -> Result<()> {
        if let Some(ring) = self.rings.first() {
            self.gpu.read(ring, 0, 1).await?;
        }
        Ok(())
    }

    /// Gives the GPU's memory back at once.
    pub fn destroy(&self) {
        self.rings.iter().for_each(wgpu::Buffer::destroy);
    }
}

impl Tap for Kept {
    fn layer(&mut self, recorder: &mut Recorder, rows: &LayerRows<'_>) -> wgkv_decoder::Result<()> {
        let bytes = |rows: u32| 4 * u64::from(rows * self.width);
        let ring = &self.rings[rows.layer as usize];
        // Of more rows than the ring has, the latest.
        let mut row = rows.rows.saturating_sub(KEPT);
        while row < rows.rows {
            let at = (self.first + row) % KEPT;
            let count = (rows.rows - row).min(KEPT - at);
            recorder.encoder().copy_buffer_to_buffer(rows.keys.buffer, rows.keys.offset + bytes(row), ring, bytes(at), bytes(count));
            row += count;
        }
        Ok(())
    }
}
