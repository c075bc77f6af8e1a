//! The files in an image: read and written by `debugfs`, without mounting it.
//!
//! A clone is to be there at once, and most of what it takes is starting programs: so all that is to be known of an image
//! is asked in one run, all that is to be changed is changed in another, and a third sees whether it has.

use crate::tools::{must, program, text};
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// How a guest gets its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// It asks.
    Dhcp,
    /// `192.0.2.10/24`, and the gateway.
    Static(String, Option<String>),
}

/// What tells a machine from its copies.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// Its name.
    pub hostname: Option<String>,
    /// Its address.
    pub network: Option<Network>,
    /// Lines of `/etc/fstab`.
    pub fstab: Option<String>,
    /// Public keys that may log in as root.
    pub keys: Option<String>,
    /// The password that root has must be changed at the first login.
    pub expire_password: bool,
}

/// An image with a system in it.
#[derive(Debug)]
pub struct Inside {
    image: PathBuf,
}

const PRIVATE: u32 = 0o600;
const PUBLIC: u32 = 0o644;
/// Kinds of keys by which a machine is known. Nobody takes the second any more.
const KEYS: [&str; 4] = ["rsa", "dsa", "ecdsa", "ed25519"];
/// What is made anew depends on what there is of these, and of the keys.
const LOOKED_AT: [&str; 9] = [
    "/etc",
    "/etc/hosts",
    "/etc/network",
    "/etc/shadow",
    "/etc/ssh",
    "/etc/systemd",
    "/etc/systemd/network",
    "/root",
    "/root/.ssh",
];

fn key(kind: &str) -> String {
    format!("/etc/ssh/ssh_host_{kind}_key")
}

/// What there is of some paths: the bytes of files, and nothing for folders.
type Found = BTreeMap<String, Vec<u8>>;

/// Changes that are to be made together, in an image that has what was `found`.
#[derive(Debug)]
struct Edits {
    found: Found,
    removed: Vec<String>,
    written: Vec<(String, Vec<u8>, u32)>,
    /// Fields of inodes, as debugfs calls them.
    fields: Vec<String>,
}

impl Edits {
    fn new(found: Found) -> Edits {
        Edits {
            found,
            removed: Vec::new(),
            written: Vec::new(),
            fields: Vec::new(),
        }
    }

    fn remove(&mut self, path: &str) {
        self.removed.push(path.to_owned());
    }

    /// Writes a file, in the place of one that is there, with the folders above it.
    fn write(&mut self, path: &str, bytes: &[u8], mode: u32) {
        self.written.push((path.to_owned(), bytes.to_owned(), mode));
    }

    fn set_field(&mut self, path: &str, field: &str) {
        self.fields.push(format!("set_inode_field {path} {field}"));
    }

