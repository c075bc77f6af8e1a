//! Network cards: a device of Linux' netback on a bridge.
//!
//! The rule for bridges: a card without `bridge` goes to `xenbr0`. If there is no `xenbr0` it is made, without
//! any real card in it, so that guests and Domain 0 can talk; add one (`ip link set eth0 master xenbr0`) to let
//! guests out. Any other bridge that is named has to exist.

use crate::Toolstack;
use crate::error::{Doing, Error, Result};
use crate::netlink::{Links, PORT_MAC};
use crate::nodes;
use ferroxen_words::DomId;
use ferroxen_xlconfig::{Mac, Vif};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// The bridge of cards that name none.
pub const DEFAULT_BRIDGE: &str = "xenbr0";
/// How long the backend may take to make its device.
const PATIENCE: Duration = Duration::from_secs(10);
/// What stands in `script`, which the backend insists on; nothing runs it.
const SCRIPT: &str = "/etc/xen/scripts/vif-bridge";

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

/// Gives a card to a domain.
pub(crate) fn attach(tools: &Toolstack, domid: DomId, uuid: &Uuid, vif: &Vif, index: u32) -> Result<()> {
    let id = vif.devid.unwrap_or(index);
    let what = || format!("attaching network card {id}");
    if vif
        .backend
        .as_deref()
        .is_some_and(|backend| !matches!(backend, "0" | "Domain-0"))
    {
        return Err(
            Error::new(what(), "backends in other domains are not supported yet").way_out("leave `backend` out")
        );
    }
    if vif
        .script
        .as_deref()
        .is_some_and(|script| !script.trim_start_matches("/etc/xen/scripts/").eq("vif-bridge"))
    {
        return Err(
            Error::new(what(), "hotplug scripts other than vif-bridge are not supported yet")
                .way_out("leave `script` out"),
        );
    }
    let bridge = vif.bridge.as_deref().unwrap_or(DEFAULT_BRIDGE);
    let mut links = Links::open().doing(|| "opening a netlink socket".to_owned())?;
    let bridge_index = find_bridge(&mut links, bridge)?;
    let mut news = Links::hearing().doing(|| "opening a netlink socket".to_owned())?;
    write_nodes(tools, domid, uuid, vif, id, bridge)?;
    tools.wait_backend(domid, "vif", id, "xen-netback")?;
    let made = format!("vif{}.{id}", domid.raw());
    let device = news
        .wait(&made, Instant::now() + PATIENCE)
        .doing(|| format!("waiting for {made}"))?;
    let device = device.ok_or_else(|| {
        Error::new(
            what(),
            format!("the backend did not make {made} within {} s", PATIENCE.as_secs()),
        )
    })?;
    let name = match &vif.vifname {
        Some(name) => {
            links
                .rename(device, name)
                .doing(|| format!("renaming {made} to {name}"))?;
            name.clone()
        }
        None => made,
    };
    if let Some(mtu) = vif.mtu {
        links
            .set_mtu(device, mtu)
            .doing(|| format!("setting the MTU of {name}"))?;
    }
    links
        .set_mac(device, PORT_MAC)
        .doing(|| format!("setting the address of {name}"))?;
    links
        .set_master(device, bridge_index)
        .doing(|| format!("adding {name} to {bridge}"))?;
    links.set_up(device).doing(|| format!("bringing {name} up"))?;
    let back = nodes::backend(domid, "vif", id);
    let values = [("vif-name", name), ("hotplug-status", "connected".to_owned())];
    nodes::write_all(&tools.store, &back, &values).doing(|| format!("announcing network card {id}"))
}

fn find_bridge(links: &mut Links, bridge: &str) -> Result<u32> {
    let what = || format!("finding bridge {bridge}");
    if let Some(index) = links.index(bridge).doing(what)? {
        return match std::path::Path::new("/sys/class/net")
            .join(bridge)
            .join("bridge")
            .exists()
        {
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
    links
        .add_bridge(bridge)
        .doing(|| format!("making bridge {bridge}"))
        .map_err(|error| match error.errno() {
            Some(95) => error.way_out("is the module loaded? (`modprobe bridge`)"),
            _ => error,
        })?;
    let index = links.index(bridge).doing(what)?;
    let index = index.ok_or_else(|| Error::new(what(), "it was made, and is gone"))?;
    // Its own, so that it does not change with every card that comes and goes.
    let [a, b, c, d, e, ..] = Uuid::new_v4().into_bytes();
    links
        .set_mac(index, Mac([0x02, a, b, c, d, e]))
        .doing(|| format!("setting the address of {bridge}"))?;
    links.set_up(index).doing(|| format!("bringing {bridge} up"))?;
    Ok(index)
}

fn write_nodes(tools: &Toolstack, domid: DomId, uuid: &Uuid, vif: &Vif, id: u32, bridge: &str) -> Result<()> {
    let (front, back) = (nodes::frontend(domid, "vif", id), nodes::backend(domid, "vif", id));
    let mac = mac_of(vif, uuid, id).to_string();
    let mut backend = vec![
        ("frontend", front.clone()),
        ("frontend-id", domid.raw().to_string()),
        ("online", "1".to_owned()),
        ("state", "1".to_owned()),
        ("script", SCRIPT.to_owned()),
        ("mac", mac.clone()),
        ("bridge", bridge.to_owned()),
        ("handle", id.to_string()),
        ("type", "vif".to_owned()),
    ];
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
        ("backend-id", "0".to_owned()),
        ("state", "1".to_owned()),
        ("handle", id.to_string()),
        ("mac", mac),
        ("trusted", u32::from(vif.trusted.unwrap_or(true)).to_string()),
    ];
    if let Some(mtu) = vif.mtu {
        frontend.push(("mtu", mtu.to_string()));
    }
    tools
        .store
        .transaction(|tx| {
            nodes::make(tx, &front, &nodes::shared(domid, DomId::DOM0))?;
            nodes::make(tx, &back, &nodes::shared(DomId::DOM0, domid))?;
            nodes::write_all(tx, &front, &frontend)?;
            nodes::write_all(tx, &back, &backend)?;
            nodes::register(tx, domid, "vif", id, &back, &backend)
        })
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
