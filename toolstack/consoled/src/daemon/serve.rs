//! The poll loop.

use super::console::Console;
use super::hypervisor::Hypervisor;
use super::hypervisor_log::HypervisorLog;
use super::readers::{Line, Reader};
use anyhow::{Context, Result};
use ferroxen_words::{DomId, Port};
use ferroxen_xenstore::{Client, Event, Store};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::fs::inotify;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const INTRODUCED: &str = "@introduceDomain";
const RELEASED: &str = "@releaseDomain";
/// A client's first line: the number of a domain.
const REQUEST_MAX: usize = 16;

/// How a daemon is to be.
#[derive(Debug)]
pub struct Setup {
    /// Log what guests print.
    pub log_guests: bool,
    /// Log what the hypervisor prints.
    pub log_hypervisor: bool,
    /// Where logs go.
    pub log_dir: PathBuf,
    /// Put the time before each logged line.
    pub with_time: bool,
    /// Where clients connect.
    pub socket: PathBuf,
}

/// A running xenconsoled.
#[derive(Debug)]
pub struct Daemon {
    setup: Setup,
    store: Client,
    hypervisor: Hypervisor,
    hypervisor_log: Option<HypervisorLog>,
    listener: UnixListener,
    /// Clients that have not yet said which console they want.
    callers: Vec<(UnixStream, Vec<u8>)>,
    /// Reports openings of pseudo-terminals.
    openings: OwnedFd,
    consoles: BTreeMap<DomId, Console>,
    /// Domains to be looked at later, and when.
    waiting: BTreeMap<DomId, Duration>,
    started: Instant,
}

impl Daemon {
    /// Connects to everything and takes over the consoles that are there.
    pub fn start(setup: Setup) -> Result<Daemon> {
        let store = Client::connect()?;
        let hypervisor = Hypervisor::open()?;
        let hypervisor_log = if setup.log_hypervisor {
            let file = log_file(&setup.log_dir, "hypervisor.log")?;
            Some(HypervisorLog::start(&hypervisor, file)?)
        } else {
            None
        };
        if setup.log_guests {
            fs::create_dir_all(&setup.log_dir).with_context(|| format!("cannot make {}", setup.log_dir.display()))?;
        }
        let listener = listen(&setup.socket)?;
        let openings = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        // With a depth, the event names the domain; an older xenstored does not know that.
        for event in [INTRODUCED, RELEASED] {
            store
                .watch_depth(event, event, 1)
                .or_else(|_| store.watch(event, event))?;
        }
        Ok(Daemon {
            setup,
            store,
            hypervisor,
            hypervisor_log,
            listener,
            callers: vec![],
            openings,
            consoles: BTreeMap::new(),
            waiting: BTreeMap::new(),
            started: Instant::now(),
        })
    }

    /// Serves for ever.
    pub fn run(mut self) -> Result<()> {
        let mut turn = Turn::default();
        loop {
            // Events may have come in along with answers to our own requests.
            while let Some(event) = self.store.try_event()? {
                turn.busy.extend(self.hear_store(&event)?);
            }
            for domid in std::mem::take(&mut turn.busy) {
                self.serve(domid);
            }
            turn = self.wait()?;
            if turn.has_caller {
                self.accept();
            }
            for i in turn.callers.iter().rev() {
                turn.busy.extend(self.hear_caller(*i));
            }
            if turn.has_opening {
                turn.busy.extend(self.hear_openings());
            }
            if turn.has_event {
                turn.busy.extend(self.hear_events()?);
            }
        }
    }

