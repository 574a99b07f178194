//! A folder for `XDG_RUNTIME_DIR` where nobody has logged in: in containers, and on CI.
//!
//! Mesa looks for a Wayland server there whenever adapters are listed, and prints an error when the
//! variable is not set.

use anyhow::Result;
use std::path::Path;

const VARIABLE: &str = "XDG_RUNTIME_DIR";

/// Gives this process and its children a private folder, unless the variable names one.
///
/// # Safety
///
/// No other thread may run yet, since it could read the environment meanwhile.
pub unsafe fn provide() -> Result<()> {
    let named = std::env::var_os(VARIABLE);
    if !cfg!(target_os = "linux") || named.is_some_and(|path| Path::new(&path).is_absolute() && Path::new(&path).is_dir()) {
        return Ok(());
    }
    // Beside this program, which lies with what cargo builds: where nobody else may write.
    let folder = std::env::current_exe()?.with_file_name("runtime");
    make(&folder)?;
    // SAFETY: the caller says that no other thread runs.
    unsafe { std::env::set_var(VARIABLE, folder) };
    Ok(())
}

/// Makes a folder for its owner alone, as the variable's specification wants it.
fn make(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    #[cfg(unix)]
    std::fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_folder_is_private_also_when_it_was_there() {
        let folder = std::env::temp_dir().join(format!("wgkv-runtime-test-{}", std::process::id()));
        for _ in 0..2 {
            super::make(&folder).unwrap();
            assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o777, 0o700);
            std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o755)).unwrap();
        }
        std::fs::remove_dir(&folder).unwrap();
    }
}
