//! What runs on each hypervisor, in groups of rows that can be measured alone.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use crate::cost::machine::Load;
use crate::hypervisor;
use crate::images::{self, Toolstack};
use crate::kernel::Kernel;
use crate::tree::Tree;

/// What the kernel of a whole Domain 0 is told. Its processes have the same addresses in every run.
pub const DOM0_KERNEL_OPTIONS: &str = "console=hvc0 quiet norandmaps rdinit=/init rootfstype=ramfs";

/// Rows that are measured together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Group {
    /// What the hypervisor does for a kernel of ours (`guests/bench`), one operation after the other
    Operations,
    /// What it does for a Linux in Domain 0, and for the one program that runs there (`guests/linux`)
    Linux,
    /// What it does while a small Linux guest boots, and while Domain 0 and its daemons sleep
    Guest,
    /// How long a small Linux guest with nothing to do stands still when it is moved (`xl migrate GUEST localhost`)
    Moved,
}

impl Group {
    /// All of them, in the table's order.
    pub const ALL: [Self; 4] = [Self::Operations, Self::Linux, Self::Guest, Self::Moved];

    /// Returns its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Operations => "operations",
            Self::Linux => "linux",
            Self::Guest => "guest",
            Self::Moved => "moved",
        }
    }

    /// Builds what it runs.
    pub fn load(self) -> Result<Load> {
        match self {
            Self::Operations => operations(),
            Self::Linux => linux(),
            Self::Guest => guest("guest", "arrive", include_bytes!("sessions/guest")),
            Self::Moved => guest("moved", "beats", include_bytes!("sessions/moved")),
        }
    }
}

/// A kernel of ours with two vcpus on the one CPU.
fn operations() -> Result<Load> {
    Ok(Load {
        name: "operations",
        options: "dom0_mem=64M dom0_max_vcpus=2",
        memory_mib: 256,
        kernel: hypervisor::build_guest("bench")?,
        kernel_options: String::new(),
        ramdisk: None,
    })
}

/// Linux with our program as its first process and nothing else. Its addresses are the same in every process.
fn linux() -> Result<Load> {
    Ok(Load {
        name: "linux",
        // Debian's Xen puts no Linux of this size into less.
        options: "dom0_mem=256M dom0_max_vcpus=1",
        memory_mib: 512,
        kernel: Kernel::fetch("amd64")?.vmlinux,
        kernel_options: "console=hvc0 norandmaps rows".to_owned(),
        ramdisk: Some(write_ramdisk("bench-linux.img", &only_our_program()?)?),
    })
}

/// A ramdisk in which our program is the first process, and nothing else is.
fn only_our_program() -> Result<Vec<u8>> {
    let mut tree = Tree::default();
    tree.char_device("dev/console", 5, 1);
    tree.file("init", 0o755, fs::read(hypervisor::build_linux_program()?)?);
    tree.to_initramfs()
}

/// Domain 0 with our toolstack, and a guest that does what `word` says as soon as it is up, and ends.
fn guest(name: &'static str, word: &str, session: &[u8]) -> Result<Load> {
    let config = format!(
        "name = \"guest\"\nkernel = \"/measured/vmlinux\"\nramdisk = \"/measured/guest.img\"\n\
         memory = 128\nextra = \"console=hvc0 quiet norandmaps {word}\"\non_crash = \"preserve\"\n"
    );
    let kernel = Kernel::fetch("amd64")?;
    let files = vec![
        ("measured/guest.img", only_our_program()?),
        ("measured/guest.cfg", config.into_bytes()),
        ("measured/vmlinux", fs::read(&kernel.vmlinux)?),
    ];
    Ok(Load {
        name,
        options: "dom0_mem=512M dom0_max_vcpus=1",
        memory_mib: 1024,
        kernel: kernel.vmlinux,
        kernel_options: DOM0_KERNEL_OPTIONS.to_owned(),
        ramdisk: Some(dom0_with(
            &format!("bench-{name}.img"),
            Toolstack::Ours,
            session,
            files,
        )?),
    })
}

/// Domain 0's image, in which a script runs in place of the shell; it finds our program in /measured, and has `files` on top.
pub fn dom0_with(name: &str, toolstack: Toolstack, script: &[u8], files: Vec<(&str, Vec<u8>)>) -> Result<PathBuf> {
    let inittab = "::sysinit:/etc/ferroxen/start\nhvc0::once:/measured/session\n";
    let mut tree = Tree::default();
    tree.file("etc/inittab", 0o644, inittab.as_bytes().to_vec());
    tree.file("measured/session", 0o755, script.to_vec());
    tree.file("measured/linux", 0o755, fs::read(hypervisor::build_linux_program()?)?);
    for (name, bytes) in files {
        tree.file(name, 0o644, bytes);
    }
    // Linux unpacks one archive after the other; the later file stands.
    let mut ramdisk = fs::read(images::make_dom0(toolstack)?)?;
    ramdisk.extend(tree.to_initramfs()?);
    write_ramdisk(name, &ramdisk)
}

fn write_ramdisk(name: &str, bytes: &[u8]) -> Result<PathBuf> {
    let path = images::dir().join(name);
    fs::create_dir_all(images::dir())?;
    fs::write(&path, bytes)?;
    Ok(path)
}
