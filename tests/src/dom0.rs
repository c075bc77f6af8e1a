//! Domain 0's root prompt, as a story uses it: run a command, read its answer, or fail with its name.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::console::without_chatter;
use crate::machine::{Loader, Machine, Moment, Parts};

/// How long a booting Domain 0 may take to give a prompt.
const BOOT_PATIENCE: Duration = Duration::from_secs(240);
/// How long an ordinary command may take.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// What no machine should ever say.
pub const DOOM: [&str; 6] = [
    "Kernel panic",
    "Ferroxen has found itself broken",
    "cannot start; the machine stands still",
    // Debian's hypervisor.
    "(XEN) Panic on CPU",
    "FATAL TRAP",
    "*** Error: ",
];
/// The prompt of the first shell.
const PROMPT: &str = "root@dom0:~# ";
/// The prompt from then on, which nothing else prints.
pub const OWN_PROMPT: &str = "[dom0] ";

/// How far a start has come: its sign on the console, and what that means.
const STAGES: [(&str, &str); 5] = [
    ("(XEN) ", "the hypervisor speaks"),
    ("Linux version", "the Domain 0 kernel speaks"),
    (INIT_RUNS, "Domain 0's init runs"),
    (DAEMONS_RUN, "Domain 0's daemons run"),
    (PROMPT, "Domain 0 has a prompt"),
];
/// What Domain 0's init says first.
const INIT_RUNS: &str = "dom0: modules";
/// What it says last.
const DAEMONS_RUN: &str = "dom0: up after";
/// What GRUB's menu shows when it takes a key.
const MENU: &str = "Debian alone";

/// A booted Domain 0 with its prompt.
pub struct Dom0 {
    machine: Machine,
    commands: u32,
    /// What each command took, beside the log: where a story's time goes.
    times: File,
    init_ran: Moment,
    prompted: Moment,
}

impl Dom0 {
    /// Boots a machine and waits for the root prompt of Domain 0.
    pub fn boot(parts: &Parts) -> Result<Self> {
        Self::boot_with_progress(parts, &mut |_| {})
    }

    /// Boots a machine, telling `progress` of each stage it reaches.
    pub fn boot_with_progress(parts: &Parts, progress: &mut dyn FnMut(&str)) -> Result<Self> {
        let mut machine = Machine::start(parts)?;
        let mut at = 0;
        if let Loader::Cd(key) | Loader::HardDisk(key) = parts.loader {
            let menu = machine.transcript().wait_for(MENU, at, &DOOM, BOOT_PATIENCE);
            at = menu.with_context(|| said_last(&machine, "waiting for GRUB's menu"))?;
            machine.type_bytes(key.to_string().as_bytes())?;
        }
        let (mut init_ran, mut prompted) = (Moment::default(), Moment::default());
        // A Debian with systemd has no last word before its prompt.
        let stages = STAGES
            .iter()
            .filter(|(sign, _)| parts.root.is_none() || *sign != DAEMONS_RUN);
        for (sign, meaning) in stages.copied() {
            let wait = machine.transcript().wait_for(sign, at, &DOOM, BOOT_PATIENCE);
            at = wait.with_context(|| said_last(&machine, &format!("waiting until {meaning}")))?;
            progress(&format!("{meaning} ({:.1} s)", machine.age().as_secs_f64()));
            match sign {
                INIT_RUNS => init_ran = machine.now()?,
                PROMPT => prompted = machine.now()?,
                _ => {}
            }
        }
        let times = machine.log().with_extension("times");
        let times = File::create(&times).with_context(|| format!("making {}", times.display()))?;
        let mut dom0 = Self {
            machine,
            commands: 0,
            times,
            init_ran,
            prompted,
        };
        dom0.type_line(&format!("PS1='{OWN_PROMPT}' PS2= exec bash --noediting --norc"))?;
        dom0.wait_for(OWN_PROMPT, at, PATIENCE)?;
        dom0.run("true")?;
        Ok(dom0)
    }

    /// Returns when Domain 0's init first spoke.
    pub fn init_ran(&self) -> Moment {
        self.init_ran
    }

    /// Returns when Domain 0 first had a prompt.
    pub fn prompted(&self) -> Moment {
        self.prompted
    }

    /// Returns the machine that this Domain 0 runs on.
    pub fn machine(&mut self) -> &mut Machine {
        &mut self.machine
    }

    /// Returns where the console is written down.
    pub fn log(&self) -> &Path {
        self.machine.log()
    }

    /// Runs `command` at the prompt and returns what it printed; fails when it does.
    pub fn run(&mut self, command: &str) -> Result<String> {
        self.run_within(command, PATIENCE)
    }

    /// Runs `command`, which may take as long as `patience`.
    pub fn run_within(&mut self, command: &str, patience: Duration) -> Result<String> {
        let (code, printed) = self.ask(command, patience)?;
        if code != 0 {
            bail!("`{command}` in Domain 0 failed with {code}:\n{printed}");
        }
        Ok(printed)
    }

