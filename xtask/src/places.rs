//! Where things lie: the source tree, what cargo makes, what we fetch.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;

/// Returns the root of the source tree.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Returns the directory for what we make: `target/`, or what `FERROXEN_TARGET` names.
pub fn made() -> PathBuf {
    match std::env::var_os("FERROXEN_TARGET") {
        Some(elsewhere) => root().join(elsewhere),
        None => root().join("target"),
    }
}

/// Returns the directory for what we fetch and can fetch again: `build/`.
pub fn fetched() -> PathBuf {
    root().join("build")
}

/// Returns cargo's target directory for crates that run on this machine.
pub fn host_target() -> PathBuf {
    made().join("host")
}

/// Reads a file in TOML.
pub fn read_toml<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("in {}", path.display()))
}

/// Waits for whoever makes the same file, in another thread of ours or in another window; the end of what is returned lets
/// the next one.
pub fn alone(path: &Path) -> Result<File> {
    let lock = beside(path, ".lock");
    let doing = || format!("waiting for {}", lock.display());
    if let Some(folder) = lock.parent() {
        fs::create_dir_all(folder).with_context(doing)?;
    }
    let file = File::create(&lock).with_context(doing)?;
    file.lock().with_context(doing)?;
    Ok(file)
}

/// The path with something behind its last name.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_else_makes_what_is_being_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/thing");
        let held = alone(&path).unwrap();
        let other = File::open(beside(&path, ".lock")).unwrap();
        assert!(other.try_lock().is_err());
        drop(held);
        other.try_lock().unwrap();
    }
}
