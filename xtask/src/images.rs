//! Makes the images: Domain 0, the guests' files, the disk that carries them.
//!
//! The recipes are in `dom0/`. What comes out lies in `target/images`, each file made again only when
//! something that went into it has changed.

mod built;
mod debian;
mod file_system;
mod inputs;

use std::fs;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::slice;
use std::thread::{self, ScopedJoinHandle};

use anyhow::{Context, Result};
use serde::Deserialize;

use ferroxen_stories::machine::{DebianDom0, NewerDom0};
use file_system::{Format, scratch_dir};
use inputs::Inputs;

use crate::kernel::{Kernel, Packer};
use crate::packages::{self, Package};
use crate::places;
use crate::programs::{clean_command, run_quietly};
use crate::toolstack;
use crate::tree::{Tree, deb_file};

/// Every time stamp in an image, so that the same inputs give the same bits.
const EPOCH: u32 = 1_700_000_000;
const GUESTS_DISK_MIB: u64 = 1024;
/// What decides how a ramdisk comes out of its recipe.
const CODE: [&str; 2] = [include_str!("images.rs"), include_str!("tree.rs")];

/// Whose `xl`, xenstored and xenconsoled Domain 0 gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Toolstack {
    /// Ours, built from `toolstack/`.
    Ours,
    /// Debian's xen-utils, to tell our faults from the hypervisor's.
    Debian,
    /// The same with libvirt.
    Libvirt,
}

#[derive(Deserialize, Hash)]
struct Recipe {
    dom0: Packages,
    #[serde(rename = "stock-tools")]
    stock_tools: Packages,
    libvirt: Packages,
    program: Vec<Program>,
    #[serde(rename = "debian-guest")]
    debian_guest: Packages,
    #[serde(rename = "tiny-guest")]
    tiny_guest: Packages,
    #[serde(rename = "debian-dom0")]
    debian_dom0: Packages,
    #[serde(rename = "built-guest")]
    built_guest: Packages,
    essential: Packages,
}

#[derive(Deserialize, Hash, Clone)]
struct Packages {
    packages: Vec<String>,
    #[serde(default)]
    skip: Vec<String>,
    #[serde(default)]
    drop: Vec<String>,
    #[serde(default)]
    modules: Vec<String>,
    #[serde(default)]
    on_demand: Vec<String>,
    #[serde(default)]
    disk_mib: u64,
}

#[derive(Deserialize, Hash)]
struct Program {
    package: String,
    binary: String,
    to: String,
    /// Other names that it answers to.
    #[serde(default)]
    links: Vec<String>,
}

impl Recipe {
    fn read() -> Result<Self> {
        places::read_toml(&recipes().join("recipe.toml"))
    }
}

fn recipes() -> PathBuf {
    places::root().join("dom0")
}

/// Returns where images lie.
pub fn dir() -> PathBuf {
    places::made().join("images")
}

/// What a run needs.
pub struct Images {
    /// Domain 0's (and the guests') kernel.
    pub kernel: Kernel,
    /// Domain 0's ramdisk.
    pub dom0: PathBuf,
    /// The disk with the guests' files.
    pub guests: PathBuf,
}

/// Makes whatever is missing or out of date, telling `progress` what it is about.
pub fn make(toolstack: Toolstack, progress: &mut dyn FnMut(&str)) -> Result<Images> {
    let recipe = Recipe::read()?;
    fs::create_dir_all(dir())?;
    progress("Debian's kernel");
    let kernel = Kernel::fetch("amd64")?;
    let cloud = Kernel::fetch("cloud-amd64")?;
    progress("the guests' ramdisks");
    let tiny = tiny_guest(&recipe, &kernel)?;
    let initrd = debian_guest_initrd(&recipe, &kernel)?;
    // One package is unpacked after the other, which leaves the other CPUs to the rest.
    let (dom0, guests) = thread::scope(|scope| -> Result<_> {
        let demo = scope.spawn(|| debian::guest(&recipe.debian_guest));
        progress("our own guest kernels");
        let [micro, conform, fuzz] = ["micro", "conform", "fuzz"].map(own_guest);
        let (micro, conform, fuzz) = (micro?, conform?, fuzz?);
        let grub = grub_guest()?;
        progress("Debian's kernel, packed in other ways");
        let gzip = packed_kernel(&kernel, Packer::GZIP)?;
        let zstd = packed_kernel(&kernel, Packer::ZSTD)?;
        progress("the Domain 0 image");
        let dom0 = dom0(&recipe, &kernel, toolstack)?;
        progress("the Debian guest's disk");
        let demo = joined(demo)?;
        progress("the disk that carries the guests");
        let guests = guests_disk(&[
            ("vmlinux", &kernel.vmlinux),
            ("vmlinuz", &kernel.bzimage),
            ("vmlinuz-gzip", &gzip),
            ("vmlinuz-zstd", &zstd),
            ("vmlinuz-cloud", &cloud.bzimage),
            ("initrd.img", &initrd),
            ("tiny.img", &tiny),
            ("demo.img", &demo),
            ("micro", &micro),
            ("conform", &conform),
            ("fuzz", &fuzz),
            ("grub", &grub),
        ])?;
        Ok((dom0, guests))
    })?;
    Ok(Images { kernel, dom0, guests })
}

