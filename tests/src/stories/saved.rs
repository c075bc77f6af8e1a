//! A guest is saved, brought back, and moved; what ran in it runs on.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::dom0::{Dom0, PATIENCE};
use crate::guest::Tiny;
use crate::machine::Parts;

const NAME: &str = "stay";
/// How long it may take to write or read a whole guest on a slow machine.
const WHOLE: Duration = Duration::from_secs(120);

/// With queues of events, which guests have that come from a Xen with them; other stories save guests without.
pub(super) fn runs_on(parts: &Parts) -> Result<()> {
    let mut parts = parts.clone();
    parts.options.push_str(" fifo-events");
    let mut dom0 = Dom0::boot(&parts)?;
    let free = dom0.settled_free_memory()?;
    dom0.run("dd if=/dev/zero of=/tmp/stay.img bs=1M count=0 seek=16 2>/dev/null")?;
    let guest = Tiny::new(NAME)
        .vcpus(2)
        .at("10.0.2.40")
        .disk("file:/tmp/stay.img,xvda,w");
    dom0.start_tiny(&guest)?;
    let process = dom0.in_guest(NAME, "sleep 1000000 & echo before >/tmp/word; echo $!", PATIENCE)?;
    let process: u32 = process.lines().last().unwrap_or_default().trim().parse()?;
    const ASK: &str = "dmesg | grep -c 'Using FIFO-based ABI'";
    dom0.run(ASK)?;
    dom0.in_guest(NAME, ASK, PATIENCE)?;

    let number = dom0.run(&format!("xl domid {NAME}"))?;
    is_saved_and_gone(&mut dom0, free)?;
    a_spoilt_file_leaves_nothing(&mut dom0)?;
    dom0.run_within("xl restore /tmp/stay.save", WHOLE)?;
    let now = dom0.run(&format!("xl domid {NAME}"))?;
    ensure!(now == number, "it was domain {number}, saved with -D, and is {now}");
    lives(&mut dom0, process)?;
    a_save_that_fails_disturbs_nobody(&mut dom0, process)?;
    a_snapshot_can_be_gone_back_to(&mut dom0, process)?;
    moves(&mut dom0, process)?;
    a_move_that_fails_disturbs_nobody(&mut dom0, process)?;
    a_move_that_is_called_off_leaves_nothing(&mut dom0, process)?;
    dom0.destroy(NAME)?;
    let left = dom0.settled_free_memory()?;
    ensure!(left == free, "{free} MiB were free at first, {left} at the end");
    dom0.power_off(PATIENCE)
}

/// The same process, the same files; the disk and the card work; time goes on.
fn lives(dom0: &mut Dom0, process: u32) -> Result<()> {
    let look = format!("kill -0 {process} && cat /tmp/word && nproc");
    let found = dom0.in_guest(NAME, &look, PATIENCE)?;
    let found: Vec<&str> = found.split_whitespace().collect();
    ensure!(found == ["before", "2"], "in the guest there is {found:?}");
    let disk = "echo mark-$$ | dd of=/dev/xvda conv=fsync 2>/dev/null && head -c 4 /dev/xvda";
    let read = dom0.in_guest(NAME, disk, PATIENCE)?;
    ensure!(read == "mark", "its disk says {read:?}");
    dom0.run("for _ in $(seq 30); do ping -c 1 -W 1 10.0.2.40 >/dev/null && break; done; ping -c 1 -W 1 10.0.2.40")?;
    let passed = "a=$(cut -d. -f1 /proc/uptime); sleep 2; b=$(cut -d. -f1 /proc/uptime); echo $((b - a))";
    let passed: u32 = dom0.in_guest(NAME, passed, PATIENCE)?.parse()?;
    ensure!((1..60).contains(&passed), "{passed} s passed in 2 s");
    Ok(())
}

