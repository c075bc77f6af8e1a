//! Sets of CPUs.

use ferroxen_words::CpuId;

/// A set of CPUs (up to 256).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuMask {
    words: [u64; 4],
}

impl CpuMask {
    /// Every CPU there can be.
    pub const ALL: CpuMask = CpuMask { words: [!0; 4] };
    /// None.
    pub const NONE: CpuMask = CpuMask { words: [0; 4] };

    /// Just one.
    pub fn of(cpu: CpuId) -> Self {
        let mut mask = CpuMask::NONE;
        mask.insert(cpu);
        mask
    }

    /// From the words of a bitmap.
    pub const fn from_words(words: [u64; 4]) -> Self {
        CpuMask { words }
    }

    /// The words of a bitmap.
    pub const fn words(self) -> [u64; 4] {
        self.words
    }

    /// Whether the CPU is in.
    #[inline]
    pub fn contains(&self, cpu: CpuId) -> bool {
        self.words
            .get(cpu.0 as usize / 64)
            .is_some_and(|word| word >> (cpu.0 % 64) & 1 != 0)
    }

    /// Adds a CPU; a number that no CPU can have is ignored.
    pub fn insert(&mut self, cpu: CpuId) {
        if let Some(word) = self.words.get_mut(cpu.0 as usize / 64) {
            *word |= 1 << (cpu.0 % 64);
        }
    }

    /// Takes a CPU out.
    pub fn remove(&mut self, cpu: CpuId) {
        if let Some(word) = self.words.get_mut(cpu.0 as usize / 64) {
            *word &= !(1 << (cpu.0 % 64));
        }
    }

    /// What is in both.
    #[must_use]
    pub fn and(self, other: CpuMask) -> CpuMask {
        let mut words = self.words;
        for (word, theirs) in words.iter_mut().zip(other.words) {
            *word &= theirs;
        }
        CpuMask { words }
    }

    /// Whether no CPU is in.
    pub fn is_empty(&self) -> bool {
        self.words == [0; 4]
    }

    /// How many are in.
    pub fn count(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// The first, if any.
    pub fn first(&self) -> Option<CpuId> {
        self.iter().next()
    }

    /// Those that are in, in order.
    pub fn iter(&self) -> impl Iterator<Item = CpuId> + use<> {
        self.words.into_iter().enumerate().flat_map(|(at, word)| {
            core::iter::successors((word != 0).then_some(word), |rest| {
                let rest = rest & (rest - 1);
                (rest != 0).then_some(rest)
            })
            .map(move |rest| CpuId(at as u32 * 64 + rest.trailing_zeros()))
        })
    }
}
