//! The hypervisor's command line, under Xen's own option names.
//!
//! Options are separated by blanks; behind ` -- ` begins text for Domain 0's kernel. `no-x` is `x=no`,
//! and `-` and `_` are the same in names. Sizes take `B`, `K`, `M`, `G`, `T` and mean KiB without one.
//!
//! Nothing is dropped in silence: [`Options::parse`] tells a callback about every option that is
//! unknown, malformed or upstream's but without effect here, and goes on. Upstream documents them in
//! docs/misc/xen-command-line.

use core::fmt;

/// A loader's command line without the file's name, which every loader but GRUB 2 puts in front.
///
/// This goes for our own command line and for each module's.
pub fn arguments<'t>(command_line: &'t str, loader: &str) -> &'t str {
    let text = command_line.trim_start();
    let is_grub2 = loader
        .strip_prefix("GRUB ")
        .is_some_and(|version| !version.starts_with('0'));
    if is_grub2 {
        text
    } else {
        text.split_once(char::is_whitespace)
            .map_or("", |(_, rest)| rest.trim_start())
    }
}

/// What became of an option that did not simply take effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Remark<'t> {
    /// Nobody knows it.
    Unknown(&'t str),
    /// Its value makes no sense; the default stays.
    BadValue(&'t str),
    /// Upstream has it; here it changes nothing.
    NoEffect(&'t str),
    /// It asks for what we will not do.
    Refused(&'t str, &'static str),
}

impl fmt::Display for Remark<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remark::Unknown(option) => write!(f, "unknown option \"{option}\""),
            Remark::BadValue(option) => write!(f, "option \"{option}\" has a bad value: ignored"),
            Remark::NoEffect(option) => write!(f, "option \"{option}\" has no effect here"),
            Remark::Refused(option, why) => write!(f, "option \"{option}\" refused: {why}"),
        }
    }
}

/// An amount of memory: bytes plus a share of what there is; below zero it is to be left free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Amount {
    /// Bytes.
    pub bytes: u64,
    /// Hundredths of all memory.
    pub percent: u32,
    /// The amount is what is left over for others.
    pub is_remainder: bool,
}

impl Amount {
    /// The amount in pages, of `available` pages.
    pub fn pages_of(&self, available: u64) -> u64 {
        let share = (u128::from(available) * u128::from(self.percent) / 100) as u64;
        let pages = (self.bytes / 4096).saturating_add(share);
        if self.is_remainder {
            available.saturating_sub(pages)
        } else {
            pages
        }
    }
}

/// `dom0_mem=`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Dom0Memory {
    /// What to start with.
    pub initial: Option<Amount>,
    /// Never start with less.
    pub min: Option<Amount>,
    /// Never give more.
    pub max: Option<Amount>,
}

impl Dom0Memory {
    /// Pages to start with and the ceiling for later, of `available` ones.
    ///
    /// Without an `initial`, a sixteenth of memory stays free for others, at most 128 MiB.
    pub fn pages(&self, available: u64) -> (u64, u64) {
        let spare = (available / 16).min(128 << 8);
        let pages = |amount: Option<Amount>, default| amount.map_or(default, |amount| amount.pages_of(available));
        let max = pages(self.max, u64::MAX);
        let initial = pages(self.initial, available - spare);
        let initial = initial.max(pages(self.min, 0)).min(max).min(available);
        (initial, max)
    }
}

/// `com1=`, `com2=`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Serial {
    /// Bits per second; `None` keeps what firmware set.
    pub baud: Option<u32>,
    /// The clock that the baud rate is divided from.
    pub clock_hz: Option<u32>,
    /// 5 to 8.
    pub data_bits: u8,
    /// `n`, `o`, `e`, `m` or `s`.
    pub parity: u8,
    /// 1 or 2.
    pub stop_bits: u8,
    /// First I/O port, or address of the registers.
    pub base: Option<u64>,
    /// Interrupt line; 0 polls.
    pub irq: Option<u32>,
}

impl Default for Serial {
    fn default() -> Self {
        Serial {
            baud: None,
            clock_hz: None,
            data_bits: 8,
            parity: b'n',
            stop_bits: 1,
            base: None,
            irq: None,
        }
    }
}

/// `console=`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Consoles {
    /// The text screen.
    pub vga: bool,
    /// First serial port.
    pub com1: bool,
    /// Second serial port.
    pub com2: bool,
}

/// How much is logged.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// Nothing.
    None,
    /// Something asked for did not happen.
    Error,
    /// Odd but harmless.
    Warning,
    /// Rare and worth knowing.
    Info,
    /// All there is.
    Debug,
}

