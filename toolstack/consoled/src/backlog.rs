//! What a guest has printed and nobody has read yet.
//!
//! Bytes are counted from the guest's first one. Each reader has a place in that count; what all readers have
//! passed is forgotten. A new reader starts at the first byte that no reader has seen yet.
//!
//! Always true ([`Backlog::audit`]): a reader's place is within what is kept, and no more is kept than the limit.

use std::collections::{BTreeMap, VecDeque};

/// Bytes that an empty backlog may keep allocated.
const SMALL: usize = 16 << 10;

/// Names a reader of one console.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ReaderId(u64);

/// The bytes between the guest and its readers.
#[derive(Debug)]
pub struct Backlog {
    kept: VecDeque<u8>,
    /// The number of the first byte that is kept.
    start: u64,
    /// The number of the first byte that no reader has seen.
    unseen: u64,
    limit: usize,
    readers: BTreeMap<ReaderId, u64>,
    next_reader: u64,
    /// Bytes that were dropped because nobody read them.
    pub dropped: u64,
}

impl Backlog {
    /// Nothing yet, and at most `limit` bytes ever.
    pub fn new(limit: usize) -> Backlog {
        let (kept, readers) = (VecDeque::new(), BTreeMap::new());
        Backlog {
            kept,
            start: 0,
            unseen: 0,
            limit: limit.max(1),
            readers,
            next_reader: 0,
            dropped: 0,
        }
    }

    /// Lets a reader in.
    pub fn add_reader(&mut self) -> ReaderId {
        let id = ReaderId(self.next_reader);
        self.next_reader += 1;
        self.readers.insert(id, self.unseen);
        id
    }

    /// A reader leaves.
    pub fn remove_reader(&mut self, id: ReaderId) {
        self.readers.remove(&id);
        self.forget_read();
    }

    /// Whether anybody reads.
    pub fn has_readers(&self) -> bool {
        !self.readers.is_empty()
    }

    /// How many bytes may be taken from the guest now.
    pub fn room(&self) -> usize {
        if self.has_readers() {
            self.limit.saturating_sub(self.kept.len())
        } else {
            self.limit
        }
    }

    /// Takes bytes in; at most [`room`](Self::room).
    pub fn push(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len() <= self.room());
        self.kept.extend(bytes);
        let excess = self.kept.len().saturating_sub(self.limit);
        if excess > 0 {
            self.kept.drain(..excess);
            self.start += excess as u64;
            self.dropped += self.start.saturating_sub(self.unseen);
            self.unseen = self.unseen.max(self.start);
        }
    }

    /// What a reader has before it, as far as it lies in one piece.
    pub fn ahead_of(&self, id: ReaderId) -> &[u8] {
        let Some(place) = self.readers.get(&id) else { return &[] };
        let offset = usize::try_from(place.saturating_sub(self.start)).unwrap_or(usize::MAX);
        let (first, second) = self.kept.as_slices();
        first
            .get(offset..)
            .filter(|rest| !rest.is_empty())
            .unwrap_or_else(|| second.get(offset.saturating_sub(first.len())..).unwrap_or(&[]))
    }

    /// A reader has taken so many bytes.
    pub fn advance(&mut self, id: ReaderId, count: usize) {
        let end = self.start + self.kept.len() as u64;
        if let Some(place) = self.readers.get_mut(&id) {
            *place = (*place + count as u64).min(end);
            self.unseen = self.unseen.max(*place);
        }
        self.forget_read();
    }

    /// Whether a reader has taken all there is.
    pub fn is_drained(&self, id: ReaderId) -> bool {
        self.ahead_of(id).is_empty()
    }

    /// Forgets what every reader has passed.
    fn forget_read(&mut self) {
        let slowest = self.readers.values().copied().min().unwrap_or(self.unseen);
        let passed = usize::try_from(slowest.saturating_sub(self.start))
            .unwrap_or(usize::MAX)
            .min(self.kept.len());
        self.kept.drain(..passed);
        self.start += passed as u64;
        // A burst that has been read should not keep its memory.
        if self.kept.capacity() > SMALL && self.kept.len() < SMALL {
            self.kept.shrink_to(SMALL);
        }
    }

    /// Checks what must always be true.
    pub fn audit(&self) -> Result<(), String> {
        let end = self.start + self.kept.len() as u64;
        if self.kept.len() > self.limit {
            return Err(format!(
                "{} bytes are kept, and {} is the limit",
                self.kept.len(),
                self.limit
            ));
        }
        let places = self.readers.values().chain([&self.unseen]);
        match places.into_iter().find(|place| !(self.start..=end).contains(place)) {
            Some(place) => Err(format!("a reader is at {place}, and {}..{end} is kept", self.start)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn take(backlog: &mut Backlog, id: ReaderId) -> Vec<u8> {
        let mut out = vec![];
        while !backlog.is_drained(id) {
            let piece = backlog.ahead_of(id).to_vec();
            backlog.advance(id, piece.len());
            out.extend(piece);
        }
        out
    }

    #[test]
    fn the_first_reader_sees_the_first_line_and_the_next_goes_on_from_there() {
        let mut backlog = Backlog::new(100);
        backlog.push(b"boot ");
        let first = backlog.add_reader();
        assert_eq!(take(&mut backlog, first), b"boot ");
        backlog.remove_reader(first);
        backlog.push(b"more");
        let second = backlog.add_reader();
        assert_eq!(take(&mut backlog, second), b"more");
    }

    #[test]
    fn without_a_reader_the_oldest_bytes_go() {
        let mut backlog = Backlog::new(4);
        backlog.push(b"abc");
        backlog.push(b"def");
        assert_eq!(backlog.dropped, 2);
        let reader = backlog.add_reader();
        assert_eq!(take(&mut backlog, reader), b"cdef");
    }

    #[test]
    fn two_readers_both_see_everything() {
        let mut backlog = Backlog::new(10);
        let (fast, slow) = (backlog.add_reader(), backlog.add_reader());
        backlog.push(b"12345");
        assert_eq!(take(&mut backlog, fast), b"12345");
        backlog.push(b"67890");
        assert_eq!(backlog.room(), 0);
        assert_eq!(take(&mut backlog, fast), b"67890");
        assert_eq!(take(&mut backlog, slow), b"1234567890");
        assert_eq!(backlog.room(), 10);
    }

    proptest! {
        #[test]
        fn an_attached_reader_loses_nothing(steps in prop::collection::vec((0u8..4, 1usize..20), 1..100)) {
            let mut backlog = Backlog::new(16);
            let reader = backlog.add_reader();
            let (mut others, mut printed, mut seen) = (vec![], vec![], vec![]);
            for (what, amount) in steps {
                match what {
                    0 => {
                        let count = amount.min(backlog.room());
                        let bytes: Vec<u8> = (0..count).map(|i| (printed.len() + i) as u8).collect();
                        backlog.push(&bytes);
                        printed.extend(bytes);
                    }
                    1 => {
                        let piece = backlog.ahead_of(reader);
                        let piece = piece[..amount.min(piece.len())].to_vec();
                        backlog.advance(reader, piece.len());
                        seen.extend(piece);
                    }
                    2 => others.push(backlog.add_reader()),
                    _ => if let Some(other) = others.pop() {
                        backlog.advance(other, amount);
                        backlog.remove_reader(other);
                    },
                }
                prop_assert!(backlog.audit().is_ok(), "{:?}", backlog.audit());
            }
            seen.extend(take(&mut backlog, reader));
            prop_assert_eq!(seen, printed);
            prop_assert_eq!(backlog.dropped, 0);
        }
    }
}
