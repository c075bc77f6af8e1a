//! The console: `console_io` as Domain 0, a shared ring otherwise (public/io/console.h).
//!
//! A line is written in one go, so that the hypervisor's own lines do not fall into the middle of it. A guest may close
//! its ring's port, or all of them: the next line connects it again, so that nothing said is lost.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use ferroxen_abi::event_channel::status;
use ferroxen_abi::io::console as ring;

use crate::event;
use crate::hypercall::{self, number};
use crate::memory::{self, Page};
use crate::start;

/// Longer lines come out in pieces.
const LINE: usize = 512;

/// Prints a line.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => { $crate::console::print(::core::format_args!($($argument)*)) };
}

/// Prints `line` and a line feed. See [`println!`].
pub fn print(line: fmt::Arguments<'_>) {
    let mut buffer = Buffer {
        bytes: [0; LINE],
        used: 0,
    };
    // `Buffer` takes everything.
    let _ = buffer.write_fmt(line);
    let _ = buffer.write_char('\n');
    buffer.flush();
}

struct Buffer {
    bytes: [u8; LINE],
    used: usize,
}

impl Buffer {
    fn flush(&mut self) {
        put(&mut self.bytes[..self.used]);
        self.used = 0;
    }
}

impl Write for Buffer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if self.used == LINE {
                self.flush();
            }
            self.bytes[self.used] = byte;
            self.used += 1;
        }
        Ok(())
    }
}

/// One speaker at a time: two vcpus may want to.
static SPEAKING: AtomicBool = AtomicBool::new(false);

fn put(bytes: &mut [u8]) {
    while SPEAKING.swap(true, Ordering::Acquire) {
        core::hint::spin_loop();
    }
    if start::is_dom0() {
        const WRITE: u64 = 0;
        let length = bytes.len() as u64;
        hypercall::call(number::CONSOLE_IO, [WRITE, length, hypercall::address(bytes)]);
    } else {
        Ring::get().put(bytes);
    }
    SPEAKING.store(false, Ordering::Release);
}

/// Waits until everything printed was read, if the other end reads at all.
pub fn drain() {
    if start::is_dom0() {
        return;
    }
    let ring = Ring::get();
    ring.wait_while(|| ring.word(ring::OUT_CONS) != ring.word(ring::OUT_PROD));
}

/// Our port of the ring, and the far end's; the far domain is Domain 0.
static PORT: AtomicU32 = AtomicU32::new(0);
static FAR: AtomicU32 = AtomicU32::new(0);

/// Notes where the ring's port leads, before anybody closes it. `start` calls this.
pub(crate) fn note_port() {
    if start::is_dom0() {
        return;
    }
    let port = start::info().console_evtchn;
    PORT.store(port, Ordering::SeqCst);
    if let Ok(status) = event::status(event::SELF, port) {
        FAR.store(status.u[1], Ordering::SeqCst);
    }
    // What is pending already tells nobody again: whoever polls is not woken because somebody read what we said.
    event::set_pending(port);
}

/// Rings the far end, by a new port if ours was closed meanwhile.
fn ring_far_end() {
    let (port, far) = (PORT.load(Ordering::SeqCst), FAR.load(Ordering::SeqCst));
    let is_ours =
        event::status(event::SELF, port).is_ok_and(|now| now.status == status::INTERDOMAIN && now.u == [0, far]);
    if is_ours {
        event::send(port);
    } else if let Ok(port) = event::bind_interdomain(0, far) {
        event::set_mask(port, true);
        PORT.store(port, Ordering::SeqCst);
        event::send(port);
    }
}

/// The ring that the toolstack shares with us; mapped when first used.
struct Ring(Page);

impl Ring {
    fn get() -> Self {
        static WHERE: AtomicU64 = AtomicU64::new(0);
        if WHERE.load(Ordering::SeqCst) == 0 {
            let page = Page::new();
            memory::map(page.address(), start::info().console, memory::ORDINARY);
            WHERE.store(page.address(), Ordering::SeqCst);
        }
        Self(Page::at(WHERE.load(Ordering::SeqCst)))
    }

    fn word(&self, offset: usize) -> u32 {
        self.0.atomic32(offset).load(Ordering::SeqCst)
    }

    fn put(&self, bytes: &[u8]) {
        let produced: &AtomicU32 = self.0.atomic32(ring::OUT_PROD);
        for byte in bytes {
            let next = produced.load(Ordering::SeqCst);
            self.wait_while(|| next.wrapping_sub(self.word(ring::OUT_CONS)) >= ring::OUT_SIZE);
            self.0.set_byte(ring::OUT + (next % ring::OUT_SIZE) as usize, *byte);
            produced.store(next.wrapping_add(1), Ordering::SeqCst);
        }
        ring_far_end();
    }

    /// Waits for the other end, but not for ever: it may have gone.
    fn wait_while(&self, busy: impl Fn() -> bool) {
        const PATIENCE: u32 = 1_000_000;
        for _ in 0..PATIENCE {
            if !busy() {
                return;
            }
            ring_far_end();
            hypercall::call(number::SCHED_OP, [ferroxen_abi::sched::schedop::YIELD]);
        }
    }
}
