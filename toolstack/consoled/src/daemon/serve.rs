//! The poll loop.

use super::console::Console;
use super::hypervisor::Hypervisor;
use super::hypervisor_log::HypervisorLog;
use super::readers::{Line, Reader};
use anyhow::{Context, Result};
use ferroxen_words::{DomId, Port};
use ferroxen_xenstore::{Client, Event, Store};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::inotify;
use signal_hook::consts::SIGHUP;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const INTRODUCED: &str = "@introduceDomain";
const RELEASED: &str = "@releaseDomain";
const HYPERVISOR_LOG: &str = "hypervisor.log";
/// How often a xenstored that has gone is looked for.
const BETWEEN_TRIES: Duration = Duration::from_millis(500);
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
    /// Nothing while there is no xenstored: consoles go on, and it may come back.
    store: Option<Client>,
    /// When to look for xenstored again.
    store_at: Duration,
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
    /// Readable when the logs were moved away (`SIGHUP`).
    logs_moved: UnixStream,
    started: Instant,
}

impl Daemon {
    /// Connects to everything and takes over the consoles that are there.
    pub fn start(setup: Setup) -> Result<Daemon> {
        let store = Client::connect()?;
        let hypervisor = Hypervisor::open()?;
        let hypervisor_log = if setup.log_hypervisor {
            let file = log_file(&setup.log_dir, HYPERVISOR_LOG)?;
            Some(HypervisorLog::start(&hypervisor, file)?)
        } else {
            None
        };
        if setup.log_guests {
            fs::create_dir_all(&setup.log_dir).with_context(|| format!("cannot make {}", setup.log_dir.display()))?;
        }
        let listener = listen(&setup.socket)?;
        let openings = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        watch_domains(&store)?;
        let (logs_moved, signal) = UnixStream::pair()?;
        logs_moved.set_nonblocking(true)?;
        signal_hook::low_level::pipe::register(SIGHUP, signal)?;
        Ok(Daemon {
            setup,
            store: Some(store),
            store_at: Duration::ZERO,
            logs_moved,
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
            turn.busy.extend(self.hear_store());
            for domid in std::mem::take(&mut turn.busy) {
                self.serve(domid);
            }
            self.mind_store();
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
            if turn.has_signal {
                self.reopen_logs();
            }
        }
    }

    /// Waits until somebody has something for us, and notes who.
    fn wait(&mut self) -> Result<Turn> {
        let always = [
            (Source::Event, PollFd::new(&self.hypervisor.events, PollFlags::IN)),
            (Source::Caller, PollFd::new(&self.listener, PollFlags::IN)),
            (Source::Opening, PollFd::new(&self.openings, PollFlags::IN)),
            (Source::Signal, PollFd::new(&self.logs_moved, PollFlags::IN)),
        ];
        let (mut sources, mut fds): (Vec<Source>, Vec<PollFd<'_>>) = always.into_iter().unzip();
        if let Some(store) = &self.store {
            sources.push(Source::Store);
            fds.push(PollFd::new(store, PollFlags::IN));
        }
        for (i, (socket, _)) in self.callers.iter().enumerate() {
            sources.push(Source::Request(i));
            fds.push(PollFd::new(socket, PollFlags::IN));
        }
        for (domid, console) in &self.consoles {
            for reader in console.readers.iter().filter(|reader| reader.is_attached()) {
                let interest = reader.interest(console.backlog(), console.wants_input());
                sources.push(Source::Reader(*domid));
                fds.push(PollFd::from_borrowed_fd(reader.as_fd(), interest));
            }
        }
        let now = self.started.elapsed();
        let store_at = self.store.is_none().then_some(&self.store_at);
        let next = self.waiting.values().chain(store_at).min();
        let timeout = next.and_then(|when| Timespec::try_from(when.saturating_sub(now)).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error)).context("cannot wait"),
        }
        let mut turn = Turn::default();
        for (source, _) in sources.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty()) {
            turn.note(*source);
        }
        let now = self.started.elapsed();
        let is_due = |(_, when): &(&DomId, &Duration)| **when <= now;
        turn.busy
            .extend(self.waiting.iter().filter(is_due).map(|(domid, _)| *domid));
        Ok(turn)
    }

    /// Notes that xenstored has gone, and finds it again when it is back.
    fn mind_store(&mut self) {
        if self.store.as_ref().is_some_and(|store| !store.is_usable()) {
            eprintln!("xenconsoled: xenstored has gone; consoles go on, and it is looked for");
            self.store = None;
            self.store_at = self.started.elapsed() + BETWEEN_TRIES;
        }
        if self.store.is_some() || self.started.elapsed() < self.store_at {
            return;
        }
        match self.find_store() {
            Ok(store) => {
                eprintln!("xenconsoled: xenstored is back");
                self.store = Some(store);
            }
            Err(_) => self.store_at = self.started.elapsed() + BETWEEN_TRIES,
        }
    }

    /// Connects again, and says again what it should know of us.
    fn find_store(&self) -> Result<Client> {
        let store = Client::connect_socket()?;
        watch_domains(&store)?;
        for (domid, console) in &self.consoles {
            if !console.is_ended() {
                watch_console(&store, *domid)?;
                console.publish(&store)?;
            }
        }
        Ok(store)
    }

    fn reopen_logs(&mut self) {
        // How often it was asked for does not matter.
        while matches!((&self.logs_moved).read(&mut [0; 64]), Ok(1..)) {}
        for console in self.consoles.values_mut() {
            if let Err(error) = console.reopen_log() {
                eprintln!("xenconsoled: {error:#}");
            }
        }
        if let Some(log) = &mut self.hypervisor_log {
            match log_file(&self.setup.log_dir, HYPERVISOR_LOG) {
                Ok(file) => log.move_to(file),
                Err(error) => eprintln!("xenconsoled: {error:#}"),
            }
        }
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

    /// Hears what the store has to tell, also what came along with answers to our own requests.
    fn hear_store(&mut self) -> Vec<DomId> {
        let mut busy = vec![];
        while let Some(store) = self.store.take() {
            let event = store.try_event();
            if let Ok(Some(event)) = &event {
                match self.hear_store_event(&store, event) {
                    Ok(domains) => busy.extend(domains),
                    Err(error) => eprintln!("xenconsoled: {error:#}"),
                }
            }
            self.store = Some(store);
            // An error makes it unusable, which is seen to later.
            if !matches!(event, Ok(Some(_))) {
                break;
            }
        }
        busy
    }

    fn hear_store_event(&mut self, store: &Client, event: &Event) -> Result<Vec<DomId>> {
        if event.token == INTRODUCED {
            let path = event.path.strip_prefix(INTRODUCED);
            let domains = match domid_of(path.and_then(|rest| rest.strip_prefix('/'))) {
                Some(domid) => vec![domid],
                None => store
                    .directory_opt("/local/domain")?
                    .iter()
                    .filter_map(|name| domid_of(Some(name)))
                    .collect(),
            };
            domains.into_iter().for_each(|domid| self.meet(store, domid));
            return Ok(vec![]);
        }
        if event.token == RELEASED {
            self.let_go(store, named_in(event));
            return Ok(vec![]);
        }
        let Some(domid) = domid_of(Some(&event.token)) else {
            return Ok(vec![]);
        };
        self.look_up(store, domid);
        Ok(vec![domid])
    }

    /// A domain we have not seen before, perhaps.
    fn meet(&mut self, store: &Client, domid: DomId) {
        if domid == DomId::DOM0 || self.consoles.contains_key(&domid) || !self.hypervisor.exists(domid) {
            return;
        }
        // Its first event comes at once and makes us look.
        match watch_console(store, domid) {
            Ok(()) => drop(self.consoles.insert(domid, Console::new(domid))),
            Err(error) => eprintln!("xenconsoled: {error:#}"),
        }
    }

    fn look_up(&mut self, store: &Client, domid: DomId) {
        let Some(console) = self.consoles.get_mut(&domid) else {
            return;
        };
        if console.is_ended() {
            return;
        }
        if let Err(error) = console.look_up(store, &self.hypervisor, &self.openings) {
            eprintln!("xenconsoled: {error:#}");
        }
        if self.setup.log_guests
            && !console.has_log()
            && console.ring.is_some()
            && let Err(error) = console.log_to(store, &self.setup.log_dir, self.setup.with_time)
        {
            eprintln!("xenconsoled: {error:#}");
        }
    }

    /// A domain has shut down or gone. Without its number, any may have.
    fn let_go(&mut self, store: &Client, domid: Option<DomId>) {
        let candidates = self.consoles.iter().filter(|(id, console)| {
            domid.is_none_or(|domid| **id == domid) && !console.is_ended() && !self.hypervisor.exists(**id)
        });
        let gone: Vec<DomId> = candidates.map(|(domid, _)| *domid).collect();
        for domid in gone {
            // Gone already if the whole directory is; the watch is ours in any case.
            let _ = store.unwatch(&Console::path(domid), &domid.raw().to_string());
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
                    if let Some(domid) = by_port.get(&port) {
                        // Masked until the ring is looked at.
                        self.consoles.get_mut(domid).into_iter().for_each(Console::hear);
                        busy.push(*domid);
                        continue;
                    }
                    self.hypervisor
                        .events
                        .unmask(port)
                        .with_context(|| format!("cannot unmask {port}"))?;
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
    has_signal: bool,
    callers: Vec<usize>,
    busy: BTreeSet<DomId>,
}

/// What is waited for.
#[derive(Clone, Copy, Debug)]
enum Source {
    Event,
    Caller,
    Opening,
    Signal,
    /// Heard in every turn.
    Store,
    /// The number of a client that has yet to say what it wants.
    Request(usize),
    Reader(DomId),
}

impl Turn {
    fn note(&mut self, source: Source) {
        match source {
            Source::Event => self.has_event = true,
            Source::Caller => self.has_caller = true,
            Source::Opening => self.has_opening = true,
            Source::Signal => self.has_signal = true,
            Source::Store => {}
            Source::Request(i) => self.callers.push(i),
            Source::Reader(domid) => drop(self.busy.insert(domid)),
        }
    }
}

fn watch_domains(store: &Client) -> Result<()> {
    for event in [INTRODUCED, RELEASED] {
        // With a depth, the event names the domain; an older xenstored does not know that.
        store
            .watch_depth(event, event, 1)
            .or_else(|_| store.watch(event, event))?;
    }
    Ok(())
}

fn watch_console(store: &Client, domid: DomId) -> Result<()> {
    store
        .watch(&Console::path(domid), &domid.raw().to_string())
        .with_context(|| format!("{domid}: cannot watch its console"))
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
