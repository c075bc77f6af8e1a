//! `cargo xtask run`, as a person at a terminal has it, as a script has it, and when a step fails.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

use crate::console::Transcript;
use crate::machine::Parts;

/// How long a whole run may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// How often something that tells nobody of its end is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long it may take to answer a key.
const ANSWER: Duration = Duration::from_secs(30);

pub(super) fn told_three_ways(parts: &Parts) -> Result<()> {
    without_a_terminal(parts).context("with no terminal")?;
    makes_the_same_again(parts).context("making images again")?;
    at_a_terminal(parts).context("at a terminal")?;
    with_a_broken_image(parts).context("with a Domain 0 image of noise")?;
    takes_its_machine_along(parts).context("interrupted")
}

/// Everything is shown and switched off; the times are printed.
fn without_a_terminal(parts: &Parts) -> Result<()> {
    let before = stamps(parts)?;
    let (status, said) = ended(run(parts, &[]))?;
    ensure!(status.success(), "it ended with {status}:\n{said}");
    for sign in [
        "hypervisor ok (",
        "boot to Domain 0's prompt ok (",
        "guest: from xl create -c to its prompt ok (",
        "\nDomain-0 ",
        "\ndemo ",
        "\nxen_version ",
        "switch the machine off ok (",
        "Times taken:",
    ] {
        ensure!(said.contains(sign), "it did not print {sign:?}:\n{said}");
    }
    let after = stamps(parts)?;
    ensure!(after == before, "what was there is made again: {before:?}, {after:?}");
    Ok(())
}

/// When each image was made.
fn stamps(parts: &Parts) -> Result<Vec<(PathBuf, SystemTime)>> {
    let mut stamps = Vec::new();
    for entry in fs::read_dir(made(parts)?.join("images"))? {
        let path = entry?.path();
        // Debian's hypervisor is unpacked by whoever wants it.
        if path.extension().is_some_and(|extension| extension == "img") {
            stamps.push((path.clone(), fs::metadata(path)?.modified()?));
        }
    }
    stamps.sort();
    Ok(stamps)
}

/// The same inputs give the same bytes: Domain 0's ramdisk, the guests', and the disk with all of the guests' files.
fn makes_the_same_again(parts: &Parts) -> Result<()> {
    const AGAIN: [&str; 3] = ["dom0.img", "tiny.img", "guests.img"];
    let made = made(parts)?;
    let elsewhere = tempfile::Builder::new().prefix("ferroxen-again-").tempdir_in(&made)?;
    link_all(&made, elsewhere.path(), &["images"])?;
    let images = elsewhere.path().join("images");
    fs::create_dir(&images)?;
    link_all(&made.join("images"), &images, &AGAIN)?;
    let mut command = Command::new(&parts.xtask);
    command.args(["image", "--yes"]).stdin(Stdio::null());
    command.env("FERROXEN_TARGET", elsewhere.path());
    let (status, said) = ended(command)?;
    ensure!(status.success(), "it ended with {status}:\n{said}");
    for name in AGAIN {
        let (first, again) = (made.join("images").join(name), images.join(name));
        ensure!(!again.is_symlink(), "{name} was not made again");
        ensure!(
            are_equal(&first, &again)?,
            "{name} has other bytes when it is made again"
        );
    }
    Ok(())
}

fn are_equal(one: &Path, other: &Path) -> Result<bool> {
    let status = Command::new("cmp").arg("--quiet").arg(one).arg(other).status();
    Ok(status.context("cannot start cmp")?.success())
}

/// The prompt works, the printed way to leave works, and the terminal is as before.
fn at_a_terminal(parts: &Parts) -> Result<()> {
    let mut terminal = Terminal::open()?;
    let before = terminal.local_modes()?;
    let mut child = terminal.attach(&mut run(parts, &["--no-demo"]))?;
    let leave = terminal.wait_for("Ctrl-\\ ends the machine", 0, PATIENCE)?;
    let prompt = terminal.wait_for("root@dom0:~# ", leave, ANSWER)?;
    terminal.type_keys(b"echo se''ven times $((6 + 1))\r")?;
    let answer = terminal.wait_for("seven times 7", prompt, ANSWER)?;
    let prompt = terminal.wait_for("root@dom0:~# ", answer, ANSWER)?;
    // Ctrl-C is for the program in Domain 0.
    terminal.type_keys(b"echo be''gun; sleep 1000\r")?;
    let begun = terminal.wait_for("begun", prompt, ANSWER)?;
    terminal.type_keys(b"\x03")?;
    terminal.wait_for("root@dom0:~# ", begun, ANSWER)?;
    ensure!(
        !terminal.local_modes()?.contains(LocalModes::ICANON),
        "keys wait for the end of the line while the machine has the terminal"
    );
    terminal.type_keys(b"\x1c")?;
    let status = wait(&mut child, ANSWER)?;
    ensure!(status.success(), "left by Ctrl-\\, it ended with {status}");
    ensure!(
        terminal.local_modes()? == before,
        "the terminal is not as it was before"
    );
    Ok(())
}

