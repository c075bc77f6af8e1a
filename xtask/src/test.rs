//! `cargo xtask test`: everything that can be shown without a person. Prints a line per step.

use std::fs;
use std::io::{BufRead, BufReader};
use std::num::NonZero;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ferroxen_stories::machine::{DebianDom0, NewerDom0, Parts};
use ferroxen_stories::stories::{ON_REQUEST, STORIES, Story};

use crate::bench::{self, Bench, Choice};
use crate::check::JUDGEMENTS;
use crate::conform;
use crate::fuzz_guest;
use crate::images::{self, Toolstack};
use crate::iso;
use crate::packages::{self, Need};
use crate::places;
use crate::programs::clean_command;
use crate::steps::Steps;

/// Which tests to run.
#[derive(Debug, Clone)]
pub struct Selection {
    /// What the stories run on.
    pub choice: Choice,
    /// Stories by name; all of the default set when empty.
    pub stories: Vec<String>,
    /// Leave out the stories.
    pub host_only: bool,
}

/// Stories that measure time or shares of a CPU: they are told alone, when all others are done.
const TIMED: [&str; 4] = ["boot-4", "pause", "spin", "shares"];

/// What is told on a machine with a Domain 0.
struct Told {
    /// For the name of its log.
    name: &'static str,
    line: String,
    tell: fn(&Parts) -> Result<()>,
}

impl Told {
    /// The guests of `cargo xtask conform --domu` that the tests run.
    fn domu_guests() -> Self {
        Self {
            name: "domu-guests",
            line: "conformance: the tiny guests see it as domUs, too".to_owned(),
            tell: conform::check_domu,
        }
    }
}

impl From<&Story> for Told {
    fn from(story: &Story) -> Self {
        Self {
            name: story.name,
            line: line_of(story),
            tell: story.tell,
        }
    }
}

/// What was counted.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    passed: usize,
    failed: usize,
}

impl Tally {
    fn judge(&mut self, name: &str, act: impl FnOnce() -> Result<()>) {
        self.count(&Verdict::of(name.to_owned(), act));
    }

    /// Counts a verdict, and prints its line.
    fn count(&mut self, verdict: &Verdict) {
        let Verdict { name, seconds, result } = verdict;
        match result {
            Ok(()) => {
                self.passed += 1;
                println!("ok      {name} ({seconds:.1} s)");
            }
            Err(error) => {
                self.failed += 1;
                println!("FAILED  {name} ({seconds:.1} s): {error:#}");
            }
        }
    }
}

/// How something went.
struct Verdict {
    name: String,
    seconds: f64,
    result: Result<()>,
}

impl Verdict {
    fn of(name: String, act: impl FnOnce() -> Result<()>) -> Self {
        let began = Instant::now();
        let result = act();
        let seconds = began.elapsed().as_secs_f64();
        Self { name, seconds, result }
    }
}

/// Runs the tests; an error when one of them failed.
pub fn test(selection: &Selection) -> Result<()> {
    let mut tally = Tally::default();
    if selection.stories.is_empty() {
        packages::require(&[Need::BareMetal, Need::Lint], selection.choice.yes)?;
        for (name, judgement) in JUDGEMENTS {
            tally.judge(name, judgement);
        }
        host_tests(&mut tally)?;
        tally.judge("conformance: the tiny guests see what Xen shows them", conform::check);
        tally.judge("random calls leave the hypervisor's books straight", fuzz_guest::check);
    }
    if !selection.host_only {
        stories(selection, &mut tally)?;
    }
    println!("\n{} passed, {} failed", tally.passed, tally.failed);
    if tally.failed > 0 {
        bail!("{} tests failed", tally.failed);
    }
    Ok(())
}

