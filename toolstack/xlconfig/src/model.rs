//! From named values to a domain's description.

use crate::cpuid::{self, CpuidRules};
use crate::cpus::{CpuList, parse_cpu_list};
use crate::disk::{self, Disk, DiskBackend, DiskFormat, SpecError};
use crate::keys::{self, Fate};
use crate::passing::{self, IoMemory, Ports};
use crate::qemu::{self, Channel, Connection, Screen, Share};
use crate::source::{Notice, Place, Problem, Source};
use crate::value::{Setting, Settings, Value};
use crate::vif::{self, Vif};
use std::path::PathBuf;
use uuid::Uuid;

/// How a domain is virtualized.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DomainType {
    /// Paravirtual: a kernel that knows it runs on Xen, no hardware help.
    #[default]
    Pv,
    /// Paravirtual in hardware containers.
    Pvh,
    /// A whole emulated machine.
    Hvm,
}

/// What happens when a domain ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Action {
    /// Remove it.
    #[default]
    Destroy,
    /// Remove it and build it anew.
    Restart,
    /// Keep it under another name and build it anew.
    RenameRestart,
    /// Keep it.
    Preserve,
    /// Write its memory to a file, then remove it.
    CoredumpDestroy,
    /// Write its memory to a file, then build it anew.
    CoredumpRestart,
    /// Reset it in place.
    SoftReset,
}

impl Action {
    const ALL: [(&str, Action); 7] = [
        ("destroy", Action::Destroy),
        ("restart", Action::Restart),
        ("rename-restart", Action::RenameRestart),
        ("preserve", Action::Preserve),
        ("coredump-destroy", Action::CoredumpDestroy),
        ("coredump-restart", Action::CoredumpRestart),
        ("soft-reset", Action::SoftReset),
    ];

    /// As it is written.
    pub fn name(self) -> &'static str {
        Action::ALL
            .iter()
            .find(|(_, action)| *action == self)
            .map_or("destroy", |(name, _)| name)
    }
}

/// How the guest's time stamp counter behaves (xen-tscmode(7)).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TscMode {
    /// The hypervisor chooses.
    #[default]
    Default,
    /// Always emulated.
    AlwaysEmulate,
    /// Never emulated.
    Native,
}

/// Who finds the kernel in the guest's own disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bootloader {
    /// `pygrub`, or another program.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
}

