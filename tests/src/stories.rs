//! The stories. Each boots what it needs, and returns an error that says what went wrong.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::dom0::{Dom0, PATIENCE};
use crate::guest::{DEBIAN_PATIENCE, TINY_PATIENCE, Tiny, micro};
use crate::machine::Parts;

/// A story: what it is called, what it claims, how it is told.
pub struct Story {
    /// For the command line.
    pub name: &'static str,
    /// What is true if it passes.
    pub claim: &'static str,
    /// Whether `cargo xtask test` tells it unasked.
    pub is_default: bool,
    /// Tells it on a machine of these parts.
    pub tell: fn(&Parts) -> Result<()>,
}

/// Every story there is.
pub const STORIES: &[Story] = &[
    story(
        "boot-1",
        "boots on one CPU; a guest comes up and shuts down",
        boot_on_one_cpu,
    ),
    story(
        "boot-4",
        "boots on four CPUs; Domain 0 and a guest have two vcpus each",
        boot_on_four_cpus,
    ),
    story(
        "disk",
        "a guest's file-backed root keeps its data over a reboot",
        disk_survives_reboot,
    ),
    story(
        "network",
        "ping, and 64 MiB over TCP both ways, arrive intact",
        network_carries_data,
    ),
    story(
        "console",
        "more than a megabyte of console output loses nothing",
        console_loses_nothing,
    ),
    story(
        "pause",
        "a paused guest neither runs nor is charged",
        pause_stops_a_guest,
    ),
    story(
        "spin",
        "a guest that spins with events off is destroyed within 2 s",
        spinning_guest_dies,
    ),
    story(
        "eight",
        "eight guests live at once and give back what they had",
        eight_guests,
    ),
    story(
        "cycles",
        "200 lives and deaths leave no memory and no nodes behind",
        cycles_leak_nothing,
    ),
    story(
        "stress",
        "stress-ng runs for a minute in a guest without a fault",
        stress_for_a_minute,
    ),
    story(
        "storm",
        "random hypercalls for a minute harm nobody else",
        storm_harms_nobody,
    ),
];

const fn story(name: &'static str, claim: &'static str, tell: fn(&Parts) -> Result<()>) -> Story {
    Story {
        name,
        claim,
        is_default: true,
        tell,
    }
}

fn boot_on_one_cpu(parts: &Parts) -> Result<()> {
    let mut dom0 = Dom0::boot(parts)?;
    let kind = dom0.run("cat /sys/hypervisor/type")?;
    ensure!(kind == "xen", "the hypervisor's type is {kind:?}");
    let role = dom0.run("cat /proc/xen/capabilities")?;
    ensure!(role.contains("control_d"), "Domain 0's capabilities are {role:?}");
    dom0.start_tiny(&Tiny::new("one"))?;
    let list = dom0.run("xl list")?;
    ensure!(
        list.contains("Domain-0") && list.contains("one"),
        "the list is:\n{list}"
    );
    dom0.converse("xl console one", &["poweroff -f"], PATIENCE)?;
    dom0.wait_until_gone("one", PATIENCE)?;
    dom0.power_off(PATIENCE)
}

fn boot_on_four_cpus(parts: &Parts) -> Result<()> {
    let mut parts = parts.clone();
    parts.cpus = 4;
    parts.options.push_str(" dom0_max_vcpus=2");
    let mut dom0 = Dom0::boot(&parts)?;
    let cpus = dom0.run("nproc")?;
    ensure!(cpus == "2", "Domain 0 has {cpus} vcpus, not 2");
    let info = dom0.run("xl info | sed -n 's/^nr_cpus *: *//p'")?;
    ensure!(info == "4", "the host has {info} CPUs, not 4");
    let mut tiny = Tiny::new("two");
    tiny.vcpus = 2;
    dom0.start_tiny(&tiny)?;
    let cpus = dom0.in_guest("two", "nproc", PATIENCE)?;
    ensure!(cpus == "2", "the guest has {cpus} vcpus, not 2");
    dom0.destroy("two")?;
    dom0.power_off(PATIENCE)
}

