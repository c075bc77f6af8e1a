//! The record of one machine frame.

use crate::word::{Acquire, Kind, Refused, Release, Word};
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use zerocopy::FromZeros;

/// What the hypervisor keeps for each machine frame. All zeroes: a frame that nobody may have.
#[derive(Debug, FromZeros)]
#[repr(C)]
pub struct Frame {
    word: AtomicU64,
    stamp: AtomicU64,
    /// Link of whichever list the frame is in; guarded by that list's lock.
    pub next: AtomicU32,
    /// Link of whichever list the frame is in; guarded by that list's lock.
    pub prev: AtomicU32,
    owner: AtomicU16,
    cursor: AtomicU16,
    /// The allocator's.
    pub heap_state: AtomicU8,
    marks: AtomicU8,
    /// Not 0: in the log, since it was written, or perhaps written, after the log was last emptied.
    dirty: AtomicU8,
    /// Writable mappings that other domains have, up to [`WRITERS_MAX`].
    foreign_writers: AtomicU8,
}

const _: () = assert!(size_of::<Frame>() == 32);

/// Another domain than the owner has, or had, a writable mapping.
const MARK_FOREIGN: u8 = 1;

/// Where the count of foreign writers stays for good: such a frame counts as written by others for ever.
const WRITERS_MAX: u8 = u8::MAX;

/// The entry at the cursor holds a partial table.
const CURSOR_HELD: u16 = 1 << 15;

/// What putting a reference led to.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Put {
    /// Others hold the frame.
    Held,
    /// It was the last reference: the frame is the caller's alone, to be freed.
    Last,
}

impl Frame {
    /// A frame that nobody may have.
    pub const fn new() -> Frame {
        Frame {
            word: AtomicU64::new(0),
            stamp: AtomicU64::new(0),
            next: AtomicU32::new(0),
            prev: AtomicU32::new(0),
            owner: AtomicU16::new(0),
            cursor: AtomicU16::new(0),
            heap_state: AtomicU8::new(0),
            marks: AtomicU8::new(0),
            dirty: AtomicU8::new(0),
            foreign_writers: AtomicU8::new(0),
        }
    }

    /// The word as it is just now.
    #[inline(always)]
    pub fn word(&self) -> Word {
        Word::from_bits(self.word.load(Ordering::Acquire))
    }

    /// The owner's domid. It means something only to who holds a reference.
    #[inline(always)]
    pub fn owner(&self) -> u16 {
        self.owner.load(Ordering::Acquire)
    }

    /// The flush clock when the frame last lost a mapping or a life as a table.
    #[inline(always)]
    pub fn stamp(&self) -> u64 {
        self.stamp.load(Ordering::Acquire)
    }

    /// Records the flush clock.
    #[inline(always)]
    pub fn set_stamp(&self, now: u64) {
        self.stamp.store(now, Ordering::Release);
    }

    /// Whether another domain than the owner ever could write since the frame was allocated.
    #[inline(always)]
    pub fn was_foreign(&self) -> bool {
        self.marks.load(Ordering::Relaxed) & MARK_FOREIGN != 0
    }

    /// Records that another domain than the owner can write.
    #[inline(always)]
    pub fn mark_foreign(&self) {
        if !self.was_foreign() {
            self.marks.fetch_or(MARK_FOREIGN, Ordering::Relaxed);
        }
    }

    /// Puts the frame into its owner's log. Without a log the mark stays, and means nothing.
    #[inline(always)]
    pub fn mark_dirty(&self) {
        self.dirty.store(1, Ordering::Release);
    }

