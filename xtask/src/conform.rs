//! `cargo xtask conform`: the same small kernels on Debian's Xen and on ours, and what they saw compared.
//!
//! Debian's Xen is the oracle. What a guest saw there is recorded in `guests/transcripts`, so that the tests need
//! only ours; `--record` asks the oracle again. With `--domu` the guests are not Domain 0 but beside one. A line in
//! which ours differs is a failure, unless
//! `guests/differences.toml` has it with a reason.

pub mod boot;
mod differences;
mod domu;
mod transcript;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use ferroxen_stories::machine::Parts;
use serde::Deserialize;

use crate::bench;
use crate::conform::boot::Host;
use crate::conform::differences::Differences;
use crate::conform::transcript::Transcript;
use crate::hypervisor;
use crate::packages::{self, Need};
use crate::places;

/// What the command line chose.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Guests by name; all when empty.
    pub names: Vec<String>,
    /// Where the oracle's word comes from.
    pub oracle: Oracle,
    /// What the guests are.
    pub place: Place,
    /// Install what is missing without asking.
    pub yes: bool,
}

/// Where the oracle's word comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oracle {
    /// It is asked, and must say what is recorded.
    Compare,
    /// It is asked, and what it says is written down anew.
    Record,
    /// What is recorded is enough.
    Recorded,
}

/// What the guests are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// The first domain, on a machine with nothing in it.
    Dom0,
    /// Domains that a toolstack makes, beside a Linux.
    DomU,
}

impl Place {
    /// Where the oracle's transcripts are.
    fn recordings(self) -> PathBuf {
        let all = places::root().join("guests/transcripts");
        match self {
            Self::Dom0 => all,
            Self::DomU => all.join("domu"),
        }
    }

    fn recording(self, name: &str) -> PathBuf {
        self.recordings().join(name).with_extension("txt")
    }

    fn recorded(self, name: &str) -> Result<Transcript> {
        let text = fs::read_to_string(self.recording(name));
        let text = text.with_context(|| format!("no recording of {name}; `cargo xtask conform --record {name}`"))?;
        Ok(Transcript::recorded(&text))
    }

    fn all_recorded(self, names: &[String]) -> Result<Transcripts> {
        names
            .iter()
            .map(|name| Ok((name.clone(), self.recorded(name)?)))
            .collect()
    }

    fn record(self, name: &str, transcript: &Transcript) -> Result<()> {
        fs::create_dir_all(self.recordings())?;
        let path = self.recording(name);
        fs::write(&path, transcript.to_string()).with_context(|| format!("writing {}", path.display()))
    }
}

/// Runs guests on both hypervisors, or on ours alone, prints the table, and fails when ours differs.
pub fn conform(selection: &Selection) -> Result<()> {
    let mut needs = vec![Need::BareMetal, Need::Machine];
    if selection.oracle != Oracle::Recorded {
        needs.push(Need::StockXen);
    }
    packages::require(&needs, selection.yes)?;
    let bench = Bench::prepare()?;
    let place = selection.place;
    let names = match place {
        Place::DomU if selection.names.is_empty() => domu::sensible(bench.chosen(&[])?),
        _ => bench.chosen(&selection.names)?,
    };
    let (stock, ours) = match (selection.oracle, place) {
        (Oracle::Recorded, _) => (place.all_recorded(&names)?, bench.run_ours(place, &names)?),
        (_, Place::Dom0) => {
            let stock = bench.run_all(&Host::stock(bench::stock_xen()?), &names)?;
            (stock, bench.run_ours(place, &names)?)
        }
        (_, Place::DomU) => domu::run_on_both(&names)?,
    };
    if selection.oracle == Oracle::Record {
        for (name, transcript) in &stock {
            place.record(name, transcript)?;
        }
    } else {
        let stale = |name: &&String| place.recorded(name).ok().as_ref() != stock.get(*name);
        let stale: Vec<&str> = names.iter().filter(stale).map(String::as_str).collect();
        ensure!(
            stale.is_empty(),
            "the oracle no longer says what is recorded of: {}; `--record` writes it down",
            stale.join(", ")
        );
    }
    judge(place, &names, &stock, &ours)
}

/// Runs all guests on ours alone, against what is recorded of the oracle.
pub fn check() -> Result<()> {
    conform(&Selection {
        names: Vec::new(),
        oracle: Oracle::Recorded,
        place: Place::Dom0,
        yes: true,
    })
}

/// Runs some guests as domUs likewise, on a machine of these parts: ours, with our toolstack.
pub fn check_domu(parts: &Parts) -> Result<()> {
    let names = domu::TELLING.map(str::to_owned);
    let ours = domu::run_on(parts, &names)?;
    judge(Place::DomU, &names, &Place::DomU.all_recorded(&names)?, &ours)
}

type Transcripts = BTreeMap<String, Transcript>;

/// The kernel with the guests, and our hypervisor.
struct Bench {
    kernel: PathBuf,
    ours: Host,
}

impl Bench {
    fn prepare() -> Result<Self> {
        Ok(Self {
            kernel: hypervisor::build_guest("conform")?,
            ours: Host::ours(hypervisor::build()?.elf),
        })
    }

    /// Asks the kernel which guests it has, and takes those that were named.
    fn chosen(&self, wanted: &[String]) -> Result<Vec<String>> {
        let all = self.ours.list(&self.kernel)?;
        if wanted.is_empty() {
            return Ok(all);
        }
        for name in wanted {
            ensure!(all.contains(name), "no guest {name}; there are: {}", all.join(", "));
        }
        Ok(wanted.to_vec())
    }