/// A domain as its configuration describes it. All has been checked that can be without a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainConfig {
    /// Unique on the host.
    pub name: String,
    /// How it is virtualized.
    pub kind: DomainType,
    /// Given, or made up at creation.
    pub uuid: Option<Uuid>,
    /// The number that it has to have, because it had that where it was saved; no file has a setting for it.
    pub domid: Option<u16>,
    /// The kernel's file.
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk's file.
    pub ramdisk: Option<PathBuf>,
    /// The kernel's command line, put together from `cmdline`, or `root` and `extra`.
    pub cmdline: Option<String>,
    /// Memory at start, in MiB.
    pub memory_mib: u64,
    /// The most it may ever have, in MiB.
    pub maxmem_mib: u64,
    /// Vcpus online at start.
    pub vcpus: u32,
    /// The most it may ever have.
    pub maxvcpus: u32,
    /// Where each vcpu may run: none, one list for all, or one per vcpu.
    pub cpus: Vec<CpuList>,
    /// Where each vcpu would rather run, likewise.
    pub cpus_soft: Vec<CpuList>,
    /// The share of CPU time among domains.
    pub cpu_weight: Option<u16>,
    /// The most CPU time it may use, in percent of one CPU.
    pub cap: Option<u16>,
    /// The cpupool's name.
    pub pool: Option<String>,
    /// Disks, in order.
    pub disks: Vec<Disk>,
    /// Network cards, in order.
    pub vifs: Vec<Vif>,
    /// Folders of the host that it sees.
    pub shares: Vec<Share>,
    /// Lines to programs of the host's, in order.
    pub channels: Vec<Channel>,
    /// A screen, with keyboard and pointer.
    pub screen: Option<Screen>,
    /// What to do after a shut-down.
    pub on_poweroff: Action,
    /// What to do after a reboot.
    pub on_reboot: Action,
    /// What to do after a watchdog time-out.
    pub on_watchdog: Action,
    /// What to do after a crash.
    pub on_crash: Action,
    /// What to do when the guest asks for a soft reset.
    pub on_soft_reset: Action,
    /// The guest's clock shows local time.
    pub localtime: bool,
    /// Seconds between UTC and the guest's clock.
    pub rtc_timeoffset: i64,
    /// The time stamp counter's behaviour.
    pub tsc_mode: TscMode,
    /// Grant table frames; none: the host's default.
    pub max_grant_frames: Option<u32>,
    /// Frames to track mapped grants; none: the host's default.
    pub max_maptrack_frames: Option<u32>,
    /// Highest event channel number.
    pub max_event_channels: u32,
    /// Accesses to unknown MSRs are ignored rather than refused.
    pub msr_relaxed: bool,
    /// The highest version of grant tables; none: the host's.
    pub max_grant_version: Option<u32>,
    /// It stays on this host.
    pub stays: bool,
    /// It serves other domains' devices.
    pub is_driver_domain: bool,
    /// It gets the xenstore permissions that `xm` gave, in place of a node for its suspend channel.
    pub suspends_as_with_xend: bool,
    /// What its CPUID says beside the usual.
    pub cpuid: CpuidRules,
    /// The host's ports that it may use.
    pub ioports: Vec<Ports>,
    /// The host's memory-mapped devices that it may use.
    pub iomem: Vec<IoMemory>,
    /// The host's interrupts that it may use.
    pub irqs: Vec<u32>,
    /// Who finds the kernel, if no `kernel` is named.
    pub bootloader: Option<Bootloader>,
    /// What is asked for and cannot be given, and why: settings that a domain is not made with.
    pub missing: Vec<(String, &'static str)>,
    /// The settings that an HVM or PVH domain would use.
    pub hardware: Vec<(String, Value)>,
}

/// Memory of a domain whose file does not say, as in libxl (MiB).
const DEFAULT_MEMORY_MIB: u64 = 128;
/// The hypervisor's own limit for PV.
const MAX_VCPUS: u32 = 8192;
/// Where stock xl has GRUB for PV domains.
const PVGRUB: &str = "/usr/lib/xen-4.17/boot/pvgrub64.bin";
const NO_IOMMU: &str = "the hypervisor gives no domain a part of the IOMMU";

