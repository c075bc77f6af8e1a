//! One domain's pirqs: its own numbers for the interrupts it was given.

use alloc::collections::BTreeMap;

use ferroxen_words::{Pirq, Port};

use crate::{Irq, Refused};

/// What a free number is wanted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FreeKind {
    /// A line: from the numbers that lines have, upwards.
    Line,
    /// Messages, so many next to each other: from the top, downwards.
    Messages(u32),
}

/// The lines with numbers below this have fixed meanings on a PC.
const LEGACY: u32 = 16;

/// What one pirq stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Meaning {
    /// Handed out, and for nothing yet.
    SetAside,
    /// An interrupt, and the port it rings if it is bound.
    Irq(Irq, Option<Port>),
}

/// One domain's table.
pub(crate) struct Pirqs {
    limit: u32,
    lines: u32,
    meanings: BTreeMap<u32, Meaning>,
}

impl Pirqs {
    /// An empty table: numbers below `limit`, of which those below `lines` are for lines.
    pub(crate) fn new(limit: u32, lines: u32) -> Pirqs {
        Pirqs {
            limit,
            lines: lines.min(limit),
            meanings: BTreeMap::new(),
        }
    }

    /// The irq behind a pirq, and its port.
    #[inline]
    pub(crate) fn get(&self, pirq: Pirq) -> Option<(Irq, Option<Port>)> {
        match self.meanings.get(&pirq.raw())? {
            Meaning::SetAside => None,
            Meaning::Irq(irq, port) => Some((*irq, *port)),
        }
    }

    pub(crate) fn find(&self, irq: Irq) -> Option<Pirq> {
        self.iter().find(|(_, found, _)| *found == irq).map(|(pirq, ..)| pirq)
    }

    /// Tells whether a pirq may be given a meaning.
    pub(crate) fn check_free(&self, pirq: Pirq) -> Result<(), Refused> {
        if pirq.raw() >= self.limit {
            return Err(Refused::NoSuchNumber);
        }
        match self.meanings.get(&pirq.raw()) {
            None | Some(Meaning::SetAside) => Ok(()),
            Some(Meaning::Irq(..)) => Err(Refused::PirqTaken),
        }
    }

    /// The lowest of `count` neighbouring free numbers.
    pub(crate) fn free(&self, kind: FreeKind) -> Result<Pirq, Refused> {
        let is_free = |number: &u32| !self.meanings.contains_key(number);
        let found = match kind {
            FreeKind::Line => (LEGACY..self.lines).find(is_free),
            FreeKind::Messages(count) => {
                let count = count.max(1);
                let last = self.limit.checked_sub(count).ok_or(Refused::NoneFree)?;
                (LEGACY..=last)
                    .rev()
                    .find(|first| (*first..*first + count).all(|number| is_free(&number)))
            }
        };
        found.map(Pirq::new).ok_or(Refused::NoneFree)
    }

    pub(crate) fn set_aside(&mut self, pirq: Pirq) {
        self.meanings.insert(pirq.raw(), Meaning::SetAside);
    }

    pub(crate) fn map(&mut self, pirq: Pirq, irq: Irq) {
        self.meanings.insert(pirq.raw(), Meaning::Irq(irq, None));
    }

    pub(crate) fn set_port(&mut self, pirq: Pirq, port: Option<Port>) {
        if let Some(Meaning::Irq(_, slot)) = self.meanings.get_mut(&pirq.raw()) {
            *slot = port;
        }
    }

    pub(crate) fn unmap(&mut self, pirq: Pirq) {
        self.meanings.remove(&pirq.raw());
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Pirq, Irq, Option<Port>)> + '_ {
        self.meanings.iter().filter_map(|(number, meaning)| match meaning {
            Meaning::SetAside => None,
            Meaning::Irq(irq, port) => Some((Pirq::new(*number), *irq, *port)),
        })
    }

    pub(crate) fn limit(&self) -> u32 {
        self.limit
    }
}
