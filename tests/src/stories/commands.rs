//! What `xl` prints and refuses, on a host with small guests in every state.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::dom0::{Dom0, OWN_PROMPT, PATIENCE};
use crate::guest::{Tiny, micro};
use crate::machine::Parts;

pub(super) fn told_at_the_prompt(parts: &Parts) -> Result<()> {
    let mut parts = parts.clone();
    // A CPU for Domain 0 and one for a guest that never stops.
    parts.cpus = 2;
    parts.options.push_str(" dom0_max_vcpus=1");
    let mut dom0 = Dom0::boot(&parts)?;
    help_helps(&mut dom0)?;
    names_and_numbers(&mut dom0)?;
    what_cannot_be_is_refused(&mut dom0)?;
    a_key_ends_a_wait(&mut dom0)?;
    disks_have_their_numbers(&mut dom0)?;
    every_state_has_its_letter(&mut dom0)?;
    lists_have_their_layout(&mut dom0)?;
    a_core_is_left(&mut dom0)?;
    dom0.power_off(PATIENCE)
}

fn help_helps(dom0: &mut Dom0) -> Result<()> {
    let overview = dom0.run("xl help")?;
    ensure!(
        overview.contains("\n create  ") && overview.contains("\n unpause  "),
        "`xl help` does not list the commands:\n{overview}"
    );
    let long = dom0.run("xl help --long")?;
    ensure!(
        long.contains("Usage: xl create") && long.contains("Usage: xl console"),
        "`xl help --long` does not explain the commands:\n{long}"
    );
    ensure!(
        dom0.run("xm help")? == overview,
        "`xm help` says something else than `xl help`"
    );
    let create = dom0.run("xl help create")?;
    ensure!(
        create.contains("-c") && create.contains("console"),
        "`xl help create` says:\n{create}"
    );
    for (slip, meant) in [("crete", "create"), ("lst", "list"), ("unpase", "unpause")] {
        let (code, said) = dom0.ask(&format!("xl {slip} 2>&1"), PATIENCE)?;
        ensure!(
            code != 0 && said.contains(&format!("did you mean `{meant}`")),
            "`xl {slip}` ends with {code} and says: {said}"
        );
    }
    Ok(())
}

fn names_and_numbers(dom0: &mut Dom0) -> Result<()> {
    const NAME: &str = "web-1.example";
    dom0.create("web", &micro(NAME, "idle"))?;
    let (code, said) = dom0.ask("xl create /tmp/web.cfg 2>&1", PATIENCE)?;
    ensure!(
        code != 0 && said.contains(&format!("Domain with name \"{NAME}\" already exists.")),
        "a second domain of that name: {code}, {said}"
    );
    let number = dom0.run(&format!("xl domid {NAME}"))?;
    ensure!(
        dom0.run(&format!("xl domname {number}"))? == NAME,
        "domid {number} has another name"
    );
    for word in [NAME, number.as_str()] {
        for command in [
            "list",
            "vcpu-list",
            "pause",
            "unpause",
            "uptime",
            "block-list",
            "network-list",
        ] {
            let (code, said) = dom0.ask(&format!("xl {command} {word} 2>&1"), PATIENCE)?;
            ensure!(code == 0, "`xl {command} {word}` ends with {code}: {said}");
        }
    }
    dom0.run(&format!("xl destroy {number}"))?;
    dom0.wait_until_gone(NAME, PATIENCE)
}

