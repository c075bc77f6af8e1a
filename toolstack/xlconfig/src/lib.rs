//! Domain configuration files: from text to a [`DomainConfig`].
//!
//! A file is read in one of two ways, and the reader need not know which:
//!
//! 1. *Plain* ([`plain`]): exactly the grammar of xl.cfg(5) (`KEY = VALUE`, strings, numbers, lists, `+=`),
//!    plus what `xm` files of old did, such as a list that starts on the line after its `=`.
//! 2. *Script* ([`script`]): whatever is not plain is Starlark, a Python dialect without side effects, so
//!    that files with `for`, `if`, `def` and string formatting work as they did under `xm`.
//!
//! Either way the result is a set of named values with the place where each was last set; `model` turns
//! them into a typed [`DomainConfig`]. A mistake is a [`Problem`]: file, line, column, and a caret under it.
//!
//! A name that starts with `_` is the file's own; any other name that is no setting is warned about, or
//! refused if it looks like a misspelt setting.
#![forbid(unsafe_code)]

mod cpus;
mod disk;
mod keys;
mod model;
mod plain;
mod script;
mod source;
mod value;
mod vif;

pub use cpus::{CpuList, parse_cpu_list};
pub use disk::{Disk, DiskAccess, DiskFormat, VirtualDisk};
pub use model::{Action, DomainConfig, DomainType, TscMode};
pub use source::{Notice, Problem, Source};
pub use value::Value;
pub use vif::{Mac, Rate, Vif, VifType};

use std::path::{Path, PathBuf};

/// A configuration, and what the reader should be told about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What to build.
    pub config: DomainConfig,
    /// Warnings and remarks, in the order of the file.
    pub notices: Vec<Notice>,
    /// The file with the overrides behind it: what to keep for building the domain again.
    pub text: String,
}

/// Reads a file. Each of `overrides` is a `KEY=VALUE` as if it stood at the end of the file; a value that is
/// no literal is taken as a string.
pub fn load(path: &Path, overrides: &[String]) -> Result<Loaded, Problem> {
    let path = find(path);
    let text =
        std::fs::read(&path).map_err(|error| Problem::general(format!("cannot read {}: {error}", path.display())))?;
    let text = String::from_utf8(text).map_err(|error| {
        Problem::general(format!(
            "{} is not UTF-8 text: byte {}",
            path.display(),
            error.utf8_error().valid_up_to()
        ))
    })?;
    parse(Source::new(path.display().to_string(), text), overrides)
}

/// Reads a configuration that is already in memory. The source's name stands in messages, and its last
/// component names a domain whose file does not.
pub fn parse(source: Source, overrides: &[String]) -> Result<Loaded, Problem> {
    let mut settings = match plain::parse(&source) {
        Ok(settings) => settings,
        Err(_) => script::run(&source)?,
    };
    let mut text = source.text().to_owned();
    for line in overrides {
        let (set, literal) = plain::parse_override(line)?;
        settings.extend(set);
        text.extend(["\n", &literal]);
    }
    let (config, notices) = model::build(&source, settings)?;
    Ok(Loaded { config, notices, text })
}

/// A bare name is looked for here first, then in `/etc/xen`, as `xm` did.
fn find(path: &Path) -> PathBuf {
    if path.exists() || path.is_absolute() {
        return path.to_owned();
    }
    let system = Path::new("/etc/xen").join(path);
    if system.exists() { system } else { path.to_owned() }
}
