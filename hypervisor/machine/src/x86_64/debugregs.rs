//! The guest's hardware breakpoints.

use ferroxen_words::Vaddr;

/// DR0 to DR3, DR6 and DR7.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DebugRegisters {
    pub address: [u64; 4],
    pub status: u64,
    pub control: u64,
}

/// Whether an address may be watched: it is a guest's.
#[inline]
pub const fn may_watch(address: Vaddr) -> bool {
    crate::arithmetic::is_guest_range(address.raw(), 8)
}

/// Loads the registers. Addresses that are not a guest's, and control bits that would watch ports or the
/// debug registers themselves, are left out.
pub fn load(registers: &DebugRegisters) {
    let _ = registers;
    todo!()
}

/// Reads the registers (the addresses change only by [`load`]).
pub fn read() -> DebugRegisters {
    todo!()
}

/// Reads DR6 and clears it: why the last debug exception came.
pub fn take_status() -> u64 {
    todo!()
}

/// Turns all breakpoints off.
pub fn disable() {
    todo!()
}
