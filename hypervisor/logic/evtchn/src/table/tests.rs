use super::*;
use proptest::prelude::*;

fn id(n: u16) -> DomId {
    DomId::new(n).unwrap()
}

fn table() -> PortTable {
    PortTable::new(Limits {
        max_port: 70,
        vcpus: 3,
        pirqs: 8,
    })
    .unwrap()
}

#[test]
fn the_first_port_is_one() {
    assert_eq!(table().alloc_unbound(id(4)), Ok(Port::new(1)));
}

#[test]
fn ports_run_out_at_the_limit_and_come_back() {
    let mut table = table();
    for expected in 1..=70 {
        assert_eq!(table.bind_ipi(VcpuId(0)), Ok(Port::new(expected)));
    }
    assert_eq!(table.bind_ipi(VcpuId(0)), Err(Refused::NoPortLeft));
    assert_eq!(table.close(Port::new(69)), Ok(Closed::Whole));
    assert_eq!(table.bind_ipi(VcpuId(1)), Ok(Port::new(69)));
}

#[test]
fn no_port_beyond_the_limit_is_given_out_wherever_it_lies_in_a_word() {
    for max_port in [0, 1, 62, 63, 64, 127, 4095] {
        let limits = Limits {
            max_port,
            vcpus: 1,
            pirqs: 0,
        };
        let mut table = PortTable::new(limits).unwrap();
        for expected in 1..=max_port {
            assert_eq!(table.bind_ipi(VcpuId(0)), Ok(Port::new(expected)));
        }
        assert_eq!(table.bind_ipi(VcpuId(0)), Err(Refused::NoPortLeft));
    }
}

#[test]
fn a_limit_beyond_the_abi_is_cut() {
    let table = PortTable::new(Limits {
        max_port: u32::MAX,
        vcpus: 1,
        pirqs: 0,
    })
    .unwrap();
    assert_eq!(table.count(), 4096);
}

#[test]
fn only_the_domain_that_it_was_offered_to_may_bind() {
    let (mut a, mut b) = (table(), table());
    let offered = a.alloc_unbound(id(2)).unwrap();
    assert_eq!(
        bind_interdomain((id(3), &mut b), (id(1), &mut a), offered),
        Err(Refused::NotOfferedToYou)
    );
    assert!(bind_interdomain((id(2), &mut b), (id(1), &mut a), offered).is_ok());
}

#[test]
fn a_ring_reaches_the_far_end_and_only_while_both_name_each_other() {
    let (mut a, mut b) = (table(), table());
    let at_a = a.alloc_unbound(id(2)).unwrap();
    assert_eq!(a.send(at_a), Ok(Target::Nobody));
    let at_b = bind_interdomain((id(2), &mut b), (id(1), &mut a), at_a).unwrap();
    assert_eq!(
        a.send(at_a),
        Ok(Target::Far(FarEnd {
            domain: id(2),
            port: at_b
        }))
    );
    let by = FarEnd {
        domain: id(1),
        port: at_a,
    };
    assert_eq!(b.rung_by(at_b, by), Some(VcpuId(0)));
    assert_eq!(b.close(at_b), Ok(Closed::Far(by)));
    assert_eq!(b.rung_by(at_b, by), None);
    a.far_end_closed(
        at_a,
        FarEnd {
            domain: id(2),
            port: at_b,
        },
    );
    assert_eq!(a.used(at_a).unwrap().state, State::Unbound { remote: id(2) });
}

#[test]
fn a_virq_binds_once_per_vcpu_and_a_global_one_on_vcpu_0_only() {
    let mut table = table();
    let port = table.bind_virq(virq::TIMER, VcpuId(2)).unwrap();
    assert_eq!(table.bind_virq(virq::TIMER, VcpuId(2)), Err(Refused::AlreadyBound));
    assert_eq!(table.virq_port(virq::TIMER, VcpuId(2)), Some((port, VcpuId(2))));
    assert_eq!(
        table.bind_virq(virq::DOM_EXC, VcpuId(1)),
        Err(Refused::WrongVcpuForVirq)
    );
    assert_eq!(table.bind_virq(virq::COUNT, VcpuId(0)), Err(Refused::NoSuchVirq));
    assert_eq!(table.bind_virq(virq::TIMER, VcpuId(3)), Err(Refused::NoSuchVcpu));
    assert_eq!(table.bind_vcpu(port, VcpuId(0)), Err(Refused::WrongVcpuForVirq));
    assert_eq!(table.close(port), Ok(Closed::Whole));
    assert_eq!(table.virq_port(virq::TIMER, VcpuId(2)), None);
}

