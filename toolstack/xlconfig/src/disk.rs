//! Disk specifications: xl-disk-configuration(5), and `xm`'s `file:/image,sda1,w`.

use crate::rate;
use std::num::NonZero;
use std::ops::Range;
use std::path::PathBuf;

/// A virtual disk of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The specification as written, for messages.
    pub spec: String,
    /// The image or block device in the backend domain; none for an empty CD drive.
    pub target: Option<PathBuf>,
    /// What the target holds, or how it was said to be reached.
    pub format: DiskFormat,
    /// The guest's name for it, and the number that goes with the name.
    pub vdev: VirtualDisk,
    /// Whether the guest may write.
    pub access: DiskAccess,
    /// A CD-ROM drive.
    pub is_cdrom: bool,
    /// A hotplug script that was asked for by name.
    pub script: Option<String>,
    /// The domain that serves the disk, if not Domain 0.
    pub backend: Option<String>,
    /// Whether the guest may discard blocks; by default the backend decides.
    pub discard: Option<bool>,
    /// The kind of backend, if one was asked for.
    pub backend_type: Option<DiskBackend>,
    /// The backend may hand the guest's own pages to the disk (stable writes); of no effect on ours.
    pub direct_io_safe: bool,
    /// How much of it the guest may use.
    pub limits: DiskLimits,
}

/// How much reading and writing a disk bears, each second, both together; not Xen's: ours.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct DiskLimits {
    /// Bytes.
    pub bytes: Option<NonZero<u64>>,
    /// Requests.
    pub requests: Option<NonZero<u64>>,
}

impl DiskLimits {
    /// Whether there is one.
    pub fn any(self) -> bool {
        self != Self::default()
    }
}

/// What may serve a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskBackend {
    /// The kernel.
    Phy,
    /// blktap, long gone.
    Tap,
    /// QEMU.
    Qdisk,
}

/// What stands behind a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskFormat {
    /// Bytes as they are, in a file or on a device: look which.
    Raw,
    /// `file:`: an image file.
    File,
    /// `phy:`: a block device.
    Phy,
    /// An image format that needs a translating backend.
    Other(&'static str),
    /// An empty drive.
    Empty,
}

/// Read-only, read-write, or read-write even if somebody else uses it (`w!`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskAccess {
    /// `r`
    ReadOnly,
    /// `w`
    ReadWrite,
    /// `w!`
    Shared,
}

impl DiskAccess {
    /// `r` or `w`, as xenstore's `mode` has it.
    pub fn mode(self) -> &'static str {
        match self {
            DiskAccess::ReadOnly => "r",
            DiskAccess::ReadWrite | DiskAccess::Shared => "w",
        }
    }
}

/// A guest's name for a disk, with the number of xen-vbd-interface(7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualDisk {
    /// As written: `xvda`, `sda1`, `0x3`.
    pub name: String,
    /// The number under which frontend and backend meet.
    pub number: u32,
}

impl VirtualDisk {
    /// Finds the number that goes with a name.
    pub fn parse(name: &str) -> Result<VirtualDisk, String> {
        let number = number_of(name).ok_or_else(|| {
            format!("`{name}` is no virtual disk: use xvda, sda1, hdb, d0p1, or a number such as 0x301")
        })?;
        Ok(VirtualDisk {
            name: name.to_owned(),
            number,
        })
    }
}

