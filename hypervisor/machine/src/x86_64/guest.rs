//! Copies from and to the memory of the guest whose page tables are loaded.
//!
//! An address is checked against the hypervisor's part of the address space, then simply used: if the
//! guest's tables do not allow it, the access faults and the copy says how far it got.

use super::fixups::{fixup, on_fault};
use crate::arithmetic::is_guest_range;
use core::arch::asm;
use core::marker::PhantomData;
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
            fixup!("2b" => "3b"),
            inout("rcx") len => left, inout("rdi") to.raw() => _, in("al") 0u8,
            options(nostack, preserves_flags)
        );
    }
    outcome(len, left)
}

/// Whether a value is read and written piece by piece, which is faster than a copy for those of a few words.
const fn is_small<T>() -> bool {
    size_of::<T>() <= 96 && size_of::<T>().is_multiple_of(4)
}

/// Does one thing for each 8 bytes of a small value, and another for the last 4 if they are left over.
macro_rules! for_each_piece {
    ($T:ty, $eight:ident, $four:ident) => {
        for_each_piece!($T, $eight, $four, 0 8 16 24 32 40 48 56 64 72 80 88)
    };
    ($T:ty, $eight:ident, $four:ident, $($at:literal)*) => {
        $(
            if const { size_of::<$T>() >= $at + 8 } {
                $eight!($at)
            } else if const { size_of::<$T>() == $at + 4 } {
                $four!($at)
            }
        )*
    };
}

/// Reads a value.
#[inline(always)]
pub fn read<T: FromBytes + IntoBytes>(from: Vaddr) -> Result<T, GuestFault> {
    if !is_guest_range(from.raw(), size_of::<T>()) {
        return Err(REFUSED);
    }
    // SAFETY: just looked at.
    unsafe { read_at(from.raw()) }
}

/// # Safety
/// The value lies in the guest's part of the address space.
#[inline(always)]
unsafe fn read_at<T: FromBytes + IntoBytes>(from: u64) -> Result<T, GuestFault> {
    let mut value = T::new_zeroed();
    let bytes = value.as_mut_bytes();
    if const { !is_small::<T>() } {
        copy_from_guest(Vaddr::new(from), bytes)?;
        return Ok(value);
    }
    let mut failed = 0;
    macro_rules! eight {
        ($at:literal) => {{
            // SAFETY: reading guest memory can only fault, which is fixed up.
            let piece = unsafe { load64::<$at>(from, &mut failed) };
            bytes[$at..$at + 8].copy_from_slice(&piece.to_ne_bytes());
        }};
    }
    macro_rules! four {
        ($at:literal) => {{
            // SAFETY: as above.
            let piece = unsafe { load32::<$at>(from, &mut failed) };
            bytes[$at..$at + 4].copy_from_slice(&piece.to_ne_bytes());
        }};
    }
    for_each_piece!(T, eight, four);
    if failed == 0 { Ok(value) } else { Err(REFUSED) }
}

/// Writes a value.
#[inline(always)]
pub fn write<T: IntoBytes + Immutable>(to: Vaddr, value: &T) -> Result<(), GuestFault> {
    if !is_guest_range(to.raw(), size_of::<T>()) {
        return Err(REFUSED);
    }
    // SAFETY: just looked at.
    unsafe { write_at(to.raw(), value) }
}

/// # Safety
/// The place lies in the guest's part of the address space.
#[inline(always)]
unsafe fn write_at<T: IntoBytes + Immutable>(to: u64, value: &T) -> Result<(), GuestFault> {
    let bytes = value.as_bytes();
    if const { !is_small::<T>() } {
        return copy_to_guest(Vaddr::new(to), bytes);
    }
    let mut failed = 0;
    macro_rules! eight {
        ($at:literal) => {{
            let mut piece = [0; 8];
            piece.copy_from_slice(&bytes[$at..$at + 8]);
            // SAFETY: as in `copy_to_guest`.
            unsafe { store64::<$at>(to, u64::from_ne_bytes(piece), &mut failed) }
        }};
    }
    macro_rules! four {
        ($at:literal) => {{
            let mut piece = [0; 4];
            piece.copy_from_slice(&bytes[$at..$at + 4]);
            // SAFETY: as in `copy_to_guest`.
            unsafe { store32::<$at>(to, u32::from_ne_bytes(piece), &mut failed) }
        }};
    }
    for_each_piece!(T, eight, four);
    if failed == 0 { Ok(()) } else { Err(REFUSED) }
}

/// An array in a guest's memory, of which nothing was read yet. That all of it lies in the guest's part of the address
/// space is looked at once, when it is made.
#[derive(Clone, Copy)]
pub struct Array<T> {
    at: u64,
    left: u32,
    shape: PhantomData<fn() -> T>,
}

impl<T: FromBytes + IntoBytes + Immutable> Array<T> {
    /// `count` elements at `at`; `None` if they go beyond the guest's part.
    #[inline(always)]
    pub fn new(at: Vaddr, count: u32) -> Option<Self> {
        let bytes = count as usize * size_of::<T>();
        is_guest_range(at.raw(), bytes).then_some(Array {
            at: at.raw(),
            left: count,
            shape: PhantomData,
        })
    }

    /// Where the rest begins.
    #[inline(always)]
    pub fn at(&self) -> Vaddr {
        Vaddr::new(self.at)
    }

    /// How many elements are left.
    #[inline(always)]
    pub fn left(&self) -> u32 {
        self.left
    }

