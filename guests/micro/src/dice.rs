//! Random arguments of the kinds that hypercalls take.

/// Xorshift: the same seed makes the same storm.
pub struct Dice(u64);

impl Dice {
    /// Starts from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Something small, `DOMID_SELF`, a pointer near `near`, an edge, or anything.
    pub fn argument(&mut self, near: u64) -> u64 {
        const SELF: u64 = 0x7ff0;
        const EDGES: [u64; 6] = [0, u64::MAX, 1 << 47, 0xffff_8000_0000_0000, 0xffff_ffff, 1 << 63];
        match self.below(8) {
            0..=2 => self.below(40),
            3 => SELF,
            4 | 5 => near.wrapping_add(self.below(64) * 8),
            6 => EDGES.get(self.below(6) as usize).copied().unwrap_or(0),
            _ => self.next(),
        }
    }
}
