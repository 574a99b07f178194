//! A variant of a kernel, compiled.

use super::{Binding, Bindings, Dialect, Gpu, Variant};

/// A compiled variant with the layouts of its bind groups.
#[derive(Clone, Debug)]
pub struct Pipeline {
    pub(crate) compute: wgpu::ComputePipeline,
    groups: Vec<Bindings>,
    layouts: Vec<wgpu::BindGroupLayout>,
    label: &'static str,
}

/// Makes the layout of a bind group. Those of equal groups are interchangeable, by WebGPU's rules.
pub(super) fn group_layout(device: &wgpu::Device, label: &'static str, group: Bindings) -> wgpu::BindGroupLayout {
    let entry = |(i, (_, binding)): (usize, &(&str, Binding))| wgpu::BindGroupLayoutEntry {
        binding: i as u32,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty: match binding {
                Binding::Uniform | Binding::Dynamic => wgpu::BufferBindingType::Uniform,
                Binding::Read => wgpu::BufferBindingType::Storage { read_only: true },
                Binding::Write => wgpu::BufferBindingType::Storage { read_only: false },
            },
            has_dynamic_offset: *binding == Binding::Dynamic,
            min_binding_size: None,
        },
        count: None,
    };
    let entries: Vec<wgpu::BindGroupLayoutEntry> = group.iter().enumerate().map(entry).collect();
    device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(label), entries: &entries })
}

/// Makes a bind group of the resources that `resource` names.
pub(crate) fn bind_group<'a>(
    gpu: &Gpu,
    label: &'static str,
    layout: &wgpu::BindGroupLayout,
    group: Bindings,
    resource: impl Fn(&'static str) -> wgpu::BindingResource<'a>,
) -> wgpu::BindGroup {
    let entries: Vec<wgpu::BindGroupEntry<'a>> =
        group.iter().enumerate().map(|(i, (name, _))| wgpu::BindGroupEntry { binding: i as u32, resource: resource(name) }).collect();
    gpu.create_bind_group(&wgpu::BindGroupDescriptor { label: Some(label), layout, entries: &entries })
}

impl Pipeline {
    pub(crate) fn new(device: &wgpu::Device, variant: &Variant, dialect: Dialect, pipeline_cache: Option<&wgpu::PipelineCache>) -> Self {
        let kernel = variant.kernel;
        let label = variant.to_string();
        let groups = variant.groups();
        let layouts: Vec<wgpu::BindGroupLayout> = groups.iter().map(|group| group_layout(device, kernel.name, group)).collect();
        let linked = variant.link(dialect);
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label: Some(&label), source: wgpu::ShaderSource::Wgsl(linked.source.into()) });
        let compute = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&label),
            layout: Some(&device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some(kernel.name),
                bind_group_layouts: &layouts.iter().map(Some).collect::<Vec<_>>(),
                immediate_size: 0,
            })),
            module: &module,
            entry_point: Some(kernel.name),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[],
                // Only `protect` relies on zeroed workgroup memory (its flag of bad numbers); the
                // others write before they read.
                zero_initialize_workgroup_memory: kernel.zeroed,
            },
            cache: pipeline_cache,
        });
        Self { compute, groups, layouts, label: kernel.name }
    }

    /// Makes the bind group of this number from the resources that `resource` names.
    pub(crate) fn bind<'a>(&self, gpu: &Gpu, group: usize, resource: impl Fn(&'static str) -> wgpu::BindingResource<'a>) -> wgpu::BindGroup {
        bind_group(gpu, self.label, &self.layouts[group], self.groups[group], resource)
    }

    /// Makes the bind group of this number from buffers in the order of its bindings.
    pub fn bind_in_order(&self, gpu: &Gpu, group: usize, buffers: &[wgpu::BufferBinding<'_>]) -> wgpu::BindGroup {
        let entries: Vec<wgpu::BindGroupEntry<'_>> = buffers
            .iter()
            .enumerate()
            .map(|(i, buffer)| wgpu::BindGroupEntry { binding: i as u32, resource: wgpu::BindingResource::Buffer(buffer.clone()) })
            .collect();
        gpu.create_bind_group(&wgpu::BindGroupDescriptor { label: Some(self.label), layout: &self.layouts[group], entries: &entries })
    }

    /// Records one dispatch of a kernel with a single bind group, made of these resources in the
    /// order of the kernel's bindings.
    pub(crate) fn dispatch_once(&self, gpu: &Gpu, pass: &mut wgpu::ComputePass<'_>, bindings: &[wgpu::BindingResource<'_>], workgroups: [u32; 3]) {
        let entries: Vec<wgpu::BindGroupEntry<'_>> =
            bindings.iter().enumerate().map(|(i, resource)| wgpu::BindGroupEntry { binding: i as u32, resource: resource.clone() }).collect();
        let group = gpu.create_bind_group(&wgpu::BindGroupDescriptor { label: Some(self.label), layout: &self.layouts[0], entries: &entries });
        self.dispatch(gpu, pass, &[(&group, &[])], workgroups);
    }

    /// Records one dispatch with these bind groups and their dynamic offsets.
    pub fn dispatch(&self, gpu: &Gpu, pass: &mut wgpu::ComputePass<'_>, groups: &[(&wgpu::BindGroup, &[u32])], workgroups: [u32; 3]) {
        if workgroups.contains(&0) {
            return;
        }
        pass.set_pipeline(&self.compute);
        for ((group, offsets), n) in groups.iter().zip(0..) {
            pass.set_bind_group(n, *group, offsets);
        }
        let stamp = gpu.profile().and_then(|profile| profile.begin(pass, self.label));
        pass.dispatch_workgroups(workgroups[0], workgroups[1], workgroups[2]);
        if let (Some(profile), Some(stamp)) = (gpu.profile(), stamp) {
            profile.end(pass, stamp);
        }
    }
}