/// Runs `cargo test`, shows failures, and counts every test.
fn host_tests(tally: &mut Tally) -> Result<()> {
    let mut cargo = clean_command("cargo");
    cargo
        .args(["test", "--no-fail-fast", "--target-dir"])
        .arg(places::host_target());
    cargo.current_dir(places::root()).stdin(Stdio::null());
    let (counted, succeeded) = counted_run(&mut cargo)?;
    println!("{} host tests passed, {} failed", counted.passed, counted.failed);
    tally.passed += counted.passed;
    tally.failed += counted.failed;
    if !succeeded && counted.failed == 0 {
        tally.judge("host tests build and run", || bail!("cargo test failed"));
    }
    Ok(())
}

fn counted_run(cargo: &mut Command) -> Result<(Tally, bool)> {
    let mut child = cargo.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let mut counted = Tally::default();
    for line in BufReader::new(child.stdout.take().context("cargo has no output")?).lines() {
        let line = line?;
        if let Some((passed, failed)) = result_of(&line) {
            counted.passed += passed;
            counted.failed += failed;
        } else if !line.starts_with("test ") || !line.ends_with(" ok") {
            println!("{line}");
        }
    }
    Ok((counted, child.wait()?.success()))
}

/// Reads `test result: ok. 4 passed; 0 failed; …`.
fn result_of(line: &str) -> Option<(usize, usize)> {
    let counts = line.strip_prefix("test result: ")?;
    let number_before = |word: &str| -> Option<usize> {
        counts
            .split(&format!(" {word}"))
            .next()?
            .rsplit([' ', ';'])
            .next()?
            .parse()
            .ok()
    };
    Some((number_before("passed")?, number_before("failed")?))
}

fn stories(selection: &Selection, tally: &mut Tally) -> Result<()> {
    let wanted = chosen(&selection.stories)?;
    if wanted.is_empty() {
        return Ok(());
    }
    let prepared = Bench::prepare(selection.choice, &mut Steps::new());
    let (bench, extras) = match prepared.and_then(|bench| Ok((bench, Extras::make(&wanted, selection.choice)?))) {
        Ok(prepared) => prepared,
        Err(error) => {
            tally.judge("images for the stories", || Err(error));
            return Ok(());
        }
    };
    let tell = |told: Told| {
        let mut parts = bench.parts(&format!("story-{}", told.name));
        extras.add_to(&mut parts);
        Verdict::of(told.line, || (told.tell)(&parts))
    };
    let mut all: Vec<Told> = wanted.into_iter().map(Told::from).collect();
    if selection.stories.is_empty() && selection.choice.is_ours() {
        all.insert(0, Told::domu_guests());
    }
    let (timed, patient): (Vec<_>, Vec<_>) = all.into_iter().partition(|told| TIMED.contains(&told.name));
    let next = Mutex::new(patient.into_iter());
    let shared = Mutex::new(tally);
    let tell_next = || {
        let told = locked(&next).next();
        if let Some(told) = told {
            let verdict = tell(told);
            locked(&shared).count(&verdict);
        }
    };
    thread::scope(|scope| {
        for lane in 0..lanes() {
            let (next, tell_next) = (&next, &tell_next);
            scope.spawn(move || {
                while locked(next).len() > 0 {
                    // Each keeps a CPU busy: one is always told, another whenever a CPU has nothing to do.
                    if lane == 0 || a_cpu_idles() {
                        tell_next();
                    }
                }
            });
        }
    });
    for told in timed {
        let verdict = tell(told);
        locked(&shared).count(&verdict);
    }
    Ok(())
}

/// How many stories are told at once, at most.
fn lanes() -> usize {
    /// Each machine has 2 GiB.
    const MOST: usize = 4;
    thread::available_parallelism().map_or(1, NonZero::get).min(MOST)
}

/// Looks for a second whether the host could do more.
fn a_cpu_idles() -> bool {
    const LOOK: Duration = Duration::from_secs(1);
    let before = idle_time();
    thread::sleep(LOOK);
    // In hundredths of a second, of all CPUs together.
    idle_time().saturating_sub(before) > 75
}

