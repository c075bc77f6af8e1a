//! Which of the processor's features and registers a domain may see.
//!
//! A [`Policy`] is all that CPUID says to a domain; [`policy`] derives a host's policies from one another, [`serial`]
//! is how tools read and set them, and [`cpuid`] adds what depends on the vcpu that asks. A table ([`msr`]) says
//! for each model-specific register where its value comes from. Nothing here executes CPUID.
//!
//! Always true:
//! 1. A feature is shown only if the host has it, or if it only says how to read the rest.
//! 2. A policy never has a feature without the features that it stands on.
//! 3. Leaves beyond the ones we know are zero.
//!
//! Guests see the hypervisor's own leaves as `arch-x86/cpuid.h` lays them out; upstream: xen/arch/x86/cpu-policy.c.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod features;
pub mod levelling;
pub mod msr;
pub mod policy;
pub mod serial;

pub use policy::{HostCpuid, Leaf, Misfit, Policy};
pub use serial::{NoSuchPlace, Record};

use policy::{BASIC, EXTENDED, EXTENDED_BASE, STATES_LEAF};

/// What depends on the vcpu that asks.
#[derive(Clone, Copy, Debug)]
pub struct Asking {
    /// It has CR4.OSXSAVE, or is a kernel that asks through the prefix on a host where XSAVE is on: PV kernels of
    /// ten years have relied on that (`arch-x86/cpuid.h` is silent; stock Xen's sources explain it at length).
    pub osxsave: bool,
    /// It is Domain 0's kernel, to whom MTRR stands for the hypercalls about memory types.
    pub is_dom0_kernel: bool,
    /// Bits of a machine address on this host.
    pub machine_bits: u32,
    /// How the domain's time stamp counter runs.
    pub tsc: Tsc,
}

/// The time stamp counter, as leaf 0x40000003 tells it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tsc {
    /// Whether the counter runs alike on all CPUs for ever.
    pub is_safe: bool,
    /// Whether the host has RDTSCP.
    pub has_rdtscp: bool,
    /// `TSC_MODE_*`
    pub mode: u32,
    /// The domain's frequency in kHz; 0 for Domain 0.
    pub khz: u32,
    /// The host's frequency in kHz.
    pub host_khz: u32,
    /// How often the domain has moved.
    pub incarnation: u32,
    /// Nanoseconds to be taken off the counter's time.
    pub offset_ns: u64,
    /// `tsc_to_system_mul`, of the domain's frequency.
    pub mul: u32,
    /// `tsc_shift`
    pub shift: i8,
}

/// First of the hypervisor's leaves.
pub const HYPERVISOR_LEAF: u32 = 0x4000_0000;
/// How many of them there are, less one.
const HYPERVISOR_LEAVES: u32 = 5;

const OSXSAVE: u32 = 1 << 27;
const MTRR: u32 = 1 << 12;

/// What a PV guest's CPUID gives. `live` is the processor as it is just now, with the guest's XCR0.
pub fn cpuid(policy: &Policy, live: &impl HostCpuid, asking: &Asking, leaf: u32, subleaf: u32) -> Leaf {
    let last_basic = policy.basic[0].a.min(BASIC as u32 - 1);
    let last_extended = (policy.extended[0].a & 0xffff).min(EXTENDED as u32 - 1);
    match leaf {
        HYPERVISOR_LEAF..=0x4000_00ff => hypervisor(policy, asking, leaf - HYPERVISOR_LEAF, subleaf),
        _ if leaf <= last_basic => basic(policy, live, asking, leaf, subleaf),
        _ if leaf >= EXTENDED_BASE && leaf - EXTENDED_BASE <= last_extended => {
            let mut says = policy.extended[(leaf - EXTENDED_BASE) as usize];
            if leaf == EXTENDED_BASE + 1 {
                says.d |= mtrr(live, asking);
            }
            says
        }
        _ => Leaf::default(),
    }
}

fn basic(policy: &Policy, live: &impl HostCpuid, asking: &Asking, leaf: u32, subleaf: u32) -> Leaf {
    let of = |slots: &[Leaf]| slots.get(subleaf as usize).copied().unwrap_or_default();
    match leaf {
        1 => {
            let mut says = policy.basic[1];
            if asking.osxsave {
                says.c |= OSXSAVE;
            }
            says.d |= mtrr(live, asking);
            says
        }
        4 => of(&policy.caches),
        7 if subleaf <= policy.features[0].a => of(&policy.features),
        7 => Leaf::default(),
        0xb => of(&policy.topology),
        STATES_LEAF => {
            let mut says = of(&policy.states);
            let depends_on_xcr0 = match subleaf {
                0 => policy.has(features::XSAVE),
                1 => policy.has(features::XSAVEC),
                _ => false,
            };
            if depends_on_xcr0 {
                says.b = live.cpuid(STATES_LEAF, subleaf)[1];
            }
            says
        }
        _ => policy.basic[leaf as usize],
    }
}

fn mtrr(live: &impl HostCpuid, asking: &Asking) -> u32 {
    if asking.is_dom0_kernel {
        live.cpuid(1, 0)[3] & MTRR
    } else {
        0
    }
}

fn hypervisor(policy: &Policy, asking: &Asking, index: u32, subleaf: u32) -> Leaf {
    let last = match policy.hypervisor_limit & 0xff {
        0 | 1 => HYPERVISOR_LEAVES,
        limit => limit.min(HYPERVISOR_LEAVES),
    };
    if index > last {
        return Leaf::default();
    }
    let tsc = &asking.tsc;
    Leaf::new(match index {
        0 => [HYPERVISOR_LEAF + last, word(b"XenV"), word(b"MMXe"), word(b"nVMM")],
        1 => [4 << 16 | 17, 0, 0, 0],
        // One hypercall page; its register; MMU_PT_UPDATE_PRESERVE_AD.
        2 => [1, HYPERVISOR_LEAF, 1, 0],
        3 => match subleaf {
            // Bit 0 would say that it is emulated.
            0 => {
                let flags = u32::from(tsc.is_safe) << 1 | u32::from(tsc.has_rdtscp) << 2;
                [flags, tsc.mode, tsc.khz, tsc.incarnation]
            }
            1 => [
                tsc.offset_ns as u32,
                (tsc.offset_ns >> 32) as u32,
                tsc.mul,
                tsc.shift as i32 as u32,
            ],
            2 => [tsc.host_khz, 0, 0, 0],
            _ => [0; 4],
        },
        5 if subleaf == 0 => [0, asking.machine_bits & 0xff, 0, 0],
        _ => [0; 4],
    })
}

const fn word(text: &[u8; 4]) -> u32 {
    u32::from_le_bytes(*text)
}

#[cfg(test)]
mod tests;
