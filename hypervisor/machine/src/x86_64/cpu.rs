//! The processor itself: identity, features, model-specific registers, waiting.

use super::fixups::on_fault;
use super::percpu;
use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, _rdtsc};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use ferroxen_words::{CpuId, Vaddr};

/// CPUs that have been brought up.
pub(super) static ONLINE: AtomicU32 = AtomicU32::new(1);

/// This CPU.
#[inline(always)]
pub fn cpu_id() -> CpuId {
    CpuId(percpu::cpu_number() as u32)
}

/// How many CPUs run; they are numbered from 0.
#[inline]
pub fn cpus_online() -> u32 {
    ONLINE.load(Ordering::Acquire)
}

/// This CPU's APIC id.
#[inline]
pub fn apic_id() -> u32 {
    // SAFETY: the info of the running CPU; only written before the CPU counts as online.
    unsafe { (*percpu::info()).apic_id }
}

/// Tells the processor that it is in a spin loop.
#[inline(always)]
pub fn relax() {
    core::hint::spin_loop();
}

/// The time stamp counter.
#[inline(always)]
pub fn tsc() -> u64 {
    // SAFETY: reads a counter; CR4.TSD does not bind us.
    unsafe { _rdtsc() }
}

/// Asks CPUID: `eax, ebx, ecx, edx`.
#[inline]
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let answer = __cpuid_count(leaf, subleaf);
    [answer.eax, answer.ebx, answer.ecx, answer.edx]
}

/// The address of the last page fault. To be read before anything else can fault.
#[inline(always)]
pub fn fault_address() -> Vaddr {
    let address: u64;
    // SAFETY: reading CR2 changes nothing.
    unsafe { asm!("mov {}, cr2", out(reg) address, options(nomem, nostack, preserves_flags)) };
    Vaddr::new(address)
}

/// Waits for an interrupt; it has been handled (`idle_interrupt`) when this returns.
///
/// Whoever has work to check for checks it before, with interrupts still off: one that comes in between is
/// held back until the wait begins, and ends it.
#[inline]
pub fn halt_until_interrupt() {
    // SAFETY: STI lets interrupts in only after the next instruction, so none is lost before HLT. Their
    // handlers keep every register. The hypervisor's data is consistent here as at any call.
    unsafe { asm!("sti", "hlt", "cli") };
}

/// Lets interrupts in that wait, and comes back at once; they have been handled then.
#[inline]
pub fn let_interrupts_in() {
    // SAFETY: as in `halt_until_interrupt`.
    unsafe { asm!("sti", "nop", "cli") };
}

/// What this host's processors can do, as far as the hypervisor cares.
#[derive(Clone, Copy, Debug, Default)]
#[expect(missing_docs, reason = "most are CPUID's own words")]
pub struct Features {
    pub nx: bool,
    pub pge: bool,
    pub gigabyte_pages: bool,
    pub fsgsbase: bool,
    pub smep: bool,
    pub smap: bool,
    pub fxsr: bool,
    pub xsave: bool,
    pub xsaveopt: bool,
    pub x2apic: bool,
    pub tsc_deadline: bool,
    pub invariant_tsc: bool,
    pub rdtscp: bool,
    pub rdpid: bool,
    pub sysenter: bool,
    pub syscall32: bool,
    pub pcid: bool,
    pub pat: bool,
    pub mtrr: bool,
    pub mwait: bool,
    pub amd: bool,
    /// LFENCE waits for all that went before.
    pub lfence_dispatches: bool,
    /// Bits of a physical address.
    pub physical_bits: u8,
    /// What XCR0 is set to; 0 without XSAVE.
    pub xcr0: u64,
}

static FEATURES: spin::Once<Features> = spin::Once::new();

/// What this host's processors can do.
#[inline]
pub fn features() -> &'static Features {
    FEATURES.call_once(detect)
}