    /// Reads the first of the elements that are left.
    #[inline(always)]
    pub fn read(&self) -> Result<T, GuestFault> {
        if self.left == 0 {
            return Err(REFUSED);
        }
        // SAFETY: the element was looked at when the array was made.
        unsafe { read_at(self.at) }
    }

    /// Writes it.
    #[inline(always)]
    pub fn write(&self, value: &T) -> Result<(), GuestFault> {
        if self.left == 0 {
            return Err(REFUSED);
        }
        // SAFETY: as above.
        unsafe { write_at(self.at, value) }
    }

    /// Writes the 8 bytes of it that begin at `AT`.
    #[inline(always)]
    pub fn write_u64<const AT: usize>(&self, value: u64) -> Result<(), GuestFault> {
        const { assert!(AT + 8 <= size_of::<T>()) };
        if self.left == 0 {
            return Err(REFUSED);
        }
        let mut failed = 0;
        // SAFETY: as above; the bytes are the element's.
        unsafe { store64::<AT>(self.at, value, &mut failed) };
        if failed == 0 { Ok(()) } else { Err(REFUSED) }
    }

    /// Writes the 2 bytes of it that begin at `AT`.
    #[inline(always)]
    pub fn write_u16<const AT: usize>(&self, value: u16) -> Result<(), GuestFault> {
        const { assert!(AT + 2 <= size_of::<T>()) };
        if self.left == 0 {
            return Err(REFUSED);
        }
        let mut failed = 0;
        // SAFETY: as above; the bytes are the element's.
        unsafe { store16::<AT>(self.at, value, &mut failed) };
        if failed == 0 { Ok(()) } else { Err(REFUSED) }
    }

    /// Goes on to the next element.
    #[inline(always)]
    pub fn advance(&mut self) {
        if self.left != 0 {
            self.left -= 1;
            self.at = self.at.wrapping_add(size_of::<T>() as u64);
        }
    }
}

/// The top `WORDS` words of a guest's stack, to be written one by one.
pub struct Stack<const WORDS: usize> {
    top: u64,
    failed: u32,
}

impl<const WORDS: usize> Stack<WORDS> {
    /// The words below `top`; `None` if they are not the guest's.
    #[inline(always)]
    pub fn below(top: u64) -> Option<Self> {
        let lowest = top.wrapping_sub(8 * WORDS as u64);
        is_guest_range(lowest, 8 * WORDS).then_some(Stack { top, failed: 0 })
    }

    /// Writes the word that is `BELOW` words below the top.
    #[inline(always)]
    pub fn store<const BELOW: usize>(&mut self, value: u64) {
        const { assert!(0 < BELOW && BELOW <= WORDS) };
        // SAFETY: as in `copy_to_guest`; the whole stack was looked at when it was made.
        unsafe { store_below::<BELOW>(self.top, value, &mut self.failed) }
    }

    /// The address of the lowest word, if all could be written.
    #[inline(always)]
    pub fn finish(self) -> Result<u64, GuestFault> {
        if self.failed == 0 {
            Ok(self.top.wrapping_sub(8 * WORDS as u64))
        } else {
            Err(REFUSED)
        }
    }
}

/// One access that may fault; if it does, `failed` becomes 1.
macro_rules! one_access {
    ($(#[$doc:meta])* $name:ident, $at:ident, load $raw:ty, $width:literal) => {
        $(#[$doc])*
        #[inline(always)]
        unsafe fn $name<const $at: usize>(from: u64, failed: &mut u32) -> $raw {
            let value: $raw;
            // SAFETY: by the caller; a fault is fixed up.
            unsafe {
                asm!(
                    concat!("2: mov {value", $width, "}, [{from} + {at}]"),
                    on_fault!("mov {failed:e}, 1"),
                    from = in(reg) from, at = const $at, value = out(reg) value, failed = inout(reg) *failed,
                    options(nostack, readonly, preserves_flags)
                );
            }
            value
        }
    };
    ($(#[$doc:meta])* $name:ident, $at:ident, store $raw:ty, $width:literal, $offset:expr) => {
        $(#[$doc])*
        #[inline(always)]
        unsafe fn $name<const $at: usize>(to: u64, value: $raw, failed: &mut u32) {
            // SAFETY: by the caller; a fault is fixed up.
            unsafe {
                asm!(
                    concat!("2: mov [{to} + {at}], {value", $width, "}"),
                    on_fault!("mov {failed:e}, 1"),
                    to = in(reg) to, at = const $offset, value = in(reg) value, failed = inout(reg) *failed,
                    options(nostack, preserves_flags)
                );
            }
        }
    };
}

one_access!(
    /// # Safety
    /// `from` is a guest's address.
    load64, AT, load u64, ":r"
);
one_access!(
    /// # Safety
    /// As [`load64`].
    load32, AT, load u32, ":e"
);
one_access!(
    /// # Safety
    /// Writing there is sound where it does not fault.
    store64, AT, store u64, ":r", AT
);
one_access!(
    /// # Safety
    /// As [`store64`].
    store32, AT, store u32, ":e", AT
);
one_access!(
    /// # Safety
    /// As [`store64`].
    store16, AT, store u16, ":x", AT
);
one_access!(
    /// # Safety
    /// As [`store64`], for the word that is `BELOW` words below the address.
    store_below, BELOW, store u64, ":r", -8 * (BELOW as i64)
);

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
            fixup!("2b" => "5b"),
            fixup!("3b" => "4b"),
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
                    on_fault!("mov {failed:e}, 1"),
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
