//! The interrupt descriptor table: one for all CPUs.

use super::gdt;
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

/// Gates in two words each; written once, before any other CPU runs.
#[repr(C, align(4096))]
struct Table([[AtomicU64; 2]; 256]);

static TABLE: Table = Table([const { [const { AtomicU64::new(0) }; 2] }; 256]);

/// Bytes from one vector's stub to the next.
pub const STUB_STRIDE: usize = 16;

unsafe extern "C" {
    static ferroxen_vector_stubs: u8;
}

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

/// Vectors that a guest may call by `int N`: breakpoint, overflow, and Linux's old system call.
const GUEST_CALLABLE: [usize; 3] = [3, 4, 0x80];

/// The vectors with stacks of their own, by number of the stack.
const OWN_STACK: [(usize, u64); 4] = [(2, 1), (8, 2), (18, 3), (1, 4)];

/// Fills the table and loads it; on further CPUs, [`load`] is enough.
///
/// # Safety
/// This CPU's GDT and task state are loaded.
pub unsafe fn init() {
    let stubs = core::ptr::addr_of!(ferroxen_vector_stubs) as u64;
    for (vector, gate) in TABLE.0.iter().enumerate() {
        let target = stubs + (vector * STUB_STRIDE) as u64;
        let stack = OWN_STACK
            .iter()
            .find(|(v, _)| *v == vector)
            .map_or(0, |&(_, stack)| stack);
        let ring = if GUEST_CALLABLE.contains(&vector) { 3u64 } else { 0 };
        let low = target & 0xffff
            | u64::from(gdt::CODE) << 16
            | stack << 32
            | 0xe << 40
            | ring << 45
            | 1 << 47
            | (target >> 16 & 0xffff) << 48;
        gate[0].store(low, Ordering::Relaxed);
        gate[1].store(target >> 32, Ordering::Relaxed);
    }
    // SAFETY: by the caller.
    unsafe { load() };
}

/// Loads the table on this CPU.
///
/// # Safety
/// [`init`] has filled the table; this CPU's GDT and task state are loaded.
pub unsafe fn load() {
    let pointer = Pointer {
        limit: size_of::<Table>() as u16 - 1,
        base: TABLE.0.as_ptr() as u64,
    };
    // SAFETY: every gate leads to its stub, through our code selector.
    unsafe { asm!("lidt [{}]", in(reg) &pointer, options(readonly, nostack, preserves_flags)) };
}
