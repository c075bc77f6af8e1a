//! Two hosts, a cable between them, and a disk that both have: a guest moves from one to the other while it writes. And
//! one of the hosts is all Debian's, hypervisor and tools: guests come from there and go there, by file and by cable.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::dom0::{Dom0, PATIENCE};
use crate::guest::{Tiny, micro};
use crate::lan::until_listened;
use crate::machine::{Cable, Parts};

const NAME: &str = "nomad";
/// The shared disk, in MiB: room for a saved guest.
const DISK_MIB: u64 = 128;
/// How long it may take to send a whole guest on a slow machine.
const WHOLE: Duration = Duration::from_secs(300);
/// The addresses at the two ends of the cable, and where the second host receives guests.
const ENDS: [&str; 2] = ["10.0.9.1", "10.0.9.2"];
const PORT: u16 = 8002;

/// Numbers every write to the disk, and remembers in memory how far it came.
const WRITER: &str = "n=0; while :; do n=$((n+1)); echo nomad-$n | dd of=/dev/xvda bs=512 conv=sync,fsync seek=$n \
                      2>/dev/null || touch /tmp/bad; echo $n >/tmp/n; usleep 50000; done";

pub(super) fn hand_a_guest_over(parts: &Parts) -> Result<()> {
    on_hosts(parts, parts, over_the_cable)
}

/// What goes between our hypervisor with our tools and Debian's with Debian's.
pub(super) fn go_crosswise(parts: &Parts) -> Result<()> {
    on_hosts(parts, &parts.all_debians()?, to_and_fro)
}

/// Boots two hosts of these parts, joins them, and tells `story` of them.
fn on_hosts(near: &Parts, far: &Parts, story: fn(&mut Dom0, &mut Dom0) -> Result<()>) -> Result<()> {
    let shared = near.log.with_extension("shared.img");
    if let Some(folder) = shared.parent() {
        fs::create_dir_all(folder)?;
    }
    let blank = File::create(&shared).and_then(|file| file.set_len(DISK_MIB << 20));
    blank.with_context(|| format!("making {}", shared.display()))?;
    let told = on_joined_hosts(near, far, &shared, story);
    fs::remove_file(&shared)?;
    told
}

fn on_joined_hosts(
    near: &Parts,
    far: &Parts,
    shared: &Path,
    story: fn(&mut Dom0, &mut Dom0) -> Result<()>,
) -> Result<()> {
    let cables = Cable::new()?;
    let boot = |parts: &Parts, cable: &Cable, end: &str| {
        Dom0::boot(&Parts {
            cable: Some(cable.clone()),
            shared_disk: Some(shared.to_owned()),
            memory_mib: 1024,
            log: parts.log.with_extension(format!("{end}.log")),
            ..parts.clone()
        })
    };
    let mut near = boot(near, &cables[0], "a")?;
    let mut far = boot(far, &cables[1], "b")?;
    for (dom0, address) in [(&mut near, ENDS[0]), (&mut far, ENDS[1])] {
        dom0.run(&format!(
            "ip addr add {address}/24 dev eth1 && ip link set eth1 mtu 9000 up"
        ))?;
    }
    near.run(&format!("ping -c 1 -w 20 {}", ENDS[1]))?;
    story(&mut near, &mut far)?;
    far.power_off(PATIENCE)?;
    near.power_off(PATIENCE)
}

fn over_the_cable(near: &mut Dom0, far: &mut Dom0) -> Result<()> {
    // So that its number is not the one that it would get there anyway.
    near.write_config("first", &micro("first", "idle"))?;
    near.run("xl create -q -p /tmp/first.cfg && xl destroy first")?;
    near.start_tiny(&Tiny::new(NAME).memory(96).at("10.0.2.50").disk("phy:/dev/vdb,xvda,w"))?;
    let process = near.in_guest(NAME, "sleep 1000000 & echo $!", PATIENCE)?;
    let write = format!("echo '{WRITER}' >/tmp/w; sh /tmp/w & echo $!");
    let writer = near.in_guest(NAME, &write, PATIENCE)?;
    is_not_taken_by_nobody(near)?;
    let (free, before) = (near.settled_free_memory()?, written(near)?);
    let number = near.run(&format!("xl domid {NAME}"))?;
    ensure!(number != "1", "it is the first domain of its host");
    moves(near, far, "-D")?;
    let there = far.run(&format!("xl domid {NAME}"))?;
    ensure!(there == number, "it was domain {number}, moved with -D, and is {there}");

    near.wait_until_gone(NAME, PATIENCE)?;
    let left = near.settled_free_memory()?;
    ensure!(
        left > free,
        "the first host has {left} MiB free, and had {free} with the guest"
    );
    far.in_guest(NAME, &format!("kill -0 {}", process.trim()), PATIENCE)?;
    let after = written(far)?;
    ensure!(after > before, "{before} blocks were written before, {after} after");
    // Each block that it believes to have written is on the disk, whichever host it went through.
    let stop = format!(
        "kill {0}; while kill -0 {0} 2>/dev/null; do usleep 10000; done; cat /tmp/n",
        writer.trim()
    );
    let last = far.in_guest(NAME, &stop, PATIENCE)?;
    let last: u32 = last.trim().parse()?;
    let lost = format!(
        "dd if=/dev/vdb bs=512 skip=1 count={last} iflag=direct 2>/dev/null | tr -d '\\0' >/tmp/on-disk; \
         seq {last} | sed s/^/nomad-/ | diff - /tmp/on-disk | head"
    );
    let lost = far.run_within(&lost, WHOLE)?;
    ensure!(lost.is_empty(), "of {last} blocks these are not on the disk: {lost}");
    far.run("for _ in $(seq 30); do ping -c 1 -W 1 10.0.2.50 >/dev/null && break; done; ping -c 1 -W 1 10.0.2.50")?;
    far.destroy(NAME)
}

