//! A server: Domain 0 is a Debian with systemd on a disk, with LVM and QEMU's tools, as somebody has it who adds Xen to it.

mod disks;
mod images;
mod shared;

use anyhow::{Result, ensure};

use crate::dom0::{Dom0, PATIENCE};
use crate::machine::Parts;

/// What vdc to vdf are, in MiB: for LVM, with a partition, as a whole, for images.
const EMPTY_DISKS: [u64; 4] = [512, 128, 64, 512];

pub(super) fn serves(parts: &Parts) -> Result<()> {
    let mut dom0 = Dom0::boot(&parts.with_debian_dom0(&EMPTY_DISKS)?)?;
    // What the kernel has to say of a slow emulator is no answer to anything.
    dom0.run("dmesg -n 1")?;
    starts_by_itself(&mut dom0)?;
    daemons_are_kept(&mut dom0)?;
    logs_are_rotated(&mut dom0)?;
    disks::are_served(&mut dom0)?;
    shared::folders_and_screens(&mut dom0)?;
    images::are_machines_of_their_own(&mut dom0)?;
    images::stand_on_their_template(&mut dom0)?;
    images::survive_interruption(&mut dom0)?;
    domains_go_with_the_host(&mut dom0)?;
    dom0.power_off(PATIENCE)
}

/// With no human input: the daemons, and the domain of /etc/xen/auto.
fn starts_by_itself(dom0: &mut Dom0) -> Result<()> {
    // `degraded` would be an exit code; whoever reads it wants the list.
    let settled = "systemctl is-system-running --wait || { systemctl --failed --no-legend; networkctl --no-pager; \
                   journalctl -b -p warning --no-pager | tail -n 20; }";
    let state = dom0.run_within(settled, PATIENCE * 5)?;
    ensure!(state == "running", "systemd says:\n{state}");
    let units = dom0.run("systemctl is-active xenstored xenconsoled xen-network xendomains | xargs")?;
    ensure!(units == "active active active active", "the units are {units}");
    let list = dom0.run("xl list")?;
    ensure!(
        list.contains("\nhello "),
        "the domain of /etc/xen/auto did not start:\n{list}"
    );
    Ok(())
}

/// A daemon that is killed comes back; the domains are as they were, and systemd leaves them so.
fn daemons_are_kept(dom0: &mut Dom0) -> Result<()> {
    let before = dom0.run("xl domid hello; systemctl show -P ActiveEnterTimestamp xendomains")?;
    for daemon in ["xenstored", "xenconsoled"] {
        let script = format!(
            "old=$(systemctl show -P MainPID {daemon}); kill -9 $old; \
             for _ in $(seq 300); do new=$(systemctl show -P MainPID {daemon}); \
             [ $new != 0 ] && [ $new != $old ] && systemctl -q is-active {daemon} && break; sleep 0.2; done; \
             [ $new != 0 ] && [ $new != $old ] && xl list hello"
        );
        dom0.run_within(&script, PATIENCE * 2)?;
    }
    let after = dom0.run("xl domid hello; systemctl show -P ActiveEnterTimestamp xendomains")?;
    ensure!(before == after, "hello and its unit were {before}, and are {after}");
    Ok(())
}

/// By logrotate with the file that we ship; what a guest says then is in a new file.
fn logs_are_rotated(dom0: &mut Dom0) -> Result<()> {
    const LOG: &str = "/var/log/xen/console/guest-hello.log";
    dom0.run(&format!(
        "[ -s {LOG} ] || echo so far >>{LOG}; logrotate -f /etc/logrotate.d/xen && ls {LOG}.1"
    ))?;
    let open = dom0.run("ls -l /proc/$(cat /run/xenconsoled.pid)/fd | grep -c 'guest-hello.log$'")?;
    ensure!(open == "1", "xenconsoled has {open} new logs open");
    Ok(())
}

fn domains_go_with_the_host(dom0: &mut Dom0) -> Result<()> {
    // This one does not know how to shut down.
    dom0.run_within(
        "echo XENDOMAINS_STOP_MAXWAIT=2 >/etc/default/xendomains; systemctl stop xendomains",
        PATIENCE,
    )?;
    let list = dom0.run("xl list")?;
    ensure!(
        !list.contains("hello"),
        "the host's services have stopped, and there is:\n{list}"
    );
    let said = dom0.run("journalctl -b -u xendomains --no-pager | grep -c 'did not shut down'")?;
    ensure!(said == "1", "the journal does not say what was done to it");
    Ok(())
}