impl Level {
    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
            Self::Debug => "all",
        }
    }
}

/// `loglvl=`, `guest_loglvl=`: up to `always` every line, up to `limited` at a limited rate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogLevel {
    /// Printed always.
    pub always: Level,
    /// Printed at a limited rate.
    pub limited: Level,
}

/// `console_timestamps=`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Timestamps {
    /// None.
    None,
    /// Seconds since the start.
    Boot,
    /// Date and time of day; since the start until that is known.
    Date,
    /// As `Date`, with milliseconds.
    DateMs,
    /// The time stamp counter.
    Raw,
}

/// `reboot=`: how to start the machine again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reboot {
    /// As firmware says, then whatever works.
    Acpi,
    /// By the keyboard controller first.
    Keyboard,
    /// By the chipset's reset register first.
    Pci,
    /// By a fault that nothing can handle.
    TripleFault,
}

/// `clocksource=`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClockSource {
    /// 8254.
    Pit,
    /// HPET.
    Hpet,
    /// ACPI's power management timer.
    Acpi,
    /// Time stamp counter.
    Tsc,
}

/// All options, typed.
#[derive(Clone, Debug)]
pub struct Options<'t> {
    /// `dom0_mem=`
    pub dom0_mem: Dom0Memory,
    /// `dom0_max_vcpus=`: least and most.
    pub dom0_max_vcpus: (u32, u32),
    /// `dom0_vcpus_pin`
    pub dom0_vcpus_pin: bool,
    /// `dom0=verbose`
    pub dom0_verbose: bool,
    /// `console=`
    pub console: Consoles,
    /// `com1=`
    pub com1: Serial,
    /// `com2=`
    pub com2: Serial,
    /// `vga=keep`: the screen stays ours when Domain 0 runs.
    pub vga_keep: bool,
    /// `loglvl=`
    pub loglvl: LogLevel,
    /// `guest_loglvl=`
    pub guest_loglvl: LogLevel,
    /// `console_timestamps=`
    pub console_timestamps: Timestamps,
    /// `pv=`: whether there are PV guests beside Domain 0.
    pub pv: bool,
    /// `fifo-events`, which is our own: whether guests that boot here may have queues of events.
    pub fifo_events: bool,
    /// `cpuid=`: words between commas, each of which takes a feature away from guests.
    pub cpuid: Option<&'t str>,
    /// `cpuid_mask_ecx=`, `edx`, `ext_ecx`, `ext_edx`, `l7s0_eax`, `l7s0_ebx`: the most that a processor with masks tells.
    pub cpuid_masks: [u32; 6],
    /// `console_to_ring`
    pub console_to_ring: bool,
    /// `conring_size=` in bytes, a power of two.
    pub conring_size: Option<u64>,
    /// `conswitch=`: the letter, and whether Domain 0 does not get the input at first.
    pub conswitch: (u8, bool),
    /// `sync_console`
    pub sync_console: bool,
    /// `noreboot`
    pub noreboot: bool,
    /// `nmi=`: an NMI from outside ends the host with a report.
    pub nmi_is_fatal: bool,
    /// `reboot=`
    pub reboot: Reboot,
    /// `maxcpus=`, 1 by `nosmp`.
    pub maxcpus: Option<u32>,
    /// `x2apic=`; `None` leaves the choice to us.
    pub x2apic: Option<bool>,
    /// `mem=`: end of the memory used, in bytes.
    pub mem: Option<u64>,
    /// `availmem=`: amount of memory used, in bytes.
    pub availmem: Option<u64>,
    /// `badpage=`: frames not to use, as told; see [`Options::bad_pages`].
    pub badpage: Option<&'t str>,
    /// `bootscrub`
    pub bootscrub: bool,
    /// `clocksource=`
    pub clocksource: Option<ClockSource>,
    /// `hpet`
    pub hpet: bool,
    /// `gnttab_max_frames=`
    pub gnttab_max_frames: Option<u32>,
    /// `gnttab_max_maptrack_frames=`
    pub gnttab_max_maptrack_frames: Option<u32>,
    /// `e820-verbose`
    pub e820_verbose: bool,
    /// What stands behind ` -- `: for Domain 0's kernel.
    pub kernel_extra: &'t str,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Options {
            dom0_mem: Dom0Memory::default(),
            dom0_max_vcpus: (1, u32::MAX),
            dom0_vcpus_pin: false,
            dom0_verbose: false,
            console: Consoles {
                vga: true,
                com1: true,
                com2: false,
            },
            com1: Serial::default(),
            com2: Serial::default(),
            vga_keep: false,
            loglvl: LogLevel {
                always: Level::Warning,
                limited: Level::Warning,
            },
            guest_loglvl: LogLevel {
                always: Level::None,
                limited: Level::Warning,
            },
            console_timestamps: Timestamps::None,
            pv: true,
            fifo_events: false,
            cpuid: None,
            cpuid_masks: [!0; 6],
            console_to_ring: false,
            conring_size: None,
            conswitch: (b'a', false),
            sync_console: false,
            noreboot: false,
            nmi_is_fatal: false,
            reboot: Reboot::Acpi,
            maxcpus: None,
            x2apic: None,
            mem: None,
            availmem: None,
            badpage: None,
            bootscrub: true,
            clocksource: None,
            hpet: true,
            gnttab_max_frames: None,
            gnttab_max_maptrack_frames: None,
            e820_verbose: false,
            kernel_extra: "",
        }
    }
}