/// Each says why, and ends with a status that a script can see.
fn what_cannot_be_is_refused(dom0: &mut Dom0) -> Result<()> {
    // The commands of the old names, as well.
    dom0.write_config("old", &micro("old", "idle"))?;
    dom0.run("xm create /tmp/old.cfg && xm list old && xm pause old && xm unpause old")?;
    dom0.run("xl set-parameters guest_loglvl=warning")?;
    for command in [
        "console", "destroy", "list", "pause", "unpause", "reboot", "shutdown", "uptime",
    ] {
        // A number that nobody has, too.
        for word in ["nobody", "4711"] {
            refuses(
                dom0,
                &format!("xl {command} {word}"),
                &[&format!("{word} is an invalid domain identifier")],
            )?;
        }
    }
    dom0.write_config("wrong", "name = \"w\"\nmemory = 'much'")?;
    dom0.write_config("open", "name = \"w")?;
    for (command, words) in [
        ("xl console 0", &["Domain-0's console is the host's own"][..]),
        ("xl console -t serial old", &["no serial console"]),
        (
            "xl cd-insert nobody hdc /tmp/old.cfg",
            &["nobody is an invalid domain identifier"],
        ),
        (
            "xl cd-insert old hdc /tmp/old.cfg",
            &["cdrom-insert requires an HVM domain"],
        ),
        ("xl cd-eject old hdc", &["cdrom-insert requires an HVM domain"]),
        ("xl console -n 1 old", &["no console 1", "xl channel-list"]),
        ("xl destroy 0", &["Not destroying domain 0"]),
        ("xl set-parameters nothing=1", &["setting nothing=1"]),
        ("xl create /tmp/absent.cfg", &["/tmp/absent.cfg"]),
        ("xl create", &["no configuration file is named"]),
        // The place is shown: file, line, column, and a caret below.
        (
            "xl create /tmp/wrong.cfg",
            &["/tmp/wrong.cfg:2:", "memory = 'much'", "^"],
        ),
        ("xl create /tmp/open.cfg", &["/tmp/open.cfg:", "^"]),
    ] {
        refuses(dom0, command, words)?;
    }
    dom0.destroy("old")
}

fn refuses(dom0: &mut Dom0, command: &str, words: &[&str]) -> Result<()> {
    let (code, said) = dom0.ask(&format!("{command} 2>&1"), PATIENCE)?;
    ensure!(
        code != 0 && words.iter().all(|word| said.contains(word)),
        "`{command}` ends with {code}, and should speak of {words:?}; it says: {said}"
    );
    Ok(())
}

/// Ctrl-C ends a command that waits; on a guest's console it is the guest's.
fn a_key_ends_a_wait(dom0: &mut Dom0) -> Result<()> {
    const CTRL_C: &[u8] = b"\x03";
    dom0.create("deaf", &micro("deaf", "idle"))?;
    let from = dom0.machine().transcript().len();
    dom0.type_line("xl shutdown -w deaf")?;
    let asked = dom0.wait_while_held("Waiting for 1 domain", from, PATIENCE)?;
    dom0.machine().type_bytes(CTRL_C)?;
    dom0.wait_for(OWN_PROMPT, asked, PATIENCE)
        .context("Ctrl-C does not end `xl shutdown -w`")?;
    dom0.run("xl list deaf")?;
    dom0.destroy("deaf")?;

    dom0.start_tiny(&Tiny::new("keys"))?;
    let from = dom0.machine().transcript().len();
    dom0.type_line("xl console keys")?;
    // It is the program itself that speaks: when it does, it is in the foreground.
    dom0.type_line("sh -c 'echo be\"\"gun; exec sleep 1000'")?;
    let begun = dom0.wait_while_held("begun", from, PATIENCE)?;
    dom0.machine().type_bytes(CTRL_C)?;
    dom0.type_line("echo over af''ter all")?;
    dom0.wait_while_held("over after all", begun, PATIENCE)
        .context("Ctrl-C does not reach the guest's program")?;
    dom0.leave_console()?;
    dom0.destroy("keys")
}

/// Names as in xen-vbd-interface(7).
fn disks_have_their_numbers(dom0: &mut Dom0) -> Result<()> {
    const DISKS: [(&str, u32); 7] = [
        ("hda", 768),
        ("hda1", 769),
        ("hdb", 832),
        ("sda1", 2049),
        ("sda2", 2050),
        ("hdc", 5632),
        ("xvda", 51712),
    ];
    let list = DISKS
        .map(|(name, _)| format!("'file:/srv/guests/micro,{name},r'"))
        .join(", ");
    let config = format!("{}disk = [ {list} ]\n", micro("blocks", "idle"));
    dom0.write_config("blocks", &config)?;
    dom0.run("xl create -p /tmp/blocks.cfg")?;
    let listed = dom0.run("xl block-list blocks | awk 'NR > 1 { print $1 }' | sort -n | xargs")?;
    let expected = DISKS.map(|(_, number)| number.to_string()).join(" ");
    ensure!(listed == expected, "the disks are {listed}, not {expected}");
    dom0.destroy("blocks")
}