pub fn build(source: &Source, settings: Settings) -> Result<(DomainConfig, Vec<Notice>), Problem> {
    let mut reader = Reader {
        settings,
        notices: Vec::new(),
    };
    // All that is wrong is told at once.
    let mut all = Complaints::default();
    let name = all.note(name(source, &mut reader));
    let kind = all.note(kind(&mut reader));
    let cmdline = all.note(cmdline(&mut reader));
    let memory_mib = all.note(reader.number("memory", 1..=1 << 24));
    let maxmem_mib = all.note(reader.number("maxmem", 1..=1 << 24));
    let (memory_mib, maxmem_mib) = match (memory_mib, maxmem_mib) {
        (None, None) => (DEFAULT_MEMORY_MIB, DEFAULT_MEMORY_MIB),
        (Some(memory), None) => (memory, memory),
        (None, Some(maxmem)) => (maxmem, maxmem),
        (Some(memory), Some(maxmem)) => {
            if maxmem < memory {
                all.0
                    .push(reader.complain("maxmem", format!("maxmem ({maxmem}) is less than memory ({memory})")));
            }
            (memory, maxmem)
        }
    };
    let vcpus = all.note(reader.number("vcpus", 1..=u64::from(MAX_VCPUS)));
    let maxvcpus = all.note(reader.number("maxvcpus", 1..=u64::from(MAX_VCPUS)));
    let (vcpus, maxvcpus) = match (vcpus, maxvcpus) {
        (vcpus, None) => (vcpus.unwrap_or(1), vcpus.unwrap_or(1)),
        (vcpus, Some(maxvcpus)) => (vcpus.unwrap_or(maxvcpus), maxvcpus),
    };
    if maxvcpus < vcpus {
        all.0.push(reader.complain(
            "maxvcpus",
            format!("maxvcpus ({maxvcpus}) is less than vcpus ({vcpus})"),
        ));
    }
    let mut path = |reader: &mut Reader, key: &str| {
        let path = all.note(reader.text(key));
        path.filter(|path| !path.is_empty()).map(PathBuf::from)
    };
    let kernel = path(&mut reader, "kernel");
    let ramdisk = path(&mut reader, "ramdisk");
    let kernel = match all.note(firmware(&mut reader, kind)) {
        Some(loader) if kernel.is_none() => Some(loader),
        _ => kernel,
    };
    let config = DomainConfig {
        name,
        kind,
        uuid: all.note(uuid(&mut reader)),
        domid: None,
        kernel,
        ramdisk,
        cmdline,
        memory_mib,
        maxmem_mib,
        vcpus: to_u32(vcpus),
        maxvcpus: to_u32(maxvcpus),
        cpus: all.note(cpu_lists(&mut reader, "cpus", maxvcpus)),
        cpus_soft: all.note(cpu_lists(&mut reader, "cpus_soft", maxvcpus)),
        cpu_weight: all.note(reader.number("cpu_weight", 1..=65535)).map(to_u16),
        cap: all.note(reader.number("cap", 0..=65535)).map(to_u16),
        pool: all.note(reader.text("pool")),
        disks: all.note(disks(&mut reader)),
        vifs: all.note(reader.specs("vif", vif::parse)),
        shares: all.note(shares(&mut reader)),
        channels: all.note(channels(&mut reader)),
        screen: all.note(screen(&mut reader)),
        on_poweroff: all.note(action(&mut reader, "on_poweroff", Action::Destroy)),
        on_reboot: all.note(action(&mut reader, "on_reboot", Action::Restart)),
        on_watchdog: all.note(action(&mut reader, "on_watchdog", Action::Destroy)),
        on_crash: all.note(action(&mut reader, "on_crash", Action::Destroy)),
        on_soft_reset: all.note(action(&mut reader, "on_soft_reset", Action::SoftReset)),
        localtime: all.note(reader.truth("localtime")).unwrap_or(false),
        rtc_timeoffset: all.note(reader.signed("rtc_timeoffset")).unwrap_or(0),
        tsc_mode: all.note(tsc_mode(&mut reader)),
        max_grant_frames: all.note(reader.number("max_grant_frames", 1..=1 << 20)).map(to_u32),
        max_maptrack_frames: all.note(reader.number("max_maptrack_frames", 1..=1 << 20)).map(to_u32),
        max_event_channels: to_u32(
            all.note(reader.number("max_event_channels", 1..=131_071))
                .unwrap_or(1023),
        ),
        msr_relaxed: all.note(reader.truth("msr_relaxed")).unwrap_or(false),
        max_grant_version: all.note(reader.number("max_grant_version", 1..=2)).map(to_u32),
        stays: all.note(reader.truth("nomigrate")).unwrap_or(false),
        is_driver_domain: all.note(reader.truth("driver_domain")).unwrap_or(false),
        suspends_as_with_xend: all.note(reader.truth("xend_suspend_evtchn_compat")).unwrap_or(false),
        cpuid: all.note(cpuid(&mut reader)),
        ioports: all.note(reader.specs("ioports", passing::ports)),
        iomem: all.note(reader.specs("iomem", passing::memory)),
        irqs: all.note(irqs(&mut reader)),
        bootloader: all.note(bootloader(&mut reader)),
        missing: all.note(passthrough(&mut reader, kind)),
        hardware: Vec::new(),
    };
    let (config, notices, strangers) = reader.leftovers(config);
    all.0.extend(strangers);
    Problem::all(all.0)?;
    Ok((config, notices))
}

