//! Settings back into text: what is kept of a domain, to build it again from.
//!
//! Always true (a property test checks it): what is read from that text is what was written.

use crate::value::{Settings, Value};

/// One line per setting, each with its whole value.
pub fn render(settings: &Settings) -> String {
    let mut text = String::new();
    for (key, setting) in settings {
        // A function, say: it has had its effect.
        if !matches!(setting.value, Value::Other(_)) {
            text.push_str(key);
            text.push_str(" = ");
            write(&mut text, &setting.value);
            text.push('\n');
        }
    }
    text
}

fn write(text: &mut String, value: &Value) {
    match value {
        Value::Text(word) => escape(text, word),
        Value::Number(number) => text.push_str(&number.to_string()),
        Value::Bool(truth) => text.push_str(if *truth { "True" } else { "False" }),
        Value::List(items) => {
            text.push('[');
            for (at, item) in items.iter().enumerate() {
                text.push_str(if at > 0 { ", " } else { "" });
                write(text, item);
            }
            text.push(']');
        }
        Value::Table(entries) => {
            text.push('{');
            for (at, (key, item)) in entries.iter().enumerate() {
                text.push_str(if at > 0 { ", " } else { "" });
                escape(text, key);
                text.push_str(": ");
                write(text, item);
            }
            text.push('}');
        }
        // Inside of a list: what is no setting stays none.
        Value::Other(_) => text.push_str("None"),
    }
}

fn escape(text: &mut String, word: &str) {
    text.push('"');
    for c in word.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            c if c.is_ascii_control() => text.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => text.push(c),
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Source;
    use crate::value::Setting;
    use crate::{plain, script};
    use proptest::prelude::*;

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            "[ -~\\n\\té]{0,12}".prop_map(Value::Text),
            any::<i32>().prop_map(|number| Value::Number(number.into())),
            any::<bool>().prop_map(Value::Bool),
        ];
        leaf.prop_recursive(3, 12, 4, |inner| {
            prop::collection::vec(inner, 0..4).prop_map(Value::List)
        })
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_again(values in prop::collection::btree_map("[a-z]{1,6}", values(), 0..5)) {
            // No setting is called like a word of the language.
            let settings: Settings = values
                .into_iter()
                .map(|(key, value)| (format!("{key}_"), Setting { value, place: None }))
                .collect();
            let source = Source::new("kept", render(&settings));
            let read = plain::parse(&source).or_else(|_| script::run(&source).map_err(|failure| failure.problem));
            let read = read.unwrap_or_else(|problem| panic!("{problem}\n{}", source.text()));
            let bare = |settings: &Settings| -> Vec<_> {
                settings.iter().map(|(key, setting)| (key.clone(), setting.value.clone())).collect()
            };
            prop_assert_eq!(bare(&read), bare(&settings), "{}", source.text());
        }
    }
}
