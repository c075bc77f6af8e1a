//! Machines that become guests: the root of another machine's disk, as an image ("P2V").
//!
//! The file system is taken over as it stands, block by block: what is in it, its UUID and its label stay, so nothing
//! is mounted and no file loses an attribute. Only `/etc/fstab` is fitted, since the disks have other names now.

use crate::fstab::{Names, fitted};
use crate::tools::{must, program, run, text};
use crate::unfinished::Unfinished;
use crate::{Identity, Inside, copy, make, qcow2};
use anyhow::{Context, Result, bail};
use ferroxen_bootloader::{Root, find_root};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Makes an image of the root file system in `disk`: a raw disk or an image of one, with partitions or without, that
/// nobody uses. Gives the lines of `/etc/fstab` that were put aside, since they name what is not in the image.
///
/// It stays the machine it was, but for what `identity` says.
pub fn take_over(
    disk: &Path,
    target: &Path,
    size: Option<u64>,
    identity: &Identity,
    mut progress: impl FnMut(&str),
) -> Result<Vec<String>> {
    let doing = || format!("taking over {}", disk.display());
    if magic(disk).with_context(doing)? == qcow2::MAGIC {
        bail!(
            "{0} is in QEMU's own format: `qemu-img convert -O raw {0} {0}.raw` (package qemu-utils) makes a disk of it",
            disk.display()
        );
    }
    let Root { start, len } = find_root(disk).with_context(doing)?;
    let image = Unfinished::of_another(target, disk)?;
    progress("copying its root file system");
    let end = start.checked_add(len).context("its file system has no end")?;
    copy::range(disk, start..end, &image.path)?;
    let path = text(&image.path)?.to_owned();
    progress("checking it");
    // 1: there were mistakes, and they were mended.
    run(program("e2fsck", ["-f", "-p", &path]), |code| code <= 1)?;
    match size {
        Some(size) if size > len => {
            make::set_len(&image.path, size)?;
            must(program("resize2fs", [&path]))?;
        }
        Some(size) if size < len => bail!(
            "it has {} MiB, which are more than that: make it smaller afterwards, by `xl image resize`",
            len >> 20
        ),
        _ => {}
    }
    let inside = Inside::of(&image.path);
    let old = inside.read("/etc/fstab")?.unwrap_or_default();
    let (fstab, put_aside) = fitted(&String::from_utf8_lossy(&old), Names::Kept);
    let identity = Identity {
        fstab: identity.fstab.clone().or(Some(fstab)),
        ..identity.clone()
    };
    inside.set(&identity)?;
    image.finish()?;
    Ok(put_aside)
}

fn magic(disk: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(disk)?
        .take(qcow2::MAGIC.len() as u64)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}
