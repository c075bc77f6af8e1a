//! The calls: one is drawn, with arguments of the kinds it takes.

mod control;
mod grants;
mod tables;

use pv::abi::memory::{MemoryExchange, MemoryReservation};
use pv::abi::physdev::{Eoi, IrqStatusQuery, MapPirq, UnmapPirq, physdevop};
use pv::abi::sched::{Poll, RemoteShutdown, schedop};
use pv::abi::vcpu::{RegisterMemoryArea, SetPeriodicTimer, SetSingleshotTimer, vcpuop};
use pv::event::SELF;
use pv::hypercall::number;
use pv::memory::{ORDINARY, READ_ONLY, pte};
use pv::{start, time, trap};

use crate::dice::Dice;
use crate::neighbour;
use crate::scene::{ENTRIES, ENTRY, PAGES, ROOTS, Scene, WINDOWS};
use crate::step::{After, Call, Room, request};

/// Ports that may be open.
const PORTS: u64 = 48;
/// A frame that no machine of ours has.
const NO_FRAME: u64 = 0x7_ffff_ffff;

/// Draws a call.
pub fn draw(dice: &mut Dice, scene: &Scene, room: &mut Room) -> Call {
    match dice.below(24) {
        0..=3 => tables::mmu_update(dice, scene, room),
        4 | 5 => tables::update_va_mapping(dice, scene),
        6..=8 => tables::extended(dice, scene, room),
        9..=12 => grants::grants(dice, scene, room),
        13 | 14 => events(dice, scene, room),
        15..=17 => memory(dice, scene, room),
        18 => vcpus(dice, scene, room),
        19 => devices(dice, room),
        20 => others(dice, scene, room),
        21 => traps(dice, scene, room),
        _ => control::control(dice, scene, room),
    }
}

/// A frame: mostly one of the pages', now and then a root, the neighbour's, or one that is nobody's business.
fn frame(dice: &mut Dice, scene: &Scene) -> u64 {
    match dice.below(16) {
        0 | 1 => scene.root(dice.below(ROOTS as u64)).mfn(),
        2 => scene.neighbours_frame(dice.below(64)),
        3 => dice.one_of(&[
            pv::tables::root_mfn(),
            start::info().shared_info >> 12,
            scene.slot(0) >> 12,
            0,
            NO_FRAME,
        ]),
        _ => scene.page(dice.below(PAGES as u64)).mfn(),
    }
}

/// A page-table entry.
pub fn entry_value(dice: &mut Dice, scene: &Scene) -> u64 {
    const FLAGS: [u64; 8] = [
        0,
        pte::PRESENT,
        pte::PRESENT | pte::USER,
        READ_ONLY,
        READ_ONLY,
        ORDINARY,
        ORDINARY,
        ORDINARY | pte::LARGE,
    ];
    let flags = dice.one_of(&FLAGS);
    if flags == 0 {
        0
    } else {
        frame(dice, scene) << 12 | flags
    }
}

/// Where an entry lies.
fn place(dice: &mut Dice, scene: &Scene) -> u64 {
    if dice.once_in(3) {
        return scene.slot(dice.below(WINDOWS as u64));
    }
    let table = frame(dice, scene);
    (table << 12) + (ENTRY + dice.below(ENTRIES)) * 8
}

/// An address that may be mapped, and may be remapped.
fn address(dice: &mut Dice, scene: &Scene) -> u64 {
    let page = if dice.once_in(3) {
        scene.page(dice.below(PAGES as u64))
    } else {
        scene.window(dice.below(WINDOWS as u64))
    };
    page.address()
}

/// Ourselves, or the neighbour.
fn domid(dice: &mut Dice, scene: &Scene) -> u16 {
    if dice.once_in(3) {
        neighbour::domid()
    } else {
        scene.own()
    }
}

fn events(dice: &mut Dice, scene: &Scene, room: &mut Room) -> Call {
    let op = |command: u64, at: u64| Call::new(number::EVENT_CHANNEL_OP, [command, at]);
    let (port, other) = (dice.below(PORTS) as u32, dice.below(PORTS) as u32);
    let (domain, remote) = (u32::from(domid(dice, scene)), u32::from(domid(dice, scene)));
    let vcpu = dice.below(3) as u32;
    let command = dice.one_of(&[0, 0, 1, 2, 3, 3, 4, 4, 5, 6, 6, 7, 7, 8, 9, 10]);
    // The operands of all commands are words of 32 bits, domain ids being the lower half of one, or of 16.
    let operands: [u32; 6] = match command {
        0 => [remote, port, 0, 0, 0, 0],
        1 => [dice.below(24) as u32, vcpu, 0, 0, 0, 0],
        2 => [dice.below(32) as u32, dice.below(2) as u32, 0, 0, 0, 0],
        5 => [domain, port, 0, 0, 0, 0],
        6 => [domain | remote << 16, 0, 0, 0, 0, 0],
        7 => [vcpu, 0, 0, 0, 0, 0],
        8 => [other, vcpu, 0, 0, 0, 0],
        // Of our own ports, seldom: all of them are gone then.
        10 => [
            if dice.once_in(4) {
                SELF.into()
            } else {
                neighbour::domid().into()
            },
            0,
            0,
            0,
            0,
            0,
        ],
        _ => [port, 0, 0, 0, 0, 0],
    };
    op(command, room.put(&operands))
}

