//! Rows of numbers in the caller's buffers.

use crate::error::{Error, Result};
use crate::format::Element;
use crate::gpu::Capability;

/// Dense rows in a buffer of the caller's, made with usage `STORAGE` on the device of the
/// [`Gpu`](crate::Gpu) that works on them.
///
/// # Panics
/// wgpu does not tell of which device a buffer, an encoder or a compute pass is, so a call that
/// takes one of another device cannot refuse it. Of two devices of one `wgpu::Instance`, wgpu finds
/// the difference and reports it as an uncaptured error, which panics unless the program has set
/// `wgpu::Device::on_uncaptured_error`: "Device with '..' label of Buffer with '..' label doesn't
/// match Device with '..' label", in the call for buffers; of a "ComputePipeline", in
/// `wgpu::CommandEncoder::finish`, for encoders. Devices of different instances number what they
/// make alike: wgpu then panics ("Cannot get non-existent resource", or for the size of a buffer
/// that the caller does not know), or takes a buffer of its own that has the same number.
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

/// Refuses rows that are written where others lie, which are read or written by the same call.
pub(crate) fn expect_apart(name: &'static str, written: &wgpu::BufferBinding<'_>, other: &'static str, beside: &wgpu::BufferBinding<'_>) -> Result<()> {
    let [a, b] = [written, beside].map(|binding| binding.offset..binding.offset + binding.size.map_or(0, u64::from));
    if written.buffer != beside.buffer || a.is_empty() || b.is_empty() || a.start >= b.end || b.start >= a.end {
        return Ok(());
    }
    Err(Error::argument(name, format!("apart from {other}, at bytes {b:?} of the buffer"), format!("at bytes {a:?} of the same buffer")))
}
