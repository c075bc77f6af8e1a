//! QEMU as the backend of what Linux has none for: folders of the host (9pfs), and a screen with keyboard and pointer (vfb,
//! vkbd). A domain that has any of these has one QEMU of its own.
//!
//! Upstream: docs/misc/9pfs.pandoc, xen/io/fbif.h, xen/io/kbdif.h; the nodes are libxl's.

use crate::backend::NEW;
use crate::device::Device;
use crate::error::{Doing, Error, Result};
use crate::{Toolstack, nodes, qemu};
use ferroxen_words::DomId;
use ferroxen_xenstore::{Changes, Store};
use ferroxen_xlconfig::{DomainConfig, Screen, Share};
use std::time::Duration;

/// The kinds of devices that QEMU serves.
const SHARE: &str = "9pfs";
const SCREEN: &str = "vfb";
const KEYBOARD: &str = "vkbd";
/// How long it may take to look at a device; it does while it starts.
const PATIENCE: Duration = Duration::from_secs(20);

fn is_wanted(config: &DomainConfig) -> bool {
    !config.shares.is_empty() || config.screen.is_some()
}

/// Whether QEMU serves it.
pub(crate) fn serves(device: &Device) -> bool {
    [SHARE, SCREEN, KEYBOARD].contains(&device.kind.as_str())
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
    match is_wanted(config) && !tools.host.has_device_model() {
        false => Ok(()),
        true => Err(Error::new(
            "looking for QEMU, which serves folders and screens",
            "there is none that knows Xen",
        )
        .way_out("install one (Debian: package qemu-system-xen)")),
    }
}

/// Gives a domain its folders and its screen.
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
    // What an earlier domain of that number left.
    changes.rm(&node(domid));
    tools.store.transaction(|tx| tx.apply(&changes)).doing(doing)?;
    let patience = tools.patience(qemu::PATIENCE);
    let screen = config.screen.as_ref();
    let viewed = tools.host.start_device_model(domid, &config.name, screen, patience);
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
    tools.store.rm(&node(domid)).doing(doing)
}

fn announce_share(changes: &mut Changes, domid: DomId, id: u32, share: &Share) {
    let backend = [
        ("path", share.path.display().to_string()),
        ("security_model", "none".to_owned()),
    ];
    announce(changes, domid, SHARE, id, &backend, &[("tag", share.tag.clone())]);
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
