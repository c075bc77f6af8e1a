//! From power-on to Domain 0, by every loader, and what is there then.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::dom0::{Dom0, PATIENCE};
use crate::guest::{Tiny, micro};
use crate::lan::checksum;
use crate::machine::{Devices, Loader, Parts};
use crate::stories::refusals::refuses;

pub(super) fn on_one_cpu(parts: &Parts) -> Result<()> {
    let mut parts = parts.clone();
    parts.devices = Devices::Both;
    parts.options.push_str(" nmi=fatal");
    let mut dom0 = Dom0::boot(&parts)?;
    log_has_its_shape(&mut dom0)?;
    domain0_knows_where_it_is(&mut dom0, &parts.kernel_options)?;
    info_has_its_fields(&mut dom0)?;
    real_devices_work(&mut dom0)?;
    guests_devices_are_virtual(&mut dom0)?;
    guests_rights_are_few(&mut dom0)?;
    hypercalls_are_counted(&mut dom0)?;
    // Without `noreboot`, a host that finds itself broken starts again.
    dom0.machine().monitor("inject-nmi", &Value::Null)?;
    dom0.machine().wait_for_report("NMI", "Starting again.")?;
    dom0.machine()
        .wait_for_power_off(PATIENCE)
        .context("no reset after the report")
}

/// What the hypervisor and Domain 0 say, in this order.
fn log_has_its_shape(dom0: &mut Dom0) -> Result<()> {
    let text = dom0.machine().transcript().text();
    let mut rest = text.as_str();
    for sign in [
        "(XEN) Xen version 4.17",
        "(XEN) Command line: ",
        "(XEN) e820: 0x000000000000-",
        "usable",
        "(XEN) local APIC: ",
        "(XEN) clock: measured against ",
        "(XEN) CPUs: 1 running, APIC ids [0]",
        "(XEN) *** LOADING DOMAIN 0 ***",
        "Linux version 6.1",
        "root@dom0:~#",
    ] {
        let (_, after) = rest
            .split_once(sign)
            .with_context(|| format!("the log lacks {sign:?}, or has it too early"))?;
        rest = after;
    }
    let kept = dom0.run("xl dmesg | grep -cE 'Xen version 4.17|LOADING DOMAIN 0'")?;
    ensure!(kept == "2", "`xl dmesg` lacks the start");
    Ok(())
}

fn domain0_knows_where_it_is(dom0: &mut Dom0, expected: &str) -> Result<()> {
    let kind = dom0.run("cat /sys/hypervisor/type")?;
    ensure!(kind == "xen", "the hypervisor's type is {kind:?}");
    let role = dom0.run("cat /proc/xen/capabilities")?;
    ensure!(role == "control_d", "Domain 0's capabilities are {role:?}");
    let options = dom0.run("cat /proc/cmdline")?;
    ensure!(
        options == expected,
        "Domain 0's kernel was given {expected:?}, and has {options:?}"
    );
    let kernel = dom0.run("dmesg | grep -E 'Booting.*kernel on|Hypervisor detected|Xen version'")?;
    for sign in ["kernel on Xen", "Hypervisor detected: Xen PV", "Xen version: 4.17"] {
        ensure!(
            kernel.contains(sign),
            "Domain 0's kernel does not say {sign:?}:\n{kernel}"
        );
    }
    Ok(())
}

pub(super) fn info_has_its_fields(dom0: &mut Dom0) -> Result<()> {
    let info = dom0.run("xl info")?;
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(&format!("{name:<23}:")));
        let value = line
            .and_then(|line| line.split_once(": "))
            .map(|(_, value)| value.trim());
        value.with_context(|| format!("`xl info` has no field {name}:\n{info}"))
    };
    let number = |name: &str| -> Result<u64> {
        let value = field(name)?;
        value.parse().with_context(|| format!("{name} is {value:?}"))
    };
    for (name, expected) in [
        ("host", "dom0"),
        ("nr_cpus", "1"),
        ("xen_major", "4"),
        ("xen_minor", "17"),
        ("virt_caps", "pv gnttab-v1"),
        ("xen_scheduler", "credit2"),
    ] {
        let value = field(name)?;
        ensure!(value == expected, "{name} is {value:?}, not {expected:?}");
    }
    let caps = field("xen_caps")?;
    ensure!(
        caps.split(' ').any(|cap| cap == "xen-3.0-x86_64"),
        "xen_caps is {caps:?}"
    );
    let (total, free) = (number("total_memory")?, number("free_memory")?);
    ensure!(
        (2000..=2048).contains(&total) && (1200..total - 500).contains(&free),
        "of a machine with 2048 MiB, 512 of them Domain 0's, total_memory is {total} and free_memory {free}"
    );
    Ok(())
}

