//! Staying with a domain: what happens when it stops is its configuration's `on_...` settings.

use crate::control::{End, Reason};
use crate::error::Result;
use crate::patience::Patience;
use crate::{Toolstack, create, dump, nodes};
use ferroxen_words::DomId;
use ferroxen_xlconfig::{Action, DomainConfig, Loaded};
use std::time::{SystemTime, UNIX_EPOCH};

/// Stays with `domid` and its successors until the last one is gone or is to be left alone; `log` hears what
/// happens.
pub fn supervise(tools: &Toolstack, mut domid: DomId, loaded: &Loaded, mut log: impl FnMut(String)) -> Result<()> {
    let mut loaded = loaded.clone();
    loop {
        // Whoever suspends a domain, to save or to move it, has it run on or destroys it.
        let reason = match tools.wait_end_for_good(domid, Patience::until_interrupted(&tools.interrupt, None))? {
            End::Stopped(reason) => reason,
            End::Gone | End::StillThere => {
                log(format!("domain {} is gone", domid.raw()));
                return Ok(());
            }
        };
        let action = action(&loaded.config, reason);
        log(format!(
            "domain {} stopped (reason {}), action: {}",
            domid.raw(),
            reason.code(),
            action.name()
        ));
        // It may have got other devices since, or another configuration, or another name.
        let uuid = loaded.config.uuid.unwrap_or_default();
        loaded = tools.keep.load(domid, &uuid).unwrap_or(loaded);
        if let Some(name) = nodes::name(&tools.store, domid)
            .ok()
            .flatten()
            .filter(|name| *name != loaded.config.name)
        {
            loaded.rename(&name);
        }
        let again = match action {
            Action::Preserve => return Ok(()),
            Action::Destroy => false,
            Action::Restart => true,
            Action::CoredumpDestroy | Action::CoredumpRestart => {
                let path = dump::usual_path(&loaded.config.name);
                log(format!("dumping its core to {}", path.display()));
                // It has stopped, so nothing has to be paused. Without a core it goes on all the same, as with stock xl.
                if let Err(error) = tools.dump_core(domid, &path, dump::Manner::Live) {
                    log(error.to_string());
                }
                action == Action::CoredumpRestart
            }
            Action::SoftReset => {
                log("soft resets are not supported yet: building the domain anew".to_owned());
                true
            }
            Action::RenameRestart => {
                tools.rename(domid, &format!("{}-{}", loaded.config.name, timestamp()))?;
                log(format!("domain {} is kept as \"{}\"", domid.raw(), tools.name(domid)));
                domid = start(tools, &loaded)?;
                log(format!("started again as domain {}", domid.raw()));
                continue;
            }
        };
        tools.destroy(domid)?;
        if !again {
            return Ok(());
        }
        domid = start(tools, &loaded)?;
        log(format!("started again as domain {}", domid.raw()));
    }
}

fn start(tools: &Toolstack, loaded: &Loaded) -> Result<DomId> {
    let domid = create::create(tools, &loaded.config)?;
    let started = tools.keep.save(domid, loaded).and_then(|_| tools.unpause(domid));
    match started {
        Ok(()) => Ok(domid),
        Err(error) => {
            // The complaint that led here is the one worth reading.
            let _ = tools.destroy(domid);
            Err(error)
        }
    }
}

/// What the configuration says.
fn action(config: &DomainConfig, reason: Reason) -> Action {
    match reason {
        Reason::PowerOff => config.on_poweroff,
        Reason::Reboot => config.on_reboot,
        Reason::Suspend => Action::Preserve,
        Reason::Crash | Reason::Other(_) => config.on_crash,
        Reason::Watchdog => config.on_watchdog,
        Reason::SoftReset => config.on_soft_reset,
    }
}

/// Seconds since 1970: unique enough for the name of a domain that has ended.
fn timestamp() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
