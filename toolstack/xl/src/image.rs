//! `xl image`: disk images for guests.

use crate::progress;
use crate::tune::Amount;
use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use ferroxen_images::{FileSystem, Identity, Inside, Network, Origin, Way};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct Image {
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do with images.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make an empty image, which takes no room until it is written to
    Create {
        file: PathBuf,
        /// Its size: MiB, or with a suffix b, k, m, g or t
        #[arg(short, long)]
        size: Amount,
        /// What to format it as
        #[arg(short, long, value_enum, default_value_t = Format::Ext4)]
        fs: Format,
        #[command(flatten)]
        sure: Sure,
    },
    /// Make an image with a system in it: Debian's packages, or a folder
    Build {
        file: PathBuf,
        /// Its size: MiB, or with a suffix b, k, m, g or t
        #[arg(short, long)]
        size: Amount,
        /// The files of this folder
        #[arg(long, conflicts_with_all = ["suite", "mirror", "include"])]
        folder: Option<PathBuf>,
        /// Debian's release
        #[arg(long, visible_alias = "debootstrap", default_value = "bookworm")]
        suite: String,
        /// Where the packages are: `http://deb.debian.org/debian`, or a folder of packages with an index
        #[arg(long)]
        mirror: Option<String>,
        /// Packages beyond the smallest system
        #[arg(long, value_delimiter = ',')]
        include: Vec<String>,
        #[command(flatten)]
        set: Changes,
        #[command(flatten)]
        sure: Sure,
    },
    /// Make an image of this host's own system, but for its identity, its network and its swap: the copy asks the network for
    /// an address unless --network is given
    FromHost {
        file: PathBuf,
        /// Its size: MiB, or with a suffix b, k, m, g or t
        #[arg(short, long)]
        size: Amount,
        /// A file or folder of the host that is left out, with all that is in it
        #[arg(long, value_name = "PATH")]
        exclude: Vec<PathBuf>,
        #[command(flatten)]
        set: Changes,
        #[command(flatten)]
        sure: Sure,
    },
    /// Make an image of the system on another machine's disk (raw, with partitions or without), which stays that machine
    #[command(visible_alias = "p2v")]
    FromDisk {
        /// The disk or an image of it, which nobody uses
        disk: PathBuf,
        file: PathBuf,
        /// The image's size: MiB, or with a suffix b, k, m, g or t; that of the file system if it is not given
        #[arg(short, long)]
        size: Option<Amount>,
        #[command(flatten)]
        set: Changes,
        #[command(flatten)]
        sure: Sure,
    },
    /// Copy an image, and make the copy a machine of its own: id, SSH keys, name
    Clone {
        template: PathBuf,
        file: PathBuf,
        /// Make an image of QEMU's (qcow2) that stands on the template, which may not change any more: it takes no time, on
        /// any file system
        #[arg(long)]
        overlay: bool,
        #[command(flatten)]
        set: Changes,
        #[command(flatten)]
        sure: Sure,
    },
    /// Unpack an archive with an image, its swap and its configuration
    Import {
        archive: PathBuf,
        /// Where to
        #[arg(default_value = ".")]
        directory: PathBuf,
    },
    /// Pack images (*.img), swaps (*.swap) and configurations (*.cfg) into an archive for `import`
    Export {
        /// What to make: .tar, .tar.gz, .tar.bz2 or .tar.xz
        archive: PathBuf,
        #[arg(required = true)]
        files: Vec<PathBuf>,
        #[command(flatten)]
        sure: Sure,
    },
    /// Give an image another size, and its file system with it (of one that no guest uses; else see block-resize)
    Resize {
        file: PathBuf,
        /// The new size: MiB, or with a suffix b, k, m, g or t
        size: Amount,
        #[command(flatten)]
        sure: Sure,
    },
    /// Look for mistakes in an image's file system
    Check { file: PathBuf },
    /// Change name, network, keys or fstab inside of an image
    Set {
        file: PathBuf,
        #[command(flatten)]
        set: Changes,
    },
}

/// A file system.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Format {
    None,
    Ext2,
    Ext3,
    Ext4,
    Swap,
}

#[derive(Debug, Args)]
pub struct Sure {
    /// Do not ask before something is written over
    #[arg(short = 'y', long)]
    pub yes: bool,
}

