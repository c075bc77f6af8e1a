//! Times in the inodes of an ext4 image.
//!
//! `mke2fs -d` copies them from the files that it is given, down to the moment at which they were read. The same files
//! would give another image every second; so what is later than a given moment becomes that moment, as
//! `SOURCE_DATE_EPOCH` has it elsewhere. Checksums of metadata have to be off.
//!
//! Source: Linux `Documentation/filesystems/ext4/` ("Super Block", "Block Group Descriptors", "Index Nodes").

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

const SUPERBLOCK: u64 = 1024;
const MAGIC: u16 = 0xef53;
/// `INCOMPAT_64BIT`: descriptors are larger, and have the upper half of a block's number.
const WIDE: u32 = 0x80;
/// `RO_COMPAT_METADATA_CSUM`
const CHECKSUMS: u32 = 0x400;
/// Where an inode has `i_atime`, `i_ctime` and `i_mtime`; and where each continues with nanoseconds.
const TIMES: [(usize, usize); 3] = [(0x08, 0x8c), (0x0c, 0x84), (0x10, 0x88)];

/// Brings every time in `image` that is later than `latest` back to it.
pub fn clamp_times(image: &Path, latest: u32) -> Result<()> {
    let clamp = || -> Result<()> {
        let file = File::options().read(true).write(true).open(image)?;
        let layout = Layout::read(&file)?;
        let mut table = vec![0; layout.inodes_per_group as usize * layout.inode_size];
        for at in layout.inode_tables(&file)? {
            file.read_exact_at(&mut table, at)?;
            for (number, inode) in (0..).zip(table.chunks_exact_mut(layout.inode_size)) {
                if is_later(inode, latest)? {
                    set_back(inode, latest)?;
                    file.write_all_at(inode, at + number * layout.inode_size as u64)?;
                }
            }
        }
        Ok(())
    };
    clamp().with_context(|| format!("setting the times in {}", image.display()))
}

/// Where the inodes are.
struct Layout {
    block_size: u64,
    groups: u32,
    inodes_per_group: u32,
    inode_size: usize,
    descriptors: u64,
    descriptor_size: usize,
    is_wide: bool,
}

impl Layout {
    fn read(file: &File) -> Result<Self> {
        let mut superblock = [0; 1024];
        file.read_exact_at(&mut superblock, SUPERBLOCK)?;
        let (half, word) = (|at| u16_at(&superblock, at), |at| u32_at(&superblock, at));
        ensure!(half(0x38)? == MAGIC, "no ext4 file system");
        ensure!(word(0x64)? & CHECKSUMS == 0, "its metadata has checksums");
        let (inodes, inodes_per_group) = (word(0x00)?, word(0x28)?);
        ensure!(inodes_per_group > 0, "no inodes in a group");
        let block_size = 1024 << word(0x18)?.min(6);
        let is_wide = word(0x60)? & WIDE != 0;
        Ok(Self {
            block_size,
            groups: inodes.div_ceil(inodes_per_group),
            inodes_per_group,
            inode_size: usize::from(half(0x58)?),
            // Behind the superblock's block.
            descriptors: u64::from(word(0x14)? + 1) * block_size,
            descriptor_size: if is_wide { usize::from(half(0xfe)?) } else { 32 },
            is_wide,
        })
    }

    /// Where in the file each group's inodes begin.
    fn inode_tables(&self, file: &File) -> Result<Vec<u64>> {
        let mut descriptors = vec![0; self.groups as usize * self.descriptor_size];
        file.read_exact_at(&mut descriptors, self.descriptors)?;
        let at = |descriptor: &[u8]| {
            let high = if self.is_wide { u32_at(descriptor, 0x28)? } else { 0 };
            let block = u64::from(high) << 32 | u64::from(u32_at(descriptor, 0x08)?);
            Ok(block * self.block_size)
        };
        descriptors.chunks_exact(self.descriptor_size).map(at).collect()
    }
}

fn is_later(inode: &[u8], latest: u32) -> Result<bool> {
    for (seconds, _) in TIMES {
        if u32_at(inode, seconds)? > latest {
            return Ok(true);
        }
    }
    Ok(false)
}

fn set_back(inode: &mut [u8], latest: u32) -> Result<()> {
    for (seconds, more) in TIMES {
        if u32_at(inode, seconds)? > latest {
            put(inode, seconds, latest)?;
            if inode.len() > 128 {
                put(inode, more, 0)?;
            }
        }
    }
    Ok(())
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    let found = bytes.get(at..at + 2).context("a short structure")?;
    Ok(u16::from_le_bytes(found.try_into()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    let found = bytes.get(at..at + 4).context("a short structure")?;
    Ok(u32::from_le_bytes(found.try_into()?))
}

fn put(bytes: &mut [u8], at: usize, value: u32) -> Result<()> {
    let place = bytes.get_mut(at..at + 4).context("a short structure")?;
    place.copy_from_slice(&value.to_le_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_later_becomes_the_moment_and_what_is_earlier_stays() {
        let mut inode = [0; 256];
        put(&mut inode, 0x08, 2_000).unwrap();
        put(&mut inode, 0x8c, 77).unwrap();
        put(&mut inode, 0x10, 500).unwrap();
        put(&mut inode, 0x88, 88).unwrap();
        assert!(is_later(&inode, 1_000).unwrap());
        set_back(&mut inode, 1_000).unwrap();
        assert_eq!(
            (u32_at(&inode, 0x08).unwrap(), u32_at(&inode, 0x8c).unwrap()),
            (1_000, 0)
        );
        assert_eq!(
            (u32_at(&inode, 0x10).unwrap(), u32_at(&inode, 0x88).unwrap()),
            (500, 88)
        );
        assert!(!is_later(&inode, 1_000).unwrap());
    }
}
