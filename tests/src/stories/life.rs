//! Pausing, dying, and many of both.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::dom0::{Dom0, PATIENCE};
use crate::guest::{TINY_PATIENCE, Tiny, micro};
use crate::machine::Parts;

/// A measuring window: how long something is watched. Nothing is waited for by it.
const WINDOW: Duration = Duration::from_secs(3);

pub(super) fn pause(parts: &Parts) -> Result<()> {
    /// Ticks that may still be on their way from the guest to Domain 0 when it is paused.
    const UNDER_WAY: u64 = 3;
    let mut dom0 = Dom0::boot(parts)?;
    // A listener that keeps what it hears; a guest that counts for it over one connection, and spins besides.
    dom0.run("(busybox nc -l -p 5003 -e dd of=/tmp/ticks >/dev/null 2>&1 &)")?;
    dom0.start_tiny(&Tiny::new("busy").at("10.0.2.30").then("(while :; do :; done)&"))?;
    let count = "(seq 1000000 | while read i; do echo $i; usleep 50000; done | nc 10.0.2.15 5003 &)";
    dom0.in_guest("busy", count, PATIENCE)?;
    wait_for_tick(&mut dom0, 5).context("the guest's counting does not arrive")?;
    let running = dom0.cpu_seconds("busy")?;
    dom0.run(&window())?;
    ensure!(
        dom0.cpu_seconds("busy")? > running + 0.5,
        "the guest does not even run before it is paused"
    );

    dom0.run("xl pause busy")?;
    let (paused, heard) = (dom0.cpu_seconds("busy")?, ticks(&mut dom0)?);
    dom0.run(&window())?;
    let (later, heard_later) = (dom0.cpu_seconds("busy")?, ticks(&mut dom0)?);
    ensure!(
        later <= paused + 0.1,
        "paused, the guest had {paused} s, and {later} s three seconds later"
    );
    ensure!(
        heard_later <= heard + UNDER_WAY,
        "paused, the guest counted on from {heard} to {heard_later}"
    );
    let list = dom0.run("xl list busy")?;
    ensure!(
        list.contains("--p---"),
        "the list does not say that it is paused:\n{list}"
    );

    dom0.run("xl unpause busy")?;
    wait_for_tick(&mut dom0, heard_later + 20).context("the connection does not go on after the pause")?;
    dom0.run("n=$(wc -l </tmp/ticks); seq $n >/tmp/sent; head -n $n /tmp/ticks | cmp - /tmp/sent")
        .context("the pause lost some of what the guest sent")?;
    ensure!(
        dom0.cpu_seconds("busy")? > later,
        "the guest is not charged after the pause"
    );
    let answer = dom0.in_guest("busy", "echo alive", TINY_PATIENCE)?;
    ensure!(answer == "alive", "after the pause the guest says {answer:?}");
    dom0.destroy("busy")?;
    dom0.power_off(PATIENCE)
}

fn window() -> String {
    format!("sleep {}", WINDOW.as_secs())
}

/// How far the guest has counted, as far as Domain 0 has heard.
fn ticks(dom0: &mut Dom0) -> Result<u64> {
    let count = dom0.run("wc -l </tmp/ticks")?;
    count.trim().parse().with_context(|| format!("no count: {count:?}"))
}

fn wait_for_tick(dom0: &mut Dom0, number: u64) -> Result<()> {
    dom0.wait_for_line("/tmp/ticks", &format!("^{number}$"), PATIENCE)
}

pub(super) fn spin(parts: &Parts) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(2);
    let mut dom0 = Dom0::boot(parts)?;
    let free = dom0.settled_free_memory()?;
    dom0.create("spin", &micro("spin", "spin"))?;
    let early = dom0.cpu_seconds("spin")?;
    dom0.run(&window())?;
    ensure!(dom0.cpu_seconds("spin")? > early, "the guest does not spin");
    let began = Instant::now();
    dom0.run("xl destroy spin")?;
    let list = dom0.run("xl list")?;
    let taken = began.elapsed();
    ensure!(taken <= LIMIT, "it took {:.1} s", taken.as_secs_f64());
    ensure!(!list.contains("spin"), "destroyed, it is still in the list:\n{list}");
    let left = dom0.settled_free_memory()?;
    ensure!(left >= free, "{free} MiB were free before, {left} MiB after");
    leaves_no_traces(&mut dom0, left)?;
    dom0.power_off(PATIENCE)
}

