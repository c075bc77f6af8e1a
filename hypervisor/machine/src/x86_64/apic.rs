//! The local APIC: who may interrupt this CPU, calls to other CPUs, and the one-shot timer.
//!
//! One of two shapes, the same on every CPU: registers in memory (xAPIC) or model-specific registers (x2APIC).
//! x2APIC is used where firmware left it on, and in virtual machines that offer it, where it costs fewer exits; a
//! bare machine whose firmware left it off would need interrupt remapping first (SDM 3A "x2APIC").
//!
//! Only fixed delivery of a [`Vector`] is a safe door. INIT and start-up, which take a CPU away from the code that
//! it runs, are for `smp` alone.

use core::arch::asm;
use core::arch::x86_64::_rdtsc;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use ferroxen_words::{CpuId, Maddr};
use spin::Once;

use super::paging::{self, Mmio};
use super::{cpu, time};
pub use crate::interrupts::{ApicId, Vector, vectors};

const MSR_BASE: u32 = 0x1b;
const MSR_TSC_DEADLINE: u32 = 0x6e0;
const MSR_X2APIC: u32 = 0x800;

const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLE: u64 = 1 << 11;
const BASE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A register, by its offset in memory; as an x2APIC MSR it is a sixteenth of that.
#[derive(Clone, Copy)]
struct Register(u16);

const ID: Register = Register(0x020);
const VERSION: Register = Register(0x030);
const TASK_PRIORITY: Register = Register(0x080);
const EOI: Register = Register(0x0b0);
const LOGICAL_DESTINATION: Register = Register(0x0d0);
const DESTINATION_FORMAT: Register = Register(0x0e0);
const SPURIOUS: Register = Register(0x0f0);
const IN_SERVICE: Register = Register(0x100);
const REQUESTED: Register = Register(0x200);
const ERROR_STATUS: Register = Register(0x280);
const LVT_CMCI: Register = Register(0x2f0);
const COMMAND: Register = Register(0x300);
const COMMAND_HIGH: Register = Register(0x310);
const LVT_TIMER: Register = Register(0x320);
const LVT_THERMAL: Register = Register(0x330);
const LVT_PERFORMANCE: Register = Register(0x340);
const LVT_LINT0: Register = Register(0x350);
const LVT_LINT1: Register = Register(0x360);
const LVT_ERROR: Register = Register(0x370);
const TIMER_INITIAL: Register = Register(0x380);
const TIMER_CURRENT: Register = Register(0x390);
const TIMER_DIVIDE: Register = Register(0x3e0);

const LVT_MASKED: u32 = 1 << 16;
const LVT_NMI: u32 = 0b100 << 8;
const LVT_TSC_DEADLINE: u32 = 0b10 << 17;
const SOFTWARE_ENABLE: u32 = 1 << 8;
const DIVIDE_BY_1: u32 = 0b1011;

const COMMAND_BUSY: u32 = 1 << 12;
const ASSERT: u32 = 1 << 14;
const LEVEL: u32 = 1 << 15;
const DELIVER_NMI: u32 = 0b100 << 8;
const DELIVER_INIT: u32 = 0b101 << 8;
const DELIVER_STARTUP: u32 = 0b110 << 8;

const UNSET: u8 = 0;
const IN_MEMORY: u8 = 1;
const IN_MSRS: u8 = 2;

static SHAPE: AtomicU8 = AtomicU8::new(UNSET);
static REGISTERS: Once<Mmio> = Once::new();
/// Counts per second of the timer; 0 until it has been measured.
static TIMER_HZ: AtomicU64 = AtomicU64::new(0);

/// How the CPUs talk to their local APICs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// Registers in memory; ids of eight bits.
    XApic,
    /// Model-specific registers; ids of 32 bits.
    X2Apic,
}

