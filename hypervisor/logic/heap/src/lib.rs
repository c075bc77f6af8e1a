//! Handing out machine pages: a buddy allocator over frame numbers.
//!
//! Free memory is kept as blocks of 2^order frames, aligned to their size, in lists by *zone* (how many bits the
//! block's last frame number has, so that "below 4 GiB" is a set of zones) and order. A block is *clean* (known to
//! hold zeroes) or *dirty*; clean ones stand at the front of their list, dirty ones at the back.
//!
//! The links live with whoever owns the frame table ([`Nodes`]); the caller owns the lock. Nothing is touched but
//! the nodes: scrubbing is the caller's, who gets the dirty blocks from [`Heap::take_dirty`].
//!
//! Always true ([`Heap::audit`] checks; every property test calls it):
//! 1. A free frame is in exactly one block, and a block's first node, alone, names its order.
//! 2. Two free buddies of the same order and the same cleanliness are one block; but frame 0 stays alone, since
//!    a larger block that starts there would lie in several zones.
//! 3. The counts of free and of dirty pages are the sums over the blocks.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

/// The largest order: 4 GiB.
pub const MAX_ORDER: u32 = 20;
const ORDERS: usize = MAX_ORDER as usize + 1;
/// Frame numbers have at most this many bits.
const ZONES: usize = 41;
/// No frame.
const NONE: u32 = u32::MAX;

/// Bits of a node's state: the order, and these. 0: not the first frame of a free block.
const FREE: u8 = 0x80;
const DIRTY: u8 = 0x40;

/// Where the heap keeps its links: one node for each frame, all with state 0 at first.
#[expect(clippy::len_without_is_empty, reason = "a machine without frames runs nothing")]
pub trait Nodes {
    /// How many frames there are.
    fn len(&self) -> u32;
    /// The next and the previous block in the list.
    fn links(&self, frame: u32) -> (u32, u32);
    /// Sets the next block.
    fn set_next(&self, frame: u32, next: u32);
    /// Sets the previous block.
    fn set_prev(&self, frame: u32, prev: u32);
    /// The heap's byte.
    fn state(&self, frame: u32) -> u8;
    /// Sets the heap's byte.
    fn set_state(&self, frame: u32, state: u8);
}

/// Whether freed pages may hold somebody's data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cleanliness {
    /// All zeroes.
    Clean,
    /// Whatever was there.
    Dirty,
}

/// Pages that were handed out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block {
    /// The first frame.
    pub first: u32,
    /// 2 to this power frames.
    pub order: u32,
    /// Whether they must be scrubbed before a domain sees them.
    pub cleanliness: Cleanliness,
}

/// What the caller wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wish {
    /// 2 to this power frames, aligned to their size.
    pub order: u32,
    /// Every byte's address has at most this many bits.
    pub address_bits: Option<u32>,
    /// Whether dirty pages are as good as clean ones.
    pub dirty_is_fine: bool,
}

#[derive(Clone, Copy)]
struct List {
    first: u32,
    last: u32,
}

/// The free memory.
pub struct Heap<N> {
    nodes: N,
    lists: [[List; ORDERS]; ZONES],
    /// For each zone, the orders of which it has blocks.
    orders: [u32; ZONES],
    free: u64,
    dirty: u64,
}

/// The zone of a block.
fn zone(first: u32, order: u32) -> usize {
    let last = first | ((1u32 << order) - 1);
    (u32::BITS - last.leading_zeros()) as usize
}

impl<N: Nodes> Heap<N> {
    /// An empty heap.
    pub const fn new(nodes: N) -> Self {
        Heap {
            nodes,
            lists: [[List {
                first: NONE,
                last: NONE,
            }; ORDERS]; ZONES],
            orders: [0; ZONES],
            free: 0,
            dirty: 0,
        }
    }

    /// The nodes.
    pub fn nodes(&self) -> &N {
        &self.nodes
    }

    /// Pages that are free.
    pub fn free_pages(&self) -> u64 {
        self.free
    }

    /// Free pages that are not known to hold zeroes.
    pub fn dirty_pages(&self) -> u64 {
        self.dirty
    }

    /// Free pages all of whose bytes' addresses have at most `address_bits` bits.
    pub fn free_pages_below(&self, address_bits: u32) -> u64 {
        let mut pages = 0;
        for (zone, orders) in self.lists.iter().enumerate().take(zone_limit(Some(address_bits))) {
            for (order, first) in orders.iter().enumerate() {
                if self.orders[zone] >> order & 1 != 0 {
                    pages += self.blocks(*first).count() as u64 * (1 << order);
                }
            }
        }
        pages
    }