    /// As debugfs reads them. That there is nothing to remove it says, and goes on.
    fn script(&self, folder: &TempDir) -> Result<String> {
        let mut lines: Vec<String> = self.removed.iter().map(|path| format!("rm {path}")).collect();
        let mut made = BTreeSet::new();
        for (number, (path, bytes, mode)) in self.written.iter().enumerate() {
            let copy = folder.path().join(number.to_string());
            fs::write(&copy, bytes).context("writing a temporary file")?;
            for (at, _) in path.match_indices('/').skip(1) {
                let above = &path[..at];
                if !self.found.contains_key(above) && made.insert(above) {
                    lines.push(format!("mkdir {above}"));
                }
            }
            lines.push(format!("rm {path}"));
            lines.push(format!("write {} {path}", text(&copy)?));
            let mode = format!("mode 0{:o}", 0o100_000 | mode);
            for field in [mode.as_str(), "uid 0", "gid 0"] {
                lines.push(format!("set_inode_field {path} {field}"));
            }
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

    /// Makes it a machine of its own: another id, other keys, and what `identity` says.
    pub fn become_own(&self, identity: &Identity) -> Result<()> {
        let mut edits = Edits::new(self.look_around()?);
        let id = format!("{}\n", ferroxen_uuids::fresh().simple());
        edits.write("/etc/machine-id", id.as_bytes(), PUBLIC);
        edits.remove("/var/lib/dbus/machine-id");
        renew_host_keys(&mut edits)?;
        identify(identity, &mut edits)?;
        self.make(&edits)
    }

    /// Sets what is given.
    pub fn apply(&self, identity: &Identity) -> Result<()> {
        let mut edits = Edits::new(self.look_around()?);
        identify(identity, &mut edits)?;
        self.make(&edits)
    }

    fn look_around(&self) -> Result<Found> {
        let keys = KEYS.map(key);
        self.look(
            &LOOKED_AT
                .into_iter()
                .chain(keys.iter().map(String::as_str))
                .collect::<Vec<_>>(),
        )
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
    fn make(&self, edits: &Edits) -> Result<()> {
        let folder = tempfile::tempdir().context("making a temporary folder")?;
        self.debugfs(&folder, &edits.script(&folder)?, &["-w"])
            .with_context(|| format!("changing {}", self.image.display()))?;
        let written = edits.written.iter().map(|(path, ..)| path.as_str());
        let paths: Vec<_> = written.chain(edits.removed.iter().map(String::as_str)).collect();
        let found = self.look(&paths)?;
        let is_there = |(path, bytes, _): &(String, Vec<u8>, u32)| found.get(path) == Some(bytes);
        let wrong = edits
            .written
            .iter()
            .find(|written| !is_there(written))
            .map(|(path, ..)| path);
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

/// What `identity` sets.
fn identify(identity: &Identity, edits: &mut Edits) -> Result<()> {
    if let Some(name) = &identity.hostname {
        let is_name = !name.is_empty()
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'));
        if !is_name || name.len() > 63 {
            bail!("\"{name}\" can be no host name: letters, digits, dots and dashes");
        }
        edits.write("/etc/hostname", format!("{name}\n").as_bytes(), PUBLIC);
        let hosts = hosts(edits.found.get("/etc/hosts"), name);
        edits.write("/etc/hosts", hosts.as_bytes(), PUBLIC);
    }
    if let Some(network) = &identity.network {
        edits.write(
            "/etc/systemd/network/10-eth0.network",
            networkd(network).as_bytes(),
            PUBLIC,
        );
        if edits.found.contains_key("/etc/network") {
            edits.write("/etc/network/interfaces", interfaces(network).as_bytes(), PUBLIC);
        }
    }
    if let Some(lines) = &identity.fstab {
        edits.write("/etc/fstab", format!("{}\n", lines.trim_end()).as_bytes(), PUBLIC);
    }
    if let Some(keys) = &identity.keys {
        edits.write("/root/.ssh/authorized_keys", keys.as_bytes(), PRIVATE);
        edits.set_field("/root/.ssh", "mode 040700");
    }
    if identity.expire_password {
        let shadow = edits
            .found
            .get("/etc/shadow")
            .context("there is no /etc/shadow in it")?;
        let shadow = expired(shadow);
        edits.write("/etc/shadow", &shadow, 0o640);
        // Group 42 is `shadow`, as on every Debian.
        edits.set_field("/etc/shadow", "gid 42");
    }
    Ok(())
}

/// Keys that another machine has, too, prove nothing.
fn renew_host_keys(edits: &mut Edits) -> Result<()> {
    for kind in KEYS {
        let path = key(kind);
        if !edits.found.contains_key(&path) {
            continue;
        }
        if kind == "dsa" {
            edits.remove(&path);
            edits.remove(&format!("{path}.pub"));
            continue;
        }
        let folder = tempfile::tempdir().context("making a temporary folder")?;
        let new = folder.path().join("key");
        must(program("ssh-keygen", ["-q", "-N", "", "-t", kind, "-f", text(&new)?]))?;
        edits.write(&path, &fs::read(&new).context("reading the key")?, PRIVATE);
        let public = fs::read(new.with_extension("pub")).context("reading the key")?;
        edits.write(&format!("{path}.pub"), &public, PUBLIC);
    }
    Ok(())
}

/// The host's own name stands for the loopback, as Debian's installer has it.
fn hosts(old: Option<&Vec<u8>>, name: &str) -> String {
    let old = old.map_or(b"127.0.0.1\tlocalhost\n".as_slice(), Vec::as_slice);
    let old = String::from_utf8_lossy(old);
    let kept = old.lines().filter(|line| !line.starts_with("127.0.1.1"));
    kept.map(|line| format!("{line}\n")).collect::<String>() + &format!("127.0.1.1\t{name}\n")
}

fn networkd(network: &Network) -> String {
    let how = match network {
        Network::Dhcp => "DHCP=yes\n".to_owned(),
        Network::Static(address, gateway) => {
            let gateway = gateway.as_ref().map(|gateway| format!("Gateway={gateway}\n"));
            format!("Address={address}\n{}", gateway.unwrap_or_default())
        }
    };
    format!("[Match]\nName=eth0\n\n[Network]\n{how}")
}

fn interfaces(network: &Network) -> String {
    let how = match network {
        Network::Dhcp => "dhcp\n".to_owned(),
        Network::Static(address, gateway) => {
            let gateway = gateway.as_ref().map(|gateway| format!("    gateway {gateway}\n"));
            format!("static\n    address {address}\n{}", gateway.unwrap_or_default())
        }
    };
    format!("auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet {how}")
}

/// Root's password was last changed on day 0: it must be at the next login.
fn expired(shadow: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(shadow);
    let line = |line: &str| {
        let mut fields: Vec<&str> = line.split(':').collect();
        if fields.first() == Some(&"root") && fields.len() > 2 {
            fields[2] = "0";
        }
        fields.join(":") + "\n"
    };
    text.lines().map(line).collect::<String>().into_bytes()
}