/// Chooses the shape and sets this CPU's APIC up, on the boot CPU before any other runs.
///
/// `None` if the processor has no local APIC or firmware has disabled it for good.
pub fn init(wants_x2apic: Option<bool>) -> Option<Shape> {
    let base = cpu::read_host_msr(MSR_BASE)?;
    let [_, _, c1, d1] = cpu::cpuid(1, 0);
    if d1 & 1 << 9 == 0 {
        return None;
    }
    let left_on = base & (BASE_ENABLE | BASE_X2APIC) == BASE_ENABLE | BASE_X2APIC;
    let is_virtual_machine = c1 & 1 << 31 != 0;
    let has_x2apic = c1 & 1 << 21 != 0;
    if left_on || (has_x2apic && wants_x2apic.unwrap_or(is_virtual_machine)) {
        SHAPE.store(IN_MSRS, Ordering::Release);
    } else {
        REGISTERS.call_once(|| paging::map_mmio(Maddr::new(base & BASE_ADDRESS), 1));
        SHAPE.store(IN_MEMORY, Ordering::Release);
    }
    init_this_cpu();
    Some(shape())
}

/// Sets this CPU's APIC up in the shape that the boot CPU chose.
pub fn init_this_cpu() {
    let base = cpu::read_host_msr(MSR_BASE).unwrap_or(0);
    let wanted = match shape() {
        Shape::X2Apic => base | BASE_ENABLE | BASE_X2APIC,
        Shape::XApic => base | BASE_ENABLE,
    };
    if base & BASE_ENABLE == 0 && wanted & BASE_X2APIC != 0 {
        // SAFETY: the way from off to x2APIC leads through xAPIC; the registers' address stays the same.
        unsafe { write_msr(MSR_BASE, base | BASE_ENABLE) };
    }
    if base != wanted {
        // SAFETY: as above.
        unsafe { write_msr(MSR_BASE, wanted) };
    }
    write(LVT_TIMER, LVT_MASKED | u32::from(vectors::TIMER.number()));
    write(LVT_LINT0, LVT_MASKED);
    write(
        LVT_LINT1,
        if cpu::cpu_id() == CpuId(0) {
            LVT_NMI
        } else {
            LVT_NMI | LVT_MASKED
        },
    );
    let last_entry = read(VERSION) >> 16 & 0xff;
    if last_entry >= 4 {
        write(LVT_PERFORMANCE, LVT_MASKED | u32::from(vectors::PERFORMANCE.number()));
    }
    if last_entry >= 5 {
        write(LVT_THERMAL, LVT_MASKED | u32::from(vectors::THERMAL.number()));
    }
    if last_entry >= 6 {
        write(LVT_CMCI, LVT_MASKED | u32::from(vectors::MACHINE_CHECK.number()));
    }
    if shape() == Shape::XApic {
        write(DESTINATION_FORMAT, u32::MAX);
        write(LOGICAL_DESTINATION, 0);
    }
    write(TASK_PRIORITY, 0x10); // holds back nothing but what could pass for an exception
    write(SPURIOUS, SOFTWARE_ENABLE | u32::from(vectors::SPURIOUS.number()));
    acknowledge_left_overs();
    clear_errors();
    write(LVT_ERROR, u32::from(vectors::ERROR.number()));
    clear_errors();
    write(TIMER_DIVIDE, DIVIDE_BY_1);
    write(TIMER_INITIAL, 0);
    if has_tsc_deadline() {
        write(LVT_TIMER, LVT_TSC_DEADLINE | u32::from(vectors::TIMER.number()));
        // The mode must have changed before the first deadline is written (SDM 3A "TSC-Deadline Mode").
        // SAFETY: only orders memory accesses.
        unsafe { asm!("mfence", options(nostack, preserves_flags)) };
    } else {
        write(LVT_TIMER, u32::from(vectors::TIMER.number()));
    }
}

