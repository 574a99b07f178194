//! Packages of the Python registry, fetched by pip.
//!
//! They lie unpacked below cargo's target folder and are fetched once. A package is taken by its
//! hash: pip refuses any other file.

use crate::command::{run, target};
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A wheel.
pub struct Package {
    /// Its name in the registry.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// What it is, with its size and licence.
    pub what: &'static str,
    /// The hash of the wheel, as the registry tells it.
    pub sha256: &'static str,
}

impl Package {
    /// Returns the folder that it is unpacked in. Fetches it if it is not there, and says so.
    pub fn provide(&self, python: &Path) -> Result<PathBuf> {
        let folders = target()?.0.join("registry");
        // With the hash, so that another file of the same version is not taken for it.
        let folder = folders.join(format!("{}-{}-{:.16}", self.name, self.version, self.sha256));
        if folder.is_dir() {
            return Ok(folder);
        }
        println!("fetching {} {} ({}) from the Python package registry by pip, SHA-256 {}", self.name, self.version, self.what, self.sha256);
        let wheels = folders.join("wheels");
        // What an interrupted run left would look whole.
        let unpacked = folders.join("unpacked");
        for folder in [&wheels, &unpacked] {
            if folder.exists() {
                fs::remove_dir_all(folder)?;
            }
            fs::create_dir_all(folder)?;
        }
        let requirement = wheels.join("requirement.txt");
        fs::write(&requirement, format!("{}=={} --hash=sha256:{}\n", self.name, self.version, self.sha256))?;
        let fixed = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"];
        run(Command::new(python).args(fixed).arg("--dest").arg(&wheels).arg("--requirement").arg(&requirement))
            .with_context(|| format!("{} {} could not be fetched: it takes a network, or a mirror that pip knows", self.name, self.version))?;
        let mut files = fs::read_dir(&wheels)?.filter_map(|entry| Some(entry.ok()?.path()));
        let wheel = files.find(|path| path.extension().is_some_and(|extension| extension == "whl"));
        let wheel = wheel.with_context(|| format!("pip has put no wheel in {}", wheels.display()))?;
        run(Command::new(python).args(["-m", "zipfile", "--extract"]).arg(&wheel).arg(&unpacked))?;
        fs::rename(&unpacked, &folder)?;
        fs::remove_dir_all(&wheels)?;
        Ok(folder)
    }
}

/// Returns the first Python that runs these lines without an error.
pub fn python(lines: &str, wanted: &str) -> Result<PathBuf> {
    let names = ["python3", "python3.14", "python3.13", "python3.12", "python"];
    let works = |path: &PathBuf| Command::new(path).args(["-c", lines]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    match names.iter().filter_map(|name| which::which_all(name).ok()).flatten().find(|path| works(path).is_ok_and(|status| status.success())) {
        Some(path) => Ok(path),
        None => bail!("{wanted} is wanted, but none of {} is that", names.join(", ")),
    }
}

/// Returns a file's SHA-256 as registries write it.
pub fn sha256(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let (mut hash, mut piece) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        let read = file.read(&mut piece).with_context(|| format!("{} cannot be read", path.display()))?;
        if read == 0 {
            return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        hash.update(&piece[..read]);
    }
}

/// Refuses a file that has another hash than the one wanted.
pub fn expect_sha256(path: &Path, wanted: &str) -> Result<()> {
    let had = sha256(path)?;
    if had != wanted {
        bail!("{} has SHA-256 {had}, wanted is {wanted}", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_another_hash_is_refused_with_both() {
        let path = std::env::temp_dir().join(format!("wgkv-registry-{}", std::process::id()));
        fs::write(&path, "abc").unwrap_or_default();
        // The standard's own example.
        let wanted = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(&path).ok().as_deref(), Some(wanted));
        let error = expect_sha256(&path, "00").err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(wanted) && error.contains("wanted is 00"), "{error}");
        assert!(fs::remove_file(&path).is_ok() && sha256(&path).is_err());
    }

    #[test]
    fn a_python_that_is_not_there_is_named() {
        let error = python("raise SystemExit(1)", "Python 3.12 with numpy").err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.starts_with("Python 3.12 with numpy is wanted"), "{error}");
    }
}
