//! Whole Debians on disks: mmdebstrap makes the files, mke2fs the file system.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::file_system::{self, Format};
use super::inputs::Inputs;
use super::{EPOCH, Packages, recipes};
use crate::programs::{contained_command, is_root, run_quietly};

const CODE: &str = include_str!("debian.rs");
pub const SUITE: &str = "bookworm";

/// The disk of a guest with a whole Debian.
pub fn guest(parts: &Packages) -> Result<PathBuf> {
    disk("demo", parts, &recipes().join("guests/debian/overlay"))
}

/// The disk of a Domain 0 that is a server with systemd.
pub fn dom0(parts: &Packages) -> Result<PathBuf> {
    disk("dom0-debian", parts, &recipes().join("debian/overlay"))
}

fn disk(name: &str, parts: &Packages, overlay: &Path) -> Result<PathBuf> {
    let mut inputs = Inputs::new(&[CODE, file_system::CODE.concat().as_str()]);
    inputs.add(&parts.packages).add(parts.disk_mib).add_dir(overlay)?;
    inputs.make(&format!("{name}.img"), |out| {
        let tar = out.with_extension("tar");
        let work = empty(&out.with_extension("work"))?;
        let mut bootstrap = contained_command("mmdebstrap");
        if is_root() {
            // Others' files have to be where their owners can reach them.
            bootstrap.env("TMPDIR", &work);
        }
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
        run_quietly(bootstrap.arg(SUITE).arg(&tar)).context("making a Debian with mmdebstrap")?;
        let format = Format {
            label: name,
            mib: parts.disk_mib,
        };
        let made = format.of_tar(&tar, out);
        fs::remove_file(&tar)?;
        fs::remove_dir_all(&work)?;
        made
    })
}

/// A folder with nothing in it. What somebody who was killed has left there goes; what an older program has left mounted
/// there would go with it.
fn empty(folder: &Path) -> Result<PathBuf> {
    if folder.exists() {
        if let Some(point) = ferroxen_contained::mounted_in(folder)? {
            bail!("{point} is mounted: `umount {point}`, and start again");
        }
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    Ok(folder.canonicalize()?)
}
