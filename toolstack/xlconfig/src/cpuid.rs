//! `cpuid`: what a guest's CPUID instruction says, changed bit by bit. Both of xl.cfg(5)'s ways to write it become the
//! same rules.
//!
//! A bit is `1`, `0`, `x` (as the hypervisor would have it) or `k`, also `s` (as the host has it). Whether the host can
//! give what is asked for is the hypervisor's to say.

use crate::disk::SpecError;
use ferroxen_x86policy::features;

/// A register of CPUID's answer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[allow(missing_docs, reason = "the registers' names")]
pub enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    const ALL: [(&str, Register); 4] = [
        ("eax", Register::Eax),
        ("ebx", Register::Ebx),
        ("ecx", Register::Ecx),
        ("edx", Register::Edx),
    ];

    /// As it is written.
    pub fn name(self) -> &'static str {
        Register::ALL[self as usize].0
    }
}

/// What becomes of one register; a bit is in one of the masks at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuidRule {
    /// The leaf.
    pub leaf: u32,
    /// The subleaf, of a leaf that has subleaves.
    pub subleaf: Option<u32>,
    /// The register.
    pub register: Register,
    /// Bits that are set.
    pub ones: u32,
    /// Bits that are clear.
    pub zeroes: u32,
    /// Bits that are the host's.
    pub host: u32,
}

/// Puts rules in the place of earlier ones for the same bits.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CpuidRules(Vec<CpuidRule>);

