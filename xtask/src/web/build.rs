//! From crates to a folder that any server can serve, and a folder that npm can publish.

use super::toolchain::{self, TARGET};
use crate::command::{cargo, root, run, typed};
use crate::tool::{NPM, WASM_OPT};
use anyhow::{Context, Result, bail};
use flate2::Compression;
use flate2::write::GzEncoder;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use wasm_bindgen_cli_support::Bindgen;

/// The most bytes of the package, gzipped, so that growth gets noticed.
const PACKAGE_BYTES: usize = 400_000;

/// The features that the compiler uses. The optimizer could use more, and not every host has them.
const FEATURES: [&str; 7] = ["simd", "bulk-memory", "mutable-globals", "nontrapping-float-to-int", "reference-types", "sign-ext", "multivalue"];

/// The files of the model that the page loads.
const MODEL: [&str; 5] = ["config.json", "tokenizer.json", "model.safetensors", "rotate-kv.safetensors", "centred.safetensors"];

/// What was built.
pub struct Site {
    /// The page, to be served.
    pub page: PathBuf,
    /// The npm package.
    pub package: PathBuf,
}

/// Builds both below `out`.
pub fn build(target: &Path, out: &Path, version: &str) -> Result<Site> {
    let compiler = toolchain::compiler(&toolchain::cache(target))?;
    let source = root().join("examples/web");
    let site = Site { page: out.join("page"), package: out.join("package") };
    if out.exists() {
        fs::remove_dir_all(out).with_context(|| format!("{} cannot be replaced", out.display()))?;
    }

    let shrunk = module("wgkv-npm", "wgkv", compiler.as_deref(), target, &site.package)?;
    copy(&source.join("npm"), &site.package, |name| ["js", "ts", "md"].iter().any(|ending| name.ends_with(&format!(".{ending}"))))?;
    copy(root(), &site.package, |name| name.starts_with("LICENSE"))?;
    let about = fs::read_to_string(source.join("npm/package.json"))?;
    fs::write(site.package.join("package.json"), about.replace("\"0.0.0\"", &format!("\"{version}\"")))?;
    let bytes = sizes("npm package", &site.package, &["wgkv_bg.wasm", "wgkv.js", "index.js"])?;
    // Without the optimizer it is larger, which is no growth of ours.
    if shrunk && bytes >= PACKAGE_BYTES {
        bail!("the npm package has {bytes} bytes gzipped, but fewer than {PACKAGE_BYTES} are wanted");
    }

    module("wgkv-web", "demo", compiler.as_deref(), target, &site.page)?;
    copy(&source.join("page"), &site.page, |_| true)?;
    let model = site.page.join("model");
    copy(&root().join("assets/wiki-8m"), &model, |name| MODEL.contains(&name))?;
    sizes("page", &site.page, &["demo_bg.wasm", "demo.js", "page.js", "worker.js", "index.html", "style.css"])?;
    sizes("model", &model, &MODEL)?;
    println!("    {}", out.display());
    Ok(site)
}

/// Compiles a crate to a WebAssembly module with its JavaScript, both called `name`, in a folder.
/// Returns whether an optimizer was there to shrink it.
fn module(package: &str, name: &str, compiler: Option<&Path>, target: &Path, folder: &Path) -> Result<bool> {
    let built = target.join("wasm");
    let mut build = cargo(&["build", "--quiet", "--profile", "web", "--lib", "--package", package, "--target", TARGET, "--target-dir"]);
    build.arg(&built);
    // Every browser with WebGPU has vectors.
    build.env("RUSTFLAGS", "-Ctarget-feature=+simd128");
    if let Some(compiler) = compiler {
        build.env("RUSTC", compiler);
    }
    println!("    {} (the first time takes some minutes)", typed(&build));
    run(&mut build)?;
    fs::create_dir_all(folder)?;
    let compiled = built.join(TARGET).join("web").join(format!("{}.wasm", package.replace('-', "_")));
    Bindgen::new()
        .input_path(&compiled)
        .out_name(name)
        .web(true)?
        .typescript(false)
        // Both get the module's address from pages that may be bundled.
        .omit_default_module_path(true)
        .generate(folder)
        .with_context(|| format!("{} cannot be bound", compiled.display()))?;
    let module = folder.join(format!("{name}_bg.wasm"));
    blank_comments(&module)?;
    optimize(&module, target)
}

