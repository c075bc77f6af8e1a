//! From the loader's hand to Domain 0's first instruction.

use crate::firmware::{self, Platform};
use crate::{console, cpu, dom0, entry, irq, memory, sched, time};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use ferroxen_loader::acpi;
use ferroxen_loader::memory_map::{Kind, MemoryMap, Region};
use ferroxen_loader::options::{self, ClockSource, Options, Reboot, Serial};
use ferroxen_machine::apic::ApicId;
use ferroxen_machine::ports::PciFunction;
use ferroxen_machine::uart::{Parity, Settings};
use ferroxen_machine::{GuestFrame, Handoff, MAX_CPUS, apic, heap, ioapic, pic, power, report, rtc, serial, smp, vga};
use ferroxen_words::{CpuId, Gsi, Maddr};

static COMMAND_LINE: spin::Once<String> = spin::Once::new();
static MEMORY_MAP: spin::Once<Box<MemoryMap>> = spin::Once::new();
static NO_REBOOT: core::sync::atomic::AtomicBool = core::sync::atomic::AtomicBool::new(false);

/// The hypervisor's own command line, without the file's name.
pub fn command_line() -> &'static str {
    COMMAND_LINE.get().map_or("", |line| line)
}

/// The host's memory map, in order.
pub fn memory_map() -> &'static [Region] {
    MEMORY_MAP.get().map_or(&[], |map| map.regions())
}

/// Brings the host up and runs Domain 0. Called once, by the first CPU.
pub fn start(handoff: Handoff) -> ! {
    cpu::init_this();
    let Handoff {
        mut boot,
        modules,
        command_line,
        loader_name,
        memory_map,
        acpi_root,
    } = handoff;
    let line = String::from_utf8_lossy(&command_line);
    let loader_name = String::from_utf8_lossy(&loader_name).into_owned();
    let mut remarks = Vec::new();
    let arguments = COMMAND_LINE.call_once(|| options::arguments(&line, &loader_name).into());
    let options = Options::parse(arguments, |remark| remarks.push(remark));
    start_console(&options);
    banner(&loader_name, arguments);
    for remark in remarks {
        crate::warn!("{remark}");
    }
    report::set_stay_down(options.noreboot);
    report::set_nmi_is_fatal(options.nmi_is_fatal);
    power::prefer_reset(match options.reboot {
        Reboot::Acpi => power::Reset::Firmware,
        Reboot::Keyboard => power::Reset::Keyboard,
        Reboot::Pci => power::Reset::Chipset,
        Reboot::TripleFault => power::Reset::TripleFault,
    });
    NO_REBOOT.store(options.noreboot, core::sync::atomic::Ordering::Relaxed);

    let map = MEMORY_MAP.call_once(|| {
        let mut map = Box::<MemoryMap>::default();
        if options.e820_verbose {
            for range in &memory_map {
                crate::info!(
                    "e820 as told: {:#x}, {:#x} bytes, type {}",
                    range.base.raw(),
                    range.bytes,
                    range.kind
                );
            }
        }
        let claims = memory_map.iter().map(|range| Region {
            start: range.base.raw(),
            end: range.base.raw().saturating_add(range.bytes),
            kind: Kind(range.kind),
        });
        let dropped = map.sanitise(claims);
        if dropped != 0 {
            crate::warn!("{dropped} ranges of the firmware's memory map were left out");
        }
        map
    });
    for region in map.regions() {
        crate::info!(
            "e820: {:#014x}-{:#014x} {}",
            region.start,
            region.end - 1,
            kind_name(region.kind)
        );
    }

    let platform = firmware::read(acpi_root.as_deref());
    // This one, and those that firmware names, with this one or without.
    let cpus = MAX_CPUS.min(platform.madt.cpus.len() + 1);
    sched::init(cpus);
    time::init(cpus);
    start_platform(platform, &options);

    let unpacked = dom0::unpack(&mut boot, modules, &loader_name).unwrap_or_else(|why| give_up(&why));
    memory::init(boot, &options);
    crate::info!(
        "memory: {} MiB free, heap {} KiB, {} KiB of it free",
        memory::free_pages() >> 8,
        heap::total_bytes() >> 10,
        heap::free_bytes() >> 10
    );

    start_cpus(platform, &options);
    irq::init_permissions(map.regions());
    ferroxen_x86emu::prepare();

    crate::info!("*** LOADING DOMAIN 0 ***");
    let domain = dom0::build(unpacked, &options).unwrap_or_else(|why| give_up(&why));
    console::input::announce();
    crate::info!(
        "heap: {} KiB free; {} MiB free for domains",
        heap::free_bytes() >> 10,
        memory::free_pages() >> 8
    );
    // Created paused, as by a controller.
    let _ = domain.unpause_by_controller();
    drop(domain);
    run_guests()
}

