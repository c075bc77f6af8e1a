//! Other CPUs' first steps: from a page below 1 MiB, where they start in real mode, to the kernel.
//!
//! One at a time, since the cells that tell a CPU who it is exist once. A CPU that does not answer in time
//! is reset again, so that it does not wake up later and take another's place.

use super::boot::early_root;
use super::layout::{CPU_BLOCK, CPU_BLOCKS, DIRECT_MAP};
use super::percpu::{CpuInfo, FRAME_OFFSET, INFO_OFFSET};
use super::{MAX_CPUS, apic, cpu, frame, gdt, idt, memory, paging, port, smp, time};
use crate::interrupts::ApicId;
use core::arch::global_asm;
use core::ptr::addr_of;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use ferroxen_words::{CpuId, Mfn, PAGE_SIZE};

/// The page that CPUs start in: conventional memory, which nobody else gets.
const START_PAGE: u64 = 0x7000;

global_asm!(
    ".pushsection .rodata.secondary, \"a\"",
    ".code16",
    ".global ferroxen_start_page",
    "ferroxen_start_page:",
    "cli",
    "cld",
    "movw %cs, %ax",
    "movw %ax, %ds",
    "lgdtl (start_gdt_pointer - ferroxen_start_page)",
    "movl $0x20, %eax",
    "movl %eax, %cr4",
    "movl (start_root - ferroxen_start_page), %eax",
    "movl %eax, %cr3",
    "movl $0xc0000080, %ecx",
    "rdmsr",
    "orl $0x100, %eax",
    "wrmsr",
    "movl $0x80010033, %eax",
    "movl %eax, %cr0",
    "ljmpl *(start_far - ferroxen_start_page)",
    ".code64",
    "start_long:",
    "movq start_entry(%rip), %rax",
    "jmpq *%rax",
    ".align 8",
    "start_gdt: .quad 0, 0x00af9b000000ffff",
    "start_gdt_pointer: .short 15",
    ".long {page} + start_gdt - ferroxen_start_page",
    ".align 4",
    "start_far: .long {page} + start_long - ferroxen_start_page",
    ".short 8",
    ".align 4",
    ".global start_root",
    "start_root: .long 0",
    ".align 8",
    "start_entry: .quad ferroxen_secondary_entry",
    ".global ferroxen_start_page_end",
    "ferroxen_start_page_end:",
    ".popsection",
    //
    ".pushsection .text.entry, \"ax\"",
    ".global ferroxen_secondary_entry",
    "ferroxen_secondary_entry:",
    "lgdtq boot_gdt_pointer_high(%rip)",
    "movl $16, %eax",
    "movl %eax, %ss",
    "movl $0xc0000080, %ecx",
    "movl {features}(%rip), %eax",
    "movl {features} + 4(%rip), %edx",
    "wrmsr",
    "movq {root}(%rip), %rax",
    "movq %rax, %cr3",
    "movq {stack}(%rip), %rsp",
    "xorl %ebp, %ebp",
    "call {arrive}",
    "ud2",
    ".popsection",
    page = const START_PAGE,
    features = sym EXTENDED_FEATURES,
    root = sym ROOT,
    stack = sym STACK,
    arrive = sym arrive,
    options(att_syntax)
);

unsafe extern "C" {
    static ferroxen_start_page: u8;
    static ferroxen_start_page_end: u8;
}

/// EFER as the first CPU has it: the tables use its no-execute bit.
static EXTENDED_FEATURES: AtomicU64 = AtomicU64::new(0);
/// Our own root.
static ROOT: AtomicU64 = AtomicU64::new(0);
/// The stack of the CPU that is being started.
static STACK: AtomicU64 = AtomicU64::new(0);
/// The CPU that has arrived last.
static ARRIVED: AtomicU32 = AtomicU32::new(0);

/// Microseconds that a CPU gets to answer; one under emulation on a busy host may be slow, and have to wait for its turn.
const PATIENCE_US: u64 = 1_000_000;

