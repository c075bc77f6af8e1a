//! `cargo xtask bench`: what each operation costs on Debian's Xen and on ours, in instructions.
//!
//! QEMU counts them: under `-icount shift=0,sleep=off` a tick of the guest's time-stamp counter is one instruction,
//! so a figure is the same whatever else this machine does. Each hypervisor runs the same kernel twice, and two runs
//! must print the same; and again with other arguments that nobody looks at, which may move a row within a range.

mod figures;
mod goals;
mod growth;
mod loads;
mod machine;
mod order;
mod store;
mod table;

use std::fs;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, ensure};

pub use crate::cost::growth::growth;
pub use crate::cost::loads::Group;
pub use crate::cost::order::order;
pub use crate::cost::store::store;

use crate::bench::{self, STOCK_XEN};
use crate::cost::figures::{Figures, Ranges};
use crate::cost::goals::GOALS;
use crate::cost::machine::{Counter, Load, Machine};
use crate::cost::table::{Row, Table};
use crate::hypervisor::{self, Built};
use crate::packages::{self, Need};
use crate::places;
use crate::programs::{clean_command, run};
use crate::steps::{Step, Steps};

/// Arguments that nobody looks at. Their lengths differ, by less than a word and by more than a cache line.
const UNUSED: [&str; 3] = [
    "a",
    "bcd",
    "one-that-takes-more-than-the-64-bytes-of-a-line-wherever-it-is-put-down",
];
/// As often is something run that has to come out the same twice.
const MOST_RUNS: usize = 5;
const ADVICE: &str = "target/logs/bench-*.log have what the machines said";

/// Runs `groups` (all, if none are named), prints the table, and fails when a row may cost more on ours than on
/// Debian's.
pub fn bench(groups: &[Group], yes: bool) -> Result<()> {
    let groups = if groups.is_empty() { &Group::ALL[..] } else { groups };
    packages::require(&[Need::BareMetal, Need::Machine, Need::StockXen, Need::Images], yes)?;
    let mut steps = Steps::new();
    let (built, stock, counter) = steps.step(
        "hypervisors and counter",
        "`cargo xtask build` shows ours alone",
        |_| Ok((hypervisor::build()?, bench::stock_xen()?, counter()?)),
    )?;
    let machines = [
        Machine::new("stock", &stock, ""),
        Machine::new("stock-spec-ctrl=no", &stock, "spec-ctrl=no"),
        Machine::new("ours", &built.elf, ""),
    ];
    let mut heard = [const { Ranges::new() }; 3];
    for group in groups {
        let load = steps.step(&format!("what to run: {}", group.name()), "the error says what", |_| {
            group.load()
        })?;
        for (machine, ranges) in machines.iter().zip(&mut heard) {
            let name = format!("{} on {}", group.name(), machine.name);
            steps.step(&name, ADVICE, |step| ranged(machine, &load, &counter, ranges, step))?;
        }
    }
    for (machine, ranges) in machines.iter().zip(&heard) {
        for line in &ranges.mitigations {
            println!("{}: {line}", machine.name);
        }
    }
    let mut table = compared(&heard, groups)?;
    if groups.contains(&Group::Operations) {
        add_sizes(&mut table, &stock, &built)?;
    }
    println!("{table}");
    println!("above their goals: {}", table.missing_goals().join(", "));
    let above = table.above();
    ensure!(
        above.is_empty(),
        "costs more than on Debian's Xen: {}",
        above.join(", ")
    );
    Ok(())
}

/// Puts the figures of all three beside each other.
fn compared([stock, unmitigated, ours]: &[Ranges; 3], groups: &[Group]) -> Result<Table> {
    let mut table = Table::new();
    for name in ours.names() {
        table.add(Row {
            name: name.to_owned(),
            stock: stock.get(name)?,
            unmitigated: unmitigated.get(name)?,
            ours: ours.get(name)?,
            goal: GOALS.iter().find(|(of, ..)| *of == name).map(|(_, _, goal)| *goal),
        });
    }
    for (goal, group, _) in GOALS {
        ensure!(
            !groups.contains(&group) || ours.get(goal).is_ok(),
            "nobody measures {goal}"
        );
    }
    Ok(table)
}

