//! Debian's own toolstack on our hypervisor, which it takes for Debian's.

use anyhow::{Context, Result, ensure};

use super::boot::info_has_its_fields;
use super::commands::wait_for_state;
use crate::dom0::{Dom0, PATIENCE};
use crate::guest::micro;
use crate::machine::Parts;

pub(super) fn works(parts: &Parts) -> Result<()> {
    let mut parts = parts.clone();
    parts.ramdisk = parts
        .debian_ramdisk
        .clone()
        .context("no ramdisk with Debian's tools was made")?;
    let mut dom0 = Dom0::boot(&parts)?;
    info_has_its_fields(&mut dom0)?;
    let list = dom0.run("xl list")?;
    ensure!(
        list.contains("\nDomain-0 ") || list.starts_with("Domain-0 "),
        "the list is:\n{list}"
    );
    let counts = dom0.run("PATH=$PATH:/usr/lib/xen-4.17/bin xenperf -p")?;
    ensure!(
        counts.contains("hypercalls") && counts.contains("multicall"),
        "xenperf says:\n{counts}"
    );
    dom0.create("life", &micro("life", "idle"))?;
    wait_for_state(&mut dom0, "life", "-b----")?;
    dom0.run("xl pause life")?;
    wait_for_state(&mut dom0, "life", "-bp---")?;
    dom0.run("xl unpause life")?;
    wait_for_state(&mut dom0, "life", "-b----")?;
    dom0.destroy("life")?;
    dom0.power_off(PATIENCE)
}
