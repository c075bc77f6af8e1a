//! `cargo xtask`: every verb we type.
//!
//! `build` makes the hypervisor, `run` shows it with Debian on top, `test` proves it, `check` judges
//! what a machine can judge. Each verb is a module; this file only reads the command line.

#![forbid(unsafe_code)]

mod hypervisor;
mod places;
mod programs;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Builds, runs and tests Ferroxen",
    version
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Builds the hypervisor: target/ferroxen.elf and target/ferroxen.gz
    Build,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().verb {
        Verb::Build => {
            let built = hypervisor::build()?;
            println!("{built}");
            Ok(())
        }
    }
}
