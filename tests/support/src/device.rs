//! The device, and what is written to it and read back.

use wgkv::Gpu;

/// Returns the device. A machine without an adapter fails the test: nothing here skips itself.
pub fn gpu() -> Gpu {
    pollster::block_on(Gpu::request()).expect("these tests need a GPU adapter; lavapipe (mesa-vulkan-drivers) will do")
}

/// Returns `count` devices: the host's GPUs in turn, a device of its own each.
pub fn devices(count: usize) -> Vec<Gpu> {
    let mut devices = Vec::new();
    while devices.len() < count {
        devices.extend(pollster::block_on(Gpu::request_all()).expect("these tests need a GPU adapter"));
    }
    devices.truncate(count);
    devices
}

/// Returns an encoder of commands.
pub fn encoder(gpu: &Gpu) -> wgpu::CommandEncoder {
    gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
}

/// Hands what was recorded to the device.
pub fn submit(gpu: &Gpu, encoder: wgpu::CommandEncoder) {
    gpu.queue().submit([encoder.finish()]);
}

/// Waits until the device has done all that it was given.
pub fn wait(gpu: &Gpu) {
    gpu.device().poll(wgpu::PollType::wait_indefinitely()).expect("the device works");
}

/// Returns a storage buffer with these numbers.
pub fn upload(gpu: &Gpu, numbers: &[f32]) -> wgpu::Buffer {
    use wgpu::util::DeviceExt;
    gpu.device().create_buffer_init(&wgpu::util::BufferInitDescriptor {
        label: Some("test input"),
        contents: bytemuck::cast_slice(numbers),
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
    })
}

/// What poisoned outputs hold: no kernel writes it, so a number never written shows.
pub const POISON: u32 = 0xffff_a5a5;

/// Returns a storage buffer of poison.
pub fn poisoned(gpu: &Gpu, words: usize) -> wgpu::Buffer {
    upload(gpu, bytemuck::cast_slice(&vec![POISON; words]))
}

/// Reads f32 numbers back.
pub fn download(gpu: &Gpu, buffer: &wgpu::Buffer, n: usize) -> Vec<f32> {
    let words = pollster::block_on(gpu.read(buffer, 0, n as u64)).expect("the buffer can be read back");
    bytemuck::cast_slice(&words).to_vec()
}

/// Reads 32-bit words back.
pub fn words(gpu: &Gpu, buffer: &wgpu::Buffer) -> Vec<u32> {
    pollster::block_on(gpu.read(buffer, 0, buffer.size() / 4)).expect("the buffer can be read back")
}

/// Returns words as f32 numbers.
pub fn floats(words: &[u32]) -> &[f32] {
    bytemuck::cast_slice(words)
}
