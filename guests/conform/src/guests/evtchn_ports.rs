//! All ports there are: a guest may open 4095 (0 is none), each works, and the next is refused.
//!
//! Promised by: public/xen.h (`EVTCHN_2L_NR_CHANNELS`), public/event_channel.h. In the spirit of XSA-344 and
//! XSA-338: closing while others are open must keep the books straight.

use pv::event::{self, SELF};
use pv::start;

use crate::report::{Report, Verdict};

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let mut count = 0;
    let mut last = 0;
    let refused = loop {
        match event::alloc_unbound(SELF, SELF) {
            Ok(port) => {
                count += 1;
                last = last.max(port);
            }
            Err(refused) => break refused,
        }
    };
    // A domU finds two open: those of its console and its store.
    let found = if start::is_dom0() { 0 } else { 2 };
    report.expect("ports", count + found, 4095);
    report.expect("the last", last, 4095);
    report.saw("one more", refused);
    report.saw("and of another kind", event::bind_ipi(0).unwrap_err());
    event::close(2000).ok()?;
    let near = event::bind_interdomain(SELF, 4095)?;
    report.expect("a closed one is given out again", near, 2000);
    event::take(4095);
    event::send(near).ok()?;
    report.check("the last port rings", event::is_pending(4095));
    let (pending, selector) = event::pending_state(0);
    report.saw("a masked port tells nobody", format_args!("{pending} {selector:x}"));
    event::unmask(4095).ok()?;
    report.saw("unmasked", event::pending_state(0).1 >> 63);
    // Nothing is said meanwhile: a domU's console would open a port.
    let closed = (1..4096).filter(|port| event::close(*port).is_ok()).count();
    let first = event::alloc_unbound(SELF, SELF)?;
    report.expect("closed", closed, 4095);
    report.expect("then the first is", first, 1);
    Ok(())
}
