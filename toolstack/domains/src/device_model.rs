//! QEMU as the backend of what Linux has none for: folders of the host (9pfs), a screen with keyboard and pointer (vfb,
//! vkbd), and consoles beyond the first, which are channels to programs of the host's. A domain that has any of these has
//! one QEMU of its own.
//!
//! Upstream: docs/misc/9pfs.pandoc, docs/misc/channel.txt, xen/io/fbif.h, xen/io/kbdif.h, xen/io/console.h; the nodes are
//! libxl's.

use crate::backend::NEW;
use crate::device::Device;
use crate::error::{Doing, Error, Result};
use crate::{Toolstack, nodes, qemu};
use ferroxen_words::DomId;
use ferroxen_xenstore::{Changes, Store};
use ferroxen_xlconfig::{Channel, Connection, DomainConfig, Screen, Share};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::Duration;

/// The kinds of devices that QEMU serves.
const SHARE: &str = "9pfs";
const SCREEN: &str = "vfb";
const KEYBOARD: &str = "vkbd";
const CONSOLE: &str = "console";
/// The first console is xenconsoled's.
const FIRST_CONSOLE: &str = "0";
/// All sockets with names, and whether somebody listens there.
const SOCKETS: &str = "/proc/net/unix";
/// `__SO_ACCEPTCON` among their flags.
const LISTENS: u32 = 1 << 16;
/// Of a console's bytes.
const PROTOCOL: &str = "vt100";
/// How long it may take to look at a device; it does while it starts.
const PATIENCE: Duration = Duration::from_secs(20);

fn is_wanted(config: &DomainConfig) -> bool {
    !config.shares.is_empty() || config.screen.is_some() || !config.channels.is_empty()
}

/// Whether QEMU serves it.
pub(crate) fn serves(device: &Device) -> bool {
    [SHARE, SCREEN, KEYBOARD].contains(&device.kind.as_str()) || is_channel(device)
}

fn is_channel(device: &Device) -> bool {
    device.kind == CONSOLE && device.id != FIRST_CONSOLE
}

/// Where QEMU says how it is.
pub(crate) fn node(domid: DomId) -> String {
    format!("{}/device-model/{}", nodes::domain(DomId::DOM0), domid.raw())
}

/// Refuses what cannot be served, before anything is made for it.
pub(crate) fn check(tools: &Toolstack, config: &DomainConfig) -> Result<()> {
    for share in &config.shares {
        let doing = || format!("sharing {} as \"{}\"", share.path.display(), share.tag);
        if !std::fs::metadata(&share.path).doing(doing)?.is_dir() {
            return Err(Error::new(doing(), "it is no folder"));
        }
    }
    for channel in &config.channels {
        check_channel(config, channel)?;
    }
    match is_wanted(config) && !tools.host.has_device_model() {
        false => Ok(()),
        true => Err(Error::new(
            "looking for QEMU, which serves folders, screens and channels",
            "there is none that knows Xen",
        )
        .way_out("install one (Debian: package qemu-system-xen)")),
    }
}

fn check_channel(config: &DomainConfig, channel: &Channel) -> Result<()> {
    let doing = || format!("making the channel \"{}\"", channel.name);
    if config.suspends_as_with_xend {
        // It would own the nodes that tell QEMU where to write.
        let why = "with `xend_suspend_evtchn_compat` the guest could lead it to any file of the host's";
        return Err(Error::new(doing(), why));
    }
    let Connection::Socket(path) = &channel.connection else {
        return Ok(());
    };
    let folder = path.parent().unwrap_or(Path::new("/"));
    if !folder.is_dir() {
        return Err(Error::new(doing(), format!("there is no folder {}", folder.display())));
    }
    // QEMU puts its socket in the place of whatever is there.
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).doing(doing),
        Ok(meta) if !meta.file_type().is_socket() => {
            let why = format!("{} is there already, and is no socket", path.display());
            Err(Error::new(doing(), why).way_out("choose another `path`"))
        }
        Ok(_) if is_listened_to(&fs::read_to_string(SOCKETS).doing(doing)?, path) => {
            let why = format!("somebody listens at {}", path.display());
            Err(Error::new(doing(), why).way_out("choose another `path`, or end that one"))
        }
        Ok(_) => Ok(()),
    }
}

