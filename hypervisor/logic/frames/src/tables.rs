//! Tables: how a frame becomes one, changes as one, and stops being one.
//!
//! Every long walk can stop at any entry of a table above level 1 when the host says that the time is up, and
//! goes on from the frame's cursor. A table in between is *partial*; whoever holds it goes on with it:
//! a parent table marks its own cursor as "held" and is partial itself, and the topmost table, for which nobody
//! may come back, becomes an *orphan*: it holds itself. Whoever asks for it next adopts it (promotion goes on),
//! and [`Space::settle`] or the domain's end takes it down. Promotion and demotion leave the same partial state,
//! so each can be turned into the other.

use crate::descriptor;
use crate::entry::{ENTRIES, Entry, bits, is_own_slot};
use crate::frame::{Frame, Put};
use crate::word::{Acquire, Kind, Refused, Release};

/// What the walks need from the world.
pub trait Host {
    /// A table's words, for reading and writing.
    type Table: Copy;

    /// The record of a frame of RAM; `None` for anything else.
    fn frame(&self, mfn: u64) -> Option<&Frame>;
    /// Access to a frame's words; `None` for what nobody may touch (it has no record as RAM either).
    fn table(&self, mfn: u64) -> Option<Self::Table>;
    /// Reads a word.
    fn load(&self, table: Self::Table, index: usize) -> u64;
    /// Writes a word.
    fn store(&self, table: Self::Table, index: usize, value: u64);
    /// Replaces a word if it is `old`; else answers what it is.
    fn exchange(&self, table: Self::Table, index: usize, old: u64, new: u64) -> Result<(), u64>;
    /// A table that the CPU could walk is one no longer: nothing leads to it, and what its entries hold goes next.
    fn table_ends(&self, mfn: u64);
    /// Writes the hypervisor's slots into a level-4 table.
    fn adopt_root(&self, table: Self::Table);
    /// The flush clock.
    fn now(&self) -> u64;
    /// Makes every CPU forget what it may know of a frame since its stamp.
    fn flush_stale(&self, frame: &Frame);
    /// Whether the caller has had its share of time.
    fn is_time_up(&self) -> bool;
    /// The last reference of a frame is gone.
    fn free(&self, mfn: u64);
    /// Whether `domain` may map a frame that is no RAM, and the entry as it shall then be written
    /// (read-only, uncached...).
    fn device_entry(&self, domain: u16, entry: Entry) -> Result<Entry, Refused>;
    /// Whether the table's owner may choose memory types.
    fn may_choose_caching(&self) -> bool;
    /// A read-only mapping of a descriptor page of the owner's own went away: lazily loaded LDT pages shall go too.
    fn descriptors_unmapped(&self);
    /// Waits a moment for another CPU.
    fn relax(&self);
}

/// Why a request for a table did not come through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// No.
    Refused(Refused),
    /// No, and taking back what had been done takes longer: the frame is an orphan, for [`Space::settle`].
    Unwinding(Refused, u64),
    /// Not yet: ask again.
    Preempted,
}

impl From<Refused> for Stop {
    fn from(why: Refused) -> Stop {
        Stop::Refused(why)
    }
}

/// What giving a table back led to.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dropped {
    /// Done.
    Done,
    /// The time was up: the frame is an orphan, for [`Space::settle`].
    Unfinished(u64),
}

/// How an update treats the accessed and dirty bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flavour {
    /// They become what the guest says.
    Plain,
    /// They stay what the CPU made them.
    PreserveAccessedDirty,
}

/// What a child table came to. But for `Refused` it is partial, and the pair of references still the caller's.
enum Child {
    Refused(Refused),
    Unwinding(Refused),
    Preempted,
}

/// What a table's check came to. The table is partial in each case but the first.
enum Check {
    Refused(Refused),
    /// Refused, but not all entries could be given back in time.
    Unwinding(Refused),
    Preempted,
}

/// The walks over the tables of one domain, whose page-table lock the caller holds.
pub struct Space<'a, H: Host> {
    /// The world.
    pub host: &'a H,
    /// The domid of who owns the tables.
    pub owner: u16,
}

impl<'a, H: Host> Space<'a, H> {
    /// For tables of `owner`.
    #[inline(always)]
    pub fn new(host: &'a H, owner: u16) -> Self {
        Space { host, owner }
    }

