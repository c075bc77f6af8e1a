//! The poll loop.

use super::handover::{self, Inheritance};
use super::hypervisor::Hypervisor;
use super::journal::{self, Journal};
use super::link::{Link, LinkError, Wire};
use super::listener::listen;
use super::log::Log;
use super::poller::{Poller, Ready};
use crate::core::{ConnId, DomainState, Limits, Record, Restored, Successor, World, Xenstore, write_record};
use anyhow::{Context, Result};
use ferroxen_words::{DomId, Gfn, Port};
use ferroxen_xenstore_wire::{Decoder, ErrorCode};
use rustix::event::Timespec;
use rustix::event::epoll::EventFlags;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Requests that one connection gets answered before the next one's turn.
const REQUESTS_PER_TURN: usize = 16;

/// How a daemon is to be.
#[derive(Debug)]
pub struct Setup {
    /// The directory of the socket.
    pub socket_dir: PathBuf,
    /// What a guest may have.
    pub limits: Limits,
    /// Without a hypervisor: only the socket is served.
    pub without_hypervisor: bool,
    /// What the program left whose place we take.
    pub inheritance: Option<Inheritance>,
}

/// A running xenstored.
#[derive(Debug)]
pub struct Daemon {
    store: Xenstore,
    outside: Outside,
    listener: UnixListener,
    /// None where there are no guests.
    journal: Option<Journal>,
    poller: Poller,
    /// Connections that we have heard from or sent to since we last waited.
    touched: BTreeSet<ConnId>,
    started: Instant,
    /// Connections that may have more requests for us.
    ready: BTreeSet<ConnId>,
    /// Guests over their budget, and when they may go on.
    waiting: BTreeSet<(Duration, ConnId)>,
}

/// Everything but the store: what requests may act upon.
#[derive(Debug)]
struct Outside {
    links: BTreeMap<ConnId, Link>,
    /// Which connection a port belongs to.
    ports: BTreeMap<Port, ConnId>,
    /// Which connection a domain's ring is.
    domains: BTreeMap<u16, ConnId>,
    hypervisor: Option<Hypervisor>,
    log: Log,
    /// Who is to take our place after the request in hand.
    successor: Option<Successor>,
}

impl Daemon {
    /// Takes the kernel's ring, and listens.
    pub fn start(setup: Setup, log: Log) -> Result<Daemon> {
        let (listener, records, clients) = match setup.inheritance {
            Some(Inheritance {
                records,
                listener,
                clients,
            }) => (listener, Some(records), clients),
            None => (listen(&setup.socket_dir)?, None, Default::default()),
        };
        let hypervisor = if setup.without_hypervisor {
            None
        } else {
            Some(Hypervisor::open()?)
        };
        let events = hypervisor.as_ref().map(|hypervisor| hypervisor.events.as_fd());
        let poller = Poller::new(&listener, events).context("preparing to wait for clients")?;
        let mut daemon = Daemon {
            store: Xenstore::new(setup.limits),
            outside: Outside {
                links: BTreeMap::new(),
                ports: BTreeMap::new(),
                domains: BTreeMap::new(),
                hypervisor,
                log,
                successor: None,
            },
            listener,
            journal: None,
            poller,
            touched: BTreeSet::new(),
            started: Instant::now(),
            ready: BTreeSet::new(),
            waiting: BTreeSet::new(),
        };
        let has_rings = match &daemon.outside.hypervisor {
            Some(hypervisor) => {
                let ring = hypervisor.own_ring()?;
                let port = ring.port;
                let conn = daemon.store.connect_kernel(Duration::ZERO);
                let link = Link::new(Wire::Ring(ring), "d0".into());
                daemon.outside.ports.insert(port, conn);
                daemon.outside.links.insert(conn, link);
                true
            }
            None => false,
        };
        let left_behind = || has_rings.then(|| journal::left_behind(&setup.socket_dir)).flatten();
        if let Some(records) = records.or_else(left_behind) {
            daemon.succeed(&records, clients);
        }
        if has_rings {
            daemon.store.keep_journal();
            daemon.journal = Some(Journal::begin(&setup.socket_dir, &daemon.store.snapshot())?);
        }
        // The kernel waits for a first ring of the bell, and others may have rung ours meanwhile.
        for conn in daemon.outside.links.keys().copied().collect::<Vec<_>>() {
            daemon.serve(conn);
        }
        daemon.check_domains();
        Ok(daemon)
    }