fn number_of(name: &str) -> Option<u32> {
    let name = name.strip_prefix("/dev/").unwrap_or(name);
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        let number: Option<u32> = match name.strip_prefix("0x") {
            Some(hex) => u32::from_str_radix(hex, 16).ok(),
            None => name.parse().ok(),
        };
        return number.filter(|number| *number < 1 << 29);
    }
    // d<disk>[p<partition>]: the neutral form.
    if let Some(rest) = name
        .strip_prefix('d')
        .filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    {
        let (disk, partition) = rest
            .split_once('p')
            .map_or((rest, None), |(disk, part)| (disk, Some(part)));
        let partition = partition.map_or(Some(0), |part| part.parse().ok())?;
        return xvd(disk.parse().ok()?, partition);
    }
    if let Some(number) = bsd_number(name) {
        return Some(number);
    }
    let (kind, rest) = ["xvd", "hd", "sd"]
        .iter()
        .find_map(|kind| Some((*kind, name.strip_prefix(kind)?)))?;
    let letters = rest.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(rest.len());
    let (letters, partition) = rest.split_at(letters);
    let disk = disk_of_letters(letters)?;
    let partition = if partition.is_empty() {
        0
    } else {
        partition.parse().ok().filter(|part| *part > 0)?
    };
    match kind {
        "xvd" => xvd(disk, partition),
        "hd" if disk < 4 && partition < 64 => {
            let major = if disk < 2 { 3 } else { 22 };
            Some(major << 8 | (disk & 1) << 6 | partition)
        }
        "sd" if disk < 16 && partition < 16 => Some(8 << 8 | disk << 4 | partition),
        _ => None,
    }
}

/// NetBSD's names, as its own numbers: `cd0a` is unit 0, partition `a` of major 6.
fn bsd_number(name: &str) -> Option<u32> {
    let (major, rest) = [("wd", 0), ("sd", 4), ("cd", 6), ("xbd", 142)]
        .iter()
        .find_map(|(kind, major)| Some((*major, name.strip_prefix(kind)?)))
        .filter(|(_, rest): &(u32, &str)| rest.starts_with(|c: char| c.is_ascii_digit()))?;
    let (unit, partition) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
    let unit: u32 = unit.parse().ok().filter(|unit| *unit < 16)?;
    let partition = disk_of_letters(partition).filter(|partition| *partition < 16)?;
    Some(major << 8 | unit << 4 | partition)
}

fn xvd(disk: u32, partition: u32) -> Option<u32> {
    match (disk, partition) {
        (0..=15, 0..=15) => Some(202 << 8 | disk << 4 | partition),
        (0..0x10_0000, 0..=255) => Some(1 << 28 | disk << 8 | partition),
        _ => None,
    }
}

/// a = 0 .. z = 25, aa = 26 and so on.
fn disk_of_letters(letters: &str) -> Option<u32> {
    if letters.is_empty() {
        return None;
    }
    let count = letters.bytes().try_fold(0u32, |sum, letter| {
        sum.checked_mul(26)?
            .checked_add(u32::from(letter.checked_sub(b'a')?) + 1)
    })?;
    count.checked_sub(1)
}

/// What is wrong with a specification, and where in it.
#[derive(Debug, PartialEq, Eq)]
pub struct SpecError {
    pub range: Range<usize>,
    pub message: String,
}

const FORMATS: &[(&str, DiskFormat)] = &[
    ("raw", DiskFormat::Raw),
    ("qcow", DiskFormat::Other("qcow")),
    ("qcow2", DiskFormat::Other("qcow2")),
    ("vhd", DiskFormat::Other("vhd")),
    ("vdi", DiskFormat::Other("vdi")),
    ("qed", DiskFormat::Other("qed")),
];

/// Prefixes of the target, from the times of `xm`; more than one may stand (`tap:aio:`).
const PREFIXES: &[(&str, DiskFormat)] = &[
    ("file:", DiskFormat::File),
    ("phy:", DiskFormat::Phy),
    ("raw:", DiskFormat::Raw),
    ("aio:", DiskFormat::Raw),
    ("tap2:", DiskFormat::Raw),
    ("tap:", DiskFormat::Raw),
    ("tapdisk:", DiskFormat::Raw),
    ("qcow:", DiskFormat::Other("qcow")),
    ("qcow2:", DiskFormat::Other("qcow2")),
    ("vhd:", DiskFormat::Other("vhd")),
];

