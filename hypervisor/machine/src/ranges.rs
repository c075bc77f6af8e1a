//! Memory that is not shared out yet: a short list of ranges, cut from their ends.

/// At most this many separate ranges; what would not fit is lost, not doubled.
pub const CAPACITY: usize = 192;

/// A set of bytes as disjoint, sorted, non-empty ranges `[start, end)`.
#[derive(Clone)]
pub struct Ranges {
    list: [(u64, u64); CAPACITY],
    len: usize,
}

impl Default for Ranges {
    fn default() -> Self {
        Ranges::new()
    }
}

impl Ranges {
    /// Nothing.
    pub const fn new() -> Self {
        Ranges {
            list: [(0, 0); CAPACITY],
            len: 0,
        }
    }

    /// The ranges, in order.
    pub fn as_slice(&self) -> &[(u64, u64)] {
        &self.list[..self.len]
    }

    /// Adds a range. Answers whether there was room for it.
    pub fn add(&mut self, start: u64, end: u64) -> bool {
        let (mut start, mut end) = (start, end);
        if start >= end {
            return true;
        }
        let mut at = 0;
        while at < self.len {
            let (s, e) = self.list[at];
            if s <= end && start <= e {
                (start, end) = (start.min(s), end.max(e));
                self.drop_at(at);
            } else {
                at += 1;
            }
        }
        let place = self.as_slice().partition_point(|&(s, _)| s < start);
        self.insert_at(place, (start, end))
    }

    /// Takes a range out, whatever of it is in.
    pub fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let mut at = 0;
        while at < self.len {
            let (s, e) = self.list[at];
            if e <= start || end <= s {
                at += 1;
                continue;
            }
            self.drop_at(at);
            if s < start && self.insert_at(at, (s, start)) {
                at += 1;
            }
            if end < e && self.insert_at(at, (end, e)) {
                at += 1;
            }
        }
    }

    /// Takes `bytes` from the top of the highest range that has them below `limit`.
    ///
    /// The answer is a multiple of `align`, which is a power of two.
    pub fn take(&mut self, bytes: u64, align: u64, limit: u64) -> Option<u64> {
        let start = self.as_slice().iter().rev().find_map(|&(s, e)| {
            let top = e.min(limit).checked_sub(bytes)? & !(align - 1);
            (top >= s).then_some(top)
        })?;
        self.remove(start, start + bytes);
        Some(start)
    }

    /// Shrinks every range to whole units of `align`.
    pub fn align_inwards(&mut self, align: u64) {
        let before = self.clone();
        self.len = 0;
        for &(s, e) in before.as_slice() {
            if let Some(up) = s.checked_add(align - 1) {
                self.add(up & !(align - 1), e & !(align - 1));
            }
        }
    }

    fn drop_at(&mut self, at: usize) {
        self.list.copy_within(at + 1..self.len, at);
        self.len -= 1;
    }

    fn insert_at(&mut self, at: usize, range: (u64, u64)) -> bool {
        if self.len == CAPACITY {
            return false;
        }
        self.list.copy_within(at..self.len, at + 1);
        self.list[at] = range;
        self.len += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ranges: &[(u64, u64)]) -> Ranges {
        let mut all = Ranges::new();
        for &(s, e) in ranges {
            assert!(all.add(s, e));
        }
        all
    }

    #[test]
    fn neighbours_become_one_range() {
        assert_eq!(of(&[(0, 10), (20, 30), (10, 20)]).as_slice(), [(0, 30)]);
    }

    #[test]
    fn removing_the_middle_leaves_two_ends() {
        let mut r = of(&[(0, 100), (200, 300)]);
        r.remove(50, 250);
        assert_eq!(r.as_slice(), [(0, 50), (250, 300)]);
        r.remove(10, 20);
        assert_eq!(r.as_slice(), [(0, 10), (20, 50), (250, 300)]);
    }

    #[test]
    fn taking_goes_for_the_highest_that_fits_below_the_limit() {
        let mut r = of(&[(0x1000, 0x9000), (0x10000, 0x20000)]);
        assert_eq!(r.take(0x2000, 0x1000, u64::MAX), Some(0x1e000));
        assert_eq!(r.take(0x2000, 0x4000, 0x9800), Some(0x4000));
        assert_eq!(r.as_slice(), [(0x1000, 0x4000), (0x6000, 0x9000), (0x10000, 0x1e000)]);
        assert_eq!(r.take(0x40000, 0x1000, u64::MAX), None);
    }

    #[test]
    fn ends_that_are_no_whole_page_are_left_out() {
        let mut r = of(&[(0x1, 0x2fff), (0x3001, 0x3fff)]);
        r.align_inwards(0x1000);
        assert_eq!(r.as_slice(), [(0x1000, 0x2000)]);
    }
}
