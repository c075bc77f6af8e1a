//! A domain's own pages: how many it has and may have, and where they are.

use super::{
    AllocFlags, Block, Cleanliness, CpuSet, DomId, Errno, FREE, Mfn, Page, RawDomId, Word, flush_since, frame,
    free_frame, note_owned, return_block, take_block,
};
use crate::domain::death::Progress;
use crate::domain::{Domain, Life};
use crate::lock::Guard;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;
use ferroxen_abi::memory::E820Entry;
use ferroxen_frames::{Frame, Put};
use ferroxen_machine::{m2p, time, tlb};

/// No frame.
const NONE: u32 = u32::MAX;

/// A list of frames through their records.
#[derive(Debug)]
struct PageList {
    first: u32,
}

impl PageList {
    const EMPTY: PageList = PageList { first: NONE };

    fn push(&mut self, mfn: u32, frame: &Frame) {
        frame.prev.store(NONE, Ordering::Relaxed);
        frame.next.store(self.first, Ordering::Relaxed);
        if let Some(next) = linked(self.first) {
            next.prev.store(mfn, Ordering::Relaxed);
        }
        self.first = mfn;
    }

    fn remove(&mut self, frame: &Frame) {
        let (next, prev) = (frame.next.load(Ordering::Relaxed), frame.prev.load(Ordering::Relaxed));
        match linked(prev) {
            Some(before) => before.next.store(next, Ordering::Relaxed),
            None => self.first = next,
        }
        if let Some(after) = linked(next) {
            after.prev.store(prev, Ordering::Relaxed);
        }
    }
}

fn linked(mfn: u32) -> Option<&'static Frame> {
    if mfn == NONE { None } else { frame(mfn.into()) }
}

/// A domain's account of pages; its lock is [`crate::lock::Rank::Pages`].
#[derive(Debug)]
pub struct DomainMemory {
    pages: PageList,
    /// Pages shared with the hypervisor: not the domain's to give back.
    shared: PageList,
    total: u64,
    max: u64,
    claimed: u64,
    /// What `XENMEM_memory_map` says.
    map: Vec<E820Entry>,
    /// Where the search for pinned tables stands, while the domain dies.
    unpinning: Option<u32>,
}

/// How many pages a domain has, may have, and was promised.
#[derive(Clone, Copy, Debug)]
pub struct Counts {
    /// Has.
    pub total: u64,
    /// May have.
    pub max: u64,
    /// Was promised and has not taken yet.
    pub claimed: u64,
}

/// A new domain's account, and its shared page.
pub fn new_domain_memory(id: DomId) -> Result<(DomainMemory, Page), Errno> {
    let mut memory = DomainMemory {
        pages: PageList::EMPTY,
        shared: PageList::EMPTY,
        total: 0,
        max: 0,
        claimed: 0,
        map: Vec::new(),
        unpinning: None,
    };
    let shared_info = memory.add_shared(id)?;
    Ok((memory, shared_info))
}

impl DomainMemory {
    fn add_shared(&mut self, id: DomId) -> Result<Page, Errno> {
        let block = take_block(0, AllocFlags::default(), 0)?;
        let mfn = Mfn::new(block.first.into());
        let (Some(page), Some(frame)) = (Page::new(mfn), frame(mfn.raw())) else {
            return_block(block);
            return Err(Errno::ENOMEM);
        };
        frame.assign(id.raw(), Word::SHARED);
        self.shared.push(block.first, frame);
        Ok(page)
    }
}

impl Drop for DomainMemory {
    /// The hypervisor wrote to the shared pages for as long as the domain was known to anybody; not any more.
    fn drop(&mut self) {
        while let Some(frame) = linked(self.shared.first) {
            let mfn = self.shared.first;
            self.shared.remove(frame);
            frame.disown(RawDomId::XEN.0);
            if frame.stop_sharing(tlb::now()) && frame.put() == Put::Last {
                free_frame(mfn.into());
            }
        }
    }
}

/// A zeroed page that the hypervisor and the domain share, for as long as the domain lives.
pub fn alloc_shared_page(domain: &Domain) -> Result<Page, Errno> {
    domain.memory.lock().add_shared(domain.id)
}

/// A domain's counts.
pub fn counts(domain: &Domain) -> Counts {
    let memory = domain.memory.lock();
    Counts {
        total: memory.total,
        max: memory.max,
        claimed: memory.claimed,
    }
}

/// Sets how many pages the domain may have; fewer than it has is allowed, and keeps it from getting more. No limit is as
/// many as upstream can count.
pub fn set_max_pages(domain: &Domain, pages: u64) {
    domain.memory.lock().max = pages.min(u32::MAX.into());
}

/// The memory map that the domain's builder wrote for it.
pub fn map_of(domain: &Domain) -> Vec<E820Entry> {
    domain.memory.lock().map.clone()
}

