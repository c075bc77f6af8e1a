//! Mirrors of page tables: what the CPUs walk while a domain's writes are logged.
//!
//! A mirror belongs to one table of the domain, level by level; no guest can map one, and only this module writes them.
//! They are filled on demand: a fault is looked up in the guest's own tables ([`ferroxen_frames::mirror`] judges), and
//! if those allow the access, A and D are set there, the frame goes into the log if it is a write, and the access is
//! tried again. Whoever changes an entry of a table empties the mirror's ([`changed`]); a table that ends loses its
//! mirror ([`ended`]). The argument is docs/decisions/0006-log-dirty-by-mirrored-tables.md.
//!
//! Always true ([`audit`] checks), under the lock of the mirrors:
//! 1. Each mirror is of one live table of the domain, and no table has two.
//! 2. An entry above level 1 is empty, or names the mirror of the table that the guest's entry names.
//! 3. An entry of level 1 is empty, or allows no more than the guest's, and writes only to what is in the log.
//! 4. The mirror of each root that a vcpu runs on exists.
//!
//! The lock ([`Rank::Mirrors`](crate::lock::Rank)) is not that of the page tables: a fault may come while the
//! hypervisor copies to a guest with those locked, or a vcpu's registers. That it is enough rests on an order: a
//! guest's entry is changed, then its mirror's emptied, then what the entry held is given back. So what a fault finds
//! on its way down from a root that a vcpu holds stays a live table until the fault lets go of the lock.

use super::{Tables, is_guest_address};
use crate::domain::{Domain, PvState, VcpuRef};
use crate::memory;
use crate::pv::trap::fault;
use alloc::vec::Vec;
use ferroxen_abi::errno::Errno;
use ferroxen_frames::Kind;
use ferroxen_frames::entry::{ENTRIES, Entry, is_own_slot};
use ferroxen_frames::mirror::{self, Access, Fault, Rights};
use ferroxen_machine::arithmetic::table_indices;
use ferroxen_machine::memory::Page;
use ferroxen_machine::paging::{self, RootTable};
use ferroxen_machine::tlb;
use ferroxen_words::{Mfn, Vaddr};

const NONE: u32 = u32::MAX;
const ROOT: u8 = 4;

/// A frame of ours, and the table that it mirrors now.
#[derive(Debug)]
struct Mirror {
    page: Page,
    /// The guest's table; meaningless while the mirror is free.
    table: u64,
    /// Of the table; 0 while it is free.
    level: u8,
    /// The next in the same chain, or the next free one.
    next: u32,
    /// The flush clock when it became free: no CPU may walk it as what it was once it is used anew.
    stamp: u64,
}

/// A reading of the log that may be interrupted: who asked for it, and how far it came.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// The request: its address, and the root of the address space that it lies in.
    pub asker: (u64, u64),
    /// Bytes of the bitmap that have been emptied.
    pub emptied: u64,
    /// The page at which to go on.
    pub next: Option<u32>,
    /// Pages found in the log.
    pub found: u32,
}

/// What a vcpu's two modes run on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Its kernel.
    Kernel = 0,
    /// Its user mode.
    User = 1,
}

/// A domain's mirrors; without any it is not logged.
#[derive(Debug)]
pub struct Mirrors {
    all: Vec<Mirror>,
    /// First mirror of each chain; a table's number says which chain.
    chains: Vec<u32>,
    free: u32,
    /// The mirrors that vcpus run on, by vcpu and [`Mode`].
    roots: Vec<[Option<u32>; 2]>,
    /// Faults since the log was last emptied.
    pub faults: u32,
    /// The reading of the log that is under way.
    pub pass: Option<Pass>,
}

impl Mirrors {
    /// None.
    #[expect(clippy::new_without_default, reason = "there is no default domain")]
    pub const fn new() -> Mirrors {
        Mirrors {
            all: Vec::new(),
            chains: Vec::new(),
            free: NONE,
            roots: Vec::new(),
            faults: 0,
            pass: None,
        }
    }

    /// How many frames they have taken from the host.
    pub fn frames(&self) -> usize {
        self.all.len()
    }

