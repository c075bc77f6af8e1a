//! A domain's configuration, kept on disk while the domain lives, where libxl keeps it.

use crate::describe;
use crate::error::{Doing, Result};
use ferroxen_words::DomId;
use ferroxen_xlconfig::DomainConfig;
use std::path::{Path, PathBuf};
use uuid::Uuid;

const DIRECTORY: &str = "/var/lib/xen";

fn path(domid: DomId, uuid: &Uuid, kind: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("userdata-d.{}.{uuid}.{kind}", domid.raw()))
}

/// Keeps the text, for us, and what it means, for libxl's tools; gives where the text is.
pub fn save(domid: DomId, uuid: &Uuid, config: &DomainConfig, text: &str) -> Result<PathBuf> {
    write(
        path(domid, uuid, "libxl-json"),
        &describe::pretty(&describe::config(config)),
    )?;
    write(path(domid, uuid, "xl"), text)
}

fn write(path: PathBuf, text: &str) -> Result<PathBuf> {
    let doing = || format!("keeping the configuration in {}", path.display());
    std::fs::create_dir_all(DIRECTORY).doing(doing)?;
    // Whole or not at all.
    let draft = path.with_extension("new");
    std::fs::write(&draft, text).doing(doing)?;
    std::fs::rename(&draft, &path).doing(doing)?;
    Ok(path)
}

/// The text of a domain that was started with this toolstack (or with xl).
pub fn load(domid: DomId, uuid: &Uuid) -> Option<String> {
    std::fs::read_to_string(path(domid, uuid, "xl")).ok()
}

/// Removes what was kept of a domain, under whatever UUID.
pub fn forget(domid: DomId) {
    let prefix = format!("userdata-d.{}.", domid.raw());
    let Ok(entries) = std::fs::read_dir(DIRECTORY) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)) {
            // A file that stays is only clutter.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
