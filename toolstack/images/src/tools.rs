//! Other people's programs.

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Command, Stdio};

/// Where mkfs and its like are, also for whoever has no `sbin` in their path.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program, the package it is in, and its arguments.
pub(crate) fn program<I: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = I>) -> Command {
    let mut command = Command::new(name);
    command
        .args(arguments)
        .env("PATH", PATH)
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    command
}

/// Runs it; `fine` says which exit codes are no failure. Gives what it printed.
pub(crate) fn run(mut command: Command, fine: impl Fn(i32) -> bool) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => anyhow::anyhow!("there is no `{name}` (Debian: package {})", package(&name)),
        _ => anyhow::Error::new(error).context(format!("starting {name}")),
    })?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.code().is_some_and(fine) {
        return Ok(said);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let last: Vec<&str> = said
        .lines()
        .chain(errors.lines())
        .filter(|line| !line.is_empty())
        .collect();
    let last = last[last.len().saturating_sub(8)..].join("\n  ");
    bail!("{name} failed ({}):\n  {last}", output.status)
}

/// The same for programs that fail with anything but 0.
pub(crate) fn must(command: Command) -> Result<String> {
    run(command, |code| code == 0)
}

/// Runs two programs, the first of which writes what the second reads; `fine` says which exit codes of the first are
/// no failure.
pub(crate) fn piped(mut from: Command, fine: impl Fn(i32) -> bool, mut to: Command) -> Result<()> {
    let mut errors = tempfile::tempfile().context("making a temporary file")?;
    let starting = |name: &Command| format!("starting {}", name.get_program().to_string_lossy());
    from.stdout(Stdio::piped())
        .stderr(errors.try_clone().context("opening a file twice")?);
    let mut writer = from.spawn().with_context(|| starting(&from))?;
    to.stdin(writer.stdout.take().context("no pipe")?)
        .stdout(Stdio::null())
        .stderr(errors.try_clone().context("opening a file twice")?);
    let read = to.status().with_context(|| starting(&to));
    // It has our hold on the pipe: a writer whose reader has gone is to hear of that.
    drop(to);
    let wrote = writer.wait().with_context(|| starting(&from))?;
    match (wrote.code().is_some_and(fine), read?.success()) {
        (true, true) => Ok(()),
        _ => {
            let mut said = String::new();
            errors
                .rewind()
                .and_then(|()| errors.read_to_string(&mut said))
                .context("reading back")?;
            bail!(
                "{} failed:\n  {}",
                from.get_program().to_string_lossy(),
                said.trim_end()
            );
        }
    }
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
