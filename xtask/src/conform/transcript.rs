//! What a guest saw: lines, the last of which is its verdict.

use std::fmt;

/// How a guest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it should.
    Pass,
    /// It cannot be shown there.
    Skip,
    /// Something is wrong, by the guest's own judgement.
    Fail,
    /// It died of what it did, without a verdict.
    Died,
    /// It neither ended nor died.
    Hung,
}

impl Verdict {
    /// As the table has it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::Skip => "SKIP",
            Self::Fail => "FAIL",
            Self::Died => "died",
            Self::Hung => "hung",
        }
    }
}

/// The line that stands for a death.
const DIED: &str = "the domain died";
/// The line that stands for silence.
const HUNG: &str = "nothing more was heard";

/// The lines of one guest, without its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transcript {
    lines: Vec<String>,
}

impl Transcript {
    /// Picks the lines of guest `name` out of everything that was said on the line.
    pub fn heard(name: &str, said: &str, died: bool) -> Self {
        let prefix = format!("[{name}] ");
        let lines = said.lines().filter_map(|line| line.trim_end().strip_prefix(&prefix));
        let mut heard = Self {
            lines: lines.map(str::to_owned).collect(),
        };
        if !matches!(heard.verdict(), Verdict::Pass | Verdict::Skip | Verdict::Fail) {
            heard.lines.push(if died { DIED } else { HUNG }.to_owned());
        }
        heard
    }

    /// Reads one that was written down.
    pub fn recorded(text: &str) -> Self {
        Self {
            lines: text.lines().map(str::to_owned).collect(),
        }
    }

    /// Returns the lines.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// Reads the verdict off the last line.
    pub fn verdict(&self) -> Verdict {
        let last = self.lines.last().map_or("", String::as_str);
        match last.split(' ').next() {
            Some("PASS") => Verdict::Pass,
            Some("SKIP") => Verdict::Skip,
            Some("FAIL") => Verdict::Fail,
            _ if last == DIED => Verdict::Died,
            _ => Verdict::Hung,
        }
    }
}

impl fmt::Display for Transcript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_guests_own_lines_count() {
        let said = "(XEN) hello\r\n[a] x: 1\r\n[ab] y: 2\n(XEN) bye\n[a] PASS\r\n";
        let heard = Transcript::heard("a", said, false);
        assert_eq!(heard.lines(), ["x: 1", "PASS"]);
        assert_eq!(heard.verdict(), Verdict::Pass);
        assert_eq!(Transcript::recorded(&heard.to_string()), heard);
    }

    #[test]
    fn a_guest_without_a_verdict_died_or_hung() {
        assert_eq!(Transcript::heard("a", "[a] x: 1\n", true).verdict(), Verdict::Died);
        assert_eq!(Transcript::heard("a", "", false).verdict(), Verdict::Hung);
    }
}
