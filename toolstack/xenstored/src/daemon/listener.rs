//! Our socket in the file system.

use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// Makes `socket` (for root only) in a directory, and `socket_ro` as another name for it.
pub fn listen(directory: &Path) -> Result<UnixListener> {
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let path = directory.join("socket");
    if UnixStream::connect(&path).is_ok() {
        bail!("another xenstored answers at {}", path.display());
    }
    // What nobody answers at is left over from a xenstored that has ended.
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path).with_context(|| format!("cannot listen at {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot close {} to others", path.display()))?;
    let other_name = directory.join("socket_ro");
    let _ = fs::remove_file(&other_name);
    symlink("socket", &other_name).with_context(|| format!("cannot make {}", other_name.display()))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