/// The step is named, with the last lines of its log and what to do.
fn with_a_broken_image(parts: &Parts) -> Result<()> {
    let made = made(parts)?;
    let elsewhere = tempfile::Builder::new().prefix("ferroxen-broken-").tempdir()?;
    link_all(&made, elsewhere.path(), &["images"])?;
    let images = elsewhere.path().join("images");
    fs::create_dir(&images)?;
    link_all(&made.join("images"), &images, &["dom0.img"])?;
    fs::write(images.join("dom0.img"), vec![0x5a; 1 << 20])?;
    let mut command = run(parts, &["--no-demo"]);
    command.env("FERROXEN_TARGET", elsewhere.path());
    let (status, said) = ended(command)?;
    ensure!(!status.success(), "it ended with {status}:\n{said}");
    for sign in [
        "step \"boot to Domain 0's prompt\" failed",
        "Kernel panic - not syncing",
        "run.log",
        "what to do: ",
    ] {
        ensure!(said.contains(sign), "it did not print {sign:?}:\n{said}");
    }
    Ok(())
}

/// Ctrl-C while the machine starts: nothing is left running.
fn takes_its_machine_along(parts: &Parts) -> Result<()> {
    let (screen, theirs) = std::io::pipe()?;
    let mut command = run(parts, &["--no-demo"]);
    let mut child = command.stdout(theirs).spawn()?;
    drop(command);
    let transcript = heard(screen);
    transcript.wait_for("the hypervisor speaks", 0, &["error: "], PATIENCE)?;
    let machines = children_of(child.id())?;
    ensure!(!machines.is_empty(), "it runs no machine");
    kill_process(Pid::from_child(&child), Signal::INT)?;
    let status = wait(&mut child, ANSWER)?;
    ensure!(!status.success(), "interrupted, it ended with {status}");
    let end = Instant::now() + ANSWER;
    for machine in machines {
        while machine.exists() {
            ensure!(Instant::now() < end, "{} still runs", machine.display());
            thread::sleep(LOOK);
        }
    }
    Ok(())
}

/// The directories in /proc of a process' children.
fn children_of(parent: u32) -> Result<Vec<PathBuf>> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let process = entry?.path();
        // What ends while we look is no child of theirs.
        let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        if after_name.split_whitespace().nth(1) == Some(&parent.to_string()) {
            children.push(process);
        }
    }
    Ok(children)
}

/// What comes out of `screen`, as it comes; ends with it.
fn heard(mut screen: impl Read + Send + 'static) -> Transcript {
    let transcript = Transcript::default();
    let copy = transcript.clone();
    thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = screen.read(&mut bytes) {
            copy.add(bytes.get(..count).unwrap_or_default());
        }
        copy.close();
    });
    transcript
}

fn run(parts: &Parts, arguments: &[&str]) -> Command {
    let mut command = Command::new(&parts.xtask);
    command.args(["run", "--yes"]).args(arguments).stdin(Stdio::null());
    command
}

/// The directory of what was made: where the disk of the guests is, `images`, is one of its own.
fn made(parts: &Parts) -> Result<PathBuf> {
    let images = parts.disk.parent().context("the disk is in no directory")?;
    let made = images.parent().context("the images are in no directory")?;
    Ok(made.to_path_buf())
}

fn link_all(from: &Path, to: &Path, but: &[&str]) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if !but.iter().any(|name| entry.file_name() == *name) {
            symlink(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Runs to the end, which must come; what was said, errors included.
fn ended(mut command: Command) -> Result<(ExitStatus, String)> {
    let (mut ours, theirs) = std::io::pipe()?;
    let mut child = command.stdout(theirs.try_clone()?).stderr(theirs).spawn()?;
    // The command holds the other end until it is dropped.
    drop(command);
    let reader = thread::spawn(move || {
        let mut said = Vec::new();
        ours.read_to_end(&mut said).map(|_| said)
    });
    let status = wait(&mut child, PATIENCE)?;
    let said = reader.join().map_err(|_| anyhow::anyhow!("the reader died"))??;
    Ok((status, String::from_utf8_lossy(&said).into_owned()))
}

fn wait(child: &mut Child, patience: Duration) -> Result<ExitStatus> {
    let end = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= end {
            let _ = child.kill();
            bail!("it had not ended after {} s", patience.as_secs());
        }
        thread::sleep(LOOK);
    }
}

/// A terminal whose person is us.
struct Terminal {
    ours: File,
    theirs: File,
    transcript: Transcript,
}

impl Terminal {
    fn open() -> Result<Self> {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        let name = ptsname(&ours, Vec::new())?;
        let theirs = rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty())?;
        let ours = File::from(ours);
        let transcript = heard(ours.try_clone()?);
        Ok(Self {
            ours,
            theirs: theirs.into(),
            transcript,
        })
    }

    /// Starts `command` with this terminal as its stdin, stdout and stderr.
    fn attach(&self, command: &mut Command) -> Result<Child> {
        command.stdin(self.theirs.try_clone()?);
        command
            .stdout(self.theirs.try_clone()?)
            .stderr(self.theirs.try_clone()?);
        command.spawn().context("cannot start it")
    }

    fn type_keys(&mut self, keys: &[u8]) -> Result<()> {
        Ok(self.ours.write_all(keys)?)
    }

    fn wait_for(&self, wanted: &str, from: usize, patience: Duration) -> Result<usize> {
        let seen = self.transcript.wait_for(wanted, from, &["error: "], patience);
        seen.with_context(|| format!("the terminal shows:\n{}", self.transcript.text()))
    }

    fn local_modes(&self) -> Result<LocalModes> {
        Ok(tcgetattr(&self.theirs)?.local_modes)
    }
}
