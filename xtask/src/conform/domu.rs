//! The guests as domUs: a Linux Domain 0 makes them, one after the other, by `xl create`.
//!
//! What an unprivileged domain sees is another half of the same promise: calls that are Domain 0's must be refused to it,
//! its console and its store are rings that somebody else serves, and its builder is the toolstack. The toolstack is ours
//! on either hypervisor, so that what differs is the hypervisor's doing.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use ferroxen_stories::dom0::Dom0;
use ferroxen_stories::machine::Parts;

use crate::bench::{Bench, Choice};
use crate::conform::Transcripts;
use crate::conform::transcript::Transcript;
use crate::images::Toolstack;
use crate::steps::Steps;

/// The guests that have nothing to say there, and why.
const LEFT_OUT: &[(&str, &str)] = &[
    (
        "physdev",
        "the machine's lines and devices are Domain 0's; `unprivileged` asks for them",
    ),
    (
        "platform",
        "the host's own affairs are Domain 0's; `unprivileged` asks for them",
    ),
    ("domctl", "domains are Domain 0's to control, as above"),
    ("sysctl", "so is the host"),
    ("wakes", "says which CPUs a vcpu may use, which is Domain 0's"),
    ("xsa-13", "maps lines, as above"),
    ("xsa-149", "makes domains, which is Domain 0's"),
    ("log-dirty", "makes a domain, as above"),
    ("xsa-458", "maps messages, as above"),
    (
        "preemption",
        "measures by a clock that counts instructions, on a machine with nothing else in it",
    ),
];
/// Those that the tests run: what a domU gets and Domain 0 does not, and a bit of everything else.
pub const TELLING: [&str; 25] = [
    "ground",
    "version",
    "unprivileged",
    "xenstore",
    "console",
    "cpuid",
    "io-ports",
    "machine-frames",
    "evtchn-ops",
    "evtchn-delivery",
    "evtchn-ports",
    "vcpu-op",
    "timers",
    "mmu-update",
    "mmuext",
    "clear-page",
    "pt-emulation",
    "memory-ops",
    "grant-maps",
    "failsafe",
    "fpu",
    "stack-nowhere",
    "xsa-7",
    "xsa-212",
    "xsa-344",
];
/// Guests whose two vcpus are to share a CPU; as Domain 0 they see to it themselves.
const ON_ONE_CPU: &[&str] = &["failsafe", "fpu", "yields", "xsa-293"];
/// How long a guest may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// What `timeout` returns when the time was up.
const TIME_WAS_UP: i32 = 124;

/// Takes out of `names` the guests that have nothing to say as a domU.
pub fn sensible(names: Vec<String>) -> Vec<String> {
    let is_left_out = |name: &String| LEFT_OUT.iter().any(|(left_out, _)| left_out == name);
    names.into_iter().filter(|name| !is_left_out(name)).collect()
}

/// Runs the guests on Debian's hypervisor and on ours at once; returns what they saw on either.
pub fn run_on_both(names: &[String]) -> Result<(Transcripts, Transcripts)> {
    let (on_stock, on_ours) = (parts(true)?, parts(false)?);
    thread::scope(|scope| {
        let stock = scope.spawn(|| run_on(&on_stock, names));
        let ours = run_on(&on_ours, names)?;
        let stock = stock
            .join()
            .map_err(|_| anyhow!("the run on Debian's hypervisor panicked"))?;
        Ok((stock?, ours))
    })
}

/// Runs the guests on ours.
pub fn run_all(names: &[String]) -> Result<Transcripts> {
    run_on(&parts(false)?, names)
}

/// Makes ready what a machine with Linux as Domain 0 needs.
fn parts(stock: bool) -> Result<Parts> {
    let choice = Choice {
        stock,
        toolstack: Toolstack::Ours,
        yes: true,
    };
    let bench = Bench::prepare_bare(choice, &mut Steps::new())?;
    let host = if stock { "stock" } else { "ours" };
    Ok(bench.parts(&format!("conform-domu-{host}")))
}

/// Boots a machine, and runs the guests there.
pub fn run_on(parts: &Parts, names: &[String]) -> Result<Transcripts> {
    let mut parts = parts.clone();
    parts.cpus = 2;
    parts.options.push_str(" guest_loglvl=none");
    let mut dom0 = Dom0::boot(&parts)?;
    // Something that can be read from and never ends, for the consoles' input.
    dom0.run("mkfifo /tmp/keys")?;
    dom0.write_config("guest", CONFIG)?;
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

/// What all guests have; their own words are added on the command line.
const CONFIG: &str = "kernel = \"/srv/guests/conform\"\nmemory = 64\nvcpus = 2\nmax_event_channels = 4095\n\
                      on_crash = \"destroy\"\non_poweroff = \"destroy\"\non_reboot = \"destroy\"\n";

/// Creates one and listens until it is gone, which the next need not wait for: no two have the same name.
fn run(dom0: &mut Dom0, name: &str) -> Result<Transcript> {
    let cpus = if ON_ONE_CPU.contains(&name) { "'cpus=\"0\"'" } else { "" };
    let seconds = PATIENCE.as_secs();
    let create = format!(
        "timeout {seconds} xl create -c /tmp/guest.cfg 'name=\"{name}\"' 'extra=\"{name}\"' {cpus} <>/tmp/keys"
    );
    let (code, said) = dom0.ask(&create, PATIENCE * 3)?;
    if said.contains("cannot ") && !said.contains(&format!("[{name}] ")) {
        bail!("xl create says:\n{said}");
    }
    if code == TIME_WAS_UP {
        dom0.ask(&format!("xl destroy {name}"), PATIENCE)?;
    }
    Ok(Transcript::heard(name, &said, code != TIME_WAS_UP))
}
