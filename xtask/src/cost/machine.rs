//! A machine that counts its instructions, and what its guest measured.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferroxen_stories::machine::CPU_MODEL;

use crate::cost::figures::Figures;
use crate::places;
use crate::serial;

/// How long a run may take; most are done in a minute, hundreds of guests in some.
const PATIENCE: Duration = Duration::from_secs(1800);
/// Nothing comes after these.
const ENDS: [&str; 4] = [END, "Domain 0 crashed", "Reboot in five seconds", "Kernel panic"];
/// What the guest says last.
const END: &str = "[bench] end";
/// Messages of the hypervisor's cost time, so few.
const OPTIONS: &str = "console=com1 com1=115200,8n1 loglvl=warning guest_loglvl=none";

/// A hypervisor and its options.
pub struct Machine {
    /// What it is called in the log's name.
    pub name: &'static str,
    hypervisor: PathBuf,
    option: &'static str,
}

/// The plugin that counts.
pub struct Counter {
    /// Where it is.
    pub plugin: PathBuf,
    /// The file that shall have the blocks of instructions that programs begin.
    pub blocks: Option<PathBuf>,
}

/// What runs on a hypervisor: Domain 0, and the memory for it.
pub struct Load {
    /// What it is called in the log's name.
    pub name: &'static str,
    /// Options of the hypervisor's, about Domain 0.
    pub options: &'static str,
    /// Memory of the machine.
    pub memory_mib: u32,
    /// Domain 0's kernel.
    pub kernel: PathBuf,
    /// What that is told.
    pub kernel_options: String,
    /// And its ramdisk.
    pub ramdisk: Option<PathBuf>,
}

impl Machine {
    /// Names a machine with `option` for its hypervisor.
    pub fn new(name: &'static str, hypervisor: &Path, option: &'static str) -> Self {
        Self {
            name,
            hypervisor: hypervisor.to_owned(),
            option,
        }
    }

    /// Runs `load` with the plugin that counts. `unused` is an argument that nobody looks at; `round` names the logs.
    ///
    /// Nothing comes in from outside, and the date goes on with the instructions, so every run is the same.
    pub fn run(&self, load: &Load, counter: &Counter, unused: &str, round: &str) -> Result<Figures> {
        let logs = places::made().join("logs");
        fs::create_dir_all(&logs)?;
        let log = logs.join(format!("bench-{}-{}-{round}.log", load.name, self.name));
        let marks = log.with_extension("marks");
        let mut qemu = serial::machine();
        qemu.args(["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"]);
        qemu.args(["-rtc", "base=2026-01-01,clock=vm"]);
        qemu.args(["-cpu", CPU_MODEL, "-smp", "1", "-m"])
            .arg(format!("{}M", load.memory_mib));
        let mut plugin = format!("{},out={}", counter.plugin.display(), marks.display());
        if let Some(blocks) = &counter.blocks {
            plugin.push_str(&format!(",blocks={}", blocks.display()));
        }
        qemu.arg("-plugin").arg(plugin);
        qemu.arg("-append")
            .arg(format!("{OPTIONS} {} {}", load.options, self.option));
        let mut modules = format!("{} {} unused={unused}", load.kernel.display(), load.kernel_options);
        if let Some(ramdisk) = &load.ramdisk {
            modules.push_str(&format!(",{}", ramdisk.display()));
        }
        qemu.arg("-kernel").arg(&self.hypervisor).arg("-initrd").arg(modules);
        let said = serial::hear(&mut qemu, &ENDS, PATIENCE)?;
        let marks = fs::read_to_string(&marks).with_context(|| format!("reading {}", marks.display()))?;
        fs::write(&log, &said)?;
        let context = || format!("{}: see {}", self.name, log.display());
        ensure!(said.contains(END), "the guest did not come to its end; {}", context());
        Figures::heard(&said, &marks).with_context(context)
    }
}
