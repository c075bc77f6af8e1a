//! xend's own configuration, `xend-config.sxp`: a list of `(KEY VALUE ...)`, of which we read what still has a meaning.
//!
//! Words stand bare or in quotes of either kind; `#` begins a comment.

use crate::source::{Notice, Place, Problem, Source};

/// What xend's configuration asks of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostConfig {
    /// The script that sets up the host's network, with its arguments.
    pub network_script: Option<Vec<String>>,
}

/// One expression.
enum Expression {
    Word(String, Place),
    List(Vec<Expression>, Place),
}

/// Reads a file that is already in memory.
pub fn parse(source: &Source) -> Result<(HostConfig, Vec<Notice>), Problem> {
    let mut reader = Reader { source, at: 0 };
    let (mut config, mut notices) = (HostConfig::default(), Vec::new());
    while let Some(expression) = reader.next()? {
        let (key, values, place) = entry(expression)?;
        match key.as_str() {
            "network-script" => config.network_script = Some(script(&values, &place)?),
            _ => notices.push(Notice::new(place, format!("`{key}` was for xend and has no effect"))),
        }
    }
    Ok((config, notices))
}

/// `(KEY VALUE ...)`
fn entry(expression: Expression) -> Result<(String, Vec<Expression>, Place), Problem> {
    let (items, place) = match expression {
        Expression::List(items, place) => (items, place),
        Expression::Word(word, place) => {
            return Err(Problem::at(place, format!("`{word}` stands alone")).help("settings are written (KEY VALUE)"));
        }
    };
    let mut items = items.into_iter();
    match items.next() {
        Some(Expression::Word(key, place)) => Ok((key, items.collect(), place)),
        _ => Err(Problem::at(place, "expected a setting's name").help("settings are written (KEY VALUE)")),
    }
}

/// A script's name and arguments: in several words, or in one that is quoted.
fn script(values: &[Expression], place: &Place) -> Result<Vec<String>, Problem> {
    let mut words = Vec::new();
    for value in values {
        match value {
            Expression::Word(text, _) => words.extend(text.split_whitespace().map(str::to_owned)),
            Expression::List(_, place) => return Err(Problem::at(place.clone(), "expected a script's name")),
        }
    }
    match words.is_empty() {
        true => Err(Problem::at(place.clone(), "no script is named")),
        false => Ok(words),
    }
}

struct Reader<'a> {
    source: &'a Source,
    at: usize,
}

impl Reader<'_> {
    fn rest(&self) -> &str {
        &self.source.text()[self.at..]
    }

    fn skip_blank(&mut self) {
        while let Some(c) = self.rest().chars().next() {
            match c {
                '#' => self.at += self.rest().find('\n').unwrap_or(self.rest().len()),
                c if c.is_whitespace() => self.at += c.len_utf8(),
                _ => return,
            }
        }
    }

    /// The next expression at the outermost level.
    fn next(&mut self) -> Result<Option<Expression>, Problem> {
        // The lists that are open, each with its bracket's place.
        let mut open: Vec<(Vec<Expression>, Place)> = Vec::new();
        loop {
            self.skip_blank();
            let start = self.at;
            let done = match self.rest().chars().next() {
                None => {
                    return match open.pop() {
                        None => Ok(None),
                        Some((_, place)) => Err(Problem::at(place, "this bracket is never closed")),
                    };
                }
                Some('(') => {
                    self.at += 1;
                    open.push((Vec::new(), self.source.at(start..self.at)));
                    continue;
                }
                Some(')') => {
                    self.at += 1;
                    match open.pop() {
                        Some((items, place)) => Expression::List(items, place),
                        None => {
                            return Err(Problem::at(
                                self.source.at(start..self.at),
                                "this bracket closes nothing",
                            ));
                        }
                    }
                }
                Some(_) => self.word(start)?,
            };
            match open.last_mut() {
                Some((items, _)) => items.push(done),
                None => return Ok(Some(done)),
            }
        }
    }

    fn word(&mut self, start: usize) -> Result<Expression, Problem> {
        let rest = self.rest();
        let quote = rest.chars().next().filter(|c| matches!(c, '\'' | '"'));
        let text = match quote {
            Some(quote) => match rest[1..]
                .find([quote, '\n'])
                .filter(|end| rest[1 + end..].starts_with(quote))
            {
                Some(end) => &rest[1..1 + end],
                None => {
                    return Err(Problem::at(
                        self.source.at(start..start + 1),
                        "this quote does not end on its line",
                    ));
                }
            },
            None => {
                let end = rest.find(|c: char| c.is_whitespace() || matches!(c, '(' | ')' | '#'));
                &rest[..end.unwrap_or(rest.len())]
            }
        };
        let text = text.to_owned();
        self.at += text.len() + if quote.is_some() { 2 } else { 0 };
        Ok(Expression::Word(text, self.source.at(start..self.at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(Option<Vec<String>>, usize), String> {
        match parse(&Source::new("xend-config.sxp", text)) {
            Ok((config, notices)) => Ok((config.network_script, notices.len())),
            Err(problem) => Err(problem.to_string()),
        }
    }

    fn script(words: &[&str], notices: usize) -> Result<(Option<Vec<String>>, usize), String> {
        Ok((Some(words.iter().map(|word| (*word).to_owned()).collect()), notices))
    }

    #[test]
    fn the_script_is_bare_or_quoted() {
        assert_eq!(read("(network-script network-bridge)"), script(&["network-bridge"], 0));
        assert_eq!(
            read("# xend\n(xend-port 8000)\n(network-script 'network-bridge-multi')\n"),
            script(&["network-bridge-multi"], 1)
        );
        assert_eq!(
            read("(network-script \"network-bridge netdev=eth1\")"),
            script(&["network-bridge", "netdev=eth1"], 0)
        );
        assert_eq!(read(""), Ok((None, 0)));
    }

    #[test]
    fn mistakes_are_shown_where_they_are() {
        for (text, place, said) in [
            ("(vif-script vif-bridge)\n(network-script", ":2:1", "never closed"),
            ("(network-script a))", ":1:19", "closes nothing"),
            ("(network-script 'a)\n", ":1:17", "does not end"),
            ("network-script a\n", ":1:1", "stands alone"),
            ("()", ":1:1", "a setting's name"),
            ("(network-script)", ":1:2", "no script"),
            ("(network-script (a))", ":1:17", "a script's name"),
        ] {
            let error = read(text).expect_err("is wrong");
            assert!(error.contains(place) && error.contains(said), "{text}: {error}");
        }
    }
}
