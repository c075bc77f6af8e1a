//! The list of answers in which ours differs from Xen's, and why.

use std::path::Path;

use anyhow::{Context, Result};
use regex::Regex;
use serde::Deserialize;
use similar::{ChangeTag, TextDiff};

use super::script::Command;
use crate::places;

/// Lines that may differ.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Difference {
    /// The commands that it is about: a pattern for the whole of them.
    command: String,
    /// The lines that only stock has: a pattern for the whole of each.
    stock: Option<String>,
    /// The lines that only ours has; likewise.
    ours: Option<String>,
    /// In which comparisons it is seen.
    #[serde(default = "hypervisors")]
    between: Vec<Between>,
    /// Why that is so.
    reason: String,
    #[serde(skip)]
    patterns: Patterns,
    #[serde(skip)]
    is_used: bool,
}

/// What two answers are compared for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Between {
    /// Debian's hypervisor and ours, as Debian's tools see them.
    Hypervisors,
    /// The same, as our tools see them.
    HypervisorsBelowOurTools,
    /// Debian's tools and ours, on Debian's hypervisor.
    Tools,
}

fn hypervisors() -> Vec<Between> {
    vec![Between::Hypervisors]
}

#[derive(Debug, Default)]
struct Patterns {
    command: Option<Regex>,
    stock: Option<Regex>,
    ours: Option<Regex>,
}

fn whole(text: &str) -> Result<Option<Regex>> {
    Ok(Some(Regex::new(&format!("^(?:{text})$"))?))
}

fn fits(pattern: Option<&Regex>, text: &str) -> bool {
    pattern.is_some_and(|pattern| pattern.is_match(text))
}

impl Difference {
    fn compile(&mut self) -> Result<()> {
        self.patterns = Patterns {
            command: whole(&self.command)?,
            stock: self.stock.as_deref().map_or(Ok(None), whole)?,
            ours: self.ours.as_deref().map_or(Ok(None), whole)?,
        };
        Ok(())
    }

    fn covers(&self, change: ChangeTag, line: &str) -> bool {
        match change {
            ChangeTag::Delete => fits(self.patterns.stock.as_ref(), line),
            ChangeTag::Insert => fits(self.patterns.ours.as_ref(), line),
            ChangeTag::Equal => true,
        }
    }
}

/// The list, as far as it is about one comparison.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Differences {
    #[serde(default)]
    difference: Vec<Difference>,
}

/// How two answers compare.
#[derive(Debug, PartialEq, Eq)]
pub enum Comparison {
    /// Line by line the same.
    Same,
    /// The same but for listed lines, for these reasons.
    Listed(Vec<String>),
    /// Otherwise: the lines that differ and are not listed, `-` before stock's and `+` before ours.
    Differs(Vec<String>),
}

impl Differences {
    /// Reads what the list says of differences `between` two.
    pub fn read(path: &Path, between: Between) -> Result<Self> {
        let all: Self = places::read_toml(path)?;
        all.only(between).with_context(|| format!("in {}", path.display()))
    }

    fn only(mut self, between: Between) -> Result<Self> {
        self.difference.retain(|known| known.between.contains(&between));
        self.difference.iter_mut().try_for_each(Difference::compile)?;
        Ok(self)
    }

    /// Compares what `command` answered on either.
    pub fn judge(&mut self, command: &str, stock: &[String], ours: &[String]) -> Comparison {
        let (stock, ours): (Vec<&str>, Vec<&str>) = (refs(stock), refs(ours));
        let diff = TextDiff::from_slices(&stock, &ours);
        let (mut reasons, mut unlisted) = (Vec::new(), Vec::new());
        for change in diff
            .iter_all_changes()
            .filter(|change| change.tag() != ChangeTag::Equal)
        {
            let line = change.value();
            let known = self
                .difference
                .iter_mut()
                .find(|known| fits(known.patterns.command.as_ref(), command) && known.covers(change.tag(), line));
            match known {
                Some(known) => {
                    known.is_used = true;
                    if !reasons.contains(&known.reason) {
                        reasons.push(known.reason.clone());
                    }
                }
                None => unlisted.push(format!("{}{line}", change.tag())),
            }
        }
        match (reasons.is_empty(), unlisted.is_empty()) {
            (true, true) => Comparison::Same,
            (_, true) => Comparison::Listed(reasons),
            (_, false) => Comparison::Differs(unlisted),
        }
    }

    /// Returns what is listed of `commands` and was not seen.
    pub fn unused(&self, commands: &[Command]) -> Vec<String> {
        let is_about_one = |known: &&Difference| {
            let pattern = known.patterns.command.as_ref();
            commands.iter().any(|command| fits(pattern, &command.text))
        };
        let unused = self
            .difference
            .iter()
            .filter(|known| !known.is_used)
            .filter(is_about_one);
        unused
            .map(|known| format!("{} ({})", known.command, known.reason))
            .collect()
    }
}

fn refs(lines: &[String]) -> Vec<&str> {
    lines.iter().map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "[[difference]]\ncommand = 'xl a.*'\nstock = 'x: \\d'\nours = 'x: none'\nreason = 'r'\n";

    fn list(text: &str, between: Between) -> Differences {
        toml::from_str::<Differences>(text).unwrap().only(between).unwrap()
    }

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_listed_line_may_differ_and_no_other() {
        let mut differences = list(LIST, Between::Hypervisors);
        let (stock, ours) = (lines("x: 1\ny\nstatus 0"), lines("x: none\ny\nstatus 0"));
        assert_eq!(
            differences.judge("xl ab", &stock, &ours),
            Comparison::Listed(vec!["r".to_owned()])
        );
        let unlisted = Comparison::Differs(lines("-x: 1\n+x: none"));
        assert_eq!(differences.judge("xl b", &stock, &ours), unlisted);
        assert_eq!(differences.judge("xl b", &stock, &stock), Comparison::Same);
    }

    #[test]
    fn what_is_listed_of_the_tools_is_nothing_of_the_hypervisors() {
        let text = format!("{LIST}between = ['tools']\n");
        let count = |between| list(&text, between).difference.len();
        assert_eq!((count(Between::Hypervisors), count(Between::Tools)), (0, 1));
    }

    #[test]
    fn what_no_longer_differs_is_named() {
        let mut differences = list(LIST, Between::Hypervisors);
        let command = Command {
            chapter: String::new(),
            text: "xl a".to_owned(),
            compared: super::super::script::Compared::Everything,
        };
        assert_eq!(differences.judge("xl a", &lines("y"), &lines("y")), Comparison::Same);
        assert_eq!(differences.unused(&[command]).len(), 1);
        assert!(differences.unused(&[]).is_empty());
    }
}