/// A guest writes a number all over its memory; the next one gets that memory, and must not find it.
fn leaves_no_traces(dom0: &mut Dom0, free: u64) -> Result<()> {
    const MARK: u64 = 0x5eed_5eed_0bad_cafe;
    // So much of what is free that the second guest gets what the first one had.
    let memory = free * 3 / 4;
    let guest = |name: &str, line: String| micro(name, &line) + &format!("memory = {memory}\n");
    dom0.create("marker", &guest("marker", format!("mark={MARK}")))?;
    dom0.watch_guest("marker", "marked ", TINY_PATIENCE * 3)?;
    dom0.destroy("marker")?;
    dom0.create("finder", &guest("finder", format!("search={MARK}")))?;
    dom0.watch_guest("finder", "found 0 words", TINY_PATIENCE * 3)
        .context("what one guest wrote, the next one can read")?;
    dom0.destroy("finder")
}

/// Two that spin share a CPU by their weights, and one that spins alone stays under its cap.
pub(super) fn shares(parts: &Parts) -> Result<()> {
    const LONG: Duration = Duration::from_secs(10);
    let mut parts = parts.clone();
    parts.cpus = 1;
    let mut dom0 = Dom0::boot(&parts)?;
    let spinner = |name: &str, setting: &str| format!("{}{setting}\n", micro(name, "spin"));
    dom0.create("heavy", &micro("heavy", "spin"))?;
    dom0.create("light", &spinner("light", "cpu_weight = 256"))?;
    dom0.run("xl sched-credit2 -d heavy -w 512")?;
    let mut ran = [0.0; 2];
    for sign in [-1.0, 1.0] {
        ran[0] += sign * dom0.cpu_seconds("heavy")?;
        ran[1] += sign * dom0.cpu_seconds("light")?;
        if sign < 0.0 {
            dom0.run(&format!("sleep {}", LONG.as_secs()))?;
        }
    }
    let ratio = ran[0] / ran[1];
    ensure!(
        (1.6..2.5).contains(&ratio),
        "weights of 2 to 1 gave {:.1} s and {:.1} s",
        ran[0],
        ran[1]
    );
    dom0.destroy("heavy")?;
    dom0.destroy("light")?;

    dom0.create("capped", &spinner("capped", "cap = 50"))?;
    dom0.run("xl sched-credit2 -d capped -c 25")?;
    let before = dom0.cpu_seconds("capped")?;
    let began = Instant::now();
    dom0.run(&format!("sleep {}", LONG.as_secs()))?;
    let ran = dom0.cpu_seconds("capped")? - before;
    let share = ran / began.elapsed().as_secs_f64();
    ensure!(
        (0.12..0.32).contains(&share),
        "capped at a quarter, the guest had {:.0} %",
        share * 100.0
    );
    dom0.destroy("capped")?;
    dom0.power_off(PATIENCE)
}

pub(super) fn eight_at_once(parts: &Parts) -> Result<()> {
    const COUNT: u32 = 8;
    let mut parts = parts.clone();
    parts.memory_mib = 2560;
    let mut dom0 = Dom0::boot(&parts)?;
    let free = dom0.settled_free_memory()?;
    for number in 1..=COUNT {
        dom0.create_tiny(&Tiny::new(&format!("g{number}")).at(&format!("10.0.2.{}", 40 + number)))?;
    }
    for number in 1..=COUNT {
        dom0.watch_guest(&format!("g{number}"), "tiny guest: up", TINY_PATIENCE * 3)?;
    }
    for number in 1..=COUNT {
        dom0.run(&format!("ping -c 2 -W 5 10.0.2.{}", 40 + number))?;
    }
    let alive = dom0.run("xl list | grep -c '^g[0-9]'")?;
    ensure!(alive == COUNT.to_string(), "{alive} of {COUNT} guests are in the list");
    for number in 1..=COUNT {
        dom0.destroy(&format!("g{number}"))?;
    }
    let left = dom0.settled_free_memory()?;
    ensure!(left >= free, "{free} MiB were free before, {left} MiB after");
    dom0.power_off(PATIENCE)
}

