//! `cargo xtask order`: which functions of `xl` commands run.
//!
//! A guest is made, listed and ended, as in `cargo xtask growth`, and the plugin of the emulator's writes down where
//! programs go.

use std::fs;

use anyhow::Result;

use crate::cost::machine::{Counter, Machine};
use crate::cost::{ADVICE, counter, growth};
use crate::hypervisor;
use crate::images::Toolstack;
use crate::packages::{self, Need};
use crate::places;
use crate::steps::Steps;
use crate::toolstack;

/// Writes them down for the linker.
pub fn order(yes: bool) -> Result<()> {
    packages::require(&[Need::BareMetal, Need::Machine, Need::Images], yes)?;
    let mut steps = Steps::new();
    let (machine, counter, load) = steps.step("what to run", "the error says what", |_| {
        let machine = Machine::new("ours", &hypervisor::build()?.elf, "");
        Ok((machine, counter()?, growth::load(Toolstack::Ours, 1)?))
    })?;
    let blocks = places::made().join("logs/order.blocks");
    let counter = Counter {
        blocks: Some(blocks.clone()),
        ..counter
    };
    steps.step("running it", ADVICE, |_| machine.run(&load, &counter, "a", "order"))?;
    let found = toolstack::write_order(&fs::read_to_string(blocks)?)?;
    println!("{}: {found} functions", toolstack::ORDER);
    Ok(())
}