/// What is wrong so far.
#[derive(Default)]
struct Complaints(Vec<Problem>);

impl Complaints {
    /// Goes on with a stand-in for what could not be read.
    fn note<T: Default>(&mut self, read: Result<T, Problem>) -> T {
        read.unwrap_or_else(|problem| {
            self.0.push(problem);
            T::default()
        })
    }
}

fn to_u32(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn to_u16(number: u64) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

/// Says what is wrong with a domain's name, if anything is.
pub fn check_name(name: &str) -> Result<(), String> {
    match name_refused(name) {
        Some(why) => Err(format!("{name:?} cannot be a domain's name: {why}")),
        None => Ok(()),
    }
}

fn name_refused(name: &str) -> Option<&'static str> {
    // What xenstore paths, bridges' scripts and people's shells can bear.
    let fits = !name.is_empty() && name.len() <= 255 && name.chars().all(|c| c.is_ascii_graphic() && c != '/');
    if !fits {
        Some("letters, digits, dots, dashes and the like; no spaces and no `/`")
    } else if name.chars().all(|c| c.is_ascii_digit()) {
        Some("a number always means a domain's id; put a letter in it")
    } else {
        None
    }
}

fn name(source: &Source, reader: &mut Reader) -> Result<String, Problem> {
    if let Some(setting) = reader.settings.get("name").cloned() {
        let name = reader.text("name")?.unwrap_or_default();
        return match name_refused(&name) {
            Some(why) => Err(Problem::at(setting.place, format!("{name:?} cannot be a domain's name")).help(why)),
            None => Ok(name),
        };
    }
    let file = source.name().rsplit('/').next().unwrap_or_default();
    let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
    if stem.is_empty() {
        return Err(Problem::general("the configuration has no `name`"));
    }
    reader.notices.push(Notice::new(
        None,
        format!("no `name` is set: the domain is called \"{stem}\", after its file"),
    ));
    Ok(stem.to_owned())
}

fn kind(reader: &mut Reader) -> Result<DomainType, Problem> {
    let builder = reader.place("builder");
    let old = match reader.text("builder")?.as_deref() {
        None => None,
        Some("hvm") => Some(DomainType::Hvm),
        Some("generic" | "linux") => Some(DomainType::Pv),
        Some(other) => {
            return Err(Problem::at(builder, format!("unknown builder \"{other}\"")).help("use type = \"pv\""));
        }
    };
    let place = reader.place("type");
    let new = match reader.text("type")?.as_deref() {
        None => None,
        Some("pv") => Some(DomainType::Pv),
        Some("pvh") => Some(DomainType::Pvh),
        Some("hvm") => Some(DomainType::Hvm),
        Some(other) => return Err(Problem::at(place, format!("unknown type \"{other}\"")).help("pv, pvh or hvm")),
    };
    if let Some(kind) = old {
        let word = if kind == DomainType::Hvm { "hvm" } else { "pv" };
        reader.notices.push(Notice::new(
            builder,
            format!("`builder` is deprecated: write type = \"{word}\""),
        ));
    }
    Ok(new.or(old).unwrap_or_default())
}

fn cmdline(reader: &mut Reader) -> Result<Option<String>, Problem> {
    let place = reader.place("cmdline");
    let whole = reader.text("cmdline")?;
    let root = reader.text("root")?;
    let extra = reader.text("extra")?;
    Ok(match (whole, root, extra) {
        (Some(whole), root, extra) => {
            if root.is_some() || extra.is_some() {
                reader.notices.push(Notice::new(
                    place,
                    "`root` and `extra` are ignored, since `cmdline` is set",
                ));
            }
            Some(whole)
        }
        (None, Some(root), Some(extra)) => Some(format!("root={root} {extra}")),
        (None, Some(root), None) => Some(format!("root={root}")),
        (None, None, extra) => extra,
    })
}

