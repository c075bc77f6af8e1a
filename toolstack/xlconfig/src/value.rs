//! What a setting can be before its meaning is known.

use crate::source::Place;
use std::collections::BTreeMap;

/// A value as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Text.
    Text(String),
    /// A whole number.
    Number(i64),
    /// `True` or `False` of a script.
    Bool(bool),
    /// A list, or a tuple.
    List(Vec<Value>),
    /// A dictionary of a script: key, value.
    Table(Vec<(String, Value)>),
    /// Something that no setting can be (a function, say); its type's name.
    Other(String),
}

impl Value {
    /// Whether it asks for nothing: an empty list or string, 0, or false.
    pub(crate) fn is_nothing(&self) -> bool {
        match self {
            Value::Text(text) => text.is_empty(),
            Value::Number(number) => *number == 0,
            Value::Bool(truth) => !truth,
            Value::List(items) => items.is_empty(),
            Value::Table(_) | Value::Other(_) => false,
        }
    }

    pub(crate) fn kind(&self) -> &str {
        match self {
            Value::Text(_) => "a string",
            Value::Number(_) => "a number",
            Value::Bool(_) => "a truth value",
            Value::List(_) => "a list",
            Value::Table(_) => "a dictionary",
            Value::Other(kind) => kind,
        }
    }
}

/// A value and where it was last set, if that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    pub value: Value,
    pub place: Option<Place>,
}

/// All that a file sets.
pub type Settings = BTreeMap<String, Setting>;
