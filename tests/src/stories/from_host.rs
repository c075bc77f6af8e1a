//! A guest that is a copy of Domain 0: a Debian with systemd and with our packages, which in a guest have nothing to do.

use anyhow::{Result, ensure};

use crate::dom0::{Dom0, PATIENCE};
use crate::guest::DEBIAN_PATIENCE;
use crate::machine::Parts;

const NAME: &str = "copy";
/// What vdc is, in MiB: the image, and the files before they are in it.
const IMAGES_MIB: u64 = 3072;

pub(super) fn is_another_machine(parts: &Parts) -> Result<()> {
    let mut dom0 = Dom0::boot(&parts.with_debian_dom0(&[IMAGES_MIB])?)?;
    // What the copy is to have, and what it is not to have.
    dom0.run(
        "dmesg -n 1; echo of the host >/root/word; fallocate -l 16M /swapfile && chmod 600 /swapfile && \
         mkswap -q /swapfile && swapon /swapfile && echo '/swapfile none swap sw 0 0' >>/etc/fstab && \
         mkfs.ext4 -q /dev/vdc && mkdir /images && mount /dev/vdc /images",
    )?;
    let said = dom0.run_within(
        &format!("xl image from-host /images/host.img --size 1500 --hostname {NAME}"),
        DEBIAN_PATIENCE * 4,
    )?;
    ensure!(
        said.contains("it needs a `kernel` of the host's"),
        "there is no kernel in Domain 0, and of its copy is said:\n{said}"
    );
    let config = format!(
        "name = \"{NAME}\"\nkernel = \"/srv/guests/vmlinuz\"\nramdisk = \"/srv/guests/initrd.img\"\nmemory = 256\n\
         root = \"/dev/xvda1 ro\"\nextra = \"console=hvc0\"\ndisk = [ 'file:/images/host.img,xvda1,w' ]\nvif = [ '' ]\n"
    );
    dom0.create(NAME, &config)?;
    dom0.watch_guest(NAME, &format!("root@{NAME}:~#"), DEBIAN_PATIENCE)?;
    is_well(&mut dom0)?;
    is_not_the_host(&mut dom0)?;
    dom0.run_within(&format!("xl shutdown -w {NAME}"), DEBIAN_PATIENCE)?;
    dom0.wait_until_gone(NAME, PATIENCE)?;
    dom0.power_off(PATIENCE)
}

/// All its units run, but for those that are of Domain 0 only.
fn is_well(dom0: &mut Dom0) -> Result<()> {
    let settled = "systemctl is-system-running --wait || { systemctl --failed --no-legend --plain; \
                   journalctl -b -p warning --no-pager | tail -n 30; }";
    let state = dom0.in_guest(NAME, settled, DEBIAN_PATIENCE)?;
    ensure!(state == "running", "systemd in the copy says:\n{state}");
    let units = "systemctl is-active dbus xenstored xenconsoled xen-network xendomains xendriverdomain | xargs";
    let units = dom0.in_guest(NAME, units, PATIENCE)?;
    ensure!(
        units == "active inactive inactive inactive inactive inactive",
        "the units are {units}"
    );
    Ok(())
}

fn is_not_the_host(dom0: &mut Dom0) -> Result<()> {
    let word = dom0.in_guest(
        NAME,
        "cat /root/word; findmnt -no SOURCE,OPTIONS / | cut -d, -f1",
        PATIENCE,
    )?;
    let lines: Vec<String> = word
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    ensure!(
        lines == ["of the host", "/dev/xvda1 rw"],
        "the copy has the files and the root {lines:?}"
    );
    let addresses = dom0.in_guest(
        NAME,
        "ip -4 -o addr show | awk '{ print $4 }' | xargs; ip -br link",
        PATIENCE,
    )?;
    ensure!(
        addresses.contains("10.0.2.6") && !addresses.contains("10.0.2.15") && !addresses.contains("xenbr0"),
        "the copy has asked nobody for an address, or has the host's:\n{addresses}"
    );
    let swaps = dom0.in_guest(NAME, "wc -l </proc/swaps; ls /swapfile 2>&1; true", PATIENCE)?;
    ensure!(swaps.contains("No such file"), "the copy has the host's swap:\n{swaps}");
    let id = dom0.in_guest(NAME, "cat /etc/machine-id", PATIENCE)?;
    let of_host = dom0.run("cat /etc/machine-id")?;
    ensure!(
        id.len() == 32 && id != of_host,
        "the copy's id is {id:?}, and the host's is {of_host:?}"
    );
    Ok(())
}
