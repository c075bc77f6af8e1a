//! `xenstored`: command line and start.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use clap::Parser;
use ferroxen_xenstored::core::Limits;
use ferroxen_xenstored::daemon::{Daemon, Inheritance, Log, Setup};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// The store that Domain 0 and the guests share.
#[derive(Parser, Debug)]
#[command(name = "xenstored", version, disable_version_flag = true)]
struct Options {
    /// Stay in the foreground; else it goes on in the background once it serves
    #[arg(short = 'N', long)]
    no_fork: bool,
    /// Write the process id to this file
    #[arg(short = 'F', long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Log every request
    #[arg(short = 'V', long)]
    verbose: bool,
    /// Log to this file instead of standard error
    #[arg(short = 'T', long, value_name = "FILE")]
    trace_file: Option<PathBuf>,
    /// Where the socket is
    #[arg(long, value_name = "DIRECTORY", default_value = "/run/xenstored")]
    socket_dir: PathBuf,
    /// Serve the socket only, without a hypervisor
    #[arg(short = 'D', long)]
    no_domain_init: bool,
    /// Nodes that a guest may own
    #[arg(short = 'E', long, value_name = "COUNT")]
    entry_nb: Option<u32>,
    /// Bytes that a guest's node may have
    #[arg(short = 'S', long, value_name = "BYTES")]
    entry_size: Option<u32>,
    /// Watches that a guest may set
    #[arg(short = 'W', long, value_name = "COUNT")]
    watch_nb: Option<u32>,
    /// Transactions that a guest may have open
    #[arg(short = 't', long, value_name = "COUNT")]
    transaction: Option<u32>,
    /// Permission entries that a guest's node may have
    #[arg(short = 'A', long, value_name = "COUNT")]
    perm_nb: Option<u32>,
    /// Set any limit: nodes, node-size, watches, transactions, transaction-nodes, permissions, outstanding,
    /// ops-per-second, ops-burst; 0 is no limit
    #[arg(short = 'Q', long = "quota", value_name = "NAME=VALUE")]
    quotas: Vec<String>,
    /// Print the version
    #[arg(long, action = clap::ArgAction::Version)]
    version: Option<bool>,
    /// Take the place of the program that has started us (used by live updates)
    #[arg(long, hide = true)]
    take_over: bool,
    /// Say on standard output when it serves (used on the way to the background)
    #[arg(long, hide = true)]
    say_ready: bool,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xenstored: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    if !options.no_fork {
        return start_in_background();
    }
    let setup = Setup {
        socket_dir: options.socket_dir.clone(),
        limits: limits(options)?,
        without_hypervisor: options.no_domain_init,
        inheritance: options.take_over.then(Inheritance::receive).transpose()?,
    };
    let log = Log::open(options.trace_file.as_deref(), options.verbose).context("cannot open the log")?;
    let daemon = Daemon::start(setup, log)?;
    if let Some(path) = &options.pid_file {
        write_pid(path)?;
    }
    if options.say_ready {
        println!("ready");
    }
    tell_service_manager();
    daemon.run()
}

fn limits(options: &Options) -> Result<Limits> {
    let mut limits = Limits::default();
    let named = [
        ("nodes", options.entry_nb),
        ("node-size", options.entry_size),
        ("watches", options.watch_nb),
        ("transactions", options.transaction),
        ("permissions", options.perm_nb),
    ];
    for (name, value) in named {
        if let (Some(limit), Some(value)) = (limits.get_mut(name), value) {
            *limit = value;
        }
    }
    for quota in &options.quotas {
        let (name, value) = quota
            .split_once('=')
            .with_context(|| format!("{quota}: expected NAME=VALUE"))?;
        let Some(limit) = limits.get_mut(name) else {
            let known: Vec<_> = limits.list().iter().map(|(name, _)| *name).collect();
            bail!("there is no quota {name:?}; there are {}", known.join(", "));
        };
        *limit = value
            .parse()
            .with_context(|| format!("{quota}: the value must be a number"))?;
    }
    Ok(limits)
}

/// Starts ourselves again, detached, and returns once that one serves.
fn start_in_background() -> Result<()> {
    let program = std::env::current_exe().context("cannot find our own program")?;
    let mut child = Command::new(program)
        .args(std::env::args_os().skip(1))
        .args(["--no-fork", "--say-ready"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .context("cannot start in the background")?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    if line.trim() == "ready" {
        Ok(())
    } else {
        bail!("did not start: {}", child.wait()?)
    }
}

fn write_pid(path: &Path) -> Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let mut file = std::fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    writeln!(file, "{}", std::process::id()).with_context(|| format!("cannot write {}", path.display()))
}

/// Tells systemd, if it asked to be told.
fn tell_service_manager() {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let Ok(socket) = UnixDatagram::unbound() else { return };
    let message = b"READY=1";
    // Whoever started us will notice by itself if this is lost.
    let _ = match path.to_str().and_then(|path| path.strip_prefix('@')) {
        Some(name) => {
            use std::os::linux::net::SocketAddrExt;
            std::os::unix::net::SocketAddr::from_abstract_name(name).and_then(|to| socket.send_to_addr(message, &to))
        }
        None => socket.send_to(message, path),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_options_do_not_collide() {
        Options::command().debug_assert();
    }

    #[test]
    fn quotas_are_set_by_their_names() {
        let options = Options::parse_from(["xenstored", "-E", "7", "-Q", "ops-burst=9"]);
        let limits = limits(&options).unwrap();
        assert_eq!((limits.nodes, limits.ops_burst), (7, 9));
        assert!(super::limits(&Options::parse_from(["xenstored", "-Q", "nonsense=9"])).is_err());
    }
}
