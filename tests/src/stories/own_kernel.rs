//! A guest whose kernel is in its own disk, and what of the host its configuration gives it.

use anyhow::{Result, ensure};

use crate::dom0::{Dom0, PATIENCE};
use crate::guest::{TINY_PATIENCE, micro};
use crate::machine::Parts;

const NAME: &str = "own";
const MENU: &str = "set default=1
set timeout=0
menuentry broken {
  linux /boot/nothing
}
menuentry tiny {
  linux ($root)/boot/vmlinuz console=hvc0 quiet
  initrd ($root)/boot/initrd.img
}
";
const CONFIG: &str = "name = \"own\"
memory = 128
bootloader = \"pygrub\"
extra = \"from=configuration\"
disk = [ 'file:/tmp/own.img,xvda,w' ]
cpuid = \"host,cx16=0\"
ioports = [ '2f8-2ff' ]
on_crash = \"destroy\"
";

pub(super) fn is_found(parts: &Parts) -> Result<()> {
    let mut dom0 = Dom0::boot(parts)?;
    dom0.run("mkdir -p /tmp/root/boot/grub && cp /srv/guests/vmlinuz /tmp/root/boot/vmlinuz")?;
    dom0.run("cp /srv/guests/tiny.img /tmp/root/boot/initrd.img")?;
    dom0.write_config("grub", MENU)?;
    dom0.run("mv /tmp/grub.cfg /tmp/root/boot/grub/grub.cfg")?;
    dom0.run("xl image build /tmp/own.img --size 40 --folder /tmp/root && rm -r /tmp/root")?;
    dom0.create(NAME, CONFIG)?;
    dom0.watch_guest(NAME, "tiny guest: up", TINY_PATIENCE)?;
    let options = dom0.in_guest(NAME, "cat /proc/cmdline", PATIENCE)?;
    ensure!(
        options == "console=hvc0 quiet from=configuration",
        "the guest's kernel was given {options:?}"
    );
    let flags = dom0.in_guest(NAME, "grep -o -w -e cx16 -e hypervisor /proc/cpuinfo", PATIENCE)?;
    ensure!(flags == "hypervisor", "the guest's CPU has {flags:?}");
    dom0.destroy(NAME)?;
    grub_finds_it_too(&mut dom0)?;
    refuses_what_cannot_be_had(&mut dom0)?;
    dom0.power_off(PATIENCE)
}

/// Debian's GRUB for PV domains (grub-xen-host) looks for a menu on the disks that it has, and starts the Linux of its
/// first choice in its own place.
fn grub_finds_it_too(dom0: &mut Dom0) -> Result<()> {
    const GRUB: &str = "name = \"grub\"\nmemory = 160\nkernel = \"/srv/guests/grub\"\n\
                        disk = [ 'file:/tmp/own.img,xvda,w' ]\non_crash = \"preserve\"\n";
    dom0.create("grub", GRUB)?;
    dom0.watch_guest("grub", "tiny guest: up", TINY_PATIENCE)?;
    let options = dom0.in_guest("grub", "cat /proc/cmdline", PATIENCE)?;
    ensure!(
        options.contains("console=hvc0 quiet") && !options.contains("from=configuration"),
        "GRUB has given the kernel {options:?}"
    );
    dom0.destroy("grub")
}

fn refuses_what_cannot_be_had(dom0: &mut Dom0) -> Result<()> {
    // A kernel that is small and not packed: it is read before its domain is made.
    dom0.write_config("micro", &micro("refused", "idle"))?;
    for (file, setting, said) in [
        // The hypervisor's own serial line.
        ("micro", "ioports=['3f8-3ff']", "the hypervisor keeps that for itself"),
        (
            "micro",
            "cpuid='host,avx512f=1'",
            "the host cannot give what is asked for",
        ),
        ("micro", "vfb=['type=vnc']", "there is none that knows Xen"),
        ("micro", "vtpm=['backend=0']", "`vtpm` cannot be had"),
        ("micro", "max_grant_version=2", "version 1 of grant tables only"),
        (NAME, "bootloader_args=['--entry=third']", "it has \"broken\", \"tiny\""),
        (NAME, "bootloader_args=['--entry=broken']", "/nothing"),
        (NAME, "bootloader='/usr/bin/petitboot'", "is not run"),
    ] {
        let printed = dom0.run(&format!("! xl create /tmp/{file}.cfg \"{setting}\" 2>&1"))?;
        ensure!(printed.contains(said), "`{setting}` is answered:\n{printed}");
    }
    let left = dom0.run("xl list | awk 'NR > 2'; xenstore ls /libxl; losetup -a 2>/dev/null || true")?;
    ensure!(left.is_empty(), "this is left:\n{left}");
    Ok(())
}
