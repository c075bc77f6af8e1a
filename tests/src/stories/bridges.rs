//! The how-tos' network: `network-bridge` on two cards by their own wrapper, then a guest behind a route, one behind
//! Domain 0's address, and one that lies about its own.

use anyhow::{Result, ensure};

use crate::dom0::{Dom0, PATIENCE};
use crate::guest::Tiny;
use crate::lan::Server;
use crate::machine::{Devices, Parts};

const SCRIPTS: &str = "/etc/xen/scripts";
/// As the how-to prints it.
const WRAPPER: [&str; 4] = [
    "#!/bin/sh",
    "dir=$(dirname \"$0\")",
    "\"$dir/network-bridge\" \"$@\" vifnum=0",
    "\"$dir/network-bridge\" \"$@\" vifnum=1",
];
/// The first card's address on its LAN; the host is 10.0.2.2.
const ADDRESS: &str = "10.0.2.15";

pub(super) fn as_in_the_how_tos(parts: &Parts) -> Result<()> {
    let mut parts = parts.clone();
    parts.devices = Devices::Both;
    let mut dom0 = Dom0::boot(&parts)?;
    // As a Debian that has not heard of Xen would have its cards.
    dom0.run(&format!(
        "ip link del xenbr0; ip addr add {ADDRESS}/24 brd + dev eth0; ip link set eth0 up; \
         ip route add default via 10.0.2.2; ip addr add 10.0.3.15/24 dev eth1; ip link set eth1 up"
    ))?;
    two_bridges_come(&mut dom0)?;
    by_route(&mut dom0)?;
    by_translation(&mut dom0)?;
    liars_are_not_heard(&mut dom0)?;
    two_bridges_go(&mut dom0)?;
    dom0.power_off(PATIENCE)
}

fn two_bridges_come(dom0: &mut Dom0) -> Result<()> {
    let wrapper = WRAPPER.map(|line| format!("echo '{line}'")).join("; ");
    let path = format!("{SCRIPTS}/network-bridge-multi");
    dom0.run(&format!("{{ {wrapper}; }} >{path}; chmod 755 {path}"))?;
    dom0.run("echo \"(network-script 'network-bridge-multi')\" >/etc/xen/xen-config.sxp")?;
    // A connection from before goes on after.
    let server = Server::start(2 << 20)?;
    let get = format!(
        "wget -q -O - http://10.0.2.2:{}/ | sha256sum >/tmp/sum & xl network-script start; wait",
        server.port()
    );
    dom0.run(&get)?;
    let sum = dom0.run("cat /tmp/sum")?;
    ensure!(
        sum.starts_with(&server.checksum()),
        "what was fetched meanwhile has the sum {sum}"
    );
    let links = dom0.run("ip -br link; ip -br -4 addr; ip route")?;
    for line in ["peth0", "peth1", "xenbr0", "xenbr1"] {
        ensure!(links.contains(line), "there is no {line}:\n{links}");
    }
    ensure!(
        links.contains("default via 10.0.2.2 dev xenbr0") && !links.contains("\neth0"),
        "the routes did not move to xenbr0:\n{links}"
    );
    let status = dom0.run(&format!("{SCRIPTS}/network-bridge status | tr '\\t' ' '"))?;
    ensure!(
        status.contains("bridge name bridge id") && status.contains("xenbr1") && status.contains("peth1"),
        "the status is:\n{status}"
    );
    // Domain 0's own card, by its name of those days.
    let own = dom0.run("ip -br -4 addr show vif0.0; ip -br -4 addr show vif0.1")?;
    ensure!(
        own.contains(ADDRESS) && own.contains("10.0.3.15"),
        "vif0.0 and vif0.1 are {own}"
    );
    // Twice is once.
    dom0.run("xl network-script start")?;
    let port = dom0.run("ip -o link show peth0")?;
    ensure!(
        port.contains("fe:ff:ff:ff:ff:ff") && port.contains("master xenbr0"),
        "peth0 is {port}"
    );
    Ok(())
}

