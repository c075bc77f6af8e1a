use super::*;
use proptest::prelude::*;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

struct Table(Vec<Cell<(u32, u32, u8)>>);

impl Table {
    fn of(frames: usize) -> Table {
        Table(vec![Cell::new((0, 0, 0)); frames])
    }
}

impl Nodes for Table {
    fn len(&self) -> u32 {
        self.0.len() as u32
    }
    fn links(&self, frame: u32) -> (u32, u32) {
        let (next, prev, _) = self.0[frame as usize].get();
        (next, prev)
    }
    fn set_next(&self, frame: u32, next: u32) {
        let (_, prev, state) = self.0[frame as usize].get();
        self.0[frame as usize].set((next, prev, state));
    }
    fn set_prev(&self, frame: u32, prev: u32) {
        let (next, _, state) = self.0[frame as usize].get();
        self.0[frame as usize].set((next, prev, state));
    }
    fn state(&self, frame: u32) -> u8 {
        self.0[frame as usize].get().2
    }
    fn set_state(&self, frame: u32, state: u8) {
        let (next, prev, _) = self.0[frame as usize].get();
        self.0[frame as usize].set((next, prev, state));
    }
}

fn heap(frames: usize) -> Heap<Table> {
    Heap::new(Table::of(frames))
}

fn pages(order: u32) -> Wish {
    Wish {
        order,
        address_bits: None,
        dirty_is_fine: false,
    }
}

#[test]
fn what_was_split_grows_together_again() {
    let mut heap = heap(1 << 13);
    heap.add(1 << 12, 1 << 12, Cleanliness::Clean);
    let taken: Vec<Block> = core::iter::from_fn(|| heap.allocate(pages(0))).collect();
    assert_eq!((taken.len(), heap.free_pages()), (1 << 12, 0));
    heap.audit();
    taken
        .iter()
        .for_each(|block| heap.free(block.first, 0, Cleanliness::Clean));
    heap.audit();
    assert!(heap.allocate(pages(12)).is_some());
}

#[test]
fn odd_ranges_are_taken_whole() {
    let mut heap = heap(10_000);
    heap.add(3, 997, Cleanliness::Dirty);
    heap.add(2001, 7000, Cleanliness::Clean);
    heap.audit();
    assert_eq!((heap.free_pages(), heap.dirty_pages()), (7997, 997));
}

#[test]
fn an_address_limit_is_kept_and_high_memory_goes_first() {
    let mut heap = heap(1 << 13);
    heap.add(0, 1 << 13, Cleanliness::Clean);
    assert!(heap.allocate(pages(0)).is_some_and(|block| block.first >= 1 << 12));
    let low = Wish {
        address_bits: Some(24),
        ..pages(0)
    };
    assert_eq!(heap.free_pages_below(24), 1 << 12);
    for _ in 0..1 << 12 {
        assert!(heap.allocate(low).is_some_and(|block| block.first < 1 << 12));
    }
    assert!(heap.allocate(low).is_none());
    heap.audit();
}

#[test]
fn clean_pages_are_preferred_and_dirty_ones_are_named_so() {
    let mut heap = heap(64);
    heap.free(0, 0, Cleanliness::Dirty);
    heap.free(2, 0, Cleanliness::Clean);
    heap.free(4, 0, Cleanliness::Dirty);
    // The zone decides before cleanliness does: 4 is higher than 2.
    assert_eq!(
        heap.allocate(pages(0)).map(|b| (b.first, b.cleanliness)),
        Some((4, Cleanliness::Dirty))
    );
    heap.free(3, 0, Cleanliness::Dirty);
    assert_eq!(
        heap.allocate(pages(0)).map(|b| (b.first, b.cleanliness)),
        Some((2, Cleanliness::Clean))
    );
}

#[test]
fn scrubbing_ends_and_leaves_one_clean_block() {
    let mut heap = heap(1 << 11);
    heap.add(1 << 10, 1 << 10, Cleanliness::Dirty);
    let mut rounds = 0;
    while let Some(block) = heap.take_dirty(4) {
        assert!(block.order <= 4);
        heap.free(block.first, block.order, Cleanliness::Clean);
        heap.audit();
        rounds += 1;
    }
    assert_eq!(rounds, 64);
    assert_eq!(
        heap.allocate(pages(10)).map(|b| b.cleanliness),
        Some(Cleanliness::Clean)
    );
}

#[test]
fn a_large_block_is_found_across_clean_and_dirty_ones() {
    let mut heap = heap(1 << 9);
    for first in 1 << 8..1 << 9 {
        heap.free(
            first,
            0,
            if first % 3 == 0 {
                Cleanliness::Dirty
            } else {
                Cleanliness::Clean
            },
        );
    }
    assert_eq!(heap.allocate(pages(8)).map(|b| b.cleanliness), Some(Cleanliness::Dirty));
    heap.audit();
}

#[test]
#[should_panic(expected = "freed twice")]
fn freeing_twice_is_caught() {
    let mut heap = heap(16);
    heap.free(5, 0, Cleanliness::Clean);
    heap.free(5, 0, Cleanliness::Clean);
}

proptest! {
    #[test]
    fn whatever_is_asked_no_frame_is_handed_out_twice(
        ops in proptest::collection::vec((0..5u8, 0..7u32, any::<u32>()), 1..200)
    ) {
        const FRAMES: u32 = 700;
        let mut heap = heap(FRAMES as usize);
        heap.add(5, FRAMES - 5, Cleanliness::Dirty);
        let mut taken: BTreeMap<u32, u32> = BTreeMap::new();
        for (op, order, pick) in ops {
            match op {
                0 | 1 => {
                    let address_bits = (op == 1).then_some(12 + pick % 11);
                    let wish = Wish { order, address_bits, dirty_is_fine: pick % 2 == 0 };
                    if let Some(block) = heap.allocate(wish) {
                        let end = block.first + (1 << order);
                        prop_assert!(end <= FRAMES && block.first >= 5);
                        if let Some(bits) = address_bits {
                            prop_assert!(u64::from(end) << 12 <= 1u64 << bits);
                        }
                        for (&other, &other_order) in &taken {
                            prop_assert!(end <= other || block.first >= other + (1 << other_order));
                        }
                        taken.insert(block.first, order);
                    }
                }
                2 | 3 => {
                    if let Some(&first) = taken.keys().nth(pick as usize % taken.len().max(1)) {
                        let order = taken.remove(&first).unwrap_or(0);
                        heap.free(first, order, if op == 2 { Cleanliness::Dirty } else { Cleanliness::Clean });
                    }
                }
                _ => {
                    if let Some(block) = heap.take_dirty(order) {
                        prop_assert!(block.order <= order);
                        heap.free(block.first, block.order, Cleanliness::Clean);
                    }
                }
            }
            heap.audit();
            let held: u64 = taken.values().map(|order| 1u64 << order).sum();
            prop_assert_eq!(heap.free_pages() + held, u64::from(FRAMES - 5));
        }
    }
}
