//! Stopping, starting again, and going to sleep for good.

use core::arch::asm;
use core::sync::atomic::{AtomicU8, Ordering};

use ferroxen_words::Maddr;
use spin::Once;

use super::paging::{self, Mmio};
use super::port::{self, PciFunction, Width, inb, outb, outw};
use super::{apic, cpu, ioapic};

/// A register wherever ACPI puts it ("generic address structure").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Register {
    /// An I/O port.
    Port(u16),
    /// A byte of memory.
    Memory(Maddr),
    /// A byte of a function's configuration space, on bus 0.
    Pci {
        /// Device and function.
        function: PciFunction,
        /// Where in its space.
        offset: u8,
    },
}

/// What the FADT says about power.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Firmware {
    /// Reset register and the value that resets.
    pub reset: Option<(Register, u8)>,
    /// First power management control register: an I/O port.
    pub pm1a_control: Option<u16>,
    /// Second one, on boards that have it.
    pub pm1b_control: Option<u16>,
    /// Status registers, in which waking is acknowledged.
    pub pm1a_status: Option<u16>,
    /// Second status register.
    pub pm1b_status: Option<u16>,
}

/// Bits of a power management control register that choose the kind of sleep.
pub const SLEEP_TYPE: u16 = 0b111 << 10;
/// The bit that goes to sleep.
pub const SLEEP_ENABLE: u16 = 1 << 13;
const WAKE_STATUS: u16 = 1 << 15;

/// How long the machine may take to go off, in milliseconds.
const SWITCH_OFF_MS: u32 = 3000;

static FIRMWARE: Once<Firmware> = Once::new();
/// The reset register, where it is one in memory.
static RESET_IN_MEMORY: Once<Mmio> = Once::new();

/// Learns what firmware offers. The first call counts.
pub fn init(firmware: Firmware) {
    FIRMWARE.call_once(|| firmware);
    if let Some((Register::Memory(address), _)) = firmware.reset {
        RESET_IN_MEMORY.call_once(|| paging::map_mmio(address.mfn().maddr(), 1));
    }
}

/// Why the machine does not sleep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StaysAwake {
    /// Firmware describes no control register.
    NoRegister,
    /// The registers were written, and nothing happened.
    Ignored,
}

/// Writes the values that Domain 0's ACPI code worked out to the control registers, sleep bit last.
///
/// Does not return if the machine goes off. Every line is masked first, so this is for good.
pub fn sleep(pm1a: u16, pm1b: u16) -> StaysAwake {
    let Some(firmware) = FIRMWARE.get() else {
        return StaysAwake::NoRegister;
    };
    let Some(pm1a_port) = firmware.pm1a_control else {
        return StaysAwake::NoRegister;
    };
    ioapic::mask_all();
    // SAFETY: clears the wake status and writes the control registers that the FADT names; what follows is the end.
    unsafe {
        for status in [firmware.pm1a_status, firmware.pm1b_status].into_iter().flatten() {
            outw(status, WAKE_STATUS);
        }
        for enable in [0, SLEEP_ENABLE] {
            outw(pm1a_port, (pm1a & !SLEEP_ENABLE) | enable);
            if let Some(pm1b_port) = firmware.pm1b_control {
                outw(pm1b_port, (pm1b & !SLEEP_ENABLE) | enable);
            }
        }
    }
    // The chipset takes its time, an emulated one most of all.
    for _ in 0..SWITCH_OFF_MS {
        super::time::delay_us(1000);
    }
    StaysAwake::Ignored
}

/// A way to start the machine again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Reset {
    /// The register that the FADT names.
    Firmware,
    /// The keyboard controller.
    Keyboard,
    /// The chipset's reset control register, at port 0xcf9.
    Chipset,
    /// A fault that nothing can handle.
    TripleFault,
}

static FIRST_RESET: AtomicU8 = AtomicU8::new(Reset::Firmware as u8);

/// Says which way to try first (option `reboot=`).
pub fn prefer_reset(way: Reset) {
    FIRST_RESET.store(way as u8, Ordering::Relaxed);
}

/// Starts the machine again: the preferred way, then all others, of which the last cannot fail.
pub fn reboot() -> ! {
    say_what_waits();
    const ALL: [Reset; 4] = [Reset::Firmware, Reset::Keyboard, Reset::Chipset, Reset::TripleFault];
    let first = FIRST_RESET.load(Ordering::Relaxed);
    for way in ALL.into_iter().filter(|way| *way as u8 == first).chain(ALL) {
        try_reset(way);
    }
    halt()
}

fn try_reset(way: Reset) {
    match way {
        Reset::Firmware => {
            if let Some((register, value)) = FIRMWARE.get().and_then(|firmware| firmware.reset) {
                write_register(register, value);
                settle();
            }
        }
        Reset::Keyboard => {
            for _ in 0..10 {
                // SAFETY: the controller's "pulse output" command drops the reset line, where it is wired.
                unsafe {
                    for _ in 0..10_000 {
                        if inb(0x64) & 0x02 == 0 {
                            break;
                        }
                    }
                    outb(0x64, 0xfe);
                }
                settle();
            }
        }
        Reset::Chipset => {
            // SAFETY: reset control register: system reset, then full reset by the rising edge.
            unsafe {
                outb(0xcf9, 0x02);
                outb(0xcf9, 0x06);
            }
            settle();
        }
        Reset::TripleFault => triple_fault(),
    }
}

/// Waits as long as ten thousand port reads take, some ten milliseconds: a reset needs a moment.
fn settle() {
    for _ in 0..10_000 {
        // SAFETY: reads the diagnostics port, which does nothing.
        unsafe { inb(0x80) };
    }
}

fn write_register(register: Register, value: u8) {
    match register {
        // SAFETY: the FADT's reset port; nothing runs after it.
        Register::Port(port) => unsafe { outb(port, value) },
        Register::Memory(address) => {
            if let Some(page) = RESET_IN_MEMORY.get() {
                page.write8(address.offset(), value);
            }
        }
        Register::Pci { function, offset } => {
            let _ = port::pci_write(function, offset, Width::Byte, u32::from(value));
        }
    }
}

fn triple_fault() -> ! {
    #[repr(C, packed)]
    struct Empty {
        limit: u16,
        base: u64,
    }
    let nothing = Empty { limit: 0, base: 0 };
    // SAFETY: with no interrupt table the breakpoint cannot be delivered, and neither can the faults that follow:
    // the processor shuts down and the board resets it.
    unsafe { asm!("lidt [{}]", "int3", in(reg) &raw const nothing, options(nostack)) };
    halt()
}

/// Sends what was said and still waits for the line: the interrupt that would send it comes no more.
fn say_what_waits() {
    super::serial::write_regardless(&[]);
}

/// Stops this CPU for good.
pub fn halt() -> ! {
    say_what_waits();
    if apic::is_set_up() {
        apic::timer_disarm();
    }
    loop {
        // SAFETY: interrupts are off, so only a non-maskable one wakes this CPU, and it halts again.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
        cpu::relax();
    }
}
