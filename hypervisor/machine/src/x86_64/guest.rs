//! Copies from and to the memory of the guest whose page tables are loaded.
//!
//! An address is checked against the hypervisor's part of the address space, then simply used: if the
//! guest's tables do not allow it, the access faults and the copy says how far it got.

use crate::arithmetic::is_guest_range;
use core::arch::asm;
use ferroxen_words::Vaddr;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A guest's address did not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestFault {
    /// Bytes copied before the one that faulted.
    pub copied: usize,
}

const REFUSED: GuestFault = GuestFault { copied: 0 };

/// Copies from the guest's address space.
#[inline]
pub fn copy_from_guest(from: Vaddr, into: &mut [u8]) -> Result<(), GuestFault> {
    if !is_guest_range(from.raw(), into.len()) {
        return Err(REFUSED);
    }
    // Most reads are of a word or two; the length is known where this is inlined.
    if into.len() == 4 {
        into.copy_from_slice(&load_u32(from.raw()).ok_or(REFUSED)?.to_le_bytes());
        return Ok(());
    }
    if into.len() == 8 || into.len() == 16 {
        for (i, word) in into.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&load_u64(from.raw() + 8 * i as u64).ok_or(REFUSED)?.to_le_bytes());
        }
        return Ok(());
    }
    // SAFETY: `into` is ours to write; reading guest memory can only fault, which is fixed up.
    let left = unsafe { copy(into.as_mut_ptr() as u64, from.raw(), into.len()) };
    outcome(into.len(), left)
}

/// Copies to the guest's address space.
#[inline]
pub fn copy_to_guest(to: Vaddr, from: &[u8]) -> Result<(), GuestFault> {
    if !is_guest_range(to.raw(), from.len()) {
        return Err(REFUSED);
    }
    // SAFETY: the range lies outside the hypervisor's part of the address space, and a guest's tables map
    // nothing of ours elsewhere; faults are fixed up.
    let left = unsafe { copy(to.raw(), from.as_ptr() as u64, from.len()) };
    outcome(from.len(), left)
}

/// Fills guest memory with zeroes.
#[inline]
pub fn clear_guest(to: Vaddr, len: usize) -> Result<(), GuestFault> {
    if !is_guest_range(to.raw(), len) {
        return Err(REFUSED);
    }
    let left: usize;
    // SAFETY: as in `copy_to_guest`.
    unsafe {
        asm!(
            "2: rep stosb",
            "3:",
            ".pushsection .fixups, \"a\"",
            ".long 2b - ., 3b - .",
            ".popsection",
            inout("rcx") len => left, inout("rdi") to.raw() => _, in("al") 0u8,
            options(nostack, preserves_flags)
        );
    }
    outcome(len, left)
}

/// Reads a value.
#[inline]
pub fn read<T: FromBytes + IntoBytes>(from: Vaddr) -> Result<T, GuestFault> {
    let mut value = T::new_zeroed();
    copy_from_guest(from, value.as_mut_bytes())?;
    Ok(value)
}

/// Writes a value.
#[inline]
pub fn write<T: IntoBytes + Immutable>(to: Vaddr, value: &T) -> Result<(), GuestFault> {
    copy_to_guest(to, value.as_bytes())
}

macro_rules! load {
    ($name:ident, $raw:ty, $value:literal) => {
        /// Reads from an address that is a guest's; `None` if that faults.
        #[inline]
        fn $name(from: u64) -> Option<$raw> {
            let (value, failed): ($raw, u32);
            // SAFETY: a load can only fault, which is fixed up.
            unsafe {
                asm!(
                    concat!("2: mov {value", $value, "}, [{from}]"),
                    "3:",
                    ".pushsection .text.fixup, \"ax\"",
                    "4: mov {failed:e}, 1",
                    "jmp 3b",
                    ".popsection",
                    ".pushsection .fixups, \"a\"",
                    ".long 2b - ., 4b - .",
                    ".popsection",
                    from = in(reg) from, value = out(reg) value, failed = inout(reg) 0u32 => failed,
                    options(nostack, readonly, preserves_flags)
                );
            }
            (failed == 0).then_some(value)
        }
    };
}

load!(load_u32, u32, ":e");
load!(load_u64, u64, ":r");

#[inline]
fn outcome(len: usize, left: usize) -> Result<(), GuestFault> {
    if left == 0 {
        Ok(())
    } else {
        Err(GuestFault { copied: len - left })
    }
}

/// Copies, and answers how many bytes are left because of a fault.
///
/// # Safety
/// Writing `len` bytes at `to` must be sound wherever it does not fault.
#[inline]
unsafe fn copy(to: u64, from: u64, len: usize) -> usize {
    let left: usize;
    // SAFETY: vouched for by the caller. The words' fault leaves rcx words; the tail is added to them.
    unsafe {
        asm!(
            "2: rep movsq",
            "mov rcx, {tail}",
            "3: rep movsb",
            "4:",
            ".pushsection .text.fixup, \"ax\"",
            "5: lea rcx, [rcx * 8 + {tail}]",
            "jmp 4b",
            ".popsection",
            ".pushsection .fixups, \"a\"",
            ".long 2b - ., 5b - .",
            ".long 3b - ., 4b - .",
            ".popsection",
            tail = in(reg) len & 7,
            inout("rcx") len >> 3 => left, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags)
        );
    }
    left
}

macro_rules! exchange {
    ($name:ident, $raw:ty, $class:ident, $new:literal, $accumulator:tt) => {
        /// Compares and exchanges a value in guest memory, atomically.
        ///
        /// Answers what stood there: the exchange took place if that equals `old`. The address must be a
        /// multiple of the size.
        #[inline]
        pub fn $name(at: Vaddr, old: $raw, new: $raw) -> Result<$raw, GuestFault> {
            let size = size_of::<$raw>();
            if !is_guest_range(at.raw(), size) || !at.raw().is_multiple_of(size as u64) {
                return Err(REFUSED);
            }
            let (found, failed): ($raw, u32);
            // SAFETY: as in `copy_to_guest`.
            unsafe {
                asm!(
                    concat!("2: lock cmpxchg [{at}], {new", $new, "}"),
                    "3:",
                    ".pushsection .text.fixup, \"ax\"",
                    "4: mov {failed:e}, 1",
                    "jmp 3b",
                    ".popsection",
                    ".pushsection .fixups, \"a\"",
                    ".long 2b - ., 4b - .",
                    ".popsection",
                    at = in(reg) at.raw(), new = in($class) new,
                    failed = inout(reg) 0u32 => failed,
                    inout($accumulator) old => found,
                    options(nostack)
                );
            }
            if failed == 0 { Ok(found) } else { Err(REFUSED) }
        }
    };
}

exchange!(cmpxchg_u8, u8, reg_byte, "", "al");
exchange!(cmpxchg_u16, u16, reg, ":x", "ax");
exchange!(cmpxchg_u32, u32, reg, ":e", "eax");
exchange!(cmpxchg_u64, u64, reg, ":r", "rax");
