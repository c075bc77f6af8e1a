//! Bounce frames: how a trap, a callback or an event reaches a guest kernel.
//!
//! The guest kernel finds on its stack, from the top: `rcx`, `r11`, then (failsafe only) `ds es fs gs`, then
//! (some traps) an error code, then `rip cs rflags rsp ss`. `cs` carries the upcall mask of the interrupted
//! code in bits 32-39, and has RPL 0 when that code was the guest's kernel. This is the contract of
//! `arch-x86/xen-x86_64.h` and of every PV kernel's entry stubs.

use super::mode;
use crate::domain::{Callback, InfoArea, PvState, VcpuRef};
use ferroxen_abi::x86::selector::{FLAT_RING3_CS64, FLAT_RING3_DS};
use ferroxen_machine::{GuestFrame, guest};
use ferroxen_words::Vaddr;

/// RFLAGS bits that concern us.
pub mod rflags {
    #![allow(missing_docs, reason = "SDM 1 \"EFLAGS Register\"")]
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    /// Bit 1, always set.
    pub const FIXED: u64 = 1 << 1;
}

/// What goes onto the guest's stack beside the interrupted registers.
#[derive(Clone, Copy)]
pub enum Extra {
    /// Nothing.
    None,
    /// An error code.
    ErrorCode(u32),
    /// The data selectors, for the failsafe callback.
    Selectors([u16; 4]),
}

/// The guest's kernel stack could not be written: it is past saving.
#[derive(Debug)]
pub struct BadKernelStack(pub Vaddr);

/// Makes the running vcpu enter its kernel at `to`, as if its CPU had taken an exception.
pub fn bounce(
    vcpu: &VcpuRef,
    pv: &PvState,
    frame: &mut GuestFrame,
    to: Callback,
    extra: Extra,
) -> Result<(), BadKernelStack> {
    enter(vcpu, pv, frame, to, extra)
}

/// [`bounce`], for where it happens all the time.
#[inline(always)]
pub fn enter(
    vcpu: &VcpuRef,
    pv: &PvState,
    frame: &mut GuestFrame,
    to: Callback,
    extra: Extra,
) -> Result<(), BadKernelStack> {
    let from = if vcpu.is_in_kernel() {
        Mode::Kernel
    } else {
        mode::leave_user(vcpu, pv);
        Mode::User
    };
    enter_from(from, vcpu, pv, frame, to, extra)
}

/// [`enter`], for a vcpu that is known to be in its user mode.
#[inline(always)]
pub fn enter_from_user(
    vcpu: &VcpuRef,
    pv: &PvState,
    frame: &mut GuestFrame,
    to: Callback,
    extra: Extra,
) -> Result<(), BadKernelStack> {
    mode::leave_user(vcpu, pv);
    enter_from(Mode::User, vcpu, pv, frame, to, extra)
}

/// What was interrupted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Kernel,
    User,
}

/// Makes a vcpu go on at `to`, which is in its kernel already.
#[inline(always)]
fn enter_from(
    from: Mode,
    vcpu: &VcpuRef,
    pv: &PvState,
    frame: &mut GuestFrame,
    to: Callback,
    extra: Extra,
) -> Result<(), BadKernelStack> {
    // RPL 0 says that it was the kernel.
    let (stack, cs) = match from {
        Mode::Kernel => (frame.rsp, frame.cs & !3),
        Mode::User => (pv.kernel_sp, frame.cs),
    };
    let info = vcpu.info();
    let masked = info.is_some_and(InfoArea::is_masked);
    let iopl = if vcpu.domain().assists(ferroxen_abi::xen::vm_assist::ARCHITECTURAL_IOPL) {
        virtual_iopl(pv)
    } else {
        0
    };
    let interrupted = Interrupted {
        cs: u64::from(cs) | u64::from(masked) << 32,
        rflags: frame.rflags & !(rflags::IF | rflags::IOPL) | if masked { 0 } else { rflags::IF } | iopl,
    };
    let top = stack & !0xf;
    let written = match extra {
        Extra::None => push::<7>(top, frame, interrupted, |stack| {
            stack.store::<6>(frame.r11);
            stack.store::<7>(frame.rcx);
        }),
        Extra::ErrorCode(code) => push::<8>(top, frame, interrupted, |stack| {
            stack.store::<6>(code.into());
            stack.store::<7>(frame.r11);
            stack.store::<8>(frame.rcx);
        }),
        Extra::Selectors([ds, es, fs, gs]) => push::<11>(top, frame, interrupted, |stack| {
            stack.store::<6>(gs.into());
            stack.store::<7>(fs.into());
            stack.store::<8>(es.into());
            stack.store::<9>(ds.into());
            stack.store::<10>(frame.r11);
            stack.store::<11>(frame.rcx);
        }),
    };
    frame.rsp = written.ok_or(BadKernelStack(Vaddr::new(top)))?;

    if to.masks_events
        && let Some(info) = info
    {
        info.set_masked(true);
    }
    frame.ss = FLAT_RING3_DS;
    frame.rip = to.address;
    frame.cs = FLAT_RING3_CS64;
    frame.rflags = (frame.rflags & !(rflags::TF | rflags::NT | rflags::RF | rflags::VM | rflags::AC | rflags::IOPL))
        | rflags::IF
        | rflags::FIXED;
    // Its handler has rcx and r11 from the stack, as on stock Xen.
    frame.return_by_sysret();
    Ok(())
}

/// The privilege level of a guest that wants to see it there: few do.
#[cold]
#[inline(never)]
fn virtual_iopl(pv: &PvState) -> u64 {
    u64::from(pv.iopl) << 12
}

/// What the guest sees of the interrupted code otherwise than the processor.
#[derive(Clone, Copy)]
struct Interrupted {
    cs: u64,
    rflags: u64,
}

/// Writes the words that every entry has, and those that `more` adds below them. Answers the stack pointer.
#[inline(always)]
fn push<const WORDS: usize>(
    top: u64,
    frame: &GuestFrame,
    interrupted: Interrupted,
    more: impl FnOnce(&mut guest::Stack<WORDS>),
) -> Option<u64> {
    let mut stack = guest::Stack::<WORDS>::below(top)?;
    stack.store::<1>(frame.ss.into());
    stack.store::<2>(frame.rsp);
    stack.store::<3>(interrupted.rflags);
    stack.store::<4>(interrupted.cs);
    stack.store::<5>(frame.rip);
    more(&mut stack);
    stack.finish().ok()
}
