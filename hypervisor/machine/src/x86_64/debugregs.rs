//! The guest's hardware breakpoints.

use crate::arithmetic::is_guest_range;
use core::arch::asm;
use ferroxen_words::Vaddr;

/// DR6 with nothing to tell.
pub const STATUS_CLEAR: u64 = 0xffff_0ff0;
/// DR7 with nothing enabled.
pub const CONTROL_CLEAR: u64 = 0x400;

/// DR0 to DR3, DR6 and DR7.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DebugRegisters {
    /// DR0 to DR3: what is watched.
    pub address: [u64; 4],
    /// DR6: what happened.
    pub status: u64,
    /// DR7: what is enabled, and how.
    pub control: u64,
}

impl Default for DebugRegisters {
    fn default() -> Self {
        DebugRegisters {
            address: [0; 4],
            status: STATUS_CLEAR,
            control: CONTROL_CLEAR,
        }
    }
}

/// Whether an address may be watched: it is a guest's.
#[inline]
pub const fn may_watch(address: Vaddr) -> bool {
    is_guest_range(address.raw(), 8)
}

/// Which breakpoints of `control` may be put into the CPU: they watch a guest's memory, no ports, and not
/// the debug registers themselves.
fn allowed(registers: &DebugRegisters) -> u64 {
    let mut control = registers.control & 0xffff_03ff | CONTROL_CLEAR;
    for (i, &address) in registers.address.iter().enumerate() {
        let watches_port = control >> (16 + 4 * i) & 3 == 2;
        if watches_port || !may_watch(Vaddr::new(address)) {
            control &= !(3 << (2 * i)) & !(0xf << (16 + 4 * i));
        }
    }
    control
}

/// Loads the registers, leaving out what a guest may not watch.
pub fn load(registers: &DebugRegisters) {
    let address = registers
        .address
        .map(|at| if may_watch(Vaddr::new(at)) { at } else { 0 });
    let status = registers.status & 0xe00f | STATUS_CLEAR;
    // SAFETY: a breakpoint on a guest's memory at worst interrupts a copy of ours, which then goes on.
    unsafe {
        asm!(
            "mov dr7, {off}", "mov dr0, {a}", "mov dr1, {b}", "mov dr2, {c}", "mov dr3, {d}",
            "mov dr6, {status}", "mov dr7, {control}",
            off = in(reg) CONTROL_CLEAR,
            a = in(reg) address[0], b = in(reg) address[1], c = in(reg) address[2], d = in(reg) address[3],
            status = in(reg) status, control = in(reg) allowed(registers),
            options(nostack, preserves_flags)
        );
    }
}

/// Reads the registers.
pub fn read() -> DebugRegisters {
    let (a, b, c, d, status, control);
    // SAFETY: reading debug registers changes nothing.
    unsafe {
        asm!(
            "mov {a}, dr0", "mov {b}, dr1", "mov {c}, dr2", "mov {d}, dr3", "mov {status}, dr6", "mov {control}, dr7",
            a = out(reg) a, b = out(reg) b, c = out(reg) c, d = out(reg) d,
            status = out(reg) status, control = out(reg) control,
            options(nomem, nostack, preserves_flags)
        );
    }
    DebugRegisters {
        address: [a, b, c, d],
        status,
        control,
    }
}

/// Reads DR6 and clears it: why the last debug exception came.
pub fn take_status() -> u64 {
    let status: u64;
    // SAFETY: DR6 only tells what happened.
    unsafe {
        asm!(
            "mov {status}, dr6", "mov dr6, {clear}",
            status = out(reg) status, clear = in(reg) STATUS_CLEAR,
            options(nomem, nostack, preserves_flags)
        );
    }
    status
}

/// Turns all breakpoints off.
#[inline]
pub fn disable() {
    // SAFETY: no breakpoint is enabled afterwards.
    unsafe { asm!("mov dr7, {}", in(reg) CONTROL_CLEAR, options(nomem, nostack, preserves_flags)) };
}
