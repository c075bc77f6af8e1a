//! `mca`: machine checks, for Domain 0's logging daemon.
//!
//! A machine check that the hypervisor survives does not exist: the first one ends in a report on the console. So there
//! is never a record to fetch; what Domain 0 learns here is which CPUs there are.

use super::{Answer, Call, platform};
use crate::access;
use crate::guest::GuestPtr;
use ferroxen_abi::errno::Errno;
use ferroxen_abi::mca::{INTERFACE_VERSION, LogicalCpu, Mc, McCmd, MsrValue, Physcpuinfo, flags};
use ferroxen_access::Operation;
use ferroxen_machine::{cpu, smp};
use ferroxen_words::CpuId;
use ferroxen_x86policy::features::COMMON_1D;
use ferroxen_x86policy::msr::number;

/// `mca(request)`: `EPERM` for anyone but Domain 0, `EACCES` for another interface version, `EINVAL` for commands that
/// there are not; errors cannot be injected (`EOPNOTSUPP`).
pub fn mca(call: &mut Call<'_>) -> Answer {
    access::to_host(call.caller.domain(), Operation::ControlHost)?;
    let at = call.args()[0];
    let [command, version] = GuestPtr::<[u32; 2]>::new(at).read()?;
    if version != INTERFACE_VERSION {
        return Err(Errno::EACCES);
    }
    match McCmd(command) {
        McCmd::FETCH => fetch(GuestPtr::new(at))?,
        McCmd::PHYSCPUINFO => cpu_info(GuestPtr::new(at.checked_add(8).ok_or(Errno::EFAULT)?))?,
        McCmd::MSRINJECT | McCmd::MCEINJECT | McCmd::INJECT_V2 => return Err(Errno::EOPNOTSUPP),
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

fn fetch(at: GuestPtr<Mc>) -> Result<(), Errno> {
    let mut request = at.read()?;
    let asked = core::mem::take(&mut request.flags);
    match asked & (flags::URGENT | flags::NONURGENT) {
        flags::URGENT | flags::NONURGENT => {}
        _ => return Err(Errno::EINVAL),
    }
    if asked & flags::ACK == 0 {
        if request.data == 0 {
            return Err(Errno::EINVAL);
        }
        request.flags = flags::NODATA;
        request.fetch_id = 0;
    }
    at.write(&request)
}

fn cpu_info(at: GuestPtr<Physcpuinfo>) -> Result<(), Errno> {
    let mut request = at.read()?;
    let cpus = cpu::cpus_online();
    if request.info != 0 {
        if request.ncpus == 0 {
            return Err(Errno::EINVAL);
        }
        let list = GuestPtr::<LogicalCpu>::new(request.info);
        for number in 0..cpus.min(request.ncpus) {
            list.write_element(number.into(), &describe(CpuId(number)))?;
        }
        request.ncpus = cpus.min(request.ncpus);
    } else {
        request.ncpus = cpus;
    }
    at.write(&request)
}

/// One CPU. All of a host are alike, and each counts as a core of its own, as in the topology that `sysctl` tells.
fn describe(number: CpuId) -> LogicalCpu {
    let signature = platform::signature();
    let policy = &crate::pv::policy::of_host().host;
    let mut vendorid = [0; 16];
    vendorid[..12].copy_from_slice(&signature.vendor);
    let mut brandid = [0; 64];
    for (bytes, leaf) in brandid.chunks_exact_mut(16).zip(&policy.extended[2..=4]) {
        let words = [leaf.a, leaf.b, leaf.c, leaf.d].map(u32::to_le_bytes);
        bytes.copy_from_slice(words.as_flattened());
    }
    let [edx, ecx, extended_edx, extended_ecx, ..] = policy.feature_set().0;
    let mut msrvalues = [MsrValue::default(); 8];
    let capabilities = cpu::read_host_msr(number::MCG_CAP);
    msrvalues[0] = MsrValue {
        reg: number::MCG_CAP.into(),
        value: capabilities.unwrap_or(0),
    };
    LogicalCpu {
        cpunr: number.0,
        coreid: number.0 as u16,
        apicid: smp::apic_id_of(number).unwrap_or(u32::MAX),
        ncores: cpu::cpus_online(),
        ncores_active: cpu::cpus_online(),
        nthreads: 1,
        cpuid_level: policy.basic[0].a as i32,
        family: signature.family,
        vendor: if cpu::features().amd { 2 } else { 1 },
        model: signature.model,
        step: signature.stepping,
        vendorid,
        brandid,
        cpu_caps: [edx, ecx, extended_edx & !COMMON_1D, extended_ecx, 0, 0, 0],
        cache_size: (policy.extended[6].d >> 18) * 512,
        cache_alignment: (policy.basic[1].b >> 8 & 0xff) * 8,
        nmsrvals: i32::from(capabilities.is_some()),
        msrvalues,
        ..LogicalCpu::default()
    }
}
