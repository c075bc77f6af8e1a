//! The clock that guests read without asking: parameters by which they turn the time stamp counter into
//! system time, and the wall-clock time at which system time began.
//!
//! The parameters are those of our own clock, which never change once Domain 0 runs, so that a guest and we
//! agree to the last nanosecond, and nothing has to be written when vcpus change CPUs.

use crate::domain::{Domain, VcpuRef};
use core::sync::atomic::{AtomicU64, Ordering};
use ferroxen_abi::xen::{VcpuTimeInfo, shared_info};
use ferroxen_machine::{cpu, guest, time};
use ferroxen_words::Vaddr;
use zerocopy::IntoBytes;

/// `XEN_PVCLOCK_TSC_STABLE_BIT`: all vcpus' clocks agree, so guests need not compare them.
const TSC_STABLE: u8 = 1 << 0;
const SECOND: u64 = 1_000_000_000;

fn parameters(version: u32) -> VcpuTimeInfo {
    let moment = time::moment();
    VcpuTimeInfo {
        version,
        tsc_timestamp: moment.tsc,
        system_time: moment.ns,
        tsc_to_system_mul: moment.scale.mul_frac,
        tsc_shift: moment.scale.shift,
        flags: if cpu::features().invariant_tsc { TSC_STABLE } else { 0 },
        ..VcpuTimeInfo::default()
    }
}

/// Writes a vcpu's clock parameters.
pub fn publish(vcpu: &VcpuRef) {
    if let Some(info) = vcpu.info() {
        info.set_time(parameters);
    }
    write_area(vcpu);
}

/// Writes the second copy that the guest asked for, into the address space that is loaded.
pub(super) fn write_area(vcpu: &VcpuRef) {
    let area = vcpu.time.area.load(Ordering::Relaxed);
    if area == 0 {
        return;
    }
    crate::sched::with_kernel_tables(vcpu, || {
        // Whether it can be written is the guest's business: nothing depends on it here.
        let _ = guest::copy_to_guest(Vaddr::new(area), parameters(2).as_bytes());
    });
}

/// Wall-clock time when system time was 0, in ns since 1970 (UTC).
static WALL_AT_BOOT_NS: AtomicU64 = AtomicU64::new(0);

fn wall_at_boot_ns() -> u64 {
    WALL_AT_BOOT_NS.load(Ordering::Relaxed)
}

/// Seconds since 1970 (UTC) now, and nanoseconds; from 1970 on if nobody has told the time.
pub fn date() -> (u64, u64) {
    let now = wall_at_boot_ns().saturating_add(time::now_ns());
    (now / SECOND, now % SECOND)
}

/// Domain 0 tells the time: `seconds` and `nanoseconds` since 1970 when system time was `system_ns`.
///
/// Every domain's wall clock follows.
pub fn set_wallclock(seconds: u64, nanoseconds: u32, system_ns: u64) {
    let wall = seconds.saturating_mul(SECOND).saturating_add(u64::from(nanoseconds));
    WALL_AT_BOOT_NS.store(wall.saturating_sub(system_ns), Ordering::Relaxed);
    for domain in crate::domain::list::all() {
        update_wallclock(&domain);
    }
}

/// Writes a domain's wall clock into its shared page.
pub fn update_wallclock(domain: &Domain) {
    let offset_seconds = domain.time_offset.load(Ordering::Relaxed);
    let wall = wall_at_boot_ns();
    let seconds = (wall / SECOND).wrapping_add(offset_seconds);
    let page = domain.shared_info;
    let version = page.load_u32_at(shared_info::WC_VERSION) | 1;
    page.store_u32_at(shared_info::WC_VERSION, version);
    page.store_u32_at(shared_info::WC_SEC, seconds as u32);
    page.store_u32_at(shared_info::WC_SEC_HI, (seconds >> 32) as u32);
    page.store_u32_at(shared_info::WC_NSEC, (wall % SECOND) as u32);
    page.store_u32_at(shared_info::WC_VERSION, version.wrapping_add(1));
}
