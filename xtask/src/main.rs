//! `cargo xtask`: every verb we type.
//!
//! `build` makes the hypervisor, `run` shows it with Debian on top, `test` proves it, `check` judges
//! what a machine can judge. Each verb is a module; this file only reads the command line.

#![forbid(unsafe_code)]

mod hypervisor;
mod images;
mod kernel;
mod packages;
mod places;
mod programs;
mod tree;

use clap::{Parser, Subcommand};

use crate::images::Toolstack;
use crate::packages::Need;

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
    /// Makes the Domain 0 and guest images: target/images
    Image {
        /// Puts Debian's toolstack into Domain 0 instead of ours.
        #[arg(long)]
        stock_tools: bool,
        /// Installs missing Debian packages without asking.
        #[arg(long)]
        yes: bool,
    },
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().verb {
        Verb::Build => {
            let built = hypervisor::build()?;
            println!("{built}");
            Ok(())
        }
        Verb::Image { stock_tools, yes } => {
            packages::require(&[Need::Images], yes)?;
            let toolstack = if stock_tools { Toolstack::Debian } else { Toolstack::Ours };
            images::make(toolstack, &mut |step| println!("{step}"))?;
            println!("{}", images::dir().display());
            Ok(())
        }
    }
}
