//! Attention through wgkv's cache: sequences of it that grow alike.

use burn::tensor::Tensor;
use wgkv::aligned::{Alignment, Traffic};
use wgkv::{Cache, Chunk, Sequence, Step};

use crate::attention::Attention;
use crate::bridge::{Bridge, View};
use crate::error::{Error, Result};

/// Sequences of a compressed cache that grow by the same number of tokens each step.
pub struct CompressedAttention<'cache> {
    bridge: &'cache Bridge,
    cache: &'cache mut Cache,
    sequences: Vec<Sequence>,
    step: Option<Step>,
    /// Whether the step holds tokens that may become sinks.
    electing: bool,
    /// The residual stream that enters the next layer, and its width, where sinks are looked for in it.
    residual: Option<(View, u32)>,
    /// Steps taken, and by layer what some of them read from planes.
    steps: usize,
    traffic: Vec<Traffic>,
}

/// Steps of which one is asked what it read from planes: asking waits for the GPU.
const ASKED: usize = 32;

impl<'cache> CompressedAttention<'cache> {
    /// An empty sequence of the cache.
    pub fn new(bridge: &'cache Bridge, cache: &'cache mut Cache) -> Result<Self> {
        Self::batch(bridge, cache, 1)
    }

    /// Begins `count` empty sequences. Their rows come one sequence after another.
    pub fn batch(bridge: &'cache Bridge, cache: &'cache mut Cache, count: u32) -> Result<Self> {
        let sequences = (0..count).map(|_| cache.begin()).collect::<wgkv::Result<_>>()?;
        Ok(Self { bridge, cache, sequences, step: None, electing: false, residual: None, steps: 0, traffic: Vec::new() })
    }

    /// Adds keys and values to one layer without attending to them.
    pub fn append(&mut self, layer: usize, keys: Tensor<2>, values: Tensor<2>) -> Result<()> {
        let keys = self.bridge.view(keys)?;
        let values = self.bridge.view(values)?;
        self.bridge.flush()?;
        let gpu = self.bridge.gpu();
        let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("append") });
        self.record(&mut encoder, layer as u32, &keys, &values)?;
        gpu.queue().submit([encoder.finish()]);
        Ok(())
    }

    /// Records the election of sinks, where there is one, and the new keys and values.
    fn record(&mut self, encoder: &mut wgpu::CommandEncoder, layer: u32, keys: &View, values: &View) -> Result<()> {
        let step = self.step.as_ref().ok_or_else(|| Error::Gpu("attend was called before begin".to_owned()))?;
        if let Some((residual, width)) = self.residual.take() {
            self.cache.elect(encoder, step, layer, residual.rows(), width)?;
        }
        Ok(self.cache.append(encoder, step, layer, keys.rows(), values.rows())?)
    }

    /// The cache that holds the sequences.
    pub fn cache(&self) -> &Cache {
        self.cache
    }

    /// By layer, what decoding read from planes in some of the steps; empty where it reads everything.
    pub fn traffic(&self) -> &[Traffic] {
        &self.traffic
    }

    /// Ends the sequences and gives their pages back.
    pub fn end(self) -> Result<()> {
        for sequence in self.sequences {
            self.cache.end(sequence)?;
        }
        Ok(())
    }
}

impl Attention for CompressedAttention<'_> {
    fn begin(&mut self, tokens: usize) -> Result<()> {
        let chunks: Vec<Chunk> = self.sequences.iter().map(|&sequence| Chunk { sequence, tokens: tokens as u32 }).collect();
        self.step = Some(self.cache.step(&chunks)?);
        // Generated tokens, which come one by one, are never sinks.
        self.electing = tokens > 1 && self.cache.plan().elects();
        self.steps += 1;
        Ok(())
    }

    fn enter(&mut self, _layer: usize, residual: &Tensor<2>) -> Result<()> {
        if self.electing {
            let [_, width] = residual.dims();
            self.residual = Some((self.bridge.view(residual.clone())?, width as u32));
        }
        Ok(())
    }

    fn attend(&mut self, layer: usize, queries: Tensor<2>, keys: Tensor<2>, values: Tensor<2>) -> Result<Tensor<2>> {
        let [tokens, width] = queries.dims();
        let queries = self.bridge.view(queries)?;
        let keys = self.bridge.view(keys)?;
        let values = self.bridge.view(values)?;
        let (output, output_view) = self.bridge.output(tokens, width)?;
        self.bridge.flush()?;

        let gpu = self.bridge.gpu();
        let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("attention") });
        self.record(&mut encoder, layer as u32, &keys, &values)?;
        if let Some(step) = &self.step {
            self.cache.attend(&mut encoder, step, layer as u32, queries.rows(), output_view.rows())?;
        }
        gpu.queue().submit([encoder.finish()]);
        if let Some(step) = self.step.as_ref().filter(|_| self.cache.plan().alignment() != Alignment::EVERYTHING && self.steps.is_multiple_of(ASKED)) {
            let report = pollster::block_on(self.cache.traffic(step, layer as u32))?;
            if self.traffic.len() <= layer {
                self.traffic.resize(layer + 1, Traffic::default());
            }
            self.traffic[layer].add(&report.traffic);
        }
        Ok(output)
    }
}
