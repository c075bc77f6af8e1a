//! `xl network-script`: sets up the host's network as xend did when it started, by the script that its configuration
//! names.

use anyhow::{Context, bail};
use clap::Args;
use std::path::Path;
use std::process::{Command, ExitCode};

/// Under both names that how-tos have for it.
const FILES: [&str; 2] = ["/etc/xen/xend-config.sxp", "/etc/xen/xen-config.sxp"];
const SCRIPTS: &str = "/etc/xen/scripts";

#[derive(Debug, Args)]
#[command(
    after_help = "The script is `network-script` of /etc/xen/xend-config.sxp (or xen-config.sxp), such as\n  \
                        (network-script network-bridge)\nWithout such a file there is nothing to do."
)]
pub struct NetworkScript {
    /// What the script is to do
    #[arg(value_parser = ["start", "stop", "status"])]
    pub verb: String,
}

/// Runs the script, if one is named.
pub fn run(args: &NetworkScript) -> anyhow::Result<ExitCode> {
    let Some(file) = FILES.into_iter().map(Path::new).find(|path| path.exists()) else {
        return Ok(ExitCode::SUCCESS);
    };
    let (config, notices) = match ferroxen_xlconfig::load_host(file) {
        Ok(read) => read,
        Err(problem) => {
            eprintln!("error: {problem}");
            return Ok(ExitCode::FAILURE);
        }
    };
    for notice in notices {
        eprintln!("warning: {notice}");
    }
    let Some((script, more)) = config.network_script.as_deref().and_then(<[String]>::split_first) else {
        return Ok(ExitCode::SUCCESS);
    };
    // A name with a directory stays as it is.
    let path = Path::new(SCRIPTS).join(script);
    let status = Command::new(&path).arg(&args.verb).args(more).status();
    let status = status.with_context(|| format!("starting {}, which {} names", path.display(), file.display()))?;
    if !status.success() {
        bail!("{} {} failed: {status}", path.display(), args.verb);
    }
    Ok(ExitCode::SUCCESS)
}
