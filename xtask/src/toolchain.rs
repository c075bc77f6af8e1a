//! The compiler for bare metal: the user's own where it has the target or can get it, else Debian's.
//!
//! Debian's (packages rustc-web, cargo-web, rust-web-src) ships the library's sources, and makes `core` and `alloc`
//! on the spot; it needs nothing but apt.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use crate::places;
use crate::programs::answer;

/// The target: no operating system, no floating point in the kernel.
pub const TARGET: &str = "x86_64-unknown-none";

pub const DEBIAN_CARGO: &str = "/usr/bin/cargo";
pub const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
pub const DEBIAN_CLIPPY: &str = "/usr/bin/clippy-driver";
/// Of the library's sources, a file that is always there.
pub const DEBIAN_SOURCES: &str = "/usr/lib/rustlib/src/rust/library/core/Cargo.toml";

/// A compiler that builds for bare metal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Toolchain {
    /// The one that runs us.
    Own,
    /// Debian's, which may have to be installed first.
    Debian,
}

/// Returns which one to use: the same as long as this program runs.
///
/// Where neither can do it yet, rustup is asked for the target, which may take it a minute to refuse.
pub fn chosen() -> Toolchain {
    static CHOSEN: OnceLock<Toolchain> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        if own_has_target() || (!debian_is_complete() && rustup_adds_target()) {
            Toolchain::Own
        } else {
            Toolchain::Debian
        }
    })
}

/// Tells whether Debian's is installed.
pub fn debian_is_complete() -> bool {
    [DEBIAN_CARGO, DEBIAN_RUSTC, DEBIAN_SOURCES]
        .iter()
        .all(|file| Path::new(file).exists())
}

fn own_has_target() -> bool {
    let mut rustc = Command::new("rustc");
    rustc
        .args(["--print", "target-libdir", "--target", TARGET])
        .current_dir(places::root());
    answer(&mut rustc).is_some_and(|dir| {
        fs::read_dir(dir).is_ok_and(|mut entries| {
            entries.any(|entry| entry.is_ok_and(|e| e.file_name().to_string_lossy().starts_with("libcore-")))
        })
    })
}

/// Tries to get the target. The time limit is for networks that swallow what they are sent.
fn rustup_adds_target() -> bool {
    let mut rustup = Command::new("timeout");
    rustup
        .args(["60", "rustup", "target", "add", TARGET])
        .current_dir(places::root());
    println!("asking rustup for {TARGET}");
    answer(&mut rustup).is_some() && own_has_target()
}
