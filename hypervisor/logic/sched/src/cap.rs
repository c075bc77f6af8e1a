//! Caps: a domain gets no more than so many hundredths of a CPU, even if nobody else wants it.

/// Budgets are handed out once in this time.
const PERIOD_NS: u64 = 10_000_000;

/// What a domain has used of its cap.
#[derive(Clone, Copy, Debug, Default)]
pub struct CapMeter {
    /// Hundredths of a CPU; 0 for no cap.
    percent: u32,
    period_start_ns: u64,
    used_ns: u64,
}

impl CapMeter {
    /// No cap.
    pub const fn new() -> Self {
        CapMeter {
            percent: 0,
            period_start_ns: 0,
            used_ns: 0,
        }
    }

    /// The cap in hundredths of a CPU; 0 for none.
    pub const fn percent(&self) -> u32 {
        self.percent
    }

    /// Sets the cap.
    pub fn set_percent(&mut self, percent: u32) {
        *self = CapMeter {
            percent,
            ..CapMeter::new()
        };
    }

    const fn budget_ns(&self) -> u64 {
        PERIOD_NS / 100 * self.percent as u64
    }

    /// Counts time that some vcpu of the domain ran. `Some(when)`: the budget is used up until then.
    pub fn charge(&mut self, ran_ns: u64, now_ns: u64) -> Option<u64> {
        if self.percent == 0 {
            return None;
        }
        // It was used up to now, so budgets of periods that have just ended pay first.
        self.used_ns = self.used_ns.saturating_add(ran_ns);
        self.begin_period(now_ns);
        // What was overdrawn is taken from the next periods, too.
        let periods = self.used_ns / self.budget_ns().max(1);
        (periods > 0).then(|| self.period_start_ns.saturating_add(periods.saturating_mul(PERIOD_NS)))
    }

    /// How long one vcpu may run now before it must be looked at again.
    pub fn left_ns(&mut self, now_ns: u64) -> Option<u64> {
        if self.percent == 0 {
            return None;
        }
        self.begin_period(now_ns);
        Some(self.budget_ns().saturating_sub(self.used_ns).max(MIN_RUN_NS))
    }

    fn begin_period(&mut self, now_ns: u64) {
        let periods = now_ns.saturating_sub(self.period_start_ns) / PERIOD_NS;
        self.period_start_ns += periods * PERIOD_NS;
        self.used_ns = self.used_ns.saturating_sub(periods.saturating_mul(self.budget_ns()));
    }
}

/// Nobody is let run for less: switching would cost more than the cap saves.
const MIN_RUN_NS: u64 = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_cap_nobody_is_parked() {
        assert_eq!(CapMeter::new().charge(u64::MAX, 1), None);
    }

    #[test]
    fn a_capped_domain_gets_its_share_over_a_second() {
        for percent in [1, 25, 50, 150] {
            let mut cap = CapMeter::new();
            cap.set_percent(percent);
            let (mut now, mut ran) = (0_u64, 0_u64);
            while now < 1_000_000_000 {
                let run = cap.left_ns(now).unwrap().min(10_000_000);
                now += run;
                ran += run;
                if let Some(until) = cap.charge(run, now) {
                    now = now.max(until);
                }
            }
            let expected = u64::from(percent.min(100)) * 10_000_000;
            assert!(
                ran.abs_diff(expected) <= expected / 10,
                "{percent}%: {ran} ns of {expected}"
            );
        }
    }
}
