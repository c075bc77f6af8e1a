//! Disk images for guests: making, filling, copying, growing and checking them.
//!
//! An image is a file with one file system and no partitions, as `sda1` of the how-tos. Its insides are changed by
//! e2fsprogs' `debugfs`, so nothing is mounted and no loop device is needed.
//!
//! Always true: a file gets its name only once it is whole. Until then it is called `NAME.new`, so an interrupted step
//! leaves the old image as it was, and a failed one leaves nothing.
#![forbid(unsafe_code)]

mod bundle;
mod copy;
mod fstab;
mod identity;
mod inside;
mod make;
mod metadata;
mod moved;
mod overlay;
mod qcow2;
mod tools;

pub use bundle::{Bundle, export, import};
pub use copy::{Way, clone};
pub use identity::{Identity, Network};
pub use inside::Inside;
pub use make::{FileSystem, Origin, build, check, create, resize};
pub use moved::take_over;
pub use overlay::overlay;

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// A file that is being made, and goes away unless it is finished.
struct Unfinished {
    path: PathBuf,
    target: PathBuf,
}

fn unfinished_name(target: &Path) -> PathBuf {
    let mut path = target.as_os_str().to_owned();
    path.push(".new");
    path.into()
}

impl Unfinished {
    fn new(target: &Path) -> Unfinished {
        Unfinished {
            path: unfinished_name(target),
            target: target.to_owned(),
        }
    }

    /// Gives it its name, and what had it goes.
    fn finish(self) -> Result<()> {
        let file = fs::File::open(&self.path).with_context(|| format!("opening {}", self.path.display()))?;
        file.sync_all()
            .with_context(|| format!("writing {}", self.path.display()))?;
        fs::rename(&self.path, &self.target).with_context(|| format!("naming {}", self.target.display()))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Renamed by now, or not worth keeping.
        let _ = fs::remove_file(&self.path);
    }
}
