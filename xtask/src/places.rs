//! Where things lie: the source tree, what cargo makes, what we fetch.

use std::path::{Path, PathBuf};

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
