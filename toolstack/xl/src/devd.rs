//! `xl devd`

use anyhow::Context;
use clap::Args;
use ferroxen_consoled::interrupts;
use ferroxen_domains::devd;
use ferroxen_domains::patience::Interrupt;
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[derive(Debug, Args)]
#[command(
    after_help = "For driver domains: those that serve other domains' disks and network cards (backend=NAME in a \
                        guest's `disk` or `vif`). Domain 0 needs none."
)]
pub struct Devd {
    /// Run in the foreground
    #[arg(short = 'F')]
    pub foreground: bool,
    /// Write the process id to this file
    #[arg(short = 'p', long = "pidfile", value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
}

/// Where it says what it does, in the background.
const LOG: &str = "/var/log/xen/xldevd.log";

/// `xl devd`
pub fn run(args: &Devd) -> anyhow::Result<()> {
    if !args.foreground {
        return in_background(args);
    }
    if let Some(path) = &args.pid_file {
        std::fs::write(path, format!("{}\n", std::process::id()))
            .with_context(|| format!("writing {}", path.display()))?;
    }
    let stop = Interrupt::from_pipe(interrupts().context("preparing for Ctrl-C")?);
    let served = devd::serve(&stop, |line| println!("{line}"));
    if let Some(path) = &args.pid_file {
        // It tells of nobody now; whoever removed it was quicker.
        let _ = std::fs::remove_file(path);
    }
    Ok(served?)
}

/// Another of us goes on, in a session of its own.
fn in_background(args: &Devd) -> anyhow::Result<()> {
    let log = Path::new(LOG);
    if let Some(directory) = log.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    }
    let out = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("opening {LOG}"))?;
    let errors = out.try_clone().context("opening the log twice")?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("xl").args(["devd", "-F"]);
    if let Some(path) = &args.pid_file {
        command.arg("-p").arg(path);
    }
    command
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(errors)
        .process_group(0)
        .spawn()
        .context("starting in the background")
        .map(drop)
}