fn memory(dice: &mut Dice, scene: &Scene, room: &mut Room) -> Call {
    let op = |command: u64, at: u64| Call::new(number::MEMORY_OP, [command, at]).never_spoilt();
    let pages: [_; 4] = core::array::from_fn(|_| scene.page(dice.below(PAGES as u64)));
    let count = if dice.once_in(3) { 1 + dice.below(4) } else { 1 };
    let theirs = dice.once_in(6);
    let reservation = |list: u64, count: u64| {
        request(|request: &mut MemoryReservation| {
            (request.extent_start, request.nr_extents) = (list, count);
            request.domid.0 = if theirs { neighbour::domid() } else { SELF };
        })
    };
    let (mfns, pfns) = (pages.map(|page| page.mfn()), pages.map(|page| page.address() >> 12));
    match dice.below(9) {
        0..=2 => {
            let mine = dice.below(64);
            let list = if theirs {
                room.put(&scene.neighbours_frame(mine))
            } else {
                room.put(&mfns)
            };
            op(1, room.put_as_it_is(&reservation(list, if theirs { 1 } else { count })))
        }
        3..=5 => {
            let order = if dice.once_in(6) { dice.below(4) as u32 } else { 0 };
            let list = room.put(&pfns);
            let mut wanted = reservation(list, count);
            wanted.extent_order = order;
            let made = op(6, room.put_as_it_is(&wanted));
            // What is behind a page of a larger extent than one is nobody's page here.
            if theirs || order > 0 {
                made
            } else {
                made.then(After::Populated { list, pfns, count })
            }
        }
        6 | 7 => {
            let (given, list) = (room.put(&mfns), room.put(&pfns));
            let exchange: MemoryExchange = request(|exchange: &mut MemoryExchange| {
                (exchange.in_, exchange.out) = (reservation(given, count), reservation(list, count));
                exchange.out.mem_flags = dice.one_of(&[0, 0, 32, 20, 1 << 16]);
            });
            let made = op(11, room.put_as_it_is(&exchange));
            if theirs {
                made
            } else {
                made.then(After::Populated { list, pfns, count })
            }
        }
        _ => {
            let command = dice.one_of(&[2, 3, 4, 14, 24]);
            op(command, room.put(&[u64::from(domid(dice, scene)), dice.below(3), 0, 0]))
        }
    }
}

fn vcpus(dice: &mut Dice, scene: &Scene, room: &mut Room) -> Call {
    let vcpu = dice.below(3);
    let area = RegisterMemoryArea {
        addr: address(dice, scene) + ENTRY * 8 + dice.below(16),
    };
    let soon = dice.below(2_000_000);
    // Only the second may be taken down: the first is the one to bring it back at the end.
    if dice.once_in(12) {
        return Call::new(number::VCPU_OP, [vcpuop::DOWN, 1, 0]).never_spoilt();
    }
    let (command, at) = match dice.below(8) {
        0 => (vcpuop::REGISTER_RUNSTATE_MEMORY_AREA, room.put(&area)),
        1 => (vcpuop::REGISTER_VCPU_TIME_MEMORY_AREA, room.put(&area)),
        2 => (
            vcpuop::SET_PERIODIC_TIMER,
            room.put(&SetPeriodicTimer {
                period_ns: 1_000_000 + soon,
            }),
        ),
        3 => (vcpuop::STOP_PERIODIC_TIMER, 0),
        4 => (
            vcpuop::SET_SINGLESHOT_TIMER,
            room.put(&SetSingleshotTimer {
                timeout_abs_ns: time::now() + soon,
                flags: 0,
                pad: 0,
            }),
        ),
        5 => (vcpuop::STOP_SINGLESHOT_TIMER, 0),
        6 => (vcpuop::SEND_NMI, 0),
        _ => (
            dice.one_of(&[vcpuop::UP, vcpuop::IS_UP, vcpuop::GET_PHYSID]),
            room.put(&0_u64),
        ),
    };
    Call::new(number::VCPU_OP, [command, vcpu, at])
}

