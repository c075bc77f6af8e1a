//! The calls: one is drawn, with arguments of the kinds it takes.

use pv::abi::grant_table::{Copy, MapGrantRef, QuerySize, SetupTable, SwapGrantRef, UnmapGrantRef, gnttabop};
use pv::abi::memory::{MemoryExchange, MemoryReservation};
use pv::abi::physdev::{Eoi, IrqStatusQuery, MapPirq, UnmapPirq, physdevop};
use pv::abi::sched::{Poll, schedop};
use pv::abi::vcpu::{RegisterMemoryArea, SetPeriodicTimer, SetSingleshotTimer, vcpuop};
use pv::abi::xen::{MmuUpdate, MmuextOp};
use pv::event::SELF;
use pv::grant::{gntmap, gtf};
use pv::hypercall::number;
use pv::memory::{ORDINARY, READ_ONLY, pte};
use pv::{start, tables, time};

use crate::dice::Dice;
use crate::neighbour;
use crate::scene::{ENTRIES, ENTRY, GREF, GREFS, PAGES, ROOTS, Scene, WINDOWS};
use crate::step::{After, Call, Room, request};

/// Ports that may be open.
const PORTS: u64 = 48;
/// Handles that may be in use.
const HANDLES: u64 = 24;
/// A frame that no machine of ours has.
const NO_FRAME: u64 = 0x7_ffff_ffff;

/// Draws a call.
pub fn draw(dice: &mut Dice, scene: &Scene, room: &mut Room) -> Call {
    match dice.below(20) {
        0..=3 => mmu_update(dice, scene, room),
        4 | 5 => update_va_mapping(dice, scene),
        6..=8 => extended(dice, scene, room),
        9..=12 => grants(dice, scene, room),
        13 | 14 => events(dice, scene, room),
        15 | 16 => memory(dice, scene, room),
        17 => vcpus(dice, scene, room),
        18 => devices(dice, room),
        _ => others(dice, scene, room),
    }
}

