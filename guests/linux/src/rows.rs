//! The rows: system calls of which each makes Linux ask the hypervisor for something.

use crate::sys::{self, Errno, Mapping, PAGE, Pipe, mark};
use crate::{fail, println};

/// What is done before a row's first sample.
pub const WARM_UP: u32 = 4;
/// As many as the kernels of ours take (`guests/bench`).
const ROUNDS: u8 = 64 + WARM_UP as u8;
const SECOND: u64 = 1_000_000_000;

/// Why a row cannot be.
pub enum Wrong {
    /// Linux refused something.
    Refused(Errno),
    /// This should have been so.
    Effect(&'static str),
}

impl From<Errno> for Wrong {
    fn from(errno: Errno) -> Self {
        Self::Refused(errno)
    }
}

/// Says what should be so, unless it is.
pub fn check(what: &'static str, holds: bool) -> Result<(), Wrong> {
    if holds { Ok(()) } else { Err(Wrong::Effect(what)) }
}

/// One operation, done and checked.
type Operation = fn() -> Result<(), Wrong>;

const ROWS: [(&str, Operation); 4] = [
    ("Linux: getppid", parent),
    ("Linux: fork + wait", processes),
    ("Linux: mmap + touch 64 pages + munmap", memory),
    ("Linux: pipe round trip between two processes", pipes),
];

/// All of them.
pub fn all() {
    // The first process has no parent; its child has.
    let worker = sys::fork(|| {
        for (name, operation) in ROWS {
            match operation() {
                Ok(()) => println!("[bench] {name}: samples {ROUNDS} hypervisor"),
                Err(wrong) => fail(name, &wrong),
            }
        }
        0
    });
    match worker.and_then(sys::wait) {
        Ok((_, 0)) => {}
        Ok(_) => fail("Linux", &Wrong::Effect("the worker ended well")),
        Err(errno) => fail("Linux", &errno.into()),
    }
}

/// A second in which this has nothing to do.
pub fn second(name: &str) {
    match idle() {
        Ok(()) => println!("[bench] {name}: samples 1 machine"),
        Err(wrong) => fail(name, &wrong),
    }
}

/// What a guest that is moved notices of it.
pub const BEATS: &str = "an idle guest is moved: its longest silence";

/// Beats every 5 ms for ten seconds; returns the longest time between two beats.
pub fn beats() -> Result<u64, Wrong> {
    const PERIOD_NS: u64 = 5_000_000;
    const BEATS: u64 = 10 * SECOND / PERIOD_NS;
    let (mut last, mut longest) = (sys::ticks(), 0);
    for _ in 0..BEATS {
        sys::sleep_ns(PERIOD_NS)?;
        let now = sys::ticks();
        longest = longest.max(now.saturating_sub(last));
        last = now;
    }
    check("a beat after its time", longest >= PERIOD_NS)?;
    Ok(longest)
}

fn parent() -> Result<(), Wrong> {
    for _ in 0..ROUNDS {
        mark();
        let parent = sys::getppid();
        mark();
        check("the first process", parent? == 1)?;
    }
    Ok(())
}

fn processes() -> Result<(), Wrong> {
    for round in 0..ROUNDS {
        mark();
        let child = sys::fork(|| round);
        let ended = child.and_then(sys::wait);
        mark();
        check("its own exit code", ended? == (child?, round))?;
    }
    Ok(())
}

fn memory() -> Result<(), Wrong> {
    const PAGES: usize = 64;
    for round in 1..=ROUNDS {
        mark();
        let mut mapping = Mapping::new(PAGES)?;
        let holds = mapping.touch(round);
        let was = mapping.unmap()?;
        mark();
        check("what was written", holds)?;
        check("gone", !sys::is_mapped(was.start)? && !sys::is_mapped(was.end - PAGE)?)?;
    }
    Ok(())
}

fn pipes() -> Result<(), Wrong> {
    let (there, back) = (Pipe::new()?, Pipe::new()?);
    let other = sys::fork(|| {
        for _ in 0..ROUNDS {
            let answered = there.take().and_then(|byte| back.put(byte + 1));
            if answered.is_err() {
                return 1;
            }
        }
        0
    })?;
    for round in 0..ROUNDS {
        mark();
        let answer = there.put(round).and_then(|()| back.take());
        mark();
        check("the answer", answer? == round + 1)?;
    }
    check("the other ended well", sys::wait(other)? == (other, 0))
}

fn idle() -> Result<(), Wrong> {
    let before = sys::now()?;
    mark();
    sys::sleep(1)?;
    mark();
    check("a second", sys::now()? - before >= SECOND)
}
