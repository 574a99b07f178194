//! A compiler for `wasm32-unknown-unknown`: the ordinary one where rustup has its target, else
//! Debian's.

use crate::apt;
use crate::command::{output, run};
use crate::tool::RUSTC_WEB;
use crate::version::Version;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The target of everything here.
pub const TARGET: &str = "wasm32-unknown-unknown";

/// Returns the ordinary compiler.
fn rustc() -> Command {
    Command::new("rustc")
}

/// Returns whether the ordinary compiler has the target.
pub fn is_ordinary() -> Result<bool> {
    let library = output(rustc().args(["--print", "target-libdir", "--target", TARGET]))?;
    Ok(files(Path::new(library.trim())).is_ok_and(|found| found.iter().any(|path| name(path).starts_with("libstd-"))))
}

/// Returns where Debian's compiler is kept, below what cargo builds.
pub fn cache(target: &Path) -> PathBuf {
    target.join("wasm-toolchain")
}

/// Returns the compiler to build with, where it is not the ordinary one. Debian's packages are
/// fetched and its standard library built below `cache`, unless one that will do is there.
pub fn compiler(cache: &Path) -> Result<Option<PathBuf>> {
    if is_ordinary()? {
        return Ok(None);
    }
    if !apt::is_debian() {
        bail!("the compiler has no {TARGET}. To get it: {}", RUSTC_WEB.elsewhere);
    }
    if let Some((compiler, _)) = kept(cache).filter(|(_, version)| RUSTC_WEB.takes(version)) {
        return Ok(Some(compiler));
    }
    make(cache).map(Some).with_context(|| format!("the compiler has no {TARGET}"))
}

fn make(cache: &Path) -> Result<PathBuf> {
    let version = apt::offer(&RUSTC_WEB)?;
    let error = match debian(cache, &version) {
        Ok(compiler) => return Ok(compiler),
        Err(error) => error,
    };
    // The archive may no longer have what old lists name.
    if apt::refresh() {
        let newer = apt::offer(&RUSTC_WEB)?;
        if newer != version {
            return debian(cache, &newer);
        }
    }
    Err(error)
}

/// Returns the latest of Debian's compilers that was made here and still works, and its version.
pub fn kept(cache: &Path) -> Option<(PathBuf, Version)> {
    let complete = |folder: PathBuf| {
        let version = Version::find(&fs::read_to_string(folder.join("complete")).ok()?)?;
        let compiler = folder.join("rustc");
        // Its linker is the ordinary compiler's, which may have moved since.
        let linker = folder.join("root/usr").join(linker().ok()?);
        (compiler.is_file() && linker.is_file()).then_some((compiler, version))
    };
    files(cache).ok()?.into_iter().filter_map(complete).max_by(|(_, a), (_, b)| a.cmp(b))
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// Returns the one entry of a folder whose name begins with this.
fn beginning(folder: &Path, with: &str) -> Result<PathBuf> {
    files(folder)?.into_iter().find(|path| name(path).starts_with(with)).with_context(|| format!("{} holds no {with}", folder.display()))
}

/// Makes Debian's compiler for browsers, whose sources come with it, so that the standard library
/// can be built: sources of any other version do not compile. It is unpacked, not installed.
fn debian(cache: &Path, version: &str) -> Result<PathBuf> {
    let folder = cache.join(version.replace(['+', '~', ':'], "-"));
    let (compiler, stamp) = (folder.join("rustc"), folder.join("complete"));
    println!("    making Debian's rustc-web {version} ready in {} (once, about two minutes)", folder.display());
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    let (packages, root) = (folder.join("packages"), folder.join("root"));
    fs::create_dir_all(&packages)?;
    unpack(version, &packages, &root)?;
    fs::remove_dir_all(&packages)?;
    let usr = root.join("usr");
    link(&usr)?;
    write_wrapper(&compiler, &usr)?;
    build_library(&compiler, &usr, &folder.join("library"))?;
    fs::write(&stamp, version)?;
    Ok(compiler)
}

fn unpack(version: &str, packages: &Path, root: &Path) -> Result<()> {
    let minor: Vec<&str> = version.splitn(3, '.').take(2).collect();
    let library = format!("libstd-rust-web-{}", minor.join("."));
    let depends = output(Command::new("apt-cache").args(["depends", &format!("{library}={version}")]))?;
    let llvm = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: ").filter(|package| package.starts_with("libllvm")));
    let llvm = llvm.with_context(|| format!("{library} depends on no libllvm"))?;
    let wanted = ["rustc-web", &library, "libstd-rust-web-dev", "rust-web-src"].map(|package| format!("{package}={version}"));
    // Without the option apt warns that its own user cannot write here.
    run(Command::new("apt-get").args(["-o", "APT::Sandbox::User=root", "-qq", "download", llvm]).args(wanted).current_dir(packages))?;
    for package in files(packages)? {
        run(Command::new("dpkg").arg("--extract").args([&package, root]))?;
    }
    Ok(())
}

/// Returns the linker's place in a compiler's folder.
fn linker() -> Result<PathBuf> {
    let about = output(rustc().arg("-vV"))?;
    let host = about.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc -vV names no host")?;
    Ok(Path::new("lib/rustlib").join(host).join("bin/rust-lld"))
}

#[cfg(unix)]
use std::os::unix::fs::symlink;

/// Fails where there is no Debian, so that no symbolic links need making.
#[cfg(not(unix))]
fn symlink(_original: impl AsRef<Path>, _link: impl AsRef<Path>) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

/// Puts the libraries beside each other, and the linker of the ordinary compiler, which Debian's
/// has in another package.
fn link(usr: &Path) -> Result<()> {
    for folder in files(&usr.join("lib"))?.into_iter().filter(|path| name(path).contains("-linux-")) {
        for library in files(&folder)?.into_iter().filter(|path| name(path).contains(".so")) {
            symlink(&library, usr.join("lib").join(name(&library)))?;
        }
    }
    let sysroot = output(rustc().args(["--print", "sysroot"]))?;
    let linker = linker()?;
    let to = usr.join(&linker);
    fs::create_dir_all(to.parent().unwrap_or(usr))?;
    Ok(symlink(Path::new(sysroot.trim()).join(&linker), to)?)
}

/// Writes the program that calls the compiler with its libraries, which the system cannot find.
fn write_wrapper(path: &Path, usr: &Path) -> Result<()> {
    let usr = usr.display();
    fs::write(path, format!("#!/bin/sh\nLD_LIBRARY_PATH='{usr}/lib'${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}} exec '{usr}/bin/rustc' \"$@\"\n"))?;
    #[cfg(unix)]
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(())
}

fn build_library(compiler: &Path, usr: &Path, target: &Path) -> Result<()> {
    let manifest = beginning(&usr.join("src"), "rustc-")?.join("library/sysroot/Cargo.toml");
    let mut cargo = crate::command::cargo(&["build", "--quiet", "--locked", "--release", "--target", TARGET, "--target-dir"]);
    cargo.arg(target).arg("--manifest-path").arg(&manifest);
    // The standard library may use what is not stable; bitcode is for link time optimisation.
    cargo.env("RUSTC", compiler).env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", "-Zforce-unstable-if-unmarked -Cembed-bitcode=yes");
    run(&mut cargo)?;
    let to = usr.join("lib/rustlib").join(TARGET).join("lib");
    fs::create_dir_all(&to)?;
    for library in files(&target.join(TARGET).join("release/deps"))?.into_iter().filter(|path| name(path).ends_with(".rlib")) {
        fs::copy(&library, to.join(name(&library)))?;
    }
    fs::remove_dir_all(target)?;
    Ok(())
}
