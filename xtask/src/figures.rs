//! `cargo xtask figures`: the table of docs/figures.md. How long a start takes, how large the image is, what a
//! guest costs; beside Debian's Xen 4.17 on the same machine in the same run, since seconds are the machine's.

use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ferroxen_stories::dom0::{Dom0, PATIENCE};
use ferroxen_stories::guest::micro;

use crate::bench::{self, Bench, Choice};
use crate::hypervisor;
use crate::images::Toolstack;
use crate::run;
use crate::steps::Steps;

/// Idle guests that are measured together, so that a MiB more or less is little to each.
const GUESTS: u64 = 8;
/// The memory of each, in MiB.
const GUEST_MIB: u64 = 64;
const ADVICE: &str = "target/logs/figures-*.log have what the machines said";

/// What one hypervisor showed.
struct Measured {
    to_init: Duration,
    to_prompt: Duration,
    guest_to_prompt: Duration,
    kib_per_guest: u64,
    loaded: u64,
    packed: u64,
}

/// Measures both hypervisors and prints the table.
pub fn figures(yes: bool) -> Result<()> {
    let mut steps = Steps::new();
    let choice = |stock| Choice {
        stock,
        toolstack: Toolstack::Ours,
        yes,
    };
    let stock = Bench::prepare(choice(true), &mut steps)?;
    let ours = Bench::prepare(choice(false), &mut steps)?;
    let ours = steps.step("Ferroxen", ADVICE, |step| {
        measure(&ours, "figures-ours", &mut |news| step.say(news))
    })?;
    let stock = steps.step("Debian's Xen", ADVICE, |step| {
        measure(&stock, "figures-stock", &mut |news| step.say(news))
    })?;
    print!("\n{}", table(&with_sizes(ours)?, &with_stock_sizes(stock)?));
    Ok(())
}

fn measure(bench: &Bench, name: &str, progress: &mut dyn FnMut(&str)) -> Result<Measured> {
    let mut dom0 = Dom0::boot_with_progress(&bench.parts(name), progress)?;
    let (to_init, to_prompt) = (dom0.time_to_init(), dom0.machine().age());
    let began = Instant::now();
    run::start_demo(&mut dom0)?;
    let guest_to_prompt = began.elapsed();
    dom0.destroy("demo")?;
    progress("eight idle guests");
    let kib_per_guest = kib_per_guest(&mut dom0)?;
    dom0.power_off(PATIENCE)?;
    Ok(Measured {
        to_init,
        to_prompt,
        guest_to_prompt,
        kib_per_guest,
        loaded: 0,
        packed: 0,
    })
}

/// What idle guests cost beside their own memory.
///
/// Our debug key `m` counts in pages and bytes; where it is not known, `xl info` has to do, which counts in MiB.
fn kib_per_guest(dom0: &mut Dom0) -> Result<u64> {
    // The first life fills caches that stay.
    start(dom0, 0)?;
    dom0.destroy("idle0")?;
    let before = free_kib(dom0)?;
    for number in 1..=GUESTS {
        start(dom0, number)?;
    }
    let after = free_kib(dom0)?;
    for number in 1..=GUESTS {
        dom0.destroy(&format!("idle{number}"))?;
    }
    let taken = before.checked_sub(after).context("guests made memory")?;
    Ok(taken.saturating_sub(GUESTS * GUEST_MIB * 1024) / GUESTS)
}

fn start(dom0: &mut Dom0, number: u64) -> Result<()> {
    let name = format!("idle{number}");
    let config = format!("{}memory = {GUEST_MIB}\n", micro(&name, "idle"));
    dom0.create(&name, &config)
}

fn free_kib(dom0: &mut Dom0) -> Result<u64> {
    let mib = dom0.settled_free_memory()?;
    let line = dom0.run("xl debug-keys m; xl dmesg | grep -o 'memory: .* bytes free' | tail -n 1")?;
    Ok(exact(&line).unwrap_or(mib * 1024))
}

/// Reads `memory: 371338 of 524155 pages free, 0 to scrub; heap 65701658 of 66060288 bytes free`, in KiB.
fn exact(line: &str) -> Option<u64> {
    let number_after = |sign: &str| line.split_once(sign)?.1.split(' ').next()?.parse::<u64>().ok();
    Some(number_after("memory: ")? * 4 + number_after("heap ")? / 1024)
}

fn with_sizes(measured: Measured) -> Result<Measured> {
    let built = hypervisor::build()?;
    Ok(Measured {
        loaded: built.loaded,
        packed: built.packed,
        ..measured
    })
}

fn with_stock_sizes(measured: Measured) -> Result<Measured> {
    Ok(Measured {
        loaded: hypervisor::sizes(&fs::read(bench::stock_xen()?)?)?.0,
        packed: fs::metadata(bench::STOCK_XEN)?.len(),
        ..measured
    })
}

fn table(ours: &Measured, stock: &Measured) -> String {
    let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
    let kib = |bytes: u64| format!("{} KiB", bytes / 1024);
    let ratio = |ours: f64, stock: f64| format!("{:.2}", ours / stock);
    let mut text = String::from("| figure | Ferroxen | Debian's Xen 4.17 | ratio | also printed by |\n");
    text.push_str("| --- | ---: | ---: | ---: | --- |\n");
    let mut row = |what: &str, ours: (String, f64), stock: (String, f64), by: &str| {
        let ratio = ratio(ours.1, stock.1);
        // A String takes everything.
        let _ = writeln!(text, "| {what} | {} | {} | {ratio} | {by} |", ours.0, stock.0);
    };
    let time = |time: Duration| (seconds(time), time.as_secs_f64());
    let size = |bytes: u64| (kib(bytes), bytes as f64);
    row(
        "power-on to Domain 0's init",
        time(ours.to_init),
        time(stock.to_init),
        "`cargo xtask run </dev/null`",
    );
    row(
        "power-on to Domain 0's prompt",
        time(ours.to_prompt),
        time(stock.to_prompt),
        "`cargo xtask run </dev/null`",
    );
    row(
        "`xl create` to the prompt of a Debian guest",
        time(ours.guest_to_prompt),
        time(stock.guest_to_prompt),
        "`cargo xtask run </dev/null`",
    );
    row(
        "image, loaded (at most 1024 KiB)",
        size(ours.loaded),
        size(stock.loaded),
        "`cargo xtask build`",
    );
    row(
        "image, gzipped",
        size(ours.packed),
        size(stock.packed),
        "`cargo xtask build`",
    );
    row(
        "hypervisor's memory per idle guest of 64 MiB (at most 1024 KiB)",
        size(ours.kib_per_guest * 1024),
        size(stock.kib_per_guest * 1024),
        "`xl debug-keys m; xl dmesg` before and after",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_the_debug_key_is_read() {
        let line = "memory: 371338 of 524155 pages free, 2 to scrub; heap 65701658 of 66060288 bytes free";
        assert_eq!(exact(line), Some(371_338 * 4 + 65_701_658 / 1024));
        assert_eq!(exact(""), None);
    }
}