/// Domain 0 drives the machine's own devices, by every kind of interrupt.
fn real_devices_work(dom0: &mut Dom0) -> Result<()> {
    for (vendor, device) in [("8086", "100e"), ("8086", "2922"), ("1af4", "1000"), ("1af4", "1001")] {
        let find = format!(
            "cd /sys/bus/pci/devices && grep -lx 0x{device} */device | xargs dirname | \
             while read slot; do cat $slot/vendor; readlink $slot/driver; done"
        );
        let found = dom0.run(&find)?;
        ensure!(
            found.contains(vendor) && found.contains("drivers/"),
            "Domain 0 has no driver for {vendor}:{device}: {found:?}"
        );
    }
    // The AHCI disk holds the very file that the virtio disk has as well.
    let size = dom0.run("stat -c %s /srv/guests/vmlinux")?;
    dom0.run(&format!("cmp -n {size} /dev/sda /srv/guests/vmlinux"))
        .context("what the AHCI disk and the virtio disk hold differs")?;
    dom0.run("ip addr add 10.0.3.15/24 dev eth1 && ip link set eth1 up && ping -c 3 -W 10 10.0.3.2")
        .context("nobody answers through the e1000")?;
    for (name, kind) in [
        ("ahci", "xen-pirq -msi "),
        ("virtio", "xen-pirq -msi-x "),
        ("eth1", "xen-pirq -ioapic-level "),
    ] {
        let lines = dom0.run(&format!("grep {name} /proc/interrupts | tr -s ' '"))?;
        let came = lines.lines().filter(|line| line.contains(kind)).any(|line| {
            let count = line
                .split_whitespace()
                .nth(1)
                .and_then(|count| count.parse::<u64>().ok());
            count.is_some_and(|count| count > 0)
        });
        ensure!(came, "no interrupt of kind {kind:?} has come from {name}:\n{lines}");
    }
    Ok(())
}

fn guests_devices_are_virtual(dom0: &mut Dom0) -> Result<()> {
    let disk = "file:/srv/guests/micro,xvdb,r";
    dom0.start_tiny(&Tiny::new("one").at("10.0.2.30").disk(disk))?;
    let list = dom0.run("xl list")?;
    ensure!(
        list.contains("Domain-0") && list.contains("\none "),
        "the list is:\n{list}"
    );
    let devices = dom0.in_guest("one", "ls /sys/bus/xen/devices", PATIENCE)?;
    ensure!(
        devices.contains("vbd-51728") && devices.contains("vif-0"),
        "the guest's Xen devices are {devices:?}"
    );
    let pci = dom0.in_guest("one", "ls /sys/bus/pci/devices 2>/dev/null | wc -l", PATIENCE)?;
    ensure!(pci == "0", "the guest has {pci} PCI devices");
    let role = dom0.in_guest(
        "one",
        "mount -t xenfs xen /mnt && cat /mnt/capabilities; umount /mnt",
        PATIENCE,
    )?;
    ensure!(!role.contains("control_d"), "the guest's capabilities are {role:?}");
    dom0.converse("xl console one", &["poweroff -f"], PATIENCE)?;
    dom0.wait_until_gone("one", PATIENCE)
}

/// What a guest's kernel may not do, by its own account.
fn guests_rights_are_few(dom0: &mut Dom0) -> Result<()> {
    const SEEN: [&str; 15] = [
        "the kernel runs at level 3",
        "cli: #GP(0)",
        "hlt: #GP(0)",
        "lgdt [rsp]: #GP(0)",
        "lidt [rsp]: #GP(0)",
        "mov cr3, rax: #GP(0)",
        "domctl: getdomaininfo of Domain 0: EPERM",
        "domctl: pause Domain 0: EPERM",
        "domctl: destroy Domain 0: EPERM",
        "sysctl: physinfo: EPERM",
        "sysctl: read the console ring: EPERM",
        "platform_op: set the time: EPERM",
        "physdev_op: announce a PCI device: EPERM",
        "console_io: read the host's console: EPERM",
        "multicall: 0; in it, xen_version: 262161, sysctl: EPERM",
    ];
    let from = dom0.machine().transcript().len();
    dom0.create("rights", &micro("rights", "rights"))?;
    dom0.watch_guest("rights", "rights: that is all", PATIENCE)?;
    let said = dom0.machine().transcript().text_from(from);
    for line in SEEN {
        let wanted = format!("rights: {line}");
        ensure!(
            said.lines().any(|line| line.trim_end() == wanted),
            "the guest does not say {wanted:?}:\n{said}"
        );
    }
    dom0.destroy("rights")
}