/// Writes the domain's memory map.
pub fn set_map(domain: &Domain, map: Vec<E820Entry>) {
    domain.memory.lock().map = map;
}

/// Reserves free pages for a domain that is being built: `pages` in all, those that it has included; 0 takes the
/// reservation back.
pub fn claim(domain: &Domain, pages: u64) -> Result<(), Errno> {
    let mut memory = domain.memory.lock();
    let mut free = FREE.lock();
    if pages == 0 {
        free.claimed = free.claimed.saturating_sub(memory.claimed);
        memory.claimed = 0;
        return Ok(());
    }
    if memory.claimed != 0 || pages <= memory.total || pages > memory.max {
        return Err(Errno::EINVAL);
    }
    let wanted = pages - memory.total;
    if wanted > free.heap.free_pages().saturating_sub(free.claimed) {
        return Err(Errno::ENOMEM);
    }
    memory.claimed = wanted;
    free.claimed += wanted;
    Ok(())
}

/// Gives a domain 2^order zeroed pages in one piece.
pub fn allocate(domain: &Domain, order: u32) -> Result<Mfn, Errno> {
    allocate_with(domain, order, AllocFlags::default())
}

/// As [`allocate`], with wishes. `ENOMEM` also if the domain would have more than it may.
pub fn allocate_with(domain: &Domain, order: u32, flags: AllocFlags) -> Result<Mfn, Errno> {
    if order > ferroxen_heap::MAX_ORDER {
        return Err(Errno::ENOMEM);
    }
    let count = 1u64 << order;
    let promised = {
        let memory = domain.memory.lock();
        if domain.life() != Life::Alive {
            return Err(Errno::EINVAL);
        }
        if memory.total.checked_add(count).is_none_or(|total| total > memory.max) {
            return Err(Errno::ENOMEM);
        }
        memory.claimed
    };
    let block = take_block(order, flags, promised)?;
    give(domain, block)?;
    Ok(Mfn::new(block.first.into()))
}

/// Enters a block into a domain's account, or puts it back.
fn give(domain: &Domain, block: Block) -> Result<(), Errno> {
    let count = 1u64 << block.order;
    let mut memory = domain.memory.lock();
    // Looked at again: somebody else may have been faster, or the domain may have begun to die.
    let fits = memory.total.checked_add(count).is_some_and(|total| total <= memory.max);
    if !fits || domain.life() != Life::Alive {
        drop(memory);
        return_block(Block {
            cleanliness: Cleanliness::Dirty,
            ..block
        });
        return Err(if fits { Errno::EINVAL } else { Errno::ENOMEM });
    }
    memory.total += count;
    let used = memory.claimed.min(count);
    if used != 0 {
        memory.claimed -= used;
        let mut free = FREE.lock();
        free.claimed = free.claimed.saturating_sub(used);
    }
    note_owned(domain.id, count as u32);
    // Downwards, so that the list is in order of address.
    for mfn in (block.first..block.first + count as u32).rev() {
        if let Some(frame) = frame(mfn.into()) {
            m2p::set(Mfn::new(mfn.into()), m2p::INVALID_ENTRY);
            frame.assign(domain.id.raw(), Word::ALLOCATED);
            memory.pages.push(mfn, frame);
        }
    }
    Ok(())
}

/// Takes a page out of a living domain's account; it becomes free when nobody holds it any more. `EINVAL` if it is
/// not the domain's, was given back before, is pinned, or is shared with the hypervisor.
pub fn release_page(domain: &Domain, mfn: Mfn) -> Result<(), Errno> {
    let memory = domain.memory.lock();
    // A dying domain's pages are taken back in an order that nobody may disturb.
    if domain.life() != Life::Alive {
        return Err(Errno::EINVAL);
    }
    release_listed(domain, memory, mfn)
}

fn release_listed(domain: &Domain, mut memory: Guard<'_, DomainMemory>, mfn: Mfn) -> Result<(), Errno> {
    let found = frame(mfn.raw()).ok_or(Errno::EINVAL)?;
    // Under the lock of the owner's list the owner of an allocated page cannot change.
    if found.owner() != domain.id.raw() || !found.give_back() {
        return Err(Errno::EINVAL);
    }
    memory.pages.remove(found);
    memory.total -= 1;
    drop(memory);
    if found.put() == Put::Last {
        free_frame(mfn.raw());
    }
    Ok(())
}

/// Takes a page away from a domain that has it all to itself, to be given to somebody (else) or freed: `EINVAL` if
/// it is not the domain's, or is mapped or held by anybody.
pub fn steal(domain: &Domain, mfn: Mfn) -> Result<Stolen, Errno> {
    let found = frame(mfn.raw()).ok_or(Errno::EINVAL)?;
    let first = u32::try_from(mfn.raw()).map_err(|_| Errno::EINVAL)?;
    let mut memory = domain.memory.lock();
    if domain.life() != Life::Alive || found.owner() != domain.id.raw() || !found.steal() {
        return Err(Errno::EINVAL);
    }
    memory.pages.remove(found);
    memory.total -= 1;
    Ok(Stolen {
        mfn: first,
        frame: found,
    })
}

