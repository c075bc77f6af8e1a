//! A whole Debian on a file that our `xl image build` has made of packages, configured as the old how-tos do: a lone
//! partition `sda1`, `root` with a flag, `extra`, an address given by hand.

use anyhow::{Context, Result, ensure};

use crate::built;
use crate::dom0::{Dom0, PATIENCE};
use crate::guest::DEBIAN_PATIENCE;
use crate::machine::Parts;

const CONFIG: &str = "name = \"centos.4-4\"
kernel = \"/srv/guests/vmlinuz\"
ramdisk = \"/srv/guests/initrd.img\"
memory = 256
disk = [ 'file:/mnt/guests/built.img,sda1,w' ]
vif = [ '' ]
root = \"/dev/sda1 ro\"
extra = \"4\"
on_reboot = \"restart\"
";
const NAME: &str = "centos.4-4";
const LOGIN: &str = "centos login:";
const PROMPT: &str = "root@centos:~#";
/// What root's password is changed to.
const NEW_PASSWORD: &str = "second-Login2";
/// The number of `sda1`: SCSI's major number 8, first disk, first partition.
const SDA1: &str = "2049";

pub(super) fn survives_reboot(parts: &Parts) -> Result<()> {
    let mut dom0 = Dom0::boot(&parts.with_built()?)?;
    dom0.run("mount /dev/vdb /mnt")?;
    dom0.create("old", CONFIG)?;
    dom0.watch_guest(NAME, LOGIN, DEBIAN_PATIENCE)?;
    let forced = [
        ("", "root"),
        ("Password:", built::PASSWORD),
        ("Current password:", built::PASSWORD),
        ("New password:", NEW_PASSWORD),
        ("Retype new password:", NEW_PASSWORD),
        (PROMPT, ""),
    ];
    dom0.at_console(NAME, &forced, PATIENCE)
        .context("the first login, which has to change the password")?;
    is_configured(&mut dom0)?;
    is_as_it_was_built(&mut dom0)?;
    gets_a_package(&mut dom0)?;
    // Written by the guest's own shutdown, if it has one.
    let unit = "systemd-run -q --unit=bye -p RemainAfterExit=yes -p 'ExecStop=/bin/sh -c \"echo bye >/root/bye\"' true";
    dom0.in_guest(NAME, unit, PATIENCE)?;
    let write = "dd if=/dev/urandom of=/root/data bs=1M count=8 status=none && sha256sum /root/data";
    let before = dom0.in_guest(NAME, write, PATIENCE)?;

    let uuid = uuid(&mut dom0)?;
    let old = dom0.run(&format!("xl domid {NAME}"))?;
    dom0.run(&format!("xl reboot {NAME}"))?;
    let renewed = format!(
        "(for _ in $(seq {}); do new=$(xl domid {NAME} 2>/dev/null); \
         [ -n \"$new\" ] && [ \"$new\" != {old} ] && exit 0; sleep 1; done; exit 1)",
        DEBIAN_PATIENCE.as_secs()
    );
    dom0.run_within(&renewed, DEBIAN_PATIENCE)
        .context("no new domain after the reboot")?;
    dom0.watch_guest(NAME, LOGIN, DEBIAN_PATIENCE)?;
    let again = [("", "root"), ("Password:", NEW_PASSWORD), (PROMPT, "")];
    dom0.at_console(NAME, &again, PATIENCE)?;
    let now = self::uuid(&mut dom0)?;
    ensure!(now == uuid, "the domain was {uuid} before the reboot and is {now}");
    let after = dom0.in_guest(NAME, "cat /root/bye; sha256sum /root/data", PATIENCE)?;
    let (bye, after) = after.split_once('\n').unwrap_or_default();
    ensure!(
        bye.trim() == "bye",
        "the reboot did not run the guest's shutdown: {bye:?}"
    );
    ensure!(
        before == after.trim(),
        "the file was {before} before the reboot and {after} after it"
    );
    dom0.run_within(&format!("xl shutdown -w {NAME}"), DEBIAN_PATIENCE)?;
    dom0.wait_until_gone(NAME, PATIENCE)?;
    dom0.power_off(PATIENCE)
}

/// The guest sees what its configuration says.
fn is_configured(dom0: &mut Dom0) -> Result<()> {
    let options = dom0.in_guest(NAME, "cat /proc/cmdline", PATIENCE)?;
    ensure!(
        options == "root=/dev/sda1 ro 4",
        "the guest's kernel was given {options:?}"
    );
    let said = dom0.in_guest(NAME, "dmesg | grep Hypervisor", PATIENCE)?;
    ensure!(
        said.contains("Hypervisor detected: Xen PV"),
        "the guest's kernel says {said:?}"
    );
    for end in [
        format!("/local/domain/1/device/vbd/{SDA1}"),
        format!("/local/domain/0/backend/vbd/1/{SDA1}"),
    ] {
        let state = dom0.run(&format!("xenstore-read {end}/state"))?;
        ensure!(state == "4", "{end} is in state {state}, not connected");
    }
    Ok(())
}

/// Name, root, address, keys and password are those that `xl image build` was given, and nobody had to do anything.
fn is_as_it_was_built(dom0: &mut Dom0) -> Result<()> {
    let own = dom0.in_guest(
        NAME,
        "hostname; findmnt -no OPTIONS / | cut -d, -f1; stat -c %a /root/.ssh/authorized_keys; \
         systemctl is-active systemd-networkd ssh",
        PATIENCE,
    )?;
    let own: Vec<&str> = own.lines().map(str::trim).collect();
    ensure!(
        own == [built::NAME, "rw", "600", "active", "active"],
        "the built system says {own:?}"
    );
    let address = built::ADDRESS.split('/').next().unwrap_or_default();
    let sshd = dom0.run(&format!("nc {address} 22 </dev/null"))?;
    ensure!(sshd.contains("SSH-2.0-OpenSSH"), "at its port 22 there is {sshd:?}");
    Ok(())
}

/// From a mirror in Domain 0, over a card whose address, route and name server are set by hand.
fn gets_a_package(dom0: &mut Dom0) -> Result<()> {
    dom0.run("busybox httpd -p 8000 -h /mnt/guests")?;
    let by_hand = "systemctl stop systemd-networkd; card=$(ls /sys/class/net | grep -v lo); ip addr flush dev $card && \
                   ip addr add 10.0.2.70/24 dev $card && ip link set $card up && ip route add default via 10.0.2.2 && \
                   echo nameserver 10.0.2.3 >/etc/resolv.conf && ip route show default";
    let route = dom0.in_guest(NAME, by_hand, PATIENCE)?;
    ensure!(
        route.contains("default via 10.0.2.2"),
        "the route set by hand is {route:?}"
    );
    let install = "echo 'deb [trusted=yes] http://10.0.2.15:8000/ ./' >/etc/apt/sources.list && \
                   { apt-get -q update && apt-get -q -y install busybox-static; } >/tmp/said 2>&1 || cat /tmp/said; \
                   busybox echo installed";
    let said = dom0.in_guest(NAME, install, PATIENCE * 3)?;
    ensure!(
        said == "installed",
        "installing a package from Domain 0's mirror: {said}"
    );
    Ok(())
}

fn uuid(dom0: &mut Dom0) -> Result<String> {
    dom0.run(&format!("xl vm-list | awk '$3 == \"{NAME}\" {{ print $1 }}'"))
}
