//! Turns what a CMOS clock shows into seconds since 1970.

const HOURS_24: u8 = 0x02;
const BINARY: u8 = 0x04;

/// What the chip shows, as it shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Registers {
    /// Register 0.
    pub second: u8,
    /// Register 2.
    pub minute: u8,
    /// Register 4; the top bit means afternoon on a 12-hour clock.
    pub hour: u8,
    /// Register 7, from 1.
    pub day: u8,
    /// Register 8, from 1.
    pub month: u8,
    /// Register 9, two digits.
    pub year: u8,
    /// Where the FADT says, if it does.
    pub century: Option<u8>,
    /// Register 0x0b: whether the numbers are binary, and of 24 hours.
    pub status_b: u8,
}

/// Turns the registers into seconds since 1970. `None` if they show none (a dead battery, no chip).
pub fn seconds(shown: &Registers) -> Option<u64> {
    let plain = |value: u8| {
        if shown.status_b & BINARY != 0 {
            Some(value)
        } else {
            let (tens, ones) = (value >> 4, value & 0xf);
            (tens <= 9 && ones <= 9).then(|| tens * 10 + ones)
        }
    };
    let afternoon = shown.hour & 0x80 != 0;
    let hour = if shown.status_b & HOURS_24 != 0 {
        plain(shown.hour)?
    } else {
        let twelve = plain(shown.hour & 0x7f)?;
        twelve % 12 + if afternoon { 12 } else { 0 }
    };
    let (second, minute) = (plain(shown.second)?, plain(shown.minute)?);
    let (day, month, short) = (plain(shown.day)?, plain(shown.month)?, plain(shown.year)?);
    let century = shown.century.and_then(plain).filter(|c| (19..=21).contains(c));
    let year = match century {
        Some(century) => u64::from(century) * 100 + u64::from(short),
        None => u64::from(short) + if short < 70 { 2000 } else { 1900 },
    };
    let in_range = second <= 59 && minute <= 59 && hour <= 23 && (1..=31).contains(&day) && (1..=12).contains(&month);
    let days = days_since_1970(year, u64::from(month), u64::from(day))?;
    in_range.then(|| ((days * 24 + u64::from(hour)) * 60 + u64::from(minute)) * 60 + u64::from(second))
}

/// Days from 1 January 1970 to the given date of the Gregorian calendar.
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    // Years that begin in March put the leap day last, so a month's start is a linear formula.
    let year = if month <= 2 { year.checked_sub(1)? } else { year };
    let from_march = (month + 9) % 12;
    let day_of_year = (153 * from_march + 2) / 5 + day.checked_sub(1)?;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + day_of_year;
    days.checked_sub(719_468)
}

/// A moment as people write it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Date {
    /// Year of the Gregorian calendar.
    pub year: u64,
    /// From 1.
    pub month: u64,
    /// From 1.
    pub day: u64,
    /// Seconds since midnight.
    pub second: u64,
}

impl Date {
    /// The moment so many seconds after 1970 began.
    pub fn from_seconds(seconds: u64) -> Date {
        const DAYS_IN_400_YEARS: u64 = 146_097;
        let days = seconds / 86_400 + 719_468;
        let day_of_era = days % DAYS_IN_400_YEARS;
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * day_of_year + 2) / 153;
        let month = (from_march + 2) % 12 + 1;
        Date {
            year: days / DAYS_IN_400_YEARS * 400 + year_of_era + u64::from(month <= 2),
            month,
            day: day_of_year - (153 * from_march + 2) / 5 + 1,
            second: seconds % 86_400,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BCD_24: Registers = Registers {
        second: 0x56,
        minute: 0x34,
        hour: 0x12,
        day: 0x29,
        month: 0x02,
        year: 0x24,
        century: Some(0x20),
        status_b: HOURS_24,
    };

    #[test]
    fn a_leap_day_in_bcd_is_read_right() {
        assert_eq!(seconds(&BCD_24), Some(1_709_210_096));
    }

    #[test]
    fn noon_and_midnight_on_a_twelve_hour_clock() {
        let noon = Registers {
            hour: 0x92,
            minute: 0,
            second: 0,
            status_b: 0,
            ..BCD_24
        };
        let midnight = Registers { hour: 0x12, ..noon };
        assert_eq!(seconds(&noon).unwrap() - seconds(&midnight).unwrap(), 12 * 3600);
        assert_eq!(seconds(&midnight).unwrap() % 86400, 0);
    }

    #[test]
    fn without_a_century_byte_the_year_falls_between_1970_and_2069() {
        let year = |short| {
            seconds(&Registers {
                year: short,
                century: None,
                day: 1,
                month: 1,
                ..BCD_24
            })
            .unwrap()
        };
        assert_eq!(year(0x70), 12 * 3600 + 34 * 60 + 56);
        assert!(year(0x69) > year(0x99));
    }

    #[test]
    fn a_chip_that_is_not_there_shows_no_date() {
        let absent = Registers {
            second: 0xff,
            minute: 0xff,
            hour: 0xff,
            day: 0xff,
            month: 0xff,
            year: 0xff,
            century: Some(0xff),
            status_b: 0xff,
        };
        assert_eq!(seconds(&absent), None);
    }

    #[test]
    fn the_epoch_is_day_nought() {
        assert_eq!(days_since_1970(1970, 1, 1), Some(0));
        assert_eq!(days_since_1970(2000, 3, 1), Some(11_017));
    }

    #[test]
    fn every_day_of_four_centuries_is_written_as_it_was_read() {
        for day in 0..146_097 {
            let date = Date::from_seconds(day * 86_400 + 7);
            assert_eq!(days_since_1970(date.year, date.month, date.day), Some(day));
            assert!((1..=12).contains(&date.month) && (1..=31).contains(&date.day) && date.second == 7);
        }
    }
}
