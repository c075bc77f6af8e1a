//! A file tree in memory, made from packages and our own files, written out as an initramfs.
//!
//! Nothing touches the disk on the way, so owners and devices need no root, and the order and the
//! times are ours: the same inputs give the same bytes.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Component, Path};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use cpio::newc;

/// Where Debian's merged /usr puts what older packages ship at the top.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];
/// How many links a path may lead through.
const LINK_LIMIT: usize = 16;

/// What stands at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Directory { mode: u32 },
    File { mode: u32, bytes: Vec<u8> },
    Link { target: String },
    CharDevice { mode: u32, major: u32, minor: u32 },
}

/// A file tree. Paths are relative to its root, without a leading slash.
#[derive(Debug, Default, Clone)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
}

impl Tree {
    /// Returns a tree with the top directories of a Debian with merged /usr.
    pub fn debian() -> Self {
        let mut tree = Self::default();
        for name in MERGED {
            tree.directory(&format!("usr/{name}"));
            tree.link(name, &format!("usr/{name}"));
        }
        tree
    }

    /// Adds a directory and those above it.
    pub fn directory(&mut self, path: &str) {
        self.parents_of(path);
        self.nodes
            .entry(path.to_owned())
            .or_insert(Node::Directory { mode: 0o755 });
    }

    /// Adds a file and the directories above it; replaces what was there.
    pub fn file(&mut self, path: &str, mode: u32, bytes: Vec<u8>) {
        let path = self.merged(path);
        self.parents_of(&path);
        self.nodes.insert(path, Node::File { mode, bytes });
    }

    /// Adds a symbolic link and the directories above it.
    pub fn link(&mut self, path: &str, target: &str) {
        let path = self.merged(path);
        self.parents_of(&path);
        self.nodes.insert(
            path,
            Node::Link {
                target: target.to_owned(),
            },
        );
    }

    /// Adds a character device.
    pub fn char_device(&mut self, path: &str, major: u32, minor: u32) {
        self.parents_of(path);
        self.nodes.insert(
            path.to_owned(),
            Node::CharDevice {
                mode: 0o600,
                major,
                minor,
            },
        );
    }

    /// Tells whether something stands at `path`.
    pub fn contains(&self, path: &str) -> bool {
        self.nodes.contains_key(&self.merged(path))
    }

    /// Adds what a package ships, except what lies under one of `drop`.
    pub fn deb(&mut self, package: &Path, drop: &[String]) -> Result<()> {
        each_deb_entry(package, |path, entry| {
            if is_under(path, drop) {
                return Ok(());
            }
            self.tar_entry(path, entry)
        })
        .with_context(|| format!("unpacking {}", package.display()))
    }

    fn tar_entry(&mut self, path: &str, entry: &mut tar::Entry<'_, impl Read>) -> Result<()> {
        let mode = entry.header().mode()? & 0o7777;
        match entry.header().entry_type() {
            tar::EntryType::Directory => {
                let path = self.merged(path);
                // A package's /lib is our link to usr/lib: keep the link.
                if !matches!(self.nodes.get(&path), Some(Node::Link { .. })) {
                    self.parents_of(&path);
                    self.nodes.insert(path, Node::Directory { mode });
                }
            }
            tar::EntryType::Regular => {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes)?;
                self.file(path, mode, bytes);
            }
            tar::EntryType::Symlink => {
                let target = entry.link_name()?.context("a link without a target")?;
                self.link(path, &target.to_string_lossy());
            }
            tar::EntryType::Link => {
                let target = entry.link_name()?.context("a link without a target")?;
                let target = self.merged(&plain(&target)?);
                let same = self.nodes.get(&target).cloned().context("a hard link to nothing")?;
                let path = self.merged(path);
                self.nodes.insert(path, same);
            }
            other => bail!("{path}: an entry of kind {other:?} is not expected in a package"),
        }
        Ok(())
    }

    /// Adds every file below `dir` on this machine. A file that is executable stays so.
    pub fn overlay(&mut self, dir: &Path) -> Result<()> {
        self.overlay_under(dir, "")
    }

    fn overlay_under(&mut self, dir: &Path, prefix: &str) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
            let entry = entry?;
            let name = entry.file_name();
            let path = format!("{prefix}{}", name.to_string_lossy());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.directory(&path);
                self.overlay_under(&entry.path(), &format!("{path}/"))?;
            } else if kind.is_symlink() {
                self.link(&path, &fs::read_link(entry.path())?.to_string_lossy());
            } else {
                let executable = entry.metadata()?.permissions().mode() & 0o100 != 0;
                let mode = if executable { 0o755 } else { 0o644 };
                self.file(&path, mode, fs::read(entry.path())?);
            }
        }
        Ok(())
    }

    /// Adds all of `other` under `place`, but for the links at its top: those lead elsewhere there.
    pub fn put_under(&mut self, place: &str, other: Self) {
        for (path, node) in other.nodes {
            if path.contains('/') || !matches!(node, Node::Link { .. }) {
                let path = format!("{place}/{path}");
                self.parents_of(&path);
                self.nodes.insert(path, node);
            }
        }
    }

    /// Writes the tree in the `newc` format that Linux unpacks at boot.
    pub fn to_initramfs(&self) -> Result<Vec<u8>> {
        const DIRECTORY: u32 = 0o040_000;
        const CHAR_DEVICE: u32 = 0o020_000;
        const FILE: u32 = 0o100_000;
        const LINK: u32 = 0o120_000;
        let mut out = Vec::new();
        for (number, (path, node)) in (1..).zip(&self.nodes) {
            let entry = newc::Builder::new(path).ino(number).uid(0).gid(0).mtime(0);
            let (entry, bytes): (_, &[u8]) = match node {
                Node::Directory { mode } => (entry.mode(DIRECTORY | mode).nlink(2), &[]),
                Node::File { mode, bytes } => (entry.mode(FILE | mode).nlink(1), bytes),
                Node::Link { target } => (entry.mode(LINK | 0o777).nlink(1), target.as_bytes()),
                Node::CharDevice { mode, major, minor } => {
                    let device = entry.mode(CHAR_DEVICE | mode).nlink(1);
                    (device.rdev_major(*major).rdev_minor(*minor), &[])
                }
            };
            let mut writer = entry.write(&mut out, u32::try_from(bytes.len())?);
            writer.write_all(bytes)?;
            writer.finish()?;
        }
        newc::trailer(&mut out)?;
        Ok(out)
    }

    fn parents_of(&mut self, path: &str) {
        for (at, _) in path.match_indices('/') {
            let above = path.get(..at).unwrap_or_default().to_owned();
            self.nodes.entry(above).or_insert(Node::Directory { mode: 0o755 });
        }
    }

    /// Follows links among the directories of `path`, so that `lib/x` lands in `usr/lib/x`.
    fn merged(&self, path: &str) -> String {
        let mut path = path.to_owned();
        for _ in 0..LINK_LIMIT {
            let Some(next) = self.one_link_followed(&path) else {
                break;
            };
            path = next;
        }
        path
    }

    fn one_link_followed(&self, path: &str) -> Option<String> {
        path.match_indices('/').find_map(|(at, _)| {
            let (above, rest) = (path.get(..at)?, path.get(at..)?);
            let Node::Link { target } = self.nodes.get(above)? else {
                return None;
            };
            let base = match target.strip_prefix('/') {
                Some(absolute) => absolute.to_owned(),
                None => match above.rsplit_once('/') {
                    Some((dir, _)) => format!("{dir}/{target}"),
                    None => target.clone(),
                },
            };
            Some(format!("{base}{rest}"))
        })
    }
}

