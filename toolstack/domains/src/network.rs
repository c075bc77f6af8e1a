//! Network cards: a device of Linux' netback on a bridge.
//!
//! The rule for bridges: a card without `bridge` goes to `xenbr0`. If there is no `xenbr0` it is made, without
//! any real card in it, so that guests and Domain 0 can talk; add one (`ip link set eth0 master xenbr0`) to let
//! guests out. Any other bridge that is named has to exist.

use crate::Toolstack;
use crate::error::{Doing, Error, Result};
use crate::host::Host;
use crate::hotplug::{self, Script};
use crate::netlink::{LinkChange, PORT_MAC};
use crate::nodes;
use ferroxen_words::DomId;
use ferroxen_xenstore::{Changes, Store};
use ferroxen_xlconfig::{Mac, Vif};
use std::path::Path;
use std::time::Duration;
use uuid::Uuid;

/// The bridge of cards that name none.
pub const DEFAULT_BRIDGE: &str = "xenbr0";
/// How long the backend may take to make its device.
const PATIENCE: Duration = Duration::from_secs(10);
/// What stands in `script`, which the backend insists on; nothing runs it.
const SCRIPT: &str = "/etc/xen/scripts/vif-bridge";
/// The script that we need not run.
const BUILT_IN: &str = "vif-bridge";
/// While this exists (`network-bridge start antispoof=yes` makes it), the script filters what guests send.
const ANTISPOOF: &str = "/run/xen/antispoof";

/// A card's address: as given, else one of Xen's range that follows from the domain's UUID, so that a domain
/// keeps its addresses over a reboot.
pub fn mac_of(vif: &Vif, uuid: &Uuid, index: u32) -> Mac {
    vif.mac.unwrap_or_else(|| {
        // FNV-1a, which spreads well enough over three bytes.
        let hash = uuid
            .as_bytes()
            .iter()
            .chain(&index.to_le_bytes())
            .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
            });
        let [a, b, c, ..] = (hash ^ hash >> 32).to_le_bytes();
        Mac([0x00, 0x16, 0x3e, a & 0x7f, b, c])
    })
}

/// Refuses what cannot be attached, before anything is made for it.
pub(crate) fn check(tools: &Toolstack, vif: &Vif, index: u32) -> Result<()> {
    let what = || format!("attaching network card {}", vif.devid.unwrap_or(index));
    if tools
        .server(vif.backend.as_deref())
        .map_err(|error| error.in_step(what()))?
        != DomId::DOM0
    {
        // Its bridges are its own affair.
        return Ok(());
    }
    let needs_bridge = by_whom(vif).is_none() && vif.bridge.as_deref().is_some_and(|name| name != DEFAULT_BRIDGE);
    match needs_bridge {
        true => find_bridge(&*tools.host, vif.bridge.as_deref().unwrap_or_default())
            .map(drop)
            .map_err(|error| error.in_step(what())),
        false => Ok(()),
    }
}

/// The script that connects a card, if we do not.
fn by_whom(vif: &Vif) -> Option<&str> {
    let filters = Path::new(ANTISPOOF).exists();
    let script = vif.script.as_deref().unwrap_or(BUILT_IN);
    (script != BUILT_IN || filters).then_some(script)
}

/// Gives a card to a domain.
pub(crate) fn attach(tools: &Toolstack, domid: DomId, uuid: &Uuid, vif: &Vif, index: u32) -> Result<()> {
    check(tools, vif, index)?;
    let id = vif.devid.unwrap_or(index);
    let made = format!("vif{}.{id}", domid.raw());
    let server = tools
        .server(vif.backend.as_deref())
        .map_err(|error| error.in_step(format!("attaching network card {id}")))?;
    match by_whom(vif) {
        _ if server != DomId::DOM0 => by_driver_domain(tools, domid, uuid, vif, id, server),
        Some(name) => by_script(tools, domid, uuid, vif, id, &made, name),
        None => on_bridge(tools, domid, uuid, vif, id, &made),
    }
    .map_err(|error| error.in_step(format!("attaching network card {id}")))
}

