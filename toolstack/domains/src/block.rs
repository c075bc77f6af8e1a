//! Disks: an image or a device behind Linux' blkback.
//!
//! An image file gets a loop device, or in one of QEMU's formats an nbd device, whose path is noted in the backend's
//! `node` so that whoever takes the disk away can let it go. The numbers are those of xen-vbd-interface(7).

use crate::Toolstack;
use crate::error::{Doing, Error, Result};
use crate::host::Host;
use crate::hotplug::{self, Script};
use crate::image::{self, Claimant, Made};
use crate::nodes;
use ferroxen_words::DomId;
use ferroxen_xenstore::{Changes, Store};
use ferroxen_xlconfig::{Disk, DiskBackend, DiskFormat};
use std::path::{Path, PathBuf};

/// What stands in `script`, for libxl when it takes the disk away; nothing of ours runs it.
const SCRIPT: &str = "/etc/xen/scripts/block";
/// The script that we need not run.
const BUILT_IN: &str = "block";

/// What a disk's target turned out to be.
enum Source<'a> {
    /// An image or a device of this host.
    Here(PathBuf),
    /// Something that a script knows how to find.
    Script(&'a str, &'a Path),
}

fn step(disk: &Disk) -> String {
    format!("attaching disk {} (\"{}\")", disk.vdev.name, disk.spec)
}

/// Refuses what cannot be attached, before anything is made for it.
pub(crate) fn check(tools: &Toolstack, claimant: Claimant<'_>, disk: &Disk) -> Result<()> {
    match source(disk)? {
        Source::Here(target) => is_free(tools, claimant, &target, disk),
        Source::Script(..) => Ok(()),
    }
}

fn source(disk: &Disk) -> Result<Source<'_>> {
    let backend = disk.backend.as_deref();
    if backend.is_some_and(|backend| !matches!(backend, "0" | "Domain-0")) {
        return Err(
            Error::new(step(disk), "backends in other domains are not supported yet").way_out("leave `backend` out"),
        );
    }
    if let (DiskFormat::Other(format), Some(DiskBackend::Phy)) = (disk.format, disk.backend_type) {
        return Err(Error::new(
            step(disk),
            format!("Linux' own backend reads no images in {format} format"),
        )
        .way_out("leave `backendtype` out: QEMU's nbd server reads them"));
    }
    let Some(target) = &disk.target else {
        return Err(Error::new(step(disk), "empty drives are not supported for PV yet").way_out("name an image"));
    };
    Ok(match disk.script.as_deref().filter(|name| *name != BUILT_IN) {
        Some(script) => Source::Script(script, target),
        None => Source::Here(image::find(target)),
    })
}

fn is_free(tools: &Toolstack, claimant: Claimant<'_>, target: &Path, disk: &Disk) -> Result<()> {
    image::is_image(target, disk).map_err(|error| error.in_step(step(disk)))?;
    if let Some(user) = image::user_of(&tools.store, claimant, target, disk).doing(|| step(disk))? {
        return Err(in_use(target, disk, &user));
    }
    match image::mounted(target, disk) {
        Some(mount) => Err(Error::new(
            step(disk),
            format!("{} is in use by this host ({})", target.display(), mount.place),
        )
        .way_out("unmount it, use `r` on both sides, or `w!` if the file system can bear it")),
        None => Ok(()),
    }
}

/// Gives a disk to a domain.
pub(crate) fn attach(tools: &Toolstack, domid: DomId, disk: &Disk) -> Result<()> {
    match source(disk)? {
        Source::Here(target) => from_here(tools, domid, disk, &target),
        Source::Script(name, target) => by_script(tools, domid, disk, target, name),
    }
    .map_err(|error| error.in_step_once(step(disk)))
}

