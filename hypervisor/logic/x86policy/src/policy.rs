//! A policy: all that CPUID says to a domain, and how the policies of a host follow from one another.
//!
//! *Raw* is what the processor says. *Host* is what the hypervisor makes of it. *PV max* is the most that a PV guest
//! can be given, *PV default* what it is given if nobody asks for more; tools read all four, give a new domain a
//! policy of their own between them, and compare them when a domain moves. What a running vcpu adds (its own choice
//! of CR4, say) comes on top: [`crate::cpuid`].

use crate::features::{self as f, COMMON_1D, Feature, FeatureSet, PV_DEFAULT, PV_MAX};

/// What CPUID answers for one leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(missing_docs, reason = "registers by their own names")]
pub struct Leaf {
    pub a: u32,
    pub b: u32,
    pub c: u32,
    pub d: u32,
}

impl Leaf {
    /// From the registers in alphabetical order.
    pub const fn new([a, b, c, d]: [u32; 4]) -> Leaf {
        Leaf { a, b, c, d }
    }
}

/// Asks the host's processor: `(leaf, subleaf)` to `[eax, ebx, ecx, edx]`.
pub trait HostCpuid {
    /// What the processor answers.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4];
}

/// Who made a processor, as far as it matters for what its leaves mean.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Vendor {
    /// Intel.
    Intel,
    /// AMD, or Hygon after AMD's design.
    Amd,
    /// Somebody else.
    Other,
}

/// Basic leaves that a policy has.
pub const BASIC: usize = 0xe;
/// Subleaves of leaf 4.
pub const CACHES: usize = 6;
/// Subleaves of leaf 7.
pub const FEATURES: usize = 3;
/// Subleaves of leaf 0xb.
pub const TOPOLOGY: usize = 2;
/// Subleaves of leaf 0xd.
pub const STATES: usize = 63;
/// Extended leaves that a policy has; Intel's have the first nine.
pub const EXTENDED: usize = 0x22;
const EXTENDED_INTEL: u32 = 8;
/// First of the extended leaves.
pub const EXTENDED_BASE: u32 = 0x8000_0000;
/// Leaf of the states that XSAVE handles.
pub const STATES_LEAF: u32 = 0xd;

/// All that CPUID says. Leaves 4, 7, 0xb and 0xd of `basic` stay empty: their subleaves stand on their own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Leaves from 0.
    pub basic: [Leaf; BASIC],
    /// Subleaves of leaf 4.
    pub caches: [Leaf; CACHES],
    /// Subleaves of leaf 7.
    pub features: [Leaf; FEATURES],
    /// Subleaves of leaf 0xb.
    pub topology: [Leaf; TOPOLOGY],
    /// Subleaves of leaf 0xd.
    pub states: [Leaf; STATES],
    /// Leaves from 0x80000000.
    pub extended: [Leaf; EXTENDED],
    /// The most of the hypervisor's leaves that shall be shown; 0: all.
    pub hypervisor_limit: u32,
    /// As much for a second hypervisor's interface. Nobody has one.
    pub hypervisor2_limit: u32,
    /// Register ARCH_CAPABILITIES.
    pub arch_caps: u64,
    /// Register PLATFORM_INFO: whether CPUID can be made to fault.
    pub platform_info: u64,
}

/// Bit of PLATFORM_INFO: CPUID can be made to fault.
pub const CPUID_FAULTING: u64 = 1 << 31;

/// Features of SVM (leaf 0x8000000a, edx) that are used where the processor has them: nested paging, records of
/// branches, the next instruction's address, the decoder's help, pauses counted.
const SVM_USED: u32 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 7 | 1 << 10;
/// Those that are there in any case: a register for the counter's rate, clean bits.
const SVM_OURS: u32 = 1 << 4 | 1 << 5;

/// States of XCR0: x87 and SSE, which are always there.
const X87_SSE: u64 = 0b11;
/// Bytes of an XSAVE area without any further state.
const LEAST_AREA: u32 = 576;
/// What each further state belongs to.
const STATE_OF: &[(Feature, u64)] = &[
    (f::AVX, 1 << 2),
    (f::MPX, 0b11 << 3),
    (f::AVX512F, 0b111 << 5),
    (f::PKU, 1 << 9),
];

