//! A machine that counts its instructions, and what its guest measured.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ferroxen_stories::machine::CPU_MODEL;

use crate::places;
use crate::serial;

/// How long a run may take; most is done in a minute.
const PATIENCE: Duration = Duration::from_secs(600);
/// Nothing comes after these.
const ENDS: [&str; 3] = ["[bench] end", "Domain 0 crashed", "Reboot in five seconds"];
/// Two vcpus on one CPU; messages of the hypervisor's cost time, so few.
const OPTIONS: &str = "console=com1 com1=115200,8n1 dom0_mem=64M dom0_max_vcpus=2 loglvl=warning guest_loglvl=none";

/// The row of the second between the guest's two marks.
pub const IDLE: &str = "one second, all asleep";
/// The row of what an empty domain takes, and how many of them the guest makes.
const PER_DOMAIN: &str = "bytes per empty domain";
const EMPTY_DOMAINS: u64 = 16;

/// A hypervisor and its options.
pub struct Machine {
    /// What it is called in the log's name.
    pub name: &'static str,
    hypervisor: PathBuf,
    option: &'static str,
}

/// What one run printed.
#[derive(Debug, PartialEq, Eq)]
pub struct Figures {
    /// Figures by row, in the order in which they came.
    pub of: Vec<(String, u64)>,
    /// What the hypervisor says of its defences against speculation.
    pub mitigations: Vec<String>,
}

impl Figures {
    /// Returns the figure of a row.
    pub fn get(&self, name: &str) -> Result<u64> {
        let found = self.of.iter().find(|(of, _)| of == name);
        found
            .map(|(_, figure)| *figure)
            .with_context(|| format!("no figure for {name}"))
    }

    /// Picks the figures out of everything that was said on the line.
    fn heard(said: &str, marks: &str) -> Result<Self> {
        ensure!(said.contains(ENDS[0]), "the guest did not come to its end");
        let mut of = Vec::new();
        for line in said.lines().filter_map(|line| line.trim_end().strip_prefix("[bench] ")) {
            match line.rsplit_once(": ").map(|(name, value)| (name, value.parse())) {
                Some((name, Ok(figure))) => of.push((name.to_owned(), figure)),
                None if line == "end" => {}
                _ => bail!("{line}"),
            }
        }
        let mut marks = marks.lines().map(str::parse::<u64>);
        match (marks.next(), marks.next()) {
            (Some(Ok(before)), Some(Ok(after))) => of.push((IDLE.to_owned(), after - before)),
            _ => bail!("the guest's marks were not counted"),
        }
        if let (Some((_, figure)), Some(taken)) =
            (of.iter_mut().find(|(name, _)| name == PER_DOMAIN), taken_of_heap(said))
        {
            *figure += taken;
        }
        let speaks_of = ["Compiled-in support:", "Xen settings:", "Support for PV VMs:"];
        let lines = said
            .lines()
            .map(|line| line.trim_start_matches("(XEN)").trim().to_owned());
        Ok(Self {
            of,
            mitigations: lines
                .filter(|line| speaks_of.iter().any(|start| line.starts_with(start)))
                .collect(),
        })
    }
}

/// Of our heap, which is no part of the free pages that a guest is told of, what each of the empty domains took.
///
/// The guest has the hypervisor print it before and after.
fn taken_of_heap(said: &str) -> Option<u64> {
    let mut free = said.lines().filter_map(|line| {
        let (_, heap) = line.split_once("; heap ")?;
        heap.split_once(" of ")?.0.parse::<u64>().ok()
    });
    let (before, after) = (free.next()?, free.next()?);
    Some(before.saturating_sub(after) / EMPTY_DOMAINS)
}

impl Machine {
    /// Names a machine with `option` for its hypervisor.
    pub fn new(name: &'static str, hypervisor: &Path, option: &'static str) -> Self {
        Self {
            name,
            hypervisor: hypervisor.to_owned(),
            option,
        }
    }

    /// Runs `kernel` as Domain 0, with the plugin that counts.
    pub fn run(&self, kernel: &Path, counter: &Path, round: u32) -> Result<Figures> {
        let logs = places::made().join("logs");
        fs::create_dir_all(&logs)?;
        let log = logs.join(format!("bench-{}-{round}.log", self.name));
        let marks = log.with_extension("marks");
        let mut qemu = serial::machine();
        qemu.args(["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"]);
        // The date is the same in every run, and goes on with the instructions.
        qemu.args(["-rtc", "base=2026-01-01,clock=vm"]);
        qemu.args(["-cpu", CPU_MODEL, "-smp", "1", "-m", "256M"]);
        qemu.arg("-plugin")
            .arg(format!("{},out={}", counter.display(), marks.display()));
        qemu.arg("-append").arg(format!("{OPTIONS} {}", self.option));
        qemu.arg("-kernel").arg(&self.hypervisor).arg("-initrd").arg(kernel);
        let said = serial::hear(&mut qemu, &ENDS, PATIENCE)?;
        let marks = fs::read_to_string(&marks).with_context(|| format!("reading {}", marks.display()))?;
        fs::write(&log, &said)?;
        Figures::heard(&said, &marks).with_context(|| format!("{}: see {}", self.name, log.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARKS: &str = "1000\n2234\n";

    #[test]
    fn what_domains_take_of_the_heap_counts() {
        let memory =
            |free: u32| format!("(XEN) memory: 1 of 2 pages free, 0 to scrub; heap {free} of 9999 bytes free\r\n");
        let said = memory(5000) + &memory(1800) + "[bench] bytes per empty domain: 4096\n[bench] end\n";
        assert_eq!(
            Figures::heard(&said, MARKS).unwrap().get(PER_DOMAIN).unwrap(),
            4096 + 200
        );
    }

    #[test]
    fn only_the_guests_figures_count_and_a_failure_is_one() {
        let heard = Figures::heard("(XEN) x: 1\r\n[bench] a, b: 12\r\n[bench] end\r\n", MARKS).unwrap();
        assert_eq!(heard.of, [("a, b".to_owned(), 12), (IDLE.to_owned(), 1234)]);
        assert!(heard.get("c").is_err());
        assert!(Figures::heard("[bench] a: FAIL wrong\n[bench] end\n", MARKS).is_err());
        assert!(Figures::heard("[bench] a: 1\n", MARKS).is_err());
    }
}
