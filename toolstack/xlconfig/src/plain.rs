//! The grammar of xl.cfg(5), by hand: `KEY = VALUE` or `KEY += VALUE`, ended by a newline or `;`.
//!
//! Newlines are free inside lists and after `=`.

use crate::source::{Place, Problem, Source};
use crate::value::{Setting, Settings, Value};
use std::num::IntErrorKind;

pub fn parse(source: &Source) -> Result<Settings, Problem> {
    parse_after(source, Settings::new())
}

/// Reads on: `+=` adds to what `settings` has.
fn parse_after(source: &Source, mut settings: Settings) -> Result<Settings, Problem> {
    let mut reader = Reader {
        source,
        text: source.text(),
        at: 0,
    };
    loop {
        reader.skip_blank(true);
        if reader.at == reader.text.len() {
            return Ok(settings);
        }
        if reader.take(';') {
            continue;
        }
        let (key, place) = reader.key()?;
        reader.skip_blank(false);
        let adds = reader.take('+');
        if !reader.take('=') {
            return Err(reader.problem("expected `=`"));
        }
        reader.skip_blank(true);
        let value = reader.value()?;
        reader.skip_blank(false);
        if !(reader.at == reader.text.len() || reader.take('\n') || reader.take(';')) {
            return Err(reader.problem("expected the end of the line"));
        }
        let value = match (adds, settings.remove(&key)) {
            (true, Some(old)) => add(old.value, value).map_err(|message| Problem::at(place.clone(), message))?,
            _ => value,
        };
        settings.insert(
            key,
            Setting {
                value,
                place: Some(place),
            },
        );
    }
}

/// One `KEY=VALUE` of a command line after `settings`, where quotes round a value may be missing.
pub fn parse_override(text: &str, settings: &Settings) -> Result<Settings, Problem> {
    let source = Source::new("command line", text);
    parse_after(&source, settings.clone()).or_else(|problem| {
        let (key, value) = text.split_once('=').ok_or(problem.clone())?;
        let is_name = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_name || value.starts_with(['[', '"', '\'']) || value.contains('\n') {
            return Err(problem);
        }
        let setting = Setting {
            value: Value::Text(value.to_owned()),
            place: Some(source.at(0..key.len())),
        };
        let mut settings = settings.clone();
        settings.insert(key.to_owned(), setting);
        Ok(settings)
    })
}

fn add(old: Value, new: Value) -> Result<Value, String> {
    match (old, new) {
        (Value::Text(old), Value::Text(new)) => Ok(Value::Text(old + &new)),
        (Value::Text(old), Value::Number(new)) => Ok(Value::Text(old + &new.to_string())),
        (Value::List(mut old), Value::List(new)) => {
            old.extend(new);
            Ok(Value::List(old))
        }
        (Value::List(mut old), new @ Value::Text(_)) => {
            old.push(new);
            Ok(Value::List(old))
        }
        (old, new) => Err(format!("cannot add {} to {}", new.kind(), old.kind())),
    }
}

