//! Many guests in one kernel: the command line names those to run, one after the other. The word `list` asks
//! for their names.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]
#![expect(clippy::result_large_err, reason = "there is no heap to put a frame on")]

mod bad;
mod guests;
mod host;
mod report;

use pv::{println, start};
use report::Report;

pv::main!(run);

fn run() {
    for name in start::words() {
        if name == "list" {
            guests::ALL.iter().for_each(|guest| println!("[list] {}", guest.name));
            continue;
        }
        match guests::ALL.iter().find(|guest| guest.name == name) {
            Some(guest) => {
                let mut report = Report::new(guest.name);
                let verdict = (guest.act)(&mut report);
                report.close(verdict);
            }
            None => println!("no guest is called {name}"),
        }
    }
}