/// This CPU looks for a guest to run, for ever. The stack it came on is forgotten.
fn run_guests() -> ! {
    cpu::request(cpu::work::RESCHEDULE);
    let mut frame = GuestFrame::default();
    entry::before_return(crate::cpu::local(), &mut frame);
    ferroxen_machine::frame::enter(frame)
}

/// A further CPU joins. Called once on each.
pub fn secondary(_: CpuId) -> ! {
    cpu::init_this();
    apic::init_this_cpu();
    run_guests()
}

fn start_console(options: &Options<'_>) {
    if options.console.com1 || options.console.com2 {
        let (given, usual) = if options.console.com1 || !options.console.com2 {
            (&options.com1, Settings::COM1)
        } else {
            (&options.com2, Settings::COM2)
        };
        if !serial::init(settings(given, usual)) {
            // There is nowhere to say so but the screen and the ring.
            crate::warn!("console: no serial port at {:#x}", usual.base);
        }
    }
    if options.console.vga {
        vga::init();
    }
    console::configure(options);
    crate::hypercall::domctl::configure(options);
    crate::pv::policy::configure(options);
    crate::pv::levelling::configure(options);
    crate::hypercall::event_fifo::configure(options.fifo_events);
}

fn settings(given: &Serial, usual: Settings) -> Settings {
    Settings {
        baud: given.baud,
        data_bits: given.data_bits,
        parity: match given.parity {
            b'o' => Parity::Odd,
            b'e' => Parity::Even,
            b'm' => Parity::Mark,
            b's' => Parity::Space,
            _ => Parity::None,
        },
        stop_bits: given.stop_bits,
        base: given
            .base
            .and_then(|base| u16::try_from(base).ok())
            .unwrap_or(usual.base),
        irq: given.irq.and_then(|irq| u8::try_from(irq).ok()).unwrap_or(usual.irq),
    }
}

fn banner(loader_name: &str, arguments: &str) {
    use crate::hypercall::version::{EXTRAVERSION, VERSION};
    crate::info!(
        "Xen version {}.{}{} (Ferroxen {})",
        VERSION.0,
        VERSION.1,
        EXTRAVERSION,
        env!("CARGO_PKG_VERSION")
    );
    crate::info!(
        "Bootloader: {}",
        if loader_name.is_empty() { "unknown" } else { loader_name }
    );
    crate::info!("Command line: {arguments}");
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::RAM => "usable",
        Kind::ACPI => "ACPI tables",
        Kind::NVS => "ACPI NVS",
        Kind::UNUSABLE => "unusable",
        _ => "reserved",
    }
}

fn start_platform(platform: &Platform, options: &Options<'_>) {
    pic::silence();
    match apic::init(options.x2apic) {
        Some(shape) => crate::info!("local APIC: {shape:?}"),
        None => panic!("this machine has no local APIC"),
    }
    let controllers: Vec<ioapic::Described> = platform
        .madt
        .ioapics
        .iter()
        .map(|found| ioapic::Described {
            id: found.id,
            base: Maddr::new(found.address),
            first_gsi: Gsi::new(found.gsi_base),
        })
        .collect();
    if let Err(trouble) = ioapic::init(&controllers) {
        crate::warn!("IO-APIC: {trouble:?}");
    }
    power::init(firmware_of(platform));
    let may_use = |source| {
        options
            .clocksource
            .is_none_or(|only| only == source || only == ClockSource::Tsc)
    };
    let clocks = ferroxen_machine::time::Clocks {
        hpet: platform
            .hpet
            .filter(|_| options.hpet && may_use(ClockSource::Hpet))
            .map(|hpet| Maddr::new(hpet.address)),
        pm_timer: platform
            .fadt
            .filter(|_| may_use(ClockSource::Acpi))
            .and_then(|fadt| fadt.pm_timer?.port()),
    };
    match ferroxen_machine::time::init(clocks) {
        Some(reference) => crate::info!("clock: measured against {reference:?}"),
        None => panic!("no clock moves on this machine: no HPET, no PM timer, no 8254"),
    }
    irq::init(platform, options.sync_console);
}

