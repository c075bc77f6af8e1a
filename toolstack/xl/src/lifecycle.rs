//! `xl destroy`, `xl shutdown`, `xl reboot`

use crate::cli::{Ending, Many};
use anyhow::{Context, bail};
use ferroxen_domains::Toolstack;
use ferroxen_domains::control::{End, Request};
use ferroxen_words::DomId;

/// `xl destroy`
pub fn destroy(tools: &Toolstack, args: &Many) -> anyhow::Result<()> {
    for word in &args.domains {
        let domid = crate::domain(tools, word)?;
        if domid == DomId::DOM0 {
            bail!("Cannot destroy privileged domain 0.");
        }
        tools.destroy(domid).with_context(|| format!("destroying \"{word}\""))?;
    }
    Ok(())
}

/// `xl shutdown`
pub fn shutdown(tools: &Toolstack, args: &Ending) -> anyhow::Result<()> {
    let domids = chosen(tools, args)?;
    for domid in &domids {
        eprintln!("Shutting down domain {}", domid.raw());
        tools.request(*domid, Request::PowerOff)?;
    }
    if args.wait {
        wait(tools, &domids)?;
    }
    Ok(())
}

/// `xl reboot`
pub fn reboot(tools: &Toolstack, args: &Ending) -> anyhow::Result<()> {
    let domids = chosen(tools, args)?;
    for domid in &domids {
        eprintln!("Rebooting domain {}", domid.raw());
        tools.request(*domid, Request::Reboot)?;
    }
    if args.wait {
        wait(tools, &domids)?;
    }
    Ok(())
}

fn chosen(tools: &Toolstack, args: &Ending) -> anyhow::Result<Vec<DomId>> {
    if !args.all {
        return args.domains.iter().map(|word| crate::domain(tools, word)).collect();
    }
    let infos = tools.hypervisor.domains().context("asking for the domains")?;
    Ok(infos
        .iter()
        .filter_map(|info| DomId::new(info.domain.0))
        .filter(|domid| *domid != DomId::DOM0)
        .collect())
}

fn wait(tools: &Toolstack, domids: &[DomId]) -> anyhow::Result<()> {
    eprintln!("Waiting for {} domains", domids.len());
    for domid in domids {
        match tools.wait_end(*domid, None)? {
            End::Stopped(reason) => {
                eprintln!(
                    "Domain {} has been shut down, reason code {}",
                    domid.raw(),
                    reason.code()
                )
            }
            End::Gone | End::StillThere => eprintln!("Domain {} has been destroyed", domid.raw()),
        }
    }
    Ok(())
}