    /// Gives a run of frames, of any length and alignment, to the heap.
    pub fn add(&mut self, first: u32, count: u32, cleanliness: Cleanliness) {
        let mut at = first;
        let end = first.saturating_add(count).min(self.nodes.len());
        while at < end {
            let fits = u32::BITS - 1 - (end - at).leading_zeros();
            let order = if at == 0 {
                0
            } else {
                at.trailing_zeros().min(fits).min(MAX_ORDER)
            };
            self.free(at, order, cleanliness);
            at += 1 << order;
        }
    }

    /// Takes a block out of the heap.
    #[must_use]
    pub fn allocate(&mut self, wish: Wish) -> Option<Block> {
        if wish.order > MAX_ORDER {
            return None;
        }
        if let Some(block) = self.find(wish) {
            return Some(block);
        }
        // Clean and dirty buddies are not merged by themselves; a large block may hide between them.
        if wish.order > 0 && self.dirty != 0 && self.dirty != self.free {
            self.merge_across_cleanliness();
            return self.find(wish);
        }
        None
    }

    fn find(&mut self, wish: Wish) -> Option<Block> {
        // High memory first: what is low is precious to devices.
        let zone = (0..zone_limit(wish.address_bits))
            .rev()
            .find(|&zone| self.orders[zone] >> wish.order != 0)?;
        let order = wish.order + (self.orders[zone] >> wish.order).trailing_zeros();
        let list = self.lists[zone][order as usize];
        let first = if wish.dirty_is_fine { list.last } else { list.first };
        let cleanliness = self.unlink(first, order);
        let mut at = order;
        // The lower half is split on, so that the pages handed out are the lowest of the block.
        while at > wish.order {
            at -= 1;
            self.link(first + (1 << at), at, cleanliness);
        }
        Some(Block {
            first,
            order: wish.order,
            cleanliness,
        })
    }

    /// Gives a block back.
    ///
    /// # Panics
    /// If it is misaligned, beyond the frames, or free already.
    #[track_caller]
    pub fn free(&mut self, first: u32, order: u32, cleanliness: Cleanliness) {
        assert!(
            order <= MAX_ORDER && first.is_multiple_of(1 << order),
            "a block of no such shape"
        );
        assert!(
            first.checked_add(1 << order).is_some_and(|end| end <= self.nodes.len()),
            "no such frames"
        );
        assert!(self.nodes.state(first) == 0, "a block freed twice");
        assert!(first != 0 || order == 0, "frame 0 stands alone");
        let (mut first, mut order) = (first, order);
        while order < MAX_ORDER {
            let buddy = first ^ (1 << order);
            if !self.may_merge(first, buddy) || self.nodes.state(buddy) != state(order, cleanliness) {
                break;
            }
            self.unlink(buddy, order);
            first &= !(1 << order);
            order += 1;
        }
        self.link(first, order, cleanliness);
    }

    /// Takes a dirty block of at most `max_order` out, to be scrubbed and freed as clean.
    #[must_use]
    pub fn take_dirty(&mut self, max_order: u32) -> Option<Block> {
        if self.dirty == 0 {
            return None;
        }
        for zone in (0..ZONES).rev() {
            let mut orders = self.orders[zone];
            while orders != 0 {
                let order = orders.trailing_zeros();
                orders &= orders - 1;
                let first = self.lists[zone][order as usize].last;
                if self.nodes.state(first) & DIRTY == 0 {
                    continue;
                }
                self.unlink(first, order);
                let mut at = order;
                while at > max_order {
                    at -= 1;
                    self.link(first + (1 << at), at, Cleanliness::Dirty);
                }
                return Some(Block {
                    first,
                    order: at,
                    cleanliness: Cleanliness::Dirty,
                });
            }
        }
        None
    }

    /// Makes dirty blocks of clean and dirty buddies.
    fn merge_across_cleanliness(&mut self) {
        for order in 0..MAX_ORDER {
            for zone in 0..ZONES {
                if self.orders[zone] >> order & 1 == 0 {
                    continue;
                }
                let mut at = self.lists[zone][order as usize].last;
                // The dirty ones stand at the back.
                while at != NONE && self.nodes.state(at) & DIRTY != 0 {
                    let before = self.nodes.links(at).1;
                    let buddy = at ^ (1 << order);
                    if self.may_merge(at, buddy) && self.nodes.state(buddy) == state(order, Cleanliness::Clean) {
                        let next = if before == buddy {
                            self.nodes.links(buddy).1
                        } else {
                            before
                        };
                        self.unlink(at, order);
                        self.unlink(buddy, order);
                        self.free(at & !(1 << order), order + 1, Cleanliness::Dirty);
                        at = next;
                    } else {
                        at = before;
                    }
                }
            }
        }
    }

