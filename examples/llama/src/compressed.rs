//! Attention through wgkv's cache: one sequence of it, growing.

use burn::tensor::Tensor;
use wgkv::{Cache, Chunk, Sequence, Step};

use crate::attention::Attention;
use crate::bridge::Bridge;
use crate::error::{Error, Result};

/// One sequence of a compressed cache.
pub struct CompressedAttention<'cache> {
    bridge: &'cache Bridge,
    cache: &'cache mut Cache,
    sequence: Sequence,
    step: Option<Step>,
}

impl<'cache> CompressedAttention<'cache> {
    /// An empty sequence of the cache.
    pub fn new(bridge: &'cache Bridge, cache: &'cache mut Cache) -> Result<Self> {
        let sequence = cache.allocate()?;
        Ok(Self { bridge, cache, sequence, step: None })
    }

    /// The cache that holds the sequence.
    pub fn cache(&self) -> &Cache {
        self.cache
    }

    /// Gives the sequence's pages back.
    pub fn free(self) -> Result<()> {
        Ok(self.cache.free(self.sequence)?)
    }
}

impl Attention for CompressedAttention<'_> {
    fn begin(&mut self, tokens: usize) -> Result<()> {
        let chunk = Chunk { sequence: self.sequence, tokens: tokens as u32 };
        self.step = Some(self.cache.step(&[chunk])?);
        Ok(())
    }

    fn attend(&mut self, layer: usize, queries: Tensor<2>, keys: Tensor<2>, values: Tensor<2>) -> Result<Tensor<2>> {
        let step = self.step.as_ref().ok_or_else(|| Error::Gpu("attend was called before begin".to_owned()))?;
        let [tokens, width] = queries.dims();
        let queries = self.bridge.view(queries)?;
        let keys = self.bridge.view(keys)?;
        let values = self.bridge.view(values)?;
        let (output, output_view) = self.bridge.output(tokens, width)?;
        self.bridge.flush()?;

        let gpu = self.bridge.gpu();
        let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("attention") });
        let layer = layer as u32;
        self.cache.append(&mut encoder, step, layer, keys.rows(), values.rows())?;
        self.cache.attend(&mut encoder, step, layer, queries.rows(), output_view.rows())?;
        gpu.queue().submit([encoder.finish()]);
        Ok(output)
    }
}