/// What kernels ask for instead of executing privileged instructions.
fn hypercalls_are_counted(dom0: &mut Dom0) -> Result<()> {
    let said = dom0.run("xl debug-keys p; xl dmesg | sed -n 's/^(XEN) hypercall //p'")?;
    for (number, name) in [(1, "mmu_update"), (13, "multicall"), (23, "iret"), (26, "mmuext_op")] {
        let count = said
            .lines()
            .rev()
            .find_map(|line| line.strip_prefix(&format!("{number}: ")));
        let count: u32 = count
            .with_context(|| format!("{name} is not counted:\n{said}"))?
            .trim()
            .parse()?;
        ensure!(count > 100, "{name} was called {count} times");
    }
    Ok(())
}

pub(super) fn on_four_cpus(parts: &Parts) -> Result<()> {
    let mut parts = parts.clone();
    parts.cpus = 4;
    parts.options.push_str(" dom0_max_vcpus=2");
    let mut dom0 = Dom0::boot(&parts)?;
    let cpus = dom0.run("nproc")?;
    ensure!(cpus == "2", "Domain 0 has {cpus} vcpus, not 2");
    let info = dom0.run("xl info | sed -n 's/^nr_cpus *: *//p'")?;
    ensure!(info == "4", "the host has {info} CPUs, not 4");
    dom0.start_tiny(&Tiny::new("two").vcpus(2).setting("maxvcpus = 4"))?;
    let cpus = dom0.in_guest("two", "nproc", PATIENCE)?;
    ensure!(cpus == "2", "the guest has {cpus} vcpus, not 2");
    a_guest_is_resized(&mut dom0)?;
    // Two threads of load.
    let load = "(while :; do :; done &) ; (while :; do :; done &)";
    dom0.in_guest("two", load, PATIENCE)?;
    let before = vcpu_seconds(&mut dom0)?;
    dom0.run("sleep 4")?;
    let after = vcpu_seconds(&mut dom0)?;
    ensure!(
        before.len() == 2 && after.len() == 2,
        "`xl vcpu-list` has {before:?} and {after:?}"
    );
    for (vcpu, (before, after)) in before.iter().zip(&after).enumerate() {
        ensure!(
            after - before > 1.0,
            "in four seconds of load, vcpu {vcpu} has run from {before} s to {after} s"
        );
    }
    pools_part_the_cpus(&mut dom0)?;
    dom0.destroy("two")?;
    dom0.run("xl cpupool-destroy fast && xl cpupool-cpu-add Pool-0 2-3")?;
    let cpus = dom0.run("xl cpupool-list -c | tail -n +2")?;
    ensure!(cpus == "Pool-0             0,1,2,3", "not all CPUs are back: {cpus:?}");
    dom0.type_line("reboot -f")?;
    dom0.machine()
        .wait_for_power_off(PATIENCE)
        .context("Domain 0's reboot does not reset the machine")
}

