//! Grants: offers, maps, copies.

use pv::abi::grant_table::{Copy, MapGrantRef, QuerySize, SetupTable, SwapGrantRef, UnmapGrantRef, gnttabop};
use pv::event::SELF;
use pv::grant::{gntmap, gtf};
use pv::hypercall::number;

use super::{Call, address, domid, frame, place};
use crate::dice::Dice;
use crate::neighbour;
use crate::scene::{ENTRIES, ENTRY, GREF, GREFS, PAGES, Scene};
use crate::step::{After, Room, request};

/// Handles that may be in use.
const HANDLES: u64 = 24;

/// One of them.
pub fn grants(dice: &mut Dice, scene: &Scene, room: &mut Room) -> Call {
    let gref = |dice: &mut Dice| GREF + dice.below(GREFS);
    let op = |command: u64, at: u64| Call::new(number::GRANT_TABLE_OP, [command, at, 1]).loose(2);
    match dice.below(11) {
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
            let grantee = if dice.once_in(6) {
                neighbour::domid()
            } else {
                scene.own()
            };
            scene.offer(
                neighbours,
                gref,
                u64::from(flags) | u64::from(grantee) << 16 | mfn << 32,
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
        9 => {
            // The frames of a grant table as a resource: 1 is that kind, 28 the command.
            let (domain, first) = (domid(dice, scene), dice.below(5));
            let frames = room.put(&[0_u64; 2]);
            let request = [u64::from(domain) | 1 << 16, dice.below(3), first, frames];
            Call::new(number::MEMORY_OP, [28, room.put_as_it_is(&request)]).never_spoilt()
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
