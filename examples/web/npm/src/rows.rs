//! Rows of numbers that the caller gives, as arrays or in buffers.

use crate::device::{Device, Given, throw};
use js_sys::Float32Array;
use std::cell::RefCell;
use wasm_bindgen::prelude::*;
use wgkv::{Element, Error, Rows};

/// Bytes of a buffer for arrays that is kept for the next call, at most: what decoding needs. A prompt's is given back.
const KEPT_BYTES: u64 = 1 << 20;

/// The caller's buffers that are known to wgpu at once, at most.
const LENT: usize = 64;

/// What rows are for.
#[derive(Clone, Copy)]
pub enum Place {
    /// Keys, or what sinks are elected from.
    Keys,
    /// Values.
    Values,
    /// Queries.
    Queries,
    /// The output.
    Output,
}

/// Rows as they were given.
pub struct Argument {
    name: &'static str,
    given: Given,
    array: Option<Float32Array>,
}

impl Argument {
    /// Looks at an argument.
    ///
    /// # Errors
    /// For anything but an array or a buffer that serves.
    pub fn new(device: &Device, name: &'static str, value: &JsValue) -> Result<Self, JsValue> {
        let given = device.lent.given(name, value)?;
        Ok(Self { name, array: given.array(), given })
    }

    /// Whether it is an array.
    pub fn is_array(&self) -> bool {
        self.array.is_some()
    }

    /// Refuses an array beside an encoder of the caller's.
    ///
    /// # Errors
    /// For an array, where the encoder is not undefined: a later call would write over it before it is read.
    pub fn expect_beside(&self, encoder: &JsValue) -> Result<(), JsValue> {
        if !encoder.is_undefined() && self.is_array() {
            return Err(throw(format!("{} must be a GPUBuffer beside an encoder of your own: arrays are written before it is submitted", self.name)));
        }
        Ok(())
    }

    /// The type of the numbers.
    pub fn element(&self) -> Element {
        if self.array.is_none() && self.given.half() { Element::F16 } else { Element::F32 }
    }

    /// How many rows of `width` numbers an array holds. A buffer does not tell.
    ///
    /// # Errors
    /// For an array that does not hold whole rows.
    pub fn tokens(&self, width: u32) -> Result<Option<u32>, JsValue> {
        let (Some(array), width, name) = (&self.array, width.max(1), self.name) else {
            return Ok(None);
        };
        let length = array.length();
        if length == 0 || !length.is_multiple_of(width) {
            return Err(throw(format!("{name} must hold a multiple of {width} numbers, 1 token or more, but holds {length}")));
        }
        Ok(Some(length / width))
    }

    /// Checks that a buffer holds `numbers` numbers where a kernel can reach them, as the cache does when it records them.
    ///
    /// # Errors
    /// Those of the cache.
    pub fn expect(&self, device: &Device, numbers: u64) -> Result<(), JsValue> {
        if self.is_array() {
            return Ok(());
        }
        let (name, offset) = (self.name, self.given.offset() as u64);
        let (need, have) = (numbers * self.element().bytes(), (self.given.size() as u64).saturating_sub(offset));
        let alignment = u64::from(device.gpu.capability().storage_alignment);
        if have < need {
            return Err(throw(Error::Rows { name, need, have }));
        }
        if !offset.is_multiple_of(alignment) {
            return Err(throw(Error::Offset { name, need: alignment, had: offset }));
        }
        if self.given.usage() & wgpu::BufferUsages::STORAGE.bits() == 0 {
            return Err(throw(Error::Usage { name, need: "STORAGE" }));
        }
        Ok(())
    }

    /// What it was made from, if the device has not yet shown that it takes the buffer.
    pub fn into_unsure(self) -> Option<Given> {
        Some(self.given).filter(|given| !given.sure())
    }
}

/// Rows where a kernel can read or write them.
pub struct Placed {
    buffer: wgpu::Buffer,
    offset: u64,
    element: Element,
    /// Whether the buffer is of no more use after the call.
    passing: bool,
}

impl Placed {
    /// The rows.
    pub fn rows(&self) -> Rows<'_> {
        Rows { offset: self.offset, element: self.element, ..Rows::f32(&self.buffer) }
    }

    /// The buffer.
    pub fn buffer(&self) -> &wgpu::Buffer {
        &self.buffer
    }

    /// Gives back the memory of a buffer that is of no more use.
    pub fn release(self) {
        if self.passing {
            self.buffer.destroy();
        }
    }
}

