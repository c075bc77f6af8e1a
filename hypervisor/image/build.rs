//! Hands the table of symbols to the compiler: what `FERROXEN_SYMBOLS` names, or an empty one.
//!
//! The table can only be made from a linked image, so `cargo xtask build` links twice.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-env-changed=FERROXEN_SYMBOLS");
    let table = match env::var_os("FERROXEN_SYMBOLS") {
        Some(path) => {
            println!("cargo::rerun-if-changed={}", path.to_string_lossy());
            fs::read(&path).expect("FERROXEN_SYMBOLS names a file that cannot be read")
        }
        None => Vec::new(),
    };
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    fs::write(out.join("symbols"), table).expect("cargo's output directory can be written");
}
