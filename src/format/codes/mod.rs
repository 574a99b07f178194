//! The arithmetic of the codes as they lie in a page. Files depend on it, so the twins of the
//! shaders use it from here.

pub mod aligned;
pub mod bfloat;
pub mod code_planes;
pub mod half;
pub mod planes;
pub mod scales;
pub mod trellis;
