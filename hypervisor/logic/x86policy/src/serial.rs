//! Policies as tools exchange them: a list of leaves and a list of registers (`xen_cpuid_leaf_t`, `xen_msr_entry_t`).

use crate::msr::number;
use crate::policy::{
    BASIC, CACHES, EXTENDED, EXTENDED_BASE, FEATURES, Leaf, Policy, STATES, STATES_LEAF, TOPOLOGY, cache_type,
    has_subleaves, level_type,
};

/// The most leaves that [`Policy::leaves`] gives.
pub const MAX_LEAVES: u32 = (BASIC + CACHES - 1 + FEATURES - 1 + TOPOLOGY - 1 + STATES - 1 + EXTENDED + 2) as u32;
/// How many registers a policy has.
pub const REGISTERS: u32 = 2;
/// First leaf of a hypervisor, and of a second interface of it.
const HYPERVISORS: [u32; 2] = [0x4000_0000, 0x4000_0100];

/// One leaf of the list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// The leaf's number.
    pub leaf: u32,
    /// The subleaf's number, if the leaf has subleaves.
    pub subleaf: Option<u32>,
    /// What it says.
    pub says: Leaf,
}

/// A policy has no such leaf, or no such register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoSuchPlace;

impl Policy {
    /// All leaves, in order.
    pub fn leaves(&self) -> impl Iterator<Item = Record> + '_ {
        let last = self.basic[0].a.min(BASIC as u32 - 1);
        let basic = (0..=last).flat_map(|leaf| self.records_of(leaf));
        let hypervisors = HYPERVISORS
            .into_iter()
            .zip([self.hypervisor_limit, self.hypervisor2_limit])
            .map(|(leaf, limit)| single(leaf, Leaf::new([limit, 0, 0, 0])));
        let last = (self.extended[0].a & 0xffff).min(EXTENDED as u32 - 1) as usize;
        let extended = (EXTENDED_BASE..)
            .zip(&self.extended[..=last])
            .map(|(leaf, &says)| single(leaf, says));
        basic.chain(hypervisors).chain(extended)
    }

    fn records_of(&self, leaf: u32) -> impl Iterator<Item = Record> + '_ {
        let lone = &self.basic[leaf as usize..][..1];
        let (slots, last): (&[Leaf], usize) = match leaf {
            4 => (&self.caches, end_of(&self.caches, |leaf| cache_type(leaf) == 0)),
            7 => (&self.features, self.features[0].a as usize),
            0xb => (&self.topology, end_of(&self.topology, |leaf| level_type(leaf) == 0)),
            STATES_LEAF => (&self.states, (63 - (self.state_bits() | 0b10).leading_zeros()) as usize),
            _ => (lone, 0),
        };
        (0u32..)
            .zip(slots)
            .take(last.saturating_add(1))
            .map(move |(subleaf, &says)| Record {
                leaf,
                subleaf: has_subleaves(leaf).then_some(subleaf),
                says,
            })
    }

    /// Takes one leaf of somebody's list over.
    pub fn take_leaf(&mut self, record: Record) -> Result<(), NoSuchPlace> {
        let Record { leaf, subleaf, says } = record;
        let slot = match subleaf {
            Some(subleaf) => {
                let slots: &mut [Leaf] = match leaf {
                    4 => &mut self.caches,
                    7 => &mut self.features,
                    0xb => &mut self.topology,
                    STATES_LEAF => &mut self.states,
                    _ => return Err(NoSuchPlace),
                };
                slots.get_mut(subleaf as usize)
            }
            None if leaf == HYPERVISORS[0] => {
                self.hypervisor_limit = says.a;
                return Ok(());
            }
            None if leaf == HYPERVISORS[1] => {
                self.hypervisor2_limit = says.a;
                return Ok(());
            }
            None if has_subleaves(leaf) => return Err(NoSuchPlace),
            None if leaf >= EXTENDED_BASE => self.extended.get_mut((leaf - EXTENDED_BASE) as usize),
            None => self.basic.get_mut(leaf as usize),
        };
        *slot.ok_or(NoSuchPlace)? = says;
        Ok(())
    }

    /// All registers.
    pub fn registers(&self) -> [(u32, u64); REGISTERS as usize] {
        [
            (number::PLATFORM_INFO, self.platform_info),
            (number::ARCH_CAPABILITIES, self.arch_caps),
        ]
    }

    /// Takes one register of somebody's list over.
    pub fn take_register(&mut self, register: u32, value: u64) -> Result<(), NoSuchPlace> {
        match register {
            number::PLATFORM_INFO => self.platform_info = value,
            number::ARCH_CAPABILITIES => self.arch_caps = value,
            _ => return Err(NoSuchPlace),
        }
        Ok(())
    }
}

fn single(leaf: u32, says: Leaf) -> Record {
    Record {
        leaf,
        subleaf: None,
        says,
    }
}

/// Where a list of subleaves ends: the first that says so, or the last there is room for.
fn end_of(slots: &[Leaf], is_end: fn(&Leaf) -> bool) -> usize {
    slots.iter().position(is_end).unwrap_or(slots.len() - 1)
}
