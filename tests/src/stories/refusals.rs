//! What cannot be started, and is refused with its name and the reason: as Domain 0, and as a guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::dom0::{Dom0, PATIENCE};
use crate::guest::Tiny;
use crate::machine::{Loader, Machine, Parts};

/// How long the hypervisor may take to its refusal.
const SOON: Duration = Duration::from_secs(60);
/// A program for Linux, which no Xen starts.
const PROGRAM: &str = "/bin/sh";

pub(super) fn are_named(parts: &Parts) -> Result<()> {
    let scratch = tempfile::Builder::new().prefix("ferroxen-refused-").tempdir()?;
    no_domain0(parts, scratch.path())?;
    no_guest(parts)
}

/// The hypervisor says what is wrong with what the loader gave it, and stands still.
fn no_domain0(parts: &Parts, scratch: &Path) -> Result<()> {
    let stands_still = |parts: Parts, wanted: &str| -> Result<()> {
        let mut machine = Machine::start(&parts)?;
        let mut at = 0;
        for sign in [wanted, "cannot start; the machine stands still"] {
            let seen = machine.transcript().wait_for(sign, at, &["broken"], SOON);
            at = seen.with_context(|| format!("the machine said:\n{}", machine.last_words(20)))?;
        }
        ensure!(!machine.has_ended()?, "after {wanted:?} the machine has ended");
        Ok(())
    };
    let mut alone = parts.clone();
    alone.loader = Loader::QemuAlone;
    stands_still(alone, "no kernel for Domain 0: give it as the first module")?;

    let packed = fs::read(&parts.packed_kernel)?;
    let mut damaged = packed.clone();
    let middle = damaged.len() / 2;
    damaged
        .get_mut(middle..middle + 64)
        .context("the kernel is short")?
        .fill(0xa5);
    let cut = packed.get(..packed.len() / 2).unwrap_or_default();
    for (name, bytes, wanted) in [
        (
            "empty",
            &[][..],
            "(first module) cannot be unpacked: neither an ELF file, a bzImage nor gzip",
        ),
        (
            "noise",
            &[0x5a; 1 << 16],
            "(first module) cannot be unpacked: neither an ELF file, a bzImage nor gzip",
        ),
        (
            "cut",
            cut,
            "(first module) cannot be unpacked: bzImage header points outside of the file",
        ),
        ("damaged", &damaged, "(first module) cannot be unpacked: xz data"),
        (
            "program",
            &fs::read(PROGRAM)?,
            "(first module) has no Xen ELF notes: not built with PV support",
        ),
    ] {
        let mut parts = parts.clone();
        parts.kernel = written(scratch, name, bytes)?;
        stands_still(parts, wanted)?;
    }
    let mut small = parts.clone();
    small.options.push_str(" dom0_mem=16M");
    stands_still(small, "give more with dom0_mem=")
}

fn written(directory: &Path, name: &str, bytes: &[u8]) -> Result<PathBuf> {
    let path = directory.join(name);
    fs::write(&path, bytes)?;
    Ok(path)
}

/// `xl create` names the file and the reason, and leaves nothing behind.
fn no_guest(parts: &Parts) -> Result<()> {
    const NODES: &str = "xenstore-ls -f / | sed 's/ = .*//'";
    let mut dom0 = Dom0::boot(parts)?;
    // The directories of backends are made once, and stay.
    let whole = Tiny::new("whole").at("10.0.2.71").disk("file:/srv/guests/micro,xvdb,r");
    dom0.start_tiny(&whole)?;
    dom0.destroy("whole")?;
    dom0.run(": >/tmp/empty; dd if=/dev/urandom of=/tmp/noise bs=64k count=1 2>/dev/null; cp /bin/bash /tmp/program")?;
    dom0.run("dd if=/srv/guests/vmlinuz bs=64k count=46 2>/dev/null >/tmp/cut; cp /srv/guests/vmlinuz /tmp/damaged")?;
    dom0.run("dd if=/dev/zero of=/tmp/damaged bs=64 seek=60000 count=1 conv=notrunc 2>/dev/null")?;
    let (free, nodes) = (dom0.settled_free_memory()?, dom0.run(NODES)?);
    for (file, reason) in [
        ("absent", "No such file"),
        ("empty", "neither an ELF file, a bzImage nor gzip"),
        ("noise", "neither an ELF file, a bzImage nor gzip"),
        ("cut", "points outside of the file"),
        ("damaged", "xz data"),
        ("program", "no Xen ELF notes"),
    ] {
        let config = Tiny::new("refused")
            .setting(&format!("kernel = \"/tmp/{file}\""))
            .config();
        refuses(&mut dom0, &config, &[&format!("/tmp/{file}"), reason])?;
    }
    for (setting, words) in [
        ("ramdisk = \"/tmp/absent\"", ["/tmp/absent", "No such file"]),
        ("disk = [ 'file:/tmp/absent,xvda,w' ]", ["/tmp/absent", "No such file"]),
        ("vif = [ 'bridge=nowhere' ]", ["nowhere", "bridge"]),
        ("memory = 100000", ["cannot create", "memory"]),
    ] {
        refuses(&mut dom0, &Tiny::new("refused").setting(setting).config(), &words)?;
    }
    let (left, nodes_left) = (dom0.settled_free_memory()?, dom0.run(NODES)?);
    ensure!(left >= free, "{free} MiB were free before, {left} MiB after");
    ensure!(
        nodes_left == nodes,
        "xenstore had before:\n{nodes}\nand after:\n{nodes_left}"
    );
    dom0.power_off(PATIENCE)
}

/// `xl create` of `config` fails with these words, and leaves nothing in the list.
pub(super) fn refuses(dom0: &mut Dom0, config: &str, words: &[&str]) -> Result<()> {
    dom0.write_config("refused", config)?;
    let (code, said) = dom0.ask("xl create /tmp/refused.cfg 2>&1", PATIENCE)?;
    ensure!(
        code != 0 && words.iter().all(|word| said.contains(word)),
        "`xl create` ends with {code}, and should speak of {words:?}; it says: {said}"
    );
    let list = dom0.run("xl list")?;
    ensure!(!list.contains("\nrefused "), "refused, it is in the list:\n{list}");
    Ok(())
}