/// By the kernel's table (proc(5)): asking at the socket itself would take the place of whoever is to come.
fn is_listened_to(table: &str, path: &Path) -> bool {
    let listens = |line: &str| {
        let mut fields = line.splitn(7, ' ');
        let flags = fields.nth(3).and_then(|flags| u32::from_str_radix(flags, 16).ok());
        // Behind the number of its inode, which is padded.
        let place = fields
            .nth(2)
            .map(|rest| rest.trim_start_matches(|c: char| c == ' ' || c.is_ascii_digit()));
        flags.is_some_and(|flags| flags & LISTENS != 0) && place.map(Path::new) == Some(path)
    };
    table.lines().any(listens)
}

/// Gives a domain its folders, its screen and its channels.
pub(crate) fn start(tools: &Toolstack, domid: DomId, config: &DomainConfig) -> Result<()> {
    if !is_wanted(config) {
        return Ok(());
    }
    let doing = || "starting QEMU for the domain".to_owned();
    let mut changes = Changes::default();
    let mut devices = Vec::new();
    for (id, share) in (0..).zip(&config.shares) {
        announce_share(&mut changes, domid, id, share);
        devices.push((SHARE, id));
    }
    if let Some(screen) = &config.screen {
        announce_screen(&mut changes, domid, screen);
        devices.extend([(SCREEN, 0), (KEYBOARD, 0)]);
    }
    for (id, channel) in (1..).zip(&config.channels) {
        announce_channel(&mut changes, domid, id, channel);
        devices.push((CONSOLE, id));
    }
    // What an earlier domain of that number left.
    changes.rm(&node(domid));
    tools.store.transaction(|tx| tx.apply(&changes)).doing(doing)?;
    let patience = tools.patience(qemu::PATIENCE);
    let screen = config.screen.as_ref();
    let viewed = tools
        .host
        .start_device_model(domid, &config.name, screen, &config.channels, patience);
    if let Some(viewed) = viewed.doing(doing)? {
        let console = format!("{}/console", nodes::domain(domid));
        let values = [("vnc-listen", viewed.listen), ("vnc-port", viewed.port.to_string())];
        let mut changes = Changes::default();
        nodes::write_all(&mut changes, &console, &values);
        tools.store.apply(&changes).doing(doing)?;
    }
    for (kind, id) in devices {
        let doing = || format!("waiting for QEMU to serve {kind} {id}");
        if !tools.wait_seen(&nodes::backend(domid, kind, id), tools.patience(PATIENCE), doing)? {
            return Err(Error::new(doing(), format!("it did not within {PATIENCE:?}")));
        }
    }
    Ok(())
}

/// Ends a domain's QEMU, if its devices say that it has one. Before they go: they are what says it.
pub(crate) fn end(tools: &Toolstack, domid: DomId, devices: &[Device]) -> Result<()> {
    if !devices.iter().any(serves) {
        return Ok(());
    }
    let doing = || "ending the domain's QEMU".to_owned();
    tools.host.end_device_model(domid).doing(doing)?;
    for channel in devices.iter().filter(|device| is_channel(device)) {
        let path = tools.store.read_opt(&format!("{}/path", channel.back)).doing(doing)?;
        path.map_or(Ok(()), |path| clear_away(Path::new(&path))).doing(doing)?;
    }
    tools.store.rm(&node(domid)).doing(doing)
}

/// A QEMU that was killed leaves its socket; one that ends takes it along.
fn clear_away(path: &Path) -> std::io::Result<()> {
    let is_left = fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    match is_left && !is_listened_to(&fs::read_to_string(SOCKETS)?, path) {
        true => fs::remove_file(path),
        false => Ok(()),
    }
}

