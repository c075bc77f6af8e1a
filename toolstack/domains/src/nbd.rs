//! Images that Linux cannot read by itself (qcow2, vhd, …): QEMU's nbd server shows one as a block device.
//!
//! The server, `qemu-nbd`, goes into the background once its device can be used. It ends, and has written everything,
//! when the device is let go. The kernel's `/sys/block/nbdN/pid` says which devices have a server.
//!
//! It also serves disks that may be used only so much, whatever their format: its filter for that
//! (`throttle`) makes requests wait.
//!
//! A server outlives us, even if we are killed before we could note its device anywhere: whoever ends the domain, or
//! attaches that disk again, finds it by the disk that it carries in its environment.

use crate::patience::Patience;
use crate::servers::{self, LAST_WORDS};
use ferroxen_words::DomId;
use ferroxen_xlconfig::DiskLimits;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::json;
use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where all devices are named, used or not.
const BLOCK: &str = "/sys/block";
/// What devices' names begin with.
pub(crate) const PREFIX: &str = "/dev/nbd";
/// What a server has in its environment: the domain and the number of the disk.
const OWNER: &str = "XEN_DISK";

/// The name of a disk, by which its server can be found.
pub(crate) fn owner(domid: DomId, id: u32) -> String {
    format!("{}/{id}", domid.raw())
}

/// What a server is to show.
#[derive(Clone, Copy, Debug)]
pub struct Served<'a> {
    /// The image, or the device that it lies on.
    pub image: &'a Path,
    /// As in xl-disk-configuration(5).
    pub format: &'a str,
    /// Whether the device is to refuse to be written.
    pub read_only: bool,
    /// How much of it may be used.
    pub limits: DiskLimits,
}

impl Served<'_> {
    /// What tells `qemu-nbd` so.
    fn arguments(&self) -> io::Result<Vec<OsString>> {
        let mut arguments: Vec<OsString> = Vec::new();
        if self.read_only {
            arguments.push("--read-only".into());
        }
        if !self.limits.any() {
            arguments.extend(["--format".into(), name_of(self.format).into(), self.image.into()]);
            return Ok(arguments);
        }
        let path = self
            .image
            .to_str()
            .ok_or_else(|| io::Error::other("the name of a disk's image has to be UTF-8 if the disk has limits"))?;
        let is_device = std::fs::metadata(self.image)?.file_type().is_block_device();
        let file = json!({ "driver": if is_device { "host_device" } else { "file" }, "filename": path });
        let image = json!({ "driver": name_of(self.format), "file": file });
        let filter = json!({ "driver": "throttle", "throttle-group": "limits", "file": image });
        let mut limits = serde_json::Map::new();
        let DiskLimits { bytes, requests } = self.limits;
        for (name, limit) in [("bps-total", bytes), ("iops-total", requests)] {
            limits.extend(limit.map(|limit| (name.to_owned(), limit.get().into())));
        }
        let group = json!({ "qom-type": "throttle-group", "id": "limits", "limits": limits });
        arguments.extend(["--object".into(), group.to_string().into()]);
        arguments.push(format!("json:{filter}").into());
        Ok(arguments)
    }
}

