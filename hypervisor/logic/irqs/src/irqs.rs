//! The state machine of interrupts.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;

use ferroxen_words::{CpuId, DomId, Gsi, Pirq, Port};

use crate::Refused;
use crate::pirqs::{FreeKind, Pirqs};
use crate::vectors::{Place, Vectors};

/// Domains that may share one line.
pub const MAX_SHARERS: usize = 8;
/// ISA's interrupts, which may sit on other pins than their numbers say.
const ISA: u32 = 16;

/// An interrupt as the hypervisor counts them. The first are lines, by the GSI that Domain 0 knows them as.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Irq(u32);

impl Irq {
    /// Wraps a number.
    pub const fn new(number: u32) -> Irq {
        Irq(number)
    }

    /// The number.
    pub const fn raw(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Irq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "irq {}", self.0)
    }
}

impl fmt::Debug for Irq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How a line signals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trigger {
    /// A change interrupts once.
    Edge,
    /// It interrupts for as long as the line is held.
    Level,
}

/// Which voltage means "interrupt".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Polarity {
    /// High is active (ISA).
    High,
    /// Low is active (PCI).
    Low,
}

/// A line into an IO-APIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Line {
    /// The pin, in ACPI's numbering. For ISA interrupts that firmware moved this is not the irq's own number.
    pub gsi: Gsi,
    /// How it signals.
    pub trigger: Trigger,
    /// Which voltage is active.
    pub polarity: Polarity,
}

/// An ISA interrupt that firmware says is not what it would be by default ("interrupt source override").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Override {
    /// The ISA interrupt.
    pub isa: u8,
    /// The pin it leads to.
    pub gsi: Gsi,
    /// How it signals.
    pub trigger: Trigger,
    /// Which voltage is active.
    pub polarity: Polarity,
}

/// The lines that a machine has, as its ACPI tables tell.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    /// One more than the highest GSI.
    pub count: u32,
    /// GSIs below `count` that no IO-APIC has a pin for.
    pub absent: Vec<Gsi>,
    /// What firmware says of ISA interrupts.
    pub overrides: Vec<Override>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    /// A line; `None` if no pin leads to it.
    Line { line: Option<Line>, is_settled: bool },
    /// A message of a device: number `index` of a block of `count`.
    Message { index: u8, count: u8 },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Guest {
    domain: DomId,
    pirq: Pirq,
    port: Port,
    owes_eoi: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum User {
    Nobody,
    /// The hypervisor, which knows it by this token.
    Hypervisor(u32),
    Guests {
        shares: bool,
        guests: Vec<Guest>,
    },
}

#[derive(Clone, Debug)]
struct Descriptor {
    source: Source,
    place: Option<Place>,
    /// Where it arrived before it was last moved: one may still be on its way there.
    former: Option<Place>,
    user: User,
}

impl Descriptor {
    fn guests(&self) -> &[Guest] {
        match &self.user {
            User::Guests { guests, .. } => guests,
            _ => &[],
        }
    }

    fn guests_mut(&mut self) -> &mut [Guest] {
        match &mut self.user {
            User::Guests { guests, .. } => guests,
            _ => &mut [],
        }
    }

    fn line(&self) -> Option<Line> {
        match self.source {
            Source::Line { line, .. } => line,
            Source::Message { .. } => None,
        }
    }

    fn is_level(&self) -> bool {
        self.line().is_some_and(|line| line.trigger == Trigger::Level)
    }

    fn awaits_eoi(&self) -> bool {
        self.guests().iter().any(|guest| guest.owes_eoi)
    }
}

/// What to do with the controllers when an interrupt has arrived.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Acknowledge {
    /// End it at the local APIC.
    End,
    /// Mask the line, then end it at the local APIC.
    MaskAndEnd(Gsi),
}

/// Whom to tell: ring `port` of `domain`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target {
    /// Which domain.
    pub domain: DomId,
    /// Its name for the interrupt.
    pub pirq: Pirq,
    /// The port it bound.
    pub port: Port,
}

