//! Two hosts, a cable between them, and a disk that both have: a guest moves from one to the other while it writes.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::dom0::{Dom0, PATIENCE};
use crate::guest::Tiny;
use crate::lan::until_listened;
use crate::machine::{Cable, Parts};

const NAME: &str = "nomad";
/// The shared disk, in MiB.
const DISK_MIB: u64 = 64;
/// How long it may take to send a whole guest on a slow machine.
const WHOLE: Duration = Duration::from_secs(300);
/// The addresses at the two ends of the cable, and where the second host receives guests.
const ENDS: [&str; 2] = ["10.0.9.1", "10.0.9.2"];
const PORT: u16 = 8002;

/// Numbers every write to the disk, and remembers in memory how far it came.
const WRITER: &str = "n=0; while :; do n=$((n+1)); echo nomad-$n | dd of=/dev/xvda bs=512 conv=sync,fsync seek=$n \
                      2>/dev/null || touch /tmp/bad; echo $n >/tmp/n; usleep 50000; done";

pub(super) fn hand_a_guest_over(parts: &Parts) -> Result<()> {
    let shared = parts.log.with_extension("shared.img");
    let blank = File::create(&shared).and_then(|file| file.set_len(DISK_MIB << 20));
    blank.with_context(|| format!("making {}", shared.display()))?;
    let told = on_hosts(parts, &shared);
    fs::remove_file(&shared)?;
    told
}

fn on_hosts(parts: &Parts, shared: &Path) -> Result<()> {
    let cables = Cable::new()?;
    let [here, there] = &["a", "b"].map(|end| parts.log.with_extension(format!("{end}.log")));
    let host = |cable: &Cable, log: &Path| Parts {
        cable: Some(cable.clone()),
        shared_disk: Some(shared.to_owned()),
        memory_mib: 1024,
        log: log.to_owned(),
        ..parts.clone()
    };
    let mut near = Dom0::boot(&host(&cables[0], here))?;
    let mut far = Dom0::boot(&host(&cables[1], there))?;
    for (dom0, address) in [(&mut near, ENDS[0]), (&mut far, ENDS[1])] {
        dom0.run(&format!(
            "ip addr add {address}/24 dev eth1 && ip link set eth1 mtu 9000 up"
        ))?;
    }
    near.run(&format!("ping -c 1 -w 20 {}", ENDS[1]))?;

    near.start_tiny(&Tiny::new(NAME).at("10.0.2.50").disk("phy:/dev/vdb,xvda,w"))?;
    let process = near.in_guest(NAME, "sleep 1000000 & echo $!", PATIENCE)?;
    let write = format!("echo '{WRITER}' >/tmp/w; sh /tmp/w & echo $!");
    let writer = near.in_guest(NAME, &write, PATIENCE)?;
    is_not_taken_by_nobody(&mut near)?;
    let (free, before) = (near.settled_free_memory()?, written(&mut near)?);
    moves(&mut near, &mut far)?;

    near.wait_until_gone(NAME, PATIENCE)?;
    let left = near.settled_free_memory()?;
    ensure!(
        left > free,
        "the first host has {left} MiB free, and had {free} with the guest"
    );
    far.in_guest(NAME, &format!("kill -0 {}", process.trim()), PATIENCE)?;
    let after = written(&mut far)?;
    ensure!(after > before, "{before} blocks were written before, {after} after");
    // Each block that it believes to have written is on the disk, whichever host it went through.
    let stop = format!(
        "kill {0}; while kill -0 {0} 2>/dev/null; do usleep 10000; done; cat /tmp/n",
        writer.trim()
    );
    let last = far.in_guest(NAME, &stop, PATIENCE)?;
    let last: u32 = last.trim().parse()?;
    let lost = format!(
        "for n in $(seq {last}); do dd if=/dev/vdb bs=512 skip=$n count=1 iflag=direct 2>/dev/null | grep -q \"^nomad-$n$\" \
         || echo $n; done"
    );
    let lost = far.run_within(&lost, WHOLE)?;
    ensure!(lost.is_empty(), "of {last} blocks these are not on the disk: {lost}");
    far.run("for _ in $(seq 30); do ping -c 1 -W 1 10.0.2.50 >/dev/null && break; done; ping -c 1 -W 1 10.0.2.50")?;
    far.destroy(NAME)?;
    far.power_off(PATIENCE)?;
    near.power_off(PATIENCE)
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

fn moves(near: &mut Dom0, far: &mut Dom0) -> Result<()> {
    let receive = format!(
        "nc -l -p {PORT} -e xl migrate-receive 2>/tmp/received & {}",
        until_listened(PORT)
    );
    far.run(&receive)?;
    let command = format!("xl migrate -s '' {NAME} 'nc {} {PORT}' 2>&1", ENDS[1]);
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
