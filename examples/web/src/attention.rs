//! Attention through wgkv's cache, between rows that are on the CPU.

use crate::error::Result;
use wgkv::{Cache, Chunk, Gpu, Plan, Rows, Sequence, Step};

/// Tokens that one step may have.
pub const CHUNK: usize = 128;

/// Latest tokens whose keys are kept as they came, for the picture.
pub const KEPT: usize = 192;

/// One sequence of a cache of its own, and buffers for a step's rows.
pub struct Attention {
    gpu: Gpu,
    cache: Cache,
    sequence: Sequence,
    step: Option<Step>,
    residual: wgpu::Buffer,
    queries: wgpu::Buffer,
    keys: wgpu::Buffer,
    values: wgpu::Buffer,
    output: wgpu::Buffer,
    /// By layer: keys before RoPE of the latest tokens.
    kept: Vec<Vec<f32>>,
}

impl Attention {
    /// Compiles the plan's kernels and allocates the cache.
    ///
    /// # Errors
    /// Those of the library.
    pub async fn new(gpu: &Gpu, plan: Plan, hidden: usize) -> Result<Self> {
        gpu.prepare(&plan).await?;
        let shape = plan.shape();
        let [query_width, key_width] = [shape.query_heads, shape.kv_heads].map(|heads| (heads * shape.head_dim) as usize);
        let kept = vec![Vec::with_capacity((KEPT + CHUNK) * key_width); shape.layers as usize];
        let rows = |label, width: usize| {
            gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: (4 * CHUNK * width) as u64,
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            })
        };
        let (residual, queries, output) = (rows("residual", hidden), rows("queries", query_width), rows("output", query_width));
        let (keys, values) = (rows("keys", key_width), rows("values", key_width));
        let mut cache = Cache::new(gpu, plan)?;
        let sequence = cache.begin()?;
        Ok(Self { gpu: gpu.clone(), cache, sequence, step: None, residual, queries, keys, values, output, kept })
    }

    /// The cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Tokens held.
    ///
    /// # Errors
    /// None while the attention lives.
    pub fn tokens(&self) -> Result<u32> {
        Ok(self.cache.tokens(self.sequence)?)
    }

    /// Begins a step of `tokens` tokens, `CHUNK` at most.
    ///
    /// # Errors
    /// Those of [`Cache::step`].
    pub fn begin(&mut self, tokens: usize) -> Result<()> {
        self.step = Some(self.cache.step(&[Chunk { sequence: self.sequence, tokens: tokens as u32 }])?);
        Ok(())
    }

    /// Attention of one layer: the stream that enters it (in which codecs may look for sinks), then rows before RoPE.
    ///
    /// # Errors
    /// Those of the library.
    pub async fn attend(&mut self, layer: usize, stream: &[f32], queries: &[f32], keys: &[f32], values: &[f32]) -> Result<Vec<f32>> {
        self.keep(layer, keys);
        let Some(step) = &self.step else {
            return Ok(Vec::new());
        };
        for (buffer, numbers) in [(&self.residual, stream), (&self.queries, queries), (&self.keys, keys), (&self.values, values)] {
            self.gpu.queue().write_buffer(buffer, 0, bytemuck::cast_slice(numbers));
        }
        let (number, width) = (layer as u32, stream.len() / step.rows() as usize);
        let mut encoder = self.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("attention") });
        self.cache.elect(&mut encoder, step, number, Rows::f32(&self.residual), width as u32)?;
        self.cache.append(&mut encoder, step, number, Rows::f32(&self.keys), Rows::f32(&self.values))?;
        self.cache.attend(&mut encoder, step, number, Rows::f32(&self.queries), Rows::f32(&self.output))?;
        self.gpu.queue().submit([encoder.finish()]);
        self.read(&self.output, queries.len()).await
    }

    async fn read(&self, buffer: &wgpu::Buffer, numbers: usize) -> Result<Vec<f32>> {
        let words = self.gpu.read(buffer, 0, numbers as u64).await?;
        Ok(bytemuck::cast_vec(words))
    }

    fn keep(&mut self, layer: usize, keys: &[f32]) {
        let most = KEPT * self.key_width();
        let kept = &mut self.kept[layer];
        kept.extend_from_slice(keys);
        let surplus = kept.len().saturating_sub(most);
        kept.drain(..surplus);
    }

    fn key_width(&self) -> usize {
        let shape = self.cache.plan().shape();
        (shape.kv_heads * shape.head_dim) as usize
    }

    /// The latest tokens' keys of a layer, as the model made them: `[tokens, kv_heads, head_dim]`, and the first one's position.
    ///
    /// # Errors
    /// None while the attention lives.
    pub fn made(&self, layer: usize) -> Result<(&[f32], u32)> {
        let kept = self.kept.get(layer).map_or(&[][..], Vec::as_slice);
        Ok((kept, self.tokens()? - (kept.len() / self.key_width()) as u32))
    }

    /// The same tokens' keys as the cache gives them back, after RoPE.
    ///
    /// # Errors
    /// Those of [`Cache::dequantize`].
    pub async fn restored(&self, layer: usize) -> Result<Vec<f32>> {
        let (kept, first) = self.made(layer)?;
        let numbers = kept.len();
        let rows = ["restored keys", "restored values"].map(|label| {
            self.gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: 4 * numbers as u64,
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            })
        });
        let mut encoder = self.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("restored") });
        let tokens = first..self.tokens()?;
        self.cache.dequantize(&mut encoder, self.sequence, layer as u32, tokens, Rows::f32(&rows[0]), Rows::f32(&rows[1]))?;
        self.gpu.queue().submit([encoder.finish()]);
        let keys = self.read(&rows[0], numbers).await?;
        rows.iter().for_each(wgpu::Buffer::destroy);
        Ok(keys)
    }

    /// Gives the GPU's memory back at once.
    pub fn destroy(self) {
        [&self.residual, &self.queries, &self.keys, &self.values, &self.output].into_iter().for_each(wgpu::Buffer::destroy);
        self.cache.destroy();
    }
}
