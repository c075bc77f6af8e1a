//! XSA-195 (CVE-2016-9383): a bit string far from where the operand points.
//!
//! `bts [table], rax` changes a bit up to 2^60 bytes away, by rax. The emulator checked the address of the operand and
//! then wrote where the index said: an escape. A pinned table is the operand, and the index leads to a page before it, to
//! the page behind it, and into the hypervisor. Only what the processor may do for the guest may happen: its own page
//! changes, the rest faults.

use pv::code::Code;
use pv::memory::Page;
use pv::tables;
use pv::trap::General;

use crate::bad;
use crate::report::{Ended, Report, Verdict};

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    tables::assist_stores().ok()?;
    // Pages come from the pool in order.
    let (before, table, behind) = (Page::new(), Page::new(), Page::new());
    table.seal()?;
    tables::pin(1, table.mfn()).ok()?;
    let operand = table.address() + 8;
    let mut code = Code::new();
    let instructions: [(&str, &[u8]); 4] = [
        ("bts", &[0x48, 0x0f, 0xab, 0x07]),
        ("lock bts", &[0xf0, 0x48, 0x0f, 0xab, 0x07]),
        ("btr", &[0x48, 0x0f, 0xb3, 0x07]),
        ("btc of 32 bits", &[0x0f, 0xbb, 0x07]),
    ];
    for (name, bytes) in instructions {
        code.set(bytes);
        for (what, place) in [
            ("the page before", before.address() + 16),
            ("the table", operand + 8),
            ("the page behind", behind.address() + 16),
            ("the hypervisor", bad::HYPERVISORS_TOO),
            ("what is not mapped", bad::UNMAPPED),
        ] {
            // A bit of an entry that is not present, so that the table may have it.
            let bit = place.wrapping_sub(operand).wrapping_mul(8) + 4;
            let mut registers = General { rdi: operand, rax: bit, ..General::default() };
            report.saw(format_args!("{name} into {what}"), Ended(code.in_kernel(&mut registers)));
        }
        let words = [before.word(2), table.word(1), table.word(2), behind.word(2)];
        report.saw_all("before, table, behind", words);
        before.set_word(2, 0);
        behind.set_word(2, 0);
    }
    Ok(())
}
