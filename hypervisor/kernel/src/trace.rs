//! The trace: what happens on each CPU, in rings that Domain 0 reads (`xentrace`).
//!
//! Off until a tool asks; then each place of interest pays one look at [`is_on`]. A CPU writes to its own ring, and nothing
//! interrupts it there, so no lock is needed. The rings are made once and stay: a tool may have them mapped.
//!
//! Always true: what Domain 0 writes into a ring's first words can make records get lost, and no more.

use crate::cpu::{AtomicCpuSet, CpuBitmap};
use crate::domain::VcpuRef;
use crate::hypercall::event_channel::send_global_virq;
use crate::lock::{Lock, Rank};
use crate::memory::{self, Shown};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use ferroxen_abi::errno::Errno;
use ferroxen_abi::sysctl::TbufOp;
use ferroxen_abi::trace::{self as abi, class, pv, sched, tbufop};
use ferroxen_abi::xen::{hypercall as nr, virq};
use ferroxen_machine::memory::Page;
use ferroxen_machine::smp::{self, CpuSet, Request};
use ferroxen_machine::{GuestFrame, MAX_CPUS, cpu};
use ferroxen_sched::RunState;
use ferroxen_trace::{LOST_BYTES, MOST_WORDS, Place, header, record_bytes};
use spin::Once;

const PAGE: usize = 4096;
/// The two words in front of the records.
const META: usize = 8;
/// The idle domain, as records name it (`DOMID_IDLE`).
const IDLE: u32 = 0x7fff;

static IS_ON: AtomicBool = AtomicBool::new(false);
static EVENTS: AtomicU32 = AtomicU32::new(class::ALL);
static CPUS: AtomicCpuSet = AtomicCpuSet::new();
static RINGS: [Once<Ring>; MAX_CPUS] = [const { Once::new() }; MAX_CPUS];

/// What a tool has set up. The lock is taken under no other.
struct Setup {
    /// Pages of each ring; 0 until there are rings.
    ring_pages: u32,
    /// The table of the rings' frames.
    table: Vec<Page>,
}

static SETUP: Lock<Setup> = Lock::new(
    Rank::Control,
    Setup {
        ring_pages: 0,
        table: Vec::new(),
    },
);

/// A CPU's ring.
struct Ring {
    pages: Box<[Page]>,
    /// Records that found no room, since when, and of whom the first was.
    lost: AtomicU32,
    lost_since: AtomicU64,
}

/// Our number among the functions that CPUs run on request: hypercalls go through the trace, or not any more.
const SWITCH_SLOT: u8 = 12;

/// Registers what other CPUs are asked for.
pub fn init() {
    smp::register_call(SWITCH_SLOT, || crate::cpu::trace_hypercalls(is_on()));
}

/// Whether anything is traced.
#[inline(always)]
pub fn is_on() -> bool {
    IS_ON.load(Ordering::Relaxed)
}

/// Who runs on this CPU, as the records name them: domain and vcpu.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Who(u32, u32);

impl Who {
    /// A vcpu; without one, the idle vcpu of this CPU.
    pub fn of(vcpu: Option<&VcpuRef>) -> Who {
        match vcpu {
            Some(vcpu) => Who(vcpu.domain().id.raw().into(), vcpu.id.0),
            None => Who(IDLE, cpu::cpu_id().0),
        }
    }

    /// Both in one word.
    const fn packed(self) -> u32 {
        self.1 & 0xffff | self.0 << 16
    }
}

/// A vcpu's state changes.
#[cold]
pub fn state_changes(who: Who, from: RunState, to: RunState) {
    let event = sched::RUNSTATE_CHANGE | (from as u32) << 8 | (to as u32) << 4;
    note(event, &[who.packed()]);
}

/// This CPU goes on with whom it has.
#[cold]
pub fn goes_on(who: Who) {
    note(sched::CONTINUE_RUNNING, &[who.packed()]);
}

/// This CPU passes from one to the other; `into` is the state in which the first is left.
#[cold]
pub fn switches(from: Who, into: RunState, to: Who) {
    note(sched::SWITCH, &[from.0, from.1, to.0, to.1]);
    state_changes(from, RunState::Running, into);
    state_changes(to, RunState::Runnable, RunState::Running);
}

/// Something happens to a vcpu.
#[cold]
pub fn vcpu(event: u32, who: &VcpuRef) {
    let Who(domain, vcpu) = Who::of(Some(who));
    note(event, &[domain, vcpu]);
}

