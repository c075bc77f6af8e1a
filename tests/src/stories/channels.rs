//! Channels: consoles of a guest beyond its first, which QEMU carries to a socket and to a terminal of the host's.

use anyhow::{Result, ensure};

use crate::dom0::{Dom0, PATIENCE};
use crate::guest::{Tiny, micro};
use crate::machine::Parts;

const NAME: &str = "speaks";
const SOCKET: &str = "/run/speaks.sock";
/// What both ends show of the two: number, backend's domain, state, whether there is an event channel, kind.
const LISTED: &str = "1 0 4 1 socket\n2 0 4 1 pty";

pub(super) fn carry_bytes(parts: &Parts) -> Result<()> {
    let mut dom0 = Dom0::boot(&parts.with_debian_dom0(&[])?)?;
    dom0.run("dmesg -n 1")?;
    let guest = Tiny::new(NAME).setting(&format!(
        "channel = [ 'connection=socket,path={SOCKET},name=org.example.first', 'connection=pty,name=org.example.second' ]"
    ));
    dom0.start_tiny(&guest)?;
    both_ways(&mut dom0)?;
    harm_nobody(&mut dom0)?;
    dom0.run_within(
        &format!("xl save {NAME} /tmp/saved && [ ! -e {SOCKET} ] && xl restore /tmp/saved && rm /tmp/saved"),
        PATIENCE * 3,
    )?;
    both_ways(&mut dom0)?;
    // Whoever is killed cannot clear up.
    dom0.run("kill -9 $(ps -e -o pid,comm | awk '/qemu-system/ { print $1 }')")?;
    dom0.destroy(NAME)?;
    let left = dom0.run(&format!(
        "ls {SOCKET} 2>/dev/null; ps -e | grep qemu-system; xenstore-ls /local/domain/0/backend | grep example; true"
    ))?;
    ensure!(left.is_empty(), "this is left:\n{left}");
    dom0.power_off(PATIENCE)
}

/// What the host says to either channel is read in the guest, and what the guest answers is read in the host.
fn both_ways(dom0: &mut Dom0) -> Result<()> {
    let listed = dom0.run(&format!(
        "xl channel-list {NAME} | awk 'NR > 1 {{ print $1, $2, $3, ($4 > 0), $6 }}'"
    ))?;
    ensure!(listed == LISTED, "the channels are:\n{listed}");
    let ends = dom0.run(&format!(
        "xl channel-list --json {NAME} | sed -n 's/.*\"\\(name\\|path\\)\": \"\\(.*\\)\".*/\\2/p' | xargs"
    ))?;
    ensure!(
        ends.starts_with(&format!("org.example.first {SOCKET} org.example.second /dev/pts/")),
        "the channels' ends are {ends}"
    );
    // The guest answers once it has heard, so whoever speaks from here is connected by then.
    let client = format!(
        "perl -MIO::Socket::UNIX -e '$s = IO::Socket::UNIX->new(Peer => \"{SOCKET}\") or die $!; \
         print $s \"of the host\\n\"; $s->flush; while (<$s>) {{ print; last if /of the guest/ }}' >/tmp/heard1 2>&1"
    );
    dom0.run(&format!("{client} &"))?;
    let terminal = format!("echo of the host | xl console -n 2 {NAME} >/tmp/heard2 2>&1");
    dom0.run(&format!("{terminal} & echo $! >/tmp/pid"))?;
    for number in [1, 2] {
        let answer = format!("head -n 1 </dev/hvc{number}; echo of the guest >/dev/hvc{number}");
        let heard = dom0.in_guest(NAME, &answer, PATIENCE)?;
        ensure!(heard == "of the host", "at channel {number} the guest hears {heard:?}");
        dom0.wait_for_line(&format!("/tmp/heard{number}"), "of the guest", PATIENCE)?;
    }
    dom0.run("kill $(cat /tmp/pid); wait; rm /tmp/heard1 /tmp/heard2")
        .map(drop)
}

/// A socket comes in nobody's place, and a guest cannot say where its channel leads.
fn harm_nobody(dom0: &mut Dom0) -> Result<()> {
    dom0.run("echo precious >/tmp/precious")?;
    for (path, why) in [
        ("/tmp/precious", "is there already, and is no socket"),
        (SOCKET, "somebody listens at"),
        ("/nowhere/at.sock", "there is no folder /nowhere"),
    ] {
        let channel = format!("channel = [ 'connection=socket,name=a,path={path}' ]\n");
        dom0.write_config("other", &(micro("other", "idle") + &channel))?;
        let said = dom0.run("! xl create -q /tmp/other.cfg 2>&1")?;
        ensure!(said.contains(why), "of a channel to {path} is said:\n{said}");
    }
    let kept = dom0.run("cat /tmp/precious; xl list | grep -c other; true")?;
    ensure!(kept == "precious\n0", "the file, and the domains of that name: {kept}");
    let rights = dom0.run(&format!(
        "home=/local/domain/$(xl domid {NAME})/device/console/1; \
         for n in name type output tty limit; do xenstore-ls -p $home | sed -n \"s/^$n = .*(\\(.*\\))$/\\1/p\"; done | \
         sed 's/r[0-9]*/rN/' | sort | uniq -c | xargs"
    ))?;
    ensure!(
        rights == "5 n0,rN",
        "what tells QEMU where to write has the rights {rights}"
    );
    Ok(())
}