/// A guest in a network of its own, to which Domain 0 routes.
fn by_route(dom0: &mut Dom0) -> Result<()> {
    let routed = Tiny::new("routed")
        .card("ip=10.9.0.2,script=vif-route")
        .option("ip=10.9.0.2");
    dom0.start_tiny(&routed)?;
    let route = dom0.run("ip route get 10.9.0.2")?;
    ensure!(route.contains("dev vif1.0"), "the route to the guest is {route}");
    dom0.in_guest(
        "routed",
        &format!(
            "ip route replace {ADDRESS}/32 dev eth0; ip route replace default via {ADDRESS}; ping -c 2 -W 5 {ADDRESS}"
        ),
        PATIENCE,
    )?;
    dom0.run("ping -c 2 -W 5 10.9.0.2")?;
    dom0.destroy("routed")?;
    let left = dom0.run("ip route")?;
    ensure!(
        !left.contains("10.9.0.2"),
        "the guest has gone, its route has not:\n{left}"
    );
    Ok(())
}

/// A guest behind Domain 0's address.
fn by_translation(dom0: &mut Dom0) -> Result<()> {
    let server = Server::start(1 << 20)?;
    dom0.start_tiny(
        &Tiny::new("nat")
            .card("ip=10.8.0.2,script=vif-nat")
            .option("ip=10.8.0.2"),
    )?;
    let fetch = format!(
        "ip route replace 10.8.0.129/32 dev eth0; ip route replace default via 10.8.0.129; \
         wget -q -O - http://10.0.2.2:{}/ | sha256sum",
        server.port()
    );
    let fetched = dom0.in_guest("nat", &fetch, PATIENCE)?;
    ensure!(
        fetched.starts_with(&server.checksum()),
        "the guest fetched {fetched} through NAT"
    );
    let rules = dom0.run("nft list table ip xen-nat")?;
    ensure!(
        rules.contains("masquerade") && !rules.contains("packets 0 "),
        "nothing was translated:\n{rules}"
    );
    dom0.destroy("nat")?;
    let rules = dom0.run("nft list table ip xen-nat")?;
    ensure!(
        !rules.contains("10.8.0.2"),
        "the guest has gone, its rule has not:\n{rules}"
    );
    Ok(())
}

/// With antispoof a guest's own address goes through, and no other.
fn liars_are_not_heard(dom0: &mut Dom0) -> Result<()> {
    dom0.run(&format!("{SCRIPTS}/network-bridge start vifnum=0 antispoof=yes"))?;
    dom0.start_tiny(
        &Tiny::new("liar")
            .card("bridge=xenbr0,ip=10.0.2.40")
            .option("ip=10.0.2.40"),
    )?;
    dom0.in_guest("liar", &format!("ping -c 2 -W 5 {ADDRESS}"), PATIENCE)?;
    let lie = format!(
        "ip addr add 10.0.2.41/24 dev eth0; ping -c 2 -W 2 -I 10.0.2.41 {ADDRESS} >/dev/null 2>&1 || echo unheard"
    );
    let heard = dom0.in_guest("liar", &lie, PATIENCE)?;
    ensure!(heard == "unheard", "a forged IP address was heard");
    let lie = format!(
        "ip link set eth0 down; ip link set eth0 address 00:16:3e:11:22:33; ip link set eth0 up; \
         ping -c 2 -W 2 -I 10.0.2.40 {ADDRESS} >/dev/null 2>&1 || echo unheard"
    );
    let heard = dom0.in_guest("liar", &lie, PATIENCE)?;
    ensure!(heard == "unheard", "a forged MAC address was heard");
    dom0.destroy("liar")?;
    let rules = dom0.run("nft list table bridge xen-antispoof")?;
    ensure!(
        !rules.contains("vif"),
        "the guest has gone, its rules have not:\n{rules}"
    );
    Ok(())
}

fn two_bridges_go(dom0: &mut Dom0) -> Result<()> {
    dom0.run("xl network-script stop")?;
    let links = dom0.run("ip -br link; ip -br -4 addr; ip route; ip link show vif0.0 2>/dev/null || true")?;
    ensure!(
        !links.contains("vif0.0")
            && !links.contains("peth")
            && !links.contains("xenbr")
            && links.contains("default via 10.0.2.2 dev eth0"),
        "the cards are not as they were:\n{links}"
    );
    Ok(())
}
