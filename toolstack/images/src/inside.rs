//! The files in an image: read and written by `debugfs`, without mounting it.
//!
//! A clone is to be there at once, and most of what it takes is starting programs: so all that is to be known of an image
//! is asked in one run, all that is to be changed is changed in another, and a third sees whether it has.

use crate::identity::{HostKeys, identify, looked_at, renew_host_keys};
use crate::tools::{must, program, text};
use crate::unfinished::Unfinished;
use crate::{Identity, copy};
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// An image with a system in it.
#[derive(Debug)]
pub struct Inside {
    image: PathBuf,
}

/// What there is of some paths: the bytes of files, and nothing for folders.
pub(crate) type Found = BTreeMap<String, Vec<u8>>;

/// The mode of a file that everybody may read.
pub(crate) const PUBLIC: u32 = 0o644;

/// Changes that are to be made together, in an image that has what was `found`.
#[derive(Debug)]
pub(crate) struct Edits {
    pub(crate) found: Found,
    removed: Vec<String>,
    written: Vec<(String, Vec<u8>, u32)>,
    linked: Vec<(String, String)>,
    /// Fields of inodes, as debugfs calls them.
    fields: Vec<String>,
}

impl Edits {
    fn new(found: Found) -> Edits {
        Edits {
            found,
            removed: Vec::new(),
            written: Vec::new(),
            linked: Vec::new(),
            fields: Vec::new(),
        }
    }

    pub(crate) fn remove(&mut self, path: &str) {
        self.removed.push(path.to_owned());
    }

    /// Writes a file, in the place of one that is there, with the folders above it.
    pub(crate) fn write(&mut self, path: &str, bytes: &[u8], mode: u32) {
        self.written.push((path.to_owned(), bytes.to_owned(), mode));
    }

    /// Makes a symbolic link, in the place of what is there, with the folders above it.
    pub(crate) fn link(&mut self, path: &str, to: &str) {
        self.linked.push((path.to_owned(), to.to_owned()));
    }

    pub(crate) fn set_field(&mut self, path: &str, field: &str) {
        self.fields.push(format!("set_inode_field {path} {field}"));
    }

    /// As debugfs reads them. That there is nothing to remove it says, and goes on.
    fn script(&self, folder: &TempDir) -> Result<String> {
        let mut lines: Vec<String> = self.removed.iter().map(|path| format!("rm {path}")).collect();
        let mut made = BTreeSet::new();
        let mut make_room = |path: &'_ str, lines: &mut Vec<String>| {
            for (at, _) in path.match_indices('/').skip(1) {
                let above = &path[..at];
                if !self.found.contains_key(above) && made.insert(above.to_owned()) {
                    lines.push(format!("mkdir {above}"));
                }
            }
            lines.push(format!("rm {path}"));
        };
        for (number, (path, bytes, mode)) in self.written.iter().enumerate() {
            let copy = folder.path().join(number.to_string());
            fs::write(&copy, bytes).context("writing a temporary file")?;
            make_room(path, &mut lines);
            lines.push(format!("write {} {path}", text(&copy)?));
            let mode = format!("mode 0{:o}", 0o100_000 | mode);
            for field in [mode.as_str(), "uid 0", "gid 0"] {
                lines.push(format!("set_inode_field {path} {field}"));
            }
        }
        for (path, to) in &self.linked {
            make_room(path, &mut lines);
            lines.push(format!("symlink {path} {to}"));
        }
        lines.extend_from_slice(&self.fields);
        Ok(lines.join("\n") + "\n")
    }
}

impl Inside {
    /// Of an image that nobody uses.
    pub fn of(image: &Path) -> Inside {
        Inside {
            image: image.to_owned(),
        }
    }

    /// Whether there is such a file or folder.
    pub fn has(&self, path: &str) -> bool {
        self.look(&[path]).is_ok_and(|found| found.contains_key(path))
    }

