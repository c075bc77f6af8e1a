//! Fingerprints, so that an image is made again only when something that went into it has changed.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::places;

/// A fingerprint of what goes into a file, so that it is made only when that has changed.
pub struct Inputs {
    hasher: DefaultHasher,
}

impl Inputs {
    /// Of nothing yet but the program that makes the file: `code` is its source, as far as it bears on what comes out.
    pub fn new(code: &[&str]) -> Self {
        let mut inputs = Self {
            hasher: DefaultHasher::new(),
        };
        inputs.add(code);
        inputs
    }

    /// Adds anything that can be hashed.
    pub fn add(&mut self, input: impl Hash) -> &mut Self {
        input.hash(&mut self.hasher);
        self
    }

    /// Adds names, modes and contents of every file below `dir`.
    pub fn add_dir(&mut self, dir: &Path) -> Result<&mut Self> {
        let mut entries = match fs::read_dir(dir) {
            Ok(entries) => entries.collect::<Result<Vec<_>, _>>()?,
            Err(_) => return Ok(self),
        };
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            self.add(entry.file_name());
            let meta = entry.metadata()?;
            if meta.is_dir() {
                self.add_dir(&entry.path())?;
            } else if meta.is_file() {
                self.add(meta.permissions().mode()).add(fs::read(entry.path())?);
            } else if meta.is_symlink() {
                self.add(fs::read_link(entry.path())?);
            }
        }
        Ok(self)
    }

    /// Adds a file that we made: by its size and the fingerprint beside it, not its many bytes.
    pub fn add_stamp(&mut self, path: &Path) -> Result<&mut Self> {
        let stamp = fs::read_to_string(stamp_of(path)).unwrap_or_default();
        let size = fs::metadata(path)
            .with_context(|| format!("reading {}", path.display()))?
            .len();
        Ok(self.add(stamp).add(size).add(path))
    }

    /// Makes `name` in the image directory, unless it is there from the same inputs.
    pub fn make(&self, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let fingerprint = format!("{:016x}", self.hasher.finish());
        let path = super::dir().join(name);
        let stamp = stamp_of(&path);
        let _alone = places::alone(&path)?;
        if path.exists() && fs::read_to_string(&stamp).is_ok_and(|old| old == fingerprint) {
            return Ok(path);
        }
        let unfinished = super::dir().join(format!("{name}.part"));
        make(&unfinished).with_context(|| format!("making {name}"))?;
        fs::rename(&unfinished, &path)?;
        fs::write(&stamp, fingerprint)?;
        Ok(path)
    }
}

fn stamp_of(path: &Path) -> PathBuf {
    places::beside(path, ".from")
}