impl Policy {
    /// Nothing at all.
    pub const EMPTY: Policy = Policy {
        basic: [Leaf::new([0; 4]); BASIC],
        caches: [Leaf::new([0; 4]); CACHES],
        features: [Leaf::new([0; 4]); FEATURES],
        topology: [Leaf::new([0; 4]); TOPOLOGY],
        states: [Leaf::new([0; 4]); STATES],
        extended: [Leaf::new([0; 4]); EXTENDED],
        hypervisor_limit: 0,
        hypervisor2_limit: 0,
        arch_caps: 0,
        platform_info: 0,
    };

    // ------------------------------------------------------------------------------------ the four of a host

    /// What the processor says.
    pub fn raw(host: &impl HostCpuid) -> Policy {
        let ask = |leaf: u32, subleaf: u32| Leaf::new(host.cpuid(leaf, subleaf));
        let mut raw = Policy::EMPTY;
        let max = ask(0, 0).a;
        for (number, leaf) in (0u32..).zip(&mut raw.basic) {
            if number <= max && !has_subleaves(number) {
                *leaf = ask(number, 0);
            }
        }
        let list = |leaf: u32, slots: &mut [Leaf], is_end: fn(&Leaf) -> bool| {
            if leaf <= max {
                for (subleaf, slot) in (0u32..).zip(slots) {
                    let found = ask(leaf, subleaf);
                    if is_end(&found) {
                        break;
                    }
                    *slot = found;
                }
            }
        };
        list(4, &mut raw.caches, |leaf| cache_type(leaf) == 0);
        list(0xb, &mut raw.topology, |leaf| level_type(leaf) == 0);
        if max >= 7 {
            let most = ask(7, 0).a;
            for (subleaf, slot) in (0u32..).zip(&mut raw.features) {
                if subleaf <= most {
                    *slot = ask(7, subleaf);
                }
            }
        }
        if max >= STATES_LEAF {
            raw.states[0] = ask(STATES_LEAF, 0);
            raw.states[1] = ask(STATES_LEAF, 1);
            let known = raw.state_bits();
            for (subleaf, slot) in (0u32..).zip(&mut raw.states).skip(2) {
                if known >> subleaf & 1 != 0 {
                    *slot = ask(STATES_LEAF, subleaf);
                }
            }
        }
        let max = ask(EXTENDED_BASE, 0).a;
        if max >> 16 == EXTENDED_BASE >> 16 {
            for (number, leaf) in (EXTENDED_BASE..).zip(&mut raw.extended) {
                if number <= max {
                    *leaf = ask(number, 0);
                }
            }
        }
        raw
    }

    /// What the hypervisor makes of it. `lfence_dispatches`: it has made LFENCE wait for all that went before;
    /// `arch_caps` is the register ARCH_CAPABILITIES, or 0.
    pub fn host(raw: &Policy, lfence_dispatches: bool, arch_caps: u64) -> Policy {
        let mut host = raw.clone();
        let amd = raw.vendor() == Vendor::Amd;
        let mut set = raw.feature_set().without(f::OSXSAVE).without(f::OSPKE);
        if amd {
            // SYSENTER faults in long mode there.
            set = set.without(f::SEP);
        }
        if amd && lfence_dispatches {
            set = set.with(f::LFENCE_DISPATCH);
            host.extended[0].a = host.extended[0].a.max(EXTENDED_BASE + 0x21);
        }
        (set.0[16], set.0[17]) = (arch_caps as u32, (arch_caps >> 32) as u32);
        if raw.vendor() == Vendor::Intel && !set.has(f::EIBRS) {
            // An empty return stack is refilled from the indirect branches' predictor, there or where we move to.
            set = set.with(f::RSBA);
        }
        host.basic[0].a = host.basic[0].a.min(BASIC as u32 - 1);
        host.features[0].a = host.features[0].a.min(FEATURES as u32 - 1);
        host.extended[0].a = EXTENDED_BASE | (host.extended[0].a & 0xffff).min(EXTENDED as u32 - 1);
        host.set_feature_set(set.sane());
        host.derive_states(raw);
        host.derive_the_rest();
        // No guest counts the processor's events.
        host.basic[0xa] = Leaf::default();
        if set.has(f::SVM) {
            host.extended[0xa].d = host.extended[0xa].d & SVM_USED | SVM_OURS;
        }
        host.platform_info = 0;
        host
    }

    /// Takes features away, and what stands on them. `raw` is what the processor says.
    pub fn hide(&mut self, raw: &Policy, hidden: FeatureSet) {
        self.set_feature_set(self.feature_set().minus(hidden).sane());
        self.derive_states(raw);
        self.derive_the_rest();
    }

