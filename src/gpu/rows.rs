//! Rows of numbers in the caller's buffers.

use crate::error::{Error, Result};
use crate::format::Element;
use crate::gpu::Capability;

/// Dense rows in a buffer of the caller's, made with usage `STORAGE`.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The buffer.
    pub buffer: &'a wgpu::Buffer,
    /// Bytes from the buffer's start to the first row: a multiple of the device's storage alignment
    /// (256 at most).
    pub offset: u64,
    /// The type of the numbers.
    pub element: Element,
}

impl<'a> Rows<'a> {
    /// Makes rows of f32 from the buffer's start.
    pub fn f32(buffer: &'a wgpu::Buffer) -> Self {
        Self { buffer, offset: 0, element: Element::F32 }
    }

    /// Makes rows of f16 from the buffer's start.
    pub fn f16(buffer: &'a wgpu::Buffer) -> Self {
        Self { buffer, offset: 0, element: Element::F16 }
    }

    /// Checks that `elements` numbers lie there and that one binding holds them, and returns a
    /// binding of just those.
    pub(crate) fn binding(&self, name: &'static str, elements: u64, capability: &Capability) -> Result<wgpu::BufferBinding<'a>> {
        let alignment = capability.storage_alignment;
        let need = elements * self.element.bytes();
        let have = self.buffer.size().saturating_sub(self.offset);
        if have < need {
            return Err(Error::Rows { name, need, have });
        }
        if !self.offset.is_multiple_of(u64::from(alignment)) {
            return Err(Error::Offset { name, need: u64::from(alignment), had: self.offset });
        }
        if !self.buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
            return Err(Error::Usage { name, need: "STORAGE" });
        }
        if need > capability.binding_bytes {
            return Err(Error::Limit { what: "max_storage_buffer_binding_size", reason: name, need, have: capability.binding_bytes });
        }
        Ok(wgpu::BufferBinding { buffer: self.buffer, offset: self.offset, size: std::num::NonZeroU64::new(need) })
    }
}
