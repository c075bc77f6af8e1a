//! The list of lines in which we differ from Xen, and why.

use std::fmt;
use std::path::Path;

use anyhow::Result;
use serde::Deserialize;

use crate::conform::Place;
use crate::conform::transcript::{Transcript, Verdict};
use crate::places;

/// One line that may differ.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Difference {
    /// The guest that sees it.
    guest: String,
    /// The oracle's line; a `*` stands for anything.
    stock: String,
    /// Our line; likewise.
    ours: String,
    /// Where alone it is seen, if not wherever the guest runs.
    place: Option<Place>,
    /// Why that is so.
    reason: String,
    #[serde(skip)]
    is_used: bool,
}

impl Difference {
    fn covers(&self, guest: &str, stock: &str, ours: &str) -> bool {
        // What a pattern leaves open must not hide that the two lines are about different things.
        let is_open = self.stock.starts_with('*');
        let same_subject = !is_open || subject(stock) == subject(ours);
        self.guest == guest && same_subject && matches(&self.stock, stock) && matches(&self.ours, ours)
    }
}

/// Tells whether `line` is `pattern`, each `*` of which stands for any text.
fn matches(pattern: &str, line: &str) -> bool {
    match pattern.split_once('*') {
        None => line == pattern,
        Some((start, rest)) => line
            .strip_prefix(start)
            .is_some_and(|line| (0..=line.len()).any(|at| line.get(at..).is_some_and(|line| matches(rest, line)))),
    }
}

/// The part of a line before its value: what was looked at.
fn subject(line: &str) -> &str {
    line.rsplit_once(": ").map_or(line, |(subject, _)| subject)
}

/// The list, as far as it is about one place.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Differences {
    #[serde(default)]
    difference: Vec<Difference>,
}

/// How a guest's two transcripts compare.
#[derive(Debug, PartialEq, Eq)]
pub enum Comparison {
    /// Line by line the same.
    Same,
    /// The same but for this many listed lines.
    Listed(usize),
    /// The first line that differs and is not listed.
    Differs {
        /// The oracle's line; empty where it has none.
        stock: String,
        /// Ours.
        ours: String,
    },
    /// Both say the same, and it is wrong.
    Wrong,
}

impl Comparison {
    /// Tells whether there is nothing to complain of.
    pub fn is_fine(&self) -> bool {
        matches!(self, Self::Same | Self::Listed(_))
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Same => Ok(()),
            Self::Listed(count) => write!(f, "({count} listed)"),
            Self::Differs { stock, ours } => write!(f, "stock: {stock} | ours: {ours}"),
            Self::Wrong => f.write_str("the same, but wrong"),
        }
    }
}

impl Differences {
    /// Reads what the list says of `place`.
    pub fn read(path: &Path, place: Place) -> Result<Self> {
        Ok(places::read_toml::<Self>(path)?.of(place))
    }

    fn of(mut self, place: Place) -> Self {
        self.difference
            .retain(|known| known.place.is_none_or(|only| only == place));
        self
    }

    /// Compares what `guest` saw on either.
    pub fn judge(&mut self, guest: &str, stock: &Transcript, ours: &Transcript) -> Comparison {
        let mut listed = 0;
        for index in 0..stock.lines().len().max(ours.lines().len()) {
            let line = |of: &Transcript| of.lines().get(index).cloned().unwrap_or_default();
            let (stock, ours) = (line(stock), line(ours));
            if stock == ours {
                continue;
            }
            match self
                .difference
                .iter_mut()
                .find(|known| known.covers(guest, &stock, &ours))
            {
                Some(known) => {
                    known.is_used = true;
                    listed += 1;
                }
                None => return Comparison::Differs { stock, ours },
            }
        }
        match (listed, ours.verdict()) {
            (0, Verdict::Fail | Verdict::Hung) => Comparison::Wrong,
            (0, _) => Comparison::Same,
            _ => Comparison::Listed(listed),
        }
    }

    /// Returns what is listed of `guests` and was not seen at `place`, though it must be: what is listed for no place in
    /// particular is Domain 0's, and a domU may see it.
    pub fn unused(&self, guests: &[String], place: Place) -> Vec<String> {
        let must_be_seen = |known: &&Difference| known.place.is_some() || place == Place::Dom0;
        let unused = self
            .difference
            .iter()
            .filter(|known| !known.is_used && guests.contains(&known.guest))
            .filter(must_be_seen);
        unused
            .map(|known| format!("{}: {} ({})", known.guest, known.stock, known.reason))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "[[difference]]\nguest = \"a\"\nstock = \"x: 1\"\nours = \"x: *\"\nreason = \"r\"\n";

    fn list() -> Differences {
        toml::from_str::<Differences>(LIST).unwrap().of(Place::Dom0)
    }

    #[test]
    fn a_difference_of_one_place_is_none_elsewhere() {
        let text = format!("{LIST}place = \"dom0\"\n");
        let count = |place| toml::from_str::<Differences>(&text).unwrap().of(place).difference.len();
        assert_eq!((count(Place::Dom0), count(Place::DomU)), (1, 0));
    }

    #[test]
    fn a_listed_line_may_differ_and_no_other() {
        let stock = Transcript::recorded("x: 1\ny: 2\nPASS\n");
        let ours = Transcript::recorded("x: 3\ny: 2\nPASS\n");
        let mut differences = list();
        assert_eq!(differences.judge("a", &stock, &ours), Comparison::Listed(1));
        assert!(differences.unused(&["a".to_owned()], Place::Dom0).is_empty());
        assert!(!differences.judge("b", &stock, &ours).is_fine());
    }

    #[test]
    fn a_star_stands_for_any_text() {
        assert!(matches("* of *: E*", "frames of no domain: ESRCH 0"));
        assert!(!matches("x: *!", "x: 1"));
        assert!(matches("x", "x") && !matches("x", "xy") && matches("*", ""));
    }

    #[test]
    fn what_no_longer_differs_is_named() {
        let same = Transcript::recorded("x: 1\nPASS\n");
        let mut differences = list();
        assert_eq!(differences.judge("a", &same, &same), Comparison::Same);
        assert_eq!(differences.unused(&["a".to_owned()], Place::Dom0).len(), 1);
    }

    #[test]
    fn a_transcript_that_ends_early_differs() {
        let (stock, ours) = (Transcript::recorded("PASS\n"), Transcript::recorded(""));
        assert!(!list().judge("a", &stock, &ours).is_fine());
    }
}
