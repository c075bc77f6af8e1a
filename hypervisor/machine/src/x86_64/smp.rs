//! Other CPUs: bringing them up, and asking them for things.

use super::{MAX_CPUS, apic, cpu, paging, percpu};
use crate::interrupts::vectors;
use core::mem;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use ferroxen_words::CpuId;

pub use super::secondary::start_secondaries;
pub use crate::interrupts::ApicId;

/// A set of CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CpuSet {
    words: [u64; MAX_CPUS / 64],
}

impl CpuSet {
    /// No CPU.
    pub const EMPTY: CpuSet = CpuSet {
        words: [0; MAX_CPUS / 64],
    };

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
        self.words
            .get(cpu.0 as usize / 64)
            .is_some_and(|word| word >> (cpu.0 % 64) & 1 != 0)
    }

    /// Whether none is in.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    /// Those that are in, in order.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = CpuId> + '_ {
        let mut at = 0;
        let mut rest = self.words[0];
        core::iter::from_fn(move || {
            while rest == 0 {
                at += 1;
                rest = *self.words.get(at)?;
            }
            let bit = rest.trailing_zeros();
            rest &= rest - 1;
            Some(CpuId(at as u32 * 64 + bit))
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

const FLUSH: u32 = 1 << 0;
const FLUSH_GLOBAL: u32 = 1 << 1;
const FIRST_CALL: u32 = 8;

/// What others ask of one CPU. `wanted` counts requests made; `done` is how many of them are served.
#[repr(align(64))]
struct Mailbox {
    bits: AtomicU32,
    wanted: AtomicU64,
    done: AtomicU64,
}

static MAILBOXES: [Mailbox; MAX_CPUS] = [const {
    Mailbox {
        bits: AtomicU32::new(0),
        wanted: AtomicU64::new(0),
        done: AtomicU64::new(0),
    }
}; MAX_CPUS];

static CALLS: [AtomicUsize; CALL_SLOTS as usize] = [const { AtomicUsize::new(0) }; CALL_SLOTS as usize];

static APIC_IDS: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(u32::MAX) }; MAX_CPUS];

/// Registers a function for [`Request::CallSlot`].
///
/// # Panics
/// If there is no such slot.
pub fn register_call(slot: u8, function: fn()) {
    CALLS[slot as usize].store(function as usize, Ordering::Release);
}

/// Asks CPUs for something, and waits until all have done it; serves others meanwhile.
///
/// This CPU, if in the set, does it too. CPUs that do not run are left out.
pub fn request(targets: CpuSet, what: Request) {
    let this = cpu::cpu_id();
    let online = cpu::cpus_online();
    let bits = match what {
        Request::FlushTlb => FLUSH,
        Request::FlushTlbGlobal => FLUSH_GLOBAL,
        Request::CallSlot(slot) => {
            assert!(slot < CALL_SLOTS, "no such call slot");
            1 << (FIRST_CALL + u32::from(slot))
        }
    };
    let mut others = targets;
    others.remove(this);
    for target in others.iter().take_while(|target| target.0 < online) {
        let mailbox = &MAILBOXES[target.0 as usize];
        let before = mailbox.bits.fetch_or(bits, Ordering::SeqCst);
        mailbox.wanted.fetch_add(1, Ordering::SeqCst);
        if before == 0 {
            // Else the interrupt of an earlier request is still on its way.
            send(target, vectors::REQUEST);
        }
    }
    if targets.contains(this) {
        serve(bits);
    }
    for target in others.iter().take_while(|target| target.0 < online) {
        // This count includes our request; others' that came since only make the wait a little longer.
        let mailbox = &MAILBOXES[target.0 as usize];
        let wanted = mailbox.wanted.load(Ordering::Relaxed);
        while mailbox.done.load(Ordering::Acquire) < wanted {
            service_requests();
            cpu::relax();
        }
    }
}

/// Makes a CPU leave its guest (or its idling) for the kernel, soon. Does not wait.
pub fn poke(cpu: CpuId) {
    send(cpu, vectors::POKE);
}

fn send(target: CpuId, vector: crate::interrupts::Vector) {
    if let Some(id) = apic_id_of(target) {
        apic::send(ApicId(id), vector);
    }
}

/// Does what other CPUs have asked this one for. To be called in every loop that waits for another CPU.
#[inline]
pub fn service_requests() {
    let mailbox = &MAILBOXES[percpu::cpu_number()];
    if mailbox.wanted.load(Ordering::Relaxed) != mailbox.done.load(Ordering::Relaxed) {
        service(mailbox);
    }
}

#[cold]
fn service(mailbox: &Mailbox) {
    // A request's bits are set before it is counted: what is counted here is in the bits.
    let wanted = mailbox.wanted.load(Ordering::SeqCst);
    let bits = mailbox.bits.swap(0, Ordering::SeqCst);
    serve(bits);
    mailbox.done.fetch_max(wanted, Ordering::Release);
}

fn serve(bits: u32) {
    if bits & FLUSH_GLOBAL != 0 {
        paging::flush_local_global();
    } else if bits & FLUSH != 0 {
        paging::flush_local();
    }
    for slot in 0..CALL_SLOTS {
        if bits >> (FIRST_CALL + u32::from(slot)) & 1 != 0 {
            let function = CALLS[slot as usize].load(Ordering::Acquire);
            if function != 0 {
                // SAFETY: only `register_call` writes here, and it writes a `fn()`.
                let function = unsafe { mem::transmute::<usize, fn()>(function) };
                function();
            }
        }
    }
}

/// The APIC id of a CPU that runs.
pub fn apic_id_of(cpu: CpuId) -> Option<u32> {
    let id = APIC_IDS.get(cpu.0 as usize)?.load(Ordering::Relaxed);
    (id != u32::MAX).then_some(id)
}

/// Notes this CPU's APIC id.
pub(super) fn note_apic_id(cpu: usize, id: u32) {
    APIC_IDS[cpu].store(id, Ordering::Relaxed);
}

/// Stops all other CPUs where they are, by NMI; they find out from the report that is under way.
pub(super) fn stop_others() {
    if !apic::is_set_up() {
        return;
    }
    let this = percpu::cpu_number();
    for (number, id) in APIC_IDS.iter().enumerate() {
        let id = id.load(Ordering::Relaxed);
        if number != this && id != u32::MAX {
            apic::send_nmi(ApicId(id));
        }
    }
}
