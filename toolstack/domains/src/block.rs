//! Disks: an image or a device behind Linux' blkback.
//!
//! An image file gets a loop device, or in one of QEMU's formats an nbd device, whose path is noted in the backend's
//! `node` so that whoever takes the disk away can let it go. The numbers are those of xen-vbd-interface(7).

use crate::Toolstack;
use crate::error::{Doing, Error, Result};
use crate::host::Host;
use crate::hotplug::{self, Script};
use crate::image::{self, Claimant, Device, Made};
use crate::{nbd, nodes};
use ferroxen_words::DomId;
use ferroxen_xenstore::{Changes, Store};
use ferroxen_xlconfig::{Disk, DiskBackend, DiskFormat};
use std::path::{Path, PathBuf};

/// What stands in `script`, for libxl when it takes the disk away; nothing of ours runs it.
pub(crate) const SCRIPT: &str = "/etc/xen/scripts/block";
/// The script that we need not run.
const BUILT_IN: &str = "block";

/// What a disk's target turned out to be.
enum Source<'a> {
    /// An image or a device of this host.
    Here(PathBuf),
    /// Something that a script knows how to find.
    Script(&'a str, &'a Path),
    /// What a driver domain has under that name.
    Elsewhere(DomId, &'a Path),
}

fn step(disk: &Disk) -> String {
    format!("attaching disk {} (\"{}\")", disk.vdev.name, disk.spec)
}

/// Refuses what cannot be attached, before anything is made for it.
pub(crate) fn check(tools: &Toolstack, claimant: Claimant<'_>, disk: &Disk) -> Result<()> {
    match source(tools, disk)? {
        Source::Here(target) => is_free(tools, claimant, &target, disk),
        Source::Script(..) | Source::Elsewhere(..) => Ok(()),
    }
}

fn source<'a>(tools: &Toolstack, disk: &'a Disk) -> Result<Source<'a>> {
    if let (DiskFormat::Other(format), Some(DiskBackend::Phy)) = (disk.format, disk.backend_type) {
        return Err(Error::new(
            step(disk),
            format!("Linux' own backend reads no images in {format} format"),
        )
        .way_out("leave `backendtype` out: QEMU's nbd server reads them"));
    }
    if disk.limits.any() && disk.backend_type == Some(DiskBackend::Phy) {
        return Err(
            Error::new(step(disk), "Linux' own backend knows no `rate` and no `iops`")
                .way_out("leave `backendtype` out: QEMU's nbd server keeps limits"),
        );
    }
    let Some(target) = &disk.target else {
        return Err(Error::new(step(disk), "only the drive of an HVM domain can be empty").way_out("name an image"));
    };
    let server = tools.server(disk.backend.as_deref());
    let server = server.map_err(|error| error.in_step(step(disk)))?;
    if server != DomId::DOM0 {
        let is_plain = !matches!(disk.format, DiskFormat::Other(_)) && !disk.limits.any();
        return match is_plain && matches!(disk.backend_type, None | Some(DiskBackend::Phy)) {
            true => Ok(Source::Elsewhere(server, target)),
            // As with libxl, which has only blkback in other domains.
            false => Err(Error::new(
                step(disk),
                "driver domains serve plain images and devices only, without limits",
            )
            .way_out("leave `format`, `backendtype`, `rate` and `iops` out, or have Domain 0 serve it")),
        };
    }
    Ok(match disk.script.as_deref().filter(|name| *name != BUILT_IN) {
        Some(_) if disk.limits.any() => {
            return Err(
                Error::new(step(disk), "what a script finds can have no `rate` and no `iops`")
                    .way_out("have the script itself see to it, or name the image or the device"),
            );
        }
        Some(script) => Source::Script(script, target),
        None => Source::Here(image::find(target)),
    })
}

