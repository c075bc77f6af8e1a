//! ext4 images: the same files give the same bits.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Result;

use super::EPOCH;
use crate::ext4;
use crate::programs::{answer, clean_command, run_quietly};

/// What decides how an image comes out of its files.
pub const CODE: [&str; 2] = [include_str!("file_system.rs"), include_str!("../ext4.rs")];

/// How an image is made.
#[derive(Debug, Clone, Copy, Hash)]
pub struct Format<'a> {
    /// By which whoever mounts it finds it.
    pub label: &'a str,
    /// Its size.
    pub mib: u64,
}

impl Format<'_> {
    /// Makes an image of what is under `folder`.
    pub fn of_folder(self, folder: &Path, out: &Path) -> Result<()> {
        self.by_shell(&self.mke2fs_line(folder, out), "sh", out)
    }

    /// Makes an image of what a tar archive holds.
    ///
    /// Unpacks in memory: there a directory is read back in a fixed order, so the image is always the same.
    pub fn of_tar(self, tar: &Path, out: &Path) -> Result<()> {
        let scratch = scratch_dir()?;
        let script = format!(
            "tar -xf '{}' -C '{}' && {}",
            tar.display(),
            scratch.path().display(),
            self.mke2fs_line(scratch.path(), out)
        );
        let is_root = answer(clean_command("id").arg("-u")).as_deref() == Some("0");
        self.by_shell(&script, if is_root { "sh" } else { "fakeroot" }, out)
    }

    fn by_shell(self, script: &str, program: &str, out: &Path) -> Result<()> {
        let mut shell = clean_command(program);
        if program != "sh" {
            shell.arg("sh");
        }
        run_quietly(
            shell
                .env("E2FSPROGS_FAKE_TIME", EPOCH.to_string())
                .args(["-e", "-c", script]),
        )?;
        ext4::clamp_times(out, EPOCH)
    }

    fn mke2fs_line(self, from: &Path, out: &Path) -> String {
        format!(
            "rm -f '{out}' && PATH=$PATH:/sbin:/usr/sbin mke2fs -q -F -t ext4 -O ^metadata_csum,^orphan_file \
             -L {label} -U {uuid} -E hash_seed={uuid},root_owner=0:0 -d '{from}' '{out}' {mib}M",
            out = out.display(),
            from = from.display(),
            label = self.label,
            uuid = self.uuid(),
            mib = self.mib,
        )
    }

    /// Made of its label: not random, and another for every image.
    fn uuid(self) -> String {
        let tail = self
            .label
            .bytes()
            .fold(0_u64, |sum, byte| (sum << 8 | u64::from(byte)) & 0xffff_ffff_ffff);
        format!("7a6f6e65-0000-4000-8000-{tail:012x}")
    }
}

/// A folder in memory, where there is room for that.
pub fn scratch_dir() -> Result<tempfile::TempDir> {
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
