//! Exceptions of PV guests: handled by us where the guest runs under an illusion, else passed to its kernel.

use super::bounce::{self, BadKernelStack, Extra, bounce};
use super::{emulate, mm};
use crate::domain::VcpuRef;
use crate::domain::vcpu::Callback;
use ferroxen_abi::x86::selector::{FLAT_RING3_CS64, FLAT_RING3_DS};
use ferroxen_machine::frame::ReturnFault;
use ferroxen_machine::segments::{self, Selectors};
use ferroxen_machine::{Entry, GuestFrame, cpu, debugregs, fpu, guest};
use ferroxen_words::Vaddr;

/// Exception numbers (SDM 3A "Exception and Interrupt Reference").
pub mod vector {
    #![allow(missing_docs, reason = "the manual's mnemonics")]
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XM: u8 = 19;
    pub const CP: u8 = 21;
}

/// Bits of a page fault's error code.
pub mod fault {
    #![allow(missing_docs, reason = "SDM 3A \"Page-Fault Exceptions\"")]
    pub const PRESENT: u32 = 1 << 0;
    pub const WRITE: u32 = 1 << 1;
    pub const USER: u32 = 1 << 2;
    pub const RESERVED: u32 = 1 << 3;
    pub const FETCH: u32 = 1 << 4;
}

/// An exception on its way to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Its number.
    pub vector: u8,
    /// Its error code, if this exception has one.
    pub error_code: Option<u32>,
    /// For page faults: the address.
    pub cr2: Option<Vaddr>,
}

impl Exception {
    /// An exception without error code.
    pub const fn plain(vector: u8) -> Self {
        Exception {
            vector,
            error_code: None,
            cr2: None,
        }
    }

    /// An exception with error code.
    pub const fn with_code(vector: u8, error_code: u32) -> Self {
        Exception {
            vector,
            error_code: Some(error_code),
            cr2: None,
        }
    }

    /// A page fault.
    pub const fn page_fault(error_code: u32, cr2: Vaddr) -> Self {
        Exception {
            vector: vector::PF,
            error_code: Some(error_code),
            cr2: Some(cr2),
        }
    }

    /// General protection with error code 0.
    pub const GP: Exception = Exception::with_code(vector::GP, 0);
    /// Invalid opcode.
    pub const UD: Exception = Exception::plain(vector::UD);
}

/// Whether the processor pushes an error code for this exception.
pub const fn has_error_code(vector: u8) -> bool {
    matches!(
        vector,
        vector::DF | vector::TS | vector::NP | vector::SS | vector::GP | vector::PF | vector::AC | vector::CP
    )
}

/// Handles whatever exception brought the CPU here.
#[inline(always)]
pub fn handle(vcpu: &VcpuRef, frame: &mut GuestFrame) {
    match frame.entry() {
        Entry::Trap(vector::PF) => page_fault(vcpu, frame),
        Entry::Trap(number) => handle_other(vcpu, frame, number),
        _ => {}
    }
}

#[inline(never)]
fn handle_other(vcpu: &VcpuRef, frame: &mut GuestFrame, number: u8) {
    match number {
        vector::GP => general_protection(vcpu, frame),
        vector::UD => {
            if !emulate::forced_cpuid(vcpu, frame) {
                inject(vcpu, frame, Exception::UD);
            }
        }
        vector::NM => {
            vcpu.pv.lock().ts = false;
            fpu::clear_task_switched();
            inject(vcpu, frame, Exception::plain(vector::NM));
        }
        vector::DB => {
            let seen = debugregs::take_status();
            vcpu.pv.lock().debug[6] |= seen;
            inject(vcpu, frame, Exception::plain(vector::DB));
        }
        // `int N` through a gate that guests may use: the processor has moved on already.
        0x20.. => software_interrupt(vcpu, frame, number, 0),
        _ => {
            let error_code = has_error_code(number).then_some(frame.error_code);
            inject(
                vcpu,
                frame,
                Exception {
                    vector: number,
                    error_code,
                    cr2: None,
                },
            );
        }
    }
}

fn page_fault(vcpu: &VcpuRef, frame: &mut GuestFrame) {
    let at = cpu::fault_address();
    let mut code = frame.error_code;
    if let Some(offset) = segments::ldt_window_offset(at) {
        return ldt_fault(vcpu, frame, offset);
    }
    if vcpu.domain().is_logged() {
        match mm::resolve(vcpu, at, code) {
            mm::Resolved::Retry => return,
            mm::Resolved::Guests(by_its_tables) => code = by_its_tables,
        }
    }
    let write_to_readonly = fault::PRESENT | fault::WRITE;
    if code & (write_to_readonly | fault::FETCH | fault::RESERVED) == write_to_readonly
        && vcpu.is_in_kernel()
        && mm::emulate_table_write(vcpu, frame, at)
    {
        return;
    }
    frame.is_unchanged();
    deliver(vcpu, frame, Exception::page_fault(code, at));
}