fn is_free(tools: &Toolstack, claimant: Claimant<'_>, target: &Path, disk: &Disk) -> Result<()> {
    image::is_image(target, disk).map_err(|error| error.in_step(step(disk)))?;
    if let Some(user) = image::user_of(&tools.store, DomId::DOM0, claimant, target, disk).doing(|| step(disk))? {
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
    match source(tools, disk)? {
        Source::Here(target) => from_here(tools, domid, disk, &target),
        Source::Script(name, target) => by_script(tools, domid, disk, target, name),
        Source::Elsewhere(server, target) => by_driver_domain(tools, domid, disk, target, server),
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
    let device = image::open(&*tools.host, target, disk, &nbd::owner(domid, disk.vdev.number))?;
    let mut special = vec![
        (
            "type",
            if device.made == Some(Made::Loop) { "file" } else { "phy" }.to_owned(),
        ),
        ("script", SCRIPT.to_owned()),
        ("params", target.display().to_string()),
    ];
    special.extend(connected(&device));
    let written = announce(tools, DomId::DOM0, domid, disk, target, special);
    if written.is_err() && device.made.is_some() {
        // The complaint about the nodes is the one worth reading.
        let _ = image::let_go(&*tools.host, &device.path);
    }
    written?;
    device
        .keep(&*tools.host)
        .doing(|| format!("keeping {}", device.path.display()))?;
    tools.wait_backend(domid, "vbd", disk.vdev.number, "xen-blkback")
}

/// Announces a disk whose image somebody else has yet; the backend waits for [`open_announced`].
pub(crate) fn announce_held(tools: &Toolstack, domid: DomId, disk: &Disk) -> Result<()> {
    let Source::Here(target) = source(tools, disk)? else {
        return attach(tools, domid, disk);
    };
    let special = vec![
        ("type", "phy".to_owned()),
        ("script", SCRIPT.to_owned()),
        ("params", target.display().to_string()),
    ];
    announce(tools, DomId::DOM0, domid, disk, &target, special)
        .and_then(|()| tools.wait_backend(domid, "vbd", disk.vdev.number, "xen-blkback"))
        .map_err(|error| error.in_step_once(step(disk)))
}

/// Gives the backend of a disk that was announced its device.
pub(crate) fn open_announced(tools: &Toolstack, domid: DomId, disk: &Disk) -> Result<()> {
    let Source::Here(target) = source(tools, disk)? else {
        return Ok(());
    };
    let owner = nbd::owner(domid, disk.vdev.number);
    let device = image::open(&*tools.host, &target, disk, &owner).map_err(|error| error.in_step(step(disk)))?;
    let back = nodes::backend(domid, "vbd", disk.vdev.number);
    let mut changes = Changes::default();
    nodes::write_all(&mut changes, &back, &connected(&device));
    let is_there = tools.store.transaction(|tx| match tx.exists(&back)? {
        true => tx.apply(&changes).map(|()| true),
        // The domain has ended meanwhile, or has lost the disk.
        false => Ok(false),
    });
    let is_there = is_there.doing(|| step(disk));
    if !matches!(is_there, Ok(true)) {
        // The complaint about the nodes is the one worth reading.
        let _ = image::let_go(&*tools.host, &device.path);
    }
    is_there.map(|_| ())
}

/// What a backend's nodes say once there is a device for it.
pub(crate) fn connected(device: &Device) -> Vec<(&'static str, String)> {
    let path = device.path.display().to_string();
    let mut values = vec![
        ("physical-device", device.number.clone()),
        ("physical-device-path", path.clone()),
        ("hotplug-status", "connected".to_owned()),
    ];
    values.extend(device.made.map(|_| ("node", path)));
    values
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
    announce(tools, DomId::DOM0, domid, disk, target, special)?;
    script
        .note(&tools.store, domid, id)
        .doing(|| "noting the script".to_owned())?;
    script.connect(&tools.store, &*tools.host, tools.patience(hotplug::PATIENCE))?;
    tools.wait_backend(domid, "vbd", id, "xen-blkback")
}

/// Leaves the disk to another domain, in which `xl devd` finds the image or the device.
fn by_driver_domain(tools: &Toolstack, domid: DomId, disk: &Disk, target: &Path, server: DomId) -> Result<()> {
    let script = Script::new(disk.script.as_deref().unwrap_or(BUILT_IN), "vbd", "");
    let special = vec![
        ("type", "phy".to_owned()),
        ("script", script.path()),
        ("params", target.display().to_string()),
    ];
    announce(tools, server, domid, disk, target, special)?;
    let back = nodes::backend_in(server, domid, "vbd", disk.vdev.number);
    tools.wait_connected(server, &back, "xen-blkback")
}

fn in_use(target: &Path, disk: &Disk, user: &str) -> Error {
    Error::new(step(disk), format!("{} is in use by {user}", target.display()))
        .way_out("shut that domain down, use `r` on both sides, or `w!` if the file system can bear it")
}

/// Announces a disk to both sides, unless somebody else has it.
fn announce(
    tools: &Toolstack,
    server: DomId,
    domid: DomId,
    disk: &Disk,
    target: &Path,
    special: Vec<(&str, String)>,
) -> Result<()> {
    let id = disk.vdev.number;
    let back = &nodes::backend_in(server, domid, "vbd", id);
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
        ("backend-id", server.raw().to_string()),
        ("state", "1".to_owned()),
        ("virtual-device", id.to_string()),
        ("device-type", kind.to_owned()),
        ("trusted", "1".to_owned()),
        ("protocol", "x86_64-abi".to_owned()),
    ];
    let mut changes = Changes::default();
    nodes::make(&mut changes, &front, &nodes::shared(domid, server));
    nodes::make(&mut changes, back, &nodes::shared(server, domid));
    nodes::write_all(&mut changes, &front, &frontend);
    nodes::write_all(&mut changes, back, &backend);
    nodes::register(&mut changes, domid, "vbd", id, back, &backend);
    let user = tools
        .store
        .transaction(|tx| {
            // In here, so that of two who come at once only one gets the image.
            if let Some(user) = image::user_of(tx, server, claimant, target, disk)? {
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
