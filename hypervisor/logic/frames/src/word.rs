//! The atomic word of a frame, and its steps: each takes the word as it is and answers what it becomes.
//!
//! Nothing here is atomic; [`crate::frame`] runs the compare-exchange loops around it.

use core::fmt;

/// What a frame is being used as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Nothing yet: fresh from the allocator.
    None = 0,
    /// Level-1 page table.
    L1 = 1,
    /// Level-2 page table.
    L2 = 2,
    /// Level-3 page table.
    L3 = 3,
    /// Level-4 page table.
    L4 = 4,
    /// Segment descriptors: part of a GDT or an LDT.
    SegDesc = 5,
    /// Ordinary memory that its guests may write.
    Writable = 6,
    /// The hypervisor's, which some guests may read.
    ReadOnly = 7,
}

impl Kind {
    /// The kind of a page table of that level.
    #[inline(always)]
    pub const fn table(level: u8) -> Option<Kind> {
        match level {
            1 => Some(Kind::L1),
            2 => Some(Kind::L2),
            3 => Some(Kind::L3),
            4 => Some(Kind::L4),
            _ => None,
        }
    }

    /// The level, if this is a page table.
    #[inline(always)]
    pub const fn level(self) -> Option<u8> {
        match self {
            Kind::L1 => Some(1),
            Kind::L2 => Some(2),
            Kind::L3 => Some(3),
            Kind::L4 => Some(4),
            _ => None,
        }
    }

    #[inline(always)]
    const fn from_bits(bits: u64) -> Kind {
        match bits & 0xf {
            1 => Kind::L1,
            2 => Kind::L2,
            3 => Kind::L3,
            4 => Kind::L4,
            5 => Kind::SegDesc,
            6 => Kind::Writable,
            7 => Kind::ReadOnly,
            _ => Kind::None,
        }
    }
}

/// Why a reference is not given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// Nobody's frame: free, or on its way there.
    NotAllocated,
    /// No RAM.
    NoSuchFrame,
    /// Another domain's.
    NotOwned,
    /// Device memory that the domain may not map.
    NotPermitted,
    /// Held as something else.
    InUseAs(Kind),
    /// Its type is being changed on another CPU just now.
    Changing,
    /// As many references as can be counted.
    TooMany,
    /// An entry with bits that guests may not set.
    BadBits(u64),
    /// A table that names a table of its own level.
    Linear,
    /// Not a table that is in use.
    NotATable,
    /// A slot that belongs to the hypervisor.
    OwnSlot,
    /// The entry changed under our hands.
    Raced,
    /// A descriptor that could lead out of the guest.
    BadDescriptor,
}

/// A frame's counts, type and flags, in 64 bits.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Word(u64);

const COUNT_BITS: u32 = 27;
const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;
const TYPE_SHIFT: u32 = COUNT_BITS;
const KIND_SHIFT: u32 = 2 * COUNT_BITS;
const KIND_MASK: u64 = 0xf << KIND_SHIFT;
const ONE_TYPE: u64 = 1 << TYPE_SHIFT;
const TYPE_MASK: u64 = COUNT_MAX << TYPE_SHIFT;

/// Checked: fit to be used as what it is.
const VALIDATED: u64 = 1 << 58;
/// A table of which only the part below the cursor is checked.
const PARTIAL: u64 = 1 << 59;
/// A partial table that holds one reference and one type reference to itself: nobody else answers for it.
const ORPHAN: u64 = 1 << 60;
/// Held as a table by the guest's word alone (`MMUEXT_PIN_*`).
const PINNED: u64 = 1 << 61;
/// Its owner has not given it back.
const ALLOCATED: u64 = 1 << 62;
/// Shared between hypervisor and owner: not the owner's to give back.
const SPECIAL: u64 = 1 << 63;

/// What becomes of a request for a type reference.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Acquire {
    /// Given: the frame is of that type, and checked.
    Given(Word),
    /// Given, but the frame only becomes that type: flush what is stale if told so, check, then
    /// [`Word::complete`]. A table is partial, with nothing checked.
    Fresh {
        /// The word meanwhile.
        word: Word,
        /// Whether CPUs may still use translations from its life as another type.
        flush: bool,
    },
    /// Given, but the table is partial: go on checking from its cursor.
    Resume(Word),
}

/// What becomes of a type reference given back.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Release {
    /// Others hold the type.
    Shared(Word),
    /// Nobody holds the type any more.
    Idle(Word),
    /// The last holder of a table: its entries are to be dropped, from the cursor down, then [`Word::torn_down`].
    /// The type reference is still counted.
    TearDown {
        /// The word meanwhile: partial.
        word: Word,
        /// Whether all entries are held (else: those below the cursor).
        was_whole: bool,
    },
}

