//! The kernel that a guest's own disk says it wants: what `pygrub` does, without running anything of anybody's.
//!
//! A disk is a file system, or has partitions with file systems ([`partitions`]). The first file system with a boot
//! menu counts ([`menu`] reads GRUB's, GRUB legacy's and extlinux's); its default entry names a kernel, a ramdisk and a
//! command line.
//!
//! All that is read here was written by the guest. So nothing of it names a file of the host: paths are looked up in
//! the guest's file system only, by a reader in safe Rust, and what is read is bounded.
#![forbid(unsafe_code)]

pub mod menu;
mod partitions;
mod volume;

use ext4_view::Ext4;
use menu::{Entry, Menu};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
pub use volume::Disk;

/// What to start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Boot {
    /// The entry's title.
    pub title: String,
    /// Its kernel's path in the guest.
    pub kernel_path: String,
    /// The kernel.
    pub kernel: Vec<u8>,
    /// The ramdisk, if it has one.
    pub ramdisk: Option<Vec<u8>>,
    /// The command line.
    pub args: String,
}

/// What the configuration wants of it (`bootloader_args`, under pygrub's names).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Wish {
    /// `--entry`: a number or a title, in place of the menu's default.
    pub entry: Option<String>,
    /// `--kernel`: a path in the guest, in place of a menu.
    pub kernel: Option<String>,
    /// `--ramdisk`, beside it.
    pub ramdisk: Option<String>,
    /// `--args`: put behind the entry's own.
    pub args: Option<String>,
    /// `--offset`: where the file system begins, in bytes.
    pub offset: Option<u64>,
}

/// Why nothing can be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk cannot be read.
    #[error("{0}")]
    Disk(#[from] std::io::Error),
    /// No partition has a file system that we read.
    #[error("there is no ext2, ext3 or ext4 file system in it{}", why(.0))]
    NoFileSystem(Vec<String>),
    /// No menu is in any of them.
    #[error("there is no boot menu in it (looked for {})", menus())]
    NoMenu,
    /// None of them is a root.
    #[error("none of its file systems has {FSTAB}: it holds no system")]
    NoRoot,
    /// The menu has nothing to start.
    #[error("{0} names no kernel")]
    EmptyMenu(String),
    /// Nobody can choose that.
    #[error("{path} has no entry \"{wanted}\"; it has {}", .titles.join(", "))]
    NoEntry {
        /// The menu.
        path: String,
        /// What was asked for.
        wanted: String,
        /// What there is.
        titles: Vec<String>,
    },
    /// A file of the guest's cannot be read.
    #[error("{0}: {1}")]
    File(String, String),
    /// An argument has no meaning here.
    #[error(
        "`{0}` is no argument of pygrub's that has a meaning here (--entry, --kernel, --ramdisk, --args, --offset)"
    )]
    Argument(String),
}

fn why(reasons: &[String]) -> String {
    match reasons.is_empty() {
        true => String::new(),
        false => format!(" ({})", reasons.join("; ")),
    }
}

fn menus() -> String {
    let paths: Vec<&str> = menu::PLACES.iter().map(|(path, _)| *path).collect();
    paths.join(", ")
}

/// The largest kernel that anybody starts, and the most that its ramdisks have together.
const FILE_LIMIT: u64 = 1 << 30;
/// What every Linux has that was installed, and no file system but its root.
const FSTAB: &str = "/etc/fstab";
/// The largest menu.
const MENU_LIMIT: u64 = 1 << 20;

impl Wish {
    /// Reads `bootloader_args`.
    pub fn parse(args: &[String]) -> Result<Wish, Error> {
        let mut wish = Wish::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let wrong = || Error::Argument(arg.clone());
            let (name, mut value) = match arg.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (arg.as_str(), None),
            };
            // Without a terminal there is nothing to be quiet or interactive on.
            if matches!(name, "-q" | "--quiet" | "--not-really" | "-n") {
                continue;
            }
            let mut value = || value.take().or_else(|| args.next().cloned()).ok_or_else(wrong);
            match name {
                "--entry" => wish.entry = Some(value()?),
                "--kernel" => wish.kernel = Some(value()?),
                "--ramdisk" => wish.ramdisk = Some(value()?),
                "--args" => wish.args = Some(value()?),
                "--offset" => wish.offset = Some(value()?.parse().map_err(|_| wrong())?),
                _ => return Err(wrong()),
            }
        }
        Ok(wish)
    }
}

/// A file system that is the root of a system: which bytes of the disk it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Root {
    /// The first.
    pub start: u64,
    /// How many.
    pub len: u64,
}

/// Finds the file system of a raw disk that has the file by which a root is known: `/etc/fstab`.
pub fn find_root(disk: &Path) -> Result<Root, Error> {
    find_root_in(Arc::new(File::open(disk)?))
}

