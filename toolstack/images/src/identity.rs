//! What tells a machine from its copies, and where Debian keeps it.

use crate::inside::{Edits, PUBLIC};
use crate::tools::{must, program, text};
use anyhow::{Context, Result, bail};
use std::fs;

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
    /// Root's password, as crypt(3) and `/etc/shadow` have it.
    pub password: Option<String>,
    /// The password that root has must be changed at the first login.
    pub expire_password: bool,
}

/// Who makes the keys by which a machine is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HostKeys {
    /// We, all of them.
    Now,
    /// We one, and the machine itself the others before its sshd starts, if it has systemd: the primes of RSA take a second
    /// or several, and a clone is to be there at once.
    OneNow,
}

const PRIVATE: u32 = 0o600;
/// Kinds of keys, those that take least first.
const KEYS: [&str; 3] = ["ed25519", "ecdsa", "rsa"];
/// Nobody takes it any more.
const OLD_KEY: &str = "dsa";
const SSHD: &str = "/lib/systemd/system/ssh.service";
/// What makes the other keys, and by what it is started.
const KEYS_UNIT: &str = "/etc/systemd/system/clone-host-keys.service";
const KEYS_WANTED: &str = "/etc/systemd/system/ssh.service.wants/clone-host-keys.service";
/// The unit that reads `/etc/systemd/network`; Debian has it, and does not start it.
const NETWORKD: &str = "/lib/systemd/system/systemd-networkd.service";
/// What names cards after their places.
const UDEV: &str = "/lib/udev/rules.d";
/// What reads `/etc/network/interfaces`, if it is there.
const IFUPDOWN: &str = "/sbin/ifup";
/// What is made anew depends on what there is of these, and of the keys.
const LOOKED_AT: [&str; 16] = [
    UDEV,
    NETWORKD,
    IFUPDOWN,
    SSHD,
    "/etc",
    "/etc/hosts",
    "/etc/network",
    "/etc/shadow",
    "/etc/ssh",
    "/etc/systemd",
    "/etc/systemd/network",
    "/etc/systemd/system",
    "/etc/systemd/system/multi-user.target.wants",
    "/etc/systemd/system/ssh.service.wants",
    "/root",
    "/root/.ssh",
];

fn key(kind: &str) -> String {
    format!("/etc/ssh/ssh_host_{kind}_key")
}

/// What [`identify`] and [`renew_host_keys`] have to know of an image.
pub(crate) fn looked_at() -> Vec<String> {
    let paths = LOOKED_AT.into_iter().map(str::to_owned);
    paths.chain(KEYS.map(key)).chain([key(OLD_KEY)]).collect()
}

/// What `identity` sets.
pub(crate) fn identify(identity: &Identity, edits: &mut Edits) -> Result<()> {
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
        set_network(network, edits);
    }
    if let Some(lines) = &identity.fstab {
        edits.write("/etc/fstab", format!("{}\n", lines.trim_end()).as_bytes(), PUBLIC);
    }
    if let Some(keys) = &identity.keys {
        edits.write("/root/.ssh/authorized_keys", keys.as_bytes(), PRIVATE);
        edits.set_field("/root/.ssh", "mode 040700");
    }
    if identity.password.is_some() || identity.expire_password {
        let shadow = edits
            .found
            .get("/etc/shadow")
            .context("there is no /etc/shadow in it")?;
        let shadow = shadow_of(shadow, identity)?;
        edits.write("/etc/shadow", &shadow, 0o640);
        // Group 42 is `shadow`, as on every Debian.
        edits.set_field("/etc/shadow", "gid 42");
    }
    Ok(())
}

/// Whoever is there to read it: ifupdown, or networkd, which is started from then on.
fn set_network(network: &Network, edits: &mut Edits) {
    edits.write(
        "/etc/systemd/network/10-eth0.network",
        networkd(network).as_bytes(),
        PUBLIC,
    );
    let has = |path: &str| edits.found.contains_key(path);
    let is_by_networkd = has(NETWORKD) && !has(IFUPDOWN);
    if has("/etc/network") {
        let lines = interfaces(network, has(UDEV));
        edits.write("/etc/network/interfaces", lines.as_bytes(), PUBLIC);
    }
    if is_by_networkd {
        // What `systemctl enable` does.
        let wanted = "/etc/systemd/system/multi-user.target.wants/systemd-networkd.service";
        edits.link(wanted, NETWORKD);
    }
}