impl Word {
    /// A frame that was just given to its owner: one reference, which is the allocation itself.
    pub const ALLOCATED: Word = Word(ALLOCATED | 1);

    /// A frame that its owner has back, with whatever is in it.
    pub const USED: Word = Word(ALLOCATED | VALIDATED | ((Kind::Writable as u64) << KIND_SHIFT) | 1);

    /// A frame that the hypervisor shares with its owner, who may write: the hypervisor holds it so for ever.
    pub const SHARED: Word =
        Word(ALLOCATED | SPECIAL | VALIDATED | ((Kind::Writable as u64) << KIND_SHIFT) | ONE_TYPE | 1);

    /// A frame of the hypervisor's that privileged guests may read and nobody may write.
    pub const READ_ONLY: Word =
        Word(ALLOCATED | SPECIAL | VALIDATED | ((Kind::ReadOnly as u64) << KIND_SHIFT) | ONE_TYPE | 1);

    /// From the bits of the atomic.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Word {
        Word(bits)
    }

    /// The bits for the atomic.
    #[inline(always)]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// References of any sort.
    #[inline(always)]
    pub const fn references(self) -> u64 {
        self.0 & COUNT_MAX
    }

    /// References that rely on the type.
    #[inline(always)]
    pub const fn type_count(self) -> u64 {
        (self.0 & TYPE_MASK) >> TYPE_SHIFT
    }

    /// The type. It stays what it last was while nobody relies on it.
    #[inline(always)]
    pub const fn kind(self) -> Kind {
        Kind::from_bits(self.0 >> KIND_SHIFT)
    }

    /// Whether it has been checked as what it is.
    #[inline(always)]
    pub const fn is_validated(self) -> bool {
        self.0 & VALIDATED != 0
    }

    /// Whether only the part below the cursor is checked.
    #[inline(always)]
    pub const fn is_partial(self) -> bool {
        self.0 & PARTIAL != 0
    }

    /// Whether it holds itself, since whoever asked for it was interrupted.
    #[inline(always)]
    pub const fn is_orphan(self) -> bool {
        self.0 & ORPHAN != 0
    }

    /// Whether the guest pinned it.
    #[inline(always)]
    pub const fn is_pinned(self) -> bool {
        self.0 & PINNED != 0
    }

    /// Whether its owner still counts it as its own.
    #[inline(always)]
    pub const fn is_allocated(self) -> bool {
        self.0 & ALLOCATED != 0
    }

    /// Whether the hypervisor shares it with its owner.
    #[inline(always)]
    pub const fn is_special(self) -> bool {
        self.0 & SPECIAL != 0
    }

    /// Whether this is a table that the CPU may walk and the guest may have changed for it.
    #[inline(always)]
    pub const fn is_live_table(self) -> bool {
        self.is_validated() && self.0 & TYPE_MASK != 0 && self.kind().level().is_some()
    }

    /// As [`Self::is_live_table`], of one level.
    #[inline(always)]
    pub const fn is_live(self, kind: Kind) -> bool {
        self.0 & (VALIDATED | KIND_MASK) == VALIDATED | (kind as u64) << KIND_SHIFT && self.0 & TYPE_MASK != 0
    }

    /// One more reference to a frame that its owner holds.
    #[inline(always)]
    pub const fn get(self) -> Result<Word, Refused> {
        if self.0 & ALLOCATED == 0 || self.references() == 0 {
            return Err(Refused::NotAllocated);
        }
        self.get_again()
    }

    /// One more reference by somebody who has one.
    #[inline(always)]
    pub const fn get_again(self) -> Result<Word, Refused> {
        if self.references() == COUNT_MAX {
            Err(Refused::TooMany)
        } else {
            Ok(Word(self.0 + 1))
        }
    }

    /// One reference less; the frame is free when none is left.
    ///
    /// # Panics
    /// If there is none to give back.
    #[inline(always)]
    #[track_caller]
    pub const fn put(self) -> Word {
        assert!(self.references() != 0, "a reference given back twice");
        Word(self.0 - 1)
    }

    /// One more type reference, which the caller backs with a reference of its own.
    #[inline(always)]
    pub const fn acquire(self, kind: Kind) -> Result<Acquire, Refused> {
        let same = self.0 & KIND_MASK == (kind as u64) << KIND_SHIFT;
        if self.0 & TYPE_MASK == 0 {
            if same && self.0 & VALIDATED != 0 {
                return Ok(Acquire::Given(Word(self.0 + ONE_TYPE)));
            }
            let was_none = self.0 & KIND_MASK == 0;
            let kept = self.0 & !(KIND_MASK | VALIDATED | PARTIAL);
            let word = kept | (kind as u64) << KIND_SHIFT | ONE_TYPE;
            if matches!(kind, Kind::Writable) && was_none {
                return Ok(Acquire::Given(Word(word | VALIDATED)));
            }
            let partial = if kind.level().is_some() { PARTIAL } else { 0 };
            return Ok(Acquire::Fresh {
                word: Word(word | partial),
                flush: !same && !was_none,
            });
        }
        if !same {
            return Err(Refused::InUseAs(self.kind()));
        }
        if self.0 & TYPE_MASK == TYPE_MASK {
            return Err(Refused::TooMany);
        }
        let more = Word(self.0 + ONE_TYPE);
        if self.0 & VALIDATED != 0 {
            Ok(Acquire::Given(more))
        } else if self.0 & PARTIAL != 0 {
            Ok(Acquire::Resume(more))
        } else {
            Err(Refused::Changing)
        }
    }

    /// The common case of a reference and a writable type reference in one: the frame is its owner's, is ordinary
    /// memory already, and no count is full. `None`: take the long way.
    #[inline(always)]
    pub const fn get_writable_again(self) -> Option<Word> {
        const WANTED: u64 = ALLOCATED | VALIDATED | (Kind::Writable as u64) << KIND_SHIFT;
        let is_memory = self.0 & (ALLOCATED | VALIDATED | KIND_MASK) == WANTED;
        // A frame that its owner holds has a reference; the sum of the two cannot carry into each other.
        if is_memory && self.references() != COUNT_MAX && self.type_count() != COUNT_MAX {
            Some(Word(self.0 + Self::PAIR))
        } else {
            None
        }
    }

    /// The common case of a reference and a type reference in one to a table in use: it is checked, somebody holds it as
    /// that kind, and no count is full. `None`: take the long way.
    #[inline(always)]
    pub const fn get_table_again(self, kind: Kind) -> Option<Word> {
        const LOOKED_AT: u64 = ALLOCATED | VALIDATED | KIND_MASK;
        let is_table = self.0 & LOOKED_AT == ALLOCATED | VALIDATED | (kind as u64) << KIND_SHIFT;
        if is_table && self.type_count() != 0 && self.references() != COUNT_MAX && self.type_count() != COUNT_MAX {
            Some(Word(self.0 + Self::PAIR))
        } else {
            None
        }
    }

    /// The common case of giving both back: others hold the table as such. `None`: take the long way.
    #[inline(always)]
    pub const fn put_table_shared(self) -> Option<Word> {
        let is_shared = self.type_count() > 2 || (self.type_count() == 2 && self.0 & ORPHAN == 0);
        if is_shared && self.references() > 1 {
            Some(Word(self.0 - Self::PAIR))
        } else {
            None
        }
    }

    /// A reference and a type reference, as they are counted.
    pub const PAIR: u64 = ONE_TYPE + 1;

    /// Whether a frame that had this word could lose a writable pair of references.
    #[inline(always)]
    pub const fn has_writable_pair(self) -> bool {
        matches!(self.kind(), Kind::Writable) && self.type_count() != 0 && self.references() != 0
    }

    /// One type reference less.
    ///
    /// # Panics
    /// If there is none to give back.
    #[inline(always)]
    #[track_caller]
    pub const fn release(self) -> Release {
        let count = self.type_count();
        assert!(count != 0, "a type reference given back twice");
        let last = count == 1 || (count == 2 && self.0 & ORPHAN != 0);
        if !last {
            return Release::Shared(Word(self.0 - ONE_TYPE));
        }
        match self.kind() {
            Kind::L1 | Kind::L2 | Kind::L3 | Kind::L4 => Release::TearDown {
                word: Word(self.0 & !VALIDATED | PARTIAL),
                was_whole: self.0 & VALIDATED != 0,
            },
            Kind::SegDesc => Release::Idle(Word((self.0 - ONE_TYPE) & !VALIDATED)),
            Kind::None | Kind::Writable | Kind::ReadOnly => Release::Idle(Word(self.0 - ONE_TYPE)),
        }
    }

    /// The frame has been checked as what it was to become. Says whether it was an orphan: then a reference of
    /// its own is to be put.
    #[inline(always)]
    #[track_caller]
    pub const fn complete(self) -> (Word, bool) {
        assert!(self.0 & VALIDATED == 0 && self.0 & TYPE_MASK != 0, "validated twice");
        let was_orphan = self.0 & ORPHAN != 0;
        let word = self.0 & !(PARTIAL | ORPHAN) | VALIDATED;
        if was_orphan {
            assert!(
                self.type_count() >= 2,
                "an orphan that nobody adopted cannot be completed"
            );
            (Word(word - ONE_TYPE), true)
        } else {
            (Word(word), false)
        }
    }

    /// All entries of a table that only its last holder holds have been dropped: it is no table any more, and
    /// the holder's type reference is gone. Says whether it was an orphan: then a reference of its own is to be put.
    #[inline(always)]
    #[track_caller]
    pub const fn torn_down(self) -> (Word, bool) {
        let was_orphan = self.0 & ORPHAN != 0;
        assert!(self.0 & PARTIAL != 0, "a table that was not being torn down");
        assert!(
            self.type_count() == if was_orphan { 2 } else { 1 },
            "a table torn down while others hold it"
        );
        (Word(self.0 & !(TYPE_MASK | PARTIAL | ORPHAN)), was_orphan)
    }

    /// Nobody will come back for the partial table that the caller holds: its pair of references becomes the
    /// table's own. If it has such a pair already (`false`), the caller's type reference is dropped and its
    /// reference is to be put.
    #[inline(always)]
    #[track_caller]
    pub const fn orphan(self) -> (Word, bool) {
        assert!(
            self.0 & PARTIAL != 0 && self.0 & TYPE_MASK != 0,
            "only partial tables can be orphans"
        );
        if self.0 & ORPHAN == 0 {
            (Word(self.0 | ORPHAN), true)
        } else {
            assert!(self.type_count() >= 2);
            (Word(self.0 - ONE_TYPE), false)
        }
    }

    /// Takes over an orphan's own pair of references; `None` if it is none or somebody else holds it too.
    #[inline(always)]
    pub const fn adopt(self) -> Option<Word> {
        if self.0 & ORPHAN != 0 && self.type_count() == 1 {
            Some(Word(self.0 & !ORPHAN))
        } else {
            None
        }
    }

    /// Pins: the caller's pair of references becomes the pin's. `None` if pinned already.
    #[inline(always)]
    pub const fn pin(self) -> Option<Word> {
        if self.0 & PINNED != 0 {
            None
        } else {
            Some(Word(self.0 | PINNED))
        }
    }

    /// Unpins: the pin's pair of references becomes the caller's. `None` if not pinned.
    #[inline(always)]
    pub const fn unpin(self) -> Option<Word> {
        if self.0 & PINNED == 0 {
            None
        } else {
            Some(Word(self.0 & !PINNED))
        }
    }

    /// The owner gives the frame back: the allocation's reference becomes the caller's, to be put.
    /// `None` if it did before, or if the frame is not the owner's to give, or if it holds itself as a table: what
    /// nobody owns must not live on by itself.
    #[inline(always)]
    pub const fn give_back(self) -> Option<Word> {
        if self.0 & ALLOCATED == 0 || self.0 & (SPECIAL | PINNED | ORPHAN) != 0 {
            None
        } else {
            Some(Word(self.0 & !ALLOCATED))
        }
    }

    /// The hypervisor stops sharing: what it held becomes the caller's, to be put. `None` if it did before.
    #[inline(always)]
    pub const fn stop_sharing(self) -> Option<Word> {
        if self.0 & ALLOCATED == 0 || self.0 & SPECIAL == 0 || self.type_count() == 0 {
            return None;
        }
        Some(Word((self.0 & !(ALLOCATED | SPECIAL)) - ONE_TYPE))
    }

    /// Takes the frame away from its owner if nobody else holds it in any way: it has no reference afterwards.
    #[inline(always)]
    pub const fn steal(self) -> Option<Word> {
        let sole = self.references() == 1 && self.type_count() == 0;
        if sole && self.0 & ALLOCATED != 0 && self.0 & (SPECIAL | PINNED) == 0 {
            Some(Word(0))
        } else {
            None
        }
    }

    /// Whether the word can be that of a frame in good order; the audit of one frame on its own.
    pub const fn is_sound(self) -> bool {
        let held_as_table = self.kind().level().is_some() && self.type_count() != 0;
        let (validated, partial) = (self.is_validated(), self.is_partial());
        // A type reference is backed by a reference.
        self.type_count() <= self.references()
            // A held table is whole or partial, nothing else is partial.
            && if held_as_table { validated != partial } else { !partial }
            && (!self.is_orphan() || partial)
            && (!self.is_pinned() || (held_as_table && validated))
            && (!self.is_allocated() || self.references() != 0)
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}x{} refs {}", self.kind(), self.type_count(), self.references())?;
        let flags = [
            (VALIDATED, " validated"),
            (PARTIAL, " partial"),
            (ORPHAN, " orphan"),
            (PINNED, " pinned"),
            (ALLOCATED, " allocated"),
            (SPECIAL, " special"),
        ];
        flags
            .into_iter()
            .filter(|(bit, _)| self.0 & bit != 0)
            .try_for_each(|(_, name)| f.write_str(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(answer: Result<Acquire, Refused>) -> Word {
        match answer {
            Ok(Acquire::Given(word)) => word,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_could_be_written_once_is_told_from_what_never_could() {
        let fresh = Word::ALLOCATED;
        assert_eq!(fresh.kind(), Kind::None);
        let written = given(fresh.get().unwrap().acquire(Kind::Writable));
        let Release::Idle(back) = written.release() else {
            panic!("ordinary memory is given back at once");
        };
        assert_eq!((back.put().kind(), back.type_count()), (Kind::Writable, 0));
        assert_eq!(back.put(), Word::USED);
    }

    #[test]
    fn a_free_frame_gives_no_reference() {
        assert_eq!(Word::default().get(), Err(Refused::NotAllocated));
    }

    #[test]
    fn a_frame_given_back_gives_no_new_reference_though_others_hold_it() {
        let held = Word::ALLOCATED.get().unwrap();
        let back = held.give_back().unwrap();
        assert_eq!(back.references(), 2);
        assert_eq!(back.get(), Err(Refused::NotAllocated));
        assert_eq!(back.give_back(), None);
    }

    #[test]
    fn writable_and_table_exclude_each_other() {
        let writable = given(Word::ALLOCATED.acquire(Kind::Writable));
        for kind in [Kind::L1, Kind::L2, Kind::L3, Kind::L4, Kind::SegDesc, Kind::ReadOnly] {
            assert_eq!(writable.acquire(kind), Err(Refused::InUseAs(Kind::Writable)));
        }
        let Ok(Acquire::Fresh { word, flush: false }) = Word::ALLOCATED.acquire(Kind::L1) else {
            panic!()
        };
        assert_eq!(word.acquire(Kind::Writable), Err(Refused::InUseAs(Kind::L1)));
    }

    #[test]
    fn becoming_another_type_asks_for_a_flush_and_coming_back_to_the_same_does_not() {
        let writable = given(Word::ALLOCATED.acquire(Kind::Writable));
        let Release::Idle(idle) = writable.release() else {
            panic!()
        };
        assert!(matches!(idle.acquire(Kind::L1), Ok(Acquire::Fresh { flush: true, .. })));
        assert!(matches!(idle.acquire(Kind::Writable), Ok(Acquire::Given(_))));
    }

    #[test]
    fn becoming_writable_again_waits_for_the_flush() {
        let Ok(Acquire::Fresh { word, .. }) = Word::ALLOCATED.acquire(Kind::SegDesc) else {
            panic!()
        };
        let (segdesc, _) = word.complete();
        let Release::Idle(idle) = segdesc.release() else {
            panic!()
        };
        let Ok(Acquire::Fresh { word, flush: true }) = idle.acquire(Kind::Writable) else {
            panic!()
        };
        assert_eq!(word.acquire(Kind::Writable), Err(Refused::Changing));
    }

    #[test]
    fn counts_refuse_to_overflow() {
        let full = Word(ALLOCATED | COUNT_MAX);
        assert_eq!(full.get(), Err(Refused::TooMany));
        let full = Word(ALLOCATED | VALIDATED | (Kind::Writable as u64) << KIND_SHIFT | TYPE_MASK | COUNT_MAX);
        assert_eq!(full.acquire(Kind::Writable), Err(Refused::TooMany));
    }

    #[test]
    fn a_frame_that_is_mapped_cannot_be_stolen() {
        assert!(Word::ALLOCATED.steal().is_some());
        assert!(Word::ALLOCATED.get().unwrap().steal().is_none());
        assert!(Word::SHARED.steal().is_none());
    }

    #[test]
    fn shared_and_read_only_frames_are_sound_and_never_tables() {
        for word in [Word::SHARED, Word::READ_ONLY] {
            assert!(word.is_sound());
            assert!(matches!(word.acquire(Kind::L1), Err(Refused::InUseAs(_))));
        }
        assert!(matches!(
            Word::READ_ONLY.acquire(Kind::Writable),
            Err(Refused::InUseAs(_))
        ));
        assert_eq!(Word::SHARED.give_back(), None);
        assert!(
            Word::SHARED
                .stop_sharing()
                .is_some_and(|word| word.references() == 1 && word.type_count() == 0)
        );
    }
}