/// Returns the contents of one file of a package.
pub fn deb_file(deb: &Path, wanted: &str) -> Result<Vec<u8>> {
    let mut found = None;
    each_deb_entry(deb, |path, entry| {
        if path == wanted {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            found = Some(bytes);
        }
        Ok(())
    })?;
    found.with_context(|| format!("{} has no {wanted}", deb.display()))
}

/// Calls `visit` with every path of a package and its entry.
pub fn each_deb_entry(
    package: &Path,
    mut visit: impl FnMut(&str, &mut tar::Entry<'_, std::process::ChildStdout>) -> Result<()>,
) -> Result<()> {
    let mut dpkg = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start dpkg-deb")?;
    let stdout = dpkg.stdout.take().context("dpkg-deb has no output")?;
    let mut archive = tar::Archive::new(stdout);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = plain(&entry.path()?)?;
        if !path.is_empty() {
            visit(&path, &mut entry)?;
        }
    }
    let status = dpkg.wait()?;
    ensure!(status.success(), "dpkg-deb failed ({status})");
    Ok(())
}

/// Turns `./usr/bin/x` into `usr/bin/x`, refusing paths that climb out.
fn plain(path: &Path) -> Result<String> {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => parts.push(name.to_string_lossy().into_owned()),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                bail!("{} climbs out of the tree", path.display())
            }
        }
    }
    Ok(parts.join("/"))
}

fn is_under(path: &str, tops: &[String]) -> bool {
    tops.iter().any(|top| {
        path.strip_prefix(top.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_package_ships_in_lib_lands_in_usr_lib() {
        let mut tree = Tree::debian();
        tree.file("lib/x86_64-linux-gnu/libc.so.6", 0o755, vec![1]);
        assert!(tree.nodes.contains_key("usr/lib/x86_64-linux-gnu/libc.so.6"));
        assert!(matches!(tree.nodes.get("lib"), Some(Node::Link { .. })));
    }

    #[test]
    fn a_link_that_leads_to_itself_does_not_hang() {
        let mut tree = Tree::default();
        tree.link("a", "a");
        tree.file("a/b", 0o644, vec![]);
        assert!(!tree.nodes.is_empty());
    }

    #[test]
    fn the_same_tree_gives_the_same_bytes_whatever_the_order() {
        let mut one = Tree::default();
        one.file("a", 0o644, vec![1]);
        one.file("b/c", 0o755, vec![2]);
        let mut two = Tree::default();
        two.file("b/c", 0o755, vec![2]);
        two.file("a", 0o644, vec![1]);
        assert_eq!(one.to_initramfs().unwrap(), two.to_initramfs().unwrap());
    }

    #[test]
    fn a_path_that_climbs_out_is_refused() {
        assert!(plain(Path::new("../etc/passwd")).is_err());
        assert_eq!(plain(Path::new("./usr/bin/x")).unwrap(), "usr/bin/x");
    }
}
