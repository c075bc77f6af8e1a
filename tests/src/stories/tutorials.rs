//! The how-tos that people follow, as files in `tests/tutorials`, typed line by line.
//!
//! A file is prose, and between it lines that are done in order:
//!
//! - `# COMMAND` is typed in Domain 0 and has to succeed; `! COMMAND` has to fail
//! - `until COMMAND` is typed in Domain 0 again and again, until it succeeds
//! - `@NAME COMMAND` is typed in guest NAME
//! - `console COMMAND` is typed in Domain 0, and leads to a guest's console: the next `?` is waited for there
//! - `? TEXT` has to be in what the last command printed
//! - `write FILE` makes a file of the lines behind it that begin with `| `

use anyhow::{Context, Result, bail, ensure};
use std::time::Duration;

use crate::dom0::{DOOM, Dom0, PATIENCE};
use crate::machine::{Devices, Parts};

/// How long a command of a how-to may take: some copy a whole system.
const LONG: Duration = Duration::from_secs(240);

/// One after the other on one machine: a later one may use what an earlier one has made, and says so at its head.
const TUTORIALS: [(&str, &str); 4] = [
    ("2007-centos.txt", include_str!("../../tutorials/2007-centos.txt")),
    ("2006-talk.txt", include_str!("../../tutorials/2006-talk.txt")),
    ("2017-centos7.txt", include_str!("../../tutorials/2017-centos7.txt")),
    ("lecture.txt", include_str!("../../tutorials/lecture.txt")),
];

pub(super) fn are_followed(parts: &Parts) -> Result<()> {
    let mut parts = parts.clone();
    parts.devices = Devices::Both;
    // All images are in Domain 0's memory.
    parts.options.push_str(" dom0_mem=800M dom0_max_vcpus=1");
    // A domain's CPUs are more than one in a how-to, and should not be more than the host's.
    parts.cpus = 2;
    let mut dom0 = Dom0::boot(&parts)?;
    for (name, text) in TUTORIALS {
        tell(&mut dom0, text).with_context(|| format!("tests/tutorials/{name}"))?;
    }
    dom0.power_off(PATIENCE)
}

fn tell(dom0: &mut Dom0, text: &str) -> Result<()> {
    let mut printed = String::new();
    let mut lines = (1..).zip(text.lines()).peekable();
    while let Some((number, line)) = lines.next() {
        let step = match line.split_once(' ') {
            Some(("write", file)) => {
                let mut body = String::new();
                while let Some((_, line)) = lines.next_if(|(_, line)| line.starts_with('|')) {
                    body.push_str(&format!("{}\n", line[1..].strip_prefix(' ').unwrap_or_default()));
                }
                write(dom0, file, &body)
            }
            Some(("console", command)) => {
                let wanted = lines.next_if(|(_, line)| line.starts_with("? "));
                let wanted = wanted.map(|(_, line)| &line[2..]).context("no `?` behind `console`")?;
                on_console(dom0, command, wanted)
            }
            Some(("#", command)) => dom0.run_within(command, LONG).map(|said| printed = said),
            Some(("!", command)) => dom0.ask(&format!("{command} 2>&1"), PATIENCE).and_then(|(code, said)| {
                printed = said;
                ensure!(code != 0, "it succeeded: {printed}");
                Ok(())
            }),
            Some(("until", command)) => until(dom0, command),
            Some(("?", wanted)) => has(&printed, wanted),
            Some((name, command)) if name.starts_with('@') => {
                dom0.in_guest(&name[1..], command, LONG).map(|said| printed = said)
            }
            // Prose.
            _ => Ok(()),
        };
        step.with_context(|| format!("line {number}: {line}"))?;
    }
    Ok(())
}

fn until(dom0: &mut Dom0, command: &str) -> Result<()> {
    let seconds = LONG.as_secs();
    let wait =
        format!("(for _ in $(seq {seconds}); do {{ {command}; }} >/dev/null 2>&1 && exit; sleep 1; done; exit 1)");
    dom0.run_within(&wait, LONG * 2).map(drop)
}

fn has(printed: &str, wanted: &str) -> Result<()> {
    match printed.to_lowercase().contains(&wanted.to_lowercase()) {
        true => Ok(()),
        false => bail!("it printed:\n{printed}"),
    }
}

fn write(dom0: &mut Dom0, file: &str, body: &str) -> Result<()> {
    let quoted = |line: &str| format!("echo '{}'; ", line.replace('\'', "'\\''"));
    let script: String = body.lines().map(quoted).collect();
    dom0.run(&format!("{{ {script} }} >{file}")).map(drop)
}

fn on_console(dom0: &mut Dom0, command: &str, wanted: &str) -> Result<()> {
    let from = dom0.machine().transcript().len();
    dom0.type_line(command)?;
    dom0.machine().transcript().wait_for(wanted, from, &DOOM, LONG)?;
    dom0.leave_console()
}
