//! One domain's console: ring, backlog, readers, log.

use super::hypervisor::Hypervisor;
use super::pty::Pty;
use super::readers::{Line, Reader, State};
use super::ring::Ring;
use crate::backlog::Backlog;
use anyhow::{Context, Result};
use ferroxen_words::DomId;
use ferroxen_xenstore::{Client, Store};
use rustix::fd::OwnedFd;
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Typed bytes that may wait for the guest.
const TYPED_AHEAD: usize = 1024;
/// After a look at a ring, its bell is not heard for so long. A guest prints a few bytes at a time and rings for
/// each; what comes in meanwhile is taken in one go, and none can keep us busy by ringing.
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);
/// How long a terminal's reader has for the last words.
const LAST_LOOK: Duration = Duration::from_secs(1);
/// What a domain's `limit` node may ask for.
const LIMITS: std::ops::RangeInclusive<usize> = 64 << 10..=16 << 20;

/// A console.
#[derive(Debug)]
pub struct Console {
    /// Whose it is.
    pub domid: DomId,
    /// The ring, once the domain has one.
    pub ring: Option<Ring>,
    backlog: Backlog,
    typed: VecDeque<u8>,
    /// The first is the pseudo-terminal, once there is a ring.
    pub readers: Vec<Reader>,
    log: Option<Log>,
    /// When the domain went; only last words are left since.
    ended: Option<Duration>,
    next_look: Duration,
    /// The bell has rung and is masked since.
    has_rung: bool,
}

#[derive(Debug)]
struct Log {
    path: PathBuf,
    file: File,
    with_time: bool,
    at_line_start: bool,
}

impl Console {
    /// A console of which nothing is known yet.
    pub fn new(domid: DomId) -> Console {
        Console {
            domid,
            ring: None,
            backlog: Backlog::new(1 << 20),
            typed: VecDeque::new(),
            readers: vec![],
            log: None,
            ended: None,
            next_look: Duration::ZERO,
            has_rung: false,
        }
    }

    /// The directory of its nodes.
    pub fn path(domid: DomId) -> String {
        format!("/local/domain/{}/console", domid.raw())
    }

    /// Looks at the store and takes the ring into service, once it is there and is ours to serve.
    pub fn look_up(&mut self, store: &Client, hypervisor: &Hypervisor, openings: &OwnedFd) -> Result<()> {
        let path = Console::path(self.domid);
        let text = |name: &str| store.read_opt(&format!("{path}/{name}"));
        if text("type")?.is_some_and(|kind| kind != "xenconsoled") {
            return Ok(());
        }
        let (Some(frame), Some(port)) = (text("ring-ref")?, text("port")?) else {
            return Ok(());
        };
        // The frame is a signed number for historical reasons; both may be there before they mean something.
        let (Ok(frame), Ok(port)) = (frame.parse::<i64>(), port.parse::<u32>()) else {
            return Ok(());
        };
        let source = (frame as u64, port);
        if frame < 0 || port == 0 || self.ring.as_ref().is_some_and(|ring| ring.source == source) {
            return Ok(());
        }
        if let Some(old) = self.ring.take() {
            // Fails if the domain closed its end, which is as good.
            let _ = hypervisor.events.unbind(old.port);
        }
        let ring = hypervisor.map_ring(self.domid, source.0, port).with_context(|| {
            format!(
                "{}: cannot take the console ring (frame {frame:#x}, port {port})",
                self.domid
            )
        })?;
        self.ring = Some(ring);
        if self.readers.is_empty() {
            if let Some(limit) = text("limit")?.and_then(|limit| limit.parse::<usize>().ok()) {
                self.backlog = Backlog::new(limit.clamp(*LIMITS.start(), *LIMITS.end()));
            }
            let pty = Pty::open(openings).with_context(|| format!("{}: cannot make a terminal", self.domid))?;
            store.write(&format!("{path}/tty"), &pty.path)?;
            self.readers.push(Reader::new(Line::Pty(pty)));
        }
        Ok(())
    }

    /// Says again which terminal shows it, for a store that has lost it.
    pub fn publish(&self, store: &Client) -> Result<()> {
        let home = Console::path(self.domid);
        let path = format!("{home}/tty");
        for reader in &self.readers {
            if let Line::Pty(pty) = &reader.line
                && store.exists(&home)?
                && store.read_opt(&path)?.as_deref() != Some(&pty.path)
            {
                store.write(&path, &pty.path)?;
            }
        }
        Ok(())
    }

    /// Copies what it prints to a file, named after the domain.
    pub fn log_to(&mut self, store: &Client, directory: &Path, with_time: bool) -> Result<()> {
        let name = store.read_opt(&format!("/local/domain/{}/name", self.domid.raw()))?;
        // A name is a file's name only if it stays in the directory.
        let name = name
            .filter(|name| !name.is_empty() && !name.contains('/'))
            .unwrap_or_else(|| self.domid.to_string());
        let path = directory.join(format!("guest-{name}.log"));
        let file = open_log(&path).with_context(|| format!("{}: cannot log to {}", self.domid, path.display()))?;
        self.log = Some(Log {
            path,
            file,
            with_time,
            at_line_start: true,
        });
        Ok(())
    }