    /// Makes room for `count` mirrors, and for the roots of so many vcpus. `ENOMEM`: not that much is left.
    pub fn make_room(&mut self, count: usize, vcpus: usize) -> Result<(), Errno> {
        let enough = ferroxen_machine::heap::free_bytes()
            > crate::domain::list::HEAP_RESERVE + count * (size_of::<Mirror>() + 8) + vcpus * 16;
        let chains = count.div_ceil(2).next_power_of_two();
        let room = self
            .all
            .try_reserve_exact(count.saturating_sub(self.all.len()))
            .and_then(|()| self.chains.try_reserve_exact(chains.saturating_sub(self.chains.len())))
            .and_then(|()| self.roots.try_reserve_exact(vcpus.saturating_sub(self.roots.len())));
        if !enough || room.is_err() {
            return Err(Errno::ENOMEM);
        }
        self.roots.resize(vcpus, [None; 2]);
        if self.chains.len() < chains {
            self.chains.resize(chains, NONE);
            self.drop_all();
        }
        Ok(())
    }

    /// Adds a frame, for which room was made.
    pub fn add(&mut self, page: Page) {
        let next = core::mem::replace(&mut self.free, self.all.len() as u32);
        self.all.push(Mirror {
            page,
            table: 0,
            level: 0,
            next,
            stamp: 0,
        });
    }

    /// Takes a frame out again, when the domain is logged no more.
    pub fn take(&mut self) -> Option<Page> {
        match self.all.pop() {
            Some(mirror) => Some(mirror.page),
            None => {
                *self = Mirrors::new();
                None
            }
        }
    }

    fn chain(&self, table: u64) -> usize {
        // Tables mostly have numbers near each other.
        table as usize & self.chains.len().wrapping_sub(1)
    }

    fn find(&self, table: u64) -> Option<u32> {
        let mut at = *self.chains.get(self.chain(table))?;
        while let Some(mirror) = self.all.get(at as usize) {
            if mirror.table == table {
                return Some(at);
            }
            at = mirror.next;
        }
        None
    }

    fn page(&self, at: u32) -> Option<Page> {
        self.all.get(at as usize).map(|mirror| mirror.page)
    }

    fn link(&mut self, at: u32, table: u64, level: u8) {
        let chain = self.chain(table);
        let (Some(first), Some(mirror)) = (self.chains.get_mut(chain), self.all.get_mut(at as usize)) else {
            return;
        };
        mirror.next = core::mem::replace(first, at);
        (mirror.table, mirror.level) = (table, level);
    }

    /// A mirror for a table that has none; `None`: all are in use.
    fn make(&mut self, domain: &Domain, table: u64, level: u8) -> Option<u32> {
        let at = self.free;
        let mirror = self.all.get(at as usize)?;
        let page = mirror.page;
        memory::flush_since(mirror.stamp, &domain.dirty_cpus.snapshot());
        self.free = mirror.next;
        page.clear();
        if level == ROOT {
            let _ = RootTable::adopt(page);
        }
        if level == 1 {
            fill_ahead(page, table);
        }
        self.link(at, table, level);
        Some(at)
    }

    /// The mirror of a table, made if there is none. `None`: all are in use.
    fn find_or_make(&mut self, domain: &Domain, table: u64, level: u8) -> Option<u32> {
        match self.find(table) {
            Some(at) => Some(at),
            None => self.make(domain, table, level),
        }
    }

    /// A table ends: its mirror is free.
    fn forget(&mut self, table: u64) {
        let Some(at) = self.find(table) else { return };
        let chain = self.chain(table);
        let next = self.all.get(at as usize).map_or(NONE, |mirror| mirror.next);
        match self.chains.get_mut(chain) {
            Some(first) if *first == at => *first = next,
            Some(first) => {
                let mut before = *first;
                while let Some(mirror) = self.all.get_mut(before as usize) {
                    if mirror.next == at {
                        mirror.next = next;
                        break;
                    }
                    before = mirror.next;
                }
            }
            None => return,
        }
        let free = self.free;
        if let Some(mirror) = self.all.get_mut(at as usize) {
            (mirror.level, mirror.next, mirror.stamp) = (0, free, tlb::now());
            self.free = at;
        }
    }

