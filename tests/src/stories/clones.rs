//! Ten clones of one template: each is there in less than a second.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::dom0::{Dom0, PATIENCE};
use crate::guest::DEBIAN_PATIENCE;
use crate::machine::{Accelerator, Parts};

const CLONES: u32 = 10;
/// What a clone may take.
const AT_MOST: Duration = Duration::from_secs(1);
/// What vdd is, in MiB: the template, and what the clones differ by.
const IMAGES_MIB: u64 = 3072;

/// On a machine of which QEMU counts the instructions, and lets each take a nanosecond: its clock tells how long a CPU takes
/// that does a thousand million in a second, which is less than any of today's, and tells the same on every host. (While the
/// CPU waits for the disk, the clock goes as the host's does.) The translator's own pace, several times slower and at the mercy
/// of whatever else the host does, would say nothing of a clone.
pub(super) fn are_made_in_no_time(parts: &Parts) -> Result<()> {
    let mut parts = parts.with_built()?.with_debian_dom0(&[IMAGES_MIB])?;
    parts.accelerator = Accelerator::Counted;
    let mut dom0 = Dom0::boot(&parts)?;
    dom0.run("dmesg -n 1")?;
    dom0.run_within(
        "mkfs.ext4 -q /dev/vdd && mkdir -p /images && mount /dev/vdd /images && mount -r /dev/vdc /mnt && \
         cp --sparse=always /mnt/guests/built.img /images/template.img && umount /mnt && sync",
        DEBIAN_PATIENCE,
    )?;
    for number in 1..=CLONES {
        let printed = dom0.run(&format!(
            "before=$(date +%s%N); \
             xl image clone --overlay /images/template.img /images/c{number}.qcow2 --hostname c{number} >/dev/null; \
             code=$?; after=$(date +%s%N); [ $code = 0 ] && echo $((after - before))"
        ))?;
        let taken = printed.trim().parse().map(Duration::from_nanos);
        let taken = taken.with_context(|| format!("the time of clone {number} is {printed:?}"))?;
        ensure!(taken < AT_MOST, "clone {number} took {taken:?}");
    }
    let spoilt =
        dom0.run("for n in /images/c*.qcow2; do qemu-img check -q $n || echo $n; done; ls /images | grep -c qcow2")?;
    ensure!(
        spoilt == CLONES.to_string(),
        "of the clones, and those spoilt: {spoilt}"
    );
    dom0.power_off(PATIENCE)
}
