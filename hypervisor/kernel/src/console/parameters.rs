//! What of the console can be set while the host runs: the command line's own words, through `hypfs_op`.

use super::{GUESTS_ALWAYS, GUESTS_LIMITED, OURS, STAMPS, input};
use alloc::format;
use alloc::string::{String, ToString};
use core::sync::atomic::Ordering;
use ferroxen_loader::options::{self, Level, LogLevel, Timestamps};

/// A parameter of the command line.
pub struct Parameter {
    /// Its value, in words that can be written again.
    pub read: fn() -> String,
    /// Sets it; false for words that it does not know.
    pub write: fn(&str) -> bool,
}

/// `loglvl=`
pub static LOGLVL: Parameter = Parameter {
    read: || {
        // One threshold: lines of our own are never limited in their rate.
        let word = OURS.level().word();
        format!("{word}/{word}")
    },
    write: |text| options::log_level(text).map(set_log_level).is_some(),
};

/// `guest_loglvl=`
pub static GUEST_LOGLVL: Parameter = Parameter {
    read: || format!("{}/{}", GUESTS_ALWAYS.level().word(), GUESTS_LIMITED.level().word()),
    write: |text| options::log_level(text).map(set_guest_log_level).is_some(),
};

/// `console_timestamps=`
pub static TIMESTAMPS: Parameter = Parameter {
    read: || {
        let stamps = STAMPS.load(Ordering::Relaxed);
        let known = STAMP_WORDS.iter().find(|(known, _)| *known as u8 == stamps);
        known.map_or("none", |(_, word)| *word).to_string()
    },
    write: |text| {
        let wanted = options::timestamps(text);
        wanted
            .inspect(|stamps| STAMPS.store(*stamps as u8, Ordering::Relaxed))
            .is_some()
    },
};

const STAMP_WORDS: [(Timestamps, &str); 5] = [
    (Timestamps::None, "none"),
    (Timestamps::Boot, "boot"),
    (Timestamps::Date, "date"),
    (Timestamps::DateMs, "datems"),
    (Timestamps::Raw, "raw"),
];

/// `conswitch=`
pub static CONSWITCH: Parameter = Parameter {
    read: || (input::switch_letter() as char).to_string(),
    write: |text| {
        let wanted = options::conswitch(text);
        wanted
            .inspect(|(letter, is_ours)| input::configure(*letter, *is_ours))
            .is_some()
    },
};

/// Stock Xen's lines without a label, which the boot consists of, pass its default of "warning"; so do ours that inform.
pub(super) fn set_log_level(wanted: LogLevel) {
    OURS.set(match wanted.always {
        Level::Warning => Level::Info,
        other => other,
    });
}

pub(super) fn set_guest_log_level(wanted: LogLevel) {
    GUESTS_ALWAYS.set(wanted.always);
    GUESTS_LIMITED.set(wanted.limited);
}