/// What a thread came to.
pub fn joined<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// Makes a Domain 0 that is a Debian on a disk with systemd, and has our packages.
///
/// What changes often comes with its ramdisk, and is laid over the disk at boot as dpkg would do it once: our programs
/// and their files, and the kernel's modules.
pub fn make_debian_dom0() -> Result<DebianDom0> {
    let recipe = Recipe::read()?;
    fs::create_dir_all(dir())?;
    let kernel = Kernel::fetch("amd64")?;
    let parts = &recipe.debian_dom0;
    let disk = debian::dom0(parts)?;
    let packages = packages::resolve(&recipe.tiny_guest.packages, &recipe.tiny_guest.skip)?;
    let modules = [&recipe.dom0.modules[..], &recipe.dom0.on_demand, &parts.on_demand].concat();
    let programs = our_programs(&recipe)?;
    let (init, system) = (recipes().join("debian/ramdisk"), recipes().join("system"));
    let mut inputs = Inputs::new(&CODE);
    inputs
        .add(parts)
        .add(&modules)
        .add(&recipe.program)
        .add(&kernel.release);
    inputs
        .add(names(&packages))
        .add(&programs)
        .add_dir(&init)?
        .add_dir(&system)?;
    let ramdisk = inputs.make("dom0-debian-initrd.img", |out| {
        let mut tree = bare_tree(&packages)?;
        let order = kernel.add_modules(&mut tree, &parts.modules)?;
        tree.file("etc/modules-order", 0o644, order.join("\n").into_bytes());
        tree.overlay(&init)?;
        let mut over = Tree::debian();
        kernel.add_modules(&mut over, &modules)?;
        our_system(&mut over, &recipe, &programs)?;
        tree.put_under("over", over);
        Ok(fs::write(out, tree.to_initramfs()?)?)
    })?;
    Ok(DebianDom0 { ramdisk, disk })
}

/// Makes a disk with images that our own `xl` has made on this machine: of packages, and of another machine's disk.
pub fn make_built() -> Result<PathBuf> {
    let recipe = Recipe::read()?;
    fs::create_dir_all(dir())?;
    let kernel = Kernel::fetch("amd64")?;
    let xl = toolstack::xl()?;
    let built = built::of_packages(&xl, &recipe.built_guest, &recipe.essential)?;
    let installed = [
        ("disk", debian::guest(&recipe.debian_guest)?),
        ("vmlinuz", kernel.bzimage.clone()),
        ("initrd.img", debian_guest_initrd(&recipe, &kernel)?),
    ];
    let moved = built::of_another_machine(&xl, installed)?;
    let shelf = built::shelf(&recipe.tiny_guest)?;
    let mut files: Vec<(&str, &Path)> = vec![("built.img", &built), ("moved.img", &moved)];
    files.extend(shelf.iter().map(|(name, path)| (name.as_str(), path.as_path())));
    disk_of("built.img", "built", &files)
}

/// Makes Domain 0's image around the newest kernel that Debian offers for this release.
pub fn make_newer_dom0() -> Result<NewerDom0> {
    let recipe = Recipe::read()?;
    fs::create_dir_all(dir())?;
    let kernel = Kernel::fetch("6.12-amd64")?;
    let ramdisk = dom0_with("dom0-newer.img", &recipe, &kernel, Toolstack::Ours)?;
    Ok(NewerDom0 {
        kernel: kernel.vmlinux,
        ramdisk,
    })
}

/// Makes Domain 0's image, and a disk with our own guest kernels and nothing else: no Debian guest, so in less time.
pub fn make_bare(toolstack: Toolstack, progress: &mut dyn FnMut(&str)) -> Result<Images> {
    let recipe = Recipe::read()?;
    fs::create_dir_all(dir())?;
    progress("Debian's kernel");
    let kernel = Kernel::fetch("amd64")?;
    progress("our own guest kernels");
    let (conform, fuzz) = (own_guest("conform")?, own_guest("fuzz")?);
    let guests = disk_of("own-guests.img", "guests", &[("conform", &conform), ("fuzz", &fuzz)])?;
    progress("the Domain 0 image");
    let dom0 = dom0(&recipe, &kernel, toolstack)?;
    Ok(Images { kernel, dom0, guests })
}