/// Interrupts that firmware took and never finished would hold back ours for ever.
fn acknowledge_left_overs() {
    for bank in (0..8).rev() {
        for _ in 0..32 {
            if read(Register(IN_SERVICE.0 + bank * 0x10)) == 0 {
                break;
            }
            eoi();
        }
    }
}

/// The shape that [`init`] chose.
#[inline]
pub fn shape() -> Shape {
    if SHAPE.load(Ordering::Relaxed) == IN_MSRS {
        Shape::X2Apic
    } else {
        Shape::XApic
    }
}

/// This CPU's APIC id, as the APIC itself says.
pub fn id() -> ApicId {
    match shape() {
        Shape::X2Apic => ApicId(read(ID)),
        Shape::XApic => ApicId(read(ID) >> 24),
    }
}

/// Ends the interrupt of highest priority that this CPU has taken.
#[inline]
pub fn eoi() {
    write(EOI, 0);
}

/// Interrupts another CPU.
pub fn send(to: ApicId, vector: Vector) {
    command(to, ASSERT | u32::from(vector.number()));
}

/// Sends a non-maskable interrupt, which ours answer by looking around.
pub fn send_nmi(to: ApicId) {
    command(to, ASSERT | DELIVER_NMI);
}

/// Resets a CPU, which then waits for [`send_startup`].
///
/// # Safety
/// The CPU runs no code of ours, or is never to run again.
pub(super) unsafe fn send_init(to: ApicId) {
    command(to, ASSERT | LEVEL | DELIVER_INIT);
}

/// Ends an INIT on processors old enough to want that.
///
/// # Safety
/// As [`send_init`].
pub(super) unsafe fn send_init_deassert(to: ApicId) {
    command(to, LEVEL | DELIVER_INIT);
}

/// Starts a CPU after INIT, in real mode at `page` * 4096.
///
/// # Safety
/// The page holds code that brings the CPU to a stack and tables of its own.
pub(super) unsafe fn send_startup(to: ApicId, page: u8) {
    command(to, ASSERT | DELIVER_STARTUP | u32::from(page));
}

fn command(to: ApicId, what: u32) {
    if shape() == Shape::X2Apic {
        // A send may pass stores that the target is to see, so fence first (SDM 3A "WRMSR in x2APIC Mode").
        // SAFETY: the callers vouch for what the command does; fences only order.
        unsafe {
            asm!("mfence", "lfence", options(nostack, preserves_flags));
            write_msr(
                MSR_X2APIC + u32::from(COMMAND.0 >> 4),
                u64::from(to.0) << 32 | u64::from(what),
            );
        }
        return;
    }
    wait_until_sent();
    write(COMMAND_HIGH, to.0 << 24);
    write(COMMAND, what);
}

/// Waits until the last command has left this CPU. A dead target does not hold it up; only the bus could.
fn wait_until_sent() {
    for _ in 0..100_000 {
        if read(COMMAND) & COMMAND_BUSY == 0 {
            return;
        }
        cpu::relax();
    }
}

/// Tells whether this CPU has taken the vector and not ended it.
pub fn is_in_service(vector: Vector) -> bool {
    bit_of(IN_SERVICE, vector)
}

/// Tells whether the vector waits for this CPU to take interrupts.
pub fn is_requested(vector: Vector) -> bool {
    bit_of(REQUESTED, vector)
}

fn bit_of(first: Register, vector: Vector) -> bool {
    let bank = u16::from(vector.number() / 32) * 0x10;
    read(Register(first.0 + bank)) & 1 << (vector.number() % 32) != 0
}

/// What [`vectors::ERROR`] is about: the error status register, which this clears.
pub fn take_errors() -> u32 {
    write(ERROR_STATUS, 0);
    read(ERROR_STATUS)
}

fn clear_errors() {
    write(ERROR_STATUS, 0);
}

