//! The stories. Each boots what it needs, and returns an error that says what went wrong.
//!
//! A story names the rows of the mission that it shows. Rows that can share a machine share it: a boot is what
//! costs time.

mod boot;
mod bridges;
mod channels;
mod clones;
mod commands;
mod console;
mod daemons;
mod debian_xl;
mod devices;
mod disk;
mod from_host;
mod handover;
mod hosts;
mod kernels;
mod life;
mod load;
mod network;
mod own_kernel;
mod refusals;
mod saved;
mod server;
mod tutorials;
mod virt_manager;

use anyhow::{Context, Result};

use crate::machine::Parts;

/// A story: what it is called, what it claims, how it is told.
pub struct Story {
    /// For the command line.
    pub name: &'static str,
    /// What is true if it passes.
    pub claim: &'static str,
    /// The rows of the mission that it shows.
    pub rows: &'static [&'static str],
    /// Tells it on a machine of these parts.
    pub tell: fn(&Parts) -> Result<()>,
}

/// The stories that are told only when they are named: they need Debian's hypervisor or a desktop's programs, which no other
/// does, or take long.
pub const ON_REQUEST: [&str; 5] = ["crosswise", "virt-manager", "from-host", "channels", "ten-clones"];

/// Every story there is.
pub const STORIES: &[Story] = &[
    Story {
        name: "boot-1",
        claim: "one CPU: the log, what Domain 0 drives, what a guest sees and may do; an NMI's report, then a reset",
        rows: &["M001", "M010", "M015", "M016", "M190", "M191", "M194", "M195"],
        tell: boot::on_one_cpu,
    },
    Story {
        name: "boot-4",
        claim: "four CPUs: Domain 0 and a guest have two vcpus each; the guest gets more and fewer, and less and more memory; a \
                load on two threads runs on both, and then on the CPUs of a pool that it is moved to",
        rows: &["M051", "M080", "M142", "M170"],
        tell: boot::on_four_cpus,
    },
    Story {
        name: "grub",
        claim: "GRUB starts the gzipped image by multiboot2 from a CD and by multiboot from a disk",
        rows: &["M002", "M014"],
        tell: boot::by_grub,
    },
    Story {
        name: "options",
        claim: "dom0_mem holds, in a Domain 0 without compilers and servers, an unknown option is remarked on, pv=off refuses guests, noreboot keeps a broken host standing",
        rows: &["M003", "M013", "M165"],
        tell: boot::with_options,
    },
    Story {
        name: "refusals",
        claim: "kernels, modules and devices that cannot be are refused by name, at boot and by `xl create`",
        rows: &["M072"],
        tell: refusals::are_named,
    },
    Story {
        name: "run",
        claim: "`cargo xtask run` shows a guest, makes nothing twice, gives a terminal the prompt, says what to do on failure",
        rows: &["M130"],
        tell: handover::told_three_ways,
    },
    Story {
        name: "commands",
        claim: "xl and xm list, name, number, explain, refuse and let go as stock xl does, and leave a core of who crashes",
        rows: &["M074", "M101", "M133", "M134", "M139", "M140"],
        tell: commands::told_at_the_prompt,
    },
    Story {
        name: "debian-xl",
        claim: "Debian's own tools and oxenstored work on our hypervisor: a guest with a disk and a card is saved, restored, moved while it \
                runs, and handed to our tools and back by file and by pipe; what xentrace sees, and a core \
                like ours",
        rows: &["M010", "M137"],
        tell: debian_xl::works,
    },
    Story {
        name: "console",
        claim: "a console shows the first line, may be left and found again, has two readers, and loses nothing",
        rows: &["M130", "M131"],
        tell: console::loses_nothing,
    },
    Story {
        name: "disk",
        claim: "Debian on a file, which `xl image build` has made of packages with all settings, boots as sda1 with no manual \
                step, has its first password changed, gets a package from a mirror in Domain 0 over a card set by hand, keeps \
                its data over a reboot, and shuts down by its own scripts",
        rows: &[
            "M014", "M040", "M050", "M066", "M078", "M079", "M100", "M110", "M111", "M113", "M138",
        ],
        tell: disk::survives_reboot,
    },
    Story {
        name: "network",
        claim: "a guest asks the LAN for an address and fetches a file; two cards, of which one keeps to its rate; 64 MiB both ways arrive intact",
        rows: &["M030", "M033", "M038", "M066", "M169"],
        tell: network::carries_data,
    },
    Story {
        name: "bridges",
        claim: "the how-tos' two bridges come and go with the cards' addresses; a route, NAT, and no forged address",
        rows: &["M031", "M032", "M033", "M034", "M035", "M036", "M042"],
        tell: bridges::as_in_the_how_tos,
    },
    Story {
        name: "devices",
        claim: "disks and cards come, grow and go while a guest runs, under every name and in every way of writing, also from a \
                driver domain",
        rows: &["M103", "M106", "M115"],
        tell: devices::come_and_go,
    },
    Story {
        name: "own-kernel",
        claim: "a guest starts the kernel in its own disk, by our loader, with the ports and CPUID bits of its configuration, and \
                by Debian's GRUB for PV domains; what cannot be had is refused",
        rows: &["M060", "M072"],
        tell: own_kernel::is_found,
    },
    Story {
        name: "saved",
        claim: "a guest with queues of events is saved, restored, gone back to, and moved while it writes memory, and what ran in \
                it runs on; what fails or is called off disturbs nobody",
        rows: &["M136", "M137", "M144"],
        tell: saved::runs_on,
    },
    Story {
        name: "two-hosts",
        claim: "a guest that writes moves to another host over a cable, with its memory and its number; on the disk that both have \
                nothing is lost",
        rows: &["M144"],
        tell: hosts::hand_a_guest_over,
    },
    Story {
        name: "crosswise",
        claim: "a guest goes from Debian's Xen with Debian's tools to ours with ours and back, by files, and by cable while it \
                runs",
        rows: &["M137"],
        tell: hosts::go_crosswise,
    },
    Story {
        name: "daemons",
        claim: "xenstored and xenconsoled are killed and replaced, and no guest notices; domains come and go with the host",
        rows: &["M011", "M163"],
        tell: daemons::are_replaced,
    },
    Story {
        name: "tutorials",
        claim: "who follows the how-tos, talk and lecture of 2006 to 2017 succeeds at every step, with today's Debian",
        rows: &[
            "M032", "M037", "M039", "M041", "M060", "M071", "M075", "M078", "M083", "M085", "M086", "M102", "M103",
            "M105", "M106", "M107", "M108", "M109", "M113", "M114", "M115", "M133", "M135", "M138", "M140", "M142",
            "M146", "M195", "M196", "M208",
        ],
        tell: tutorials::are_followed,
    },
    Story {
        name: "server",
        claim: "Domain 0 is a Debian with systemd: autostart, killed daemons (QEMU's, too), logs, LVM, partitions, qcow2, a backup and its \
                drill, a shared folder, a screen, images that are cloned by shared blocks and by overlays, and grown with a \
                kill in the middle",
        rows: &[
            "M011", "M102", "M103", "M104", "M106", "M112", "M114", "M115", "M117", "M163", "M169", "M171", "M173",
        ],
        tell: server::serves,
    },
    Story {
        name: "virt-manager",
        claim: "Debian's virt-manager, which talks to the libvirt of Domain 0, shows what a guest says on its console",
        rows: &["M141", "M197"],
        tell: virt_manager::shows_a_console,
    },
    Story {
        name: "channels",
        claim: "a guest's channels carry bytes both ways, to a socket and to a terminal of the host's, also after it was saved and \
                restored; a socket comes in nobody's place",
        rows: &[],
        tell: channels::carry_bytes,
    },
    Story {
        name: "ten-clones",
        claim: "ten clones of a template are made in less than a second each",
        rows: &["M112"],
        tell: clones::are_made_in_no_time,
    },
    Story {
        name: "from-host",
        claim: "a guest that is a copy of Domain 0, a Debian with systemd, has all its units run, and neither Domain 0's daemons nor \
                its address",
        rows: &["M109"],
        tell: from_host::is_another_machine,
    },
    Story {
        name: "kernels",
        claim: "kernels packed by xz, gzip, zstd, lz4 or not at all boot, in 64 to 512 MiB",
        rows: &["M072", "M073"],
        tell: kernels::of_every_packing,
    },
    Story {
        name: "newer-kernel",
        claim: "Domain 0 runs Linux 6.12, and serves a guest with Linux 6.1 a disk and a card",
        rows: &["M012"],
        tell: kernels::newer_in_dom0,
    },
    Story {
        name: "pause",
        claim: "a paused guest neither runs nor is charged, and its connection goes on afterwards",
        rows: &["M135"],
        tell: life::pause,
    },
    Story {
        name: "spin",
        claim: "a guest that spins with events off is destroyed within 2 s; the next one finds nothing of its memory",
        rows: &["M132"],
        tell: life::spin,
    },
    Story {
        name: "shares",
        claim: "two that spin share a CPU by their weights, and one stays under its cap, as set while they run",
        rows: &["M169"],
        tell: life::shares,
    },
    Story {
        name: "eight",
        claim: "eight guests live at once and give back what they had",
        rows: &["M017"],
        tell: life::eight_at_once,
    },
    Story {
        name: "cycles",
        claim: "a hundred lives and deaths leave no memory, nodes, loops, cards, ports or grants behind",
        rows: &["M017", "M132"],
        tell: life::one_after_the_other,
    },
    Story {
        name: "stress",
        claim: "a Debian from another machine's disk (`xl image p2v`) boots by its own kernel; stress-ng runs in it for a \
                minute, while it is moved twice, and finds in memory what it wrote",
        rows: &["M118"],
        tell: load::stress_while_moved,
    },
    Story {
        name: "storm",
        claim: "random hypercalls for a minute harm nobody else",
        rows: &["M164"],
        tell: load::storm_for_a_minute,
    },
];

/// How often something is done: as often as `variable` of the environment says, or else `usually`.
fn times(variable: &str, usually: u32) -> Result<u32> {
    match std::env::var(variable) {
        Ok(number) => number
            .parse()
            .with_context(|| format!("{variable} is {number:?}, which is no number")),
        Err(_) => Ok(usually),
    }
}
