//! The script, and what came of it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::images::Toolstack;

/// How much of an answer is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compared {
    /// What it printed, and how it ended.
    Everything,
    /// How it ended.
    Status,
}

/// A line of the script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The title that it stands under.
    pub chapter: String,
    /// What the shell gets.
    pub text: String,
    /// What of it is compared.
    pub compared: Compared,
}

impl Command {
    /// Whether there is such a command without Debian's tools.
    pub fn is_with_our_tools(&self) -> bool {
        let program = self.text.split([' ', '-']).next().unwrap_or_default();
        OURS.contains(&program) || !(program.starts_with("xen") || DEBIANS.contains(&program))
    }
}

/// The commands, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// All of them.
    pub commands: Vec<Command>,
}

/// The tools that there are of ours; the shell, and what reads the answers, both Domain 0s have.
const OURS: [&str; 3] = ["xl", "xm", "xenstore"];
/// What Debian's packages have beside them that does not begin with `xen`.
const DEBIANS: [&str; 6] = ["lsevtchn", "test", "flask", "gdbsx", "verify", "readnotes"];

impl Script {
    /// Reads the file at `path`.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("in {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let (mut chapter, mut commands) = (String::new(), Vec::new());
        for line in text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with("# ") && *line != "#")
        {
            let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
            let compared = match kind {
                "##" => {
                    rest.clone_into(&mut chapter);
                    continue;
                }
                "$" => Compared::Everything,
                "?" => Compared::Status,
                _ => bail!("a line is neither title, command nor remark: {line}"),
            };
            commands.push(Command {
                chapter: chapter.clone(),
                text: rest.to_owned(),
                compared,
            });
        }
        Ok(Self { commands })
    }

    /// Keeps the chapters whose titles contain one of `titles` (all without any), and the commands that there are
    /// with `toolstack`.
    pub fn chosen(mut self, titles: &[String], toolstack: Toolstack) -> Result<Self> {
        let is_wanted =
            |command: &Command| titles.is_empty() || titles.iter().any(|title| command.chapter.contains(title));
        self.commands
            .retain(|command| is_wanted(command) && (toolstack != Toolstack::Ours || command.is_with_our_tools()));
        ensure!(
            !self.commands.is_empty(),
            "no chapter's title contains {}",
            titles.join(" or ")
        );
        Ok(self)
    }
}

/// What came of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What it printed, on either stream.
    pub printed: Vec<String>,
    /// How it ended; 124 where its minute was over.
    pub status: i32,
}

impl Answer {
    /// Returns its lines, the last of which tells how it ended.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = self.printed.clone();
        lines.push(self.last_line());
        lines
    }

    /// Returns the line that tells how it ended.
    pub fn last_line(&self) -> String {
        format!("status {}", self.status)
    }
}

/// Picks the answers out of everything that was said on the line, as far as they came.
pub fn answers(said: &str, count: usize) -> Vec<Answer> {
    let mut rest = said;
    let mut answers = Vec::new();
    for number in 1..=count {
        let begin = format!("<compat {number}>");
        let end = format!("<compat {number}: ");
        let Some((_, after)) = rest.split_once(&begin) else {
            break;
        };
        let Some((printed, after)) = after.split_once(&end) else {
            break;
        };
        let Some((status, after)) = after.split_once('>') else {
            break;
        };
        let lines = printed.lines().filter_map(|line| line.trim_end().strip_prefix('|'));
        answers.push(Answer {
            printed: lines
                .map(|line| line.strip_prefix(' ').unwrap_or(line).to_owned())
                .collect(),
            status: status.parse().unwrap_or(-1),
        });
        rest = after;
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = "# a remark\n## One\n$ xl list\n? xl dmesg\n\n## Two\n$ xen-cpuid -p | cat\n";

    #[test]
    fn a_script_has_chapters_of_commands() {
        let script = Script::parse(SCRIPT).unwrap();
        let kinds: Vec<_> = script
            .commands
            .iter()
            .map(|command| (command.chapter.as_str(), command.compared))
            .collect();
        assert_eq!(
            kinds,
            [
                ("One", Compared::Everything),
                ("One", Compared::Status),
                ("Two", Compared::Everything)
            ]
        );
        assert!(Script::parse("xl list\n").is_err());
    }

    #[test]
    fn chapters_are_chosen_by_their_titles_and_commands_by_whose_tools_there_are() {
        let script = Script::parse(SCRIPT).unwrap();
        let two = script.clone().chosen(&["Tw".to_owned()], Toolstack::Debian).unwrap();
        assert_eq!(two.commands.len(), 1);
        assert_eq!(script.clone().chosen(&[], Toolstack::Ours).unwrap().commands.len(), 2);
        assert!(script.chosen(&["Three".to_owned()], Toolstack::Debian).is_err());
    }

    #[test]
    fn an_answer_is_what_came_between_its_marks() {
        let said =
            "bash /compat/run\r\n<compat 1>\r\n| a\r\n(XEN) odd\r\n|  b\r\n\r\n<compat 1: 3>\r\n<compat 2>\r\n| c";
        let answers = answers(said, 2);
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0].lines(), ["a", " b", "status 3"]);
    }
}
