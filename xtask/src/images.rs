//! Makes the images: Domain 0, the guests' files, the disk that carries them.
//!
//! The recipes are in `dom0/`. What comes out lies in `target/images`, each file made again only when
//! something that went into it has changed.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::slice;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::ext4;
use crate::kernel::{Kernel, Packer};
use crate::packages::{self, Package};
use crate::places;
use crate::programs::{answer, clean_command, run, run_quietly};
use crate::tree::{Tree, deb_file};

/// Every time stamp in an image, so that the same inputs give the same bits.
const EPOCH: u32 = 1_700_000_000;
/// File systems get these names instead of random ones.
const DISK_UUID: &str = "7a6f6e65-0000-4000-8000-66657272786e";
const GUESTS_DISK_MIB: u64 = 1024;

/// Whose `xl`, xenstored and xenconsoled Domain 0 gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Toolstack {
    /// Ours, built from `toolstack/`.
    Ours,
    /// Debian's xen-utils, to tell our faults from the hypervisor's.
    Debian,
}

#[derive(Deserialize, Hash)]
struct Recipe {
    dom0: Packages,
    #[serde(rename = "stock-tools")]
    stock_tools: Packages,
    program: Vec<Program>,
    #[serde(rename = "debian-guest")]
    debian_guest: Packages,
    #[serde(rename = "tiny-guest")]
    tiny_guest: Packages,
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
        let path = recipes().join("recipe.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("in {}", path.display()))
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
    progress("the Debian guest's disk");
    let demo = debian_guest_disk(&recipe)?;
    progress("our own guest kernels");
    let [micro, conform, fuzz] = ["micro", "conform", "fuzz"].map(own_guest);
    let (micro, conform, fuzz) = (micro?, conform?, fuzz?);
    let grub = grub_guest()?;
    progress("Debian's kernel, packed in other ways");
    let gzip = packed_kernel(&kernel, Packer::GZIP)?;
    let zstd = packed_kernel(&kernel, Packer::ZSTD)?;
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
    progress("the Domain 0 image");
    let dom0 = dom0(&recipe, &kernel, toolstack)?;
    Ok(Images { kernel, dom0, guests })
}

/// Makes Domain 0's image, and a disk with our own guest kernels and nothing else: no Debian guest, so in less time.
pub fn make_bare(toolstack: Toolstack, progress: &mut dyn FnMut(&str)) -> Result<Images> {
    let recipe = Recipe::read()?;
    fs::create_dir_all(dir())?;
    progress("Debian's kernel");
    let kernel = Kernel::fetch("amd64")?;
    progress("our own guest kernels");
    let (conform, fuzz) = (own_guest("conform")?, own_guest("fuzz")?);
    let guests = disk_of("own-guests.img", &[("conform", &conform), ("fuzz", &fuzz)])?;
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
    let mut packages = packages::resolve(&recipe.dom0.packages, &recipe.dom0.skip)?;
    let mut drop = recipe.dom0.drop.clone();
    let mut programs = Vec::new();
    match toolstack {
        Toolstack::Ours => programs = our_programs(recipe)?,
        Toolstack::Debian => {
            let tools = &recipe.stock_tools;
            packages.extend(packages::resolve(&tools.packages, &tools.skip)?);
            packages.sort_by(|a, b| a.name.cmp(&b.name));
            packages.dedup();
            drop.extend_from_slice(&tools.drop);
        }
    }
    let name = match toolstack {
        Toolstack::Ours => "dom0.img",
        Toolstack::Debian => "dom0-stock.img",
    };
    let mut inputs = Inputs::new();
    inputs
        .add(recipe)
        .add(&kernel.release)
        .add(toolstack)
        .add(names(&packages));
    inputs
        .add_dir(&recipes().join("overlay"))?
        .add_dir(&recipes().join("overlay-stock"))?
        .add_dir(&recipes().join("system"))?;
    for (_, bytes) in &programs {
        inputs.add(bytes);
    }
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
        for (to, bytes) in &programs {
            tree.file(to, 0o755, bytes.clone());
        }
        match toolstack {
            Toolstack::Ours => {
                tree.overlay(&recipes().join("system"))?;
                for program in &recipe.program {
                    for link in &program.links {
                        tree.link(link, &format!("/{}", program.to));
                    }
                }
            }
            Toolstack::Debian => tree.overlay(&recipes().join("overlay-stock"))?,
        }
        Ok(fs::write(out, tree.to_initramfs()?)?)
    })
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

