//! `xl console`: this terminal joined to a domain's console, or to a channel of it that ends in a terminal (`-n`), until Ctrl-]
//! or the domain's end.

use anyhow::{Context, bail};
use clap::Args;
use ferroxen_consoled::{AttachOptions, Ended, attach, interrupts};
use ferroxen_domains::Toolstack;
use ferroxen_words::DomId;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "Ctrl-] leaves the console; the domain goes on.")]
pub struct Console {
    /// A domain, by name or number
    #[arg(value_name = "Domain")]
    pub domain: String,
    /// The kind of console: `pv` is the one that a PV domain has
    #[arg(short = 't', value_name = "TYPE", value_parser = ["pv", "serial", "vuart"])]
    kind: Option<String>,
    /// The console's number: 0 is the domain's own, others are channels with connection=pty
    #[arg(short = 'n', value_name = "NUM")]
    number: Option<u32>,
    /// The key that leaves, as `^]` or as a letter
    #[arg(short = 'e', long, value_name = "KEY", value_parser = key)]
    escape: Option<u8>,
}

/// `^]`, or a single character.
fn key(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        [key] => Ok(*key),
        [b'^', key] if (b'@'..=b'_').contains(&key.to_ascii_uppercase()) => Ok(key.to_ascii_uppercase() - b'@'),
        _ => Err("write a letter, or ^ and a letter for a control key".to_owned()),
    }
}

/// Joins until the end.
pub fn run(tools: &Toolstack, args: &Console) -> anyhow::Result<ExitCode> {
    let domid = crate::domain(tools, &args.domain)?;
    if domid == DomId::DOM0 {
        bail!("Domain-0's console is the host's own");
    }
    if let Some(kind) = args.kind.as_deref().filter(|kind| *kind != "pv") {
        bail!("a PV domain has no {kind} console: leave -t out");
    }
    let ended = attach(
        domid.raw(),
        AttachOptions {
            number: args.number.unwrap_or(0),
            escape: args.escape,
            interrupt: Some(interrupts().context("preparing for Ctrl-C")?),
            ..Default::default()
        },
    )?;
    Ok(match ended {
        Ended::Interrupted => ExitCode::FAILURE,
        Ended::Detached | Ended::DomainGone => ExitCode::SUCCESS,
    })
}

/// Joins until the end, and starts the domain once its console is ours, so that its first line is seen.
pub fn start_and_join(
    domid: DomId,
    stop: OwnedFd,
    start: impl FnOnce() -> anyhow::Result<()> + 'static,
) -> anyhow::Result<()> {
    attach(
        domid.raw(),
        AttachOptions {
            interrupt: Some(stop),
            on_attached: Some(Box::new(start)),
            ..Default::default()
        },
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_letters_or_carets() {
        assert_eq!((key("^]"), key("^a"), key("q")), (Ok(0x1d), Ok(1), Ok(b'q')));
        assert!(key("").is_err() && key("^1").is_err() && key("ab").is_err());
    }
}
