//! What each command does.

use super::{Command, Ls};
use ferroxen_xenstore::wire::path;
use ferroxen_xenstore::{Client, Error, Permission, Result, Store};
use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Why a command failed.
#[derive(Debug)]
pub enum Failure {
    /// xenstored refused, or is not there.
    Store(Error),
    /// What we print cannot be written.
    Output(io::Error),
    /// The command line lacks something.
    Usage(&'static str),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Store(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Output(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Store(error) => error.fmt(f),
            Failure::Output(error) => write!(f, "cannot print: {error}"),
            Failure::Usage(what) => write!(f, "{what} (live-update [-c OPTIONS] [-F] [-t SECONDS] PROGRAM)"),
        }
    }
}

/// Does what the command line asks for.
pub fn run(command: &Command, out: &mut impl Write) -> Result<ExitCode, Failure> {
    let client = Client::connect()?;
    match command {
        Command::Ls(options) => {
            for path in &options.paths {
                ls(&client, options, path, 0, out)?;
            }
        }
        Command::Read { prefix, raw, rest } => {
            for path in &rest.paths {
                let value = client.read(path)?;
                let label = if *prefix { format!("{path}: ") } else { String::new() };
                if *raw {
                    out.write_all(label.as_bytes())?;
                    out.write_all(&value)?;
                } else {
                    writeln!(out, "{label}{}", printable(&value))?;
                }
            }
        }
        Command::Write { pairs, .. } => {
            if pairs.len() % 2 != 0 {
                let last = &pairs[pairs.len() - 1];
                return Err(Error::Unsendable(format!("{last} has no value after it")).into());
            }
            client.transaction(|tx| {
                pairs
                    .chunks_exact(2)
                    .try_for_each(|pair| tx.write(&pair[0], pair[1].as_bytes()))
            })?;
        }
        Command::Rm { tidy, rest } => {
            for path in &rest.paths {
                client.transaction(|tx| remove(tx, path, *tidy))?;
            }
        }
        Command::List { prefix, rest } => {
            for path in &rest.paths {
                for name in client.directory(path)? {
                    if *prefix {
                        writeln!(out, "{}", join(path, &name))?;
                    } else {
                        writeln!(out, "{name}")?;
                    }
                }
            }
        }
        Command::Exists(rest) => {
            for path in &rest.paths {
                if !client.exists(path)? {
                    return Ok(ExitCode::FAILURE);
                }
            }
        }
        Command::Chmod {
            upto,
            recurse,
            path,
            permissions,
            ..
        } => {
            let parsed = permissions.iter().map(|entry| {
                Permission::parse(entry.as_bytes()).map_err(|error| Error::Unsendable(format!("{entry}: {error}")))
            });
            let entries = parsed.collect::<Result<Vec<_>>>()?;
            client.transaction(|tx| chmod(tx, path, &entries, *upto, *recurse))?;
        }
        Command::Watch { number, rest } => {
            for path in &rest.paths {
                client.watch(path, path)?;
            }
            let mut seen = 0;
            while number.is_none_or(|number| seen < number) {
                if let Some(event) = client.next_event(None)? {
                    writeln!(out, "{}", event.path)?;
                    out.flush()?;
                    seen += 1;
                }
            }
        }
        Command::Control { words } if words.first().is_some_and(|word| word == "live-update") => {
            return live_update(&client, &words[1..], out);
        }
        Command::Control { words } => {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            writeln!(out, "{}", client.control(&words)?.trim_end())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// How long xenstored may have a transaction open before an update goes without.
const UPDATE_PATIENCE: Duration = Duration::from_secs(60);
/// Between two times of asking.
const UPDATE_PAUSE: Duration = Duration::from_millis(100);

/// `live-update [-c OPTIONS] [-F] [-t SECONDS] PROGRAM`, as stock `xenstore-control` has it: the steps one by one, the
/// last again and again while somebody's transaction is open; with `-F`, in spite of it in the end.
fn live_update(client: &Client, words: &[String], out: &mut impl Write) -> Result<ExitCode, Failure> {
    let (mut options, mut program, mut force, mut patience) = (None, None, false, UPDATE_PATIENCE);
    let mut words = words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "-c" => options = words.next(),
            "-F" => force = true,
            "-t" => {
                let seconds = words.next().and_then(|seconds| seconds.parse().ok());
                patience = Duration::from_secs(seconds.ok_or(Failure::Usage("-t takes a number of seconds"))?);
            }
            word => program = Some(word),
        }
    }
    let mut steps: Vec<Vec<&str>> = vec![vec!["-f", program.ok_or(Failure::Usage("which program?"))?]];
    steps.extend(options.map(|options| vec!["-c", options]));
    for step in steps {
        let said = client.control(&[&["live-update"], step.as_slice()].concat())?;
        if said != "OK" {
            writeln!(out, "{said}")?;
            return Ok(ExitCode::FAILURE);
        }
    }
    let end = Instant::now() + patience;
    loop {
        let is_last = Instant::now() >= end;
        let start: &[&str] = if is_last && force {
            &["live-update", "-s", "-F"]
        } else {
            &["live-update", "-s"]
        };
        let said = client.control(start)?;
        if said == "BUSY" && !is_last {
            // Whoever has the transaction tells nobody of its end.
            std::thread::sleep(UPDATE_PAUSE);
            continue;
        }
        writeln!(out, "{said}")?;
        return Ok(if said == "OK" {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
}

/// Where permissions stand, behind a line of dots.
const PERMISSIONS_AT: usize = 60;

fn ls(client: &Client, options: &Ls, path: &str, depth: usize, out: &mut impl Write) -> Result<(), Failure> {
    for name in client.directory(path)? {
        let child = join(path, &name);
        let value = match client.read(&child) {
            Ok(value) => value,
            // It went away meanwhile.
            Err(error) if error.is_not_found() => continue,
            Err(error) => return Err(error.into()),
        };
        let label = if options.full {
            child.clone()
        } else {
            format!("{:depth$}{name}", "")
        };
        let mut line = format!("{label} = \"{}\"", printable(&value));
        if options.permissions {
            let entries = client.permissions(&child)?;
            let entries: Vec<String> = entries.iter().map(Permission::to_string).collect();
            let dots = (line.len() + 1..PERMISSIONS_AT).map(|column| if column % 2 == 0 { '.' } else { ' ' });
            line = format!("{line} {}  ({})", dots.collect::<String>(), entries.join(","));
        }
        writeln!(out, "{line}")?;
        ls(client, options, &child, depth + 1, out)?;
    }
    Ok(())
}

fn remove(store: &impl Store, path: &str, tidy: bool) -> Result<()> {
    store.rm(path)?;
    let mut at = path;
    while tidy && let Some(parent) = path::parent(at).filter(|parent| *parent != "/") {
        if !store.read(parent)?.is_empty() || !store.directory(parent)?.is_empty() {
            break;
        }
        store.rm(parent)?;
        at = parent;
    }
    Ok(())
}

fn chmod(store: &impl Store, path: &str, entries: &[Permission], upto: bool, recurse: bool) -> Result<()> {
    store.set_permissions(path, entries)?;
    if recurse {
        for name in store.directory(path)? {
            chmod(store, &join(path, &name), entries, false, true)?;
        }
    }
    match path::parent(path) {
        Some(parent) if upto && parent != "/" => chmod(store, parent, entries, true, false),
        _ => Ok(()),
    }
}

fn join(path: &str, name: &str) -> String {
    if path.ends_with('/') {
        format!("{path}{name}")
    } else {
        format!("{path}/{name}")
    }
}

/// A value as one line of text.
fn printable(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) if !text.chars().any(char::is_control) => text.into(),
        _ => value.escape_ascii().to_string(),
    }
}
