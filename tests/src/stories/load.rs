//! Guests that do their worst.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::dom0::{Dom0, PATIENCE};
use crate::guest::{DEBIAN_PATIENCE, Tiny, micro};
use crate::machine::Parts;

/// A Debian that was another machine's, with partitions: now an image that starts its own kernel.
const MOVED: &str = "name = \"moved\"
bootloader = \"pygrub\"
memory = 256
disk = [ 'file:/mnt/guests/moved.img,xvda1,w' ]
vif = [ '' ]
extra = \"root=/dev/xvda1 console=hvc0\"
on_crash = \"destroy\"
";

/// How often a guest is moved while it works; `FERROXEN_MOVES` says otherwise.
const MOVES: u32 = 2;

pub(super) fn stress_while_moved(parts: &Parts) -> Result<()> {
    /// How long it works for each move.
    const WORK: Duration = Duration::from_secs(30);
    const STRESS: Duration = Duration::from_secs(240);
    let moves = super::times("FERROXEN_MOVES", MOVES)?;
    let seconds = (WORK * moves).as_secs();
    let mut dom0 = Dom0::boot(&parts.with_built()?)?;
    dom0.run("mount /dev/vdb /mnt")?;
    dom0.create("moved", MOVED)?;
    dom0.watch_guest("moved", "root@guest:~#", DEBIAN_PATIENCE)?;
    let root = dom0.in_guest(
        "moved",
        "findmnt -no OPTIONS / | cut -d, -f1; grep -c vda2 /etc/fstab",
        PATIENCE,
    )?;
    ensure!(
        root.split_whitespace().eq(["rw", "1"]),
        "the root of the machine that moved is {root:?}"
    );
    let load = "stress-ng --cpu 1 --vm 1 --vm-bytes 48M --verify --fork 1 --pipe 1 --metrics-brief";
    dom0.in_guest(
        "moved",
        &format!("{load} --timeout {seconds}s >/tmp/said 2>&1 & true"),
        PATIENCE,
    )?;
    for _ in 0..moves {
        let said = dom0.run_within("xl migrate moved localhost 2>&1", STRESS)?;
        ensure!(said.contains("Migration successful."), "moving it: {said}");
    }
    let ended = dom0.in_guest(
        "moved",
        "wait %1 || cat /tmp/said; grep -c 'successful run' /tmp/said",
        STRESS + WORK * moves,
    )?;
    // Before it, the shell may say that its job is done.
    ensure!(
        ended.lines().last() == Some("1"),
        "what it wrote was not what it found: {ended}"
    );
    let faults = "dmesg | grep -cE 'BUG|Oops|general protection|segfault|soft lockup' || true";
    let faults = dom0.in_guest("moved", faults, PATIENCE)?;
    ensure!(faults == "0", "the guest's kernel complains {faults} times");
    dom0.destroy("moved")?;
    dom0.power_off(PATIENCE)
}

pub(super) fn storm_for_a_minute(parts: &Parts) -> Result<()> {
    const STORM: Duration = Duration::from_secs(60);
    /// A storm that is still alive by then has shown what it can.
    const ONE_LIFE: &str = "4";
    let mut dom0 = Dom0::boot(parts)?;
    dom0.start_tiny(&Tiny::new("bystander").at("10.0.2.60"))?;
    let free = dom0.settled_free_memory()?;
    let began = Instant::now();
    let mut seed = 1_u32;
    while began.elapsed() < STORM {
        let temper = if seed.is_multiple_of(2) { " gentle" } else { "" };
        dom0.create("storm", &micro("storm", &format!("storm seed={seed}{temper}")))?;
        let wait = format!("for _ in $(seq {ONE_LIFE}); do xl list | grep -q '^storm ' || break; sleep 1; done");
        dom0.run(&wait)?;
        // It may have died by itself in the meantime.
        dom0.ask("xl destroy storm", PATIENCE)?;
        dom0.wait_until_gone("storm", PATIENCE)
            .with_context(|| format!("storm with seed {seed}"))?;
        seed += 1;
    }
    dom0.run("ping -c 3 -W 5 10.0.2.60")
        .context("the other guest no longer answers")?;
    let answer = dom0.in_guest("bystander", "echo alive", PATIENCE)?;
    ensure!(answer == "alive", "the other guest says {answer:?}");
    let left = dom0.settled_free_memory()?;
    ensure!(
        left >= free,
        "{free} MiB were free before, {left} MiB after {seed} storms"
    );
    dom0.destroy("bystander")?;
    // Without the hypervisor's mark, since its lines are no part of an answer.
    let audit = dom0.run("xl debug-keys O; xl dmesg | sed -n 's/^(XEN) audit:/audit:/p' | tail -n 5")?;
    ensure!(
        audit.contains("audit: 0 wrong"),
        "the hypervisor's accounts are wrong:\n{audit}"
    );
    dom0.power_off(PATIENCE)
}
