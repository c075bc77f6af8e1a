//! Instructions that Rust has no words for.
//!
//! Many fault on purpose: call those inside [`crate::trap::attempt`].

use core::arch::asm;
use core::arch::x86_64::CpuidResult;

/// Reads the stack pointer.
#[inline(always)]
pub fn stack_pointer() -> usize {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rsp", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Reads the time-stamp counter.
#[inline(always)]
pub fn rdtsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a counter; not `nomem`, so that it stays between the accesses it measures.
    unsafe { asm!("rdtsc", out("eax") low, out("edx") high, options(nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Asks `cpuid`.
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    core::arch::x86_64::__cpuid_count(leaf, subleaf)
}

/// Ends what the kernel or the user was doing by `syscall`: from user mode, this is how a story ends.
pub fn syscall(value: u64) -> u64 {
    let result;
    // SAFETY: from user mode it enters the kernel, which may abandon us or go on here; rcx and r11 are lost.
    unsafe {
        asm!("syscall", inlateout("rax") value => result, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// Leaves user mode for good, telling the kernel `value` (in rax).
pub fn leave(value: u64) -> ! {
    loop {
        syscall(value);
    }
}

/// Writes a byte at an address, whatever that may be.
#[inline(always)]
pub fn poke8(address: u64, value: u8) {
    // SAFETY: one store, where the caller wishes.
    unsafe { asm!("mov byte ptr [{}], {}", in(reg) address, in(reg_byte) value, options(nostack, preserves_flags)) };
}

/// Writes eight bytes at an address, whatever that may be.
#[inline(always)]
pub fn poke(address: u64, value: u64) {
    // SAFETY: one store, where the caller wishes.
    unsafe { asm!("mov qword ptr [{}], {}", in(reg) address, in(reg) value, options(nostack, preserves_flags)) };
}

/// Reads eight bytes from an address, whatever that may be.
#[inline(always)]
pub fn peek(address: u64) -> u64 {
    let value;
    // SAFETY: one load.
    unsafe { asm!("mov {}, qword ptr [{}]", out(reg) value, in(reg) address, options(nostack, preserves_flags)) };
    value
}

/// How wide a store is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Width {
    /// 1 byte.
    Byte,
    /// 2 bytes.
    Word,
    /// 4 bytes.
    Long,
}

/// Writes the low part of `value` at an address, whatever that may be.
pub fn poke_part(address: u64, value: u64, width: Width) {
    // SAFETY: one store, where the caller wishes.
    unsafe {
        match width {
            Width::Byte => asm!("mov byte ptr [{}], {}", in(reg) address, in(reg_byte) value as u8, options(nostack)),
            Width::Word => asm!("mov word ptr [{}], {:x}", in(reg) address, in(reg) value, options(nostack)),
            Width::Long => asm!("mov dword ptr [{}], {:e}", in(reg) address, in(reg) value, options(nostack)),
        }
    }
}

/// `lock cmpxchg`: returns what was there.
pub fn compare_exchange(address: u64, old: u64, new: u64) -> u64 {
    let was;
    // SAFETY: one access, where the caller wishes.
    unsafe {
        asm!("lock cmpxchg qword ptr [{}], {}", in(reg) address, in(reg) new, inlateout("rax") old => was,
            options(nostack));
    }
    was
}

/// `xchg`: returns what was there.
pub fn exchange(address: u64, new: u64) -> u64 {
    let was;
    // SAFETY: one access, where the caller wishes.
    unsafe { asm!("xchg qword ptr [{}], {}", in(reg) address, inlateout(reg) new => was, options(nostack)) };
    was
}

/// `or` to memory.
pub fn or(address: u64, bits: u64) {
    // SAFETY: one access, where the caller wishes.
    unsafe { asm!("or qword ptr [{}], {}", in(reg) address, in(reg) bits, options(nostack)) };
}

/// `and` to memory.
pub fn and(address: u64, bits: u64) {
    // SAFETY: one access, where the caller wishes.
    unsafe { asm!("and qword ptr [{}], {}", in(reg) address, in(reg) bits, options(nostack)) };
}

/// `stosq`.
pub fn store_string(address: u64, value: u64) {
    // SAFETY: one store, where the caller wishes.
    unsafe { asm!("stosq", inlateout("rdi") address => _, in("rax") value, options(nostack)) };
}