/// Finds all shaders below a folder.
fn shaders(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            shaders(&path, found)?;
        } else if path.extension().is_some_and(|ending| ending == "wgsl") {
            found.push(path);
        }
    }
    Ok(())
}

/// Puts spaces in the place of the comments in a module's shaders, a tenth of the package when it
/// is packed. Everything stays where it is, and so do the lines that a compiler's messages name.
fn blank_comments(module: &Path) -> Result<()> {
    let mut bytes = fs::read(module)?;
    let mut paths = Vec::new();
    shaders(&root().join("shaders"), &mut paths)?;
    let mut found = 0;
    for path in &paths {
        let text = fs::read(path)?;
        // Those that nothing calls are not there.
        let Some(at) = bytes.windows(text.len().max(1)).position(|window| window == text) else {
            continue;
        };
        found += 1;
        let mut rest = &mut bytes[at..at + text.len()];
        while let Some(comment) = rest.windows(2).position(|pair| pair == b"//") {
            rest = &mut rest[comment..];
            let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
            rest[..end].fill(b' ');
        }
    }
    if found == 0 {
        bail!("{} holds none of the {} shaders as they lie in the sources", module.display(), paths.len());
    }
    Ok(fs::write(module, bytes)?)
}

/// Returns Binaryen's `wasm-opt`: that of the system, else the one that npm has, else none.
fn optimizer(target: &Path) -> Result<Option<Command>> {
    if let Ok((program, _)) = WASM_OPT.find() {
        return Ok(Some(Command::new(program)));
    }
    let folder = target.join("binaryen");
    let package = format!("binaryen@{}", WASM_OPT.least);
    // What npm has put there for another version of the table does not count.
    let stamp = folder.join("complete");
    if fs::read_to_string(&stamp).ok().as_ref() != Some(&package) {
        let fetched = NPM.find().is_ok_and(|(npm, _)| {
            let mut npm = Command::new(npm);
            npm.args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"]).arg(&folder).arg(&package).stdin(Stdio::null());
            npm.status().is_ok_and(|status| status.success())
        });
        if !fetched {
            println!("    neither wasm-opt {} nor an npm that brings it is here: modules stay somewhat larger", WASM_OPT.least);
            return Ok(None);
        }
        fs::write(&stamp, &package)?;
    }
    // npm's programs end on .cmd on Windows.
    let program = which::which_in("wasm-opt", Some(folder.join("node_modules/.bin")), &folder)?;
    Ok(Some(Command::new(program)))
}

/// Shrinks a module; returns whether there was an optimizer to do it.
fn optimize(module: &Path, target: &Path) -> Result<bool> {
    let Some(mut optimizer) = optimizer(target)? else {
        return Ok(false);
    };
    optimizer.args(FEATURES.map(|feature| format!("--enable-{feature}")));
    // The compiler has optimised already: higher levels take four times as long and gain nothing,
    // gzipped.
    run(optimizer.arg("-O1").arg(module).arg("-o").arg(module))?;
    Ok(true)
}

/// Copies the files of a folder whose name is wanted, not those in folders below.
pub fn copy(from: &Path, to: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("{} cannot be read", from.display()))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_file() && wanted(name) {
            fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}

/// Prints what files take, as they are and gzipped; returns the latter.
fn sizes(what: &str, folder: &Path, files: &[&str]) -> Result<usize> {
    let (mut raw, mut packed) = (0, 0);
    for file in files {
        let path = folder.join(file);
        let bytes = fs::read(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&bytes)?;
        raw += bytes.len();
        packed += encoder.finish()?.len();
    }
    println!("    {what}: {raw} bytes, {packed} gzipped");
    Ok(packed)
}