impl CpuidRules {
    /// All of them, one for a register at most.
    pub fn iter(&self) -> impl Iterator<Item = &CpuidRule> {
        self.0.iter()
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn rule(&mut self, (leaf, subleaf, register): Slot) -> &mut CpuidRule {
        let is_it = |rule: &CpuidRule| (rule.leaf, rule.subleaf, rule.register) == (leaf, subleaf, register);
        let at = self.0.iter().position(is_it).unwrap_or_else(|| {
            self.0.push(CpuidRule {
                leaf,
                subleaf,
                register,
                ones: 0,
                zeroes: 0,
                host: 0,
            });
            self.0.len() - 1
        });
        &mut self.0[at]
    }

    /// The last word about a bit counts.
    fn set(&mut self, slot: Slot, bit: u32, what: char) -> bool {
        let rule = self.rule(slot);
        let mask = 1 << bit;
        rule.ones &= !mask;
        rule.zeroes &= !mask;
        rule.host &= !mask;
        match what {
            '1' => rule.ones |= mask,
            '0' => rule.zeroes |= mask,
            'k' | 's' => rule.host |= mask,
            'x' => {}
            _ => return false,
        }
        true
    }

    fn field(&mut self, slot: Slot, first: u32, width: u32, value: u32) {
        for bit in 0..width {
            self.set(slot, first + bit, if value >> bit & 1 != 0 { '1' } else { '0' });
        }
    }
}

/// A leaf, perhaps a subleaf, and a register.
type Slot = (u32, Option<u32>, Register);

/// Where the words of a feature set are in CPUID's answer; two are a model-specific register's.
const WORDS: [Option<Slot>; 19] = {
    use Register::{Eax, Ebx, Ecx, Edx};
    [
        Some((1, None, Edx)),
        Some((1, None, Ecx)),
        Some((0x8000_0001, None, Edx)),
        Some((0x8000_0001, None, Ecx)),
        Some((0xd, Some(1), Eax)),
        Some((7, Some(0), Ebx)),
        Some((7, Some(0), Ecx)),
        Some((0x8000_0007, None, Edx)),
        Some((0x8000_0008, None, Ebx)),
        Some((7, Some(0), Edx)),
        Some((7, Some(1), Eax)),
        Some((0x8000_0021, None, Eax)),
        Some((7, Some(1), Ebx)),
        Some((7, Some(2), Edx)),
        Some((7, Some(1), Ecx)),
        Some((7, Some(1), Edx)),
        None,
        None,
        Some((0x8000_0021, None, Ecx)),
    ]
};

/// What libxl called some features before it took over the header's names.
const ALIASES: &[(&str, &str)] = &[
    ("3dnow", "amd-3dnow"),
    ("3dnowext", "amd-3dnowext"),
    ("3dnowprefetch", "amd-3dnowprefetch"),
    ("aes", "aesni"),
    ("altmovcr8", "cr8-legacy"),
    ("clfsh", "clflush"),
    ("cmplegacy", "cmp-legacy"),
    ("cmpxchg16", "cx16"),
    ("cmpxchg8", "cx8"),
    ("est", "eist"),
    ("invtsc", "itsc"),
    ("lahfsahf", "lahf-lm"),
    ("sse4.1", "sse4-1"),
    ("sse4.2", "sse4-2"),
    ("sysenter", "sep"),
    ("tm", "tm1"),
    ("tscdeadline", "tsc-deadline"),
];

/// Fields that are numbers: where they are, their first bit and their width.
const FIELDS: &[(&str, Slot, u32, u32)] = {
    use Register::{Eax, Ebx, Ecx};
    &[
        ("maxleaf", (0, None, Eax), 0, 32),
        ("stepping", (1, None, Eax), 0, 4),
        ("brandid", (1, None, Ebx), 0, 8),
        ("clflush", (1, None, Ebx), 8, 8),
        ("proccount", (1, None, Ebx), 16, 8),
        ("localapicid", (1, None, Ebx), 24, 8),
        ("procpkg", (4, Some(0), Eax), 26, 6),
        ("maxhvleaf", (0x4000_0000, None, Eax), 0, 8),
        ("nc", (0x8000_0008, None, Ecx), 0, 8),
        ("apicidsize", (0x8000_0008, None, Ecx), 12, 4),
    ]
};

/// `host,tm=0,sse3=0`
pub fn words(spec: &str) -> Result<CpuidRules, SpecError> {
    let mut rules = CpuidRules::default();
    let mut parts = places(spec, ',');
    match parts.next() {
        Some((_, "host")) => {}
        Some((at, word)) => {
            return Err(wrong(
                at,
                word,
                "expected `host` first, such as host,sse4-2=0".to_owned(),
            ));
        }
        None => {}
    }
    for (at, part) in parts {
        let Some((key, value)) = part.split_once('=') else {
            return Err(wrong(
                at,
                part,
                format!("`{part}`: expected a feature and a value, such as sse4-2=0"),
            ));
        };
        feature(&mut rules, key.trim(), value.trim()).map_err(|message| wrong(at, part, message))?;
    }
    Ok(rules)
}

fn feature(rules: &mut CpuidRules, key: &str, value: &str) -> Result<(), String> {
    if let "family" | "model" = key {
        let value = number(value).ok_or_else(|| format!("{key}={value}: that is no number"))?;
        return identity(rules, key, value);
    }
    if let Some((_, slot, first, width)) = FIELDS.iter().find(|(name, ..)| *name == key) {
        let value = number(value).ok_or_else(|| format!("{key}={value}: that is no number"))?;
        if u64::from(value) >> width != 0 {
            return Err(format!("{key}={value}: it has {width} bits"));
        }
        rules.field(*slot, *first, *width, value);
        return Ok(());
    }
    let name = key.to_ascii_lowercase().replace('_', "-");
    let name = ALIASES
        .iter()
        .find(|(alias, _)| *alias == name)
        .map_or(name.as_str(), |(_, name)| name);
    let feature = features::named(name).ok_or_else(|| format!("there is no CPU feature `{key}`"))?;
    let slot = WORDS.get(feature.word()).copied().flatten();
    let slot = slot.ok_or_else(|| format!("`{key}` is no bit of CPUID"))?;
    let mut letters = value.chars();
    match (letters.next(), letters.next()) {
        (Some(what), None) if rules.set(slot, feature.bit(), what) => Ok(()),
        _ => Err(format!("{key}={value}: a feature is 1, 0, x, k or s")),
    }
}

/// Family and model have a long part that small ones leave empty (SDM 2A "CPUID", `Version Information`).
fn identity(rules: &mut CpuidRules, key: &str, value: u32) -> Result<(), String> {
    let slot = (1, None, Register::Eax);
    match (key, value) {
        ("family", 0..=0x10e) => {
            rules.field(slot, 8, 4, value.min(0xf));
            rules.field(slot, 20, 8, value.saturating_sub(0xf));
        }
        ("model", 0..=0xff) => {
            rules.field(slot, 4, 4, value & 0xf);
            rules.field(slot, 16, 4, value >> 4);
        }
        _ => return Err(format!("{key}={value} is too large")),
    }
    Ok(())
}

/// `1:ecx=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx0,edx=...`, and `7,0:ebx=...` of a leaf with subleaves.
pub fn bits(rules: &mut CpuidRules, spec: &str) -> Result<(), SpecError> {
    let Some((place, registers)) = spec.split_once(':') else {
        return Err(wrong(0, spec, format!("`{spec}`: expected LEAF:REGISTER=BITS")));
    };
    let (leaf, subleaf) = match place.split_once(',') {
        Some((leaf, subleaf)) => (number(leaf), number(subleaf).map(Some)),
        None => (number(place), Some(None)),
    };
    let (Some(leaf), Some(subleaf)) = (leaf, subleaf) else {
        return Err(wrong(
            0,
            place,
            format!("`{place}` is no leaf, such as 1, 0x80000001 or 7,0"),
        ));
    };
    for (at, part) in places(registers, ',') {
        let at = place.len() + 1 + at;
        let (name, bits) = part.split_once('=').unwrap_or((part, ""));
        let register = Register::ALL.iter().find(|(known, _)| *known == name.trim());
        let Some((_, register)) = register else {
            return Err(wrong(at, part, format!("`{name}` is not eax, ebx, ecx or edx")));
        };
        let bits = bits.trim();
        if bits.chars().count() != 32 {
            return Err(wrong(
                at,
                part,
                format!("{name}: expected 32 bits, the highest first, each 1, 0, x, k or s"),
            ));
        }
        for (bit, what) in (0..32).rev().zip(bits.chars()) {
            if !rules.set((leaf, subleaf, *register), bit, what) {
                return Err(wrong(at, part, format!("{name}: `{what}` is not 1, 0, x, k or s")));
            }
        }
    }
    Ok(())
}

fn number(word: &str) -> Option<u32> {
    let word = word.trim();
    match word.strip_prefix("0x") {
        Some(hex) if hex.chars().all(|c| c.is_ascii_hexdigit()) => u32::from_str_radix(hex, 16).ok(),
        None if word.chars().all(|c| c.is_ascii_digit()) => word.parse().ok(),
        _ => None,
    }
}

/// The trimmed parts of a list, and where each begins.
fn places(spec: &str, separator: char) -> impl Iterator<Item = (usize, &str)> {
    let mut start = 0;
    spec.split(separator).map(move |raw| {
        let at = start + (raw.len() - raw.trim_start().len());
        start += raw.len() + separator.len_utf8();
        (at, raw.trim())
    })
}

fn wrong(at: usize, word: &str, message: String) -> SpecError {
    SpecError {
        range: at..at + word.len(),
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(rules: &CpuidRules) -> CpuidRule {
        assert_eq!(rules.0.len(), 1, "{rules:?}");
        rules.0[0]
    }

    #[test]
    fn both_ways_of_writing_mean_the_same() {
        let by_name = words("host,tm=0,sse3=0").expect("is right");
        let mut by_bit = CpuidRules::default();
        let spec = "1:edx=xx0xxxxxxxxxxxxxxxxxxxxxxxxxxxxx,ecx=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx0";
        bits(&mut by_bit, spec).expect("is right");
        assert_eq!(by_name, by_bit);
    }

    #[test]
    fn a_family_beyond_15_has_two_parts() {
        let rule = only(&words("host,family=0x17,model=0x31").expect("is right"));
        assert_eq!((rule.leaf, rule.ones), (1, 0x0083_0f10));
        assert_eq!(rule.zeroes & rule.ones, 0);
        assert!(words("host,family=0x10f").is_err());
    }

    #[test]
    fn the_last_word_about_a_bit_counts() {
        let rule = only(&words("host,avx2=1,bmi1=k,avx2=0").expect("is right"));
        assert_eq!((rule.leaf, rule.subleaf, rule.register), (7, Some(0), Register::Ebx));
        assert_eq!((rule.ones, rule.zeroes, rule.host), (0, 1 << 5, 1 << 3));
    }

    #[test]
    fn every_name_of_the_header_is_known() {
        for (alias, name) in ALIASES {
            assert!(features::named(name).is_some(), "{alias}");
        }
        for name in [
            "lahf-lm",
            "sse4-1",
            "sse4.2",
            "itsc",
            "hypervisor",
            "3dnow",
            "erms",
            "sse4_2",
        ] {
            assert!(words(&format!("host,{name}=0")).is_ok(), "{name}");
        }
    }

    #[test]
    fn slips_are_shown_where_they_are() {
        for (spec, range) in [
            ("tm=0", 0..4),
            ("host,nonsense=0", 5..15),
            ("host,tm=2", 5..9),
            ("host, tm", 6..8),
            ("host,nc=256", 5..11),
            ("host,rdcl-no=1", 5..14),
        ] {
            assert_eq!(words(spec).expect_err(spec).range, range, "{spec}");
        }
        for spec in ["1", "x:ecx=", "1:ecx=01", "1:exx=x", "7,:ebx=x", "1:ecx=é"] {
            assert!(bits(&mut CpuidRules::default(), spec).is_err(), "{spec}");
        }
    }
}
