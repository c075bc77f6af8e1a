//! What a domain is started with: a kernel of Domain 0's, or the one that its own disk says it wants.

use crate::error::{Error, Result};
use crate::image;
use crate::pv::Payload;
use ferroxen_bootloader::{Wish, find};
use ferroxen_xlconfig::{Bootloader, DiskFormat, DomainConfig};
use std::path::{Path, PathBuf};

/// The bootloader that is built in.
const PYGRUB: &str = "pygrub";
/// GRUB for PV domains: where stock xl has it, and where Debian's package grub-xen-bin does.
const GRUBS: [&str; 2] = [
    "/usr/lib/xen-4.17/boot/pvgrub64.bin",
    "/usr/lib/grub-xen/grub-x86_64-xen.bin",
];

/// Reads it; a domain whose kernel came from its disk gets that one's command line.
pub(crate) fn payload(config: &mut DomainConfig) -> Result<Payload> {
    if let Some(bootloader) = config.bootloader.clone() {
        return from_disk(config, &bootloader);
    }
    match &config.kernel {
        Some(kernel) => Payload::read(&known(kernel), config.ramdisk.as_deref()),
        None => Err(
            Error::new(format!("creating \"{}\"", config.name), "no `kernel` is set").way_out(
                "name a kernel's file in Domain 0, such as kernel = \"/boot/vmlinuz\", or take the one in its disk: \
             bootloader = \"pygrub\"",
            ),
        ),
    }
}

/// GRUB by either of its names.
fn known(kernel: &Path) -> PathBuf {
    let is_there = |path: &&&str| Path::new(path).exists();
    let other = GRUBS.iter().find(is_there).filter(|_| kernel == Path::new(GRUBS[0]));
    other.map_or_else(|| kernel.to_owned(), PathBuf::from)
}

fn from_disk(config: &mut DomainConfig, bootloader: &Bootloader) -> Result<Payload> {
    let doing = || format!("looking for a kernel in the disk of \"{}\"", config.name);
    let program = Path::new(&bootloader.program).file_name().unwrap_or_default();
    if program != PYGRUB {
        return Err(
            Error::new(doing(), format!("bootloader \"{}\" is not run", bootloader.program))
                .way_out("use bootloader = \"pygrub\", which is built in, or name a `kernel`"),
        );
    }
    let Some(disk) = config.disks.first() else {
        return Err(Error::new(doing(), "it has no disk").way_out("name its root disk first in `disk`"));
    };
    let target = match (&disk.target, &disk.format, &disk.script) {
        (Some(target), DiskFormat::Raw | DiskFormat::File | DiskFormat::Phy, None) => image::find(target),
        _ => {
            return Err(Error::new(doing(), format!("\"{}\" is not read by us", disk.spec))
                .way_out("put a raw image or a device first in `disk`, or name a `kernel`"));
        }
    };
    let unreadable = |error: ferroxen_bootloader::Error| {
        Error::new(format!("{} ({})", doing(), target.display()), error.to_string())
    };
    let mut wish = Wish::parse(&bootloader.args).map_err(unreadable)?;
    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    wish.kernel = wish.kernel.or_else(|| path(&config.kernel));
    wish.ramdisk = wish.ramdisk.or_else(|| path(&config.ramdisk));
    wish.args = wish.args.or_else(|| config.cmdline.clone());
    let boot = find(&target, &wish).map_err(unreadable)?;
    let payload = Payload::of(
        Path::new(&boot.kernel_path),
        boot.kernel,
        boot.ramdisk.unwrap_or_default(),
    )
    .map_err(|error| error.in_step(doing()))?;
    config.kernel = Some(boot.kernel_path.into());
    config.cmdline = Some(boot.args);
    Ok(payload)
}
