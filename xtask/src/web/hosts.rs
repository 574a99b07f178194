//! The npm package in JavaScript hosts that are not browsers.

use super::build::{Site, copy};
use crate::command::{output, root, run};
use crate::tool::{NODE, NPM};
use anyhow::Result;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The packages that bring WebGPU for Node.js, and Deno, in these versions.
const PACKAGES: [&str; 2] = ["webgpu@0.6.2", "deno@2.9.6"];

/// Chromium's software adapter, for a Dawn that refuses lavapipe where it is old.
const SWIFTSHADER: &str = "/usr/lib/chromium/vk_swiftshader_icd.json";

/// Installs the package as a user would, from what npm would publish, and runs its test in both.
pub fn test(site: &Site, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    fs::write(folder.join("package.json"), r#"{ "private": true, "type": "module" }"#)?;
    let npm = NPM.provide()?;
    let packed = output(Command::new(&npm).args(["pack", "--silent", "--pack-destination"]).arg(folder).current_dir(&site.package))?;
    let archive = format!("./{}", packed.trim());
    run(Command::new(&npm).args(["install", "--no-audit", "--no-fund", &archive]).args(PACKAGES).current_dir(folder))?;
    copy(&root().join("examples/web/tests"), folder, |name| name.ends_with(".mjs"))?;
    let mut node = Command::new(NODE.provide()?);
    if Path::new(SWIFTSHADER).is_file() {
        node.env("VK_ICD_FILENAMES", SWIFTSHADER);
    }
    run(node.arg("host.mjs").current_dir(folder))?;
    run(Command::new(&npm).args(["exec", "--", "deno", "run", "--allow-all", "host.mjs"]).current_dir(folder))
}