    fn may_merge(&self, block: u32, buddy: u32) -> bool {
        buddy < self.nodes.len() && block != 0 && buddy != 0
    }

    fn link(&mut self, first: u32, order: u32, cleanliness: Cleanliness) {
        let zone = zone(first, order);
        let list = &mut self.lists[zone][order as usize];
        self.nodes.set_state(first, state(order, cleanliness));
        match cleanliness {
            Cleanliness::Clean => {
                self.nodes.set_next(first, list.first);
                self.nodes.set_prev(first, NONE);
                if list.first == NONE {
                    list.last = first;
                } else {
                    self.nodes.set_prev(list.first, first);
                }
                list.first = first;
            }
            Cleanliness::Dirty => {
                self.nodes.set_prev(first, list.last);
                self.nodes.set_next(first, NONE);
                if list.last == NONE {
                    list.first = first;
                } else {
                    self.nodes.set_next(list.last, first);
                }
                list.last = first;
                self.dirty += 1 << order;
            }
        }
        self.orders[zone] |= 1 << order;
        self.free += 1 << order;
    }

    fn unlink(&mut self, first: u32, order: u32) -> Cleanliness {
        let zone = zone(first, order);
        let list = &mut self.lists[zone][order as usize];
        let (next, prev) = self.nodes.links(first);
        if prev == NONE {
            list.first = next;
        } else {
            self.nodes.set_next(prev, next);
        }
        if next == NONE {
            list.last = prev;
        } else {
            self.nodes.set_prev(next, prev);
        }
        if list.first == NONE {
            self.orders[zone] &= !(1 << order);
        }
        let dirty = self.nodes.state(first) & DIRTY != 0;
        self.nodes.set_state(first, 0);
        self.free -= 1 << order;
        if dirty {
            self.dirty -= 1 << order;
            Cleanliness::Dirty
        } else {
            Cleanliness::Clean
        }
    }

    fn blocks(&self, list: List) -> impl Iterator<Item = u32> + '_ {
        let mut at = list.first;
        core::iter::from_fn(move || {
            let block = (at != NONE).then_some(at)?;
            at = self.nodes.links(block).0;
            Some(block)
        })
    }

    /// Checks everything that is promised to be always true. Slow.
    ///
    /// # Panics
    /// If something is not.
    pub fn audit(&self) {
        let (mut free, mut dirty) = (0u64, 0u64);
        for (zone_index, zone_lists) in self.lists.iter().enumerate() {
            for (order, list) in zone_lists.iter().enumerate() {
                assert_eq!(self.orders[zone_index] >> order & 1 != 0, list.first != NONE);
                let (mut previous, mut seen_dirty) = (NONE, false);
                for block in self.blocks(*list) {
                    let state_byte = self.nodes.state(block);
                    assert!(
                        state_byte & FREE != 0 && state_byte & 0x3f == order as u8,
                        "state of {block:x}"
                    );
                    assert_eq!(self.nodes.links(block).1, previous, "links of {block:x}");
                    assert!(block.is_multiple_of(1 << order) && zone(block, order as u32) == zone_index);
                    let is_dirty = state_byte & DIRTY != 0;
                    assert!(is_dirty || !seen_dirty, "clean blocks stand before dirty ones");
                    seen_dirty |= is_dirty;
                    let buddy = block ^ (1 << order);
                    let merged = order < MAX_ORDER as usize
                        && self.may_merge(block, buddy)
                        && self.nodes.state(buddy) == state_byte;
                    assert!(!merged, "{block:x} and its buddy are both free");
                    for inner in 1..1u32 << order {
                        assert_eq!(self.nodes.state(block + inner), 0, "a block within a block");
                    }
                    free += 1 << order;
                    dirty += if is_dirty { 1 << order } else { 0 };
                    previous = block;
                }
                assert_eq!(list.last, previous);
            }
        }
        assert_eq!((free, dirty), (self.free, self.dirty));
    }
}

const fn state(order: u32, cleanliness: Cleanliness) -> u8 {
    FREE | order as u8
        | if matches!(cleanliness, Cleanliness::Dirty) {
            DIRTY
        } else {
            0
        }
}

/// Zones below this fit the limit.
fn zone_limit(address_bits: Option<u32>) -> usize {
    match address_bits {
        None => ZONES,
        Some(bits) => (bits.saturating_sub(ferroxen_words::PAGE_SHIFT) as usize + 1).min(ZONES),
    }
}

#[cfg(test)]
mod tests;
