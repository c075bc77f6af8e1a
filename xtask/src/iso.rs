//! `cargo xtask iso`: a CD that GRUB boots, with both of GRUB's ways to start a hypervisor.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::bench::{KERNEL_OPTIONS, OPTIONS};
use crate::hypervisor;
use crate::images::{self, Toolstack};
use crate::places;
use crate::programs::{clean_command, run_quietly};

/// What the CD's menu says. `@…@` is filled in.
const MENU: &str = r#"set timeout=3
set default=0
serial --unit=0 --speed=115200
terminal_input serial console
terminal_output serial console

menuentry "Ferroxen with Debian (multiboot2)" --hotkey=2 {
    multiboot2 /boot/ferroxen.gz @options@
    module2 /boot/vmlinuz @kernel_options@
    module2 /boot/dom0.img
}

menuentry "Ferroxen with Debian (multiboot)" --hotkey=1 {
    multiboot /boot/ferroxen.gz @options@
    module /boot/vmlinuz @kernel_options@
    module /boot/dom0.img
}

menuentry "Debian alone" {
    linux /boot/vmlinuz console=ttyS0 rdinit=/init
    initrd /boot/dom0.img
}
"#;
/// Makes `target/ferroxen.iso`.
pub fn make() -> Result<PathBuf> {
    let built = hypervisor::build()?;
    let images = images::make(Toolstack::Ours, &mut |step| println!("{step}"))?;
    let tree = places::made().join("iso");
    let boot = tree.join("boot");
    fs::create_dir_all(boot.join("grub"))?;
    fs::copy(&built.gz, boot.join("ferroxen.gz"))?;
    fs::copy(&images.kernel.bzimage, boot.join("vmlinuz"))?;
    fs::copy(&images.dom0, boot.join("dom0.img"))?;
    let menu = MENU
        .replace("@options@", OPTIONS)
        .replace("@kernel_options@", KERNEL_OPTIONS);
    fs::write(boot.join("grub/grub.cfg"), menu)?;
    let iso = places::made().join("ferroxen.iso");
    let mut grub = clean_command("grub-mkrescue");
    // The PC's BIOS modules, whatever else is installed.
    grub.arg("--directory=/usr/lib/grub/i386-pc")
        .arg("-o")
        .arg(&iso)
        .arg(&tree);
    run_quietly(&mut grub).context("grub-mkrescue")?;
    Ok(iso)
}
