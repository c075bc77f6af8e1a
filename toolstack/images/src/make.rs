//! New images, and those that are to have another size.

use crate::fstab::{Names, fitted};
use crate::tools::{contained, must, piped, program, run, text};
use crate::unfinished::{Staging, Unfinished, staging_name, unfinished_name};
use crate::{Identity, Inside, copy};
use anyhow::{Context, Result, bail};
use rustix::process::geteuid;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// What an image holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// Nothing yet.
    None,
    /// Linux' usual.
    Ext4,
    /// The same with an older layout.
    Ext3,
    /// The same without a journal.
    Ext2,
    /// Memory that was put aside.
    Swap,
}

/// Where the files of a new image come from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A folder, as it stands.
    Folder(PathBuf),
    /// Debian packages, by mmdebstrap.
    Debian {
        /// The release, such as `bookworm`.
        suite: String,
        /// Where packages are: a URL, a folder of packages with an index, or `None` for the host's own sources.
        mirror: Option<String>,
        /// Packages beyond the smallest system.
        include: Vec<String>,
    },
    /// The host itself, without what other file systems hold.
    Host {
        /// And without these files and folders.
        left_out: Vec<PathBuf>,
    },
}

/// What a copied system must not take along: its identity, its network (its address above all, but also a bridge that would
/// take the card), disks that are not in the image, and what is only of the moment.
const HOST_ONLY: [&str; 15] = [
    "lost+found",
    "etc/machine-id",
    "etc/crypttab",
    "etc/NetworkManager/system-connections",
    "etc/netplan",
    "etc/network/interfaces",
    "etc/network/interfaces.d",
    "etc/systemd/network",
    "etc/udev/rules.d/70-persistent-net.rules",
    "var/lib/dbus/machine-id",
    "var/lib/systemd/credential.secret",
    "var/lib/systemd/random-seed",
    "var/lib/xen",
    "var/log/xen",
    "var/cache/apt/archives",
];
/// The host's swap, of which some may be in files.
const SWAPS: &str = "/proc/swaps";
/// What every root has and the copy makes anew.
const EMPTY: [&str; 8] = ["dev", "proc", "sys", "run", "tmp", "mnt", "media", "srv"];

/// Makes an image of `size` bytes that takes no room until it is written to.
pub fn create(target: &Path, size: u64, file_system: FileSystem) -> Result<()> {
    let image = sparse(target, size)?;
    format(&image.path, file_system, None)?;
    image.finish()
}

fn sparse(target: &Path, size: u64) -> Result<Unfinished> {
    let image = Unfinished::new(target)?;
    let file = File::create(&image.path).with_context(|| format!("making {}", image.path.display()))?;
    file.set_len(size)
        .with_context(|| format!("giving {} its size", image.path.display()))?;
    Ok(image)
}

fn format(path: &Path, file_system: FileSystem, folder: Option<&Path>) -> Result<()> {
    let name = match file_system {
        FileSystem::None => return Ok(()),
        FileSystem::Swap => {
            return must(program("mkswap", [text(path)?])).map(drop);
        }
        FileSystem::Ext4 => "mkfs.ext4",
        FileSystem::Ext3 => "mkfs.ext3",
        FileSystem::Ext2 => "mkfs.ext2",
    };
    let mut arguments = vec!["-q", "-F"];
    if let Some(folder) = folder {
        arguments.extend(["-d", text(folder)?]);
    }
    arguments.push(text(path)?);
    must(program(name, arguments)).map(drop)
}

