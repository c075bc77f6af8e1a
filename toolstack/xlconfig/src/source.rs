//! Text with places in it, and complaints that point there.

use std::fmt::{self, Display, Write as _};
use std::ops::Range;
use std::sync::Arc;

/// A named text. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    inner: Arc<(String, String)>,
}

impl Source {
    /// Names a text.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Source {
        Source {
            inner: Arc::new((name.into(), text.into())),
        }
    }

    /// The name, usually a path.
    pub fn name(&self) -> &str {
        &self.inner.0
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.inner.1
    }

    pub(crate) fn at(&self, range: Range<usize>) -> Place {
        Place {
            source: self.clone(),
            range,
        }
    }

    /// Where byte `line`:`column` (both from 0) is, as far as the text reaches.
    pub(crate) fn offset_of(&self, line: usize, column: usize) -> usize {
        let start = self
            .text()
            .split_inclusive('\n')
            .take(line)
            .map(str::len)
            .sum::<usize>();
        let rest = self.text().get(start..).unwrap_or("");
        let line_text = rest.split('\n').next().unwrap_or("");
        let in_line = line_text
            .char_indices()
            .nth(column)
            .map_or(line_text.len(), |(at, _)| at);
        start + in_line
    }
}

/// A stretch of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    source: Source,
    range: Range<usize>,
}

impl Place {
    /// A part of this place that is `range` into the text `part`, if `part` stands somewhere after the start
    /// of this place; else this place.
    pub(crate) fn within(&self, part: &str, range: Range<usize>) -> Place {
        let text = self.source.text();
        let found = text
            .get(self.range.start..)
            .and_then(|rest| if part.is_empty() { None } else { rest.find(part) });
        match found {
            Some(at) => {
                let start = self.range.start + at;
                self.source
                    .at(start + range.start.min(part.len())..start + range.end.min(part.len()))
            }
            None => self.clone(),
        }
    }

    /// Line and column, from 1, columns counted in characters.
    fn line_and_column(&self) -> (usize, usize) {
        let before = self.source.text().get(..self.range.start).unwrap_or(self.source.text());
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        (
            before.matches('\n').count() + 1,
            before[line_start..].chars().count() + 1,
        )
    }

    fn render(&self, f: &mut impl fmt::Write) -> fmt::Result {
        let (line, column) = self.line_and_column();
        let text = self
            .source
            .text()
            .split('\n')
            .nth(line - 1)
            .unwrap_or("")
            .trim_end_matches('\r');
        let marked = self.source.text().get(self.range.clone()).unwrap_or("");
        let room = text.chars().count().saturating_sub(column - 1);
        let width = marked
            .split('\n')
            .next()
            .unwrap_or("")
            .trim_end_matches('\r')
            .chars()
            .count()
            .min(room)
            .max(1);
        let gutter = line.to_string().len();
        // Tabs stay tabs, so that the caret stands under the text in any terminal.
        let indent: String = text
            .chars()
            .take(column - 1)
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        writeln!(f, "{:gutter$}--> {}:{line}:{column}", "", self.source.name())?;
        writeln!(f, "{:gutter$} |", "")?;
        writeln!(f, "{line} | {}", text.trim_end())?;
        write!(f, "{:gutter$} | {indent}{}", "", "^".repeat(width))
    }
}

/// Why a configuration is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.rendered())]
pub struct Problem {
    message: String,
    place: Option<Place>,
    help: Option<String>,
    /// What else is wrong, further down.
    more: Vec<Problem>,
}

impl Problem {
    pub(crate) fn general(message: impl Into<String>) -> Problem {
        Problem {
            message: message.into(),
            place: None,
            help: None,
            more: Vec::new(),
        }
    }

    pub(crate) fn at(place: impl Into<Option<Place>>, message: impl Into<String>) -> Problem {
        Problem {
            message: message.into(),
            place: place.into(),
            help: None,
            more: Vec::new(),
        }
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Problem {
        self.help = Some(help.into());
        self
    }

    /// Several as one, in the order of the file.
    pub(crate) fn all(problems: Vec<Problem>) -> Result<(), Problem> {
        let mut problems: Vec<Problem> = problems
            .into_iter()
            .flat_map(|mut problem| {
                let more = std::mem::take(&mut problem.more);
                std::iter::once(problem).chain(more)
            })
            .collect();
        problems.sort_by_key(|problem| problem.place.as_ref().map_or(usize::MAX, |place| place.range.start));
        if problems.is_empty() {
            return Ok(());
        }
        let mut first = problems.remove(0);
        first.more = problems;
        Err(first)
    }

    /// Each complaint, with its place and the way out.
    pub fn each(&self) -> impl Iterator<Item = String> {
        std::iter::once(self).chain(&self.more).map(Problem::alone)
    }

    /// The complaint alone, one line.
    pub fn message(&self) -> &str {
        &self.message
    }

    fn rendered(&self) -> String {
        self.each().collect::<Vec<_>>().join("\n\n")
    }

    fn alone(&self) -> String {
        let mut text = self.message.clone();
        if let Some(place) = &self.place {
            text.push('\n');
            // A String takes any text.
            let _ = place.render(&mut text);
        }
        if let Some(help) = &self.help {
            let _ = write!(text, "\n  help: {help}");
        }
        text
    }
}

/// Something the reader should know that stops nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    message: String,
    place: Option<Place>,
}

impl Notice {
    pub(crate) fn new(place: impl Into<Option<Place>>, message: impl Into<String>) -> Notice {
        Notice {
            message: message.into(),
            place: place.into(),
        }
    }

    /// The text without its place.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(place) => {
                let (line, column) = place.line_and_column();
                write!(f, "{}:{line}:{column}: {}", place.source.name(), self.message)
            }
            None => f.write_str(&self.message),
        }
    }
}