impl<'t> Options<'t> {
    /// Reads a command line without the image's name ([`arguments`]).
    pub fn parse(command_line: &'t str, mut remark: impl FnMut(Remark<'t>)) -> Self {
        let mut options = Options::default();
        let (ours, extra) = match command_line.split_once(" -- ") {
            Some((ours, extra)) => (ours, extra.trim()),
            None => (command_line, ""),
        };
        options.kernel_extra = extra;
        for word in ours.split_ascii_whitespace() {
            if let Err(said) = options.take(word) {
                remark(said);
            }
        }
        options
    }

    /// Frame ranges of `badpage=`, first and last.
    pub fn bad_pages(&self) -> impl Iterator<Item = (u64, u64)> + use<'t> {
        self.badpage
            .into_iter()
            .flat_map(|list| list.split(','))
            .filter_map(|item| {
                let (first, last) = item.split_once('-').unwrap_or((item, item));
                Some((number(first)?, number(last)?)).filter(|(first, last)| first <= last)
            })
    }

    fn take(&mut self, word: &'t str) -> Result<(), Remark<'t>> {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (word, None),
        };
        let option = Given {
            word,
            value,
            positive: true,
        };
        if let Some(done) = self.set(name, &option) {
            return done;
        }
        // "no-x" and "nox" that is no name of its own.
        if let (Some(inner), None) = (name.strip_prefix("no-"), value)
            && let Some(done) = self.set(
                inner,
                &Given {
                    word,
                    value,
                    positive: false,
                },
            )
        {
            return done;
        }
        let plain = name.strip_prefix("no-").unwrap_or(name);
        let known = WITHOUT_EFFECT
            .iter()
            .any(|known| same_name(known, plain) || same_name(known, name));
        Err(if known {
            Remark::NoEffect(word)
        } else {
            Remark::Unknown(word)
        })
    }

    /// `None`: no such name.
    fn set(&mut self, name: &str, given: &Given<'t>) -> Option<Result<(), Remark<'t>>> {
        let is = |known: &str| same_name(known, name);
        Some(match () {
            _ if is("dom0_mem") => given.into(&mut self.dom0_mem, dom0_memory),
            _ if is("dom0_max_vcpus") => given.into(&mut self.dom0_max_vcpus, vcpu_range),
            _ if is("dom0_vcpus_pin") => given.switch(&mut self.dom0_vcpus_pin),
            _ if is("dom0") => self.set_dom0(given),
            _ if is("console") => given.into(&mut self.console, consoles),
            _ if is("com1") => given.into(&mut self.com1, serial),
            _ if is("com2") => given.into(&mut self.com2, serial),
            _ if is("vga") => self.set_vga(given),
            _ if is("loglvl") => given.into(&mut self.loglvl, log_level),
            _ if is("guest_loglvl") => given.into(&mut self.guest_loglvl, log_level),
            _ if is("console_timestamps") => given.into(&mut self.console_timestamps, timestamps),
            // Upstream's `pv=32=` is about a kind of guests that there is not.
            _ if is("pv") && given.value.is_none_or(|value| !value.starts_with("32")) => given.switch(&mut self.pv),
            _ if is("cpuid") => given.into(&mut self.cpuid, |text| Some(Some(text))),
            _ if is("fifo_events") => given.switch(&mut self.fifo_events),
            _ if is("console_to_ring") => given.switch(&mut self.console_to_ring),
            _ if is("conring_size") => given.into(&mut self.conring_size, |text| ring_size(text).map(Some)),
            _ if is("conswitch") => given.into(&mut self.conswitch, conswitch),
            _ if is("sync_console") => given.switch(&mut self.sync_console),
            _ if is("noreboot") => given.switch(&mut self.noreboot),
            _ if is("nmi") && given.value == Some("dom0") => {
                Err(Remark::Refused(given.word, "Domain 0 does not hear of NMIs"))
            }
            _ if is("nmi") => given.into(&mut self.nmi_is_fatal, nmi),
            _ if is("reboot") => self.set_reboot(given),
            _ if is("maxcpus") => given.into(&mut self.maxcpus, |text| number32(text).filter(|&n| n > 0).map(Some)),
            _ if is("nosmp") => {
                self.maxcpus = Some(1);
                Ok(())
            }
            _ if is("sched") => match given.value {
                Some("credit2") => Ok(()),
                _ => Err(Remark::Refused(
                    given.word,
                    "there is one scheduler; it answers as credit2",
                )),
            },
            _ if is("watchdog") => {
                let mut wanted = true;
                match given.value {
                    Some("force") => Ok(()),
                    _ => given.switch(&mut wanted),
                }
                .and(if wanted {
                    Err(Remark::Refused(given.word, "the host is not watched by NMI yet"))
                } else {
                    Ok(())
                })
            }
            _ if is("acpi") && given.value == Some("force") => Ok(()),
            _ if is("acpi") => {
                let mut wanted = true;
                given.switch(&mut wanted).and(if wanted {
                    Ok(())
                } else {
                    Err(Remark::Refused(
                        given.word,
                        "CPUs and interrupt lines are known from ACPI only",
                    ))
                })
            }
            _ if is("x2apic") => {
                let mut wanted = true;
                let done = given.switch(&mut wanted);
                if done.is_ok() {
                    self.x2apic = Some(wanted);
                }
                done
            }
            _ if is("mem") => given.into(&mut self.mem, |text| size(text).map(Some)),
            _ if is("availmem") => given.into(&mut self.availmem, |text| size(text).map(Some)),
            _ if is("badpage") => given.into(&mut self.badpage, |text| Some(Some(text))),
            _ if is("bootscrub") && given.value == Some("idle") => {
                self.bootscrub = true;
                Ok(())
            }
            _ if is("bootscrub") => given.switch(&mut self.bootscrub),
            _ if is("clocksource") => given.into(&mut self.clocksource, clock_source),
            _ if is("hpet") => given.switch(&mut self.hpet),
            _ if is("gnttab_max_frames") => given.into(&mut self.gnttab_max_frames, |text| number32(text).map(Some)),
            _ if is("gnttab_max_maptrack_frames") => {
                given.into(&mut self.gnttab_max_maptrack_frames, |text| number32(text).map(Some))
            }
            _ if is("e820-verbose") => given.switch(&mut self.e820_verbose),
            _ if is("noapic") || is("nolapic") || is("apic") && given.value == Some("off") => {
                Err(Remark::Refused(given.word, "interrupts and timers need the APICs"))
            }
            _ => {
                let at = CPUID_MASKS.iter().position(|mask| is(mask))?;
                given.into(&mut self.cpuid_masks[at], number32)
            }
        })
    }

    fn set_vga(&mut self, given: &Given<'t>) -> Result<(), Remark<'t>> {
        for item in given.value.ok_or(Remark::BadValue(given.word))?.split(',') {
            match item {
                "keep" => self.vga_keep = true,
                "current" | "text-80x25" => {}
                _ => return Err(Remark::Refused(given.word, "the screen stays in 80x25 text")),
            }
        }
        Ok(())
    }

    fn set_reboot(&mut self, given: &Given<'t>) -> Result<(), Remark<'t>> {
        for item in given.value.ok_or(Remark::BadValue(given.word))?.split(',') {
            match item.as_bytes().first() {
                Some(b'a') => self.reboot = Reboot::Acpi,
                Some(b'k') => self.reboot = Reboot::Keyboard,
                Some(b'p') => self.reboot = Reboot::Pci,
                Some(b't') => self.reboot = Reboot::TripleFault,
                Some(b'n') => self.noreboot = true,
                // Every start is a cold one.
                Some(b'c') => {}
                Some(b'b' | b'e' | b'w' | b'x') => {
                    return Err(Remark::Refused(given.word, "not a way we start the machine again"));
                }
                _ => return Err(Remark::BadValue(given.word)),
            }
        }
        Ok(())
    }

    fn set_dom0(&mut self, given: &Given<'t>) -> Result<(), Remark<'t>> {
        for item in given.value.ok_or(Remark::BadValue(given.word))?.split(',') {
            match item {
                "pv" => {}
                "pvh" => return Err(Remark::Refused(given.word, "Domain 0 runs as PV")),
                "shadow" => return Err(Remark::Refused(given.word, "there is no shadow paging")),
                "verbose" | "verbose=yes" | "verbose=1" => self.dom0_verbose = true,
                "no-verbose" | "verbose=no" | "verbose=0" => self.dom0_verbose = false,
                _ => return Err(Remark::BadValue(given.word)),
            }
        }
        Ok(())
    }
}

struct Given<'t> {
    word: &'t str,
    value: Option<&'t str>,
    positive: bool,
}

impl<'t> Given<'t> {
    fn into<T>(&self, target: &mut T, read: impl FnOnce(&'t str) -> Option<T>) -> Result<(), Remark<'t>> {
        let text = match (self.value, self.positive) {
            (Some(text), true) => text,
            (None, true) => "",
            (_, false) => "no",
        };
        *target = read(text).ok_or(Remark::BadValue(self.word))?;
        Ok(())
    }

    fn switch(&self, target: &mut bool) -> Result<(), Remark<'t>> {
        let value = self
            .value
            .map_or(Some(true), boolean)
            .ok_or(Remark::BadValue(self.word))?;
        *target = value == self.positive;
        Ok(())
    }
}

fn same_name(known: &str, given: &str) -> bool {
    let fold = |byte: u8| if byte == b'-' { b'_' } else { byte };
    known.bytes().map(fold).eq(given.bytes().map(fold))
}

/// Words for yes and no.
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "no" | "off" | "false" | "disable" | "0" => Some(false),
        "yes" | "on" | "true" | "enable" | "1" => Some(true),
        _ => None,
    }
}

/// Bytes: decimal or `0x`, with a unit, KiB without one.
pub fn size(text: &str) -> Option<u64> {
    let unit = |letter: u8| match letter.to_ascii_uppercase() {
        b'B' => Some(0),
        b'K' => Some(10),
        b'M' => Some(20),
        b'G' => Some(30),
        b'T' => Some(40),
        _ => None,
    };
    let (digits, shift) = match text
        .as_bytes()
        .last()
        .copied()
        .filter(|_| !text.starts_with("0x"))
        .and_then(unit)
    {
        Some(shift) => (&text[..text.len() - 1], shift),
        None => (text, 10),
    };
    number(digits)?.checked_mul(1 << shift)
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None if text.starts_with('+') => None,
        None => text.parse().ok(),
    }
}

