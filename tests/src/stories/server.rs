//! A server: Domain 0 is a Debian with systemd on a disk, as somebody has it who adds Xen to it.

use anyhow::{Result, ensure};

use crate::dom0::{Dom0, PATIENCE};
use crate::machine::Parts;

/// With no human input: the daemons, and the domain of /etc/xen/auto.
pub(super) fn starts_by_itself(parts: &Parts) -> Result<()> {
    let mut dom0 = Dom0::boot(&parts.with_debian_dom0(&[])?)?;
    // `degraded` would be an exit code; whoever reads it wants the list.
    let settled = "systemctl is-system-running --wait || { systemctl --failed --no-legend; networkctl --no-pager; \
                   journalctl -b -p warning --no-pager | tail -n 20; }";
    let state = dom0.run_within(settled, PATIENCE * 5)?;
    ensure!(state == "running", "systemd says:\n{state}");
    let units = dom0.run("systemctl is-active xenstored xenconsoled xen-network xendomains | xargs")?;
    ensure!(units == "active active active active", "the units are {units}");
    let list = dom0.run("xl list")?;
    ensure!(
        list.contains("\nhello "),
        "the domain of /etc/xen/auto did not start:\n{list}"
    );
    dom0.power_off(PATIENCE)
}
