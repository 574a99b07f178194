//! Cooperative matrices: whether an adapter offers them, and whether they can be trusted.

use super::Gpu;
use half::f16;

/// What a device needs for them: halves are their elements, and a subgroup shares a matrix.
pub const FEATURES: wgpu::Features = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(wgpu::Features::SHADER_F16).union(wgpu::Features::SUBGROUP);

/// Rows and columns of a matrix.
const SIZE: usize = 16;

/// Returns whether an adapter lists matrices of 16 x 16 halves with sums in f32, and the user did
/// not switch them off.
pub fn offered(adapter: &wgpu::Adapter) -> bool {
    let off = std::env::var("WGKV_MATRICES").is_ok_and(|word| word == "off");
    let info = adapter.get_info();
    let size = SIZE as u32;
    let listed = |found: &wgpu::CooperativeMatrixProperties| {
        let types = found.ab_type == wgpu::CooperativeScalarType::F16 && found.cr_type == wgpu::CooperativeScalarType::F32;
        types && [found.m_size, found.n_size, found.k_size] == [size; 3]
    };
    !off && adapter.features().contains(FEATURES)
        && (info.subgroup_min_size, info.subgroup_max_size) == (32, 32)
        && adapter.cooperative_matrix_properties().iter().any(listed)
}

/// Returns wgpu's token for experimental features, if these have one.
pub fn token(features: wgpu::Features) -> wgpu::ExperimentalFeatures {
    if !features.intersects(wgpu::Features::all_experimental_mask()) {
        return wgpu::ExperimentalFeatures::disabled();
    }
    // SAFETY: the only experimental feature that is asked for is that of cooperative matrices. What
    // wgpu leaves unchecked of it is kept by every shader here: addresses and strides are multiples
    // of 16 bytes, loads and products are in uniform control flow, and element types match.
    unsafe { wgpu::ExperimentalFeatures::enabled() }
}

/// Multiplies two matrices of small integers and adds a third, which is exact, and returns whether
/// the product is right. A driver whose compiler fails loses the device.
pub async fn multiply(gpu: &Gpu) -> bool {
    let number = |i: usize, step: usize| (i * step % 17) as f32 - 8.0;
    let matrix = |step: usize| -> Vec<f32> { (0..SIZE * SIZE).map(|i| number(i, step)).collect() };
    let [a, b, c] = [5, 7, 11].map(matrix);
    let halves = |numbers: &[f32]| -> Vec<u8> { numbers.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect() };
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
    let buffers = [
        gpu.filled("wgkv matrix", &halves(&a), usage),
        gpu.filled("wgkv matrix", &halves(&b), usage),
        gpu.filled("wgkv matrix", bytemuck::cast_slice(&c), usage),
    ];
    let scope = gpu.device().push_error_scope(wgpu::ErrorFilter::Validation);
    let module = gpu.device().create_shader_module(wgpu::ShaderModuleDescriptor {
        label: Some("wgkv matrices"),
        source: wgpu::ShaderSource::Wgsl(include_str!("matrices.wgsl").into()),
    });
    let pipeline = gpu.device().create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some("wgkv matrices"),
        layout: None,
        module: &module,
        entry_point: Some("matrices"),
        compilation_options: wgpu::PipelineCompilationOptions::default(),
        cache: None,
    });
    let entries: Vec<wgpu::BindGroupEntry<'_>> =
        buffers.iter().zip(0..).map(|(buffer, binding)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() }).collect();
    let layout = pipeline.get_bind_group_layout(0);
    let group = gpu.device().create_bind_group(&wgpu::BindGroupDescriptor { label: Some("wgkv matrices"), layout: &layout, entries: &entries });
    let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("wgkv matrices") });
    {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some("wgkv matrices"), timestamp_writes: None });
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups(1, 1, 1);
    }
    gpu.queue().submit([encoder.finish()]);
    if scope.pop().await.is_some() {
        return false;
    }
    let want = |i: usize| c[i] + (0..SIZE).map(|k| a[i / SIZE * SIZE + k] * b[k * SIZE + i % SIZE]).sum::<f32>();
    match gpu.read(&buffers[2], 0, (SIZE * SIZE) as u64).await {
        Ok(words) => words.iter().enumerate().all(|(i, word)| f32::from_bits(*word) == want(i)),
        Err(_) => false,
    }
}