struct Reader<'a> {
    source: &'a Source,
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn take(&mut self, wanted: char) -> bool {
        let found = self.rest().starts_with(wanted);
        if found {
            self.at += wanted.len_utf8();
        }
        found
    }

    /// Skips spaces and comments, and newlines too where they mean nothing.
    fn skip_blank(&mut self, newlines: bool) {
        while let Some(c) = self.rest().chars().next() {
            match c {
                '#' => self.at += self.rest().find('\n').unwrap_or(self.rest().len()),
                '\n' if !newlines => return,
                c if c.is_whitespace() || c == '\u{feff}' => self.at += c.len_utf8(),
                _ => return,
            }
        }
    }

    fn key(&mut self) -> Result<(String, Place), Problem> {
        let len = self
            .rest()
            .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.')))
            .unwrap_or(self.rest().len());
        if len == 0 || self.rest().starts_with(|c: char| c.is_ascii_digit() || c == '.') {
            return Err(self.problem("expected a setting's name"));
        }
        let key = self.rest()[..len].to_owned();
        let place = self.source.at(self.at..self.at + len);
        self.at += len;
        Ok((key, place))
    }

    fn value(&mut self) -> Result<Value, Problem> {
        match self.rest().chars().next() {
            Some('[') => self.list(),
            Some('"' | '\'') => self.text().map(Value::Text),
            Some('0'..='9' | '-') => self.number(),
            Some('\n') | None => Err(self.problem("expected a string, a number or a list")),
            _ => Err(self
                .problem("expected a string, a number or a list")
                .help("text stands in quotes, such as \"web\"")),
        }
    }

    fn list(&mut self) -> Result<Value, Problem> {
        self.at += 1;
        let mut items = Vec::new();
        loop {
            self.skip_blank(true);
            if self.take(']') {
                return Ok(Value::List(items));
            }
            items.push(self.value()?);
            self.skip_blank(true);
            if !self.take(',') && !self.rest().starts_with(']') {
                return Err(self.problem("expected `,` or `]`"));
            }
        }
    }

    /// A string with Python's escapes, of which xl knows most; a backslash before anything else is itself.
    fn text(&mut self) -> Result<String, Problem> {
        let start = self.at;
        let quote = if self.rest().starts_with('"') { '"' } else { '\'' };
        // Three quotes, and strings joined by standing side by side, are a script's.
        let three: String = [quote; 3].iter().collect();
        if self.rest().starts_with(&three) {
            return Err(self.problem("three quotes are for scripts"));
        }
        self.at += 1;
        let mut text = String::new();
        loop {
            match self.next() {
                Some('\\') => text.push_str(&self.escape()),
                Some(c) if c == quote => return Ok(text),
                None | Some('\n') => {
                    self.at = start;
                    return Err(self.problem("this string does not end on its line"));
                }
                Some(c) => text.push(c),
            }
        }
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest().chars().next()?;
        self.at += c.len_utf8();
        Some(c)
    }

    /// What stands behind a backslash.
    fn escape(&mut self) -> String {
        let known = |c: char| {
            Some(match c {
                '\\' | '"' | '\'' => c,
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                'a' => '\x07',
                'b' => '\x08',
                'f' => '\x0c',
                'v' => '\x0b',
                _ => return None,
            })
        };
        let rest = self.rest();
        if let Some(c) = rest.chars().next().and_then(known) {
            self.at += 1;
            return c.to_string();
        }
        let digits = |text: &str, radix: u32, most: usize| {
            let count = text.chars().take(most).take_while(|c| c.is_digit(radix)).count();
            u32::from_str_radix(&text[..count], radix)
                .ok()
                .map(|code| (code, count))
        };
        let numeric = match rest.strip_prefix('x') {
            Some(hex) => digits(hex, 16, 2)
                .map(|(code, count)| (code, count + 1))
                .filter(|(_, count)| *count == 3),
            None => digits(rest, 8, 3),
        };
        match numeric.and_then(|(code, count)| Some((char::from_u32(code)?, count))) {
            Some((c, count)) => {
                self.at += count;
                c.to_string()
            }
            None => "\\".to_owned(),
        }
    }

    fn number(&mut self) -> Result<Value, Problem> {
        let len = self
            .rest()
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
            .unwrap_or(self.rest().len());
        let word = &self.rest()[..len];
        let parsed = match word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")) {
            Some(hex) => i64::from_str_radix(hex, 16),
            None if word.len() > 1 && word.starts_with('0') => i64::from_str_radix(word, 8),
            None => word.parse(),
        };
        let number = parsed.map_err(|error| {
            let why = match error.kind() {
                IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => "is too large a number",
                _ => "is no number",
            };
            Problem::at(self.source.at(self.at..self.at + len), format!("`{word}` {why}"))
        })?;
        self.at += len;
        Ok(Value::Number(number))
    }

    fn problem(&self, message: &str) -> Problem {
        let len = self.rest().chars().next().map_or(0, char::len_utf8);
        Problem::at(self.source.at(self.at..self.at + len), message)
    }
}
