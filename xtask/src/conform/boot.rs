//! One guest, one boot: as Domain 0, on a machine with nothing in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use ferroxen_stories::machine::CPU_MODEL;

use crate::conform::transcript::Transcript;
use crate::serial;

/// How long a guest may take; most take a second, and a busy machine makes that many.
const PATIENCE: Duration = Duration::from_secs(120);
/// What the host says when the guest has died of what it did: nothing more will come of it.
const DEATHS: [&str; 3] = ["Domain 0 crashed", "Hardware Dom0 crashed", "Reboot in five seconds"];
/// Guests that measure time, or give the host so much of it, so that theirs must not depend on what else this machine does: a tick is an instruction.
/// One CPU, as others would take turns with it, a long turn each.
const COUNTED: [&str; 3] = ["preemption", "xsa-149", "yields"];
/// Two vcpus for the guests that want two; memory that every guest's tables fit in; a feature less than there is.
const OPTIONS: &str = "console=com1 com1=115200,8n1 dom0_mem=64M dom0_max_vcpus=2 loglvl=warning guest_loglvl=none \
                       cpuid=no-sse3";

/// A hypervisor, and how to start a guest on it.
pub struct Host {
    name: &'static str,
    hypervisor: PathBuf,
}

impl Host {
    /// Debian's.
    pub fn stock(hypervisor: PathBuf) -> Self {
        Self {
            name: "stock",
            hypervisor,
        }
    }

    /// Ours.
    pub fn ours(hypervisor: PathBuf) -> Self {
        Self {
            name: "ours",
            hypervisor,
        }
    }

    /// Asks `kernel` for the names of its guests.
    pub fn list(&self, kernel: &Path) -> Result<Vec<String>> {
        let said = self.boot(kernel, "list")?;
        let names = said.lines().filter_map(|line| line.trim_end().strip_prefix("[list] "));
        let names: Vec<String> = names.map(str::to_owned).collect();
        if names.is_empty() {
            bail!("the kernel does not name its guests; it said:\n{said}");
        }
        Ok(names)
    }

    /// Runs guest `name` of `kernel`.
    pub fn run(&self, kernel: &Path, name: &str) -> Result<Transcript> {
        let said = self.boot(kernel, name)?;
        Ok(Transcript::heard(
            name,
            &said,
            DEATHS.iter().any(|death| said.contains(death)),
        ))
    }

    /// Boots with `words` on the guest's command line, and returns all that the serial line said.
    pub fn boot(&self, kernel: &Path, words: &str) -> Result<String> {
        let mut qemu = serial::machine();
        qemu.args(["-cpu", CPU_MODEL, "-m", "128M"]);
        if COUNTED.contains(&words) {
            qemu.args(["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"]);
            qemu.args(["-smp", "1"]);
        } else {
            qemu.args(["-accel", "tcg,thread=multi", "-smp", "2"]);
        }
        qemu.args(["-append", OPTIONS, "-kernel"]).arg(&self.hypervisor);
        qemu.arg("-initrd").arg(format!("{} {words}", kernel.display()));
        let said = serial::hear(&mut qemu, &DEATHS, PATIENCE)?;
        let log = super::log(self.name, words);
        fs::create_dir_all(log.parent().unwrap_or(Path::new(".")))?;
        fs::write(&log, &said)?;
        Ok(said)
    }
}
