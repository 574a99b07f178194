//! wgkv for JavaScript: the WebAssembly module of the npm package `wgkv`, whose classes are in `index.js`.
//!
//! The device comes from here, too, for other WebAssembly modules (`Device`): wgpu's web backend cannot ask for subgroups, takes no
//! device and no buffer of a page's, finds WebGPU only where browsers have it, and says little where there is none.

#[cfg(all(target_arch = "wasm32", feature = "package"))]
mod cache;
#[cfg(all(target_arch = "wasm32", feature = "package"))]
mod calibration;
#[cfg(target_arch = "wasm32")]
mod device;
#[cfg(all(target_arch = "wasm32", feature = "package"))]
mod options;
#[cfg(all(target_arch = "wasm32", feature = "package"))]
mod rows;

#[cfg(target_arch = "wasm32")]
pub use device::{Device, throw};
