//! Clones that take no room and no time where files cannot share blocks: an image of QEMU's that stands on the template.
//!
//! debugfs cannot write to such an image. So it gets a copy of the file system's metadata alone, and changes that; what it
//! has changed there, block by block, is what the clone differs by.

use crate::Identity;
use crate::identity::HostKeys;
use crate::inside::Inside;
use crate::metadata::Metadata;
use crate::qcow2::{self, CLUSTER, Clusters};
use crate::tools::text;
use crate::unfinished::Unfinished;
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
    let Some(own) = Inside::of(&template).own(identity, HostKeys::OneNow)? else {
        bail!("{} holds no system in ext2 to ext4", template.display());
    };
    let below = File::open(&template).with_context(|| format!("opening {}", template.display()))?;
    let size = below.metadata().context("looking at the template")?.len();
    let metadata =
        Metadata::of(&below).with_context(|| format!("looking for what to copy of {}", template.display()))?;
    let folder = tempfile::tempdir().context("making a temporary folder")?;
    let copy = folder.path().join("metadata");
    let after = File::create_new(&copy).context("making a temporary file")?;
    after.set_len(size).context("making a temporary file")?;
    metadata.copy(&below, &after)?;
    Inside::of(&copy).make(&own)?;

    let image = Unfinished::of_another(target, &template)?;
    let file = File::create(&image.path).with_context(|| format!("making {}", image.path.display()))?;
    let after = File::open(&copy).context("opening a temporary file")?;
    let changes = changes(&metadata, &after, &below, size).context("finding what has changed")?;
    qcow2::overlay(&file, text(&template)?, size, &changes)?;
    let mode = fs::metadata(&template)
        .context("looking at the template")?
        .permissions()
        .mode();
    fs::set_permissions(&template, Permissions::from_mode(mode & !0o222)).context("protecting the template")?;
    image.finish()
}

/// The clusters that have a changed block, all else in them as it is `below`.
fn changes(metadata: &Metadata, after: &File, below: &File, size: u64) -> io::Result<Clusters> {
    let len = CLUSTER as usize;
    let (mut old, mut new) = (vec![0; len], vec![0; len]);
    let mut changes = Clusters::new();
    let mut at = 0;
    while at < size {
        at = match seek(after, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            other => other? / CLUSTER * CLUSTER,
        };
        read(below, &mut old, at)?;
        read(after, &mut new, at)?;
        let mut is_changed = false;
        let blocks = new
            .chunks_exact(metadata.block_size)
            .zip(old.chunks_exact_mut(metadata.block_size));
        for (number, (new, old)) in (at / metadata.block_size as u64..).zip(blocks) {
            // What was not copied was nothing, until it was written.
            let is_written = match metadata.holds(number) {
                true => new != old,
                false => new.iter().any(|byte| *byte != 0),
            };
            if is_written {
                old.copy_from_slice(new);
                is_changed = true;
            }
        }
        if is_changed {
            changes.insert(at / CLUSTER, old.clone());
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
