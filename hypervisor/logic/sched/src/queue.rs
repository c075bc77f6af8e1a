//! One CPU's queue.

use crate::unit::{NEUTRAL_NS, RunState, Times, Unit};
use crate::{RATE_LIMIT_NS, SLICE_NS, WAKE_CREDIT_NS};
use alloc::vec::Vec;

/// There is no memory for one more vcpu.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoMemory;

/// Names a vcpu within its home queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot(pub u32);

/// What waking a vcpu came to.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wake {
    /// It was awake.
    Already,
    /// It waits for its turn; nobody needs to be interrupted.
    Queued,
    /// The CPU should decide anew at once: it is idle, or what it runs matters less.
    Preempt,
}

/// How the running vcpu leaves the CPU, if it does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Goes {
    /// It would go on.
    Stays,
    /// It would go on, but lets any other go first.
    Yields,
    /// It waits for an event.
    Blocks,
    /// It was paused or switched off.
    Stops,
}

/// Who runs next, and until when at most.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Next {
    /// The vcpu; `None`: the CPU idles.
    pub slot: Option<Slot>,
    /// When to decide again at the latest; `None`: when something happens.
    pub until_ns: Option<u64>,
}

/// The vcpus at home on one CPU.
pub struct RunQueue<V> {
    units: Vec<Option<Unit<V>>>,
    ready: Vec<Slot>,
    running: Option<Slot>,
    /// The least virtual time of anybody who wants to run; never goes back.
    virtual_ns: u64,
    live: u32,
    /// For less than this difference of virtual time nobody is interrupted.
    rate_limit_ns: u64,
}

impl<V> Default for RunQueue<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V> RunQueue<V> {
    /// An empty queue.
    pub const fn new() -> Self {
        RunQueue {
            units: Vec::new(),
            ready: Vec::new(),
            running: None,
            virtual_ns: 0,
            live: 0,
            rate_limit_ns: RATE_LIMIT_NS,
        }
    }

    /// Sets the difference of virtual time for less than which nobody is interrupted.
    pub fn set_rate_limit(&mut self, ns: u64) {
        self.rate_limit_ns = ns;
    }

    /// Makes a vcpu at home here. It keeps its distance to the virtual time of the queue that it
    /// left (see [`Self::remove`]).
    #[expect(clippy::result_large_err, reason = "a refused vcpu goes back to where it came from")]
    pub fn insert(&mut self, mut unit: Unit<V>) -> Result<Slot, (NoMemory, Unit<V>)> {
        let free = self.units.iter().position(Option::is_none);
        let room = match free {
            Some(_) => Ok(()),
            None => self.units.try_reserve(1),
        };
        let room = room.and_then(|()| self.ready.try_reserve(self.live as usize + 1 - self.ready.len()));
        if room.is_err() {
            return Err((NoMemory, unit));
        }
        unit.virtual_ns = unit
            .virtual_ns
            .saturating_add(self.virtual_ns)
            .saturating_sub(NEUTRAL_NS);
        let is_ready = unit.times.state == RunState::Runnable;
        let slot = match free {
            Some(at) => {
                self.units[at] = Some(unit);
                Slot(at as u32)
            }
            None => {
                self.units.push(Some(unit));
                Slot(self.units.len() as u32 - 1)
            }
        };
        self.live += 1;
        if is_ready {
            self.ready.push(slot);
        }
        Ok(slot)
    }

    /// Takes out a vcpu that is not running.
    pub fn remove(&mut self, slot: Slot) -> Option<Unit<V>> {
        if self.running == Some(slot) {
            return None;
        }
        self.unready(slot);
        let mut unit = self.units.get_mut(slot.0 as usize)?.take()?;
        self.live -= 1;
        unit.virtual_ns = unit
            .virtual_ns
            .saturating_add(NEUTRAL_NS)
            .saturating_sub(self.virtual_ns);
        Some(unit)
    }

    /// A vcpu at home here.
    #[inline]
    pub fn unit(&self, slot: Slot) -> Option<&Unit<V>> {
        self.units.get(slot.0 as usize)?.as_ref()
    }

    /// A vcpu at home here. Its state is the queue's to change.
    #[inline]
    pub fn unit_mut(&mut self, slot: Slot) -> Option<&mut Unit<V>> {
        self.units.get_mut(slot.0 as usize)?.as_mut()
    }

