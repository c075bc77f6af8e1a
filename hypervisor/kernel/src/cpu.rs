//! What each physical CPU keeps for itself: which vcpu it runs, and what it owes before the next return.

use crate::domain::{InfoArea, VcpuRef};
use crate::guest::GuestPtr;
use crate::hypercall::Switchboard;
use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};
use ferroxen_abi::errno::Errno;
use ferroxen_machine::current::Current;
use ferroxen_machine::smp::CpuSet;
use ferroxen_machine::{MAX_CPUS, PerCpu};
use ferroxen_words::CpuId;
use ferroxen_x86policy::levelling::Masks;

/// Things to do before this CPU returns to a guest.
pub mod work {
    /// Pick the next vcpu.
    pub const RESCHEDULE: u32 = 1 << 0;
    /// Run expired timers.
    pub const TIMERS: u32 = 1 << 1;
    /// Reload the guest root: the running vcpu's tables changed under it.
    pub const RELOAD_ROOT: u32 = 1 << 2;
    /// The running vcpu (or its domain) was told to stop or die.
    pub const STOP_CURRENT: u32 = 1 << 3;
    /// Ring the global virtual interrupts that were asked for.
    pub const EVENTS: u32 = 1 << 4;
    /// Deliver a non-maskable interrupt, if one waits for the running vcpu.
    pub const NMI: u32 = 1 << 5;
}

/// One CPU's own state.
pub struct CpuLocal {
    /// The vcpu whose registers are in the CPU; `None` while idle.
    pub current: Current<VcpuRef>,
    /// Where the running vcpu's `vcpu_info` lies: what is looked at before every return.
    pub info: Cell<Option<InfoArea>>,
    /// Bits of [`work`].
    pub work: Cell<u32>,
    /// Where hypercalls go.
    pub hypercalls: Cell<Switchboard>,
    /// There is a trace, which hypercalls go through.
    pub is_traced: Cell<bool>,
    /// What CPUID's masks hold; `None`: what they did after a reset.
    pub cpuid_masks: Cell<Option<Masks>>,
}

static LOCAL: PerCpu<CpuLocal> = PerCpu::new();

/// Prepares this CPU's slot; called once on each CPU before anything else here.
pub fn init_this() {
    LOCAL.init(CpuLocal {
        current: Current::new(),
        info: Cell::new(None),
        work: Cell::new(0),
        hypercalls: Cell::new(Switchboard::of_this_cpu(false)),
        is_traced: Cell::new(false),
        cpuid_masks: Cell::new(None),
    });
}

/// Lets this CPU's hypercalls go through the trace, or not any more.
pub fn trace_hypercalls(is_traced: bool) {
    let local = local();
    local.hypercalls.set(Switchboard::of_this_cpu(is_traced));
    local.is_traced.set(is_traced);
}

/// This CPU's state.
#[inline(always)]
pub fn local() -> &'static CpuLocal {
    LOCAL.get()
}

/// Asks this CPU to do `what` (bits of [`work`]) before it returns to a guest.
#[inline]
pub fn request(what: u32) {
    let local = local();
    local.work.set(local.work.get() | what);
}

/// The running vcpu. Only for use below an entry from a guest.
#[inline]
pub fn current() -> Option<VcpuRef> {
    local().current.get().map(|vcpu| vcpu.clone())
}

/// A set of CPUs that several CPUs may change.
pub struct AtomicCpuSet {
    words: [AtomicU64; MAX_CPUS / 64],
}

impl AtomicCpuSet {
    /// No CPU.
    #[expect(clippy::new_without_default, reason = "used in constants")]
    pub const fn new() -> Self {
        AtomicCpuSet {
            words: [const { AtomicU64::new(0) }; MAX_CPUS / 64],
        }
    }

    /// Adds one.
    #[inline]
    pub fn insert(&self, cpu: CpuId) {
        if let Some(word) = self.words.get(cpu.0 as usize / 64) {
            let bit = 1 << (cpu.0 % 64);
            if word.load(Ordering::Relaxed) & bit == 0 {
                word.fetch_or(bit, Ordering::AcqRel);
            }
        }
    }

    /// Takes one out.
    #[inline]
    pub fn remove(&self, cpu: CpuId) {
        if let Some(word) = self.words.get(cpu.0 as usize / 64) {
            word.fetch_and(!(1 << (cpu.0 % 64)), Ordering::AcqRel);
        }
    }