    /// Whether it is in the log.
    #[inline(always)]
    pub fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::Acquire) != 0
    }

    /// Takes it out of the log; whether it was in there.
    pub fn take_dirty(&self) -> bool {
        self.dirty.swap(0, Ordering::AcqRel) != 0
    }

    /// Another domain than the owner begins to write as it likes.
    #[cold]
    #[inline(never)]
    pub fn begin_foreign_writes(&self) {
        self.mark_foreign();
        self.mark_dirty();
        self.count_writers(|count| count.saturating_add(1));
    }

    /// It has ended.
    #[cold]
    #[inline(never)]
    pub fn end_foreign_writes(&self) {
        self.mark_dirty();
        self.count_writers(|count| count.saturating_sub(1));
    }

    fn count_writers(&self, step: impl Fn(u8) -> u8) {
        let counted = |count| (count != WRITERS_MAX).then(|| step(count));
        // Where it stays for good, it stays.
        let _ = self
            .foreign_writers
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, counted);
    }

    /// How many writable mappings other domains have; `u8::MAX` for more than can be counted.
    #[inline(always)]
    pub fn foreign_writers(&self) -> u8 {
        self.foreign_writers.load(Ordering::Acquire)
    }

    /// Gives a frame that nobody holds to an owner.
    ///
    /// # Panics
    /// If somebody holds it: the allocator handed it out twice.
    pub fn assign(&self, owner: u16, word: Word) {
        assert!(
            self.word().references() == 0,
            "a frame allocated while somebody holds it"
        );
        self.owner.store(owner, Ordering::Release);
        self.cursor.store(0, Ordering::Relaxed);
        // Whoever keeps a log of its owner's frames has not seen this one.
        self.mark_dirty();
        self.marks.store(0, Ordering::Relaxed);
        self.foreign_writers.store(0, Ordering::Relaxed);
        self.word.store(word.bits(), Ordering::Release);
    }

    /// The hypervisor takes a shared frame's ownership back, before it stops sharing it: who held it for the owner
    /// keeps it, nobody new gets it in the owner's name.
    pub fn disown(&self, owner: u16) {
        self.owner.store(owner, Ordering::Release);
    }

    /// Runs a step until it meets no other CPU. Answers the word before and after.
    #[inline(always)]
    fn step<E>(&self, mut step: impl FnMut(Word) -> Result<Word, E>) -> Result<(Word, Word), E> {
        let mut old = self.word.load(Ordering::Acquire);
        loop {
            let new = step(Word::from_bits(old))?;
            match self
                .word
                .compare_exchange_weak(old, new.bits(), Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return Ok((Word::from_bits(old), new)),
                Err(found) => old = found,
            }
        }
    }

    /// A reference to a frame that somebody owns. Answers who: if that is not whom the caller expects, the
    /// reference must be put again.
    ///
    /// The owner can only be trusted while a reference keeps the frame from being freed, hence the order.
    #[inline(always)]
    pub fn get(&self) -> Result<u16, Refused> {
        self.step(Word::get)?;
        Ok(self.owner())
    }

    /// As [`Self::get`], with a writable type reference in the same step. [`Refused::Changing`] asks for the long
    /// way: [`Self::get`], then [`Self::acquire`].
    #[inline(always)]
    pub fn get_writable(&self) -> Result<u16, Refused> {
        if self.once(Word::get_writable_again) {
            return Ok(self.owner());
        }
        self.get_writable_slowly()
    }

    #[cold]
    fn get_writable_slowly(&self) -> Result<u16, Refused> {
        self.step(|word| match word.get()?.acquire(Kind::Writable)? {
            Acquire::Given(word) => Ok(word),
            Acquire::Fresh { .. } | Acquire::Resume(_) => Err(Refused::Changing),
        })?;
        Ok(self.owner())
    }

    /// A pair of references to a table in use as `kind`, as [`Word::get_table_again`] says; `false`: nothing was done.
    #[inline(always)]
    pub fn get_table_again(&self, kind: Kind) -> bool {
        self.once(|word| word.get_table_again(kind))
    }

    /// Gives such a pair back, as [`Word::put_table_shared`] says; `false`: nothing was done.
    #[inline(always)]
    pub fn put_table_shared(&self) -> bool {
        self.once(Word::put_table_shared)
    }

    /// Tries a step that has a long way beside it.
    #[inline(always)]
    fn once(&self, step: impl FnOnce(Word) -> Option<Word>) -> bool {
        let old = self.word();
        step(old).is_some_and(|new| {
            self.word
                .compare_exchange(old.bits(), new.bits(), Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
        })
    }

    /// One more reference by somebody who has one.
    #[inline(always)]
    pub fn get_again(&self) -> Result<(), Refused> {
        self.step(Word::get_again).map(drop)
    }

    /// Gives a reference back.
    ///
    /// # Panics
    /// If there was none to give back.
    #[inline(always)]
    pub fn put(&self) -> Put {
        let old = Word::from_bits(self.word.fetch_sub(1, Ordering::AcqRel));
        assert!(old.references() != 0, "a reference given back twice");
        if old.references() == 1 { Put::Last } else { Put::Held }
    }

    /// Gives a reference and a writable type reference back. `now` is the flush clock.
    ///
    /// # Panics
    /// If there was no such pair to give back.
    #[inline(always)]
    pub fn put_writable(&self, now: u64) -> Put {
        // Before the pair goes: whoever changes the type next must find the stamp.
        self.set_stamp(now);
        let old = Word::from_bits(self.word.fetch_sub(Word::PAIR, Ordering::AcqRel));
        assert!(old.has_writable_pair(), "a writable reference given back twice");
        if old.references() == 1 { Put::Last } else { Put::Held }
    }

    #[inline(always)]
    fn always(&self, mut step: impl FnMut(Word) -> Word) -> (Word, Word) {
        match self.step(|word| Ok::<_, core::convert::Infallible>(step(word))) {
            Ok(words) => words,
            Err(never) => match never {},
        }
    }

    #[inline(always)]
    fn maybe(&self, mut step: impl FnMut(Word) -> Option<Word>) -> Option<Word> {
        self.step(|word| step(word).ok_or(())).ok().map(|(_, new)| new)
    }

    /// Takes a type reference, which the caller backs with a reference.
    #[inline(always)]
    pub fn acquire(&self, kind: Kind) -> Result<Acquire, Refused> {
        let mut answer = Acquire::Given(Word::default());
        self.step(|word| {
            answer = word.acquire(kind)?;
            Ok(match answer {
                Acquire::Given(word) | Acquire::Resume(word) | Acquire::Fresh { word, .. } => word,
            })
        })?;
        Ok(answer)
    }

    /// Gives a type reference back, as [`Word::release`] says; the stamp is set when it was the last.
    #[inline(always)]
    pub fn release(&self, now: impl Fn() -> u64) -> Release {
        let mut answer = Release::Shared(Word::default());
        self.always(|word| {
            answer = word.release();
            match answer {
                Release::Shared(word) => word,
                Release::Idle(word) => {
                    self.set_stamp(now());
                    word
                }
                Release::TearDown { word, .. } => word,
            }
        });
        answer
    }

    /// As [`Word::complete`].
    #[inline(always)]
    pub fn complete(&self) -> bool {
        let mut was_orphan = false;
        self.always(|word| {
            let (word, orphan) = word.complete();
            was_orphan = orphan;
            word
        });
        was_orphan
    }

    /// As [`Word::torn_down`]; sets the stamp.
    #[inline(always)]
    pub fn torn_down(&self, now: u64) -> bool {
        self.set_stamp(now);
        let mut was_orphan = false;
        self.always(|word| {
            let (word, orphan) = word.torn_down();
            was_orphan = orphan;
            word
        });
        was_orphan
    }

    /// As [`Word::orphan`].
    pub fn orphan(&self) -> bool {
        let mut kept = false;
        self.always(|word| {
            let (word, became) = word.orphan();
            kept = became;
            word
        });
        kept
    }

    /// As [`Word::adopt`].
    pub fn adopt(&self) -> bool {
        self.maybe(Word::adopt).is_some()
    }

    /// As [`Word::pin`].
    pub fn pin(&self) -> bool {
        self.maybe(Word::pin).is_some()
    }

    /// As [`Word::unpin`].
    pub fn unpin(&self) -> bool {
        self.maybe(Word::unpin).is_some()
    }

    /// As [`Word::give_back`].
    pub fn give_back(&self) -> bool {
        self.maybe(Word::give_back).is_some()
    }

    /// As [`Word::stop_sharing`]; sets the stamp.
    pub fn stop_sharing(&self, now: u64) -> bool {
        self.set_stamp(now);
        self.maybe(Word::stop_sharing).is_some()
    }

    /// As [`Word::steal`].
    pub fn steal(&self) -> bool {
        self.maybe(Word::steal).is_some()
    }

    /// How far a partial table is checked: the entry at which to go on, and whether that one is held already.
    #[inline(always)]
    pub fn cursor(&self) -> (usize, bool) {
        let raw = self.cursor.load(Ordering::Relaxed);
        (usize::from(raw & !CURSOR_HELD), raw & CURSOR_HELD != 0)
    }

    /// Records how far a partial table is checked.
    #[inline(always)]
    pub fn set_cursor(&self, index: usize, held: bool) {
        let index = u16::try_from(index).unwrap_or(0) & !CURSOR_HELD;
        self.cursor
            .store(index | if held { CURSOR_HELD } else { 0 }, Ordering::Relaxed);
    }
}

