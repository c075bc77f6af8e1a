//! One domain's ports.

use alloc::vec::Vec;
use ferroxen_abi::xen::{EVTCHN_2L_PORTS, virq};
use ferroxen_words::{DomId, Pirq, Port, VcpuId};

/// What a domain may use, fixed when it is created.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The highest port (`max_evtchn_port` of createdomain); more than the ABI has is cut to that.
    pub max_port: u32,
    /// How many vcpus the domain may have.
    pub vcpus: u32,
    /// How many pirqs the domain may have.
    pub pirqs: u32,
}

/// The table could not be made: not enough memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoMemory;

/// Why an operation on a port was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The domain has no such port, or it is free.
    NoSuchPort,
    /// All ports up to the domain's limit are in use.
    NoPortLeft,
    /// The port is not in a state that allows this.
    WrongState,
    /// The far port was not offered to the domain that wants to bind it.
    NotOfferedToYou,
    /// There is no such virq.
    NoSuchVirq,
    /// A global virq can be bound only on vcpu 0, and only a global one can move to another vcpu.
    WrongVcpuForVirq,
    /// The domain has no such vcpu.
    NoSuchVcpu,
    /// There is no such pirq.
    NoSuchPirq,
    /// This virq or pirq has a port already.
    AlreadyBound,
}

/// What a port is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Nobody's.
    Free,
    /// Waiting for this domain to bind its end.
    Unbound {
        /// Who may bind.
        remote: DomId,
    },
    /// Rings a port of another domain (or another port of the same).
    Interdomain(FarEnd),
    /// A physical interrupt.
    Pirq(Pirq),
    /// A virtual interrupt of the vcpu that the channel notifies (or of vcpu 0, if global).
    Virq {
        /// Which one.
        virq: u8,
        /// For which vcpu it was bound.
        bound_on: u16,
    },
    /// From one vcpu of the domain to another.
    Ipi,
}

/// The other end of an interdomain channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FarEnd {
    /// Whose port it is.
    pub domain: DomId,
    /// Its number there.
    pub port: Port,
}

/// One port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Channel {
    /// What it is.
    pub state: State,
    /// Which vcpu gets its upcalls.
    pub vcpu: VcpuId,
}

const FREE: Channel = Channel {
    state: State::Free,
    vcpu: VcpuId(0),
};

/// Whom `EVTCHNOP_send` rings.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// A port of the same domain, notifying this vcpu.
    Own(VcpuId),
    /// A port elsewhere; [`PortTable::rung_by`] on its table says which vcpu.
    Far(FarEnd),
    /// Nobody has bound the other end yet: the ring is lost, and that is no error.
    Nobody,
}

/// What remains to be done after a port was closed.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Closed {
    /// Nothing.
    Whole,
    /// Tell the far end's table: [`PortTable::far_end_closed`].
    Far(FarEnd),
    /// Unbind the physical interrupt.
    Pirq(Pirq),
}

/// One domain's ports. See the crate's page for what is always true.
pub struct PortTable {
    channels: Vec<Channel>,
    /// A set bit for each free port.
    free: Vec<u64>,
    /// Port of each (vcpu, virq), 0 for none.
    virqs: Vec<[u16; virq::COUNT as usize]>,
    /// Port of each pirq, 0 for none.
    pirqs: Vec<u16>,
}

/// Whether a virq is the domain's rather than one vcpu's (`virq_is_global`).
pub const fn virq_is_global(number: u32) -> bool {
    !matches!(number, virq::TIMER | virq::DEBUG | virq::XENOPROF | virq::XENPMU)
}

pub(crate) fn filled<T: Clone>(count: usize, value: T) -> Result<Vec<T>, NoMemory> {
    let mut all = Vec::new();
    all.try_reserve_exact(count).map_err(|_| NoMemory)?;
    all.resize(count, value);
    Ok(all)
}

impl PortTable {
    /// Makes a table with all ports free. All memory that it will ever need is taken here.
    pub fn new(limits: Limits) -> Result<Self, NoMemory> {
        let ports = limits.max_port.min(EVTCHN_2L_PORTS - 1) as usize + 1;
        let mut free = filled(ports.div_ceil(64), u64::MAX)?;
        if let (Some(last), left @ 1..) = (free.last_mut(), ports % 64) {
            *last &= (1 << left) - 1;
        }
        if let Some(first) = free.first_mut() {
            *first &= !1;
        }
        Ok(PortTable {
            channels: filled(ports, FREE)?,
            free,
            virqs: filled(limits.vcpus as usize, [0; virq::COUNT as usize])?,
            pirqs: filled(limits.pirqs as usize, 0)?,
        })
    }

