//! The daemons end, by hand and by force, and others take their place under a running guest; domains come and go with
//! the host.

use anyhow::{Result, ensure};

use crate::dom0::{Dom0, PATIENCE};
use crate::guest::{DEBIAN_PATIENCE, TINY_PATIENCE, Tiny, micro};
use crate::machine::Parts;

const NAME: &str = "calm";
const STOP_AND_START: &str = "/etc/init.d/xen restart";

pub(super) fn are_replaced(parts: &Parts) -> Result<()> {
    let mut dom0 = Dom0::boot(&with_run_level(parts))?;
    starts_by_itself(&mut dom0)?;
    dom0.run("dd if=/dev/zero of=/tmp/d.img bs=1M count=0 seek=16 2>/dev/null")?;
    dom0.start_tiny(&Tiny::new(NAME).at("10.0.2.60").setting("on_reboot = \"restart\""))?;
    for (daemon, end) in [
        ("xenstored", format!("{STOP_AND_START} xenstored")),
        ("xenconsoled", format!("{STOP_AND_START} xenconsoled")),
        ("xenstored", killed("xenstored")),
        ("xenconsoled", killed("xenconsoled")),
    ] {
        let before = pid_of(&mut dom0, daemon)?;
        dom0.run(&end)?;
        let after = pid_of(&mut dom0, daemon)?;
        ensure!(before != after, "{daemon} was to be replaced, and is still {before}");
        goes_on(&mut dom0)?;
    }
    updates_itself(&mut dom0)?;
    consoles_are_logged(&mut dom0)?;
    reboots_after_all_that(&mut dom0)?;
    come_and_go_with_the_host(&mut dom0)?;
    dom0.power_off(PATIENCE)
}

/// Domain 0's init runs the scripts of run level 2, as SysV's does.
fn with_run_level(parts: &Parts) -> Parts {
    let mut parts = parts.clone();
    parts.kernel_options += " 2";
    parts
}

/// With no human input: what /etc/rc2.d starts, and with that the domain of /etc/xen/auto.
fn starts_by_itself(dom0: &mut Dom0) -> Result<()> {
    let status = dom0.run("ls /etc/rc2.d | xargs; /etc/init.d/xen status && /etc/init.d/xendomains status; xl list")?;
    for sign in [
        "S01xen S02xendomains",
        "xenstored runs",
        "xenconsoled runs",
        "hello.cfg: runs",
        "\nhello ",
    ] {
        ensure!(status.contains(sign), "no {sign:?} after the start:\n{status}");
    }
    Ok(())
}

/// A live update: the same process, and whoever watches through the socket goes on watching.
fn updates_itself(dom0: &mut Dom0) -> Result<()> {
    let before = pid_of(dom0, "xenstored")?;
    // It has to watch before the update comes, which tells it of what it watches once more.
    dom0.run(
        "xenstore watch -n 4 /tmp/seen >/tmp/seen & watcher=$!; until [ -s /tmp/seen ]; do usleep 10000; done; \
         cp /usr/sbin/xenstored /tmp/xenstored",
    )?;
    dom0.run("xenstore control live-update -t 30 /tmp/xenstored")?;
    dom0.run(
        "xenstore write /tmp/seen 1 && xenstore write /tmp/seen/more 2 && wait $watcher && grep -q more /tmp/seen",
    )?;
    let after = pid_of(dom0, "xenstored")?;
    ensure!(before == after, "xenstored was {before}, and is {after}");
    let program = dom0.run(&format!("readlink /proc/{after}/exe"))?;
    ensure!(program == "/tmp/xenstored", "xenstored runs {program}");
    goes_on(dom0)?;
    dom0.run("xenstore control live-update /usr/sbin/xenstored && xenstore control check")?;
    goes_on(dom0)
}

/// Without a chance to say goodbye. A process that was told to die is there for a moment more, and `start` waits for it.
fn killed(daemon: &str) -> String {
    format!("kill -9 $(cat /run/{daemon}.pid) && /etc/init.d/xen start {daemon}")
}

fn pid_of(dom0: &mut Dom0, daemon: &str) -> Result<String> {
    dom0.run(&format!("cat /run/{daemon}.pid"))
}

/// The guest is reached, hears of what is written for it, gets a disk and gives it back: its own end of the store works
/// in both directions.
fn goes_on(dom0: &mut Dom0) -> Result<()> {
    dom0.run("ping -c 2 -W 5 10.0.2.60")?;
    dom0.run("xl list calm && xl block-attach calm file:/tmp/d.img,xvdb,w")?;
    let size = dom0.in_guest(
        NAME,
        "for _ in $(seq 50); do [ -b /dev/xvdb ] && break; usleep 100000; done; cat /sys/block/xvdb/size",
        PATIENCE,
    )?;
    ensure!(size == "32768", "the guest's new disk has {size} sectors");
    dom0.run("xl block-detach calm xvdb")?;
    Ok(())
}