/// How many guests live and die after each other; `FERROXEN_LIVES` says otherwise.
const LIVES: u32 = 100;

pub(super) fn one_after_the_other(parts: &Parts) -> Result<()> {
    /// For each of them.
    const PATIENCE_FOR_A_LIFE: Duration = Duration::from_secs(5);
    const NODES: &str = "xenstore-ls / | wc -l";
    let lives = super::times("FERROXEN_LIVES", LIVES)?;
    let mut dom0 = Dom0::boot(parts)?;
    gives_its_devices_back(&mut dom0)?;
    dom0.write_config("cycle", &micro("cycle", "idle"))?;
    let cycle = |count: u32| {
        format!(
            "for i in $(seq {count}); do xl create -q /tmp/cycle.cfg >/dev/null && xl destroy cycle || break; \
             done; echo $i"
        )
    };
    // The first lives fill caches that stay.
    dom0.run_within(&cycle(5), PATIENCE)?;
    dom0.wait_until_gone("cycle", PATIENCE)?;
    let (free, nodes) = (dom0.settled_free_memory()?, dom0.run(NODES)?);
    let done = dom0.run_within(&cycle(lives), PATIENCE_FOR_A_LIFE * lives)?;
    ensure!(done == lives.to_string(), "life {done} of {lives} failed");
    dom0.wait_until_gone("cycle", PATIENCE)?;
    let (left, nodes_left) = (dom0.settled_free_memory()?, dom0.run(NODES)?);
    ensure!(left >= free, "{free} MiB were free before, {left} MiB after");
    ensure!(
        nodes_left == nodes,
        "xenstore had {nodes} nodes before, {nodes_left} after"
    );
    dom0.power_off(PATIENCE)
}

/// What Domain 0 and the hypervisor hold for a guest with a disk and a card goes with it.
fn gives_its_devices_back(dom0: &mut Dom0) -> Result<()> {
    const LIVES: u32 = 5;
    /// A backend lets go in the background.
    const LOOKS: u32 = 50;
    // Loop devices, cards, backends; and Domain 0's event channels and mapped grants, by the hypervisor's own account.
    const HELD: &str = "losetup -a; ls /sys/class/net /sys/bus/xen-backend/devices; xl debug-keys e; xl debug-keys g; \
                        xl dmesg | sed -nE 's/^.XEN. (d0: .*(ports in use|mappings of).*)/\\1/p' | tail -n 2";
    dom0.run("cp /srv/guests/micro /tmp/disk.img")?;
    let guest = Tiny::new("owner").at("10.0.2.70").disk("file:/tmp/disk.img,xvdb,w");
    let mut before = String::new();
    for life in 0..=LIVES {
        dom0.start_tiny(&guest)?;
        dom0.destroy("owner")?;
        let mut held = dom0.run(HELD)?;
        // The first life fills caches that stay.
        if life == 0 {
            dom0.settled_free_memory()?;
            before = dom0.run(HELD)?;
            continue;
        }
        for _ in 0..LOOKS {
            if held == before {
                break;
            }
            dom0.run("usleep 200000")?;
            held = dom0.run(HELD)?;
        }
        ensure!(
            held == before,
            "after life {life}, what is held was:\n{before}\nand is:\n{held}"
        );
    }
    ensure!(
        before.contains("ports in use") && before.contains("mappings of"),
        "the debug keys say nothing of Domain 0: {before}"
    );
    Ok(())
}
