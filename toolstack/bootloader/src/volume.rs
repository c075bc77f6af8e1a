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

/// Said of what no disk reaches.
const NOWHERE: &str = "the file system names a place behind all disks";

struct Volume {
    disk: Arc<dyn Disk>,
    start: u64,
}

impl Ext4Read for Volume {
    fn read(&mut self, at: u64, bytes: &mut [u8]) -> Result<(), Box<dyn Error + Send + Sync + 'static>> {
        let at = self.start.checked_add(at).ok_or(NOWHERE)?;
        Ok(self.disk.read_at(at, bytes)?)
    }
}

/// Block groups of the largest file system that we open: 16 TiB in blocks of 4 KiB.
const GROUPS: u64 = 1 << 17;

/// Opens the file system that begins at byte `start`.
pub fn open(disk: &Arc<dyn Disk>, start: u64) -> Result<Ext4, String> {
    let superblock = superblock(&**disk, start).map_err(|error| error.to_string())?;
    // The reader makes room for as many groups as the disk says.
    if groups(&superblock).is_none_or(|groups| groups > GROUPS) {
        return Err("its superblock makes no sense".to_owned());
    }
    let disk = disk.clone();
    Ext4::load(Box::new(Volume { disk, start })).map_err(|error| error.to_string())
}

fn superblock(disk: &dyn Disk, start: u64) -> io::Result<[u8; 1024]> {
    let mut superblock = [0; 1024];
    let at = start.checked_add(1024).ok_or_else(|| io::Error::other(NOWHERE))?;
    disk.read_at(at, &mut superblock)?;
    Ok(superblock)
}

/// Bytes of the file system that begins at byte `start`, which could be opened.
pub fn len(disk: &dyn Disk, start: u64) -> io::Result<u64> {
    let superblock = superblock(disk, start)?;
    // `s_log_block_size`: 1 KiB, shifted.
    let size = word(&superblock, 0x18).and_then(|shift| 1024_u64.checked_shl(shift));
    let bytes = size
        .zip(blocks(&superblock))
        .and_then(|(size, blocks)| size.checked_mul(blocks));
    bytes.ok_or(io::ErrorKind::InvalidData.into())
}

/// Block groups: `s_blocks_count` by `s_blocks_per_group` (Linux' Documentation/filesystems/ext4). As the reader counts
/// them, to which the upper half of the count is one whether a feature says so or not.
fn groups(superblock: &[u8; 1024]) -> Option<u64> {
    let blocks = u64::from(word(superblock, 0x4)?) | u64::from(word(superblock, BLOCKS_HIGH)?) << 32;
    blocks.checked_div(word(superblock, 0x20)?.into())
}

/// `s_blocks_count_hi`
const BLOCKS_HIGH: usize = 0x150;

/// `s_blocks_count`, whose upper half counts only where `s_feature_incompat` says so.
fn blocks(superblock: &[u8; 1024]) -> Option<u64> {
    const INCOMPAT_64BIT: u32 = 0x80;
    let upper = match word(superblock, 0x60)? & INCOMPAT_64BIT {
        0 => 0,
        _ => word(superblock, BLOCKS_HIGH)?,
    };
    Some(u64::from(word(superblock, 0x4)?) | u64::from(upper) << 32)
}

fn word(superblock: &[u8; 1024], at: usize) -> Option<u32> {
    let bytes = superblock.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reader would make room for all of them before it reads the first.
    #[test]
    fn more_groups_than_any_disk_has_are_refused_wherever_they_are_counted() {
        let with = |words: &[(usize, u32)]| {
            let mut disk = vec![0_u8; 4096];
            for (at, word) in [(0x4, 8192), (0x20, 8192), (0x28, 128), (0x38, 0xef53)]
                .iter()
                .chain(words)
            {
                disk[1024 + at..][..4].copy_from_slice(&u32::to_le_bytes(*word));
            }
            let disk: Arc<dyn Disk> = Arc::new(disk);
            open(&disk, 0).err().unwrap_or_default()
        };
        let nonsense = "its superblock makes no sense";
        assert_eq!(with(&[(0x4, u32::MAX), (0x20, 1)]), nonsense);
        assert_eq!(
            with(&[(BLOCKS_HIGH, 0x8000)]),
            nonsense,
            "without the feature of 64 bits"
        );
        assert_eq!(with(&[(0x20, 0)]), nonsense);
        assert_ne!(with(&[]), nonsense);
    }
}
