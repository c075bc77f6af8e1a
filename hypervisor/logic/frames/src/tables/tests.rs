//! Histories: random operations on a few frames, with the time running out anywhere; after each step the
//! accounts are made anew from the tables' contents and compared.

use super::*;
use crate::word::Word;
use core::cell::{Cell, RefCell};
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

const FRAMES: usize = 14;
const OWNER: u16 = 1;
const OTHER: u16 = 2;
const DEVICE: u64 = 1000;
/// Frames below this are the owner's, the others another domain's.
const OWN_FRAMES: usize = 11;

struct World {
    frames: Vec<Frame>,
    words: Vec<RefCell<Vec<u64>>>,
    /// Entries that may still be looked at before the time is up.
    fuel: Cell<u32>,
    freed: RefCell<Vec<u64>>,
    clock: Cell<u64>,
    flushes: Cell<u32>,
}

impl World {
    fn new() -> World {
        let world = World {
            frames: (0..FRAMES).map(|_| Frame::new()).collect(),
            words: (0..FRAMES).map(|_| RefCell::new(vec![0; ENTRIES])).collect(),
            fuel: Cell::new(u32::MAX),
            freed: RefCell::new(Vec::new()),
            clock: Cell::new(1),
            flushes: Cell::new(0),
        };
        for (index, frame) in world.frames.iter().enumerate() {
            frame.assign(if index < OWN_FRAMES { OWNER } else { OTHER }, Word::ALLOCATED);
        }
        world
    }

    fn space(&self) -> Space<'_, World> {
        Space::new(self, OWNER)
    }

    fn word(&self, mfn: u64) -> Word {
        self.frames[mfn as usize].word()
    }

    fn poke(&self, mfn: u64, index: usize, value: u64) {
        self.words[mfn as usize].borrow_mut()[index] = value;
    }

    fn peek(&self, mfn: u64, index: usize) -> u64 {
        self.words[mfn as usize].borrow()[index]
    }

    /// Counts every frame's references anew and compares. `held`: what the test itself holds, as (frame, writable).
    fn audit(&self, held: &[(u64, bool)]) {
        let mut references = [0u64; FRAMES];
        let mut types = [0u64; FRAMES];
        for (mfn, frame) in self.frames.iter().enumerate() {
            let word = frame.word();
            assert!(word.is_sound(), "frame {mfn}: {word:?}");
            let own = u64::from(word.is_allocated());
            references[mfn] += own + u64::from(word.is_pinned()) + u64::from(word.is_orphan());
            types[mfn] += u64::from(word.is_pinned()) + u64::from(word.is_orphan());
            let Some(level) = word.kind().level() else { continue };
            if word.type_count() == 0 {
                continue;
            }
            let (cursor, child_is_partial) = if word.is_validated() {
                (ENTRIES, false)
            } else {
                frame.cursor()
            };
            for (index, &raw) in self.words[mfn].borrow().iter().enumerate() {
                let entry = Entry(raw);
                let counted = index < cursor || (index == cursor && child_is_partial);
                if !counted || !entry.is_present() || (level == 4 && is_own_slot(index)) {
                    continue;
                }
                if level == 1 {
                    assert!(entry.check(1, false).is_ok());
                    if entry.mfn() >= FRAMES as u64 {
                        continue;
                    }
                    references[entry.mfn() as usize] += 1;
                    if entry.is_writable() {
                        types[entry.mfn() as usize] += 1;
                        assert_eq!(
                            self.word(entry.mfn()).kind(),
                            Kind::Writable,
                            "a table is mapped writable"
                        );
                    }
                } else {
                    assert!(entry.check(level, false).is_ok() && entry.0 & bits::USER != 0 || index == cursor);
                    let child = self.word(entry.mfn());
                    references[entry.mfn() as usize] += 1;
                    types[entry.mfn() as usize] += 1;
                    assert_eq!(child.kind().level(), Some(level - 1), "a table of the wrong level");
                    if index < cursor {
                        assert!(child.is_validated(), "a live table names one that was not checked");
                    }
                }
            }
        }
        for &(mfn, writable) in held {
            references[mfn as usize] += 1;
            types[mfn as usize] += u64::from(writable);
        }
        for mfn in 0..FRAMES {
            let word = self.word(mfn as u64);
            assert_eq!(
                word.references(),
                references[mfn],
                "references of frame {mfn}: {word:?}"
            );
            assert_eq!(
                word.type_count(),
                types[mfn],
                "type references of frame {mfn}: {word:?}"
            );
        }
    }
}