#[derive(Clone, Debug, Args)]
pub struct Changes {
    /// The guest's name
    #[arg(long)]
    pub hostname: Option<String>,
    /// `dhcp`, or an address such as `192.0.2.10/24` or `192.0.2.10/24,192.0.2.1` (with the gateway)
    #[arg(long, value_parser = network)]
    pub network: Option<Network>,
    /// A line of /etc/fstab, such as `/dev/sda1 / ext4 defaults 0 1`
    #[arg(long, value_name = "LINE")]
    pub fstab: Vec<String>,
    /// A file of public keys that may log in as root
    #[arg(long, value_name = "FILE")]
    pub ssh_keys: Option<PathBuf>,
    /// Root's password, as `openssl passwd -6` prints it
    #[arg(long, value_name = "HASH")]
    pub root_password: Option<String>,
    /// Root's password has to be changed at the first login
    #[arg(long)]
    pub expire_password: bool,
}

fn network(text: &str) -> Result<Network, String> {
    if text == "dhcp" {
        return Ok(Network::Dhcp);
    }
    let (address, gateway) = match text.split_once(',') {
        Some((address, gateway)) => (address, Some(gateway)),
        None => (text, None),
    };
    let wrong = || format!("`{text}` is neither `dhcp` nor an address such as 192.0.2.10/24,192.0.2.1");
    let (host, width) = address.split_once('/').ok_or_else(wrong)?;
    let is_address = |text: &str| text.parse::<std::net::IpAddr>().is_ok();
    let fits =
        is_address(host) && width.parse::<u8>().is_ok_and(|width| width <= 128) && gateway.is_none_or(is_address);
    match fits {
        true => Ok(Network::Static(address.to_owned(), gateway.map(str::to_owned))),
        false => Err(wrong()),
    }
}

impl Changes {
    fn identity(&self) -> anyhow::Result<Identity> {
        let keys = self
            .ssh_keys
            .as_ref()
            .map(|file| std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display())));
        Ok(Identity {
            hostname: self.hostname.clone(),
            network: self.network.clone(),
            fstab: (!self.fstab.is_empty()).then(|| self.fstab.join("\n")),
            keys: keys.transpose()?,
            password: self.root_password.clone(),
            expire_password: self.expire_password,
        })
    }
}

/// `xl image`
pub fn run(args: &Image) -> anyhow::Result<()> {
    heed_interruptions()?;
    match &args.verb {
        Verb::Create { file, size, fs, sure } => {
            may_write(file, sure)?;
            ferroxen_images::create(file, bytes(*size), file_system(*fs))
        }
        Verb::Build {
            file,
            size,
            folder,
            suite,
            mirror,
            include,
            set,
            sure,
        } => {
            let origin = match folder {
                Some(folder) => Origin::Folder(folder.clone()),
                None => Origin::Debian {
                    suite: suite.clone(),
                    mirror: mirror.clone(),
                    include: include.clone(),
                },
            };
            build(file, *size, &origin, set, sure)
        }
        Verb::FromHost {
            file,
            size,
            exclude,
            set,
            sure,
        } => {
            let left_out = exclude.clone();
            let set = Changes {
                network: set.network.clone().or(Some(Network::Dhcp)),
                ..set.clone()
            };
            build(file, *size, &Origin::Host { left_out }, &set, sure)?;
            crate::show(&format!("{}\n", starts_by(file)))
        }
        Verb::FromDisk {
            disk,
            file,
            size,
            set,
            sure,
        } => {
            may_write(file, sure)?;
            is_at_rest(disk)?;
            let put_aside = ferroxen_images::take_over(disk, file, size.map(bytes), &set.identity()?, steps())?;
            for line in put_aside {
                crate::show(&format!("/etc/fstab had a disk that is not in it: {line}\n"))?;
            }
            crate::show(&format!("{}\n", starts_by(file)))
        }
        Verb::Clone {
            template,
            file,
            overlay: true,
            set,
            sure,
        } => {
            may_write(file, sure)?;
            is_at_rest(template)?;
            ferroxen_images::overlay(template, file, &set.identity()?)?;
            crate::show(&format!(
                "{0} stands on {1}, which must stay as it is: its disk is \"format=qcow2,vdev=xvda1,access=rw,target={0}\"\n",
                std::path::absolute(file)?.display(),
                template.display()
            ))
        }
        Verb::Clone {
            template,
            file,
            overlay: false,
            set,
            sure,
        } => {
            may_write(file, sure)?;
            is_at_rest(template)?;
            let way = match ferroxen_images::clone(template, file, &set.identity()?)? {
                Way::Shared => "shares its blocks with",
                Way::Copied => "is a copy of",
            };
            crate::show(&format!("{} {way} {}\n", file.display(), template.display()))
        }
        Verb::Import { archive, directory } => {
            let bundle = ferroxen_images::import(archive, directory)?;
            for path in bundle.images.iter().chain(&bundle.configs) {
                crate::show(&format!("{}\n", path.display()))?;
            }
            Ok(())
        }
        Verb::Export { archive, files, sure } => {
            may_write(archive, sure)?;
            for file in files {
                is_at_rest(file)?;
            }
            ferroxen_images::export(archive, files)
        }
        Verb::Resize { file, size, sure } => {
            may_change(file)?;
            let now = std::fs::metadata(file).with_context(|| format!("looking at {}", file.display()))?;
            if bytes(*size) < now.len() && !sure.yes {
                ask(&format!("{} gets smaller", file.display()))?;
            }
            ferroxen_images::resize(file, bytes(*size), steps())
        }
        Verb::Check { file } => crate::show(&ferroxen_images::check(file)?),
        Verb::Set { file, set } => {
            may_change(file)?;
            Inside::of(file).apply(&set.identity()?)
        }
    }
}

