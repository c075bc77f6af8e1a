//! Deadlines: which one is next, in nanoseconds of system time.
//!
//! A [`TimerQueue`] is a binary heap over slots, so that a timer can be cancelled by its handle in
//! logarithmic time. It never looks at a clock; the caller says what time it is.
//!
//! Always true ([`TimerQueue::audit`]):
//! 1. No entry of the heap is due before its parent.
//! 2. Each entry's slot knows where in the heap it stands, and every other slot is on the free list.
//! 3. A handle stops working once its timer has fired or was cancelled, also after its slot is used again.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

use alloc::vec::Vec;

/// Names one armed timer until it fires or is cancelled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimerHandle {
    slot: u32,
    generation: u32,
}

/// There is no memory for one more timer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

struct Slot<T> {
    generation: u32,
    /// Where in the heap, while armed; else the next free slot.
    at: u32,
    what: Option<T>,
}

#[derive(Clone, Copy)]
struct Entry {
    due_ns: u64,
    slot: u32,
}

/// Timers by deadline.
pub struct TimerQueue<T> {
    heap: Vec<Entry>,
    slots: Vec<Slot<T>>,
    free: u32,
}

const NO_SLOT: u32 = u32::MAX;

impl<T> Default for TimerQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> TimerQueue<T> {
    /// An empty queue.
    pub const fn new() -> Self {
        TimerQueue {
            heap: Vec::new(),
            slots: Vec::new(),
            free: NO_SLOT,
        }
    }

    /// Makes sure that `count` timers in all can be armed without needing memory.
    pub fn reserve(&mut self, count: usize) -> Result<(), Full> {
        self.heap
            .try_reserve(count.saturating_sub(self.heap.len()))
            .map_err(|_| Full)?;
        self.slots
            .try_reserve(count.saturating_sub(self.slots.len()))
            .map_err(|_| Full)
    }

    /// How many timers are armed.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether no timer is armed.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// When the next timer is due.
    #[inline]
    pub fn next_due(&self) -> Option<u64> {
        self.heap.first().map(|entry| entry.due_ns)
    }

    /// Arms a timer.
    pub fn arm(&mut self, due_ns: u64, what: T) -> Result<TimerHandle, Full> {
        self.heap.try_reserve(1).map_err(|_| Full)?;
        let slot = self.take_slot()?;
        let at = self.heap.len();
        self.heap.push(Entry { due_ns, slot });
        let held = &mut self.slots[slot as usize];
        held.what = Some(what);
        held.at = at as u32;
        let generation = held.generation;
        self.rise(at);
        Ok(TimerHandle { slot, generation })
    }

    /// Gives an armed timer another deadline; false if it is not armed any more.
    pub fn set_due(&mut self, timer: TimerHandle, due_ns: u64) -> bool {
        let Some(slot) = self.slots.get(timer.slot as usize) else {
            return false;
        };
        if slot.generation != timer.generation || slot.what.is_none() {
            return false;
        }
        let at = slot.at as usize;
        self.heap[at].due_ns = due_ns;
        if !self.sink(at) {
            self.rise(at);
        }
        true
    }

    /// Disarms a timer and gives back what it was for; `None` if it is not armed any more.
    pub fn cancel(&mut self, timer: TimerHandle) -> Option<T> {
        let slot = self.slots.get(timer.slot as usize)?;
        if slot.generation != timer.generation || slot.what.is_none() {
            return None;
        }
        let at = slot.at as usize;
        self.remove(at)
    }

    /// Takes out the earliest timer that is due at `now_ns`.
    pub fn pop_due(&mut self, now_ns: u64) -> Option<(u64, T)> {
        let due_ns = self.next_due().filter(|due_ns| *due_ns <= now_ns)?;
        self.remove(0).map(|what| (due_ns, what))
    }

    fn take_slot(&mut self) -> Result<u32, Full> {
        if self.free != NO_SLOT {
            let slot = self.free;
            self.free = self.slots[slot as usize].at;
            return Ok(slot);
        }
        self.slots.try_reserve(1).map_err(|_| Full)?;
        let slot = u32::try_from(self.slots.len())
            .ok()
            .filter(|slot| *slot != NO_SLOT)
            .ok_or(Full)?;
        self.slots.push(Slot {
            generation: 0,
            at: NO_SLOT,
            what: None,
        });
        Ok(slot)
    }

    fn remove(&mut self, at: usize) -> Option<T> {
        let gone = self.heap.swap_remove(at);
        if at < self.heap.len() {
            self.settle(at);
            if !self.sink(at) {
                self.rise(at);
            }
        }
        let free = core::mem::replace(&mut self.free, gone.slot);
        let slot = &mut self.slots[gone.slot as usize];
        slot.generation = slot.generation.wrapping_add(1);
        slot.at = free;
        slot.what.take()
    }