/// From Debian's host to ours and back by files on the disk that both have, and then by cable, while it runs.
fn to_and_fro(ours: &mut Dom0, debians: &mut Dom0) -> Result<()> {
    debians.start_tiny(&Tiny::new(NAME).memory(96).at("10.0.2.50"))?;
    let remember = "sleep 1000000 & echo $!; head -c 4000000 /dev/urandom >/tmp/r; md5sum </tmp/r";
    let remembered = debians.in_guest(NAME, remember, PATIENCE)?;
    let (process, sum) = remembered.split_once('\n').context("no process, or no sum")?;
    let recall = format!("kill -0 {} && md5sum </tmp/r", process.trim());
    let runs_on = |dom0: &mut Dom0| -> Result<()> {
        let recalled = dom0.in_guest(NAME, &recall, PATIENCE)?;
        ensure!(recalled.trim() == sum.trim(), "{recalled:?} is not {sum:?}");
        dom0.run("for _ in $(seq 30); do ping -c 1 -W 1 10.0.2.50 >/dev/null && break; done; ping -c 1 -W 1 10.0.2.50")
            .map(drop)
    };
    // Neither Linux knows what the other one wrote to the disk.
    const SAVE: &str = "xl save nomad /dev/vdb && sync";
    const RESTORE: &str = "blockdev --flushbufs /dev/vdb && xl restore /dev/vdb";
    debians.run_within(SAVE, WHOLE)?;
    ours.run_within(RESTORE, WHOLE)
        .context("ours restores what Debian's saved")?;
    runs_on(ours).context("restored by ours")?;
    ours.run_within(SAVE, WHOLE)?;
    debians
        .run_within(RESTORE, WHOLE)
        .context("Debian's restores what ours saved")?;
    runs_on(debians).context("restored by Debian's")?;
    // Debian's Xen does not log what a PV guest writes, so that its tools send only one that stands still.
    debians.run_within(SAVE, WHOLE)?;
    ours.run_within(RESTORE, WHOLE)?;
    moves(ours, debians, "")?;
    runs_on(debians).context("sent by ours while it ran")?;
    debians.destroy(NAME)
}

/// How many blocks the guest has written.
fn written(dom0: &mut Dom0) -> Result<u32> {
    let said = dom0.in_guest(NAME, "test ! -e /tmp/bad && cat /tmp/n", PATIENCE)?;
    Ok(said.trim().parse()?)
}

/// A host at which nobody listens: the guest stays.
fn is_not_taken_by_nobody(near: &mut Dom0) -> Result<()> {
    let (code, said) = near.ask(&format!("xl migrate -s '' {NAME} 'nc {} {PORT}' 2>&1", ENDS[1]), WHOLE)?;
    ensure!(code != 0 && said.contains("runs on here"), "to nobody: {code}, {said}");
    written(near).map(drop)
}

fn moves(near: &mut Dom0, far: &mut Dom0, options: &str) -> Result<()> {
    let receive = format!(
        "nc -l -p {PORT} -e xl migrate-receive 2>/tmp/received & {}",
        until_listened(PORT)
    );
    far.run(&receive)?;
    let command = format!("xl migrate {options} -s '' {NAME} 'nc {} {PORT}' 2>&1", ENDS[1]);
    let (code, said) = near.ask(&command, WHOLE)?;
    ensure!(
        code == 0 && said.contains("Migration successful."),
        "moving: {code}, {said}; the receiver: {:?}",
        far.run("cat /tmp/received")
    );
    ensure!(
        said.contains("round 2:") && said.contains("stood still for"),
        "it was not sent while it ran: {said}"
    );
    let list = far.run(&format!("xl list {NAME} | tail -n 1"))?;
    ensure!(list.starts_with(NAME), "the other host lists {list}");
    Ok(())
}
