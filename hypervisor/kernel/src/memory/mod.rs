//! Machine memory: who has which frame, and handing frames out and taking them back.
//!
//! Each frame has a record in one table ([`frame`]); what may be done with it is `ferroxen_frames`' to decide. The
//! allocator is `ferroxen_heap`, behind one lock. A domain's pages are a list through the frame records; a page
//! leaves the list when its owner gives it back, and becomes free when nobody maps it any more.
//!
//! Before a freed frame is used again, every CPU that may still have a translation of it forgets it (the flush
//! clock says which), and no domain but the first sees what another wrote: frames are scrubbed while CPUs idle, or
//! at the latest when they are handed out.
//!
//! Locks: a domain's `memory` ([`Rank::Pages`]), then the heap ([`Rank::Heap`]). Putting the last reference takes
//! the heap's lock only, so it may be done under any of the page-table or vcpu locks.

mod audit;
mod domain;
mod held;

pub use audit::{Findings, audit};
pub use domain::{
    Counts, DomainMemory, Stolen, Walk, alloc_shared_page, allocate, allocate_with, claim, counts, map_of,
    new_domain_memory, release_page, relinquish, set_map, set_max_pages, steal, walk,
};
pub use held::{Held, hold, hold_writable, release, with_writable_page};

use crate::lock::{Lock, Rank};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use ferroxen_abi::errno::Errno;
use ferroxen_frames::{Frame, Kind, Refused, Word};
use ferroxen_heap::{Block, Cleanliness, Heap, Nodes, Wish};
use ferroxen_loader::memory_map;
use ferroxen_loader::options::Options;
use ferroxen_machine::boot_slice::BootSlice;
use ferroxen_machine::handoff::Boot;
use ferroxen_machine::memory::{Page, RamRange, is_ram};
use ferroxen_machine::smp::{CpuSet, Request};
use ferroxen_machine::{m2p, smp, tlb};
use ferroxen_words::{DomId, Mfn, PAGE_SHIFT, RawDomId};

static FRAMES: BootSlice<Frame> = BootSlice::new();
/// For each domid, the ordinary frames that are not free and were last given to it.
static OWNED: spin::Once<&'static [AtomicU32]> = spin::Once::new();
/// RAM of the host, in pages.
static TOTAL: AtomicU64 = AtomicU64::new(0);
/// A domain that only waits for its last pages may have lost them.
static EMPTIED: AtomicBool = AtomicBool::new(false);

/// The frame table as the allocator's links.
struct Links;

impl Links {
    #[inline]
    fn at(frame: u32) -> &'static Frame {
        &frames()[frame as usize]
    }
}

impl Nodes for Links {
    fn len(&self) -> u32 {
        frames().len() as u32
    }
    fn links(&self, frame: u32) -> (u32, u32) {
        let frame = Links::at(frame);
        (frame.next.load(Ordering::Relaxed), frame.prev.load(Ordering::Relaxed))
    }
    fn set_next(&self, frame: u32, next: u32) {
        Links::at(frame).next.store(next, Ordering::Relaxed);
    }
    fn set_prev(&self, frame: u32, prev: u32) {
        Links::at(frame).prev.store(prev, Ordering::Relaxed);
    }
    fn state(&self, frame: u32) -> u8 {
        Links::at(frame).heap_state.load(Ordering::Relaxed)
    }
    fn set_state(&self, frame: u32, state: u8) {
        Links::at(frame).heap_state.store(state, Ordering::Relaxed);
    }
}

struct Free {
    heap: Heap<Links>,
    /// Pages that domains reserved and have not taken yet.
    claimed: u64,
    /// Pages that idle CPUs have taken out of the heap to clear them.
    scrubbing: u64,
}

static FREE: Lock<Free> = Lock::new(
    Rank::Heap,
    Free {
        heap: Heap::new(Links),
        claimed: 0,
        scrubbing: 0,
    },
);

#[inline(always)]
fn frames() -> &'static [Frame] {
    FRAMES.all()
}

/// The record of a frame, if it is a live level-1 table of `owner`'s: under the page-table lock it stays one.
#[inline(always)]
pub fn level_1_table(mfn: u64, owner: u16) -> Option<&'static Frame> {
    let frame = FRAMES.get(usize::try_from(mfn).ok()?)?;
    (frame.owner() == owner && frame.word().is_live(Kind::L1)).then_some(frame)
}

/// The record of a frame of RAM, the hypervisor's own included; `None` for device memory and beyond.
#[inline(always)]
pub fn frame(mfn: u64) -> Option<&'static Frame> {
    let frame = FRAMES.get(usize::try_from(mfn).ok()?)?;
    (frame.owner() != RawDomId::IO.0).then_some(frame)
}

