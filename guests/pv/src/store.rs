//! Xenstore: one request at a time over the ring that the toolstack shares with a domU (public/io/xs_wire.h).

use core::sync::atomic::Ordering;

use ferroxen_abi::io::xenstore as ring;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::event;
use crate::memory::{self, Page};
use crate::start;

/// `XS_*`
#[expect(missing_docs, reason = "each is the header's name")]
pub mod kind {
    pub const DIRECTORY: u32 = 1;
    pub const READ: u32 = 2;
    pub const WRITE: u32 = 11;
    pub const RM: u32 = 13;
    pub const ERROR: u32 = 16;
}

/// Longest answer (`XENSTORE_PAYLOAD_MAX`).
const PAYLOAD: usize = 4096;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    kind: u32,
    request: u32,
    transaction: u32,
    length: u32,
}

/// The connection.
pub struct Store {
    page: Page,
    port: u32,
    answer: [u8; PAYLOAD],
}

impl Store {
    /// Maps the ring; Domain 0 of a bare host has none.
    pub fn open() -> Option<Self> {
        let info = start::info();
        if start::is_dom0() || info.store_mfn == 0 {
            return None;
        }
        let page = Page::new();
        memory::map(page.address(), info.store_mfn, memory::ORDINARY)
            .ok()
            .ok()?;
        event::set_mask(info.store_evtchn, false);
        Some(Self {
            page,
            port: info.store_evtchn,
            answer: [0; PAYLOAD],
        })
    }

    /// Sends a request of several parts, and returns what came back; an error by its name (`ENOENT`).
    pub fn request(&mut self, kind: u32, parts: &[&[u8]]) -> Result<&[u8], &[u8]> {
        let length = parts.iter().map(|part| part.len() as u32).sum();
        self.send(
            Header {
                kind,
                request: 0,
                transaction: 0,
                length,
            }
            .as_bytes(),
        );
        parts.iter().for_each(|part| self.send(part));
        let mut header = [0; 16];
        self.receive(&mut header);
        let Ok(header) = Header::read_from_bytes(&header) else {
            return Err(b"");
        };
        let mut answer = self.answer;
        let length = (header.length as usize).min(PAYLOAD);
        self.receive(&mut answer[..length]);
        self.answer = answer;
        let said = &self.answer[..length];
        if header.kind == kind::ERROR {
            Err(said)
        } else {
            Ok(said)
        }
    }

    /// Reads the value at `path`.
    pub fn read(&mut self, path: &str) -> Result<&[u8], &[u8]> {
        self.request(kind::READ, &[path.as_bytes(), b"\0"])
    }

    /// Writes `value` at `path`.
    pub fn write(&mut self, path: &str, value: &[u8]) -> Result<(), &[u8]> {
        self.request(kind::WRITE, &[path.as_bytes(), b"\0", value]).map(drop)
    }

    /// Asks for one thing after the other, as fast as the other end takes it, and looks at no answer.
    ///
    /// `requests` are whole messages. The ring is never left with room in it while the other end is awake.
    pub fn flood(&self, requests: &[&[u8]]) -> ! {
        let consumed = self.page.atomic32(ring::RSP_CONS);
        let produced = self.page.atomic32(ring::RSP_PROD);
        loop {
            for request in requests {
                for byte in *request {
                    // Room for answers is what lets the other end go on.
                    self.put(*byte, || {
                        consumed.store(produced.load(Ordering::SeqCst), Ordering::SeqCst)
                    });
                }
            }
            event::send(self.port);
        }
    }

    /// A message as it goes over the ring, for [`Store::flood`]; returns its length.
    pub fn message(kind: u32, parts: &[&[u8]], room: &mut [u8]) -> Option<usize> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let header = Header {
            kind,
            request: 0,
            transaction: 0,
            length: length as u32,
        };
        let all = core::iter::once(header.as_bytes()).chain(parts.iter().copied());
        let mut used = 0;
        for part in all {
            room.get_mut(used..used + part.len())?.copy_from_slice(part);
            used += part.len();
        }
        Some(used)
    }

    fn send(&self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.put(*byte, || {}));
        event::send(self.port);
    }

    /// Adds a byte to the requests. Without room, does `meanwhile` and sleeps until there is.
    fn put(&self, byte: u8, meanwhile: impl Fn()) {
        let (produced, consumed) = (self.page.atomic32(ring::REQ_PROD), self.page.atomic32(ring::REQ_CONS));
        let next = produced.load(Ordering::SeqCst);
        while next.wrapping_sub(consumed.load(Ordering::SeqCst)) >= ring::RING_SIZE {
            meanwhile();
            self.wait();
        }
        self.page.set_byte(ring::REQ + (next % ring::RING_SIZE) as usize, byte);
        produced.store(next.wrapping_add(1), Ordering::SeqCst);
    }

    fn receive(&self, bytes: &mut [u8]) {
        let (produced, consumed) = (self.page.atomic32(ring::RSP_PROD), self.page.atomic32(ring::RSP_CONS));
        for byte in bytes {
            let next = consumed.load(Ordering::SeqCst);
            while produced.load(Ordering::SeqCst) == next {
                self.wait();
            }
            let offset = ring::RSP + (next % ring::RING_SIZE) as usize;
            *byte = self.page.atomic8(offset).load(Ordering::SeqCst);
            consumed.store(next.wrapping_add(1), Ordering::SeqCst);
        }
    }

    /// Sleeps until the other end has done something.
    fn wait(&self) {
        event::send(self.port);
        event::wait(self.port);
    }
}