    /// Tells the slot of entry `at` where that entry is now.
    fn settle(&mut self, at: usize) {
        let slot = self.heap[at].slot;
        self.slots[slot as usize].at = at as u32;
    }

    fn rise(&mut self, mut at: usize) {
        while at > 0 {
            let parent = (at - 1) / 2;
            if self.heap[parent].due_ns <= self.heap[at].due_ns {
                break;
            }
            self.swap(parent, at);
            at = parent;
        }
    }

    /// Moves an entry down to where it belongs; true if it moved.
    fn sink(&mut self, start: usize) -> bool {
        let mut at = start;
        loop {
            let left = 2 * at + 1;
            let Some(left_due) = self.heap.get(left).map(|e| e.due_ns) else {
                break;
            };
            let right = left + 1;
            let child = match self.heap.get(right) {
                Some(entry) if entry.due_ns < left_due => right,
                _ => left,
            };
            if self.heap[at].due_ns <= self.heap[child].due_ns {
                break;
            }
            self.swap(at, child);
            at = child;
        }
        at != start
    }

    fn swap(&mut self, one: usize, other: usize) {
        self.heap.swap(one, other);
        self.settle(one);
        self.settle(other);
    }

    /// Panics if anything that the crate's page promises is not so.
    pub fn audit(&self) {
        for (at, entry) in self.heap.iter().enumerate() {
            assert!(
                at == 0 || self.heap[(at - 1) / 2].due_ns <= entry.due_ns,
                "entry {at} is due before its parent"
            );
            let slot = &self.slots[entry.slot as usize];
            assert!(
                slot.what.is_some() && slot.at as usize == at,
                "slot {} lost its entry",
                entry.slot
            );
        }
        let mut free = 0;
        let mut next = self.free;
        while next != NO_SLOT {
            let slot = &self.slots[next as usize];
            assert!(slot.what.is_none(), "slot {next} is free and armed");
            free += 1;
            next = slot.at;
        }
        assert_eq!(free + self.heap.len(), self.slots.len(), "a slot is lost");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    extern crate std;

    #[test]
    fn timers_fire_in_order_of_their_deadlines_and_not_early() {
        let mut queue = TimerQueue::new();
        for due in [30, 10, 20] {
            queue.arm(due, due).unwrap();
        }
        assert_eq!(queue.pop_due(9), None);
        assert_eq!(queue.pop_due(25), Some((10, 10)));
        assert_eq!(queue.pop_due(25), Some((20, 20)));
        assert_eq!(queue.pop_due(25), None);
        assert_eq!(queue.next_due(), Some(30));
    }

    #[test]
    fn a_handle_is_dead_after_its_timer_fired_even_when_the_slot_lives_on() {
        let mut queue = TimerQueue::new();
        let first = queue.arm(1, 'a').unwrap();
        assert_eq!(queue.pop_due(1), Some((1, 'a')));
        let second = queue.arm(2, 'b').unwrap();
        assert_eq!(queue.cancel(first), None);
        assert_eq!(queue.cancel(second), Some('b'));
        assert_eq!(queue.cancel(second), None);
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_sorted_list(steps in prop::collection::vec((0_u8..4, 0_u64..50), 1..200)) {
            let mut queue = TimerQueue::new();
            let mut model: std::vec::Vec<(u64, u32, TimerHandle)> = std::vec::Vec::new();
            let mut next_id = 0;
            for (what, value) in steps {
                match what {
                    0 => {
                        model.push((value, next_id, queue.arm(value, next_id).unwrap()));
                        next_id += 1;
                    }
                    1 if !model.is_empty() => {
                        let (_, id, handle) = model.swap_remove(value as usize % model.len());
                        prop_assert_eq!(queue.cancel(handle), Some(id));
                        prop_assert!(!queue.set_due(handle, 0));
                    }
                    2 if !model.is_empty() => {
                        let at = value as usize % model.len();
                        model[at].0 = value / 2;
                        prop_assert!(queue.set_due(model[at].2, value / 2));
                    }
                    _ => {
                        let earliest = model.iter().map(|entry| entry.0).min().filter(|due| *due <= value);
                        let fired = queue.pop_due(value);
                        prop_assert_eq!(fired.map(|(due, _)| due), earliest);
                        if let Some((_, id)) = fired {
                            model.retain(|entry| entry.1 != id);
                        }
                    }
                }
                queue.audit();
                prop_assert_eq!(queue.len(), model.len());
            }
        }
    }
}
