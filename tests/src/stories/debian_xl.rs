//! Debian's own toolstack on our hypervisor, which it takes for Debian's.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::boot::info_has_its_fields;
use super::commands::wait_for_state;
use crate::dom0::{Dom0, PATIENCE};
use crate::guest::{Tiny, micro};
use crate::machine::Parts;

/// How long the hotplug scripts, or writing a whole guest, may take on a slow machine.
const LONG: Duration = Duration::from_secs(180);

pub(super) fn works(parts: &Parts) -> Result<()> {
    let mut parts = parts.with_debians_tools()?;
    // The comparisons with Debian's Xen have the xenstored in C.
    parts.kernel_options += " xenstored=oxenstored";
    let mut dom0 = Dom0::boot(&parts)?;
    dom0.run("PATH=$PATH:/usr/lib/xen-4.17/bin; pidof oxenstored")?;
    info_has_its_fields(&mut dom0)?;
    let list = dom0.run("xl list")?;
    ensure!(
        list.contains("\nDomain-0 ") || list.starts_with("Domain-0 "),
        "the list is:\n{list}"
    );
    let counts = dom0.run("xenperf -p")?;
    ensure!(
        counts.contains("hypercalls") && counts.contains("multicall"),
        "xenperf says:\n{counts}"
    );
    a_short_life(&mut dom0)?;
    a_disk_and_a_card(&mut dom0)?;
    what_happens_is_traced(&mut dom0)?;
    dom0.power_off(PATIENCE)
}

fn a_short_life(dom0: &mut Dom0) -> Result<()> {
    dom0.create("life", &micro("life", "idle"))?;
    wait_for_state(dom0, "life", "-b----")?;
    dom0.run("xl pause life")?;
    wait_for_state(dom0, "life", "-bp---")?;
    dom0.run("xl unpause life")?;
    wait_for_state(dom0, "life", "-b----")?;
    dom0.destroy("life")
}

/// Debian's scripts bind the file to a loop device and the card to the bridge; both work, before and after the guest has
/// been saved and restored.
fn a_disk_and_a_card(dom0: &mut Dom0) -> Result<()> {
    const NAME: &str = "linux";
    const ADDRESS: &str = "10.0.2.41";
    dom0.run("truncate -s 8M /tmp/linux.img")?;
    let guest = Tiny::new(NAME)
        .memory(96)
        .at(ADDRESS)
        .disk("file:/tmp/linux.img,xvda,w");
    dom0.write_config(NAME, &guest.config())?;
    dom0.run_within("xl create /tmp/linux.cfg", LONG)?;
    dom0.watch_guest(NAME, "tiny guest: up", PATIENCE * 2)?;
    let works = |dom0: &mut Dom0, word: &str| -> Result<()> {
        let written = format!(
            "echo {word} | dd of=/dev/xvda conv=fsync 2>/dev/null; head -c {} /dev/xvda",
            word.len()
        );
        let read = dom0.in_guest(NAME, &written, PATIENCE)?;
        ensure!(read == word, "its disk says {read:?}");
        let answers =
            format!("for _ in $(seq 30); do ping -c 1 -W 1 {ADDRESS} && break; done; ping -c 1 -W 1 {ADDRESS}");
        dom0.run_within(&answers, PATIENCE * 2).map(drop)
    };
    works(dom0, "before")?;
    both_dump_the_same_core(dom0, NAME)?;
    dom0.run_within("xl save linux /tmp/linux.save", LONG)?;
    dom0.wait_until_gone(NAME, PATIENCE)?;
    let bound = dom0.run("losetup -a | wc -l")?;
    ensure!(bound == "0", "{bound} loop devices are left after the guest was saved");
    dom0.run_within("xl restore /tmp/linux.save", LONG)?;
    works(dom0, "after")?;
    // From Debian's to Debian's while it runs, which Xen itself refuses to do with a PV guest; then from hand to hand.
    for (step, commands) in HANDS {
        // Domain 0 has no memory for two files.
        let (code, said) = dom0.ask(&format!("rm -f /tmp/linux.save; {{ {commands}; }} 2>&1"), LONG)?;
        ensure!(code == 0, "{step}: {code}, {said}");
        works(dom0, "again").context(step)?;
    }
    dom0.run_within("xl destroy linux; rm /tmp/linux.*", LONG)?;
    dom0.wait_until_gone(NAME, PATIENCE)?;
    let left = dom0.run("losetup -a; ls /sys/class/net | grep vif; xl list | awk 'NR > 2'; true")?;
    ensure!(left.is_empty(), "this is left:\n{left}");
    Ok(())
}