/// A frame: mostly one of the pages', now and then a root, the neighbour's, or one that is nobody's business.
fn frame(dice: &mut Dice, scene: &Scene) -> u64 {
    match dice.below(16) {
        0 | 1 => scene.root(dice.below(ROOTS as u64)).mfn(),
        2 => scene.neighbours_frame(dice.below(64)),
        3 => dice.one_of(&[
            tables::root_mfn(),
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
    if dice.once_in(3) { neighbour::DOMID } else { scene.own() }
}

fn mmu_update(dice: &mut Dice, scene: &Scene, room: &mut Room) -> Call {
    let count = 1 + dice.below(4);
    let batch: [MmuUpdate; 4] = core::array::from_fn(|_| {
        let command = dice.one_of(&[0, 0, 0, 0, 2, 2, 1, 3]);
        let place = place(dice, scene);
        let value = entry_value(dice, scene);
        // What a frame's page is, is told of our own alone.
        if command == 1 {
            MmuUpdate {
                ptr: place & !0xfff | 1,
                val: dice.below(1 << 14),
            }
        } else {
            MmuUpdate {
                ptr: place | command,
                val: value,
            }
        }
    });
    let subject = if dice.once_in(6) {
        neighbour::DOMID.into()
    } else {
        tables::SELF
    };
    Call::new(number::MMU_UPDATE, [room.put(&batch), count, 0, subject])
}

fn update_va_mapping(dice: &mut Dice, scene: &Scene) -> Call {
    let (address, value, flush) = (address(dice, scene), entry_value(dice, scene), dice.below(4));
    if dice.once_in(8) {
        return Call::new(
            number::UPDATE_VA_MAPPING_OTHERDOMAIN,
            [address, value, flush, neighbour::DOMID.into()],
        );
    }
    Call::new(number::UPDATE_VA_MAPPING, [address, value, flush])
}

fn extended(dice: &mut Dice, scene: &Scene, room: &mut Room) -> Call {
    use tables::ext;
    let count = 1 + dice.below(3);
    let batch: [MmuextOp; 3] = core::array::from_fn(|_| {
        let command = dice.below(21) as u32;
        let own = |dice: &mut Dice| scene.page(dice.below(PAGES as u64));
        let (first, second) = match command {
            // A vcpu runs on nothing but a root that has its kernel in it.
            ext::NEW_BASEPTR => (scene.root(dice.below(ROOTS as u64)).mfn(), 0),
            ext::NEW_USER_BASEPTR => (if dice.once_in(3) { 0 } else { frame(dice, scene) }, 0),
            ext::CLEAR_PAGE => (own(dice).mfn(), 0),
            ext::COPY_PAGE => (own(dice).mfn(), frame(dice, scene)),
            ext::SET_LDT => (address(dice, scene), dice.below(600)),
            ext::INVLPG_LOCAL | ext::INVLPG_ALL => (address(dice, scene), 0),
            ext::TLB_FLUSH_MULTI | ext::INVLPG_MULTI => (address(dice, scene), room.put(&3_u64)),
            _ => (frame(dice, scene), 0),
        };
        MmuextOp {
            cmd: command,
            pad: 0,
            arg1: first,
            arg2: second,
        }
    });
    Call::new(number::MMUEXT_OP, [room.put(&batch), count, 0, tables::SELF])
}

fn grants(dice: &mut Dice, scene: &Scene, room: &mut Room) -> Call {
    let gref = |dice: &mut Dice| GREF + dice.below(GREFS);
    let op = |command: u64, at: u64| Call::new(number::GRANT_TABLE_OP, [command, at, 1]);
    match dice.below(10) {
        0..=2 => {
            // The offer, then the call: a table is memory, and needs none.
            let neighbours = dice.once_in(3);
            let mfn = if neighbours {
                scene.neighbours_frame(dice.below(64))
            } else {
                frame(dice, scene)
            };
            let flags = dice.one_of(&[
                gtf::PERMIT_ACCESS,
                gtf::PERMIT_ACCESS,
                gtf::PERMIT_ACCESS | gtf::READ_ONLY,
                0,
            ]);
            let gref = gref(dice);
            scene.offer(
                neighbours,
                gref,
                u64::from(flags) | u64::from(scene.own()) << 16 | mfn << 32,
            );
            let query: QuerySize = request(|query: &mut QuerySize| query.dom.0 = SELF);
            op(gnttabop::QUERY_SIZE, room.put(&query))
        }
        3..=5 => {
            let map: MapGrantRef = request(|map: &mut MapGrantRef| {
                map.dom.0 = domid(dice, scene);
                map.gref = gref(dice) as u32;
                map.flags = dice.one_of(&[
                    gntmap::HOST_MAP,
                    gntmap::HOST_MAP | gntmap::READONLY,
                    gntmap::HOST_MAP | gntmap::CONTAINS_PTE,
                    gntmap::HOST_MAP | gntmap::DEVICE_MAP,
                    gntmap::DEVICE_MAP | gntmap::READONLY,
                ]);
                let by_entry = map.flags & gntmap::CONTAINS_PTE != 0;
                map.host_addr = if by_entry {
                    place(dice, scene)
                } else {
                    address(dice, scene)
                };
            });
            let at = room.put(&map);
            op(gnttabop::MAP_GRANT_REF, at).then(After::Mapped(at))
        }
        6 | 7 => {
            let unmap: UnmapGrantRef = request(|unmap: &mut UnmapGrantRef| {
                unmap.handle = dice.below(HANDLES) as u32;
                let known = !dice.once_in(5);
                let other = if dice.once_in(2) { 0 } else { address(dice, scene) };
                unmap.host_addr = if known { scene.whereabouts(unmap.handle) } else { other };
            });
            op(gnttabop::UNMAP_GRANT_REF, room.put(&unmap))
        }
        8 => {
            let copy: Copy = request(|copy: &mut Copy| {
                (copy.source.domid.0, copy.dest.domid.0) = (domid(dice, scene), domid(dice, scene));
                copy.flags = dice.below(4) as u16;
                let side = |dice: &mut Dice, by_reference: bool| {
                    let (reference, mfn) = (gref(dice), scene.page(dice.below(PAGES as u64)).mfn());
                    if by_reference { reference } else { mfn }
                };
                copy.source.u = side(dice, copy.flags & 1 != 0);
                copy.dest.u = side(dice, copy.flags & 2 != 0);
                if copy.flags & 1 == 0 {
                    copy.source.domid.0 = SELF;
                }
                if copy.flags & 2 == 0 {
                    copy.dest.domid.0 = SELF;
                }
                // Not over the part of a root that the kernel stands on.
                copy.dest.offset = (ENTRY * 8 + dice.below(ENTRIES * 4)) as u16;
                copy.source.offset = dice.below(4096) as u16;
                copy.len = dice.below(ENTRIES * 4) as u16;
            });
            op(gnttabop::COPY, room.put(&copy))
        }
        _ => {
            let swap: SwapGrantRef = request(|swap: &mut SwapGrantRef| {
                (swap.ref_a, swap.ref_b) = (gref(dice) as u32, gref(dice) as u32);
            });
            let setup: SetupTable = request(|setup: &mut SetupTable| {
                (setup.dom.0, setup.nr_frames) = (domid(dice, scene), 1 + dice.below(3) as u32);
                setup.frame_list = room.put(&[0_u64; 4]);
            });
            if dice.once_in(2) {
                op(gnttabop::SWAP_GRANT_REF, room.put(&swap))
            } else {
                op(gnttabop::SETUP_TABLE, room.put(&setup))
            }
        }
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
                neighbour::DOMID.into()
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
    let page = scene.page(dice.below(PAGES as u64));
    let pfn = page.address() >> 12;
    let reservation = |list: u64| {
        request(|request: &mut MemoryReservation| {
            (request.extent_start, request.nr_extents, request.domid.0) = (list, 1, SELF);
        })
    };
    let op = |command: u64, at: u64| Call::new(number::MEMORY_OP, [command, at]);
    match dice.below(8) {
        0..=2 => {
            let list = room.put(&page.mfn());
            op(1, room.put(&reservation(list)))
        }
        3..=5 => {
            let list = room.put(&pfn);
            op(6, room.put(&reservation(list))).then(After::Populated { list, pfn })
        }
        6 => {
            let (given, taken) = (room.put(&page.mfn()), room.put(&pfn));
            let exchange: MemoryExchange = request(|exchange: &mut MemoryExchange| {
                (exchange.in_, exchange.out) = (reservation(given), reservation(taken));
            });
            op(11, room.put(&exchange)).then(After::Populated { list: taken, pfn })
        }
        _ => {
            let command = dice.one_of(&[2, 3, 4, 14]);
            op(command, room.put(&u64::from(domid(dice, scene))))
        }
    }
}

fn vcpus(dice: &mut Dice, scene: &Scene, room: &mut Room) -> Call {
    let vcpu = dice.below(3);
    let area = RegisterMemoryArea {
        addr: address(dice, scene) + ENTRY * 8 + dice.below(16),
    };
    let soon = dice.below(2_000_000);
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
            Call::new(number::SET_GDT, [room.put(&frames), dice.below(2048)])
        }
        2 => {
            let descriptor = dice.one_of(&[0, 0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff, 0xffff_ec00_e008_1000]);
            Call::new(number::UPDATE_DESCRIPTOR, [place(dice, scene), descriptor])
        }
        3 => Call::new(number::SET_DEBUGREG, [dice.below(7), address(dice, scene)]),
        4 => Call::new(number::SET_SEGMENT_BASE, [dice.below(3), address(dice, scene)]),
        5 => Call::new(number::SET_TIMER_OP, [time::now() + dice.below(2_000_000)]),
        6 => {
            let ports: [u32; 4] = core::array::from_fn(|_| dice.below(PORTS) as u32);
            let poll: Poll = request(|poll: &mut Poll| {
                (poll.ports, poll.nr_ports) = (room.put(&ports), dice.below(5) as u32);
                poll.timeout = time::now() + 500_000;
            });
            Call::new(number::SCHED_OP, [schedop::POLL, room.put(&poll)])
        }
        7 => Call::new(number::VM_ASSIST, [dice.below(2), dice.one_of(&[4, 5, 32])]),
        8 => Call::new(number::FPU_TASKSWITCH, [dice.below(2)]),
        _ => Call::new(number::SCHED_OP, [schedop::YIELD]),
    }
}
