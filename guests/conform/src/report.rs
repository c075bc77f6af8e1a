//! What a guest says: a transcript of what it saw, and a verdict.
//!
//! Every line starts with the guest's name in brackets, so that it can be told from the hypervisor's own. The
//! last is the verdict: `[name] PASS`, `[name] SKIP why` or `[name] FAIL why`. No line holds anything that
//! differs from run to run: no addresses, no frame numbers, no times.

use core::fmt::{self, Display, Write};

use pv::trap::Frame;
use pv::{Answer, println};

/// How a guest ends early.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// It cannot be shown here.
    Skip(&'static str),
    /// It is not as it must be.
    Fail(&'static str),
}

/// What a guest returns.
pub type Verdict = Result<(), End>;

impl From<Answer> for End {
    /// A call that the guest's scene needs was refused.
    fn from(answer: Answer) -> Self {
        println!("  (setting the scene: {answer})");
        End::Fail("the scene cannot be set")
    }
}

/// The transcript of one guest.
pub struct Report {
    name: &'static str,
    wrong: Text,
}

impl Report {
    /// Opens the transcript of `name`.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            wrong: Text::new(),
        }
    }

    /// Notes what was seen; whether that is right, the other hypervisor's transcript tells.
    pub fn saw(&self, what: impl Display, value: impl Display) {
        println!("[{}] {what}: {value}", self.name);
    }

    /// Notes what was seen, and that it is wrong unless it is `wanted`.
    pub fn expect<T: Display + PartialEq>(&mut self, what: impl Display, value: T, wanted: T) {
        self.saw(&what, &value);
        if value != wanted && self.wrong.used == 0 {
            // `Text` takes what fits.
            let _ = write!(self.wrong, "{what}: {value} instead of {wanted}");
        }
    }

    /// Notes whether something holds, which it must.
    pub fn check(&mut self, what: impl Display, holds: bool) {
        let word = |holds| if holds { "yes" } else { "no" };
        self.expect(what, word(holds), word(true));
    }

    /// Notes that something does not hold which must, and nothing when it does: for what is looked at in a loop.
    pub fn check_quietly(&mut self, what: impl Display, holds: bool) {
        if !holds {
            self.check(what, holds);
        }
    }

    /// Notes several answers on one line.
    pub fn saw_all<T: Display>(&self, what: impl Display, values: impl IntoIterator<Item = T>) {
        let mut line = Text::new();
        for value in values {
            // `Text` takes what fits.
            let _ = write!(line, " {value}");
        }
        println!("[{}] {what}:{line}", self.name);
    }

    /// Notes how `call` answers to each kind of bad pointer: see [`crate::bad::pointers`].
    pub fn saw_pointers(&self, what: impl Display, call: impl FnMut(u64) -> Answer) {
        self.saw_all(format_args!("{what}, bad pointers"), crate::bad::pointers().map(call));
    }

    /// Speaks the verdict.
    pub fn close(&self, verdict: Verdict) {
        match verdict {
            Err(End::Skip(why)) => println!("[{}] SKIP {why}", self.name),
            Err(End::Fail(why)) => println!("[{}] FAIL {why}", self.name),
            Ok(()) if self.wrong.used > 0 => println!("[{}] FAIL {}", self.name, self.wrong),
            Ok(()) => println!("[{}] PASS", self.name),
        }
    }
}

/// A short text.
struct Text {
    bytes: [u8; 400],
    used: usize,
}

impl Text {
    const fn new() -> Self {
        Self {
            bytes: [0; 400],
            used: 0,
        }
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for (slot, byte) in self.bytes[self.used..].iter_mut().zip(text.bytes()) {
            *slot = byte;
            self.used += 1;
        }
        Ok(())
    }
}

impl Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(core::str::from_utf8(&self.bytes[..self.used]).unwrap_or("?"))
    }
}

/// A number in base 16.
pub struct Hex(pub u64);

impl Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// How code ended: `done`, or by a trap.
pub struct Ended(pub Result<(), Frame>);

impl Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Ok(()) => f.write_str("done"),
            Err(frame) => frame.fmt(f),
        }
    }
}
