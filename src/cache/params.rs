//! What every dispatch of a step reads, in the GPU's layout: parameters, and the tables that they
//! point into.

use crate::gpu::Gpu;
use crate::gpu::bind_group;
use crate::kernel::{PARAMS_BYTES, STEP};
use std::num::NonZeroU64;

/// Parameters one after another, each where a dynamic offset may point.
pub(super) struct Params {
    bytes: Vec<u8>,
    alignment: usize,
}

/// Where tables lie.
#[derive(Debug)]
pub(super) struct Tables {
    buffer: wgpu::Buffer,
    offset: u64,
}

impl Tables {
    pub fn binding(&self) -> wgpu::BindingResource<'_> {
        wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer: &self.buffer, offset: self.offset, size: None })
    }
}

impl Params {
    pub fn new(gpu: &Gpu) -> Self {
        let capability = gpu.capability();
        Self { bytes: Vec::new(), alignment: capability.uniform_alignment.max(capability.storage_alignment) as usize }
    }

    /// Adds the parameters of a dispatch; returns their dynamic offset.
    pub fn push<T: bytemuck::Pod>(&mut self, params: &T) -> u32 {
        const { assert!(size_of::<T>() as u64 <= PARAMS_BYTES, "parameters are bound in PARAMS_BYTES") };
        self.align();
        let at = self.bytes.len();
        self.bytes.extend_from_slice(bytemuck::bytes_of(params));
        // The binding spans this many bytes, so they must be there after the last parameters, too.
        self.bytes.resize(at + PARAMS_BYTES as usize, 0);
        at as u32
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(self.alignment), 0);
    }

    /// Makes the bind group of these parameters and of tables that lie elsewhere.
    pub fn bind(self, gpu: &Gpu, layout: &wgpu::BindGroupLayout, tables: wgpu::BindingResource<'_>) -> wgpu::BindGroup {
        let buffer = gpu.filled("wgkv params", &self.bytes, wgpu::BufferUsages::UNIFORM);
        step_group(gpu, layout, &buffer, tables)
    }

    /// Makes the bind group of these parameters and of tables, in one buffer.
    pub fn bind_with(mut self, gpu: &Gpu, layout: &wgpu::BindGroupLayout, tables: &[u32]) -> (wgpu::BindGroup, Tables) {
        // WebGPU refuses an empty binding.
        if self.bytes.is_empty() {
            self.bytes.resize(PARAMS_BYTES as usize, 0);
        }
        self.align();
        let offset = self.bytes.len() as u64;
        self.bytes.extend_from_slice(bytemuck::cast_slice(if tables.is_empty() { &[0] } else { tables }));
        let buffer = gpu.filled("wgkv step", &self.bytes, wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::STORAGE);
        let tables = Tables { buffer, offset };
        (step_group(gpu, layout, &tables.buffer, tables.binding()), tables)
    }
}

fn step_group(gpu: &Gpu, layout: &wgpu::BindGroupLayout, params: &wgpu::Buffer, tables: wgpu::BindingResource<'_>) -> wgpu::BindGroup {
    let params = wgpu::BufferBinding { buffer: params, offset: 0, size: NonZeroU64::new(PARAMS_BYTES) };
    bind_group(gpu, "wgkv step", layout, STEP, |name| if name == "params" { wgpu::BindingResource::Buffer(params.clone()) } else { tables.clone() })
}