fn is_saved_and_gone(dom0: &mut Dom0, free: u64) -> Result<()> {
    let (code, said) = dom0.ask(&format!("xl save -D {NAME} /tmp/stay.save 2>&1"), WHOLE)?;
    ensure!(
        code == 0 && said.contains("Saving to /tmp/stay.save new xl format"),
        "saving: {code}, {said}"
    );
    dom0.wait_until_gone(NAME, PATIENCE)?;
    let left = dom0.settled_free_memory()?;
    ensure!(left == free, "{free} MiB were free before, {left} are now");
    let rights = dom0.run("stat -c %a /tmp/stay.save; ls /tmp | grep -c part || true")?;
    ensure!(rights == "600\n0", "the file's rights, and drafts: {rights}");
    Ok(())
}

/// Cut off in the middle, or something else altogether: no domain is left, and it is said what is wrong.
fn a_spoilt_file_leaves_nothing(dom0: &mut Dom0) -> Result<()> {
    dom0.run("dd if=/tmp/stay.save of=/tmp/short.save bs=1M count=40 2>/dev/null")?;
    let (code, said) = dom0.ask("xl restore /tmp/short.save 2>&1", WHOLE)?;
    ensure!(
        code != 0 && said.contains("ends in the middle"),
        "restoring a file that was cut off: {code}, {said}"
    );
    let (code, said) = dom0.ask("xl restore /etc/passwd 2>&1", PATIENCE)?;
    ensure!(
        code != 0 && said.contains("no domain that xl saved"),
        "restoring what is none: {code}, {said}"
    );
    let list = dom0.run("xl list | wc -l; losetup -a | grep -c stay || true; rm /tmp/short.save")?;
    ensure!(list == "2\n0", "something is left: {list}");
    Ok(())
}

fn a_save_that_fails_disturbs_nobody(dom0: &mut Dom0, process: u32) -> Result<()> {
    let (code, said) = dom0.ask(&format!("xl save {NAME} /no/where 2>&1"), PATIENCE)?;
    ensure!(
        code != 0 && said.contains("/no/where"),
        "saving to nowhere: {code}, {said}"
    );
    // Found out only when it is too late to have asked before.
    let (code, said) = dom0.ask(&format!("xl save {NAME} /dev/full 2>&1"), WHOLE)?;
    ensure!(
        code != 0 && said.contains("runs on") && said.contains("No space left"),
        "saving to a full disk: {code}, {said}"
    );
    lives(dom0, process)
}

fn a_snapshot_can_be_gone_back_to(dom0: &mut Dom0, process: u32) -> Result<()> {
    dom0.run_within(&format!("xl save -c {NAME} /tmp/stay.save 2>&1"), WHOLE)?;
    lives(dom0, process)?;
    dom0.in_guest(NAME, "echo after >/tmp/word", PATIENCE)?;
    dom0.destroy(NAME)?;
    dom0.run_within("xl restore -p /tmp/stay.save 2>&1", WHOLE)?;
    let state = dom0.run(&format!("xl list {NAME} | tail -n 1"))?;
    ensure!(state.contains("--p---"), "restored with -p it is {state}");
    dom0.run(&format!("xl unpause {NAME}; rm /tmp/stay.save"))?;
    lives(dom0, process)
}

/// Writes memory all the time, by the kernel and by processes that come and go, and finds again what it has written.
const WRITER: &str = "i=0; while :; do head -c 3000000 /dev/urandom >/tmp/$1a; s=$(sha256sum </tmp/$1a); \
                      cat /tmp/$1a >/tmp/$1b; [ \"$s\" = \"$(sha256sum </tmp/$1b)\" ] || touch /tmp/bad; \
                      i=$((i+1)); echo $i >/tmp/$1n; done";