fn firmware_of(platform: &Platform) -> power::Firmware {
    let Some(fadt) = platform.fadt.as_ref() else {
        return power::Firmware::default();
    };
    let port = |register: Option<acpi::Register>| register.and_then(|register| register.port());
    power::Firmware {
        reset: fadt.reset.and_then(|(register, value)| Some((place(register)?, value))),
        pm1a_control: port(fadt.pm1a_control),
        pm1b_control: port(fadt.pm1b_control),
        pm1a_status: port(fadt.pm1a_event),
        pm1b_status: port(fadt.pm1b_event),
    }
}

fn place(register: acpi::Register) -> Option<power::Register> {
    const MEMORY: u8 = 0;
    const PCI: u8 = 2;
    match register.space {
        MEMORY => Some(power::Register::Memory(Maddr::new(register.address))),
        // Bus 0: device in bits 32-47, function in 16-31, register in 0-15 (ACPI 5.2.3.2).
        PCI => Some(power::Register::Pci {
            function: PciFunction {
                bus: 0,
                devfn: ((register.address >> 32 << 3) | (register.address >> 16 & 7)) as u8,
            },
            offset: register.address as u8,
        }),
        _ => register.port().map(power::Register::Port),
    }
}

fn start_cpus(platform: &Platform, options: &Options<'_>) {
    let hz = ferroxen_machine::time::refine();
    crate::info!("clock: {}.{:03} MHz", hz / 1_000_000, hz / 1000 % 1000);
    let has_rtc = platform.fadt.is_none_or(|fadt| !fadt.lacks_rtc);
    let century = platform.fadt.and_then(|fadt| fadt.century);
    let seconds = if has_rtc { rtc::read_seconds(century) } else { None };
    match seconds {
        Some(seconds) => time::set_wallclock(seconds, 0, time::now()),
        None => crate::warn!("no clock keeps the date: it begins at 1970"),
    }
    let own = apic::id();
    let limit = options.maxcpus.unwrap_or(u32::MAX).max(1) as usize;
    let others: Vec<smp::ApicId> = platform
        .madt
        .cpus
        .iter()
        .filter(|found| found.is_enabled && ApicId(found.apic_id) != own)
        .map(|found| smp::ApicId(found.apic_id))
        .take(limit - 1)
        .collect();
    let started = smp::start_secondaries(&others);
    if (started as usize) < others.len() {
        crate::warn!(
            "{} of {} further CPUs did not come up",
            others.len() - started as usize,
            others.len()
        );
    }
    let ids: Vec<u32> = (0..=started).filter_map(|cpu| smp::apic_id_of(CpuId(cpu))).collect();
    crate::info!("CPUs: {} running, APIC ids {ids:?}", started + 1);
}

/// Ends a start that cannot go on, with a sentence.
fn give_up(why: &dyn core::fmt::Display) -> ! {
    crate::error!("{why}");
    crate::error!("cannot start; the machine stands still");
    power::halt()
}

/// Domain 0 stopped: so does the host.
pub fn dom0_shut_down(code: u8) {
    use crate::domain::{SHUTDOWN_CRASH, SHUTDOWN_POWEROFF, SHUTDOWN_REBOOT, SHUTDOWN_WATCHDOG};
    let stays = NO_REBOOT.load(core::sync::atomic::Ordering::Relaxed);
    match code {
        SHUTDOWN_POWEROFF => {
            crate::info!("Domain 0 halted: halting the machine");
            power::halt()
        }
        SHUTDOWN_REBOOT => {
            crate::info!("Domain 0 shut down: rebooting the machine");
            power::reboot()
        }
        SHUTDOWN_CRASH | SHUTDOWN_WATCHDOG if stays => {
            crate::error!("Domain 0 crashed: 'noreboot' is set, the machine stands still");
            power::halt()
        }
        SHUTDOWN_CRASH | SHUTDOWN_WATCHDOG => {
            crate::error!("Domain 0 crashed: rebooting the machine");
            power::reboot()
        }
        _ => crate::warn!("Domain 0 shut down for reason {code}"),
    }
}
