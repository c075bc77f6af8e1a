//! A guest's console, from its first line to its last.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::dom0::{Dom0, PATIENCE};
use crate::guest::{TINY_PATIENCE, Tiny};
use crate::machine::Parts;

/// Enough for more than a megabyte.
const LINES: u32 = 165_000;
const PRINTING: Duration = Duration::from_secs(240);

pub(super) fn loses_nothing(parts: &Parts) -> Result<()> {
    let mut dom0 = Dom0::boot(parts)?;
    shows_the_first_line(&mut dom0)?;
    // Left, found again, typed to, twice.
    for word in ["once", "again"] {
        let answer = dom0.in_guest("talk", &format!("echo {word}"), PATIENCE)?;
        ensure!(answer == word, "asked for {word:?}, the console says {answer:?}");
    }
    two_readers_get_all(&mut dom0)?;
    dom0.wait_until_gone("talk", PATIENCE)?;
    dom0.power_off(PATIENCE)
}

fn shows_the_first_line(dom0: &mut Dom0) -> Result<()> {
    dom0.write_config("talk", &Tiny::new("talk").loud().config())?;
    let from = dom0.machine().transcript().len();
    dom0.type_line("xl create -c /tmp/talk.cfg")?;
    let first = dom0.wait_while_held("[    0.000000] Linux version", from, TINY_PATIENCE);
    let first = first.context("`xl create -c` does not show the kernel's first line")?;
    let text = dom0.machine().transcript().text_from(from);
    ensure!(
        text.find("Started domain talk (domid ").is_some(),
        "the new domid is not printed"
    );
    dom0.wait_while_held("tiny guest: up", first, TINY_PATIENCE)?;
    dom0.leave_console()
}

/// One reader types, the other only reads; what the guest says after that ends with its own end.
fn two_readers_get_all(dom0: &mut Dom0) -> Result<()> {
    dom0.run("mkfifo /tmp/keys; xl console talk </tmp/keys >/tmp/first 2>&1 &")?;
    // The answer tells that the first reader is attached; the open pipe, that it stays.
    dom0.run("exec 7>/tmp/keys; echo \"echo at''tached\" >&7")?;
    dom0.wait_for_line("/tmp/first", "attached", PATIENCE)?;
    // Both readers end with the guest.
    let talk = format!("echo 'seq 1 {LINES}; poweroff -f' | timeout 240 xl console talk >/tmp/second 2>&1");
    dom0.run_within(&talk, PRINTING + PATIENCE)?;
    dom0.run("wait; exec 7>&-")?;
    let expected = dom0.run(&format!("seq 1 {LINES} | sha256sum"))?;
    for reader in ["first", "second"] {
        let arrived = dom0.run(&format!("tr -d '\\r' </tmp/{reader} | grep -E '^[0-9]+$' | sha256sum"))?;
        let size: u64 = dom0.run(&format!("stat -c %s /tmp/{reader}"))?.trim().parse()?;
        ensure!(
            arrived == expected,
            "what the {reader} reader got is not what was printed; {size} bytes arrived"
        );
        ensure!(size > 1_000_000, "only {size} bytes arrived");
    }
    Ok(())
}
