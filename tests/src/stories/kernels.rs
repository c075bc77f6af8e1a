//! Guest kernels as distributions pack them, and guests of many sizes.

use anyhow::{Context, Result, ensure};

use crate::dom0::{Dom0, PATIENCE};
use crate::guest::{TINY_PATIENCE, Tiny};
use crate::machine::Parts;

/// A file in `/srv/guests`, and the memory it is tried with, in MiB.
const CASES: [(&str, u32); 4] = [
    // Debian's kernel for clouds: by lz4. The usual one: by xz.
    ("vmlinuz-cloud", 128),
    ("vmlinuz", 256),
    ("vmlinuz-gzip", 384),
    ("vmlinuz-zstd", 512),
];
/// How far what the guest's kernel counts may be from what was asked for, in percent.
const TOLERANCE: u64 = 6;

pub(super) fn of_every_packing(parts: &Parts) -> Result<()> {
    let mut dom0 = Dom0::boot(parts)?;
    for (kernel, mib) in CASES {
        boots(&mut dom0, kernel, mib).with_context(|| format!("{kernel} in {mib} MiB"))?;
    }
    small(&mut dom0)?;
    dom0.power_off(PATIENCE)
}

fn boots(dom0: &mut Dom0, kernel: &str, mib: u32) -> Result<()> {
    dom0.start_tiny(&Tiny::new("sized").kernel(kernel).memory(mib))?;
    let listed = dom0.run("xl list sized | awk 'END { print $3 }'")?;
    ensure!(listed == mib.to_string(), "the list says {listed} MiB");
    // MemTotal leaves out what the kernel itself occupies, which the line of its start counts apart.
    let total = dom0.in_guest("sized", "awk '/MemTotal/ { print $2 }' /proc/meminfo", PATIENCE)?;
    let line = dom0.in_guest("sized", "dmesg | grep ' Memory: '", PATIENCE)?;
    let total: u64 = total.trim().parse().context("MemTotal")?;
    let (available, present) = counts(&line).with_context(|| format!("cannot read {line:?}"))?;
    let wanted = u64::from(mib) << 10;
    ensure!(
        present.abs_diff(wanted) <= wanted * TOLERANCE / 100,
        "the guest finds {present} KiB"
    );
    ensure!(
        total >= available && total <= present,
        "MemTotal is {total} KiB, of {available} KiB available at first and {present} KiB present"
    );
    dom0.destroy("sized")
}

/// Domain 0 may run another kernel than its guests: here one that is six releases newer.
pub(super) fn newer_in_dom0(parts: &Parts) -> Result<()> {
    let mut dom0 = Dom0::boot(&parts.with_newer_dom0()?)?;
    let release = dom0.run("uname -r")?;
    ensure!(release.starts_with("6.12."), "Domain 0 runs {release}");
    dom0.run("dd if=/dev/zero of=/tmp/d.img bs=1M count=0 seek=16 2>/dev/null")?;
    dom0.start_tiny(&Tiny::new("older").at("10.0.2.30").disk("file:/tmp/d.img,xvda,w"))?;
    let guest = dom0.in_guest(
        "older",
        "echo mark | dd of=/dev/xvda conv=fsync 2>/dev/null; uname -r",
        PATIENCE,
    )?;
    ensure!(guest.starts_with("6.1."), "the guest runs {guest}");
    dom0.run("ping -c 2 -W 5 10.0.2.30 && head -c 4 /tmp/d.img | grep -q mark")?;
    dom0.destroy("older")?;
    dom0.power_off(PATIENCE)
}

/// Debian's Linux ends at 74 MiB, and is refused with a number that suffices; GRUB lives in 64 MiB.
fn small(dom0: &mut Dom0) -> Result<()> {
    dom0.write_config("small", &Tiny::new("small").memory(64).config())?;
    let (code, said) = dom0.ask("xl create /tmp/small.cfg 2>&1", PATIENCE)?;
    ensure!(
        code != 0 && said.contains("64 MiB are too little for this kernel and ramdisk; set memory = "),
        "a kernel that does not fit: {code}, {said}"
    );
    let grub = "name = \"small\"\nkernel = \"/srv/guests/grub\"\nmemory = 64\non_crash = \"destroy\"\n";
    dom0.create("small", grub)?;
    dom0.watch_guest("small", "grub> ", TINY_PATIENCE)?;
    let listed = dom0.run("xl list small | awk 'END { print $3 }'")?;
    ensure!(listed == "64", "the list says {listed} MiB");
    dom0.destroy("small")
}

/// Reads `Memory: 90012K/131068K available (…`.
fn counts(line: &str) -> Option<(u64, u64)> {
    let (_, rest) = line.split_once("Memory: ")?;
    let (available, rest) = rest.split_once("K/")?;
    let (present, _) = rest.split_once('K')?;
    Some((available.parse().ok()?, present.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_line_about_memory_is_read() {
        let line = "[    0.1] Memory: 90012K/131068K available (14342K kernel code, 2335K rwdata)";
        assert_eq!(counts(line), Some((90_012, 131_068)));
        assert_eq!(counts("Memory: much"), None);
    }
}
