//! Page tables of PV guests: the guest proposes, `ferroxen_frames` disposes.
//!
//! A guest's tables are the tables that the CPU walks. Every change goes through [`ferroxen_frames::Space`], under
//! the owning domain's page-table lock ([`Rank::PageTables`](crate::lock::Rank)); this module gives that crate its
//! hands ([`Hands`]) and keeps what belongs to a domain but to no single frame: the table that could not be taken
//! down in time ([`TableState::owed`]), and the LDT pages that were mapped when the processor asked for them.
//!
//! Whoever takes the lock settles what is owed first, so that at most one table is owed at a time and the guest
//! whose operation was cut short pays for the rest of it.

mod emulate;
mod grant;
mod ldt;
mod mirror;
mod roots;
mod update;

pub use emulate::emulate_table_write;
pub use grant::{GrantPlace, NotMapped, flush_after_unmap, map_grant, unmap_grant};
pub use ldt::{ldt_frames, map_ldt_page};
pub use mirror::{Mirrors, Pass, Resolved, audit as audit_mirrors, resolve, running_root, switch as switch_mirrors};
pub use roots::{
    WBINVD_SLOT, init, is_guest_address, new_root, new_user_root, pin_root, release_roots, relinquish_roots,
    set_gdt_frames, set_initial_roots, set_ldt, switch_root,
};
pub use update::{Updated, Walked, leaf_errno, table_errno, walk};

use crate::domain::Domain;
use crate::irq::{FrameAccess, frame_access};
use crate::lock::Guard;
use crate::memory;
use alloc::vec::Vec;
use core::cell::Cell;
use ferroxen_frames::entry::{Entry, bits};
use ferroxen_frames::{Dropped, Frame, Host, Refused, Space, Stop};
use ferroxen_machine::memory::Page;
use ferroxen_machine::paging::RootTable;
use ferroxen_machine::smp::CpuSet;
use ferroxen_machine::{cpu, smp, time, tlb};
use ferroxen_words::{Mfn, PAGE_SHIFT, RawDomId, VcpuId};

/// What a domain's page-table lock guards beside the tables themselves.
#[derive(Debug, Default)]
pub struct TableState {
    /// A table that nobody holds any more and that is not taken down yet.
    pub(in crate::pv::mm) owed: Option<u64>,
    /// LDT pages that are, or were, in a CPU's window: each holds a pair of references.
    pub(in crate::pv::mm) ldt: Vec<(VcpuId, u8, u64)>,
}

impl TableState {
    /// Nothing owed.
    pub const fn new() -> TableState {
        TableState {
            owed: None,
            ldt: Vec::new(),
        }
    }
}

/// The world as the accounts of one domain's tables see it.
pub struct Hands<'a> {
    /// Whose tables.
    pub domain: &'a Domain,
    /// A mapping of a descriptor page went away.
    descriptors_unmapped: Cell<bool>,
}

impl<'a> Hands<'a> {
    /// For a domain's tables.
    #[inline(always)]
    pub fn of(domain: &'a Domain) -> Self {
        Hands {
            domain,
            descriptors_unmapped: Cell::new(false),
        }
    }

    /// Replaces an entry, and answers what it was.
    #[inline(always)]
    pub(in crate::pv::mm) fn swap<const LOGGED: bool>(&self, table: Page, index: usize, value: u64) -> u64 {
        let old = table.swap_u64(index, value);
        if LOGGED {
            mirror::changed(self.domain, table, index);
        }
        old
    }

    /// An entry has been changed: its mirror's is not its mirror any more.
    #[inline(always)]
    fn changed(&self, table: Page, index: usize) {
        if self.domain.is_logged() {
            mirror::changed(self.domain, table, index);
        }
    }
}