fn uuid(reader: &mut Reader) -> Result<Option<Uuid>, Problem> {
    let place = reader.place("uuid");
    let Some(text) = reader.text("uuid")?.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    match Uuid::parse_str(&text) {
        Ok(uuid) if !uuid.is_nil() => Ok(Some(uuid)),
        _ => Err(Problem::at(place, format!("\"{text}\" is no UUID"))
            .help("such as 6a4b1c9e-0d0f-4a63-9a53-0f8a4cb5fd6e; without `uuid` one is made up")),
    }
}

fn cpu_lists(reader: &mut Reader, key: &str, maxvcpus: u64) -> Result<Vec<CpuList>, Problem> {
    let place = reader.place(key);
    let parse = |text: &str| {
        parse_cpu_list(text)
            .map_err(|message| Problem::at(place.clone().map(|place| place.within(text, 0..text.len())), message))
    };
    match reader.take(key).map(|setting| setting.value) {
        None => Ok(Vec::new()),
        Some(Value::Text(text)) => Ok(vec![parse(&text)?]),
        Some(Value::Number(cpu)) => Ok(vec![parse(&cpu.to_string())?]),
        Some(Value::List(items)) => {
            if items.len() as u64 > maxvcpus {
                return Err(Problem::at(
                    place,
                    format!("{} CPU lists for {maxvcpus} vcpus", items.len()),
                ));
            }
            items
                .iter()
                .map(|item| match item {
                    Value::Text(text) => parse(text),
                    Value::Number(cpu) => parse(&cpu.to_string()),
                    other => Err(Problem::at(
                        place.clone(),
                        format!("expected a CPU list, found {}", other.kind()),
                    )),
                })
                .collect()
        }
        Some(other) => Err(Problem::at(
            place,
            format!("`{key}` is a string or a list, not {}", other.kind()),
        )),
    }
}

fn disks(reader: &mut Reader) -> Result<Vec<Disk>, Problem> {
    let place = reader.place("disk");
    let disks = reader.specs("disk", disk::parse)?;
    for (at, disk) in disks.iter().enumerate() {
        if let Some(other) = disks[..at].iter().find(|other| other.vdev.number == disk.vdev.number) {
            let place = place.clone().map(|place| place.within(&disk.spec, 0..disk.spec.len()));
            return Err(Problem::at(
                place,
                format!("{} is taken by \"{}\"", disk.vdev.name, other.spec),
            ));
        }
        let is_plain = matches!(disk.format, DiskFormat::Raw | DiskFormat::File | DiskFormat::Phy);
        if is_plain && disk.backend_type == Some(DiskBackend::Tap) {
            reader.notices.push(Notice::new(
                place.clone(),
                format!(
                    "disk {}: the kernel's backend serves it, whatever `backendtype` says",
                    disk.vdev.name
                ),
            ));
        }
    }
    Ok(disks)
}

fn shares(reader: &mut Reader) -> Result<Vec<Share>, Problem> {
    let place = reader.place("p9");
    let shares = reader.specs("p9", qemu::share)?;
    for (at, share) in shares.iter().enumerate() {
        if shares[..at].iter().any(|other| other.tag == share.tag) {
            return Err(Problem::at(
                place,
                format!("two folders have the tag \"{}\"", share.tag),
            ));
        }
    }
    Ok(shares)
}