fn disk_survives_reboot(parts: &Parts) -> Result<()> {
    const PROMPT: &str = "root@guest:~#";
    let mut dom0 = Dom0::boot(parts)?;
    dom0.run("xl create /etc/xen/demo.cfg")?;
    dom0.watch_guest("demo", PROMPT, DEBIAN_PATIENCE)?;
    let write = "dd if=/dev/urandom of=/root/data bs=1M count=8 status=none && sync && sha256sum /root/data";
    let before = dom0.in_guest("demo", write, PATIENCE)?;
    let old = dom0.run("xl domid demo")?;
    dom0.run("xl reboot demo")?;
    let renewed = format!(
        "for _ in $(seq {}); do new=$(xl domid demo 2>/dev/null); \
         [ -n \"$new\" ] && [ \"$new\" != {old} ] && exit 0; sleep 1; done; exit 1",
        DEBIAN_PATIENCE.as_secs()
    );
    dom0.run_within(&format!("({renewed})"), DEBIAN_PATIENCE)
        .context("no new domain after the reboot")?;
    dom0.watch_guest("demo", PROMPT, DEBIAN_PATIENCE)?;
    let after = dom0.in_guest("demo", "sha256sum /root/data", PATIENCE)?;
    ensure!(
        before == after,
        "the file was {before} before the reboot and {after} after it"
    );
    dom0.destroy("demo")?;
    dom0.power_off(PATIENCE)
}

fn network_carries_data(parts: &Parts) -> Result<()> {
    const TRANSFER: Duration = Duration::from_secs(180);
    const MAKE: &str = "dd if=/dev/urandom of=/tmp/data bs=1M count=64 2>/dev/null; sha256sum </tmp/data";
    let mut dom0 = Dom0::boot(parts)?;
    let mut tiny = Tiny::new("net").at("10.0.2.30");
    tiny.memory_mib = 384;
    dom0.start_tiny(&tiny)?;
    let ping = dom0.run("ping -c 5 -i 0.2 10.0.2.30")?;
    ensure!(ping.contains(" 0% packet loss"), "ping lost packets:\n{ping}");
    dom0.in_guest("net", "ping -c 3 10.0.2.15", PATIENCE)?;

    // Whoever listens answers with the checksum of what arrived.
    let sent = dom0.in_guest("net", MAKE, TRANSFER)?;
    dom0.run("(timeout 180 busybox nc -l -p 5001 -e sha256sum >/dev/null 2>&1 &)")?;
    let arrived = dom0.in_guest("net", "nc 10.0.2.15 5001 </tmp/data", TRANSFER)?;
    ensure!(arrived == sent, "the guest sent {sent} and Domain 0 got {arrived}");

    let sent = dom0.run_within(MAKE, TRANSFER)?;
    dom0.in_guest(
        "net",
        "(timeout 180 nc -l -p 5002 -e sha256sum >/dev/null 2>&1 &)",
        PATIENCE,
    )?;
    let arrived = dom0.run_within("busybox nc 10.0.2.30 5002 </tmp/data", TRANSFER)?;
    ensure!(arrived == sent, "Domain 0 sent {sent} and the guest got {arrived}");
    dom0.destroy("net")?;
    dom0.power_off(PATIENCE)
}

fn console_loses_nothing(parts: &Parts) -> Result<()> {
    const LINES: u32 = 165_000;
    const PRINTING: Duration = Duration::from_secs(240);
    let mut dom0 = Dom0::boot(parts)?;
    dom0.start_tiny(&Tiny::new("talk"))?;
    // The guest begins a little later, so that nobody else reads what it says.
    dom0.in_guest(
        "talk",
        &format!("( (sleep 3; echo; seq 1 {LINES}; echo END'OF'TALK) & )"),
        PATIENCE,
    )?;
    dom0.run("(xl console talk </dev/null >/tmp/out 2>&1 &)")?;
    // Until the end is there, or nothing has come for a while.
    let wait = "old=; for _ in $(seq 20); do sleep 10; new=$(stat -c %s /tmp/out); \
                [ $new = \"$old\" ] && break; old=$new; tail -c 40 /tmp/out | grep -q ENDOFTALK && break; \
                done; tail -c 200 /tmp/out";
    let end = dom0.run_within(wait, PRINTING)?;
    ensure!(end.contains("ENDOFTALK"), "the output stopped early, with:\n{end}");
    let arrived = dom0.run("tr -d '\\r' </tmp/out | grep -E '^[0-9]+$' | sha256sum")?;
    let expected = dom0.run(&format!("seq 1 {LINES} | sha256sum"))?;
    let size = dom0.run("stat -c %s /tmp/out")?;
    ensure!(
        arrived == expected,
        "the output is not what was printed; {size} bytes arrived"
    );
    ensure!(size.parse::<u64>()? > 1_000_000, "only {size} bytes arrived");
    dom0.destroy("talk")?;
    dom0.power_off(PATIENCE)
}