    /// The most that a PV guest can be given.
    pub fn pv_max(host: &Policy) -> Policy {
        let mut max = host.clone();
        max.basic[0].a = BASIC as u32 - 1;
        max.features[0].a = FEATURES as u32 - 1;
        let mut set = host.feature_set().and(PV_MAX).with(f::HYPERVISOR);
        // How a guest is to read its own topology is for the tools to say.
        set = set.with(f::HTT).with(f::X2APIC).with(f::CMP_LEGACY);
        match host.vendor() {
            // "You may move to a host where this is so": to be seen wherever the guest is.
            Vendor::Intel => {
                set = set.with(f::ARCH_CAPS).with(f::RSBA).with(f::RRSBA);
                set = set.with(f::MD_CLEAR).with(f::FB_CLEAR).with(f::RFDS_CLEAR);
            }
            Vendor::Amd => set = set.with(f::VERW_CLEAR),
            Vendor::Other => {}
        }
        max.set_feature_set(set.sane());
        max.derive_states(host);
        max.extended[0xa] = Leaf::default();
        max
    }

    /// What a PV guest is given if nobody asks for more.
    pub fn pv_default(host: &Policy, max: &Policy) -> Policy {
        let mut usual = max.clone();
        usual.basic[0].a = host.basic[0].a;
        usual.features[0].a = host.features[0].a;
        usual.extended[0].a = host.extended[0].a;
        let hosts = host.feature_set();
        let mut set = max.feature_set().and(PV_DEFAULT.with(f::X2APIC));
        for as_host in [
            f::HTT,
            f::X2APIC,
            f::CMP_LEGACY,
            f::RSBA,
            f::RRSBA,
            f::MD_CLEAR,
            f::FB_CLEAR,
            f::RFDS_CLEAR,
            f::VERW_CLEAR,
        ] {
            set = set.having(as_host, hosts.has(as_host) && max.feature_set().has(as_host));
        }
        usual.set_feature_set(set.sane());
        usual.derive_states(host);
        usual
    }

    // ------------------------------------------------------------------------------------ one domain's

    /// A new domain's, from the default.
    pub fn of_domain(default: &Policy, host: &Policy, max: &Policy) -> Policy {
        let mut policy = default.clone();
        policy.clamp(host, max);
        policy
    }

    /// Puts a policy into a form that a PV domain can have: not more than `max`, and nothing that contradicts itself.
    pub fn clamp(&mut self, host: &Policy, max: &Policy) {
        self.basic[0].a = self.basic[0].a.min(max.basic[0].a);
        self.features[0].a = self.features[0].a.min(max.features[0].a);
        let extended = match self.vendor() {
            Vendor::Amd => EXTENDED as u32 - 1,
            Vendor::Intel | Vendor::Other => EXTENDED_INTEL,
        };
        self.extended[0].a = EXTENDED_BASE | (self.extended[0].a & 0xffff).min(extended);
        let mut set = self.feature_set().and(max.feature_set());
        if self.basic[0].a < STATES_LEAF {
            set = set.without(f::XSAVE);
        }
        set = set.sane();
        let hosts = host.feature_set();
        for as_host in [f::FDP_EXCP_ONLY, f::NO_FPU_SEL] {
            set = set.having(as_host, hosts.has(as_host));
        }
        self.set_feature_set(set);
        self.basic[1].b = self.basic[1].b & !0xff00 | max.basic[1].b & 0xff00;
        self.clamp_addresses(max);
        self.derive_states(host);
        self.derive_the_rest();
        self.clear_invalid_caches();
        self.basic[0xa] = Leaf::default();
        self.extended[0xa] = Leaf::default();
        if !set.has(f::PAGE1GB) {
            self.extended[0x19] = Leaf::default();
        }
    }

    fn clamp_addresses(&mut self, max: &Policy) {
        /// What page tables can say.
        const MOST: u32 = 52;
        let least = if self.has(f::PAE) || self.has(f::PSE36) { 36 } else { 32 };
        let machine = (self.extended[8].a & 0xff)
            .min(max.extended[8].a & 0xff)
            .min(MOST)
            .max(least);
        let linear = if self.has(f::LM) { 48 } else { 32 };
        self.extended[8].a = self.extended[8].a & !0xffff | linear << 8 | machine;
    }

    fn clear_invalid_caches(&mut self) {
        let valid = self
            .caches
            .iter()
            .take_while(|leaf| (1..=3).contains(&cache_type(leaf)))
            .count();
        for leaf in &mut self.caches[..valid] {
            leaf.a &= 0xffff_c3ff;
            leaf.d &= 0b111;
        }
        self.caches[valid..].fill(Leaf::default());
    }

