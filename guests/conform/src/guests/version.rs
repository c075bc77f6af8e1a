//! `xen_version`: what a kernel may ask about the hypervisor before it knows anything else.
//!
//! Linux refuses to start when the version is not 3 or later or a feature that its notes ask for is missing;
//! toolstacks read the capabilities. Promised by: public/version.h, public/features.h.

use pv::hypercall::{address, call, number};

use crate::report::{Report, Verdict};

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let mut bytes = [0_u8; 2048];
    let mut ask = |command: u64| call(number::XEN_VERSION, [command, address(&mut bytes)]);

    report.expect("version", ask(0), pv::Answer(4 << 16 | 17));
    report.saw_all("extraversion, compile_info, capabilities, changeset", [1, 2, 3, 4].map(&mut ask));
    report.saw_all("platform_parameters, pagesize, guest_handle, commandline", [5, 7, 8, 9].map(&mut ask));
    report.saw_all("no such command", [11, 12, 99, 1 << 32].map(&mut ask));

    let text = |command: u64| {
        let mut bytes = [0_u8; 1024];
        call(number::XEN_VERSION, [command, address(&mut bytes)]);
        bytes
    };
    let capabilities = text(3);
    let first = capabilities.split(|byte| matches!(byte, b' ' | 0)).next().unwrap_or_default();
    report.saw("first capability", core::str::from_utf8(first).unwrap_or("?"));
    report.check("extraversion is a text", text(1).contains(&0) && text(1)[0] == b'.');
    let start = text(5)[..8].iter().rev().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    report.saw("the hypervisor starts at", format_args!("{start:x}"));

    let features = |submap: u32| {
        let mut request = [submap, 0];
        let answer = call(number::XEN_VERSION, [6, address(&mut request)]);
        (answer, request[1])
    };
    for submap in [0, 1, 2, !0] {
        let (answer, bits) = features(submap);
        report.saw(format_args!("features {submap}"), format_args!("{answer} {bits:x}"));
    }
    for command in [1, 2, 3, 4, 5, 6, 8, 9, 10] {
        report.saw_pointers(format_args!("command {command}"), |pointer| {
            call(number::XEN_VERSION, [command, pointer])
        });
    }
    Ok(())
}
