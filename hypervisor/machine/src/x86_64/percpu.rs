//! What belongs to one CPU, found by masking its stack pointer.
//!
//! Each CPU has a block of [`CPU_BLOCK`] bytes, aligned to its size: stacks for the exceptions that need
//! their own, a page that is never mapped, the main stack, and at the very top a [`CpuInfo`]. Below that,
//! at a fixed place, stands the frame of the guest that the CPU last left.

use super::frame::GuestFrame;
use super::layout::CPU_BLOCK;
use alloc::boxed::Box;
use core::arch::asm;
use core::marker::PhantomData;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use ferroxen_words::CpuId;

/// What stands at the top of each CPU's block.
#[repr(C, align(128))]
pub struct CpuInfo {
    /// The CPU's number.
    pub cpu: u32,
    /// Its APIC id.
    pub apic_id: u32,
    /// TSC when a long operation first asked for the time since this CPU was entered from a guest; entries
    /// only set it to 0, since most of them are over before anyone asks.
    pub entered_at: u64,
    /// The frame number in CR3, as [`super::paging`] last loaded it.
    pub root: u64,
    /// CR4 as it was last loaded.
    pub cr4: u64,
    /// XCR0 as it was last loaded; 0 without XSAVE.
    pub xcr0: u64,
    /// TSC_AUX as it was last loaded.
    pub tsc_aux: u32,
    /// Whether CR0.TS is set.
    pub task_switched: bool,
    /// This CPU's values of each [`PerCpu`]; the first is null and stays so.
    values: [*mut (); PER_CPU_VALUES],
}

const _: () = assert!(size_of::<CpuInfo>() == 128);

/// How many [`PerCpu`] there can be, and one more.
const PER_CPU_VALUES: usize = 8;

/// Bytes from the block's start to its [`CpuInfo`].
pub const INFO_OFFSET: u64 = CPU_BLOCK - size_of::<CpuInfo>() as u64;
/// Bytes from the block's start to the guest frame.
pub const FRAME_OFFSET: u64 = INFO_OFFSET - size_of::<GuestFrame>() as u64;
/// Bytes of each stack for an exception of its own.
pub const IST_STACK: u64 = 4096;
/// NMI, double fault, machine check and debug exceptions have their own stacks.
pub const IST_COUNT: u64 = 4;
/// The page below the main stack is never mapped.
pub const GUARD_OFFSET: u64 = IST_COUNT * IST_STACK;

/// Start of the block that the running code's stack lies in.
#[inline(always)]
pub fn block() -> u64 {
    let stack: u64;
    // SAFETY: copies a register.
    unsafe { asm!("mov {}, rsp", out(reg) stack, options(nomem, nostack, preserves_flags)) };
    stack & !(CPU_BLOCK - 1)
}

/// This CPU's info.
#[inline(always)]
pub fn info() -> *mut CpuInfo {
    (block() + INFO_OFFSET) as *mut CpuInfo
}

/// This CPU's number.
#[inline(always)]
pub fn cpu_number() -> usize {
    // SAFETY: every stack that we run on lies in a block with an info at its top, which was filled before
    // the stack was first used and whose number never changes.
    unsafe { (*info()).cpu as usize }
}

/// A value for each CPU; code sees its own CPU's only.
///
/// `T` need not be `Sync`: code never moves to another CPU, nothing interrupts the hypervisor but NMIs and
/// machine checks, and their handlers touch no value of this kind.
pub struct PerCpu<T: 'static> {
    /// Which of [`CpuInfo::values`] is this one's alone; 0 before there is a value.
    index: AtomicUsize,
    of: PhantomData<AtomicPtr<T>>,
}

/// The next index to be given out.
static NEXT_INDEX: AtomicUsize = AtomicUsize::new(1);

impl<T: 'static> PerCpu<T> {
    /// Makes it with no CPU's value set.
    #[expect(clippy::new_without_default, reason = "only useful in a static")]
    pub const fn new() -> Self {
        PerCpu {
            index: AtomicUsize::new(0),
            of: PhantomData,
        }
    }

    /// Sets this CPU's value. A value set before stays allocated, since someone may still hold it.
    ///
    /// # Panics
    /// If there are too many of them.
    pub fn init(&self, value: T) {
        let value = Box::leak(Box::new(value));
        let slot = self.slot_or_claim();
        // SAFETY: this CPU's info, and the word that is this value's.
        unsafe { slot.write(ptr::from_mut(value).cast()) };
    }

    fn slot_or_claim(&self) -> *mut *mut () {
        if self.index.load(Ordering::Relaxed) == 0 {
            let fresh = NEXT_INDEX.fetch_add(1, Ordering::Relaxed);
            assert!(fresh < PER_CPU_VALUES, "too many per-CPU values");
            // If another CPU was faster, its index is the one, and ours stays unused.
            let _ = self
                .index
                .compare_exchange(0, fresh, Ordering::Relaxed, Ordering::Relaxed);
        }
        self.slot()
    }

    #[inline(always)]
    fn slot(&self) -> *mut *mut () {
        let index = self.index.load(Ordering::Relaxed);
        // SAFETY: this CPU's info; only indices below the length are ever given out.
        unsafe { (&raw mut (*info()).values).cast::<*mut ()>().add(index) }
    }

    /// This CPU's value, if it has been set.
    #[inline(always)]
    pub fn try_get(&self) -> Option<&'static T> {
        // SAFETY: null, or a `T` that `init` leaked on this CPU, since no other value has this index. Only
        // this CPU's code ever gets a reference (passing one on to another CPU takes `T: Sync`).
        unsafe { self.slot().read().cast::<T>().as_ref() }
    }

    /// This CPU's value.
    ///
    /// # Panics
    /// If `init` was never called on this CPU.
    #[inline(always)]
    #[track_caller]
    pub fn get(&self) -> &'static T {
        match self.try_get() {
            Some(value) => value,
            None => not_set(),
        }
    }
}

#[cold]
#[inline(never)]
#[track_caller]
fn not_set() -> ! {
    panic!(
        "a per-CPU value was used on {} before it was set",
        CpuId(cpu_number() as u32)
    )
}
