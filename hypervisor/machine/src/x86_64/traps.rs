//! Exceptions and interrupts that are ours to handle: those that meet the hypervisor itself, those with a
//! stack of their own, and the vectors by which CPUs call each other.

use super::frame::{GuestFrame, ReturnFault, kernel_symbols};
use super::{cpu, debugregs, fixups, frame, report, segments, smp};
use crate::interrupts::vectors;
use core::arch::asm;
use core::ptr;

const DEBUG: u8 = 1;
const NMI: u8 = 2;
const PAGE_FAULT: u8 = 14;

const TRAP_FLAG: u64 = 1 << 8;

/// An external interrupt took this CPU out of a guest.
pub(super) extern "C" fn interrupt_from_guest(frame: &mut GuestFrame) {
    if !is_ours(frame.vector as u8) {
        kernel_symbols::interrupt(frame);
    }
}

/// Handles the vectors by which CPUs call each other; `false` for those that the kernel is to see.
#[inline]
fn is_ours(vector: u8) -> bool {
    if vector == vectors::REQUEST.number() {
        super::apic::eoi();
        smp::service_requests();
        return true;
    }
    if vector == vectors::POKE.number() {
        super::apic::eoi();
    }
    vector == vectors::SPURIOUS.number()
}

/// An exception in the hypervisor, or an interrupt while it waits for one.
///
/// `rbp` still is the interrupted code's, so that a back-trace reaches it.
pub(super) extern "C" fn from_hypervisor(host: &mut GuestFrame) {
    let vector = host.vector as u8;
    if host.vector & frame::entry_kind::INTERRUPT != 0 {
        if !is_ours(vector) {
            kernel_symbols::idle_interrupt(vector);
        }
        return;
    }
    if vector == PAGE_FAULT
        && let Some(offset) = segments::ldt_window_offset(cpu::fault_address())
        && kernel_symbols::ldt_fault(offset)
    {
        // The page is there now: IRET, or a load of a selector, looks again.
        return;
    }
    if host.rip == frame::iret_address() {
        return_failed(host);
    }
    if let Some(go_on) = fixups::find(host.rip) {
        // What the guest's tables allow is not refused because they are mirrored.
        if vector == PAGE_FAULT && kernel_symbols::guest_fault(cpu::fault_address(), host.error_code) {
            return;
        }
        host.rip = go_on;
        return;
    }
    report::trapped(host, cpu::fault_address().raw());
}

/// IRET to a guest faulted: the guest's registers are back in the CPU, and so in `host`; only what IRET
/// would have loaded is still in the guest's frame. Puts the frame together again and lets the kernel decide.
fn return_failed(host: &GuestFrame) -> ! {
    let fault = ReturnFault {
        vector: host.vector as u8,
        error_code: host.error_code,
    };
    let place = frame::place();
    // SAFETY: the guest's frame stands where it always does, and nothing else refers to it. The fault's own
    // frame lies over its lower part, hence the copy.
    unsafe {
        let registers = *host;
        let old = ptr::addr_of!((*place).rip).read_volatile();
        let (cs, rflags) = (
            ptr::addr_of!((*place).cs).read_volatile(),
            ptr::addr_of!((*place).rflags).read_volatile(),
        );
        let (rsp, ss) = (
            ptr::addr_of!((*place).rsp).read_volatile(),
            ptr::addr_of!((*place).ss).read_volatile(),
        );
        let guest = GuestFrame {
            rip: old,
            cs,
            rflags,
            rsp,
            ss,
            vector: u32::from(fault.vector),
            error_code: fault.error_code,
            _cs_pad: [0; 3],
            _ss_pad: [0; 3],
            ..registers
        };
        place.write(guest);
        asm!(
            "mov rsp, rdi",
            "xor ebp, ebp",
            "sub rsp, 8",
            "call {decide}",
            "jmp ferroxen_exit_call",
            in("rdi") place,
            in("esi") u32::from(fault.vector),
            in("edx") fault.error_code,
            decide = sym decide_return,
            options(noreturn)
        )
    }
}

extern "C" fn decide_return(frame: &mut GuestFrame, vector: u32, error_code: u32) {
    kernel_symbols::return_failed(
        frame,
        ReturnFault {
            vector: vector as u8,
            error_code,
        },
    );
}

/// NMI, double fault, machine check or debug exception, on a stack of its own.
///
/// Answers where the kernel's frame is, for what it is to handle; else 0.
pub(super) extern "C" fn on_own_stack(frame: &mut GuestFrame) -> u64 {
    let from_guest = frame.cs & 3 == 3;
    match frame.vector as u8 {
        DEBUG if from_guest => {
            let place = super::frame::place();
            // SAFETY: the CPU was in a guest, so nothing stands on the main stack.
            unsafe { place.write(*frame) };
            place as u64
        }
        DEBUG => {
            // A guest's trap flag that SYSENTER let through, or its watch on data that we copied.
            frame.rflags &= !TRAP_FLAG;
            debugregs::take_status();
            0
        }
        NMI => {
            report::on_nmi(frame);
            0
        }
        _ => report::trapped(frame, cpu::fault_address().raw()),
    }
}

/// What an exception is called.
pub(super) fn name(vector: u8) -> &'static str {
    const NAMES: [&str; 22] = [
        "divide error",
        "debug exception",
        "NMI",
        "breakpoint",
        "overflow",
        "bound range exceeded",
        "invalid opcode",
        "device not available",
        "double fault",
        "coprocessor segment overrun",
        "invalid TSS",
        "segment not present",
        "stack fault",
        "general protection fault",
        "page fault",
        "reserved exception",
        "x87 error",
        "alignment check",
        "machine check",
        "SIMD error",
        "virtualization exception",
        "control protection exception",
    ];
    NAMES.get(vector as usize).copied().unwrap_or("unexpected exception")
}

/// Whether the fault address means something for this exception.
pub(super) fn has_address(vector: u8) -> bool {
    vector == PAGE_FAULT || vector == 8
}
