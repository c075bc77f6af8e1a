//! Guests, as a story uses them: a configuration, a console, a prompt.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::console::without_chatter;
use crate::dom0::{DOOM, Dom0, OWN_PROMPT, PATIENCE};

/// How long a guest that is only a ramdisk may take to its prompt.
pub const TINY_PATIENCE: Duration = Duration::from_secs(90);
/// How long a whole Debian may take to its prompt.
pub const DEBIAN_PATIENCE: Duration = Duration::from_secs(300);

/// A guest that is only a ramdisk, described step by step: `Tiny::new("web").at("10.0.2.30").memory(256)`.
#[derive(Debug, Clone)]
pub struct Tiny {
    /// Its name.
    pub name: String,
    kernel: String,
    memory_mib: u32,
    vcpus: u32,
    cards: Vec<String>,
    disks: Vec<String>,
    options: String,
    settings: String,
}

impl Tiny {
    /// A guest of the usual size.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            kernel: "vmlinux".to_owned(),
            memory_mib: 128,
            vcpus: 1,
            cards: Vec::new(),
            disks: Vec::new(),
            options: "console=hvc0 quiet".to_owned(),
            settings: "on_crash = \"destroy\"\n".to_owned(),
        }
    }

    /// Gives it a network card on the usual bridge, and the address (or `dhcp`, to ask for one).
    pub fn at(self, address: &str) -> Self {
        self.card("").option(&format!("ip={address}"))
    }

    /// Gives it a network card, described as in `vif`.
    pub fn card(mut self, card: &str) -> Self {
        self.cards.push(format!("'{card}'"));
        self
    }

    /// Gives it a disk, described as in `disk`.
    pub fn disk(mut self, disk: &str) -> Self {
        self.disks.push(format!("'{disk}'"));
        self
    }

    /// Makes it run `command` once it is up.
    pub fn then(self, command: &str) -> Self {
        self.option(&format!("then={}", command.replace(' ', "+")))
    }

    /// Adds to its kernel's command line.
    pub fn option(mut self, option: &str) -> Self {
        self.options.push(' ');
        self.options.push_str(option);
        self
    }

    /// Lets its kernel say all it has to say.
    pub fn loud(mut self) -> Self {
        self.options = self.options.replace(" quiet", "");
        self
    }

    /// Gives it so much memory, in MiB.
    pub fn memory(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// Gives it so many vcpus.
    pub fn vcpus(mut self, count: u32) -> Self {
        self.vcpus = count;
        self
    }

    /// Boots it from another of the kernel files in `/srv/guests`.
    pub fn kernel(mut self, file: &str) -> Self {
        self.kernel = file.to_owned();
        self
    }

    /// Adds a line to its configuration; a later line overrides an earlier one.
    pub fn setting(mut self, line: &str) -> Self {
        self.settings.push_str(line);
        self.settings.push('\n');
        self
    }

    /// Returns its configuration file.
    pub fn config(&self) -> String {
        format!(
            "name = \"{}\"\nkernel = \"/srv/guests/{}\"\nramdisk = \"/srv/guests/tiny.img\"\nmemory = {}\n\
             vcpus = {}\nextra = \"{}\"\nvif = [ {} ]\ndisk = [ {} ]\n{}",
            self.name,
            self.kernel,
            self.memory_mib,
            self.vcpus,
            self.options,
            self.cards.join(", "),
            self.disks.join(", "),
            self.settings
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

    /// Talks to `name` at its console: waits for what comes first in each pair, if that is anything, and types what comes
    /// second.
    pub fn at_console(&mut self, name: &str, dialogue: &[(&str, &str)], patience: Duration) -> Result<()> {
        let mut at = self.machine().transcript().len();
        self.type_line(&format!("xl console {name}"))?;
        for (wanted, line) in dialogue {
            if !wanted.is_empty() {
                let seen = self.wait_while_held(wanted, at, patience);
                at = seen.with_context(|| format!("waiting for {wanted:?} on the console of {name}"))?;
            }
            self.type_line(line)?;
        }
        self.leave_console()
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