/// An interrupt arrived; this is whose it is.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arrival {
    /// Nobody's: end it and forget it.
    Stray,
    /// The hypervisor's, by its token.
    Hypervisors(u32, Acknowledge),
    /// These domains'.
    Guests(Acknowledge, [Option<Target>; MAX_SHARERS]),
}

/// What an EOI from a domain comes to.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Eoi {
    /// Nothing: others still owe theirs, or it needed none.
    Nothing,
    /// Let the line interrupt again.
    Unmask(Gsi),
}

/// What to do because an interrupt found its first user.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Started {
    /// Nothing: it ran already.
    Already,
    /// Route the line to the place and unmask it.
    Line(Line, Place),
    /// Unmask the device's message.
    Message(Irq),
}

/// What to do because an interrupt lost a user.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stopped {
    /// Nothing: others still use it.
    Nothing,
    /// The one that left owed the last EOI: let the line interrupt again.
    Unmask(Gsi),
    /// Mask the line.
    Line(Gsi),
    /// Mask the device's message.
    Message(Irq),
}

/// What to do because an interrupt is to arrive elsewhere.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moved {
    /// Nothing: it stays.
    Nowhere,
    /// Route the line anew; `is_masked` tells whether it waits for an EOI and must stay masked.
    Line {
        /// The line.
        line: Line,
        /// Where it is to arrive.
        place: Place,
        /// Stays masked.
        is_masked: bool,
    },
    /// Write the device's message anew.
    Message(Irq, Place),
}

/// What to do because a pirq was taken from a domain.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unmapped {
    /// The (first) interrupt.
    pub irq: Irq,
    /// What its hardware needs, if the domain still had it bound; the port is no pirq's any more.
    pub stopped: Stopped,
    /// How many messages of a device are to be taken back, from `irq` on; 0 for a line.
    pub messages: u8,
}

/// What a domain may know about a pirq.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Status {
    /// Each interrupt wants a `PHYSDEVOP_eoi`.
    pub needs_eoi: bool,
    /// Another domain hears of it too.
    pub is_shared: bool,
}

/// All interrupts of the machine.
pub struct Irqs {
    descriptors: Vec<Option<Descriptor>>,
    lines: u32,
    limit: u32,
    vectors: Vectors,
    domains: BTreeMap<DomId, Pirqs>,
}

/// Messages that all devices together may have beside the lines.
const MAX_MESSAGES: u32 = 4096;

impl Irqs {
    /// The interrupts of a machine with so many CPUs: lines as firmware describes them, and no messages yet.
    pub fn new(cpus: u32, lines: &Lines) -> Irqs {
        let count = lines.count.max(ISA);
        let descriptors = (0..count)
            .map(|number| {
                let line = line_by_firmware(number, lines);
                // The timer's, which is nobody else's.
                let is_settled = number == 0;
                let source = Source::Line { line, is_settled };
                Some(Descriptor {
                    source,
                    place: None,
                    former: None,
                    user: User::Nobody,
                })
            })
            .collect();
        Irqs {
            descriptors,
            lines: count,
            limit: count + MAX_MESSAGES,
            vectors: Vectors::new(cpus),
            domains: BTreeMap::new(),
        }
    }

    /// How many lines there are: numbers below this are lines, in a domain's table as in ours.
    pub fn lines(&self) -> u32 {
        self.lines
    }

    /// Gives a domain a table with room for so many pirqs beyond the lines. A second time changes nothing.
    pub fn add_domain(&mut self, domain: DomId, extra: u32) {
        let (lines, limit) = (self.lines, self.lines.saturating_add(extra));
        self.domains.entry(domain).or_insert_with(|| Pirqs::new(limit, lines));
    }

    /// One more than the highest pirq of a domain; 0 if it has no table.
    pub fn pirq_limit(&self, domain: DomId) -> u32 {
        self.domains.get(&domain).map_or(0, Pirqs::limit)
    }

    /// Sets a free pirq aside for a domain that wants to know the number first.
    pub fn set_aside(&mut self, domain: DomId, kind: FreeKind) -> Result<Pirq, Refused> {
        let table = self.table_mut(domain)?;
        let first = table.free(kind)?;
        let count = if let FreeKind::Messages(count) = kind {
            count.max(1)
        } else {
            1
        };
        for number in first.raw()..first.raw().saturating_add(count) {
            table.set_aside(Pirq::new(number));
        }
        Ok(first)
    }

