//! One encoder that the layers of a step record into, in as few compute passes as they allow.

use wgkv::Gpu;

/// Work that is being recorded: dispatches one after another in one compute pass, unless a copy or
/// the caller's own encoder comes between.
///
/// wgpu makes two command buffers of every pass, which cost the host more than the dispatches.
pub struct Recorder {
    gpu: Gpu,
    label: &'static str,
    // Before the encoder, so that it ends first.
    pass: Option<wgpu::ComputePass<'static>>,
    encoder: Option<wgpu::CommandEncoder>,
}

impl Recorder {
    /// Begins with nothing recorded.
    pub fn new(gpu: &Gpu, label: &'static str) -> Self {
        Self { gpu: gpu.clone(), label, pass: None, encoder: None }
    }

    /// Returns the device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Returns the encoder, for copies and for calls that make a pass of their own. The open pass
    /// ends.
    pub fn encoder(&mut self) -> &mut wgpu::CommandEncoder {
        self.pass = None;
        let (gpu, label) = (&self.gpu, self.label);
        self.encoder.get_or_insert_with(|| command_encoder(gpu, label))
    }

    /// Returns the open compute pass, or a new one.
    pub fn pass(&mut self) -> &mut wgpu::ComputePass<'static> {
        let (gpu, label, encoder) = (&self.gpu, self.label, &mut self.encoder);
        self.pass.get_or_insert_with(|| {
            let encoder = encoder.get_or_insert_with(|| command_encoder(gpu, label));
            encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some(label), timestamp_writes: None }).forget_lifetime()
        })
    }

    /// Submits what was recorded; returns what to wait for.
    pub fn submit(&mut self) -> wgpu::SubmissionIndex {
        self.pass = None;
        self.gpu.queue().submit(self.encoder.take().map(wgpu::CommandEncoder::finish))
    }
}

fn command_encoder(gpu: &Gpu, label: &'static str) -> wgpu::CommandEncoder {
    gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some(label) })
}