    /// A vcpu's account of time.
    pub fn times(&self, slot: Slot) -> Option<Times> {
        self.unit(slot).map(|unit| unit.times)
    }

    /// The vcpu that runs.
    #[inline]
    pub fn running(&self) -> Option<Slot> {
        self.running
    }

    /// How many vcpus run or want to.
    #[inline]
    pub fn load(&self) -> usize {
        self.ready.len() + usize::from(self.running.is_some())
    }

    /// How many vcpus wait for their turn.
    #[inline]
    pub fn waiting(&self) -> usize {
        self.ready.len()
    }

    /// How many vcpus are at home here.
    pub fn live(&self) -> u32 {
        self.live
    }

    /// Makes a vcpu runnable.
    pub fn wake(&mut self, slot: Slot, now_ns: u64) -> Wake {
        let floor = self.virtual_ns.saturating_sub(WAKE_CREDIT_NS);
        let Some(unit) = self.unit_mut(slot) else {
            return Wake::Already;
        };
        if matches!(unit.times.state, RunState::Running | RunState::Runnable) {
            return Wake::Already;
        }
        unit.virtual_ns = unit.virtual_ns.max(floor);
        unit.times.enter(RunState::Runnable, now_ns);
        let (virtual_ns, parked) = (unit.virtual_ns, unit.parked_until_ns > now_ns);
        self.ready.push(slot);
        match self.running.and_then(|slot| self.unit(slot)) {
            None => Wake::Preempt,
            Some(running) if !parked && running.virtual_at(now_ns) > virtual_ns.saturating_add(self.rate_limit_ns) => {
                Wake::Preempt
            }
            // Whoever ran alone runs without a tick: now the CPU must start counting.
            Some(_) if self.ready.len() == 1 => Wake::Preempt,
            Some(_) => Wake::Queued,
        }
    }

    /// Makes a vcpu that is not running wait for something else than a CPU. True if it is running: then
    /// its CPU must decide anew.
    pub fn stop(&mut self, slot: Slot, now_ns: u64) -> bool {
        if self.running == Some(slot) {
            return true;
        }
        self.unready(slot);
        if let Some(unit) = self.unit_mut(slot)
            && unit.times.state == RunState::Runnable
        {
            unit.times.enter(RunState::Offline, now_ns);
        }
        false
    }

    /// Counts the time that the running vcpu ran since it was last counted.
    pub fn charge(&mut self, now_ns: u64) -> u64 {
        let Some(unit) = self.running.and_then(|slot| self.unit_mut(slot)) else {
            return 0;
        };
        unit.charge(now_ns)
    }

    /// Keeps a vcpu from running until then, because its cap is used up.
    pub fn park(&mut self, slot: Slot, until_ns: u64) {
        if let Some(unit) = self.unit_mut(slot) {
            unit.parked_until_ns = until_ns;
        }
    }

    /// Decides who runs next. `goes`: what the running vcpu wants.
    ///
    /// The caller has charged the running vcpu, and carries the answer out before it lets go of the queue's
    /// lock, as far as others can see.
    pub fn pick(&mut self, goes: Goes, now_ns: u64) -> Next {
        let before = self.running.take();
        if let Some(slot) = before {
            self.put_back(slot, goes, now_ns);
        }
        let chosen = self.choose(
            before.filter(|_| matches!(goes, Goes::Stays | Goes::Yields)),
            goes,
            now_ns,
        );
        if let Some(slot) = chosen {
            self.unready(slot);
            self.running = Some(slot);
            if let Some(unit) = self.unit_mut(slot)
                && unit.times.state != RunState::Running
            {
                unit.charged_ns = now_ns;
                unit.times.enter(RunState::Running, now_ns);
            }
        }
        if let Some(slot) = before.filter(|slot| chosen != Some(*slot))
            && let Some(unit) = self.unit_mut(slot)
            && unit.times.state == RunState::Running
        {
            unit.times.enter(RunState::Runnable, now_ns);
        }
        self.advance();
        let unparks = self
            .ready
            .iter()
            .filter_map(|slot| self.unit(*slot))
            .map(|unit| unit.parked_until_ns);
        let unparks = unparks.filter(|until| *until > now_ns).min();
        let contested = self.ready.iter().any(|slot| self.is_eligible(*slot, now_ns));
        let slice = (chosen.is_some() && contested).then_some(now_ns.saturating_add(SLICE_NS));
        let until_ns = match (slice, unparks) {
            (Some(slice), Some(unpark)) => Some(slice.min(unpark)),
            (one, other) => one.or(other),
        };
        Next { slot: chosen, until_ns }
    }