    /// Takes up what the one before us has left: rings, and the sockets of `clients`.
    fn succeed(&mut self, records: &[u8], clients: impl IntoIterator<Item = UnixStream>) {
        // Numbers of transactions that the one before us is not likely to have given.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let first = (now.as_secs() as u32) << 8 | 1;
        let Restored {
            rings,
            clients: sockets,
        } = self.store.restore(records, first, &mut self.outside);
        let line = format!("taking up {} rings and {} sockets", rings.len(), sockets.len());
        self.outside.log.line(&line);
        for (domid, half_way) in rings {
            let conn = self.store.ring_of(domid);
            if let Some(link) = conn.and_then(|conn| self.outside.links.get_mut(&conn)) {
                link.take_up(half_way);
            }
        }
        for ((conn, half_way), socket) in sockets.into_iter().zip(clients) {
            let mut link = Link::new(Wire::Socket(socket), "socket".into());
            link.take_up(half_way);
            self.outside.links.insert(conn, link);
        }
    }

    /// Lets another program take our place. Comes back only if it cannot.
    fn hand_over(&mut self, successor: &Successor) -> Result<()> {
        self.note();
        // They are still to be waited for if we stay.
        let touched = self.touched.clone();
        self.note_half_way();
        self.touched = touched;
        let mut records = self.store.snapshot();
        let (mut sockets, mut rings) = (Vec::new(), Vec::new());
        for (conn, link) in &self.outside.links {
            let (input, output) = link.half_way();
            let output = [output, &self.store.waiting_answers(*conn)].concat();
            let half_way = (input.to_vec(), output);
            match (&link.wire, self.store.owner_of_ring(*conn)) {
                (Wire::Socket(socket), _) => {
                    records.extend(self.store.client_record(*conn, half_way));
                    sockets.push(socket.as_fd());
                }
                (Wire::Ring(_), Some(domid)) => rings.push((domid, half_way)),
                (Wire::Ring(_), None) => {}
            }
        }
        for (domid, (input, output)) in rings {
            write_record(&mut records, &Record::HalfWay { domid, input, output });
        }
        let program = match &successor.program {
            Some(program) => PathBuf::from(program),
            None => own_program()?,
        };
        let args = successor_args(successor, self.store.limits());
        self.outside.log.line(&format!("{} takes over", program.display()));
        handover::become_program(&program, &args, &records, self.listener.as_fd(), &sockets)
    }

    /// Notes what has changed since the last time.
    fn note(&mut self) {
        let Some(journal) = &mut self.journal else { return };
        let records = self.store.take_journal();
        let noted = match records.is_empty() {
            true => Ok(()),
            false => journal.add(&records),
        };
        if let Err(error) = noted {
            // The store goes on; only its successor would know less.
            self.outside.log.line(&format!("{error:#}"));
        }
    }

    /// Notes the messages that are half-way, before waiting.
    fn note_half_way(&mut self) {
        let mut touched = std::mem::take(&mut self.touched);
        let Some(journal) = &mut self.journal else { return };
        let mut bytes = Vec::new();
        let is_long = journal.is_long();
        if is_long {
            bytes = self.store.snapshot();
        }
        if is_long {
            touched.extend(self.outside.links.keys());
        }
        for conn in touched {
            let (Some(domid), Some(link)) = (self.store.owner_of_ring(conn), self.outside.links.get_mut(&conn)) else {
                continue;
            };
            let (input, output) = link.half_way();
            let now = (input.to_vec(), [output, &self.store.waiting_answers(conn)].concat());
            if now != link.noted || (is_long && now != Default::default()) {
                let (input, output) = now.clone();
                write_record(&mut bytes, &Record::HalfWay { domid, input, output });
                link.noted = now;
            }
        }
        let noted = match (is_long, bytes.is_empty()) {
            (true, _) => journal.shorten(&bytes),
            (false, true) => Ok(()),
            (false, false) => journal.add(&bytes),
        };
        if let Err(error) = noted {
            self.outside.log.line(&format!("{error:#}"));
        }
    }

