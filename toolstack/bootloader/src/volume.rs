//! A disk, and a file system somewhere in it.

use ext4_view::{Ext4, Ext4Read};
use std::error::Error;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Bytes that can be read from any place.
pub trait Disk: Send + Sync {
    /// Fills `bytes` from byte `at` on.
    fn read_at(&self, at: u64, bytes: &mut [u8]) -> io::Result<()>;
}

impl Disk for File {
    fn read_at(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(bytes, at)
    }
}

impl Disk for Vec<u8> {
    fn read_at(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(at).ok();
        let found = start.and_then(|start| self.get(start..start.checked_add(bytes.len())?));
        bytes.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

struct Volume {
    disk: Arc<dyn Disk>,
    start: u64,
}

impl Ext4Read for Volume {
    fn read(&mut self, at: u64, bytes: &mut [u8]) -> Result<(), Box<dyn Error + Send + Sync + 'static>> {
        let at = self
            .start
            .checked_add(at)
            .ok_or("the file system names a place behind all disks")?;
        Ok(self.disk.read_at(at, bytes)?)
    }
}

/// Opens the file system that begins at byte `start`.
pub fn open(disk: &Arc<dyn Disk>, start: u64) -> Result<Ext4, String> {
    let volume = Volume {
        disk: disk.clone(),
        start,
    };
    Ext4::load(Box::new(volume)).map_err(|error| error.to_string())
}