/// Whether a page of a domain's holds zeroes because nobody could write it since the domain got it: it never was of any
/// kind. Domain 0 gets pages that were not scrubbed, and nobody's are where there is no `bootscrub`.
pub fn is_as_given(owner: &crate::domain::Domain, mfn: Mfn) -> bool {
    let scrubs = || LEAVE.get().is_some_and(|leave| leave.cleanliness == Cleanliness::Dirty);
    let is_untouched = |frame: &Frame| {
        let word = frame.word();
        frame.owner() == owner.id.raw() && word.is_allocated() && word.kind() == Kind::None
    };
    owner.id != DomId::DOM0 && frame(mfn.raw()).is_some_and(is_untouched) && scrubs()
}

/// What is not to be used although it is there (`mem=`, `availmem=`, `badpage=`).
struct Leave {
    /// The first frame too high.
    end: u64,
    /// Frames that may still be taken into use.
    available: AtomicU64,
    /// Ranges of frames, first and last, in order.
    bad: Vec<(u64, u64)>,
    /// Whether frames may hold what an earlier system left there.
    cleanliness: Cleanliness,
}

static LEAVE: spin::Once<Leave> = spin::Once::new();

impl Leave {
    fn told(options: &Options<'_>) -> Leave {
        let pages = |bytes: Option<u64>| bytes.map_or(u64::MAX, |bytes| bytes >> PAGE_SHIFT);
        let mut bad: Vec<(u64, u64)> = Vec::new();
        for pages in options.bad_pages() {
            bad.insert(bad.partition_point(|before| *before <= pages), pages);
        }
        Leave {
            end: pages(options.mem),
            available: AtomicU64::new(pages(options.availmem)),
            bad,
            cleanliness: if options.bootscrub {
                Cleanliness::Dirty
            } else {
                Cleanliness::Clean
            },
        }
    }
}

/// Takes over the host's memory. Called once, before anything is allocated from it.
pub fn init(mut boot: Boot, options: &Options<'_>) {
    LEAVE.call_once(|| Leave::told(options));
    let count = usize::try_from(boot.max_mfn()).unwrap_or(usize::MAX);
    assert!(
        count < u32::MAX as usize,
        "more memory than frame numbers of 32 bits can name"
    );
    let table = boot
        .take_slice::<Frame>(count, "frame table")
        .expect("no room for the frame table");
    let owned = boot
        .take_slice::<AtomicU32>(usize::from(RawDomId::FIRST_RESERVED.0), "pages per domain")
        .expect("no room for the count of pages");
    OWNED.call_once(|| owned);
    let table: &'static [Frame] = table;
    for (mfn, frame) in table.iter().enumerate() {
        let owner = if is_ours_to_give(Mfn::new(mfn as u64)) {
            RawDomId::XEN
        } else {
            RawDomId::IO
        };
        frame.assign(owner.0, Word::default());
    }
    FRAMES.set(table);
    let ram = crate::boot::memory_map()
        .iter()
        .filter(|region| region.kind == memory_map::Kind::RAM);
    TOTAL.store(
        ram.map(|region| region.end.saturating_sub(region.start) >> 12).sum(),
        Ordering::Relaxed,
    );
    // Guests may read the machine-to-phys table; a piece is 2 MiB.
    for first in m2p::frames().flatten() {
        for mfn in first.raw()..first.raw() + 512 {
            if let Some(frame) = frame(mfn) {
                frame.assign(RawDomId::XEN.0, Word::READ_ONLY);
            }
        }
    }
    for range in boot.finish() {
        add_free(range);
    }
    crate::pv::mm::init();
    crate::trace::init();
}

/// Whether a frame is RAM that is handed out. That below 1 MiB is not: firmware left its tables there, and Domain 0's
/// Linux looks for them (`reserve_ibft_region`), so to Domain 0 it is like a device's memory, RAM or not, as upstream has it.
pub fn is_ours_to_give(mfn: Mfn) -> bool {
    const FIRST_MIB: u64 = 1 << 20;
    mfn.maddr().raw() >= FIRST_MIB && is_ram(mfn)
}

/// Gives frames that can be named as pages, and that nobody uses, to the allocator.
pub fn add_free(range: RamRange) {
    let Some(leave) = LEAVE.get() else { return };
    let mut first = range.first.raw();
    let end = first.saturating_add(range.count).min(leave.end);
    for &(bad_first, bad_last) in &leave.bad {
        add_wanted(leave, first, bad_first.min(end));
        first = first.max(bad_last.saturating_add(1));
    }
    add_wanted(leave, first, end);
}