/// Ctrl-C ends the step that goes on, and what was begun goes; before and after that it ends us.
fn heed_interruptions() -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).context("heeding Ctrl-C")?;
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if !ferroxen_images::call_off() {
                // It ends us; if not, nothing is lost.
                let _ = emulate_default_handler(signal);
            }
        }
    });
    Ok(())
}

fn build(file: &Path, size: Amount, origin: &Origin, set: &Changes, sure: &Sure) -> anyhow::Result<()> {
    may_write(file, sure)?;
    let identity = set.identity()?;
    ferroxen_images::build(file, bytes(size), origin, &identity, steps())
}

/// What a configuration needs to start it.
fn starts_by(file: &Path) -> String {
    match ferroxen_bootloader::find(file, &ferroxen_bootloader::Wish::default()) {
        Ok(boot) => format!(
            "as xvda1 it starts its own {} by bootloader = \"pygrub\", extra = \"root=/dev/xvda1 console=hvc0\"",
            boot.kernel_path
        ),
        Err(error) => format!("as xvda1 it needs a `kernel` of the host's: {error}"),
    }
}

/// Shows each step; how large it is only the programs know that do it.
fn steps() -> impl FnMut(&str) {
    let progress = progress::for_people("image");
    move |step| progress.begin(step, 0)
}

fn bytes(size: Amount) -> u64 {
    size.kib().saturating_mul(1024)
}

fn file_system(format: Format) -> FileSystem {
    match format {
        Format::None => FileSystem::None,
        Format::Ext2 => FileSystem::Ext2,
        Format::Ext3 => FileSystem::Ext3,
        Format::Ext4 => FileSystem::Ext4,
        Format::Swap => FileSystem::Swap,
    }
}

/// Nothing is written over without a word.
fn may_write(file: &Path, sure: &Sure) -> anyhow::Result<()> {
    may_change(file)?;
    match file.exists() && !sure.yes {
        true => ask(&format!("{} is there already", file.display())),
        false => Ok(()),
    }
}

/// What others stand on is not written to.
fn may_change(file: &Path) -> anyhow::Result<()> {
    is_at_rest(file)?;
    match std::fs::metadata(file).is_ok_and(|meta| meta.permissions().readonly()) {
        true => bail!(
            "{0} may not be written to: clones may stand on it (if none does, `chmod u+w {0}`)",
            file.display()
        ),
        false => Ok(()),
    }
}

/// An image that somebody writes to is no file of ours to change.
fn is_at_rest(file: &Path) -> anyhow::Result<()> {
    if let Some(place) = ferroxen_domains::image_user(file) {
        bail!("{} is in use: {place}", file.display());
    }
    Ok(())
}

fn ask(what: &str) -> anyhow::Result<()> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        bail!("{what}: say -y if that is meant");
    }
    eprint!("{what}. Go on? [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => bail!("nothing was done"),
    }
}