    /// The irq that a line's number means.
    pub fn line_irq(&self, number: u32) -> Result<Irq, Refused> {
        if number < self.lines {
            Ok(Irq(number))
        } else {
            Err(Refused::NoSuchNumber)
        }
    }

    /// The irq that a pin carries.
    pub fn irq_by_gsi(&self, gsi: Gsi) -> Option<Irq> {
        let carries = |descriptor: &Option<Descriptor>| {
            descriptor
                .as_ref()
                .and_then(Descriptor::line)
                .is_some_and(|line| line.gsi == gsi)
        };
        let number = self.descriptors.iter().take(self.lines as usize).position(carries)?;
        u32::try_from(number).ok().map(Irq)
    }

    /// Settles how a line signals, before anybody uses it. Firmware's word stands until then.
    pub fn set_up_line(&mut self, irq: Irq, trigger: Trigger, polarity: Polarity) -> Result<(), Refused> {
        let descriptor = self.get_mut(irq)?;
        let Source::Line { line, is_settled } = &mut descriptor.source else {
            return Err(Refused::NoSuchNumber);
        };
        let line = line.as_mut().ok_or(Refused::NoPin)?;
        if *is_settled || descriptor.user != User::Nobody {
            return Err(Refused::AlreadySetUp);
        }
        (line.trigger, line.polarity) = (trigger, polarity);
        *is_settled = true;
        Ok(())
    }

    /// Takes a line for the hypervisor's own use, under a token of its choice.
    pub fn claim(&mut self, irq: Irq, token: u32, cpu: CpuId) -> Result<Started, Refused> {
        let descriptor = self.get(irq)?;
        let line = descriptor.line().ok_or(Refused::NoPin)?;
        if descriptor.user != User::Nobody {
            return Err(Refused::NotShared);
        }
        let place = self.place(irq, cpu)?;
        self.get_mut(irq)?.user = User::Hypervisor(token);
        Ok(Started::Line(line, place))
    }

    /// Gives a domain a pirq for a line. Without a wish it gets the line's own number if that is free.
    ///
    /// Asking again for what is already so is no error, and gives the same answer. A line that the hypervisor uses
    /// can be mapped, as every line can, but not bound.
    pub fn map_line(&mut self, domain: DomId, wanted: Option<Pirq>, irq: Irq) -> Result<Pirq, Refused> {
        let descriptor = self.get(irq)?;
        if !matches!(descriptor.source, Source::Line { .. }) {
            return Err(Refused::NoSuchNumber);
        }
        let table = self.table_mut(domain)?;
        if let Some(had) = table.find(irq) {
            return if wanted.is_none_or(|wanted| wanted == had) {
                Ok(had)
            } else {
                Err(Refused::IrqTaken)
            };
        }
        let pirq = match wanted {
            Some(pirq) => pirq,
            None if table.check_free(Pirq::new(irq.0)).is_ok() => Pirq::new(irq.0),
            None => table.free(FreeKind::Line)?,
        };
        table.check_free(pirq)?;
        table.map(pirq, irq);
        Ok(pirq)
    }

    /// Makes a block of messages for a device and gives a domain pirqs for them, next to each other.
    ///
    /// Answers the first pirq and irq, and where the first message is to arrive; the others follow it.
    pub fn map_messages(
        &mut self,
        domain: DomId,
        wanted: Option<Pirq>,
        count: u8,
        cpu: CpuId,
    ) -> Result<(Pirq, Irq, Place), Refused> {
        if count == 0 || count > crate::vectors::MAX_BLOCK {
            return Err(Refused::NoSuchNumber);
        }
        let table = self.table(domain)?;
        let first_pirq = match wanted {
            Some(pirq) => pirq,
            None => table.free(FreeKind::Messages(u32::from(count)))?,
        };
        let pirqs = first_pirq.raw()
            ..first_pirq
                .checked_add(u32::from(count))
                .ok_or(Refused::NoSuchNumber)?
                .raw();
        for pirq in pirqs.clone() {
            table.check_free(Pirq::new(pirq))?;
        }
        let irqs = self.free_irqs(count)?;
        let place = self.vectors.take_block(&irqs, cpu).ok_or(Refused::NoneFree)?;
        let first = *irqs.first().ok_or(Refused::NoneFree)?;
        for ((irq, index), vector) in irqs.iter().zip(0..).zip(place.vector..) {
            let source = Source::Message { index, count };
            let place = Some(Place { vector, ..place });
            self.put(
                *irq,
                Descriptor {
                    source,
                    place,
                    former: None,
                    user: User::Nobody,
                },
            );
        }
        let table = self.table_mut(domain)?;
        for (pirq, irq) in pirqs.zip(irqs) {
            table.map(Pirq::new(pirq), irq);
        }
        Ok((first_pirq, first, place))
    }