fn moves(dom0: &mut Dom0, process: u32) -> Result<()> {
    let write = format!(
        "echo '{WRITER}' >/tmp/w; for of in x y; do echo 0 >/tmp/${{of}}n; sh /tmp/w $of & echo $! >>/tmp/pids; done"
    );
    dom0.in_guest(NAME, &write, PATIENCE)?;
    let count = |dom0: &mut Dom0| -> Result<u32> {
        let said = dom0.in_guest(
            NAME,
            "test ! -e /tmp/bad && echo $(($(cat /tmp/xn) + $(cat /tmp/yn)))",
            PATIENCE,
        )?;
        Ok(said.trim().parse()?)
    };
    for how in ["localhost", "-s '' 'xl migrate-receive'"] {
        let (host, options) = match how.rsplit_once(" '") {
            Some((options, host)) => (format!("'{host}"), options),
            None => (how.to_owned(), ""),
        };
        let before = dom0.run(&format!("xl domid {NAME}"))?;
        let written = count(dom0)?;
        let (code, said) = dom0.ask(&format!("xl migrate {options} {NAME} {host} 2>&1"), WHOLE)?;
        ensure!(
            code == 0 && said.contains("Migration successful."),
            "moving by {how}: {code}, {said}"
        );
        ensure!(
            said.contains("round 2:") && said.contains("stood still for"),
            "it was not sent while it ran: {said}"
        );
        let now = dom0.run(&format!("xl domid {NAME}"))?;
        ensure!(before != now, "it is still domain {now}");
        lives(dom0, process)?;
        let then = count(dom0)?;
        ensure!(then > written, "{written} things were written before, {then} after");
    }
    // What they still have to say as they die is no answer to what is asked next.
    let end = "for p in $(cat /tmp/pids); do kill $p; wait $p; done; rm -f /tmp/x* /tmp/y* /tmp/pids";
    dom0.in_guest(NAME, end, PATIENCE)?;
    Ok(())
}

/// Nobody answers; somebody takes a part and leaves.
fn a_move_that_fails_disturbs_nobody(dom0: &mut Dom0, process: u32) -> Result<()> {
    for receiver in [
        "false",
        "sh -c \"echo xl migration receiver ready, send binary domain data.; dd bs=64k count=16 iflag=fullblock of=/dev/null 2>/dev/null\"",
    ] {
        let command = format!("xl migrate -s '' {NAME} '{receiver}' 2>&1");
        let (code, said) = dom0.ask(&command, WHOLE)?;
        ensure!(code != 0 && said.contains("runs on here"), "{command}: {code}, {said}");
        lives(dom0, process)?;
    }
    Ok(())
}

/// Ctrl-C in the first round, in which the way to the other host is stuck: the domain runs on, its log has ended, and at
/// the end of its pipe the receiver takes its half of a domain away.
fn a_move_that_is_called_off_leaves_nothing(dom0: &mut Dom0, process: u32) -> Result<()> {
    let stuck =
        "{ dd bs=64k count=600 iflag=fullblock 2>/dev/null; echo >/tmp/began; cat /tmp/stuck; } | xl migrate-receive";
    dom0.run("mkfifo /tmp/stuck /tmp/began")?;
    dom0.run(&format!("echo '{stuck}' >/tmp/receiver"))?;
    dom0.run(&format!(
        "xl migrate -s '' {NAME} 'sh /tmp/receiver' 2>/tmp/said & sender=$!; read -r _ </tmp/began; kill -INT $sender; \
         ! wait $sender"
    ))?;
    let said = dom0.run("cat /tmp/said")?;
    ensure!(
        said.contains("interrupted") && said.contains("runs on here"),
        "the sender says: {said}"
    );
    lives(dom0, process)?;
    dom0.run(": >/tmp/stuck")?;
    dom0.wait_until_gone(&format!("{NAME}--incoming"), PATIENCE)?;
    let list = dom0.run("xl list | wc -l; rm /tmp/stuck /tmp/began /tmp/receiver /tmp/said")?;
    ensure!(list == "3", "something is left: {list}");
    Ok(())
}
