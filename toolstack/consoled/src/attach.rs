//! Showing a guest's console on our own terminal.

use crate::SOCKET;
use anyhow::{Context, Result, bail};
use ferroxen_xenstore::{Client, Store};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How to attach.
#[derive(Default)]
pub struct AttachOptions {
    /// Which console: 0 is xenconsoled's, the others are channels that QEMU serves.
    pub number: u32,
    /// The key that detaches; `None` is Ctrl-].
    pub escape: Option<u8>,
    /// Attaching ends when this can be read ([`interrupts`]): somebody wants us to stop.
    pub interrupt: Option<OwnedFd>,
    /// Called once the console is ours, before anything is shown: the moment to start a paused guest.
    pub on_attached: Option<Box<dyn FnOnce() -> Result<()>>>,
}

/// Why a console is no longer shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// The person at the keyboard pressed the escape key.
    Detached,
    /// The domain has gone.
    DomainGone,
    /// Somebody wanted us to stop.
    Interrupted,
}

/// A pipe that can be read once somebody wants us to stop: Ctrl-C, `kill`, the terminal's end. From then on these
/// signals do nothing else.
pub fn interrupts() -> io::Result<OwnedFd> {
    let (near, far) = UnixStream::pair()?;
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::low_level::pipe::register(signal, far.try_clone()?)?;
    }
    Ok(near.into())
}

const CTRL_BRACKET: u8 = 0x1d;
/// How long xenconsoled may take to serve a console.
const SERVED_WITHIN: Duration = Duration::from_secs(10);
const RELEASED: &str = "@releaseDomain";
/// How long the console is still read after the domain's directory has gone from the store.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Where the terminals are that consoles end in.
const TERMINALS: &str = "/dev/pts/";

/// Shows a domain's console and sends it what is typed, until the escape key or the domain's end.
///
/// Waits a while for xenconsoled to serve the console, if it does not yet. Ends of standard input (a pipe,
/// `/dev/null`) end the typing only.
pub fn attach(domid: u16, options: AttachOptions) -> Result<Ended> {
    let store = Client::connect()?;
    let stop = options.interrupt;
    let line = if options.number == 0 {
        match wait_for_terminal(&store, domid, stop.as_ref())? {
            Ok(tty) => connect(domid, &tty)?,
            Err(ended) => return Ok(ended),
        }
    } else {
        open(domid, &channel(&store, domid, options.number)?)?
    };
    let stdin = io::stdin();
    let raw = RawMode::enter(&stdin)?;
    if let Some(on_attached) = options.on_attached {
        on_attached()?;
    }
    let ended = carry(
        &line,
        options.escape.unwrap_or(CTRL_BRACKET),
        &store,
        domid,
        stop.as_ref(),
    );
    drop(raw);
    ended
}

/// The terminal that a channel ends in.
fn channel(store: &Client, domid: u16, number: u32) -> Result<String> {
    // Domain 0's own note says that there is one.
    let note = format!("/libxl/{domid}/device/console/{number}");
    let read = |path: &str| store.read_opt(path);
    match read(&format!("{note}/connection"))?.as_deref() {
        Some("pty") => {}
        Some(_) => {
            let path = read(&format!("{note}/path"))?.unwrap_or_default();
            bail!("console {number} of domain {domid} is a channel that ends in the socket {path}");
        }
        None => bail!("domain {domid} has no console {number} (`xl channel-list` shows what it has)"),
    }
    let tty = read(&format!("/local/domain/{domid}/device/console/{number}/tty"))?;
    tty.filter(|tty| tty.starts_with(TERMINALS))
        .with_context(|| format!("QEMU has not said which terminal console {number} of domain {domid} ends in"))
}

