//! The guests: a module each.

use crate::report::{Report, Verdict};

/// One of them.
pub struct Guest {
    /// As the command line has it.
    pub name: &'static str,
    /// What it does.
    pub act: fn(&mut Report) -> Verdict,
}

macro_rules! guests {
    ($($name:literal => $module:ident),* $(,)?) => {
        $(mod $module;)*

        /// All there are.
        pub const ALL: &[Guest] = &[$(Guest { name: $name, act: $module::act }),*];
    };
}

guests! {
    "ground" => ground,
}
