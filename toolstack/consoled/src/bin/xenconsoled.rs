//! `xenconsoled`: command line and start.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use ferroxen_consoled::SOCKET;
use ferroxen_consoled::daemon::{Daemon, Setup};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

/// Serves the guests' consoles.
#[derive(Parser, Debug)]
#[command(name = "xenconsoled", version)]
struct Options {
    /// What to log
    #[arg(long, value_enum, default_value_t = What::None)]
    log: What,
    /// Where logs go
    #[arg(long, value_name = "DIRECTORY", default_value = "/var/log/xen/console")]
    log_dir: PathBuf,
    /// Put the time before each logged line
    #[arg(long)]
    timestamp: bool,
    /// Write the process id to this file
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Where clients connect
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    socket: PathBuf,
    /// Stay in the foreground; else it goes on in the background once it serves
    #[arg(short, long)]
    interactive: bool,
    /// Say on standard output when it serves (used on the way to the background)
    #[arg(long, hide = true)]
    say_ready: bool,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    None,
    Guest,
    Hv,
    All,
}

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xenconsoled: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> Result<()> {
    if !options.interactive {
        return start_in_background();
    }
    let daemon = Daemon::start(Setup {
        log_guests: matches!(options.log, What::Guest | What::All),
        log_hypervisor: matches!(options.log, What::Hv | What::All),
        log_dir: options.log_dir,
        with_time: options.timestamp,
        socket: options.socket,
    })?;
    if let Some(path) = &options.pid_file {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let pid = format!("{}\n", std::process::id());
        std::fs::write(path, pid).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if options.say_ready {
        println!("ready");
    }
    daemon.run()
}

/// Starts ourselves again, detached, and returns once that one serves.
fn start_in_background() -> Result<()> {
    let program = std::env::current_exe().context("cannot find our own program")?;
    let mut child = Command::new(program)
        .args(std::env::args_os().skip(1))
        .args(["--interactive", "--say-ready"])
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_options_do_not_collide() {
        Options::command().debug_assert();
    }
}