    /// Waits until somebody has something for us, and notes who.
    fn wait(&mut self) -> Result<Turn> {
        let mut fds = vec![
            PollFd::new(&self.store, PollFlags::IN),
            PollFd::new(&self.hypervisor.events, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
            PollFd::new(&self.openings, PollFlags::IN),
        ];
        let first_caller = fds.len();
        fds.extend(
            self.callers
                .iter()
                .map(|(socket, _)| PollFd::new(socket, PollFlags::IN)),
        );
        let first_reader = fds.len();
        let mut readers = vec![];
        for (domid, console) in &self.consoles {
            for reader in console.readers.iter().filter(|reader| reader.is_attached()) {
                fds.push(PollFd::from_borrowed_fd(
                    reader.as_fd(),
                    reader.interest(console.backlog(), console.wants_input()),
                ));
                readers.push(*domid);
            }
        }
        let now = self.started.elapsed();
        let next = self.waiting.values().min().map(|when| when.saturating_sub(now));
        let timeout = next.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error)).context("cannot wait"),
        }
        let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let ready_readers = fds[first_reader..].iter().zip(readers).filter(|(fd, _)| is_ready(fd));
        let mut turn = Turn {
            has_event: is_ready(&fds[1]),
            has_caller: is_ready(&fds[2]),
            has_opening: is_ready(&fds[3]),
            callers: (first_caller..first_reader)
                .filter(|i| is_ready(&fds[*i]))
                .map(|i| i - first_caller)
                .collect(),
            busy: ready_readers.map(|(_, domid)| domid).collect(),
        };
        let now = self.started.elapsed();
        turn.busy.extend(
            self.waiting
                .iter()
                .filter(|(_, when)| **when <= now)
                .map(|(domid, _)| *domid),
        );
        Ok(turn)
    }

    fn serve(&mut self, domid: DomId) {
        self.waiting.remove(&domid);
        let Some(console) = self.consoles.get_mut(&domid) else {
            return;
        };
        match console.serve(&self.hypervisor, self.started.elapsed()) {
            Ok(None) => {}
            Ok(Some(when)) => drop(self.waiting.insert(domid, when)),
            Err(error) => eprintln!("xenconsoled: {domid}: {error:#}"),
        }
        self.close_if_over(domid);
    }

    fn close_if_over(&mut self, domid: DomId) {
        let Some(when) = self.consoles.get(&domid).and_then(Console::closes_at) else {
            return;
        };
        if when <= self.started.elapsed() {
            self.consoles.remove(&domid);
        } else {
            self.waiting.insert(domid, when);
        }
    }

    fn hear_store(&mut self, event: &Event) -> Result<Vec<DomId>> {
        if event.token == INTRODUCED {
            let domains = match domid_of(
                event
                    .path
                    .strip_prefix(INTRODUCED)
                    .and_then(|rest| rest.strip_prefix('/')),
            ) {
                Some(domid) => vec![domid],
                None => self
                    .store
                    .directory_opt("/local/domain")?
                    .iter()
                    .filter_map(|name| domid_of(Some(name)))
                    .collect(),
            };
            domains.into_iter().for_each(|domid| self.meet(domid));
            return Ok(vec![]);
        }
        if event.token == RELEASED {
            self.let_go(named_in(event));
            return Ok(vec![]);
        }
        let Some(domid) = domid_of(Some(&event.token)) else {
            return Ok(vec![]);
        };
        self.look_up(domid);
        Ok(vec![domid])
    }

    /// A domain we have not seen before, perhaps.
    fn meet(&mut self, domid: DomId) {
        if domid == DomId::DOM0 || self.consoles.contains_key(&domid) || !self.hypervisor.exists(domid) {
            return;
        }
        // Its first event comes at once and makes us look.
        match self.store.watch(&Console::path(domid), &domid.raw().to_string()) {
            Ok(()) => drop(self.consoles.insert(domid, Console::new(domid))),
            Err(error) => eprintln!("xenconsoled: {domid}: cannot watch its console: {error}"),
        }
    }

    fn look_up(&mut self, domid: DomId) {
        let Some(console) = self.consoles.get_mut(&domid) else {
            return;
        };
        if console.is_ended() {
            return;
        }
        if let Err(error) = console.look_up(&self.store, &self.hypervisor, &self.openings) {
            eprintln!("xenconsoled: {error:#}");
        }
        if self.setup.log_guests
            && !console.has_log()
            && console.ring.is_some()
            && let Err(error) = console.log_to(&self.store, &self.setup.log_dir, self.setup.with_time)
        {
            eprintln!("xenconsoled: {error:#}");
        }
    }

    /// A domain has shut down or gone. Without its number, any may have.
    fn let_go(&mut self, domid: Option<DomId>) {
        let candidates = self.consoles.iter().filter(|(id, console)| {
            domid.is_none_or(|domid| **id == domid) && !console.is_ended() && !self.hypervisor.exists(**id)
        });
        let gone: Vec<DomId> = candidates.map(|(domid, _)| *domid).collect();
        for domid in gone {
            // Gone already if the whole directory is; the watch is ours in any case.
            let _ = self.store.unwatch(&Console::path(domid), &domid.raw().to_string());
            if let Some(console) = self.consoles.get_mut(&domid) {
                console.end(&self.hypervisor, self.started.elapsed());
            }
            self.close_if_over(domid);
        }
    }

    fn hear_events(&mut self) -> Result<Vec<DomId>> {
        let mut busy = vec![];
        let by_port: BTreeMap<Port, DomId> = self
            .consoles
            .values()
            .filter_map(|console| Some((console.ring.as_ref()?.port, console.domid)))
            .collect();
        loop {
            match self.hypervisor.events.next_pending() {
                Ok(None) => return Ok(busy),
                Ok(Some(port)) => {
                    // Before looking at the ring, so that no later event is missed.
                    self.hypervisor
                        .events
                        .unmask(port)
                        .with_context(|| format!("cannot unmask {port}"))?;
                    busy.extend(by_port.get(&port));
                    if let Some(log) = self.hypervisor_log.as_mut().filter(|log| log.port == port)
                        && let Err(error) = log.copy(&self.hypervisor)
                    {
                        eprintln!("xenconsoled: {error:#}");
                    }
                }
                Err(error) => {
                    eprintln!("xenconsoled: event channels: {error}; looking at every ring");
                    self.consoles.values_mut().for_each(Console::hear);
                    return Ok(by_port.into_values().collect());
                }
            }
        }
    }

    /// Somebody opened a pseudo-terminal: whose?
    fn hear_openings(&mut self) -> Vec<DomId> {
        let mut opened = BTreeSet::new();
        let mut bytes = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.openings, &mut bytes);
        // The end is an error too: nothing more for now.
        while let Ok(event) = reader.next() {
            opened.insert(event.wd());
        }
        let is_open = |reader: &Reader| matches!(&reader.line, Line::Pty(pty) if opened.contains(&pty.watch));
        let consoles = self
            .consoles
            .values()
            .filter(|console| console.readers.iter().any(is_open));
        consoles.map(|console| console.domid).collect()
    }

    fn accept(&mut self) {
        while let Ok((socket, _)) = self.listener.accept() {
            match socket.set_nonblocking(true) {
                Ok(()) => self.callers.push((socket, vec![])),
                Err(error) => eprintln!("xenconsoled: a client is turned away: {error}"),
            }
        }
    }

    /// Reads which console a client wants, and lets it in once that is said.
    fn hear_caller(&mut self, i: usize) -> Option<DomId> {
        let (socket, request) = self.callers.get_mut(i)?;
        let mut byte = [0];
        let is_whole = loop {
            // A byte at a time: what follows the line is typed already.
            match socket.read(&mut byte) {
                Ok(1) if byte == *b"\n" => break true,
                Ok(1) if request.len() < REQUEST_MAX => request.push(byte[0]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                _ => break false,
            }
        };
        let (mut socket, request) = self.callers.remove(i);
        let domid = domid_of(std::str::from_utf8(&request).ok()).filter(|_| is_whole);
        let console = domid
            .and_then(|domid| self.consoles.get_mut(&domid))
            .filter(|console| console.ring.is_some());
        // A client that does not take its first byte will not be missed.
        match console {
            Some(console) => {
                let _ = socket.write_all(b"+");
                console.readers.push(Reader::new(Line::Socket(socket)));
                Some(console.domid)
            }
            None => {
                let _ = socket.write_all(b"-");
                None
            }
        }
    }
}

/// Who has something for us.
#[derive(Debug, Default)]
struct Turn {
    has_event: bool,
    has_caller: bool,
    has_opening: bool,
    callers: Vec<usize>,
    busy: BTreeSet<DomId>,
}

/// The domain that an event names, if it does.
fn named_in(event: &Event) -> Option<DomId> {
    domid_of(event.path.split_once('/').map(|(_, domid)| domid))
}

fn domid_of(text: Option<&str>) -> Option<DomId> {
    text?.parse().ok().and_then(DomId::new)
}

fn log_file(directory: &Path, name: &str) -> Result<fs::File> {
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let path = directory.join(name);
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("cannot log to {}", path.display()))
}

fn listen(path: &Path) -> Result<UnixListener> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    if UnixStream::connect(path).is_ok() {
        anyhow::bail!("another xenconsoled answers at {}", path.display());
    }
    // What nobody answers at is left over.
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path).with_context(|| format!("cannot listen at {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