/// Gives the frames from `first` up to `end` to the allocator, or as many of them as we may use.
fn add_wanted(leave: &Leave, first: u64, end: u64) {
    let wanted = end.saturating_sub(first);
    let before = leave
        .available
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            Some(left.saturating_sub(wanted))
        });
    let count = wanted.min(before.unwrap_or(0));
    if let (Ok(first), Ok(count)) = (u32::try_from(first), u32::try_from(count))
        && count != 0
    {
        FREE.lock().heap.add(first, count, leave.cleanliness);
    }
}

/// Pages that nobody has.
pub fn free_pages() -> u64 {
    let free = FREE.lock();
    free.heap.free_pages() + free.scrubbing
}

/// As [`free_pages`], counting only those whose addresses have at most so many bits.
pub fn free_pages_below(address_bits: u32) -> u64 {
    FREE.lock().heap.free_pages_below(address_bits)
}

/// The host's RAM, in pages.
pub fn total_pages() -> u64 {
    TOTAL.load(Ordering::Relaxed)
}

/// Free pages that are not scrubbed yet.
pub fn pages_to_scrub() -> u64 {
    FREE.lock().heap.dirty_pages()
}

/// Pages that are free but promised to domains being built.
pub fn claimed_pages() -> u64 {
    FREE.lock().claimed
}

/// What allocation is to care about.
#[derive(Clone, Copy, Default, Debug)]
pub struct AllocFlags {
    /// No byte's address has more bits.
    pub address_bits: Option<u32>,
    /// Whoever gets the pages may see what was in them: Domain 0 at boot, or the hypervisor.
    pub unscrubbed: bool,
}

/// Takes a block out of the heap, and makes it safe to be given to anybody: no CPU has an old translation of it.
/// `promised` pages of those reserved by claims are the asker's.
fn take_block(order: u32, flags: AllocFlags, promised: u64) -> Result<Block, Errno> {
    let wish = Wish {
        order,
        address_bits: flags.address_bits,
        dirty_is_fine: flags.unscrubbed,
    };
    let block = {
        let mut free = FREE.lock();
        let spoken_for = free.claimed.saturating_sub(promised);
        if free.heap.free_pages().saturating_sub(spoken_for) < 1 << order {
            return Err(Errno::ENOMEM);
        }
        free.heap.allocate(wish).ok_or(Errno::ENOMEM)?
    };
    let frames = &frames()[block.first as usize..][..1 << order];
    let stamp = frames.iter().map(Frame::stamp).max().unwrap_or(0);
    flush_since(stamp, &CpuSet::online());
    if block.cleanliness == Cleanliness::Dirty && !flags.unscrubbed {
        scrub(block);
    }
    Ok(block)
}

/// Makes those of `cpus` forget what they may know since `stamp`.
pub fn flush_since(stamp: u64, cpus: &CpuSet) {
    if stamp == 0 {
        // Never mapped by anybody.
        return;
    }
    let mut stale = CpuSet::EMPTY;
    for cpu in cpus.iter() {
        if tlb::needs_flush(cpu, stamp) {
            stale.insert(cpu);
        }
    }
    if !stale.is_empty() {
        smp::request(stale, Request::FlushTlb);
    }
}

fn scrub(block: Block) {
    for mfn in block.first..block.first + (1 << block.order) {
        if let Some(page) = Page::new(Mfn::new(mfn.into())) {
            page.clear();
        }
    }
}

/// What Domain 0 may do with pages that the hypervisor shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shown {
    /// Read them.
    ReadOnly,
    /// Write to them as well: what is there proves nothing.
    Writable,
}

/// Takes `1 << order` cleared pages that Domain 0 may map as the hypervisor's, for ever.
pub fn alloc_shown_pages(order: u32, shown: Shown) -> Result<impl Iterator<Item = Page>, Errno> {
    let block = take_block(order, AllocFlags::default(), 0)?;
    let word = match shown {
        Shown::ReadOnly => Word::READ_ONLY,
        Shown::Writable => Word::SHARED,
    };
    let mfns = block.first..block.first + (1 << order);
    Ok(mfns.filter_map(move |mfn| {
        frame(mfn.into())?.assign(RawDomId::XEN.0, word);
        Page::new(Mfn::new(mfn.into()))
    }))
}

/// Puts a block back that no domain ever saw, or that has been scrubbed.
fn return_block(block: Block) {
    FREE.lock().heap.free(block.first, block.order, block.cleanliness);
}

/// Takes a page for the hypervisor's own use, which no guest can name; what is in it is anybody's.
pub fn take_own_page() -> Result<Page, Errno> {
    let flags = AllocFlags {
        unscrubbed: true,
        ..AllocFlags::default()
    };
    let block = take_block(0, flags, 0)?;
    Page::new(Mfn::new(block.first.into())).ok_or(Errno::ENOMEM)
}

