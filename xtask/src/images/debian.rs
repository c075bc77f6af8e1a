//! Whole Debians on disks: mmdebstrap makes the files, mke2fs the file system.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::file_system::{self, Format};
use super::inputs::Inputs;
use super::{EPOCH, Packages, recipes};
use crate::programs::{clean_command, run_quietly};

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
