//! The signs on unsafe: who may use it, how often it is used, and whether each block says why.
//!
//! Reads tokens rather than a syntax tree, so that what stands in macros counts too.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::places;
use crate::programs::{answer, clean_command};

/// The rooms that may have `unsafe`. Each says at its top why (`// UNSAFETY:`).
const DOORS: &[&str] = &[
    "hypervisor/machine",
    "hypervisor/image",
    "toolstack/xenctl",
    "toolstack/loopdev",
    "guests/pv",
    "guests/linux",
];
/// How far above a block its `SAFETY:` may start.
const SIGN_REACH: usize = 14;

/// What one crate has.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Count {
    /// Where the crate is, from the root of the tree.
    pub room: String,
    blocks: usize,
    functions: usize,
    impls: usize,
    attributes: usize,
    /// What is wrong, in words.
    pub faults: Vec<String>,
}

impl Count {
    fn is_none(&self) -> bool {
        self.blocks + self.functions + self.impls + self.attributes == 0
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<28} {:>6} {:>9} {:>5} {:>10}",
            self.room, self.blocks, self.functions, self.impls, self.attributes
        )
    }
}

/// Counts every crate of the workspace, prints the table, and fails when a sign is missing.
pub fn check() -> Result<()> {
    let counts = rooms()?.iter().map(|room| count(room)).collect::<Result<Vec<_>>>()?;
    println!(
        "{:<28} {:>6} {:>9} {:>5} {:>10}",
        "unsafe in", "blocks", "functions", "impls", "attributes"
    );
    for count in counts.iter().filter(|count| !count.is_none()) {
        println!("{count}");
    }
    let without = counts.iter().filter(|count| count.is_none()).count();
    println!("{without} of {} crates have none.", counts.len());
    let faults: Vec<&str> = counts
        .iter()
        .flat_map(|count| &count.faults)
        .map(String::as_str)
        .collect();
    if !faults.is_empty() {
        bail!(
            "{} signs on unsafe are missing:\n  {}",
            faults.len(),
            faults.join("\n  ")
        );
    }
    Ok(())
}

/// Returns the directories of the workspace's crates.
fn rooms() -> Result<Vec<PathBuf>> {
    let mut cargo = clean_command("cargo");
    cargo
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(places::root());
    let text = answer(&mut cargo).context("cargo metadata failed")?;
    let metadata: serde_json::Value = serde_json::from_str(&text)?;
    let packages = metadata.get("packages").and_then(serde_json::Value::as_array);
    let mut rooms: Vec<PathBuf> = packages
        .into_iter()
        .flatten()
        .filter_map(|package| package.get("manifest_path")?.as_str())
        .filter_map(|manifest| Path::new(manifest).parent().map(Path::to_path_buf))
        .collect();
    rooms.sort();
    Ok(rooms)
}

fn count(room: &Path) -> Result<Count> {
    let name = room.strip_prefix(places::root()).unwrap_or(room).display().to_string();
    let is_door = DOORS.contains(&name.as_str());
    let mut count = Count {
        room: name,
        ..Count::default()
    };
    let mut files = Vec::new();
    sources(room, &mut files)?;
    for file in &files {
        let text = fs::read_to_string(file)?;
        let shown = file.strip_prefix(places::root()).unwrap_or(file).display().to_string();
        let tokens: TokenStream = text
            .parse()
            .map_err(|error| anyhow::anyhow!("{shown} does not parse: {error}"))?;
        let lines: Vec<&str> = text.lines().collect();
        walk(tokens, &lines, &shown, &mut count);
    }
    let root = ["src/lib.rs", "src/main.rs"]
        .map(|root| room.join(root))
        .into_iter()
        .find(|root| root.exists());
    let top = root.map(fs::read_to_string).transpose()?.unwrap_or_default();
    if is_door && !top.contains("UNSAFETY:") {
        count.faults.push(format!(
            "{}: says nowhere why it needs unsafe (// UNSAFETY:)",
            count.room
        ));
    }
    if !is_door && !top.contains("#![forbid(unsafe_code)]") {
        count
            .faults
            .push(format!("{}: lacks #![forbid(unsafe_code)]", count.room));
    }
    if !is_door && !count.is_none() {
        count
            .faults
            .push(format!("{}: has unsafe, but is no room for it", count.room));
    }
    Ok(count)
}

fn sources(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        // A crate below another is counted by itself.
        if path.is_dir() && !path.join("Cargo.toml").exists() {
            sources(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

fn walk(tokens: TokenStream, lines: &[&str], file: &str, count: &mut Count) {
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Group(group) => walk(group.stream(), lines, file, count),
            TokenTree::Ident(word) if word == "unsafe" => match tokens.peek() {
                Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                    count.blocks += 1;
                    let line = word.span().start().line;
                    if !has_sign(lines, line) {
                        count
                            .faults
                            .push(format!("{file}:{line}: an unsafe block without // SAFETY:"));
                    }
                }
                Some(TokenTree::Group(_)) => count.attributes += 1,
                Some(TokenTree::Ident(next)) if next == "impl" => count.impls += 1,
                Some(TokenTree::Ident(next)) if next == "fn" || next == "extern" => count.functions += 1,
                _ => {}
            },
            _ => {}
        }
    }
}

/// Tells whether the block on `line` (counted from 1) or what stands closely above it says why.
fn has_sign(lines: &[&str], line: usize) -> bool {
    let first = line.saturating_sub(SIGN_REACH + 1);
    lines
        .get(first..line)
        .unwrap_or_default()
        .iter()
        .any(|text| text.contains("SAFETY:"))
        || lines.get(line).is_some_and(|text| text.contains("SAFETY:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(source: &str) -> Count {
        let mut count = Count::default();
        let lines: Vec<&str> = source.lines().collect();
        walk(source.parse().unwrap(), &lines, "x.rs", &mut count);
        count
    }

    #[test]
    fn a_block_without_a_sign_is_named() {
        let count = counted("fn f() {\n    unsafe { g() }\n}\n");
        assert_eq!(count.blocks, 1);
        assert_eq!(count.faults, ["x.rs:2: an unsafe block without // SAFETY:"]);
    }

    #[test]
    fn a_block_in_a_macro_counts() {
        let count = counted("macro_rules! m { () => {\n // SAFETY: why\n unsafe { g() } } }");
        assert_eq!((count.blocks, count.faults.len()), (1, 0));
    }

    #[test]
    fn the_word_in_a_comment_or_a_string_does_not_count() {
        assert!(counted("// unsafe { }\nconst S: &str = \"unsafe { }\";").is_none());
    }
}
