//! `cargo xtask growth`: what the N-th guest costs to make, to list and to end, in instructions.
//!
//! All of the machine's count, from the start of the command until it has ended: the command itself, the daemons that
//! it asks for something, both kernels, the hypervisor. Guests are a kernel of ours that sleeps. All of them are there
//! at once in the end, and what they had is free again after them.

use std::fmt;
use std::thread;

use anyhow::{Context, Result, ensure};

use crate::bench;
use crate::cost::figures::{Figures, Range};
use crate::cost::loads::{self, DOM0_KERNEL_OPTIONS};
use crate::cost::machine::{Load, Machine};
use crate::cost::{ADVICE, counter};
use crate::hypervisor;
use crate::images::Toolstack;
use crate::kernel::Kernel;
use crate::packages::{self, Need};
use crate::steps::Steps;

const VERBS: [&str; 3] = ["create", "list", "destroy"];
/// The guests that have columns of their own, beside the last one.
const SHOWN: [u32; 3] = [1, 10, 20];
const DOM0_OPTIONS: &str = "dom0_mem=512M dom0_max_vcpus=1";
const DOM0_MIB: u32 = 512;
/// A guest's 8 MiB, and what hypervisors have for it beside them.
const GUEST_MIB: u32 = 10;
const SPARE_MIB: u32 = 512;
/// What any command may take at most.
const GOAL: u64 = 10_000_000;

/// Measures both hypervisors with their own toolstacks (or ours alone), and prints the table.
pub fn growth(guests: u32, ours_alone: bool, yes: bool) -> Result<()> {
    packages::require(&[Need::BareMetal, Need::Machine, Need::StockXen, Need::Images], yes)?;
    let mut steps = Steps::new();
    let (machines, counter) = steps.step(
        "hypervisors and counter",
        "`cargo xtask build` shows ours alone",
        |_| {
            let ours = Machine::new("ours", &hypervisor::build()?.elf, "");
            let mut machines = vec![(ours, Toolstack::Ours)];
            if !ours_alone {
                let stock = Machine::new("stock", &bench::stock_xen()?, "");
                machines.insert(0, (stock, Toolstack::Debian));
            }
            Ok((machines, counter()?))
        },
    )?;
    let loads = steps.step("what to run", "the error says what", |_| {
        machines
            .iter()
            .map(|(_, toolstack)| load(*toolstack, guests))
            .collect::<Result<Vec<_>>>()
    })?;
    let heard = steps.step("making, listing and ending them", ADVICE, |_| {
        thread::scope(|scope| {
            let runs: Vec<_> = machines
                .iter()
                .zip(&loads)
                .map(|((machine, _), load)| scope.spawn(|| machine.run(load, &counter, "a", "1")))
                .collect();
            runs.into_iter()
                .map(|run| run.join().map_err(|_| anyhow::anyhow!("a run panicked"))?)
                .collect::<Result<Vec<_>>>()
        })
    })?;
    println!("{}", heading(guests));
    let mut missed = Vec::new();
    for verb in VERBS {
        for ((machine, toolstack), figures) in machines.iter().zip(&heard) {
            let curve = Curve::of(verb, machine.name, figures, guests)?;
            println!("{curve}");
            if matches!(toolstack, Toolstack::Ours) && curve.most() > GOAL {
                missed.push(format!("`xl {verb}` takes {}", Range::from(curve.most())));
            }
        }
    }
    for ((machine, toolstack), figures) in machines.iter().zip(&heard) {
        let free = |when: &str| found(figures, &format!("free {when}"));
        let (before, with, after) = (free("before")?, free("with")?, free("after")?);
        println!(
            "{}: {guests} guests at once; free memory: {before} MiB before, {with} MiB with them, {after} MiB after",
            machine.name
        );
        let is_ours = matches!(toolstack, Toolstack::Ours);
        ensure!(before == after || !is_ours, "not all memory came back");
    }
    ensure!(missed.is_empty(), "above the goal: {}", missed.join(", "));
    Ok(())
}

