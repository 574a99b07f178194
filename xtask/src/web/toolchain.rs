//! A compiler for `wasm32-unknown-unknown`: the ordinary one where rustup has its target, else Debian's.

use crate::command::{output, run};
use crate::setup;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The target of everything here.
pub const TARGET: &str = "wasm32-unknown-unknown";

/// The ordinary compiler.
fn rustc() -> Command {
    Command::new("rustc")
}

/// The compiler to build with, where it is not the ordinary one. Debian's packages are fetched and its standard library built
/// below `cache`, once a version.
pub fn compiler(cache: &Path) -> Result<Option<PathBuf>> {
    let library = output(rustc().args(["--print", "target-libdir", "--target", TARGET]))?;
    if files(Path::new(library.trim())).is_ok_and(|found| found.iter().any(|path| name(path).starts_with("libstd-"))) {
        return Ok(None);
    }
    if !setup::is_debian() {
        bail!("the compiler has no {TARGET}: rustup target add {TARGET}");
    }
    debian(cache).map(Some).with_context(|| format!("the compiler has no {TARGET} (rustup target add {TARGET} brings it), and Debian's could not be made"))
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// The one entry of a folder whose name begins so.
fn beginning(folder: &Path, with: &str) -> Result<PathBuf> {
    files(folder)?.into_iter().find(|path| name(path).starts_with(with)).with_context(|| format!("{} holds no {with}", folder.display()))
}

/// The version of a package that apt would install.
fn candidate(package: &str) -> Result<Option<String>> {
    let policy = output(Command::new("apt-cache").args(["policy", package]))?;
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    Ok(version.filter(|version| *version != "(none)").map(str::to_owned))
}

/// Debian's compiler for browsers, whose sources come with it, so that the standard library can be built: sources of any other version
/// do not compile. It is unpacked, not installed.
fn debian(cache: &Path) -> Result<PathBuf> {
    let version = match candidate("rustc-web")? {
        Some(version) => version,
        None => {
            setup::update_packages()?;
            candidate("rustc-web")?.context("apt knows no package rustc-web")?
        }
    };
    let folder = cache.join(version.replace(['+', '~', ':'], "-"));
    let (compiler, stamp) = (folder.join("rustc"), folder.join("complete"));
    if stamp.is_file() {
        return Ok(compiler);
    }
    println!("    making Debian's rustc-web {version} ready in {} (once, about two minutes)", folder.display());
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    let (packages, root) = (folder.join("packages"), folder.join("root"));
    fs::create_dir_all(&packages)?;
    unpack(&version, &packages, &root)?;
    fs::remove_dir_all(&packages)?;
    let usr = root.join("usr");
    link(&usr)?;
    write_wrapper(&compiler, &usr)?;
    build_library(&compiler, &usr, &folder.join("library"))?;
    fs::write(&stamp, &version)?;
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
    run(Command::new("apt-get").args(["-o", "APT::Sandbox::User=root", "--quiet", "download", llvm]).args(wanted).current_dir(packages))?;
    for package in files(packages)? {
        run(Command::new("dpkg").arg("--extract").args([&package, root]))?;
    }
    Ok(())
}

/// Libraries beside each other, and the linker of the ordinary compiler, which Debian's has in another package.
fn link(usr: &Path) -> Result<()> {
    use std::os::unix::fs::symlink;
    for folder in files(&usr.join("lib"))?.into_iter().filter(|path| name(path).contains("-linux-")) {
        for library in files(&folder)?.into_iter().filter(|path| name(path).contains(".so")) {
            symlink(&library, usr.join("lib").join(name(&library)))?;
        }
    }
    let sysroot = output(rustc().args(["--print", "sysroot"]))?;
    let about = output(rustc().arg("-vV"))?;
    let host = about.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc tells no host")?;
    let linker = Path::new("lib/rustlib").join(host).join("bin/rust-lld");
    let to = usr.join(&linker);
    fs::create_dir_all(to.parent().unwrap_or(usr))?;
    symlink(Path::new(sysroot.trim()).join(&linker), to)?;
    Ok(())
}

/// The compiler with its libraries, which the system does not know.
fn write_wrapper(path: &Path, usr: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let usr = usr.display();
    fs::write(path, format!("#!/bin/sh\nLD_LIBRARY_PATH='{usr}/lib'${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}} exec '{usr}/bin/rustc' \"$@\"\n"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
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
