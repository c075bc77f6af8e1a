//! One vcpu's account.

use crate::{CpuMask, DEFAULT_WEIGHT};

/// What a vcpu is doing (`RUNSTATE_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum RunState {
    /// It has a CPU.
    Running = 0,
    /// It waits for a CPU.
    Runnable = 1,
    /// It waits for an event.
    Blocked = 2,
    /// Neither: paused, or switched off.
    Offline = 3,
}

/// How long a vcpu has been in each state, in ns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Times {
    /// Its state now.
    pub state: RunState,
    /// Since when.
    pub since_ns: u64,
    /// Time spent in each [`RunState`] before that.
    pub spent_ns: [u64; 4],
}

impl Times {
    /// Changes state.
    #[inline]
    pub(crate) fn enter(&mut self, state: RunState, now_ns: u64) {
        let passed = now_ns.saturating_sub(self.since_ns);
        self.spent_ns[self.state as usize] += passed;
        self.since_ns = self.since_ns.max(now_ns);
        self.state = state;
    }

    /// The account as it stands at `now_ns`, the current state included.
    #[must_use]
    pub fn at(mut self, now_ns: u64) -> Times {
        let since = self.since_ns;
        self.enter(self.state, now_ns);
        self.since_ns = since;
        self
    }
}

/// Virtual time between queues, of a vcpu that is neither behind nor ahead of its queue: large, so that
/// one that is behind does not go below nought.
pub(crate) const NEUTRAL_NS: u64 = 1 << 40;

/// A vcpu as the scheduler sees it.
#[derive(Clone, Debug)]
pub struct Unit<V> {
    /// Which one.
    pub who: V,
    /// Its account of time.
    pub times: Times,
    /// CPUs on which it may run.
    pub hard: CpuMask,
    /// CPUs on which it would rather run.
    pub soft: CpuMask,
    pub(crate) weight: u32,
    /// Its virtual time.
    pub(crate) virtual_ns: u64,
    /// When its running time was last added to its virtual time.
    pub(crate) charged_ns: u64,
    /// It has used up its cap until then.
    pub(crate) parked_until_ns: u64,
}

impl<V> Unit<V> {
    /// One that is not running yet.
    pub fn new(who: V, now_ns: u64) -> Self {
        Unit {
            who,
            times: Times {
                state: RunState::Offline,
                since_ns: now_ns,
                spent_ns: [0; 4],
            },
            hard: CpuMask::ALL,
            soft: CpuMask::ALL,
            weight: DEFAULT_WEIGHT,
            virtual_ns: NEUTRAL_NS,
            charged_ns: now_ns,
            parked_until_ns: 0,
        }
    }

    /// Gives it a share relative to others' weights.
    pub fn set_weight(&mut self, weight: u32) {
        self.weight = weight.max(1);
    }

    /// Adds the time it ran to its virtual time; answers how long that was.
    pub(crate) fn charge(&mut self, now_ns: u64) -> u64 {
        let ran = now_ns.saturating_sub(self.charged_ns);
        self.charged_ns = self.charged_ns.max(now_ns);
        self.virtual_ns = self.virtual_ns.saturating_add(self.scaled(ran));
        ran
    }

    /// How far its virtual time advances while it runs for so long.
    #[inline]
    pub(crate) fn scaled(&self, ran_ns: u64) -> u64 {
        if self.weight == DEFAULT_WEIGHT {
            return ran_ns;
        }
        (u128::from(ran_ns) * u128::from(DEFAULT_WEIGHT) / u128::from(self.weight)) as u64
    }
}
