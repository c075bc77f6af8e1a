//! `platform_op`: the machine as a whole, for Domain 0 alone.
//!
//! What upstream refuses on machines that lack something is refused here in the same words: there is no EFI to call,
//! no BIOS data that survived, no power management to be told about, no CPU to be plugged in.

use super::{Answer, Call};
use crate::access;
use crate::guest::GuestPtr;
use ferroxen_abi::errno::Errno;
use ferroxen_abi::platform::{self as abi, FirmwareType, PlatformCmd, PlatformOp};
use ferroxen_access::Operation;
use ferroxen_machine::power::{self, StaysAwake};
use ferroxen_machine::{cpu, smp, symbols, time};
use ferroxen_words::CpuId;

/// `platform_op(request)`: `EPERM` for anyone but Domain 0, `EACCES` for another interface version, `ENOSYS` for
/// commands that we do not know.
pub fn platform_op(call: &mut Call<'_>) -> Answer {
    access::to_host(call.caller.domain(), Operation::ControlHost)?;
    let at = GuestPtr::<PlatformOp>::new(call.args()[0]);
    let mut request = at.read()?;
    if request.interface_version != abi::PLATFORM_INTERFACE_VERSION {
        return Err(Errno::EACCES);
    }
    match run(&mut request)? {
        Reply::Done => {}
        Reply::Write => at.write(&request)?,
        Reply::Count(count) => return Ok(count),
    }
    Ok(0)
}

/// What is left to do after a command.
enum Reply {
    /// Nothing.
    Done,
    /// Our copy of the request goes back to the caller.
    Write,
    /// The hypercall returns a number.
    Count(u64),
}

fn run(request: &mut PlatformOp) -> Result<Reply, Errno> {
    match request.cmd {
        PlatformCmd::SETTIME32 => {
            let wanted: abi::Settime32 = request.payload();
            set_time(wanted.secs.into(), wanted.nsecs, wanted.system_time)
        }
        PlatformCmd::SETTIME64 => {
            let wanted: abi::Settime64 = request.payload();
            if wanted.mbz != 0 {
                return Err(Errno::EINVAL);
            }
            set_time(wanted.secs, wanted.nsecs, wanted.system_time)
        }
        PlatformCmd::READ_MEMTYPE => {
            let mut wanted: abi::ReadMemtype = request.payload();
            read_memory_type(&mut wanted)?;
            request.set_payload(&wanted);
            Ok(Reply::Write)
        }
        // The host's memory types are as firmware left them; nobody may change them under running guests.
        PlatformCmd::ADD_MEMTYPE | PlatformCmd::DEL_MEMTYPE => Err(Errno::EOPNOTSUPP),
        PlatformCmd::MICROCODE_UPDATE => Err(Errno::EINVAL),
        PlatformCmd::PLATFORM_QUIRK => quirk(request.payload::<abi::PlatformQuirk>().quirk_id),
        PlatformCmd::EFI_RUNTIME_CALL => Err(Errno::ENOSYS),
        PlatformCmd::FIRMWARE_INFO => Err(firmware_info(&request.payload())),
        PlatformCmd::ENTER_ACPI_SLEEP => enter_sleep(&request.payload()),
        // These two are for a Domain 0 that governs the frequency; none can.
        PlatformCmd::CHANGE_FREQ | PlatformCmd::GETIDLETIME => Err(Errno::ENOSYS),
        // As upstream with `cpufreq=none`: Linux's driver then keeps what it knows to itself.
        PlatformCmd::SET_PROCESSOR_PMINFO => Err(Errno::ENOSYS),
        PlatformCmd::GET_CPUINFO => {
            let mut wanted: abi::PcpuInfo = request.payload();
            cpu_info(&mut wanted);
            request.set_payload(&wanted);
            Ok(Reply::Write)
        }
        PlatformCmd::GET_CPU_VERSION => {
            let mut wanted: abi::PcpuVersion = request.payload();
            cpu_version(&mut wanted);
            request.set_payload(&wanted);
            Ok(Reply::Write)
        }
        // A CPU that runs is online already; others cannot be brought up, and none can be taken down.
        PlatformCmd::CPU_ONLINE => running(request.payload::<abi::CpuOl>().cpuid).map(|_| Reply::Done),
        PlatformCmd::CPU_OFFLINE => {
            running(request.payload::<abi::CpuOl>().cpuid)?;
            Err(Errno::EOPNOTSUPP)
        }
        PlatformCmd::CPU_HOTADD | PlatformCmd::MEM_HOTADD => Err(Errno::EOPNOTSUPP),
        PlatformCmd::CORE_PARKING => {
            const GET: u32 = 2;
            let mut wanted: abi::CoreParking = request.payload();
            if wanted.type_ != GET {
                return Err(if wanted.type_ == 1 {
                    Errno::EOPNOTSUPP
                } else {
                    Errno::EINVAL
                });
            }
            wanted.idle_nums = 0;
            request.set_payload(&wanted);
            Ok(Reply::Write)
        }
        PlatformCmd::RESOURCE_OP => resource_op(&request.payload()),
        PlatformCmd::GET_SYMBOL => {
            let mut wanted: abi::Symdata = request.payload();
            symbol(&mut wanted)?;
            request.set_payload(&wanted);
            Ok(Reply::Write)
        }
        _ => Err(Errno::ENOSYS),
    }
}

