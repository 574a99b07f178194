//! A variant of a kernel, compiled.

use super::{Binding, Dialect, Gpu, Variant};

/// A compiled variant with the layout of its one bind group.
#[derive(Clone, Debug)]
pub struct Pipeline {
    pub(crate) compute: wgpu::ComputePipeline,
    pub(crate) layout: wgpu::BindGroupLayout,
    label: &'static str,
}

impl Pipeline {
    pub(crate) fn new(device: &wgpu::Device, variant: &Variant, dialect: Dialect, pipeline_cache: Option<&wgpu::PipelineCache>) -> Self {
        let kernel = variant.kernel;
        let label = variant.to_string();
        let entries: Vec<wgpu::BindGroupLayoutEntry> = kernel
            .bindings
            .iter()
            .enumerate()
            .map(|(i, (_, binding))| wgpu::BindGroupLayoutEntry {
                binding: i as u32,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: match binding {
                        Binding::Uniform => wgpu::BufferBindingType::Uniform,
                        Binding::Read => wgpu::BufferBindingType::Storage { read_only: true },
                        Binding::Write => wgpu::BufferBindingType::Storage { read_only: false },
                    },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(kernel.name), entries: &entries });
        let linked = variant.link(dialect);
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label: Some(&label), source: wgpu::ShaderSource::Wgsl(linked.source.into()) });
        let compute = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&label),
            layout: Some(&device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some(kernel.name),
                bind_group_layouts: &[Some(&layout)],
                immediate_size: 0,
            })),
            module: &module,
            entry_point: Some(kernel.name),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[],
                // Only `protect` relies on zeroed workgroup memory (its flag of bad numbers); the others write before they read.
                zero_initialize_workgroup_memory: kernel.zeroed,
            },
            cache: pipeline_cache,
        });
        Self { compute, layout, label: kernel.name }
    }

    /// Records one dispatch.
    pub(crate) fn dispatch(&self, gpu: &Gpu, pass: &mut wgpu::ComputePass<'_>, bindings: &[wgpu::BindingResource<'_>], workgroups: [u32; 3]) {
        if workgroups.contains(&0) {
            return;
        }
        let entries: Vec<wgpu::BindGroupEntry<'_>> =
            bindings.iter().enumerate().map(|(i, resource)| wgpu::BindGroupEntry { binding: i as u32, resource: resource.clone() }).collect();
        let group = gpu.device().create_bind_group(&wgpu::BindGroupDescriptor { label: Some(self.label), layout: &self.layout, entries: &entries });
        pass.set_pipeline(&self.compute);
        pass.set_bind_group(0, &group, &[]);
        let stamp = gpu.profile().and_then(|profile| profile.begin(pass, self.label));
        pass.dispatch_workgroups(workgroups[0], workgroups[1], workgroups[2]);
        if let (Some(profile), Some(stamp)) = (gpu.profile(), stamp) {
            profile.end(pass, stamp);
        }
    }
}
