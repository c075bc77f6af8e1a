//! Hotplug scripts: the administrator's own programs that connect a device's backend, called as libxl calls them.
//!
//! A script hears what to do as its first argument, finds the device's nodes at `$XENBUS_PATH`, and says there how
//! it went: `hotplug-status`, or `hotplug-error`. Ours for bridges and images are not scripts but built in, which
//! spares a guest's start several shells; only a script that was asked for by another name runs.
//!
//! Upstream: docs/misc/block-scripts, tools/hotplug/Linux.

use crate::error::{Doing, Error, Result};
use crate::host::Host;
use crate::nodes;
use crate::patience::Patience;
use ferroxen_words::DomId;
use ferroxen_xenstore::{Client, Result as StoreResult, Store};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// Where scripts are that are named without a directory.
const DIRECTORY: &str = "/etc/xen/scripts";
/// Where what they print goes.
const LOG: &str = "/var/log/xen/xen-hotplug.log";
/// The note beside a device that says which script to call when it goes.
const NOTE: &str = "hotplug-script";

/// How long a script may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// A script and the device that it is for.
pub(crate) struct Script {
    path: PathBuf,
    kind: String,
    backend: String,
    /// What it finds in its environment beside the usual.
    pub variables: Vec<(&'static str, String)>,
}

impl Script {
    /// The script called `name` for the device at `backend`.
    pub fn new(name: &str, kind: &str, backend: &str) -> Script {
        Script {
            // An absolute name stays as it is.
            path: Path::new(DIRECTORY).join(name),
            kind: kind.to_owned(),
            backend: backend.to_owned(),
            variables: Vec::new(),
        }
    }

    /// Its file, as it stands in a device's `script` node.
    pub fn path(&self) -> String {
        self.path.display().to_string()
    }

    /// Notes that it is to be called when the device goes.
    pub fn note(&self, store: &impl Store, domid: DomId, id: u32) -> StoreResult<()> {
        let note = nodes::note(domid, &self.kind, &id.to_string());
        store.write(&format!("{note}/{NOTE}"), self.path())
    }

    /// The script noted for a device, if there is one.
    pub fn noted(store: &impl Store, domid: DomId, kind: &str, id: &str, backend: &str) -> StoreResult<Option<Script>> {
        let path = store.read_opt(&format!("{}/{NOTE}", nodes::note(domid, kind, id)))?;
        Ok(path.map(|path| Script::new(&path, kind, backend)))
    }

    /// Lets it connect the device, and hears whether it has.
    pub fn connect(&self, store: &Client, host: &dyn Host, patience: Patience<'_>) -> Result<()> {
        let verb = if self.kind == "vif" { "online" } else { "add" };
        self.run(store, host, verb, patience)?;
        let said = store
            .read_opt(&format!("{}/hotplug-status", self.backend))
            .doing(|| self.step(verb))?;
        match said.as_deref() {
            Some("connected") => Ok(()),
            _ => Err(Error::new(
                self.step(verb),
                "it ended well, but did not write `connected` to the device's `hotplug-status`",
            )),
        }
    }

    /// Lets it clean up after the device.
    pub fn disconnect(&self, store: &Client, host: &dyn Host, patience: Patience<'_>) -> Result<()> {
        self.run(
            store,
            host,
            if self.kind == "vif" { "offline" } else { "remove" },
            patience,
        )
    }

    fn step(&self, verb: &str) -> String {
        format!("running {} {verb}", self.path.display())
    }

    fn run(&self, store: &Client, host: &dyn Host, verb: &str, patience: Patience<'_>) -> Result<()> {
        let doing = || self.step(verb);
        let status = host.run_script(self.command(verb), patience).doing(doing)?;
        if status.success() {
            return Ok(());
        }
        let said = store
            .read_opt(&format!("{}/hotplug-error", self.backend))
            .ok()
            .flatten()
            .map_or_else(|| format!("see {LOG}"), |error| format!("it says: {error}"));
        Err(Error::new(doing(), format!("{status}; {said}")))
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.path);
        command.arg(verb).current_dir("/");
        if self.kind == "vif" {
            command.arg("type_if=vif");
        }
        // Relative to the backend's own directory, as scripts expect it.
        let relative = self.backend.find("backend/").map_or("", |at| &self.backend[at..]);
        command
            .env("script", &self.path)
            .env("XENBUS_TYPE", &self.kind)
            .env("XENBUS_PATH", relative)
            .env("XENBUS_BASE_PATH", "backend")
            .envs(self.variables.iter().cloned());
        command
    }
}

/// Runs a script to its end; what it prints goes to the log.
pub(crate) fn run(mut command: Command, patience: Patience<'_>) -> io::Result<ExitStatus> {
    let (out, err) = log().map_err(|error| io::Error::new(error.kind(), format!("opening {LOG}: {error}")))?;
    let child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn()?;
    wait(child, patience)
}

fn log() -> io::Result<(File, File)> {
    if let Some(directory) = Path::new(LOG).parent() {
        std::fs::create_dir_all(directory)?;
    }
    let file = OpenOptions::new().create(true).append(true).open(LOG)?;
    let twin = file.try_clone()?;
    Ok((file, twin))
}

/// Waits for a program's end; one that takes too long is ended.
pub(crate) fn wait(mut child: Child, patience: Patience<'_>) -> io::Result<ExitStatus> {
    let ended = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
        .and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::empty())?))
        .and_then(|pidfd| patience.ready(&pidfd));
    if !matches!(ended, Ok(true)) {
        // It may have ended this moment, which is as good.
        let _ = child.kill();
    }
    let status = child.wait()?;
    match ended? {
        true => Ok(status),
        false => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "it took too long and was ended",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_takes_too_long_is_ended() {
        let sleep = |seconds: &str| Command::new("sleep").arg(seconds).spawn().expect("there is a sleep");
        let error = wait(sleep("1000"), Patience::stubborn(Duration::ZERO)).expect_err("too long");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(
            wait(sleep("0"), Patience::stubborn(Duration::from_secs(60)))
                .expect("ends")
                .success()
        );
    }

    #[test]
    fn names_without_a_directory_are_looked_for_where_scripts_are() {
        let path = |name: &str| Script::new(name, "vif", "/local/domain/0/backend/vif/1/0").path();
        assert_eq!(path("vif-route"), "/etc/xen/scripts/vif-route");
        assert_eq!(path("/root/my-script"), "/root/my-script");
    }
}
