//! Guests, as a story uses them: a configuration, a console, a prompt.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::console::without_chatter;
use crate::dom0::{DOOM, Dom0, OWN_PROMPT, PATIENCE};

/// How long a guest that is only a ramdisk may take to its prompt.
pub const TINY_PATIENCE: Duration = Duration::from_secs(90);
/// How long a whole Debian may take to its prompt.
pub const DEBIAN_PATIENCE: Duration = Duration::from_secs(300);

/// A guest that is only a ramdisk.
#[derive(Debug, Clone)]
pub struct Tiny {
    /// Its name.
    pub name: String,
    /// Its memory, in MiB.
    pub memory_mib: u32,
    /// Its vcpus.
    pub vcpus: u32,
    /// Its address on the bridge; no network card without one.
    pub address: Option<String>,
    /// What it runs once it is up.
    pub then: Option<String>,
}

impl Tiny {
    /// A guest of the usual size.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            memory_mib: 128,
            vcpus: 1,
            address: None,
            then: None,
        }
    }

    /// Gives it a network card with this address.
    pub fn at(mut self, address: &str) -> Self {
        self.address = Some(address.to_owned());
        self
    }

    /// Makes it run `command` once it is up.
    pub fn then(mut self, command: &str) -> Self {
        self.then = Some(command.replace(' ', "+"));
        self
    }

    fn config(&self) -> String {
        let mut extra = "console=hvc0 quiet".to_owned();
        if let Some(address) = &self.address {
            extra.push_str(&format!(" ip={address}"));
        }
        if let Some(then) = &self.then {
            extra.push_str(&format!(" then={then}"));
        }
        let vif = if self.address.is_some() { "vif = [ '' ]\n" } else { "" };
        format!(
            "name = \"{}\"\nkernel = \"/srv/guests/vmlinux\"\nramdisk = \"/srv/guests/tiny.img\"\n\
             memory = {}\nvcpus = {}\nextra = \"{extra}\"\n{vif}on_crash = \"destroy\"\n",
            self.name, self.memory_mib, self.vcpus
        )
    }
}

/// Returns the configuration of the micro guest called `name`, which does what `line` says.
pub fn micro(name: &str, line: &str) -> String {
    format!(
        "name = \"{name}\"\nkernel = \"/srv/guests/micro\"\nmemory = 16\nextra = \"{line}\"\n\
         on_crash = \"destroy\"\non_poweroff = \"destroy\"\non_reboot = \"destroy\"\n"
    )
}

impl Dom0 {
    /// Writes `config` to `/tmp/NAME.cfg`.
    pub fn write_config(&mut self, name: &str, config: &str) -> Result<()> {
        let mut script = String::new();
        for line in config.lines() {
            script.push_str(&format!("echo '{}'; ", line.replace('\'', "'\\''")));
        }
        self.run(&format!("{{ {script} }} > /tmp/{name}.cfg")).map(drop)
    }

    /// Creates a domain from `config`.
    pub fn create(&mut self, name: &str, config: &str) -> Result<()> {
        self.write_config(name, config)?;
        self.run(&format!("xl create /tmp/{name}.cfg")).map(drop)
    }

    /// Creates a guest that is only a ramdisk, and waits for its prompt.
    pub fn start_tiny(&mut self, tiny: &Tiny) -> Result<()> {
        self.create(&tiny.name, &tiny.config())?;
        self.watch_guest(&tiny.name, "tiny guest: up", TINY_PATIENCE)
    }

    /// Creates a guest that is only a ramdisk, without waiting.
    pub fn create_tiny(&mut self, tiny: &Tiny) -> Result<()> {
        self.create(&tiny.name, &tiny.config())
    }

    /// Attaches to the console of `name` until it says `wanted`.
    ///
    /// A domain that is just being made has no console yet: attaching is tried again until `patience` is over.
    pub fn watch_guest(&mut self, name: &str, wanted: &str, patience: Duration) -> Result<()> {
        let end = Instant::now() + patience;
        loop {
            let from = self.machine().transcript().len();
            self.type_line(&format!("xl console {name}"))?;
            let left = end.saturating_duration_since(Instant::now());
            let seen = self.wait_while_held(wanted, from, left);
            if seen.is_ok() {
                return self.leave_console();
            }
            let is_back = self.machine().transcript().text_from(from).contains(OWN_PROMPT);
            if !is_back || Instant::now() >= end {
                let context = || format!("waiting for {wanted:?} on the console of {name}");
                return seen.map(drop).with_context(context);
            }
            self.run("sleep 1")?;
        }
    }

    /// Runs `command` at the prompt of guest `name`, and returns what it printed.
    pub fn in_guest(&mut self, name: &str, command: &str, patience: Duration) -> Result<String> {
        let from = self.machine().transcript().len();
        self.type_line(&format!("xl console {name}"))?;
        // Typed text waits in the console's ring until the guest's shell reads it.
        let number = from;
        self.type_line(&format!("echo '<g''{number}<'; {command}; echo '>g''{number}>'$?."))?;
        let context = || format!("running `{command}` in {name}");
        let start = self
            .wait_for(&format!("<g{number}<"), from, patience)
            .with_context(context)?;
        let sign = format!(">g{number}>");
        let end = self.wait_while_held(&sign, start, patience).with_context(context)?;
        let stop = self.machine().transcript().wait_for(".", end, &DOOM, PATIENCE)?;
        self.leave_console()?;
        let transcript = self.machine().transcript();
        let text = transcript.text_from(start);
        let printed = without_chatter(text.split(&sign).next().unwrap_or_default())
            .trim()
            .to_owned();
        let code = transcript
            .text_from(end)
            .get(..stop - end - 1)
            .unwrap_or_default()
            .to_owned();
        if code.trim() != "0" {
            bail!("`{command}` in {name} failed with {code}:\n{printed}");
        }
        Ok(printed)
    }

    /// Destroys domain `name` and waits until it is gone.
    pub fn destroy(&mut self, name: &str) -> Result<()> {
        self.run(&format!("xl destroy {name}"))?;
        self.wait_until_gone(name, PATIENCE)
    }

    /// Returns the free memory, in MiB, once it has stopped growing.
    ///
    /// A destroyed domain's memory comes back in the background.
    pub fn settled_free_memory(&mut self) -> Result<u64> {
        let script = "old=; for _ in $(seq 60); do \
             new=$(xl info | sed -n 's/^free_memory *: *//p'); [ \"$new\" = \"$old\" ] && break; \
             old=$new; sleep 1; done; echo $new";
        let printed = self.run_within(script, PATIENCE * 2)?;
        printed
            .trim()
            .parse()
            .with_context(|| format!("xl info says free_memory is {printed:?}"))
    }

    /// Returns the seconds of CPU time that domain `name` has had, as `xl list` says.
    pub fn cpu_seconds(&mut self, name: &str) -> Result<f64> {
        let printed = self.run(&format!("xl list | awk '$1 == \"{name}\" {{ print $NF }}'"))?;
        printed
            .trim()
            .parse()
            .with_context(|| format!("xl list says {name} has had {printed:?} s"))
    }
}
