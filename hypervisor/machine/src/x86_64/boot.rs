//! From the loader's jump to the kernel's first line, on the first CPU.
//!
//! The loader enters in 32-bit protected mode without paging. Assembly builds early tables (the first
//! 4 GiB one to one, again at the direct map, and the image where it is linked), turns long mode on and
//! calls [`ferroxen_boot`]. From there on it is Rust: find free memory, build our own page tables, descriptor
//! tables, per-CPU block and heap, copy the loader's words out, and call the kernel on a proper stack.

use super::handoff::{self, Boot, Handoff, MemoryRange, Module};
use super::layout::{CPU_BLOCK, DIRECT_MAP, IMAGE_LOAD, IMAGE_OFFSET};
use super::percpu::{FRAME_OFFSET, INFO_OFFSET};
use super::{cpu, frame, gdt, heap, idt, m2p, memory, paging};
use crate::multiboot::{Loader, Physical, RAM, Text};
use crate::ranges::Ranges;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::ptr::addr_of;
use core::sync::atomic::AtomicU64;
use ferroxen_words::{Maddr, PAGE_SIZE};

/// The stack until there is a block for the first CPU, laid out like one.
#[repr(C, align(65536))]
struct EarlyBlock(UnsafeCell<MaybeUninit<[u8; CPU_BLOCK as usize]>>);

// SAFETY: only the first CPU uses it, and only as a stack.
unsafe impl Sync for EarlyBlock {}

#[unsafe(link_section = ".bss.blocks")]
static EARLY_BLOCK: EarlyBlock = EarlyBlock(UnsafeCell::new(MaybeUninit::zeroed()));

unsafe extern "C" {
    static __image_start: u8;
    static __text_end: u8;
    static __rodata_end: u8;
    static __data_end: u8;
    static __loaded_end: u8;
    static __image_end: u8;
    static boot_l4: u8;
}

global_asm!(
    ".pushsection .boot.header, \"a\"",
    ".align 8",
    // Multiboot 1: page-aligned modules, memory map, and the addresses that spare the loader ELF64.
    "boot_header1:",
    ".long 0x1badb002, 0x10003, -(0x1badb002 + 0x10003)",
    ".long boot_header1 - {offset}, __image_start - {offset}, __loaded_end - {offset}",
    ".long __image_end - {offset}, ferroxen_entry - {offset}",
    ".align 8",
    // Multiboot 2: the same in tags.
    "boot_header2:",
    ".long 0xe85250d6, 0, 9f - boot_header2, -(0xe85250d6 + (9f - boot_header2))",
    ".short 1, 1",
    ".long 32, 1, 2, 3, 6, 14, 15",
    ".align 8",
    ".short 2, 0",
    ".long 24",
    ".long boot_header2 - {offset}, __image_start - {offset}, __loaded_end - {offset}, __image_end - {offset}",
    ".short 3, 0",
    ".long 12, ferroxen_entry - {offset}",
    ".align 8",
    ".short 6, 0",
    ".long 8",
    ".short 0, 0",
    ".long 8",
    "9:",
    ".popsection",
    //
    ".pushsection .boot.text, \"ax\"",
    ".code32",
    ".global ferroxen_entry",
    "ferroxen_entry:",
    "cli",
    "cld",
    "movl %eax, %edi",
    "movl %ebx, %esi",
    "movl $0x80000000, %eax",
    "cpuid",
    "cmpl $0x80000001, %eax",
    "jb 8f",
    "movl $0x80000001, %eax",
    "cpuid",
    "btl $29, %edx",
    "jc 1f",
    // No long mode: say so on the screen, for want of anything better.
    "8: movl $0x4f344f36, 0xb8000",
    "movl $0x4f624f3f, 0xb8004",
    "9: hlt",
    "jmp 9b",
    // Level 2: the first 4 GiB in 2 MiB pages, present, writable, large.
    "1: xorl %ecx, %ecx",
    "2: movl %ecx, %eax",
    "shll $21, %eax",
    "orl $0x83, %eax",
    "movl %eax, (boot_l2 - {offset})(,%ecx,8)",
    "movl $0, (boot_l2 - {offset} + 4)(,%ecx,8)",
    "incl %ecx",
    "cmpl $2048, %ecx",
    "jb 2b",
    // Level 3.
    "movl $(boot_l2 - {offset} + 3), %eax",
    "movl %eax, boot_l3_image - {offset} + 321 * 8",
    "xorl %ecx, %ecx",
    "3: movl %eax, (boot_l3 - {offset})(,%ecx,8)",
    "addl $4096, %eax",
    "incl %ecx",
    "cmpl $4, %ecx",
    "jb 3b",
    // Level 4: one to one, the image, the direct map.
    "movl $(boot_l3 - {offset} + 3), boot_l4 - {offset}",
    "movl $(boot_l3_image - {offset} + 3), boot_l4 - {offset} + 261 * 8",
    "movl $(boot_l3 - {offset} + 3), boot_l4 - {offset} + 262 * 8",
    "movl $(boot_l4 - {offset}), %eax",
    "movl %eax, %cr3",
    "movl $0x20, %eax",
    "movl %eax, %cr4",
    "movl $0xc0000080, %ecx",
    "rdmsr",
    "orl $0x100, %eax",
    "wrmsr",
    "movl $0x80010033, %eax",
    "movl %eax, %cr0",
    "lgdtl boot_gdt_pointer - {offset}",
    "ljmpl $8, $(4f - {offset})",
    ".code64",
    "4: movabsq $5f, %rax",
    "jmpq *%rax",
    "5: movl $16, %eax",
    "movl %eax, %ds",
    "movl %eax, %es",
    "movl %eax, %ss",
    "xorl %eax, %eax",
    "movl %eax, %fs",
    "movl %eax, %gs",
    "lgdtq boot_gdt_pointer_high(%rip)",
    "leaq {block} + {stack}(%rip), %rsp",
    "xorl %ebp, %ebp",
    "call {boot}",
    "ud2",
    ".align 8",
    "boot_gdt: .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff",
    "boot_gdt_pointer: .short 23",
    ".long boot_gdt - {offset}",
    ".align 8",
    ".global boot_gdt_pointer_high",
    "boot_gdt_pointer_high: .short 23",
    ".quad boot_gdt",
    ".popsection",
    //
    ".pushsection .bss.blocks, \"aw\", @nobits",
    ".align 4096",
    ".global boot_l4",
    "boot_l4: .skip 4096",
    "boot_l3: .skip 4096",
    "boot_l3_image: .skip 4096",
    "boot_l2: .skip 4 * 4096",
    ".popsection",
    offset = const IMAGE_OFFSET,
    block = sym EARLY_BLOCK,
    stack = const FRAME_OFFSET & !15,
    boot = sym ferroxen_boot,
    options(att_syntax)
);