impl Host for World {
    type Table = u64;
    fn frame(&self, mfn: u64) -> Option<&Frame> {
        self.frames.get(mfn as usize)
    }
    fn table(&self, mfn: u64) -> Option<u64> {
        (mfn < FRAMES as u64).then_some(mfn)
    }
    fn load(&self, table: u64, index: usize) -> u64 {
        self.peek(table, index)
    }
    fn store(&self, table: u64, index: usize, value: u64) {
        self.poke(table, index, value);
    }
    fn exchange(&self, table: u64, index: usize, old: u64, new: u64) -> Result<(), u64> {
        let found = self.peek(table, index);
        if found == old {
            self.poke(table, index, new);
            Ok(())
        } else {
            Err(found)
        }
    }
    fn table_ends(&self, _: u64) {}
    fn adopt_root(&self, table: u64) {
        (256..=271).for_each(|index| self.poke(table, index, 0xdead_f001));
    }
    fn now(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }
    fn flush_stale(&self, _: &Frame) {
        self.flushes.set(self.flushes.get() + 1);
    }
    fn is_time_up(&self) -> bool {
        self.fuel.set(self.fuel.get().saturating_sub(1));
        self.fuel.get() == 0
    }
    fn free(&self, mfn: u64) {
        assert_eq!(self.word(mfn).references(), 0);
        self.freed.borrow_mut().push(mfn);
    }
    fn device_entry(&self, _: u16, entry: Entry) -> Result<Entry, Refused> {
        if entry.mfn() == DEVICE {
            Ok(entry)
        } else {
            Err(Refused::NoSuchFrame)
        }
    }
    fn may_choose_caching(&self) -> bool {
        false
    }
    fn descriptors_unmapped(&self) {}
    fn relax(&self) {
        panic!("nobody else runs here");
    }
}

const P: u64 = bits::PRESENT;
const RW: u64 = bits::PRESENT | bits::WRITABLE;

fn to(mfn: u64, flags: u64) -> u64 {
    mfn << 12 | flags
}

/// Frame 4 is a root over 3 over 2 over 1, which maps 0 writable.
fn a_tree() -> World {
    let world = World::new();
    world.poke(1, 0, to(0, RW));
    world.poke(2, 0, to(1, RW));
    world.poke(3, 0, to(2, RW));
    world.poke(4, 0, to(3, RW));
    world
}

#[test]
fn pinning_a_root_types_the_whole_tree_and_unpinning_frees_it_again() {
    let world = a_tree();
    world.space().pin(4, Kind::L4).unwrap();
    world.audit(&[]);
    for (mfn, kind) in [
        (0, Kind::Writable),
        (1, Kind::L1),
        (2, Kind::L2),
        (3, Kind::L3),
        (4, Kind::L4),
    ] {
        assert_eq!((world.word(mfn).kind(), world.word(mfn).is_validated()), (kind, true));
    }
    assert_eq!(world.peek(4, 261), 0xdead_f001);
    assert_eq!(world.space().unpin(4), Some(Dropped::Done));
    world.audit(&[]);
    assert!((0..5).all(|mfn| world.word(mfn).type_count() == 0));
    assert_eq!(world.space().unpin(4), None);
}

#[test]
fn a_tree_that_maps_its_own_table_writable_is_refused_and_leaves_nothing() {
    for target in 1..=4 {
        let world = a_tree();
        world.poke(1, 7, to(target, RW));
        assert!(matches!(
            world.space().pin(4, Kind::L4),
            Err(Stop::Refused(Refused::InUseAs(_)))
        ));
        world.audit(&[]);
        assert!((0..5).all(|mfn| world.word(mfn).references() == 1 && world.word(mfn).type_count() == 0));
        // Reading one's own tables is fine.
        world.poke(1, 7, to(target, P));
        world.space().pin(4, Kind::L4).unwrap();
        world.audit(&[]);
    }
}