fn channels(reader: &mut Reader) -> Result<Vec<Channel>, Problem> {
    let place = reader.place("channel");
    let channels = reader.specs("channel", qemu::channel)?;
    for (at, channel) in channels.iter().enumerate() {
        let is_socket = matches!(channel.connection, Connection::Socket(_));
        let taken = channels[..at]
            .iter()
            .find(|other| other.connection == channel.connection);
        if let Some(other) = taken.filter(|_| is_socket) {
            let message = format!(
                "the channels \"{}\" and \"{}\" have one socket",
                other.name, channel.name
            );
            return Err(Problem::at(place, message));
        }
    }
    Ok(channels)
}

fn screen(reader: &mut Reader) -> Result<Option<Screen>, Problem> {
    let place = reader.place("vfb");
    let screens = reader.specs("vfb", qemu::screen)?;
    match screens.len() {
        0 | 1 => Ok(screens.into_iter().next()),
        _ => Err(Problem::at(place, "a domain has one screen")),
    }
}

/// One string of words, or a list of strings of bits.
fn cpuid(reader: &mut Reader) -> Result<CpuidRules, Problem> {
    if let Some(Value::Text(_)) = reader.settings.get("cpuid").map(|setting| &setting.value) {
        let read = reader.specs("cpuid", cpuid::words)?;
        return Ok(read.into_iter().next().unwrap_or_default());
    }
    let rules = std::cell::RefCell::new(CpuidRules::default());
    reader.specs("cpuid", |spec| cpuid::bits(&mut rules.borrow_mut(), spec))?;
    Ok(rules.into_inner())
}

fn irqs(reader: &mut Reader) -> Result<Vec<u32>, Problem> {
    let Some(Setting { value, place }) = reader.take("irqs") else {
        return Ok(Vec::new());
    };
    let Value::List(items) = value else {
        return Err(Problem::at(place, format!("`irqs` is a list, not {}", value.kind())));
    };
    let one = |item: &Value| {
        let number = match item {
            Value::Number(number) => Some(*number),
            Value::Text(text) => text.trim().parse().ok(),
            _ => None,
        };
        let fits = number.filter(|number| (0..=passing::LAST_IRQ).contains(number));
        fits.and_then(|number| u32::try_from(number).ok())
            .ok_or_else(|| Problem::at(place.clone(), "`irqs` is a list of numbers, such as [4]"))
    };
    items.iter().map(one).collect()
}

fn bootloader(reader: &mut Reader) -> Result<Option<Bootloader>, Problem> {
    let args = match reader.settings.get("bootloader_args").map(|setting| &setting.value) {
        // As one string: words, as in older files.
        Some(Value::Text(_)) => {
            let words = reader.text("bootloader_args")?.unwrap_or_default();
            words.split_whitespace().map(str::to_owned).collect()
        }
        _ => reader.specs("bootloader_args", |word| Ok(word.to_owned()))?,
    };
    let program = reader.text("bootloader")?.filter(|program| !program.is_empty());
    if program.is_none() && !args.is_empty() {
        let place = reader.place("bootloader_args");
        reader.notices.push(Notice::new(
            place,
            "`bootloader_args` has no effect without `bootloader`".to_owned(),
        ));
    }
    Ok(program.map(|program| Bootloader { program, args }))
}

/// GRUB as a PV kernel; what else there is, is an HVM domain's.
fn firmware(reader: &mut Reader, kind: DomainType) -> Result<Option<PathBuf>, Problem> {
    if kind != DomainType::Pv {
        return Ok(None);
    }
    let place = reader.place("firmware");
    match reader.text("firmware")?.as_deref() {
        None => Ok(None),
        Some("pvgrub64") => Ok(Some(PathBuf::from(PVGRUB))),
        Some("pvgrub32") => {
            Err(Problem::at(place, "there are no 32-bit PV domains").help("use firmware = \"pvgrub64\""))
        }
        Some(other) => Err(Problem::at(place, format!("\"{other}\" is no firmware of a PV domain"))
            .help("firmware = \"pvgrub64\", or a `kernel`")),
    }
}