/// Builds our programs for Domain 0 and returns where each goes, with its bytes.
fn our_programs(recipe: &Recipe) -> Result<Vec<(String, Vec<u8>)>> {
    let target = places::made().join("toolstack");
    let mut cargo = clean_command("cargo");
    cargo
        .args([
            "build",
            "--release",
            "--quiet",
            "--config",
            "profile.release.strip=true",
        ])
        .current_dir(places::root());
    cargo.arg("--target-dir").arg(&target);
    for program in &recipe.program {
        cargo.args(["--package", &program.package]);
    }
    run(&mut cargo).context("building the toolstack")?;
    let read = |program: &Program| {
        let path = target.join("release").join(&program.binary);
        let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok((program.to.clone(), bytes))
    };
    recipe.program.iter().map(read).collect()
}

/// A guest kernel of ours.
fn own_guest(name: &str) -> Result<PathBuf> {
    let built = fs::read(crate::hypervisor::build_guest(name)?)?;
    Inputs::new().add(&built).make(name, |out| Ok(fs::write(out, &built)?))
}

/// A bzImage whose payload `packer` has packed.
fn packed_kernel(kernel: &Kernel, packer: Packer) -> Result<PathBuf> {
    let mut inputs = Inputs::new();
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
    Inputs::new().add(names(slice::from_ref(&package))).make("grub", |out| {
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
    let mut inputs = Inputs::new();
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

/// The disk of a whole Debian: mmdebstrap makes the files, mke2fs the file system.
fn debian_guest_disk(recipe: &Recipe) -> Result<PathBuf> {
    let parts = &recipe.debian_guest;
    let overlay = recipes().join("guests/debian/overlay");
    let mut inputs = Inputs::new();
    inputs.add(&parts.packages).add(parts.disk_mib).add_dir(&overlay)?;
    inputs.make("demo.img", |out| {
        let tar = out.with_extension("tar");
        let mut bootstrap = clean_command("mmdebstrap");
        bootstrap
            .env("SOURCE_DATE_EPOCH", EPOCH.to_string())
            .args(["--quiet", "--variant=minbase"])
            .arg(format!("--include={}", parts.packages.join(",")))
            .args(["doc", "man", "locale", "info"].map(|dir| format!("--dpkgopt=path-exclude=/usr/share/{dir}/*")))
            .arg("--aptopt=APT::Install-Recommends \"0\"")
            .arg("--customize-hook=rm -rf \"$1\"/var/cache/apt/* \"$1\"/var/lib/apt/lists/*")
            .arg("--customize-hook=chroot \"$1\" passwd -d root")
            .arg("--customize-hook=chroot \"$1\" systemctl -q enable systemd-networkd serial-getty@hvc0")
            .arg("--customize-hook=chroot \"$1\" systemctl -q mask getty@tty1 systemd-timesyncd")
            .arg(format!("--customize-hook=cp -r {}/. \"$1\"", overlay.display()))
            .args(["bookworm"])
            .arg(&tar);
        run_quietly(&mut bootstrap).context("making a Debian with mmdebstrap")?;
        let made = file_system_of_tar(&tar, out, "demo", parts.disk_mib);
        fs::remove_file(&tar)?;
        made
    })
}

/// Makes an ext4 image of what a tar archive holds.
///
/// Unpacks in memory: there a directory is read back in a fixed order, so the image is always the same.
fn file_system_of_tar(tar: &Path, out: &Path, label: &str, mib: u64) -> Result<()> {
    let scratch = scratch_dir()?;
    let script = format!(
        "tar -xf '{}' -C '{}' && {}",
        tar.display(),
        scratch.path().display(),
        mke2fs_line(scratch.path(), out, label, mib)
    );
    let is_root = answer(clean_command("id").arg("-u")).as_deref() == Some("0");
    let mut shell = if is_root {
        clean_command("sh")
    } else {
        let mut fakeroot = clean_command("fakeroot");
        fakeroot.arg("sh");
        fakeroot
    };
    run_quietly(
        shell
            .env("E2FSPROGS_FAKE_TIME", EPOCH.to_string())
            .args(["-e", "-c", &script]),
    )?;
    ext4::clamp_times(out, EPOCH)
}

fn scratch_dir() -> Result<tempfile::TempDir> {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() {
        memory.to_path_buf()
    } else {
        std::env::temp_dir()
    };
    let scratch = tempfile::Builder::new().prefix("ferroxen-").tempdir_in(base)?;
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755))?;
    Ok(scratch)
}

fn mke2fs_line(from: &Path, out: &Path, label: &str, mib: u64) -> String {
    format!(
        "rm -f '{out}' && PATH=$PATH:/sbin:/usr/sbin mke2fs -q -F -t ext4 -O ^metadata_csum,^orphan_file \
         -L {label} -U {DISK_UUID} -E hash_seed={DISK_UUID},root_owner=0:0 -d '{from}' '{out}' {mib}M",
        out = out.display(),
        from = from.display(),
    )
}

/// The disk that Domain 0 mounts on /srv: kernels, ramdisks and disks of guests.
fn guests_disk(files: &[(&str, &Path)]) -> Result<PathBuf> {
    disk_of("guests.img", files)
}

fn disk_of(image: &str, files: &[(&str, &Path)]) -> Result<PathBuf> {
    let mut inputs = Inputs::new();
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
        let line = mke2fs_line(scratch.path(), out, "guests", GUESTS_DISK_MIB);
        run_quietly(
            clean_command("sh")
                .env("E2FSPROGS_FAKE_TIME", EPOCH.to_string())
                .args(["-e", "-c", &line]),
        )?;
        ext4::clamp_times(out, EPOCH)
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

/// A fingerprint of what goes into a file, so that it is made only when that has changed.
struct Inputs {
    hasher: DefaultHasher,
}

impl Inputs {
    fn new() -> Self {
        let mut inputs = Self {
            hasher: DefaultHasher::new(),
        };
        inputs
            .add(include_str!("images.rs"))
            .add(include_str!("tree.rs"))
            .add(include_str!("ext4.rs"));
        inputs
    }

    fn add(&mut self, input: impl Hash) -> &mut Self {
        input.hash(&mut self.hasher);
        self
    }

    /// Adds names, modes and contents of every file below `dir`.
    fn add_dir(&mut self, dir: &Path) -> Result<&mut Self> {
        let mut entries = match fs::read_dir(dir) {
            Ok(entries) => entries.collect::<Result<Vec<_>, _>>()?,
            Err(_) => return Ok(self),
        };
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            self.add(entry.file_name());
            let meta = entry.metadata()?;
            if meta.is_dir() {
                self.add_dir(&entry.path())?;
            } else if meta.is_file() {
                self.add(meta.permissions().mode()).add(fs::read(entry.path())?);
            }
        }
        Ok(self)
    }

    /// Adds a file that we made: by its size and the fingerprint beside it, not its many bytes.
    fn add_stamp(&mut self, path: &Path) -> Result<&mut Self> {
        let stamp = fs::read_to_string(stamp_of(path)).unwrap_or_default();
        let size = fs::metadata(path)
            .with_context(|| format!("reading {}", path.display()))?
            .len();
        Ok(self.add(stamp).add(size).add(path))
    }

    /// Makes `name` in the image directory, unless it is there from the same inputs.
    fn make(&self, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let fingerprint = format!("{:016x}", self.hasher.finish());
        let path = dir().join(name);
        let stamp = stamp_of(&path);
        if path.exists() && fs::read_to_string(&stamp).is_ok_and(|old| old == fingerprint) {
            return Ok(path);
        }
        let unfinished = dir().join(format!("{name}.part"));
        make(&unfinished).with_context(|| format!("making {name}"))?;
        fs::rename(&unfinished, &path)?;
        fs::write(&stamp, fingerprint)?;
        Ok(path)
    }
}

fn stamp_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".from");
    PathBuf::from(name)
}