fn announce_share(changes: &mut Changes, domid: DomId, id: u32, share: &Share) {
    let backend = [
        ("path", share.path.display().to_string()),
        ("security_model", "none".to_owned()),
    ];
    announce(changes, domid, SHARE, id, &backend, &[("tag", share.tag.clone())]);
}

/// What tells QEMU where to write is the guest's to read only.
fn announce_channel(changes: &mut Changes, domid: DomId, id: u32, channel: &Channel) {
    let (connection, output, path) = match &channel.connection {
        Connection::Pty => ("pty", "pty".to_owned(), None),
        Connection::Socket(path) => ("socket", format!("chardev:{}", qemu::line(id)), Some(path)),
    };
    let mut backend = vec![
        ("protocol", PROTOCOL.to_owned()),
        ("name", channel.name.clone()),
        ("connection", connection.to_owned()),
    ];
    backend.extend(path.map(|path| ("path", path.display().to_string())));
    announce(
        changes,
        domid,
        CONSOLE,
        id,
        &backend,
        &[("protocol", PROTOCOL.to_owned())],
    );
    let front = nodes::frontend(domid, CONSOLE, id);
    for (name, value) in [
        ("name", channel.name.as_str()),
        ("limit", nodes::CONSOLE_LIMIT),
        ("type", "ioemu"),
        ("output", &output),
        ("tty", ""),
    ] {
        let node = format!("{front}/{name}");
        changes.write(&node, value);
        changes.set_permissions(&node, &nodes::readable(domid));
    }
}

fn announce_screen(changes: &mut Changes, domid: DomId, screen: &Screen) {
    let flag = |truth: bool| u32::from(truth).to_string();
    let mut backend = vec![
        ("vnc", flag(screen.has_vnc())),
        ("vnclisten", screen.address().to_string()),
        ("vncdisplay", screen.number().to_string()),
        ("vncunused", flag(screen.takes_any())),
        ("sdl", "0".to_owned()),
        ("opengl", "0".to_owned()),
    ];
    backend.extend(screen.keymap.clone().map(|keymap| ("keymap", keymap)));
    announce(changes, domid, SCREEN, 0, &backend, &[]);
    announce(changes, domid, KEYBOARD, 0, &[], &[]);
}

/// Announces a device to both sides.
fn announce(
    changes: &mut Changes,
    domid: DomId,
    kind: &str,
    id: u32,
    of_backend: &[(&str, String)],
    of_frontend: &[(&str, String)],
) {
    let (front, back) = (nodes::frontend(domid, kind, id), nodes::backend(domid, kind, id));
    let frontend = [
        ("backend", back.clone()),
        ("backend-id", "0".to_owned()),
        ("state", NEW.to_owned()),
    ];
    let mut backend = vec![
        ("frontend", front.clone()),
        ("frontend-id", domid.raw().to_string()),
        ("online", "1".to_owned()),
        ("state", NEW.to_owned()),
    ];
    backend.extend_from_slice(of_backend);
    nodes::make(changes, &front, &nodes::shared(domid, DomId::DOM0));
    nodes::make(changes, &back, &nodes::shared(DomId::DOM0, domid));
    nodes::write_all(changes, &front, &frontend);
    nodes::write_all(changes, &front, of_frontend);
    nodes::write_all(changes, &back, &backend);
    nodes::register(changes, domid, kind, id, &back, &backend);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_is_told_from_who_is_connected() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
                     ffff9a: 00000002 00000000 00010000 0001 01 17063 /run/agent.sock\n\
                     ffff9b: 00000003 00000000 00000000 0001 03   823 /run/other.sock\n\
                     ffff9c: 00000003 00000000 00000000 0001 03 17999\n\
                     ffff9d: 00000002 00000000 00010000 0001 01     7 /run/with blank 7\n";
        let is = |path: &str| is_listened_to(table, Path::new(path));
        assert!(is("/run/agent.sock") && is("/run/with blank 7"));
        assert!(!is("/run/other.sock") && !is("/run/agent") && !is(""));
    }
}
