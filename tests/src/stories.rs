//! The stories. Each boots what it needs, and returns an error that says what went wrong.

use anyhow::{Result, ensure};

use crate::dom0::Dom0;
use crate::machine::Parts;

/// A story: what it is called, what it claims, how it is told.
pub struct Story {
    /// For the command line.
    pub name: &'static str,
    /// What is true if it passes.
    pub claim: &'static str,
    /// Whether `cargo xtask test` tells it unasked.
    pub is_default: bool,
    /// Tells it on a machine of these parts.
    pub tell: fn(&Parts) -> Result<()>,
}

/// Every story there is.
pub const STORIES: &[Story] = &[Story {
    name: "boot-1",
    claim: "Domain 0 boots on one CPU",
    is_default: false,
    tell: boot_on_one_cpu,
}];

fn boot_on_one_cpu(parts: &Parts) -> Result<()> {
    let mut dom0 = Dom0::boot(parts)?;
    let kind = dom0.run("cat /sys/hypervisor/type")?;
    ensure!(kind == "xen", "the hypervisor's type is {kind:?}");
    Ok(())
}