    /// Serves for ever.
    pub fn run(mut self) -> Result<()> {
        loop {
            self.wait()?;
            for conn in std::mem::take(&mut self.ready) {
                self.serve(conn);
            }
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Waits until somebody has something for us, and notes who.
    fn wait(&mut self) -> Result<()> {
        self.note();
        for conn in self.touched.clone() {
            self.expect(conn);
        }
        self.note_half_way();
        let timeout = self.timeout();
        let ready = self.poller.wait(timeout.as_ref()).context("cannot wait for clients")?;
        let (mut has_caller, mut has_event) = (false, false);
        for ready in ready {
            match ready {
                Ready::Caller => has_caller = true,
                Ready::Event => has_event = true,
                Ready::Client(conn) => {
                    self.ready.insert(conn);
                }
            }
        }
        if has_caller {
            self.accept();
        }
        if has_event {
            self.hear_events();
        }
        let now = self.now();
        while let Some((when, conn)) = self.waiting.first().copied()
            && when <= now
        {
            self.waiting.pop_first();
            self.ready.insert(conn);
        }
        Ok(())
    }

    /// Waits for what a client may do by now. What it wants to send stays with it while it is held.
    fn expect(&mut self, conn: ConnId) {
        let Some(link) = self.outside.links.get_mut(&conn) else {
            return;
        };
        let Wire::Socket(socket) = &link.wire else { return };
        let mut now = EventFlags::empty();
        now.set(EventFlags::IN, !link.is_held);
        now.set(EventFlags::OUT, link.is_mid_send());
        match self.poller.expect(conn, socket, link.expected, now) {
            Ok(()) => link.expected = Some(now),
            Err(error) => self.end(conn, &LinkError::Io(error)),
        }
    }

    fn timeout(&self) -> Option<Timespec> {
        let left = match self.waiting.first() {
            _ if !self.ready.is_empty() => Duration::ZERO,
            Some((when, _)) => when.saturating_sub(self.now()),
            None => return None,
        };
        Timespec::try_from(left).ok()
    }

    fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                Ok((socket, _)) => {
                    if let Err(error) = socket.set_nonblocking(true) {
                        self.outside.log.line(&format!("a client is turned away: {error}"));
                        continue;
                    }
                    let conn = self.store.connect(self.now());
                    self.outside
                        .links
                        .insert(conn, Link::new(Wire::Socket(socket), "socket".into()));
                    self.ready.insert(conn);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.outside.log.line(&format!("a client cannot connect: {error}")),
            }
        }
    }

    fn hear_events(&mut self) {
        let Some(hypervisor) = &self.outside.hypervisor else {
            return;
        };
        let mut check_domains = false;
        loop {
            match hypervisor.events.next_pending() {
                Ok(None) => break,
                Ok(Some(port)) => {
                    // Before looking at the ring, so that no later event is missed.
                    if let Err(error) = hypervisor.events.unmask(port) {
                        self.outside.log.line(&format!("{port} cannot be unmasked: {error}"));
                        return;
                    }
                    check_domains |= port == hypervisor.domain_exception;
                    self.ready.extend(self.outside.ports.get(&port));
                }
                Err(error) => {
                    // Some events are lost: look at everything.
                    let line = format!("event channels: {error}; looking at every ring");
                    self.ready.extend(self.outside.ports.values());
                    check_domains = true;
                    self.outside.log.line(&line);
                    break;
                }
            }
        }
        if check_domains {
            self.check_domains();
        }
    }

    fn check_domains(&mut self) {
        let Some(hypervisor) = &self.outside.hypervisor else {
            return;
        };
        let known = hypervisor.states();
        let to_check = self.store.domains_to_check().into_iter();
        let states: Vec<_> = match &known {
            Ok(known) => to_check
                .map(|domid| (domid, known.get(&domid).copied().unwrap_or(DomainState::Gone)))
                .collect(),
            // One by one they may be told.
            Err(_) => to_check.map(|domid| (domid, hypervisor.state_of(domid))).collect(),
        };
        for (domid, state) in states {
            if state != DomainState::Alive {
                self.store.domain_is(domid, state, &mut self.outside);
            }
        }
        self.flush_dirty();
    }

    /// Answers some of a connection's requests.
    fn serve(&mut self, conn: ConnId) {
        if let Err(error) = self.try_serve(conn) {
            self.end(conn, &error);
        }
        self.flush_dirty();
        self.notify(conn);
    }

