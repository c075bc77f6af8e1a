//! A domain's time with us: credit that fills up steadily and is spent by requests.

use super::limits::Limits;
use std::time::Duration;

/// Credit of one domain, in millionths of a request. It may be overdrawn by one request, never by more.
#[derive(Clone, Debug)]
pub struct Budget {
    credit: i64,
    as_of: Duration,
}

const REQUEST: i64 = 1_000_000;

impl Budget {
    /// A full budget.
    pub fn full(limits: &Limits, now: Duration) -> Budget {
        Budget {
            credit: i64::from(limits.ops_burst) * REQUEST,
            as_of: now,
        }
    }

    /// Fills up until `now`. `Err` says when there is credit again.
    pub fn check(&mut self, limits: &Limits, now: Duration) -> Result<(), Duration> {
        let rate = i64::from(limits.ops_per_second);
        if rate == 0 {
            return Ok(());
        }
        let elapsed = i64::try_from(now.saturating_sub(self.as_of).as_micros()).unwrap_or(i64::MAX);
        let full = i64::from(limits.ops_burst.max(1)) * REQUEST;
        self.credit = self.credit.saturating_add(elapsed.saturating_mul(rate)).min(full);
        self.as_of = self.as_of.max(now);
        if self.credit > 0 {
            return Ok(());
        }
        let missing = (1 - self.credit).unsigned_abs();
        Err(now + Duration::from_micros(missing.div_ceil(rate.unsigned_abs())))
    }

    /// Pays for a request: for itself, for its bytes, and for everybody who must be told of it.
    pub fn spend(&mut self, payload: usize, events: usize) {
        let extra = payload
            .saturating_mul(1000)
            .saturating_add(events.saturating_mul(250_000));
        self.credit = self
            .credit
            .saturating_sub(REQUEST)
            .saturating_sub(i64::try_from(extra).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_then_the_rate_holds() {
        let limits = Limits {
            ops_per_second: 100,
            ops_burst: 10,
            ..Limits::default()
        };
        let mut budget = Budget::full(&limits, Duration::ZERO);
        for _ in 0..10 {
            budget.check(&limits, Duration::ZERO).unwrap();
            budget.spend(0, 0);
        }
        let again = budget.check(&limits, Duration::ZERO).unwrap_err();
        assert!(again <= Duration::from_micros(10));
        budget.check(&limits, again).unwrap();
        budget.spend(0, 0);
        let mut now = again;
        let mut done = 0;
        while now < Duration::from_secs(1) {
            match budget.check(&limits, now) {
                Ok(()) => (done, _) = (done + 1, budget.spend(0, 0)),
                Err(when) => now = when,
            }
        }
        assert!((99..=101).contains(&done), "{done}");
    }

    #[test]
    fn no_more_is_saved_up_than_a_burst() {
        let limits = Limits {
            ops_per_second: 100,
            ops_burst: 10,
            ..Limits::default()
        };
        let (mut budget, late) = (Budget::full(&limits, Duration::ZERO), Duration::from_secs(1000));
        let mut done = 0;
        while budget.check(&limits, late).is_ok() && done < 1000 {
            budget.spend(0, 0);
            done += 1;
        }
        assert_eq!(done, 10);
    }

    #[test]
    fn time_that_jumps_back_gives_nothing() {
        let limits = Limits {
            ops_per_second: 1,
            ops_burst: 1,
            ..Limits::default()
        };
        let mut budget = Budget::full(&limits, Duration::from_secs(10));
        budget.spend(0, 0);
        assert!(budget.check(&limits, Duration::from_secs(5)).is_err());
        assert!(budget.check(&limits, Duration::from_secs(11)).is_ok());
    }
}
