//! Which of the processor's features and registers a domain may see.
//!
//! A pure function from the host's CPUID leaves and a domain's kind to what the domain is told; and a table
//! that says for each model-specific register where its value comes from. Nothing here executes CPUID.
//!
//! Always true:
//! 1. A feature bit is shown only if the host has it and a PV guest can use it without our help.
//! 2. Leaves beyond the ones we know are zero.
//!
//! Guests see the hypervisor's own leaves as `arch-x86/cpuid.h` lays them out.
#![no_std]
#![forbid(unsafe_code)]

pub mod msr;

/// Asks the host's processor: `(leaf, subleaf)` to `[eax, ebx, ecx, edx]`.
pub trait HostCpuid {
    /// What the processor answers.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4];
}

/// What the leaves depend on beside the host.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// The asking vcpu's number.
    pub vcpu: u32,
    /// How many vcpus the domain has.
    pub vcpus: u32,
    /// Whether the guest has switched XSAVE on (CR4.OSXSAVE), or asks as its kernel.
    pub osxsave: bool,
    /// States that XSAVE may handle; 0: no XSAVE for guests.
    pub xcr0: u64,
    /// Whether guests may use RDFSBASE and its like (the hypervisor has switched them on).
    pub fsgsbase: bool,
    /// Bits of a machine address.
    pub machine_bits: u8,
    /// Clock parameters: time stamp counter in kHz, multiplier and shift of `vcpu_time_info`.
    pub tsc: Tsc,
}

/// The time stamp counter, as leaf 0x40000003 tells it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tsc {
    /// Frequency in kHz.
    pub khz: u32,
    /// `tsc_to_system_mul`.
    pub mul: u32,
    /// `tsc_shift`.
    pub shift: i8,
}

/// First of the hypervisor's leaves.
pub const HYPERVISOR_LEAF: u32 = 0x4000_0000;
/// How many of them there are, less one.
const HYPERVISOR_LEAVES: u32 = 5;
/// The last basic leaf that we show.
const MAX_BASIC: u32 = 0xd;
/// The last extended leaf that we show.
const MAX_EXTENDED: u32 = 0x8000_0008;

const fn bits(list: &[u32]) -> u32 {
    let (mut mask, mut index) = (0, 0);
    while index < list.len() {
        mask |= 1 << list[index];
        index += 1;
    }
    mask
}

