//! Where things lie: the source tree, what cargo makes, what we fetch.

use std::fs;
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