fn devices(dice: &mut Dice, room: &mut Room) -> Call {
    let irq = dice.below(40) as u32;
    let (command, at) = match dice.below(5) {
        0 => (physdevop::IRQ_STATUS_QUERY, room.put(&IrqStatusQuery { irq, flags: 0 })),
        1 => (physdevop::EOI, room.put(&Eoi { irq })),
        2 | 3 => {
            let map: MapPirq = request(|map: &mut MapPirq| {
                (map.domid.0, map.kind, map.index) = (SELF, dice.below(3) as i32, irq as i32);
                map.pirq = if dice.once_in(2) { -1 } else { irq as i32 };
            });
            (physdevop::MAP_PIRQ, room.put(&map))
        }
        _ => {
            let unmap: UnmapPirq = request(|unmap: &mut UnmapPirq| (unmap.domid.0, unmap.pirq) = (SELF, irq as i32));
            (physdevop::UNMAP_PIRQ, room.put(&unmap))
        }
    };
    Call::new(number::PHYSDEV_OP, [command, at])
}

fn others(dice: &mut Dice, scene: &Scene, room: &mut Room) -> Call {
    match dice.below(10) {
        0 | 1 => {
            let frames: [u64; 4] = core::array::from_fn(|_| frame(dice, scene));
            Call::new(number::SET_GDT, [room.put(&frames), dice.below(2048)]).loose(1)
        }
        2 => {
            let descriptor = dice.one_of(&[0, 0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff, 0xffff_ec00_e008_1000]);
            Call::new(number::UPDATE_DESCRIPTOR, [place(dice, scene), descriptor])
        }
        3 => {
            let watched = address(dice, scene) + (ENTRY + dice.below(ENTRIES)) * 8;
            let control = dice.one_of(&[
                0,
                0xd_0001,
                0xf_0001,
                0xdd_0005,
                0xfffd_00ff,
                0x1,
                0x3_0003,
                0x400,
                0x2001,
            ]);
            let index = dice.below(8);
            let value = match index {
                7 => control,
                6 => dice.one_of(&[0, 0xffff_0ff0, 0x4000, 0xf]),
                _ => watched,
            };
            if dice.once_in(4) {
                return Call::new(number::GET_DEBUGREG, [index]);
            }
            Call::new(number::SET_DEBUGREG, [index, value])
        }
        4 => Call::new(number::SET_SEGMENT_BASE, [dice.below(3), address(dice, scene)]),
        5 => Call::new(number::SET_TIMER_OP, [time::now() + dice.below(2_000_000)]),
        6 => {
            let ports: [u32; 4] = core::array::from_fn(|_| dice.below(PORTS) as u32);
            let poll: Poll = request(|poll: &mut Poll| {
                (poll.ports, poll.nr_ports) = (room.put(&ports), dice.below(5) as u32);
                poll.timeout = time::now() + 500_000;
            });
            // Without its timeout it might never end.
            Call::new(number::SCHED_OP, [schedop::POLL, room.put_as_it_is(&poll)]).never_spoilt()
        }
        7 => Call::new(number::VM_ASSIST, [dice.below(2), dice.one_of(&[4, 5, 32])]),
        8 => Call::new(number::FPU_TASKSWITCH, [dice.below(2)]),
        _ if dice.once_in(3) => {
            let end: RemoteShutdown = request(|end: &mut RemoteShutdown| {
                (end.domain_id.0, end.reason) = (neighbour::domid(), dice.below(5) as u32);
            });
            Call::new(number::SCHED_OP, [schedop::REMOTE_SHUTDOWN, room.put_as_it_is(&end)]).never_spoilt()
        }
        _ => Call::new(number::SCHED_OP, [schedop::YIELD]).never_spoilt(),
    }
}

/// How traps and callbacks reach the kernel: always as they do anyway, since it must go on.
fn traps(dice: &mut Dice, scene: &Scene, room: &mut Room) -> Call {
    let vcpu = pv::vcpu::current();
    match dice.below(6) {
        0 | 1 => {
            let gates = [dice.below(256) as u8, dice.below(256) as u8].map(|vector| trap::gate(vcpu, vector));
            let list = [gates[0], gates[1], Default::default()];
            Call::new(number::SET_TRAP_TABLE, [room.put_as_it_is(&list)]).never_spoilt()
        }
        2 => {
            let kinds = trap::CALLBACKS;
            let (cause, kind) = kinds[dice.below(kinds.len() as u64) as usize];
            let request = [u64::from(kind), trap::handler(vcpu, cause)];
            Call::new(number::CALLBACK_OP, [0, room.put_as_it_is(&request)]).never_spoilt()
        }
        3 => Call::new(number::STACK_SWITCH, [0xe02b, pv::vcpu::entry_stack(vcpu)]).never_spoilt(),
        4 => {
            let command = dice.one_of(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
            Call::new(number::XEN_VERSION, [command, address(dice, scene) + ENTRY * 8])
        }
        _ => Call::new(number::SET_SEGMENT_BASE, [3, dice.one_of(&[0, 0xe02b, 0x43, 7, 0x4b])]),
    }
}
