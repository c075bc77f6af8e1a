//! `xl`, also as `xm`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    ferroxen_xl::main()
}