/// Waits until xenconsoled has said which terminal shows the console.
fn wait_for_terminal(store: &Client, domid: u16, stop: Option<&OwnedFd>) -> Result<Result<String, Ended>> {
    let home = format!("/local/domain/{domid}");
    let path = format!("{home}/console/tty");
    if !store.exists(&home)? {
        bail!("there is no domain {domid}");
    }
    store.watch(&path, "tty")?;
    store.watch(&home, "home")?;
    let deadline = Instant::now() + SERVED_WITHIN;
    let answer = loop {
        if let Some(tty) = store.read_opt(&path)?.filter(|tty| !tty.is_empty()) {
            break Ok(tty);
        }
        if !store.exists(&home)? {
            break Err(Ended::DomainGone);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!(
                "nobody serves the console of domain {domid}, {SERVED_WITHIN:?} after it was asked for: \
                 is xenconsoled running? (`xenconsoled` starts it)"
            );
        }
        let mut fds = vec![PollFd::new(store, PollFlags::IN)];
        fds.extend(stop.map(|stop| PollFd::new(stop, PollFlags::IN)));
        match poll(&mut fds, Timespec::try_from(left).ok().as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        if fds.get(1).is_some_and(|stop| !stop.revents().is_empty()) {
            break Err(Ended::Interrupted);
        }
        while store.try_event()?.is_some() {}
    };
    store.unwatch(&path, "tty")?;
    store.unwatch(&home, "home")?;
    Ok(answer)
}

/// By our xenconsoled's socket if it serves this console, else by the terminal.
fn connect(domid: u16, tty: &str) -> Result<File> {
    if let Ok(mut socket) = UnixStream::connect(SOCKET) {
        let mut answer = [0];
        socket.write_all(format!("{domid}\n").as_bytes())?;
        if socket.read_exact(&mut answer).is_ok() && answer == *b"+" {
            return Ok(File::from(OwnedFd::from(socket)));
        }
    }
    open(domid, tty)
}

fn open(domid: u16, tty: &str) -> Result<File> {
    let no_controlling_terminal = rustix::fs::OFlags::NOCTTY.bits() as i32;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(no_controlling_terminal)
        .open(tty);
    file.with_context(|| format!("cannot open {tty}, the console of domain {domid}"))
}

/// Carries bytes both ways.
fn carry(line: &File, escape: u8, store: &Client, domid: u16, stop: Option<&OwnedFd>) -> Result<Ended> {
    // Not `io::stdin()` itself: what its buffer holds, `poll` does not see.
    let mut stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut stdout = io::stdout();
    let mut bytes = [0; 4096];
    let mut is_typing = true;
    // A terminal whose domain has gone may stay open: the store tells. Not everybody may hear of releases.
    let home = format!("/local/domain/{domid}");
    store.watch(&home, "gone")?;
    let _ = store.watch(RELEASED, RELEASED);
    let mut gone_since = None;
    loop {
        // The last words may still be on their way.
        let left = gone_since.map(|since: Instant| LAST_WORDS.saturating_sub(since.elapsed()));
        if left == Some(Duration::ZERO) {
            return Ok(Ended::DomainGone);
        }
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let mut fds = vec![PollFd::new(line, PollFlags::IN), PollFd::new(store, PollFlags::IN)];
        // Without a reader of what is typed, do not spin on its end.
        fds.extend(is_typing.then(|| PollFd::new(&stdin, PollFlags::IN)));
        fds.extend(stop.map(|stop| PollFd::new(stop, PollFlags::IN)));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let is_ready = |i: usize| fds.get(i).is_some_and(|fd| !fd.revents().is_empty());
        let (from_line, from_store, from_stdin) = (is_ready(0), is_ready(1), is_typing && is_ready(2));
        if stop.is_some() && is_ready(fds.len() - 1) {
            return Ok(Ended::Interrupted);
        }
        if from_line {
            match (&*line).read(&mut bytes) {
                Ok(0) => return Ok(Ended::DomainGone),
                Ok(count) => {
                    stdout.write_all(&bytes[..count])?;
                    stdout.flush()?;
                    // Last words before anything else.
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The other end of the terminal has closed.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                    return Ok(Ended::DomainGone);
                }
                Err(error) => return Err(error).context("cannot read the console"),
            }
        }
        if from_stdin {
            let count = stdin.read(&mut bytes)?;
            is_typing = count > 0;
            let typed = &bytes[..count];
            let end = typed.iter().position(|byte| *byte == escape);
            (&*line)
                .write_all(&typed[..end.unwrap_or(count)])
                .context("cannot write to the console")?;
            if end.is_some() {
                return Ok(Ended::Detached);
            }
        }
        if from_store {
            while store.try_event()?.is_some() {}
            if gone_since.is_none() && !store.exists(&home)? {
                gone_since = Some(Instant::now());
            }
        }
    }
}

/// Our terminal in raw mode, put back when dropped.
struct RawMode(Option<Termios>);

impl RawMode {
    fn enter(stdin: &io::Stdin) -> Result<RawMode> {
        if !isatty(stdin) {
            return Ok(RawMode(None));
        }
        let before = tcgetattr(stdin).map_err(io::Error::from)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin, OptionalActions::Now, &raw).map_err(io::Error::from)?;
        Ok(RawMode(Some(before)))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // There is nobody left to tell if this fails.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}
