//! The two 8259s: moved out of the way of exceptions, then silenced for good. The IO-APIC does the work.

use super::port::outb;

const MASTER: u16 = 0x20;
const SLAVE: u16 = 0xa0;

/// First vector that a stray 8259 interrupt would use; sixteen of them are set aside.
pub const FIRST_VECTOR: u8 = 0x20;

/// Remaps both controllers to [`FIRST_VECTOR`] and masks every line. Called once at boot.
pub fn silence() {
    let steps: [(u16, u8); 12] = [
        (MASTER + 1, 0xff),
        (SLAVE + 1, 0xff),
        (MASTER, 0x11), // ICW1: edge, cascade, ICW4 follows
        (MASTER + 1, FIRST_VECTOR),
        (MASTER + 1, 1 << 2), // the slave hangs on line 2
        (MASTER + 1, 1),      // 8086 mode
        (SLAVE, 0x11),
        (SLAVE + 1, FIRST_VECTOR + 8),
        (SLAVE + 1, 2),
        (SLAVE + 1, 1),
        (MASTER + 1, 0xff),
        (SLAVE + 1, 0xff),
    ];
    for (port, value) in steps {
        // SAFETY: the controllers are ours alone (`port::OWNED`), and every vector from `FIRST_VECTOR` on has a gate.
        unsafe {
            outb(port, value);
            outb(0x80, 0); // old controllers need a moment between writes
        }
    }
    // Some boards can switch the PIC out of the interrupt path altogether (MP specification "IMCR").
    // SAFETY: selects and sets the interrupt mode register; boards without it ignore both writes.
    unsafe {
        outb(0x22, 0x70);
        outb(0x23, 0x01);
    }
}
