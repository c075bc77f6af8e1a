//! `xenstore`: the store from the command line. Also answers to `xenstore-ls`, `xenstore-read` and so on.
#![forbid(unsafe_code)]

mod commands;

use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::Path;
use std::process::ExitCode;

/// Looks into xenstore, and changes it.
#[derive(Parser, Debug)]
#[command(name = "xenstore", version)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// List names and values below paths
    Ls(Ls),
    /// Print the values at paths
    Read {
        /// Print each path before its value
        #[arg(short)]
        prefix: bool,
        /// Print the bytes as they are
        #[arg(short = 'R')]
        raw: bool,
        #[command(flatten)]
        rest: Paths,
    },
    /// Write values, all of them or none
    Write {
        #[command(flatten)]
        socket: Socket,
        /// PATH VALUE, any number of times
        #[arg(required = true, value_name = "PATH VALUE")]
        pairs: Vec<String>,
    },
    /// Remove paths and all below them
    Rm {
        /// Also remove parents that are empty then
        #[arg(short)]
        tidy: bool,
        #[command(flatten)]
        rest: Paths,
    },
    /// List the names of a path's children
    List {
        /// Print whole paths
        #[arg(short)]
        prefix: bool,
        #[command(flatten)]
        rest: Paths,
    },
    /// Exit with success if all paths exist
    Exists(Paths),
    /// Set permissions (the first entry names the owner), such as n0 r5
    Chmod {
        /// Also of all parents
        #[arg(short)]
        upto: bool,
        /// Also of all below
        #[arg(short)]
        recurse: bool,
        #[command(flatten)]
        socket: Socket,
        /// The node
        path: String,
        /// Letter (n, r, w, b) and domain id
        #[arg(required = true)]
        permissions: Vec<String>,
    },
    /// Print each path at or below the given ones that changes
    Watch {
        /// Stop after so many events
        #[arg(short, value_name = "COUNT")]
        number: Option<u64>,
        #[command(flatten)]
        rest: Paths,
    },
    /// Give xenstored an order: check, help, live-update, log, logfile, memreport, print, quota, values
    Control {
        /// The order and its words; `live-update [-c OPTIONS] [-F] [-t SECONDS] PROGRAM`
        #[arg(required = true, allow_hyphen_values = true, trailing_var_arg = true)]
        words: Vec<String>,
    },
}

#[derive(Args, Debug)]
struct Ls {
    /// Print whole paths
    #[arg(short)]
    full: bool,
    /// Print permissions
    #[arg(short)]
    permissions: bool,
    /// Accepted; values are never cut
    #[arg(short)]
    wide: bool,
    #[command(flatten)]
    socket: Socket,
    /// Where to start
    #[arg(default_value = "/")]
    paths: Vec<String>,
}

#[derive(Args, Debug)]
struct Paths {
    #[command(flatten)]
    socket: Socket,
    /// Paths, relative ones from /local/domain/0
    #[arg(required = true)]
    paths: Vec<String>,
}

#[derive(Args, Debug)]
struct Socket {
    /// Accepted for the sake of old scripts: the socket is always tried first
    #[arg(short)]
    socket: bool,
}

fn main() -> ExitCode {
    let mut out = std::io::stdout().lock();
    match commands::run(&Options::parse_from(arguments()).command, &mut out) {
        Ok(code) => code,
        // Whoever reads what we print has had enough.
        Err(commands::Failure::Output(error)) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xenstore: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The command line, with `xenstore-ls` taken apart into `xenstore ls`.
fn arguments() -> Vec<OsString> {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    let name = arguments
        .first()
        .and_then(|program| Path::new(program).file_name()?.to_str()?.strip_prefix("xenstore-"));
    if let Some(command) = name.map(OsString::from) {
        arguments.insert(1, command);
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_options_do_not_collide() {
        Options::command().debug_assert();
    }
}