impl Default for Frame {
    fn default() -> Self {
        Frame::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::{AtomicBool, AtomicUsize};
    use std::sync::Arc;
    use std::thread;

    #[test]
    fn too_many_foreign_writers_are_writers_for_ever() {
        let frame = Frame::new();
        frame.begin_foreign_writes();
        frame.begin_foreign_writes();
        frame.end_foreign_writes();
        assert_eq!(frame.foreign_writers(), 1);
        (1..WRITERS_MAX).for_each(|_| frame.begin_foreign_writes());
        (0..WRITERS_MAX).for_each(|_| frame.end_foreign_writes());
        assert_eq!(frame.foreign_writers(), WRITERS_MAX);
    }

    #[test]
    fn a_frame_begins_in_the_log_and_is_taken_out_once() {
        let frame = Frame::new();
        frame.assign(1, Word::ALLOCATED);
        assert!(frame.take_dirty() && !frame.take_dirty());
        frame.mark_dirty();
        assert!(frame.is_dirty() && !frame.was_foreign());
    }

    /// One thread makes a frame a table and takes it apart, as the holder of the page-table lock does; others map
    /// it writable and unmap it, as other domains do without that lock. Nobody ever sees both.
    #[test]
    fn threads_never_see_a_frame_writable_and_a_table_at_once() {
        const ENOUGH: usize = 20_000;
        let mapped = Arc::new(AtomicUsize::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let frame = Arc::new(Frame::new());
        frame.assign(1, Word::ALLOCATED);
        let is_table = Arc::new(AtomicBool::new(false));
        let writers: std::vec::Vec<_> = (0..3)
            .map(|_| {
                let (frame, is_table) = (frame.clone(), is_table.clone());
                let (mapped, stop) = (mapped.clone(), stop.clone());
                thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let held = match frame.get_writable() {
                            Ok(_) => true,
                            Err(Refused::Changing) => {
                                frame.get().unwrap();
                                match frame.acquire(Kind::Writable) {
                                    Ok(Acquire::Given(_)) => true,
                                    Ok(Acquire::Fresh { .. }) => {
                                        frame.complete();
                                        true
                                    }
                                    Ok(Acquire::Resume(_)) => panic!("writable frames are never partial"),
                                    Err(_) => {
                                        assert_eq!(frame.put(), Put::Held);
                                        false
                                    }
                                }
                            }
                            Err(_) => false,
                        };
                        if held {
                            assert!(!is_table.load(Ordering::SeqCst), "writable while a table");
                            mapped.fetch_add(1, Ordering::Relaxed);
                            assert_eq!(frame.put_writable(1), Put::Held);
                        }
                    }
                })
            })
            .collect();
        let mut promoted = 0;
        while promoted < ENOUGH || mapped.load(Ordering::Relaxed) < ENOUGH {
            if matches!(frame.acquire(Kind::L1), Ok(Acquire::Fresh { .. })) {
                is_table.store(true, Ordering::SeqCst);
                frame.complete();
                promoted += 1;
                is_table.store(false, Ordering::SeqCst);
                assert!(matches!(frame.release(|| 1), Release::TearDown { .. }));
                frame.torn_down(1);
            }
        }
        stop.store(true, Ordering::Relaxed);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        let word = frame.word();
        assert_eq!((word.references(), word.type_count()), (1, 0));
        assert!(word.is_sound());
    }
}
