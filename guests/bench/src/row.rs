//! One row of the table: an operation, timed 64 times.

use pv::{insn, println};

/// How many samples the median is taken of.
pub const SAMPLES: usize = 64;
/// Runs before the first sample: the first time, entries are not yet accessed, and pages not yet dirty.
const WARM_UP: usize = 4;

/// How often to do what is timed: for `for` loops.
pub fn rounds() -> impl Iterator<Item = usize> {
    0..WARM_UP + SAMPLES
}

/// One operation's samples.
pub struct Row {
    name: &'static str,
    /// A sample is this many operations.
    per: u64,
    samples: [u64; SAMPLES],
    taken: usize,
    wrong: Option<&'static str>,
}

impl Row {
    /// Opens a row for single operations.
    pub const fn new(name: &'static str) -> Self {
        Self::each(name, 1)
    }

    /// Opens a row in which a sample is `per` operations; the figure is for one.
    pub const fn each(name: &'static str, per: u64) -> Self {
        Self {
            name,
            per,
            samples: [0; SAMPLES],
            taken: 0,
            wrong: None,
        }
    }

    /// Times `act`.
    #[inline(always)]
    pub fn time<T>(&mut self, act: impl FnOnce() -> T) -> T {
        let before = insn::rdtsc();
        let result = act();
        let after = insn::rdtsc();
        self.note((after - before).saturating_sub(overhead()));
        result
    }

    /// Notes a time that somebody else took.
    pub fn note(&mut self, ticks: u64) {
        if let Some(sample) = self.taken.checked_sub(WARM_UP).and_then(|n| self.samples.get_mut(n)) {
            *sample = ticks;
        }
        self.taken += 1;
    }

    /// Judges the effect of what was timed.
    pub fn check(&mut self, what: &'static str, holds: bool) {
        if !holds && self.wrong.is_none() {
            self.wrong = Some(what);
        }
    }

    /// Says the median, or what went wrong.
    pub fn report(mut self) {
        self.check("too few samples", self.taken >= WARM_UP + SAMPLES);
        self.samples.sort_unstable();
        match self.wrong {
            None => println!("[bench] {}: {}", self.name, self.samples[SAMPLES / 2] / self.per),
            Some(why) => println!("[bench] {}: FAIL {why}", self.name),
        }
    }
}

/// What taking the time takes.
#[inline(always)]
fn overhead() -> u64 {
    let before = insn::rdtsc();
    let after = insn::rdtsc();
    after - before
}
