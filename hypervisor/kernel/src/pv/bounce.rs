//! Bounce frames: how a trap, a callback or an event reaches a guest kernel.
//!
//! The guest kernel finds on its stack, from the top: `rcx`, `r11`, then (failsafe only) `ds es fs gs`, then
//! (some traps) an error code, then `rip cs rflags rsp ss`. `cs` carries the upcall mask of the interrupted
//! code in bits 32-39, and has RPL 0 when that code was the guest's kernel. This is the contract of
//! `arch-x86/xen-x86_64.h` and of every PV kernel's entry stubs.

use super::mode;
use crate::domain::{Callback, PvState, VcpuRef};
use ferroxen_abi::x86::selector::{FLAT_RING3_CS64, FLAT_RING3_DS};
use ferroxen_machine::{GuestFrame, guest};
use ferroxen_words::Vaddr;
use zerocopy::IntoBytes;

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
    pv: &mut PvState,
    frame: &mut GuestFrame,
    to: Callback,
    extra: Extra,
) -> Result<(), BadKernelStack> {
    let was_kernel = pv.in_kernel;
    let (stack, saved_ss) = if was_kernel {
        (frame.rsp, frame.ss)
    } else {
        (pv.kernel_sp, frame.ss)
    };
    mode::enter_kernel(pv);

    let info = vcpu.info();
    let masked = info.is_some_and(|info| info.is_masked());
    let mut words = [0u64; 12];
    let mut count = 0;
    let mut push = |word: u64| {
        if let Some(slot) = words.get_mut(count) {
            *slot = word;
            count += 1;
        }
    };
    push(frame.rcx);
    push(frame.r11);
    match extra {
        Extra::None => {}
        Extra::ErrorCode(code) => push(u64::from(code)),
        Extra::Selectors([ds, es, fs, gs]) => [ds, es, fs, gs].into_iter().for_each(|s| push(u64::from(s))),
    }
    push(frame.rip);
    let cs = u64::from(frame.cs);
    push(if was_kernel { cs & !3 } else { cs } | (u64::from(masked) << 32));
    let mut flags = frame.rflags & !(rflags::IF | rflags::IOPL);
    if !masked {
        flags |= rflags::IF;
    }
    if vcpu.domain().assists(ferroxen_abi::xen::vm_assist::ARCHITECTURAL_IOPL) {
        flags |= u64::from(pv.iopl) << 12;
    }
    push(flags);
    push(frame.rsp);
    push(u64::from(saved_ss));

    let bytes = count as u64 * 8;
    let top = stack & !0xf;
    let at = Vaddr::new(top.wrapping_sub(bytes));
    let words = words.get(..count).unwrap_or(&[]);
    guest::copy_to_guest(at, words.as_bytes()).map_err(|_| BadKernelStack(at))?;

    if to.masks_events
        && let Some(info) = info
    {
        info.set_masked(true);
    }
    frame.rsp = at.raw();
    frame.ss = FLAT_RING3_DS;
    frame.rip = to.address;
    frame.cs = FLAT_RING3_CS64;
    frame.rflags = (frame.rflags & !(rflags::TF | rflags::NT | rflags::RF | rflags::VM | rflags::AC | rflags::IOPL))
        | rflags::IF
        | rflags::FIXED;
    frame.return_fully();
    Ok(())
}