    /// Whether it is in.
    #[inline]
    pub fn contains(&self, cpu: CpuId) -> bool {
        self.words
            .get(cpu.0 as usize / 64)
            .is_some_and(|word| word.load(Ordering::Acquire) >> (cpu.0 % 64) & 1 != 0)
    }

    /// Whether that one is in, and no other that runs.
    #[inline]
    pub fn is_only(&self, cpu: CpuId) -> bool {
        let of_others = |at: usize| {
            let own = if at == cpu.0 as usize / 64 {
                1 << (cpu.0 % 64)
            } else {
                0
            };
            self.words.get(at).map_or(0, |word| word.load(Ordering::Acquire) ^ own)
        };
        // With up to 64 CPUs that is one word.
        of_others(0) == 0
            && (1..ferroxen_machine::cpu::cpus_online().div_ceil(64) as usize).all(|at| of_others(at) == 0)
    }

    /// What is in just now.
    pub fn snapshot(&self) -> CpuSet {
        let mut set = CpuSet::EMPTY;
        for cpu in (0..ferroxen_machine::cpu::cpus_online()).map(CpuId) {
            if self.contains(cpu) {
                set.insert(cpu);
            }
        }
        set
    }
}

/// A bitmap of the control interface, on our side: as many bits as there can be CPUs.
#[derive(Clone, Copy, Default)]
pub struct CpuBitmap {
    bytes: [u8; MAX_CPUS / 8],
}

impl CpuBitmap {
    /// Copies a caller's bitmap; bits beyond our CPUs are dropped.
    pub fn read(from: &ferroxen_abi::domctl::XenctlBitmap) -> Result<CpuBitmap, Errno> {
        let mut bitmap = CpuBitmap::default();
        let bytes = bytes_of(from).min(bitmap.bytes.len());
        GuestPtr::<u8>::new(from.bitmap).read_slice(&mut bitmap.bytes[..bytes])?;
        if (from.nr_bits as usize) < MAX_CPUS && !from.nr_bits.is_multiple_of(8) {
            bitmap.bytes[from.nr_bits as usize / 8] &= (1 << (from.nr_bits % 8)) - 1;
        }
        Ok(bitmap)
    }

    /// Copies to a caller's bitmap, as many bits as it has; the rest of its last byte is cleared.
    pub fn write(&self, to: &ferroxen_abi::domctl::XenctlBitmap) -> Result<(), Errno> {
        let bytes = bytes_of(to);
        let ours = bytes.min(self.bytes.len());
        let at = GuestPtr::<u8>::new(to.bitmap);
        at.write_slice(&self.bytes[..ours])?;
        for index in ours..bytes.min(8192) {
            at.write_element(index as u64, &0)?;
        }
        Ok(())
    }

    /// A set of CPUs as a bitmap.
    pub fn of(set: &CpuSet) -> CpuBitmap {
        set.iter().fold(CpuBitmap::default(), |mut bitmap, cpu| {
            bitmap.bytes[cpu.0 as usize / 8] |= 1 << (cpu.0 % 8);
            bitmap
        })
    }

    /// As many bits as a word has.
    pub fn of_word(word: u64) -> CpuBitmap {
        let mut bitmap = CpuBitmap::default();
        bitmap.bytes[..8].copy_from_slice(&word.to_le_bytes());
        bitmap
    }

    /// The first bits.
    pub fn first_word(&self) -> u64 {
        self.bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    /// Whether a bit is set.
    pub fn contains(&self, bit: usize) -> bool {
        self.bytes.get(bit / 8).is_some_and(|byte| byte >> (bit % 8) & 1 != 0)
    }

    /// The CPUs that run among those named.
    pub fn cpus(&self) -> CpuSet {
        (0..ferroxen_machine::cpu::cpus_online())
            .filter(|&cpu| self.contains(cpu as usize))
            .fold(CpuSet::EMPTY, |mut set, cpu| {
                set.insert(CpuId(cpu));
                set
            })
    }
}

/// How long a caller's bitmap is. Upstream counts in 32 bits: one with all the bits that there could be has no bytes.
fn bytes_of(bitmap: &ferroxen_abi::domctl::XenctlBitmap) -> usize {
    (bitmap.nr_bits.wrapping_add(7) / 8) as usize
}