/// Leaves the card to another domain, in which `xl devd` runs its script.
fn by_driver_domain(tools: &Toolstack, domid: DomId, uuid: &Uuid, vif: &Vif, id: u32, server: DomId) -> Result<()> {
    let script = Script::new(vif.script.as_deref().unwrap_or(BUILT_IN), "vif", "");
    write_nodes(
        tools,
        domid,
        uuid,
        vif,
        id,
        server,
        vif.bridge.as_deref(),
        &script.path(),
    )?;
    tools.wait_connected(server, &nodes::backend_in(server, domid, "vif", id), "xen-netback")
}

/// Has the administrator's own program connect the card.
fn by_script(tools: &Toolstack, domid: DomId, uuid: &Uuid, vif: &Vif, id: u32, made: &str, name: &str) -> Result<()> {
    let back = nodes::backend(domid, "vif", id);
    let mut script = Script::new(name, "vif", &back);
    script.variables.push(("vif", made.to_owned()));
    script
        .variables
        .extend(vif.gatewaydev.clone().map(|device| ("netdev", device)));
    let usual = (name == BUILT_IN).then_some(DEFAULT_BRIDGE);
    write_nodes(
        tools,
        domid,
        uuid,
        vif,
        id,
        DomId::DOM0,
        vif.bridge.as_deref().or(usual),
        &script.path(),
    )?;
    script
        .note(&tools.store, domid, id)
        .doing(|| "noting the script".to_owned())?;
    wait_device(tools, domid, id, made)?;
    script.connect(&tools.store, &*tools.host, tools.patience(hotplug::PATIENCE))
}

fn on_bridge(tools: &Toolstack, domid: DomId, uuid: &Uuid, vif: &Vif, id: u32, made: &str) -> Result<()> {
    let bridge = vif.bridge.as_deref().unwrap_or(DEFAULT_BRIDGE);
    let bridge_index = find_bridge(&*tools.host, bridge)?;
    write_nodes(tools, domid, uuid, vif, id, DomId::DOM0, Some(bridge), SCRIPT)?;
    let device = wait_device(tools, domid, id, made)?;
    let change = |change: LinkChange<'_>, what: &dyn Fn() -> String| tools.host.change_link(device, change).doing(what);
    let name = vif.vifname.as_deref().unwrap_or(made);
    if name != made {
        change(LinkChange::Name(name), &|| format!("renaming {made} to {name}"))?;
    }
    if let Some(mtu) = vif.mtu {
        change(LinkChange::Mtu(mtu), &|| format!("setting the MTU of {name}"))?;
    }
    change(LinkChange::Address(PORT_MAC), &|| {
        format!("setting the address of {name}")
    })?;
    change(LinkChange::Bridge(bridge_index), &|| {
        format!("adding {name} to {bridge}")
    })?;
    change(LinkChange::Up, &|| format!("bringing {name} up"))?;
    let back = nodes::backend(domid, "vif", id);
    let values = [
        ("vif-name", name.to_owned()),
        ("hotplug-status", "connected".to_owned()),
    ];
    let mut changes = Changes::default();
    nodes::write_all(&mut changes, &back, &values);
    tools
        .store
        .apply(&changes)
        .doing(|| "announcing that it is connected".to_owned())
}

/// Waits for the backend's network device.
fn wait_device(tools: &Toolstack, domid: DomId, id: u32, made: &str) -> Result<u32> {
    tools.wait_backend(domid, "vif", id, "xen-netback")?;
    let doing = || format!("waiting for {made}");
    let device = tools.host.wait_link(made, tools.patience(PATIENCE)).doing(doing)?;
    device.ok_or_else(|| Error::new(doing(), format!("the backend did not make it within {PATIENCE:?}")))
}