/// The buffers of one cache's rows.
pub struct Places {
    /// The caller's, by their numbers.
    lent: RefCell<Vec<(u32, wgpu::Buffer)>>,
    /// Those of arrays, by place.
    own: RefCell<[Option<wgpu::Buffer>; 4]>,
}

impl Places {
    /// Begins with none.
    pub fn new() -> Self {
        Self { lent: RefCell::default(), own: RefCell::default() }
    }

    /// Gives back all memory.
    pub fn destroy(&self) {
        self.own.take().into_iter().flatten().for_each(|buffer| buffer.destroy());
    }

    /// Forgets the caller's buffers, which are held no longer than to the next step.
    pub fn forget(&self) {
        self.lent.borrow_mut().clear();
    }

    /// Puts an argument where a kernel can read it.
    ///
    /// # Errors
    /// Where there is no memory for it.
    pub fn place(&self, device: &Device, place: Place, argument: &Argument) -> Result<Placed, JsValue> {
        let Some(array) = &argument.array else {
            let (buffer, offset) = (self.lend(device, &argument.given), argument.given.offset() as u64);
            return Ok(Placed { buffer, offset, element: argument.element(), passing: false });
        };
        let numbers = array.to_vec();
        let bytes: &[u8] = bytemuck::cast_slice(&numbers);
        let size = bytes.len() as u64;
        if size <= KEPT_BYTES {
            let buffer = self.kept(device, place, size, wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST);
            device.gpu.queue().write_buffer(&buffer, 0, bytes);
            return Ok(Placed { buffer, offset: 0, element: Element::F32, passing: false });
        }
        // Mapped, so that a browser says at once whether it has the memory.
        let descriptor = wgpu::BufferDescriptor { label: Some("wgkv rows"), size, usage: wgpu::BufferUsages::STORAGE, mapped_at_creation: true };
        let buffer = device.gpu.device().create_buffer(&descriptor);
        if let Ok(mut view) = buffer.get_mapped_range_mut(..) {
            view.copy_from_slice(bytes);
            drop(view);
            buffer.unmap();
        }
        let placed = Placed { buffer, offset: 0, element: Element::F32, passing: true };
        match device.lent.take_failure() {
            None => Ok(placed),
            Some(failure) => {
                placed.release();
                Err(throw(format!("{}: {failure}", argument.name)))
            }
        }
    }

    /// Makes room for an output that is read back.
    pub fn output(&self, device: &Device, size: u64) -> Placed {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
        let passing = size > KEPT_BYTES;
        let buffer = if passing {
            device.gpu.device().create_buffer(&wgpu::BufferDescriptor { label: Some("wgkv output"), size, usage, mapped_at_creation: false })
        } else {
            self.kept(device, Place::Output, size, usage)
        };
        Placed { buffer, offset: 0, element: Element::F32, passing }
    }

    /// Returns a place's buffer, made larger if it must be.
    fn kept(&self, device: &Device, place: Place, size: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
        let mut own = self.own.borrow_mut();
        let held = &mut own[place as usize];
        if let Some(buffer) = held.take_if(|buffer| buffer.size() < size) {
            buffer.destroy();
        }
        let make = || {
            let descriptor = wgpu::BufferDescriptor { label: Some("wgkv rows"), size: size.next_power_of_two(), usage, mapped_at_creation: false };
            device.gpu.device().create_buffer(&descriptor)
        };
        held.get_or_insert_with(make).clone()
    }

    /// Returns wgpu's name for a buffer of the caller's: the same for the same, by which bind groups are found again.
    fn lend(&self, device: &Device, given: &Given) -> wgpu::Buffer {
        let (mut lent, id) = (self.lent.borrow_mut(), given.id());
        if let Some((_, buffer)) = lent.iter().find(|(known, _)| *known == id) {
            return buffer.clone();
        }
        device.lent.hand_buffer(given);
        let buffer = device.gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: given.size() as u64,
            usage: wgpu::BufferUsages::from_bits_truncate(given.usage()),
            mapped_at_creation: false,
        });
        if lent.len() == LENT {
            lent.remove(0);
        }
        lent.push((id, buffer.clone()));
        buffer
    }
}
