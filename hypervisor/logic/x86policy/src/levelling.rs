//! Levelling: what is hidden of a processor, so that guests see the same on every host of a pool.
//!
//! A host's command line may take features away from all of its guests ([`hidden`]). What a guest learns from us is its
//! policy; but CPUID, executed in its user mode, asks the processor. AMD's have registers that say what it answers in
//! the leaves of features ([`Masks`]): each domain has its own values for them, which are loaded when it runs.
//!
//! Always true: a mask shows no feature that the processor did not tell of before, but for the two bits that make it
//! tell how its APIC and XSAVE are just now.

use crate::features::{self as f, FeatureSet, named};
use crate::policy::Policy;

/// Values of the three registers; in each the leaf's later register stands above the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Masks {
    /// Leaf 1: `ecx` and `edx`.
    pub features: u64,
    /// Leaf 0x80000001: `ecx` and `edx`.
    pub extended: u64,
    /// Leaf 7: `eax` and `ebx`.
    pub structured: u64,
}

/// Bit of [`Masks::features`]: OSXSAVE is told as it is.
pub const OSXSAVE: u64 = 1 << (32 + 27);
/// Likewise, of the APIC.
const APIC: u64 = 1 << 9;

const fn pair(high: u32, low: u32) -> u64 {
    (high as u64) << 32 | low as u64
}

impl Masks {
    /// What remains if the command line masks as well: leaf 1's `ecx` and `edx`, the extended ones, leaf 7's `eax` and `ebx`.
    pub const fn limited(self, [c, d, extended_c, extended_d, seven_a, seven_b]: [u32; 6]) -> Masks {
        Masks {
            features: self.features & pair(c, d),
            extended: self.extended & pair(extended_c, extended_d),
            structured: self.structured & pair(seven_a, seven_b),
        }
    }

    /// What a domain's processor is to say: of `self`, which is all that it can, what its policy has.
    pub fn of(self, policy: &Policy, host: &Policy) -> Masks {
        // By these a guest reads leaves that cannot be masked.
        let as_host = |set: FeatureSet, feature| if host.has(feature) { set.with(feature) } else { set };
        let set = [f::HTT, f::X2APIC, f::CMP_LEGACY]
            .into_iter()
            .fold(policy.feature_set(), as_host);
        let [d, c, extended_d, extended_c, _, seven_b, ..] = set.0;
        let Masks {
            features,
            extended,
            structured,
        } = self.limited([c, d, extended_c, extended_d, policy.features[0].a, seven_b]);
        Masks {
            features: features | OSXSAVE | APIC,
            extended,
            structured,
        }
    }
}

/// The features that a list of words turns off (`no-avx`, `avx=0`); `unknown` is told of words that name none.
pub fn hidden(words: &str, mut unknown: impl FnMut(&str)) -> FeatureSet {
    words.split(',').fold(FeatureSet::NONE, |set, word| {
        let (name, value) = match (word.strip_prefix("no-"), word.split_once('=')) {
            (Some(name), _) => (name, "no"),
            (None, Some(assigned)) => assigned,
            (None, None) => (word, "yes"),
        };
        match named(name) {
            Some(feature) if matches!(value, "no" | "off" | "false" | "disable" | "0") => set.with(feature),
            // What a processor has not cannot be turned on.
            Some(_) => set,
            None => {
                unknown(word);
                set
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::{String, ToString};
    use std::vec::Vec;

    fn with(features: &[f::Feature]) -> Policy {
        let mut policy = Policy::EMPTY;
        let set = features
            .iter()
            .fold(FeatureSet::NONE, |set, feature| set.with(*feature));
        (policy.basic[1].d, policy.basic[1].c) = (set.0[0], set.0[1]);
        (policy.extended[1].d, policy.extended[1].c) = (set.0[2], set.0[3]);
        (policy.features[0].a, policy.features[0].b) = (2, set.0[5]);
        policy
    }

    const ALL: Masks = Masks {
        features: !0,
        extended: !0,
        structured: !0,
    };

    #[test]
    fn a_domain_is_told_of_the_features_that_its_policy_has() {
        let masks = ALL.of(&with(&[f::SSE3, f::LM, f::FSGSBASE]), &Policy::EMPTY);
        assert_eq!(masks.features, 1 << 32 | OSXSAVE | APIC);
        assert_eq!(masks.extended, 1 << 29);
        assert_eq!(masks.structured, 2 << 32 | 1);
    }

    #[test]
    fn nothing_is_told_that_the_processor_did_not_tell() {
        let told = Masks {
            features: 1 << 32,
            extended: 0,
            structured: 1,
        };
        let masks = told.of(&with(&[f::SSE3, f::CX16, f::LM, f::FSGSBASE]), &Policy::EMPTY);
        assert_eq!(masks.features & !(OSXSAVE | APIC), 1 << 32);
        assert_eq!((masks.extended, masks.structured), (0, 1));
    }

    #[test]
    fn what_other_leaves_are_read_by_is_told_as_the_host_has_it() {
        let host = with(&[f::HTT, f::CMP_LEGACY]);
        let masks = ALL.of(&with(&[]), &host);
        assert_eq!(masks.features & 1 << 28, 1 << 28);
        assert_eq!(masks.extended, 1 << (32 + 1));
        assert_eq!(ALL.of(&host, &Policy::EMPTY), masks, "and as the policy has it");
    }

    #[test]
    fn the_command_line_masks_too() {
        let masks = ALL.limited([!0, 0, !0, !0, !0, 0xf]);
        assert_eq!(
            (masks.features, masks.structured),
            (0xffff_ffff << 32, 0xffff_ffff_0000_000f)
        );
    }

    #[test]
    fn features_are_turned_off_by_name() {
        let mut unknown: Vec<String> = Vec::new();
        let set = hidden("no-avx,rdrand=0,sse3=off,cx16=yes,aesni,warp", |word| {
            unknown.push(word.to_string())
        });
        let expected = [f::AVX, f::RDRAND, f::SSE3]
            .into_iter()
            .fold(FeatureSet::NONE, FeatureSet::with);
        assert_eq!(set, expected);
        assert_eq!(unknown, ["warp"]);
    }

    #[test]
    fn what_is_hidden_takes_along_what_stands_on_it() {
        let mut policy = with(&[f::FPU, f::FXSR, f::SSE, f::SSE2, f::SSE3, f::SSSE3]);
        policy.hide(&Policy::EMPTY, hidden("no-sse3", |_| {}));
        assert!(policy.has(f::SSE2) && !policy.has(f::SSE3) && !policy.has(f::SSSE3));
    }
}
