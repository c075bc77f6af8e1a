//! What is being made: a file, and a folder for what goes into it.

use crate::interruption::{Begun, go_on};
use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::io::{FdFlags, fcntl_setfd};
use std::ffi::OsString;
use std::fs::{self, File, Metadata, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// A file that is being made, and goes away unless it is finished.
pub(crate) struct Unfinished {
    pub(crate) path: PathBuf,
    target: PathBuf,
    /// Locked for as long as it is open, here or in a program that we have started.
    _lock: File,
    _begun: Begun,
}

/// What a file is called until it is finished.
pub(crate) fn unfinished_name(target: &Path) -> PathBuf {
    let mut path = target.as_os_str().to_owned();
    path.push(".new");
    path.into()
}

impl Unfinished {
    /// Begins with nothing in it; what an interrupted step left goes.
    pub(crate) fn new(target: &Path) -> Result<Unfinished> {
        // Who names a link means the file.
        let target = target.canonicalize().unwrap_or_else(|_| target.to_owned());
        if fs::metadata(&target).is_ok_and(|meta| !meta.is_file()) {
            bail!("{} is no file: an image is made as a file", target.display());
        }
        let path = unfinished_name(&target);
        let doing = || format!("making {}", path.display());
        let begun = Begun::new();
        let open = File::options().create(true).write(true).truncate(false).open(&path);
        let lock = lock(&target, &path, open.with_context(doing)?)?;
        lock.set_len(0).with_context(doing)?;
        Ok(Unfinished {
            path,
            target,
            _lock: lock,
            _begun: begun,
        })
    }

    /// The same, of an image that is made of another: which it may not take the place of. Who may not read the one may
    /// not read the other.
    pub(crate) fn of_another(target: &Path, source: &Path) -> Result<Unfinished> {
        let old = fs::metadata(source).with_context(|| format!("looking at {}", source.display()))?;
        if is_same(target, &old) {
            bail!("{} cannot be made of itself: choose another name", target.display());
        }
        let image = Unfinished::new(target)?;
        if old.is_file() {
            image.allow(old.mode() | 0o200)?;
        }
        Ok(image)
    }

    /// The same, of a file that is to change: whose owner and permissions stay.
    pub(crate) fn instead_of(target: &Path) -> Result<Unfinished> {
        let old = fs::metadata(target).with_context(|| format!("looking at {}", target.display()))?;
        let image = Unfinished::new(target)?;
        let new = fs::metadata(&image.path).with_context(|| format!("looking at {}", image.path.display()))?;
        if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
            chown(&image.path, Some(old.uid()), Some(old.gid()))
                .with_context(|| format!("giving {} its owner", image.path.display()))?;
        }
        image.allow(old.mode())?;
        Ok(image)
    }

    fn allow(&self, mode: u32) -> Result<()> {
        fs::set_permissions(&self.path, Permissions::from_mode(mode & 0o7777))
            .with_context(|| format!("giving {} its permissions", self.path.display()))
    }

    /// Gives it its name, and what had it goes.
    pub(crate) fn finish(self) -> Result<()> {
        let file = File::open(&self.path).with_context(|| format!("opening {}", self.path.display()))?;
        file.sync_all()
            .with_context(|| format!("writing {}", self.path.display()))?;
        go_on()?;
        fs::rename(&self.path, &self.target).with_context(|| format!("naming {}", self.target.display()))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Renamed by now, or not worth keeping.
        let _ = fs::remove_file(&self.path);
    }
}

/// Takes what is being made for ourselves and for the programs that we start: also those that outlive us keep it.
fn lock(target: &Path, path: &Path, lock: File) -> Result<File> {
    let doing = || format!("making {}", path.display());
    let is_ours = flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
    // Whoever had it may have given it its name by now: then it is theirs.
    if !is_ours || !is_same(path, &lock.metadata().with_context(doing)?) {
        bail!("somebody else is making {}: wait for the end of that", target.display());
    }
    fcntl_setfd(&lock, FdFlags::empty()).with_context(doing)?;
    Ok(lock)
}

/// Whether a path leads to that very file.
fn is_same(path: &Path, file: &Metadata) -> bool {
    fs::metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == (file.dev(), file.ino()))
}

/// A folder beside what is being made, for what it is made of. It always has the same name, so that the next one finds what
/// one that was killed has left.
pub(crate) struct Staging {
    path: PathBuf,
    _lock: File,
    _begun: Begun,
}

/// Where the files are collected that go into `target`.
pub(crate) fn staging_name(target: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(".files");
    target.with_file_name(name)
}

impl Staging {
    /// Begins with nothing in it.
    pub(crate) fn new(target: &Path) -> Result<Staging> {
        let path = staging_name(target);
        let doing = || format!("making the folder {}, to collect files in", path.display());
        let begun = Begun::new();
        match fs::create_dir(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error).with_context(doing),
            _ => {}
        }
        let meta = fs::symlink_metadata(&path).with_context(doing)?;
        if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() {
            bail!("{} is somebody else's, or no folder: remove it", path.display());
        }
        let lock = lock(target, &path, File::open(&path).with_context(doing)?)?;
        nothing_is_mounted(&path)?;
        for entry in fs::read_dir(&path).with_context(doing)? {
            let entry = entry.with_context(doing)?;
            match entry.file_type().with_context(doing)?.is_dir() {
                true => fs::remove_dir_all(entry.path()),
                false => fs::remove_file(entry.path()),
            }
            .with_context(|| {
                format!(
                    "removing {}, which an interrupted step has left",
                    entry.path().display()
                )
            })?;
        }
        Ok(Staging {
            path,
            _lock: lock,
            _begun: begun,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Who removes a folder removes what is mounted in it.
fn nothing_is_mounted(folder: &Path) -> Result<()> {
    let mounted = ferroxen_contained::mounted_in(folder).with_context(|| format!("looking at {}", folder.display()))?;
    match mounted {
        None => Ok(()),
        Some(point) => bail!(
            "{point} is mounted: `umount {point}`, so that {} can be removed",
            folder.display()
        ),
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // The next one says what is wrong with it, if it is left.
        if nothing_is_mounted(&self.path).is_ok() {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}