fn set_time(seconds: u64, nanoseconds: u32, system_ns: u64) -> Result<Reply, Errno> {
    crate::time::set_wallclock(seconds, nanoseconds, system_ns);
    Ok(Reply::Done)
}

/// `XENPF_read_memtype`: one variable-range MTRR.
fn read_memory_type(wanted: &mut abi::ReadMemtype) -> Result<(), Errno> {
    const CAPABILITIES: u32 = 0xfe;
    const FIRST_BASE: u32 = 0x200;
    const VALID: u64 = 1 << 11;
    let count = cpu::read_host_msr(CAPABILITIES).map_or(0, |capabilities| capabilities & 0xff);
    if u64::from(wanted.reg) >= count {
        return Err(Errno::EINVAL);
    }
    let msr = FIRST_BASE + wanted.reg * 2;
    let base = cpu::read_host_msr(msr).ok_or(Errno::EINVAL)?;
    let mask = cpu::read_host_msr(msr + 1).ok_or(Errno::EINVAL)?;
    (wanted.mfn, wanted.nr_mfns, wanted.type_) = (0, 0, 0);
    if mask & VALID != 0 {
        let frames = 1u64 << (cpu::features().physical_bits - 12);
        let mask = mask >> 12 & (frames - 1);
        wanted.mfn = base >> 12 & (frames - 1);
        wanted.nr_mfns = ((frames - 1) & !mask) + 1;
        wanted.type_ = (base & 0xff) as u32;
    }
    Ok(())
}

/// What a Domain 0 of long ago could say about its board; all of it is so anyway.
fn quirk(id: u32) -> Result<Reply, Errno> {
    const NO_IRQ_BALANCING: u32 = 1;
    const IOAPIC_BAD_REGSEL: u32 = 2;
    const IOAPIC_GOOD_REGSEL: u32 = 3;
    match id {
        // Lines go where their domains run and nowhere else; registers are selected before every access.
        NO_IRQ_BALANCING | IOAPIC_BAD_REGSEL | IOAPIC_GOOD_REGSEL => Ok(Reply::Done),
        _ => Err(Errno::EINVAL),
    }
}

/// What the BIOS said at boot is not kept: a multiboot loader has overwritten or hidden most of it.
fn firmware_info(wanted: &abi::FirmwareInfo) -> Errno {
    match wanted.type_ {
        FirmwareType::DISK_INFO
        | FirmwareType::DISK_MBR_SIGNATURE
        | FirmwareType::VBEDDC_INFO
        | FirmwareType::KBD_SHIFT_FLAGS => Errno::ESRCH,
        FirmwareType::EFI_INFO => Errno::ENOSYS,
        _ => Errno::EINVAL,
    }
}