    /// Drops all mirrors but those of the roots in use, which become empty. What CPUs remember is the caller's to flush.
    pub fn drop_all(&mut self) {
        let now = tlb::now();
        self.chains.fill(NONE);
        self.free = NONE;
        for at in 0..self.all.len() as u32 {
            let Some(mirror) = self.all.get_mut(at as usize) else {
                return;
            };
            if mirror.level == ROOT && self.roots.iter().flatten().any(|root| *root == Some(at)) {
                for index in (0..ENTRIES).filter(|&index| !is_own_slot(index)) {
                    mirror.page.store_u64(index, 0);
                }
                let (table, level) = (mirror.table, mirror.level);
                self.link(at, table, level);
            } else {
                if mirror.level != 0 {
                    (mirror.level, mirror.stamp) = (0, now);
                }
                mirror.next = core::mem::replace(&mut self.free, at);
            }
        }
    }

    /// Takes what a vcpu runs on in one mode to be the mirror of `root`, and answers it.
    fn run_on(&mut self, domain: &Domain, vcpu: usize, mode: Mode, root: Option<RootTable>) -> Option<RootTable> {
        let at = root.map(|root| {
            let table = root.mfn().raw();
            self.find_or_make(domain, table, ROOT).unwrap_or_else(|| {
                self.drop_all();
                self.make(domain, table, ROOT)
                    .expect("there are more mirrors than roots in use")
            })
        });
        let loaded = at
            .and_then(|at| self.page(at))
            .and_then(|page| RootTable::check(page.mfn()));
        if let Some(slot) = self.roots.get_mut(vcpu) {
            slot[mode as usize] = at;
        }
        loaded
    }
}

/// What a root is loaded as: itself, or its mirror while the domain is logged. `activate`: the running vcpu is in that
/// mode, so the new one is loaded before the old one may be anything else. The tables are locked.
#[inline(always)]
pub fn install(vcpu: &VcpuRef, pv: &mut PvState, mode: Mode, root: Option<RootTable>, activate: bool) {
    let loaded = if vcpu.domain().is_logged() {
        install_mirror(vcpu, mode, root, activate)
    } else {
        if let (true, Some(root)) = (activate, &root) {
            paging::activate(root);
        }
        root
    };
    match mode {
        Mode::Kernel => (pv.kernel_root, pv.kernel_loads) = (root, loaded),
        Mode::User => (pv.user_root, pv.user_loads) = (root, loaded),
    }
}

#[cold]
#[inline(never)]
fn install_mirror(vcpu: &VcpuRef, mode: Mode, root: Option<RootTable>, activate: bool) -> Option<RootTable> {
    let mut mirrors = vcpu.domain().mirrors.lock();
    let loaded = mirrors.run_on(vcpu.domain(), vcpu.id.0 as usize, mode, root);
    if let (true, Some(root)) = (activate, &loaded) {
        paging::activate(root);
    }
    loaded
}

/// Changes between mirrors and own tables, for all vcpus of a domain that does not run.
pub fn switch(domain: &alloc::sync::Arc<Domain>, is_logged: bool) {
    let tables = Tables::lock_unsettled(domain);
    if is_logged {
        domain.mirrors.lock().drop_all();
    }
    domain.set_logged(is_logged);
    for vcpu in VcpuRef::all(domain) {
        let mut pv = vcpu.pv.lock();
        let (kernel, user) = (pv.kernel_root, pv.user_root);
        install(&vcpu, &mut pv, Mode::Kernel, kernel, false);
        install(&vcpu, &mut pv, Mode::User, user, false);
    }
    if !is_logged {
        let mut mirrors = domain.mirrors.lock();
        mirrors.roots.clear();
        mirrors.pass = None;
        mirrors.drop_all();
    }
    drop(tables);
}

/// Root of the tables of the running vcpu's kernel, which are in force.
#[inline(always)]
pub fn running_root(vcpu: &VcpuRef) -> Option<Mfn> {
    if vcpu.domain().is_logged() {
        mirrored_root(vcpu)
    } else {
        paging::active()
    }
}

#[cold]
#[inline(never)]
pub fn mirrored_root(vcpu: &VcpuRef) -> Option<Mfn> {
    vcpu.pv.lock().kernel_root.map(RootTable::mfn)
}

/// An entry of a table of a logged domain has been changed.
#[cold]
#[inline(never)]
pub fn changed(domain: &Domain, table: Page, index: usize) {
    let table = table.mfn().raw();
    mark(table);
    let mirrors = domain.mirrors.lock();
    if let Some(page) = mirrors.find(table).and_then(|at| mirrors.page(at)) {
        page.store_u64(index, 0);
    }
}

