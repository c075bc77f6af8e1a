//! Images that our own `xl` makes, on this machine: it needs no hypervisor for that, and an emulated one is slow.
//!
//! They are made again when what makes images has changed, not with every change of the toolstack.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ferroxen_stories::built::{ADDRESS, FSTAB, KEY, NAME, PASSWORD_HASH};
use ferroxen_stories::lan::checksum;

use super::debian::SUITE;
use super::inputs::Inputs;
use super::{Packages, dir, names};
use crate::packages::{self, Package};
use crate::places;
use crate::programs::{answer, clean_command, run_quietly};

const CODE: &str = include_str!("built.rs");
const SECTOR: u64 = 512;
/// Where installers let the first partition begin.
const FIRST_PARTITION: u64 = 1 << 20;
const SWAP: u64 = 16 << 20;
/// What an installer writes for a disk on virtio.
const INSTALLED_FSTAB: &str = "/dev/vda1 / ext4 errors=remount-ro 0 1\n/dev/vda2 none swap sw 0 0\n";
const INSTALLED_MENU: &str = "set default=0\nmenuentry Debian {\n  linux /boot/vmlinuz root=/dev/vda1 ro quiet\n  \
                              initrd /boot/initrd.img\n}\n";

fn inputs() -> Result<Inputs> {
    let mut inputs = Inputs::new(&[CODE]);
    let toolstack = places::root().join("toolstack");
    inputs
        .add_dir(&toolstack.join("images/src"))?
        .add(fs::read(toolstack.join("xl/src/image.rs"))?);
    Ok(inputs)
}

/// A Debian of packages in a folder, with all set that can be: `xl image build`.
pub fn of_packages(xl: &Path, parts: &Packages, essential: &Packages) -> Result<PathBuf> {
    let mirror = mirror(parts, essential)?;
    let mut inputs = inputs()?;
    inputs
        .add(&parts.packages)
        .add(parts.disk_mib)
        .add(fs::read(mirror.join("Packages"))?)
        .add([NAME, ADDRESS, FSTAB, KEY, PASSWORD_HASH]);
    inputs.make("built-of-packages.img", |out| {
        let key = out.with_extension("pub");
        fs::write(&key, KEY)?;
        let mut build = clean_command(text(xl)?);
        build
            .args(["image", "build", "--yes", "--suite", SUITE, "--hostname", NAME])
            .args([
                "--size",
                &parts.disk_mib.to_string(),
                "--include",
                &parts.packages.join(","),
            ])
            .args(["--network", ADDRESS, "--fstab", FSTAB, "--root-password", PASSWORD_HASH])
            .arg("--expire-password")
            .arg("--mirror")
            .arg(&mirror)
            .arg("--ssh-keys")
            .arg(&key);
        let made = run_quietly(build.arg(out)).context("`xl image build`");
        fs::remove_file(&key)?;
        made
    })
}

/// The Debian guest as another machine has it, with partitions and the kernel's files, and then taken from there:
/// `xl image p2v`.
pub fn of_another_machine(xl: &Path, installed: [(&str, PathBuf); 3]) -> Result<PathBuf> {
    let mut inputs = inputs()?;
    for (name, file) in &installed {
        inputs.add(name).add_stamp(file)?;
    }
    inputs.make("built-of-disk.img", |out| {
        let disk = out.with_extension("disk");
        let made = install(&installed, &disk).and_then(|()| {
            let mut take_over = clean_command(text(xl)?);
            take_over.args(["image", "p2v", "--yes"]).arg(&disk).arg(out);
            run_quietly(&mut take_over).context("`xl image p2v`")
        });
        fs::remove_file(&disk)?;
        made
    })
}