    /// A waiting vcpu that another CPU may take over: the one that would wait longest.
    pub fn spare(&self, now_ns: u64, may_go: impl Fn(&Unit<V>) -> bool) -> Option<Slot> {
        let candidates = self
            .ready
            .iter()
            .copied()
            .filter(|slot| self.is_eligible(*slot, now_ns) && self.unit(*slot).is_some_and(&may_go));
        candidates.max_by_key(|slot| self.unit(*slot).map_or(0, |unit| unit.virtual_ns))
    }

    fn put_back(&mut self, slot: Slot, goes: Goes, now_ns: u64) {
        let Some(unit) = self.unit_mut(slot) else { return };
        match goes {
            // Its state follows once it is known whether it is chosen again.
            Goes::Stays | Goes::Yields => self.ready.push(slot),
            Goes::Blocks => unit.times.enter(RunState::Blocked, now_ns),
            Goes::Stops => unit.times.enter(RunState::Offline, now_ns),
        }
    }

    fn is_eligible(&self, slot: Slot, now_ns: u64) -> bool {
        self.unit(slot).is_some_and(|unit| unit.parked_until_ns <= now_ns)
    }

    /// Chooses among the ready ones; `before` is the one that ran last, if it is among them.
    fn choose(&self, before: Option<Slot>, goes: Goes, now_ns: u64) -> Option<Slot> {
        let before = before.filter(|slot| self.is_eligible(*slot, now_ns));
        let Some(other) = self.best(now_ns, before) else {
            return before;
        };
        let Some(before) = before.filter(|_| goes != Goes::Yields) else {
            return Some(other);
        };
        // A change costs something, so a small difference is none.
        let virtual_ns = |slot: Slot| self.unit(slot).map_or(u64::MAX, |unit| unit.virtual_ns);
        let stays = virtual_ns(before) <= virtual_ns(other).saturating_add(self.rate_limit_ns);
        Some(if stays { before } else { other })
    }

    fn best(&self, now_ns: u64, except: Option<Slot>) -> Option<Slot> {
        let candidates = self.ready.iter().copied();
        let candidates = candidates.filter(|slot| Some(*slot) != except && self.is_eligible(*slot, now_ns));
        candidates.min_by_key(|slot| self.unit(*slot).map_or(u64::MAX, |unit| unit.virtual_ns))
    }

    fn unready(&mut self, slot: Slot) {
        if let Some(at) = self.ready.iter().position(|other| *other == slot) {
            self.ready.swap_remove(at);
        }
    }

    /// Lets the queue's virtual time follow the least of those who want to run.
    fn advance(&mut self) {
        let wanting = self.ready.iter().chain(self.running.as_ref());
        let least = wanting
            .filter_map(|slot| self.unit(*slot))
            .map(|unit| unit.virtual_ns)
            .min();
        if let Some(least) = least {
            self.virtual_ns = self.virtual_ns.max(least);
        }
    }

    /// Panics if anything that the crate's page promises is not so.
    pub fn audit(&self, now_ns: u64) {
        let mut live = 0;
        for (at, unit) in self.units.iter().enumerate() {
            let Some(unit) = unit else { continue };
            live += 1;
            let slot = Slot(at as u32);
            let listed = self.ready.iter().filter(|other| **other == slot).count();
            let (running, state) = (self.running == Some(slot), unit.times.state);
            assert_eq!(running, state == RunState::Running, "vcpu {at}: running and {state:?}");
            assert_eq!(
                listed,
                usize::from(state == RunState::Runnable),
                "vcpu {at}: listed {listed} times, {state:?}"
            );
            let total: u64 = unit.times.at(now_ns).spent_ns.iter().sum();
            assert_eq!(total, now_ns, "vcpu {at}: time was lost or won");
        }
        assert_eq!(live, self.live);
        assert!(self.ready.capacity() >= self.live as usize, "waking would need memory");
    }
}

impl<V> Unit<V> {
    /// Its virtual time, counting what it ran up to now.
    fn virtual_at(&self, now_ns: u64) -> u64 {
        self.virtual_ns
            .saturating_add(self.scaled(now_ns.saturating_sub(self.charged_ns)))
    }
}

#[cfg(test)]
mod tests;