    /// Takes a pirq from a domain, and from its port if it is bound; a block of messages goes as a whole.
    pub fn unmap(&mut self, domain: DomId, pirq: Pirq) -> Result<Unmapped, Refused> {
        let (irq, _) = self.table(domain)?.get(pirq).ok_or(Refused::NotMapped)?;
        match self.get(irq)?.source {
            Source::Line { .. } => {
                let stopped = self.unbind(domain, pirq).unwrap_or(Stopped::Nothing);
                self.table_mut(domain)?.unmap(pirq);
                Ok(Unmapped {
                    irq,
                    stopped,
                    messages: 0,
                })
            }
            Source::Message { index: 0, count } => {
                let mut stopped = Stopped::Nothing;
                for offset in (0..u32::from(count)).rev() {
                    let (member, member_irq) = (Pirq::new(pirq.raw() + offset), Irq(irq.0 + offset));
                    if let Ok(Stopped::Message(_)) = self.unbind(domain, member) {
                        stopped = Stopped::Message(irq);
                    }
                    self.table_mut(domain)?.unmap(member);
                    self.release_irq(member_irq);
                }
                Ok(Unmapped {
                    irq,
                    stopped,
                    messages: count,
                })
            }
            Source::Message { .. } => Err(Refused::NotTheFirst),
        }
    }

    /// Takes any one pirq (or block) from a domain that is going away. `None` when it has none left; its table is then
    /// gone too.
    pub fn unmap_any(&mut self, domain: DomId) -> Option<Unmapped> {
        // The first of a block has the lowest number, so it is met first.
        let pirq = self.domains.get(&domain)?.iter().next().map(|(pirq, ..)| pirq);
        match pirq {
            Some(pirq) => self.unmap(domain, pirq).ok(),
            None => {
                self.domains.remove(&domain);
                None
            }
        }
    }

    /// Lets a pirq ring a port. The first user of an interrupt starts it, at `cpu` if there is room.
    pub fn bind(
        &mut self,
        domain: DomId,
        pirq: Pirq,
        port: Port,
        will_share: bool,
        cpu: CpuId,
    ) -> Result<Started, Refused> {
        let (irq, bound) = self.table(domain)?.get(pirq).ok_or(Refused::NotMapped)?;
        if bound.is_some() {
            return Err(Refused::AlreadyBound);
        }
        let descriptor = self.get(irq)?;
        let line = match descriptor.source {
            Source::Line { line, .. } => Some(line.ok_or(Refused::NoPin)?),
            Source::Message { .. } => None,
        };
        let guest = Guest {
            domain,
            pirq,
            port,
            owes_eoi: false,
        };
        let started = match &descriptor.user {
            User::Hypervisor(_) => return Err(Refused::HypervisorsOwn),
            User::Guests { shares, .. } if !*shares || !will_share => return Err(Refused::NotShared),
            User::Guests { guests, .. } if guests.len() >= MAX_SHARERS => return Err(Refused::TooManySharers),
            User::Guests { .. } => Started::Already,
            User::Nobody => match line {
                Some(line) => Started::Line(line, self.place(irq, cpu)?),
                None => Started::Message(irq),
            },
        };
        match &mut self.get_mut(irq)?.user {
            User::Guests { guests, .. } => guests.push(guest),
            user => {
                *user = User::Guests {
                    shares: will_share,
                    guests: Vec::from([guest]),
                }
            }
        }
        self.table_mut(domain)?.set_port(pirq, Some(port));
        Ok(started)
    }