fn every_state_has_its_letter(dom0: &mut Dom0) -> Result<()> {
    const PRESERVED: &str = "on_poweroff = \"preserve\"\non_reboot = \"preserve\"\non_crash = \"preserve\"\n\
                             on_watchdog = \"preserve\"\non_soft_reset = \"preserve\"\n";
    dom0.create("busy", &micro("busy", "spin"))?;
    wait_for_state(dom0, "busy", "r-----")?;
    dom0.create("idle", &micro("idle", "idle"))?;
    wait_for_state(dom0, "idle", "-b----")?;
    dom0.write_config("held", &micro("held", "idle"))?;
    dom0.run("xl create -p /tmp/held.cfg")?;
    wait_for_state(dom0, "held", "--p---")?;
    // The reasons of SCHEDOP_shutdown: poweroff, reboot, suspend, crash, watchdog, soft reset.
    for (reason, state) in ["---s--", "---sr-", "---ss-", "---sc-", "---sw-", "---sS-"]
        .iter()
        .enumerate()
    {
        let name = format!("end{reason}");
        let config = micro(&name, &format!("end reason={reason}"));
        dom0.create(&name, &format!("{config}{PRESERVED}"))?;
        wait_for_state(dom0, &name, state)?;
    }
    // Without anything to take an NMI with, it cannot go on.
    dom0.create("hit", &(micro("hit", "idle") + PRESERVED))?;
    dom0.run("xl trigger hit nmi")?;
    wait_for_state(dom0, "hit", "---sc-")?;
    let (code, said) = dom0.ask("xl trigger hit reset 2>&1", PATIENCE)?;
    ensure!(
        code == 1 && said.contains("no reset button"),
        "a PV domain's reset: {code}, {said}"
    );
    // A whole kernel that panics, as well.
    let crash = Tiny::new("oops").then("echo c >/proc/sysrq-trigger");
    dom0.create_tiny(&crash.setting("on_crash = \"preserve\""))?;
    wait_for_state(dom0, "oops", "---sc-")
}

/// By hand, and by whoever stays with a domain. A kernel that never said which frames it has is dumped as well.
fn a_core_is_left(dom0: &mut Dom0) -> Result<()> {
    const CORES: &str = "/var/lib/xen/dump";
    let is_core = |dom0: &mut Dom0, file: &str, mib: u32| -> Result<()> {
        let kind = dom0.run(&format!("od -An -tx1 -N4 {file}; od -An -tu2 -j16 -N4 {file}"))?;
        let kind: Vec<&str> = kind.split_whitespace().collect();
        ensure!(
            kind == ["7f", "45", "4c", "46", "4", "62"],
            "{file} begins with {kind:?}"
        );
        let size: u64 = dom0.run(&format!("stat -c %s {file}; rm {file}"))?.parse()?;
        let memory = u64::from(mib) << 20;
        let is_right = (memory..memory + (2 << 20)).contains(&size);
        ensure!(is_right, "{file} has {size} bytes, and the domain had {mib} MiB");
        Ok(())
    };
    dom0.run("xl dump-core oops /tmp/oops.core && ! ls /tmp/*.part 2>/dev/null")?;
    is_core(dom0, "/tmp/oops.core", 128)?;
    wait_for_state(dom0, "oops", "---sc-")?;
    for (reason, setting) in [(3, "on_crash"), (4, "on_watchdog")] {
        let name = format!("core{reason}");
        let config = micro(&name, &format!("end reason={reason}"));
        dom0.create(&name, &format!("{config}{setting} = \"coredump-destroy\"\n"))?;
        dom0.wait_until_gone(&name, PATIENCE)?;
        is_core(dom0, &format!("{CORES}/{name}"), 16)?;
    }
    // And built anew afterwards, by hand, and by whoever stays with one that ends each time.
    dom0.create("anew", &micro("anew", "idle"))?;
    let anew = dom0.run("xl domid anew; xl dump-core -R anew /tmp/anew.core >/dev/null 2>&1; xl domid anew")?;
    let numbers: Vec<&str> = anew.split_whitespace().collect();
    ensure!(
        matches!(numbers[..], [old, new] if old != new),
        "before and after -R it is domain {anew}"
    );
    is_core(dom0, "/tmp/anew.core", 16)?;
    dom0.destroy("anew")?;
    let ends = micro("ends", "end reason=4") + "on_watchdog = \"coredump-restart\"\n";
    dom0.create("ends", &ends)?;
    const LOG: &str = "/var/log/xen/xl-ends.log";
    dom0.wait_for_line(LOG, "started again as domain", PATIENCE)?;
    // It would never end: whoever stays with it goes first.
    dom0.run(&format!(
        "for p in /proc/[0-9]*; do [ \"$(readlink $p/fd/1)\" = {LOG} ] && kill -9 ${{p#/proc/}}; done; xl destroy ends; true"
    ))?;
    dom0.wait_until_gone("ends", PATIENCE)?;
    is_core(dom0, &format!("{CORES}/ends"), 16)
}