fn from_here(tools: &Toolstack, domid: DomId, disk: &Disk, target: &Path) -> Result<()> {
    let vm = vm_of(tools, domid, disk)?;
    let claimant = Claimant {
        domid: Some(domid),
        vm: vm.as_deref(),
    };
    // Looked at once more when the disk is announced; here it saves setting up a loop device.
    is_free(tools, claimant, target, disk)?;
    let device = image::open(&*tools.host, target, disk)?;
    let mut special = vec![
        (
            "type",
            if device.made == Some(Made::Loop) { "file" } else { "phy" }.to_owned(),
        ),
        ("script", SCRIPT.to_owned()),
        ("params", target.display().to_string()),
        ("physical-device", device.number.clone()),
        ("physical-device-path", device.path.display().to_string()),
        ("hotplug-status", "connected".to_owned()),
    ];
    if device.made.is_some() {
        special.push(("node", device.path.display().to_string()));
    }
    let written = announce(tools, domid, disk, target, special);
    if written.is_err() && device.made.is_some() {
        // The complaint about the nodes is the one worth reading.
        let _ = image::let_go(&*tools.host, &device.path);
    }
    written?;
    tools.wait_backend(domid, "vbd", disk.vdev.number, "xen-blkback")
}

fn vm_of(tools: &Toolstack, domid: DomId, disk: &Disk) -> Result<Option<String>> {
    let path = format!("{}/vm", nodes::domain(domid));
    tools.store.read_opt(&path).doing(|| step(disk))
}

/// Has the administrator's own program find the device.
fn by_script(tools: &Toolstack, domid: DomId, disk: &Disk, target: &Path, name: &str) -> Result<()> {
    let id = disk.vdev.number;
    let script = Script::new(name, "vbd", &nodes::backend(domid, "vbd", id));
    let special = vec![
        ("type", "phy".to_owned()),
        ("script", script.path()),
        ("params", target.display().to_string()),
    ];
    announce(tools, domid, disk, target, special)?;
    script
        .note(&tools.store, domid, id)
        .doing(|| "noting the script".to_owned())?;
    script.connect(&tools.store, &*tools.host, tools.patience(hotplug::PATIENCE))?;
    tools.wait_backend(domid, "vbd", id, "xen-blkback")
}

fn in_use(target: &Path, disk: &Disk, user: &str) -> Error {
    Error::new(step(disk), format!("{} is in use by {user}", target.display()))
        .way_out("shut that domain down, use `r` on both sides, or `w!` if the file system can bear it")
}

/// Announces a disk to both sides, unless somebody else has it.
fn announce(tools: &Toolstack, domid: DomId, disk: &Disk, target: &Path, special: Vec<(&str, String)>) -> Result<()> {
    let id = disk.vdev.number;
    let back = &nodes::backend(domid, "vbd", id);
    let vm = vm_of(tools, domid, disk)?;
    let claimant = Claimant {
        domid: Some(domid),
        vm: vm.as_deref(),
    };
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
    let mut changes = Changes::default();
    nodes::make(&mut changes, &front, &nodes::shared(domid, DomId::DOM0));
    nodes::make(&mut changes, back, &nodes::shared(DomId::DOM0, domid));
    nodes::write_all(&mut changes, &front, &frontend);
    nodes::write_all(&mut changes, back, &backend);
    nodes::register(&mut changes, domid, "vbd", id, back, &backend);
    let user = tools
        .store
        .transaction(|tx| {
            // In here, so that of two who come at once only one gets the image.
            if let Some(user) = image::user_of(tx, claimant, target, disk)? {
                return Ok(Some(user));
            }
            tx.apply(&changes).map(|()| None)
        })
        .doing(|| format!("announcing disk {}", disk.vdev.name))?;
    match user {
        Some(user) => Err(in_use(target, disk, &user)),
        None => Ok(()),
    }
}

/// Lets go of what stood behind a disk that is gone.
pub(crate) fn release(host: &dyn Host, node: Option<&str>) -> Result<()> {
    match node {
        Some(node) => image::let_go(host, Path::new(node)).doing(|| format!("letting go of {node}")),
        None => Ok(()),
    }
}
