//! Our own descriptors: page 14 of every CPU's GDT window, and its task state segment.

use super::layout::{DESCRIPTOR_WINDOW, DESCRIPTORS};
use super::percpu::{INFO_OFFSET, IST_COUNT, IST_STACK};
use super::{heap, paging};
use core::arch::asm;

/// First selector of the page that is ours (`FIRST_RESERVED_GDT_BYTE`).
pub const FIRST_RESERVED: u16 = 0xe000;
/// Ring-0 64-bit code.
pub const CODE: u16 = 0xe008;
/// Ring-0 data.
pub const DATA: u16 = 0xe010;
/// What SYSRET counts its selectors from.
pub const SYSRET_BASE: u16 = 0xe023;
/// The task state segment (two entries).
pub const TASK: u16 = 0xe040;
/// The LDT (two entries).
pub const LDT: u16 = 0xe050;
/// Pages 0 to 14.
const LIMIT: u16 = 15 * 4096 - 1;

/// 64-bit task state segment (SDM 3A "TSS Format in 64-bit Mode").
#[repr(C, packed(4))]
struct TaskState {
    _reserved0: u32,
    stacks: [u64; 3],
    _reserved1: u64,
    interrupt_stacks: [u64; 7],
    _reserved2: u64,
    _reserved3: u16,
    /// Beyond the limit: no port is a guest's by hardware.
    io_map: u16,
}

const _: () = assert!(size_of::<TaskState>() == 104);

/// This CPU's descriptors, as one page.
#[repr(C, align(4096))]
struct OurPage {
    entries: [u64; 12],
    _unused: [u64; 4],
    task: TaskState,
}

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

/// Start of a CPU's GDT window.
pub const fn window(cpu: usize) -> u64 {
    DESCRIPTORS + cpu as u64 * DESCRIPTOR_WINDOW
}

/// Loads this CPU's GDT, segment registers and task register.
///
/// # Safety
/// Called once on each CPU, with its number and its mapped block.
pub unsafe fn init_this(cpu: usize, block: u64) {
    let physical = heap::take_pages(1, 4096).expect("no memory for descriptor tables");
    let page = (super::layout::DIRECT_MAP + physical) as *mut OurPage;
    let gdt_page = window(cpu) + 14 * 4096;
    let task = gdt_page + core::mem::offset_of!(OurPage, task) as u64;
    let mut interrupt_stacks = [0; 7];
    for (i, stack) in interrupt_stacks.iter_mut().take(IST_COUNT as usize).enumerate() {
        *stack = block + (i as u64 + 1) * IST_STACK;
    }
    let our_page = OurPage {
        entries: [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0,
            0x00cf_fb00_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            0,
            system_low(task, size_of::<TaskState>() as u64 - 1, 0x9),
            task >> 32,
            0,
            0,
        ],
        _unused: [0; 4],
        task: TaskState {
            _reserved0: 0,
            stacks: [block + INFO_OFFSET, 0, 0],
            _reserved1: 0,
            interrupt_stacks,
            _reserved2: 0,
            _reserved3: 0,
            io_map: size_of::<TaskState>() as u16,
        },
    };
    // SAFETY: a fresh page of the heap's, never given back.
    unsafe { page.write(our_page) };
    let window_entries = paging::descriptor_entries(cpu);
    super::segments::init_window(cpu, window_entries, physical);
    let pointer = Pointer {
        limit: LIMIT,
        base: window(cpu),
    };
    // SAFETY: the window maps our page at the selectors that are loaded; ring 0 code and data are flat, so the
    // running code carries on. The task state's stacks are the block's.
    unsafe {
        asm!(
            "lgdt [{pointer}]",
            "push {code}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "retfq",
            "2:",
            "mov ss, {data:e}",
            "mov ds, {null:e}",
            "mov es, {null:e}",
            "mov fs, {null:e}",
            "mov gs, {null:e}",
            "ltr {task:x}",
            "lldt {null:x}",
            pointer = in(reg) &pointer,
            code = const CODE as i32,
            scratch = out(reg) _,
            data = in(reg) u64::from(DATA),
            null = in(reg) 0u64,
            task = in(reg) u64::from(TASK),
        );
    }
}

/// The low word of a system descriptor (task state 9, LDT 2), present, for ring 0.
pub const fn system_low(base: u64, limit: u64, kind: u64) -> u64 {
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | kind << 40
        | 1 << 47
        | (limit >> 16 & 15) << 48
        | (base >> 24 & 0xff) << 56
}
