//! `cargo xtask conform`: the same small kernels on Debian's Xen and on ours, and what they saw compared.
//!
//! Debian's Xen is the oracle. What a guest saw there is recorded in `guests/transcripts`, so that the tests need
//! only ours; `--record` asks the oracle again. A line in which ours differs is a failure, unless
//! `guests/differences.toml` has it with a reason.

pub mod boot;
mod differences;
mod transcript;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, bail, ensure};

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
    /// Write down anew what the oracle says.
    pub record: bool,
    /// Install what is missing without asking.
    pub yes: bool,
}

/// Where the oracle's transcripts are.
fn recordings() -> PathBuf {
    places::root().join("guests/transcripts")
}

/// Runs guests on both hypervisors, prints the table, and fails when ours differs.
pub fn conform(selection: &Selection) -> Result<()> {
    packages::require(&[Need::BareMetal, Need::Machine, Need::StockXen], selection.yes)?;
    let bench = Bench::prepare()?;
    let names = bench.chosen(&selection.names)?;
    let stock = bench.run_all(&Host::stock(bench::stock_xen()?), &names)?;
    if selection.record {
        for (name, transcript) in &stock {
            record(name, transcript)?;
        }
    } else {
        let stale = |name: &&String| recorded(name).ok().as_ref() != stock.get(*name);
        let stale: Vec<&str> = names.iter().filter(stale).map(String::as_str).collect();
        ensure!(
            stale.is_empty(),
            "the oracle no longer says what is recorded of: {}; `--record` writes it down",
            stale.join(", ")
        );
    }
    bench.judge(&names, &stock)
}

/// Runs guests, or all of them, on ours alone, against what is recorded of the oracle.
pub fn check(names: &[String], yes: bool) -> Result<()> {
    packages::require(&[Need::BareMetal, Need::Machine], yes)?;
    let bench = Bench::prepare()?;
    let names = bench.chosen(names)?;
    let stock = names
        .iter()
        .map(|name| Ok((name.clone(), recorded(name)?)))
        .collect::<Result<_>>()?;
    bench.judge(&names, &stock)
}

fn recorded(name: &str) -> Result<Transcript> {
    let path = recordings().join(name).with_extension("txt");
    let text = fs::read_to_string(&path);
    let text = text.with_context(|| format!("no recording of {name}; `cargo xtask conform --record {name}`"))?;
    Ok(Transcript::recorded(&text))
}

fn record(name: &str, transcript: &Transcript) -> Result<()> {
    fs::create_dir_all(recordings())?;
    let path = recordings().join(name).with_extension("txt");
    fs::write(&path, transcript.to_string()).with_context(|| format!("writing {}", path.display()))
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

    /// Runs the guests on ours, prints the table and judges.
    fn judge(&self, names: &[String], stock: &Transcripts) -> Result<()> {
        let ours = self.run_all(&self.ours, names)?;
        let mut differences = Differences::read(&places::root().join("guests/differences.toml"))?;
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
        let stale = differences.unused(names);
        for difference in &stale {
            println!("listed, but not there any more: {difference}");
        }
        ensure!(stale.is_empty(), "guests/differences.toml lists what no longer differs");
        Ok(())
    }
}

/// Returns where a boot's serial line is written down.
pub fn log(host: &str, words: &str) -> PathBuf {
    let dir: &Path = &places::made().join("logs");
    dir.join(format!("conform-{host}-{}.log", words.replace(' ', "-")))
}