    fn try_serve(&mut self, conn: ConnId) -> Result<(), LinkError> {
        if !self.check_reconnect(conn)? {
            return Ok(());
        }
        self.flush(conn)?;
        for _ in 0..REQUESTS_PER_TURN {
            let now = self.now();
            let may_ask = self.store.may_ask(conn, now);
            let Some(link) = self.outside.links.get_mut(&conn) else {
                return Ok(());
            };
            let sends_together = link.sends_together();
            link.is_held = may_ask.is_err();
            match may_ask {
                Ok(()) => {}
                Err(Some(when)) => {
                    self.waiting.insert((when, conn));
                    return Ok(());
                }
                Err(None) => return self.flush(conn),
            }
            let Some(message) = link.next_message()? else {
                return self.flush(conn);
            };
            self.outside.log.message(&link.name, "asks", &message);
            self.store.handle(conn, &message, &mut self.outside);
            if let Some(successor) = self.outside.successor.take()
                && let Err(error) = self.hand_over(&successor)
            {
                let why = format!("live update failed: {error:#}");
                self.outside.log.line(&why);
                self.store.answer_anew(conn, message.header, &why);
            }
            if !sends_together {
                self.flush(conn)?;
            }
        }
        self.ready.insert(conn);
        self.flush(conn)
    }

    /// Gives a domain a fresh start if it asks for one. Says whether it is to be served.
    fn check_reconnect(&mut self, conn: ConnId) -> Result<bool, LinkError> {
        let Some(link) = self.outside.links.get_mut(&conn) else {
            return Ok(false);
        };
        if let Wire::Ring(ring) = &mut link.wire
            && ring.wants_reconnect()
        {
            ring.reconnect().map_err(LinkError::Io)?;
            link.clear();
            link.is_broken = false;
            self.store.reset(conn);
        }
        Ok(!link.is_broken)
    }

    fn flush(&mut self, conn: ConnId) -> Result<(), LinkError> {
        // Before anybody hears that it is done.
        self.note();
        self.touched.insert(conn);
        let Some(link) = self.outside.links.get_mut(&conn) else {
            return Ok(());
        };
        let log = &mut self.outside.log;
        let name = log.requests.then(|| link.name.clone());
        link.flush(|| {
            let frame = self.store.next_frame(conn)?;
            if let Some(name) = &name {
                let mut decoder = Decoder::default();
                decoder.push(&frame);
                if let Ok(Some(message)) = decoder.next() {
                    log.message(name, "hears", &message);
                }
            }
            Some(frame)
        })
        .map(drop)
    }

    /// Sends what the last requests left for others.
    fn flush_dirty(&mut self) {
        for conn in self.store.take_dirty() {
            let is_broken = self.outside.links.get(&conn).is_some_and(|link| link.is_broken);
            if is_broken {
                self.store.reset(conn);
                continue;
            }
            if let Err(error) = self.flush(conn) {
                self.end(conn, &error);
            }
            self.notify(conn);
        }
    }

    /// Rings the bell of a domain whose ring has changed.
    fn notify(&mut self, conn: ConnId) {
        let Some(Link {
            wire: Wire::Ring(ring),
            name,
            ..
        }) = self.outside.links.get_mut(&conn)
        else {
            return;
        };
        let Some(hypervisor) = &self.outside.hypervisor else {
            return;
        };
        if std::mem::take(&mut ring.owes_notify)
            && let Err(error) = hypervisor.events.notify(ring.port)
        {
            self.outside
                .log
                .line(&format!("{name}: {} cannot be rung: {error}", ring.port));
        }
    }

    /// Ends a client's connection; a domain's ring is silenced until it reconnects.
    fn end(&mut self, conn: ConnId, why: &LinkError) {
        let Some(link) = self.outside.links.get_mut(&conn) else {
            return;
        };
        match &mut link.wire {
            Wire::Socket(_) => {
                if !matches!(why, LinkError::Closed) {
                    let line = format!("{}: disconnected: {why}", link.name);
                    self.outside.log.line(&line);
                }
                self.outside.links.remove(&conn);
                self.store.disconnect(conn);
            }
            Wire::Ring(ring) => {
                let line = format!("{}: not listened to until it reconnects: {why}", link.name);
                // If even that fails, the domain will find out by our silence.
                let _ = ring.fail(why.ring_code());
                link.clear();
                link.is_broken = true;
                self.outside.log.line(&line);
                self.store.reset(conn);
            }
        }
    }
}

