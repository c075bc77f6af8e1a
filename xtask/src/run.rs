//! `cargo xtask run`: boots, shows a guest living beside Domain 0, hands over.

use std::io::{IsTerminal, Read, Write};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferroxen_stories::dom0::Dom0;
use ferroxen_stories::machine::Machine;

use crate::bench::{Bench, Choice};
use crate::steps::Steps;

/// How long the demo guest may take from `xl create` to its prompt.
const GUEST_PATIENCE: Duration = Duration::from_secs(240);
const POWER_OFF_PATIENCE: Duration = Duration::from_secs(60);
/// The demo guest's prompt, as Debian's root has it.
const GUEST_PROMPT: &str = "root@guest:~#";
/// Ctrl-] would leave a guest's console; Ctrl-\ leaves the machine.
const LEAVE: u8 = 0x1c;

/// How the machine is made.
#[derive(Debug, Clone, Copy)]
pub struct Machinery {
    /// What to run.
    pub choice: Choice,
    /// CPUs of the machine.
    pub cpus: u32,
    /// Memory of the machine, in MiB.
    pub memory_mib: u32,
    /// Stop at the prompt of Domain 0: no demo.
    pub no_demo: bool,
}

/// Boots and shows.
pub fn run(machinery: Machinery) -> Result<()> {
    let mut steps = Steps::new();
    let bench = Bench::prepare(machinery.choice, &mut steps)?;
    let mut parts = bench.parts("run");
    parts.cpus = machinery.cpus;
    parts.memory_mib = machinery.memory_mib;
    let advice = "`cargo xtask run --stock` tells whether Debian's Xen boots here; \
                  `cargo xtask image` makes the images that are out of date";
    let mut dom0 = steps.step("boot to Domain 0's prompt", advice, |step| {
        Dom0::boot_with_progress(&parts, &mut |news| step.say(news))
    })?;
    if !machinery.no_demo {
        demo(&mut dom0, &mut steps)?;
    }
    if std::io::stdin().is_terminal() {
        return hand_over(dom0, machinery.no_demo);
    }
    if !machinery.no_demo {
        let advice = "`cargo xtask run` at a terminal, then `xl console demo`, shows what it does instead";
        steps.step("shut the guest down", advice, |_| {
            dom0.run_within("xl shutdown -w demo", GUEST_PATIENCE)?;
            dom0.wait_until_gone("demo", POWER_OFF_PATIENCE)?;
            Ok(())
        })?;
    }
    steps.step(
        "switch the machine off",
        "QEMU has been ended; nothing is left running",
        |_| dom0.power_off(POWER_OFF_PATIENCE),
    )?;
    steps.print_times();
    Ok(())
}

fn demo(dom0: &mut Dom0, steps: &mut Steps) -> Result<()> {
    let advice = "`cargo xtask run --no-demo` stops at Domain 0's prompt, where `xl -v create -c /etc/xen/demo.cfg` \
                  and the logs in /var/log/xen say more";
    steps.step("guest: from xl create -c to its prompt", advice, |_| start_demo(dom0))?;
    for command in ["xl list", "xl info"] {
        let printed = steps.step(
            command,
            "`cargo xtask run --no-demo` stops at the prompt to try it by hand",
            |_| dom0.run(command),
        )?;
        println!("{printed}\n");
        if command == "xl list" {
            ensure!(printed.contains("Domain-0"), "Domain-0 is not in the list");
            ensure!(printed.contains("demo"), "the guest is not in the list");
        }
    }
    Ok(())
}

/// Creates the demo guest and watches it come to its prompt.
pub fn start_demo(dom0: &mut Dom0) -> Result<()> {
    let from = dom0.machine().transcript().len();
    dom0.type_line("xl create -c /etc/xen/demo.cfg")?;
    dom0.wait_while_held(GUEST_PROMPT, from, GUEST_PATIENCE)?;
    dom0.leave_console()
}

/// Connects the terminal with the machine until the person leaves or the machine ends.
fn hand_over(mut dom0: Dom0, no_demo: bool) -> Result<()> {
    println!("\nThis is Domain 0. `xl list` shows what runs.");
    if !no_demo {
        println!("`xl console demo` shows the guest (Ctrl-] leaves it).");
    }
    println!("Ctrl-\\ ends the machine; `poweroff` shuts it down.\n");
    dom0.type_line("exec bash -l")?;
    let machine = dom0.into_machine();
    let _raw = RawTerminal::enter()?;
    let transcript = machine.transcript().clone();
    let mut shown = transcript.len();
    let screen = std::thread::spawn(move || {
        loop {
            let news = transcript.bytes_from(shown);
            shown += news.len();
            let mut out = std::io::stdout();
            if out.write_all(&news).and_then(|()| out.flush()).is_err() || transcript.is_closed() {
                return;
            }
            if news.is_empty() {
                transcript.wait_for_change(Duration::from_secs(1));
            }
        }
    });
    let machine: Machine = machine.type_from(UntilLeft {
        input: std::io::stdin(),
    })?;
    drop(machine);
    // The screen ends with the machine.
    screen.join().map_err(|_| anyhow::anyhow!("the screen's thread died"))?;
    Ok(())
}

/// The keyboard, up to the key that leaves.
struct UntilLeft<R> {
    input: R,
}

impl<R: Read> Read for UntilLeft<R> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let count = self.input.read(bytes)?;
        let typed = bytes.get(..count).unwrap_or_default();
        Ok(typed.iter().position(|key| *key == LEAVE).unwrap_or(count))
    }
}

/// The terminal without its own line editing, as long as the value lives.
struct RawTerminal {
    before: rustix::termios::Termios,
}

impl RawTerminal {
    fn enter() -> Result<Self> {
        let before = rustix::termios::tcgetattr(std::io::stdin()).context("reading the terminal's mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        set(&raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Nothing to be done when the terminal has gone.
        let _ = set(&self.before);
    }
}

fn set(mode: &rustix::termios::Termios) -> Result<()> {
    rustix::termios::tcsetattr(std::io::stdin(), rustix::termios::OptionalActions::Now, mode)
        .context("setting the terminal's mode")
}