pub(super) fn wait_for_state(dom0: &mut Dom0, name: &str, state: &str) -> Result<()> {
    let wait = format!(
        "for _ in $(seq 300); do now=$(xl list {name} | awk 'END {{ print $5 }}'); [ \"$now\" = {state} ] && break; \
         usleep 100000; done; echo $now"
    );
    let now = dom0.run(&wait)?;
    ensure!(now == state, "{name} is in state {now}, not {state}");
    Ok(())
}

/// Every row is what stock xl's format makes of its fields.
fn lists_have_their_layout(dom0: &mut Dom0) -> Result<()> {
    const HEADING: &str = "Name                                        ID   Mem VCPUs|State|Time(s)";
    const MORE: &str = "   UUID                            Reason-Code|Security Label";
    // The console would turn tabs into blanks.
    let plain = dom0.run("xl list | tr '\\t' '|'")?;
    let verbose = dom0.run("xl list -v | tr '\\t' '|'")?;
    ensure!(
        plain.lines().next() == Some(HEADING),
        "the heading is {:?}",
        plain.lines().next()
    );
    ensure!(
        verbose.lines().next() == Some(&format!("{HEADING}{MORE}")),
        "the verbose heading is {:?}",
        verbose.lines().next()
    );
    for row in plain.lines().skip(1) {
        ensure!(row == remade(row, false)?, "this is not stock xl's layout: {row:?}");
    }
    for row in verbose.lines().skip(1) {
        ensure!(row == remade(row, true)?, "this is not stock xl's layout: {row:?}");
    }
    let count = plain.lines().count() - 1;
    let long = dom0.run("xl list -l")?;
    let long: Value = serde_json::from_str(&long).with_context(|| format!("`xl list -l` is no JSON:\n{long}"))?;
    let domains = long.as_array().context("`xl list -l` is no list")?;
    ensure!(
        domains.len() == count,
        "{} of {count} domains are in the JSON",
        domains.len()
    );
    let idle = domains
        .iter()
        .find(|domain| domain["config"]["c_info"]["name"] == "idle")
        .context("no `idle` in the JSON")?;
    let number: u64 = dom0.run("xl domid idle")?.parse()?;
    ensure!(
        idle["domid"] == number
            && idle["config"]["c_info"]["type"] == "pv"
            && idle["config"]["b_info"]["target_memkb"] == 16 << 10,
        "the JSON says of `idle`: {idle}"
    );
    Ok(())
}

/// The row that stock xl 4.17 prints for the fields of this one.
fn remade(row: &str, is_verbose: bool) -> Result<String> {
    let fields: Vec<&str> = row.split_whitespace().collect();
    let [name, id, memory, vcpus, state, time, more @ ..] = fields.as_slice() else {
        anyhow::bail!("a row with too few fields: {row:?}");
    };
    let time: f64 = time.parse()?;
    let mut remade = format!("{name:<40} {id:>5} {memory:>5} {vcpus:>5}     {state}  {time:8.1}");
    if is_verbose {
        let [uuid, reason, label] = more else {
            anyhow::bail!("a verbose row without UUID, reason and label: {row:?}");
        };
        remade.push_str(&format!(" {uuid} {reason:>8} {label:>16}"));
    }
    Ok(remade)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_stock_xl_is_its_own_remake() {
        let row = "Domain-0                                     0   500     2     r-----       4.6";
        assert_eq!(remade(row, false).unwrap(), row);
        let narrow = row.replace("  500", " 500");
        assert_ne!(remade(&narrow, false).unwrap(), narrow);
    }
}