#[test]
fn a_mapped_table_cannot_be_made_writable_and_a_writable_page_cannot_be_made_a_table() {
    let world = a_tree();
    let space = world.space();
    space.pin(4, Kind::L4).unwrap();
    let frame = &world.frames[1];
    let refused = space.update(1, frame, 9, to(2, RW), Flavour::Plain, OWNER);
    assert_eq!(refused, Err(Stop::Refused(Refused::InUseAs(Kind::L2))));
    assert_eq!(
        space.pin(0, Kind::L1),
        Err(Stop::Refused(Refused::InUseAs(Kind::Writable)))
    );
    world.audit(&[]);
}

#[test]
fn the_hypervisors_slots_are_not_the_guests_to_change() {
    let world = a_tree();
    let space = world.space();
    space.pin(4, Kind::L4).unwrap();
    for slot in [256, 261, 271] {
        let refused = space.update(4, &world.frames[4], slot, to(3, RW), Flavour::Plain, OWNER);
        assert_eq!(refused, Err(Stop::Refused(Refused::OwnSlot)));
        let refused = space.update(4, &world.frames[4], slot, 0, Flavour::Plain, OWNER);
        assert_eq!(refused, Err(Stop::Refused(Refused::OwnSlot)));
    }
    world.audit(&[]);
}

#[test]
fn another_domains_frame_is_refused_unless_it_is_named_as_the_owner() {
    let world = a_tree();
    let space = world.space();
    space.pin(4, Kind::L4).unwrap();
    let leaf = |owner| space.update(1, &world.frames[1], 5, to(12, RW), Flavour::Plain, owner);
    assert_eq!(leaf(OWNER), Err(Stop::Refused(Refused::NotOwned)));
    world.audit(&[]);
    assert_eq!(leaf(OTHER), Ok(Dropped::Done));
    assert!(world.frames[12].was_foreign());
    world.audit(&[]);
    assert_eq!(space.pin(12, Kind::L1), Err(Stop::Refused(Refused::NotOwned)));
}

#[test]
fn a_frame_given_back_while_mapped_is_freed_with_its_last_mapping() {
    let world = a_tree();
    let space = world.space();
    space.pin(4, Kind::L4).unwrap();
    assert!(world.frames[0].give_back());
    space.put(0, &world.frames[0]);
    assert!(world.freed.borrow().is_empty());
    assert_eq!(
        space.update(1, &world.frames[1], 0, 0, Flavour::Plain, OWNER),
        Ok(Dropped::Done)
    );
    assert_eq!(*world.freed.borrow(), [0]);
}

#[test]
fn accessed_and_dirty_bits_survive_an_update_that_preserves_them() {
    let world = a_tree();
    let space = world.space();
    space.pin(4, Kind::L4).unwrap();
    world.poke(1, 0, world.peek(1, 0) | bits::ACCESSED | bits::DIRTY);
    let _ = space
        .update(1, &world.frames[1], 0, to(0, P), Flavour::PreserveAccessedDirty, OWNER)
        .unwrap();
    assert_eq!(
        world.peek(1, 0) & (bits::ACCESSED | bits::DIRTY),
        bits::ACCESSED | bits::DIRTY
    );
    let _ = space
        .update(1, &world.frames[1], 0, to(0, P), Flavour::Plain, OWNER)
        .unwrap();
    assert_eq!(world.peek(1, 0) & (bits::ACCESSED | bits::DIRTY), 0);
    world.audit(&[]);
}

#[test]
fn device_memory_is_not_counted() {
    let world = a_tree();
    let space = world.space();
    space.pin(4, Kind::L4).unwrap();
    let _ = space
        .update(1, &world.frames[1], 3, to(DEVICE, RW), Flavour::Plain, OWNER)
        .unwrap();
    let refused = space.update(1, &world.frames[1], 4, to(DEVICE + 1, RW), Flavour::Plain, OWNER);
    assert_eq!(refused, Err(Stop::Refused(Refused::NoSuchFrame)));
    let _ = space.update(1, &world.frames[1], 3, 0, Flavour::Plain, OWNER).unwrap();
    world.audit(&[]);
}