fn detect() -> Features {
    let [max, b, c, d] = cpuid(0, 0);
    let vendor = [b, d, c].map(u32::to_le_bytes);
    let amd = vendor.as_flattened() == b"AuthenticAMD" || vendor.as_flattened() == b"HygonGenuine";
    let [_, _, c1, d1] = cpuid(1, 0);
    let [_, b7, c7, _] = if max >= 7 { cpuid(7, 0) } else { [0; 4] };
    let [max_extended, ..] = cpuid(0x8000_0000, 0);
    let extended = |leaf: u32| if max_extended >= leaf { cpuid(leaf, 0) } else { [0; 4] };
    let [_, _, _, de1] = extended(0x8000_0001);
    let [_, _, _, d_power] = extended(0x8000_0007);
    let [sizes, ..] = extended(0x8000_0008);
    let xsave = c1 & 1 << 26 != 0;
    let [user_states, _, _, user_states_high] = if xsave { cpuid(0xd, 0) } else { [0; 4] };
    let [xsave_more, ..] = if xsave { cpuid(0xd, 1) } else { [0; 4] };
    Features {
        nx: de1 & 1 << 20 != 0,
        pge: d1 & 1 << 13 != 0,
        gigabyte_pages: de1 & 1 << 26 != 0,
        fsgsbase: b7 & 1 != 0,
        smep: b7 & 1 << 7 != 0,
        smap: b7 & 1 << 20 != 0,
        fxsr: d1 & 1 << 24 != 0,
        xsave,
        xsaveopt: xsave_more & 1 != 0,
        x2apic: c1 & 1 << 21 != 0,
        tsc_deadline: c1 & 1 << 24 != 0,
        invariant_tsc: d_power & 1 << 8 != 0,
        rdtscp: de1 & 1 << 27 != 0,
        rdpid: c7 & 1 << 22 != 0,
        sysenter: d1 & 1 << 11 != 0,
        syscall32: amd,
        pcid: c1 & 1 << 17 != 0,
        pat: d1 & 1 << 16 != 0,
        mtrr: d1 & 1 << 12 != 0,
        mwait: c1 & 1 << 3 != 0,
        amd,
        lfence_dispatches: amd && lfence_dispatches(),
        physical_bits: if sizes as u8 >= 32 { (sizes as u8).min(52) } else { 36 },
        xcr0: (u64::from(user_states_high) << 32 | u64::from(user_states)) & super::fpu::KNOWN_STATES,
    }
}

/// Makes LFENCE wait for all that went before, on AMD's processors where it does not anyway; whether it does now.
///
/// AMD, "Software Techniques for Managing Speculation": the bit is there from family 0x10 on; families 0xf and 0x11
/// always wait, and newer ones say that they do.
fn lfence_dispatches() -> bool {
    const DE_CFG: u32 = 0xc001_1029;
    const SERIALISE: u64 = 1 << 1;
    let [signature, ..] = cpuid(1, 0);
    let family = (signature >> 8 & 0xf) + (signature >> 20 & 0xff);
    let always = family == 0xf || family == 0x11;
    let says_so = cpuid(0x8000_0000, 0)[0] >= 0x8000_0021 && cpuid(0x8000_0021, 0)[0] & 1 << 2 != 0;
    if always || says_so {
        return true;
    }
    let set = |value: &u64| value & SERIALISE != 0;
    let Some(before) = read_host_msr(DE_CFG) else {
        return false;
    };
    // SAFETY: the bit only makes an instruction wait.
    set(&before)
        || unsafe { try_write_msr(DE_CFG, before | SERIALISE) } && read_host_msr(DE_CFG).as_ref().is_some_and(set)
}

/// The register XCR0; 0 without XSAVE.
#[inline]
pub fn xcr0() -> u64 {
    features().xcr0
}

/// Model-specific registers that belong to the guest while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum GuestMsr {
    /// Base of FS.
    FsBase = 0xc000_0100,
    /// Base of GS.
    GsBase = 0xc000_0101,
    /// What SWAPGS would bring.
    KernelGsBase = 0xc000_0102,
}

/// Reads a register of the guest's; 0 if the processor has no such register.
#[inline]
pub fn read_msr(msr: GuestMsr) -> u64 {
    read_host_msr(msr as u32).unwrap_or(0)
}

/// Writes a register of the guest's; `false` if the processor refuses the value.
#[inline]
#[must_use]
pub fn write_msr(msr: GuestMsr, value: u64) -> bool {
    // SAFETY: none of these registers means anything to the hypervisor.
    unsafe { try_write_msr(msr as u32, value) }
}

/// Exchanges the guest's GS base with its KERNEL_GS_BASE.
#[inline]
pub fn swap_guest_gs() {
    // SAFETY: the hypervisor uses neither.
    unsafe { asm!("swapgs", options(nomem, nostack, preserves_flags)) };
}

/// Sets what RDTSCP and RDPID report beside the time, where there are any.
#[inline]
pub fn set_tsc_aux(value: u32) {
    const TSC_AUX: u32 = 0xc000_0103;
    let features = features();
    if !features.rdtscp && !features.rdpid {
        return;
    }
    // SAFETY: this CPU's info; the register means nothing to the hypervisor.
    unsafe {
        let info = percpu::info();
        if (*info).tsc_aux != value {
            (*info).tsc_aux = value;
            try_write_msr(TSC_AUX, value.into());
        }
    }
}

/// What of CR4 is in force for the guest that runs next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestControl {
    /// RDTSC faults at CPL 3, so that we see it (TSD).
    pub counter_is_privileged: bool,
    /// RDFSBASE and its like work, where the processor has them (FSGSBASE).
    pub bases_are_usable: bool,
}

/// CR4 without what guests choose; the same on every CPU.
static CR4: AtomicU64 = AtomicU64::new(0);
const CR4_TSD: u64 = 1 << 2;
const CR4_FSGSBASE: u64 = 1 << 16;

