use super::*;
use alloc::vec;
use proptest::prelude::*;

const CPU: CpuId = CpuId(0);
const ONE: DomId = DomId::DOM0;

fn pc() -> Irqs {
    let lines = Lines {
        count: 24,
        absent: Vec::new(),
        overrides: Vec::from([
            Override {
                isa: 0,
                gsi: Gsi::new(2),
                trigger: Trigger::Edge,
                polarity: Polarity::High,
            },
            Override {
                isa: 9,
                gsi: Gsi::new(9),
                trigger: Trigger::Level,
                polarity: Polarity::High,
            },
        ]),
    };
    let mut irqs = Irqs::new(4, &lines);
    irqs.add_domain(ONE, 64);
    irqs.add_domain(two(), 8);
    irqs
}

fn two() -> DomId {
    DomId::new(2).unwrap()
}

fn bind_line(irqs: &mut Irqs, number: u32, share: bool) -> Place {
    let irq = irqs.line_irq(number).unwrap();
    let pirq = irqs.map_line(ONE, None, irq).unwrap();
    match irqs.bind(ONE, pirq, Port::new(7), share, CPU) {
        Ok(Started::Line(_, place)) => place,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_level_line_stays_masked_until_its_domain_has_answered() {
    let mut irqs = pc();
    let place = bind_line(&mut irqs, 16, true);
    let Arrival::Guests(acknowledge, targets) = irqs.arrived(place) else {
        panic!()
    };
    assert_eq!(acknowledge, Acknowledge::MaskAndEnd(Gsi::new(16)));
    assert_eq!(
        targets[0],
        Some(Target {
            domain: ONE,
            pirq: Pirq::new(16),
            port: Port::new(7)
        })
    );
    assert_eq!(irqs.eoi(ONE, Pirq::new(16)), Ok(Eoi::Unmask(Gsi::new(16))));
    assert_eq!(irqs.eoi(ONE, Pirq::new(16)), Ok(Eoi::Nothing), "twice is once");
}

#[test]
fn a_shared_line_waits_for_every_domain() {
    let mut irqs = pc();
    let place = bind_line(&mut irqs, 17, true);
    let pirq = irqs.map_line(two(), None, Irq::new(17)).unwrap();
    assert_eq!(irqs.bind(two(), pirq, Port::new(3), true, CPU), Ok(Started::Already));
    let _ = irqs.arrived(place);
    assert_eq!(irqs.eoi(ONE, Pirq::new(17)), Ok(Eoi::Nothing));
    assert_eq!(irqs.eoi(two(), pirq), Ok(Eoi::Unmask(Gsi::new(17))));
    assert!(irqs.status(two(), pirq).is_shared);
}

#[test]
fn a_domain_that_leaves_without_answering_lets_the_others_go_on() {
    let mut irqs = pc();
    let place = bind_line(&mut irqs, 17, true);
    let pirq = irqs.map_line(two(), None, Irq::new(17)).unwrap();
    let _ = irqs.bind(two(), pirq, Port::new(3), true, CPU).unwrap();
    let _ = irqs.arrived(place);
    let _ = irqs.eoi(ONE, Pirq::new(17)).unwrap();
    assert_eq!(irqs.unbind(two(), pirq), Ok(Stopped::Unmask(Gsi::new(17))));
}

#[test]
fn an_edge_needs_no_answer() {
    let mut irqs = pc();
    let place = bind_line(&mut irqs, 4, false);
    let Arrival::Guests(acknowledge, _) = irqs.arrived(place) else {
        panic!()
    };
    assert_eq!(acknowledge, Acknowledge::End);
    assert!(!irqs.status(ONE, Pirq::new(4)).needs_eoi);
    assert_eq!(irqs.eoi(ONE, Pirq::new(4)), Ok(Eoi::Nothing));
}

#[test]
fn the_timers_pin_is_not_the_cascades() {
    let mut irqs = pc();
    let irq = irqs.line_irq(2).unwrap();
    let pirq = irqs.map_line(ONE, None, irq).unwrap();
    assert_eq!(irqs.bind(ONE, pirq, Port::new(1), false, CPU), Err(Refused::NoPin));
    assert!(matches!(irqs.claim(Irq::new(0), 5, CPU), Ok(Started::Line(Line { gsi, .. }, _)) if gsi == Gsi::new(2)));
}

#[test]
fn what_the_hypervisor_uses_no_domain_can_bind() {
    let mut irqs = pc();
    let Ok(Started::Line(_, place)) = irqs.claim(Irq::new(4), 99, CPU) else {
        panic!()
    };
    let pirq = irqs.map_line(ONE, None, Irq::new(4)).unwrap();
    assert_eq!(
        irqs.bind(ONE, pirq, Port::new(1), true, CPU),
        Err(Refused::HypervisorsOwn)
    );
    assert_eq!(irqs.arrived(place), Arrival::Hypervisors(99, Acknowledge::End));
}

#[test]
fn every_line_is_settled_once_and_the_timers_from_the_start() {
    let mut irqs = pc();
    assert_eq!(
        irqs.set_up_line(Irq::new(0), Trigger::Edge, Polarity::High),
        Err(Refused::AlreadySetUp)
    );
    assert_eq!(irqs.set_up_line(Irq::new(9), Trigger::Edge, Polarity::High), Ok(()));
    assert_eq!(
        irqs.set_up_line(Irq::new(9), Trigger::Level, Polarity::High),
        Err(Refused::AlreadySetUp)
    );
    assert_eq!(irqs.set_up_line(Irq::new(20), Trigger::Edge, Polarity::High), Ok(()));
    assert_eq!(
        irqs.set_up_line(Irq::new(20), Trigger::Level, Polarity::Low),
        Err(Refused::AlreadySetUp)
    );
    assert_eq!(
        irqs.set_up_line(Irq::new(24), Trigger::Level, Polarity::Low),
        Err(Refused::NoSuchNumber)
    );
}

#[test]
fn a_block_of_messages_comes_and_goes_as_a_whole() {
    let mut irqs = pc();
    let (first, irq, place) = irqs.map_messages(ONE, None, 4, CPU).unwrap();
    assert_eq!(place.vector % 4, 0);
    let third = Pirq::new(first.raw() + 2);
    assert_eq!(
        irqs.bind(ONE, third, Port::new(9), false, CPU),
        Ok(Started::Message(Irq::new(irq.raw() + 2)))
    );
    assert_eq!(irqs.unmap(ONE, third), Err(Refused::NotTheFirst));
    let gone = irqs.unmap(ONE, first).unwrap();
    assert_eq!((gone.messages, gone.stopped), (4, Stopped::Message(irq)));
    assert_eq!(irqs.irq_of(ONE, third), None);
    irqs.audit().unwrap();
}

#[test]
fn an_interrupt_on_its_way_to_the_old_cpu_is_not_lost_by_a_move() {
    let mut irqs = pc();
    let before = bind_line(&mut irqs, 5, false);
    let Ok(Moved::Line {
        place,
        is_masked: false,
        ..
    }) = irqs.move_to(Irq::new(5), CpuId(3))
    else {
        panic!()
    };
    assert_eq!(place.cpu, CpuId(3));
    assert!(matches!(irqs.arrived(before), Arrival::Guests(..)));
    assert!(matches!(irqs.arrived(place), Arrival::Guests(..)));
}

#[test]
fn a_line_that_waits_for_an_eoi_moves_masked() {
    let mut irqs = pc();
    let place = bind_line(&mut irqs, 18, false);
    let _ = irqs.arrived(place);
    assert!(matches!(
        irqs.move_to(Irq::new(18), CpuId(1)),
        Ok(Moved::Line { is_masked: true, .. })
    ));
}

#[test]
fn a_domain_that_goes_away_leaves_nothing_behind() {
    let mut irqs = pc();
    let _ = bind_line(&mut irqs, 16, true);
    let (pirq, ..) = irqs.map_messages(ONE, None, 3, CPU).unwrap();
    let _ = irqs.bind(ONE, pirq, Port::new(9), false, CPU).unwrap();
    while irqs.unmap_any(ONE).is_some() {}
    assert_eq!(irqs.vectors.taken().count(), 0);
    assert_eq!(irqs.pirq_limit(ONE), 0);
    irqs.audit().unwrap();
}

#[test]
fn numbers_set_aside_are_not_given_out_twice_but_can_be_mapped() {
    let mut irqs = pc();
    let first = irqs.set_aside(ONE, FreeKind::Messages(1)).unwrap();
    let second = irqs.set_aside(ONE, FreeKind::Messages(1)).unwrap();
    assert_ne!(first, second);
    assert!(irqs.map_messages(ONE, Some(first), 1, CPU).is_ok());
    assert_eq!(irqs.map_messages(ONE, Some(first), 1, CPU), Err(Refused::PirqTaken));
}

#[derive(Clone, Debug)]
enum Step {
    MapLine(bool, Option<u32>, u32),
    MapMessages(bool, Option<u32>, u8, u32),
    Unmap(bool, u32),
    Bind(bool, u32, bool, u32),
    Unbind(bool, u32),
    Arrive(u32, u8),
    Eoi(bool, u32),
    Move(u32, u32),
    SetUp(u32, bool),
    SetAside(bool, u32),
    Claim(u32),
    Leave(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pirq = || 0u32..100;
    let irq = || 0u32..40;
    let step = prop_oneof![
        3 => (any::<bool>(), prop::option::of(pirq()), irq()).prop_map(|(d, p, i)| Step::MapLine(d, p, i)),
        2 => (any::<bool>(), prop::option::of(pirq()), 0u8..40, 0u32..6).prop_map(|(d, p, n, c)| Step::MapMessages(d, p, n, c)),
        2 => (any::<bool>(), pirq()).prop_map(|(d, p)| Step::Unmap(d, p)),
        5 => (any::<bool>(), pirq(), any::<bool>(), 0u32..6).prop_map(|(d, p, s, c)| Step::Bind(d, p, s, c)),
        2 => (any::<bool>(), pirq()).prop_map(|(d, p)| Step::Unbind(d, p)),
        5 => (0u32..5, any::<u8>()).prop_map(|(c, v)| Step::Arrive(c, v)),
        3 => (any::<bool>(), pirq()).prop_map(|(d, p)| Step::Eoi(d, p)),
        2 => (irq(), 0u32..6).prop_map(|(i, c)| Step::Move(i, c)),
        1 => (irq(), any::<bool>()).prop_map(|(i, l)| Step::SetUp(i, l)),
        1 => (any::<bool>(), 0u32..6).prop_map(|(d, n)| Step::SetAside(d, n)),
        1 => irq().prop_map(Step::Claim),
        1 => any::<bool>().prop_map(Step::Leave),
    ];
    prop::collection::vec(step, 0..120)
}

/// Follows what the decisions do to the pins, to check that no line is left masked for ever.
#[derive(Default)]
struct Pins {
    unmasked: alloc::collections::BTreeSet<u32>,
}

impl Pins {
    fn started(&mut self, started: Started) {
        if let Started::Line(line, _) = started {
            self.unmasked.insert(line.gsi.raw());
        }
    }

    fn stopped(&mut self, stopped: Stopped) {
        match stopped {
            Stopped::Unmask(gsi) => {
                self.unmasked.insert(gsi.raw());
            }
            Stopped::Line(gsi) => {
                self.unmasked.remove(&gsi.raw());
            }
            Stopped::Nothing | Stopped::Message(_) => {}
        }
    }

    fn check(&self, irqs: &Irqs) {
        for descriptor in irqs.descriptors.iter().flatten() {
            let Some(line) = descriptor.line() else { continue };
            let in_use = descriptor.user != User::Nobody;
            assert_eq!(
                self.unmasked.contains(&line.gsi.raw()),
                in_use && !descriptor.awaits_eoi(),
                "{descriptor:?}"
            );
        }
    }
}

proptest! {
    #[test]
    fn any_history_keeps_what_is_always_true(steps in steps()) {
        let mut irqs = pc();
        let mut pins = Pins::default();
        let who = |first: bool| if first { ONE } else { two() };
        for step in steps {
            match step {
                Step::MapLine(d, p, i) => { let _ = irqs.map_line(who(d), p.map(Pirq::new), Irq::new(i)); }
                Step::MapMessages(d, p, n, c) => { let _ = irqs.map_messages(who(d), p.map(Pirq::new), n, CpuId(c)); }
                Step::Unmap(d, p) => {
                    if let Ok(gone) = irqs.unmap(who(d), Pirq::new(p)) {
                        pins.stopped(gone.stopped);
                    }
                }
                Step::Bind(d, p, s, c) => {
                    if let Ok(started) = irqs.bind(who(d), Pirq::new(p), Port::new(p + 1), s, CpuId(c)) {
                        pins.started(started);
                    }
                }
                Step::Unbind(d, p) => {
                    if let Ok(stopped) = irqs.unbind(who(d), Pirq::new(p)) {
                        pins.stopped(stopped);
                    }
                }
                Step::Arrive(c, v) => {
                    if let Arrival::Guests(Acknowledge::MaskAndEnd(gsi), targets) = irqs.arrived(Place { cpu: CpuId(c), vector: v }) {
                        prop_assert!(targets.iter().flatten().count() > 0);
                        pins.unmasked.remove(&gsi.raw());
                    }
                }
                Step::Eoi(d, p) => {
                    if let Ok(Eoi::Unmask(gsi)) = irqs.eoi(who(d), Pirq::new(p)) {
                        pins.unmasked.insert(gsi.raw());
                    }
                }
                Step::Move(i, c) => { let _ = irqs.move_to(Irq::new(i), CpuId(c)); }
                Step::SetUp(i, l) => {
                    let trigger = if l { Trigger::Level } else { Trigger::Edge };
                    let _ = irqs.set_up_line(Irq::new(i), trigger, Polarity::Low);
                }
                Step::SetAside(d, n) => { let _ = irqs.set_aside(who(d), FreeKind::Messages(n)); }
                Step::Claim(i) => {
                    if let Ok(started) = irqs.claim(Irq::new(i), i, CPU) {
                        pins.started(started);
                    }
                }
                Step::Leave(d) => {
                    while let Some(gone) = irqs.unmap_any(who(d)) {
                        pins.stopped(gone.stopped);
                    }
                    irqs.add_domain(who(d), 32);
                }
            }
            prop_assert_eq!(irqs.audit(), Ok(()));
            pins.check(&irqs);
        }
    }
}