/// Keys that another machine has, too, prove nothing.
pub(crate) fn renew_host_keys(who: HostKeys, edits: &mut Edits) -> Result<()> {
    let has = |path: &str, edits: &Edits| edits.found.contains_key(path);
    let kinds = KEYS.into_iter().filter(|kind| has(&key(kind), edits));
    let (mut now, mut later): (Vec<_>, Vec<_>) = (kinds.collect(), Vec::new());
    if who == HostKeys::OneNow && has(SSHD, edits) {
        later = now.split_off(now.len().min(1));
    }
    let removed = later.iter().copied().chain([OLD_KEY]).map(key);
    for path in removed.filter(|path| has(path, edits)).collect::<Vec<_>>() {
        edits.remove(&format!("{path}.pub"));
        edits.remove(&path);
    }
    for kind in now {
        let (path, folder) = (key(kind), tempfile::tempdir().context("making a temporary folder")?);
        let new = folder.path().join("key");
        must(program("ssh-keygen", ["-q", "-N", "", "-t", kind, "-f", text(&new)?]))?;
        edits.write(&path, &fs::read(&new).context("reading the key")?, PRIVATE);
        let public = fs::read(new.with_extension("pub")).context("reading the key")?;
        edits.write(&format!("{path}.pub"), &public, PUBLIC);
    }
    if !later.is_empty() {
        edits.write(KEYS_UNIT, keys_unit(&later).as_bytes(), PUBLIC);
        // What `systemctl enable` does.
        edits.link(KEYS_WANTED, KEYS_UNIT);
    }
    Ok(())
}

/// Started before each sshd, and runs if a key is not there.
fn keys_unit(kinds: &[&str]) -> String {
    let missing = kinds
        .iter()
        .map(|kind| format!("ConditionPathExists=|!{}\n", key(kind)));
    let made = kinds.iter().map(|kind| {
        let path = key(kind);
        format!("ExecStart=/bin/sh -c '[ -e {path} ] || ssh-keygen -q -N \"\" -t {kind} -f {path}'\n")
    });
    format!(
        "[Unit]\nDescription=SSH host keys that a clone makes itself\nBefore=ssh.service\n{}\n\
         [Service]\nType=oneshot\n{}",
        missing.collect::<String>(),
        made.collect::<String>()
    )
}

/// The host's own name stands for the loopback, as Debian's installer has it.
fn hosts(old: Option<&Vec<u8>>, name: &str) -> String {
    let old = old.map_or(b"127.0.0.1\tlocalhost\n".as_slice(), Vec::as_slice);
    let old = String::from_utf8_lossy(old);
    let kept = old.lines().filter(|line| !line.starts_with("127.0.1.1"));
    kept.map(|line| format!("{line}\n")).collect::<String>() + &format!("127.0.1.1\t{name}\n")
}

/// `eth0` is `enX0` where udev names cards after their places.
fn networkd(network: &Network) -> String {
    let how = match network {
        Network::Dhcp => "DHCP=yes\n".to_owned(),
        Network::Static(address, gateway) => {
            let gateway = gateway.as_ref().map(|gateway| format!("Gateway={gateway}\n"));
            format!("Address={address}\n{}", gateway.unwrap_or_default())
        }
    };
    format!("[Match]\nName=eth0 enX0\n\n[Network]\n{how}")
}

/// ifupdown takes no two names for one card: both have their settings, and whichever comes is brought up. Without udev none
/// does, and the card is called as the kernel calls it.
fn interfaces(network: &Network, is_named_by_udev: bool) -> String {
    let (start, names): (_, &[&str]) = match is_named_by_udev {
        true => ("allow-hotplug", &["eth0", "enX0"]),
        false => ("auto", &["eth0"]),
    };
    let how = match network {
        Network::Dhcp => "dhcp\n".to_owned(),
        Network::Static(address, gateway) => {
            let gateway = gateway.as_ref().map(|gateway| format!("    gateway {gateway}\n"));
            format!("static\n    address {address}\n{}", gateway.unwrap_or_default())
        }
    };
    let cards = names
        .iter()
        .map(|name| format!("\n{start} {name}\niface {name} inet {how}"));
    format!("auto lo\niface lo inet loopback\n{}", cards.collect::<String>())
}

/// Root's line with its new password, which was last changed on day 0 if it must be changed at the next login.
fn shadow_of(shadow: &[u8], identity: &Identity) -> Result<Vec<u8>> {
    let password = identity.password.as_deref();
    if let Some(hash) = password
        && (!hash.starts_with('$') || hash.contains(|c: char| c == ':' || !c.is_ascii_graphic()))
    {
        bail!("root's password has to be what crypt(3) makes of it: `openssl passwd -6` asks for one and prints that");
    }
    let text = String::from_utf8_lossy(shadow);
    let line = |line: &str| {
        let mut fields: Vec<&str> = line.split(':').collect();
        if fields.first() == Some(&"root") && fields.len() > 2 {
            fields[1] = password.unwrap_or(fields[1]);
            fields[2] = if identity.expire_password { "0" } else { fields[2] };
        }
        fields.join(":") + "\n"
    };
    Ok(text.lines().map(line).collect::<String>().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ifupdown_brings_the_card_up_under_either_name() {
        let network = Network::Static("192.0.2.10/24".to_owned(), Some("192.0.2.1".to_owned()));
        let settings = "inet static\n    address 192.0.2.10/24\n    gateway 192.0.2.1\n";
        assert_eq!(
            interfaces(&network, true),
            format!(
                "auto lo\niface lo inet loopback\n\nallow-hotplug eth0\niface eth0 {settings}\n\
                 allow-hotplug enX0\niface enX0 {settings}"
            )
        );
        assert_eq!(
            interfaces(&Network::Dhcp, false),
            "auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet dhcp\n"
        );
    }
}