/// Puts a guest's choice in force.
#[inline]
pub fn set_guest_control(choice: GuestControl) {
    let mut cr4 = CR4.load(Ordering::Relaxed);
    if choice.counter_is_privileged {
        cr4 |= CR4_TSD;
    }
    if choice.bases_are_usable && features().fsgsbase {
        cr4 |= CR4_FSGSBASE;
    }
    // SAFETY: this CPU's info; the hypervisor reads the counter whatever TSD says, and does not use the base
    // instructions; all other bits stay.
    unsafe {
        let info = percpu::info();
        if (*info).cr4 != cr4 {
            (*info).cr4 = cr4;
            asm!("mov cr4, {}", in(reg) cr4, options(nostack, preserves_flags));
        }
    }
}

/// Reads any register; `None` if the processor has no such register.
#[inline]
pub fn read_host_msr(msr: u32) -> Option<u64> {
    let (low, high, failed): (u32, u32, u32);
    // SAFETY: reading a register has no effect that memory safety depends on; #GP is fixed up.
    unsafe {
        asm!(
            "2: rdmsr",
            on_fault!("mov {failed:e}, 1"),
            failed = inout(reg) 0u32 => failed,
            in("ecx") msr, out("eax") low, out("edx") high,
            options(nostack)
        );
    }
    (failed == 0).then_some(u64::from(high) << 32 | u64::from(low))
}

/// Writes a register; `false` if the processor refuses.
///
/// # Safety
/// What the register does with this value breaks nothing that the hypervisor relies on.
#[inline]
pub(super) unsafe fn try_write_msr(msr: u32, value: u64) -> bool {
    let failed: u32;
    // SAFETY: the caller vouches for the effect; #GP is fixed up.
    unsafe {
        asm!(
            "2: wrmsr",
            on_fault!("mov {failed:e}, 1"),
            failed = inout(reg) 0u32 => failed,
            in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nostack)
        );
    }
    failed == 0
}

/// A register of AMD's processors that holds what CPUID answers in a leaf of features.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum CpuidMask {
    /// Leaf 7.
    Structured = 0xc001_1002,
    /// Leaf 1.
    Features = 0xc001_1004,
    /// Leaf 0x80000001.
    Extended = 0xc001_1005,
}

/// What CPUID answers there, if that can be changed.
pub fn probe_cpuid_mask(mask: CpuidMask) -> Option<u64> {
    let answers = read_host_msr(mask as u32).filter(|_| features().amd)?;
    set_cpuid_mask(mask, answers).then_some(answers)
}

/// Changes what CPUID answers on this CPU. `false` if the processor refuses.
pub fn set_cpuid_mask(mask: CpuidMask, answers: u64) -> bool {
    // SAFETY: what the hypervisor relies on it has asked for at boot (`features`), before any mask was changed.
    unsafe { try_write_msr(mask as u32, answers) }
}

/// This CPU's APIC id, as CPUID tells it.
pub(super) fn initial_apic_id() -> u32 {
    let [max, ..] = cpuid(0, 0);
    if max >= 0xb {
        let [_, threads, _, id] = cpuid(0xb, 0);
        if threads != 0 {
            return id;
        }
    }
    cpuid(1, 0)[1] >> 24
}

const EFER: u32 = 0xc000_0080;
const PAT: u32 = 0x277;
/// Entries of the page attribute table as PV guests know them: WB WT UC- UC WC WP UC UC.
const PAT_ENTRIES: u64 = 0x0000_0501_0007_0406;

/// Sets this CPU's control registers the way the hypervisor wants them.
pub(super) fn init_this() {
    let features = features();
    let syscall = 1;
    let no_execute = if features.nx { 1 << 11 } else { 0 };
    let efer = read_host_msr(EFER).unwrap_or(0) | syscall | no_execute;
    // CR0: protection, monitor coprocessor, extension type, numeric error, write protect, alignment mask, paging.
    let cr0: u64 = 0x8005_0033 & !(1 << 3);
    let mut cr4: u64 = 1 << 5 | 1 << 9 | 1 << 10;
    let wanted = [(features.pge, 7), (features.xsave, 18), (features.smep, 20)];
    for (available, bit) in wanted {
        if available {
            cr4 |= 1 << bit;
        }
    }
    CR4.store(cr4, Ordering::Relaxed);
    if features.amd {
        // Each CPU has its own setting.
        lfence_dispatches();
    }
    // SAFETY: long mode and paging stay on; each bit is only set where the processor knows it; the code runs at
    // supervisor addresses, so SMEP does not touch it.
    unsafe {
        try_write_msr(EFER, efer);
        asm!("mov cr0, {}", in(reg) cr0, options(nostack, preserves_flags));
        asm!("mov cr4, {}", in(reg) cr4, options(nostack, preserves_flags));
        (*percpu::info()).cr4 = cr4;
        if features.pat {
            try_write_msr(PAT, PAT_ENTRIES);
        }
        if features.xsave {
            let states = features.xcr0;
            (*percpu::info()).xcr0 = states;
            asm!("xsetbv", in("ecx") 0, in("eax") states as u32, in("edx") (states >> 32) as u32,
                options(nostack, preserves_flags));
        }
    }
}
