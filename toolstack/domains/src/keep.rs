//! A domain's configuration, kept on disk while the domain lives, where libxl keeps it.

use crate::error::{Doing, Result};
use crate::{describe, recall};
use ferroxen_words::DomId;
use ferroxen_xlconfig::{Loaded, Source};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use uuid::Uuid;

/// The directory of what is kept.
#[derive(Debug)]
pub struct Keep {
    directory: PathBuf,
}

impl Default for Keep {
    fn default() -> Keep {
        Keep::in_directory("/var/lib/xen")
    }
}

impl Keep {
    /// Keeps things in this directory.
    pub fn in_directory(directory: impl Into<PathBuf>) -> Keep {
        Keep {
            directory: directory.into(),
        }
    }

    fn path(&self, domid: DomId, uuid: &Uuid, kind: &str) -> PathBuf {
        self.directory.join(format!("userdata-d.{}.{uuid}.{kind}", domid.raw()))
    }

    /// Keeps the settings, for us, and what they mean, for libxl's tools; gives where the settings are.
    pub fn save(&self, domid: DomId, loaded: &Loaded) -> Result<PathBuf> {
        let uuid = loaded.config.uuid.unwrap_or_default();
        let mut kept = loaded.clone();
        // That was for its making.
        kept.config.domid = None;
        let meaning = describe::pretty(&describe::config(&kept));
        self.write(self.path(domid, &uuid, "libxl-json"), &meaning)?;
        self.write(self.path(domid, &uuid, "xl"), &loaded.text())
    }

    fn write(&self, path: PathBuf, text: &str) -> Result<PathBuf> {
        let doing = || format!("keeping the configuration in {}", path.display());
        std::fs::create_dir_all(&self.directory).doing(doing)?;
        // Whole or not at all, and not for everybody's eyes: there may be passwords in it.
        let mut draft = path.clone().into_os_string();
        draft.push(".new");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options
            .open(&draft)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .doing(doing)?;
        std::fs::rename(&draft, &path).doing(doing)?;
        Ok(path)
    }

    /// What was kept of a domain, by this toolstack or by libxl's.
    pub fn load(&self, domid: DomId, uuid: &Uuid) -> Option<Loaded> {
        let path = self.path(domid, uuid, "xl");
        let Ok(text) = std::fs::read_to_string(&path) else {
            let meaning = std::fs::read_to_string(self.path(domid, uuid, "libxl-json")).ok()?;
            return recall::config(&meaning).ok().map(|(loaded, _)| loaded);
        };
        // It was valid when it was kept.
        ferroxen_xlconfig::parse(Source::new(path.display().to_string(), text), &[]).ok()
    }

    /// Removes what was kept of a domain, under whatever UUID.
    pub fn forget(&self, domid: DomId) {
        let prefix = format!("userdata-d.{}.", domid.raw());
        let Ok(entries) = std::fs::read_dir(&self.directory) else {
            return;
        };
        for entry in entries.flatten() {
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)) {
                // A file that stays is only clutter.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}
