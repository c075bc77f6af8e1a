//! A machine's serial line, until nothing more is to come.

use std::io::Read;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ferroxen_stories::console::Transcript;

/// Listens until the machine is gone, or has said one of `ends`, or `patience` is over. Returns all that was said.
pub fn listen(child: &mut Child, ends: &[&str], patience: Duration) -> Result<String> {
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