    /// Runs the guests on ours.
    fn run_ours(&self, place: Place, names: &[String]) -> Result<Transcripts> {
        match place {
            Place::Dom0 => self.run_all(&self.ours, names),
            Place::DomU => domu::run_all(names),
        }
    }

    /// Runs each guest in a boot of its own, as many at once as this machine has processors.
    fn run_all(&self, host: &Host, names: &[String]) -> Result<Transcripts> {
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Ok(Transcripts::new()));
        let work = || {
            while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                let ran = host.run(&self.kernel, name);
                let mut done = done.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                match (ran, done.as_mut()) {
                    (Ok(transcript), Ok(all)) => {
                        all.insert(name.clone(), transcript);
                    }
                    (Err(error), Ok(_)) => *done = Err(error),
                    (_, Err(_)) => return,
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(work);
            }
        });
        done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Prints the table and judges.
fn judge(place: Place, names: &[String], stock: &Transcripts, ours: &Transcripts) -> Result<()> {
    let mut differences = Differences::read(&places::root().join("guests/differences.toml"), place)?;
    let width = names.iter().map(String::len).max().unwrap_or(0).max("guest".len());
    println!("{:width$}  stock  ours   first differing line", "guest");
    let mut wrong = 0;
    for name in names {
        let (Some(stock), Some(ours)) = (stock.get(name), ours.get(name)) else {
            bail!("{name} did not run");
        };
        let verdict = differences.judge(name, stock, ours);
        println!(
            "{name:width$}  {:5}  {:5}  {verdict}",
            stock.verdict().word(),
            ours.verdict().word()
        );
        wrong += usize::from(!verdict.is_fine());
    }
    ensure!(
        wrong == 0,
        "{wrong} of {} guests see another hypervisor than Xen",
        names.len()
    );
    // Known only now: behind a first difference nobody has looked.
    let stale = differences.unused(names, place);
    for difference in &stale {
        println!("listed, but not there any more: {difference}");
    }
    ensure!(stale.is_empty(), "guests/differences.toml lists what no longer differs");
    Ok(())
}

/// Returns where a boot's serial line is written down.
pub fn log(host: &str, words: &str) -> PathBuf {
    let dir: &Path = &places::made().join("logs");
    dir.join(format!("conform-{host}-{}.log", words.replace(' ', "-")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The section of the table, and where its operations are named: a file of `abi/xen`, and what begins them.
    const FAMILIES: [(&str, &str, &str); 11] = [
        ("Hypercalls", "xen.rs", "pub mod hypercall {"),
        ("domctl", "domctl.rs", "DomctlCmd(u32) {"),
        ("sysctl", "sysctl.rs", "SysctlCmd(u32) {"),
        ("platform_op", "platform.rs", "PlatformCmd(u32) {"),
        ("memory_op", "memory.rs", "MemoryCmd(u32) {"),
        ("physdev_op", "physdev.rs", "pub mod physdevop {"),
        ("vcpu_op", "vcpu.rs", "pub mod vcpuop {"),
        ("event_channel_op", "event_channel.rs", "pub mod evtchnop {"),
        ("grant_table_op", "grant_table.rs", "pub mod gnttabop {"),
        ("sched_op", "sched.rs", "pub mod schedop {"),
        ("xen_version", "version.rs", "VersionCmd(u32) {"),
    ];

    fn read(path: &str) -> String {
        let path = places::root().join(path);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// `NAME = 1` and `pub const NAME: u32 = 1`, to the end of the block that `start` begins.
    fn operations(file: &str, start: &str) -> Vec<(String, String)> {
        let source = read(&format!("abi/xen/src/{file}"));
        let block = source.split_once(start).expect("no such block").1;
        let block = block.split_once("\n}").expect("a block has an end").0;
        let items = block.split([',', ';']).filter_map(|item| item.rsplit_once(" = "));
        let named = items.filter_map(|(name, number)| {
            let name = name.rsplit_once("const ").map_or(name, |(_, name)| name);
            let name = name.split(':').next()?.split_whitespace().last()?;
            let is_name = name.starts_with(|first: char| first.is_ascii_uppercase());
            is_name.then(|| (number.trim().to_owned(), name.to_owned()))
        });
        named.filter(|(_, name)| name != "PAGE_SLOTS").collect()
    }

    #[test]
    fn every_operation_of_the_abi_is_in_the_table() {
        let table = read("docs/hypercalls.md");
        for (title, file, start) in FAMILIES {
            let section = table.split(&format!("\n## {title}\n")).nth(1).expect(title);
            let section = section.split("\n## ").next().unwrap_or_default();
            let operations = operations(file, start);
            assert!(operations.len() > 2, "{title}: {operations:?}");
            for (number, name) in &operations {
                assert!(
                    section.contains(&format!("| {number} | {name} |")),
                    "{title}: {number} {name}"
                );
            }
            let rows = section
                .lines()
                .filter(|line| line.starts_with("| ") && !line.starts_with("| number"))
                .count();
            assert_eq!(rows - 1, operations.len(), "{title} has rows for what there is not");
        }
    }

    #[test]
    fn guests_that_the_table_names_have_transcripts() {
        let table = read("docs/hypercalls.md");
        let shown_by = table
            .lines()
            .filter_map(|line| line.strip_suffix(" |")?.rsplit_once("| ").map(|(_, by)| by));
        let guests: Vec<&str> = shown_by
            .flat_map(|by| by.split(';').next().unwrap_or_default().split(", "))
            .collect();
        assert!(guests.len() > 200);
        for guest in guests
            .into_iter()
            .filter(|guest| !guest.contains([' ', ':']) && !guest.starts_with('-'))
        {
            assert!(Place::Dom0.recording(guest).exists(), "{guest}");
        }
    }
}