    /// A file's bytes, if there is one.
    pub fn read(&self, path: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.look(&[path])?.remove(path))
    }

    /// Makes a system a machine of its own: another id, other keys, and what `identity` says. Anything else stays as it is.
    pub(crate) fn become_own(&self, identity: &Identity) -> Result<()> {
        match self.own(identity, HostKeys::Now)? {
            Some(edits) => self.make(&edits),
            None => Ok(()),
        }
    }

    /// What makes it a machine of its own, if it holds a system.
    pub(crate) fn own(&self, identity: &Identity, keys: HostKeys) -> Result<Option<Edits>> {
        let mut edits = Edits::new(self.look_around()?);
        if !edits.found.contains_key("/etc") {
            return Ok(None);
        }
        let id = format!("{}\n", ferroxen_uuids::fresh().simple());
        edits.write("/etc/machine-id", id.as_bytes(), PUBLIC);
        edits.remove("/var/lib/dbus/machine-id");
        renew_host_keys(keys, &mut edits)?;
        identify(identity, &mut edits)?;
        Ok(Some(edits))
    }

    /// Sets what is given, in a copy that takes the image's place once it is whole; in a device as it stands, and on
    /// ramfs, where a copy could take as much memory as the image is long, twice.
    pub fn apply(&self, identity: &Identity) -> Result<()> {
        if !fs::metadata(&self.image).is_ok_and(|meta| meta.is_file()) || copy::would_fill_holes(&self.image)? {
            return self.set(identity);
        }
        let image = Unfinished::instead_of(&self.image)?;
        copy::contents(&self.image, &image.path)?;
        Inside::of(&image.path).set(identity)?;
        image.finish()
    }

    /// The same in the image as it stands.
    pub(crate) fn set(&self, identity: &Identity) -> Result<()> {
        let mut edits = Edits::new(self.look_around()?);
        identify(identity, &mut edits)?;
        self.make(&edits)
    }

    fn look_around(&self) -> Result<Found> {
        let paths = looked_at();
        self.look(&paths.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn look(&self, paths: &[&str]) -> Result<Found> {
        let folder = tempfile::tempdir().context("making a temporary folder")?;
        let copy = |number: usize| folder.path().join(number.to_string());
        let mut script = String::new();
        for (number, path) in paths.iter().enumerate() {
            script += &format!("stat {path}\ndump {path} {}\n", text(&copy(number))?);
        }
        let said = self.debugfs(&folder, &script, &[])?;
        let mut found = Found::new();
        for (number, path) in paths.iter().enumerate() {
            // Each command is repeated before what it says.
            let answer = said
                .split(&format!("debugfs: stat {path}\n"))
                .nth(1)
                .unwrap_or_default();
            let answer = answer.split("debugfs: ").next().unwrap_or_default();
            if answer.contains("Inode:") {
                found.insert((*path).to_owned(), fs::read(copy(number)).unwrap_or_default());
            }
        }
        Ok(found)
    }

    /// Makes changes, and sees whether they are there.
    pub(crate) fn make(&self, edits: &Edits) -> Result<()> {
        let folder = tempfile::tempdir().context("making a temporary folder")?;
        self.debugfs(&folder, &edits.script(&folder)?, &["-w"])
            .with_context(|| format!("changing {}", self.image.display()))?;
        let written = edits.written.iter().map(|(path, ..)| path);
        let linked = edits.linked.iter().map(|(path, _)| path);
        let paths: Vec<_> = written
            .chain(linked)
            .chain(&edits.removed)
            .map(String::as_str)
            .collect();
        let found = self.look(&paths)?;
        let is_there = |(path, bytes, _): &(String, Vec<u8>, u32)| found.get(path) == Some(bytes);
        let wrong = edits
            .written
            .iter()
            .find(|written| !is_there(written))
            .map(|(path, ..)| path);
        let mut links = edits.linked.iter().map(|(path, _)| path);
        let wrong = wrong.or_else(|| links.find(|path| !found.contains_key(*path)));
        let wrong = wrong.or_else(|| edits.removed.iter().find(|path| found.contains_key(*path)));
        match wrong {
            None => Ok(()),
            Some(path) => bail!("{} does not hold {path} as it was to be", self.image.display()),
        }
    }

    fn debugfs(&self, folder: &TempDir, script: &str, options: &[&str]) -> Result<String> {
        let file = folder.path().join("script");
        fs::write(&file, script).context("writing a temporary file")?;
        let arguments = [options, &["-f", text(&file)?, text(&self.image)?]].concat();
        must(program("debugfs", arguments))
    }
}
