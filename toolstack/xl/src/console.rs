//! `xl console`: this terminal joined to a domain's console, until Ctrl-] or the domain's end.

use anyhow::{Context, bail};
use ferroxen_domains::{Toolstack, nodes};
use ferroxen_words::DomId;
use ferroxen_xenstore::Store;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Ctrl-]
const ESCAPE: u8 = 0x1d;
/// How long the console daemon may take to offer a new domain's console.
const PATIENCE: Duration = Duration::from_secs(20);

/// Joins until the end.
pub fn run(tools: &Toolstack, domid: DomId) -> anyhow::Result<ExitCode> {
    let tty = open(tools, domid)?;
    join(&tty)?;
    Ok(ExitCode::SUCCESS)
}

/// Finds the terminal that the console daemon offers, waiting for it if the domain is new.
pub fn open(tools: &Toolstack, domid: DomId) -> anyhow::Result<File> {
    let path = format!("{}/console/tty", nodes::domain(domid));
    let token = "console";
    let deadline = Instant::now() + PATIENCE;
    tools.store.watch(&path, token)?;
    let tty = loop {
        if let Some(tty) = tools.store.read_opt(&path)?.filter(|tty| !tty.is_empty()) {
            break tty;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("domain {} has no console: is xenconsoled running?", domid.raw());
        }
        tools.store.next_event(Some(left))?;
    };
    tools.store.unwatch(&path, token)?;
    if !tty.starts_with("/dev/") {
        bail!(
            "the console of domain {} is at {tty:?}, which is no device",
            domid.raw()
        );
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&tty)
        .with_context(|| format!("opening the console at {tty}"))?;
    if isatty(&file) {
        // What passes through is the guest's affair: no echo, no line editing at this end.
        let mut mode = tcgetattr(&file).context("asking about the console's terminal")?;
        mode.make_raw();
        tcsetattr(&file, OptionalActions::Now, &mode).context("setting the console's terminal")?;
    }
    Ok(file)
}

/// Passes bytes both ways until Ctrl-], or until the domain's end closes the far side.
pub fn join(tty: &File) -> anyhow::Result<()> {
    let _restore = RawTerminal::enter();
    let mut bytes = [0; 4096];
    let mut has_input = true;
    loop {
        let stdin = io::stdin();
        let mut watched = vec![PollFd::new(tty, PollFlags::IN)];
        if has_input {
            watched.push(PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN));
        }
        match poll(&mut watched, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error).context("waiting for the console"),
        }
        let [from_guest, from_us] =
            [watched.first(), watched.get(1)].map(|fd| fd.is_some_and(|fd| !fd.revents().is_empty()));
        drop(watched);
        if from_guest {
            match (&*tty).read(&mut bytes) {
                // The far side is closed: the domain is gone.
                Ok(0) => return Ok(()),
                Err(error) if error.raw_os_error() == Some(5) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("reading the console"),
                Ok(count) => {
                    let mut out = io::stdout().lock();
                    out.write_all(&bytes[..count])
                        .and_then(|()| out.flush())
                        .context("printing")?;
                }
            }
        }
        if from_us {
            match rustix::io::read(stdin.as_fd(), &mut bytes) {
                Ok(0) => has_input = false,
                Ok(count) => {
                    let typed = &bytes[..count];
                    let end = typed.iter().position(|byte| *byte == ESCAPE);
                    (&*tty)
                        .write_all(&typed[..end.unwrap_or(count)])
                        .context("writing to the console")?;
                    if end.is_some() {
                        return Ok(());
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => has_input = false,
            }
        }
    }
}

/// Our own terminal in raw mode, if it is one; put back when dropped.
struct RawTerminal(Option<Termios>);

impl RawTerminal {
    fn enter() -> RawTerminal {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return RawTerminal(None);
        }
        let Ok(old) = tcgetattr(&stdin) else {
            return RawTerminal(None);
        };
        let mut raw = old.clone();
        raw.make_raw();
        match tcsetattr(&stdin, OptionalActions::Now, &raw) {
            Ok(()) => RawTerminal(Some(old)),
            Err(_) => RawTerminal(None),
        }
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(old) = &self.0 {
            // Nothing is left to do for a terminal that has gone.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, old);
        }
    }
}
