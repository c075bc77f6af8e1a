//! Which blocks of an ext2 to ext4 file system are not the contents of files: all that who changes names, folders and inodes
//! has to read before.
//!
//! e2image(8) tells that, too, but reads the whole journal for it, block by block; a clone would take longer for that than
//! for all else. Here inode tables are read at once, and of other blocks only those that hold folders or say where
//! something is.
//!
//! The image may be anybody's. Always true: no block outside of the file system is looked at, and none of a tree twice.
//!
//! Source: Linux's `Documentation/filesystems/ext4`.

use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::os::unix::fs::FileExt;

const MAGIC: u64 = 0xef53;
/// Features that change where things are, and are known here: folders' entries have types, a journal that is not empty,
/// extents, 64 bits, groups whose tables are together, attributes in inodes, another seed, large folders, contents in
/// inodes, case folding.
const KNOWN: u64 = 0x2 | 0x4 | 0x40 | 0x80 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x2_0000;
const IS_64_BIT: u64 = 0x80;
/// Features by which a group says what of its inode table was never used.
const COUNTS_UNUSED: u64 = 0x10 | 0x400;
/// Of a group: none of its inodes was ever used.
const INODES_UNUSED: u64 = 1;
const FILE: u64 = 0o100_000;
const FOLDER: u64 = 0o040_000;
const LINK: u64 = 0o120_000;
const KIND: u64 = 0o170_000;
/// Of an inode: extents say where its blocks are, or the inode has its contents itself.
const BY_EXTENTS: u64 = 0x8_0000;
const INLINE: u64 = 0x1000_0000;
const EXTENTS_MAGIC: u64 = 0xf30a;
/// More levels than a tree can have.
const DEEPEST: u64 = 5;
/// Links that are shorter are in their inode.
const SHORT_LINK: u64 = 60;

/// The blocks of a file system's metadata.
#[derive(Debug)]
pub(crate) struct Metadata {
    /// Bytes of a block.
    pub(crate) block_size: usize,
    /// A bit for each block.
    held: Vec<u64>,
    blocks: u64,
}

/// A little-endian number of `N` bytes; what is behind the end is 0.
fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at..).and_then(|bytes| bytes.first_chunk::<N>());
    bytes.map_or(0, |bytes| {
        bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    })
}

impl Metadata {
    /// Finds them in an image.
    pub(crate) fn of(image: &File) -> Result<Metadata> {
        let mut superblock = [0; 1024];
        image
            .read_exact_at(&mut superblock, 1024)
            .context("reading the superblock")?;
        let sb = superblock.as_slice();
        let block_size = 1024_usize
            .checked_shl(u32::try_from(number::<4>(sb, 0x18))?)
            .filter(|size| (1024..=65536).contains(size));
        let (Some(block_size), MAGIC) = (block_size, number::<2>(sb, 0x38)) else {
            bail!("it is no ext2 to ext4");
        };
        let unknown = number::<4>(sb, 0x60) & !KNOWN;
        ensure!(unknown == 0, "it has features ({unknown:#x}) that are not known here");
        let is_wide = number::<4>(sb, 0x60) & IS_64_BIT != 0;
        let blocks = number::<4>(sb, 4) | if is_wide { number::<4>(sb, 0x150) << 32 } else { 0 };
        let len = image.metadata().context("looking at the image")?.len();
        ensure!(
            blocks <= len / block_size as u64,
            "its file system is larger than the image"
        );
        let mut metadata = Metadata {
            block_size,
            held: vec![0; usize::try_from(blocks.div_ceil(64))?],
            blocks,
        };
        metadata.groups(image, sb, if is_wide { number::<2>(sb, 0xfe) } else { 32 })?;
        Ok(metadata)
    }

    /// Whether `block` is one of them.
    pub(crate) fn holds(&self, block: u64) -> bool {
        let word = usize::try_from(block / 64).ok().and_then(|word| self.held.get(word));
        word.is_some_and(|word| word >> (block % 64) & 1 != 0)
    }

    /// Copies them to where they are in another file.
    pub(crate) fn copy(&self, from: &File, to: &File) -> Result<()> {
        let mut next = 0;
        while let Some(start) = (next..self.blocks).find(|block| self.holds(*block)) {
            let most = self.blocks.min(start + self.at_once());
            next = (start..most).find(|block| !self.holds(*block)).unwrap_or(most);
            let bytes = self.read(from, start, next - start)?;
            if bytes.iter().any(|byte| *byte != 0) {
                to.write_all_at(&bytes, start * self.block_size as u64)
                    .context("writing metadata")?;
            }
        }
        Ok(())
    }