    /// Runs `command` and returns its exit code with what it printed.
    pub fn ask(&mut self, command: &str, patience: Duration) -> Result<(i32, String)> {
        self.commands += 1;
        let number = self.commands;
        let begun = Instant::now();
        let from = self.machine.transcript().len();
        // The quotes keep an echo of the line from looking like its answer.
        let line = format!("echo '<''{number}<'; {{ {command}\n}} </dev/null; echo '>''{number}>'$?.\n");
        self.machine.type_paced(&line)?;
        let context = || format!("running `{command}` in Domain 0");
        let transcript = self.machine.transcript();
        let start = transcript
            .wait_for(&format!("<{number}<"), from, &DOOM, patience)
            .with_context(|| said_last(&self.machine, &context()))?;
        let sign = format!(">{number}>");
        let end = transcript
            .wait_for(&sign, start, &DOOM, patience)
            .with_context(|| said_last(&self.machine, &context()))?;
        let stop = transcript.wait_for(".", end, &[], patience).with_context(context)?;
        transcript
            .wait_for(OWN_PROMPT, stop, &[], patience)
            .with_context(context)?;
        let (age, taken) = (self.machine.age().as_secs_f64(), begun.elapsed().as_secs_f64());
        writeln!(self.times, "{age:7.1} {taken:6.1}  {command}").context("noting what a command took")?;
        let text = transcript.text_from(start);
        let printed = text.split(&sign).next().unwrap_or_default();
        let code = transcript.text_from(end);
        let code = code.get(..stop - end - 1).unwrap_or_default().trim();
        let code = code
            .parse()
            .with_context(|| format!("{}: its exit code {code:?}", context()))?;
        Ok((code, without_chatter(printed).trim_matches('\n').to_owned()))
    }

    /// Waits until the file at `path` has a line that matches `pattern`.
    pub fn wait_for_line(&mut self, path: &str, pattern: &str, patience: Duration) -> Result<()> {
        let seconds = patience.as_secs();
        let wait = format!("timeout {seconds} bash -c \"grep -qm1 '{pattern}' <(tail -c +1 -F {path} 2>/dev/null)\"");
        let found = self.run_within(&wait, patience * 2);
        found
            .map(drop)
            .with_context(|| format!("no line of {path} is {pattern:?}"))
    }

    /// Types `line` without waiting for anything, for programs that take over the console.
    pub fn type_line(&mut self, line: &str) -> Result<()> {
        self.machine.type_paced(&format!("{line}\n"))
    }

    /// Waits until the console says `wanted` after position `from`; returns where that ends.
    pub fn wait_for(&self, wanted: &str, from: usize, patience: Duration) -> Result<usize> {
        self.machine
            .transcript()
            .wait_for(wanted, from, &DOOM, patience)
            .with_context(|| said_last(&self.machine, "watching the console"))
    }

    /// Waits for `wanted` from a program that holds the console; its end, which shows our prompt, is a failure.
    pub fn wait_while_held(&self, wanted: &str, from: usize, patience: Duration) -> Result<usize> {
        let mut doom = DOOM.to_vec();
        doom.push(OWN_PROMPT);
        let seen = self.machine.transcript().wait_for(wanted, from, &doom, patience);
        seen.with_context(|| said_last(&self.machine, "watching the console"))
    }

    /// Runs `command`, types `lines` to it, and waits until it ends by itself.
    pub fn converse(&mut self, command: &str, lines: &[&str], patience: Duration) -> Result<()> {
        let from = self.machine.transcript().len();
        self.type_line(command)?;
        for line in lines {
            self.type_line(line)?;
        }
        self.wait_for(OWN_PROMPT, from, patience).map(drop)
    }

    /// Leaves a guest's console (`xl console`) for the prompt of Domain 0.
    pub fn leave_console(&mut self) -> Result<()> {
        // The key leaves only when it comes alone: whatever is typed next must wait for the prompt.
        let from = self.machine.transcript().len();
        self.machine.type_bytes(b"\x1d")?;
        self.wait_for(OWN_PROMPT, from, PATIENCE)?;
        Ok(())
    }

    /// Waits until the list of domains no longer has `name`.
    pub fn wait_until_gone(&mut self, name: &str, patience: Duration) -> Result<()> {
        let seconds = patience.as_secs();
        let wait = format!(
            "for _ in $(seq {seconds}); do xl list | grep -q '^{name} ' || break; sleep 1; done; \
             ! xl list | grep '^{name} '"
        );
        let gone = self.run_within(&wait, patience + PATIENCE);
        gone.map(drop)
            .with_context(|| format!("{name} is still there after {seconds} s"))
    }

    /// Switches the machine off from inside and waits until it is off.
    pub fn power_off(mut self, patience: Duration) -> Result<()> {
        self.type_line("poweroff -f")?;
        let off = self.machine.wait_for_power_off(patience);
        off.with_context(|| said_last(&self.machine, "switching the machine off"))
    }

    /// Tells whether QEMU still runs the machine.
    pub fn is_running(&mut self) -> Result<bool> {
        let status = self.machine.monitor("query-status", &Value::Null)?;
        Ok(status.get("running").and_then(Value::as_bool).unwrap_or(false))
    }

    /// Gives the machine away, for a person to use.
    pub fn into_machine(self) -> Machine {
        self.machine
    }
}

fn said_last(machine: &Machine, doing: &str) -> String {
    const LINES: usize = 25;
    format!(
        "{doing}; the console ({}) ended with:\n{}",
        machine.log().display(),
        machine.last_words(LINES)
    )
}
