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

/// Does nothing, in a way that whoever counts instructions from outside can tell (`xchg bx, bx`).
#[inline(always)]
pub fn mark() {
    // SAFETY: changes nothing.
    unsafe { asm!("xchg bx, bx", options(nomem, nostack, preserves_flags)) };
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

/// What `fxsave` writes (SDM 1 "FXSAVE Area").
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub struct Fpu([u64; 64]);

impl Fpu {
    /// The words that hold x87 registers (80 bits of each 128) and SSE registers.
    const X87: core::ops::Range<usize> = 4..20;
    const SSE: core::ops::Range<usize> = 20..52;
    /// Control word and tags in word 0, MXCSR in word 3.
    const CONTROL: (u64, u64) = (0x37f, 0x1f80);

    /// All data registers hold something of `pattern`, the control registers their initial values.
    pub fn patterned(pattern: u64) -> Self {
        let mut image = Self([0; 64]);
        image.0[0] = Self::CONTROL.0 | 0xff << 32;
        image.0[3] = Self::CONTROL.1;
        for word in Self::X87.step_by(2) {
            // A normal number: the explicit leading bit set, an exponent of 0.
            image.0[word] = 1 << 63 | pattern ^ word as u64;
            image.0[word + 1] = 0x3fff;
        }
        for word in Self::SSE {
            image.0[word] = pattern << 16 ^ word as u64;
        }
        image
    }

    /// Tells whether the data registers are those of `patterned(pattern)`.
    pub fn is_patterned(&self, pattern: u64) -> bool {
        let wanted = Self::patterned(pattern);
        Self::X87.chain(Self::SSE).all(|word| self.0[word] == wanted.0[word])
    }

    /// Tells whether this is what a CPU has after a reset.
    pub fn is_initial(&self) -> bool {
        let data = Self::X87.chain(Self::SSE).all(|word| self.0[word] == 0);
        data && self.0[0] & 0xffff == Self::CONTROL.0 && self.0[3] & 0xffff_ffff == Self::CONTROL.1
    }
}

/// `fxrstor`
pub fn load_fpu(image: &Fpu) {
    // SAFETY: reads the image; this kernel uses none of these registers itself.
    unsafe { asm!("fxrstor64 [{}]", in(reg) image, options(nostack)) };
}

/// `fxsave`
pub fn store_fpu() -> Fpu {
    let mut image = Fpu([0; 64]);
    // SAFETY: writes the image.
    unsafe { asm!("fxsave64 [{}]", in(reg) &raw mut image, options(nostack)) };
    image
}
