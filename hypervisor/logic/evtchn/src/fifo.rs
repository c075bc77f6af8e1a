//! The FIFO protocol: a word per port, and per vcpu sixteen queues of ports that wait to be looked at.
//!
//! A queue is a list through the words: the control block of the vcpu names its first port, each word the next one. We
//! append, the guest takes off the front; only the tails are ours. A port is in one queue at most, while its word says
//! `LINKED`, which we set and the guest clears.
//!
//! Guests change the words at the same time, and may break every rule. What they break is their own queue: no loop here
//! runs longer for it, and no number of theirs is used but to compare it with.

use crate::{NoMemory, Rung, table::filled};
use alloc::vec::Vec;
use ferroxen_words::{Port, VcpuId};

/// `EVTCHN_FIFO_PENDING`: it was rung, and not handled yet.
pub const PENDING: u32 = 1 << 31;
/// `EVTCHN_FIFO_MASKED`: it is not to be queued.
pub const MASKED: u32 = 1 << 30;
/// `EVTCHN_FIFO_LINKED`: it is in a queue.
pub const LINKED: u32 = 1 << 29;
/// `EVTCHN_FIFO_BUSY`: we change its link, and the guest leaves its mask alone.
pub const BUSY: u32 = 1 << 28;
/// `EVTCHN_FIFO_LINK_BITS`
pub const LINK_BITS: u8 = 17;
const LINK: u32 = (1 << LINK_BITS) - 1;

/// `EVTCHN_FIFO_MAX_QUEUES`: queues of a vcpu, the most urgent first.
pub const QUEUES: usize = 16;
/// `EVTCHN_FIFO_PRIORITY_DEFAULT`
const DEFAULT_PRIORITY: u8 = 7;
/// How often a guest that keeps to the protocol can change the word of a port that is `LINKED` and `BUSY`: it can mask
/// it, clear `PENDING`, and take it off its queue.
const CHANGES: usize = 4;

/// What a domain shares with us. Each method is one atomic access.
pub trait SharedWords {
    /// Sets bits of a port's word, and answers what stood there; `None` without a page that has it.
    fn set(&self, port: Port, bits: u32) -> Option<u32>;
    /// Clears bits, likewise.
    fn clear(&self, port: Port, bits: u32) -> Option<u32>;
    /// Replaces the word if it is `old`; else answers what it is. A word without a page is 0 for ever.
    fn replace(&self, port: Port, old: u32, new: u32) -> Result<(), u32>;
    /// Whether the vcpu has a control block.
    fn has_control(&self, vcpu: VcpuId) -> bool;
    /// Makes `port` the first of a queue.
    fn set_head(&self, vcpu: VcpuId, priority: u8, port: Port);
    /// Says that there is something in a queue and, if it was not said before, that the vcpu is to look: two accesses, in
    /// this order. Tells whether both were news.
    fn make_ready(&self, vcpu: VcpuId, priority: u8) -> bool;
}

/// A queue, by whose and how urgent it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    vcpu: u16,
    priority: u8,
}

/// What we know of one port.
#[derive(Clone, Copy)]
struct Waiting {
    /// Where it was queued last.
    last: Place,
    /// How urgent it is the next time.
    priority: u8,
}

const WAITING: Waiting = Waiting {
    last: Place {
        vcpu: 0,
        priority: DEFAULT_PRIORITY,
    },
    priority: DEFAULT_PRIORITY,
};

/// The ends of one domain's queues.
pub struct Queues {
    /// The port that was appended last, per vcpu and priority; 0 if none is known.
    tails: Vec<[u32; QUEUES]>,
    ports: Vec<Waiting>,
}

impl Queues {
    /// Empty ones for so many vcpus and ports. All memory that they will ever need is taken here.
    pub fn new(vcpus: u32, ports: u32) -> Result<Self, NoMemory> {
        Ok(Queues {
            tails: filled(vcpus as usize, [0; QUEUES])?,
            ports: filled(ports as usize, WAITING)?,
        })
    }

    /// Empties them, and forgets all priorities.
    pub fn reset(&mut self) {
        self.tails.fill([0; QUEUES]);
        self.ports.fill(WAITING);
    }

    /// Queues a port there from its next ring on; false if there is no such priority or port.
    pub fn set_priority(&mut self, port: Port, priority: u32) -> bool {
        match (u8::try_from(priority), self.ports.get_mut(port.raw() as usize)) {
            (Ok(priority), Some(of_port)) if usize::from(priority) < QUEUES => {
                of_port.priority = priority;
                true
            }
            _ => false,
        }
    }

    /// Rings `port`, whose upcalls go to `vcpu`. `None`: it has no word yet.
    pub fn ring(&mut self, words: &impl SharedWords, port: Port, vcpu: VcpuId) -> Option<Rung> {
        let before = words.set(port, PENDING)?;
        let queued = before & (MASKED | LINKED) == 0 && self.append(words, port, vcpu);
        Some(match (queued, before & PENDING) {
            (true, _) => Rung::Upcall(vcpu),
            (false, 0) => Rung::Quiet,
            (false, _) => Rung::Already,
        })
    }

    /// Unmasks `port`, and queues it if the mask held that back.
    pub fn unmask(&mut self, words: &impl SharedWords, port: Port, vcpu: VcpuId) -> Rung {
        match words.clear(port, MASKED) {
            Some(before) if before & PENDING != 0 => self.ring(words, port, vcpu).unwrap_or(Rung::Already),
            _ => Rung::Already,
        }
    }

    /// Appends a port that is in no queue; whether the vcpu is to be told.
    fn append(&mut self, words: &impl SharedWords, port: Port, vcpu: VcpuId) -> bool {
        if !words.has_control(vcpu) {
            return false;
        }
        let Some(of_port) = self.ports.get_mut(port.raw() as usize) else {
            return false;
        };
        let priority = of_port.priority;
        let place = Place {
            vcpu: vcpu.0 as u16,
            priority,
        };
        let last = core::mem::replace(&mut of_port.last, place);
        // A tail that is linked elsewhere would lead one queue into another.
        if last != place
            && let Some(tail) = tail_of(&mut self.tails, last)
            && *tail == port.raw()
        {
            *tail = 0;
        }
        if words.set(port, LINKED).is_none_or(|before| before & LINKED != 0) {
            return false;
        }
        let Some(tail) = tail_of(&mut self.tails, place) else {
            return false;
        };
        let before = core::mem::replace(tail, port.raw());
        // As its own predecessor it was taken off since, although its word says `LINKED` again.
        if before != 0 && before != port.raw() && join(words, Port::new(before), port) {
            return false;
        }
        words.set_head(vcpu, priority, port);
        words.make_ready(vcpu, priority)
    }
}

fn tail_of(tails: &mut [[u32; QUEUES]], place: Place) -> Option<&mut u32> {
    tails
        .get_mut(usize::from(place.vcpu))?
        .get_mut(usize::from(place.priority))
}

/// Makes `port` the one behind `tail`, if that is in its queue still.
fn join(words: &impl SharedWords, tail: Port, port: Port) -> bool {
    let Some(mut seen) = words.set(tail, BUSY) else {
        return false;
    };
    seen |= BUSY;
    for _ in 0..=CHANGES {
        if seen & LINKED == 0 {
            break;
        }
        match words.replace(tail, seen, seen & !(LINK | BUSY) | port.raw()) {
            Ok(()) => return true,
            Err(now) => seen = now,
        }
    }
    // The guest has taken it, or does not keep to the protocol: the next port is the first of its queue.
    words.clear(tail, BUSY);
    false
}

#[cfg(test)]
mod tests;
