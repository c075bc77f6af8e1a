//! From ticks to nanoseconds and back, by exactly the formula that guests use.
//!
//! `vcpu_time_info` tells a guest to shift the tick count, multiply by a 32-bit fraction and drop 32 bits. We read
//! our own clock by the same steps, so that a guest and the hypervisor never disagree about "now" by even one tick.

/// Nanoseconds in a second.
pub const SECOND: u64 = 1_000_000_000;

/// A ratio as `tsc_to_system_mul` and `tsc_shift` express it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimeScale {
    /// The fraction, in units of 2^-32.
    pub mul_frac: u32,
    /// Left shift before multiplying; right shift if negative.
    pub shift: i8,
}

impl TimeScale {
    /// One to one.
    pub const UNITY: TimeScale = TimeScale {
        mul_frac: 1 << 31,
        shift: 1,
    };

    /// The scale that turns ticks of a clock with so many `hz` into nanoseconds.
    ///
    /// `None` for a frequency of nought or beyond 2^40 Hz: no clock that anybody has.
    pub const fn to_nanoseconds(hz: u64) -> Option<TimeScale> {
        TimeScale::of_ratio(SECOND, hz)
    }

    /// The scale that turns nanoseconds into ticks.
    pub const fn from_nanoseconds(hz: u64) -> Option<TimeScale> {
        TimeScale::of_ratio(hz, SECOND)
    }

    /// The greatest scale not above `numerator / denominator` that 32 significant bits can express.
    const fn of_ratio(numerator: u64, denominator: u64) -> Option<TimeScale> {
        if numerator == 0 || denominator == 0 || numerator >> 40 != 0 || denominator >> 40 != 0 {
            return None;
        }
        // Wanted: 2^31 <= mul_frac < 2^32 where mul_frac = numerator * 2^(32 - shift) / denominator.
        let mut shift: i8 = -40;
        loop {
            let mul_frac = ((numerator as u128) << (32 - shift)) / denominator as u128;
            if mul_frac < 1 << 32 {
                return Some(TimeScale {
                    mul_frac: mul_frac as u32,
                    shift,
                });
            }
            shift += 1;
        }
    }

    /// Applies the scale, rounding down, as `pvclock` does.
    #[inline]
    pub const fn apply(self, ticks: u64) -> u64 {
        let shifted = if self.shift < 0 {
            (ticks >> self.shift.unsigned_abs()) as u128
        } else {
            (ticks as u128) << self.shift
        };
        ((shifted * self.mul_frac as u128) >> 32) as u64
    }
}

/// No HPET may tick slower than this (HPET specification: 100 ns, in femtoseconds).
const SLOWEST_PERIOD: u32 = 100_000_000;
/// Faster than this is a broken register, not a clock (1 GHz).
const FASTEST_PERIOD: u32 = 1_000_000;

/// The frequency of a clock with a period of so many femtoseconds, if any HPET may have it.
pub fn hz_from_period(femtoseconds: u32) -> Option<u64> {
    let plausible = FASTEST_PERIOD..=SLOWEST_PERIOD;
    plausible
        .contains(&femtoseconds)
        .then(|| 1_000_000_000_000_000 / u64::from(femtoseconds))
}

/// Works out a frequency from two clocks that ran side by side.
///
/// `counted` ticks of the unknown clock passed in `reference` ticks of one with `reference_hz`.
pub const fn frequency(counted: u64, reference: u64, reference_hz: u64) -> Option<u64> {
    if reference == 0 {
        return None;
    }
    let hz = counted as u128 * reference_hz as u128 / reference as u128;
    if hz >> 64 == 0 { Some(hz as u64) } else { None }
}