/// The same in anything that can be read.
pub fn find_root_in(disk: Arc<dyn Disk>) -> Result<Root, Error> {
    let (mut reasons, mut is_readable) = (Vec::new(), false);
    for start in partitions::starts(&*disk)? {
        match volume::open(&disk, start) {
            Ok(system) if exists(&system, FSTAB) => {
                let len = volume::len(&*disk, start)?;
                return Ok(Root { start, len });
            }
            Ok(_) => is_readable = true,
            Err(error) => reasons.push(format!("at byte {start}: {error}")),
        }
    }
    Err(match is_readable {
        true => Error::NoRoot,
        false => Error::NoFileSystem(reasons),
    })
}

/// Finds what `wish` wants in a raw disk.
pub fn find(disk: &Path, wish: &Wish) -> Result<Boot, Error> {
    find_in(Arc::new(File::open(disk)?), wish)
}

/// The same in anything that can be read.
pub fn find_in(disk: Arc<dyn Disk>, wish: &Wish) -> Result<Boot, Error> {
    let places = match wish.offset {
        Some(offset) => vec![offset],
        None => partitions::starts(&*disk)?,
    };
    let mut reasons = Vec::new();
    let mut is_readable = false;
    for start in places {
        let system = match volume::open(&disk, start) {
            Ok(system) => system,
            Err(error) => {
                reasons.push(format!("at byte {start}: {error}"));
                continue;
            }
        };
        is_readable = true;
        if let Some(kernel) = &wish.kernel {
            if !exists(&system, kernel) {
                continue;
            }
            let entry = Entry {
                title: kernel.clone(),
                kernel: kernel.clone(),
                ramdisks: wish.ramdisk.iter().cloned().collect(),
                args: String::new(),
                place: Vec::new(),
            };
            return load(&system, entry, wish);
        }
        if let Some((path, menu)) = find_menu(&system)? {
            let entry = choose(&path, menu, wish)?;
            return load(&system, entry, wish);
        }
    }
    match (is_readable, &wish.kernel) {
        (false, _) => Err(Error::NoFileSystem(reasons)),
        (true, Some(kernel)) => Err(Error::File(kernel.clone(), "there is no such file".to_owned())),
        (true, None) => Err(Error::NoMenu),
    }
}

fn exists(system: &Ext4, path: &str) -> bool {
    system.exists(path).unwrap_or(false)
}

fn find_menu(system: &Ext4) -> Result<Option<(String, Menu)>, Error> {
    for (path, parse) in menu::PLACES {
        if exists(system, path) {
            let text = read(system, path, MENU_LIMIT)?;
            let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
            return Ok(Some((
                (*path).to_owned(),
                parse(&String::from_utf8_lossy(&text), directory),
            )));
        }
    }
    Ok(None)
}

fn choose(path: &str, menu: Menu, wish: &Wish) -> Result<Entry, Error> {
    if menu.entries.is_empty() {
        return Err(Error::EmptyMenu(path.to_owned()));
    }
    let titles = || {
        menu.entries
            .iter()
            .map(|entry| format!("\"{}\"", entry.title))
            .collect()
    };
    match &wish.entry {
        Some(wanted) => menu.entry(wanted).cloned().ok_or_else(|| Error::NoEntry {
            path: path.to_owned(),
            wanted: wanted.clone(),
            titles: titles(),
        }),
        // A default that is not there is the first, as in GRUB.
        None => {
            let default = menu.default.as_deref().and_then(|wanted| menu.entry(wanted));
            Ok(default.unwrap_or(&menu.entries[0]).clone())
        }
    }
}

fn load(system: &Ext4, entry: Entry, wish: &Wish) -> Result<Boot, Error> {
    let kernel = read(system, &entry.kernel, FILE_LIMIT)?;
    let mut ramdisk: Option<Vec<u8>> = None;
    for path in &entry.ramdisks {
        // Several are one behind the other, as loaders give them to Linux.
        let whole = ramdisk.get_or_insert_default();
        let room = FILE_LIMIT.saturating_sub(whole.len() as u64);
        whole.extend(read(system, path, room)?);
    }
    let args = [entry.args.as_str(), wish.args.as_deref().unwrap_or("")];
    let args: Vec<&str> = args.into_iter().filter(|args| !args.is_empty()).collect();
    Ok(Boot {
        title: entry.title,
        kernel_path: entry.kernel,
        kernel,
        ramdisk,
        args: args.join(" "),
    })
}

/// A file of the guest's. Where `/boot` is a file system of its own, a menu written for the whole tree is right too.
fn read(system: &Ext4, path: &str, limit: u64) -> Result<Vec<u8>, Error> {
    let short = path.strip_prefix("/boot").filter(|_| !exists(system, path));
    let path = short.unwrap_or(path);
    let wrong = |why: String| Error::File(path.to_owned(), why);
    let size = system.metadata(path).map_err(|error| wrong(error.to_string()))?.len();
    if size > limit {
        return Err(wrong(format!("{size} bytes are too many")));
    }
    system.read(path).map_err(|error| wrong(error.to_string()))
}
