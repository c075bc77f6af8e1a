//! Configuration files that are programs: Starlark, with what Python files of old did where that is safe.
//!
//! There is no file or network access, no recursion and no `while`, so every script ends and has no effect
//! but the names it leaves behind.

use crate::source::{Place, Problem, Source};
use crate::value::{Setting, Settings, Value};
use starlark::environment::{GlobalsBuilder, LibraryExtension, Module};
use starlark::eval::Evaluator;
use starlark::syntax::{AstModule, Dialect};
use starlark::values::dict::DictRef;
use starlark::values::list::ListRef;
use starlark::values::tuple::TupleRef;

/// Why a script gave no settings.
pub struct Failure {
    pub problem: Problem,
    /// It did not even read as a script.
    pub is_grammar: bool,
}

/// Whether a text is meant as a script, rather than a plain file with a slip.
pub fn is_meant(text: &str) -> bool {
    const WORDS: [&str; 12] = [
        "assert", "class", "def", "else", "for", "from", "if", "import", "lambda", "load", "print", "while",
    ];
    text.lines().any(|line| {
        let word = line.trim_start();
        let end = word.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        WORDS.contains(&&word[..end.unwrap_or(word.len())])
    })
}

pub fn run(source: &Source) -> Result<Settings, Failure> {
    let dialect = Dialect {
        enable_load: false,
        enable_load_reexport: false,
        enable_top_level_stmt: true,
        enable_f_strings: true,
        enable_keyword_only_arguments: true,
        ..Dialect::Standard
    };
    let text = join_lines_after_equals(source.text());
    let ast = AstModule::parse(source.name(), text, &dialect).map_err(|error| Failure {
        problem: problem(source, &error),
        is_grammar: true,
    })?;
    let globals = GlobalsBuilder::extended_by(&[
        LibraryExtension::Print,
        LibraryExtension::Map,
        LibraryExtension::Filter,
        LibraryExtension::Json,
        LibraryExtension::StructType,
    ])
    .build();
    Module::with_temp_heap(|module| {
        Evaluator::new(&module)
            .eval_module(ast, &globals)
            .map_err(|error| Failure {
                problem: problem(source, &error),
                is_grammar: false,
            })?;
        let mut settings = Settings::new();
        let names: Vec<String> = module.names().map(|name| name.as_str().to_owned()).collect();
        for name in names {
            if let Some(value) = module.get(&name)
                && !value.is_none()
            {
                let place = last_assignment(source, &name);
                settings.insert(
                    name,
                    Setting {
                        value: convert(value, 0),
                        place,
                    },
                );
            }
        }
        Ok(settings)
    })
}

/// How deep a list in a list in a list may go.
const MAX_DEPTH: usize = 16;

fn convert(value: starlark::values::Value<'_>, depth: usize) -> Value {
    if depth > MAX_DEPTH {
        Value::Other("a list nested too deeply".to_owned())
    } else if let Some(text) = value.unpack_str() {
        Value::Text(text.to_owned())
    } else if let Some(truth) = value.unpack_bool() {
        Value::Bool(truth)
    } else if let Some(number) = value.unpack_i32() {
        Value::Number(number.into())
    } else if let Some(list) = ListRef::from_value(value) {
        Value::List(list.iter().map(|item| convert(item, depth + 1)).collect())
    } else if let Some(tuple) = TupleRef::from_value(value) {
        Value::List(tuple.iter().map(|item| convert(item, depth + 1)).collect())
    } else if let Some(dict) = DictRef::from_value(value) {
        Value::Table(
            dict.iter()
                .map(|(key, item)| (key.to_str(), convert(item, depth + 1)))
                .collect(),
        )
    } else if value.get_type() == "int" {
        value
            .to_str()
            .parse()
            .map_or_else(|_| Value::Other("a number that is too large".to_owned()), Value::Number)
    } else {
        Value::Other(format!("a {}", value.get_type()))
    }
}

fn problem(source: &Source, error: &starlark::Error) -> Problem {
    let message = error.without_diagnostic().to_string();
    let message = message.strip_prefix("error: ").unwrap_or(&message);
    let place = error.span().map(|span| {
        let span = span.resolve_span();
        let begin = source.offset_of(span.begin.line, span.begin.column);
        let end = source.offset_of(span.end.line, span.end.column);
        source.at(begin..end.max(begin))
    });
    match message.split_once("` not found") {
        // The names it knows are functions, which nobody means.
        Some((variable, _)) if variable.starts_with("Variable `") => {
            Problem::at(place, format!("{variable}` not found")).help("text stands in quotes, such as \"web\"")
        }
        _ => Problem::at(place, message),
    }
}

/// Where `name` was last assigned, by a look at the text.
fn last_assignment(source: &Source, name: &str) -> Option<Place> {
    let mut found = None;
    let mut start = 0;
    for line in source.text().split_inclusive('\n') {
        let body = line.trim_start();
        let indent = line.len() - body.len();
        if let Some(rest) = body.strip_prefix(name) {
            let rest = rest.trim_start();
            let rest = rest.strip_prefix('+').unwrap_or(rest);
            if rest.starts_with('=') && !rest.starts_with("==") {
                found = Some(source.at(start + indent..start + indent + name.len()));
            }
        }
        start += line.len();
    }
    found
}

/// Lets a value start on the line after its `=`, which Python's grammar does not. No line or column moves.
fn join_lines_after_equals(text: &str) -> String {
    text.split_inclusive('\n')
        .map(|line| {
            let body = line.trim_end();
            let is_setting = body.split_once('=').is_some_and(|(name, rest)| {
                let name = name.trim_end().trim_end_matches('+').trim_end();
                rest.is_empty() && !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            });
            if is_setting && line.ends_with('\n') {
                format!("{body} \\\n")
            } else {
                line.to_owned()
            }
        })
        .collect()
}
