//! A machine of which only the serial line is of interest: it runs until nothing more is to come.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ferroxen_stories::console::Transcript;

use crate::programs::clean_command;

/// Prepares QEMU with no devices but what is added, and this serial line. It ends when we do, however we end.
pub fn machine() -> Command {
    let mut qemu = clean_command("setpriv");
    qemu.args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"]);
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    qemu.args(["-serial", "stdio"]);
    qemu
}

/// Runs a machine until it is gone, or has said one of `ends`, or `patience` is over. Returns all that was said.
pub fn hear(machine: &mut Command, ends: &[&str], patience: Duration) -> Result<String> {
    let child = machine
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = child.context("cannot start QEMU (qemu-system-x86_64, through setpriv)")?;
    let heard = listen(&mut child, ends, patience);
    // Already gone is as good as killed.
    let _ = child.kill();
    let _ = child.wait();
    heard
}

fn listen(child: &mut Child, ends: &[&str], patience: Duration) -> Result<String> {
    let mut screen = child.stdout.take().context("QEMU has no stdout")?;
    let said = Transcript::default();
    let copy = said.clone();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = screen.read(&mut bytes) {
            copy.add(bytes.get(..count).unwrap_or_default());
        }
        copy.close();
    });
    let over = Instant::now() + patience;
    while !said.is_closed() && Instant::now() < over {
        if ends.iter().any(|end| said.text().contains(end)) {
            break;
        }
        said.wait_for_change(Duration::from_secs(1));
    }
    Ok(said.text())
}
