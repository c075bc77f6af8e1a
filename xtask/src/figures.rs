//! `cargo xtask figures`: the table of docs/figures.md. How long a start takes, how large the image is, what a
//! guest costs; beside Debian's Xen 4.17 on the same machine in the same run, since seconds are the machine's.
//! Instructions are nobody's, so a start is also counted in those.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result};
use ferroxen_stories::dom0::{Dom0, PATIENCE};
use ferroxen_stories::guest::micro;
use ferroxen_stories::machine::{Accelerator, Moment, Parts};

use crate::bench::{self, Bench, Choice};
use crate::hypervisor;
use crate::images::Toolstack;
use crate::run;
use crate::steps::{Step, Steps};

/// Idle guests that are measured together, so that a MiB more or less is little to each.
const GUESTS: u64 = 8;
/// The memory of each, in MiB.
const GUEST_MIB: u64 = 64;
const ADVICE: &str = "target/logs/figures-*.log have what the machines said";

/// How far a start is, at the ends of what is measured.
#[derive(Clone, Copy)]
struct Start {
    /// From power-on to Domain 0's init.
    to_init: Moment,
    /// From power-on to Domain 0's prompt.
    to_prompt: Moment,
    /// From `xl create` to the guest's prompt.
    guest: Moment,
}

/// What one hypervisor showed.
struct Measured {
    name: &'static str,
    bench: Bench,
    /// Each timed, on a machine as fast as it can be.
    timed: Vec<Start>,
    /// One on a machine that counts instructions.
    counted: Option<Start>,
    kib_per_guest: u64,
    /// Bytes of the image in memory.
    loaded: u64,
    /// Bytes of the image as a file.
    packed: u64,
}

/// Measures both hypervisors and prints the table.
pub fn figures(runs: u32, yes: bool) -> Result<()> {
    let mut steps = Steps::new();
    let mut both = [prepare(true, yes, &mut steps)?, prepare(false, yes, &mut steps)?];
    // In turns, so that whatever else the host does is to the disadvantage of both.
    for run in 1..=runs {
        for one in &mut both {
            steps.step(&format!("{}, run {run} of {runs}", one.name), ADVICE, |step| {
                one.time(run, step)
            })?;
        }
    }
    for one in &mut both {
        steps.step(&format!("{}, counted", one.name), ADVICE, |step| one.count(step))?;
    }
    let [stock, ours] = both;
    print!("\n{}", table(&ours, &stock));
    Ok(())
}

fn prepare(stock: bool, yes: bool, steps: &mut Steps) -> Result<Measured> {
    let toolstack = Toolstack::Ours;
    let bench = Bench::prepare(Choice { stock, toolstack, yes }, steps)?;
    let (name, loaded, packed) = if stock {
        let loaded = hypervisor::sizes(&fs::read(bench::stock_xen()?)?)?.0;
        ("stock", loaded, fs::metadata(bench::STOCK_XEN)?.len())
    } else {
        let built = hypervisor::build()?;
        ("ferroxen", built.loaded, built.packed)
    };
    Ok(Measured {
        name,
        bench,
        timed: Vec::new(),
        counted: None,
        kib_per_guest: 0,
        loaded,
        packed,
    })
}

impl Measured {
    fn time(&mut self, run: u32, step: &Step) -> Result<()> {
        let parts = self.bench.parts(&format!("figures-{}-{run}", self.name));
        let (dom0, start) = start(&parts, step)?;
        dom0.power_off(PATIENCE)?;
        self.timed.push(start);
        Ok(())
    }

    fn count(&mut self, step: &Step) -> Result<()> {
        let mut parts = self.bench.parts(&format!("figures-{}-counted", self.name));
        parts.accelerator = Accelerator::Counted;
        let (mut dom0, start) = start(&parts, step)?;
        self.counted = Some(start);
        step.say(&format!("{GUESTS} idle guests"));
        self.kib_per_guest = kib_per_guest(&mut dom0)?;
        dom0.power_off(PATIENCE)
    }
}

/// Boots, and sees the demo guest come and go.
fn start(parts: &Parts, step: &Step) -> Result<(Dom0, Start)> {
    let mut dom0 = Dom0::boot_with_progress(parts, &mut |news| step.say(news))?;
    let (to_init, to_prompt) = (dom0.init_ran(), dom0.prompted());
    let began = dom0.machine().now()?;
    run::start_demo(&mut dom0)?;
    let guest = dom0.machine().now()?.since(began);
    dom0.destroy("demo")?;
    let start = Start {
        to_init,
        to_prompt,
        guest,
    };
    Ok((dom0, start))
}

