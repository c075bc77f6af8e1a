//! What the hypervisor under this kernel costs, in ticks of the time-stamp counter.
//!
//! It is meant for an emulator in which a tick is an instruction, where the figures are exact. Every operation is
//! done 64 times, and each time its effect is checked, outside of the time. Output: `[bench] name: median`, or
//! `[bench] name: FAIL why`, and `[bench] end` at the end. Where the clock cannot tell, it makes marks for a plugin of the
//! emulator to count at (`samples 1 machine`; xtask/src/cost/count.c).
//!
//! The word `unused=...` on the command line is looked at by nobody: it moves things in memory a little.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]
#![expect(clippy::result_large_err, reason = "there is no heap to put a frame on")]

mod domains;
mod entry;
mod events;
mod grants;
mod row;
mod tables;

use pv::{Answer, insn, println};

pv::main!(run);

/// A group of rows. `Err` when what it stands on is refused.
type Group = fn() -> Result<(), Answer>;

/// In this order, since the console has things to say for a while once it was written to.
const GROUPS: [(&str, Group); 10] = [
    ("entry", entry::hypercalls),
    ("traps", entry::traps),
    ("tables", tables::updates),
    ("pins", tables::pins),
    ("events", events::to_self),
    ("ping", events::ping),
    ("grants", grants::all),
    ("domains", domains::all),
    ("console", entry::console),
    ("memory", domains::memory),
];

fn run() {
    let began = insn::rdtsc();
    // Some hypervisors scrub memory first.
    events::sleep(4 * events::SECOND);
    insn::mark();
    events::sleep(events::SECOND);
    insn::mark();
    for (name, group) in GROUPS {
        if let Err(answer) = group() {
            println!("[bench] {name}: FAIL {answer}");
        }
    }
    println!("[bench] one second, all asleep: samples 1 machine");
    println!("[bench] boot to Domain 0's first instruction: {began}");
    println!("[bench] end");
}