#[test]
fn a_moved_global_virq_is_still_found_and_closed() {
    let mut table = table();
    let port = table.bind_virq(virq::DOM_EXC, VcpuId(0)).unwrap();
    assert_eq!(table.bind_vcpu(port, VcpuId(1)), Ok(None));
    assert_eq!(table.virq_port(virq::DOM_EXC, VcpuId(0)), Some((port, VcpuId(1))));
    assert_eq!(table.close(port), Ok(Closed::Whole));
    assert_eq!(table.virq_port(virq::DOM_EXC, VcpuId(0)), None);
}

#[test]
fn a_virq_cannot_be_rung_by_its_owner() {
    let mut table = table();
    let port = table.bind_virq(virq::DEBUG, VcpuId(0)).unwrap();
    assert_eq!(table.send(port), Err(Refused::WrongState));
}

#[derive(Clone, Debug)]
enum Step {
    Offer(bool, u16),
    Bind(bool, u32),
    Loop(bool, u32),
    Virq(bool, u32, u32),
    Ipi(bool, u32),
    Pirq(bool, u32),
    Move(bool, u32, u32),
    Close(bool, u32),
}

fn step() -> impl Strategy<Value = Step> {
    let port = 0_u32..24;
    prop_oneof![
        (any::<bool>(), 1_u16..4).prop_map(|(s, d)| Step::Offer(s, d)),
        (any::<bool>(), port.clone()).prop_map(|(s, p)| Step::Bind(s, p)),
        (any::<bool>(), port.clone()).prop_map(|(s, p)| Step::Loop(s, p)),
        (any::<bool>(), 0_u32..26, 0_u32..4).prop_map(|(s, n, v)| Step::Virq(s, n, v)),
        (any::<bool>(), 0_u32..4).prop_map(|(s, v)| Step::Ipi(s, v)),
        (any::<bool>(), 0_u32..10).prop_map(|(s, p)| Step::Pirq(s, p)),
        (any::<bool>(), port.clone(), 0_u32..4).prop_map(|(s, p, v)| Step::Move(s, p, v)),
        (any::<bool>(), port).prop_map(|(s, p)| Step::Close(s, p)),
    ]
}

proptest! {
    #[test]
    fn no_history_breaks_what_is_always_true(steps in prop::collection::vec(step(), 1..200)) {
        let limits = Limits { max_port: 20, vcpus: 3, pirqs: 8 };
        let mut tables = [PortTable::new(limits).unwrap(), PortTable::new(limits).unwrap()];
        let ids = [id(1), id(2)];
        for step in steps {
            let [first, second] = &mut tables;
            let pick = |second_acts: bool| usize::from(second_acts);
            match step {
                Step::Offer(who, to) => { let _ = tables[pick(who)].alloc_unbound(id(to)); }
                Step::Bind(false, port) => {
                    let _ = bind_interdomain((ids[0], first), (ids[1], second), Port::new(port));
                }
                Step::Bind(true, port) => {
                    let _ = bind_interdomain((ids[1], second), (ids[0], first), Port::new(port));
                }
                Step::Loop(who, port) => {
                    let _ = bind_loopback(ids[pick(who)], &mut tables[pick(who)], Port::new(port));
                }
                Step::Virq(who, number, vcpu) => { let _ = tables[pick(who)].bind_virq(number, VcpuId(vcpu)); }
                Step::Ipi(who, vcpu) => { let _ = tables[pick(who)].bind_ipi(VcpuId(vcpu)); }
                Step::Pirq(who, pirq) => { let _ = tables[pick(who)].bind_pirq(Pirq::new(pirq)); }
                Step::Move(who, port, vcpu) => {
                    let _ = tables[pick(who)].bind_vcpu(Port::new(port), VcpuId(vcpu));
                }
                Step::Close(who, port) => {
                    let me = pick(who);
                    if let Ok(Closed::Far(far)) = tables[me].close(Port::new(port)) {
                        let by = FarEnd { domain: ids[me], port: Port::new(port) };
                        let there = usize::from(far.domain == ids[1]);
                        tables[there].far_end_closed(far.port, by);
                    }
                }
            }
            for table in &tables {
                prop_assert_eq!(table.audit(), Ok(()));
            }
            for left in 0..2 {
                for right in 0..2 {
                    prop_assert_eq!(audit_pair((ids[left], &tables[left]), (ids[right], &tables[right])), Ok(()));
                }
            }
        }
    }
}