/// Leaf 1, edx: all but VME, PSE, MTRR, PGE, PSE36 and what watches the processor. HTT is set by hand.
const LEAF1_EDX: u32 = bits(&[0, 2, 4, 5, 6, 7, 8, 9, 11, 14, 15, 16, 19, 22, 23, 24, 25, 26, 27]);
/// Leaf 1, ecx: SSE3, PCLMUL, SSSE3, FMA, CX16, SSE4.1, SSE4.2, MOVBE, POPCNT, AES, XSAVE, AVX, F16C, RDRAND.
const LEAF1_ECX: u32 = bits(&[0, 1, 9, 12, 13, 19, 20, 22, 23, 25, 26, 28, 29, 30]);
/// Leaf 1, ecx: what goes away when there is no XSAVE.
const LEAF1_ECX_NEEDS_XSAVE: u32 = bits(&[12, 26, 28, 29]);
const OSXSAVE: u32 = 1 << 27;
const HYPERVISOR: u32 = 1 << 31;
const HTT: u32 = 1 << 28;
/// Leaf 7, ebx: FSGSBASE, BMI1, AVX2, BMI2, ERMS, RDSEED, ADX, CLFLUSHOPT, CLWB, SHA and AVX-512.
const LEAF7_EBX: u32 = bits(&[0, 3, 5, 8, 9, 16, 17, 18, 19, 21, 23, 24, 28, 29, 30, 31]);
const LEAF7_EBX_NEEDS_XSAVE: u32 = bits(&[5, 16, 17, 21, 28, 30, 31]);
const FSGSBASE: u32 = 1 << 0;
/// Leaf 7, ecx: AVX512-VBMI, VBMI2, GFNI, VAES, VPCLMUL, VNNI, BITALG, VPOPCNTDQ. Not RDPID: see [`LEAFE1_EDX`].
const LEAF7_ECX: u32 = bits(&[1, 6, 8, 9, 10, 11, 12, 14]);
const LEAF7_ECX_NEEDS_XSAVE: u32 = bits(&[1, 6, 9, 10, 11, 12, 14]);
/// Leaf 7, edx: AVX512-4VNNIW, 4FMAPS, FSRM, SERIALIZE. What steers speculation needs registers that we do not
/// give to guests.
const LEAF7_EDX: u32 = bits(&[2, 3, 4, 14]);
const LEAF7_EDX_NEEDS_XSAVE: u32 = bits(&[2, 3]);
/// Leaf 7 subleaf 1, eax: AVX-VNNI, AVX512-BF16, and the short and empty string moves.
const LEAF7_1_EAX: u32 = bits(&[4, 5, 10, 11, 12]);
const LEAF7_1_EAX_NEEDS_XSAVE: u32 = bits(&[4, 5]);
/// Leaf 0xd subleaf 1, eax: XSAVEOPT and XSAVEC.
const LEAFD1_EAX: u32 = bits(&[0, 1]);
/// Leaf 0x80000001, edx: the copies of leaf 1 that AMD gives, SYSCALL, NX, MMXEXT, FFXSR, LM, 3DNOW.
///
/// RDTSCP and RDPID stay hidden for as long as their register (TSC_AUX) is not switched with the vcpu: a kernel that
/// sees one of them writes it.
const LEAFE1_EDX: u32 = bits(&[0, 2, 4, 5, 6, 7, 8, 9, 11, 14, 15, 16, 20, 22, 23, 24, 25, 29, 30, 31]);
/// Leaf 0x80000001, ecx: LAHF, CMP_LEGACY, ABM, SSE4A, misaligned SSE, PREFETCHW, XOP, FMA4, TBM.
const LEAFE1_ECX: u32 = bits(&[0, 1, 5, 6, 7, 8, 11, 16, 21]);
const LEAFE1_ECX_NEEDS_XSAVE: u32 = bits(&[11, 16]);
/// Leaf 0x80000007, edx: invariant TSC.
const LEAFE7_EDX: u32 = 1 << 8;
/// Leaf 0x80000008, ebx: CLZERO and RSTR_FP_ERR_PTRS.
const LEAFE8_EBX: u32 = bits(&[0, 2]);

/// What a PV guest is told.
pub fn pv_cpuid(host: &impl HostCpuid, view: &View, leaf: u32, subleaf: u32) -> [u32; 4] {
    match leaf {
        0..=MAX_BASIC => basic(host, view, leaf, subleaf),
        HYPERVISOR_LEAF..=0x4000_00ff => hypervisor(view, leaf - HYPERVISOR_LEAF, subleaf),
        0x8000_0000..=MAX_EXTENDED => extended(host, view, leaf),
        _ => [0; 4],
    }
}

fn basic(host: &impl HostCpuid, view: &View, leaf: u32, subleaf: u32) -> [u32; 4] {
    let [host_max, vendor @ ..] = host.cpuid(0, 0);
    let max = host_max.min(MAX_BASIC);
    if leaf > max {
        return [0; 4];
    }
    let without_xsave = |mask: u32| if view.xcr0 == 0 { mask } else { 0 };
    let [a, b, c, d] = host.cpuid(leaf, subleaf);
    match leaf {
        0 => [max, vendor[0], vendor[1], vendor[2]],
        1 => {
            // Two APIC ids a vcpu, as stock Xen numbers them.
            let apic_id = (view.vcpu * 2) & 0xff;
            let logical = view.vcpus.saturating_mul(2).clamp(1, 255);
            let mut ecx = c & LEAF1_ECX & !without_xsave(LEAF1_ECX_NEEDS_XSAVE) | HYPERVISOR;
            if view.osxsave && ecx & 1 << 26 != 0 {
                ecx |= OSXSAVE;
            }
            [
                a,
                b & 0xff00 | b & 0xff | logical << 16 | apic_id << 24,
                ecx,
                d & LEAF1_EDX | HTT,
            ]
        }
        // Caches: as the host has them, but shared with nobody.
        2 => [a, b, c, d],
        4 => [a & 0x3fff, b, c, d],
        7 if subleaf == 0 => {
            let mut ebx = b & LEAF7_EBX & !without_xsave(LEAF7_EBX_NEEDS_XSAVE);
            if !view.fsgsbase {
                ebx &= !FSGSBASE;
            }
            let ecx = c & LEAF7_ECX & !without_xsave(LEAF7_ECX_NEEDS_XSAVE);
            let edx = d & LEAF7_EDX & !without_xsave(LEAF7_EDX_NEEDS_XSAVE);
            [a.min(1), ebx, ecx, edx]
        }
        7 if subleaf == 1 && host.cpuid(7, 0)[0] >= 1 => {
            [a & LEAF7_1_EAX & !without_xsave(LEAF7_1_EAX_NEEDS_XSAVE), 0, 0, 0]
        }
        0xd if view.xcr0 != 0 => xsave(host, view, subleaf, [a, b, c, d]),
        _ => [0; 4],
    }
}