fn add_sizes(table: &mut Table, stock: &Path, built: &Built) -> Result<()> {
    let size = |path: &Path| -> Result<u64> {
        Ok(fs::metadata(path)
            .with_context(|| format!("reading {}", path.display()))?
            .len())
    };
    for (name, theirs, ours) in [
        ("image, bytes", size(stock)?, size(&built.elf)?),
        ("image, packed, bytes", size(Path::new(STOCK_XEN))?, built.packed),
    ] {
        table.add(Row {
            name: name.to_owned(),
            stock: theirs.into(),
            unmitigated: theirs.into(),
            ours: ours.into(),
            goal: None,
        });
    }
    Ok(())
}

/// Builds the plugin that counts instructions. Whoever can link host programs has a C compiler.
fn counter() -> Result<Counter> {
    let source = places::root().join("xtask/src/cost/count.c");
    let plugin = places::made().join("count.so");
    run(clean_command("cc")
        .args(["-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-o"])
        .arg(&plugin)
        .arg(source))?;
    Ok(Counter { plugin, blocks: None })
}

/// Runs `load` with each unused argument.
fn ranged(machine: &Machine, load: &Load, counter: &Counter, ranges: &mut Ranges, step: &Step) -> Result<()> {
    for (round, unused) in (1..).zip(UNUSED) {
        step.say(&format!("unused={unused}, twice"));
        let run = |name: &str| machine.run(load, counter, unused, &format!("{round}{name}"));
        ranges.include(repeated(run, step).context(machine.name)?);
    }
    Ok(())
}

/// Runs something twice at the same time, and then once more as often as no two runs have the same figures.
///
/// The emulator has a thread that runs the machine, and another that moves the clock on while it is idle. Where the first
/// has stopped but not told yet how far it came, the clock goes too far by that: a matter of luck on a busy host.
fn repeated(run: impl Fn(&str) -> Result<Figures> + Sync, step: &Step) -> Result<Figures> {
    let (first, second) = thread::scope(|scope| {
        let other = scope.spawn(|| run("-again"));
        (run(""), other.join())
    });
    let mut runs = vec![first?, second.map_err(|_| anyhow::anyhow!("a run panicked"))??];
    loop {
        let last = runs.pop().context("nothing ran")?;
        let differences: Option<Vec<String>> = runs.iter().map(|earlier| earlier.difference(&last)).collect();
        let Some(differences) = differences else {
            return Ok(last);
        };
        runs.push(last);
        let differ = differences.join("; ");
        ensure!(
            runs.len() < MOST_RUNS,
            "no two of {MOST_RUNS} runs are the same: {differ}"
        );
        step.say(&format!("once more: {differ}"));
        runs.push(run(&format!("-run-{}", runs.len() + 1))?);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// What comes of runs that give these figures, one after the other, and how many there were.
    fn of(figures: &[u64]) -> (Result<u64>, usize) {
        let count = AtomicUsize::new(0);
        let run = |_: &str| {
            let figure = figures[count.fetch_add(1, Ordering::SeqCst)];
            let of = vec![("row".to_owned(), figure)];
            Ok(Figures {
                of,
                ..Figures::default()
            })
        };
        let said = Steps::new().step("runs", "", |step| repeated(run, step));
        (said.map(|figures| figures.of[0].1), count.into_inner())
    }

    #[test]
    fn two_that_are_the_same_are_enough() {
        assert!(matches!(of(&[7, 7]), (Ok(7), 2)));
    }

    #[test]
    fn one_that_is_alone_is_left_out() {
        assert!(matches!(of(&[7, 8, 7]), (Ok(7), 3)));
        assert!(matches!(of(&[7, 8, 9, 8]), (Ok(8), 4)));
    }

    #[test]
    fn what_is_never_the_same_is_an_error() {
        let (said, runs) = of(&[1, 2, 3, 4, 5, 6]);
        assert_eq!(runs, MOST_RUNS);
        assert!(format!("{:?}", said.unwrap_err()).contains("no two of 5 runs are the same"));
    }
}