/// Gives such a page back. CPUs may have walked it as a table: whoever gets it next waits until they have forgotten.
pub fn return_own_page(page: Page) {
    let mfn = page.mfn().raw();
    let (Some(frame), Ok(first)) = (frame(mfn), u32::try_from(mfn)) else {
        return;
    };
    frame.set_stamp(tlb::now());
    return_block(Block {
        first,
        order: 0,
        cleanliness: Cleanliness::Dirty,
    });
}

/// The last reference to a frame is gone: it is free from here on.
pub fn free_frame(mfn: u64) {
    let Some(frame) = frame(mfn) else { return };
    let owner = frame.owner();
    // Whoever gets it next waits for CPUs that may still read it.
    frame.set_stamp(tlb::now());
    m2p::set(Mfn::new(mfn), m2p::INVALID_ENTRY);
    frame.assign(RawDomId::XEN.0, Word::default());
    if let Ok(first) = u32::try_from(mfn) {
        FREE.lock().heap.free(first, 0, Cleanliness::Dirty);
    }
    if let Some(count) = OWNED.get().and_then(|owned| owned.get(usize::from(owner)))
        && count.fetch_sub(1, Ordering::AcqRel) == 1
    {
        EMPTIED.store(true, Ordering::Release);
    }
}

/// Counts frames that are given to a domain.
fn note_owned(owner: DomId, pages: u32) {
    if let Some(count) = OWNED.get().and_then(|owned| owned.get(usize::from(owner.raw()))) {
        count.fetch_add(pages, Ordering::AcqRel);
    }
}

/// Whether none of the domain's pages is left, in its own hands or mapped by others.
pub fn is_empty(domain: &crate::domain::Domain) -> bool {
    let owned = OWNED.get().and_then(|owned| owned.get(usize::from(domain.id.raw())));
    let is_empty =
        owned.is_none_or(|count| count.load(Ordering::Acquire) == 0) && domain::shared_pages_are_ours(domain);
    if !is_empty {
        // Looked at again when a CPU idles or an update of page tables ends.
        EMPTIED.store(true, Ordering::Release);
    }
    is_empty
}

/// Forgets domains that only waited for pages that others mapped. Takes the list's lock: not to be called under any.
#[inline]
pub fn reap_emptied() {
    if EMPTIED.load(Ordering::Relaxed) {
        reap();
    }
}

#[cold]
fn reap() {
    if EMPTIED.swap(false, Ordering::AcqRel) {
        for domain in crate::domain::list::all() {
            crate::domain::death::reap(&domain);
        }
    }
}

/// Scrubs a few free pages, for a CPU with nothing else to do; `false` if there is nothing for it to scrub.
///
/// One CPU at a time does it, and it never queues for the heap: several would do little but pass the heap's lock
/// around, and keep those waiting who have work.
pub fn scrub_some() -> bool {
    static SOMEBODY_SCRUBS: AtomicBool = AtomicBool::new(false);
    reap_emptied();
    if SOMEBODY_SCRUBS.swap(true, Ordering::Acquire) {
        return false;
    }
    let may_be_more = scrub_block();
    SOMEBODY_SCRUBS.store(false, Ordering::Release);
    may_be_more
}

fn scrub_block() -> bool {
    const ORDER: u32 = 4;
    let Some(mut free) = FREE.try_lock() else {
        ferroxen_machine::cpu::relax();
        return true;
    };
    let Some(block) = free.heap.take_dirty(ORDER) else {
        return false;
    };
    free.scrubbing += 1 << block.order;
    drop(free);
    scrub(block);
    let mut free = FREE.lock();
    free.scrubbing -= 1 << block.order;
    free.heap.free(block.first, block.order, Cleanliness::Clean);
    true
}

/// What a frame is to its domain, as `getpageframeinfo3` says it (`XEN_DOMCTL_PFINFO_*`).
pub fn frame_info(subject: &crate::domain::Domain, mfn: Mfn) -> u64 {
    const INVALID: u64 = 0xf << 28;
    const PINNED: u64 = 1 << 31;
    let Some(frame) = frame(mfn.raw()) else { return INVALID };
    let word = frame.word();
    if !word.is_allocated() || word.is_special() || frame.owner() != subject.id.raw() {
        return INVALID;
    }
    let Some(level) = word.kind().level().filter(|_| word.type_count() != 0) else {
        return 0;
    };
    u64::from(level) << 28 | if word.is_pinned() { PINNED } else { 0 }
}

/// Xen's error number for a refusal that concerns a page as such.
pub fn errno(why: Refused) -> Errno {
    match why {
        Refused::TooMany | Refused::Changing | Refused::Raced => Errno::EBUSY,
        _ => Errno::EINVAL,
    }
}
