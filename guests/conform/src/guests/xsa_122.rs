//! XSA-122 (CVE-2015-2045): what stands behind the end of a string.
//!
//! `xen_version` copied fixed-size buffers of which only the string was filled in: the rest was the hypervisor's stack.
//! For every command that returns text, all bytes behind the text must be zero, or not have been written at all.

use pv::hypercall::{call, number};
use pv::memory::Page;

use crate::report::{Report, Verdict};

/// What was in the page before.
const PATTERN: u8 = 0xa5;

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let page = Page::new();
    for (name, command, size) in [
        ("extraversion", 1, 16),
        ("compiler", 2, 64),
        ("compiled by", 2, 80),
        ("compile domain", 2, 112),
        ("capabilities", 3, 1024),
        ("changeset", 4, 64),
        ("command line", 9, 1024),
    ] {
        page.fill(u64::from_ne_bytes([PATTERN; 8]));
        let answer = call(number::XEN_VERSION, [command, page.address()]);
        report.expect(name, answer, pv::Answer::OK);
        let start = if command == 2 { [0, 64, 80][[64, 80, 112].iter().position(|end| *end == size).unwrap_or(0)] } else { 0 };
        let byte = |offset: usize| page.word(offset / 8).to_le_bytes()[offset % 8];
        let text = (start..size).take_while(|offset| byte(*offset) != 0).count();
        report.check("there is a text", text > 0 || command == 4 && byte(0) == 0 || command == 2);
        let behind = (start + text..size).map(byte);
        report.check("nothing behind it", behind.clone().all(|byte| byte == 0 || byte == PATTERN));
        report.check("nor behind the buffer", (1280..4096).map(byte).all(|byte| byte == PATTERN));
    }
    Ok(())
}
