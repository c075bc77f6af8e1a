//! Which segment descriptors a guest may have: none that leads to more privilege than CPL 3.
//!
//! SDM 3A "Segment Descriptors", "Gate Descriptors".

const PRESENT: u64 = 1 << 47;
const CODE_OR_DATA: u64 = 1 << 44;
const DPL: u64 = 3 << 45;
const TYPE: u64 = 0xf << 40;
const CALL_GATE: u64 = 0xc << 40;
const TABLE_LDT: u16 = 4;

/// First GDT entry that is the hypervisor's.
const FIRST_OWN_ENTRY: u16 = ferroxen_abi::x86::FIRST_RESERVED_GDT_ENTRY as u16;

/// The descriptor as it may stand in a guest's table; `None` if in no form.
///
/// Code and data segments get DPL 3: all guest code runs there. A call gate may only lead to a selector of the
/// guest's own and gets DPL 0, so that using it faults and can be emulated; the DPL that it had is kept in the
/// target selector's RPL.
#[inline]
pub const fn checked(descriptor: u64) -> Option<u64> {
    if descriptor & PRESENT == 0 {
        return Some(descriptor);
    }
    if descriptor & CODE_OR_DATA != 0 {
        return Some(descriptor | DPL);
    }
    // Type 0 is the second half of a 16-byte gate: unusable by itself.
    if descriptor & TYPE == 0 {
        return Some(descriptor | DPL);
    }
    if descriptor & TYPE != CALL_GATE {
        return None;
    }
    let selector = (descriptor >> 16) as u16;
    let own = selector >> 3 < FIRST_OWN_ENTRY
        || selector & TABLE_LDT != 0
        || selector == ferroxen_abi::x86::selector::FLAT_RING3_CS64;
    if own { Some(descriptor & !DPL | 3 << 16) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_ring_0_code_becomes_ring_3_code() {
        assert_eq!(checked(0x00af_9b00_0000_ffff), Some(0x00af_fb00_0000_ffff));
    }

    #[test]
    fn absent_descriptors_may_say_anything() {
        assert_eq!(checked(0x0000_0900_dead_beef), Some(0x0000_0900_dead_beef));
    }

    #[test]
    fn system_segments_and_interrupt_gates_are_refused() {
        for kind in [1u64, 2, 3, 5, 6, 7, 9, 11, 14, 15] {
            assert_eq!(checked(PRESENT | kind << 40), None, "type {kind}");
        }
    }

    #[test]
    fn a_call_gate_to_the_hypervisor_is_refused_and_one_of_the_guests_loses_its_dpl() {
        let gate = |selector: u64| PRESENT | CALL_GATE | 3 << 45 | selector << 16;
        assert_eq!(checked(gate(0xe008)), None);
        assert_eq!(checked(gate(0x0010)), Some(PRESENT | CALL_GATE | 0x13 << 16));
    }
}
