//! Multiplies rows by the orthonormal Hadamard matrix of an order: `y = H x`. Applied twice it
//! returns the row.
//!
//! The order is a head dimension, or that of the KV heads that RotateKV rotates together
//! (2501.16383). Powers of two take butterflies: every number is read and written once, 16 bytes an
//! access, with two barriers in between. 80, 96 and 192 take two dense factors of at most 20
//! additions each. Shader: `shaders/rotate.wgsl`. Twin:
//! [`reference::rotate`](crate::low_level::reference::rotate).

use super::parts::{self, shared};
use super::{Binding, Kernel, Variant, flag, hadamard_constants};
use crate::error::{Error, Result};
use crate::format::Element;
use crate::gpu::{Gpu, Rows};

/// The orders that are served.
pub const ORDERS: [u32; 8] = [64, 80, 96, 128, 192, 256, 512, 1024];

/// Invocations of a workgroup of butterflies. Each holds 32 numbers, so this sets how much a
/// workgroup reads before it writes. 32 and 64 give right results too.
pub const INVOCATIONS: u32 = 64;

/// `RotateParams` of `shaders/rotate.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct RotateParams {
    /// Rows to rotate.
    pub rows: u32,
    /// Unused.
    pub pad: [u32; 3],
}

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "rotate",
    source: include_str!("../../shaders/rotate.wgsl"),
    groups: &[&[("params", Binding::Uniform), ("rows", Binding::Read), ("rotated", Binding::Write)]],
    params_bytes: size_of::<RotateParams>(),
    zeroed: false,
};

/// Returns the variant for an order. `invocations` are those of a workgroup of butterflies,
/// [`INVOCATIONS`] in general.
pub fn variant(order: u32, in_place: bool, invocations: u32) -> Variant {
    let butterflies = order.is_power_of_two();
    let parts = if butterflies { [shared::PLACE, shared::BUTTERFLY, parts::ROTATE.butterfly] } else { [shared::PLACE, shared::HADAMARD, parts::ROTATE.dense] };
    let mut constants = hadamard_constants(order);
    constants.extend([("INVOCATIONS", if butterflies { invocations } else { order }.into()), flag("IN_PLACE", in_place)]);
    Variant::new(&KERNEL, &parts, &constants)
}

/// Records the rotation, in place, of `count` f32 rows of `order` numbers.
///
/// # Errors
/// [`Error::Mismatch`] for an order that is not served and for rows that are not f32,
/// [`Error::Limit`] for more than the device can bind, and [`Error::Rows`], [`Error::Offset`],
/// [`Error::Usage`] for a buffer that cannot hold them.
pub fn record(gpu: &Gpu, encoder: &mut wgpu::CommandEncoder, rows: Rows<'_>, count: u32, order: u32) -> Result<()> {
    record_with(gpu, encoder, None, rows, count, order, INVOCATIONS)
}

/// Records the rotation of `count` f32 rows of `order` numbers into `rotated`, which is another
/// buffer. `rows` stays as it is.
///
/// # Errors
/// Those of [`record`], for either buffer, and [`Error::Mismatch`] where both are the same: a
/// device cannot read a buffer through one binding and write it through another, wherever in it the
/// rows lie.
pub fn record_into(gpu: &Gpu, encoder: &mut wgpu::CommandEncoder, rows: Rows<'_>, rotated: Rows<'_>, count: u32, order: u32) -> Result<()> {
    record_with(gpu, encoder, Some(rows), rotated, count, order, INVOCATIONS)
}

/// Records either of the two, with another size of workgroup, for measurements. Without `rows` it
/// rotates `rotated` in place.
///
/// # Errors
/// Those of [`record_into`], and [`Error::Mismatch`] for `invocations` other than 32, 64 or 128.
pub fn record_with(
    gpu: &Gpu,
    encoder: &mut wgpu::CommandEncoder,
    rows: Option<Rows<'_>>,
    rotated: Rows<'_>,
    count: u32,
    order: u32,
    invocations: u32,
) -> Result<()> {
    if !ORDERS.contains(&order) {
        return Err(Error::argument("order", "64, 80, 96, 128, 192, 256, 512 or 1024", order));
    }
    if ![32, 64, 128].contains(&invocations) {
        return Err(Error::argument("invocations", "32, 64 or 128", invocations));
    }
    if rows.is_some_and(|rows| rows.buffer == rotated.buffer) {
        return Err(Error::argument("rotated", "in another buffer than rows", "in the same"));
    }
    let elements = u64::from(count) * u64::from(order);
    let in_place = rows.is_none();
    let rows = rows.map(|rows| bind(gpu, "rows", rows, elements)).transpose()?;
    // In place there is one argument, and the caller knows it as `rows`.
    let rotated = bind(gpu, if in_place { "rows" } else { "rotated" }, rotated, elements)?;
    if count == 0 {
        return Ok(());
    }
    // In place, the parameters stand at the binding of the rows, which the shader then never reads.
    let contents = RotateParams { rows: count, pad: [0; 3] };
    let params = gpu.filled("wgkv params", bytemuck::bytes_of(&contents), wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::STORAGE);
    let bindings = [params.as_entire_binding(), rows.map_or(params.as_entire_binding(), wgpu::BindingResource::Buffer), wgpu::BindingResource::Buffer(rotated)];
    let numbers = if order.is_power_of_two() { 32 * invocations } else { order };
    let grid = crate::gpu::fold(elements.div_ceil(numbers.into()) as u32, gpu.capability().workgroups);
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some("wgkv rotate"), timestamp_writes: None });
    gpu.pipeline(&variant(order, in_place, invocations)).dispatch_once(gpu, &mut pass, &bindings, [grid[0], grid[1], 1]);
    Ok(())
}

/// Checks that `elements` f32 numbers lie there, and returns their binding.
fn bind<'a>(gpu: &Gpu, name: &'static str, rows: Rows<'a>, elements: u64) -> Result<wgpu::BufferBinding<'a>> {
    if rows.element != Element::F32 {
        return Err(Error::argument(name, "f32", rows.element.name()));
    }
    rows.binding(name, elements, gpu.capability())
}