/// Makes Domain 0's image and nothing else, for who brings everything else along.
pub fn make_dom0(toolstack: Toolstack) -> Result<PathBuf> {
    fs::create_dir_all(dir())?;
    dom0(&Recipe::read()?, &Kernel::fetch("amd64")?, toolstack)
}

fn dom0(recipe: &Recipe, kernel: &Kernel, toolstack: Toolstack) -> Result<PathBuf> {
    let name = match toolstack {
        Toolstack::Ours => "dom0.img",
        Toolstack::Debian => "dom0-stock.img",
        Toolstack::Libvirt => "dom0-libvirt.img",
    };
    dom0_with(name, recipe, kernel, toolstack)
}

fn dom0_with(name: &str, recipe: &Recipe, kernel: &Kernel, toolstack: Toolstack) -> Result<PathBuf> {
    let mut packages = packages::resolve(&recipe.dom0.packages, &recipe.dom0.skip)?;
    let mut drop = recipe.dom0.drop.clone();
    let mut programs = Vec::new();
    let tools: &[&Packages] = match toolstack {
        Toolstack::Ours => &[],
        Toolstack::Debian => &[&recipe.stock_tools],
        Toolstack::Libvirt => &[&recipe.stock_tools, &recipe.libvirt],
    };
    match toolstack {
        Toolstack::Ours => programs = our_programs(recipe)?,
        // Under another name, for a guest that goes from one toolstack to the other.
        Toolstack::Debian => {
            let ours = our_programs(recipe)?.into_iter().find(|(to, _)| to == XL);
            programs.extend(ours.map(|(_, bytes)| (OUR_XL.to_owned(), bytes)));
        }
        Toolstack::Libvirt => {}
    }
    for parts in tools {
        packages.extend(packages::resolve(&parts.packages, &parts.skip)?);
        drop.extend_from_slice(&parts.drop);
    }
    packages.sort_by(|a, b| a.name.cmp(&b.name));
    packages.dedup();
    let mut inputs = Inputs::new(&CODE);
    inputs.add(&recipe.dom0).add(tools).add(&recipe.program);
    inputs.add(&kernel.release).add(toolstack);
    inputs.add(names(&packages)).add(&programs);
    inputs
        .add_dir(&recipes().join("overlay"))?
        .add_dir(&recipes().join("overlay-stock"))?
        .add_dir(&recipes().join("system"))?;
    inputs.make(name, |out| {
        packages::fetch(&packages)?;
        let mut tree = Tree::debian();
        for package in &packages {
            tree.deb(&package.path(), &drop)?;
        }
        common(&mut tree)?;
        let order = kernel.add_modules(&mut tree, &recipe.dom0.modules)?;
        // The last list is the one that `modprobe` finds.
        kernel.add_modules(&mut tree, &[&recipe.dom0.modules[..], &recipe.dom0.on_demand].concat())?;
        tree.file("etc/modules-order", 0o644, order.join("\n").into_bytes());
        tree.link("sbin/init", "/usr/bin/busybox");
        tree.overlay(&recipes().join("overlay"))?;
        match toolstack {
            Toolstack::Ours => our_system(&mut tree, recipe, &programs)?,
            Toolstack::Debian | Toolstack::Libvirt => {
                tree.overlay(&recipes().join("overlay-stock"))?;
                for (to, bytes) in &programs {
                    tree.file(to, 0o755, bytes.clone());
                }
            }
        }
        Ok(fs::write(out, tree.to_initramfs()?)?)
    })
}

/// What our packages bring: programs under all their names, and the files that go with them.
fn our_system(tree: &mut Tree, recipe: &Recipe, programs: &[(String, Vec<u8>)]) -> Result<()> {
    for (to, bytes) in programs {
        tree.file(to, 0o755, bytes.clone());
    }
    for program in &recipe.program {
        for link in &program.links {
            tree.link(link, &format!("/{}", program.to));
        }
    }
    tree.overlay(&recipes().join("system"))
}

/// What every ramdisk has: the directories, the console, busybox as the shell of last resort.
fn common(tree: &mut Tree) -> Result<()> {
    for name in [
        "dev", "proc", "sys", "run", "tmp", "mnt", "root", "var/log", "var/lib", "etc",
    ] {
        tree.directory(name);
    }
    tree.char_device("dev/console", 5, 1);
    tree.char_device("dev/null", 1, 3);
    if !tree.contains("bin/sh") {
        tree.link("bin/sh", "busybox");
    }
    anyhow::ensure!(tree.contains("bin/busybox"), "the recipe lacks busybox-static");
    Ok(())
}

/// Where our `xl` is, and where beside Debian's.
const XL: &str = "usr/sbin/xl";
const OUR_XL: &str = "usr/lib/ferroxen/xl";