fn xsave(host: &impl HostCpuid, view: &View, subleaf: u32, [a, b, c, _]: [u32; 4]) -> [u32; 4] {
    match subleaf {
        0 => {
            // The area's size: the end of the last state that may be handled, and at least the header's.
            let size = (2..63)
                .filter(|state| view.xcr0 >> state & 1 != 0)
                .fold(576, |size: u32, state| {
                    let [bytes, offset, ..] = host.cpuid(0xd, state);
                    size.max(offset.saturating_add(bytes))
                });
            [view.xcr0 as u32, size, size, (view.xcr0 >> 32) as u32]
        }
        1 => [a & LEAFD1_EAX, if a & 2 != 0 { b } else { 0 }, 0, 0],
        2..63 if view.xcr0 >> subleaf & 1 != 0 => [a, b, c & 2, 0],
        _ => [0; 4],
    }
}

fn extended(host: &impl HostCpuid, view: &View, leaf: u32) -> [u32; 4] {
    let [host_max, ..] = host.cpuid(0x8000_0000, 0);
    let max = host_max.min(MAX_EXTENDED);
    if leaf > max {
        return [0; 4];
    }
    let [a, b, c, d] = host.cpuid(leaf, 0);
    match leaf {
        0x8000_0000 => [max, b, c, d],
        0x8000_0001 => {
            let ecx = if view.xcr0 == 0 { c & !LEAFE1_ECX_NEEDS_XSAVE } else { c };
            [a, b, ecx & LEAFE1_ECX, d & LEAFE1_EDX]
        }
        0x8000_0002..=0x8000_0006 => [a, b, c, d],
        0x8000_0007 => [0, 0, 0, d & LEAFE7_EDX],
        0x8000_0008 => [a & 0xffff, b & LEAFE8_EBX, 0, 0],
        _ => [0; 4],
    }
}

fn hypervisor(view: &View, index: u32, subleaf: u32) -> [u32; 4] {
    match index {
        0 => [
            HYPERVISOR_LEAF + HYPERVISOR_LEAVES,
            word(b"XenV"),
            word(b"MMXe"),
            word(b"nVMM"),
        ],
        1 => [4 << 16 | 17, 0, 0, 0],
        // One hypercall page; its register; MMU_PT_UPDATE_PRESERVE_AD.
        2 => [1, HYPERVISOR_LEAF, 1, 0],
        3 => match subleaf {
            // Not emulated, the same for ever, never reset.
            0 => [0, 2, view.tsc.khz, 0],
            1 => [0, 0, view.tsc.mul, view.tsc.shift as u8 as u32],
            2 => [view.tsc.khz, 0, 0, 0],
            _ => [0; 4],
        },
        5 => [0, u32::from(view.machine_bits), 0, 0],
        _ => [0; 4],
    }
}