    /// The number of ports, the unusable port 0 included.
    pub fn count(&self) -> u32 {
        self.channels.len() as u32
    }

    /// The port, also if it is free; `None` if the domain cannot have it.
    #[inline]
    pub fn get(&self, port: Port) -> Option<Channel> {
        self.channels.get(port.raw() as usize).copied()
    }

    /// The port, if it is in use.
    #[inline]
    pub fn used(&self, port: Port) -> Result<Channel, Refused> {
        match self.get(port) {
            Some(Channel { state: State::Free, .. }) | None => Err(Refused::NoSuchPort),
            Some(channel) => Ok(channel),
        }
    }

    /// Offers a port to `remote`.
    pub fn alloc_unbound(&mut self, remote: DomId) -> Result<Port, Refused> {
        self.take(Channel {
            state: State::Unbound { remote },
            vcpu: VcpuId(0),
        })
    }

    /// Binds a virtual interrupt of `vcpu`.
    pub fn bind_virq(&mut self, number: u32, vcpu: VcpuId) -> Result<Port, Refused> {
        if number >= virq::COUNT {
            return Err(Refused::NoSuchVirq);
        }
        if virq_is_global(number) && vcpu.0 != 0 {
            return Err(Refused::WrongVcpuForVirq);
        }
        let slot = self
            .virqs
            .get(vcpu.0 as usize)
            .and_then(|of_vcpu| of_vcpu.get(number as usize));
        if *slot.ok_or(Refused::NoSuchVcpu)? != 0 {
            return Err(Refused::AlreadyBound);
        }
        let port = self.take(Channel {
            state: State::Virq {
                virq: number as u8,
                bound_on: vcpu.0 as u16,
            },
            vcpu,
        })?;
        self.set_virq(number, vcpu.0, port.raw() as u16);
        Ok(port)
    }

    /// Makes a doorbell between vcpus of the domain that rings at `vcpu`.
    pub fn bind_ipi(&mut self, vcpu: VcpuId) -> Result<Port, Refused> {
        if vcpu.0 as usize >= self.virqs.len() {
            return Err(Refused::NoSuchVcpu);
        }
        self.take(Channel {
            state: State::Ipi,
            vcpu,
        })
    }

    /// Gives a pirq a port. Whether the domain may have the interrupt was decided elsewhere; if binding
    /// the interrupt then fails, [`PortTable::close`] takes this back.
    pub fn bind_pirq(&mut self, pirq: Pirq) -> Result<Port, Refused> {
        match self.pirqs.get(pirq.raw() as usize) {
            None => return Err(Refused::NoSuchPirq),
            Some(0) => {}
            Some(_) => return Err(Refused::AlreadyBound),
        }
        let port = self.take(Channel {
            state: State::Pirq(pirq),
            vcpu: VcpuId(0),
        })?;
        if let Some(slot) = self.pirqs.get_mut(pirq.raw() as usize) {
            *slot = port.raw() as u16;
        }
        Ok(port)
    }

    /// The port of a virq, and whom it notifies.
    #[inline]
    pub fn virq_port(&self, number: u32, vcpu: VcpuId) -> Option<(Port, VcpuId)> {
        let port = *self.virqs.get(vcpu.0 as usize)?.get(number as usize)?;
        self.notified(port)
    }

    /// The port of a pirq, and whom it notifies.
    #[inline]
    pub fn pirq_port(&self, pirq: Pirq) -> Option<(Port, VcpuId)> {
        self.notified(*self.pirqs.get(pirq.raw() as usize)?)
    }

    #[inline]
    fn notified(&self, port: u16) -> Option<(Port, VcpuId)> {
        if port == 0 {
            return None;
        }
        let channel = self.channels.get(usize::from(port))?;
        Some((Port::new(u32::from(port)), channel.vcpu))
    }

    /// Whom a ring of `port` by its owner is for.
    #[inline]
    pub fn send(&self, port: Port) -> Result<Target, Refused> {
        let channel = self.get(port).ok_or(Refused::NoSuchPort)?;
        // What is rung all the time first: a jump by a table costs more.
        if let State::Interdomain(far) = channel.state {
            return Ok(Target::Far(far));
        }
        if channel.state == State::Ipi {
            return Ok(Target::Own(channel.vcpu));
        }
        match channel.state {
            State::Unbound { .. } => Ok(Target::Nobody),
            State::Free => Err(Refused::NoSuchPort),
            State::Interdomain(_) | State::Ipi | State::Pirq(_) | State::Virq { .. } => Err(Refused::WrongState),
        }
    }

