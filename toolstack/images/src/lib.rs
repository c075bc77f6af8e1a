//! Disk images for guests: making, filling, copying, growing and checking them.
//!
//! An image is a file with one file system and no partitions, as `sda1` of the how-tos. Its insides are changed by
//! e2fsprogs' `debugfs`, so nothing is mounted and no loop device is needed.
//!
//! Always true: a file gets its name only once it is whole. Until then it is called `NAME.new`, so an interrupted step
//! leaves the old image as it was, and a failed one leaves nothing. Who makes it holds a lock on it, so two never write to one.
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

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A file that is being made, and goes away unless it is finished.
struct Unfinished {
    path: PathBuf,
    target: PathBuf,
    /// Locked for as long as it is open.
    _lock: File,
}

fn unfinished_name(target: &Path) -> PathBuf {
    let mut path = target.as_os_str().to_owned();
    path.push(".new");
    path.into()
}

impl Unfinished {
    /// Begins with nothing in it; what an interrupted step left goes.
    fn new(target: &Path) -> Result<Unfinished> {
        let path = unfinished_name(target);
        let doing = || format!("making {}", path.display());
        let open = File::options().create(true).write(true).truncate(false).open(&path);
        let lock = open.with_context(doing)?;
        let is_ours = flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
        // Whoever had it may have given it its name by now: then it is theirs.
        if !is_ours || !is_same(&path, &lock.metadata().with_context(doing)?) {
            bail!("somebody else is making {}: wait for the end of that", target.display());
        }
        lock.set_len(0).with_context(doing)?;
        Ok(Unfinished {
            path,
            target: target.to_owned(),
            _lock: lock,
        })
    }

    /// The same, of an image that is made of another: which it may not take the place of.
    fn of_another(target: &Path, source: &Path) -> Result<Unfinished> {
        let old = fs::metadata(source).with_context(|| format!("looking at {}", source.display()))?;
        if is_same(target, &old) {
            bail!("{} cannot be made of itself: choose another name", target.display());
        }
        Unfinished::new(target)
    }

    /// Gives it its name, and what had it goes.
    fn finish(self) -> Result<()> {
        let file = fs::File::open(&self.path).with_context(|| format!("opening {}", self.path.display()))?;
        file.sync_all()
            .with_context(|| format!("writing {}", self.path.display()))?;
        fs::rename(&self.path, &self.target).with_context(|| format!("naming {}", self.target.display()))
    }
}

/// Whether a path leads to that very file.
fn is_same(path: &Path, file: &fs::Metadata) -> bool {
    fs::metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == (file.dev(), file.ino()))
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Renamed by now, or not worth keeping.
        let _ = fs::remove_file(&self.path);
    }
}