/// How far a counter of limited width went, when `rough` says about how far that must be.
///
/// The counter may have wrapped several times; the answer is the possible distance nearest to `rough`.
pub const fn unwrapped(before: u32, after: u32, mask: u32, rough: u64) -> u64 {
    let modulus = mask as u64 + 1;
    let partial = (after.wrapping_sub(before) & mask) as u64;
    if rough <= partial {
        return partial;
    }
    let missing = rough - partial;
    partial + (missing + modulus / 2) / modulus * modulus
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a guest's `pvclock_scale_delta` computes.
    fn guest_side(mut delta: u64, scale: TimeScale) -> u64 {
        if scale.shift < 0 {
            delta >>= -scale.shift;
        } else {
            delta <<= scale.shift;
        }
        ((u128::from(delta) * u128::from(scale.mul_frac)) >> 32) as u64
    }

    #[test]
    fn common_frequencies_scale_to_within_a_part_in_two_thousand_million() {
        for hz in [
            1_000_000,
            100_000_000,
            999_999_999,
            1_000_000_000,
            1_000_000_001,
            2_399_987_654,
            5_000_000_000,
        ] {
            let scale = TimeScale::to_nanoseconds(hz).unwrap();
            assert!(scale.mul_frac >= 1 << 31, "{hz}: {scale:?} wastes bits");
            let ten_seconds = scale.apply(hz * 10);
            assert!(
                (10 * SECOND - 10..=10 * SECOND).contains(&ten_seconds),
                "{hz}: {ten_seconds}"
            );
        }
    }

    #[test]
    fn the_host_reads_what_its_guests_read() {
        for hz in [1_000_000_000, 2_199_998_765, 333_333_333] {
            let scale = TimeScale::to_nanoseconds(hz).unwrap();
            for ticks in [0, 1, 12_345, hz, hz * 86_400 * 30] {
                assert_eq!(scale.apply(ticks), guest_side(ticks, scale));
            }
        }
    }

    #[test]
    fn the_way_back_comes_out_just_short_never_beyond() {
        let (there, back) = (
            TimeScale::to_nanoseconds(2_712_345_678).unwrap(),
            TimeScale::from_nanoseconds(2_712_345_678).unwrap(),
        );
        for ns in [1, 1_000, 999_999_999, 100 * SECOND] {
            let again = there.apply(back.apply(ns));
            assert!(again <= ns && ns - again <= 1 + ns / (1 << 30), "{ns} became {again}");
        }
    }

    #[test]
    fn nonsense_frequencies_have_no_scale() {
        assert_eq!(TimeScale::to_nanoseconds(0), None);
        assert_eq!(TimeScale::to_nanoseconds(u64::MAX), None);
        assert_eq!(TimeScale::UNITY.apply(77), 77);
    }

    #[test]
    fn a_wrapped_counter_is_unwrapped_by_a_rough_guess() {
        let mask = 0x00ff_ffff;
        assert_eq!(unwrapped(10, 30, mask, 19), 20);
        assert_eq!(unwrapped(10, 5, mask, 0x00ff_fff0), 0x00ff_fffb);
        let far = 3 * (u64::from(mask) + 1) + 20;
        assert_eq!(unwrapped(10, 30, mask, far - 5_000), far);
        assert_eq!(unwrapped(10, 30, mask, far + 5_000), far);
        assert_eq!(unwrapped(10, 8, u32::MAX, 100), u64::from(u32::MAX) - 1);
    }

    #[test]
    fn a_frequency_follows_from_two_counts() {
        assert_eq!(frequency(24_000_000, 100_000, 10_000_000), Some(2_400_000_000));
        assert_eq!(frequency(1, 0, 1), None);
        assert_eq!(frequency(u64::MAX, 1, u64::MAX), None);
    }

    #[test]
    fn a_period_outside_the_specification_is_no_clock() {
        assert_eq!(hz_from_period(10_000_000), Some(100_000_000));
        assert_eq!(hz_from_period(69_841_279), Some(14_318_179));
        assert_eq!(hz_from_period(0), None);
        assert_eq!(hz_from_period(100_000_001), None);
    }
}