/// Makes an image with files in it, and a system a machine of its own.
pub fn build(
    target: &Path,
    size: u64,
    origin: &Origin,
    identity: &Identity,
    mut progress: impl FnMut(&str),
) -> Result<()> {
    let image = sparse(target, size)?;
    // Beside the image, where there is room for it.
    let staging = Staging::new(target)?;
    let files = match origin {
        Origin::Folder(folder) => Files::Folder(folder.clone()),
        Origin::Debian { suite, mirror, include } => {
            progress("fetching and unpacking packages");
            debian(suite, mirror.as_deref(), include, staging.path())?
        }
        Origin::Host { left_out } => {
            progress("copying the host");
            let root = staging.path().join("root");
            let ours = [staging.path(), &image.path].map(Path::to_owned);
            let swaps = fs::read_to_string(SWAPS).unwrap_or_default();
            copy_host(&root, &[&left_out[..], &ours, &swap_files(&swaps)].concat())?;
            Files::Folder(root)
        }
    };
    progress("writing the image");
    match &files {
        Files::Folder(folder) => format(&image.path, FileSystem::Ext4, Some(folder))?,
        Files::Archive(archive) => {
            let folder = staging.path().join("root");
            let script = "mkdir \"$2\" && tar -C \"$2\" -xf \"$1\" && exec mkfs.ext4 -q -F -d \"$2\" \"$3\"";
            let arguments = [
                "sh",
                "-ec",
                script,
                "sh",
                text(archive)?,
                text(&folder)?,
                text(&image.path)?,
            ];
            must(program("fakeroot", arguments))?;
        }
    }
    Inside::of(&image.path).become_own(identity)?;
    image.finish()
}

/// What goes into an image.
enum Files {
    Folder(PathBuf),
    /// A tar archive, for those who cannot own the files in it: only fakeroot(1) lets them be root's.
    Archive(PathBuf),
}

/// A small Debian, by mmdebstrap.
fn debian(suite: &str, mirror: Option<&str>, include: &[String], staging: &Path) -> Result<Files> {
    /// Lays /usr out as it is now, where the packages know that: else one that brings all of Perl does it afterwards.
    const MERGED: &str = "/usr/share/mmdebstrap/hooks/maybe-merged-usr";
    // What a crash would spoil is made again; the image is written to disk at the end.
    let mut arguments = vec!["--variant=minbase".to_owned(), "--dpkgopt=force-unsafe-io".to_owned()];
    if Path::new(MERGED).is_dir() {
        arguments.push(format!("--hook-dir={MERGED}"));
    }
    if !include.is_empty() {
        arguments.push(format!("--include={}", include.join(",")));
    }
    let files = match geteuid().is_root() {
        true => Files::Folder(staging.join("root")),
        false => Files::Archive(staging.join("root.tar")),
    };
    let (Files::Folder(path) | Files::Archive(path)) = &files;
    arguments.extend([suite.to_owned(), text(path)?.to_owned()]);
    arguments.extend(mirror.map(|mirror| source(mirror, suite)).transpose()?);
    contained("mmdebstrap", arguments)?;
    Ok(files)
}

/// Where apt is to look: a folder is a whole mirror, or packages with an index, as it stands. Whoever has it vouches for
/// it.
fn source(mirror: &str, suite: &str) -> Result<String> {
    let folder = Path::new(mirror.strip_prefix("file://").unwrap_or(mirror));
    if !folder.is_dir() {
        return Ok(mirror.to_owned());
    }
    let path = fs::canonicalize(folder).with_context(|| format!("finding {mirror}"))?;
    if folder.join("dists").is_dir() {
        return Ok(format!("deb copy:{} {suite} main", text(&path)?));
    }
    for index in ["Packages", "Release"] {
        if !folder.join(index).exists() {
            bail!(
                "{mirror} has no file {index}: make it with `apt-ftparchive` (package apt-utils); \
                 Release has to name the suite as its Codename"
            );
        }
    }
    Ok(format!("deb [trusted=yes] copy:{} ./", text(&path)?))
}

