//! `xl domid` and `xl domname`: names and numbers of domains.

use clap::Args;
use ferroxen_domains::{Toolstack, nodes};
use ferroxen_words::DomId;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub struct Domid {
    /// A domain's name
    #[arg(value_name = "DomainName")]
    pub name: String,
}

#[derive(Debug, Args)]
pub struct Domname {
    /// A domain's number
    #[arg(value_name = "DomainId")]
    pub domid: String,
}

/// `xl domid`
pub fn domid(tools: &Toolstack, args: &Domid) -> anyhow::Result<ExitCode> {
    let is_number = args.name.parse::<u16>().is_ok();
    let Some(domid) = tools.find(&args.name)?.filter(|_| !is_number) else {
        eprintln!(
            "Can't get domid of domain name '{}', maybe this domain does not exist.",
            args.name
        );
        return Ok(ExitCode::FAILURE);
    };
    crate::show(&format!("{}\n", domid.raw()))?;
    Ok(ExitCode::SUCCESS)
}

/// `xl domname`
pub fn domname(tools: &Toolstack, args: &Domname) -> anyhow::Result<ExitCode> {
    let Ok(number) = args.domid.parse::<u16>() else {
        eprintln!("Invalid domain id.\n");
        return Ok(ExitCode::FAILURE);
    };
    let domid = DomId::new(number);
    let name = domid.map(|domid| nodes::name(&tools.store, domid)).transpose()?;
    let Some(name) = name.flatten() else {
        eprintln!("Can't get domain name of domain id '{number}', maybe this domain does not exist.");
        return Ok(ExitCode::FAILURE);
    };
    crate::show(&format!("{name}\n"))?;
    Ok(ExitCode::SUCCESS)
}