/// A guest makes a hypercall: the arguments that tell which of its kind it is go along.
#[cold]
pub fn hypercall(number: u32, frame: &GuestFrame) {
    let args = [frame.rdi, frame.rsi, frame.rdx, frame.r10, frame.r8, frame.r9];
    let telling: &[u32] = match number {
        nr::MMU_UPDATE | nr::MMUEXT_OP | nr::MULTICALL => &[1],
        nr::GRANT_TABLE_OP => &[0, 2],
        nr::VCPU_OP => &[0, 1],
        nr::SCHED_OP => &[0],
        _ => &[],
    };
    let mut words = [number, 0, 0];
    for (word, &arg) in (1..).zip(telling) {
        words[0] |= pv::hypercall_arg_32(arg);
        words[word] = args[arg as usize] as u32;
    }
    note(pv::HYPERCALL_V2, &words[..=telling.len()]);
}

/// Writes a record with the time, if a tool wants to know.
#[cold]
pub fn note(event: u32, words: &[u32]) {
    let here = cpu::cpu_id();
    let Some(ring) = RINGS.get(here.0 as usize).and_then(Once::get) else {
        return;
    };
    if is_wanted(event) && CPUS.contains(here) {
        ring.write(event, words);
    }
}

/// As upstream: the classes of mask and event have a bit in common, and so have the subclasses.
fn is_wanted(event: u32) -> bool {
    let both = |shift: u32, bits: u32| (EVENTS.load(Ordering::Relaxed) >> shift) & (event >> shift) & bits != 0;
    both(class::CLS_SHIFT, 0xfff) && both(class::SUBCLS_SHIFT, 0xf)
}

impl Ring {
    fn shape(&self) -> ferroxen_trace::Ring {
        ferroxen_trace::Ring {
            bytes: (self.pages.len() * PAGE - META) as u32,
        }
    }

    fn consumed(&self) -> u32 {
        self.pages[0].load_u32_at(0)
    }

    fn produced(&self) -> u32 {
        self.pages[0].load_u32_at(4)
    }

    fn write(&self, event: u32, words: &[u32]) {
        let time = cpu::tsc();
        let lost = self.lost.load(Ordering::Relaxed);
        let length = record_bytes(words.len() as u32, true);
        // A record must find room together with that of the lost ones in front of it.
        let needed = if lost == 0 { length } else { length + LOST_BYTES };
        if self.shape().place(self.consumed(), self.produced(), needed).is_none() {
            if lost == 0 {
                self.lost_since.store(time, Ordering::Relaxed);
            }
            self.lost.store(lost.saturating_add(1), Ordering::Relaxed);
            return;
        }
        if lost != 0 {
            self.lost.store(0, Ordering::Relaxed);
            let since = self.lost_since.load(Ordering::Relaxed);
            let who = Who::of(crate::cpu::current().as_ref());
            let words = [lost, who.packed(), since as u32, (since >> 32) as u32];
            self.put(abi::LOST_RECORDS, time, &words);
        }
        self.put(event, time, words);
    }

    fn put(&self, event: u32, time: u64, words: &[u32]) {
        let (shape, consumed) = (self.shape(), self.consumed());
        let length = record_bytes(words.len() as u32, true);
        let Some(Place { gap, at, produced }) = shape.place(consumed, self.produced(), length) else {
            return;
        };
        if let Some((at, filler)) = gap {
            self.store(at, header(abi::WRAP_BUFFER, filler.extra, filler.has_time));
            (1..record_bytes(filler.extra, filler.has_time) / 4).for_each(|word| self.store(at + 4 * word, 0));
        }
        let mut record = [0; MOST_WORDS];
        record[0] = header(event, words.len() as u32, true);
        record[1..3].copy_from_slice(&[time as u32, (time >> 32) as u32]);
        record[3..3 + words.len()].copy_from_slice(words);
        for (word, value) in (0..).zip(&record[..3 + words.len()]) {
            self.store(at + 4 * word, *value);
        }
        let half = shape.bytes / 2;
        let was_below = shape
            .unread(consumed, self.produced())
            .is_some_and(|unread| unread < half);
        self.pages[0].store_u32_at(4, produced);
        if was_below && shape.unread(consumed, produced).is_some_and(|unread| unread >= half) {
            send_global_virq(virq::TBUF);
        }
    }

    /// Writes a word at an offset among the records.
    fn store(&self, at: u32, word: u32) {
        let at = META + at as usize;
        if let Some(page) = self.pages.get(at / PAGE) {
            page.store_u32_at(at % PAGE, word);
        }
    }
}