#[test]
fn becoming_a_table_after_having_been_writable_flushes() {
    let world = a_tree();
    let space = world.space();
    space.get_writable(1, OWNER).unwrap();
    space.put_writable(1, &world.frames[1]);
    space.pin(1, Kind::L1).unwrap();
    assert_eq!(world.flushes.get(), 1);
}

/// A wide tree: a root over many level-3 tables does not fit into a handful of frames, but one child may be named
/// by many entries, each of which is a step.
fn a_wide_tree() -> World {
    let world = a_tree();
    for index in [1, 100, 255, 272, 511] {
        world.poke(4, index, to(3, RW));
        world.poke(3, index, to(2, RW));
        world.poke(2, index, to(1, RW));
    }
    world
}

#[test]
fn pinning_goes_on_where_it_was_interrupted_and_so_does_unpinning() {
    for fuel in 1..6 {
        let world = a_wide_tree();
        let space = world.space();
        let mut rounds = 0;
        loop {
            world.fuel.set(fuel);
            rounds += 1;
            match space.pin(4, Kind::L4) {
                Ok(()) => break,
                Err(Stop::Preempted) => world.audit(&[]),
                other => panic!("{other:?}"),
            }
            assert!(rounds < 100);
        }
        assert!(rounds > 1);
        world.audit(&[]);
        world.fuel.set(fuel);
        let mut left = space.unpin(4).unwrap();
        while let Dropped::Unfinished(mfn) = left {
            world.audit(&[]);
            world.fuel.set(fuel);
            left = space.settle(mfn);
        }
        world.audit(&[]);
        assert!((0..5).all(|mfn| world.word(mfn).type_count() == 0 && world.word(mfn).references() == 1));
    }
}

#[test]
fn a_pin_interrupted_and_never_resumed_can_be_settled() {
    let world = a_wide_tree();
    let space = world.space();
    world.fuel.set(2);
    assert_eq!(space.pin(4, Kind::L4), Err(Stop::Preempted));
    world.fuel.set(u32::MAX);
    assert_eq!(space.settle(4), Dropped::Done);
    world.audit(&[]);
    assert!((0..5).all(|mfn| world.word(mfn).type_count() == 0 && world.word(mfn).references() == 1));
}

#[test]
fn an_orphan_that_others_adopted_is_not_settled() {
    let world = a_wide_tree();
    let space = world.space();
    world.fuel.set(2);
    assert_eq!(space.pin(4, Kind::L4), Err(Stop::Preempted));
    world.fuel.set(u32::MAX);
    space.pin(4, Kind::L4).unwrap();
    assert_eq!(space.settle(4), Dropped::Done);
    assert!(world.word(4).is_live_table());
    world.audit(&[]);
}

#[test]
fn descriptors_are_made_harmless_and_a_bad_one_refuses_the_page() {
    let world = World::new();
    let space = world.space();
    world.poke(0, 1, 0x00af_9b00_0000_ffff);
    space.take_descriptors(0).unwrap();
    assert_eq!(world.peek(0, 1), 0x00af_fb00_0000_ffff);
    world.audit(&[(0, true)]);
    assert_eq!(
        space.get_writable(0, OWNER).err(),
        Some(Refused::InUseAs(Kind::SegDesc))
    );
    space.drop_descriptors(0);
    world.poke(0, 2, 0x0000_8900_0000_0000);
    assert_eq!(space.take_descriptors(0), Err(Refused::BadDescriptor));
    world.audit(&[]);
}

#[derive(Clone, Debug)]
enum Op {
    Pin(u64, Kind),
    Unpin(u64),
    Update {
        table: u64,
        slot: usize,
        target: u64,
        flags: u64,
        owner: u16,
    },
    Scribble {
        table: u64,
        slot: usize,
        target: u64,
        flags: u64,
    },
    TakeWritable(u64),
    DropHeld(usize),
    GiveBack(u64),
    Settle(u64),
}

