//! `cargo xtask store`: what a read in xenstore costs, alone and beside a guest that storms it, with our daemon and with
//! Debian's two.
//!
//! The same client in the same Domain 0 on our hypervisor; only the daemon, and the toolstack around it, is another. A
//! read is one over the daemon's socket. All of the machine's instructions count, so those during the storm are the
//! time until the answer, on a machine that carries out one in a nanosecond.

use std::fs;

use anyhow::{Context, Result};

use crate::cost::figures::{Figures, Range};
use crate::cost::loads::{self, DOM0_KERNEL_OPTIONS};
use crate::cost::machine::{Load, Machine};
use crate::cost::{ADVICE, counter};
use crate::hypervisor;
use crate::images::Toolstack;
use crate::kernel::Kernel;
use crate::packages::{self, Need};
use crate::steps::Steps;

/// A daemon: its name, whose toolstack is around it, and how Domain 0's kernel is told that it is the one.
struct Daemon {
    name: &'static str,
    /// In names of files.
    word: &'static str,
    toolstack: Toolstack,
    option: &'static str,
}

const DAEMONS: [Daemon; 3] = [
    Daemon {
        name: "ours",
        word: "store-ours",
        toolstack: Toolstack::Ours,
        option: "",
    },
    Daemon {
        name: "C xenstored",
        word: "store-c",
        toolstack: Toolstack::Debian,
        option: "",
    },
    Daemon {
        name: "oxenstored",
        word: "store-ocaml",
        toolstack: Toolstack::Debian,
        option: " xenstored=oxenstored",
    },
];
/// Instructions in a second of the machine whose clock counts them.
const PER_SECOND: u64 = 1_000_000_000;

/// Measures all three, and prints the table.
pub fn store(yes: bool) -> Result<()> {
    packages::require(&[Need::BareMetal, Need::Machine, Need::Images], yes)?;
    let mut steps = Steps::new();
    let (machine, counter) = steps.step("hypervisor and counter", "`cargo xtask build` shows it alone", |_| {
        Ok((Machine::new("ours", &hypervisor::build()?.elf, ""), counter()?))
    })?;
    let mut lines = Vec::new();
    for daemon in &DAEMONS {
        let load = steps.step(&format!("what to run: {}", daemon.name), "the error says what", |_| {
            daemon.load()
        })?;
        // What does not come to its end with one of Debian's says something about that one.
        let figures = steps.step(daemon.name, ADVICE, |step| {
            let run = machine.run(&load, &counter, "a", "1");
            match run.and_then(|figures| line(daemon.name, &figures)) {
                Err(error) if daemon.toolstack == Toolstack::Debian => {
                    step.say(&format!("{error:#}"));
                    Ok(format!("| {} | none: {error} | | | |", daemon.name))
                }
                other => other,
            }
        })?;
        lines.push(figures);
    }
    println!("| xenstored | instructions of a read | reads in a second | in the storm, median | largest |");
    println!("| --- | ---: | ---: | ---: | ---: |");
    lines.iter().for_each(|line| println!("{line}"));
    Ok(())
}

fn line(name: &str, figures: &Figures) -> Result<String> {
    let figure = |wanted: &str| {
        let found = figures.of.iter().find(|(row, _)| row == wanted);
        found
            .map(|(_, figure)| *figure)
            .with_context(|| format!("no figure for {wanted}"))
    };
    let alone = figure("alone")?;
    let cells = [
        alone,
        PER_SECOND / alone.max(1),
        figure("in the storm")?,
        figure("in the storm, largest")?,
    ];
    let cells: String = cells.iter().map(|cell| format!(" {} |", Range::from(*cell))).collect();
    Ok(format!("| {name} |{cells}"))
}

impl Daemon {
    fn load(&self) -> Result<Load> {
        let config = b"name = \"storm\"\nkernel = \"/measured/micro\"\nmemory = 16\nextra = \"store-storm\"\n";
        let files = vec![
            ("measured/micro", fs::read(hypervisor::build_guest("micro")?)?),
            ("measured/guest.cfg", config.to_vec()),
        ];
        Ok(Load {
            name: self.word,
            options: "dom0_mem=512M dom0_max_vcpus=1",
            memory_mib: 1024,
            kernel: Kernel::fetch("amd64")?.vmlinux,
            kernel_options: format!("{DOM0_KERNEL_OPTIONS}{}", self.option),
            ramdisk: Some(loads::dom0_with(
                &format!("bench-{}.img", self.word),
                self.toolstack,
                include_bytes!("sessions/store"),
                files,
            )?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_in_a_second_follow_from_what_one_costs() {
        let row = |name: &str, figure| (name.to_owned(), figure);
        let figures = Figures {
            of: vec![
                row("alone", 50_000),
                row("in the storm, largest", 9),
                row("in the storm", 7),
            ],
            ..Figures::default()
        };
        assert_eq!(line("x", &figures).unwrap(), "| x | 50,000 | 20,000 | 7 | 9 |");
    }
}