/// `XENPF_enter_acpi_sleep`: Domain 0's ACPI code has prepared everything but the last write.
fn enter_sleep(wanted: &abi::EnterAcpiSleep) -> Result<Reply, Errno> {
    const OFF: u32 = 5;
    if wanted.flags & !abi::ACPI_SLEEP_EXTENDED != 0 || wanted.sleep_state == 0 || wanted.sleep_state > OFF {
        return Err(Errno::EINVAL);
    }
    if wanted.flags & abi::ACPI_SLEEP_EXTENDED != 0 {
        // Machines with reduced hardware have other registers.
        return Err(Errno::EPERM);
    }
    if (wanted.val_a ^ wanted.val_b) & power::SLEEP_ENABLE != 0 {
        return Err(Errno::EINVAL);
    }
    if wanted.sleep_state != OFF {
        // Sleep from which one wakes needs every device and CPU put away and brought back.
        return Err(Errno::EOPNOTSUPP);
    }
    crate::info!("Domain 0 switches the machine off");
    match power::sleep(wanted.val_a, wanted.val_b) {
        StaysAwake::NoRegister => Err(Errno::EPERM),
        StaysAwake::Ignored => {
            crate::error!("the machine ignored the order to switch off, and now stands still");
            power::halt()
        }
    }
}

fn running(number: u32) -> Result<CpuId, Errno> {
    if number < cpu::cpus_online() {
        Ok(CpuId(number))
    } else {
        Err(Errno::EINVAL)
    }
}

fn cpu_info(wanted: &mut abi::PcpuInfo) {
    wanted.max_present = cpu::cpus_online() - 1;
    let apic_id = running(wanted.xen_cpuid).ok().and_then(smp::apic_id_of);
    let Some(apic_id) = apic_id else {
        wanted.flags = abi::PCPU_FLAGS_INVALID;
        return;
    };
    let described = crate::firmware::platform()
        .madt
        .cpus
        .iter()
        .find(|described| described.apic_id == apic_id);
    wanted.flags = abi::PCPU_FLAGS_ONLINE;
    wanted.apic_id = apic_id;
    wanted.acpi_id = described.map_or(u32::MAX, |described| described.acpi_id);
}

/// What leaf 1 says of a processor, and who made it.
pub(super) struct Signature {
    /// As leaf 0 has it.
    pub vendor: [u8; 12],
    /// With the extended family added.
    pub family: u32,
    /// With the extended model in front.
    pub model: u32,
    /// Stepping.
    pub stepping: u32,
}

/// The signature of this host's processors, which are all alike.
pub(super) fn signature() -> Signature {
    let [_, b, c, d] = cpu::cpuid(0, 0);
    let mut vendor = [0; 12];
    vendor.copy_from_slice([b, d, c].map(u32::to_le_bytes).as_flattened());
    let [signature, ..] = cpu::cpuid(1, 0);
    let (family, model) = (signature >> 8 & 0xf, signature >> 4 & 0xf);
    let is_extended = family == 0xf;
    Signature {
        vendor,
        family: if is_extended {
            family + (signature >> 20 & 0xff)
        } else {
            family
        },
        model: if is_extended || family == 6 {
            model | signature >> 12 & 0xf0
        } else {
            model
        },
        stepping: signature & 0xf,
    }
}

fn cpu_version(wanted: &mut abi::PcpuVersion) {
    wanted.max_present = cpu::cpus_online() - 1;
    (wanted.vendor_id, wanted.family, wanted.model, wanted.stepping) = ([0; 12], 0, 0, 0);
    if running(wanted.xen_cpuid).is_ok() {
        let Signature {
            vendor,
            family,
            model,
            stepping,
        } = signature();
        (wanted.vendor_id, wanted.family, wanted.model, wanted.stepping) = (vendor, family, model, stepping);
    }
}