const fn word(text: &[u8; 4]) -> u32 {
    u32::from_le_bytes(*text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A host that has everything.
    struct Full;
    impl HostCpuid for Full {
        fn cpuid(&self, leaf: u32, _: u32) -> [u32; 4] {
            match leaf {
                0 => [0x20, word(b"Auth"), word(b"cAMD"), word(b"enti")],
                0x8000_0000 => [0x8000_0020, 0, 0, 0],
                _ => [!0; 4],
            }
        }
    }

    const VIEW: View = View {
        vcpu: 3,
        vcpus: 4,
        osxsave: false,
        xcr0: 7,
        fsgsbase: true,
        machine_bits: 40,
        tsc: Tsc {
            khz: 1_000_000,
            mul: 1 << 31,
            shift: 1,
        },
    };

    #[test]
    fn the_signature_is_xens() {
        let [max, b, c, d] = pv_cpuid(&Full, &VIEW, HYPERVISOR_LEAF, 0);
        assert_eq!(
            (max, b, c, d),
            (0x4000_0005, word(b"XenV"), word(b"MMXe"), word(b"nVMM"))
        );
    }

    #[test]
    fn what_a_pv_guest_cannot_use_is_hidden() {
        let [_, _, c, d] = pv_cpuid(&Full, &VIEW, 1, 0);
        for (bit, name) in [(3, "PSE"), (12, "MTRR"), (13, "PGE"), (17, "PSE36")] {
            assert_eq!(d >> bit & 1, 0, "{name}");
        }
        for (bit, name) in [(3, "MONITOR"), (5, "VMX"), (21, "X2APIC"), (27, "OSXSAVE")] {
            assert_eq!(c >> bit & 1, 0, "{name}");
        }
        assert_eq!(pv_cpuid(&Full, &VIEW, 0x8000_0001, 0)[2] >> 2 & 1, 0, "SVM");
        assert_eq!(pv_cpuid(&Full, &VIEW, 0x8000_000a, 0), [0; 4], "SVM leaf");
        assert_eq!(pv_cpuid(&Full, &VIEW, 0x8000_0001, 0)[3] >> 27 & 1, 0, "RDTSCP");
        assert_eq!(pv_cpuid(&Full, &VIEW, 7, 0)[2] >> 22 & 1, 0, "RDPID");
    }

    #[test]
    fn without_xsave_nothing_that_needs_it_is_shown() {
        let view = View {
            xcr0: 0,
            osxsave: true,
            ..VIEW
        };
        assert_eq!(pv_cpuid(&Full, &view, 1, 0)[2] & (LEAF1_ECX_NEEDS_XSAVE | OSXSAVE), 0);
        assert_eq!(pv_cpuid(&Full, &view, 7, 0)[1] & LEAF7_EBX_NEEDS_XSAVE, 0);
        assert_eq!(pv_cpuid(&Full, &view, 7, 0)[3] & LEAF7_EDX_NEEDS_XSAVE, 0);
        assert_eq!(pv_cpuid(&Full, &view, 7, 1)[0] & LEAF7_1_EAX_NEEDS_XSAVE, 0);
        assert_eq!(pv_cpuid(&Full, &view, 0xd, 0), [0; 4]);
    }

    #[test]
    fn leaf_7_ends_with_the_subleaf_that_it_names() {
        assert_eq!(pv_cpuid(&Full, &VIEW, 7, 0)[0], 1);
        assert_ne!(pv_cpuid(&Full, &VIEW, 7, 1), [0; 4]);
        assert_eq!(pv_cpuid(&Full, &VIEW, 7, 2), [0; 4]);
        let speculation = [10, 26, 27, 28, 29, 31];
        assert!(
            speculation
                .iter()
                .all(|bit| pv_cpuid(&Full, &VIEW, 7, 0)[3] >> bit & 1 == 0)
        );
    }

    #[test]
    fn each_vcpu_has_its_own_apic_id() {
        assert_eq!(pv_cpuid(&Full, &VIEW, 1, 0)[1] >> 24, 6);
    }

    proptest! {
        #[test]
        fn no_leaf_panics(leaf: u32, subleaf: u32, vcpu: u32, xcr0: u64) {
            let _ = pv_cpuid(&Full, &View { vcpu: vcpu & 0xff, xcr0, ..VIEW }, leaf, subleaf);
        }
    }
}