fn number32(text: &str) -> Option<u32> {
    number(text)?.try_into().ok()
}

/// `size`, `-size`, `percent%`, `size+percent%`.
fn amount(text: &str) -> Option<Amount> {
    let (is_remainder, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (fixed, share) = match text.split_once('+') {
        Some((fixed, share)) => (Some(fixed), Some(share)),
        None if text.ends_with('%') => (None, Some(text)),
        None => (Some(text), None),
    };
    let bytes = fixed.map_or(Some(0), size)?;
    let percent = share.map_or(Some(0), |share| {
        number32(share.strip_suffix('%')?).filter(|&share| share <= 100)
    })?;
    Some(Amount {
        bytes,
        percent,
        is_remainder,
    })
}

fn dom0_memory(text: &str) -> Option<Dom0Memory> {
    let mut told = Dom0Memory::default();
    for item in text.split(',') {
        match item.split_once(':') {
            Some(("min", value)) => told.min = Some(amount(value)?),
            Some(("max", value)) => told.max = Some(amount(value)?),
            Some(_) => return None,
            None => told.initial = Some(amount(item)?),
        }
    }
    Some(told)
}

fn vcpu_range(text: &str) -> Option<(u32, u32)> {
    let (least, most) = match text.split_once('-') {
        Some(("", most)) => (1, number32(most)?),
        Some((least, "")) => (number32(least)?, u32::MAX),
        Some((least, most)) => (number32(least)?, number32(most)?),
        None => number32(text).map(|count| (count, count))?,
    };
    (least >= 1 && least <= most).then_some((least, most))
}

fn consoles(text: &str) -> Option<Consoles> {
    let mut consoles = Consoles {
        vga: false,
        com1: false,
        com2: false,
    };
    for item in text.split(',') {
        // "H" and "L" share a line between two users by the byte's top bit; we own the whole line.
        match item {
            "vga" => consoles.vga = true,
            "com1" | "com1H" | "com1L" => consoles.com1 = true,
            "com2" | "com2H" | "com2L" => consoles.com2 = true,
            "none" => {}
            _ => return None,
        }
    }
    Some(consoles)
}

fn serial(text: &str) -> Option<Serial> {
    let mut port = Serial::default();
    let mut parts = text.split(',');
    let speed = parts.next()?;
    let (baud, clock) = speed
        .split_once('/')
        .map_or((speed, None), |(baud, clock)| (baud, Some(clock)));
    port.baud = match baud {
        "" | "auto" => None,
        baud => Some(number32(baud).filter(|baud| (50..=4_000_000).contains(baud))?),
    };
    if let Some(clock) = clock {
        port.clock_hz = Some(number32(clock).filter(|&clock| clock > 0)?);
    }
    if let Some(format) = parts.next().filter(|format| !format.is_empty()) {
        let &[
            data @ b'5'..=b'8',
            parity @ (b'n' | b'o' | b'e' | b'm' | b's'),
            stop @ b'1'..=b'2',
        ] = format.as_bytes()
        else {
            return None;
        };
        (port.data_bits, port.parity, port.stop_bits) = (data - b'0', parity, stop - b'0');
    }
    if let Some(base) = parts.next().filter(|base| !base.is_empty()) {
        port.base = Some(number(base)?);
    }
    if let Some(irq) = parts.next().filter(|irq| !irq.is_empty()) {
        port.irq = Some(number32(irq)?);
    }
    parts.next().is_none().then_some(port)
}

fn level(text: &str) -> Option<Level> {
    match text {
        "none" => Some(Level::None),
        "error" => Some(Level::Error),
        "warning" => Some(Level::Warning),
        "info" => Some(Level::Info),
        "debug" | "all" => Some(Level::Debug),
        _ => None,
    }
}

/// Reads what follows `loglvl=`.
pub fn log_level(text: &str) -> Option<LogLevel> {
    let (always, limited) = text.split_once('/').unwrap_or((text, text));
    let (always, limited) = (level(always)?, level(limited)?);
    Some(LogLevel {
        always,
        limited: limited.max(always),
    })
}

/// Reads what follows `console_timestamps=`.
pub fn timestamps(text: &str) -> Option<Timestamps> {
    match text {
        "" | "date" => Some(Timestamps::Date),
        "datems" => Some(Timestamps::DateMs),
        "boot" => Some(Timestamps::Boot),
        "raw" => Some(Timestamps::Raw),
        "none" => Some(Timestamps::None),
        other => boolean(other).map(|on| if on { Timestamps::Date } else { Timestamps::None }),
    }
}

fn ring_size(text: &str) -> Option<u64> {
    let bytes = size(text)?;
    (4096..=1 << 28).contains(&bytes).then(|| 1 << bytes.ilog2())
}

/// Reads what follows `conswitch=`: the letter, and whether the line is ours at first.
pub fn conswitch(text: &str) -> Option<(u8, bool)> {
    match *text.as_bytes() {
        [letter @ b'a'..=b'z'] => Some((letter, false)),
        [letter @ b'a'..=b'z', b'x'] => Some((letter, true)),
        _ => None,
    }
}

fn clock_source(text: &str) -> Option<Option<ClockSource>> {
    match text {
        "pit" => Some(Some(ClockSource::Pit)),
        "hpet" => Some(Some(ClockSource::Hpet)),
        "acpi" => Some(Some(ClockSource::Acpi)),
        "tsc" => Some(Some(ClockSource::Tsc)),
        _ => None,
    }
}

/// Whether an NMI is fatal.
fn nmi(text: &str) -> Option<bool> {
    match text {
        "fatal" => Some(true),
        "ignore" => Some(false),
        _ => None,
    }
}

/// In the order of [`Options::cpuid_masks`].
const CPUID_MASKS: [&str; 6] = [
    "cpuid_mask_ecx",
    "cpuid_mask_edx",
    "cpuid_mask_ext_ecx",
    "cpuid_mask_ext_edx",
    "cpuid_mask_l7s0_eax",
    "cpuid_mask_l7s0_ebx",
];

/// Upstream's options on x86 that change nothing here.
#[rustfmt::skip]
const WITHOUT_EFFECT: &[&str] = &[
    "acpi_apic_instance", "acpi_pstate_strict", "acpi_skip_timer_override", "acpi_sleep", "allow_unsafe", "altp2m",
    "apic", "apic_verbosity", "apicv", "arat", "argo", "asid", "async-show-all", "ats", "bootscrub_chunk", "cet",
    "cmci-threshold", "cmos-rtc-probe", "core_parking", "cpu_type", "cpufreq", "cpuid_mask_cpu", "cpuidle",
    "cpuinfo", "crash-debug-all", "crash-debug-watchdog", "crashinfo_maxaddr", "crashkernel", "credit2_balance_over",
    "credit2_balance_under", "credit2_cap_period_ms", "credit2_load_precision_shift", "credit2_load_window_shift",
    "credit2_runqueue", "dbgp", "debug_stack_lines", "debugtrace", "dit", "dma_bits", "dom0-cpuid", "dom0-iommu",
    "dom0_ioports_disable", "dom0_nodes", "e820-mtrr-clip", "edd", "edid", "efi", "ept", "extra_guest_irqs", "flask",
    "font", "force-ept", "gdb", "gnttab", "global-pages", "hap", "hap_1gb", "hap_2mb", "hardware_dom", "hest_disable",
    "highmem-start", "hpetbroadcast", "hvm_debug", "hvm_fep", "hvm_port80", "idle_latency_factor", "ioapic_ack",
    "iommu", "invpcid", "irq-max-guests", "irq_ratelimit", "irq_vector_map", "ivmd", "ivrs_hpet", "ivrs_ioapic",
    "l1tf-barrier", "lapic", "lapic_timer_c2_ok", "ler", "low_crashinfo", "low_mem_virq_limit", "max_cstate",
    "max_gsi_irqs", "max_lpi_bits", "mce", "mce_fb", "mce_verbosity", "memop-max-order", "mmcfg", "mmio-relax", "msi",
    "mtrr.show", "mwait-idle", "noirqbalance", "nr_irqs", "numa", "pci", "pci-phantom", "pcid", "pku", "ple_gap",
    "ple_window", "probe-port-aliases", "psr", "pv", "pv-l1tf", "pv-linear-pt", "pv-shim", "rcu-idle-timer-period-ms",
    "real-mode", "rmrr", "ro-hpet", "sched-gran", "sched_credit2_max_cpus_runqueue", "sched_credit2_migrate_resist",
    "sched_credit_tslice_ms", "sched_ratelimit_us", "sched_smt_power_savings", "scrub-domheap", "serial_tx_buffer",
    "shim_mem", "smt", "smap", "smep", "snb_igd_quirk", "spec-ctrl", "tboot", "tbuf_size", "tdt", "tevt_mask", "tickle_one_idle_cpu",
    "timer_slop", "tsc", "tsx", "ucode", "unrestricted_guest", "vcpu_migration_delay", "vesa-ram", "vm-notify-window", "vpid",
    "viridian-spinlock-retry-count", "viridian-version", "vpmu", "watchdog_timeout", "x2apic-mode", "x2apic_phys", "xenheap_megabytes",
    "xpti", "xsave", "xsm", "no-real-mode",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_grub_2_leaves_the_name_of_the_file_out() {
        let line = " vmlinuz root=/dev/xvda1 quiet";
        assert_eq!(arguments(line, "qemu"), "root=/dev/xvda1 quiet");
        assert_eq!(arguments(line, "GNU GRUB 0.97"), "root=/dev/xvda1 quiet");
        assert_eq!(arguments(line, ""), "root=/dev/xvda1 quiet");
        assert_eq!(arguments("vmlinuz", "qemu"), "");
        assert_eq!(
            arguments("root=/dev/xvda1 quiet", "GRUB 2.06-13+deb12u1"),
            "root=/dev/xvda1 quiet"
        );
    }

    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn quiet(line: &str) -> Options<'_> {
        Options::parse(line, |remark| panic!("{remark}"))
    }

    fn remarks(line: &str) -> Vec<Remark<'_>> {
        let mut said = Vec::new();
        Options::parse(line, |remark| said.push(remark));
        said
    }

    #[test]
    fn a_line_from_the_field_is_understood() {
        let options = quiet(
            "dom0_mem=min:256M,max:1G,512M dom0_max_vcpus=1-4 console=com1,vga com1=115200,8n1,0x3f8,4 loglvl=all \
             guest_loglvl=error/info noreboot sync-console maxcpus=4 sched=credit2 no-watchdog no-x2apic vga=keep reboot=k conring_size=64k -- quiet",
        );
        assert_eq!(options.dom0_mem.pages(1 << 20), (512 << 8, 1 << 18));
        assert_eq!(options.dom0_max_vcpus, (1, 4));
        assert_eq!(
            options.console,
            Consoles {
                vga: true,
                com1: true,
                com2: false
            }
        );
        assert_eq!(options.com1.baud, Some(115_200));
        assert_eq!((options.com1.base, options.com1.irq), (Some(0x3f8), Some(4)));
        assert_eq!(options.loglvl.always, Level::Debug);
        assert_eq!(
            options.guest_loglvl,
            LogLevel {
                always: Level::Error,
                limited: Level::Info
            }
        );
        assert!(options.noreboot && options.sync_console);
        assert_eq!(
            (options.maxcpus, options.x2apic, options.vga_keep, options.reboot),
            (Some(4), Some(false), true, Reboot::Keyboard)
        );
        assert_eq!(options.conring_size, Some(65536));
        assert_eq!(options.kernel_extra, "quiet");
    }

    #[test]
    fn sizes_mean_kib_without_a_unit() {
        assert_eq!(
            (size("512"), size("512M"), size("0x10"), size("3b")),
            (Some(512 << 10), Some(512 << 20), Some(16 << 10), Some(3))
        );
        assert_eq!(
            (size(""), size("M"), size("99999999999T"), size("-1")),
            (None, None, None, None)
        );
    }

    #[test]
    fn amounts_may_be_shares_and_remainders() {
        let pages = |text| amount(text).unwrap().pages_of(1000);
        assert_eq!(
            (pages("25%"), pages("400k+10%"), pages("-400k"), pages("-8G")),
            (250, 200, 900, 0)
        );
        assert_eq!(amount("101%"), None);
    }

    #[test]
    fn without_dom0_mem_a_little_stays_free() {
        let (initial, max) = Dom0Memory::default().pages(1 << 16);
        assert_eq!((initial, max), ((1 << 16) - (1 << 12), u64::MAX));
        assert_eq!(Dom0Memory::default().pages(1 << 24).0, (1 << 24) - (128 << 8));
    }

    #[test]
    fn vcpu_ranges_may_be_open() {
        assert_eq!(
            (vcpu_range("2"), vcpu_range("2-"), vcpu_range("-2")),
            (Some((2, 2)), Some((2, u32::MAX)), Some((1, 2)))
        );
        assert_eq!(
            (vcpu_range("4-2"), vcpu_range("0"), vcpu_range("-")),
            (None, None, None)
        );
    }

    #[test]
    fn no_option_is_dropped_in_silence() {
        assert_eq!(remarks("frobnicate=1"), [Remark::Unknown("frobnicate=1")]);
        assert_eq!(remarks("com1=fast"), [Remark::BadValue("com1=fast")]);
        assert_eq!(
            remarks("spec-ctrl=no no-xpti"),
            [Remark::NoEffect("spec-ctrl=no"), Remark::NoEffect("no-xpti")]
        );
        for refused in [
            "noapic",
            "watchdog",
            "watchdog=force",
            "acpi=off",
            "sched=null",
            "vga=gfx-1024x768x32",
        ] {
            assert!(matches!(remarks(refused)[..], [Remark::Refused(word, _)] if word == refused));
        }
        assert!(matches!(remarks("dom0=pvh")[..], [Remark::Refused("dom0=pvh", _)]));
        assert_eq!(remarks(""), []);
    }

    #[test]
    fn bad_pages_come_as_ranges() {
        let pages: Vec<_> = quiet("badpage=0x3f45,0x8a321-0x8a32f").bad_pages().collect();
        assert_eq!(pages, [(0x3f45, 0x3f45), (0x8a321, 0x8a32f)]);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(line in "\\PC{0,200}", loader in "(GRUB |qemu)?\\PC{0,12}") {
            Options::parse(arguments(&line, &loader), |_| {});
        }

        #[test]
        fn any_line_is_survived(line in "([a-z0-9_-]{0,12}(=[a-zA-Z0-9,:%+/-]{0,12})? ?){0,8}", known in prop::sample::select(&["dom0_mem", "com1", "dom0_max_vcpus", "console", "conring_size", "loglvl"][..]), value in "[0-9a-zA-Z,:%+/x-]{0,16}") {
            Options::parse(&line, |_| {});
            let given = std::format!("{known}={value}");
            let options = Options::parse(&given, |_| {});
            options.dom0_mem.pages(u64::MAX >> 12);
        }
    }

    #[test]
    fn features_are_hidden_and_masked() {
        let options = quiet("cpuid=no-avx,rdrand=0 cpuid_mask_ext_ecx=0x1 cpuid_mask_l7s0_ebx=7");
        assert_eq!(options.cpuid, Some("no-avx,rdrand=0"));
        assert_eq!(options.cpuid_masks, [!0, !0, 1, !0, !0, 7]);
    }
}
