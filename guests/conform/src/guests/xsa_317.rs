//! XSA-317 (CVE-2020-15566): no port is left.
//!
//! When a port could not be had, some calls took the error for a port's number and used it as an index. All ports are
//! taken, and every call that makes one is tried, several times; each must say that there is no room, and one port given
//! back must be enough for each of them again.

use pv::event::{self, SELF};

use crate::report::{Report, Verdict};

/// A call that opens a port.
type Open<'a> = dyn Fn() -> Result<u32, pv::Answer> + 'a;

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let first = event::alloc_unbound(SELF, SELF)?;
    let mut last = first;
    let mut count = 1;
    while let Ok(port) = event::alloc_unbound(SELF, SELF) {
        last = port;
        count += 1;
    }
    report.saw("ports", count);
    let code = |made: Result<u32, pv::Answer>| made.map_or_else(|refused| refused, |_| pv::Answer::OK);
    let calls: [(&str, &Open<'_>); 4] = [
        ("alloc_unbound", &|| event::alloc_unbound(SELF, SELF)),
        ("bind_interdomain", &|| event::bind_interdomain(SELF, first)),
        ("bind_virq", &|| event::bind_virq(0, 0)),
        ("bind_ipi", &|| event::bind_ipi(1)),
    ];
    for (name, call) in calls {
        report.saw_all(name, [(); 3].map(|()| code(call())));
        event::close(last).ok()?;
        let made = call();
        report.saw("with one free", code(made));
        report.check_quietly("it is that one", made == Ok(last));
        event::close(last).ok()?;
        last = event::alloc_unbound(SELF, SELF)?;
    }
    Ok(())
}
