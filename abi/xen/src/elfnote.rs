//! ELF notes by which a kernel tells how it wants to be started. Upstream: `xen/include/public/elfnote.h`.
//!
//! A note's owner name is `"Xen"`; numbers are 4 or 8 bytes long, strings end in a NUL.

/// The type field of a note whose owner is [`OWNER`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct ElfNote(pub u32);

/// The owner name of Xen's notes, without the closing NUL.
pub const OWNER: &[u8] = b"Xen";

/// The section that carried the same facts as one string before there were notes.
pub const LEGACY_SECTION: &[u8] = b"__xen_guest";

impl ElfNote {
    /// A `NAME=VALUE` pair, for information only.
    pub const INFO: ElfNote = ElfNote(0);
    /// Virtual address of the entry point.
    pub const ENTRY: ElfNote = ElfNote(1);
    /// Virtual address of the page to fill with hypercall stubs.
    pub const HYPERCALL_PAGE: ElfNote = ElfNote(2);
    /// Virtual address at which pseudo-physical page 0 is mapped.
    pub const VIRT_BASE: ElfNote = ElfNote(3);
    /// What to subtract from `p_paddr` to get a pseudo-physical address.
    pub const PADDR_OFFSET: ElfNote = ElfNote(4);
    /// The interface the kernel was built for: `xen-3.0`.
    pub const XEN_VERSION: ElfNote = ElfNote(5);
    /// Name of the guest operating system.
    pub const GUEST_OS: ElfNote = ElfNote(6);
    /// Version of the guest operating system.
    pub const GUEST_VERSION: ElfNote = ElfNote(7);
    /// Loader type: `generic`.
    pub const LOADER: ElfNote = ElfNote(8);
    /// Page-table width of a 32-bit kernel: `yes`, `no`, `bimodal`.
    pub const PAE_MODE: ElfNote = ElfNote(9);
    /// Features supported, and (with `!`) required, by name.
    pub const FEATURES: ElfNote = ElfNote(10);
    /// `yes` asks for the symbol table to be loaded behind the kernel.
    pub const BSD_SYMTAB: ElfNote = ElfNote(11);
    /// Lowest address at which the hypervisor's hole may begin.
    pub const HV_START_LOW: ElfNote = ElfNote(12);
    /// Mask and value pairs that tell which non-present L1 entries still carry an mfn.
    pub const L1_MFN_VALID: ElfNote = ElfNote(13);
    /// Whether the guest copes with a suspend that is called off.
    pub const SUSPEND_CANCEL: ElfNote = ElfNote(14);
    /// Virtual address at which the guest wants its initial P2M list.
    pub const INIT_P2M: ElfNote = ElfNote(15);
    /// Whether the initrd may stay out of the initial mapping.
    pub const MOD_START_PFN: ElfNote = ElfNote(16);
    /// Features supported, as a bitmap.
    pub const SUPPORTED_FEATURES: ElfNote = ElfNote(17);
    /// Physical address of the 32-bit entry point for PVH.
    pub const PHYS32_ENTRY: ElfNote = ElfNote(18);
}
