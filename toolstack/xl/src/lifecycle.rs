//! `xl destroy`, `xl shutdown`, `xl reboot`, and what else is asked of a running domain.

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use ferroxen_domains::control::{End, Request};
use ferroxen_domains::patience::{Interrupt, Patience};
use ferroxen_domains::xen::Xen;
use ferroxen_domains::{Toolstack, nodes};
use ferroxen_words::DomId;
use ferroxen_xenstore::Store;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub struct Destroy {
    /// Domains, by name or number
    #[arg(value_name = "Domain", required = true)]
    pub domains: Vec<String>,
    /// Permit to destroy domain 0, which only ever succeeds from another domain
    #[arg(short = 'f')]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct Ending {
    /// Do it for all guest domains
    #[arg(short = 'a', long = "all")]
    pub all: bool,
    /// Wait for the guests to have done it; given twice, until they are gone
    #[arg(short = 'w', long = "wait", action = clap::ArgAction::Count)]
    pub wait: u8,
    /// Fall back to an ACPI event (for HVM guests without PV drivers; PV guests hear of it without)
    #[arg(short = 'F')]
    pub fallback: bool,
    /// Domains, by name or number
    #[arg(value_name = "-a|Domain")]
    pub domains: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Rename {
    /// A domain, by name or number
    #[arg(value_name = "Domain")]
    pub domain: String,
    /// Its new name
    #[arg(value_name = "NewDomainName")]
    pub name: String,
}

#[derive(Debug, Args)]
pub struct Sysrq {
    /// A domain, by name or number
    #[arg(value_name = "Domain")]
    pub domain: String,
    /// The key, such as `s` for a sync
    #[arg(value_name = "letter")]
    pub letter: char,
}

#[derive(Debug, Args)]
pub struct Trigger {
    /// A domain, by name or number
    #[arg(value_name = "Domain")]
    pub domain: String,
    /// Which
    #[arg(value_name = "nmi|reset|init|power|sleep|s3resume")]
    pub trigger: Button,
    /// The vcpu that an NMI is for
    #[arg(value_name = "VCPU", default_value_t = 0)]
    pub vcpu: u32,
}

/// What a machine has buttons for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Button {
    Nmi,
    Reset,
    Init,
    Power,
    Sleep,
    S3resume,
}

/// `xl destroy`
pub fn destroy(tools: &Toolstack, args: &Destroy) -> anyhow::Result<()> {
    for word in &args.domains {
        let domid = match crate::domain(tools, word) {
            Ok(domid) => domid,
            // Gone, but an end that failed half-way may have left something.
            Err(error) => match tools.find(word)?.filter(|domid| has_remains(tools, *domid)) {
                Some(domid) => domid,
                None => return Err(error),
            },
        };
        if domid == DomId::DOM0 {
            match args.force {
                false => bail!("Not destroying domain 0; use -f to force.\nThis can only be done from another domain."),
                true => bail!("domain 0 cannot be destroyed from within: shut the host down (`poweroff`, `reboot`)"),
            }
        }
        tools.destroy(domid).with_context(|| format!("destroying \"{word}\""))?;
    }
    Ok(())
}

fn has_remains(tools: &Toolstack, domid: DomId) -> bool {
    let exists = |path: String| tools.store.exists(&path).unwrap_or(false);
    domid != DomId::DOM0 && (exists(nodes::domain(domid)) || exists(nodes::libxl(domid)))
}

/// `xl shutdown`
pub fn shutdown(args: &Ending) -> anyhow::Result<ExitCode> {
    end(args, Request::PowerOff, "Shutting down domain")
}

/// `xl reboot`
pub fn reboot(args: &Ending) -> anyhow::Result<ExitCode> {
    end(args, Request::Reboot, "Rebooting domain")
}

fn end(args: &Ending, request: Request, says: &str) -> anyhow::Result<ExitCode> {
    if args.domains.is_empty() && !args.all {
        eprintln!("You must specify -a or a domain id.\n");
        return Ok(ExitCode::FAILURE);
    }
    let tools = crate::tools()?;
    let domids = match args.all {
        true => guests(&tools)?,
        false => args
            .domains
            .iter()
            .map(|word| crate::domain(&tools, word))
            .collect::<anyhow::Result<_>>()?,
    };
    for domid in &domids {
        eprintln!("{says} {}", domid.raw());
        tools.request(*domid, request)?;
    }
    match args.wait {
        0 => {}
        1 => wait(&tools, &domids)?,
        _ => wait_gone(&tools, &domids)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn guests(tools: &Toolstack) -> anyhow::Result<Vec<DomId>> {
    let infos = tools.hypervisor.domains().context("asking for the domains")?;
    Ok(infos
        .iter()
        .filter_map(|info| DomId::new(info.domain.0))
        .filter(|domid| *domid != DomId::DOM0)
        .collect())
}

fn wait(tools: &Toolstack, domids: &[DomId]) -> anyhow::Result<()> {
    let never = Interrupt::never();
    eprintln!("Waiting for {} domains", domids.len());
    for domid in domids {
        match tools.wait_end(*domid, Patience::until_interrupted(&never, None))? {
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

fn wait_gone(tools: &Toolstack, domids: &[DomId]) -> anyhow::Result<()> {
    let never = Interrupt::never();
    eprintln!("Waiting for {} domains", domids.len());
    for domid in domids {
        tools.wait_gone(*domid, Patience::until_interrupted(&never, None))?;
        eprintln!("Domain {} has been destroyed", domid.raw());
    }
    Ok(())
}

/// `xl rename`
pub fn rename(tools: &Toolstack, args: &Rename) -> anyhow::Result<()> {
    ferroxen_xlconfig::check_name(&args.name).map_err(anyhow::Error::msg)?;
    tools.rename(crate::domain(tools, &args.domain)?, &args.name)?;
    Ok(())
}

/// `xl sysrq`
pub fn sysrq(tools: &Toolstack, args: &Sysrq) -> anyhow::Result<()> {
    tools.sysrq(crate::domain(tools, &args.domain)?, args.letter)?;
    Ok(())
}

/// `xl trigger`
pub fn trigger(tools: &Toolstack, args: &Trigger) -> anyhow::Result<()> {
    let domid = crate::domain(tools, &args.domain)?;
    match args.trigger {
        Button::Nmi => Xen::open()?
            .send_nmi(domid, args.vcpu)
            .with_context(|| format!("sending an NMI to vcpu {} of \"{}\"", args.vcpu, args.domain)),
        Button::Power => bail!("a PV domain has no power button: `xl shutdown` asks it to power off"),
        Button::Reset => bail!("a PV domain has no reset button: `xl reboot` asks it to start anew"),
        Button::Init | Button::Sleep | Button::S3resume => bail!("a PV domain has only an NMI button"),
    }
}
