//! The end: a report that a person can use, and a machine that stands still or starts again.

use super::frame::GuestFrame;
use super::{cpu, frame, percpu, symbols, traps};
use crate::x86_64::layout::CPU_BLOCK;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

static STAY_DOWN: AtomicBool = AtomicBool::new(false);
static NMI_IS_FATAL: AtomicBool = AtomicBool::new(false);
/// The CPU that reports, plus 1; 0 while all is well.
static REPORTER: AtomicU32 = AtomicU32::new(0);

/// Whether to stand still after a report instead of starting again (option `noreboot`).
pub fn set_stay_down(stay: bool) {
    STAY_DOWN.store(stay, Ordering::Relaxed);
}

/// Whether an NMI from outside ends the host with a report (option `nmi=fatal`); else it is passed over.
pub fn set_nmi_is_fatal(is_fatal: bool) {
    NMI_IS_FATAL.store(is_fatal, Ordering::Relaxed);
}

/// Reports a panic: the message, registers, a symbolised back-trace; stops the other CPUs; ends.
pub fn panicked(message: &dyn fmt::Display) -> ! {
    begin();
    let mut out = Out;
    let _ = writeln!(
        out,
        "\nFerroxen has found itself broken, and stops.\n{}: {message}",
        cpu::cpu_id()
    );
    show_control();
    back_trace(frame_pointer());
    show_guest();
    end()
}

/// Reports an exception that the hypervisor ran into, and ends.
pub(super) fn trapped(host: &GuestFrame, fault_address: u64) -> ! {
    begin();
    let mut out = Out;
    let vector = host.vector as u8;
    let _ = writeln!(
        out,
        "\nFerroxen has found itself broken, and stops.\n{}: {} (vector {vector}, error code {:#x})",
        cpu::cpu_id(),
        traps::name(vector),
        host.error_code
    );
    if traps::has_address(vector) {
        let _ = writeln!(out, "address {fault_address:#018x}");
    }
    show_registers(host);
    show_control();
    show_place(host.rip);
    back_trace(host.rbp);
    show_guest();
    end()
}

/// Takes the right to report; a CPU that comes second stands still, and a report within a report is cut short.
fn begin() {
    let this = percpu::cpu_number() as u32 + 1;
    match REPORTER.compare_exchange(0, this, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {
            super::smp::stop_others();
            if super::serial::base().is_none() {
                super::serial::init(super::serial::Settings::COM1);
            }
        }
        Err(first) if first == this => {
            let _ = Out.write_str("\n(and again, while reporting)\n");
            end()
        }
        Err(_) => stand_still(),
    }
}

/// For NMI: stands still if another CPU reports, and reports an NMI of the machine's if that is wished.
pub(super) fn on_nmi(frame: &GuestFrame) {
    let reporter = REPORTER.load(Ordering::Acquire);
    if reporter != 0 && reporter != percpu::cpu_number() as u32 + 1 {
        stand_still()
    }
    if reporter == 0 && NMI_IS_FATAL.load(Ordering::Relaxed) {
        trapped(frame, 0)
    }
}

fn stand_still() -> ! {
    loop {
        // SAFETY: interrupts are off; nothing is left to do.
        unsafe { core::arch::asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

fn end() -> ! {
    if STAY_DOWN.load(Ordering::Relaxed) {
        let _ = Out.write_str("Standing still, as told by noreboot.\n");
        stand_still()
    }
    let _ = Out.write_str("Starting again.\n");
    super::power::reboot()
}

fn show_registers(r: &GuestFrame) {
    let mut out = Out;
    let _ = writeln!(
        out,
        "rip {:04x}:{:016x}  rsp {:04x}:{:016x}  rflags {:08x}",
        r.cs, r.rip, r.ss, r.rsp, r.rflags
    );
    let _ = writeln!(
        out,
        "rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}",
        r.rax, r.rbx, r.rcx, r.rdx
    );
    let _ = writeln!(
        out,
        "rsi {:016x} rdi {:016x} rbp {:016x} r8  {:016x}",
        r.rsi, r.rdi, r.rbp, r.r8
    );
    let _ = writeln!(
        out,
        "r9  {:016x} r10 {:016x} r11 {:016x} r12 {:016x}",
        r.r9, r.r10, r.r11, r.r12
    );
    let _ = writeln!(out, "r13 {:016x} r14 {:016x} r15 {:016x}", r.r13, r.r14, r.r15);
}

/// What no frame holds: this CPU's stack pointer here and its control registers.
fn show_control() {
    let (rsp, cr0, cr2, cr3, cr4): (u64, u64, u64, u64, u64);
    // SAFETY: copies registers.
    unsafe {
        core::arch::asm!(
            "mov {}, rsp", "mov {}, cr0", "mov {}, cr2", "mov {}, cr3", "mov {}, cr4",
            out(reg) rsp, out(reg) cr0, out(reg) cr2, out(reg) cr3, out(reg) cr4,
            options(nomem, nostack, preserves_flags),
        );
    }
    let _ = writeln!(
        Out,
        "here rsp {rsp:016x}  cr0 {cr0:08x} cr2 {cr2:016x} cr3 {cr3:016x} cr4 {cr4:08x}"
    );
}

/// The guest that this CPU last left: its registers still stand at their place.
fn show_guest() {
    // SAFETY: always mapped; read once, as plain numbers.
    let guest = unsafe { frame::place().read_volatile() };
    if guest.cs & 3 == 3 {
        let _ = writeln!(Out, "The guest that was left last on this CPU:");
        show_registers(&guest);
    }
}

fn show_place(address: u64) {
    let mut out = Out;
    match symbols::find(address) {
        Some((name, offset)) => {
            let _ = writeln!(out, "  {address:016x} {} +{offset:#x}", name.as_str());
        }
        None => {
            let _ = writeln!(out, "  {address:016x}");
        }
    }
}

fn frame_pointer() -> u64 {
    let pointer: u64;
    // SAFETY: copies a register.
    unsafe { core::arch::asm!("mov {}, rbp", out(reg) pointer, options(nomem, nostack, preserves_flags)) };
    pointer
}

/// Follows the frame pointers, as long as they climb within this CPU's block.
fn back_trace(mut pointer: u64) {
    let _ = writeln!(Out, "Called from:");
    let block = percpu::block();
    for _ in 0..40 {
        if pointer < block || pointer > block + CPU_BLOCK - 16 || !pointer.is_multiple_of(8) {
            break;
        }
        // SAFETY: within this CPU's block; its one page without memory lies below the main stack, and the
        // exceptions' stacks below that hold no pointers to it.
        let [next, back] = unsafe { (pointer as *const [u64; 2]).read_volatile() };
        if back == 0 {
            break;
        }
        show_place(back);
        if next <= pointer {
            break;
        }
        pointer = next;
    }
}

/// Where reports go: the first serial port, written to directly, and the screen.
struct Out;

impl Write for Out {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        super::serial::write_regardless(text.as_bytes());
        super::vga::write_regardless(text.as_bytes());
        Ok(())
    }
}