/// Where the parts of the image end, as physical addresses.
pub(super) struct ImageParts {
    pub start: u64,
    pub text_end: u64,
    pub rodata_end: u64,
    pub data_end: u64,
    pub loaded_end: u64,
    pub end: u64,
}

impl ImageParts {
    /// Whether a physical address lies in the image.
    pub fn contains(&self, physical: u64) -> bool {
        (self.start..self.end).contains(&physical)
    }
}

/// Where the image lies.
pub(super) fn image_parts() -> ImageParts {
    let physical = |symbol: *const u8| symbol as u64 - IMAGE_OFFSET;
    ImageParts {
        start: physical(addr_of!(__image_start)),
        text_end: physical(addr_of!(__text_end)),
        rodata_end: physical(addr_of!(__rodata_end)),
        data_end: physical(addr_of!(__data_end)),
        loaded_end: physical(addr_of!(__loaded_end)),
        end: physical(addr_of!(__image_end)),
    }
}

/// Physical address of the early root, which other CPUs start on: it maps low memory one to one.
pub(super) fn early_root() -> u64 {
    addr_of!(boot_l4) as u64 - IMAGE_OFFSET
}

/// Memory below this is left to firmware, the screen and the other CPUs' first steps.
const LOW_MEMORY: u64 = 1 << 20;
/// The early tables reach this far.
const EARLY_REACH: u64 = 4 << 30;

/// What the early tables map: memory as the loader left it.
struct EarlyMemory;

impl Physical for EarlyMemory {
    fn read(&self, at: u64, into: &mut [u8]) -> bool {
        let inside = at.checked_add(into.len() as u64).is_some_and(|end| end <= EARLY_REACH);
        if inside {
            // SAFETY: within what the early direct map holds; bytes, copied out at once.
            unsafe { memory::copy_bytes(into.as_mut_ptr(), (DIRECT_MAP + at) as *const u8, into.len()) };
        }
        inside
    }
}

