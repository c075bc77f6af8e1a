//! XSA-200 (CVE-2016-9932): `cmpxchg8b` that reads more than eight bytes.
//!
//! The emulator took the operand's size from prefixes that do not apply to this instruction, compared and returned bytes
//! of the hypervisor's stack. It is tried on an entry of a pinned table, with every prefix, and with REX.W, which makes
//! it `cmpxchg16b`. What the registers hold afterwards must be the table's contents, and nothing else.

use pv::code::Code;
use pv::memory::{ORDINARY, Page};
use pv::tables;
use pv::trap::General;

use crate::report::{Ended, Report, Verdict};

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    tables::assist_stores().ok()?;
    let (data, table) = (Page::new(), Page::new());
    table.set_word(0, data.mfn() << 12 | ORDINARY);
    table.seal()?;
    tables::pin(1, table.mfn()).ok()?;
    let entry = table.word(0);
    let mut code = Code::new();
    let ways: [(&str, &[u8]); 6] = [
        ("cmpxchg8b", &[0x0f, 0xc7, 0x0f]),
        ("lock cmpxchg8b", &[0xf0, 0x0f, 0xc7, 0x0f]),
        ("16 bits", &[0x66, 0x0f, 0xc7, 0x0f]),
        ("rep", &[0xf3, 0x0f, 0xc7, 0x0f]),
        ("repne", &[0xf2, 0x0f, 0xc7, 0x0f]),
        ("cmpxchg16b", &[0x48, 0x0f, 0xc7, 0x0f]),
    ];
    for (name, bytes) in ways {
        code.set(bytes);
        // Never equal, so that the contents come back: in edx:eax, or rdx:rax.
        let mut registers = General { rdi: table.address(), rax: 0x5a5a, rdx: 0x5a5a, ..General::default() };
        let ended = code.in_kernel(&mut registers);
        let went = ended.is_ok();
        report.saw(name, Ended(ended));
        let halves = (registers.rax, registers.rdx);
        let narrow = halves == (entry & 0xffff_ffff, entry >> 32);
        report.check("nothing but the table's comes back", !went || narrow || halves == (entry, table.word(1)));
        report.check("the table is what it was", table.word(0) == entry);
    }
    code.set(&[0x0f, 0xc7, 0x0f]);
    let mut registers = General { rdi: table.address(), rax: entry & 0xffff_ffff, rdx: entry >> 32, ..General::default() };
    report.saw("one that is equal", Ended(code.in_kernel(&mut registers)));
    report.saw("took the entry away", table.word(0) == 0);
    Ok(())
}