/// Makes a disk with a table of partitions: a root that has its own kernel and GRUB's menu, and a swap.
fn install([(_, root), kernel, ramdisk]: &[(&str, PathBuf); 3], disk: &Path) -> Result<()> {
    let scratch = super::file_system::scratch_dir()?;
    let (image, script) = (scratch.path().join("root"), scratch.path().join("script"));
    run_quietly(clean_command("cp").arg("--sparse=always").arg(root).arg(&image))?;
    let mut commands = "mkdir /boot/grub\nrm /etc/fstab\n".to_owned();
    for (path, contents) in [("/etc/fstab", INSTALLED_FSTAB), ("/boot/grub/grub.cfg", INSTALLED_MENU)] {
        let file = scratch.path().join(path.rsplit('/').next().unwrap_or(path));
        fs::write(&file, contents)?;
        writeln!(commands, "write {} {path}", file.display())?;
    }
    for (name, file) in [kernel, ramdisk] {
        writeln!(commands, "write {} /boot/{name}", file.display())?;
    }
    fs::write(&script, commands)?;
    let mut debugfs = clean_command("/sbin/debugfs");
    run_quietly(debugfs.arg("-w").arg("-f").arg(&script).arg(&image))?;

    let len = fs::metadata(&image)?.len();
    let file = File::create(disk)?;
    file.set_len(FIRST_PARTITION + len + SWAP)?;
    file.write_all_at(
        &table(&[(0x83, FIRST_PARTITION, len), (0x82, FIRST_PARTITION + len, SWAP)])?,
        0,
    )?;
    let to = format!("of={}", disk.display());
    let from = format!("if={}", image.display());
    run_quietly(clean_command("dd").args([&*from, &to, "bs=1M", "seek=1", "conv=notrunc,sparse"]))
}

/// A master boot record: kinds, first bytes and lengths of the partitions, of which the first is active.
fn table(partitions: &[(u8, u64, u64)]) -> Result<[u8; SECTOR as usize]> {
    let mut table = [0; SECTOR as usize];
    let (entries, _) = table[446..510].as_chunks_mut::<16>();
    for (number, (entry, (kind, start, len))) in entries.iter_mut().zip(partitions).enumerate() {
        entry[0] = if number == 0 { 0x80 } else { 0 };
        entry[4] = *kind;
        entry[8..12].copy_from_slice(&u32::try_from(start / SECTOR)?.to_le_bytes());
        entry[12..].copy_from_slice(&u32::try_from(len / SECTOR)?.to_le_bytes());
    }
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    Ok(table)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}

/// A package that the built guest has not: it gets it from a mirror that Domain 0 serves.
pub fn shelf(parts: &Packages) -> Result<Vec<(String, PathBuf)>> {
    let folder = dir().join("shelf");
    let packages = packages::resolve(&parts.packages, &parts.skip)?;
    put_on_shelf(&packages, &folder, "shelf.list")?;
    let mut files = Vec::new();
    for entry in fs::read_dir(&folder)? {
        let entry = entry?;
        let name = entry.file_name();
        files.push((
            name.to_str().context("a name that is not UTF-8")?.to_owned(),
            entry.path(),
        ));
    }
    files.sort();
    Ok(files)
}

/// A folder of packages with an index, as `xl image build --mirror FOLDER` takes it: enough for a small Debian.
fn mirror(parts: &Packages, essential: &Packages) -> Result<PathBuf> {
    let wanted = [&parts.packages[..], &essential.packages].concat();
    let folder = dir().join("mirror");
    put_on_shelf(&packages::resolve(&wanted, &parts.skip)?, &folder, "mirror.list")?;
    Ok(folder)
}

/// Copies packages to a folder, with their index, which `list` has as well.
fn put_on_shelf(packages: &[Package], folder: &Path, list: &str) -> Result<()> {
    Inputs::new(&[CODE]).add(names(packages)).make(list, |list| {
        packages::fetch(packages)?;
        // Old versions would only be in the way.
        let _ = fs::remove_dir_all(folder);
        fs::create_dir_all(folder)?;
        let mut index = String::new();
        for package in packages {
            let path = package.path();
            // Without its epoch, as in Debian's own archive: not every way of fetching takes a colon.
            let version = package
                .version
                .split_once(':')
                .map_or(&*package.version, |(_, rest)| rest);
            let file = format!("{}_{version}.deb", package.name);
            let bytes = fs::read(&path)?;
            let control = answer(clean_command("dpkg-deb").arg("-f").arg(&path));
            let control = control.with_context(|| format!("dpkg-deb cannot read {}", path.display()))?;
            let (size, sum) = (bytes.len(), checksum(&bytes));
            writeln!(index, "{control}\nFilename: ./{file}\nSize: {size}\nSHA256: {sum}\n")?;
            fs::write(folder.join(&file), bytes)?;
            fs::set_permissions(folder.join(&file), fs::Permissions::from_mode(0o644))?;
        }
        fs::write(folder.join("Packages"), &index)?;
        // By the suite mmdebstrap knows which packages are the essential ones.
        let (size, sum) = (index.len(), checksum(index.as_bytes()));
        let release =
            format!("Suite: {SUITE}\nCodename: {SUITE}\nArchitectures: amd64\nSHA256:\n {sum} {size} Packages\n");
        fs::write(folder.join("Release"), release)?;
        Ok(fs::write(list, index)?)
    })?;
    Ok(())
}