/// Whether the CPU has one of the registers of transactional memory and of its microcode's options that tools may read;
/// `None` for any other register.
fn has_option_register(register: u64) -> Option<bool> {
    const ARCH_CAPABILITIES: u32 = 0x10a;
    let features = || {
        if cpu::cpuid(0, 0)[0] >= 7 {
            cpu::cpuid(7, 0)[3]
        } else {
            0
        }
    };
    let capabilities = || {
        let are_told = features() >> 29 & 1 != 0;
        are_told
            .then(|| cpu::read_host_msr(ARCH_CAPABILITIES))
            .flatten()
            .unwrap_or(0)
    };
    match register {
        // TSX_FORCE_ABORT, TSX_CTRL, MCU_OPT_CTRL.
        0x10f => Some(features() >> 13 & 1 != 0),
        0x122 => Some(capabilities() >> 7 & 1 != 0),
        0x123 => Some(features() >> 9 & 1 != 0),
        _ => None,
    }
}

/// `XENPF_resource_op`: a few registers read in one go. The clock is offered, and options that the CPU has; everything else
/// is refused entry by entry, and the caller learns how many went well.
fn resource_op(wanted: &abi::ResourceOp) -> Result<Reply, Errno> {
    const MOST: u32 = 3;
    const READ: u32 = 0;
    const WRITE: u32 = 1;
    const TSC: u64 = 0x10;
    if wanted.nr_entries == 0 {
        return Ok(Reply::Count(0));
    }
    if wanted.nr_entries > MOST {
        return Err(Errno::EINVAL);
    }
    running(wanted.cpu).map_err(|_| Errno::ENODEV)?;
    let entries = GuestPtr::<abi::ResourceEntry>::new(wanted.entries);
    for index in 0..u64::from(wanted.nr_entries) {
        let mut entry = entries.read_element(index)?;
        let refused = match entry.cmd {
            READ | WRITE if entry.rsvd != 0 => Some(Errno::EINVAL),
            // System time stands in for the counter, and is the same on every CPU.
            READ if entry.idx == TSC => {
                entry.val = time::now_ns();
                None
            }
            READ => match has_option_register(entry.idx) {
                Some(true) => {
                    entry.val = cpu::read_host_msr(entry.idx as u32).unwrap_or(0);
                    None
                }
                Some(false) => Some(Errno::EPERM),
                None => Some(Errno::EACCES),
            },
            WRITE => Some(Errno::EPERM),
            _ => Some(Errno::EOPNOTSUPP),
        };
        if let Some(why) = refused {
            entry.cmd = why.to_return() as u32;
        }
        entries.write_element(index, &entry)?;
        if refused.is_some() {
            return Ok(Reply::Count(index));
        }
    }
    Ok(Reply::Count(wanted.nr_entries.into()))
}

/// `XENPF_get_symbol`: one of our functions by number; the next number goes back, or the same at the end.
fn symbol(wanted: &mut abi::Symdata) -> Result<(), Errno> {
    let Some((name, address)) = symbols::by_number(wanted.symnum) else {
        // The end, by giving back the same number; behind it is nothing.
        if wanted.symnum != 0 && symbols::by_number(wanted.symnum - 1).is_none() {
            return Err(Errno::ERANGE);
        }
        wanted.namelen = 0;
        return Ok(());
    };
    let room = wanted.namelen as usize;
    let bytes = name.as_str().as_bytes();
    let at = GuestPtr::<u8>::new(wanted.name);
    let copied = bytes.len().min(room);
    at.write_slice(&bytes[..copied])?;
    if copied < room {
        at.write_element(copied as u64, &0)?;
    }
    wanted.namelen = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    wanted.address = address;
    wanted.type_ = b't';
    wanted.symnum += 1;
    Ok(())
}
