//! Debian packages: the tools that must be installed here, and the files that go into images.
//!
//! Only the tools are installed, and only after asking. What goes into images is downloaded by apt
//! (which checks the archive's signatures), kept under `build/debs`, and unpacked into memory.

use std::collections::BTreeSet;
use std::fs;
use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::slice;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};

use crate::places;
use crate::programs::{answer, clean_command, run, run_quietly};
use crate::toolchain::{self, Toolchain};

/// A program we call, and the Debian package that brings it.
struct Tool {
    /// The tool is there when this file is.
    proof: &'static str,
    package: &'static str,
}

/// What a verb needs on this machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// The bare-metal compiler.
    BareMetal,
    /// Linting the bare-metal crates.
    Lint,
    /// Making images.
    Images,
    /// Running a virtual machine.
    Machine,
    /// Making a bootable CD.
    Iso,
    /// Debian's own hypervisor, to compare with.
    StockXen,
    /// virt-manager, and a screen for it.
    VirtManager,
}

impl Need {
    fn tools(self) -> &'static [Tool] {
        const fn tool(proof: &'static str, package: &'static str) -> Tool {
            Tool { proof, package }
        }
        match self {
            Self::BareMetal => {
                // Debian's compiler stands behind what every compiler needs.
                const OWN: usize = 3;
                const TOOLS: &[Tool] = &[
                    tool("/usr/bin/ld.lld", "lld"),
                    tool("/usr/bin/objcopy", "binutils"),
                    tool("/usr/bin/cc", "gcc"),
                    tool(toolchain::DEBIAN_RUSTC, "rustc-web"),
                    tool(toolchain::DEBIAN_CARGO, "cargo-web"),
                    tool(toolchain::DEBIAN_SOURCES, "rust-web-src"),
                ];
                match toolchain::chosen() {
                    Toolchain::Own => TOOLS.split_at(OWN).0,
                    Toolchain::Debian => TOOLS,
                }
            }
            // rustup's clippy comes with rustup's default profile.
            Self::Lint if toolchain::chosen() == Toolchain::Own => &[],
            Self::Lint => {
                const TOOLS: &[Tool] = &[tool(toolchain::DEBIAN_CLIPPY, "rust-web-clippy")];
                TOOLS
            }
            Self::Images => {
                const TOOLS: &[Tool] = &[
                    tool("/usr/bin/mmdebstrap", "mmdebstrap"),
                    tool("/sbin/mke2fs", "e2fsprogs"),
                    tool("/usr/bin/zstd", "zstd"),
                    tool("/usr/bin/xz", "xz-utils"),
                ];
                TOOLS
            }
            Self::Machine => {
                const TOOLS: &[Tool] = &[
                    tool("/usr/bin/qemu-system-x86_64", "qemu-system-x86"),
                    tool("/usr/bin/setpriv", "util-linux"),
                ];
                TOOLS
            }
            Self::Iso => {
                const TOOLS: &[Tool] = &[
                    tool("/usr/bin/grub-mkrescue", "grub-common"),
                    tool("/usr/lib/grub/i386-pc/multiboot2.mod", "grub-pc-bin"),
                    tool("/usr/bin/xorriso", "xorriso"),
                    tool("/usr/bin/mformat", "mtools"),
                ];
                TOOLS
            }
            Self::VirtManager => {
                const TOOLS: &[Tool] = &[
                    tool("/usr/bin/virt-manager", "virt-manager"),
                    tool("/usr/bin/Xvfb", "xvfb"),
                    tool("/usr/bin/dbus-run-session", "dbus-daemon"),
                ];
                TOOLS
            }
            Self::StockXen => {
                const TOOLS: &[Tool] = &[tool("/boot/xen-4.17-amd64.gz", "xen-hypervisor-4.17-amd64")];
                TOOLS
            }
        }
    }
}

/// Makes sure that every tool for `needs` is installed: says what is missing, asks, installs.
///
/// Does not ask when `yes`, or when nobody can answer because stdin is no terminal.
pub fn require(needs: &[Need], yes: bool) -> Result<()> {
    let missing: BTreeSet<&str> = needs
        .iter()
        .flat_map(|need| need.tools())
        .filter(|tool| !Path::new(tool.proof).exists())
        .map(|tool| tool.package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.iter().copied().collect::<Vec<_>>().join(" ");
    ensure!(
        Path::new("/usr/bin/apt-get").exists(),
        "these tools are missing and this is no Debian to install them from: {list}"
    );
    println!("These Debian packages will be installed: {list}");
    if !yes && std::io::stdin().is_terminal() && !confirmed()? {
        bail!("not installed; `sudo apt-get install {list}` does it by hand");
    }
    as_root(&["apt-get", "update", "-q"])?;
    let mut install = vec!["apt-get", "install", "-q", "-y", "--no-install-recommends"];
    install.extend(missing);
    as_root(&install).with_context(|| format!("installing {list}"))
}

fn confirmed() -> Result<bool> {
    print!("Install them now? [Y/n] ");
    std::io::stdout().flush()?;
    let mut reply = String::new();
    std::io::stdin().read_line(&mut reply)?;
    Ok(matches!(reply.trim(), "" | "y" | "Y" | "yes"))
}

/// Runs a command as root: directly, or through sudo.
fn as_root(words: &[&str]) -> Result<()> {
    let is_root = answer(Command::new("id").arg("-u")).as_deref() == Some("0");
    let mut command = clean_command(if is_root { "env" } else { "sudo" });
    if !is_root {
        command.arg("env");
    }
    run(command.arg("DEBIAN_FRONTEND=noninteractive").args(words))
}

/// One package file of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// `bash`.
    pub name: String,
    /// `5.2.15-2+b13`, as apt writes it in a file name.
    pub version: String,
    file: String,
    size: u64,
}

