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

mod cpuid;
mod cpus;
mod disk;
mod host;
mod keys;
mod model;
mod passing;
mod plain;
mod qemu;
mod rate;
mod render;
mod script;
mod source;
mod sxp;
mod value;
mod vif;

pub use cpuid::{CpuidRule, CpuidRules, Register};
pub use cpus::{CpuList, parse_cpu_list};
pub use disk::{Disk, DiskAccess, DiskBackend, DiskFormat, DiskLimits, VirtualDisk};
pub use host::{PoolConfig, XlConf, parse_pool, parse_xl_conf};
pub use model::{Action, Bootloader, DomainConfig, DomainType, TscMode, check_name};
pub use passing::{IoMemory, Ports};
pub use qemu::{Channel, Connection, Screen, Share, VNC_PORT};
pub use source::{Notice, Problem, Source};
pub use sxp::HostConfig;
pub use value::Value;
pub use vif::{Mac, Rate, Vif, VifType};

use std::path::{Path, PathBuf};
use uuid::Uuid;
use value::{Setting, Settings};

/// A configuration, and what the reader should be told about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What to build.
    pub config: DomainConfig,
    /// Warnings and remarks, in the order of the file.
    pub notices: Vec<Notice>,
    settings: Settings,
}

impl Loaded {
    /// Fills in what the file leaves to chance, so that building the domain again gives the same one.
    pub fn settle(&mut self) -> Uuid {
        let uuid = *self.config.uuid.get_or_insert_with(ferroxen_uuids::fresh);
        self.set("uuid", Value::Text(uuid.to_string()));
        self.set("name", Value::Text(self.config.name.clone()));
        uuid
    }

    /// Makes it the configuration of a domain that exists.
    pub fn become_domain(&mut self, uuid: Uuid, name: &str) {
        self.config.uuid = Some(uuid);
        self.config.name = name.to_owned();
        self.settle();
    }

    /// Gives the domain another name.
    pub fn rename(&mut self, name: &str) {
        self.config.name = name.to_owned();
        self.set("name", Value::Text(name.to_owned()));
    }

    /// A setting as it was written, if it was.
    pub fn written(&self, key: &str) -> Option<&Value> {
        self.settings.get(key).map(|setting| &setting.value)
    }

    /// All settings as a file: what to keep for building the domain again.
    pub fn text(&self) -> String {
        render::render(&self.settings)
    }

    /// The same with one more (or less) in a list such as `disk`.
    pub fn with_list(&self, key: &str, change: impl FnOnce(&mut Vec<Value>)) -> Result<Loaded, Problem> {
        let mut items = match self.settings.get(key).map(|setting| &setting.value) {
            Some(Value::List(items)) => items.clone(),
            _ => Vec::new(),
        };
        change(&mut items);
        let mut loaded = self.clone();
        loaded.set(key, Value::List(items));
        parse(Source::new(loaded.config.name.clone(), loaded.text()), &[])
    }

    fn set(&mut self, key: &str, value: Value) {
        self.settings.insert(key.to_owned(), Setting { value, place: None });
    }
}

/// Reads a file. Each of `overrides` is a `KEY=VALUE` as if it stood at the end of the file; a value that is
/// no literal is taken as a string.
pub fn load(path: &Path, overrides: &[String]) -> Result<Loaded, Problem> {
    parse(read(path)?, overrides)
}

/// Reads a file that may describe several domains: a script whose `domains` is a list of dictionaries, each of which
/// has what sets its domain apart from the rest of the file.
pub fn load_all(path: &Path, overrides: &[String]) -> Result<Vec<Loaded>, Problem> {
    parse_all(read(path)?, overrides)
}

fn read(path: &Path) -> Result<Source, Problem> {
    let text =
        std::fs::read(path).map_err(|error| Problem::general(format!("cannot read {}: {error}", path.display())))?;
    let text = String::from_utf8(text).map_err(|error| {
        Problem::general(format!(
            "{} is not UTF-8 text: byte {}",
            path.display(),
            error.utf8_error().valid_up_to()
        ))
    })?;
    Ok(Source::new(path.display().to_string(), text))
}

/// Reads a configuration that is already in memory. The source's name stands in messages, and its last
/// component names a domain whose file does not.
pub fn parse(source: Source, overrides: &[String]) -> Result<Loaded, Problem> {
    let mut all = parse_all(source, overrides)?;
    match (all.pop(), all.len()) {
        (Some(loaded), 0) => Ok(loaded),
        (_, others) => Err(Problem::general(format!(
            "the file describes {} domains, and one is wanted here",
            others + 1
        ))),
    }
}

/// As [`load_all`], of what is already in memory.
pub fn parse_all(source: Source, overrides: &[String]) -> Result<Vec<Loaded>, Problem> {
    let settings = match plain::parse(&source) {
        Ok(settings) => settings,
        Err(slip) => script::run(&source).map_err(|failure| {
            // What is neither was meant as one of them.
            match failure.is_grammar && !script::is_meant(source.text()) {
                true => slip,
                false => failure.problem,
            }
        })?,
    };
    let (mut all, mut problems) = (Vec::new(), Vec::new());
    for settings in several(settings)? {
        match finish(&source, settings, overrides) {
            Ok(loaded) => {
                if all.iter().any(|other: &Loaded| other.config.name == loaded.config.name) {
                    let place = loaded.settings.get("name").and_then(|name| name.place.clone());
                    problems.push(Problem::at(
                        place,
                        format!("two domains are called \"{}\"", loaded.config.name),
                    ));
                }
                all.push(loaded);
            }
            Err(problem) => problems.push(problem),
        }
    }
    Problem::all(problems)?;
    Ok(all)
}