/// A page between two owners: it must be given back to its old one, or freed.
#[must_use]
#[derive(Debug)]
pub struct Stolen {
    mfn: u32,
    frame: &'static Frame,
}

impl Stolen {
    /// The old owner keeps it after all.
    pub fn give_back(self, domain: &Domain) {
        // It becomes ordinary memory without a past, so nobody may remember how it was mapped.
        flush_since(self.frame.stamp(), &CpuSet::online());
        let mut memory = domain.memory.lock();
        if domain.life() != Life::Alive {
            drop(memory);
            return self.free();
        }
        self.frame.assign(domain.id.raw(), Word::USED);
        memory.pages.push(self.mfn, self.frame);
        memory.total += 1;
    }

    /// It becomes free.
    pub fn free(self) {
        free_frame(self.mfn.into());
    }
}

/// Takes a dying domain's pages back, in steps. Its vcpus do not run, and its grants and events are gone.
pub fn relinquish(domain: &alloc::sync::Arc<Domain>) -> Progress {
    if crate::hypercall::shadow_op::end(domain) == Progress::More || !crate::pv::mm::relinquish_roots(domain) {
        return Progress::More;
    }
    {
        let mut memory = domain.memory.lock();
        if memory.claimed != 0 {
            let mut free = FREE.lock();
            free.claimed = free.claimed.saturating_sub(memory.claimed);
            memory.claimed = 0;
        }
        memory.max = 0;
        if memory.unpinning.is_none() {
            memory.unpinning = Some(memory.pages.first);
        }
    }
    if unpin_all(domain) == Progress::More {
        return Progress::More;
    }
    release_all(domain)
}

/// First no page is pinned, or an orphaned table, any more: then no page is a table.
fn unpin_all(domain: &Domain) -> Progress {
    let mut steps = 0u32;
    loop {
        let at = domain.memory.lock().unpinning.unwrap_or(NONE);
        let Some(found) = linked(at) else { return Progress::Done };
        let word = found.word();
        if (word.is_pinned() || word.is_orphan()) && !crate::pv::mm::unpin_for_death(domain, at.into()) {
            return Progress::More;
        }
        // The domain is dying: its list only changes here.
        domain.memory.lock().unpinning = Some(found.next.load(Ordering::Relaxed));
        steps += 1;
        if steps.is_multiple_of(64) && time::entry_budget_spent() {
            return Progress::More;
        }
    }
}

fn release_all(domain: &Domain) -> Progress {
    let mut steps = 0u32;
    loop {
        let memory = domain.memory.lock();
        let first = memory.pages.first;
        if first == NONE {
            return Progress::Done;
        }
        if release_listed(domain, memory, Mfn::new(first.into())).is_err() {
            panic!(
                "{}: page {first:#x}, {:?}, cannot be given back",
                domain.id,
                linked(first).map(Frame::word)
            );
        }
        steps += 1;
        if steps.is_multiple_of(32) && time::entry_budget_spent() {
            return Progress::More;
        }
    }
}

/// How far a [`walk`] came.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Walk {
    /// To the end.
    Done,
    /// The time is up: go on from this page.
    More(u32),
}

/// Looks at a domain's pages, those not that it shares with the hypervisor, from where an earlier walk stopped. If that
/// page has gone the walk begins anew; pages that came since the first walk may be left out.
pub fn walk(
    domain: &Domain,
    from: Option<u32>,
    mut look: impl FnMut(Mfn, &Frame) -> Result<(), Errno>,
) -> Result<Walk, Errno> {
    let memory = domain.memory.lock();
    let is_listed = |mfn: &u32| {
        linked(*mfn).is_some_and(|found| {
            let word = found.word();
            found.owner() == domain.id.raw() && word.is_allocated() && !word.is_special()
        })
    };
    let mut at = from.filter(is_listed).unwrap_or(memory.pages.first);
    let mut steps = 0u32;
    while let Some(found) = linked(at) {
        if steps != 0 && steps.is_multiple_of(64) && time::entry_budget_spent() {
            return Ok(Walk::More(at));
        }
        look(Mfn::new(at.into()), found)?;
        at = found.next.load(Ordering::Relaxed);
        steps += 1;
    }
    Ok(Walk::Done)
}

/// Whether nobody but the hypervisor holds any of the pages that it shares with the domain.
pub(super) fn shared_pages_are_ours(domain: &Domain) -> bool {
    let memory = domain.memory.lock();
    let mut at = memory.shared.first;
    while let Some(found) = linked(at) {
        if found.word().references() != 1 {
            return false;
        }
        at = found.next.load(Ordering::Relaxed);
    }
    true
}
