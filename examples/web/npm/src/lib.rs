//! wgkv for JavaScript: the WebAssembly module of the npm package `wgkv`, whose classes are in `index.js`.
//!
//! The device comes from here, too, for other WebAssembly modules (`Device`): wgpu's web backend cannot ask for subgroups, finds
//! WebGPU only where browsers have it, and says little where there is none.

#[cfg(all(target_arch = "wasm32", feature = "package"))]
mod cache;
#[cfg(target_arch = "wasm32")]
mod device;

#[cfg(target_arch = "wasm32")]
pub use device::{Device, throw};
