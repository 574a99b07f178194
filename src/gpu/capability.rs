//! What a device can do, as far as the kernels are concerned.

use super::Dialect;

/// How `attend_split` reduces over the 32 lanes that serve a KV head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reduce {
    /// Subgroup operations; the 32 lanes are one subgroup.
    Subgroup,
    /// Workgroup memory and barriers.
    Workgroup,
}

/// What a device can do, as far as the kernels are concerned. No kernel needs the feature
/// `shader-f16`, since halves travel packed in 32-bit words; one is faster with it. Integer dot
/// products are not needed either: WGSL always has `dot4I8Packed`, and drivers without the
/// instruction compute it in a few others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Capability {
    /// The WGSL dialect that the device's compiler reads.
    pub dialect: Dialect,
    /// Whether long straight-line shaders are worth compiling. On a GPU they run up to four times
    /// as fast as loops; on a software adapter they run no faster and take seconds to compile.
    pub straight: bool,
    /// Whether shaders may compute in halves (the feature `shader-f16`).
    pub halves: bool,
    /// Whether shaders may multiply cooperative matrices of 16 x 16 halves into f32, by subgroups of
    /// 32 lanes.
    pub matrices: bool,
    /// Smallest and largest subgroup, if shaders may use subgroups.
    pub subgroups: Option<(u32, u32)>,
    /// `max_storage_buffer_binding_size`, bytes.
    pub binding_bytes: u64,
    /// `max_buffer_size`, bytes.
    pub buffer_bytes: u64,
    /// `max_storage_buffers_per_shader_stage`.
    pub storage_buffers: u32,
    /// `max_compute_invocations_per_workgroup`.
    pub invocations: u32,
    /// `max_compute_workgroup_size_x`.
    pub workgroup_size_x: u32,
    /// `max_compute_workgroup_storage_size`, bytes.
    pub workgroup_bytes: u32,
    /// `max_compute_workgroups_per_dimension`.
    pub workgroups: u32,
    /// `min_storage_buffer_offset_alignment`, bytes.
    pub storage_alignment: u32,
    /// `min_uniform_buffer_offset_alignment`, bytes.
    pub uniform_alignment: u32,
}

impl Capability {
    /// Reads the capability of a device.
    pub fn of(device: &wgpu::Device) -> Self {
        let info = device.adapter_info();
        let mut capability = Self::from_limits(&device.limits());
        if device.features().contains(wgpu::Features::SUBGROUP) {
            capability.subgroups = Some((info.subgroup_min_size, info.subgroup_max_size));
        }
        capability.halves = device.features().contains(wgpu::Features::SHADER_F16);
        capability.straight = info.device_type != wgpu::DeviceType::Cpu;
        capability
    }

    /// Makes the capability of a GPU with these limits and no subgroups.
    pub fn from_limits(limits: &wgpu::Limits) -> Self {
        Self {
            dialect: Dialect::TARGET,
            straight: true,
            halves: false,
            matrices: false,
            subgroups: None,
            binding_bytes: limits.max_storage_buffer_binding_size,
            buffer_bytes: limits.max_buffer_size,
            storage_buffers: limits.max_storage_buffers_per_shader_stage,
            invocations: limits.max_compute_invocations_per_workgroup,
            workgroup_size_x: limits.max_compute_workgroup_size_x,
            workgroup_bytes: limits.max_compute_workgroup_storage_size,
            workgroups: limits.max_compute_workgroups_per_dimension,
            storage_alignment: limits.min_storage_buffer_offset_alignment,
            uniform_alignment: limits.min_uniform_buffer_offset_alignment,
        }
    }

    /// Returns the capability that every WebGPU implementation offers: default limits, no
    /// subgroups.
    pub fn webgpu_default() -> Self {
        Self::from_limits(&wgpu::Limits::default())
    }

    /// Returns the same capability without subgroups.
    pub fn without_subgroups(mut self) -> Self {
        self.subgroups = None;
        self
    }

    /// Returns what both can do, in the dialect of the first, with loops or straight-line code as
    /// the other has it.
    pub fn at_most(&self, other: Self) -> Self {
        Self {
            dialect: self.dialect,
            straight: other.straight,
            halves: self.halves && other.halves,
            matrices: self.matrices && other.matrices,
            subgroups: self.subgroups.and(other.subgroups),
            binding_bytes: self.binding_bytes.min(other.binding_bytes),
            buffer_bytes: self.buffer_bytes.min(other.buffer_bytes),
            storage_buffers: self.storage_buffers.min(other.storage_buffers),
            invocations: self.invocations.min(other.invocations),
            workgroup_size_x: self.workgroup_size_x.min(other.workgroup_size_x),
            workgroup_bytes: self.workgroup_bytes.min(other.workgroup_bytes),
            workgroups: self.workgroups.min(other.workgroups),
            storage_alignment: self.storage_alignment.max(other.storage_alignment),
            uniform_alignment: self.uniform_alignment.max(other.uniform_alignment),
        }
    }

    /// Returns how many neighbouring lanes are certain to share a subgroup: 0 where shaders may not
    /// use subgroups.
    pub(crate) fn lanes(&self) -> u32 {
        self.subgroups.map_or(0, |(smallest, _)| smallest)
    }

    /// Returns the reduction that `attend_split` uses here: subgroups where every subgroup has 32
    /// lanes or more, so that the workgroup of 32 is one; otherwise workgroup memory.
    pub fn reduce(&self) -> Reduce {
        match self.subgroups {
            Some((smallest, _)) if smallest >= 32 => Reduce::Subgroup,
            _ => Reduce::Workgroup,
        }
    }

    /// Returns the reduction to use where a workgroup is several units of 32, each of which must be
    /// a subgroup.
    pub fn reduce_units(&self) -> Reduce {
        if self.subgroups == Some((32, 32)) { Reduce::Subgroup } else { Reduce::Workgroup }
    }
}
