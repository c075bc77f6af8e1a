//! Disks: an image or a device behind Linux' blkback.
//!
//! An image file gets a loop device, whose path is noted in the backend's `node` so that whoever takes the
//! disk away can let it go. The numbers are those of xen-vbd-interface(7).

use crate::Toolstack;
use crate::error::{Doing, Error, Result};
use crate::host::Host;
use crate::hotplug::{self, Script};
use crate::nodes;
use ferroxen_loopdev as loopdev;
use ferroxen_words::DomId;
use ferroxen_xenstore::{Result as StoreResult, Store};
use ferroxen_xlconfig::{Disk, DiskAccess, DiskFormat};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What stands in `script`, for libxl when it takes the disk away; nothing of ours runs it.
const SCRIPT: &str = "/etc/xen/scripts/block";
/// The script that we need not run.
const BUILT_IN: &str = "block";

/// An opened way to a disk's bytes.
struct Device {
    /// The block device blkback opens.
    path: PathBuf,
    /// Major and minor number as the backend reads them: hexadecimal.
    number: String,
    /// The loop device, if one was set up.
    looped: bool,
}

/// Gives a disk to a domain.
pub(crate) fn attach(tools: &Toolstack, domid: DomId, disk: &Disk) -> Result<()> {
    let what = || format!("attaching disk {} (\"{}\")", disk.vdev.name, disk.spec);
    if disk
        .backend
        .as_deref()
        .is_some_and(|backend| !matches!(backend, "0" | "Domain-0"))
    {
        return Err(
            Error::new(what(), "backends in other domains are not supported yet").way_out("leave `backend` out")
        );
    }
    if let DiskFormat::Other(format) = disk.format {
        return Err(
            Error::new(what(), format!("images in {format} format are not supported yet"))
                .way_out(format!("convert it: qemu-img convert -O raw IMAGE.{format} IMAGE.raw")),
        );
    }
    let Some(target) = &disk.target else {
        return Err(Error::new(what(), "empty drives are not supported for PV yet").way_out("name an image"));
    };
    if let Some(name) = disk.script.as_deref().filter(|name| *name != BUILT_IN) {
        return by_script(tools, domid, disk, target, name).map_err(|error| error.in_step(what()));
    }
    let target = find(target);
    // Looked at once more when the disk is announced; here it saves setting up a loop device.
    if let Some(user) = user_of(&tools.store, domid, &target, disk).doing(what)? {
        return Err(in_use(&target, disk, &user));
    }
    let device = open(&*tools.host, &target, disk)?;
    let back = nodes::backend(domid, "vbd", disk.vdev.number);
    let mut special = vec![
        ("type", if device.looped { "file" } else { "phy" }.to_owned()),
        ("script", SCRIPT.to_owned()),
        ("params", target.display().to_string()),
        ("physical-device", device.number.clone()),
        ("physical-device-path", device.path.display().to_string()),
        ("hotplug-status", "connected".to_owned()),
    ];
    if device.looped {
        special.push(("node", device.path.display().to_string()));
    }
    let written = write_nodes(tools, domid, disk, &target, &back, special);
    if written.is_err() && device.looped {
        // The complaint about the nodes is the one worth reading.
        let _ = tools.host.detach_loop(&device.path);
    }
    written?;
    tools
        .wait_backend(domid, "vbd", disk.vdev.number, "xen-blkback")
        .map_err(|error| error.in_step(what()))
}

/// Has the administrator's own program find the device.
fn by_script(tools: &Toolstack, domid: DomId, disk: &Disk, target: &Path, name: &str) -> Result<()> {
    let id = disk.vdev.number;
    let back = nodes::backend(domid, "vbd", id);
    let script = Script::new(name, "vbd", &back);
    let special = vec![
        ("type", "phy".to_owned()),
        ("script", script.path()),
        ("params", target.display().to_string()),
    ];
    write_nodes(tools, domid, disk, target, &back, special)?;
    script
        .note(&tools.store, domid, id)
        .doing(|| format!("noting the script of disk {}", disk.vdev.name))?;
    script.connect(tools, tools.patience(hotplug::PATIENCE))?;
    tools.wait_backend(domid, "vbd", id, "xen-blkback")
}

/// `phy:hda1` meant `/dev/hda1` to `xm`.
fn find(target: &Path) -> PathBuf {
    if target.is_absolute() || target.exists() {
        return std::path::absolute(target).unwrap_or_else(|_| target.to_owned());
    }
    let device = Path::new("/dev").join(target);
    if device.exists() { device } else { target.to_owned() }
}

fn open(host: &dyn Host, target: &Path, disk: &Disk) -> Result<Device> {
    let what = || format!("opening {} for disk {}", target.display(), disk.vdev.name);
    let kind = std::fs::metadata(target).doing(what)?.file_type();
    if kind.is_block_device() {
        return Ok(Device {
            number: device_number(host, target).doing(what)?,
            path: target.to_owned(),
            looped: false,
        });
    }
    if !kind.is_file() {
        return Err(Error::new(what(), "it is neither an image file nor a block device"));
    }
    if disk.format == DiskFormat::Phy {
        return Err(
            Error::new(what(), "it is an image file, not a device").way_out(format!("write file:{}", target.display()))
        );
    }
    let access = match disk.access {
        DiskAccess::ReadOnly => loopdev::Access::ReadOnly,
        DiskAccess::ReadWrite | DiskAccess::Shared => loopdev::Access::ReadWrite,
    };
    let path = host
        .attach_loop(target, access)
        .doing(|| format!("setting up a loop device for {}", target.display()))
        .map_err(|error| match error.errno() {
            Some(2) => error.way_out("is the module loaded? (`modprobe loop`)"),
            _ => error,
        })?;
    match device_number(host, &path) {
        Ok(number) => Ok(Device {
            path,
            number,
            looped: true,
        }),
        Err(error) => {
            let _ = host.detach_loop(&path);
            Err(error).doing(what)
        }
    }
}

