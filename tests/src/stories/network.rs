//! Guests on Domain 0's bridges. The machine's own disk and card are those of real machines: AHCI and e1000.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::dom0::{Dom0, PATIENCE};
use crate::guest::Tiny;
use crate::lan::{Server, until_listened};
use crate::machine::{Devices, Parts};

const TRANSFER: Duration = Duration::from_secs(180);
/// The backends' end of every cable has this address.
const BACKEND_MAC: &str = "fe:ff:ff:ff:ff:ff";

pub(super) fn carries_data(parts: &Parts) -> Result<()> {
    let mut parts = parts.clone();
    parts.devices = Devices::Real;
    let mut dom0 = Dom0::boot(&parts)?;
    reaches_the_lan(&mut dom0)?;
    two_cards(&mut dom0)?;
    arrives_intact(&mut dom0)?;
    keeps_to_its_rate(&mut dom0)?;
    dom0.destroy("two")?;
    let left = dom0.run("ls /sys/class/net")?;
    ensure!(
        !left.contains("vif2."),
        "the guest has gone, its cards are still there: {left}"
    );
    dom0.power_off(PATIENCE)
}

/// `vif = [ '' ]`: a made-up address on the default bridge, and through that bridge to the host of this machine.
fn reaches_the_lan(dom0: &mut Dom0) -> Result<()> {
    let server = Server::start(4 << 20)?;
    dom0.start_tiny(&Tiny::new("lan").card("").option("ip=dhcp"))?;
    let mac = dom0.in_guest("lan", "cat /sys/class/net/eth0/address", PATIENCE)?;
    ensure!(mac.starts_with("00:16:3e:"), "the made-up MAC is {mac}");
    let address = dom0.in_guest("lan", "ip -4 -o addr show dev eth0", PATIENCE)?;
    ensure!(address.contains(" 10.0.2.6"), "DHCP on the LAN gave {address:?}");
    ensure_on_bridge(dom0, "vif1.0", "xenbr0")?;
    for end in ["/local/domain/1/device/vif/0", "/local/domain/0/backend/vif/1/0"] {
        let state = dom0.run(&format!("xenstore-read {end}/state"))?;
        ensure!(state == "4", "{end} is in state {state}, not connected");
    }
    let fetch = format!("wget -q -O - http://10.0.2.2:{}/ | sha256sum", server.port());
    let fetched = dom0.in_guest("lan", &fetch, TRANSFER)?;
    ensure!(
        fetched.starts_with(&server.checksum()),
        "the guest fetched {fetched}, the server gave {}",
        server.checksum()
    );
    dom0.destroy("lan")
}

fn two_cards(dom0: &mut Dom0) -> Result<()> {
    dom0.run("ip link add name xenbr1 type bridge && ip addr add 10.0.9.1/24 dev xenbr1 && ip link set xenbr1 up")?;
    let two = Tiny::new("two").memory(384).option("ip=10.0.2.30");
    dom0.start_tiny(&two.card("bridge=xenbr0,mac=").card("bridge=xenbr1,mac=,rate=1MB/s"))?;
    let domid = dom0.run("xl domid two")?;
    ensure!(domid == "2", "the second guest is domain {domid}");
    ensure_on_bridge(dom0, "vif2.0", "xenbr0")?;
    ensure_on_bridge(dom0, "vif2.1", "xenbr1")?;
    dom0.in_guest(
        "two",
        "ip addr add 10.0.9.2/24 dev eth1 && ip link set eth1 up",
        PATIENCE,
    )?;
    // Each card reaches its own segment, and only that.
    dom0.run("ping -c 2 -W 5 -I xenbr1 10.0.9.2")?;
    let astray = dom0.in_guest(
        "two",
        "ping -c 1 -W 2 -I eth1 10.0.2.2 >/dev/null 2>&1 || echo no",
        PATIENCE,
    )?;
    ensure!(astray == "no", "the second card reaches the first one's segment");
    Ok(())
}

fn ensure_on_bridge(dom0: &mut Dom0, card: &str, bridge: &str) -> Result<()> {
    let link = dom0
        .run(&format!("ip -o link show {card}"))
        .context("no such card in Domain 0")?;
    ensure!(link.contains(BACKEND_MAC), "{card} has another MAC: {link}");
    ensure!(
        link.contains(&format!("master {bridge} ")),
        "{card} is not on {bridge}: {link}"
    );
    Ok(())
}

/// Whoever listens answers with the checksum of what arrived.
fn arrives_intact(dom0: &mut Dom0) -> Result<()> {
    const MAKE: &str = "dd if=/dev/urandom of=/tmp/data bs=1M count=64 2>/dev/null; sha256sum </tmp/data";
    let ping = dom0.run("ping -c 5 -i 0.2 10.0.2.30")?;
    ensure!(ping.contains(" 0% packet loss"), "ping lost packets:\n{ping}");
    dom0.in_guest("two", "ping -c 3 10.0.2.15", PATIENCE)?;

    let sent = dom0.in_guest("two", MAKE, TRANSFER)?;
    let listen = format!(
        "(timeout 180 busybox nc -l -p 5001 -e sha256sum >/dev/null 2>&1 &); {}",
        until_listened(5001)
    );
    dom0.run(&listen)?;
    let arrived = dom0.in_guest("two", "nc 10.0.2.15 5001 </tmp/data", TRANSFER)?;
    ensure!(arrived == sent, "the guest sent {sent} and Domain 0 got {arrived}");

    let sent = dom0.run_within(MAKE, TRANSFER)?;
    let listen = format!(
        "(timeout 180 nc -l -p 5002 -e sha256sum >/dev/null 2>&1 &); {}",
        until_listened(5002)
    );
    dom0.in_guest("two", &listen, PATIENCE)?;
    let arrived = dom0.run_within("busybox nc 10.0.2.30 5002 </tmp/data", TRANSFER)?;
    ensure!(arrived == sent, "Domain 0 sent {sent} and the guest got {arrived}");
    Ok(())
}

/// What a guest sends by a card with a rate takes as long as the rate says; without one this would take a second.
fn keeps_to_its_rate(dom0: &mut Dom0) -> Result<()> {
    let listen = format!(
        "(timeout 180 busybox nc -l -p 5003 -e sha256sum >/dev/null 2>&1 &); {}",
        until_listened(5003)
    );
    dom0.run(&listen)?;
    let send = "now() { cut -d. -f1 /proc/uptime; }; before=$(now); \
                dd if=/tmp/data bs=64k count=92 2>/dev/null | nc 10.0.9.1 5003 >/dev/null; echo $(($(now) - before))";
    let seconds: u32 = dom0.in_guest("two", send, TRANSFER)?.parse()?;
    ensure!(seconds >= 5, "6 MB took {seconds} s by a card with 1 MB/s");
    Ok(())
}