/// Domain 0 with a toolstack, which makes, lists and ends `guests` guests.
pub(super) fn load(toolstack: Toolstack, guests: u32) -> Result<Load> {
    // The kernel asks for more than half of it.
    let config = b"name = \"NAME\"\nkernel = \"/measured/micro\"\nmemory = 8\nextra = \"idle\"\n";
    let files = vec![
        ("measured/micro", std::fs::read(hypervisor::build_guest("micro")?)?),
        ("measured/guest.cfg", config.to_vec()),
    ];
    let (name, image) = match toolstack {
        Toolstack::Ours => ("growth", "bench-growth.img"),
        Toolstack::Debian | Toolstack::Libvirt => ("growth-debian", "bench-growth-debian.img"),
    };
    Ok(Load {
        name,
        options: DOM0_OPTIONS,
        memory_mib: DOM0_MIB + SPARE_MIB + guests * GUEST_MIB,
        kernel: Kernel::fetch("amd64")?.vmlinux,
        kernel_options: format!("{DOM0_KERNEL_OPTIONS} guests={guests}"),
        ramdisk: Some(loads::dom0_with(
            image,
            toolstack,
            include_bytes!("sessions/growth"),
            files,
        )?),
    })
}

fn shown(guests: u32) -> impl Iterator<Item = u32> {
    SHOWN.into_iter().filter(move |number| *number < guests).chain([guests])
}

fn heading(guests: u32) -> String {
    let columns: String = shown(guests).map(|number| format!(" N = {number} |")).collect();
    let dashes: String = shown(guests).map(|_| " ---: |").collect();
    format!("| command | |{columns} each more | goal |\n| --- | --- |{dashes} ---: | ---: |")
}

/// What one command took with each number of guests.
struct Curve<'a> {
    verb: &'a str,
    of: &'a str,
    points: Vec<(u32, u64)>,
}

fn found(figures: &Figures, name: &str) -> Result<u64> {
    let row = figures.of.iter().find(|(row, _)| row == name);
    row.map(|(_, figure)| *figure)
        .with_context(|| format!("no figure for {name}"))
}

impl<'a> Curve<'a> {
    fn of(verb: &'a str, of: &'a str, figures: &Figures, guests: u32) -> Result<Self> {
        let figure = |number| Ok((number, found(figures, &format!("{verb} {number}"))?));
        let points = (1..=guests).map(figure).collect::<Result<_>>()?;
        Ok(Self { verb, of, points })
    }

    /// The most that it took.
    fn most(&self) -> u64 {
        self.points.iter().map(|(_, figure)| *figure).max().unwrap_or(0)
    }

    /// What each guest that is there already adds: the slope of the straight line that fits best.
    fn slope(&self) -> i64 {
        let count = self.points.len() as i128;
        let sum = |of: &dyn Fn(i128, i128) -> i128| -> i128 {
            self.points
                .iter()
                .map(|(x, y)| of(i128::from(*x), i128::from(*y)))
                .sum()
        };
        let (x, y) = (sum(&|x, _| x), sum(&|_, y| y));
        let below = count * sum(&|x, _| x * x) - x * x;
        let above = count * sum(&|x, y| x * y) - x * y;
        above
            .checked_div(below)
            .and_then(|slope| i64::try_from(slope).ok())
            .unwrap_or(0)
    }
}

impl fmt::Display for Curve<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| `xl {}` | {} |", self.verb, self.of)?;
        let guests = self.points.last().map_or(0, |(number, _)| *number);
        for number in shown(guests) {
            let figure = self
                .points
                .iter()
                .find(|(of, _)| *of == number)
                .map_or(0, |(_, figure)| *figure);
            write!(f, " {} |", Range::from(figure))?;
        }
        let slope = self.slope();
        let sign = if slope < 0 { "-" } else { "" };
        write!(
            f,
            " {sign}{} | {} |",
            Range::from(slope.unsigned_abs()),
            Range::from(GOAL)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_each_guest_adds_is_the_slope() {
        let curve = |points: &[(u32, u64)]| Curve {
            verb: "list",
            of: "ours",
            points: points.to_vec(),
        };
        assert_eq!(curve(&[(1, 110), (2, 120), (3, 130)]).slope(), 10);
        assert_eq!(curve(&[(1, 110), (2, 110)]).slope(), 0);
        assert_eq!(curve(&[(1, 110)]).slope(), 0);
        assert_eq!(curve(&[(1, 110), (2, 130), (3, 120)]).most(), 130);
        assert_eq!(
            curve(&[(1, 1_110), (2, 1_120)]).to_string(),
            "| `xl list` | ours | 1,110 | 1,120 | 10 | 10,000,000 |"
        );
    }
}
