//! What Domain 0's Linux does for domains: loop devices, network devices, and the backends' own devices.

use crate::hotplug;
use crate::nbd::{self, Served};
use crate::netlink::{LinkChange, Links, News};
use crate::patience::Patience;
use crate::qemu::{self, Viewed};
use ferroxen_loopdev as loopdev;
use ferroxen_words::DomId;
use ferroxen_xlconfig::{Channel, Screen};
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// Domain 0's kernel, as far as we ask it for things. Tests have one that can be made to fail.
pub trait Host: Debug + Sync {
    /// Binds an image to a free loop device; gives its path, and the device, which is free again when nobody has it open.
    fn attach_loop(&self, image: &Path, access: loopdev::Access) -> io::Result<(PathBuf, File)>;

    /// Has it stay bound until [`Host::detach_loop`].
    fn keep_loop(&self, device: &File) -> io::Result<()>;

    /// The major and minor number of a device.
    fn device_number(&self, device: &Path) -> io::Result<(u32, u32)>;

    /// Lets go of the image behind a loop device.
    fn detach_loop(&self, device: &Path) -> io::Result<()>;

    /// Has QEMU show an image as a device, for the disk `owner`; gives its path.
    fn attach_nbd(&self, served: Served<'_>, owner: &str) -> io::Result<PathBuf>;

    /// Ends that.
    fn detach_nbd(&self, device: &Path) -> io::Result<()>;

    /// Ends that for whatever disks of a domain it is still done.
    fn end_nbds_of(&self, domid: DomId) -> io::Result<()>;

    /// Whether there is a QEMU that knows Xen.
    fn has_device_model(&self) -> bool;

    /// Starts QEMU for a domain, by what the domain's nodes say; tells where its screen can be seen.
    fn start_device_model(
        &self,
        domid: DomId,
        name: &str,
        screen: Option<&Screen>,
        channels: &[Channel],
        patience: Patience<'_>,
    ) -> io::Result<Option<Viewed>>;

    /// Ends it.
    fn end_device_model(&self, domid: DomId) -> io::Result<()>;

    /// Lets an image (if a size is given) and the loop device over it grow.
    fn grow(&self, image: &Path, size: Option<u64>, device: &Path) -> io::Result<()>;

    /// A network device's number, if there is one of that name.
    fn link(&self, name: &str) -> io::Result<Option<u32>>;

    /// Whether a network device is a bridge.
    fn is_bridge(&self, name: &str) -> bool;

    /// Makes a bridge; no error if it is there.
    fn add_bridge(&self, name: &str) -> io::Result<()>;

    /// Changes a network device.
    fn change_link(&self, index: u32, change: LinkChange<'_>) -> io::Result<()>;

    /// Waits for a network device of that name; its number, unless it does not come in time.
    fn wait_link(&self, name: &str, patience: Patience<'_>) -> io::Result<Option<u32>>;

    /// Waits until the kernel has taken apart its ends (`vbd-3-51712`) of a domain's devices. Says whether it has.
    fn wait_backends_gone(&self, names: &[String], patience: Patience<'_>) -> io::Result<bool>;

    /// Runs a hotplug script to its end, or ends it when patience does.
    fn run_script(&self, script: Command, patience: Patience<'_>) -> io::Result<ExitStatus>;
}

/// The Linux that we run on.
#[derive(Debug)]
pub struct Linux;

const LINKS: &str = "/sys/class/net";
const BACKENDS: &str = "/sys/bus/xen-backend/devices";

impl Host for Linux {
    fn run_script(&self, script: Command, patience: Patience<'_>) -> io::Result<ExitStatus> {
        hotplug::run(script, patience)
    }

    fn attach_loop(&self, image: &Path, access: loopdev::Access) -> io::Result<(PathBuf, File)> {
        loopdev::attach(image, access)
    }

    fn keep_loop(&self, device: &File) -> io::Result<()> {
        loopdev::keep(device)
    }

    fn device_number(&self, device: &Path) -> io::Result<(u32, u32)> {
        let number = std::fs::metadata(device)?.rdev();
        Ok((rustix::fs::major(number), rustix::fs::minor(number)))
    }

    fn detach_loop(&self, device: &Path) -> io::Result<()> {
        loopdev::detach(device)
    }

    fn attach_nbd(&self, served: Served<'_>, owner: &str) -> io::Result<PathBuf> {
        nbd::connect(served, owner)
    }

    fn end_nbds_of(&self, domid: DomId) -> io::Result<()> {
        nbd::end_servers_of(domid)
    }

    fn has_device_model(&self) -> bool {
        qemu::program().is_some()
    }

    fn start_device_model(
        &self,
        domid: DomId,
        name: &str,
        screen: Option<&Screen>,
        channels: &[Channel],
        patience: Patience<'_>,
    ) -> io::Result<Option<Viewed>> {
        qemu::start(domid, name, screen, channels, patience)
    }

    fn end_device_model(&self, domid: DomId) -> io::Result<()> {
        qemu::end(domid)
    }

    fn detach_nbd(&self, device: &Path) -> io::Result<()> {
        nbd::disconnect(device)
    }

    fn grow(&self, image: &Path, size: Option<u64>, device: &Path) -> io::Result<()> {
        if let Some(size) = size {
            std::fs::OpenOptions::new().write(true).open(image)?.set_len(size)?;
        }
        loopdev::resize(device)
    }

    fn link(&self, name: &str) -> io::Result<Option<u32>> {
        match std::fs::read_to_string(Path::new(LINKS).join(name).join("ifindex")) {
            Ok(text) => text
                .trim()
                .parse()
                .map(Some)
                .map_err(|_| io::ErrorKind::InvalidData.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn is_bridge(&self, name: &str) -> bool {
        Path::new(LINKS).join(name).join("bridge").exists()
    }

    fn add_bridge(&self, name: &str) -> io::Result<()> {
        Links::open()?.add_bridge(name)
    }

    fn change_link(&self, index: u32, change: LinkChange<'_>) -> io::Result<()> {
        Links::open()?.change(index, change)
    }

    fn wait_link(&self, name: &str, patience: Patience<'_>) -> io::Result<Option<u32>> {
        // Listening first, so that none that comes after the look is missed.
        let news = News::of_links()?;
        loop {
            if let Some(index) = self.link(name)? {
                return Ok(Some(index));
            }
            if !news.wait(patience)? {
                return Ok(None);
            }
        }
    }

    fn wait_backends_gone(&self, names: &[String], patience: Patience<'_>) -> io::Result<bool> {
        let news = News::of_devices()?;
        loop {
            if !names.iter().any(|name| Path::new(BACKENDS).join(name).exists()) {
                return Ok(true);
            }
            if !news.wait(patience)? {
                return Ok(false);
            }
        }
    }
}
