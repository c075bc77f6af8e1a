//! Page tables: entries, pins, roots, descriptor tables.

use pv::abi::xen::{MmuUpdate, MmuextOp};
use pv::hypercall::number;
use pv::tables;

use super::{Call, address, entry_value, frame, place};
use crate::dice::Dice;
use crate::neighbour;
use crate::scene::{PAGES, ROOTS, Scene};
use crate::step::Room;

/// Some entries, by their machine addresses.
pub fn mmu_update(dice: &mut Dice, scene: &Scene, room: &mut Room) -> Call {
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
    // Whose frames, and now and then whose tables (plus 1, in the upper half).
    let subject = if dice.once_in(6) {
        let theirs = u64::from(neighbour::domid());
        if dice.once_in(3) {
            theirs | (theirs + 1) << 16
        } else {
            theirs
        }
    } else {
        tables::SELF
    };
    Call::new(number::MMU_UPDATE, [room.put(&batch), count, 0, subject]).loose(1)
}

/// One entry, by the address that it maps.
pub fn update_va_mapping(dice: &mut Dice, scene: &Scene) -> Call {
    let (address, value, flush) = (address(dice, scene), entry_value(dice, scene), dice.below(4));
    if dice.once_in(8) {
        return Call::new(
            number::UPDATE_VA_MAPPING_OTHERDOMAIN,
            [address, value, flush, neighbour::domid().into()],
        );
    }
    Call::new(number::UPDATE_VA_MAPPING, [address, value, flush])
}

/// Some of the extended operations.
pub fn extended(dice: &mut Dice, scene: &Scene, room: &mut Room) -> Call {
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
    let subject = if dice.once_in(8) {
        neighbour::domid().into()
    } else {
        tables::SELF
    };
    Call::new(number::MMUEXT_OP, [room.put(&batch), count, 0, subject]).loose(1)
}
