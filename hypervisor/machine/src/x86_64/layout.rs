//! The map of our part of every address space: level-4 slots 256 to 271.
//!
//! | slot | what |
//! |---|---|
//! | 256 | the machine-to-phys table, which guests may read |
//! | 261 | the image, and windows: per-CPU stacks, descriptor tables, devices |
//! | 262.. | the direct map: all of RAM |

/// The first level-4 slot that is ours in every root.
pub const FIRST_SLOT: usize = 256;
/// The last level-4 slot that is ours.
pub const LAST_SLOT: usize = 271;

/// The machine-to-phys table's slot.
pub const M2P_SLOT: usize = 256;
/// The slot of the image and the windows.
pub const IMAGE_SLOT: usize = 261;
/// The direct map's first slot.
pub const DIRECT_MAP_SLOT: usize = 262;
/// Bytes that one slot maps.
pub const SLOT_BYTES: u64 = 1 << 39;

/// Where guests read the machine-to-phys table (public ABI: `MACH2PHYS_VIRT_START`).
pub const M2P: u64 = 0xffff_8000_0000_0000;

/// Address at which physical address 0 would lie by the image's mapping.
pub const IMAGE_OFFSET: u64 = 0xffff_82d0_4000_0000;
/// Per-CPU blocks: [`CPU_BLOCK`] bytes for each CPU.
pub const CPU_BLOCKS: u64 = 0xffff_82d0_6000_0000;
/// Bytes of a per-CPU block: stacks and what is found by masking the stack pointer.
pub const CPU_BLOCK: u64 = 64 << 10;
/// SYSCALL stubs: [`STUB_BYTES`] for each CPU, within reach of a 32-bit displacement from the stacks.
pub const STUBS: u64 = 0xffff_82d0_5000_0000;
/// Bytes of one CPU's stub.
pub const STUB_BYTES: u64 = 64;
/// Descriptor windows: [`DESCRIPTOR_WINDOW`] bytes for each CPU.
pub const DESCRIPTORS: u64 = 0xffff_82d0_7000_0000;
/// Bytes of one CPU's descriptor window: 32 pages, the GDT's 16 and then the LDT's 16.
pub const DESCRIPTOR_WINDOW: u64 = 32 * 4096;
/// Device registers, mapped uncached, handed out from here upwards.
pub const DEVICES: u64 = 0xffff_82d0_8000_0000;
/// End of the device window.
pub const DEVICES_END: u64 = 0xffff_82d0_c000_0000;

/// The direct map: physical address 0.
pub const DIRECT_MAP: u64 = 0xffff_8300_0000_0000;
/// The most memory that the direct map's slots can hold.
pub const DIRECT_MAP_BYTES: u64 = (LAST_SLOT + 1 - DIRECT_MAP_SLOT) as u64 * SLOT_BYTES;

/// Where the image lies in physical memory.
pub const IMAGE_LOAD: u64 = 0x20_0000;
