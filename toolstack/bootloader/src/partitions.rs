//! Where file systems may begin in a disk.

use std::fs::File;
use std::io::{self, Seek};

/// Bytes of a sector: what images have, and what partition tables of real disks are written for.
const SECTOR: u64 = 512;
/// A disk with more is nobody's.
const MOST: usize = 128;

/// The first bytes of all partitions; without partitions, of the disk. Active ones come first.
pub fn starts(disk: &File) -> io::Result<Vec<u64>> {
    let mut reader = disk;
    reader.rewind()?;
    let sectors = match gptman::GPT::find_from(&mut reader) {
        Ok(table) => table
            .iter()
            .filter(|(_, part)| part.is_used())
            .map(|(_, part)| part.starting_lba)
            .collect(),
        Err(_) => mbr(disk)?,
    };
    let starts: Vec<u64> = sectors
        .into_iter()
        .take(MOST)
        .filter_map(|sector: u64| sector.checked_mul(SECTOR))
        .collect();
    Ok(if starts.is_empty() { vec![0] } else { starts })
}

fn mbr(disk: &File) -> io::Result<Vec<u64>> {
    let mut reader = disk;
    reader.rewind()?;
    // A file system without partitions may have anything in its first sector, a table's mark too.
    let Ok(table) = mbrman::MBR::read_from(&mut reader, SECTOR as u32) else {
        return Ok(Vec::new());
    };
    let used = |active: bool| {
        table
            .iter()
            .filter(move |(_, part)| part.is_used() && part.is_active() == active)
            .map(|(_, part)| u64::from(part.starting_lba))
    };
    Ok(used(true).chain(used(false)).collect())
}
