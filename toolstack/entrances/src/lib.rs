//! Where bytes that somebody else wrote come in: one function for each entrance, which takes anything and panics only
//! if what it calls is wrong.
//!
//! [`ALL`] is the list. A target of `fuzz/` is one line that calls its entry here; the tests beside it call the same
//! with the corpus and with random bytes, under the stable compiler.
#![forbid(unsafe_code)]

use ferroxen_bootloader::{Wish, find_in, find_root_in, menu};
use ferroxen_xenstore_wire::{Decoder, Header, MessageType, encode, parse_permissions, path, strings};
use ferroxen_xenstored::core::{ConnId, DomainState, ErrorCode, Limits, World, Xenstore};
use ferroxen_xlconfig::{HostConfig, Source, parse_all, parse_cpu_list, parse_disk, parse_host, parse_vif};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// An entrance, and the name of its target and of its corpus.
pub type Entrance = (&'static str, fn(&[u8]));

/// All of them.
pub const ALL: [Entrance; 10] = [
    ("config", config),
    ("host_config", host_config),
    ("disk", disk),
    ("vif", vif),
    ("cpuid", cpuid),
    ("boot_menu", boot_menu),
    ("boot_disk", boot_disk),
    ("xenstore_wire", xenstore_wire),
    ("xenstore_requests", xenstore_requests),
    ("xenstore_records", xenstore_records),
];

/// A domain's configuration, as far as it is plain: a script may compute for as long as its author likes.
pub fn config(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let is_script = ["def", "for", "lambda", "*", "(", "%"]
        .iter()
        .any(|word| text.contains(word));
    if is_script {
        return;
    }
    match parse_all(Source::new("fuzz.cfg", text.as_ref()), &[]) {
        Ok(all) => {
            for loaded in all {
                // What is kept of it means the same.
                let kept = loaded.text();
                let again = parse_all(Source::new("fuzz.cfg", kept.as_str()), &[]);
                let again = again.unwrap_or_else(|problem| panic!("{problem}\nof\n{kept}"));
                assert_eq!(again[0].config, loaded.config, "{kept}");
            }
        }
        Err(problem) => assert!(!problem.to_string().is_empty()),
    }
}

/// xend's configuration of the host.
pub fn host_config(bytes: &[u8]) {
    let read: Result<(HostConfig, _), _> = parse_host(&Source::new("xend-config.sxp", String::from_utf8_lossy(bytes)));
    if let Err(problem) = read {
        assert!(!problem.to_string().is_empty());
    }
}

/// One element of `disk`.
pub fn disk(bytes: &[u8]) {
    if let Err(problem) = parse_disk(&String::from_utf8_lossy(bytes)) {
        assert!(!problem.to_string().is_empty());
    }
}

/// One element of `vif`.
pub fn vif(bytes: &[u8]) {
    if let Err(problem) = parse_vif(&String::from_utf8_lossy(bytes)) {
        assert!(!problem.to_string().is_empty());
    }
}

/// CPU lists and CPUID bits.
pub fn cpuid(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    // Either is fine: only the places of mistakes have to be places.
    let _ = parse_cpu_list(&text);
    let quoted = text.replace(['\'', '\\', '\n', '\r'], ".");
    for setting in [format!("cpuid = '{quoted}'\n"), format!("cpuid = ['{quoted}']\n")] {
        if let Err(problem) = parse_all(Source::new("fuzz.cfg", setting), &[]) {
            assert!(!problem.to_string().is_empty());
        }
    }
}

/// A guest's boot menu, of any kind.
pub fn boot_menu(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for (_, parse) in menu::PLACES {
        let menu = parse(&text, "/boot");
        assert!(menu.entries.iter().all(|entry| !entry.kernel.is_empty()));
        if let Some(default) = &menu.default {
            menu.entry(default);
        }
    }
    let args: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    let _ = Wish::parse(&args);
}

/// A guest's whole disk.
pub fn boot_disk(bytes: &[u8]) {
    for entry in [None, Some("0".to_owned())] {
        let wish = Wish {
            entry,
            ..Wish::default()
        };
        // Whatever is found, it was read from there.
        if let Ok(boot) = find_in(Arc::new(bytes.to_vec()), &wish) {
            assert!(!boot.kernel_path.is_empty());
        }
    }
    if let Ok(root) = find_root_in(Arc::new(bytes.to_vec())) {
        assert!(root.len > 0);
    }
}

/// What comes through a ring, in pieces of any length.
pub fn xenstore_wire(bytes: &[u8]) {
    let mut decoder = Decoder::default();
    for piece in bytes.chunks(7) {
        decoder.push(piece);
        loop {
            match decoder.next() {
                Ok(Some(message)) => {
                    let sent = encode(
                        message.header.kind,
                        message.header.req_id,
                        message.header.tx_id,
                        &[&message.payload],
                    );
                    assert!(sent.is_some_and(|frame| frame.len() == Header::SIZE + message.payload.len()));
                    let _ = parse_permissions(&message.payload);
                    for word in strings(&message.payload) {
                        let _ = path::check(word);
                    }
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

/// A world in which everything works and nothing happens.
#[derive(Default)]
struct Quiet {
    guests: BTreeMap<u16, ConnId>,
}

impl World for Quiet {
    fn attach(&mut self, domid: u16, conn: ConnId, _gfn: u64, _port: u32) -> Result<(), ErrorCode> {
        self.guests.insert(domid, conn);
        Ok(())
    }
    fn detach(&mut self, domid: u16) {
        self.guests.remove(&domid);
    }
    fn exists(&mut self, _domid: u16) -> bool {
        true
    }
    fn set_logging(&mut self, _on: bool) {}
    fn note(&mut self, _line: &str) {}
}

/// Requests of two guests and of Domain 0 to a whole store, which has to stay right: a byte says who asks and for what,
/// another how long the rest is.
pub fn xenstore_requests(bytes: &[u8]) {
    let mut store = Xenstore::new(Limits::default());
    let mut world = Quiet::default();
    let dom0 = store.connect(Duration::ZERO);
    let ask = |store: &mut Xenstore, world: &mut Quiet, conn: ConnId, kind: u32, tx: u32, payload: &[u8]| {
        let mut decoder = Decoder::default();
        decoder.push(&encode(MessageType(kind), 1, tx, &[payload]).expect("is short"));
        if let Ok(Some(message)) = decoder.next() {
            store.handle(conn, &message, world);
        }
        while store.next_frame(conn).is_some() {}
    };
    for domid in [1u16, 2] {
        let home = format!("/local/domain/{domid}\0");
        ask(&mut store, &mut world, dom0, MessageType::MKDIR.0, 0, home.as_bytes());
        ask(
            &mut store,
            &mut world,
            dom0,
            MessageType::SET_PERMS.0,
            0,
            format!("{home}n{domid}\0").as_bytes(),
        );
        ask(
            &mut store,
            &mut world,
            dom0,
            MessageType::INTRODUCE.0,
            0,
            format!("{domid}\x001\x001\0").as_bytes(),
        );
    }
    let mut rest = bytes;
    while let [head, len, after @ ..] = rest {
        let (payload, after) = after.split_at(after.len().min(usize::from(*len % 64)));
        rest = after;
        let who = match head >> 6 {
            0 | 1 => world.guests.get(&1).copied(),
            2 => world.guests.get(&2).copied(),
            _ => Some(dom0),
        };
        let Some(conn) = who else { continue };
        let kind = u32::from(head & 0x3f);
        if kind == 0x3f {
            store.domain_is(u16::from(*len) % 3, DomainState::Gone, &mut world);
            continue;
        }
        ask(&mut store, &mut world, conn, kind, u32::from(len >> 6), payload);
    }
    if let Err(what) = store.audit() {
        panic!("{what}");
    }
}

/// What a xenstored before us has left.
pub fn xenstore_records(bytes: &[u8]) {
    let mut store = Xenstore::new(Limits::default());
    store.connect_kernel(Duration::ZERO);
    store.restore(bytes, 1, &mut Quiet::default());
    if let Err(what) = store.audit() {
        panic!("{what}");
    }
}