fn passthrough(reader: &mut Reader, kind: DomainType) -> Result<Vec<(String, &'static str)>, Problem> {
    let place = reader.place("passthrough");
    match reader.text("passthrough")?.as_deref() {
        None | Some("default" | "disabled") => Ok(Vec::new()),
        Some("share_pt") if kind == DomainType::Pv => {
            Err(Problem::at(place, "\"share_pt\" is not for PV domains").help("disabled, enabled, sync_pt or default"))
        }
        Some("enabled" | "sync_pt" | "share_pt") => Ok(vec![("passthrough".to_owned(), NO_IOMMU)]),
        Some(other) => Err(Problem::at(place, format!("unknown passthrough \"{other}\""))
            .help("disabled, enabled, sync_pt or default")),
    }
}

fn action(reader: &mut Reader, key: &str, default: Action) -> Result<Action, Problem> {
    let place = reader.place(key);
    let Some(text) = reader.text(key)? else {
        return Ok(default);
    };
    // Underscores, as old files have them, are dashes.
    let wanted = text.replace('_', "-");
    Action::ALL
        .iter()
        .find(|(name, _)| *name == wanted)
        .map(|(_, action)| *action)
        .ok_or_else(|| {
            let names: Vec<_> = Action::ALL.iter().map(|(name, _)| *name).collect();
            Problem::at(place, format!("unknown action \"{text}\"")).help(names.join(", "))
        })
}

fn tsc_mode(reader: &mut Reader) -> Result<TscMode, Problem> {
    let place = reader.place("tsc_mode");
    let value = reader.take("tsc_mode").map(|setting| setting.value);
    Ok(match value {
        None => TscMode::Default,
        Some(Value::Number(0)) => TscMode::Default,
        Some(Value::Number(1)) => TscMode::AlwaysEmulate,
        Some(Value::Number(2)) => TscMode::Native,
        Some(Value::Text(text)) => match text.as_str() {
            "default" => TscMode::Default,
            "always_emulate" => TscMode::AlwaysEmulate,
            "native" => TscMode::Native,
            _ => {
                return Err(Problem::at(place, format!("unknown tsc_mode \"{text}\""))
                    .help("default, always_emulate or native"));
            }
        },
        Some(other) => return Err(Problem::at(place, format!("unknown tsc_mode, {}", other.kind()))),
    })
}

struct Reader {
    settings: Settings,
    notices: Vec<Notice>,
}

impl Reader {
    fn place(&self, key: &str) -> Option<Place> {
        self.settings.get(key).and_then(|setting| setting.place.clone())
    }

    fn complain(&self, key: &str, message: String) -> Problem {
        Problem::at(self.place(key), message)
    }

    fn take(&mut self, key: &str) -> Option<Setting> {
        let setting = self.settings.get_mut(key)?;
        // The entry stays, for its place in later messages.
        let value = std::mem::replace(&mut setting.value, Value::List(Vec::new()));
        Some(Setting {
            value,
            place: setting.place.clone(),
        })
    }

    fn text(&mut self, key: &str) -> Result<Option<String>, Problem> {
        match self.take(key) {
            None => Ok(None),
            Some(Setting {
                value: Value::Text(text),
                place,
            }) => {
                if text.contains('\0') {
                    return Err(Problem::at(place, format!("`{key}` holds a zero byte")));
                }
                Ok(Some(text))
            }
            Some(Setting {
                value: Value::Number(number),
                ..
            }) => Ok(Some(number.to_string())),
            Some(Setting { value, place }) => {
                Err(Problem::at(place, format!("`{key}` is a string, not {}", value.kind())))
            }
        }
    }