/// All of the host's own file system but what is made at boot, is the host's alone, or is named in `left_out`.
fn copy_host(root: &Path, left_out: &[PathBuf]) -> Result<()> {
    fs::create_dir(root).context("making a folder for the copy")?;
    let mut pack = program("tar", ["-C", "/", "--one-file-system", "--anchored", "--no-wildcards"]);
    pack.args(["--xattrs", "--xattrs-include=*", "--sparse"]);
    for path in HOST_ONLY.iter().chain(&EMPTY) {
        pack.arg(format!("--exclude=./{path}"));
    }
    for path in left_out {
        let path = std::path::absolute(path).with_context(|| format!("where {} is", path.display()))?;
        pack.arg(format!("--exclude=.{}", text(&path)?));
    }
    pack.args(["-cf", "-", "."]);
    let unpack = program(
        "tar",
        ["--xattrs", "--xattrs-include=*", "-xpf", "-", "-C", text(root)?],
    );
    // 1: a file, such as a log, has changed while it was read.
    piped(pack, |code| code <= 1, unpack)?;
    let fstab = root.join("etc/fstab");
    if fstab.exists() {
        let fit = |old: String| fs::write(&fstab, fitted(&old, Names::New).0 + "\n");
        fs::read_to_string(&fstab).and_then(fit).context("fitting /etc/fstab")?;
    }
    for empty in EMPTY {
        let path = root.join(empty);
        let mode = if empty == "tmp" { 0o1777 } else { 0o755 };
        fs::create_dir(&path)
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(mode)))
            .with_context(|| format!("making /{empty}"))?;
    }
    Ok(())
}

/// The files among the host's swaps (proc(5)); a blank in a name is written as an octal number there.
fn swap_files(swaps: &str) -> Vec<PathBuf> {
    let file = |line: &str| {
        let mut fields = line.split_whitespace();
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "file").then(|| PathBuf::from(path.replace("\\040", " ")))
    };
    swaps.lines().filter_map(file).collect()
}

/// Looks for mistakes in an image's file system and leaves them alone. Gives what was found; `Err` if there are any.
///
/// What is left of a step that was killed is told, with what to do about it.
pub fn check(image: &Path) -> Result<String> {
    let mut said =
        must(program("e2fsck", ["-f", "-n", text(image)?])).with_context(|| format!("checking {}", image.display()))?;
    let left = [unfinished_name(image), staging_name(image)];
    for begun in left.iter().filter(|path| path.exists()) {
        said += &format!(
            "{0} is left of a step that was interrupted (or that goes on), and {1} is as it was before: remove {0}, and \
             do the step again\n",
            begun.display(),
            image.display()
        );
    }
    Ok(said)
}

/// Gives an image another size, by the how-to's steps, on a copy that takes the image's place once it is whole:
/// checked, grown or shrunk, and its file system with it.
pub fn resize(target: &Path, size: u64, mut progress: impl FnMut(&str)) -> Result<()> {
    let now = fs::metadata(target)
        .with_context(|| format!("looking at {}", target.display()))?
        .len();
    let image = Unfinished::instead_of(target)?;
    progress("copying");
    copy::contents(target, &image.path)?;
    let path = text(&image.path)?.to_owned();
    progress("checking the file system");
    // 1: there were mistakes, and they were mended.
    run(program("e2fsck", ["-f", "-p", &path]), |code| code <= 1)?;
    if size >= now {
        progress("growing");
        set_len(&image.path, size)?;
        must(program("resize2fs", [&path]))?;
    } else {
        progress("shrinking");
        let kib = format!("{}K", size / 1024);
        must(program("resize2fs", [path.as_str(), &kib])).context("its files need more room than that")?;
        set_len(&image.path, size / 1024 * 1024)?;
    }
    progress("checking the file system again");
    check(&image.path)?;
    if fs::metadata(target).map(|meta| meta.len()).unwrap_or(now) != now {
        bail!("{} has changed meanwhile: nothing was done to it", target.display());
    }
    image.finish()
}

/// Gives a file another size.
pub(crate) fn set_len(path: &Path, size: u64) -> Result<()> {
    let file = File::options().write(true).open(path);
    file.and_then(|file| file.set_len(size))
        .with_context(|| format!("giving {} its size", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_in_a_file_is_a_file() {
        let swaps =
            "Filename\tType\tSize\tUsed\tPriority\n/dev/vda2 partition 999420 0 -2\n/swap\\040file file 65532 0 -3\n";
        assert_eq!(swap_files(swaps), [PathBuf::from("/swap file")]);
        assert_eq!(swap_files(""), Vec::<PathBuf>::new());
    }
}