/// The processor looked into the LDT, which we map page by page when it does.
#[cold]
fn ldt_fault(vcpu: &VcpuRef, frame: &mut GuestFrame, offset: usize) {
    if mm::map_ldt_page(vcpu, offset) {
        return;
    }
    let at = Vaddr::new(vcpu.pv.lock().ldt_base.wrapping_add(offset as u64));
    let exception = if at.is_canonical() {
        Exception::page_fault(frame.error_code, at)
    } else {
        // The selector, which is one of the LDT's.
        Exception::with_code(vector::GP, offset as u32 & !7 | 4)
    };
    inject(vcpu, frame, exception);
}

fn general_protection(vcpu: &VcpuRef, frame: &mut GuestFrame) {
    let code = frame.error_code;
    const IDT: u32 = 1 << 1;
    const EXTERNAL: u32 = 1 << 0;
    if code & EXTERNAL == 0 && code & IDT != 0 {
        // `int N` through a gate that guests may not use. The number is read from the instruction: not every
        // processor (emulated ones least) says it right in the error code.
        let mut bytes = [0u8; 2];
        if guest::copy_from_guest(Vaddr::new(frame.rip), &mut bytes).is_ok() && bytes[0] == 0xcd {
            return software_interrupt(vcpu, frame, bytes[1], 2);
        }
        return inject(vcpu, frame, Exception::with_code(vector::GP, code));
    }
    if code == 0 && emulate::privileged(vcpu, frame) {
        return;
    }
    inject(vcpu, frame, Exception::with_code(vector::GP, code));
}

/// `int N`: the guest's own table says who may use it.
fn software_interrupt(vcpu: &VcpuRef, frame: &mut GuestFrame, number: u8, length: u64) {
    let pv = vcpu.pv.lock();
    let entry = pv.traps[usize::from(number)];
    let level_needed = if vcpu.is_in_kernel() { 1 } else { 3 };
    drop(pv);
    if entry.flags & 3 < level_needed {
        frame.rip = frame.rip.wrapping_sub(2 - length);
        return inject(
            vcpu,
            frame,
            Exception::with_code(vector::GP, (u32::from(number) << 3) | 2),
        );
    }
    frame.rip = frame.rip.wrapping_add(length);
    deliver(vcpu, frame, Exception::plain(number));
}

/// SYSCALL from 64-bit code of the guest's user mode.
#[inline(always)]
pub fn system_call64(vcpu: &VcpuRef, frame: &mut GuestFrame) {
    let pv = vcpu.pv.lock();
    let to = pv.syscall;
    if to.address == 0 {
        drop(pv);
        return no_such_instruction(vcpu, frame);
    }
    let made = bounce::enter_from_user(vcpu, &pv, frame, to, Extra::None);
    drop(pv);
    or_crash(vcpu, made);
}

/// The kernel takes no such system calls: the exception belongs to the instruction itself, two bytes long.
#[cold]
#[inline(never)]
fn no_such_instruction(vcpu: &VcpuRef, frame: &mut GuestFrame) {
    frame.rip = frame.rip.wrapping_sub(2);
    inject(vcpu, frame, Exception::UD);
}

/// SYSENTER, or SYSCALL from 32-bit code.
pub fn other_system_call(vcpu: &VcpuRef, frame: &mut GuestFrame) {
    let pv = vcpu.pv.lock();
    let is_syscall = frame.entry() == Entry::Syscall32;
    let to = if is_syscall { pv.syscall32 } else { pv.sysenter };
    if to.address == 0 {
        drop(pv);
        return if is_syscall {
            no_such_instruction(vcpu, frame)
        } else {
            inject(vcpu, frame, Exception::GP)
        };
    }
    let made = bounce(vcpu, &pv, frame, to, Extra::None);
    drop(pv);
    or_crash(vcpu, made);
}

/// Passes an exception to the guest's kernel.
#[inline(never)]
pub fn inject(vcpu: &VcpuRef, frame: &mut GuestFrame, exception: Exception) {
    deliver(vcpu, frame, exception);
}

