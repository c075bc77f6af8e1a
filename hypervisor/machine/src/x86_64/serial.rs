//! A 16550 serial port, driven by its interrupt in both directions.
//!
//! What is written waits in a buffer when the transmitter is busy, so that a slow line holds nobody up: at 115200 baud
//! a line of text takes 7 ms. Before interrupts work, with `sync_console`, and for the last words of a host that
//! stops, the writer waits for the line instead.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, Ordering};

use spin::Mutex;

use super::port::{inb, lock, outb};
use crate::uart::divisor;
pub use crate::uart::{Parity, Settings};

const DATA: u16 = 0;
const INTERRUPT_ENABLE: u16 = 1;
const INTERRUPT_CAUSE: u16 = 2;
const FIFO_CONTROL: u16 = 2;
const LINE_CONTROL: u16 = 3;
const MODEM_CONTROL: u16 = 4;
const LINE_STATUS: u16 = 5;
const SCRATCH: u16 = 7;

const DATA_READY: u8 = 1 << 0;
const TRANSMIT_EMPTY: u8 = 1 << 5;
const DIVISOR_ACCESS: u8 = 1 << 7;
const RECEIVE_INTERRUPT: u8 = 1 << 0;
const TRANSMIT_INTERRUPT: u8 = 1 << 1;
const NO_CAUSE: u8 = 1 << 0;
/// Enable, clear both directions, interrupt at 14 bytes (or soon after the last).
const FIFO_ON: u8 = 0b1100_0111;
/// The FIFO that every 16550A has.
const FIFO_BYTES: usize = 16;
/// Data terminal ready, request to send, and the board's interrupt gate.
const MODEM_READY: u8 = 0b1011;
/// At 9600 baud sixteen bytes take 17 ms; each poll is about a microsecond. A port that takes longer is stuck.
const TRANSMIT_POLLS: u32 = 200_000;

/// First port of the console's UART; 0 while there is none.
static BASE: AtomicU16 = AtomicU16::new(0);
/// Its ISA interrupt; 0 for none.
static IRQ: AtomicU8 = AtomicU8::new(0);
/// How many bytes the transmitter takes at a time.
static BURST: AtomicU32 = AtomicU32::new(1);
/// Whether the interrupt sends what waits; else the writer waits for the line.
static IS_BUFFERED: AtomicBool = AtomicBool::new(false);
static WAITING: Mutex<Waiting> = Mutex::new(Waiting::new());

const WAITING_BYTES: usize = 16 * 1024;

/// Bytes that wait for the line, in a circle.
struct Waiting {
    bytes: [u8; WAITING_BYTES],
    first: usize,
    count: usize,
}

impl Waiting {
    const fn new() -> Waiting {
        Waiting {
            bytes: [0; WAITING_BYTES],
            first: 0,
            count: 0,
        }
    }

    fn push(&mut self, byte: u8) {
        self.bytes[(self.first + self.count) % WAITING_BYTES] = byte;
        self.count += 1;
    }

    fn pop(&mut self) -> Option<u8> {
        let byte = self.bytes[self.first];
        self.count = self.count.checked_sub(1)?;
        self.first = (self.first + 1) % WAITING_BYTES;
        Some(byte)
    }
}

/// Takes a port into use as the console. `false` if no UART answers there; the console is then as before.
pub fn init(settings: Settings) -> bool {
    let base = settings.base;
    if base == 0 || base > 0xfff8 || !answers(base) {
        return false;
    }
    // SAFETY: a UART has answered at `base`; programming it moves no memory.
    unsafe {
        outb(base + INTERRUPT_ENABLE, 0);
        outb(base + FIFO_CONTROL, FIFO_ON);
        let has_fifo = inb(base + INTERRUPT_CAUSE) & 0xc0 == 0xc0;
        BURST.store(if has_fifo { FIFO_BYTES as u32 } else { 1 }, Ordering::Relaxed);
        if let Some(divisor) = settings.baud.and_then(divisor) {
            let [low, high] = divisor.to_le_bytes();
            outb(base + LINE_CONTROL, settings.line_control() | DIVISOR_ACCESS);
            outb(base + DATA, low);
            outb(base + INTERRUPT_ENABLE, high);
        }
        outb(base + LINE_CONTROL, settings.line_control());
        outb(base + MODEM_CONTROL, MODEM_READY);
    }
    IRQ.store(settings.irq, Ordering::Relaxed);
    BASE.store(base, Ordering::Release);
    true
}

/// The scratch register keeps what is written; nothing else at a port does that twice.
fn answers(base: u16) -> bool {
    [0x5a, 0xa5].into_iter().all(|pattern| {
        // SAFETY: writes a register without a function.
        unsafe {
            outb(base + SCRATCH, pattern);
            inb(base + SCRATCH) == pattern
        }
    })
}

