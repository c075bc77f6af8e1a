//! A program for a Linux in a guest: it asks that for what is then measured of the hypervisor below.
//!
//! It times nothing. Between two marks a thing is done once, and a plugin of the emulator's (`xtask/src/cost/count.c`)
//! knows how many instructions were carried out up to each. What was done is checked here. The first word says what:
//!
//! - `rows`: as the first process, each of the rows that are system calls, and a second without any; then `[bench] end`.
//! - `arrive`: as the first process, makes a mark, and switches its domain off.
//! - `beats`: as the first process, wakes every 5 ms for a while, tells the longest time between two beats in ticks of
//!   the processor, and switches its domain off.
//! - `mark`: makes a mark.
//! - `second NAME`: sleeps for a second between two marks.
//! - `reads NAME COUNT`: reads a node of xenstore so often, each time between two marks.
//! - `run PROGRAM WORD...`: runs a program between two marks, and ends as that does.
//!
//! Once its marks are made, a row is told: `[bench] NAME: samples N hypervisor`, of which the hypervisor's part counts;
//! `samples N machine`, of which all does; `spread N machine`, of which the largest is of interest too; or `FAIL why`. `[bench] NAME: boot hypervisor` is what lies between the
//! first instruction of Linux and a mark.
//!
//! UNSAFETY: a program without a library is entered on a bare stack, and its system calls are instructions.
#![no_std]
#![no_main]

mod rows;
mod store;
mod sys;

use core::fmt::{self, Write};

use rows::Wrong;
use sys::{Words, mark};

/// Prints a line.
macro_rules! println {
    ($($argument:tt)*) => { $crate::Console.line(format_args!($($argument)*)) };
}
use println;

struct Console;

impl Console {
    fn line(&mut self, line: fmt::Arguments<'_>) {
        // The console takes everything.
        let _ = self.write_fmt(line);
        sys::say("\n");
    }
}

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        sys::say(text);
        Ok(())
    }
}

fn fail(name: &str, wrong: &Wrong) {
    match wrong {
        Wrong::Refused(errno) => println!("[bench] {name}: FAIL refused with {}", errno.0),
        Wrong::Effect(what) => println!("[bench] {name}: FAIL {what}"),
    }
}

/// Called by the entry point; returns the exit code.
fn run(words: Words) -> u8 {
    match words.get(1) {
        Some("rows") => {
            mark();
            println!("[bench] boot of Linux as Domain 0 to its init: boot hypervisor");
            rows::all();
            println!("[bench] end");
            rest()
        }
        Some("arrive") => {
            mark();
            let refused = sys::power_off();
            fail("arrive", &refused.into());
            rest()
        }
        Some("beats") => {
            println!("it beats");
            match rows::beats() {
                Ok(longest) => println!("[bench] {}: {longest}", rows::BEATS),
                Err(wrong) => fail(rows::BEATS, &wrong),
            }
            fail(rows::BEATS, &sys::power_off().into());
            rest()
        }
        Some("mark") => {
            mark();
            0
        }
        Some("second") => {
            rows::second(words.get(2).unwrap_or_default());
            0
        }
        Some("reads") => {
            let name = words.get(2).unwrap_or_default();
            let count = words.get(3).and_then(|count| count.parse().ok()).unwrap_or(1);
            match store::reads(count) {
                Ok(done) => println!("[bench] {name}: spread {done} machine"),
                Err(wrong) => fail(name, &wrong),
            }
            0
        }
        Some("run") => between_marks(words),
        _ => 2,
    }
}

/// The first process must not end.
fn rest() -> u8 {
    const LONG: u64 = 1_000_000;
    while sys::sleep(LONG).is_ok() {}
    1
}

fn between_marks(words: Words) -> u8 {
    mark();
    let child = sys::fork(|| {
        words.exec(2);
        127
    });
    let ended = child.and_then(sys::wait);
    mark();
    ended.map_or(126, |(_, code)| code)
}