    /// Which vcpu to notify when `by` rings our `port`; `None` if the two do not name each other
    /// (any more: the channel may have been closed since `by`'s table was looked at).
    #[inline]
    pub fn rung_by(&self, port: Port, by: FarEnd) -> Option<VcpuId> {
        let channel = self.get(port)?;
        (channel.state == State::Interdomain(by)).then_some(channel.vcpu)
    }

    /// Sends a port's upcalls to `vcpu` from now on. `Some(pirq)`: the interrupt should follow.
    pub fn bind_vcpu(&mut self, port: Port, vcpu: VcpuId) -> Result<Option<Pirq>, Refused> {
        if vcpu.0 as usize >= self.virqs.len() {
            return Err(Refused::NoSuchVcpu);
        }
        let channel = self.channels.get_mut(port.raw() as usize).ok_or(Refused::NoSuchPort)?;
        let follows = match channel.state {
            State::Free | State::Ipi => return Err(Refused::WrongState),
            State::Virq { virq, .. } if !virq_is_global(u32::from(virq)) => return Err(Refused::WrongVcpuForVirq),
            State::Virq { .. } | State::Unbound { .. } | State::Interdomain(_) => None,
            State::Pirq(pirq) => Some(pirq),
        };
        channel.vcpu = vcpu;
        Ok(follows)
    }

    /// Frees a port. The caller also clears its pending bit, so that its next owner hears no ghost.
    pub fn close(&mut self, port: Port) -> Result<Closed, Refused> {
        let channel = self.used(port)?;
        let after = match channel.state {
            State::Free => return Err(Refused::NoSuchPort),
            State::Unbound { .. } | State::Ipi => Closed::Whole,
            State::Interdomain(far) => Closed::Far(far),
            State::Pirq(pirq) => {
                if let Some(slot) = self.pirqs.get_mut(pirq.raw() as usize) {
                    *slot = 0;
                }
                Closed::Pirq(pirq)
            }
            State::Virq { virq, bound_on } => {
                self.set_virq(u32::from(virq), u32::from(bound_on), 0);
                Closed::Whole
            }
        };
        self.put(port);
        Ok(after)
    }

    /// Takes note that `by` closed its end: our port waits for that domain again.
    pub fn far_end_closed(&mut self, port: Port, by: FarEnd) {
        if let Some(channel) = self.channels.get_mut(port.raw() as usize)
            && channel.state == State::Interdomain(by)
        {
            channel.state = State::Unbound { remote: by.domain };
        }
    }

    /// The first port in use at or after `from`.
    pub fn next_used(&self, from: Port) -> Option<Port> {
        let start = from.raw().max(1);
        let rest = self.channels.get(start as usize..)?;
        let skipped = rest.iter().position(|channel| channel.state != State::Free)?;
        Some(Port::new(start.checked_add(skipped as u32)?))
    }

    /// How many ports are in use.
    pub fn used_count(&self) -> u32 {
        self.channels
            .iter()
            .filter(|channel| channel.state != State::Free)
            .count() as u32
    }

    fn take(&mut self, channel: Channel) -> Result<Port, Refused> {
        let (index, word) = self
            .free
            .iter_mut()
            .enumerate()
            .find(|(_, word)| **word != 0)
            .ok_or(Refused::NoPortLeft)?;
        let port = index * 64 + word.trailing_zeros() as usize;
        *word &= *word - 1;
        *self.channels.get_mut(port).ok_or(Refused::NoPortLeft)? = channel;
        Ok(Port::new(port as u32))
    }

    fn put(&mut self, port: Port) {
        let at = port.raw() as usize;
        if let Some(channel) = self.channels.get_mut(at) {
            *channel = FREE;
        }
        if let Some(word) = self.free.get_mut(at / 64) {
            *word |= 1 << (at % 64);
        }
    }

    fn set_virq(&mut self, number: u32, vcpu: u32, port: u16) {
        if let Some(slot) = self
            .virqs
            .get_mut(vcpu as usize)
            .and_then(|of| of.get_mut(number as usize))
        {
            *slot = port;
        }
    }