/// The console's I/O ports, eight from this one on; `None` while there is no console.
pub fn base() -> Option<u16> {
    Some(BASE.load(Ordering::Acquire)).filter(|base| *base != 0)
}

/// The console's ISA interrupt; `None` while there is no console, or it is to be polled.
pub fn irq() -> Option<u8> {
    base()?;
    Some(IRQ.load(Ordering::Relaxed)).filter(|irq| *irq != 0)
}

/// Writes bytes as they are, in order. Waits for the line only if the interrupt does not send, or the buffer is full;
/// not for ever: bytes that a stuck port will not take are dropped.
pub fn write(bytes: &[u8]) {
    let Some(base) = base() else { return };
    let mut waiting = lock(&WAITING);
    if !IS_BUFFERED.load(Ordering::Relaxed) {
        return send_now(base, bytes);
    }
    for byte in bytes {
        if waiting.count == WAITING_BYTES {
            feed(base, &mut waiting, wait_for_transmitter(base));
        }
        if waiting.count < WAITING_BYTES {
            waiting.push(*byte);
        }
    }
    if transmitter_is_empty(base) {
        feed(base, &mut waiting, true);
    }
    listen(base, &waiting);
}

/// Writes without asking who else is writing: for the last words of a host that stops.
pub fn write_regardless(bytes: &[u8]) {
    let Some(base) = base() else { return };
    if IS_BUFFERED.swap(false, Ordering::Relaxed)
        && let Some(mut waiting) = WAITING.try_lock()
    {
        while waiting.count != 0 {
            feed(base, &mut waiting, wait_for_transmitter(base));
        }
    }
    send_now(base, bytes);
}

/// Fills the transmitter, which has just become empty, with what waits. A port that is stuck loses a FIFO's worth.
fn feed(base: u16, waiting: &mut Waiting, is_ready: bool) {
    for _ in 0..BURST.load(Ordering::Relaxed).max(1) {
        let Some(byte) = waiting.pop() else { return };
        if is_ready {
            // SAFETY: the transmitter has room for a burst.
            unsafe { outb(base + DATA, byte) };
        }
    }
}

/// Asks for an interrupt when the transmitter is empty, as long as something waits for it.
fn listen(base: u16, waiting: &Waiting) {
    let transmit = if waiting.count == 0 { 0 } else { TRANSMIT_INTERRUPT };
    // SAFETY: programs our own port.
    unsafe { outb(base + INTERRUPT_ENABLE, RECEIVE_INTERRUPT | transmit) };
}

fn send_now(base: u16, bytes: &[u8]) {
    let burst = BURST.load(Ordering::Relaxed) as usize;
    for chunk in bytes.chunks(burst.max(1)) {
        if !wait_for_transmitter(base) {
            return;
        }
        for byte in chunk {
            // SAFETY: the transmitter has room for a burst.
            unsafe { outb(base + DATA, *byte) };
        }
    }
}

fn wait_for_transmitter(base: u16) -> bool {
    (0..TRANSMIT_POLLS).any(|_| transmitter_is_empty(base))
}

fn transmitter_is_empty(base: u16) -> bool {
    // SAFETY: reading the line status clears error flags, which nobody reads.
    let status = unsafe { inb(base + LINE_STATUS) };
    status & TRANSMIT_EMPTY != 0
}

/// Takes a typed byte, if there is one.
pub fn read() -> Option<u8> {
    let base = base()?;
    // SAFETY: reading status and data of our own port.
    unsafe {
        let status = inb(base + LINE_STATUS);
        (status != 0xff && status & DATA_READY != 0).then(|| inb(base + DATA))
    }
}

/// From now on the port interrupts when something was typed, and unless `is_synchronous` also to send what waits.
pub fn use_interrupt(is_synchronous: bool) {
    let Some(base) = base() else { return };
    let waiting = lock(&WAITING);
    IS_BUFFERED.store(!is_synchronous, Ordering::Relaxed);
    listen(base, &waiting);
}

/// Sends more of what waits, if the transmitter is empty. Called when the port has interrupted.
pub fn send_waiting() {
    let Some(base) = base() else { return };
    let mut waiting = lock(&WAITING);
    if waiting.count != 0 && transmitter_is_empty(base) {
        feed(base, &mut waiting, true);
        listen(base, &waiting);
    }
}

/// Tells whether the port asks for attention; also acknowledges the causes that reading acknowledges.
pub fn asks_for_attention() -> bool {
    // SAFETY: reads our own port's cause register.
    base().is_some_and(|base| unsafe { inb(base + INTERRUPT_CAUSE) } & NO_CAUSE == 0)
}