/// It has one vcpu, four and then two, less memory and then more, and sees that within five seconds each time.
fn a_guest_is_resized(dom0: &mut Dom0) -> Result<()> {
    for (count, switch_on) in [(1, ""), (4, "1 2 3"), (2, "")] {
        dom0.run(&format!("xl vcpu-set two {count}"))?;
        // Who has no udev switches on what has come.
        let seen = format!(
            "for n in $(seq 50); do for c in {switch_on}; do echo 1 >/sys/devices/system/cpu/cpu$c/online; done 2>/dev/null; \
             [ $(nproc) = {count} ] && break; usleep 100000; done; nproc"
        );
        let seen = dom0.in_guest("two", &seen, PATIENCE)?;
        ensure!(seen == count.to_string(), "of {count} vcpus the guest has {seen}");
    }
    let memory = |dom0: &mut Dom0, until: &str| -> Result<i64> {
        let seen = format!(
            "for n in $(seq 50); do set -- $(grep MemTotal /proc/meminfo); [ $2 {until} ] && break; usleep 100000; done; echo $2"
        );
        Ok(dom0.in_guest("two", &seen, PATIENCE)?.parse()?)
    };
    let whole = memory(dom0, "-gt 0")?;
    for mib in [96, 120] {
        dom0.run(&format!("xl mem-set two {mib}"))?;
        let expected = whole - (128 - mib) * 1024;
        let seen = memory(dom0, &format!("= {expected}"))?;
        ensure!(
            seen == expected,
            "with {mib} MiB of 128 the guest has {seen} KiB, of {whole}"
        );
        let listed = dom0.run("xl list two | awk 'END { print $3 }'")?;
        ensure!(listed == mib.to_string(), "the list says {listed} MiB, of {mib}");
    }
    Ok(())
}

/// A pool of two CPUs is made, the guest that computes moves there, and there it stays; one that is made in there, too.
fn pools_part_the_cpus(dom0: &mut Dom0) -> Result<()> {
    for (command, why) in [
        ("xl cpupool-create name=fast cpus=3", "not free"),
        ("xl cpupool-destroy Pool-0", "it has 2 domains"),
        ("xl cpupool-migrate Domain-0 Pool-0", "Operation not permitted"),
    ] {
        let (code, said) = dom0.ask(command, PATIENCE)?;
        ensure!(code != 0 && said.contains(why), "`{command}` gives {code}: {said}");
    }
    dom0.run("xl cpupool-cpu-remove Pool-0 2-3 && xl cpupool-create 'name=\"fast\"' 'cpus=\"2-3\"'")?;
    dom0.run("xl cpupool-migrate two fast")?;
    let pools = dom0.run("xl cpupool-list -c | tail -n +2; xl list -c | awk 'NR > 1 { print $1, $NF }'")?;
    let expected = "Pool-0             0,1\nfast               2,3\nDomain-0 Pool-0\ntwo fast";
    ensure!(pools == expected, "pools and domains are {pools:?}");
    // It computes on two threads; a CPU of another pool would be idle, and tempting.
    dom0.run("xl vcpu-pin two all all")?;
    for _ in 0..20 {
        let places = dom0.run("xl vcpu-list two | awk 'NR > 1 && $5 != \"--p\" { print $4 }'")?;
        ensure!(
            places.lines().all(|cpu| matches!(cpu, "2" | "3")),
            "of pool 2-3, it is on {places:?}"
        );
    }
    let (code, said) = dom0.ask("xl vcpu-pin two 0 0", PATIENCE)?;
    ensure!(code != 0, "pinned to a CPU of another pool: {said}");
    let (code, said) = dom0.ask("xl cpupool-destroy fast", PATIENCE)?;
    ensure!(
        code != 0 && said.contains("it has 1 domains"),
        "it was destroyed under its guest: {code} {said}"
    );
    // The last CPU of a pool with domains stays.
    dom0.run("xl cpupool-cpu-remove fast 3")?;
    let (code, said) = dom0.ask("xl cpupool-cpu-remove fast 2", PATIENCE)?;
    ensure!(
        code != 0 && said.contains("need a CPU"),
        "its last CPU was taken: {code} {said}"
    );
    dom0.create("third", &(micro("third", "idle") + "pool = \"fast\"\n"))?;
    let pool = dom0.run("xl list -c third | awk 'NR > 1 { print $NF }'")?;
    ensure!(pool == "fast", "made in pool {pool:?}");
    dom0.destroy("third")
}

/// The times of `two`'s vcpus, as `xl vcpu-list` has them.
fn vcpu_seconds(dom0: &mut Dom0) -> Result<Vec<f64>> {
    let printed = dom0.run("xl vcpu-list two | awk 'NR > 1 && $5 != \"--p\" { print $6 }'")?;
    let seconds = printed.lines().map(|line| line.trim().parse::<f64>());
    seconds
        .collect::<Result<_, _>>()
        .with_context(|| format!("no times: {printed:?}"))
}