impl Package {
    /// Reads a line of `apt-get --print-uris`: address, file name, size, checksum.
    fn from_uri_line(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let _address = words.next().filter(|word| word.starts_with('\''))?;
        let file = words.next()?;
        let size = words.next()?.parse().ok()?;
        let mut parts = file.splitn(3, '_');
        let (name, version) = (parts.next()?, parts.next()?);
        Some(Self {
            name: name.to_owned(),
            version: version.replace("%3a", ":"),
            file: file.to_owned(),
            size,
        })
    }

    /// Returns where the package lies once [`fetch`] has been there.
    pub fn path(&self) -> PathBuf {
        cache().join(&self.file)
    }
}

fn cache() -> PathBuf {
    places::fetched().join("debs")
}

/// Asks apt which packages `wanted` come to on a machine that has none, in the order of their names.
///
/// `skip` names dependencies that an image has no use for.
pub fn resolve(wanted: &[String], skip: &[String]) -> Result<Vec<Package>> {
    let empty = places::fetched().join("no-packages");
    fs::create_dir_all(places::fetched())?;
    fs::write(&empty, "")?;
    let ask = || {
        let mut apt = clean_command("apt-get");
        apt.args(["install", "--print-uris", "-qq", "-y"])
            .args(["-o", "APT::Install-Recommends=0", "-o", "Debug::NoLocking=1"])
            .arg("-o")
            .arg(format!("Dir::State::status={}", empty.display()))
            .args(wanted);
        answer(&mut apt)
    };
    let lines = match ask() {
        Some(lines) => lines,
        None => {
            // A fresh machine has no package lists yet.
            as_root(&["apt-get", "update", "-q"])?;
            ask().with_context(|| format!("apt does not know all of: {}", wanted.join(" ")))?
        }
    };
    let mut packages: Vec<Package> = lines.lines().filter_map(Package::from_uri_line).collect();
    packages.retain(|package| !skip.contains(&package.name));
    packages.sort_by(|a, b| a.name.cmp(&b.name));
    ensure!(!packages.is_empty(), "apt resolved nothing for: {}", wanted.join(" "));
    Ok(packages)
}

/// Downloads those of `packages` which are not here yet.
pub fn fetch(packages: &[Package]) -> Result<()> {
    // Two who fetch at once may want the same file.
    static FETCHING: Mutex<()> = Mutex::new(());
    let _alone = FETCHING.lock().unwrap_or_else(PoisonError::into_inner);
    let absent: Vec<String> = packages
        .iter()
        .filter(|package| fs::metadata(package.path()).map_or(true, |meta| meta.len() != package.size))
        .map(|package| format!("{}={}", package.name, package.version))
        .collect();
    if absent.is_empty() {
        return Ok(());
    }
    fs::create_dir_all(cache())?;
    let mut apt = clean_command("apt-get");
    // Unsandboxed by choice: the cache belongs to the caller, not to apt's own user.
    apt.args(["download", "-q", "-o", "APT::Sandbox::User="])
        .args(&absent)
        .current_dir(cache());
    run_quietly(&mut apt).with_context(|| format!("downloading {} packages", absent.len()))?;
    for package in packages {
        ensure!(
            package.path().exists(),
            "apt did not leave {}",
            package.path().display()
        );
    }
    Ok(())
}

/// Names the version of `name` that apt would install.
pub fn newest(name: &str) -> Result<Package> {
    let resolved = resolve(&[name.to_owned()], &[])?;
    let found = resolved.into_iter().find(|package| package.name == name);
    found.with_context(|| format!("apt offers no {name}"))
}

/// Names the newest Debian kernel of a flavour, such as `amd64`: `linux-image-6.1.0-NN-amd64`.
pub fn newest_kernel(flavour: &str) -> Result<Package> {
    // The package with the flavour's name is empty, and needs the one with the kernel.
    let meta = format!("linux-image-{flavour}");
    let resolved = resolve(slice::from_ref(&meta), &[])?;
    resolved
        .into_iter()
        .find(|package| package.name.starts_with("linux-image-") && package.name != meta)
        .with_context(|| format!("apt offers no kernel for {flavour}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_with_an_epoch_is_read_as_apt_wants_it_back() {
        let line = "'http://deb.debian.org/x.deb' zlib1g_1%3a1.2.13.dfsg-1_amd64.deb 86684 SHA256:0";
        let package = Package::from_uri_line(line).unwrap();
        assert_eq!(package.name, "zlib1g");
        assert_eq!(package.version, "1:1.2.13.dfsg-1");
        assert_eq!(package.size, 86684);
    }

    #[test]
    fn chatter_between_the_addresses_is_passed_over() {
        assert_eq!(Package::from_uri_line("Reading package lists..."), None);
        assert_eq!(Package::from_uri_line(""), None);
    }
}
