//! How far long work is: said by those who do it, shown by whoever talks to people.

use std::fmt::Debug;

/// Hears of work as it goes on.
pub trait Progress: Debug {
    /// A step begins, of so many bytes; 0: nobody can tell how many.
    fn begin(&self, what: &str, bytes: u64);

    /// So many bytes of it more are done.
    fn advance(&self, bytes: u64);

    /// No step goes on.
    fn end(&self);

    /// Something is worth a line, however the rest is shown.
    fn tell(&self, what: &str);
}

/// Shows nothing.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _what: &str, _bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn end(&self) {}
    fn tell(&self, _what: &str) {}
}
