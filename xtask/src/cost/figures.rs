//! What a guest measured: figures by row, and their ranges over several runs.

use std::fmt;

use anyhow::{Context, Result, bail};

/// The row of what an empty domain takes, and how many of them the guest makes.
const PER_DOMAIN: &str = "bytes per empty domain";
const EMPTY_DOMAINS: u64 = 16;
/// Of a row's samples, those that do not count: what is done for the first time touches more.
const WARM_UP: usize = 4;

/// What one run printed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Figures by row, in the order in which they came.
    pub of: Vec<(String, u64)>,
    /// What the hypervisor says of its defences against speculation.
    pub mitigations: Vec<String>,
}

/// The instructions up to a point: all, and those of the hypervisor among them.
#[derive(Debug, Clone, Copy)]
struct Count {
    machine: u64,
    hypervisor: u64,
}

impl Count {
    fn part(self, of: &str) -> Result<u64> {
        match of {
            "machine" => Ok(self.machine),
            "hypervisor" => Ok(self.hypervisor),
            _ => bail!("nobody counts the part {of:?}"),
        }
    }
}

/// What the plugin wrote: where Linux began, and the marks that no row has used yet.
struct Marks<'a> {
    kernel: Option<Count>,
    left: Box<dyn Iterator<Item = Result<Count>> + 'a>,
}

impl<'a> Marks<'a> {
    fn new(written: &'a str) -> Self {
        Self {
            kernel: written
                .lines()
                .find_map(|line| count(line.strip_prefix("kernel ")?).ok()),
            left: Box::new(
                written
                    .lines()
                    .filter_map(|line| Some(count(line.strip_prefix("mark ")?))),
            ),
        }
    }

    fn next(&mut self) -> Result<Count> {
        self.left.next().context("a mark of the guest's was not counted")?
    }

    /// Works out what a guest says of a row: a figure of its own, or which marks are the row's.
    fn figure(&mut self, said: &str) -> Result<u64> {
        if let Some(samples) = said.strip_prefix("samples ") {
            return median(&self.samples(samples)?);
        }
        let words: Vec<&str> = said.split(' ').collect();
        match words[..] {
            [figure] => figure.parse().context(said.to_owned()),
            ["boot", part] => {
                let began = self.kernel.context("Linux never began")?;
                Ok(self.next()?.part(part)? - began.part(part)?)
            }
            _ => bail!("{said}"),
        }
    }

    /// Takes as many pairs of marks as are `said`, and returns what lies between each, the least first.
    fn samples(&mut self, said: &str) -> Result<Vec<u64>> {
        let (number, part) = said.split_once(' ').context("how many, and of what")?;
        let mut samples = Vec::new();
        for _ in 0..number.parse::<u32>()? {
            let before = self.next()?.part(part)?;
            samples.push(self.next()?.part(part)? - before);
        }
        if samples.len() > WARM_UP {
            samples.drain(..WARM_UP);
        }
        samples.sort_unstable();
        Ok(samples)
    }
}

fn median(samples: &[u64]) -> Result<u64> {
    samples.get(samples.len() / 2).copied().context("a row without samples")
}

fn count(text: &str) -> Result<Count> {
    let (machine, hypervisor) = text.split_once(' ').context("two numbers")?;
    Ok(Count {
        machine: machine.parse()?,
        hypervisor: hypervisor.parse()?,
    })
}