/// What idle guests cost beside their own memory.
fn kib_per_guest(dom0: &mut Dom0) -> Result<u64> {
    // The first life fills caches that stay.
    create(dom0, 0)?;
    dom0.destroy("idle0")?;
    let before = free_kib(dom0)?;
    for number in 1..=GUESTS {
        create(dom0, number)?;
    }
    let after = free_kib(dom0)?;
    for number in 1..=GUESTS {
        dom0.destroy(&format!("idle{number}"))?;
    }
    let taken = before.checked_sub(after).context("guests made memory")?;
    Ok(taken.saturating_sub(GUESTS * GUEST_MIB * 1024) / GUESTS)
}

fn create(dom0: &mut Dom0, number: u64) -> Result<()> {
    let name = format!("idle{number}");
    let config = format!("{}memory = {GUEST_MIB}\n", micro(&name, "idle"));
    dom0.create(&name, &config)
}

/// The hypervisor's free memory, by the debug key that both have.
fn free_kib(dom0: &mut Dom0) -> Result<u64> {
    const ASK: &str = "xl debug-keys m; xl dmesg | grep -oE 'memory: .* bytes free|Dom heap: .*kB free' | tail -n 1";
    // What a destroyed guest had comes back in the background.
    dom0.settled_free_memory()?;
    let line = dom0.run(ASK)?;
    read_free(&line).with_context(|| format!("the debug key `m` says {line:?}"))
}

/// Reads `memory: 371338 of 524155 pages free, 0 to scrub; heap 65701658 of 66060288 bytes free`, as we print it,
/// or `Dom heap: 1485352kB free`, as Debian's Xen does; in KiB.
fn read_free(line: &str) -> Option<u64> {
    let number_after = |sign: &str| {
        let (_, rest) = line.split_once(sign)?;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u64>().ok()
    };
    number_after("Dom heap: ").or_else(|| Some(number_after("memory: ")? * 4 + number_after("heap ")? / 1024))
}

/// A figure: how it is written, and what it is compared by.
type Figure = (String, f64);
/// Takes one of a start's moments.
type Which = fn(&Start) -> Moment;

fn seconds(measured: &Measured, which: Which) -> Figure {
    let mut times: Vec<_> = measured.timed.iter().map(|start| which(start).age).collect();
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default().as_secs_f64();
    (format!("{median:.1} s"), median)
}

#[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
fn instructions(measured: &Measured, which: Which) -> Figure {
    let counted = measured.counted.as_ref().map_or(0, |start| which(start).instructions);
    (format!("{} M", counted / 1_000_000), counted as f64)
}

#[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
fn size(bytes: u64) -> Figure {
    (format!("{} KiB", bytes.div_ceil(1024)), bytes as f64)
}

fn table(ours: &Measured, stock: &Measured) -> String {
    const STARTS: [(&str, Which); 3] = [
        ("power-on to Domain 0's init", |start| start.to_init),
        ("power-on to Domain 0's prompt", |start| start.to_prompt),
        ("`xl create` to the prompt of a Debian guest", |start| start.guest),
    ];
    const RUN: &str = "`cargo xtask run </dev/null`";
    const BUILD: &str = "`cargo xtask build`";
    let mut text = String::from(
        "| figure | Ferroxen | Debian's Xen 4.17 | ratio | printed by |\n| --- | ---: | ---: | ---: | --- |\n",
    );
    let mut row = |what: &str, ours: Figure, stock: Figure, by: &str| {
        let ratio = ours.1 / stock.1;
        // A String takes everything.
        let _ = writeln!(text, "| {what} | {} | {} | {ratio:.2} | {by} |", ours.0, stock.0);
    };
    for (what, which) in STARTS {
        row(what, seconds(ours, which), seconds(stock, which), RUN);
        row(
            &format!("{what}, instructions"),
            instructions(ours, which),
            instructions(stock, which),
            "`cargo xtask figures`",
        );
    }
    row(
        "image, loaded (at most 1024 KiB)",
        size(ours.loaded),
        size(stock.loaded),
        BUILD,
    );
    row("image, gzipped", size(ours.packed), size(stock.packed), BUILD);
    row(
        "hypervisor's memory per idle guest of 64 MiB",
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
    fn what_the_debug_key_says_is_read() {
        let ours = "memory: 371338 of 524155 pages free, 2 to scrub; heap 65701658 of 66060288 bytes free";
        assert_eq!(read_free(ours), Some(371_338 * 4 + 65_701_658 / 1024));
        assert_eq!(read_free("Dom heap: 1485352kB free"), Some(1_485_352));
        assert_eq!(read_free(""), None);
    }
}