/// Brings further CPUs up, one after the other; each calls `kernel::secondary`.
///
/// Answers how many came up. They are numbered in this order, from 1; one that does not answer is skipped.
/// This CPU's own id may be in the list.
pub fn start_secondaries(apic_ids: &[ApicId]) -> u32 {
    if !memory::is_ram(Mfn::new(START_PAGE / PAGE_SIZE as u64)) {
        return 0;
    }
    prepare_start_page();
    let mut started = 0;
    for &id in apic_ids {
        let number = cpu::cpus_online() as usize;
        if number == MAX_CPUS {
            break;
        }
        if id.0 != cpu::apic_id() && start(number, id) {
            started += 1;
        }
    }
    started
}

fn prepare_start_page() {
    let code = addr_of!(ferroxen_start_page);
    let bytes = addr_of!(ferroxen_start_page_end) as usize - code as usize;
    let page = (DIRECT_MAP + START_PAGE) as *mut u8;
    unsafe extern "C" {
        static start_root: u8;
    }
    let root_cell = addr_of!(start_root) as usize - code as usize;
    // SAFETY: the page is conventional memory that boot left to this purpose; code and cell lie within a page.
    unsafe {
        page.copy_from_nonoverlapping(code, bytes);
        page.add(root_cell).cast::<u32>().write(early_root() as u32);
    }
    EXTENDED_FEATURES.store(cpu::read_host_msr(0xc000_0080).unwrap_or(0x500), Ordering::Relaxed);
    ROOT.store(paging::own_root(), Ordering::Relaxed);
}

fn start(number: usize, id: ApicId) -> bool {
    let block = CPU_BLOCKS + number as u64 * CPU_BLOCK;
    if !paging::is_mapped(block) && paging::map_cpu_block(number).is_none() {
        return false;
    }
    // SAFETY: the block of a CPU that does not run yet.
    unsafe {
        let info = (block + INFO_OFFSET) as *mut CpuInfo;
        (*info).cpu = number as u32;
        (*info).apic_id = id.0;
        (*info).root = paging::own_root();
    }
    STACK.store(block + (FRAME_OFFSET & !15), Ordering::Release);
    // SAFETY: the id is not this CPU's, and the page holds the code for it to start with (SDM 3A "MP
    // Initialization Protocol").
    unsafe {
        apic::send_init(id);
        pause_us(200);
        apic::send_init_deassert(id);
        pause_us(10_000);
        apic::send_startup(id, (START_PAGE >> 12) as u8);
    }
    if wait_for(number, 200) {
        return true;
    }
    // SAFETY: as above.
    unsafe { apic::send_startup(id, (START_PAGE >> 12) as u8) };
    if wait_for(number, PATIENCE_US) {
        return true;
    }
    // SAFETY: back to waiting for a start, for good.
    unsafe { apic::send_init(id) };
    false
}

/// Waits by the clock: where instructions take no time to speak of, a count of them is no measure.
fn wait_for(number: usize, microseconds: u64) -> bool {
    let until = time::now_ns().saturating_add(microseconds * 1000);
    loop {
        if ARRIVED.load(Ordering::Acquire) == number as u32 {
            return true;
        }
        if time::now_ns() >= until {
            return false;
        }
        smp::service_requests();
        pause_us(1);
    }
}

/// Waits about so long: reading the diagnostic port takes about a microsecond, with or without a clock.
fn pause_us(microseconds: u32) {
    for _ in 0..microseconds {
        // SAFETY: the port shows what firmware last wrote there, and does nothing.
        unsafe { port::inb(0x80) };
    }
}

/// The new CPU, on its own stack and our own root.
extern "C" fn arrive() -> ! {
    let number = super::percpu::cpu_number();
    let block = super::percpu::block();
    cpu::init_this();
    // SAFETY: this CPU, once; the block is its own.
    unsafe {
        gdt::init_this(number, block);
        idt::load();
        frame::init_this(number, block);
    }
    paging::activate_own();
    apic::init_this_cpu();
    smp::note_apic_id(number, cpu::apic_id());
    cpu::ONLINE.store(number as u32 + 1, Ordering::Release);
    ARRIVED.store(number as u32, Ordering::Release);
    frame::kernel_symbols::secondary(CpuId(number as u32))
}
