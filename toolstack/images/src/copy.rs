//! Copies that cost what they differ by, where the host's file system can do that.

use crate::identity::HostKeys;
use crate::interruption::go_on;
use crate::unfinished::Unfinished;
use crate::{Identity, Inside};
use anyhow::{Context, Result, bail};
use rustix::fs::{SeekFrom, ioctl_ficlone, seek, statfs};
use rustix::io::Errno;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// How a copy was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Both share their blocks until one writes (btrfs, xfs).
    Shared,
    /// All that is not empty was copied.
    Copied,
}

/// Copies an image and makes the copy a machine of its own, if it holds a system.
pub fn clone(source: &Path, target: &Path, identity: &Identity) -> Result<Way> {
    let image = Unfinished::of_another(target, source)?;
    let way = contents(source, &image.path)?;
    let inside = Inside::of(&image.path);
    if let Some(own) = inside.own(identity, HostKeys::OneNow)? {
        inside.make(&own)?;
    }
    image.finish()?;
    Ok(way)
}

/// Copies a file's bytes, and its holes as holes.
pub(crate) fn contents(source: &Path, target: &Path) -> Result<Way> {
    let (from, to) = open(source, target)?;
    if ioctl_ficlone(&to, &from).is_ok() {
        return Ok(Way::Shared);
    }
    let len = from
        .metadata()
        .with_context(|| format!("looking at {}", source.display()))?
        .len();
    range(source, 0..len, target)?;
    Ok(Way::Copied)
}

/// Whether reading a file's holes would fill them: with memory, on a Linux that has no root but its initial ramdisk.
pub(crate) fn would_fill_holes(file: &Path) -> Result<bool> {
    /// `RAMFS_MAGIC` of `linux/magic.h`.
    const RAMFS: i64 = 0x8584_58f6;
    let found = statfs(file).with_context(|| format!("looking at {}", file.display()))?;
    Ok(found.f_type == RAMFS)
}

fn open(source: &Path, target: &Path) -> Result<(File, File)> {
    let from = File::open(source).with_context(|| format!("opening {}", source.display()))?;
    let to = File::create(target).with_context(|| format!("making {}", target.display()))?;
    Ok((from, to))
}

/// Copies some of the bytes of a file or a device.
pub(crate) fn range(source: &Path, bytes: Range<u64>, target: &Path) -> Result<()> {
    let (from, to) = open(source, target)?;
    let doing = || format!("copying {} to {}", source.display(), target.display());
    to.set_len(bytes.end - bytes.start).with_context(doing)?;
    let (mut at, len) = (bytes.start, bytes.end);
    let mut buffer = vec![0; 1 << 20];
    while at < len {
        let data = match seek(&from, SeekFrom::Data(at)) {
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            // Holes cannot be told.
            Err(Errno::INVAL) => at,
            other => other.with_context(doing)?,
        };
        let end = seek(&from, SeekFrom::Hole(data)).unwrap_or(len).min(len);
        at = data;
        while at < end {
            go_on()?;
            let want = usize::try_from(end - at).map_or(buffer.len(), |left| left.min(buffer.len()));
            let got = from.read_at(&mut buffer[..want], at).with_context(doing)?;
            if got == 0 {
                bail!("{} ends before what is in it does", source.display());
            }
            // What is only zeroes stays a hole.
            if buffer[..got].iter().any(|byte| *byte != 0) {
                to.write_all_at(&buffer[..got], at - bytes.start).with_context(doing)?;
            }
            at += got as u64;
        }
        at = at.max(end);
    }
    Ok(())
}