fn find_bridge(host: &dyn Host, bridge: &str) -> Result<u32> {
    let what = || format!("finding bridge {bridge}");
    if let Some(index) = host.link(bridge).doing(what)? {
        return match host.is_bridge(bridge) {
            true => Ok(index),
            false => Err(Error::new(
                what(),
                format!("{bridge} is a network device, but no bridge"),
            )),
        };
    }
    if bridge != DEFAULT_BRIDGE {
        return Err(Error::new(what(), "there is no such bridge").way_out(format!(
            "make it (`ip link add {bridge} type bridge && ip link set {bridge} up`) or use {DEFAULT_BRIDGE}"
        )));
    }
    host.add_bridge(bridge)
        .doing(|| format!("making bridge {bridge}"))
        .map_err(|error| match error.errno() {
            Some(95) => error.way_out("is the module loaded? (`modprobe bridge`)"),
            _ => error,
        })?;
    let index = host.link(bridge).doing(what)?;
    let index = index.ok_or_else(|| Error::new(what(), "it was made, and is gone"))?;
    // Its own, so that it does not change with every card that comes and goes.
    let [a, b, c, d, e, ..] = ferroxen_uuids::fresh().into_bytes();
    host.change_link(index, LinkChange::Address(Mac([0x02, a, b, c, d, e])))
        .doing(|| format!("setting the address of {bridge}"))?;
    host.change_link(index, LinkChange::Up)
        .doing(|| format!("bringing {bridge} up"))?;
    Ok(index)
}

#[expect(clippy::too_many_arguments, reason = "all that a card's nodes say")]
fn write_nodes(
    tools: &Toolstack,
    domid: DomId,
    uuid: &Uuid,
    vif: &Vif,
    id: u32,
    server: DomId,
    bridge: Option<&str>,
    script: &str,
) -> Result<()> {
    let front = nodes::frontend(domid, "vif", id);
    let back = nodes::backend_in(server, domid, "vif", id);
    let mac = mac_of(vif, uuid, id).to_string();
    let mut backend = vec![
        ("frontend", front.clone()),
        ("frontend-id", domid.raw().to_string()),
        ("online", "1".to_owned()),
        ("state", "1".to_owned()),
        ("script", script.to_owned()),
        ("mac", mac.clone()),
        ("handle", id.to_string()),
        ("type", "vif".to_owned()),
    ];
    backend.extend(bridge.map(|bridge| ("bridge", bridge.to_owned())));
    if !vif.ip.is_empty() {
        backend.push(("ip", vif.ip.join(" ")));
    }
    if let Some(rate) = vif.rate {
        backend.push(("rate", format!("{},{}", rate.bytes, rate.interval_us)));
    }
    if let Some(mtu) = vif.mtu {
        backend.push(("mtu", mtu.to_string()));
    }
    let mut frontend = vec![
        ("backend", back.clone()),
        ("backend-id", server.raw().to_string()),
        ("state", "1".to_owned()),
        ("handle", id.to_string()),
        ("mac", mac),
        ("trusted", u32::from(vif.trusted.unwrap_or(true)).to_string()),
    ];
    if let Some(mtu) = vif.mtu {
        frontend.push(("mtu", mtu.to_string()));
    }
    let mut changes = Changes::default();
    nodes::make(&mut changes, &front, &nodes::shared(domid, server));
    nodes::make(&mut changes, &back, &nodes::shared(server, domid));
    nodes::write_all(&mut changes, &front, &frontend);
    nodes::write_all(&mut changes, &back, &backend);
    nodes::register(&mut changes, domid, "vif", id, &back, &backend);
    tools
        .store
        .transaction(|tx| tx.apply(&changes))
        .doing(|| format!("announcing network card {id}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_addresses_are_xens_and_stay() {
        let loaded =
            ferroxen_xlconfig::parse(ferroxen_xlconfig::Source::new("a", "vif = ['', '']"), &[]).expect("is right");
        let uuid = Uuid::from_u128(0x1234);
        let macs: Vec<_> = (0..2)
            .map(|index| mac_of(&loaded.config.vifs[0], &uuid, index))
            .collect();
        assert!(macs.iter().all(|mac| mac.0[..3] == [0, 0x16, 0x3e]));
        assert_ne!(macs[0], macs[1]);
        assert_eq!(macs[1], mac_of(&loaded.config.vifs[1], &uuid, 1));
    }
}