/// A table of a logged domain is one no longer.
#[cold]
#[inline(never)]
pub fn ended(domain: &Domain, table: u64) {
    domain.mirrors.lock().forget(table);
}

fn mark(mfn: u64) {
    if let Some(frame) = memory::frame(mfn) {
        frame.mark_dirty();
    }
}

/// The leaf of a mirror for a guest's: what is no RAM has no log.
fn leaf(entry: Entry) -> u64 {
    let is_logged = memory::frame(entry.mfn()).is_none_or(|frame| frame.is_dirty());
    mirror::leaf(entry, is_logged)
}

/// Fills a new mirror of level 1 with what the guest has used before: most of it will be used again.
fn fill_ahead(page: Page, table: u64) {
    let Some(table) = Page::new(Mfn::new(table)) else {
        return;
    };
    for index in 0..ENTRIES {
        let ahead = leaf(Entry(table.load_u64(index)));
        if ahead != 0 {
            page.store_u64(index, ahead);
        }
    }
}

/// What a page fault under mirrors comes to.
pub enum Resolved {
    /// It was the mirrors': the access is tried again.
    Retry,
    /// It is the guest's own, with this error code by its own tables.
    Guests(u32),
}

/// Looks a page fault of a logged domain up in the guest's own tables, and fills the mirrors that are in force.
#[cold]
#[inline(never)]
pub fn resolve(vcpu: &VcpuRef, at: Vaddr, code: u32) -> Resolved {
    if !is_guest_address(at) || code & fault::RESERVED != 0 {
        return Resolved::Guests(code);
    }
    let access = match () {
        () if code & fault::FETCH != 0 => Access::Execute,
        () if code & fault::WRITE != 0 => Access::Write,
        () => Access::Read,
    };
    let domain = vcpu.domain();
    let mut mirrors = domain.mirrors.lock();
    let Some((root, mirror)) = mirrors.in_force(vcpu.id.0 as usize) else {
        return Resolved::Guests(code);
    };
    mirrors.faults = mirrors.faults.saturating_add(1);
    loop {
        match mirrors.fill(domain, (root, mirror), at, access) {
            Ok(()) => return Resolved::Retry,
            Err(Stop::Guests(Fault::Absent)) => return Resolved::Guests(code & !fault::PRESENT),
            Err(Stop::Guests(Fault::Forbidden)) => return Resolved::Guests(code | fault::PRESENT),
            Err(Stop::Raced) => {}
            // The roots in use stay, and there is room for several more paths. What CPUs remember may stay as well:
            // it lets the guest write to nothing that is not in the log.
            Err(Stop::NoneFree) => mirrors.drop_all(),
        }
    }
}

/// Why a path of mirrors was not filled.
enum Stop {
    /// The guest's tables do not allow the access.
    Guests(Fault),
    /// An entry of the guest's changed meanwhile.
    Raced,
    /// There is no free mirror.
    NoneFree,
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Stop {
        Stop::Guests(fault)
    }
}

/// One step of the way from a root to an address, in the guest's tables.
#[derive(Clone, Copy)]
struct Step {
    table: Page,
    index: usize,
    entry: Entry,
}

impl Mirrors {
    /// The root that the running vcpu is on, and its mirror, which is loaded.
    fn in_force(&self, vcpu: usize) -> Option<(u64, Page)> {
        let loaded = paging::active();
        let of_vcpu = self.roots.get(vcpu).into_iter().flatten().flatten().copied();
        of_vcpu
            .filter_map(|root| self.all.get(root as usize))
            .find(|root| Some(root.page.mfn()) == loaded)
            .map(|root| (root.table, root.page))
    }

    /// Fills the way to `at` below a root.
    fn fill(
        &mut self,
        domain: &Domain,
        (root, mut mirror): (u64, Page),
        at: Vaddr,
        access: Access,
    ) -> Result<(), Stop> {
        let path = way(domain, root, at, access)?;
        for (level, Step { table, index, entry }) in (1..=4).rev().zip(path) {
            let entry = touch(table, index, entry, level, access)?;
            if level == 1 {
                if access == Access::Write {
                    mark(entry.mfn());
                }
                mirror.store_u64(index, leaf(entry));
                break;
            }
            let lower = self.find_or_make(domain, entry.mfn(), level - 1);
            let page = lower.and_then(|lower| self.page(lower)).ok_or(Stop::NoneFree)?;
            mirror.store_u64(index, mirror::upper(entry, page.mfn().raw()));
            mirror = page;
        }
        Ok(())
    }
}