extern "C" fn ferroxen_boot(magic: u32, info: u32) -> ! {
    let image = image_parts();
    assert!(image.start == IMAGE_LOAD, "the image was linked for another place");
    let loader = Loader::read(magic, info, &EarlyMemory).unwrap_or_else(|why| panic!("{why}"));
    let (all_ram, mut free) = sort_memory(&loader, &image);
    for module in &loader.modules {
        let in_ram = all_ram
            .as_slice()
            .iter()
            .any(|&(s, e)| s <= module.start && module.end <= e);
        let apart = module.end <= image.start || image.end <= module.start;
        assert!(
            in_ram && apart,
            "the loader's module at {:#x} is no RAM, or where we are",
            module.start
        );
    }
    cpu::init_this();
    // Now, while XCR0 names everything: the answer is kept, and buffers are sized by it.
    super::fpu::area_bytes();

    let limit = all_ram.as_slice().last().map_or(0, |&(_, end)| end);
    let mut frames = |count: u64, align: u64| {
        let at = free.take(count * PAGE_SIZE as u64, align, EARLY_REACH);
        let at = at.expect("not enough memory below 4 GiB for page tables");
        // SAFETY: free RAM below 4 GiB, which the early direct map holds; nobody else has it.
        unsafe { core::ptr::write_bytes((DIRECT_MAP + at) as *mut u8, 0, count as usize * PAGE_SIZE) };
        at
    };
    // SAFETY: the first and only call, on the early tables, with frames from free memory.
    unsafe { paging::build_own_root(&image, &loader, all_ram.as_slice(), &mut frames) };
    paging::activate_own();

    let heap_bytes = heap::size_for(all_ram.as_slice().iter().map(|&(s, e)| e - s).sum());
    let heap_at = free.take(heap_bytes, 2 << 20, u64::MAX);
    let heap_at = heap_at.expect("not enough memory for the heap");
    // SAFETY: taken out of free memory for ever, and in the direct map.
    unsafe { heap::init((DIRECT_MAP + heap_at) as *mut u8, heap_bytes as usize) };

    let limit_mfn = limit / PAGE_SIZE as u64;
    let bits = Vec::from_iter((0..limit_mfn.div_ceil(64)).map(|_| AtomicU64::new(0)));
    // SAFETY: zeroed words for every frame, leaked; all RAM is in the direct map.
    unsafe { memory::init_nameable(Vec::leak(bits).as_mut_ptr(), limit_mfn) };
    memory::remember_ram(all_ram);
    m2p::fill();

    let handoff = Box::new(copy_out(&loader, free));
    let block = paging::map_cpu_block(0).expect("no memory for the first CPU");
    // SAFETY: a fresh block that is mapped for ever; its info is set before it is used as a stack.
    unsafe {
        let info = (block + INFO_OFFSET) as *mut super::percpu::CpuInfo;
        (*info).cpu = 0;
        (*info).apic_id = cpu::initial_apic_id();
        (*info).root = (*super::percpu::info()).root;
    }
    super::smp::note_apic_id(0, cpu::initial_apic_id());
    // SAFETY: CPU 0, once; the block is its own.
    unsafe {
        gdt::init_this(0, block);
        idt::init();
        frame::init_this(0, block);
    }
    on_stack(block, first_steps, Box::into_raw(handoff) as u64)
}

extern "C" fn first_steps(handoff: u64) -> ! {
    // SAFETY: made by `Box::into_raw` just before.
    let handoff = unsafe { Box::from_raw(handoff as *mut Handoff) };
    frame::kernel_symbols::start(*handoff)
}

/// Leaves the current stack for the main stack of a CPU's block, and calls `then` there.
pub(super) fn on_stack(block: u64, then: extern "C" fn(u64) -> !, argument: u64) -> ! {
    // SAFETY: the block is mapped and nobody stands on it; `then` never comes back.
    unsafe {
        asm!(
            "mov rsp, {stack}",
            "xor ebp, ebp",
            "call {then}",
            "ud2",
            stack = in(reg) block + (FRAME_OFFSET & !15),
            then = in(reg) then,
            in("rdi") argument,
            options(noreturn)
        )
    }
}

/// Splits the memory map: all RAM, and the part of it that nobody uses.
fn sort_memory(loader: &Loader, image: &ImageParts) -> (Ranges, Ranges) {
    let mut all = Ranges::new();
    for range in loader.memory_map.iter().filter(|range| range.kind == RAM) {
        let end = range.base.saturating_add(range.bytes);
        all.add(range.base, end.min(super::layout::DIRECT_MAP_BYTES));
    }
    for range in loader.memory_map.iter().filter(|range| range.kind != RAM) {
        all.remove(range.base, range.base.saturating_add(range.bytes));
    }
    all.align_inwards(PAGE_SIZE as u64);
    let mut free = all.clone();
    free.remove(0, LOW_MEMORY);
    free.remove(image.start, image.end);
    for &(start, end) in &loader.busy {
        let page = PAGE_SIZE as u64;
        free.remove(start & !(page - 1), end.saturating_add(page - 1) & !(page - 1));
    }
    (all, free)
}

/// Copies what the loader said into the heap, so that its own memory need not be kept.
fn copy_out(loader: &Loader, free: Ranges) -> Handoff {
    let text = |range: Text| handoff::copy_physical(range.at, range.len);
    let modules = loader.modules.iter();
    let modules = modules
        .map(|module| Module::new(module.start, module.end, text(module.text)))
        .collect();
    let memory_map = loader.memory_map.iter().map(|range| MemoryRange {
        base: Maddr::new(range.base),
        bytes: range.bytes,
        kind: range.kind,
    });
    let memory_map = memory_map.collect();
    Handoff {
        modules,
        command_line: text(loader.command_line),
        loader_name: text(loader.name),
        memory_map,
        acpi_root: (loader.acpi_root.len != 0).then(|| text(loader.acpi_root)),
        boot: Boot::new(free),
    }
}