/// As backends read it: hexadecimal.
fn device_number(host: &dyn Host, path: &Path) -> std::io::Result<String> {
    let (major, minor) = host.device_number(path)?;
    Ok(format!("{major:x}:{minor:x}"))
}

/// Who has this image or device in a way that ours does not bear: two domains that write to one file system
/// destroy it, so that has to be asked for (`w!`).
fn user_of(store: &impl Store, domid: DomId, target: &Path, disk: &Disk) -> StoreResult<Option<String>> {
    if disk.access == DiskAccess::Shared {
        return Ok(None);
    }
    let identity = |path: &Path| {
        std::fs::metadata(path)
            .ok()
            .map(|meta| (meta.dev(), meta.ino(), meta.rdev()))
    };
    let ours = identity(target);
    let same = |other: &Path| other == target || (ours.is_some() && identity(other) == ours);
    // A predecessor that was kept after it had ended (rename-restart) does not count: it is the same machine.
    let vm_of = |domain: &str| store.read_opt(&format!("/local/domain/{domain}/vm"));
    let our_vm = vm_of(&domid.raw().to_string())?;
    let root = "/local/domain/0/backend/vbd";
    for domain in store.directory_opt(root)? {
        if our_vm.is_some() && vm_of(&domain)? == our_vm && domain != domid.raw().to_string() {
            continue;
        }
        for id in store.directory_opt(&format!("{root}/{domain}"))? {
            let read = |name: &str| store.read_opt(&format!("{root}/{domain}/{id}/{name}"));
            let Some(params) = read("params")? else { continue };
            let written = read("mode")?.as_deref() != Some("r") || disk.access != DiskAccess::ReadOnly;
            if written && same(Path::new(&params)) {
                let domid = domain.parse().ok().and_then(DomId::new);
                let name = domid.map(|domid| nodes::name(store, domid)).transpose()?.flatten();
                return Ok(Some(format!("\"{}\" (domid {domain})", name.unwrap_or_default())));
            }
        }
    }
    Ok(None)
}

fn in_use(target: &Path, disk: &Disk, user: &str) -> Error {
    let what = format!("attaching disk {} (\"{}\")", disk.vdev.name, disk.spec);
    Error::new(what, format!("{} is in use by {user}", target.display()))
        .way_out("shut that domain down, use `r` on both sides, or `w!` if the file system can bear it")
}

/// Announces a disk to both sides, unless somebody else has it.
fn write_nodes(
    tools: &Toolstack,
    domid: DomId,
    disk: &Disk,
    target: &Path,
    back: &str,
    special: Vec<(&str, String)>,
) -> Result<()> {
    let id = disk.vdev.number;
    let front = nodes::frontend(domid, "vbd", id);
    let kind = if disk.is_cdrom { "cdrom" } else { "disk" };
    let mut backend = vec![
        ("frontend", front.clone()),
        ("frontend-id", domid.raw().to_string()),
        ("online", "1".to_owned()),
        ("removable", u32::from(disk.is_cdrom).to_string()),
        ("bootable", "1".to_owned()),
        ("state", "1".to_owned()),
        ("dev", disk.vdev.name.clone()),
        ("mode", disk.access.mode().to_owned()),
        ("device-type", kind.to_owned()),
        ("discard-enable", u32::from(disk.discard.unwrap_or(true)).to_string()),
        ("specification", "xen".to_owned()),
    ];
    backend.extend(special);
    let frontend = [
        ("backend", back.to_owned()),
        ("backend-id", "0".to_owned()),
        ("state", "1".to_owned()),
        ("virtual-device", id.to_string()),
        ("device-type", kind.to_owned()),
        ("trusted", "1".to_owned()),
        ("protocol", "x86_64-abi".to_owned()),
    ];
    let user = tools
        .store
        .transaction(|tx| {
            // In here, so that of two who come at once only one gets the image.
            if let Some(user) = user_of(tx, domid, target, disk)? {
                return Ok(Some(user));
            }
            nodes::make(tx, &front, &nodes::shared(domid, DomId::DOM0))?;
            nodes::make(tx, back, &nodes::shared(DomId::DOM0, domid))?;
            nodes::write_all(tx, &front, &frontend)?;
            nodes::write_all(tx, back, &backend)?;
            nodes::register(tx, domid, "vbd", id, back, &backend)?;
            Ok(None)
        })
        .doing(|| format!("announcing disk {}", disk.vdev.name))?;
    match user {
        Some(user) => Err(in_use(target, disk, &user)),
        None => Ok(()),
    }
}

/// Lets go of what stood behind a disk that is gone.
pub(crate) fn release(host: &dyn Host, node: Option<&str>) -> Result<()> {
    match node.filter(|node| node.starts_with("/dev/loop")) {
        Some(node) => host
            .detach_loop(Path::new(node))
            .doing(|| format!("letting go of {node}")),
        None => Ok(()),
    }
}
