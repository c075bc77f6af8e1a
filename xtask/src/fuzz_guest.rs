//! `cargo xtask fuzz-guest`: random but plausible hypercalls from two vcpus, then an audit of the hypervisor's books.
//!
//! The guest (`guests/fuzz`) makes the same calls for the same seed, and says so by a digest. It has the hypervisor
//! audit itself before the first call and after the last, when everything has been given back. What must hold: the guest
//! came to its end, nothing is wrong in the books, and no page is held without a reason.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, bail, ensure};

use crate::conform::{self, boot::Host};
use crate::hypervisor;
use crate::packages::{self, Need};

/// How many steps each vcpu makes, unless told.
pub const STEPS: u64 = 4000;
/// The seeds that the tests run.
const SEEDS: [u64; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

/// Runs one seed, and prints what came of it.
pub fn fuzz(seed: u64, steps: u64) -> Result<()> {
    let kernel = hypervisor::build_guest("fuzz")?;
    let ours = Host::ours(hypervisor::build()?.elf);
    let outcome = run(&ours, &kernel, seed, steps)?;
    outcome.lines.iter().for_each(|line| println!("{line}"));
    Ok(())
}

/// Runs the fixed seeds.
pub fn check() -> Result<()> {
    packages::require(&[Need::BareMetal, Need::Machine], true)?;
    let kernel = hypervisor::build_guest("fuzz")?;
    let ours = Host::ours(hypervisor::build()?.elf);
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    let work = || {
        while let Some(seed) = SEEDS.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = run(&ours, &kernel, *seed, STEPS) {
                let mut failed = failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                failed.push(format!("{error:#}"));
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let failed = failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}

fn run(host: &Host, kernel: &Path, seed: u64, steps: u64) -> Result<Outcome> {
    let words = format!("seed={seed} steps={steps}");
    let said = host.boot(kernel, &words)?;
    Outcome::of(&said).with_context(|| format!("{words} (log: {})", conform::log("ours", &words).display()))
}

/// What a run that went well said.
#[derive(Debug)]
struct Outcome {
    /// The guest's lines and the audits'.
    lines: Vec<String>,
}

impl Outcome {
    fn of(said: &str) -> Result<Self> {
        let relevant = |line: &&str| line.starts_with("[fuzz] ") || line.contains("audit: ");
        let lines: Vec<String> = said
            .lines()
            .map(str::trim_end)
            .filter(relevant)
            .map(str::to_owned)
            .collect();
        if lines.last().is_none_or(|last| last != "[fuzz] PASS") {
            bail!(
                "the guest did not come to its end: {}",
                lines.last().map_or("nothing was heard", String::as_str)
            );
        }
        let after = lines.iter().skip_while(|line| *line != "[fuzz] all given back");
        let audit = after
            .into_iter()
            .find(|line| line.contains(" wrong; "))
            .context("there was no audit")?;
        // Nobody is in the middle of anything then, so no reference may be without a reason.
        let clean = audit.contains("audit: 0 wrong; ") && audit.contains(", 0 other references");
        ensure!(clean, "{audit}");
        Ok(Self { lines })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "(XEN) audit: 0 wrong; 7 L1, 0 other references\n[fuzz] seed 1\n[fuzz] all given back\n(XEN) audit: 0 wrong; 7 L1, 0 other references\n[fuzz] PASS\n";

    #[test]
    fn the_audit_that_counts_is_the_one_after_everything_was_given_back() {
        assert_eq!(Outcome::of(GOOD).unwrap().lines.len(), 5);
        let bad = GOOD.replacen("0 wrong", "1 wrong", 2).replacen("1 wrong", "0 wrong", 1);
        assert!(Outcome::of(&bad).unwrap_err().to_string().contains("1 wrong"));
        assert!(Outcome::of(&GOOD.replace("0 other", "1 other")).is_err());
    }

    #[test]
    fn a_guest_that_dies_is_no_success() {
        assert!(Outcome::of(&GOOD.replace("[fuzz] PASS\n", "")).is_err());
        assert!(Outcome::of("").is_err());
    }
}
