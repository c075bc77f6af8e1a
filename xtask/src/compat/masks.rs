//! What of an answer tells of the run and not of the hypervisor, and is masked before answers are compared.

use std::path::Path;

use anyhow::Result;
use regex::Regex;
use serde::Deserialize;

use crate::places;

/// One thing that is masked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mask {
    /// The commands whose answers have it; all without.
    #[serde(default, deserialize_with = "pattern")]
    command: Option<Regex>,
    /// What is masked: its first group, or all of it where it has none.
    #[serde(deserialize_with = "needed_pattern")]
    text: Regex,
    /// What stands there instead; a line that is to be nothing is left out.
    #[serde(default)]
    with: String,
    /// Why that differs from run to run.
    #[serde(rename = "reason")]
    _reason: String,
}

fn needed_pattern<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Regex, D::Error> {
    let text = String::deserialize(from)?;
    Regex::new(&text).map_err(serde::de::Error::custom)
}

fn pattern<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Regex>, D::Error> {
    needed_pattern(from).map(Some)
}

/// Everything that is masked, in order.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Masks {
    #[serde(default)]
    mask: Vec<Mask>,
}

impl Masks {
    /// Reads the file at `path`.
    pub fn read(path: &Path) -> Result<Self> {
        places::read_toml(path)
    }

    /// Returns the lines of `command`'s answer as they are compared; columns are no further apart than a space.
    pub fn masked(&self, command: &str, lines: &[String]) -> Vec<String> {
        let applies = |mask: &&Mask| mask.command.as_ref().is_none_or(|pattern| pattern.is_match(command));
        let masks: Vec<&Mask> = self.mask.iter().filter(applies).collect();
        let masked = lines.iter().map(|line| {
            let line = masks.iter().fold(line.clone(), |line, mask| mask.apply(&line));
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        });
        masked.filter(|line| !line.is_empty()).collect()
    }
}

impl Mask {
    fn apply(&self, line: &str) -> String {
        let mut masked = String::new();
        let mut at = 0;
        for captures in self.text.captures_iter(line) {
            let Some(found) = captures.get(1).or_else(|| captures.get(0)) else {
                continue;
            };
            masked.push_str(line.get(at..found.start()).unwrap_or_default());
            masked.push_str(&self.with);
            at = found.end();
        }
        masked.push_str(line.get(at..).unwrap_or_default());
        masked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASKS: &str = "[[mask]]\ncommand = '^xl list'\ntext = ' (\\d+\\.\\d)$'\nwith = 'T'\nreason = 'time'\n\
                         [[mask]]\ntext = '^noise.*'\nreason = 'noise'\n";

    #[test]
    fn a_mask_hides_its_group_where_it_applies() {
        let masks: Masks = toml::from_str(MASKS).unwrap();
        let lines = ["Domain-0    0  12.3".to_owned(), "noise 1".to_owned()];
        assert_eq!(masks.masked("xl list -v", &lines), ["Domain-0 0 T"]);
        assert_eq!(masks.masked("xl vm-list", &lines), ["Domain-0 0 12.3"]);
    }
}