fn pause_stops_a_guest(parts: &Parts) -> Result<()> {
    let mut dom0 = Dom0::boot(parts)?;
    dom0.start_tiny(&Tiny::new("busy").then("(while :; do :; done)&"))?;
    let running = dom0.cpu_seconds("busy")?;
    dom0.run("sleep 3")?;
    ensure!(
        dom0.cpu_seconds("busy")? > running + 0.5,
        "the guest does not even run before it is paused"
    );
    dom0.run("xl pause busy")?;
    let paused = dom0.cpu_seconds("busy")?;
    dom0.run("sleep 3")?;
    let later = dom0.cpu_seconds("busy")?;
    ensure!(
        later <= paused + 0.1,
        "paused, the guest had {paused} s, and {later} s three seconds later"
    );
    let list = dom0.run("xl list busy")?;
    ensure!(
        list.contains("--p---"),
        "the list does not say that it is paused:\n{list}"
    );
    dom0.run("xl unpause busy")?;
    dom0.run("sleep 3")?;
    ensure!(
        dom0.cpu_seconds("busy")? > later + 0.5,
        "the guest does not run on after the pause"
    );
    let answer = dom0.in_guest("busy", "echo alive", TINY_PATIENCE)?;
    ensure!(answer == "alive", "after the pause the guest says {answer:?}");
    dom0.destroy("busy")?;
    dom0.power_off(PATIENCE)
}

fn spinning_guest_dies(parts: &Parts) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(2);
    let mut dom0 = Dom0::boot(parts)?;
    let free = dom0.settled_free_memory()?;
    dom0.create("spin", &micro("spin", "spin"))?;
    let early = dom0.cpu_seconds("spin")?;
    dom0.run("sleep 2")?;
    ensure!(dom0.cpu_seconds("spin")? > early, "the guest does not spin");
    let began = Instant::now();
    dom0.run("xl destroy spin")?;
    let list = dom0.run("xl list")?;
    let taken = began.elapsed();
    ensure!(taken <= LIMIT, "it took {:.1} s", taken.as_secs_f64());
    ensure!(!list.contains("spin"), "destroyed, it is still in the list:\n{list}");
    let left = dom0.settled_free_memory()?;
    ensure!(left >= free, "{free} MiB were free before, {left} MiB after");
    dom0.power_off(PATIENCE)
}

fn eight_guests(parts: &Parts) -> Result<()> {
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

fn cycles_leak_nothing(parts: &Parts) -> Result<()> {
    const CYCLES: u32 = 200;
    const PATIENCE_FOR_ALL: Duration = Duration::from_secs(600);
    const NODES: &str = "xenstore-ls / | wc -l";
    let mut dom0 = Dom0::boot(parts)?;
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
    let done = dom0.run_within(&cycle(CYCLES), PATIENCE_FOR_ALL)?;
    ensure!(done == CYCLES.to_string(), "cycle {done} of {CYCLES} failed");
    dom0.wait_until_gone("cycle", PATIENCE)?;
    let (left, nodes_left) = (dom0.settled_free_memory()?, dom0.run(NODES)?);
    ensure!(left >= free, "{free} MiB were free before, {left} MiB after");
    ensure!(
        nodes_left == nodes,
        "xenstore had {nodes} nodes before, {nodes_left} after"
    );
    dom0.power_off(PATIENCE)
}

fn stress_for_a_minute(parts: &Parts) -> Result<()> {
    const STRESS: Duration = Duration::from_secs(240);
    let mut dom0 = Dom0::boot(parts)?;
    dom0.run("xl create /etc/xen/demo.cfg")?;
    dom0.watch_guest("demo", "root@guest:~#", DEBIAN_PATIENCE)?;
    let load = "stress-ng --cpu 1 --vm 1 --vm-bytes 48M --fork 1 --pipe 1 --timeout 60s --quiet";
    dom0.in_guest("demo", load, STRESS)?;
    let faults = "dmesg | grep -cE 'BUG|Oops|general protection|segfault|soft lockup' || true";
    let faults = dom0.in_guest("demo", faults, PATIENCE)?;
    ensure!(faults == "0", "the guest's kernel complains {faults} times");
    dom0.destroy("demo")?;
    dom0.power_off(PATIENCE)
}

fn storm_harms_nobody(parts: &Parts) -> Result<()> {
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
    dom0.power_off(PATIENCE)
}