    /// How many blocks are worth a call.
    fn at_once(&self) -> u64 {
        (1 << 18) / self.block_size as u64
    }

    /// Notes a block; false if it was, or is outside.
    fn hold(&mut self, block: u64) -> bool {
        if block >= self.blocks || self.holds(block) {
            return false;
        }
        let word = usize::try_from(block / 64)
            .ok()
            .and_then(|word| self.held.get_mut(word));
        word.is_some_and(|word| {
            *word |= 1 << (block % 64);
            true
        })
    }

    fn read(&self, image: &File, block: u64, blocks: u64) -> Result<Vec<u8>> {
        let size = self.block_size as u64;
        let mut bytes = vec![0; usize::try_from(blocks * size)?];
        let at = block.checked_mul(size).context("a block far outside")?;
        image.read_exact_at(&mut bytes, at).context("reading metadata")?;
        Ok(bytes)
    }

    /// Goes through the groups: what describes them, which blocks and inodes are in use, and the inodes.
    fn groups(&mut self, image: &File, sb: &[u8], descriptor: u64) -> Result<()> {
        let (first, per_group) = (number::<4>(sb, 0x14), number::<4>(sb, 0x20));
        let inode_size = match number::<4>(sb, 0x4c) {
            0 => 128,
            _ => number::<2>(sb, 0x58),
        };
        let (inodes, size) = (number::<4>(sb, 0x28), self.block_size as u64);
        ensure!(
            per_group != 0 && (32..=1024).contains(&descriptor) && (128..=size).contains(&inode_size),
            "its superblock makes no sense"
        );
        let groups = self.blocks.saturating_sub(first).div_ceil(per_group);
        // What is before them is the superblock.
        let descriptors = groups * descriptor;
        for block in 0..=first + descriptors.div_ceil(size) {
            self.hold(block);
        }
        ensure!(descriptors <= self.blocks * size, "its superblock makes no sense");
        let mut table = vec![0; usize::try_from(descriptors)?];
        image
            .read_exact_at(&mut table, (first + 1) * size)
            .context("reading what describes the groups")?;
        let counts_unused = number::<4>(sb, 0x64) & COUNTS_UNUSED != 0;
        for group in table.chunks_exact(usize::try_from(descriptor)?) {
            // The upper halves are there with 64 bits only.
            let half = |low: usize, high: usize| number::<4>(group, low) | number::<4>(group, high) << 32;
            self.hold(half(0, 0x20));
            self.hold(half(4, 0x24));
            let unused = match counts_unused {
                true if number::<2>(group, 0x12) & INODES_UNUSED != 0 => inodes,
                true => number::<2>(group, 0x1c) | number::<2>(group, 0x32) << 16,
                false => 0,
            };
            let used = inodes.saturating_sub(unused) * inode_size;
            self.inodes(image, half(8, 0x28), used.div_ceil(size), usize::try_from(inode_size)?)?;
        }
        Ok(())
    }

    /// A group's inodes, in so many blocks.
    fn inodes(&mut self, image: &File, start: u64, blocks: u64, inode_size: usize) -> Result<()> {
        let end = start.saturating_add(blocks).min(self.blocks);
        let mut next = start;
        while next < end {
            let many = self.at_once().min(end - next);
            // Each is looked at once, whatever the descriptors say.
            let is_new = (next..next + many).filter(|block| self.hold(*block)).count() > 0;
            if is_new {
                let table = self.read(image, next, many)?;
                // Those in no use say nothing.
                for inode in table.chunks_exact(inode_size) {
                    self.inode(image, inode)?;
                }
            }
            next += many;
        }
        Ok(())
    }

    fn inode(&mut self, image: &File, inode: &[u8]) -> Result<()> {
        let (kind, flags) = (number::<2>(inode, 0) & KIND, number::<4>(inode, 0x20));
        let is_in_use = number::<2>(inode, 0x1a) != 0;
        if !is_in_use {
            return Ok(());
        }
        self.hold(number::<4>(inode, 0x68) | number::<2>(inode, 0x76) << 32);
        let is_short = kind == LINK && number::<4>(inode, 4) < SHORT_LINK;
        if flags & INLINE != 0 || is_short || !matches!(kind, FILE | FOLDER | LINK) {
            return Ok(());
        }
        let holds_contents = kind != FILE;
        let places = inode.get(0x28..0x28 + 60).unwrap_or_default();
        if flags & BY_EXTENTS != 0 {
            return self.extents(image, places, holds_contents, DEEPEST);
        }
        for (number_of, place) in places.chunks_exact(4).enumerate() {
            // Twelve, and then by tables of one to three levels.
            let levels = (number_of as u64).saturating_sub(11);
            self.places(image, number::<4>(place, 0), levels, holds_contents)?;
        }
        Ok(())
    }