/// As [`parse`], of settings that were never a file. `name` stands in messages.
pub fn from_values(name: &str, values: impl IntoIterator<Item = (String, Value)>) -> Result<Loaded, Problem> {
    let setting = |(key, value)| (key, Setting { value, place: None });
    finish(&Source::new(name, ""), values.into_iter().map(setting).collect(), &[])
}

fn finish(source: &Source, mut settings: Settings, overrides: &[String]) -> Result<Loaded, Problem> {
    for line in overrides {
        settings = plain::parse_override(line, &settings)?;
    }
    let (config, notices) = model::build(source, settings.clone())?;
    Ok(Loaded {
        config,
        notices,
        settings,
    })
}

/// As [`load_host`], of what is already in memory.
pub fn parse_host(source: &Source) -> Result<(HostConfig, Vec<Notice>), Problem> {
    sxp::parse(source)
}

/// The name of the list that makes a file describe several domains.
const DOMAINS: &str = "domains";

/// One set of settings for each domain.
fn several(mut settings: Settings) -> Result<Vec<Settings>, Problem> {
    let Some(domains) = settings.remove(DOMAINS) else {
        return Ok(vec![settings]);
    };
    let wrong = |why: &str| {
        Problem::at(domains.place.clone(), format!("`{DOMAINS}` {why}"))
            .help("it is a list of dictionaries, such as [{\"name\": \"web1\"}, {\"name\": \"web2\"}]")
    };
    let Value::List(items) = &domains.value else {
        return Err(wrong(&format!("is {}", domains.value.kind())));
    };
    if items.is_empty() {
        return Err(wrong("is empty"));
    }
    let one = |item: &Value| {
        let Value::Table(entries) = item else {
            return Err(wrong(&format!("holds {}", item.kind())));
        };
        let mut settings = settings.clone();
        for (key, value) in entries {
            let setting = Setting {
                value: value.clone(),
                place: domains.place.clone(),
            };
            settings.insert(key.clone(), setting);
        }
        Ok(settings)
    };
    items.iter().map(one).collect()
}

/// Reads one element of `disk = [...]`.
pub fn parse_disk(spec: &str) -> Result<Disk, Problem> {
    let source = Source::new("disk", spec);
    disk::parse(spec).map_err(|error| Problem::at(source.at(error.range), error.message))
}

/// Reads one element of `vif = [...]`.
pub fn parse_vif(spec: &str) -> Result<Vif, Problem> {
    let source = Source::new("vif", spec);
    vif::parse(spec).map_err(|error| Problem::at(source.at(error.range), error.message))
}

/// Reads xend's configuration of the host.
pub fn load_host(path: &Path) -> Result<(HostConfig, Vec<Notice>), Problem> {
    sxp::parse(&read(path)?)
}

/// Reads the host's `xl.conf`; one that is not there sets nothing.
pub fn load_xl_conf(path: &Path) -> Result<(XlConf, Vec<Notice>), Problem> {
    match path.exists() {
        true => parse_xl_conf(&read(path)?),
        false => Ok(Default::default()),
    }
}

/// Reads a CPU pool's file.
pub fn load_pool(path: &Path, overrides: &[String]) -> Result<(PoolConfig, Vec<Notice>), Problem> {
    parse_pool(&read(path)?, overrides)
}

/// Where configurations are that are named without a directory and are not here.
const SYSTEM: &str = "/etc/xen";

/// The file that a name means: as it stands, or in `/etc/xen`, as `xm` had it.
pub fn find(path: &Path) -> Option<PathBuf> {
    if path.exists() {
        return Some(path.to_owned());
    }
    let system = Path::new(SYSTEM).join(path);
    system.exists().then_some(system)
}

/// What to say of a file that is not there: with the nearest of those that are.
pub fn not_found(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let here = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let near = [here.unwrap_or(Path::new(".")), Path::new(SYSTEM)]
        .into_iter()
        .filter_map(|directory| std::fs::read_dir(directory).ok())
        .flat_map(|entries| entries.flatten())
        .filter(|entry| entry.file_type().is_ok_and(|kind| !kind.is_dir()))
        .map(|entry| {
            (
                strsim::damerau_levenshtein(&name, &entry.file_name().to_string_lossy()),
                entry.path(),
            )
        })
        .filter(|(distance, _)| *distance <= 2)
        .min();
    let searched = match path.is_absolute() {
        true => String::new(),
        false => format!(", neither here nor in {SYSTEM}"),
    };
    match near {
        Some((_, near)) => format!(
            "there is no file {}{searched}; did you mean {}?",
            path.display(),
            near.strip_prefix(".").unwrap_or(&near).display()
        ),
        None => format!("there is no file {}{searched}", path.display()),
    }
}