    // ------------------------------------------------------------------------------------- single references

    /// A reference to a frame of `owner`'s.
    #[inline(always)]
    pub fn get(&self, mfn: u64, owner: u16) -> Result<&'a Frame, Refused> {
        let frame = self.host.frame(mfn).ok_or(Refused::NoSuchFrame)?;
        if frame.get()? == owner {
            return Ok(frame);
        }
        self.put(mfn, frame);
        Err(Refused::NotOwned)
    }

    /// Gives a reference back.
    #[inline(always)]
    pub fn put(&self, mfn: u64, frame: &Frame) {
        if frame.put() == Put::Last {
            self.host.free(mfn);
        }
    }

    /// A reference and a writable type reference to a frame of `owner`'s.
    #[inline(always)]
    pub fn get_writable(&self, mfn: u64, owner: u16) -> Result<&'a Frame, Refused> {
        let frame = self.host.frame(mfn).ok_or(Refused::NoSuchFrame)?;
        match frame.get_writable() {
            Ok(found) if found == owner => {}
            Ok(_) => {
                self.put_pair(mfn, frame);
                return Err(Refused::NotOwned);
            }
            Err(Refused::Changing) => return self.get_writable_slowly(mfn, owner),
            Err(why) => return Err(why),
        }
        if owner != self.owner {
            return Ok(begun(frame));
        }
        Ok(frame)
    }

    #[cold]
    fn get_writable_slowly(&self, mfn: u64, owner: u16) -> Result<&'a Frame, Refused> {
        let frame = self.get(mfn, owner)?;
        if owner != self.owner {
            frame.mark_foreign();
        }
        match self.acquire_flat(frame, Kind::Writable, || Ok(())) {
            Ok(()) => {
                if owner != self.owner {
                    frame.begin_foreign_writes();
                }
                Ok(frame)
            }
            Err(why) => {
                self.put(mfn, frame);
                Err(why)
            }
        }
    }

    /// Gives both back.
    #[inline(always)]
    pub fn put_writable(&self, mfn: u64, frame: &Frame) {
        if frame.foreign_writers() != 0 {
            ended(frame, self.owner);
        }
        self.put_pair(mfn, frame);
    }

    #[inline(always)]
    fn put_pair(&self, mfn: u64, frame: &Frame) {
        if frame.put_writable(self.host.now()) == Put::Last {
            self.host.free(mfn);
        }
    }

    /// A type reference of a kind that names no other frames. The caller has a reference.
    fn acquire_flat(
        &self,
        frame: &Frame,
        kind: Kind,
        check: impl FnOnce() -> Result<(), Refused>,
    ) -> Result<(), Refused> {
        loop {
            match frame.acquire(kind) {
                Ok(Acquire::Given(_)) => return Ok(()),
                Ok(Acquire::Fresh { flush, .. }) => {
                    if flush {
                        self.host.flush_stale(frame);
                    }
                    let answer = check();
                    frame.complete();
                    if answer.is_err() {
                        let _ = frame.release(|| self.host.now());
                    }
                    return answer;
                }
                // Another CPU flushes; that ends.
                Err(Refused::Changing) if kind == Kind::Writable => self.host.relax(),
                Ok(Acquire::Resume(_)) => unreachable!("only tables are partial"),
                Err(why) => return Err(why),
            }
        }
    }

    // ---------------------------------------------------------------------------------- descriptor pages

    /// A pair of references to one of the owner's frames as descriptors, which are checked and put into a form
    /// that cannot hurt.
    pub fn take_descriptors(&self, mfn: u64) -> Result<(), Refused> {
        let frame = self.get(mfn, self.owner)?;
        let checked = self.acquire_flat(frame, Kind::SegDesc, || self.check_descriptors(mfn));
        if checked.is_err() {
            self.put(mfn, frame);
        }
        checked
    }

    fn check_descriptors(&self, mfn: u64) -> Result<(), Refused> {
        let table = self.host.table(mfn).ok_or(Refused::NoSuchFrame)?;
        for index in 0..ENTRIES {
            let raw = self.host.load(table, index);
            let fit = descriptor::checked(raw).ok_or(Refused::BadDescriptor)?;
            if fit != raw {
                self.host.store(table, index, fit);
            }
        }
        Ok(())
    }

    /// Gives the pair back.
    pub fn drop_descriptors(&self, mfn: u64) {
        let Some(frame) = self.host.frame(mfn) else { return };
        let _ = frame.release(|| self.host.now());
        self.put(mfn, frame);
    }

    // ------------------------------------------------------------------------------------- whole tables

    /// A pair of references to one of the owner's frames as a table of `kind`.
    ///
    /// After [`Stop::Preempted`] nothing is held, but the frame remembers how far it was checked: ask again.
    #[inline(always)]
    pub fn take_table(&self, mfn: u64, kind: Kind) -> Result<(), Stop> {
        // Under the lock a live table of the owner's stays one, so that it can be had in one step. (Nor does it change
        // hands: whoever gets a frame that was freed waits until all CPUs have flushed, and this one does not now.)
        let frame = self.host.frame(mfn).ok_or(Refused::NoSuchFrame)?;
        if frame.owner() == self.owner && frame.get_table_again(kind) {
            return Ok(());
        }
        self.take_new_table(mfn, kind)
    }

    #[inline(never)]
    fn take_new_table(&self, mfn: u64, kind: Kind) -> Result<(), Stop> {
        match self.take_child(mfn, kind) {
            Ok(()) => Ok(()),
            Err(Child::Refused(why)) => Err(Stop::Refused(why)),
            Err(Child::Unwinding(why)) => {
                self.orphan(mfn);
                Err(Stop::Unwinding(why, mfn))
            }
            Err(Child::Preempted) => {
                self.orphan(mfn);
                Err(Stop::Preempted)
            }
        }
    }

    /// Gives a pair back.
    #[inline(always)]
    pub fn drop_table(&self, mfn: u64) -> Dropped {
        match self.host.frame(mfn) {
            Some(frame) if frame.put_table_shared() => Dropped::Done,
            _ => self.drop_last(mfn),
        }
    }

    #[inline(never)]
    fn drop_last(&self, mfn: u64) -> Dropped {
        if self.drop_child(mfn) {
            return Dropped::Done;
        }
        self.orphan(mfn);
        Dropped::Unfinished(mfn)
    }

    /// The held partial table is left to itself.
    fn orphan(&self, mfn: u64) {
        let Some(frame) = self.host.frame(mfn) else { return };
        if !frame.orphan() {
            self.put(mfn, frame);
        }
    }

    /// Goes on taking an orphan down, if it still is one and nobody else holds it.
    pub fn settle(&self, mfn: u64) -> Dropped {
        let Some(frame) = self.host.frame(mfn) else {
            return Dropped::Done;
        };
        if frame.owner() == self.owner && frame.adopt() {
            self.drop_table(mfn)
        } else {
            Dropped::Done
        }
    }

    /// Pins one of the owner's frames as a table.
    ///
    /// # Errors
    /// `Refused(InUseAs(kind))` with the wanted kind: it was pinned already.
    pub fn pin(&self, mfn: u64, kind: Kind) -> Result<(), Stop> {
        self.take_table(mfn, kind)?;
        let frame = self.host.frame(mfn).ok_or(Refused::NoSuchFrame)?;
        if frame.pin() {
            frame.mark_dirty();
            return Ok(());
        }
        // The pin holds it, so this is never the last.
        let _ = self.drop_table(mfn);
        Err(Stop::Refused(Refused::InUseAs(kind)))
    }

    /// Takes the pin away; `None` if there is none.
    pub fn unpin(&self, mfn: u64) -> Option<Dropped> {
        let frame = self.host.frame(mfn)?;
        frame.unpin().then(|| {
            frame.mark_dirty();
            self.drop_table(mfn)
        })
    }

    fn take_child(&self, mfn: u64, kind: Kind) -> Result<(), Child> {
        let frame = self.get(mfn, self.owner).map_err(Child::Refused)?;
        match frame.acquire(kind) {
            Ok(Acquire::Given(_)) => return Ok(()),
            Ok(Acquire::Fresh { flush, .. }) => {
                if flush {
                    self.host.flush_stale(frame);
                }
                frame.set_cursor(0, false);
                // What was sent as memory must be sent again as a table, and the other way round below.
                frame.mark_dirty();
            }
            Ok(Acquire::Resume(_)) => {}
            Err(why) => {
                self.put(mfn, frame);
                return Err(Child::Refused(why));
            }
        }
        self.check_held(mfn, frame, kind)
    }

    /// Goes on with a partial table of which the caller has a pair of references.
    fn check_held(&self, mfn: u64, frame: &Frame, kind: Kind) -> Result<(), Child> {
        let level = kind.level().unwrap_or(1);
        match self.check_entries(mfn, frame, level) {
            Ok(()) => {
                if frame.complete() {
                    self.put(mfn, frame);
                }
                Ok(())
            }
            Err(Check::Preempted) => Err(Child::Preempted),
            Err(Check::Unwinding(why)) => Err(Child::Unwinding(why)),
            Err(Check::Refused(why)) => {
                // Nothing is held below, so that this cannot take long.
                if self.drop_child(mfn) {
                    Err(Child::Refused(why))
                } else {
                    Err(Child::Unwinding(why))
                }
            }
        }
    }

    /// Checks a partial table's entries, from the cursor on.
    fn check_entries(&self, mfn: u64, frame: &Frame, level: u8) -> Result<(), Check> {
        let Some(table) = self.host.table(mfn) else {
            return Err(Check::Refused(Refused::NoSuchFrame));
        };
        if level == 1 {
            return self.check_leaves(table, frame);
        }
        let Some(below) = Kind::table(level - 1) else {
            return Err(Check::Refused(Refused::Linear));
        };
        let (first, mut held) = frame.cursor();
        let mut worked = false;
        for index in first..ENTRIES {
            if level == 4 && is_own_slot(index) {
                continue;
            }
            let entry = Entry(self.host.load(table, index));
            if !entry.is_present() {
                continue;
            }
            if worked && self.host.is_time_up() {
                frame.set_cursor(index, false);
                return Err(Check::Preempted);
            }
            worked = true;
            let child = entry.mfn();
            let answer = if core::mem::take(&mut held) {
                self.resume_child(child, below)
            } else {
                match entry.check(level, false) {
                    Ok(()) => self.take_child(child, below),
                    Err(why) => Err(Child::Refused(why)),
                }
            };
            match answer {
                Ok(()) => {
                    let fit = entry.adjusted(level);
                    if fit != entry {
                        self.host.store(table, index, fit.0);
                    }
                }
                Err(Child::Preempted) => {
                    frame.set_cursor(index, true);
                    return Err(Check::Preempted);
                }
                Err(Child::Unwinding(why)) => {
                    frame.set_cursor(index, true);
                    return Err(self.unwind(mfn, frame, level, why));
                }
                Err(Child::Refused(why)) => {
                    frame.set_cursor(index, false);
                    return Err(self.unwind(mfn, frame, level, why));
                }
            }
        }
        frame.set_cursor(ENTRIES, false);
        if level == 4 {
            self.host.adopt_root(table);
        }
        Ok(())
    }

    fn unwind(&self, mfn: u64, frame: &Frame, level: u8, why: Refused) -> Check {
        if self.drop_entries(mfn, frame, level) {
            Check::Refused(why)
        } else {
            Check::Unwinding(why)
        }
    }

    /// Level 1 in one go: its entries name no tables, so that it takes no more than some tens of microseconds.
    fn check_leaves(&self, table: H::Table, frame: &Frame) -> Result<(), Check> {
        let caching = self.host.may_choose_caching();
        for index in 0..ENTRIES {
            let entry = Entry(self.host.load(table, index));
            if !entry.is_present() {
                continue;
            }
            match entry.check(1, caching).and_then(|()| self.get_leaf(entry, self.owner)) {
                Ok(written) => {
                    let fit = written.adjusted(1);
                    if fit != entry {
                        self.host.store(table, index, fit.0);
                    }
                }
                Err(why) => {
                    for taken in 0..index {
                        self.put_leaf(Entry(self.host.load(table, taken)));
                    }
                    frame.set_cursor(0, false);
                    return Err(Check::Refused(why));
                }
            }
        }
        frame.set_cursor(ENTRIES, false);
        Ok(())
    }

    /// Goes on with a child that the parent's cursor holds.
    fn resume_child(&self, mfn: u64, kind: Kind) -> Result<(), Child> {
        let Some(frame) = self.host.frame(mfn) else {
            return Err(Child::Refused(Refused::NoSuchFrame));
        };
        if frame.word().is_validated() {
            // Somebody else, who wanted it too, has finished it.
            return Ok(());
        }
        self.check_held(mfn, frame, kind)
    }

    /// Gives a pair of references to a table back. `false`: the time was up, the table is partial, and the pair
    /// is still held.
    fn drop_child(&self, mfn: u64) -> bool {
        let Some(frame) = self.host.frame(mfn) else { return true };
        if let Release::TearDown { word, was_whole } = frame.release(|| self.host.now()) {
            if was_whole {
                self.host.table_ends(mfn);
                frame.set_cursor(ENTRIES, false);
            }
            if !self.drop_entries(mfn, frame, word.kind().level().unwrap_or(1)) {
                return false;
            }
            if frame.torn_down(self.host.now()) {
                self.put(mfn, frame);
            }
            frame.mark_dirty();
        }
        self.put(mfn, frame);
        true
    }

    /// Drops what a partial table's entries hold, from the cursor down. `false`: the time was up.
    fn drop_entries(&self, mfn: u64, frame: &Frame, level: u8) -> bool {
        let Some(table) = self.host.table(mfn) else { return true };
        let (first, held) = frame.cursor();
        if level == 1 {
            for index in 0..first.min(ENTRIES) {
                self.put_leaf(Entry(self.host.load(table, index)));
            }
            frame.set_cursor(0, false);
            return true;
        }
        let mut worked = false;
        if held {
            if !self.drop_child(Entry(self.host.load(table, first)).mfn()) {
                return false;
            }
            worked = true;
        }
        for index in (0..first.min(ENTRIES)).rev() {
            if level == 4 && is_own_slot(index) {
                continue;
            }
            let entry = Entry(self.host.load(table, index));
            if !entry.is_present() {
                continue;
            }
            if worked && self.host.is_time_up() {
                frame.set_cursor(index + 1, false);
                return false;
            }
            worked = true;
            if !self.drop_child(entry.mfn()) {
                frame.set_cursor(index, true);
                return false;
            }
        }
        frame.set_cursor(0, false);
        true
    }

    // ------------------------------------------------------------------------------------- leaves

    /// Takes what a present level-1 entry holds: a frame of `owner`'s, writable if the entry says so.
    /// Answers the entry as it is to be written.
    #[inline(always)]
    pub fn get_leaf(&self, entry: Entry, owner: u16) -> Result<Entry, Refused> {
        let mfn = entry.mfn();
        let answer = if entry.is_writable() {
            self.get_writable(mfn, owner)
        } else {
            self.get(mfn, owner)
        };
        match answer {
            Ok(_) => Ok(entry),
            Err(Refused::NoSuchFrame) => self.host.device_entry(owner, entry),
            Err(why) => Err(why),
        }
    }

    /// Gives back what a level-1 entry held.
    #[inline(always)]
    pub fn put_leaf(&self, entry: Entry) {
        if !entry.is_present() {
            return;
        }
        let mfn = entry.mfn();
        let Some(frame) = self.host.frame(mfn) else { return };
        if entry.is_writable() {
            self.put_writable(mfn, frame);
        } else {
            let word = frame.word();
            if word.kind() == Kind::SegDesc && word.type_count() != 0 && frame.owner() == self.owner {
                self.host.descriptors_unmapped();
            }
            self.put(mfn, frame);
        }
    }

    // ------------------------------------------------------------------------------------- updates

    /// Changes one entry of a live table. `owner` is whose frame a leaf may name. The caller has a reference to
    /// the table, which is of the space's owner.
    ///
    /// What the old entry held is given back; a table that takes longer than there is time is `Unfinished`.
    #[inline(always)]
    pub fn update(
        &self,
        mfn: u64,
        frame: &Frame,
        index: usize,
        new: u64,
        flavour: Flavour,
        owner: u16,
    ) -> Result<Dropped, Stop> {
        let word = frame.word();
        if !word.is_live_table() {
            return Err(Stop::Refused(Refused::NotATable));
        }
        let table = self.host.table(mfn).ok_or(Refused::NoSuchFrame)?;
        match word.kind() {
            Kind::L1 => self
                .update_leaf(table, index, Entry(new), flavour, owner)
                .map(|()| Dropped::Done),
            Kind::L2 | Kind::L3 | Kind::L4 if owner != self.owner => Err(Stop::Refused(Refused::NotOwned)),
            Kind::L2 => self.update_upper(table, index, Entry(new), flavour, 2),
            Kind::L3 => self.update_upper(table, index, Entry(new), flavour, 3),
            Kind::L4 => self.update_upper(table, index, Entry(new), flavour, 4),
            _ => Err(Stop::Refused(Refused::NotATable)),
        }
    }

    /// As [`Self::update`], for a live level-1 table.
    #[inline(always)]
    pub fn update_leaf(
        &self,
        table: H::Table,
        index: usize,
        new: Entry,
        flavour: Flavour,
        owner: u16,
    ) -> Result<(), Stop> {
        let old = Entry(self.host.load(table, index));
        if !new.is_present() {
            self.write(table, index, old, new, flavour)?;
            self.put_leaf(old);
            return Ok(());
        }
        new.check(1, self.host.may_choose_caching())?;
        if new.is_similar(old) {
            self.write(table, index, old, new.adjusted(1), flavour)?;
            return Ok(());
        }
        let written = self.get_leaf(new, owner)?.adjusted(1);
        if let Err(raced) = self.write(table, index, old, written, flavour) {
            self.put_leaf(written);
            return Err(Stop::Refused(raced));
        }
        self.put_leaf(old);
        Ok(())
    }

    fn update_upper(
        &self,
        table: H::Table,
        index: usize,
        new: Entry,
        flavour: Flavour,
        level: u8,
    ) -> Result<Dropped, Stop> {
        if level == 4 && is_own_slot(index) {
            return Err(Stop::Refused(Refused::OwnSlot));
        }
        let old = Entry(self.host.load(table, index));
        if new.is_present() {
            new.check(level, false)?;
            if new.is_similar(old) {
                self.write(table, index, old, new.adjusted(level), flavour)?;
                return Ok(Dropped::Done);
            }
            let below = Kind::table(level - 1).ok_or(Refused::Linear)?;
            self.take_table(new.mfn(), below)?;
        }
        if let Err(raced) = self.write(table, index, old, new.adjusted(level), flavour) {
            if new.is_present()
                && let Dropped::Unfinished(orphan) = self.drop_table(new.mfn())
            {
                return Err(Stop::Unwinding(raced, orphan));
            }
            return Err(Stop::Refused(raced));
        }
        Ok(if old.is_present() {
            self.drop_table(old.mfn())
        } else {
            Dropped::Done
        })
    }

    /// Writes an entry over `old`, which may have changed in its accessed and dirty bits only: the page-table lock
    /// keeps everybody but the CPUs' walks away.
    #[inline(always)]
    fn write(&self, table: H::Table, index: usize, old: Entry, new: Entry, flavour: Flavour) -> Result<(), Refused> {
        const CPU: u64 = bits::ACCESSED | bits::DIRTY;
        if flavour == Flavour::Plain {
            self.host.store(table, index, new.0);
            return Ok(());
        }
        let mut seen = old.0;
        loop {
            match self.host.exchange(table, index, seen, new.0 & !CPU | seen & CPU) {
                Ok(()) => return Ok(()),
                Err(found) if (found ^ old.0) & !CPU == 0 => seen = found,
                Err(_) => return Err(Refused::Raced),
            }
        }
    }
}

/// Another domain than the frame's owner begins to write. (Out of line as a whole, so that it costs others nothing.)
#[cold]
#[inline(never)]
fn begun(frame: &Frame) -> &Frame {
    frame.begin_foreign_writes();
    frame
}

/// Some writers of the frame are foreign, and one of `domain`'s ends: is it one of them?
#[cold]
#[inline(never)]
fn ended(frame: &Frame, domain: u16) {
    if frame.owner() != domain {
        frame.end_foreign_writes();
    }
}

#[cfg(test)]
mod tests;
