//! Every feature bit that has a name, which guests may see it, and which features make no sense without it.
//!
//! Names, words and bits are those of `arch-x86/cpufeatureset.h`: a feature set is what tools compare hosts by.

/// One feature: a bit of a word of the [`FeatureSet`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Feature {
    word: u8,
    bit: u8,
}

impl Feature {
    /// Its word of the [`FeatureSet`].
    pub const fn word(self) -> usize {
        self.word as usize
    }

    /// Its bit in that word.
    pub const fn bit(self) -> u32 {
        self.bit as u32
    }

    /// Whether it is in its word.
    pub const fn is_in(self, word: u32) -> bool {
        word >> self.bit & 1 != 0
    }
}

/// Which guests may see a feature.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Guests {
    /// None.
    Nobody,
    /// All.
    All,
    /// All whose configuration asks for it.
    AllIfAsked,
    /// Those with a machine of their own.
    Hvm,
    /// Those of them whose configuration asks for it.
    HvmIfAsked,
    /// Those whose memory the processor translates.
    Hap,
    /// Those of them whose configuration asks for it.
    HapIfAsked,
}

/// Words of a feature set.
pub const WORDS: usize = 19;

/// A set of features, in the words of the ABI.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FeatureSet(pub [u32; WORDS]);

impl FeatureSet {
    /// No feature.
    pub const NONE: FeatureSet = FeatureSet([0; WORDS]);

    /// Whether a feature is in.
    pub const fn has(&self, feature: Feature) -> bool {
        feature.is_in(self.0[feature.word()])
    }

    /// The set with a feature.
    pub const fn with(mut self, feature: Feature) -> FeatureSet {
        self.0[feature.word as usize] |= 1 << feature.bit;
        self
    }

    /// The set without a feature.
    pub const fn without(mut self, feature: Feature) -> FeatureSet {
        self.0[feature.word as usize] &= !(1 << feature.bit);
        self
    }

    /// The set with or without a feature.
    pub const fn having(self, feature: Feature, has: bool) -> FeatureSet {
        if has { self.with(feature) } else { self.without(feature) }
    }

    /// What is in this one alone.
    pub fn minus(self, other: FeatureSet) -> FeatureSet {
        self.and(FeatureSet(other.0.map(|word| !word)))
    }

    /// What is in both.
    pub fn and(mut self, other: FeatureSet) -> FeatureSet {
        self.0
            .iter_mut()
            .zip(other.0)
            .for_each(|(mine, theirs)| *mine &= theirs);
        self
    }

    /// The set without what has no name, and without what lacks the ground that it stands on.
    pub fn sane(self) -> FeatureSet {
        let mut set = self.and(KNOWN);
        loop {
            let before = set;
            for (ground, dependents) in DEPENDENTS {
                if !set.has(*ground) {
                    set = dependents.iter().fold(set, |set, feature| set.without(*feature));
                }
            }
            if !set.has(ARCH_CAPS) {
                (set.0[16], set.0[17]) = (0, 0);
            }
            if set == before {
                return set;
            }
        }
    }
}

/// The feature that configurations call `name`: the header's name in small letters, with dashes (`lahf-lm`).
pub fn named(name: &str) -> Option<Feature> {
    let is_it = |known: &str| {
        let known = known.bytes().map(|byte| match byte {
            b'_' => b'-',
            byte => byte.to_ascii_lowercase(),
        });
        known.eq(name.bytes())
    };
    let mut all = NAMES.split_ascii_whitespace().zip(TABLE);
    all.find(|(known, _)| is_it(known)).map(|(_, (feature, _))| *feature)
}

