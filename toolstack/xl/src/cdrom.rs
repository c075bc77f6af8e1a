//! `xl cd-insert` and `xl cd-eject`: only the drive of an HVM domain can be opened. A PV domain's `cdrom` is a disk that
//! is read-only, and says so; it comes and goes as a whole.

use anyhow::bail;
use clap::Args;
use ferroxen_domains::Toolstack;
use ferroxen_xlconfig::VirtualDisk;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct CdInsert {
    /// A domain, by name or number
    #[arg(value_name = "Domain")]
    pub domain: String,
    /// The drive, such as `hdc`
    #[arg(value_name = "VirtualDevice")]
    pub device: String,
    /// What to put into it
    #[arg(value_name = "type:path")]
    pub target: PathBuf,
}

#[derive(Debug, Args)]
pub struct CdEject {
    /// A domain, by name or number
    #[arg(value_name = "Domain")]
    pub domain: String,
    /// The drive, such as `hdc`
    #[arg(value_name = "VirtualDevice")]
    pub device: String,
}

/// `xl cd-insert`
pub fn insert(tools: &Toolstack, args: &CdInsert) -> anyhow::Result<()> {
    refuse(tools, &args.domain, &args.device)
}

/// `xl cd-eject`
pub fn eject(tools: &Toolstack, args: &CdEject) -> anyhow::Result<()> {
    refuse(tools, &args.domain, &args.device)
}

/// As libxl does, in its words.
fn refuse(tools: &Toolstack, domain: &str, device: &str) -> anyhow::Result<()> {
    let domid = crate::domain(tools, domain)?;
    VirtualDisk::parse(device).map_err(anyhow::Error::msg)?;
    bail!(
        "Domain {}: cdrom-insert requires an HVM domain; a PV domain's disks come and go as a whole \
         (`xl block-detach`, `xl block-attach`)",
        domid.raw()
    )
}