#[inline(always)]
fn deliver(vcpu: &VcpuRef, frame: &mut GuestFrame, exception: Exception) {
    let pv = vcpu.pv.lock();
    let entry = pv.traps[usize::from(exception.vector)];
    let mut error_code = exception.error_code;
    if exception.vector == vector::PF {
        if vcpu.is_in_kernel() {
            // The guest's kernel runs at CPL 3 like its users; it shall see its own faults as a kernel's.
            error_code = error_code.map(|code| code & !fault::USER);
        }
        if let (Some(info), Some(cr2)) = (vcpu.info(), exception.cr2) {
            info.set_cr2(cr2.raw());
        }
    }
    if entry.address == 0 {
        drop(pv);
        return no_handler(vcpu, frame, exception);
    }
    let to = Callback {
        cs: entry.cs,
        address: entry.address,
        masks_events: entry.flags & 4 != 0,
    };
    let extra = error_code.map_or(Extra::None, Extra::ErrorCode);
    let made = bounce::enter(vcpu, &pv, frame, to, extra);
    drop(pv);
    or_crash(vcpu, made);
}

#[cold]
#[inline(never)]
fn no_handler(vcpu: &VcpuRef, frame: &GuestFrame, exception: Exception) {
    let mode = if vcpu.is_in_kernel() { "kernel" } else { "user" };
    let (rip, rsp) = (frame.rip, frame.rsp);
    let Exception {
        vector,
        error_code,
        cr2,
    } = exception;
    vcpu.domain().crash(format_args!(
        "{vcpu}: exception {vector} (error code {error_code:?}, cr2 {cr2:?}) at rip {rip:#x}, rsp {rsp:#x} \
         ({mode}), and no handler"
    ));
}

/// A guest whose kernel stack is no good is past saving.
#[inline(always)]
pub fn or_crash(vcpu: &VcpuRef, made: Result<(), BadKernelStack>) {
    if let Err(bad) = made {
        past_saving(vcpu, bad);
    }
}

#[cold]
#[inline(never)]
fn past_saving(vcpu: &VcpuRef, BadKernelStack(at): BadKernelStack) {
    vcpu.domain()
        .crash(format_args!("{vcpu}: its kernel stack below {at} cannot be written"));
}

/// The return to the guest failed: its kernel hears of it as if the instruction there had raised the exception.
pub fn return_failed(vcpu: &VcpuRef, frame: &mut GuestFrame, fault: ReturnFault) {
    let ReturnFault { vector, error_code } = fault;
    let cr2 = (vector == vector::PF).then(cpu::fault_address);
    let cr2 = cr2.map(|at| match segments::ldt_window_offset(at) {
        Some(offset) => Vaddr::new(vcpu.pv.lock().ldt_base.wrapping_add(offset as u64)),
        None => at,
    });
    let error_code = has_error_code(vector).then_some(error_code);
    inject(
        vcpu,
        frame,
        Exception {
            vector,
            error_code,
            cr2,
        },
    );
}

/// Data selectors could not be loaded on a switch to this vcpu: its kernel hears of it through the failsafe callback.
pub fn bad_selectors(vcpu: &VcpuRef, frame: &mut GuestFrame, wanted: Selectors) {
    let pv = vcpu.pv.lock();
    let to = pv.failsafe;
    if to.address == 0 {
        drop(pv);
        return vcpu.domain().crash(format_args!(
            "{vcpu}: its data selectors {wanted:?} do not load, and it has no failsafe callback"
        ));
    }
    let Selectors { ds, es, fs, gs } = wanted;
    let made = bounce(vcpu, &pv, frame, to, Extra::Selectors([ds, es, fs, gs]));
    drop(pv);
    or_crash(vcpu, made);
}

/// Makes a vcpu take a non-maskable interrupt, if its kernel has a handler for it.
pub fn send_nmi(vcpu: &VcpuRef) {
    vcpu.raise_nmi();
    crate::sched::nmi_raised(vcpu);
}

/// Delivers a non-maskable interrupt to the running vcpu, if its kernel has a handler. Events stay masked until it
/// returns, and further ones wait for that.
pub fn deliver_nmi(vcpu: &VcpuRef, frame: &mut GuestFrame) {
    let pv = vcpu.pv.lock();
    let entry = pv.traps[usize::from(vector::NMI)];
    if entry.address == 0 {
        return;
    }
    vcpu.begin_nmi();
    let to = Callback {
        cs: entry.cs,
        address: entry.address,
        masks_events: true,
    };
    let made = bounce(vcpu, &pv, frame, to, Extra::None);
    drop(pv);
    or_crash(vcpu, made);
}

/// The flat selectors with which a SYSCALL's frame reports its caller.
pub const SYSCALL_SELECTORS: (u16, u16) = (FLAT_RING3_CS64, FLAT_RING3_DS);