    /// Goes on in a new file of the same name: the old one was moved away.
    pub fn reopen_log(&mut self) -> Result<()> {
        match &mut self.log {
            Some(log) => {
                log.file = open_log(&log.path).with_context(|| format!("cannot log to {}", log.path.display()))?;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Whether it is logged.
    pub fn has_log(&self) -> bool {
        self.log.is_some()
    }

    /// Notes that the bell rang; it stays masked until the next look.
    pub fn hear(&mut self) {
        self.has_rung = true;
    }

    /// Carries bytes both ways, as far as they go now. Says when to come again, if that must be.
    pub fn serve(&mut self, hypervisor: &Hypervisor, now: Duration) -> Result<Option<Duration>> {
        self.readers
            .iter_mut()
            .for_each(|reader| reader.check_attached(&mut self.backlog));
        self.take_typed(hypervisor)?;
        self.feed_readers();
        if now < self.next_look {
            return Ok(Some(self.next_look));
        }
        let Some(ring) = &self.ring else { return Ok(None) };
        if std::mem::take(&mut self.has_rung) {
            // Before looking, so that no later ring is missed.
            hypervisor.events.unmask(ring.port)?;
        }
        let taken = self.take_output(hypervisor)?;
        self.feed_readers();
        if taken > 0 {
            self.next_look = now + BETWEEN_LOOKS;
        }
        // A full backlog goes on when its slowest reader does.
        let has_more = self
            .ring
            .as_ref()
            .is_some_and(|ring| ring.has_output().unwrap_or(false));
        Ok((has_more && self.backlog.room() > 0).then_some(self.next_look))
    }

    /// The domain is going: takes its last words and lets go of its ring.
    pub fn end(&mut self, hypervisor: &Hypervisor, now: Duration) {
        // What cannot be read any more is lost with the domain.
        while self.take_output(hypervisor).is_ok_and(|taken| taken > 0) {}
        if let Some(ring) = self.ring.take() {
            let _ = hypervisor.events.unbind(ring.port);
        }
        self.ended = Some(now);
        self.feed_readers();
    }

    /// Whether the domain has gone.
    pub fn is_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// When to close the console of an ended domain, if everybody has got the last words. A terminal's reader
    /// gets a moment, since closing our end throws away what it has not read.
    pub fn closes_at(&self) -> Option<Duration> {
        let ended = self.ended?;
        let is_shown = |reader: &Reader| matches!(reader.line, Line::Pty(_)) && reader.is_attached();
        if !self.readers.iter().all(|reader| reader.is_done(&self.backlog)) {
            return None;
        }
        Some(if self.readers.iter().any(is_shown) {
            ended + LAST_LOOK
        } else {
            ended
        })
    }

    /// The backlog, for asking what readers wait for.
    pub fn backlog(&self) -> &Backlog {
        &self.backlog
    }

    /// Whether typed bytes can be taken.
    pub fn wants_input(&self) -> bool {
        self.typed.len() < TYPED_AHEAD && !self.is_ended()
    }

    fn take_output(&mut self, hypervisor: &Hypervisor) -> Result<usize> {
        let Some(ring) = &self.ring else { return Ok(0) };
        let bytes = ring.take_output(self.backlog.room())?;
        if !bytes.is_empty() {
            if let Some(log) = &mut self.log
                && let Err(error) = log.write(&bytes)
            {
                eprintln!("xenconsoled: {}: no longer logged: {error}", self.domid);
                self.log = None;
            }
            self.backlog.push(&bytes);
            hypervisor.events.notify(ring.port)?;
        }
        Ok(bytes.len())
    }

    fn take_typed(&mut self, hypervisor: &Hypervisor) -> Result<()> {
        let mut left = vec![];
        for (i, reader) in self.readers.iter_mut().enumerate() {
            if reader.is_attached() && self.typed.len() < TYPED_AHEAD {
                let (bytes, state) = reader.typed(&mut self.backlog, TYPED_AHEAD - self.typed.len());
                self.typed.extend(bytes);
                left.extend((state == State::Gone).then_some(i));
            }
        }
        self.remove_readers(&left);
        let Some(ring) = &self.ring else { return Ok(()) };
        let count = ring.put_input(self.typed.make_contiguous())?;
        if count > 0 {
            self.typed.drain(..count);
            hypervisor.events.notify(ring.port)?;
        }
        Ok(())
    }

    fn feed_readers(&mut self) {
        let mut left = vec![];
        for (i, reader) in self.readers.iter_mut().enumerate() {
            left.extend((reader.feed(&mut self.backlog) == State::Gone).then_some(i));
        }
        self.remove_readers(&left);
    }

    /// Forgets the clients that left; the pseudo-terminal stays for the next one.
    fn remove_readers(&mut self, left: &[usize]) {
        for i in left.iter().rev() {
            if matches!(
                self.readers.get(*i),
                Some(Reader {
                    line: Line::Socket(_),
                    ..
                })
            ) {
                self.readers.remove(*i);
            }
        }
    }
}

fn open_log(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

impl Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if !self.with_time {
            return self.file.write_all(bytes);
        }
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let stamp = format!("[{}.{:03}] ", now.as_secs(), now.subsec_millis());
        let mut out = Vec::with_capacity(bytes.len() + stamp.len());
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.at_line_start {
                out.extend_from_slice(stamp.as_bytes());
            }
            out.extend_from_slice(line);
            self.at_line_start = line.ends_with(b"\n");
        }
        self.file.write_all(&out)
    }
}
