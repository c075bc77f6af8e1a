//! `cargo xtask check`: what a machine can judge. Format, lints, signs on unsafe, size.

use anyhow::{Context, Result, ensure};

use crate::hypervisor::{self, Verb};
use crate::places;
use crate::programs::{clean_command, run};
use crate::signs;
use crate::toolchain::{self, Toolchain};

/// One judgement: its name, and how to come by it.
pub type Judgement = (&'static str, fn() -> Result<()>);

/// All of them, the quick ones first.
pub const JUDGEMENTS: [Judgement; 5] = [
    ("format", format),
    ("signs on unsafe", signs::check),
    ("lints of host crates", host_lints),
    ("lints of bare-metal crates", bare_metal_lints),
    ("hypervisor builds within its size", size),
];

fn format() -> Result<()> {
    let mut cargo = clean_command("cargo");
    run(cargo.args(["fmt", "--all", "--check"]).current_dir(places::root())).context("`cargo fmt --all` makes it right")
}

fn host_lints() -> Result<()> {
    let mut cargo = clean_command("cargo");
    cargo
        .args(["clippy", "--quiet", "--all-targets", "--target-dir"])
        .arg(places::host_target());
    run(cargo.args(["--", "-D", "warnings"]).current_dir(places::root()))
}

fn bare_metal_lints() -> Result<()> {
    let hypervisor: &[&str] = &["ferroxen-machine", "ferroxen-kernel", "ferroxen-image"];
    // Apart, because guests have no heap: together, a crate that both use would want one for the kernel's sake.
    let guests: &[&str] = &[
        "ferroxen-pv-guest",
        "ferroxen-micro-guest",
        "ferroxen-conform-guest",
        "ferroxen-fuzz-guest",
        "ferroxen-bench-guest",
        "ferroxen-linux-guest",
    ];
    for packages in [hypervisor, guests] {
        let mut cargo = hypervisor::bare_metal_cargo(Verb::Clippy)?;
        cargo
            .args(["--release", "--quiet", "--target-dir"])
            .arg(places::made().join("hypervisor-lints"));
        for package in packages {
            cargo.args(["--package", package]);
        }
        match toolchain::chosen() {
            Toolchain::Own => cargo.args(["--", "-D", "warnings"]),
            // The separator is what clippy-driver splits its arguments at.
            Toolchain::Debian => cargo.env("CLIPPY_ARGS", "-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__"),
        };
        run(&mut cargo)?;
    }
    Ok(())
}

fn size() -> Result<()> {
    let built = hypervisor::build()?;
    println!("{built}");
    ensure!(
        built.loaded <= hypervisor::LOADED_BUDGET,
        "the image loads {} bytes; the budget is {}",
        built.loaded,
        hypervisor::LOADED_BUDGET
    );
    Ok(())
}
