//! What stands behind a disk: finding it, opening it, and who else has it.

use crate::error::{Doing, Error, Result};
use crate::host::Host;
use crate::mounts::{self, Mount};
use crate::nbd::{self, Served};
use crate::nodes;
use ferroxen_loopdev as loopdev;
use ferroxen_words::DomId;
use ferroxen_xenstore::{Result as StoreResult, Store};
use ferroxen_xlconfig::{Disk, DiskAccess, DiskBackend, DiskFormat};
use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// An opened way to a disk's bytes.
pub(crate) struct Device {
    /// The block device blkback opens.
    pub path: PathBuf,
    /// Major and minor number as the backend reads them: hexadecimal.
    pub number: String,
    /// What was set up so that there is a device.
    pub made: Option<Made>,
    /// The loop device, which goes with the last who has it open: with us, if we are killed.
    held: Option<File>,
}

impl Device {
    /// Has it stay when we are gone: it is noted by now who is to let it go.
    pub(crate) fn keep(&self, host: &dyn Host) -> std::io::Result<()> {
        self.held.as_ref().map_or(Ok(()), |device| host.keep_loop(device))
    }
}

/// A device that ours alone is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Made {
    /// A loop device.
    Loop,
    /// One that QEMU's nbd server serves.
    Nbd,
}

/// `phy:hda1` meant `/dev/hda1` to `xm`.
pub(crate) fn find(target: &Path) -> PathBuf {
    if target.is_absolute() || target.exists() {
        return std::path::absolute(target).unwrap_or_else(|_| target.to_owned());
    }
    let device = Path::new("/dev").join(target);
    if device.exists() { device } else { target.to_owned() }
}

/// Whether a target is an image that needs a loop device; refuses what can be no disk.
pub(crate) fn is_image(target: &Path, disk: &Disk) -> Result<bool> {
    let what = || format!("looking at {} for disk {}", target.display(), disk.vdev.name);
    let kind = std::fs::metadata(target).doing(what)?.file_type();
    if kind.is_block_device() {
        // An image in one of QEMU's formats may lie on a device, too.
        return Ok(qemu_format(disk).is_some());
    }
    if !kind.is_file() {
        return Err(Error::new(what(), "it is neither an image file nor a block device"));
    }
    if disk.format == DiskFormat::Phy {
        return Err(
            Error::new(what(), "it is an image file, not a device").way_out(format!("write file:{}", target.display()))
        );
    }
    Ok(true)
}

/// Whether QEMU serves it, which keeps to itself for a while what was written.
pub(crate) fn is_served(disk: &Disk) -> bool {
    qemu_format(disk).is_some()
}

/// The format that QEMU has to read, if the kernel cannot or is not to, or knows no limits.
fn qemu_format(disk: &Disk) -> Option<&'static str> {
    match disk.format {
        DiskFormat::Other(format) => Some(format),
        _ => (disk.limits.any() || disk.backend_type == Some(DiskBackend::Qdisk)).then_some("raw"),
    }
}

/// Makes a block device of it for the disk `owner`, if it is none.
pub(crate) fn open(host: &dyn Host, target: &Path, disk: &Disk, owner: &str) -> Result<Device> {
    let what = || format!("opening {} for disk {}", target.display(), disk.vdev.name);
    if !is_image(target, disk)? {
        return Ok(Device {
            number: device_number(host, target).doing(what)?,
            path: target.to_owned(),
            made: None,
            held: None,
        });
    }
    let read_only = disk.access == DiskAccess::ReadOnly;
    let (made, path, held) = match qemu_format(disk) {
        Some(format) => {
            let served = Served {
                image: target,
                format,
                read_only,
                limits: disk.limits,
            };
            let served = host.attach_nbd(served, owner);
            let path = served.doing(|| format!("setting up an nbd device for {}", target.display()))?;
            (Made::Nbd, path, None)
        }
        None => {
            let access = match read_only {
                true => loopdev::Access::ReadOnly,
                false => loopdev::Access::ReadWrite,
            };
            let looped = host.attach_loop(target, access);
            let looped = looped.doing(|| format!("setting up a loop device for {}", target.display()));
            let (path, device) = looped.map_err(|error| match error.errno() {
                Some(2) => error.way_out("is the module loaded? (`modprobe loop`)"),
                _ => error,
            })?;
            (Made::Loop, path, Some(device))
        }
    };
    match device_number(host, &path) {
        Ok(number) => Ok(Device {
            path,
            number,
            made: Some(made),
            held,
        }),
        Err(error) => {
            // The complaint that led here is the one worth reading.
            let _ = let_go(host, &path);
            Err(error).doing(what)
        }
    }
}

