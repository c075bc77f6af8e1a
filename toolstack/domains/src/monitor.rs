//! Staying with a domain: what happens when it stops is its configuration's `on_...` settings.

use crate::control::{End, Reason};
use crate::error::Result;
use crate::{Toolstack, create, keep, nodes};
use ferroxen_words::DomId;
use ferroxen_xlconfig::{Action, DomainConfig};
use std::time::{SystemTime, UNIX_EPOCH};

/// Stays with `domid` and its successors until the last one is gone or is to be left alone. `text` is the
/// configuration as kept; `log` hears what happens.
pub fn supervise(
    tools: &Toolstack,
    mut domid: DomId,
    config: &DomainConfig,
    text: &str,
    mut log: impl FnMut(String),
) -> Result<()> {
    let (mut config, mut text) = (config.clone(), text.to_owned());
    loop {
        let reason = match tools.wait_end(domid, None)? {
            End::Stopped(reason) => reason,
            End::Gone | End::StillThere => {
                log(format!("domain {} is gone", domid.raw()));
                return Ok(());
            }
        };
        let Some(action) = action(&config, reason) else {
            log(format!("domain {} is suspended", domid.raw()));
            return Ok(());
        };
        log(format!(
            "domain {} stopped (reason {}), action: {}",
            domid.raw(),
            reason.code(),
            action.name()
        ));
        // It may have been renamed since, and keeps that name.
        if let Some(name) = nodes::name(&tools.store, domid)
            .ok()
            .flatten()
            .filter(|name| *name != config.name)
        {
            text.push_str(&format!("\nname = \"{name}\"\n"));
            config.name = name;
        }
        let again = match action {
            Action::Preserve => return Ok(()),
            Action::Destroy => false,
            Action::Restart => true,
            Action::CoredumpDestroy | Action::CoredumpRestart => {
                log("core dumps are not supported yet: none was written".to_owned());
                action == Action::CoredumpRestart
            }
            Action::SoftReset => {
                log("soft resets are not supported yet: building the domain anew".to_owned());
                true
            }
            Action::RenameRestart => {
                tools.rename(domid, &format!("{}-{}", config.name, timestamp()))?;
                log(format!("domain {} is kept as \"{}\"", domid.raw(), tools.name(domid)));
                domid = start(tools, &config, &text)?;
                log(format!("started again as domain {}", domid.raw()));
                continue;
            }
        };
        tools.destroy(domid)?;
        if !again {
            return Ok(());
        }
        domid = start(tools, &config, &text)?;
        log(format!("started again as domain {}", domid.raw()));
    }
}

fn start(tools: &Toolstack, config: &DomainConfig, text: &str) -> Result<DomId> {
    let domid = create::create(tools, config)?;
    if let Some(uuid) = &config.uuid {
        keep::save(domid, uuid, config, text)?;
    }
    match tools.unpause(domid) {
        Ok(()) => Ok(domid),
        Err(error) => {
            let _ = tools.destroy(domid);
            Err(error)
        }
    }
}

/// What the configuration says; nothing for a domain that was saved or moved.
fn action(config: &DomainConfig, reason: Reason) -> Option<Action> {
    Some(match reason {
        Reason::PowerOff => config.on_poweroff,
        Reason::Reboot => config.on_reboot,
        Reason::Suspend => return None,
        Reason::Crash | Reason::Other(_) => config.on_crash,
        Reason::Watchdog => config.on_watchdog,
        Reason::SoftReset => config.on_soft_reset,
    })
}

/// Seconds since 1970: unique enough for the name of a domain that has ended.
fn timestamp() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
