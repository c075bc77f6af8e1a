//! Where a guest's registers stand while the hypervisor works, and the way in and out.
//!
//! Every entry from a guest pushes a whole [`GuestFrame`] at the same place, the top of the CPU's stack,
//! and every return restores it. To run another vcpu, the kernel rewrites the frame in place.

/// A guest's registers, as `struct cpu_user_regs` begins.
///
/// On the way out the hardware's rules are enforced whatever stands here: `cs` and `ss` get privilege level
/// 3, interrupts are on, I/O privilege is none. So no value in a frame can hurt the hypervisor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct GuestFrame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    /// What the exception said about itself; 0 if it says nothing.
    pub error_code: u32,
    /// Number of the trap or interrupt, and above it the kind of entry: see [`GuestFrame::entry`].
    pub vector: u32,
    pub rip: u64,
    pub cs: u16,
    pub _cs_pad: [u16; 3],
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u16,
    pub _ss_pad: [u16; 3],
}

const _: () = assert!(size_of::<GuestFrame>() == 168);

/// How the hypervisor was entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// An exception, or `int N` through a gate that guests may use: the vector.
    Trap(u8),
    /// An interrupt from a device or another CPU: the vector.
    Interrupt(u8),
    /// SYSCALL in 64-bit code. `rcx` holds `rip` and `r11` the flags; the way back is SYSRET.
    Syscall64,
    /// SYSCALL in 32-bit code.
    Syscall32,
    /// SYSENTER, which saves neither `rip` nor `rsp`: both are 0 in the frame, and `cs` is a null selector.
    Sysenter,
}

/// Bits of [`GuestFrame::vector`] that tell the kind of entry.
pub mod entry_kind {
    /// An external interrupt.
    pub const INTERRUPT: u32 = 1 << 8;
    /// SYSCALL from 64-bit code; while set, the return is by SYSRET, which loses `rcx` and `r11`.
    pub const SYSCALL64: u32 = 1 << 9;
    /// SYSCALL from 32-bit code.
    pub const SYSCALL32: u32 = 1 << 10;
    /// SYSENTER.
    pub const SYSENTER: u32 = 1 << 11;
}

impl GuestFrame {
    /// How this entry came about.
    #[inline]
    pub fn entry(&self) -> Entry {
        let number = self.vector as u8;
        match self.vector & !0xff {
            entry_kind::INTERRUPT => Entry::Interrupt(number),
            entry_kind::SYSCALL64 => Entry::Syscall64,
            entry_kind::SYSCALL32 => Entry::Syscall32,
            entry_kind::SYSENTER => Entry::Sysenter,
            _ => Entry::Trap(number),
        }
    }

    /// Makes the return restore everything, `rcx`, `r11`, `cs` and `ss` included (by IRET).
    ///
    /// Whoever replaces the registers of a SYSCALL's frame as a whole calls this. Setting any other
    /// `vector` has the same effect.
    #[inline]
    pub fn return_fully(&mut self) {
        self.vector &= !entry_kind::SYSCALL64;
    }
}

/// Why a return to the guest failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReturnFault {
    /// The exception that IRET raised.
    pub vector: u8,
    /// Its error code.
    pub error_code: u32,
}

/// Leaves the hypervisor for a guest with these registers; the first way in after boot or idling.
///
/// Nothing on the stack survives.
pub fn enter(frame: GuestFrame) -> ! {
    let _ = frame;
    todo!()
}