pub(super) fn by_grub(parts: &Parts) -> Result<()> {
    // The keys are those of the medium's menu.
    for (loader, protocol) in [(Loader::Cd('2'), "multiboot2"), (Loader::HardDisk('1'), "multiboot")] {
        let mut parts = parts.clone();
        parts.loader = loader;
        by_grub_from(&parts).with_context(|| format!("{loader:?}, by {protocol}"))?;
    }
    Ok(())
}

fn by_grub_from(parts: &Parts) -> Result<()> {
    let mut dom0 = Dom0::boot(parts)?;
    let text = dom0.machine().transcript().text();
    ensure!(
        text.contains("(XEN) Bootloader: GRUB"),
        "the hypervisor does not name its loader"
    );
    let options = dom0.run("cat /proc/cmdline")?;
    ensure!(
        options == parts.kernel_options,
        "the menu gives the kernel {:?}, and it has {options:?}",
        parts.kernel_options
    );
    if matches!(parts.loader, Loader::HardDisk(_)) {
        // One file is Domain 0's kernel and the guest's.
        let kernel = std::fs::read(&parts.packed_kernel)?;
        let same = dom0.run("sha256sum </srv/guests/vmlinuz")?;
        ensure!(
            same.starts_with(&checksum(&kernel)),
            "the guests' vmlinuz is another than Domain 0's"
        );
        dom0.start_tiny(&Tiny::new("same").kernel("vmlinuz"))?;
        let releases = (dom0.run("uname -a")?, dom0.in_guest("same", "uname -a", PATIENCE)?);
        let version = |line: &str| line.split_whitespace().skip(2).collect::<Vec<_>>().join(" ");
        ensure!(
            version(&releases.0).starts_with("6.1") && version(&releases.1).starts_with("6.1"),
            "the kernels say {releases:?}"
        );
        dom0.destroy("same")?;
    }
    dom0.power_off(PATIENCE)
}

pub(super) fn with_options(parts: &Parts) -> Result<()> {
    /// How long the broken host is watched standing still.
    const WINDOW: Duration = Duration::from_secs(3);
    let mut parts = parts.clone();
    parts.options = "console=com1 com1=115200,8n1 dom0_mem=256M noreboot frobnicate=1 maxcpus=many pv=off".to_owned();
    // Linux keeps 64 MiB for its bounce buffers otherwise: a quarter of what it has here.
    parts.kernel_options.push_str(" swiotlb=8192");
    let mut dom0 = Dom0::boot(&parts)?;
    let text = dom0.machine().transcript().text();
    for remark in [
        "unknown option \"frobnicate=1\"",
        "option \"maxcpus=many\" has a bad value: ignored",
    ] {
        ensure!(
            text.contains(&format!("(XEN) {remark}")),
            "the hypervisor does not say: {remark}"
        );
    }
    let total: u64 = dom0.run("free -m | awk '/^Mem:/ { print $2 }'")?.trim().parse()?;
    ensure!((1..=256).contains(&total), "free says that Domain 0 has {total} MiB");
    let listed = dom0.run("xl list 0 | awk 'END { print $3 }'")?;
    ensure!(listed == "256", "the list says that Domain 0 has {listed} MiB");
    // With its whole system in memory, and idle, it has an eighth and more to give; its daemons need least of it.
    let available: u64 = dom0
        .run("awk '/^MemAvailable:/ { print $2 }' /proc/meminfo")?
        .trim()
        .parse()?;
    ensure!(available >= 32 << 10, "in 256 MiB, {available} KiB are left for work");
    let resident: u64 = dom0
        .run("cat /proc/[0-9]*/smaps_rollup 2>/dev/null | awk '/^Pss:/ { sum += $2 } END { print sum }'")?
        .trim()
        .parse()?;
    ensure!(
        (1..=16 << 10).contains(&resident),
        "processes have {resident} KiB resident"
    );
    // It is there for guests and nothing else.
    dom0.run("! command -v gcc cc sendmail mysqld")?;
    let guest = Tiny::new("refused").config();
    refuses(
        &mut dom0,
        &guest,
        &["the hypervisor makes no PV guests", "boot it without `pv=off`"],
    )?;
    dom0.type_line("xl debug-keys C")?;
    dom0.machine()
        .wait_for_report("a debug key asked for it", "Standing still, as told by noreboot.")?;
    sleep(WINDOW);
    ensure!(
        !dom0.machine().has_ended()?,
        "with noreboot, the machine has started again"
    );
    ensure!(dom0.is_running()?, "QEMU does not say that the machine runs");
    Ok(())
}
