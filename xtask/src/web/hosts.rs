//! The npm package in JavaScript hosts that are not browsers, and beside another engine in one.

use super::browser::{Browser, Kind};
use super::build::{Site, copy};
use super::{serve, test};
use crate::command::{output, root, run};
use crate::tool::{NODE, NPM};
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The packages that bring WebGPU for Node.js, and Deno, in these versions.
const PACKAGES: [&str; 2] = ["webgpu@0.6.2", "deno@2.9.6"];

/// An engine on a `GPUDevice` of its own, and what of it a page loads.
const ONNX: &str = "onnxruntime-web@1.30.0";
const ONNX_FILES: [&str; 3] = ["ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm"];

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

/// Has onnxruntime-web and the package share a device in Chromium.
pub fn test_onnx(site: &Site, folder: &Path) -> Result<()> {
    run(Command::new(NPM.provide()?).args(["install", "--no-audit", "--no-fund", ONNX]).current_dir(folder))?;
    let out = site.page.parent().context("the page has no folder")?;
    copy(&folder.join("node_modules/onnxruntime-web/dist"), &out.join("onnxruntime"), |name| ONNX_FILES.contains(&name))?;
    copy(&root().join("examples/web/tests"), &out.join("tests"), |name| !name.ends_with(".rs"))?;
    let port = serve::serve(out.to_owned(), 0)?;
    for (kind, program) in test::find(&[Kind::Chromium])? {
        let mut browser = Browser::open(kind, &program)?;
        browser.visit(&format!("http://localhost:{port}/tests/onnx.html"))?;
        browser.wait("document.body?.dataset.state === 'ready'", Duration::from_secs(60)).context("the test could not be loaded")?;
        println!("    {kind}: {ONNX} and the npm package share a device: {}", browser.evaluate("tests.onnx()")?);
    }
    Ok(())
}