    /// Clears what lies behind the last leaf or subleaf that the policy itself names.
    pub fn clear_out_of_range(&mut self) {
        let basic = self.basic[0].a as usize;
        clear_behind(&mut self.basic, basic);
        let clear = |slots: &mut [Leaf], leaf: usize| {
            if basic < leaf {
                slots.fill(Leaf::default());
            }
        };
        clear(&mut self.caches, 4);
        clear(&mut self.features, 7);
        clear(&mut self.topology, 0xb);
        clear(&mut self.states, 0xd);
        let last = self.features[0].a as usize;
        clear_behind(&mut self.features, last);
        let known = self.state_bits() | 0b11;
        for (state, leaf) in self.states.iter_mut().enumerate() {
            if known >> state & 1 == 0 {
                *leaf = Leaf::default();
            }
        }
        let extended = self.extended[0].a;
        if extended >> 16 == EXTENDED_BASE >> 16 {
            clear_behind(&mut self.extended, (extended & 0xffff) as usize);
        } else {
            self.extended.fill(Leaf::default());
        }
    }

    /// Whether a domain with this policy can run where `host` is the most. Else: the leaf, or register, at fault.
    pub fn fits(&self, host: &Policy) -> Result<(), Misfit> {
        if self.basic[0].a > host.basic[0].a {
            return Err(Misfit::Leaf(0, None));
        }
        if self.features[0].a > host.features[0].a {
            return Err(Misfit::Leaf(7, Some(0)));
        }
        if self.extended[0].a > host.extended[0].a {
            return Err(Misfit::Leaf(EXTENDED_BASE, None));
        }
        if self.platform_info & !host.platform_info != 0 {
            return Err(Misfit::Register(crate::msr::number::PLATFORM_INFO));
        }
        Ok(())
    }

    // ------------------------------------------------------------------------------------ reading and deriving

    /// Who made the processor that it describes.
    pub fn vendor(&self) -> Vendor {
        let Leaf { b, c, d, .. } = self.basic[0];
        let name = [b, d, c].map(u32::to_le_bytes);
        match name.as_flattened() {
            b"GenuineIntel" => Vendor::Intel,
            b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
            _ => Vendor::Other,
        }
    }

    /// Whether it has a feature.
    pub fn has(&self, feature: Feature) -> bool {
        feature.is_in(self.word(feature.word()))
    }

    /// Its features. Those of the register ARCH_CAPABILITIES are among them.
    pub fn feature_set(&self) -> FeatureSet {
        FeatureSet(core::array::from_fn(|number| self.word(number)))
    }

    /// Where a word of the feature set stands.
    fn word(&self, number: usize) -> u32 {
        let [seven, seven1, seven2] = &self.features;
        match number {
            0 => self.basic[1].d,
            1 => self.basic[1].c,
            2 => self.extended[1].d,
            3 => self.extended[1].c,
            4 => self.states[1].a,
            5 => seven.b,
            6 => seven.c,
            7 => self.extended[7].d,
            8 => self.extended[8].b,
            9 => seven.d,
            10 => seven1.a,
            11 => self.extended[0x21].a,
            12 => seven1.b,
            13 => seven2.d,
            14 => seven1.c,
            15 => seven1.d,
            16 => self.arch_caps as u32,
            17 => (self.arch_caps >> 32) as u32,
            18 => self.extended[0x21].c,
            _ => 0,
        }
    }

    fn set_feature_set(&mut self, set: FeatureSet) {
        let FeatureSet(words) = set;
        let [seven, seven1, seven2] = &mut self.features;
        (self.basic[1].d, self.basic[1].c) = (words[0], words[1]);
        (self.extended[1].d, self.extended[1].c) = (words[2], words[3]);
        self.states[1].a = words[4];
        (seven.b, seven.c, seven.d) = (words[5], words[6], words[9]);
        self.extended[7].d = words[7];
        self.extended[8].b = words[8];
        (seven1.a, seven1.b, seven1.c, seven1.d) = (words[10], words[12], words[14], words[15]);
        seven2.d = words[13];
        (self.extended[0x21].a, self.extended[0x21].c) = (words[11], words[18]);
        self.arch_caps = u64::from(words[17]) << 32 | u64::from(words[16]);
    }