macro_rules! features {
    ($($(#[$doc:meta])* $name:ident: $word:literal, $bit:literal, $who:ident;)*) => {
        $($(#[$doc])* #[allow(missing_docs, reason = "upstream's names")]
        pub const $name: Feature = Feature { word: $word, bit: $bit };)*

        const TABLE: &[(Feature, Guests)] = &[$(($name, Guests::$who)),*];
        /// In the order of the table. One text takes a third of what as many would.
        const NAMES: &str = concat!($(stringify!($name), " "),*);
    };
}

features! {
    // Leaf 1, edx.
    FPU: 0, 0, All;
    VME: 0, 1, Hvm;
    DE: 0, 2, All;
    PSE: 0, 3, Hvm;
    TSC: 0, 4, All;
    MSR: 0, 5, All;
    PAE: 0, 6, All;
    MCE: 0, 7, All;
    CX8: 0, 8, All;
    APIC: 0, 9, All;
    SEP: 0, 11, All;
    MTRR: 0, 12, Hvm;
    PGE: 0, 13, Hvm;
    MCA: 0, 14, All;
    CMOV: 0, 15, All;
    PAT: 0, 16, All;
    PSE36: 0, 17, Hvm;
    CLFLUSH: 0, 19, All;
    DS: 0, 21, Nobody;
    ACPI: 0, 22, All;
    MMX: 0, 23, All;
    FXSR: 0, 24, All;
    SSE: 0, 25, All;
    SSE2: 0, 26, All;
    SS: 0, 27, All;
    HTT: 0, 28, All;
    TM1: 0, 29, Nobody;
    PBE: 0, 31, Nobody;

    // Leaf 1, ecx.
    SSE3: 1, 0, All;
    PCLMULQDQ: 1, 1, All;
    DTES64: 1, 2, Nobody;
    MONITOR: 1, 3, Nobody;
    DSCPL: 1, 4, Nobody;
    VMX: 1, 5, HapIfAsked;
    SMX: 1, 6, Nobody;
    EIST: 1, 7, Nobody;
    TM2: 1, 8, Nobody;
    SSSE3: 1, 9, All;
    FMA: 1, 12, All;
    CX16: 1, 13, All;
    XTPR: 1, 14, Nobody;
    PDCM: 1, 15, Nobody;
    PCID: 1, 17, Hap;
    DCA: 1, 18, Nobody;
    SSE4_1: 1, 19, All;
    SSE4_2: 1, 20, All;
    X2APIC: 1, 21, Hvm;
    MOVBE: 1, 22, All;
    POPCNT: 1, 23, All;
    TSC_DEADLINE: 1, 24, Hvm;
    AESNI: 1, 25, All;
    XSAVE: 1, 26, All;
    OSXSAVE: 1, 27, Nobody;
    AVX: 1, 28, All;
    F16C: 1, 29, All;
    RDRAND: 1, 30, All;
    HYPERVISOR: 1, 31, All;

    // Leaf 0x80000001, edx, without what repeats leaf 1.
    SYSCALL: 2, 11, All;
    NX: 2, 20, All;
    MMXEXT: 2, 22, All;
    FFXSR: 2, 25, All;
    PAGE1GB: 2, 26, Hap;
    RDTSCP: 2, 27, All;
    LM: 2, 29, All;
    AMD_3DNOWEXT: 2, 30, All;
    AMD_3DNOW: 2, 31, All;

    // Leaf 0x80000001, ecx.
    LAHF_LM: 3, 0, All;
    CMP_LEGACY: 3, 1, All;
    SVM: 3, 2, HapIfAsked;
    EXTAPIC: 3, 3, Nobody;
    CR8_LEGACY: 3, 4, Hvm;
    ABM: 3, 5, All;
    SSE4A: 3, 6, All;
    MISALIGNSSE: 3, 7, All;
    AMD_3DNOWPREFETCH: 3, 8, All;
    OSVW: 3, 9, Nobody;
    IBS: 3, 10, Nobody;
    XOP: 3, 11, All;
    SKINIT: 3, 12, Nobody;
    WDT: 3, 13, Nobody;
    LWP: 3, 15, Nobody;
    FMA4: 3, 16, All;
    NODEID_MSR: 3, 19, Nobody;
    TBM: 3, 21, All;
    TOPOEXT: 3, 22, Nobody;
    DBEXT: 3, 26, All;
    MONITORX: 3, 29, Nobody;

    // Leaf 0xd subleaf 1, eax.
    XSAVEOPT: 4, 0, All;
    XSAVEC: 4, 1, All;
    XGETBV1: 4, 2, All;
    XSAVES: 4, 3, Hvm;

    // Leaf 7, ebx.
    FSGSBASE: 5, 0, All;
    TSC_ADJUST: 5, 1, Hvm;
    SGX: 5, 2, Nobody;
    BMI1: 5, 3, All;
    HLE: 5, 4, AllIfAsked;
    AVX2: 5, 5, All;
    FDP_EXCP_ONLY: 5, 6, Nobody;
    SMEP: 5, 7, Hvm;
    BMI2: 5, 8, All;
    ERMS: 5, 9, All;
    INVPCID: 5, 10, Hap;
    RTM: 5, 11, All;
    PQM: 5, 12, Nobody;
    NO_FPU_SEL: 5, 13, Nobody;
    MPX: 5, 14, HvmIfAsked;
    PQE: 5, 15, Nobody;
    AVX512F: 5, 16, All;
    AVX512DQ: 5, 17, All;
    RDSEED: 5, 18, All;
    ADX: 5, 19, All;
    SMAP: 5, 20, Hvm;
    AVX512_IFMA: 5, 21, All;
    CLFLUSHOPT: 5, 23, All;
    CLWB: 5, 24, All;
    PROC_TRACE: 5, 25, Nobody;
    AVX512PF: 5, 26, All;
    AVX512ER: 5, 27, All;
    AVX512CD: 5, 28, All;
    SHA: 5, 29, All;
    AVX512BW: 5, 30, All;
    AVX512VL: 5, 31, All;

    // Leaf 7, ecx.
    PREFETCHWT1: 6, 0, All;
    AVX512_VBMI: 6, 1, All;
    UMIP: 6, 2, Hvm;
    PKU: 6, 3, Hap;
    OSPKE: 6, 4, Nobody;
    AVX512_VBMI2: 6, 6, All;
    CET_SS: 6, 7, Nobody;
    GFNI: 6, 8, All;
    VAES: 6, 9, All;
    VPCLMULQDQ: 6, 10, All;
    AVX512_VNNI: 6, 11, All;
    AVX512_BITALG: 6, 12, All;
    AVX512_VPOPCNTDQ: 6, 14, All;
    RDPID: 6, 22, All;
    CLDEMOTE: 6, 25, All;
    MOVDIRI: 6, 27, AllIfAsked;
    MOVDIR64B: 6, 28, AllIfAsked;
    ENQCMD: 6, 29, Nobody;

    // Leaf 0x80000007, edx.
    HW_PSTATE: 7, 7, Nobody;
    ITSC: 7, 8, AllIfAsked;
    CPB: 7, 9, Nobody;
    EFRO: 7, 10, Nobody;

    // Leaf 0x80000008, ebx.
    CLZERO: 8, 0, All;
    RSTR_FP_ERR_PTRS: 8, 2, All;
    WBNOINVD: 8, 9, Nobody;
    IBPB: 8, 12, All;
    IBRS: 8, 14, Hvm;
    AMD_STIBP: 8, 15, Hvm;
    IBRS_ALWAYS: 8, 16, Hvm;
    STIBP_ALWAYS: 8, 17, Hvm;
    IBRS_FAST: 8, 18, Hvm;
    IBRS_SAME_MODE: 8, 19, Hvm;
    NO_LMSL: 8, 20, Hvm;
    AMD_PPIN: 8, 23, Nobody;
    AMD_SSBD: 8, 24, Hvm;
    VIRT_SSBD: 8, 25, Nobody;
    SSB_NO: 8, 26, All;
    PSFD: 8, 28, Hvm;
    BTC_NO: 8, 29, All;
    IBPB_RET: 8, 30, All;

    // Leaf 7, edx.
    AVX512_4VNNIW: 9, 2, All;
    AVX512_4FMAPS: 9, 3, All;
    FSRM: 9, 4, All;
    AVX512_VP2INTERSECT: 9, 8, AllIfAsked;
    SRBDS_CTRL: 9, 9, Nobody;
    MD_CLEAR: 9, 10, All;
    RTM_ALWAYS_ABORT: 9, 11, Nobody;
    TSX_FORCE_ABORT: 9, 13, Nobody;
    SERIALIZE: 9, 14, All;
    HYBRID: 9, 15, Nobody;
    TSXLDTRK: 9, 16, AllIfAsked;
    CET_IBT: 9, 20, Nobody;
    AVX512_FP16: 9, 23, Nobody;
    IBRSB: 9, 26, All;
    STIBP: 9, 27, All;
    L1D_FLUSH: 9, 28, Hvm;
    ARCH_CAPS: 9, 29, All;
    CORE_CAPS: 9, 30, Nobody;
    SSBD: 9, 31, All;

    // Leaf 7 subleaf 1, eax.
    AVX_VNNI: 10, 4, All;
    AVX512_BF16: 10, 5, All;
    FZRM: 10, 10, All;
    FSRS: 10, 11, All;
    FSRCS: 10, 12, All;

    // Leaf 0x80000021, eax.
    LFENCE_DISPATCH: 11, 2, All;
    VERW_CLEAR: 11, 5, All;
    NSCB: 11, 6, All;
    AUTO_IBRS: 11, 8, Nobody;
    SBPB: 11, 27, All;
    IBPB_BRTYPE: 11, 28, All;
    SRSO_NO: 11, 29, All;
    SRSO_US_NO: 11, 30, All;
    SRSO_MSR_FIX: 11, 31, Nobody;

    // Leaf 7 subleaf 1, ebx.
    INTEL_PPIN: 12, 0, Nobody;

    // Leaf 7 subleaf 2, edx.
    INTEL_PSFD: 13, 0, All;
    IPRED_CTRL: 13, 1, Hvm;
    RRSBA_CTRL: 13, 2, Hvm;
    BHI_CTRL: 13, 4, Hvm;
    MCDT_NO: 13, 5, All;

    // Leaf 7 subleaf 1, edx.
    CET_SSS: 15, 18, Nobody;

    // Register ARCH_CAPABILITIES, low half.
    RDCL_NO: 16, 0, All;
    EIBRS: 16, 1, All;
    RSBA: 16, 2, Nobody;
    SKIP_L1DFL: 16, 3, Nobody;
    INTEL_SSB_NO: 16, 4, All;
    MDS_NO: 16, 5, All;
    IF_PSCHANGE_MC_NO: 16, 6, All;
    TSX_CTRL: 16, 7, Nobody;
    TAA_NO: 16, 8, All;
    MCU_CTRL: 16, 9, Nobody;
    MISC_PKG_CTRL: 16, 10, Nobody;
    ENERGY_FILTERING: 16, 11, Nobody;
    DOITM: 16, 12, Nobody;
    SBDR_SSDP_NO: 16, 13, All;
    FBSDP_NO: 16, 14, All;
    PSDP_NO: 16, 15, All;
    FB_CLEAR: 16, 17, All;
    FB_CLEAR_CTRL: 16, 18, Nobody;
    RRSBA: 16, 19, Nobody;
    BHI_NO: 16, 20, All;
    XAPIC_STATUS: 16, 21, Nobody;
    OVRCLK_STATUS: 16, 23, Nobody;
    PBRSB_NO: 16, 24, All;
    GDS_CTRL: 16, 25, Nobody;
    GDS_NO: 16, 26, All;
    RFDS_NO: 16, 27, All;
    RFDS_CLEAR: 16, 28, All;

    // Register ARCH_CAPABILITIES, high half.
    ITS_NO: 17, 30, All;

    // Leaf 0x80000021, ecx.
    TSA_SQ_NO: 18, 1, All;
    TSA_L1_NO: 18, 2, All;
}

const fn those(asked: bool, named: bool) -> FeatureSet {
    let (mut set, mut index) = (FeatureSet::NONE, 0);
    while index < TABLE.len() {
        let (feature, who) = TABLE[index];
        if named || matches!(who, Guests::All) || (asked && matches!(who, Guests::AllIfAsked)) {
            set = set.with(feature);
        }
        index += 1;
    }
    let mut index = 0;
    while !named && index < NEEDS_REGISTERS.len() {
        set = set.without(NEEDS_REGISTERS[index]);
        index += 1;
    }
    set
}

/// Every feature that has a name.
pub const KNOWN: FeatureSet = those(true, true);
/// What a PV guest sees if its configuration says nothing.
pub const PV_DEFAULT: FeatureSet = those(false, false);
/// The most that a PV guest can be given.
pub const PV_MAX: FeatureSet = those(true, false);

/// Bits of leaf 1's edx that leaf 0x80000001's edx repeats on AMD's processors.
pub const COMMON_1D: u32 = 0x0183_f3ff;

/// Features that come with registers which a vcpu would have to carry along, and does not (docs/left-out.md).
const NEEDS_REGISTERS: &[Feature] = &[
    DBEXT, IBRSB, STIBP, SSBD, IBPB, IBRS, AMD_STIBP, AMD_SSBD, PSFD, INTEL_PSFD, L1D_FLUSH, SBPB,
];

/// What each feature carries (SDM and APM, where the dependents are described); leaving the ground out leaves
/// the dependents out.
const DEPENDENTS: &[(Feature, &[Feature])] = &[
    (FPU, &[MMX]),
    (PSE, &[PSE36]),
    (PAE, &[LM, NX]),
    (TSC, &[TSC_DEADLINE, RDTSCP, TSC_ADJUST, ITSC]),
    (APIC, &[X2APIC, TSC_DEADLINE, EXTAPIC]),
    (MMX, &[AMD_3DNOW, MMXEXT]),
    (FXSR, &[FFXSR, SSE]),
    (SSE, &[MISALIGNSSE, SSE2]),
    (SSE2, &[SSE3, LM, AESNI, PCLMULQDQ, SHA, GFNI]),
    (SSE3, &[SSSE3, SSE4A]),
    (SSSE3, &[SSE4_1]),
    (SSE4_1, &[SSE4_2]),
    (XSAVE, &[XSAVEOPT, XSAVEC, XGETBV1, XSAVES, AVX, MPX, PKU, LWP]),
    (AVX, &[FMA, FMA4, F16C, AVX2, XOP]),
    (LM, &[CX16, PCID, LAHF_LM, PAGE1GB, PKU, NO_LMSL]),
    (AMD_3DNOW, &[AMD_3DNOWEXT]),
    (AESNI, &[VAES]),
    (PCLMULQDQ, &[VPCLMULQDQ]),
    (AVX2, &[AVX512F, VAES, VPCLMULQDQ, AVX_VNNI]),
    (
        AVX512F,
        &[
            AVX512DQ,
            AVX512_IFMA,
            AVX512PF,
            AVX512ER,
            AVX512CD,
            AVX512BW,
            AVX512VL,
            AVX512_4VNNIW,
            AVX512_4FMAPS,
            AVX512_VNNI,
            AVX512_VPOPCNTDQ,
            AVX512_VP2INTERSECT,
        ],
    ),
    (
        AVX512BW,
        &[AVX512_VBMI, AVX512_VBMI2, AVX512_BITALG, AVX512_BF16, AVX512_FP16],
    ),
    (MOVDIR64B, &[ENQCMD]),
    (
        IBRSB,
        &[STIBP, SSBD, INTEL_PSFD, EIBRS, IPRED_CTRL, RRSBA_CTRL, BHI_CTRL],
    ),
    (
        IBRS,
        &[
            AMD_STIBP,
            AMD_SSBD,
            PSFD,
            AUTO_IBRS,
            IBRS_ALWAYS,
            IBRS_FAST,
            IBRS_SAME_MODE,
        ],
    ),
    (AMD_STIBP, &[STIBP_ALWAYS]),
    (IBPB, &[IBPB_RET, SBPB, IBPB_BRTYPE]),
    (RTM, &[TSXLDTRK]),
    (EIBRS, &[RRSBA]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_its_ground_a_feature_goes_with_all_that_stands_on_it() {
        let all = KNOWN.sane();
        let bare = all.without(XSAVE).sane();
        for gone in [AVX, AVX2, AVX512F, AVX512_FP16, VAES, XSAVEOPT, FMA] {
            assert!(all.has(gone) && !bare.has(gone), "{gone:?}");
        }
        assert!(bare.has(SSE4_2) && bare.has(LM));
        assert!(!all.without(FXSR).sane().has(LM));
    }

    #[test]
    fn a_pv_guest_cannot_even_ask_for_what_needs_a_machine_of_its_own() {
        for never in [
            PSE,
            PGE,
            VME,
            SMEP,
            SMAP,
            X2APIC,
            TSC_DEADLINE,
            SVM,
            VMX,
            PAGE1GB,
            MPX,
            XSAVES,
            MONITOR,
        ] {
            assert!(!PV_MAX.has(never), "{never:?}");
        }
        for asked in [ITSC, HLE, MOVDIRI] {
            assert!(PV_MAX.has(asked) && !PV_DEFAULT.has(asked), "{asked:?}");
        }
    }

    #[test]
    fn words_and_bits_lie_where_the_manuals_put_them() {
        assert_eq!(
            (AVX2, RDPID),
            (Feature { word: 5, bit: 5 }, Feature { word: 6, bit: 22 })
        );
        assert_eq!(TABLE.len(), 232);
    }
}
