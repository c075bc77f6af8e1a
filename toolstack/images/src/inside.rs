//! The files in an image: read and written by `debugfs`, without mounting it.

use crate::tools::{must, program, run, text};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use uuid::Uuid;

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
const PROGRAMS: [&str; 2] = ["/usr/sbin/sshd", "/usr/bin/ssh-keygen"];

impl Inside {
    /// Of an image that nobody uses.
    pub fn of(image: &Path) -> Inside {
        Inside {
            image: image.to_owned(),
        }
    }

    /// Whether there is such a file or folder.
    pub fn has(&self, path: &str) -> bool {
        self.ask(&format!("stat {path}"))
            .is_ok_and(|said| said.contains("Inode:"))
    }

    /// A file's bytes, if there is one.
    pub fn read(&self, path: &str) -> Result<Option<Vec<u8>>> {
        if !self.has(path) {
            return Ok(None);
        }
        let copy = tempfile::NamedTempFile::new().context("making a temporary file")?;
        self.ask(&format!("dump {path} {}", text(copy.path())?))?;
        Ok(Some(fs::read(copy.path()).context("reading it back")?))
    }

    /// Writes a file, in the place of one that is there.
    pub fn write(&self, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let copy = tempfile::NamedTempFile::new().context("making a temporary file")?;
        fs::write(copy.path(), bytes).context("writing a temporary file")?;
        self.make_folders(path)?;
        if self.has(path) {
            self.change(&format!("rm {path}"))?;
        }
        self.change(&format!("write {} {path}", text(copy.path())?))?;
        self.change(&format!("set_inode_field {path} mode 0{:o}", 0o100_000 | mode))?;
        for field in ["uid", "gid"] {
            self.change(&format!("set_inode_field {path} {field} 0"))?;
        }
        match self.read(path)?.as_deref() == Some(bytes) {
            true => Ok(()),
            false => bail!("{} does not hold {path} as it was written", self.image.display()),
        }
    }

    /// Removes a file, if it is there.
    pub fn remove(&self, path: &str) -> Result<()> {
        match self.has(path) {
            true => self.change(&format!("rm {path}")),
            false => Ok(()),
        }
    }

    /// Makes it a machine of its own: another id, other keys, and what `identity` says.
    pub fn become_own(&self, identity: &Identity) -> Result<()> {
        self.write(
            "/etc/machine-id",
            format!("{}\n", Uuid::new_v4().simple()).as_bytes(),
            PUBLIC,
        )?;
        self.remove("/var/lib/dbus/machine-id")?;
        self.renew_host_keys()?;
        self.apply(identity)
    }

    /// Sets what is given.
    pub fn apply(&self, identity: &Identity) -> Result<()> {
        if let Some(name) = &identity.hostname {
            let is_name = !name.is_empty()
                && name
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'));
            if !is_name || name.len() > 63 {
                bail!("\"{name}\" can be no host name: letters, digits, dots and dashes");
            }
            self.write("/etc/hostname", format!("{name}\n").as_bytes(), PUBLIC)?;
            self.write("/etc/hosts", hosts(self.read("/etc/hosts")?, name).as_bytes(), PUBLIC)?;
        }
        if let Some(network) = &identity.network {
            self.write(
                "/etc/systemd/network/10-eth0.network",
                networkd(network).as_bytes(),
                PUBLIC,
            )?;
            if self.has("/etc/network") {
                self.write("/etc/network/interfaces", interfaces(network).as_bytes(), PUBLIC)?;
            }
        }
        if let Some(lines) = &identity.fstab {
            self.write("/etc/fstab", format!("{}\n", lines.trim_end()).as_bytes(), PUBLIC)?;
        }
        if let Some(keys) = &identity.keys {
            self.write("/root/.ssh/authorized_keys", keys.as_bytes(), PRIVATE)?;
            self.change("set_inode_field /root/.ssh mode 040700")?;
        }
        if identity.expire_password {
            let shadow = self.read("/etc/shadow")?.context("there is no /etc/shadow in it")?;
            self.write("/etc/shadow", &expired(&shadow), 0o640)?;
            // Group 42 is `shadow`, as on every Debian.
            self.change("set_inode_field /etc/shadow gid 42")?;
        }
        Ok(())
    }

    /// Keys that another machine has, too, prove nothing.
    fn renew_host_keys(&self) -> Result<()> {
        if !PROGRAMS.iter().any(|program| self.has(program)) && !self.has("/etc/ssh") {
            return Ok(());
        }
        for kind in ["rsa", "dsa", "ecdsa", "ed25519"] {
            let path = format!("/etc/ssh/ssh_host_{kind}_key");
            if !self.has(&path) {
                continue;
            }
            self.remove(&path)?;
            self.remove(&format!("{path}.pub"))?;
            if kind == "dsa" {
                continue;
            }
            let folder = tempfile::tempdir().context("making a temporary folder")?;
            let key = folder.path().join("key");
            must(program("ssh-keygen", ["-q", "-N", "", "-t", kind, "-f", text(&key)?]))?;
            self.write(&path, &fs::read(&key).context("reading the key")?, PRIVATE)?;
            let public = fs::read(key.with_extension("pub")).context("reading the key")?;
            self.write(&format!("{path}.pub"), &public, PUBLIC)?;
        }
        Ok(())
    }

    fn make_folders(&self, path: &str) -> Result<()> {
        for (at, _) in path.match_indices('/').skip(1) {
            if !self.has(&path[..at]) {
                self.change(&format!("mkdir {}", &path[..at]))?;
            }
        }
        Ok(())
    }

    fn ask(&self, request: &str) -> Result<String> {
        run(program("debugfs", ["-R", request, text(&self.image)?]), |code| {
            code == 0
        })
    }

    fn change(&self, request: &str) -> Result<()> {
        must(program("debugfs", ["-w", "-R", request, text(&self.image)?]))
            .with_context(|| format!("changing {}: {request}", self.image.display()))
            .map(drop)
    }
}

/// The host's own name stands for the loopback, as Debian's installer has it.
fn hosts(old: Option<Vec<u8>>, name: &str) -> String {
    let old = old.unwrap_or_else(|| b"127.0.0.1\tlocalhost\n".to_vec());
    let old = String::from_utf8_lossy(&old);
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
