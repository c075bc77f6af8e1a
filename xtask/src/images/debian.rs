//! Whole Debians on disks: mmdebstrap makes the files, mke2fs the file system.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ferroxen_stories::lan::checksum;

use super::file_system::{self, Format};
use super::inputs::Inputs;
use super::{EPOCH, Packages, dir, names, recipes};
use crate::packages;
use crate::programs::{answer, clean_command, run_quietly};

const CODE: &str = include_str!("debian.rs");
const SUITE: &str = "bookworm";
/// Where Domain 0's Debian has the mirror.
const MIRROR: &str = "var/mirror";

/// The disk of a guest with a whole Debian.
pub fn guest(parts: &Packages) -> Result<PathBuf> {
    disk("demo", parts, &recipes().join("guests/debian/overlay"), None)
}

/// The disk of a Domain 0 that is a server with systemd; and a mirror on it, to build guests from.
pub fn dom0(parts: &Packages, mirror: &Packages) -> Result<PathBuf> {
    disk(
        "dom0-debian",
        parts,
        &recipes().join("debian/overlay"),
        Some(&self::mirror(mirror)?),
    )
}

fn disk(name: &str, parts: &Packages, overlay: &Path, mirror: Option<&Path>) -> Result<PathBuf> {
    let mut inputs = Inputs::new(&[CODE, file_system::CODE.concat().as_str()]);
    inputs.add(&parts.packages).add(parts.disk_mib).add_dir(overlay)?;
    if let Some(mirror) = mirror {
        inputs.add(fs::read(mirror.join("Packages"))?);
    }
    inputs.make(&format!("{name}.img"), |out| {
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
            .arg(format!("--customize-hook=cp -r {}/. \"$1\"", overlay.display()));
        if let Some(mirror) = mirror {
            bootstrap.arg(format!("--customize-hook=cp -r {} \"$1\"/{MIRROR}", mirror.display()));
        }
        run_quietly(bootstrap.arg(SUITE).arg(&tar)).context("making a Debian with mmdebstrap")?;
        let format = Format {
            label: name,
            mib: parts.disk_mib,
        };
        let made = format.of_tar(&tar, out);
        fs::remove_file(&tar)?;
        made
    })
}

/// A folder of packages with an index, as `xl image build --mirror FOLDER` takes it: enough for a small Debian.
fn mirror(parts: &Packages) -> Result<PathBuf> {
    let packages = packages::resolve(&parts.packages, &parts.skip)?;
    let folder = dir().join("mirror");
    Inputs::new(&[CODE]).add(names(&packages)).make("mirror.list", |list| {
        packages::fetch(&packages)?;
        // Old versions would only be in the way.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        let mut index = String::new();
        for package in &packages {
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
    Ok(folder)
}