/// Lets go of a device that [`open`] made.
pub(crate) fn let_go(host: &dyn Host, device: &Path) -> std::io::Result<()> {
    match device.as_os_str().as_encoded_bytes() {
        path if path.starts_with(nbd::PREFIX.as_bytes()) => host.detach_nbd(device),
        path if path.starts_with(b"/dev/loop") => host.detach_loop(device),
        _ => Ok(()),
    }
}

/// As backends read it: hexadecimal.
fn device_number(host: &dyn Host, path: &Path) -> std::io::Result<String> {
    let (major, minor) = host.device_number(path)?;
    Ok(format!("{major:x}:{minor:x}"))
}

/// Whose disk or mount it is.
#[derive(Clone, Copy)]
pub(crate) struct Claimant<'a> {
    /// The domain, unless it is yet to be made.
    pub domid: Option<DomId>,
    /// Its `/vm` path. A predecessor that was kept after it had ended (rename-restart) has the same: it is the same
    /// machine, and does not count.
    pub vm: Option<&'a str>,
}

/// Who has this image or device of `server`'s in a way that ours does not bear: two that write to one file system destroy it, so
/// that has to be asked for (`w!`).
pub(crate) fn user_of(
    store: &impl Store,
    server: DomId,
    claimant: Claimant<'_>,
    target: &Path,
    disk: &Disk,
) -> StoreResult<Option<String>> {
    if disk.access == DiskAccess::Shared {
        return Ok(None);
    }
    // What another domain has under a name cannot be seen from here.
    let ours = (server == DomId::DOM0).then(|| identity(target)).flatten();
    let same = |other: &Path| other == target || (ours.is_some() && identity(other) == ours);
    let backends = format!("{}/backend/vbd", nodes::domain(server));
    for domain in store.directory_opt(&backends)? {
        let domid = domain.parse().ok().and_then(DomId::new);
        let vm = store.read_opt(&format!("/local/domain/{domain}/vm"))?;
        if domid != claimant.domid && vm.is_some() && vm.as_deref() == claimant.vm {
            continue;
        }
        let root = format!("{backends}/{domain}");
        for id in store.directory_opt(&root)? {
            let read = |name: &str| store.read_opt(&format!("{root}/{id}/{name}"));
            let Some(params) = read("params")? else { continue };
            let is_written = read("mode")?.as_deref() != Some("r") || disk.access != DiskAccess::ReadOnly;
            if is_written && same(Path::new(&params)) {
                let name = domid.map(|domid| nodes::name(store, domid)).transpose()?.flatten();
                return Ok(Some(format!("\"{}\" (domid {domain})", name.unwrap_or_default())));
            }
        }
    }
    Ok(None)
}

/// By what one image or device is known under all its names.
fn identity(path: &Path) -> Option<(u64, u64, u64)> {
    let meta = std::fs::metadata(path).ok()?;
    Some(match meta.file_type().is_block_device() {
        true => (0, 0, meta.rdev()),
        false => (meta.dev(), meta.ino(), 0),
    })
}

/// Where this host itself has mounted it (or swaps to it), unless both only read.
pub(crate) fn mounted(target: &Path, disk: &Disk) -> Option<Mount> {
    if disk.access == DiskAccess::Shared {
        return None;
    }
    let mount = mounts::of(target)?;
    (mount.is_written || disk.access != DiskAccess::ReadOnly).then_some(mount)
}
