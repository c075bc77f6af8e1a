//! `cargo xtask`: every verb we type.
//!
//! `build` makes the hypervisor, `run` shows it with Debian on top, `test` proves it, `check` judges
//! what a machine can judge. Each verb is a module; this file only reads the command line.

#![forbid(unsafe_code)]

mod bench;
mod check;
mod compat;
mod conform;
mod cost;
mod ext4;
mod figures;
mod fuzz_guest;
mod hypervisor;
mod images;
mod iso;
mod kernel;
mod packages;
mod places;
mod programs;
mod run;
mod serial;
mod signs;
mod steps;
mod symbols;
mod test;
mod toolchain;
mod toolstack;
mod tree;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use crate::bench::Choice;
use crate::conform::{Oracle, Place};
use crate::images::Toolstack;
use crate::packages::Need;
use crate::run::Machinery;
use crate::test::Selection;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, runs and tests Ferroxen", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Builds the hypervisor: target/ferroxen.elf and target/ferroxen.gz
    Build,
    /// Boots it with Debian as Domain 0 and a Debian guest, and hands you the prompt
    Run {
        #[command(flatten)]
        what: What,
        /// CPUs of the virtual machine.
        #[arg(long, default_value_t = 1)]
        cpus: u32,
        /// Memory of the virtual machine, in MiB.
        #[arg(long, default_value_t = 2048)]
        memory: u32,
        /// Stops at Domain 0's prompt.
        #[arg(long)]
        no_demo: bool,
    },
    /// Runs all tests: judgements, host tests, then stories in virtual machines
    Test {
        #[command(flatten)]
        what: What,
        /// Runs only this story; may be given more than once.
        #[arg(long = "story", value_name = "NAME")]
        stories: Vec<String>,
        /// Leaves the stories out.
        #[arg(long)]
        host_only: bool,
    },
    /// Judges format, lints, signs on unsafe and size
    Check {
        /// Installs missing Debian packages without asking.
        #[arg(long)]
        yes: bool,
    },
    /// Runs small guests on Debian's Xen and on ours, and compares what they saw
    Conform {
        /// Guests by name; all of them without any.
        names: Vec<String>,
        /// Writes down anew what Debian's Xen says: guests/transcripts.
        #[arg(long)]
        record: bool,
        /// Compares ours with what is recorded, as the tests do, without running Debian's Xen.
        #[arg(long, conflicts_with = "record")]
        recorded: bool,
        /// Runs them as domUs beside a Linux Domain 0, not as Domain 0.
        #[arg(long)]
        domu: bool,
        /// Installs missing Debian packages without asking.
        #[arg(long)]
        yes: bool,
    },
    /// Runs Debian's Xen tools on Debian's Xen and on ours, and compares what they said
    Compat {
        /// Chapters of tests/compat/script, by parts of their titles; all of them without any.
        chapters: Vec<String>,
        /// Runs our tools instead, on both.
        #[arg(long, conflicts_with = "libvirt")]
        ours: bool,
        /// Runs Debian's libvirt instead (tests/compat/libvirt).
        #[arg(long)]
        libvirt: bool,
        /// Runs Debian's hypervisor alone, and writes down what it said: tests/compat/recorded.
        #[arg(long)]
        record: bool,
        /// Runs ours alone, and compares with what is recorded.
        #[arg(long, conflicts_with = "record")]
        recorded: bool,
        /// Judges what the last run said, without another.
        #[arg(long, conflicts_with_all = ["record", "recorded"])]
        kept: bool,
        /// Installs missing Debian packages without asking.
        #[arg(long)]
        yes: bool,
    },
    /// Boots a guest that makes random hypercalls, and audits the hypervisor's books after it
    FuzzGuest {
        /// Which sequence of calls.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// How many, on each of two vcpus.
        #[arg(long, default_value_t = fuzz_guest::STEPS)]
        steps: u64,
        /// Installs missing Debian packages without asking.
        #[arg(long)]
        yes: bool,
    },
    /// Measures start, size and memory beside Debian's Xen, and prints the table of docs/figures.md
    Figures {
        /// How often each start is timed; the table has the median.
        #[arg(long, default_value_t = 3)]
        runs: u32,
        /// Installs missing Debian packages without asking.
        #[arg(long)]
        yes: bool,
    },
    /// Measures what each operation costs on Debian's Xen and on ours, in instructions
    Bench {
        /// Which rows; all of them without any.
        groups: Vec<cost::Group>,
        /// Installs missing Debian packages without asking.
        #[arg(long)]
        yes: bool,
    },
    /// Measures what each of a hundred guests costs to make, to list and to end, in instructions
    Growth {
        /// How many guests.
        #[arg(long, default_value_t = 100)]
        guests: u32,
        /// Not Debian's, whose figures stay what they are.
        #[arg(long)]
        ours: bool,
        /// Installs missing Debian packages without asking.
        #[arg(long)]
        yes: bool,
    },
    /// Finds out which functions of `xl` commands run, to put them beside each other: toolstack/xl/order
    Order {
        /// Installs missing Debian packages without asking.
        #[arg(long)]
        yes: bool,
    },
    /// Measures what a read in xenstore costs, with our daemon and with Debian's two, alone and in a storm
    Store {
        /// Installs missing Debian packages without asking.
        #[arg(long)]
        yes: bool,
    },
    /// Makes a CD that GRUB boots: target/ferroxen.iso
    Iso {
        /// Installs missing Debian packages without asking.
        #[arg(long)]
        yes: bool,
    },
    /// Makes the Domain 0 and guest images: target/images
    Image {
        #[command(flatten)]
        what: What,
    },
}