impl Figures {
    /// Picks the figures out of everything that was said on the line, and of the plugin's marks.
    pub fn heard(said: &str, marks: &str) -> Result<Self> {
        let mut marks = Marks::new(marks);
        let mut of = Vec::new();
        for line in said.lines().filter_map(|line| line.trim_end().strip_prefix("[bench] ")) {
            if line == "end" {
                continue;
            }
            let (name, figure) = line.rsplit_once(": ").with_context(|| line.to_owned())?;
            let context = || line.to_owned();
            if let Some(samples) = figure.strip_prefix("spread ") {
                let samples = marks.samples(samples).with_context(context)?;
                of.push((format!("{name}, largest"), samples.last().copied().unwrap_or(0)));
                of.push((name.to_owned(), median(&samples).with_context(context)?));
                continue;
            }
            of.push((name.to_owned(), marks.figure(figure).with_context(context)?));
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

    /// The first row that two runs do not agree on, and how.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let mut rows = self.of.iter().zip(&other.of);
        let differs = rows.find(|((_, one), (_, two))| one != two);
        match differs {
            Some(((name, one), (_, two))) => Some(format!("{name} took {one}, and then {two}")),
            None => (self != other).then(|| "two runs do not print the same".to_owned()),
        }
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

/// The least and the most of several runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub least: u64,
    pub most: u64,
}

impl From<u64> for Range {
    fn from(figure: u64) -> Self {
        Self {
            least: figure,
            most: figure,
        }
    }
}

impl Range {
    /// Makes room for another run.
    pub fn include(&mut self, figure: u64) {
        self.least = self.least.min(figure);
        self.most = self.most.max(figure);
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.least == self.most {
            return f.pad(&grouped(self.most));
        }
        f.pad(&format!("{}–{}", grouped(self.least), grouped(self.most)))
    }
}

/// A number with a comma before every three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// What several runs of one hypervisor printed, which may differ within ranges.
#[derive(Debug)]
pub struct Ranges {
    of: Vec<(String, Range)>,
    /// Its defences against speculation, of which it says the same in every run.
    pub mitigations: Vec<String>,
}

impl Ranges {
    /// Those of no run.
    pub const fn new() -> Self {
        Self {
            of: Vec::new(),
            mitigations: Vec::new(),
        }
    }

    /// Takes in the figures of a run.
    pub fn include(&mut self, figures: Figures) {
        for (name, figure) in figures.of {
            match self.of.iter_mut().find(|(of, _)| *of == name) {
                Some((_, range)) => range.include(figure),
                None => self.of.push((name, figure.into())),
            }
        }
        if self.mitigations.is_empty() {
            self.mitigations = figures.mitigations;
        }
    }

    /// Returns the rows' names, in the order in which they came.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.of.iter().map(|(name, _)| name.as_str())
    }

    /// Returns the figures of a row.
    pub fn get(&self, name: &str) -> Result<Range> {
        let found = self.of.iter().find(|(of, _)| of == name);
        found
            .map(|(_, range)| *range)
            .with_context(|| format!("no figure for {name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(said: &str, marks: &str) -> Result<Vec<u64>> {
        Ok(Figures::heard(said, marks)?
            .of
            .into_iter()
            .map(|(_, figure)| figure)
            .collect())
    }

    #[test]
    fn what_domains_take_of_the_heap_counts() {
        let memory =
            |free: u32| format!("(XEN) memory: 1 of 2 pages free, 0 to scrub; heap {free} of 9999 bytes free\r\n");
        let said = memory(5000) + &memory(1800) + "[bench] bytes per empty domain: 4096\n[bench] end\n";
        assert_eq!(figures(&said, "").unwrap(), [4096 + 200]);
    }

    #[test]
    fn only_the_guests_figures_count_and_a_failure_is_one() {
        assert_eq!(
            figures("(XEN) x: 1\r\n[bench] a, b: 12\r\n[bench] end\r\n", "").unwrap(),
            [12]
        );
        assert!(figures("[bench] a: FAIL wrong\n[bench] end\n", "").is_err());
    }

    #[test]
    fn a_rows_figure_is_the_median_of_its_marks_without_the_first_four() {
        let mut marks = String::from("kernel 100 10\nmark 150 25\n");
        for (number, part) in [900, 900, 900, 900, 1, 3, 2].into_iter().enumerate() {
            let at = 10_000 * (number + 1);
            marks.push_str(&format!("mark {at} {at}\nmark {} {}\n", at + part + 7, at + part));
        }
        marks.push_str("mark 900000 1\nmark 900009 1\n");
        let said = "[bench] a: boot hypervisor\n[bench] b: samples 7 hypervisor\n[bench] c: samples 1 machine\n";
        assert_eq!(figures(said, &marks).unwrap(), [15, 2, 9]);
        let said = said.replace("samples 7", "spread 7");
        assert_eq!(figures(&said, &marks).unwrap(), [15, 3, 2, 9]);
        assert!(figures("[bench] a: samples 1 machine\n", "mark 1 1\n").is_err());
        assert!(figures("[bench] a: samples 1 guest\n", &marks).is_err());
    }

    #[test]
    fn runs_that_differ_make_a_range() {
        let run = |figure: u64| Figures {
            of: vec![("a".to_owned(), figure)],
            mitigations: Vec::new(),
        };
        let mut ranges = Ranges::new();
        for figure in [1_200, 999, 1_100] {
            ranges.include(run(figure));
        }
        assert_eq!(ranges.get("a").unwrap().to_string(), "999–1,200");
        assert!(ranges.get("b").is_err());
        assert!(run(1).difference(&run(2)).is_some());
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!(
            [0, 999, 1_000, 12_345_678].map(grouped),
            ["0", "999", "1,000", "12,345,678"]
        );
    }
}