/// The guest's entries on the way to an address, from the root down, if they allow the access.
fn way(domain: &Domain, root: u64, at: Vaddr, access: Access) -> Result<[Step; 4], Fault> {
    let mut rights = Rights::ALL;
    let mut next = root;
    let mut path = [None; 4];
    for ((level, index), slot) in (1..=4).rev().zip(table_indices(at.raw())).zip(&mut path) {
        let table = live_table(domain, next, level).ok_or(Fault::Absent)?;
        let entry = Entry(table.load_u64(index));
        rights = rights.behind(entry)?;
        next = entry.mfn();
        *slot = Some(Step { table, index, entry });
    }
    rights.allow(access)?;
    let [Some(four), Some(three), Some(two), Some(one)] = path else {
        return Err(Fault::Absent);
    };
    Ok([four, three, two, one])
}

fn live_table(domain: &Domain, mfn: u64, level: u8) -> Option<Page> {
    let frame = memory::frame(mfn)?;
    let is_live = frame.owner() == domain.id.raw() && frame.word().is_live(Kind::table(level)?);
    Page::new(Mfn::new(mfn)).filter(|_| is_live)
}

/// Sets A, and D in the leaf of a write, in the guest's entry, as the processor would.
fn touch(table: Page, index: usize, entry: Entry, level: u8, access: Access) -> Result<Entry, Stop> {
    let touched = mirror::touched(entry, level, access);
    if touched != entry {
        table.cas_u64(index, entry.0, touched.0).map_err(|_| Stop::Raced)?;
        mark(table.mfn().raw());
    }
    Ok(touched)
}

/// Checks a domain's mirrors; says what is wrong, and how often.
pub fn audit(domain: &Domain) -> u64 {
    let _tables = Tables::lock_unsettled(domain);
    let mirrors = domain.mirrors.lock();
    let wrong = core::cell::Cell::new(0u64);
    let report = |what: core::fmt::Arguments<'_>| {
        wrong.set(wrong.get() + 1);
        if wrong.get() <= 10 {
            crate::error!("audit: {}: {what}", domain.id);
        }
    };
    if !domain.is_logged() && mirrors.all.iter().any(|mirror| mirror.level != 0) {
        report(format_args!("mirrors although it is not logged"));
    }
    for (at, mirror) in mirrors.all.iter().enumerate().filter(|(_, mirror)| mirror.level != 0) {
        let Some(table) = live_table(domain, mirror.table, mirror.level) else {
            report(format_args!("a mirror of {:#x}, which is no live table", mirror.table));
            continue;
        };
        if mirrors.find(mirror.table) != Some(at as u32) {
            report(format_args!("table {:#x} has two mirrors", mirror.table));
        }
        let differs = |index: &usize| {
            let own = mirror.level == ROOT && is_own_slot(*index);
            !own && !mirrors.is_fit(mirror, *index, Entry(table.load_u64(*index)))
        };
        if let Some(index) = (0..ENTRIES).find(differs) {
            report(format_args!(
                "entry {index} of table {:#x}, {:#x}, is mirrored by {:#x}",
                mirror.table,
                table.load_u64(index),
                mirror.page.load_u64(index)
            ));
        }
    }
    wrong.get()
}

impl Mirrors {
    /// Whether a mirror's entry is what it may be.
    fn is_fit(&self, mirror: &Mirror, index: usize, entry: Entry) -> bool {
        let found = mirror.page.load_u64(index);
        if found == 0 {
            return true;
        }
        if mirror.level == 1 {
            // While the log is being read, marks go first and the right to write after them.
            let is_logged = self.pass.is_some() || memory::frame(entry.mfn()).is_none_or(|frame| frame.is_dirty());
            return mirror::is_fit_leaf(found, entry, is_logged);
        }
        let lower = self.find(entry.mfn()).and_then(|at| self.page(at));
        lower.is_some_and(|lower| entry.is_present() && found == mirror::upper(entry, lower.mfn().raw()))
    }
}