/// How a guest changes hands: by file and by pipe, each way. `xl` is Debian's.
const HANDS: [(&str, &str); 5] = [
    (
        "Debian's moves it to Debian's",
        "xl migrate -s '' linux 'xl migrate-receive'",
    ),
    (
        "ours restores what Debian's saved",
        "xl save linux /tmp/linux.save && /usr/lib/ferroxen/xl restore /tmp/linux.save",
    ),
    (
        "ours moves it to Debian's",
        "/usr/lib/ferroxen/xl migrate -s '' linux 'xl migrate-receive'",
    ),
    (
        "Debian's moves it to ours",
        "xl migrate -s '' linux '/usr/lib/ferroxen/xl migrate-receive'",
    ),
    (
        "Debian's restores what ours saved",
        "/usr/lib/ferroxen/xl save linux /tmp/linux.save && xl restore /tmp/linux.save",
    ),
];

/// Of each section of a core: its type, its size, a checksum. Only the place in the file and the names may differ.
const SECTIONS: &str = "sections() { \
    at=$(od -An -tu8 -j40 -N8 $1); count=$(od -An -tu2 -j60 -N2 $1); \
    for nth in $(seq 1 $((count - 1))); do head=$((at + 64 * nth)); \
    kind=$(od -An -tu4 -j$((head + 4)) -N4 $1); from=$(od -An -tu8 -j$((head + 24)) -N8 $1); \
    size=$(od -An -tu8 -j$((head + 32)) -N8 $1); \
    [ $kind = 3 ] || echo $kind $((size)) $(dd if=$1 bs=64k iflag=skip_bytes,count_bytes skip=$((from)) count=$((size)) 2>/dev/null | md5sum); done | sort; }";

/// Our own `xl` and Debian's, of one guest that stands still, and that no packet reaches.
fn both_dump_the_same_core(dom0: &mut Dom0, name: &str) -> Result<()> {
    dom0.run(SECTIONS)?;
    let port = format!("vif$(xl domid {name}).0");
    dom0.run(&format!("xl pause {name}; ip link set {port} down"))?;
    dom0.run_within(&format!("xl dump-core {name} /tmp/core"), LONG)?;
    let theirs = dom0.run_within("sections /tmp/core; rm /tmp/core", LONG)?;
    dom0.run_within(&format!("/usr/lib/ferroxen/xl dump-core {name} /tmp/core"), LONG)?;
    let ours = dom0.run_within("sections /tmp/core; rm /tmp/core", LONG)?;
    ensure!(
        ours == theirs && ours.lines().count() == 5,
        "Debian's xl dumps\n{theirs}\nand ours\n{ours}"
    );
    dom0.run(&format!("ip link set {port} up; xl unpause {name}")).map(drop)
}

/// `xentrace` reads our rings, and `xenalyze` understands what is in them.
fn what_happens_is_traced(dom0: &mut Dom0) -> Result<()> {
    dom0.run("xentrace -D -T 2 -S 32 -e all /tmp/trace")?;
    let seen = dom0.run_within(
        "xenalyze --dump-all /tmp/trace | grep -o 'runstate_change\\|hypercall\\|blocked' | sort -u | xargs",
        LONG,
    )?;
    ensure!(
        seen.contains("runstate_change") && seen.contains("hypercall"),
        "xenalyze sees: {seen}"
    );
    Ok(())
}
