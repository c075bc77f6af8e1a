//! Dice that can be thrown the same way again, and that know what they showed.

/// Splitmix64, and a digest of everything drawn (FNV-1a).
pub struct Dice {
    state: u64,
    digest: u64,
}

impl Dice {
    /// Starts from `seed`.
    pub const fn new(seed: u64) -> Self {
        Self {
            state: seed,
            digest: 0xcbf2_9ce4_8422_2325,
        }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ self.state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Draws a number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        let drawn = self.next() % limit;
        self.digest = (self.digest ^ drawn).wrapping_mul(0x0100_0000_01b3);
        drawn
    }

    /// Draws whether something happens that does so once in `n` times.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Draws one of `choices`, which are not none.
    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// Returns the digest of everything drawn so far.
    pub const fn digest(&self) -> u64 {
        self.digest
    }
}