    /// The states that XSAVE may handle, supervisor states included.
    pub fn state_bits(&self) -> u64 {
        let [user, supervisor, ..] = &self.states;
        u64::from(user.d | supervisor.d) << 32 | u64::from(user.a | supervisor.c)
    }

    /// What a guest may set XCR0 to at most; 0 without XSAVE.
    pub fn xcr0(&self) -> u64 {
        u64::from(self.states[0].d) << 32 | u64::from(self.states[0].a)
    }

    /// The states follow from the features; where they lie, from the processor.
    fn derive_states(&mut self, of: &Policy) {
        let instructions = self.states[1].a;
        self.states.fill(Leaf::default());
        if !self.has(f::XSAVE) {
            return;
        }
        let set = self.feature_set();
        let states = STATE_OF
            .iter()
            .filter(|(feature, _)| set.has(*feature))
            .fold(X87_SSE, |states, (_, bits)| states | bits);
        let mut size = LEAST_AREA;
        for (state, leaf) in self.states.iter_mut().enumerate().skip(2) {
            if states >> state & 1 != 0 {
                let Leaf {
                    a: bytes, b: offset, c, ..
                } = of.states[state];
                *leaf = Leaf::new([bytes, offset, c & 2, 0]);
                size = size.max(offset.saturating_add(bytes));
            }
        }
        self.states[0] = Leaf::new([states as u32, 0, size, (states >> 32) as u32]);
        self.states[1].a = instructions;
    }

    /// What no guest sees, or what follows from the rest.
    fn derive_the_rest(&mut self) {
        // The stepping's type bits, and which CPU this is.
        self.basic[1].a &= 0x0fff_0fff;
        self.basic[1].b &= 0x00ff_ffff;
        for hidden in [5, 6, 8, 0xc] {
            self.basic[hidden] = Leaf::default();
        }
        self.topology.fill(Leaf::default());
        self.extended[1].d &= !COMMON_1D;
        let power = self.extended[7].d;
        self.extended[7] = Leaf::new([0, 0, 0, power]);
        self.extended[8].d = 0;
        match self.vendor() {
            Vendor::Intel => {
                self.basic[2].a = self.basic[2].a & !0xff | 1;
                self.basic[3] = Leaf::default();
                self.basic[9] = Leaf::default();
                (self.extended[0].b, self.extended[0].c, self.extended[0].d) = (0, 0, 0);
                (self.extended[1].a, self.extended[1].b) = (0, 0);
                self.extended[5] = Leaf::default();
                (self.extended[6].a, self.extended[6].b, self.extended[6].d) = (0, 0, 0);
                self.extended[8].a &= 0xffff;
                self.extended[8].c = 0;
            }
            Vendor::Amd => {
                self.basic[2] = Leaf::default();
                self.basic[3] = Leaf::default();
                self.caches.fill(Leaf::default());
                self.basic[9] = Leaf::default();
                self.basic[0xa] = Leaf::default();
                let Leaf { b, c, d, .. } = self.basic[0];
                (self.extended[0].b, self.extended[0].c, self.extended[0].d) = (b, c, d);
                self.extended[1].a = self.basic[1].a;
                self.extended[1].b &= 0xff00_ffff;
                self.extended[1].d |= self.basic[1].d & COMMON_1D;
                self.extended[8].a &= 0xffff;
                self.extended[8].c &= 0x0003_f0ff;
                self.extended[9] = Leaf::default();
                self.extended[0xb..=0x18].fill(Leaf::default());
                self.extended[0x1b..=0x20].fill(Leaf::default());
            }
            Vendor::Other => {}
        }
    }
}

/// Why a policy does not fit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Misfit {
    /// A leaf, and its subleaf if it has some.
    Leaf(u32, Option<u32>),
    /// A model-specific register.
    Register(u32),
}

/// Whether what a basic leaf says depends on the subleaf.
pub(crate) const fn has_subleaves(leaf: u32) -> bool {
    matches!(leaf, 4 | 7 | 0xb | STATES_LEAF)
}

/// The kind of cache that a subleaf of leaf 4 describes; 0 ends the list.
pub(crate) const fn cache_type(leaf: &Leaf) -> u32 {
    leaf.a & 0x1f
}

/// The kind of level that a subleaf of leaf 0xb describes; 0 ends the list.
pub(crate) const fn level_type(leaf: &Leaf) -> u32 {
    leaf.c >> 8 & 0xff
}

fn clear_behind(slots: &mut [Leaf], last: usize) {
    if let Some(behind) = slots.get_mut(last.saturating_add(1)..) {
        behind.fill(Leaf::default());
    }
}
