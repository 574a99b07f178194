//! `cargo xtask lint-shaders`: every kernel in every variant through other people's compilers.
//!
//! | compiler | what it is for | variants that it cannot take |
//! |---|---|---|
//! | naga, to SPIR-V, MSL and HLSL | Vulkan, Metal, DirectX 12, Firefox | none, in versions that have what a variant uses |
//! | naga, to GLSL ES | OpenGL ES | those that compute in halves, which that language lacks (`GLSL_EXCLUDED`) |
//! | `spirv-val`, on naga's SPIR-V | what drivers of Vulkan may take for granted | none |
//! | Tint | Chromium | those of cooperative matrices, which browsers lack; pipelines of those that need larger workgroups than WebGPU's default are not made |
//!
//! naga's part is `tests/shaders`; `shader.rs` writes the modules that Tint compiles. Tint refuses
//! what naga lets pass: barriers and subgroup operations in control flow that is not uniform.

use crate::command::{cargo, root, run, target};
use crate::shader;
use crate::test::OPTIONAL;
use crate::tool::{NODE, NPM, SPIRV_VAL};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where this is set, `tests/shaders` checks all variants by `spirv-val`, not one of each kind.
pub const EVERY_VARIANT: &str = "WGKV_EVERY_VARIANT";

/// The files of the npm package that brings Tint: Dawn for Node, whose version they lock.
const FILES: [(&str, &str); 3] = [
    ("package.json", include_str!("../tint/package.json")),
    ("package-lock.json", include_str!("../tint/package-lock.json")),
    ("tint.mjs", include_str!("../tint/tint.mjs")),
];

/// Checks every variant.
pub fn run_lint() -> Result<()> {
    run_setup()?;
    run(cargo(&["test", "--workspace", "--test", "shaders", "--features", OPTIONAL]).env(EVERY_VARIANT, "1"))?;
    run_tint()
}

/// Makes sure that `spirv-val` and Tint are there.
pub fn run_setup() -> Result<()> {
    SPIRV_VAL.provide()?;
    NODE.provide()?;
    install_tint(&NPM.provide()?)
}

/// Returns where Tint is installed: with what cargo builds, so that the working tree stays clean.
fn folder() -> Result<PathBuf> {
    Ok(target()?.0.join("tint"))
}

/// Installs Tint, unless this version is there.
fn install_tint(npm: &Path) -> Result<()> {
    let folder = folder()?;
    let installed = FILES.iter().all(|(name, text)| std::fs::read_to_string(folder.join(name)).is_ok_and(|had| had == *text));
    if installed && folder.join("node_modules").join("webgpu").is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    let write = |(name, text): &(&str, &str)| std::fs::write(folder.join(name), text).with_context(|| format!("{name} cannot be written"));
    // The script that runs it comes last: until then, nothing counts as installed.
    FILES[..2].iter().try_for_each(write)?;
    // Its one script after installation fetches tools for building Dawn, which the package brings
    // built.
    run(Command::new(npm).args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(&folder))?;
    FILES[2..].iter().try_for_each(write)
}

/// Compiles every module.
pub fn run_tint() -> Result<()> {
    let modules = shader::write_modules(&folder()?)?;
    run(Command::new(NODE.provide()?).arg(folder()?.join("tint.mjs")).arg(modules).current_dir(root()))
}