    fn signed(&mut self, key: &str) -> Result<Option<i64>, Problem> {
        match self.take(key) {
            None => Ok(None),
            Some(Setting {
                value: Value::Number(number),
                ..
            }) => Ok(Some(number)),
            Some(Setting {
                value: Value::Bool(truth),
                ..
            }) => Ok(Some(truth.into())),
            Some(Setting {
                value: Value::Text(text),
                place,
            }) => match text.trim().parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(Problem::at(place, format!("`{key}` is a number, not \"{text}\""))),
            },
            Some(Setting { value, place }) => {
                Err(Problem::at(place, format!("`{key}` is a number, not {}", value.kind())))
            }
        }
    }

    fn number(&mut self, key: &str, range: std::ops::RangeInclusive<u64>) -> Result<Option<u64>, Problem> {
        let Some(number) = self.signed(key)? else {
            return Ok(None);
        };
        match u64::try_from(number).ok().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.complain(
                key,
                format!("`{key}` is from {} to {}, not {number}", range.start(), range.end()),
            )),
        }
    }

    fn truth(&mut self, key: &str) -> Result<Option<bool>, Problem> {
        Ok(self.signed(key)?.map(|number| number != 0))
    }

    /// A list of specifications, or one alone.
    fn specs<T>(&mut self, key: &str, parse: impl Fn(&str) -> Result<T, SpecError>) -> Result<Vec<T>, Problem> {
        let Some(Setting { value, place }) = self.take(key) else {
            return Ok(Vec::new());
        };
        let items = match value {
            Value::List(items) => items,
            Value::Text(text) => vec![Value::Text(text)],
            other => return Err(Problem::at(place, format!("`{key}` is a list, not {}", other.kind()))),
        };
        let one = |item: &Value| match item {
            Value::Text(spec) => parse(spec).map_err(|error| {
                let place = place.clone().map(|place| {
                    if spec.is_empty() {
                        place
                    } else {
                        place.within(spec, error.range.clone())
                    }
                });
                Problem::at(place, format!("`{key}`: {}", error.message))
            }),
            other => Err(Problem::at(
                place.clone(),
                format!("`{key}` is a list of strings; here is {}", other.kind()),
            )),
        };
        let (read, problems): (Vec<_>, Vec<_>) = items.iter().map(one).partition(Result::is_ok);
        Problem::all(problems.into_iter().filter_map(Result::err).collect())?;
        Ok(read.into_iter().flatten().collect())
    }

    /// Says a word about every setting that nothing honours; a slip of a known one is a mistake.
    fn leftovers(mut self, mut config: DomainConfig) -> (DomainConfig, Vec<Notice>, Vec<Problem>) {
        let mut slips = Vec::new();
        for (key, setting) in std::mem::take(&mut self.settings) {
            let place = setting.place;
            match keys::fate(&key) {
                Some(Fate::Used) => {}
                Some(Fate::HardwareOnly) => {
                    if config.kind == DomainType::Pv {
                        self.notices
                            .push(Notice::new(place, format!("`{key}` has no effect on a PV domain")));
                    }
                    config.hardware.push((key, setting.value));
                }
                Some(Fate::Old) => self.notices.push(Notice::new(
                    place,
                    format!("`{key}` is of an older tool and has no effect"),
                )),
                Some(_) if setting.value.is_nothing() => {}
                Some(Fate::Idle(why)) => self
                    .notices
                    .push(Notice::new(place, format!("`{key}` has no effect: {why}"))),
                Some(Fate::Missing(why)) => {
                    let message = format!("`{key}` cannot be had: {why}; `xl create` will refuse it");
                    self.notices.push(Notice::new(place, message));
                    config.missing.push((key, why));
                }
                None if key.starts_with('_') || matches!(setting.value, Value::Other(_)) => {}
                None => match keys::nearest(&key) {
                    Some(near) => {
                        slips.push(Problem::at(place, format!("unknown setting `{key}`")).help(format!(
                            "did you mean `{near}`? (A name of your own may start with `_`.)"
                        )));
                    }
                    None => self
                        .notices
                        .push(Notice::new(place, format!("unknown setting `{key}` has no effect"))),
                },
            }
        }
        (config, self.notices, slips)
    }
}
