//! Clones that take no room and no time where files cannot share blocks: an image of QEMU's that stands on the template.
//!
//! debugfs cannot write to such an image. So it gets a copy of the file system's metadata alone (e2image(8) makes one at
//! once), and changes that; what it has changed there, block by block, is what the clone differs by.

use crate::inside::Inside;
use crate::qcow2::{self, CLUSTER, Clusters};
use crate::tools::{must, program, text};
use crate::{Identity, Unfinished, copy};
use anyhow::{Context, Result, bail};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

/// Makes an image in QEMU's format that stands on `template`, and makes it a machine of its own.
///
/// From then on the template must not change: it loses its permission to be written to, by which the other steps know.
pub fn overlay(template: &Path, target: &Path, identity: &Identity) -> Result<()> {
    let template = fs::canonicalize(template).with_context(|| format!("finding {}", template.display()))?;
    let system = Inside::of(&template);
    if !system.has("/etc") {
        bail!("{} holds no system in ext2 to ext4", template.display());
    }
    let folder = tempfile::tempdir().context("making a temporary folder")?;
    let [before, after] = ["before", "after"].map(|name| folder.path().join(name));
    must(program("e2image", ["-r", text(&template)?, text(&before)?]))?;
    copy::contents(&before, &after)?;
    Inside::of(&after).make(&system.own(identity)?)?;

    let image = Unfinished::new(target);
    let file = File::create(&image.path).with_context(|| format!("making {}", image.path.display()))?;
    let below = File::open(&template).with_context(|| format!("opening {}", template.display()))?;
    let size = below.metadata().context("looking at the template")?.len();
    let changes = changes(&before, &after, &below, size).context("finding what has changed")?;
    qcow2::overlay(&file, text(&template)?, size, &changes)?;
    let mode = fs::metadata(&template)
        .context("looking at the template")?
        .permissions()
        .mode();
    fs::set_permissions(&template, Permissions::from_mode(mode & !0o222)).context("protecting the template")?;
    image.finish()
}

/// The clusters that have a changed block, all else in them as it is `below`.
fn changes(before: &Path, after: &Path, below: &File, size: u64) -> io::Result<Clusters> {
    /// Where an ext file system has `s_log_block_size`.
    const BLOCK_SIZE: u64 = 1024 + 0x18;
    let mut shift = [0; 4];
    below.read_exact_at(&mut shift, BLOCK_SIZE)?;
    let block = 1024_usize
        .checked_shl(u32::from_le_bytes(shift))
        .filter(|block| (1024..=CLUSTER as usize).contains(block));
    // What is changed is changed by whole blocks.
    let block_size = block.ok_or(io::ErrorKind::InvalidData)?;
    let (before, after) = (File::open(before)?, File::open(after)?);
    let len = CLUSTER as usize;
    let (mut old, mut new) = (vec![0; len], vec![0; len]);
    let mut changes = Clusters::new();
    let mut at = 0;
    while at < size {
        at = match seek(&after, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            other => other? / CLUSTER * CLUSTER,
        };
        read(&before, &mut old, at)?;
        read(&after, &mut new, at)?;
        if old != new {
            let mut cluster = vec![0; len];
            read(below, &mut cluster, at)?;
            for start in (0..len).step_by(block_size) {
                let block = start..start + block_size;
                if old[block.clone()] != new[block.clone()] {
                    cluster[block.clone()].copy_from_slice(&new[block]);
                }
            }
            changes.insert(at / CLUSTER, cluster);
        }
        at += CLUSTER;
    }
    Ok(changes)
}

/// Fills `bytes`; what is behind the file's end is nothing.
fn read(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], at + filled as u64)? {
            0 => break,
            got => filled += got,
        }
    }
    bytes[filled..].fill(0);
    Ok(())
}
