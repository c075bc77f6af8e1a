//! `xl dump-core`

use crate::create::Start;
use crate::progress;
use anyhow::Context;
use clap::Args;
use ferroxen_consoled::interrupts;
use ferroxen_domains::dump::{Manner, usual_path};
use ferroxen_domains::patience::Interrupt;
use ferroxen_domains::{Toolstack, create};
use ferroxen_words::DomId;
use std::path::PathBuf;
use uuid::Uuid;

#[derive(Debug, Args)]
#[command(after_help = "Without a name, the file is /var/lib/xen/dump/NAME.\n\
                        The domain stands still meanwhile, unless --live is given.")]
pub struct DumpCore {
    /// A domain, by name or number
    #[arg(value_name = "Domain")]
    pub domain: String,
    /// The file to write
    #[arg(value_name = "Filename")]
    pub file: Option<PathBuf>,
    /// Let the domain run on meanwhile (xm's)
    #[arg(short = 'L', long)]
    pub live: bool,
    /// Destroy the domain after its core was dumped (xm's)
    #[arg(short = 'C', long)]
    pub crash: bool,
    /// Build the domain anew after its core was dumped (xm's)
    #[arg(short = 'R', long, conflicts_with = "crash")]
    pub reset: bool,
}

/// `xl dump-core`
pub fn run(args: &DumpCore) -> anyhow::Result<()> {
    let stop = interrupts().context("preparing for Ctrl-C")?;
    let tools = Toolstack::open()?
        .until(Interrupt::from_pipe(stop.try_clone()?))
        .showing(progress::for_people("dump-core"));
    let domid = crate::domain(&tools, &args.domain)?;
    if domid == DomId::DOM0 {
        anyhow::bail!("Domain 0 cannot look at itself standing still: its kernel's own kdump does that");
    }
    let path = args.file.clone().unwrap_or_else(|| usual_path(&tools.name(domid)));
    let manner = if args.live { Manner::Live } else { Manner::Paused };
    // What it will be built of is asked for first: afterwards it is too late to refuse.
    let loaded = match args.reset {
        true => {
            let info = tools.hypervisor.domain(domid)?.context("the domain has gone")?;
            let kept = tools.keep.load(domid, &Uuid::from_bytes(info.handle));
            Some(kept.context("no configuration is kept of it, so it cannot be built anew")?)
        }
        false => None,
    };
    tools.dump_core(domid, &path, manner)?;
    if args.crash || args.reset {
        tools.destroy(domid)?;
    }
    if let Some(loaded) = loaded {
        let domid = create::create(&tools, &loaded.config)?;
        let start = Start {
            quiet: true,
            ..Start::default()
        };
        start.finish(&tools, domid, &loaded, stop)?;
    }
    Ok(())
}