/// What a guest says is in its log, and after the log has been moved away, in a new one.
fn consoles_are_logged(dom0: &mut Dom0) -> Result<()> {
    const LOG: &str = "/var/log/xen/console/guest-calm.log";
    dom0.in_guest(NAME, "echo first-$((40 + 2))", PATIENCE)?;
    dom0.run(&format!("grep -q first-42 {LOG}"))?;
    dom0.run(&format!("mv {LOG} {LOG}.1 && kill -HUP $(cat /run/xenconsoled.pid)"))?;
    dom0.in_guest(NAME, "echo second-$((40 + 2))", PATIENCE)?;
    dom0.run(&format!("grep -q second-42 {LOG} && ! grep -q second-42 {LOG}.1"))?;
    Ok(())
}

/// Whoever stays with the domain has connected again.
fn reboots_after_all_that(dom0: &mut Dom0) -> Result<()> {
    let before = dom0.run("xl domid calm")?;
    dom0.in_guest(NAME, "{ (sleep 1; reboot -f) >/dev/null 2>&1 & }", PATIENCE)?;
    let renewed = format!(
        "(for _ in $(seq 120); do new=$(xl domid calm 2>/dev/null); [ -n \"$new\" ] && [ \"$new\" != {before} ] && \
         exit 0; sleep 1; done; cat /var/log/xen/xl-calm.log; exit 1)"
    );
    dom0.run_within(&renewed, DEBIAN_PATIENCE)?;
    dom0.destroy(NAME)
}

fn come_and_go_with_the_host(dom0: &mut Dom0) -> Result<()> {
    dom0.write_config("a", &micro("auto-a", "idle"))?;
    dom0.write_config("b", &Tiny::new("auto-b").config())?;
    dom0.run("mkdir -p /etc/xen/auto && mv /tmp/a.cfg /tmp/b.cfg /etc/xen/auto")?;
    dom0.run_within("/etc/init.d/xendomains start", DEBIAN_PATIENCE)?;
    dom0.run("xl domid auto-a && xl domid auto-b && /etc/init.d/xendomains status")?;
    let again = dom0.run("/etc/init.d/xendomains start")?;
    ensure!(
        again.matches("runs already").count() == 3,
        "the second start says:\n{again}"
    );
    are_saved_meanwhile(dom0)?;
    // Two of them do not know how to shut down.
    dom0.run("echo XENDOMAINS_STOP_MAXWAIT=10 >/etc/default/xendomains")?;
    let said = dom0.run_within("/etc/init.d/xendomains stop 2>&1", DEBIAN_PATIENCE)?;
    let is_destroyed = |name: &str| said.contains(&format!("{name} did not shut down"));
    ensure!(
        is_destroyed("auto-a") && is_destroyed("hello") && !is_destroyed("auto-b"),
        "the stop says:\n{said}"
    );
    let left = dom0.run("xl list | awk 'NR > 2'")?;
    ensure!(left.is_empty(), "these are left:\n{left}");
    Ok(())
}

/// With a folder to save in: who can be saved runs on where it was, who cannot starts anew.
fn are_saved_meanwhile(dom0: &mut Dom0) -> Result<()> {
    dom0.watch_guest("auto-b", "tiny guest: up", TINY_PATIENCE)?;
    dom0.in_guest("auto-b", "echo still-here >/tmp/mark", PATIENCE)?;
    dom0.run(
        "printf 'XENDOMAINS_STOP_MAXWAIT=12\\nXENDOMAINS_MIGRATE=\"--live localhost\"\\nXENDOMAINS_SAVE=/tmp/save\\n\
         XENDOMAINS_SYSRQ=s\\n' >/etc/default/xendomains",
    )?;
    let said = dom0.run_within(
        "/etc/init.d/xendomains stop 2>&1 && stat -c %a /tmp/save && ls /tmp/save",
        DEBIAN_PATIENCE,
    )?;
    for word in [
        "XENDOMAINS_SYSRQ has no effect",
        "auto-a: could not be moved",
        "auto-b: moved to --live localhost",
        "700",
        "auto-a: could not be saved",
        "auto-a did not shut down",
        "auto-b: saved",
        "auto-b.saved",
    ] {
        ensure!(said.contains(word), "the stop does not say `{word}`:\n{said}");
    }
    let waits = "echo XENDOMAINS_RESTORE= >>/etc/default/xendomains; echo XENDOMAINS_AUTO= >>/etc/default/xendomains; \
                 /etc/init.d/xendomains start 2>&1; ls /tmp/save; sed -i '/RESTORE=$/d;/AUTO=$/d' /etc/default/xendomains";
    let said = dom0.run(waits)?;
    ensure!(
        said == "xendomains: XENDOMAINS_SYSRQ has no effect\nauto-b.saved",
        "with nothing to start, the start says:\n{said}"
    );
    let said = dom0.run_within("/etc/init.d/xendomains start 2>&1; ls /tmp/save", DEBIAN_PATIENCE)?;
    for word in ["auto-b: restored", "a.cfg: started", "b.cfg: runs already"] {
        ensure!(said.contains(word), "the start does not say `{word}`:\n{said}");
    }
    let mark = dom0.in_guest("auto-b", "cat /tmp/mark", PATIENCE)?;
    ensure!(mark == "still-here", "the guest that was saved has {mark:?}");
    Ok(())
}