/// Builds our programs for Domain 0 and returns where each goes, with its bytes.
fn our_programs(recipe: &Recipe) -> Result<Vec<(String, Vec<u8>)>> {
    let names: Vec<_> = recipe
        .program
        .iter()
        .map(|program| (program.package.as_str(), program.binary.as_str()))
        .collect();
    let read = |(program, path): (&Program, PathBuf)| {
        let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok((program.to.clone(), bytes))
    };
    recipe.program.iter().zip(toolstack::build(&names)?).map(read).collect()
}

/// A guest kernel of ours.
fn own_guest(name: &str) -> Result<PathBuf> {
    let built = fs::read(crate::hypervisor::build_guest(name)?)?;
    Inputs::new(&CODE)
        .add(&built)
        .make(name, |out| Ok(fs::write(out, &built)?))
}

/// A bzImage whose payload `packer` has packed.
fn packed_kernel(kernel: &Kernel, packer: Packer) -> Result<PathBuf> {
    let mut inputs = Inputs::new(&CODE);
    inputs
        .add(include_str!("kernel.rs"))
        .add(&kernel.release)
        .add(packer.name);
    inputs.make(&format!("vmlinuz-{}", packer.name), |out| {
        Ok(fs::write(out, kernel.packed_by(packer)?)?)
    })
}

/// GRUB as a PV kernel, which Debian ships for hosts: it lives in less memory than any Linux does.
fn grub_guest() -> Result<PathBuf> {
    const FILE: &str = "usr/lib/grub-xen/grub-x86_64-xen.bin";
    let package = packages::newest("grub-xen-host")?;
    Inputs::new(&CODE)
        .add(names(slice::from_ref(&package)))
        .make("grub", |out| {
            packages::fetch(slice::from_ref(&package))?;
            Ok(fs::write(out, deb_file(&package.path(), FILE)?)?)
        })
}

fn tiny_guest(recipe: &Recipe, kernel: &Kernel) -> Result<PathBuf> {
    ramdisk("tiny.img", &recipe.tiny_guest, kernel, &recipes().join("guests/tiny"))
}

fn debian_guest_initrd(recipe: &Recipe, kernel: &Kernel) -> Result<PathBuf> {
    let mut parts = recipe.debian_guest.clone();
    parts.packages.clone_from(&recipe.tiny_guest.packages);
    ramdisk("initrd.img", &parts, kernel, &recipes().join("guests/initrd"))
}

/// A ramdisk of busybox, some modules and the files of `overlay`.
fn ramdisk(name: &str, parts: &Packages, kernel: &Kernel, overlay: &Path) -> Result<PathBuf> {
    let packages = packages::resolve(&parts.packages, &parts.skip)?;
    let mut inputs = Inputs::new(&CODE);
    inputs
        .add(parts)
        .add(&kernel.release)
        .add(names(&packages))
        .add_dir(overlay)?;
    inputs.make(name, |out| {
        let mut tree = bare_tree(&packages)?;
        let order = kernel.add_modules(&mut tree, &parts.modules)?;
        tree.file("etc/modules-order", 0o644, order.join("\n").into_bytes());
        tree.overlay(overlay)?;
        Ok(fs::write(out, tree.to_initramfs()?)?)
    })
}

/// The disk that Domain 0 mounts on /srv: kernels, ramdisks and disks of guests.
fn guests_disk(files: &[(&str, &Path)]) -> Result<PathBuf> {
    disk_of("guests.img", "guests", files)
}

/// By the label "guests" Domain 0 knows its own.
fn disk_of(image: &str, label: &str, files: &[(&str, &Path)]) -> Result<PathBuf> {
    let format = Format {
        label,
        mib: GUESTS_DISK_MIB,
    };
    let mut inputs = Inputs::new(&file_system::CODE);
    inputs.add(format);
    for (name, path) in files {
        inputs.add(name).add_stamp(path)?;
    }
    inputs.make(image, |out| {
        let scratch = scratch_dir()?;
        let dir = scratch.path().join("guests");
        fs::create_dir(&dir)?;
        for (name, path) in files {
            // cp keeps the holes of a disk image.
            run_quietly(clean_command("cp").arg("--sparse=always").arg(path).arg(dir.join(name)))?;
        }
        format.of_folder(scratch.path(), out)
    })
}

/// What `packages` hold, with the directories that a ramdisk needs.
fn bare_tree(packages: &[Package]) -> Result<Tree> {
    packages::fetch(packages)?;
    let mut tree = Tree::debian();
    for package in packages {
        tree.deb(&package.path(), &["usr/share".to_owned()])?;
    }
    common(&mut tree)?;
    Ok(tree)
}

fn names(packages: &[Package]) -> Vec<String> {
    packages
        .iter()
        .map(|package| format!("{}={}", package.name, package.version))
        .collect()
}