/// Our own program's file, also when another has its name by now.
fn own_program() -> Result<PathBuf> {
    let path = std::env::current_exe().context("finding our own program")?;
    let text = path.to_string_lossy();
    Ok(match text.strip_suffix(" (deleted)") {
        Some(path) => path.into(),
        None => path,
    })
}

/// The options for whoever takes our place: ours or other ones, and the limits as they are by now.
fn successor_args(successor: &Successor, limits: &Limits) -> Vec<OsString> {
    let given: Vec<OsString> = match &successor.options {
        Some(options) => options.split_whitespace().map(OsString::from).collect(),
        None => std::env::args_os().skip(1).collect(),
    };
    // What we were given by one whose place we took stands behind the option that says so.
    let own = given
        .iter()
        .position(|arg| arg == handover::OPTION)
        .unwrap_or(given.len());
    let starting = ["-N", "--no-fork", "--say-ready"];
    let is_kept = |arg: &&OsString| !starting.iter().any(|other| *arg == other);
    let mut args: Vec<OsString> = given[..own].iter().filter(is_kept).cloned().collect();
    args.extend(["--no-fork".into(), handover::OPTION.into()]);
    for (name, value) in limits.list() {
        args.extend(["--quota".into(), format!("{name}={value}").into()]);
    }
    args
}

impl World for Outside {
    fn set_log_file(&mut self, path: &str) -> Result<(), String> {
        let requests = self.log.requests;
        let log = Log::open(Some(Path::new(path)), requests);
        self.log = log.map_err(|error| format!("{path}: {error}"))?;
        Ok(())
    }

    fn check_successor(&mut self, program: &str) -> Result<(), String> {
        handover::check(program)
    }

    fn succeed(&mut self, successor: Successor) {
        self.successor = Some(successor);
    }

    fn attach(&mut self, domid: u16, conn: ConnId, gfn: u64, port: u32) -> Result<(), ErrorCode> {
        let Some(hypervisor) = &self.hypervisor else {
            return Err(ErrorCode::ENOSYS);
        };
        let real = DomId::new(domid).ok_or(ErrorCode::EINVAL)?;
        let known = self.domains.get(&domid).and_then(|conn| self.links.get_mut(conn));
        if let Some(Link {
            wire: Wire::Ring(ring), ..
        }) = known
        {
            let new = hypervisor
                .events
                .bind_interdomain(real, Port::new(port))
                .map_err(|_| ErrorCode::EINVAL)?;
            self.ports.remove(&ring.port);
            let old = std::mem::replace(&mut ring.port, new);
            self.ports.insert(new, conn);
            // The old one may be closed from the other side already.
            let _ = hypervisor.events.unbind(old);
            return Ok(());
        }
        let ring = hypervisor
            .domain_ring(real, Gfn::new(gfn), Port::new(port))
            .map_err(|error| {
                self.log.line(&format!("{real}: cannot be introduced: {error}"));
                ErrorCode::EINVAL
            })?;
        self.ports.insert(ring.port, conn);
        self.domains.insert(domid, conn);
        let port = ring.port;
        self.links.insert(conn, Link::new(Wire::Ring(ring), real.to_string()));
        // Tells the domain that somebody listens now.
        let _ = hypervisor.events.notify(port);
        Ok(())
    }

    fn detach(&mut self, domid: u16) {
        let Some(conn) = self.domains.remove(&domid) else {
            return;
        };
        let Some(Link {
            wire: Wire::Ring(ring), ..
        }) = self.links.remove(&conn)
        else {
            return;
        };
        self.ports.remove(&ring.port);
        if let Some(hypervisor) = &self.hypervisor {
            // Fails if the domain took its end along, which is as good.
            let _ = hypervisor.events.unbind(ring.port);
        }
    }

    fn exists(&mut self, domid: u16) -> bool {
        self.hypervisor
            .as_ref()
            .is_none_or(|hypervisor| matches!(hypervisor.state_of(domid), DomainState::Alive | DomainState::ShutDown))
    }

    fn set_logging(&mut self, on: bool) {
        self.log.requests = on;
    }

    fn note(&mut self, line: &str) {
        self.log.line(line);
    }
}