/// Shows an image as a block device, for a disk that has no other; gives the device's path.
pub(crate) fn connect(served: Served<'_>, owner: &str) -> io::Result<PathBuf> {
    let arguments = served.arguments()?;
    let devices = devices()?;
    end_servers(|other| other == owner)?;
    if devices.is_empty() {
        return Err(io::Error::other("Linux has no nbd devices (`modprobe nbd` makes some)"));
    }
    for device in devices {
        if server_of(&device).is_some() {
            continue;
        }
        let mut command = qemu_nbd();
        command.env(OWNER, owner).arg("--connect").arg(&device);
        match run(command.args(&arguments)) {
            Ok(()) => return Ok(device),
            // Somebody else has taken the device in between: the next one.
            Err(_) if server_of(&device).is_some() => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other(
        "all nbd devices are in use (`modprobe nbd nbds_max=N` has more)",
    ))
}

/// Ends the server behind a device, and waits until it has written everything.
pub(crate) fn disconnect(device: &Path) -> io::Result<()> {
    let Some(pid) = server_of(device) else {
        // What was wanted.
        return Ok(());
    };
    // Held before it is asked to go, so that the number cannot be somebody else's by then.
    let server = pidfd_open(pid, PidfdFlags::empty())?;
    run(qemu_nbd().arg("--disconnect").arg(device))?;
    match Patience::stubborn(LAST_WORDS).ready(&server)? {
        true => Ok(()),
        false => Err(ErrorKind::TimedOut.into()),
    }
}

/// Ends the servers of a domain's disks that are left.
pub(crate) fn end_servers_of(domid: DomId) -> io::Result<()> {
    let of_domain = owner_prefix(domid);
    end_servers(|owner| owner.starts_with(&of_domain))
}

fn owner_prefix(domid: DomId) -> String {
    format!("{}/", domid.raw())
}

/// Ends the servers whose owners are meant, also those that have not connected their devices yet.
fn end_servers(is_meant: impl Fn(&str) -> bool) -> io::Result<()> {
    // Without the module there is none.
    match Path::new(BLOCK).join("nbd0").exists() {
        true => servers::end(OWNER, is_meant),
        false => Ok(()),
    }
}

/// `/dev/nbd0` and so on, in the order of their numbers.
fn devices() -> io::Result<Vec<PathBuf>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(BLOCK)? {
        let name = entry?.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix("nbd")?.parse::<u32>().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    let path = |number| PathBuf::from(format!("{PREFIX}{number}"));
    Ok(numbers.into_iter().map(path).collect())
}

/// The process that serves a device.
fn server_of(device: &Path) -> Option<Pid> {
    let thread = fs::read_to_string(Path::new(BLOCK).join(device.file_name()?).join("pid")).ok()?;
    // The kernel names the thread that waits in it; a process goes by its first one.
    let status = fs::read_to_string(Path::new("/proc").join(thread.trim()).join("status")).ok()?;
    process_in(&status)
}

/// Reads `Tgid:` of a thread's `status`.
fn process_in(status: &str) -> Option<Pid> {
    let process = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
    Pid::from_raw(process.trim().parse().ok()?)
}

/// QEMU's word for a format.
fn name_of(format: &str) -> &str {
    if format == "vhd" { "vpc" } else { format }
}

fn qemu_nbd() -> Command {
    let mut command = Command::new("qemu-nbd");
    command.env("LC_ALL", "C").stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> io::Result<()> {
    let output = command.output().map_err(|error| match error.kind() {
        ErrorKind::NotFound => io::Error::other("there is no `qemu-nbd` (Debian: package qemu-utils)"),
        _ => error,
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().last().unwrap_or("it failed without a word");
    Err(io::Error::other(last.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZero;

    #[test]
    fn a_server_is_found_by_its_domain() {
        let domid = |number| DomId::new(number).expect("is small");
        assert!(owner(domid(5), 51712).starts_with(&owner_prefix(domid(5))));
        assert!(!owner(domid(51), 51712).starts_with(&owner_prefix(domid(5))));
    }

    #[test]
    fn limits_stand_before_the_image() {
        let limits = DiskLimits {
            bytes: NonZero::new(1_000_000),
            requests: None,
        };
        let image = Path::new("/dev/null");
        let plain = Served {
            image,
            format: "vhd",
            read_only: true,
            limits: DiskLimits::default(),
        };
        let arguments = |served: Served<'_>| served.arguments().expect("is there");
        assert_eq!(arguments(plain), ["--read-only", "--format", "vpc", "/dev/null"]);
        assert_eq!(
            arguments(Served {
                read_only: false,
                limits,
                ..plain
            }),
            [
                "--object",
                r#"{"qom-type":"throttle-group","id":"limits","limits":{"bps-total":1000000}}"#,
                r#"json:{"driver":"throttle","throttle-group":"limits","file":{"driver":"vpc","file":{"driver":"file","filename":"/dev/null"}}}"#
            ]
        );
    }

    #[test]
    fn a_thread_names_its_process() {
        let status = "Name:\tqemu-nbd\nUmask:\t0022\nTgid:\t321\nPid:\t322\n";
        assert_eq!(process_in(status).map(Pid::as_raw_nonzero).map(i32::from), Some(321));
        assert_eq!(process_in("Name:\tqemu-nbd\n"), None);
    }
}
