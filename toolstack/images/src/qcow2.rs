//! QEMU's format for an image that stands on another: what differs is in it, all else is read from below.
//!
//! Only what [`overlay`] writes is known here, at once and whole: no snapshots, no compression, clusters of 64 KiB. QEMU reads
//! and writes it from then on.
//!
//! Source: QEMU's `docs/interop/qcow2`.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// What the format's files begin with.
pub(crate) const MAGIC: &[u8] = b"QFI\xfb";
/// Bytes of a cluster, which everything in the file comes in.
pub(crate) const CLUSTER: u64 = 1 << CLUSTER_BITS;
const CLUSTER_BITS: u32 = 16;
/// Entries of a table in a cluster: places are 8 bytes, counts of references 2.
const PLACES: u64 = CLUSTER / 8;
const COUNTS: u64 = CLUSTER / 2;
/// The cluster has one user, so it may be written in place.
const COPIED: u64 = 1 << 63;
/// The header extension that says what the image below is.
const BACKING_FORMAT: u32 = 0xe279_2aca;
const HEADER_LENGTH: u32 = 104;

/// Clusters of the image by their numbers.
pub(crate) type Clusters = BTreeMap<u64, Vec<u8>>;

/// Writes an image of `size` bytes that is like the raw one at `below`, but for some clusters.
pub(crate) fn overlay(file: &File, below: &str, size: u64, clusters: &Clusters) -> Result<()> {
    // One cluster each for the header, the table of tables of counts, and the top table.
    let tables: Vec<u64> = {
        let mut tables: Vec<u64> = clusters.keys().map(|number| number / PLACES).collect();
        tables.dedup();
        tables
    };
    let used = 4 + tables.len() as u64 + clusters.len() as u64;
    let top_entries = size.div_ceil(CLUSTER * PLACES);
    ensure!(
        used <= COUNTS && top_entries <= PLACES && below.len() < 1024,
        "an image of {size} bytes with {} changes is too large to stand on another",
        clusters.len()
    );
    let (counts_table, counts, top, mut next) = (CLUSTER, 2 * CLUSTER, 3 * CLUSTER, 4 * CLUSTER);
    let write = |bytes: &[u8], at: u64| file.write_all_at(bytes, at).context("writing the overlay");

    let name_at = u64::from(HEADER_LENGTH) + 24;
    let mut header = MAGIC.to_vec();
    header.extend(3_u32.to_be_bytes());
    header.extend(name_at.to_be_bytes());
    header.extend(u32::try_from(below.len())?.to_be_bytes());
    header.extend(CLUSTER_BITS.to_be_bytes());
    header.extend(size.to_be_bytes());
    // Not encrypted.
    header.extend(0_u32.to_be_bytes());
    header.extend(u32::try_from(top_entries)?.to_be_bytes());
    header.extend(top.to_be_bytes());
    header.extend(counts_table.to_be_bytes());
    header.extend(1_u32.to_be_bytes());
    // No snapshots, no features; a count has 2^4 bits.
    header.extend([0; 12 + 24]);
    header.extend(4_u32.to_be_bytes());
    header.extend(HEADER_LENGTH.to_be_bytes());
    header.extend(BACKING_FORMAT.to_be_bytes());
    header.extend(3_u32.to_be_bytes());
    header.extend(b"raw\0\0\0\0\0");
    // The last extension, and the name.
    header.extend([0; 8]);
    header.extend(below.as_bytes());
    write(&header, 0)?;
    write(&counts.to_be_bytes(), counts_table)?;
    write(&[0, 1].repeat(usize::try_from(used)?), counts)?;

    for table in tables {
        let places = next;
        write(&(places | COPIED).to_be_bytes(), top + table * 8)?;
        next += CLUSTER;
        for (number, bytes) in clusters.range(table * PLACES..(table + 1) * PLACES) {
            write(&(next | COPIED).to_be_bytes(), places + number % PLACES * 8)?;
            write(bytes, next)?;
            next += CLUSTER;
        }
    }
    // Tables are read whole.
    file.set_len(used * CLUSTER).context("writing the overlay")
}