#[derive(Args)]
struct What {
    /// Debian's hypervisor instead of ours, to compare.
    #[arg(long)]
    stock: bool,
    /// Debian's toolstack in Domain 0 instead of ours, to compare.
    #[arg(long)]
    stock_tools: bool,
    /// Installs missing Debian packages without asking.
    #[arg(long)]
    yes: bool,
}

impl What {
    fn choice(&self) -> Choice {
        let toolstack = if self.stock_tools {
            Toolstack::Debian
        } else {
            Toolstack::Ours
        };
        Choice {
            stock: self.stock,
            toolstack,
            yes: self.yes,
        }
    }
}

fn main() -> ExitCode {
    match act(Cli::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            for cause in error.chain().skip(1) {
                eprintln!("  because: {cause}");
            }
            ExitCode::FAILURE
        }
    }
}

fn act(verb: Verb) -> Result<()> {
    match verb {
        Verb::Build => {
            // Nothing is installed without being asked for, here as elsewhere.
            packages::require(&[Need::BareMetal], false)?;
            let built = hypervisor::build()?;
            println!("{built}");
            Ok(())
        }
        Verb::Run {
            what,
            cpus,
            memory,
            no_demo,
        } => run::run(Machinery {
            choice: what.choice(),
            cpus,
            memory_mib: memory,
            no_demo,
        }),
        Verb::Test {
            what,
            stories,
            host_only,
        } => test::test(&Selection {
            choice: what.choice(),
            stories,
            host_only,
        }),
        Verb::Check { yes } => {
            packages::require(&[Need::BareMetal, Need::Lint], yes)?;
            check::JUDGEMENTS
                .iter()
                .try_for_each(|(name, judge)| judge().context(*name))
        }
        Verb::Figures { runs, yes } => figures::figures(runs, yes),
        Verb::Conform {
            names,
            record,
            recorded,
            domu,
            yes,
        } => conform::conform(&conform::Selection {
            names,
            oracle: match (record, recorded) {
                (true, _) => Oracle::Record,
                (_, true) => Oracle::Recorded,
                _ => Oracle::Compare,
            },
            place: if domu { Place::DomU } else { Place::Dom0 },
            yes,
        }),
        Verb::Compat {
            chapters,
            ours,
            libvirt,
            record,
            recorded,
            kept,
            yes,
        } => compat::compat(&compat::Selection {
            chapters,
            tools: match (ours, libvirt) {
                (true, _) => Toolstack::Ours,
                (_, true) => Toolstack::Libvirt,
                _ => Toolstack::Debian,
            },
            oracle: match (record, recorded, kept) {
                (true, ..) => compat::Oracle::Record,
                (_, true, _) => compat::Oracle::Recorded,
                (.., true) => compat::Oracle::Kept,
                _ => compat::Oracle::Both,
            },
            yes,
        }),
        Verb::FuzzGuest { seed, steps, yes } => {
            packages::require(&[Need::BareMetal, Need::Machine], yes)?;
            fuzz_guest::fuzz(seed, steps)
        }
        Verb::Bench { groups, yes } => cost::bench(&groups, yes),
        Verb::Growth { guests, ours, yes } => cost::growth(guests, ours, yes),
        Verb::Order { yes } => cost::order(yes),
        Verb::Store { yes } => cost::store(yes),
        Verb::Iso { yes } => {
            packages::require(&[Need::BareMetal, Need::Images, Need::Iso], yes)?;
            println!("{}", iso::make()?.display());
            Ok(())
        }
        Verb::Image { what } => {
            packages::require(&[Need::Images], what.yes)?;
            images::make(what.choice().toolstack, &mut |step| println!("{step}"))?;
            println!("{}", images::dir().display());
            Ok(())
        }
    }
}