/// `XEN_SYSCTL_tbuf_op`: what is traced, and where it lies. `EINVAL` for another size than there is, and for tracing
/// without rings.
pub fn tbuf_op(wanted: &mut TbufOp) -> Result<(), Errno> {
    let mut setup = SETUP.lock();
    match wanted.cmd {
        tbufop::GET_INFO => {
            wanted.evt_mask = EVENTS.load(Ordering::Relaxed);
            wanted.buffer_mfn = setup.table.first().map_or(0, |page| page.mfn().raw());
            wanted.size = (setup.table.len() * PAGE) as u32;
        }
        tbufop::SET_CPU_MASK => {
            let wanted = CpuBitmap::read(&wanted.cpu_mask)?.cpus();
            for cpu in CpuSet::online().iter() {
                if wanted.contains(cpu) {
                    CPUS.insert(cpu);
                } else {
                    CPUS.remove(cpu);
                }
            }
        }
        tbufop::SET_EVT_MASK => EVENTS.store(wanted.evt_mask, Ordering::Relaxed),
        tbufop::SET_SIZE => set_size(&mut setup, wanted.size)?,
        tbufop::ENABLE if setup.ring_pages == 0 => return Err(Errno::EINVAL),
        tbufop::ENABLE => switch(true),
        tbufop::DISABLE => {
            switch(false);
            let rings = RINGS.iter().filter_map(Once::get);
            rings.for_each(|ring| ring.lost.store(0, Ordering::Relaxed));
        }
        _ => return Err(Errno::EINVAL),
    }
    Ok(())
}

/// Turns the trace on or off, on all CPUs.
fn switch(on: bool) {
    IS_ON.store(on, Ordering::Release);
    smp::request(CpuSet::online(), Request::CallSlot(SWITCH_SLOT));
}

/// Makes a ring of `pages` pages for each CPU, and the table of their frames.
fn set_size(setup: &mut Setup, pages: u32) -> Result<(), Errno> {
    /// What the table's offsets can name.
    const MOST_WORDS: u32 = u16::MAX as u32;
    if setup.ring_pages != 0 {
        return if pages == setup.ring_pages {
            Ok(())
        } else {
            Err(Errno::EINVAL)
        };
    }
    let cpus = cpu::cpus_online();
    // The number of pages and an offset for each CPU, in whole words.
    let first = (2 * (1 + cpus)).div_ceil(4);
    let words = pages.checked_mul(cpus).and_then(|words| words.checked_add(first));
    let words = words
        .filter(|words| pages != 0 && *words <= MOST_WORDS)
        .ok_or(Errno::EINVAL)?;
    let order = (words * 4).div_ceil(PAGE as u32).next_power_of_two().ilog2();
    // All or nothing: what is shown once is never taken back.
    if memory::free_pages() < u64::from(cpus) * u64::from(pages) + (1 << order) {
        return Err(Errno::ENOMEM);
    }
    let table: Vec<Page> = memory::alloc_shown_pages(order, Shown::ReadOnly)?.collect();
    let store = |word: u32, value: u32| {
        let at = word as usize * 4;
        if let Some(page) = table.get(at / PAGE) {
            page.store_u32_at(at % PAGE, value);
        }
    };
    // Two numbers of 16 bits share a word: first how many pages, then where each CPU's list is.
    let half = |index: u32| match index {
        0 => pages,
        cpu if cpu <= cpus => first + (cpu - 1) * pages,
        _ => 0,
    };
    (0..first).for_each(|word| store(word, half(2 * word) | half(2 * word + 1) << 16));
    for number in 0..cpus {
        let mut ring = Vec::new();
        ring.try_reserve_exact(pages as usize).map_err(|_| Errno::ENOMEM)?;
        for _ in 0..pages {
            ring.extend(memory::alloc_shown_pages(0, Shown::Writable)?);
        }
        for (index, page) in (0..).zip(&ring) {
            store(first + number * pages + index, page.mfn().raw() as u32);
        }
        RINGS[number as usize].call_once(|| Ring {
            pages: ring.into_boxed_slice(),
            lost: AtomicU32::new(0),
            lost_since: AtomicU64::new(0),
        });
    }
    CpuSet::online().iter().for_each(|cpu| CPUS.insert(cpu));
    setup.table = table;
    setup.ring_pages = pages;
    Ok(())
}
