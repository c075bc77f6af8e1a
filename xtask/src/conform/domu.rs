//! The guests as domUs: a Linux Domain 0 makes them, one after the other, by `xl create`.
//!
//! What an unprivileged domain sees is another half of the same promise: calls that are Domain 0's must be refused to it,
//! its console and its store are rings that somebody else serves, and its builder is the toolstack. The toolstack is ours
//! on either hypervisor, so that what differs is the hypervisor's doing.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use ferroxen_stories::dom0::Dom0;

use crate::bench::{Bench, Choice};
use crate::conform::Transcripts;
use crate::conform::transcript::Transcript;
use crate::images::Toolstack;
use crate::steps::Steps;

/// The guests that have something to say there.
const GUESTS: [&str; 52] = [
    "ground",
    "unprivileged",
    "xenstore",
    "version",
    "multicall",
    "evtchn-ops",
    "evtchn-delivery",
    "evtchn-ports",
    "sched-op",
    "vcpu-op",
    "timers",
    "mmu-update",
    "mmuext",
    "pt-types",
    "pt-emulation",
    "tlb",
    "memory-ops",
    "registers",
    "grant-ops",
    "grant-maps",
    "grant-copy",
    "instructions",
    "vectors",
    "user-returns",
    "descriptors",
    "segments",
    "debug-registers",
    "callbacks",
    "fpu",
    "xsa-7",
    "xsa-12",
    "xsa-45",
    "xsa-106",
    "xsa-122",
    "xsa-148",
    "xsa-182",
    "xsa-193",
    "xsa-202",
    "xsa-212",
    "xsa-213",
    "xsa-218",
    "xsa-227",
    "xsa-228",
    "xsa-240",
    "xsa-265",
    "xsa-286",
    "xsa-296",
    "xsa-299",
    "xsa-310",
    "xsa-344",
    "xsa-401",
    "xsa-444",
];
/// How long a guest may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// What `timeout` returns when the time was up.
const TIME_WAS_UP: i32 = 124;

/// Returns the guests to run: those that were named, or all that make sense.
pub fn chosen(names: &[String]) -> Vec<String> {
    if names.is_empty() {
        GUESTS.map(str::to_owned).to_vec()
    } else {
        names.to_vec()
    }
}

/// Boots Debian's hypervisor, or ours, with Linux as Domain 0, and runs the guests there.
pub fn run_all(stock: bool, names: &[String]) -> Result<Transcripts> {
    let choice = Choice {
        stock,
        toolstack: Toolstack::Ours,
        yes: true,
    };
    let bench = Bench::prepare_bare(choice, &mut Steps::new())?;
    let mut parts = bench.parts(if stock {
        "conform-domu-stock"
    } else {
        "conform-domu-ours"
    });
    parts.cpus = 2;
    parts.options.push_str(" guest_loglvl=none");
    let mut dom0 = Dom0::boot(&parts)?;
    // Something that can be read from and never ends, for the consoles' input.
    dom0.run("mkfifo /tmp/keys")?;
    let mut all = Transcripts::new();
    for name in names {
        all.insert(
            name.clone(),
            run(&mut dom0, name).with_context(|| format!("running {name}"))?,
        );
    }
    dom0.power_off(PATIENCE)?;
    Ok(all)
}

fn run(dom0: &mut Dom0, name: &str) -> Result<Transcript> {
    let config = format!(
        "name = \"{name}\"\nkernel = \"/srv/guests/conform\"\nmemory = 64\nvcpus = 2\nextra = \"{name}\"\n\
         on_crash = \"destroy\"\non_poweroff = \"destroy\"\non_reboot = \"destroy\"\n"
    );
    dom0.write_config(name, &config)?;
    let seconds = PATIENCE.as_secs();
    let create = format!("timeout {seconds} xl create -c /tmp/{name}.cfg <>/tmp/keys");
    let (code, said) = dom0.ask(&create, PATIENCE * 3)?;
    if said.contains("cannot ") && !said.contains(&format!("[{name}] ")) {
        bail!("xl create says:\n{said}");
    }
    if code == TIME_WAS_UP {
        dom0.ask(&format!("xl destroy {name}"), PATIENCE)?;
    }
    dom0.wait_until_gone(name, PATIENCE)?;
    Ok(Transcript::heard(name, &said, code != TIME_WAS_UP))
}