    /// Checks what the crate's page promises of one table; an error names a port and what is wrong with it.
    pub fn audit(&self) -> Result<(), Unsound> {
        let wrong = |at: usize, what| {
            Err(Unsound {
                port: Port::new(at as u32),
                what,
            })
        };
        if self.get(Port::new(0)).map(|channel| channel.state) != Some(State::Free) {
            return wrong(0, "port 0 was handed out");
        }
        for (at, channel) in self.channels.iter().enumerate().skip(1) {
            let is_free = self.free.get(at / 64).is_some_and(|word| word >> (at % 64) & 1 != 0);
            if is_free != (channel.state == State::Free) {
                return wrong(at, "the map of free ports disagrees");
            }
            let named = match channel.state {
                State::Virq { virq, bound_on } => self
                    .virqs
                    .get(usize::from(bound_on))
                    .and_then(|of| of.get(usize::from(virq))),
                State::Pirq(pirq) => self.pirqs.get(pirq.raw() as usize),
                _ => continue,
            };
            if named.map(|&port| usize::from(port)) != Some(at) {
                return wrong(at, "its virq or pirq does not name it back");
            }
        }
        let state = |port: u16| self.channels.get(usize::from(port)).map(|channel| channel.state);
        for (bound_on, of_vcpu) in (0u16..).zip(&self.virqs) {
            for (virq, &port) in (0u8..).zip(of_vcpu).filter(|(_, port)| **port != 0) {
                if state(port) != Some(State::Virq { virq, bound_on }) {
                    return wrong(port.into(), "a virq names it, but it is not that");
                }
            }
        }
        for (pirq, &port) in (0u32..).zip(&self.pirqs).filter(|(_, port)| **port != 0) {
            if state(port) != Some(State::Pirq(Pirq::new(pirq))) {
                return wrong(port.into(), "a pirq names it, but it is not that");
            }
        }
        Ok(())
    }
}

/// A promise of this crate that does not hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unsound {
    /// Where.
    pub port: Port,
    /// What is wrong there.
    pub what: &'static str,
}

/// Connects a new port of `local` with `remote_port`, which `remote` has offered to it.
///
/// Rings may have been lost while the port was unbound, so the caller rings the new port once.
pub fn bind_interdomain(
    local: (DomId, &mut PortTable),
    remote: (DomId, &mut PortTable),
    remote_port: Port,
) -> Result<Port, Refused> {
    remote.1.offered(remote_port, local.0)?;
    let port = local.1.take(Channel {
        state: State::Interdomain(FarEnd {
            domain: remote.0,
            port: remote_port,
        }),
        vcpu: VcpuId(0),
    })?;
    remote.1.connect(remote_port, FarEnd { domain: local.0, port });
    Ok(port)
}

/// [`bind_interdomain`] of a domain with itself.
pub fn bind_loopback(domain: DomId, table: &mut PortTable, remote_port: Port) -> Result<Port, Refused> {
    table.offered(remote_port, domain)?;
    let port = table.take(Channel {
        state: State::Interdomain(FarEnd {
            domain,
            port: remote_port,
        }),
        vcpu: VcpuId(0),
    })?;
    table.connect(remote_port, FarEnd { domain, port });
    Ok(port)
}

impl PortTable {
    fn offered(&self, port: Port, to: DomId) -> Result<(), Refused> {
        match self.used(port)?.state {
            State::Unbound { remote } if remote == to => Ok(()),
            State::Unbound { .. } => Err(Refused::NotOfferedToYou),
            _ => Err(Refused::WrongState),
        }
    }

    fn connect(&mut self, port: Port, far: FarEnd) {
        if let Some(channel) = self.channels.get_mut(port.raw() as usize) {
            channel.state = State::Interdomain(far);
        }
    }
}

/// Checks that each interdomain port of `left` whose far end is in `right` is named by it.
pub fn audit_pair(left: (DomId, &PortTable), right: (DomId, &PortTable)) -> Result<(), Unsound> {
    for (at, channel) in (0u32..).zip(&left.1.channels) {
        let State::Interdomain(far) = channel.state else {
            continue;
        };
        if far.domain != right.0 {
            continue;
        }
        let port = Port::new(at);
        let back = State::Interdomain(FarEnd { domain: left.0, port });
        if right.1.used(far.port).map(|channel| channel.state) != Ok(back) {
            return Err(Unsound {
                port,
                what: "its far end does not name it",
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
