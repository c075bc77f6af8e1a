//! Other CPUs: bringing them up, and asking them for things.

use super::MAX_CPUS;
use ferroxen_words::CpuId;

pub use crate::interrupts::ApicId;

/// A set of CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CpuSet {
    words: [u64; MAX_CPUS / 64],
}

impl CpuSet {
    /// No CPU.
    pub const EMPTY: CpuSet = CpuSet { words: [0; MAX_CPUS / 64] };

    /// Just one.
    #[inline]
    pub fn of(cpu: CpuId) -> CpuSet {
        let mut set = CpuSet::EMPTY;
        set.insert(cpu);
        set
    }

    /// All CPUs that run.
    pub fn online() -> CpuSet {
        let mut set = CpuSet::EMPTY;
        for cpu in 0..super::cpu::cpus_online() {
            set.insert(CpuId(cpu));
        }
        set
    }

    /// Adds one; numbers that no CPU can have are ignored.
    #[inline]
    pub fn insert(&mut self, cpu: CpuId) {
        if let Some(word) = self.words.get_mut(cpu.0 as usize / 64) {
            *word |= 1 << (cpu.0 % 64);
        }
    }

    /// Takes one out.
    #[inline]
    pub fn remove(&mut self, cpu: CpuId) {
        if let Some(word) = self.words.get_mut(cpu.0 as usize / 64) {
            *word &= !(1 << (cpu.0 % 64));
        }
    }

    /// Whether it is in.
    #[inline]
    pub fn contains(&self, cpu: CpuId) -> bool {
        self.words.get(cpu.0 as usize / 64).is_some_and(|word| word >> (cpu.0 % 64) & 1 != 0)
    }

    /// Whether none is in.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    /// Those that are in, in order.
    pub fn iter(&self) -> impl Iterator<Item = CpuId> + '_ {
        self.words.iter().enumerate().flat_map(|(at, &word)| {
            (0..64u32).filter(move |bit| word >> bit & 1 != 0).map(move |bit| CpuId(at as u32 * 64 + bit))
        })
    }
}

/// What one CPU can ask of others and wait for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// Forget the translations of guest addresses.
    FlushTlb,
    /// Forget all translations, global ones too.
    FlushTlbGlobal,
    /// Run the function registered under this number (below [`CALL_SLOTS`]).
    ///
    /// It runs wherever the other CPU waits for anything, so it takes no lock.
    CallSlot(u8),
}

/// How many functions can be registered.
pub const CALL_SLOTS: u8 = 16;

/// Registers a function for [`Request::CallSlot`].
///
/// # Panics
/// If there is no such slot.
pub fn register_call(slot: u8, function: fn()) {
    let _ = (slot, function);
    todo!()
}

/// Asks CPUs for something, and waits until all have done it; serves others meanwhile.
///
/// This CPU, if in the set, does it too.
pub fn request(targets: CpuSet, what: Request) {
    let _ = (targets, what);
    todo!()
}

/// Makes a CPU leave its guest (or its idling) for the kernel, soon. Does not wait.
pub fn poke(cpu: CpuId) {
    let _ = cpu;
    todo!()
}

/// Does what other CPUs have asked this one for. To be called in every loop that waits for another CPU.
#[inline]
pub fn service_requests() {
    todo!()
}

/// Brings further CPUs up, one after the other; each calls `kernel::secondary`.
///
/// Answers how many came up. They are numbered in this order, from 1; one that does not answer is skipped.
pub fn start_secondaries(apic_ids: &[ApicId]) -> u32 {
    let _ = apic_ids;
    todo!()
}

/// The APIC id of a CPU that runs.
pub fn apic_id_of(cpu: CpuId) -> Option<u32> {
    let _ = cpu;
    todo!()
}
