//! Many guests in one kernel: the command line names those to run, one after the other.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

mod guests;
mod report;

use pv::{println, start};
use report::Report;

pv::main!(run);

fn run() {
    for name in start::words() {
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