    /// A node of a tree of extents, and those below it.
    fn extents(&mut self, image: &File, node: &[u8], holds_contents: bool, levels: u64) -> Result<()> {
        if number::<2>(node, 0) != EXTENTS_MAGIC || levels == 0 {
            return Ok(());
        }
        let (entries, depth) = (usize::try_from(number::<2>(node, 2))?, number::<2>(node, 6));
        for entry in node.chunks_exact(12).skip(1).take(entries) {
            if depth > 0 {
                let below = number::<4>(entry, 4) | number::<2>(entry, 8) << 32;
                if self.hold(below) {
                    let below = self.read(image, below, 1)?;
                    self.extents(image, &below, holds_contents, levels - 1)?;
                }
            } else if holds_contents {
                let start = number::<4>(entry, 8) | number::<2>(entry, 6) << 32;
                for block in start..start + number::<2>(entry, 4) {
                    self.hold(block);
                }
            }
        }
        Ok(())
    }

    /// A block, or, by so many levels of tables, many.
    fn places(&mut self, image: &File, block: u64, levels: u64, holds_contents: bool) -> Result<()> {
        let is_new = block != 0 && (levels > 0 || holds_contents) && self.hold(block);
        if is_new && levels > 0 {
            for place in self.read(image, block, 1)?.chunks_exact(4) {
                self.places(image, number::<4>(place, 0), levels - 1, holds_contents)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::{must, program, text};
    use std::ffi::OsStr;
    use std::fs;

    /// What e2image copies is here, too, but for the journal.
    #[test]
    fn all_is_found_that_e2image_finds() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        for number in 0..400 {
            let name = format!("a-long-name-that-fills-folders-and-makes-them-have-blocks-{number}");
            fs::write(root.join("etc").join(&name), name.repeat(number)).unwrap();
        }
        std::os::unix::fs::symlink("x/".repeat(100), root.join("link")).unwrap();
        // Many pieces, so that the tree has a second level.
        let pieces = File::create(root.join("pieces")).unwrap();
        for piece in 0..200 {
            pieces.write_all_at(&[1; 4096], piece * 8192).unwrap();
        }
        for (kind, block) in [("ext4", "1024"), ("ext4", "4096"), ("ext3", "1024"), ("ext2", "2048")] {
            let image = folder.path().join(format!("{kind}-{block}"));
            let theirs = image.with_extension("theirs");
            let mut make = program("mke2fs", ["-q", "-F", "-t", kind, "-b", block, "-d"]);
            make.arg(&root).arg(&image).arg("64M");
            must(make).unwrap();
            must(program("e2image", [OsStr::new("-r"), image.as_ref(), theirs.as_ref()])).unwrap();
            let numbers = |request: &str| {
                let said = must(program("debugfs", ["-R", request, text(&image).unwrap()])).unwrap();
                let words = said.split_whitespace();
                words.filter_map(|word| word.parse().ok()).collect::<Vec<u64>>()
            };
            let metadata = Metadata::of(&File::open(&image).unwrap()).unwrap();
            // The journal has inode 8, and is there to be left out.
            let (journal, mut checked) = (numbers("blocks <8>"), 0);
            for (number, bytes) in (0_u64..).zip(fs::read(theirs).unwrap().chunks(metadata.block_size)) {
                if bytes.iter().any(|byte| *byte != 0) && !journal.contains(&number) {
                    assert!(metadata.holds(number), "block {number} of {kind} by {block} is missing");
                    checked += 1;
                }
            }
            assert!(checked > 20, "{checked} blocks of {kind} by {block} were looked at");
            for request in ["bmap pieces 0", "bmap pieces 384"] {
                assert!(
                    !metadata.holds(numbers(request)[0]),
                    "contents of a file are no metadata"
                );
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        let file = File::create_new(&image).unwrap();
        file.set_len(1 << 20).unwrap();
        let image = File::open(&image).unwrap();
        assert!(Metadata::of(&image).is_err());
        // All of its fields are the largest numbers, but for the magic and the size of blocks.
        file.write_all_at(&[0xff; 1024], 1024).unwrap();
        file.write_all_at(&[0x53, 0xef], 1024 + 0x38).unwrap();
        for size in [0_u32, 2, 6, 7, u32::MAX] {
            file.write_all_at(&size.to_le_bytes(), 1024 + 0x18).unwrap();
            assert!(Metadata::of(&image).is_err());
        }
    }
}
