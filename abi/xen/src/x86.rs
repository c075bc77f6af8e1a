//! The x86-64 half of the ABI. Upstream: `xen/include/public/arch-x86/{xen,xen-x86_64}.h`.

use core::mem::{offset_of, size_of};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// GDT page from which on the entries are the hypervisor's (`FIRST_RESERVED_GDT_PAGE`).
pub const FIRST_RESERVED_GDT_PAGE: usize = 14;
/// `FIRST_RESERVED_GDT_ENTRY`.
pub const FIRST_RESERVED_GDT_ENTRY: usize = FIRST_RESERVED_GDT_PAGE * 512;

/// Flat selectors that every PV guest has (`FLAT_*`).
pub mod selector {
    /// `FLAT_RING3_CS32`
    pub const FLAT_RING3_CS32: u16 = 0xe023;
    /// `FLAT_RING3_DS32`, also the flat 64-bit stack selector (`FLAT_RING3_SS64`)
    pub const FLAT_RING3_DS: u16 = 0xe02b;
    /// `FLAT_RING3_CS64`
    pub const FLAT_RING3_CS64: u16 = 0xe033;
}

/// One entry of a guest's virtual IDT (`trap_info`).
#[derive(Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TrapInfo {
    /// Exception or software-interrupt number.
    pub vector: u8,
    /// Bits 0-1: who may enter by `int`; bit 2: events are masked on entry.
    pub flags: u8,
    /// Code selector.
    pub cs: u16,
    /// Padding.
    pub pad: u32,
    /// Handler; 0 ends a table.
    pub address: u64,
}
const _: () = assert!(size_of::<TrapInfo>() == 16);

/// General registers (`cpu_user_regs`).
#[derive(Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "registers")]
pub struct CpuUserRegs {
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
    pub error_code: u32,
    pub entry_vector: u32,
    pub rip: u64,
    pub cs: u16,
    pub pad0: u16,
    pub saved_upcall_mask: u8,
    pub pad1: [u8; 3],
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u16,
    pub pad2: [u16; 3],
    pub es: u16,
    pub pad3: [u16; 3],
    pub ds: u16,
    pub pad4: [u16; 3],
    pub fs: u16,
    pub pad5: [u16; 3],
    pub gs: u16,
    pub pad6: [u16; 3],
}
const _: () = assert!(size_of::<CpuUserRegs>() == 200 && offset_of!(CpuUserRegs, rip) == 128);

/// A vcpu's whole context (`vcpu_guest_context`).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the header's names")]
pub struct VcpuGuestContext {
    pub fpu_ctxt: [u8; 512],
    pub flags: u64,
    pub user_regs: CpuUserRegs,
    pub trap_ctxt: [TrapInfo; 256],
    pub ldt_base: u64,
    pub ldt_ents: u64,
    pub gdt_frames: [u64; 16],
    pub gdt_ents: u64,
    pub kernel_ss: u64,
    pub kernel_sp: u64,
    pub ctrlreg: [u64; 8],
    pub debugreg: [u64; 8],
    pub event_callback_eip: u64,
    pub failsafe_callback_eip: u64,
    pub syscall_callback_eip: u64,
    pub vm_assist: u64,
    pub fs_base: u64,
    pub gs_base_kernel: u64,
    pub gs_base_user: u64,
}
const _: () = assert!(size_of::<VcpuGuestContext>() == 5168);

/// `VGCF_*`: flags of a context, and of the `iret` hypercall's frame.
pub mod vgcf {
    #![allow(missing_docs, reason = "each is the header's name")]
    pub const I387_VALID: u64 = 1 << 0;
    pub const IN_KERNEL: u64 = 1 << 2;
    pub const FAILSAFE_DISABLES_EVENTS: u64 = 1 << 3;
    pub const SYSCALL_DISABLES_EVENTS: u64 = 1 << 4;
    pub const ONLINE: u64 = 1 << 5;
    pub const IN_SYSCALL: u64 = 1 << 8;
}

/// What the `iret` hypercall finds on the guest kernel's stack (`iret_context`).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "registers")]
pub struct IretContext {
    pub rax: u64,
    pub r11: u64,
    pub rcx: u64,
    pub flags: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// Which base `set_segment_base` sets (`SEGBASE_*`).
pub mod segbase {
    #![allow(missing_docs, reason = "each is the header's name")]
    pub const FS: u64 = 0;
    pub const GS_USER: u64 = 1;
    pub const GS_KERNEL: u64 = 2;
    pub const GS_USER_SEL: u64 = 3;
}

/// Callback kinds of `callback_op` (`CALLBACKTYPE_*`). Upstream: `callback.h`.
pub mod callback {
    #![allow(missing_docs, reason = "each is the header's name")]
    pub const OP_REGISTER: u64 = 0;
    pub const OP_UNREGISTER: u64 = 1;
    pub const EVENT: u16 = 0;
    pub const FAILSAFE: u16 = 1;
    pub const SYSCALL: u16 = 2;
    pub const NMI: u16 = 4;
    pub const SYSENTER: u16 = 5;
    pub const SYSCALL32: u16 = 7;
    pub const FLAG_MASK_EVENTS: u16 = 1;
}

/// `callback_register`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the header's names")]
pub struct CallbackRegister {
    pub kind: u16,
    pub flags: u16,
    pub pad: u32,
    pub address: u64,
}