    /// Takes a pirq from its port. The last user of an interrupt stops it.
    pub fn unbind(&mut self, domain: DomId, pirq: Pirq) -> Result<Stopped, Refused> {
        let (irq, bound) = self.table(domain)?.get(pirq).ok_or(Refused::NotMapped)?;
        bound.ok_or(Refused::NotBound)?;
        self.table_mut(domain)?.set_port(pirq, None);
        let descriptor = self.get_mut(irq)?;
        let awaited = descriptor.awaits_eoi();
        let User::Guests { guests, .. } = &mut descriptor.user else {
            return Err(Refused::NotBound);
        };
        guests.retain(|guest| (guest.domain, guest.pirq) != (domain, pirq));
        if !guests.is_empty() {
            return Ok(match descriptor.line() {
                Some(line) if awaited && !descriptor.awaits_eoi() => Stopped::Unmask(line.gsi),
                _ => Stopped::Nothing,
            });
        }
        descriptor.user = User::Nobody;
        match descriptor.line() {
            Some(line) => {
                self.give_back_places(irq);
                Ok(Stopped::Line(line.gsi))
            }
            None => Ok(Stopped::Message(irq)),
        }
    }

    /// Decides what an interrupt that arrived at `place` means.
    pub fn arrived(&mut self, place: Place) -> Arrival {
        let Some(irq) = self.vectors.owner(place) else {
            return Arrival::Stray;
        };
        let Ok(descriptor) = self.get_mut(irq) else {
            return Arrival::Stray;
        };
        let is_level = descriptor.is_level();
        let acknowledge = match descriptor.line() {
            Some(line) if is_level => Acknowledge::MaskAndEnd(line.gsi),
            _ => Acknowledge::End,
        };
        match &mut descriptor.user {
            // A line that was stopped while it interrupted is masked already.
            User::Nobody => Arrival::Stray,
            // The handler takes away the reason before it returns, so nothing needs to be held back.
            User::Hypervisor(token) => Arrival::Hypervisors(*token, Acknowledge::End),
            User::Guests { guests, .. } => {
                let mut targets = [None; MAX_SHARERS];
                for (slot, guest) in targets.iter_mut().zip(guests.iter_mut()) {
                    guest.owes_eoi = is_level;
                    *slot = Some(Target {
                        domain: guest.domain,
                        pirq: guest.pirq,
                        port: guest.port,
                    });
                }
                Arrival::Guests(acknowledge, targets)
            }
        }
    }

    /// A domain has dealt with the interrupt.
    pub fn eoi(&mut self, domain: DomId, pirq: Pirq) -> Result<Eoi, Refused> {
        let (irq, _) = self.table(domain)?.get(pirq).ok_or(Refused::NotMapped)?;
        let descriptor = self.get_mut(irq)?;
        let Some(line) = descriptor.line() else {
            return Ok(Eoi::Nothing);
        };
        let mut owed = false;
        for guest in descriptor.guests_mut() {
            if (guest.domain, guest.pirq) == (domain, pirq) {
                owed = core::mem::take(&mut guest.owes_eoi);
            }
        }
        Ok(if owed && !descriptor.awaits_eoi() {
            Eoi::Unmask(line.gsi)
        } else {
            Eoi::Nothing
        })
    }

    /// What a domain may know about a pirq; nothing is needed for one that stands for nothing.
    pub fn status(&self, domain: DomId, pirq: Pirq) -> Status {
        let descriptor = self
            .domains
            .get(&domain)
            .and_then(|table| table.get(pirq))
            .and_then(|(irq, _)| self.descriptors.get(irq.0 as usize)?.as_ref());
        Status {
            needs_eoi: descriptor.is_some_and(Descriptor::is_level),
            is_shared: descriptor.is_some_and(|descriptor| descriptor.guests().len() > 1),
        }
    }

    /// The irq behind a domain's pirq.
    pub fn irq_of(&self, domain: DomId, pirq: Pirq) -> Option<Irq> {
        Some(self.domains.get(&domain)?.get(pirq)?.0)
    }

