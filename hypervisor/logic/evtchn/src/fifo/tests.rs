use super::*;
use core::cell::{Cell, RefCell};
use proptest::prelude::*;
extern crate std;

const PORTS: usize = 12;
const VCPUS: usize = 2;

/// A guest that takes ports off its queues as Linux does.
struct Guest {
    words: RefCell<[u32; PORTS]>,
    heads: RefCell<[[u32; QUEUES]; VCPUS]>,
    ready: Cell<[u32; VCPUS]>,
    upcall: Cell<[bool; VCPUS]>,
    /// Where it stands in each queue; 0: at the end.
    at: [[u32; QUEUES]; VCPUS],
    /// How often each port was handled.
    handled: [u32; PORTS],
}

impl Guest {
    fn new() -> Self {
        Guest {
            words: RefCell::new([0; PORTS]),
            heads: RefCell::new([[0; QUEUES]; VCPUS]),
            ready: Cell::new([0; VCPUS]),
            upcall: Cell::new([false; VCPUS]),
            at: [[0; QUEUES]; VCPUS],
            handled: [0; PORTS],
        }
    }

    fn word(&self, port: usize) -> u32 {
        self.words.borrow()[port]
    }

    /// Takes one port off the most urgent queue of a vcpu; false if nothing is ready.
    fn take_one(&mut self, vcpu: usize) -> bool {
        let mut ready = self.ready.get();
        let Some(queue) = (0..QUEUES).find(|queue| ready[vcpu] & 1 << queue != 0) else {
            return false;
        };
        let head = match self.at[vcpu][queue] {
            0 => self.heads.borrow()[vcpu][queue],
            at => at,
        } as usize;
        let mut words = self.words.borrow_mut();
        let next = words[head] & LINK;
        words[head] &= !(LINKED | LINK);
        if next == 0 {
            ready[vcpu] &= !(1 << queue);
            self.ready.set(ready);
        }
        if words[head] & (PENDING | MASKED) == PENDING {
            words[head] &= !PENDING;
            self.handled[head] += 1;
        }
        self.at[vcpu][queue] = next;
        true
    }

    /// What the upcall does.
    fn look(&mut self) {
        for vcpu in 0..VCPUS {
            let mut upcall = self.upcall.get();
            if core::mem::take(&mut upcall[vcpu]) {
                self.upcall.set(upcall);
                while self.take_one(vcpu) {}
            }
        }
    }
}

impl SharedWords for Guest {
    fn set(&self, port: Port, bits: u32) -> Option<u32> {
        let mut words = self.words.borrow_mut();
        let word = words.get_mut(port.raw() as usize)?;
        Some(core::mem::replace(word, *word | bits))
    }
    fn clear(&self, port: Port, bits: u32) -> Option<u32> {
        let mut words = self.words.borrow_mut();
        let word = words.get_mut(port.raw() as usize)?;
        Some(core::mem::replace(word, *word & !bits))
    }
    fn replace(&self, port: Port, old: u32, new: u32) -> Result<(), u32> {
        let mut words = self.words.borrow_mut();
        let word = words.get_mut(port.raw() as usize).ok_or(0_u32)?;
        if *word != old {
            return Err(*word);
        }
        *word = new;
        Ok(())
    }
    fn has_control(&self, _: VcpuId) -> bool {
        true
    }
    fn set_head(&self, vcpu: VcpuId, priority: u8, port: Port) {
        self.heads.borrow_mut()[vcpu.0 as usize][usize::from(priority)] = port.raw();
    }
    fn make_ready(&self, vcpu: VcpuId, priority: u8) -> bool {
        let (mut ready, mut upcall) = (self.ready.get(), self.upcall.get());
        let vcpu = vcpu.0 as usize;
        let was_ready = ready[vcpu] & 1 << priority != 0;
        ready[vcpu] |= 1 << priority;
        self.ready.set(ready);
        if was_ready {
            return false;
        }
        let was_told = core::mem::replace(&mut upcall[vcpu], true);
        self.upcall.set(upcall);
        !was_told
    }
}

fn queues() -> Queues {
    Queues::new(VCPUS as u32, PORTS as u32).unwrap()
}

const V0: VcpuId = VcpuId(0);

#[test]
fn ports_are_handled_in_the_order_of_their_rings_and_each_once() {
    let (mut guest, mut queues) = (Guest::new(), queues());
    assert_eq!(queues.ring(&guest, Port::new(5), V0), Some(Rung::Upcall(V0)));
    assert_eq!(queues.ring(&guest, Port::new(3), V0), Some(Rung::Quiet));
    assert_eq!(queues.ring(&guest, Port::new(5), V0), Some(Rung::Already));
    assert_eq!(guest.word(5) & LINK, 3);
    guest.look();
    assert_eq!((guest.handled[5], guest.handled[3]), (1, 1));
}