/// How long this host's CPUs have idled, in hundredths of a second (proc(5), "/proc/stat"); 0 if it does not tell.
fn idle_time() -> u64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().next().unwrap_or_default();
    line.split_whitespace()
        .nth(4)
        .and_then(|ticks| ticks.parse().ok())
        .unwrap_or(0)
}

/// Nothing is left half done by whoever panics while holding one of these.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What only some stories need: made if one of them is wanted.
#[derive(Default)]
struct Extras {
    medium: Option<PathBuf>,
    debian_ramdisk: Option<PathBuf>,
    debian_hypervisor: Option<PathBuf>,
    libvirt_ramdisk: Option<PathBuf>,
    debian_dom0: Option<DebianDom0>,
    newer_dom0: Option<NewerDom0>,
    built: Option<PathBuf>,
}

impl Extras {
    fn make(wanted: &[&Story], choice: Choice) -> Result<Self> {
        let any_of = |names: &[&str]| wanted.iter().any(|story| names.contains(&story.name));
        let mut extras = Self::default();
        if any_of(&["grub"]) {
            packages::require(&[Need::Iso], choice.yes)?;
            extras.medium = Some(iso::make()?);
        }
        if any_of(&["crosswise"]) {
            packages::require(&[Need::StockXen], choice.yes)?;
            extras.debian_hypervisor = Some(bench::stock_xen()?);
        }
        if any_of(&["virt-manager"]) {
            packages::require(&[Need::VirtManager], choice.yes)?;
            extras.libvirt_ramdisk = Some(images::make_dom0(Toolstack::Libvirt)?);
        }
        let (ramdisk, server) = (
            any_of(&["debian-xl", "crosswise"]),
            any_of(&["server", "from-host", "channels", "ten-clones"]),
        );
        let (built, newer) = (any_of(&["disk", "stress", "ten-clones"]), any_of(&["newer-kernel"]));
        // Each waits much for package managers.
        thread::scope(|scope| {
            let ramdisk = ramdisk.then(|| scope.spawn(|| images::make_dom0(Toolstack::Debian)));
            let server = server.then(|| scope.spawn(images::make_debian_dom0));
            let built = built.then(|| scope.spawn(images::make_built));
            let newer = newer.then(|| scope.spawn(images::make_newer_dom0));
            extras.debian_ramdisk = ramdisk.map(images::joined).transpose()?;
            extras.debian_dom0 = server.map(images::joined).transpose()?;
            extras.built = built.map(images::joined).transpose()?;
            extras.newer_dom0 = newer.map(images::joined).transpose()?;
            Ok(extras)
        })
    }

    fn add_to(&self, parts: &mut Parts) {
        parts.medium.clone_from(&self.medium);
        parts.debian_ramdisk.clone_from(&self.debian_ramdisk);
        parts.libvirt_ramdisk.clone_from(&self.libvirt_ramdisk);
        parts.debian_hypervisor.clone_from(&self.debian_hypervisor);
        parts.debian_dom0.clone_from(&self.debian_dom0);
        parts.newer_dom0.clone_from(&self.newer_dom0);
        parts.built.clone_from(&self.built);
    }
}

fn line_of(story: &Story) -> String {
    let rows = if story.rows.is_empty() {
        String::new()
    } else {
        format!(" [{}]", story.rows.join(" "))
    };
    format!("story {}: {}{rows}", story.name, story.claim)
}

fn chosen(names: &[String]) -> Result<Vec<&'static Story>> {
    if names.is_empty() {
        return Ok(STORIES
            .iter()
            .filter(|story| !ON_REQUEST.contains(&story.name))
            .collect());
    }
    let known = || STORIES.iter().map(|story| story.name).collect::<Vec<_>>().join(", ");
    names
        .iter()
        .map(|name| {
            let story = STORIES.iter().find(|story| story.name == name);
            story.with_context(|| format!("no story {name}; there are: {}", known()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_line_is_counted() {
        let line = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured";
        assert_eq!(result_of(line), Some((12, 3)));
        assert_eq!(result_of("running 3 tests"), None);
    }
}