impl Host for Hands<'_> {
    type Table = Page;

    #[inline(always)]
    fn frame(&self, mfn: u64) -> Option<&Frame> {
        memory::frame(mfn)
    }

    #[inline(always)]
    fn table(&self, mfn: u64) -> Option<Page> {
        Page::new(Mfn::new(mfn))
    }

    #[inline(always)]
    fn load(&self, table: Page, index: usize) -> u64 {
        table.load_u64(index)
    }

    #[inline(always)]
    fn store(&self, table: Page, index: usize, value: u64) {
        table.store_u64(index, value);
        self.changed(table, index);
    }

    #[inline(always)]
    fn exchange(&self, table: Page, index: usize, old: u64, new: u64) -> Result<(), u64> {
        table.cas_u64(index, old, new).map(|_| self.changed(table, index))
    }

    fn table_ends(&self, mfn: u64) {
        if self.domain.is_logged() {
            mirror::ended(self.domain, mfn);
        }
    }

    fn adopt_root(&self, table: Page) {
        let _ = RootTable::adopt(table);
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        tlb::now()
    }

    fn flush_stale(&self, frame: &Frame) {
        // What another domain could write, any CPU may remember.
        let cpus = if frame.was_foreign() || frame.owner() != self.domain.id.raw() {
            CpuSet::online()
        } else {
            self.domain.dirty_cpus.snapshot()
        };
        memory::flush_since(frame.stamp(), &cpus);
    }

    #[inline(always)]
    fn is_time_up(&self) -> bool {
        time::entry_budget_spent()
    }

    fn free(&self, mfn: u64) {
        memory::free_frame(mfn);
    }

    fn device_entry(&self, owner: u16, entry: Entry) -> Result<Entry, Refused> {
        let mfn = Mfn::new(entry.mfn());
        // All ones is not a frame that is forbidden, but none.
        if mfn.raw() == bits::FRAME >> PAGE_SHIFT {
            return Err(Refused::BadBits(entry.0));
        }
        // The hypervisor's own RAM has records that nobody can get; what has none and is RAM is out of bounds.
        if memory::is_ours_to_give(mfn) || (owner != self.domain.id.raw() && owner != RawDomId::IO.0) {
            return Err(Refused::NoSuchFrame);
        }
        let writable = match frame_access(self.domain, mfn) {
            FrameAccess::None => return Err(Refused::NotPermitted),
            FrameAccess::ReadOnly => 0,
            FrameAccess::ReadWrite => bits::WRITABLE,
        };
        // Devices are not cached unless the guest says how (XSA-154).
        let uncached = bits::CACHE_DISABLE | bits::WRITE_THROUGH;
        let caching = if entry.0 & bits::CACHING == 0 { uncached } else { 0 };
        Ok(Entry(entry.0 & (!bits::WRITABLE | writable) | caching))
    }

    #[inline(always)]
    fn may_choose_caching(&self) -> bool {
        self.domain.is_privileged
    }

    fn descriptors_unmapped(&self) {
        self.descriptors_unmapped.set(true);
    }

    fn relax(&self) {
        smp::service_requests();
        cpu::relax();
    }
}

/// A domain's tables, locked, with nothing owed.
pub struct Tables<'a> {
    hands: Hands<'a>,
    state: Guard<'a, TableState>,
}

/// The time was up before anything could be done: ask again.
#[derive(Debug)]
pub struct NotYet;

impl<'a> Tables<'a> {
    /// Locks a domain's tables, and settles what is owed.
    #[inline(always)]
    pub fn lock(domain: &'a Domain) -> Result<Tables<'a>, NotYet> {
        let mut state = domain.page_tables.lock();
        if state.owed.is_some() {
            settle(domain, &mut state)?;
        }
        Ok(Tables {
            hands: Hands::of(domain),
            state,
        })
    }

    /// Locks a domain's tables as they are: for who neither takes nor drops a table.
    pub(in crate::pv::mm) fn lock_unsettled(domain: &'a Domain) -> Tables<'a> {
        Tables {
            hands: Hands::of(domain),
            state: domain.page_tables.lock(),
        }
    }

    /// As [`Self::lock`], for who may take all the time there is: boot.
    pub fn lock_patiently(domain: &'a Domain) -> Tables<'a> {
        loop {
            if let Ok(tables) = Tables::lock(domain) {
                return tables;
            }
        }
    }

    fn settle(&mut self) -> Result<(), NotYet> {
        settle(self.hands.domain, &mut self.state)
    }

    /// Whether an operation left something to be settled before the next one.
    #[inline(always)]
    pub fn owes(&self) -> bool {
        self.state.owed.is_some()
    }

    /// The accounts.
    #[inline(always)]
    pub fn space(&self) -> Space<'_, Hands<'a>> {
        Space::new(&self.hands, self.hands.domain.id.raw())
    }

    /// Notes what giving a table back left to be done.
    #[inline(always)]
    pub fn note(&mut self, dropped: Dropped) {
        if let Dropped::Unfinished(mfn) = dropped {
            self.state.owed = Some(mfn);
        }
    }

    /// Notes what a refusal left to be done. `None`: ask again.
    pub fn note_stop(&mut self, stop: Stop) -> Option<Refused> {
        match stop {
            Stop::Refused(why) => Some(why),
            Stop::Unwinding(why, mfn) => {
                self.state.owed = Some(mfn);
                Some(why)
            }
            Stop::Preempted => None,
        }
    }
}

/// Takes the table down that a domain owes.
#[cold]
fn settle(domain: &Domain, state: &mut TableState) -> Result<(), NotYet> {
    let hands = Hands::of(domain);
    let mut settled = Ok(());
    while let Some(mfn) = state.owed {
        match Space::new(&hands, domain.id.raw()).settle(mfn) {
            Dropped::Done => state.owed = None,
            Dropped::Unfinished(_) => {
                settled = Err(NotYet);
                break;
            }
        }
    }
    if hands.descriptors_unmapped.get() {
        ldt::drop_pages(domain, state, None);
    }
    settled
}

impl Drop for Tables<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.hands.descriptors_unmapped.get() {
            ldt::drop_pages(self.hands.domain, &mut self.state, None);
        }
    }
}

/// Unpins, or goes on taking down, one page of a dying domain. `false`: the time was up.
pub fn unpin_for_death(domain: &Domain, mfn: u64) -> bool {
    let Ok(mut tables) = Tables::lock(domain) else {
        return false;
    };
    if let Some(dropped) = tables.space().unpin(mfn) {
        tables.note(dropped);
    }
    let dropped = tables.space().settle(mfn);
    tables.note(dropped);
    tables.settle().is_ok()
}