fn ops() -> impl Strategy<Value = Op> {
    let frame = || 0..FRAMES as u64;
    let kind = prop_oneof![Just(Kind::L1), Just(Kind::L2), Just(Kind::L3), Just(Kind::L4)];
    let slot = || prop_oneof![Just(0usize), Just(1), Just(255), Just(256), Just(272), Just(511)];
    let flags = || prop_oneof![4 => Just(RW), 2 => Just(P), 1 => Just(0), 1 => Just(P | bits::LARGE_OR_PAT)];
    let owner = prop_oneof![4 => Just(OWNER), 1 => Just(OTHER)];
    prop_oneof![
        3 => (frame(), kind).prop_map(|(mfn, kind)| Op::Pin(mfn, kind)),
        2 => frame().prop_map(Op::Unpin),
        5 => (frame(), slot(), frame(), flags(), owner)
            .prop_map(|(table, slot, target, flags, owner)| Op::Update { table, slot, target, flags, owner }),
        4 => (frame(), slot(), frame(), flags())
            .prop_map(|(table, slot, target, flags)| Op::Scribble { table, slot, target, flags }),
        1 => frame().prop_map(Op::TakeWritable),
        1 => (0..4usize).prop_map(Op::DropHeld),
        1 => frame().prop_map(Op::GiveBack),
        1 => frame().prop_map(Op::Settle),
    ]
}

/// Plausible contents, so that trees come about: frames 0-3 leaves or level 1, 4-5 level 2, 6-7 level 3, 8-9 level 4.
fn seeded() -> World {
    let world = World::new();
    for slot in [0, 1, 255, 272, 511] {
        world.poke(2, slot, to(0, RW));
        world.poke(3, slot, to(1, P));
        world.poke(4, slot, to(2, RW));
        world.poke(5, slot, to(3, RW));
        world.poke(6, slot, to(4, RW));
        world.poke(7, slot, to(5, RW));
        world.poke(8, slot, to(6, RW));
        world.poke(9, slot, to(7, RW));
    }
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_guest_does_the_accounts_stay_right(
        history in proptest::collection::vec((ops(), prop_oneof![2 => Just(u32::MAX), 3 => 1..8u32]), 1..60)
    ) {
        let world = seeded();
        let space = world.space();
        let mut held: Vec<(u64, bool)> = Vec::new();
        for (op, fuel) in history {
            world.fuel.set(fuel);
            match op {
                Op::Pin(mfn, kind) => drop(space.pin(mfn, kind)),
                Op::Unpin(mfn) => drop(space.unpin(mfn)),
                Op::Update { table, slot, target, flags, owner } => {
                    if let Ok(frame) = space.get(table, OWNER) {
                        let _ = space.update(table, frame, slot, to(target, flags), Flavour::Plain, owner);
                        space.put(table, frame);
                    }
                }
                Op::Scribble { table, slot, target, flags } => {
                    // As a guest that has the page mapped writable.
                    if let Ok(frame) = space.get_writable(table, OWNER) {
                        world.poke(table, slot, to(target, flags));
                        space.put_writable(table, frame);
                    }
                }
                Op::TakeWritable(mfn) => {
                    if space.get_writable(mfn, OWNER).is_ok() {
                        held.push((mfn, true));
                    }
                }
                Op::DropHeld(index) => {
                    if index < held.len() {
                        let (mfn, _) = held.swap_remove(index);
                        space.put_writable(mfn, &world.frames[mfn as usize]);
                    }
                }
                Op::GiveBack(mfn) => {
                    let frame = &world.frames[mfn as usize];
                    if frame.give_back() {
                        space.put(mfn, frame);
                    }
                }
                Op::Settle(mfn) => drop(space.settle(mfn)),
            }
            world.audit(&held);
            for mfn in world.freed.borrow_mut().drain(..) {
                // The allocator hands it out again, cleared.
                world.frames[mfn as usize].assign(if mfn < OWN_FRAMES as u64 { OWNER } else { OTHER }, Word::ALLOCATED);
                world.words[mfn as usize].borrow_mut().fill(0);
            }
        }
        // The end of the domain: everything goes back.
        world.fuel.set(u32::MAX);
        for (mfn, _) in held.drain(..) {
            space.put_writable(mfn, &world.frames[mfn as usize]);
        }
        for mfn in 0..FRAMES as u64 {
            let _ = space.unpin(mfn);
            let _ = space.settle(mfn);
        }
        world.audit(&[]);
        for mfn in 0..FRAMES as u64 {
            prop_assert_eq!(world.word(mfn).type_count(), 0);
            prop_assert!(world.word(mfn).references() <= 1);
        }
    }
}
