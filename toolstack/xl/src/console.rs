//! `xl console`: this terminal joined to a domain's console, until Ctrl-] or the domain's end.

use ferroxen_consoled::{AttachOptions, attach};
use ferroxen_words::DomId;
use std::process::ExitCode;

/// Joins until the end.
pub fn run(domid: DomId) -> anyhow::Result<ExitCode> {
    attach(domid.raw(), AttachOptions::default())?;
    Ok(ExitCode::SUCCESS)
}

/// Joins until the end, and starts the domain once its console is ours, so that its first line is seen.
pub fn start_and_join(domid: DomId, start: impl FnOnce() -> anyhow::Result<()> + 'static) -> anyhow::Result<()> {
    attach(
        domid.raw(),
        AttachOptions {
            on_attached: Some(Box::new(start)),
            ..Default::default()
        },
    )?;
    Ok(())
}
