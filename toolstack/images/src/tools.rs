//! Other people's programs.

use crate::interruption::{end, go_on, start};
use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Command, Stdio};

/// Where mkfs and its like are, also for whoever has no `sbin` in their path.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program, the package it is in, and its arguments.
pub(crate) fn program<I: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = I>) -> Command {
    with_arguments(Command::new(name), arguments)
}

/// Runs one that mounts things: they go with it, and it goes with us.
pub(crate) fn contained<I: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = I>) -> Result<String> {
    let is_there = PATH.split(':').any(|folder| Path::new(folder).join(name).exists());
    match is_there {
        true => run_named(
            name,
            with_arguments(ferroxen_contained::command(name), arguments),
            |code| code == 0,
        ),
        false => bail!(missing(name)),
    }
}

fn with_arguments<I: AsRef<OsStr>>(mut command: Command, arguments: impl IntoIterator<Item = I>) -> Command {
    command
        .args(arguments)
        .env("PATH", PATH)
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    command
}

/// Runs it; `fine` says which exit codes are no failure. Gives what it printed.
pub(crate) fn run(command: Command, fine: impl Fn(i32) -> bool) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    run_named(&name, command, fine)
}

fn run_named(name: &str, mut command: Command, fine: impl Fn(i32) -> bool) -> Result<String> {
    go_on()?;
    let mut errors = tempfile::tempfile().context("making a temporary file")?;
    command.stdout(Stdio::piped()).stderr(again(&errors)?);
    let mut program = start(&mut command).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => anyhow::anyhow!(missing(name)),
        _ => anyhow::Error::new(error).context(format!("starting {name}")),
    })?;
    let mut said = Vec::new();
    let read = program.stdout.take().map(|mut says| says.read_to_end(&mut said));
    let status = end(&mut program).with_context(|| format!("waiting for {name}"))?;
    go_on()?;
    read.transpose().with_context(|| format!("reading what {name} says"))?;
    let said = String::from_utf8_lossy(&said).into_owned();
    if status.code().is_some_and(fine) {
        return Ok(said);
    }
    let errors = read_back(&mut errors)?;
    let last: Vec<&str> = said
        .lines()
        .chain(errors.lines())
        .filter(|line| !line.is_empty())
        .collect();
    let last = last[last.len().saturating_sub(8)..].join("\n  ");
    bail!("{name} failed ({status}):\n  {last}")
}

/// The same for programs that fail with anything but 0.
pub(crate) fn must(command: Command) -> Result<String> {
    run(command, |code| code == 0)
}

/// Runs two programs, the first of which writes what the second reads; `fine` says which exit codes of the first are
/// no failure.
pub(crate) fn piped(mut from: Command, fine: impl Fn(i32) -> bool, mut to: Command) -> Result<()> {
    go_on()?;
    let mut errors = tempfile::tempfile().context("making a temporary file")?;
    let starting = |name: &Command| format!("starting {}", name.get_program().to_string_lossy());
    from.stdout(Stdio::piped()).stderr(again(&errors)?);
    let mut writer = start(&mut from).with_context(|| starting(&from))?;
    to.stdin(writer.stdout.take().context("no pipe")?)
        .stdout(Stdio::null())
        .stderr(again(&errors)?);
    let reader = start(&mut to).with_context(|| starting(&to));
    // It has our hold on the pipe: a writer whose reader has gone is to hear of that.
    drop(to);
    let read = reader.and_then(|mut reader| end(&mut reader).context("waiting for the reader"));
    let wrote = end(&mut writer).with_context(|| starting(&from))?;
    go_on()?;
    match (wrote.code().is_some_and(fine), read?.success()) {
        (true, true) => Ok(()),
        _ => bail!(
            "{} failed:\n  {}",
            from.get_program().to_string_lossy(),
            read_back(&mut errors)?.trim_end()
        ),
    }
}

fn again(file: &File) -> Result<File> {
    file.try_clone().context("opening a file twice")
}

fn read_back(file: &mut File) -> Result<String> {
    let mut said = Vec::new();
    file.rewind()
        .and_then(|()| file.read_to_end(&mut said))
        .context("reading back")?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

fn missing(name: &str) -> String {
    format!("there is no `{name}` (Debian: package {})", package(name))
}

fn package(name: &str) -> &str {
    match name {
        "mkfs.ext2" | "mkfs.ext3" | "mkfs.ext4" | "e2fsck" | "resize2fs" | "debugfs" => "e2fsprogs",
        "mkswap" => "util-linux",
        "ssh-keygen" => "openssh-client",
        "cp" => "coreutils",
        other => other,
    }
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}
