use super::*;
use crate::{CpuMask, DEFAULT_WEIGHT};
use ferroxen_words::CpuId;
use proptest::prelude::*;
extern crate std;

const MS: u64 = 1_000_000;

fn with(count: u32) -> RunQueue<u32> {
    let mut queue = RunQueue::new();
    for who in 0..count {
        queue.insert(Unit::new(who, 0)).unwrap();
    }
    queue
}

/// Runs for `total` ns as a CPU would; answers how long each ran.
fn run(queue: &mut RunQueue<u32>, start: u64, total: u64) -> std::vec::Vec<u64> {
    let (mut now, end) = (start, start + total);
    let before: std::vec::Vec<u64> = queue
        .units
        .iter()
        .flatten()
        .map(|u| u.times.at(start).spent_ns[0])
        .collect();
    while now < end {
        queue.charge(now);
        let next = queue.pick(Goes::Stays, now);
        now = next.until_ns.unwrap_or(end).min(end);
        queue.audit(now);
    }
    let after = queue.units.iter().flatten().map(|u| u.times.at(end).spent_ns[0]);
    after.zip(before).map(|(after, before)| after - before).collect()
}

#[test]
fn equal_weights_share_equally() {
    let mut queue = with(3);
    for slot in 0..3 {
        let _ = queue.wake(Slot(slot), 0);
    }
    for ran in run(&mut queue, 0, 3_000 * MS) {
        assert!(ran.abs_diff(1_000 * MS) < 20 * MS, "{ran}");
    }
}

#[test]
fn twice_the_weight_gets_twice_the_time() {
    let mut queue = with(2);
    queue.unit_mut(Slot(0)).unwrap().set_weight(2 * DEFAULT_WEIGHT);
    for slot in 0..2 {
        let _ = queue.wake(Slot(slot), 0);
    }
    let ran = run(&mut queue, 0, 3_000 * MS);
    assert!(ran[0].abs_diff(2_000 * MS) < 30 * MS, "{ran:?}");
}

#[test]
fn whoever_is_alone_runs_without_a_tick() {
    let mut queue = with(2);
    let _ = queue.wake(Slot(1), 0);
    assert_eq!(
        queue.pick(Goes::Stays, 0),
        Next {
            slot: Some(Slot(1)),
            until_ns: None
        }
    );
    let _ = queue.wake(Slot(0), 5);
    queue.charge(5);
    assert!(queue.pick(Goes::Stays, 5).until_ns.is_some());
}

#[test]
fn a_sleeper_interrupts_a_spinner_at_once_but_is_not_paid_for_its_whole_sleep() {
    let mut queue = with(2);
    let _ = queue.wake(Slot(0), 0);
    let _ = queue.pick(Goes::Stays, 0);
    let now = 1_000 * MS;
    queue.charge(now);
    let _ = queue.pick(Goes::Stays, now);
    assert_eq!(queue.wake(Slot(1), now), Wake::Preempt);
    queue.charge(now);
    assert_eq!(queue.pick(Goes::Stays, now).slot, Some(Slot(1)));
    // Spinning itself now, it has its credit and then must share.
    let ran = run(&mut queue, now, 200 * MS);
    assert!(ran[0] > 80 * MS, "the spinner starves: {ran:?}");
}

#[test]
fn one_that_yields_lets_any_other_go_first() {
    let mut queue = with(2);
    for slot in 0..2 {
        let _ = queue.wake(Slot(slot), 0);
    }
    let first = queue.pick(Goes::Stays, 0).slot.unwrap();
    let second = queue.pick(Goes::Yields, 1).slot.unwrap();
    assert_ne!(first, second);
    let _ = queue.stop(first, 2);
    assert_eq!(queue.pick(Goes::Yields, 3).slot, Some(second), "alone, it goes on");
}

#[test]
fn a_parked_vcpu_waits_for_its_budget() {
    let mut queue = with(1);
    let _ = queue.wake(Slot(0), 0);
    queue.park(Slot(0), 50);
    assert_eq!(
        queue.pick(Goes::Stays, 10),
        Next {
            slot: None,
            until_ns: Some(50)
        }
    );
    assert_eq!(queue.pick(Goes::Stays, 50).slot, Some(Slot(0)));
}

#[test]
fn only_the_allowed_are_given_away() {
    let mut queue = with(2);
    queue.unit_mut(Slot(0)).unwrap().hard = CpuMask::of(CpuId(0));
    for slot in 0..2 {
        let _ = queue.wake(Slot(slot), 0);
    }
    let there = CpuId(3);
    assert_eq!(queue.spare(0, |unit| unit.hard.contains(there)), Some(Slot(1)));
}

#[test]
fn a_vcpu_that_moves_takes_its_lead_along() {
    let mut old = with(2);
    let _ = old.wake(Slot(0), 0);
    let _ = old.pick(Goes::Stays, 0);
    old.charge(500 * MS);
    let _ = old.pick(Goes::Stays, 500 * MS);
    let _ = old.wake(Slot(1), 500 * MS);
    let unit = old.remove(Slot(1)).unwrap();
    assert_eq!(unit.virtual_ns, NEUTRAL_NS - WAKE_CREDIT_NS);
    let mut new = with(0);
    let slot = new.insert(unit).unwrap();
    assert_eq!(new.pick(Goes::Stays, 501 * MS).slot, Some(slot));
}

proptest! {
    #[test]
    fn no_history_breaks_what_is_always_true(steps in prop::collection::vec((0_u8..8, 0_u32..5, 1_u64..20), 1..200)) {
        let mut queue = with(4);
        let mut now = 0;
        let mut base = 0;
        for (what, slot, passed) in steps {
            now += passed * MS;
            let slot = Slot(slot);
            match what {
                0 | 1 => { let _ = queue.wake(slot, now); }
                2 => { let _ = queue.stop(slot, now); }
                3 => {
                    if let Some(unit) = queue.remove(slot) {
                        prop_assert!(queue.insert(unit).is_ok());
                    }
                }
                4 => queue.park(slot, now + passed * MS),
                other => {
                    let goes = [Goes::Stays, Goes::Yields, Goes::Blocks, Goes::Stops][usize::from(other) % 4];
                    queue.charge(now);
                    let _ = queue.pick(goes, now);
                }
            }
            queue.audit(now);
            prop_assert!(queue.virtual_ns >= base);
            base = queue.virtual_ns;
        }
    }
}