    /// The port that a domain's pirq rings.
    pub fn port_of(&self, domain: DomId, pirq: Pirq) -> Option<Port> {
        self.domains.get(&domain)?.get(pirq)?.1
    }

    /// Where an interrupt arrives at present.
    pub fn place_of(&self, irq: Irq) -> Option<Place> {
        self.get(irq).ok()?.place
    }

    /// Every pirq of a domain that level-triggered lines stand behind: those that need EOIs.
    pub fn needing_eoi(&self, domain: DomId) -> impl Iterator<Item = Pirq> + '_ {
        let table = self.domains.get(&domain);
        table
            .into_iter()
            .flat_map(Pirqs::iter)
            .filter_map(|(pirq, irq, _)| self.get(irq).is_ok_and(Descriptor::is_level).then_some(pirq))
    }

    /// Lets an interrupt arrive at another CPU from now on. Members of a block stay: the device has one message.
    pub fn move_to(&mut self, irq: Irq, cpu: CpuId) -> Result<Moved, Refused> {
        let descriptor = self.get(irq)?;
        let (line, is_masked) = (descriptor.line(), descriptor.awaits_eoi());
        let Some(place) = descriptor.place else {
            return Ok(Moved::Nowhere);
        };
        let in_block = matches!(descriptor.source, Source::Message { count: 2.., .. });
        if place.cpu == cpu || in_block {
            return Ok(Moved::Nowhere);
        }
        let new = self.vectors.take(irq, cpu).ok_or(Refused::NoneFree)?;
        let descriptor = self.get_mut(irq)?;
        let oldest = descriptor.former.replace(place);
        descriptor.place = Some(new);
        if let Some(oldest) = oldest {
            self.vectors.give_back(oldest);
        }
        Ok(match line {
            Some(line) => Moved::Line {
                line,
                place: new,
                is_masked,
            },
            None => Moved::Message(irq, new),
        })
    }

    /// The vector that a line will use, for callers of the days when domains programmed IO-APICs.
    pub fn vector_of(&mut self, irq: Irq, cpu: CpuId) -> Result<u8, Refused> {
        Ok(self.place(irq, cpu)?.vector)
    }

    fn place(&mut self, irq: Irq, cpu: CpuId) -> Result<Place, Refused> {
        if let Some(place) = self.get(irq)?.place {
            return Ok(place);
        }
        let place = self.vectors.take(irq, cpu).ok_or(Refused::NoneFree)?;
        self.get_mut(irq)?.place = Some(place);
        Ok(place)
    }

    fn give_back_places(&mut self, irq: Irq) {
        let Ok(descriptor) = self.get_mut(irq) else { return };
        let places = [descriptor.place.take(), descriptor.former.take()];
        for place in places.into_iter().flatten() {
            self.vectors.give_back(place);
        }
    }

    fn release_irq(&mut self, irq: Irq) {
        self.give_back_places(irq);
        if let Some(slot) = self.descriptors.get_mut(irq.0 as usize) {
            *slot = None;
        }
    }

    /// Numbers for a block of messages, next to each other.
    fn free_irqs(&self, count: u8) -> Result<Vec<Irq>, Refused> {
        let count = u32::from(count);
        let is_free = |number: u32| self.descriptors.get(number as usize).is_none_or(Option::is_none);
        let first = (self.lines..=self.limit - count)
            .find(|first| (*first..*first + count).all(is_free))
            .ok_or(Refused::NoneFree)?;
        Ok((first..first + count).map(Irq).collect())
    }

    fn put(&mut self, irq: Irq, descriptor: Descriptor) {
        let index = irq.0 as usize;
        if self.descriptors.len() <= index {
            self.descriptors.resize_with(index + 1, || None);
        }
        self.descriptors[index] = Some(descriptor);
    }

    fn get(&self, irq: Irq) -> Result<&Descriptor, Refused> {
        self.descriptors
            .get(irq.0 as usize)
            .and_then(Option::as_ref)
            .ok_or(Refused::NoSuchNumber)
    }

    fn get_mut(&mut self, irq: Irq) -> Result<&mut Descriptor, Refused> {
        self.descriptors
            .get_mut(irq.0 as usize)
            .and_then(Option::as_mut)
            .ok_or(Refused::NoSuchNumber)
    }

    fn table(&self, domain: DomId) -> Result<&Pirqs, Refused> {
        self.domains.get(&domain).ok_or(Refused::NoSuchNumber)
    }

    fn table_mut(&mut self, domain: DomId) -> Result<&mut Pirqs, Refused> {
        self.domains.get_mut(&domain).ok_or(Refused::NoSuchNumber)
    }

    /// Checks what is always true; an error names what is not.
    pub fn audit(&self) -> Result<(), &'static str> {
        for (place, irq) in self.vectors.taken() {
            let descriptor = self
                .get(irq)
                .map_err(|_| "a vector belongs to an irq that is not there")?;
            if descriptor.place != Some(place) && descriptor.former != Some(place) {
                return Err("a vector's irq does not name it back");
            }
            let allowed = (crate::vectors::FIRST..=crate::vectors::LAST).contains(&place.vector)
                && !crate::vectors::RESERVED.contains(&place.vector);
            if !allowed {
                return Err("a reserved vector was handed out");
            }
        }
        for (descriptor, number) in self.descriptors.iter().zip(0..) {
            let Some(descriptor) = descriptor else { continue };
            self.audit_one(Irq(number), descriptor)?;
        }
        for (domain, table) in &self.domains {
            for (pirq, irq, port) in table.iter() {
                let descriptor = self
                    .get(irq)
                    .map_err(|_| "a pirq stands for an irq that is not there")?;
                let heard = descriptor
                    .guests()
                    .iter()
                    .find(|guest| (guest.domain, guest.pirq) == (*domain, pirq));
                if heard.map(|guest| guest.port) != port {
                    return Err("a pirq's port and its irq's guest disagree");
                }
            }
        }
        Ok(())
    }

    fn audit_one(&self, irq: Irq, descriptor: &Descriptor) -> Result<(), &'static str> {
        for place in [descriptor.place, descriptor.former].into_iter().flatten() {
            if self.vectors.owner(place) != Some(irq) {
                return Err("an irq's place belongs to another");
            }
        }
        if descriptor.awaits_eoi() && !descriptor.is_level() {
            return Err("an edge or message waits for an EOI");
        }
        if let User::Guests { shares, guests } = &descriptor.user {
            if guests.is_empty() || guests.len() > MAX_SHARERS || (guests.len() > 1 && !shares) {
                return Err("an irq has an impossible number of guests");
            }
            if descriptor.place.is_none() {
                return Err("a used irq arrives nowhere");
            }
            for guest in guests {
                let named = self.domains.get(&guest.domain).and_then(|table| table.get(guest.pirq));
                if named != Some((irq, Some(guest.port))) {
                    return Err("an irq's guest does not name it back");
                }
            }
        }
        Ok(())
    }
}

/// How a line is by firmware's word, or else by ISA's and PCI's custom. `None` if no pin leads to it.
fn line_by_firmware(number: u32, lines: &Lines) -> Option<Line> {
    let exists = |gsi: Gsi| gsi.raw() < lines.count && !lines.absent.contains(&gsi);
    let own = Gsi::new(number);
    let by_override = lines.overrides.iter().find(|moved| u32::from(moved.isa) == number);
    if let Some(moved) = by_override {
        return exists(moved.gsi).then_some(Line {
            gsi: moved.gsi,
            trigger: moved.trigger,
            polarity: moved.polarity,
        });
    }
    // Its own pin carries another ISA interrupt (the cascade's number carries the timer's, on every PC).
    let is_anothers = lines.overrides.iter().any(|moved| moved.gsi == own);
    if is_anothers || !exists(own) {
        return None;
    }
    Some(if number < ISA {
        Line {
            gsi: own,
            trigger: Trigger::Edge,
            polarity: Polarity::High,
        }
    } else {
        Line {
            gsi: own,
            trigger: Trigger::Level,
            polarity: Polarity::Low,
        }
    })
}

#[cfg(test)]
mod tests;