/// Arms this CPU's timer: [`vectors::TIMER`] arrives when the time stamp counter has reached `deadline`.
///
/// It may come early if the deadline is far off (a counter of 32 bits): whoever takes it looks at the clock and
/// arms again. A deadline that has passed interrupts at once.
pub fn timer_arm(deadline: u64) {
    if has_tsc_deadline() {
        // SAFETY: sets a time; 0 would disarm, so the past is 1.
        unsafe { write_msr(MSR_TSC_DEADLINE, deadline.max(1)) };
        return;
    }
    // SAFETY: reads a counter.
    let now = unsafe { _rdtsc() };
    let nanoseconds = time::tsc_to_ns(deadline.saturating_sub(now));
    let hz = TIMER_HZ.load(Ordering::Relaxed);
    let counts = u128::from(nanoseconds) * u128::from(hz) / 1_000_000_000 + 1;
    write(TIMER_INITIAL, u32::try_from(counts).unwrap_or(u32::MAX));
}

/// Disarms this CPU's timer. An interrupt that is already on its way still arrives.
pub fn timer_disarm() {
    if has_tsc_deadline() {
        // SAFETY: 0 disarms.
        unsafe { write_msr(MSR_TSC_DEADLINE, 0) };
    } else {
        write(TIMER_INITIAL, 0);
    }
}

/// Starts the counter for a measurement; its interrupt stays masked.
pub(super) fn timer_measure_begin() {
    write(LVT_TIMER, LVT_MASKED | u32::from(vectors::TIMER.number()));
    write(TIMER_INITIAL, u32::MAX);
}

/// What is left of the counter after [`timer_measure_begin`], from `u32::MAX` down to 0.
pub(super) fn timer_left() -> u32 {
    read(TIMER_CURRENT)
}

/// Ends the measurement with what came out: counts per second.
pub(super) fn timer_measure_end(hz: u64) {
    TIMER_HZ.store(hz, Ordering::Relaxed);
    write(TIMER_INITIAL, 0);
    let mode = if has_tsc_deadline() { LVT_TSC_DEADLINE } else { 0 };
    write(LVT_TIMER, mode | u32::from(vectors::TIMER.number()));
}

/// Counts per second of the timer, for the boot report.
pub fn timer_hz() -> u64 {
    TIMER_HZ.load(Ordering::Relaxed)
}

/// Tells whether [`init`] has been called: before, there is nothing to measure or to end.
pub(super) fn is_set_up() -> bool {
    SHAPE.load(Ordering::Acquire) != UNSET
}

/// Tells whether the timer takes deadlines in ticks of the time stamp counter.
#[inline]
pub fn has_tsc_deadline() -> bool {
    cpu::features().tsc_deadline
}

#[inline]
fn read(register: Register) -> u32 {
    if SHAPE.load(Ordering::Relaxed) == IN_MSRS {
        let (low, _high): (u32, u32);
        // SAFETY: reading an APIC register in x2APIC mode; all that are read here exist in it.
        unsafe {
            asm!(
                "rdmsr",
                in("ecx") MSR_X2APIC + u32::from(register.0 >> 4),
                out("eax") low, out("edx") _high,
                options(nomem, nostack, preserves_flags)
            );
        }
        return low;
    }
    REGISTERS
        .get()
        .map_or(0, |registers| registers.read32(usize::from(register.0)))
}

#[inline]
fn write(register: Register, value: u32) {
    if SHAPE.load(Ordering::Relaxed) == IN_MSRS {
        // SAFETY: the registers that this file writes route interrupts to vectors that have gates.
        unsafe { write_msr(MSR_X2APIC + u32::from(register.0 >> 4), u64::from(value)) };
    } else if let Some(registers) = REGISTERS.get() {
        registers.write32(usize::from(register.0), value);
    }
}

/// # Safety
/// The register exists, and the value keeps what the hypervisor relies on.
#[inline]
unsafe fn write_msr(msr: u32, value: u64) {
    // SAFETY: the caller vouches.
    unsafe {
        asm!(
            "wrmsr",
            in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nostack, preserves_flags)
        );
    }
}
