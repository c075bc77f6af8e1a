//! A file system somewhere in a disk.

use ext4_view::{Ext4, Ext4Read};
use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

struct Volume {
    disk: Arc<File>,
    start: u64,
}

impl Ext4Read for Volume {
    fn read(&mut self, at: u64, bytes: &mut [u8]) -> Result<(), Box<dyn Error + Send + Sync + 'static>> {
        let at = self
            .start
            .checked_add(at)
            .ok_or("the file system names a place behind all disks")?;
        Ok(self.disk.read_exact_at(bytes, at)?)
    }
}

/// Opens the file system that begins at byte `start`.
pub fn open(disk: &Arc<File>, start: u64) -> Result<Ext4, String> {
    let volume = Volume {
        disk: disk.clone(),
        start,
    };
    Ext4::load(Box::new(volume)).map_err(|error| error.to_string())
}
