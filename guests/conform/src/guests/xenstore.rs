//! The store, as a domain sees it: its own nodes, and the permissions on everybody else's.
//!
//! The toolstack introduced us, so that the ring in our start page is served. A guest finds its own name and number there,
//! may write where it was let, and nowhere else. Promised by: public/io/xs_wire.h, docs/misc/xenstore.txt.

use pv::start;
use pv::store::{Store, kind};

use crate::report::{End, Report, Verdict};

fn shown(answer: Result<&[u8], &[u8]>) -> (&'static str, [u8; 24]) {
    let (word, bytes) = match answer {
        Ok(bytes) => ("", bytes),
        Err(bytes) => ("refused: ", bytes),
    };
    let mut text = [b' '; 24];
    let plain = bytes.iter().take_while(|byte| **byte != 0);
    text.iter_mut().zip(plain).for_each(|(slot, byte)| *slot = *byte);
    (word, text)
}

fn saw(report: &Report, what: &str, answer: Result<&[u8], &[u8]>) {
    let (word, text) = shown(answer);
    report.saw(what, format_args!("{word}{}", core::str::from_utf8(&text).unwrap_or("?").trim_end()));
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    if start::is_dom0() {
        return Err(End::Skip("nobody serves Domain 0's ring yet"));
    }
    let own = start::domid().ok_or(End::Fail("no domid"))?;
    let mut store = Store::open().ok_or(End::Fail("no ring"))?;
    let told = core::str::from_utf8(store.read("domid").unwrap_or_default()).ok().and_then(|text| text.parse().ok());
    report.check("it knows our number", told == Some(own));
    saw(report, "our name", store.read("name"));
    saw(report, "what is not there", store.read("nothing-there"));
    saw(report, "a path that is none", store.read("//"));
    report.check("our data may be written", store.write("data/conform", b"written").is_ok());
    saw(report, "and read", store.read("data/conform"));
    for path in ["name", "/local/domain/0/name", "/tool/conform", "/vm"] {
        let answer = store.write(path, b"x").map(|()| &b"done"[..]);
        saw(report, path, answer);
    }
    saw(report, "Domain 0's name", store.read("/local/domain/0/name"));
    saw(report, "another domain's", store.read("/local/domain/77/name"));
    saw(report, "a request that is none", store.request(99, &[b"x\0"]));
    saw(report, "an empty request", store.request(kind::READ, &[]));
    saw(report, "one without its end", store.request(kind::READ, &[b"name"]));
    report.check("it may be removed", store.request(kind::RM, &[b"data/conform\0"]).is_ok());
    saw(report, "gone", store.read("data/conform"));
    Ok(())
}