#[test]
fn a_port_is_queued_by_its_priority() {
    let (guest, mut queues) = (Guest::new(), queues());
    assert!(queues.set_priority(Port::new(2), 0));
    assert!(!queues.set_priority(Port::new(2), 16));
    assert!(!queues.set_priority(Port::new(99), 0));
    let _ = queues.ring(&guest, Port::new(2), V0);
    assert_eq!(guest.ready.get()[0], 1);
}

#[test]
fn a_masked_port_waits_until_it_is_unmasked() {
    let (mut guest, mut queues) = (Guest::new(), queues());
    guest.words.borrow_mut()[4] = MASKED;
    assert_eq!(queues.ring(&guest, Port::new(4), V0), Some(Rung::Quiet));
    guest.look();
    assert_eq!(guest.handled[4], 0);
    assert_eq!(queues.unmask(&guest, Port::new(4), V0), Rung::Upcall(V0));
    guest.look();
    assert_eq!(guest.handled[4], 1);
    assert_eq!(queues.unmask(&guest, Port::new(4), V0), Rung::Already);
}

#[test]
fn a_port_without_a_word_is_not_rung() {
    let (guest, mut queues) = (Guest::new(), queues());
    assert_eq!(queues.ring(&guest, Port::new(4000), V0), None);
}

/// Whatever a guest that breaks the rules writes, at any moment.
struct Scribbler(Guest, Cell<u32>);

impl SharedWords for Scribbler {
    fn set(&self, port: Port, bits: u32) -> Option<u32> {
        self.0.set(port, bits)
    }
    fn clear(&self, port: Port, bits: u32) -> Option<u32> {
        self.0.clear(port, bits)
    }
    fn replace(&self, _: Port, old: u32, _: u32) -> Result<(), u32> {
        self.1.set(self.1.get() + 1);
        Err(old ^ LINK | LINKED)
    }
    fn has_control(&self, _: VcpuId) -> bool {
        true
    }
    fn set_head(&self, vcpu: VcpuId, priority: u8, port: Port) {
        self.0.set_head(vcpu, priority, port);
    }
    fn make_ready(&self, vcpu: VcpuId, priority: u8) -> bool {
        self.0.make_ready(vcpu, priority)
    }
}

#[test]
fn a_word_that_changes_for_ever_holds_nobody_up() {
    let (scribbler, mut queues) = (Scribbler(Guest::new(), Cell::new(0)), queues());
    let _ = queues.ring(&scribbler, Port::new(1), V0);
    let _ = queues.ring(&scribbler, Port::new(2), V0);
    assert_eq!(scribbler.1.get() as usize, CHANGES + 1);
    assert_eq!(scribbler.0.word(1) & BUSY, 0);
}

#[derive(Clone, Debug)]
enum Step {
    Ring(u32, u32),
    Mask(usize),
    Unmask(u32, u32),
    Priority(u32, u32),
    TakeOne(usize),
    Look,
}

fn steps() -> impl Strategy<Value = std::vec::Vec<Step>> {
    let (port, vcpu) = (1..PORTS as u32, 0..VCPUS as u32);
    let step = prop_oneof![
        4 => (port.clone(), vcpu.clone()).prop_map(|(port, vcpu)| Step::Ring(port, vcpu)),
        1 => (1..PORTS).prop_map(Step::Mask),
        1 => (port.clone(), vcpu).prop_map(|(port, vcpu)| Step::Unmask(port, vcpu)),
        1 => (port, 0..16_u32).prop_map(|(port, priority)| Step::Priority(port, priority)),
        2 => (0..VCPUS).prop_map(Step::TakeOne),
        1 => Just(Step::Look),
    ];
    prop::collection::vec(step, 0..80)
}

proptest! {
    /// A ring is never lost and never doubled, wherever its port goes meanwhile.
    #[test]
    fn every_ring_is_heard(steps in steps()) {
        let (mut guest, mut queues) = (Guest::new(), queues());
        for step in steps {
            match step {
                Step::Ring(port, vcpu) => {
                    let _ = queues.ring(&guest, Port::new(port), VcpuId(vcpu));
                }
                Step::Mask(port) => guest.words.borrow_mut()[port] |= MASKED,
                Step::Unmask(port, vcpu) => {
                    let _ = queues.unmask(&guest, Port::new(port), VcpuId(vcpu));
                }
                Step::Priority(port, priority) => assert!(queues.set_priority(Port::new(port), priority)),
                Step::TakeOne(vcpu) => {
                    guest.take_one(vcpu);
                }
                Step::Look => guest.look(),
            }
        }
        let before = guest.handled;
        let expected: std::vec::Vec<u32> = (0..PORTS)
            .map(|port| u32::from(guest.word(port) & (PENDING | MASKED) == PENDING))
            .collect();
        // What is ready was told: an upcall waits, or the guest is in the middle of one.
        guest.upcall.set([true; VCPUS]);
        guest.look();
        for port in 1..PORTS {
            prop_assert_eq!(guest.handled[port] - before[port], expected[port], "port {}", port);
            prop_assert_eq!(guest.word(port) & (LINKED | BUSY | LINK), 0);
        }
    }
}
