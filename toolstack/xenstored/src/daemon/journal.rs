//! The file in which our successor finds the store: `state`, beside the socket, where it goes when the host does.

use anyhow::{Context, Result};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What the file begins with; behind it stands the host's boot, since rings of an earlier one mean nothing.
const MAGIC: &str = "ferroxen-xenstored 1";
/// The file is written anew when it has grown by so much, and by some times what it began with.
const GROWTH: usize = 1 << 20;

/// The open file.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// Bytes at its beginning, and since.
    base: usize,
    grown: usize,
}

/// The records that a xenstored of this boot has left in `directory`.
pub fn left_behind(directory: &Path) -> Option<Vec<u8>> {
    let bytes = fs::read(directory.join("state")).ok()?;
    bytes.strip_prefix(heading().as_bytes()).map(<[u8]>::to_vec)
}

fn heading() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    format!("{MAGIC} {}\n", boot.trim())
}

impl Journal {
    /// Begins a file with all that there is; the old one stays until the new one is whole.
    pub fn begin(directory: &Path, snapshot: &[u8]) -> Result<Journal> {
        let (path, new) = (directory.join("state"), directory.join("state.new"));
        let doing = || format!("cannot note the store in {}", path.display());
        let mut options = OpenOptions::new();
        let mut file = options
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .with_context(doing)?;
        file.write_all(&[heading().as_bytes(), snapshot].concat())
            .with_context(doing)?;
        fs::rename(&new, &path).with_context(doing)?;
        Ok(Journal {
            path,
            file,
            base: snapshot.len(),
            grown: 0,
        })
    }

    /// Puts records behind the others.
    pub fn add(&mut self, records: &[u8]) -> Result<()> {
        self.file
            .write_all(records)
            .with_context(|| format!("cannot write to {}", self.path.display()))?;
        self.grown += records.len();
        Ok(())
    }

    /// Whether it is worth writing anew.
    pub fn is_long(&self) -> bool {
        self.grown > GROWTH && self.grown > 4 * self.base
    }

    /// Writes it anew.
    pub fn shorten(&mut self, snapshot: &[u8]) -> Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new("/")).to_owned();
        *self = Journal::begin(&directory, snapshot)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_found_in_the_same_boot_only() {
        let directory = std::env::temp_dir().join(format!("xenstored-journal-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        assert_eq!(left_behind(&directory), None);
        let mut journal = Journal::begin(&directory, b"all").unwrap();
        journal.add(b" and more").unwrap();
        assert_eq!(left_behind(&directory).unwrap(), b"all and more");
        journal.shorten(b"less").unwrap();
        assert_eq!(left_behind(&directory).unwrap(), b"less");
        fs::write(directory.join("state"), format!("{MAGIC} another boot\nall")).unwrap();
        assert_eq!(left_behind(&directory), None);
        fs::remove_dir_all(&directory).unwrap();
    }
}
