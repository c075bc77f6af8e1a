//! Where file systems may begin in a disk: the tables that partition it, GPT or the older one.
//!
//! Both are a guest's to write. So entries are counted, sums are checked, and a chain that does not end is left.

use crate::volume::Disk;
use std::io;

/// Bytes of a sector: what images have, and what tables of real disks are written for.
const SECTOR: u64 = 512;
/// A disk with more partitions is nobody's.
const MOST: usize = 128;
/// Where the older table begins in its sector, and the bytes of an entry.
const TABLE: usize = 446;
const ENTRY: usize = 16;
/// Kinds of entries that only hold others.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

/// The first bytes of all partitions, active ones first; without partitions, of the disk.
pub fn starts(disk: &dyn Disk) -> io::Result<Vec<u64>> {
    let mut first = [0; SECTOR as usize];
    match disk.read_at(0, &mut first) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(vec![0]),
        other => other?,
    }
    let sectors = match gpt(disk) {
        Some(sectors) => sectors,
        None => mbr(disk, &first),
    };
    let starts: Vec<u64> = sectors
        .into_iter()
        .take(MOST)
        .filter_map(|sector| sector.checked_mul(SECTOR))
        .collect();
    Ok(if starts.is_empty() { vec![0] } else { starts })
}

/// The table of the UEFI specification ("GUID Partition Table Header Format"), if there is one.
fn gpt(disk: &dyn Disk) -> Option<Vec<u64>> {
    let mut header = [0; 92];
    disk.read_at(SECTOR, &mut header).ok()?;
    header.starts_with(b"EFI PART").then_some(())?;
    let (first, count, size) = (long(&header, 72)?, word(&header, 80)?, word(&header, 84)?);
    let mut found = Vec::new();
    for at in 0..u64::from(count).min(MOST as u64) {
        let at = first.checked_mul(SECTOR)?.checked_add(at.checked_mul(size.into())?)?;
        let mut entry = [0; 40];
        if size < 128 || disk.read_at(at, &mut entry).is_err() {
            break;
        }
        if entry[..16] != [0; 16] {
            found.push(long(&entry, 32)?);
        }
    }
    Some(found)
}

/// The older table, and those that hang from it.
fn mbr(disk: &dyn Disk, first: &[u8]) -> Vec<u64> {
    // A file system without partitions may have anything in its first sector, a table's mark too.
    let (mut active, mut others) = (Vec::new(), Vec::new());
    for (flag, kind, start) in entries(first) {
        match (kind, flag) {
            (0, _) => {}
            (kind, _) if EXTENDED.contains(&kind) => others.extend(logical(disk, start)),
            (_, 0x80) => active.push(start),
            (_, 0) => others.push(start),
            // No table at all.
            _ => return Vec::new(),
        }
    }
    active.extend(others);
    active
}

/// The partitions in an extended one: each table has one, and says where the next table is.
fn logical(disk: &dyn Disk, base: u64) -> Vec<u64> {
    let (mut found, mut table) = (Vec::new(), base);
    while found.len() < MOST {
        let mut sector = [0; SECTOR as usize];
        let Some(at) = table.checked_mul(SECTOR) else { break };
        if disk.read_at(at, &mut sector).is_err() {
            break;
        }
        let mut entries = entries(&sector);
        match entries.next() {
            Some((_, kind, start)) if kind != 0 => found.push(table + start),
            _ => break,
        }
        match entries.next() {
            Some((_, kind, next)) if EXTENDED.contains(&kind) => table = base + next,
            _ => break,
        }
    }
    found
}

/// Flag, kind and first sector of a table's four entries; none without its mark.
fn entries(sector: &[u8]) -> impl Iterator<Item = (u8, u8, u64)> {
    let is_table = sector.get(510..512) == Some(&[0x55, 0xaa]);
    let table = sector.get(TABLE..510).filter(|_| is_table).unwrap_or_default();
    let (entries, _) = table.as_chunks::<ENTRY>();
    entries.iter().map(|entry| {
        let start = u32::from_le_bytes([entry[8], entry[9], entry[10], entry[11]]);
        (entry[0], entry[4], start.into())
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(disk: &mut [u8], at: u64, entries: &[(u8, u8, u32)]) {
        let sector = &mut disk[(at * SECTOR) as usize..][..SECTOR as usize];
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        for (number, (flag, kind, start)) in entries.iter().enumerate() {
            let entry = &mut sector[TABLE + number * ENTRY..][..ENTRY];
            (entry[0], entry[4]) = (*flag, *kind);
            entry[8..12].copy_from_slice(&start.to_le_bytes());
        }
    }

    #[test]
    fn active_ones_come_first_and_logical_ones_count() {
        let mut disk = vec![0; 64 * SECTOR as usize];
        table(&mut disk, 0, &[(0, 0x82, 2), (0x80, 0x83, 4), (0, 0x05, 10)]);
        table(&mut disk, 10, &[(0, 0x83, 1), (0, 0x05, 5)]);
        table(&mut disk, 15, &[(0, 0x83, 2)]);
        assert_eq!(
            starts(&disk).expect("can be read"),
            [4, 2, 11, 17].map(|sector| sector * SECTOR)
        );
    }

    #[test]
    fn a_gpt_is_taken_before_its_protective_table() {
        let mut disk = vec![0; 64 * SECTOR as usize];
        table(&mut disk, 0, &[(0, 0xee, 1)]);
        disk[512..520].copy_from_slice(b"EFI PART");
        disk[512 + 72] = 2;
        disk[512 + 80] = 4;
        disk[512 + 84] = 128;
        disk[1024 + 128] = 7;
        disk[1024 + 128 + 32] = 34;
        assert_eq!(starts(&disk).expect("can be read"), [34 * SECTOR]);
    }

    #[test]
    fn chains_that_do_not_end_and_tables_beyond_measure_are_left() {
        let mut disk = vec![0; 64 * SECTOR as usize];
        table(&mut disk, 0, &[(0, 0x05, 10)]);
        table(&mut disk, 10, &[(0, 0x83, 1), (0, 0x05, 0)]);
        assert_eq!(starts(&disk).expect("can be read").len(), MOST);
        disk[512..520].copy_from_slice(b"EFI PART");
        disk[512 + 72..][..16].fill(0xff);
        assert!(starts(&disk).is_ok());
        assert_eq!(starts(&vec![0; 100]).expect("is short"), [0]);
        assert_eq!(starts(&vec![0xff; 4096]).expect("is noise"), [0]);
    }
}