/// Reads one element of `disk = [...]`.
pub fn parse(spec: &str) -> Result<Disk, SpecError> {
    let mut draft = Draft::default();
    let mut positional = 0;
    let mut start = 0;
    loop {
        let rest = &spec[start..];
        let trimmed = rest.trim_start();
        let at = start + (rest.len() - trimmed.len());
        // `target=` takes all that follows, commas included.
        if let Some(target) = trimmed.strip_prefix("target=") {
            draft.set_target(target.trim_end());
            break;
        }
        let len = trimmed.find(',').unwrap_or(trimmed.len());
        let part = trimmed[..len].trim_end();
        let range = at..at + part.len();
        match part.split_once('=').filter(|(key, _)| is_key(key)) {
            Some((key, value)) => draft.keyed(key, value, range)?,
            None if draft.flag(part) => {}
            None if positional == 0 => {
                draft.set_target(part);
                positional = if draft.has_prefix { 2 } else { 1 };
            }
            None => {
                draft.positional(positional, part, range)?;
                positional += 1;
            }
        }
        if at + len >= spec.len() {
            break;
        }
        start = at + len + 1;
    }
    draft.finish(spec)
}

fn is_key(key: &str) -> bool {
    let key = key.trim();
    !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

#[derive(Default)]
struct Draft {
    target: Option<PathBuf>,
    format: Option<DiskFormat>,
    has_prefix: bool,
    vdev: Option<(String, Range<usize>)>,
    access: Option<DiskAccess>,
    is_cdrom: bool,
    script: Option<String>,
    backend: Option<String>,
    discard: Option<bool>,
    backend_type: Option<DiskBackend>,
    direct_io_safe: bool,
    limits: DiskLimits,
}

/// The most that QEMU takes ("throttle-group" in its manual, qemu(1)).
const MOST: u64 = 1_000_000_000_000_000;

fn limit(number: Option<u64>, text: &str, range: Range<usize>, example: &str) -> Result<NonZero<u64>, SpecError> {
    let number = number.filter(|number| *number <= MOST).and_then(NonZero::new);
    number.ok_or_else(|| SpecError {
        range,
        message: format!("`{text}` is no limit such as {example}"),
    })
}

/// Prefixes that name a script of Xen's: `drbd:res0` is what `block-drbd` makes of `res0`.
const SCRIPTS: &[(&str, &str)] = &[
    ("drbd:", "block-drbd"),
    ("enbd:", "block-enbd"),
    ("iscsi:", "block-iscsi"),
    ("nbd:", "block-nbd"),
];

impl Draft {
    fn set_target(&mut self, text: &str) {
        let mut rest = text;
        if let Some((prefix, script)) = SCRIPTS.iter().find(|(prefix, _)| rest.starts_with(prefix)) {
            self.has_prefix = true;
            self.script = Some((*script).to_owned());
            rest = &rest[prefix.len()..];
        }
        while let Some((prefix, format)) = PREFIXES.iter().find(|(prefix, _)| rest.starts_with(prefix)) {
            self.has_prefix = true;
            self.format = Some(*format);
            rest = &rest[prefix.len()..];
        }
        self.target = (!rest.is_empty()).then(|| PathBuf::from(rest));
    }

    /// Words without a value that may stand anywhere.
    fn flag(&mut self, word: &str) -> bool {
        match word {
            "cdrom" => self.is_cdrom = true,
            "discard" => self.discard = Some(true),
            "no-discard" => self.discard = Some(false),
            "direct-io-safe" => self.direct_io_safe = true,
            _ => return false,
        }
        true
    }

    fn positional(&mut self, position: usize, text: &str, range: Range<usize>) -> Result<(), SpecError> {
        if text.is_empty() {
            return Ok(());
        }
        match position {
            1 => self.set_format(text, range),
            2 => self.set_vdev(text, range),
            3 => self.set_access(text, range),
            _ => Err(SpecError {
                range,
                message: format!("`{text}`: nothing is expected here"),
            }),
        }
    }

    fn keyed(&mut self, key: &str, value: &str, range: Range<usize>) -> Result<(), SpecError> {
        let value_range = range.end - value.len()..range.end;
        let value = value.trim();
        match key.trim() {
            "format" => self.set_format(value, value_range),
            "vdev" => self.set_vdev(value, value_range),
            "access" => self.set_access(value, value_range),
            "devtype" => match value {
                "cdrom" => {
                    self.is_cdrom = true;
                    Ok(())
                }
                "disk" => Ok(()),
                _ => Err(SpecError {
                    range: value_range,
                    message: format!("unknown device type `{value}`: cdrom or disk"),
                }),
            },
            "backend" => {
                self.backend = Some(value.to_owned());
                Ok(())
            }
            "backendtype" => match value {
                "phy" => {
                    self.backend_type = Some(DiskBackend::Phy);
                    Ok(())
                }
                "tap" => {
                    self.backend_type = Some(DiskBackend::Tap);
                    Ok(())
                }
                "qdisk" => {
                    self.backend_type = Some(DiskBackend::Qdisk);
                    Ok(())
                }
                _ => Err(SpecError {
                    range: value_range,
                    message: format!("unknown backend type `{value}`"),
                }),
            },
            "script" => {
                self.script = Some(value.to_owned());
                Ok(())
            }
            "rate" => {
                self.limits.bytes = Some(limit(rate::bytes_per_second(value), value, value_range, "10MB/s")?);
                Ok(())
            }
            "iops" => {
                self.limits.requests = Some(limit(value.parse().ok(), value, value_range, "200")?);
                Ok(())
            }
            other => Err(SpecError {
                range,
                message: format!("unknown disk setting `{other}`"),
            }),
        }
    }

    fn set_format(&mut self, text: &str, range: Range<usize>) -> Result<(), SpecError> {
        match FORMATS.iter().find(|(name, _)| *name == text) {
            Some((_, format)) => {
                self.format = Some(*format);
                Ok(())
            }
            None if text == "empty" => {
                self.format = Some(DiskFormat::Empty);
                Ok(())
            }
            None => Err(SpecError {
                range,
                message: format!("unknown disk format `{text}`: raw, qcow, qcow2, vhd or vdi"),
            }),
        }
    }

    fn set_vdev(&mut self, text: &str, range: Range<usize>) -> Result<(), SpecError> {
        let mut name = text;
        if let Some(rest) = name.strip_prefix("ioemu:") {
            name = rest;
        }
        if let Some((rest, kind)) = name.split_once(':') {
            match kind {
                "cdrom" => self.is_cdrom = true,
                "disk" => {}
                _ => {
                    return Err(SpecError {
                        range,
                        message: format!("unknown device type `{kind}`: cdrom or disk"),
                    });
                }
            }
            name = rest;
        }
        self.vdev = Some((name.to_owned(), range));
        Ok(())
    }

    fn set_access(&mut self, text: &str, range: Range<usize>) -> Result<(), SpecError> {
        self.access = Some(match text {
            "r" | "ro" => DiskAccess::ReadOnly,
            "w" | "rw" => DiskAccess::ReadWrite,
            "w!" | "rw!" => DiskAccess::Shared,
            _ => {
                return Err(SpecError {
                    range,
                    message: format!("unknown access `{text}`: r or w"),
                });
            }
        });
        Ok(())
    }

    fn finish(self, spec: &str) -> Result<Disk, SpecError> {
        let whole = 0..spec.len();
        let Some((name, range)) = self.vdev else {
            // The rest of a specification is the target's, commas and all.
            let swallowed = self
                .target
                .as_ref()
                .is_some_and(|target| target.to_string_lossy().contains(",vdev="));
            return Err(SpecError {
                range: whole,
                message: match swallowed {
                    true => "`target=` takes all that follows it: put it last",
                    false => "no virtual disk is named, such as xvda",
                }
                .to_owned(),
            });
        };
        let vdev = VirtualDisk::parse(&name).map_err(|message| SpecError { range, message })?;
        if self.target.is_none() && !self.is_cdrom {
            return Err(SpecError {
                range: whole,
                message: "no image or device is named".to_owned(),
            });
        }
        let format = if self.target.is_none() {
            DiskFormat::Empty
        } else {
            self.format.unwrap_or(DiskFormat::Raw)
        };
        let access = if self.is_cdrom {
            DiskAccess::ReadOnly
        } else {
            self.access.unwrap_or(DiskAccess::ReadWrite)
        };
        Ok(Disk {
            spec: spec.to_owned(),
            target: self.target,
            format,
            vdev,
            access,
            is_cdrom: self.is_cdrom,
            script: self.script,
            backend: self.backend,
            discard: self.discard,
            backend_type: self.backend_type,
            direct_io_safe: self.direct_io_safe,
            limits: self.limits,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(names: &[&str]) -> Vec<Option<u32>> {
        names.iter().map(|name| number_of(name)).collect()
    }

    #[test]
    fn names_map_to_the_numbers_of_xen_vbd_interface() {
        assert_eq!(
            numbers(&[
                "xvda", "xvda1", "xvdb", "xvdp15", "sda1", "sdb", "hda", "hda1", "hdb", "hdc"
            ]),
            [51712, 51713, 51728, 51967, 2049, 2064, 768, 769, 832, 5632].map(Some)
        );
        assert_eq!(numbers(&["0x3", "d0", "d0p1", "768"]), [3, 51712, 51713, 768].map(Some));
        assert_eq!(
            numbers(&["xvdq", "xvdaa", "xvda16"]),
            [1 << 28 | 16 << 8, 1 << 28 | 26 << 8, 1 << 28 | 16].map(Some)
        );
        assert_eq!(numbers(&["wd0d", "cd0a", "sd1c"]), [3, 0x600, 0x412].map(Some));
        assert_eq!(
            numbers(&["cd0", "sdq", "hde", "xvd", "sda0", "", "xvda99999999999"]),
            [None; 7]
        );
    }

    #[test]
    fn old_and_new_spellings_agree() {
        let old = parse("phy:/dev/vg/web,xvda,w").expect("is right");
        for spelling in [
            "/dev/vg/web,,xvda",
            "/dev/vg/web,raw,xvda,rw",
            "vdev=xvda, access=rw, target=/dev/vg/web",
        ] {
            let new = parse(spelling).expect(spelling);
            assert_eq!(
                (new.target, new.vdev, new.access),
                (old.target.clone(), old.vdev.clone(), old.access)
            );
        }
    }

    #[test]
    fn a_cdrom_is_read_only_and_may_be_empty() {
        let cdrom = parse("file:/tmp/MSWindows_XP.iso,hdc:cdrom,r").expect("is right");
        assert!(cdrom.is_cdrom && cdrom.access == DiskAccess::ReadOnly && cdrom.vdev.number == 5632);
        assert_eq!(parse(",,hdc,cdrom").expect("is right").format, DiskFormat::Empty);
    }

    #[test]
    fn a_limit_is_a_number_above_nothing() {
        let disk = parse("/a.img,raw,xvda,w,rate=8Mb/s,iops=200").expect("is right");
        let limits = DiskLimits {
            bytes: NonZero::new(1_000_000),
            requests: NonZero::new(200),
        };
        assert_eq!(disk.limits, limits);
        assert!(disk.limits.any() && !parse("/a.img,raw,xvda,w").expect("is right").limits.any());
        for wrong in [
            "rate=0B/s",
            "rate=1b/s",
            "rate=10",
            "rate=10MB/s@20ms",
            "iops=0",
            "iops=many",
            "iops=-1",
        ] {
            let error = parse(&format!("/a.img,raw,xvda,w,{wrong}")).expect_err(wrong);
            assert_eq!(error.range, 23..18 + wrong.len(), "{wrong}");
        }
    }

    #[test]
    fn a_mistake_is_pointed_at() {
        assert_eq!(parse("phy:/dev/hdc,cdza,r").expect_err("cdza").range, 13..17);
        assert_eq!(parse("file:/a.img,xvda,x").expect_err("x").range, 17..18);
        assert_eq!(parse("/a.img,raw,xvda,w,colour=red").expect_err("colour").range, 18..28);
    }
}
