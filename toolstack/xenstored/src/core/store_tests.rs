use super::*;
use ferroxen_xenstore_wire::{Decoder, Header};
use proptest::prelude::*;

/// A world in which everything works and nothing happens.
#[derive(Default)]
struct Quiet {
    attached: BTreeMap<u16, ConnId>,
}

impl World for Quiet {
    fn attach(&mut self, domid: u16, conn: ConnId, gfn: u64, _port: u32) -> Result<(), ErrorCode> {
        if gfn == 666 {
            return Err(ErrorCode::EINVAL);
        }
        self.attached.insert(domid, conn);
        Ok(())
    }
    fn detach(&mut self, domid: u16) {
        self.attached.remove(&domid);
    }
    fn exists(&mut self, domid: u16) -> bool {
        domid < 100
    }
    fn set_logging(&mut self, _on: bool) {}
    fn note(&mut self, _line: &str) {}
}

struct Bench {
    store: Xenstore,
    world: Quiet,
    dom0: ConnId,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(Limits::default())
    }

    fn with(limits: Limits) -> Bench {
        let mut store = Xenstore::new(limits);
        let dom0 = store.connect(Duration::ZERO);
        Bench {
            store,
            world: Quiet::default(),
            dom0,
        }
    }

    /// Makes a domain with a home that it owns.
    fn guest(&mut self, domid: u16) -> ConnId {
        let home = path::domain_path(domid);
        self.ask(self.dom0, MessageType::MKDIR, 0, &format!("{home}\0"))
            .unwrap();
        self.ask(self.dom0, MessageType::SET_PERMS, 0, &format!("{home}\0n{domid}\0"))
            .unwrap();
        self.ask(self.dom0, MessageType::INTRODUCE, 0, &format!("{domid}\x001\x001\0"))
            .unwrap();
        self.events(self.dom0);
        self.world.attached[&domid]
    }

    fn send(&mut self, conn: ConnId, kind: MessageType, tx: u32, payload: &str) {
        let header = Header {
            kind,
            req_id: 77,
            tx_id: tx,
            len: payload.len() as u32,
        };
        self.store.handle(
            conn,
            &Message {
                header,
                payload: payload.into(),
            },
            &mut self.world,
        );
        self.store.audit().unwrap();
    }

    fn ask(&mut self, conn: ConnId, kind: MessageType, tx: u32, payload: &str) -> Result<String, String> {
        self.events(conn);
        self.send(conn, kind, tx, payload);
        let message = self.next(conn).expect("no answer");
        assert_eq!((message.header.req_id, message.header.tx_id), (77, tx));
        let text = String::from_utf8(message.payload).unwrap();
        if message.header.kind == MessageType::ERROR {
            Err(text.trim_end_matches('\0').into())
        } else {
            Ok(text)
        }
    }

    fn next(&mut self, conn: ConnId) -> Option<Message> {
        let mut decoder = Decoder::default();
        decoder.push(&self.store.next_frame(conn)?);
        Some(decoder.next().unwrap().unwrap())
    }

    /// Takes all that waits for a connection: the paths of the events.
    fn events(&mut self, conn: ConnId) -> Vec<String> {
        std::iter::from_fn(|| self.next(conn))
            .filter(|message| message.header.kind == MessageType::WATCH_EVENT)
            .map(|message| String::from_utf8_lossy(strings(&message.payload).next().unwrap()).into_owned())
            .collect()
    }
}

use MessageType as T;

#[test]
fn values_may_be_any_bytes_and_paths_may_be_relative() {
    let mut bench = Bench::new();
    let guest = bench.guest(3);
    bench.ask(guest, T::WRITE, 0, "data/x\0a\0b").unwrap();
    assert_eq!(
        bench.ask(bench.dom0, T::READ, 0, "/local/domain/3/data/x\0").unwrap(),
        "a\0b"
    );
    assert_eq!(bench.ask(guest, T::READ, 0, "data/x\0").unwrap(), "a\0b");
    assert_eq!(bench.ask(guest, T::DIRECTORY, 0, "data\0").unwrap(), "x\0");
    assert_eq!(bench.ask(guest, T::GET_PERMS, 0, "data/x\0").unwrap(), "n3\0");
    assert_eq!(
        bench.ask(guest, T::GET_DOMAIN_PATH, 0, "9\0").unwrap(),
        "/local/domain/9\0"
    );
}

#[test]
fn malformed_requests_are_refused() {
    let mut bench = Bench::new();
    for (kind, payload) in [
        (T::READ, ""),
        (T::READ, "/a"),
        (T::READ, "/a\0x\0"),
        (T::READ, "/a//b\0"),
        (T::READ, "@introduceDomain\0"),
        (T::WRITE, "/a"),
        (T::SET_PERMS, "/\0q1\0"),
        (T::SET_PERMS, "/\0"),
        (T::WATCH, "/a\0"),
        (T::WATCH, "@nothing\0t\0"),
        (T::WATCH, "/a\0t\0deep\0"),
        (T::INTRODUCE, "0\x001\x001\0"),
        (T::INTRODUCE, "32752\x001\x001\0"),
        (T::INTRODUCE, "1\x001\x000\0"),
        (T::TRANSACTION_END, "x\0"),
        (T::CONTROL, "sing\0"),
    ] {
        assert_eq!(
            bench.ask(bench.dom0, kind, 0, payload),
            Err("EINVAL".into()),
            "{kind} {payload:?}"
        );
    }
    assert_eq!(bench.ask(bench.dom0, T::RESTRICT, 0, "1\0"), Err("ENOSYS".into()));
    assert_eq!(bench.ask(bench.dom0, MessageType(4711), 0, ""), Err("ENOSYS".into()));
    assert_eq!(bench.ask(bench.dom0, T::READ, 5, "/\0"), Err("ENOENT".into()));
}

#[test]
fn a_guest_may_not_manage_domains() {
    let mut bench = Bench::new();
    let guest = bench.guest(3);
    for (kind, payload) in [
        (T::INTRODUCE, "4\x001\x001\0"),
        (T::RELEASE, "3\0"),
        (T::RESUME, "3\0"),
        (T::SET_TARGET, "3\x004\0"),
        (T::CONTROL, "help\0"),
        (T::SET_PERMS, "@introduceDomain\0r3\0"),
        (T::READ, "/local/domain/4\0"),
        (T::WRITE, "/tool/x\0"),
    ] {
        assert_eq!(bench.ask(guest, kind, 0, payload), Err("EACCES".into()), "{kind}");
    }
}

#[test]
fn a_watch_fires_at_once_and_then_for_what_its_owner_may_read() {
    let mut bench = Bench::new();
    let (guest, other) = (bench.guest(3), bench.guest(4));
    bench.ask(guest, T::WATCH, 0, "data\0tok\0").unwrap();
    assert_eq!(bench.events(guest), ["data"]);
    assert_eq!(bench.ask(guest, T::WATCH, 0, "data\0tok\0"), Err("EEXIST".into()));
    bench.ask(other, T::WATCH, 0, "/local/domain/3\0tok\0").unwrap();
    bench.events(other);
    bench.ask(bench.dom0, T::WRITE, 0, "/local/domain/3/data/x\0").unwrap();
    bench
        .ask(bench.dom0, T::WRITE, 0, "/local/domain/3/elsewhere\0")
        .unwrap();
    assert_eq!(bench.events(guest), ["data/x"]);
    assert!(bench.events(other).is_empty());
    bench.ask(guest, T::UNWATCH, 0, "data\0tok\0").unwrap();
    assert_eq!(bench.ask(guest, T::UNWATCH, 0, "data\0tok\0"), Err("ENOENT".into()));
}

#[test]
fn removing_a_parent_is_told_to_watchers_below() {
    let mut bench = Bench::new();
    bench.ask(bench.dom0, T::WRITE, 0, "/a/b/c\0").unwrap();
    for watched in ["/a/b/c", "/a/x", "/"] {
        bench.ask(bench.dom0, T::WATCH, 0, &format!("{watched}\0t\0")).unwrap();
    }
    bench.events(bench.dom0);
    bench.send(bench.dom0, T::RM, 0, "/a\0");
    let mut events = bench.events(bench.dom0);
    events.sort();
    assert_eq!(events, ["/a", "/a/b/c"]);
}

#[test]
fn a_watch_with_depth_hears_so_far_and_no_further() {
    let mut bench = Bench::new();
    bench.ask(bench.dom0, T::WATCH, 0, "/a\0t\x001\0").unwrap();
    bench.events(bench.dom0);
    bench.send(bench.dom0, T::WRITE, 0, "/a/b/c\0");
    assert!(bench.events(bench.dom0).is_empty());
    bench.send(bench.dom0, T::WRITE, 0, "/a/b\0");
    assert_eq!(bench.events(bench.dom0), ["/a/b"]);
}

#[test]
fn transactions_are_all_or_nothing_and_fire_at_the_end() {
    let mut bench = Bench::new();
    bench.ask(bench.dom0, T::WATCH, 0, "/a\0t\0").unwrap();
    let tx: u32 = bench
        .ask(bench.dom0, T::TRANSACTION_START, 0, "\0")
        .unwrap()
        .trim_end_matches('\0')
        .parse()
        .unwrap();
    assert_eq!(
        bench.ask(bench.dom0, T::TRANSACTION_START, tx, "\0"),
        Err("EBUSY".into())
    );
    bench.ask(bench.dom0, T::WRITE, tx, "/a/1\0x").unwrap();
    assert!(bench.events(bench.dom0).is_empty());
    assert_eq!(bench.ask(bench.dom0, T::READ, 0, "/a/1\0"), Err("ENOENT".into()));
    assert_eq!(bench.ask(bench.dom0, T::READ, tx, "/a/1\0").unwrap(), "x");
    bench.send(bench.dom0, T::TRANSACTION_END, tx, "T\0");
    assert_eq!(bench.events(bench.dom0), ["/a/1"]);
    assert_eq!(bench.ask(bench.dom0, T::READ, 0, "/a/1\0").unwrap(), "x");
    assert_eq!(
        bench.ask(bench.dom0, T::TRANSACTION_END, tx, "T\0"),
        Err("ENOENT".into())
    );
}

#[test]
fn a_conflict_is_eagain() {
    let mut bench = Bench::new();
    let start = bench.ask(bench.dom0, T::TRANSACTION_START, 0, "\0").unwrap();
    let tx = start.trim_end_matches('\0').parse().unwrap();
    let _ = bench.ask(bench.dom0, T::READ, tx, "/a\0");
    bench.ask(bench.dom0, T::WRITE, 0, "/a\0x").unwrap();
    assert_eq!(
        bench.ask(bench.dom0, T::TRANSACTION_END, tx, "T\0"),
        Err("EAGAIN".into())
    );
}

#[test]
fn introduction_and_release_are_told_to_those_who_may_know() {
    let mut bench = Bench::new();
    let guest = bench.guest(3);
    for name in ["@introduceDomain", "@releaseDomain"] {
        bench.ask(bench.dom0, T::WATCH, 0, &format!("{name}\0t\0")).unwrap();
        bench.ask(guest, T::WATCH, 0, &format!("{name}\0t\0")).unwrap();
    }
    bench
        .ask(bench.dom0, T::WATCH, 0, "@releaseDomain\0who\x001\0")
        .unwrap();
    bench.ask(bench.dom0, T::WATCH, 0, "@releaseDomain/4\0one\0").unwrap();
    bench.events(bench.dom0);
    bench.events(guest);
    bench.send(bench.dom0, T::INTRODUCE, 0, "4\x001\x001\0");
    assert_eq!(bench.events(bench.dom0), ["@introduceDomain"]);
    assert_eq!(bench.ask(bench.dom0, T::IS_DOMAIN_INTRODUCED, 0, "4\0").unwrap(), "T\0");
    bench
        .ask(bench.dom0, T::SET_PERMS, 0, "@releaseDomain\0n0\0r3\0")
        .unwrap();
    assert_eq!(
        bench.ask(bench.dom0, T::GET_PERMS, 0, "@releaseDomain\0").unwrap(),
        "n0\0r3\0"
    );
    bench.store.domain_is(4, DomainState::ShutDown, &mut bench.world);
    bench.store.domain_is(4, DomainState::ShutDown, &mut bench.world);
    let told = ["@releaseDomain", "@releaseDomain/4", "@releaseDomain/4"];
    assert_eq!(bench.events(bench.dom0), told);
    bench.send(bench.dom0, T::RESUME, 0, "4\0");
    bench.store.domain_is(4, DomainState::ShutDown, &mut bench.world);
    assert_eq!(bench.events(bench.dom0), told);
    bench.store.domain_is(4, DomainState::Gone, &mut bench.world);
    assert_eq!(bench.events(bench.dom0), told);
    assert_eq!(bench.events(guest), ["@releaseDomain"]);
    assert_eq!(bench.ask(bench.dom0, T::IS_DOMAIN_INTRODUCED, 0, "4\0").unwrap(), "F\0");
    assert_eq!(bench.ask(bench.dom0, T::RELEASE, 0, "4\0"), Err("ENOENT".into()));
}

#[test]
fn a_gone_domain_takes_its_nodes_along_and_its_watchers_hear_it() {
    let mut bench = Bench::new();
    let guest = bench.guest(3);
    bench.ask(guest, T::WRITE, 0, "device/vif/0/state\x004").unwrap();
    bench
        .ask(bench.dom0, T::WATCH, 0, "/local/domain/3/device/vif/0/state\0t\0")
        .unwrap();
    bench.events(bench.dom0);
    bench.store.domain_is(3, DomainState::Gone, &mut bench.world);
    bench.store.audit().unwrap();
    assert_eq!(bench.events(bench.dom0), ["/local/domain/3/device/vif/0/state"]);
    assert!(bench.store.tree().get("/local/domain/3").is_none());
    assert!(bench.world.attached.is_empty());
    assert!(bench.store.domains_to_check().is_empty());
}

#[test]
fn the_end_of_a_dying_domain_is_told_twice() {
    let mut bench = Bench::new();
    bench.guest(3);
    bench.ask(bench.dom0, T::WATCH, 0, "@releaseDomain\0t\0").unwrap();
    bench.events(bench.dom0);
    for _ in 0..2 {
        bench.store.domain_is(3, DomainState::Dying, &mut bench.world);
    }
    assert_eq!(bench.events(bench.dom0), ["@releaseDomain"]);
    assert!(bench.store.domains_to_check().contains(&3));
    bench.store.domain_is(3, DomainState::Gone, &mut bench.world);
    assert_eq!(bench.events(bench.dom0), ["@releaseDomain"]);
    assert!(bench.store.domains_to_check().is_empty());
    // Released by a tool, then destroyed.
    bench.guest(4);
    bench.events(bench.dom0);
    bench.ask(bench.dom0, T::RELEASE, 0, "4\0").unwrap();
    bench.events(bench.dom0);
    bench.store.domain_is(4, DomainState::Gone, &mut bench.world);
    assert_eq!(bench.events(bench.dom0), ["@releaseDomain"]);
}

#[test]
fn a_ring_that_cannot_be_mapped_leaves_nobody_introduced() {
    let mut bench = Bench::new();
    assert_eq!(
        bench.ask(bench.dom0, T::INTRODUCE, 0, "3\x00666\x001\0"),
        Err("EINVAL".into())
    );
    assert_eq!(bench.ask(bench.dom0, T::IS_DOMAIN_INTRODUCED, 0, "3\0").unwrap(), "F\0");
}

#[test]
fn nodes_cannot_be_given_to_a_domain_that_is_not_there() {
    let mut bench = Bench::new();
    assert_eq!(
        bench.ask(bench.dom0, T::SET_PERMS, 0, "/tool\0n1234\0"),
        Err("ENOENT".into())
    );
}

#[test]
fn a_device_model_may_do_what_its_target_may() {
    let mut bench = Bench::new();
    let model = bench.guest(4);
    bench.guest(3);
    assert!(bench.ask(model, T::WRITE, 0, "/local/domain/3/x\0").is_err());
    bench.ask(bench.dom0, T::SET_TARGET, 0, "4\x003\0").unwrap();
    bench.ask(model, T::WRITE, 0, "/local/domain/3/x\0").unwrap();
    bench.store.domain_is(3, DomainState::Gone, &mut bench.world);
    bench.guest(3);
    assert!(bench.ask(model, T::WRITE, 0, "/local/domain/3/x\0").is_err());
}

#[test]
fn a_guest_gets_so_many_watches_and_transactions() {
    let mut bench = Bench::with(Limits {
        watches: 2,
        transactions: 1,
        ..Limits::default()
    });
    let guest = bench.guest(3);
    bench.ask(guest, T::WATCH, 0, "a\0t\0").unwrap();
    bench.ask(guest, T::WATCH, 0, "b\0t\0").unwrap();
    assert_eq!(bench.ask(guest, T::WATCH, 0, "c\0t\0"), Err("E2BIG".into()));
    bench.ask(guest, T::TRANSACTION_START, 0, "\0").unwrap();
    assert_eq!(bench.ask(guest, T::TRANSACTION_START, 0, "\0"), Err("ENOSPC".into()));
    bench.ask(guest, T::RESET_WATCHES, 0, "\0").unwrap();
    bench.ask(guest, T::TRANSACTION_START, 0, "\0").unwrap();
    bench.ask(guest, T::WATCH, 0, "c\0t\0").unwrap();
}

#[test]
fn a_guest_that_does_not_read_its_answers_is_not_listened_to() {
    let mut bench = Bench::new();
    let guest = bench.guest(3);
    let mut asked = 0;
    while bench.store.may_ask(guest, Duration::ZERO).is_ok() {
        bench.send(guest, T::READ, 0, "x\0");
        asked += 1;
    }
    assert_eq!(asked, 20);
    assert_eq!(bench.store.may_ask(guest, Duration::from_secs(9)), Err(None));
    bench.next(guest);
    assert!(bench.store.may_ask(guest, Duration::ZERO).is_ok());
}

#[test]
fn a_guest_cannot_hold_an_old_snapshot_for_ever() {
    let mut bench = Bench::new();
    let guest = bench.guest(3);
    for (conn, answer) in [(guest, Err("EAGAIN".into())), (bench.dom0, Ok("OK\0".into()))] {
        let start = bench.ask(conn, T::TRANSACTION_START, 0, "\0").unwrap();
        let tx = start.trim_end_matches('\0').parse().unwrap();
        for _ in 0..2500 {
            bench.ask(bench.dom0, T::WRITE, 0, "/busy\0").unwrap();
        }
        bench.ask(conn, T::WRITE, tx, "/local/domain/3/x\0").unwrap();
        assert_eq!(bench.ask(conn, T::TRANSACTION_END, tx, "T\0"), answer);
    }
}

#[test]
fn long_directories_come_in_parts() {
    let mut bench = Bench::new();
    let mut names = vec![];
    for i in 0..600 {
        bench
            .ask(bench.dom0, T::WRITE, 0, &format!("/big/name-{i:04}\0"))
            .unwrap();
        names.push(format!("name-{i:04}"));
    }
    assert_eq!(bench.ask(bench.dom0, T::DIRECTORY, 0, "/big\0"), Err("E2BIG".into()));
    let mut list = String::new();
    while !list.ends_with("\0\0") {
        let part = bench
            .ask(bench.dom0, T::DIRECTORY_PART, 0, &format!("/big\0{}\0", list.len()))
            .unwrap();
        list.push_str(part.split_once('\0').unwrap().1);
    }
    assert_eq!(
        list.split_terminator('\0')
            .filter(|name| !name.is_empty())
            .collect::<Vec<_>>(),
        names
    );
}

#[test]
fn limits_can_be_seen_and_set() {
    let mut bench = Bench::new();
    assert!(
        bench
            .ask(bench.dom0, T::CONTROL, 0, "quota\0")
            .unwrap()
            .contains("nodes             :     1000")
    );
    bench
        .ask(bench.dom0, T::CONTROL, 0, "quota\0set\0nodes\x0050\0")
        .unwrap();
    assert_eq!(bench.store.limits.nodes, 50);
    assert_eq!(bench.ask(bench.dom0, T::CONTROL, 0, "check\0").unwrap(), "OK\0");
    assert!(
        bench
            .ask(bench.dom0, T::CONTROL, 0, "quota\x000\0")
            .unwrap()
            .starts_with("Domain 0:")
    );
    assert!(
        bench
            .ask(bench.dom0, T::CONTROL, 0, "help\0")
            .unwrap()
            .contains("memreport")
    );
}

#[test]
fn what_all_children_have_at_one_place_is_one_question() {
    let mut bench = Bench::new();
    for (at, value) in [("1/name", "web"), ("2/other", ""), ("3/name", "")] {
        bench
            .ask(bench.dom0, T::WRITE, 0, &format!("/list/{at}\0{value}"))
            .unwrap();
    }
    let mut ask = |words: &str| bench.ask(bench.dom0, T::CONTROL, 0, words);
    assert_eq!(ask("values\0/list\0name\0\0").unwrap(), "1\0+web\x002\0-\x003\0+\0\0");
    assert_eq!(ask("values\0/list\0name\x002\0").unwrap(), "3\0+\0\0");
    assert_eq!(ask("values\0/nothing\0name\0\0"), Err("ENOENT".into()));
    let guest = bench.guest(3);
    assert_eq!(
        bench.ask(guest, T::CONTROL, 0, "values\0/list\0name\0\0"),
        Err("EACCES".into())
    );
    let long = "x".repeat(900);
    for at in 0..9 {
        bench
            .ask(bench.dom0, T::WRITE, 0, &format!("/long/{at}/name\0{long}"))
            .unwrap();
    }
    let (mut after, mut found) = (String::new(), 0);
    loop {
        let part = bench
            .ask(bench.dom0, T::CONTROL, 0, &format!("values\0/long\0name\0{after}\0"))
            .unwrap();
        let words: Vec<&str> = part.split_terminator('\0').collect();
        found += words.len() / 2;
        if words.last() == Some(&"") {
            break;
        }
        after = words[words.len() - 2].to_owned();
    }
    assert_eq!(found, 9);
}

#[test]
fn every_limit_on_what_a_guest_has_holds() {
    let mut bench = Bench::with(Limits {
        nodes: 4,
        node_size: 64,
        permissions: 2,
        transaction_nodes: 3,
        ..Limits::default()
    });
    let guest = bench.guest(3);
    let dom0 = bench.dom0;
    let long = "x".repeat(80);
    assert_eq!(
        bench.ask(guest, T::WRITE, 0, &format!("a\0{long}")),
        Err("ENOSPC".into())
    );
    assert_eq!(bench.ask(guest, T::WRITE, 0, "a\0x"), Ok("OK\0".into()));
    assert_eq!(
        bench.ask(guest, T::SET_PERMS, 0, "a\0n3\0r1\0r2\0"),
        Err("ENOSPC".into())
    );
    let start = bench.ask(guest, T::TRANSACTION_START, 0, "\0").unwrap();
    let tx: u32 = start.trim_end_matches('\0').parse().unwrap();
    let answers: Vec<_> = (0..6)
        .map(|at| bench.ask(guest, T::READ, tx, &format!("n{at}\0")))
        .collect();
    assert_eq!(answers.last(), Some(&Err("ENOSPC".into())), "{answers:?}");
    bench.ask(guest, T::TRANSACTION_END, tx, "F\0").unwrap();
    let made = (0..8)
        .filter(|at| bench.ask(guest, T::MKDIR, 0, &format!("d{at}\0")).is_ok())
        .count();
    assert_eq!(made, 2, "its home, `a` and two more are four nodes");
    // None of that binds Domain 0.
    for at in 0..8 {
        bench.ask(dom0, T::WRITE, 0, &format!("/big/{at}\0{long}")).unwrap();
    }
}

#[test]
fn a_storming_guest_waits_for_its_time_and_domain_0_never_does() {
    let limits = Limits {
        ops_per_second: 100,
        ops_burst: 10,
        outstanding: 0,
        ..Limits::default()
    };
    let mut bench = Bench::with(limits);
    let (guest, dom0) = (bench.guest(3), bench.dom0);
    let (mut served, mut now) = (0, Duration::ZERO);
    while now < Duration::from_secs(2) {
        match bench.store.may_ask(guest, now) {
            Ok(()) => {
                bench.send(guest, T::READ, 0, "x\0");
                served += 1;
                assert!(served < 1000, "nobody makes it wait");
            }
            Err(Some(when)) => {
                // In its pauses Domain 0 is served, as often as it likes.
                for _ in 0..4 {
                    assert_eq!(bench.store.may_ask(dom0, now), Ok(()));
                    bench.ask(dom0, T::READ, 0, "/local\0").unwrap();
                }
                assert!(when > now);
                now = when;
            }
            Err(None) => panic!("it reads its answers"),
        }
    }
    assert!(
        (200..=212).contains(&served),
        "{served} requests in two seconds at 100 a second"
    );
}

/// A random request, mostly well-formed.
fn request() -> impl Strategy<Value = (usize, u32, u32, Vec<u8>)> {
    let name = prop::sample::select(vec![
        "/",
        "/local/domain/1",
        "/local/domain/1/a",
        "/local/domain/1/a/b",
        "/local/domain/2/c",
        "/tool/x",
        "/vm/v",
        "a",
        "a/b/c/d",
        "b",
        "data",
        "@releaseDomain",
        "@introduceDomain",
        "@releaseDomain/2",
        "//",
        "",
    ]);
    let rest = prop::sample::select(vec![
        "",
        "\0",
        "\0v\0",
        "\0n1\0",
        "\0n2\0r1\0b3\0",
        "\0tok\0",
        "\0tok\x001\0",
    ]);
    let odd = prop::sample::select(vec![
        "T\0",
        "F\0",
        "1\x005\x007\0",
        "2\x005\x007\0",
        "1\0",
        "2\0",
        "1\x002\0",
        "quota\0",
        "/\x003\0",
    ]);
    let payload = prop_oneof![
        8 => (name, rest).prop_map(|(name, rest)| format!("{name}{rest}").into_bytes()),
        3 => odd.prop_map(|odd| odd.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..20),
    ];
    (0usize..3, 0u32..24, 0u32..4, payload)
}

/// All that a guest could tell one store from another by: nodes, permissions, watches of rings, introductions.
fn look_of(store: &Xenstore) -> Vec<String> {
    fn walk(look: &mut Vec<String>, at: &str, node: &Node) {
        look.push(format!("{at} {:?} {:?}", node.value, node.perms));
        for (name, child) in node.children() {
            walk(look, &format!("{at}/{name}"), child);
        }
    }
    let mut look = vec![];
    walk(&mut look, "", store.tree.get("/").unwrap());
    let mut watches: Vec<String> = store
        .conns
        .keys()
        .filter_map(|conn| Some((store.owner_of_ring(*conn)?, conn)))
        .flat_map(|(domid, conn)| store.watches.of(*conn).iter().map(move |id| (domid, id)))
        .map(|(domid, id)| format!("{:?}", watch_record(domid, store.watches.get(*id).unwrap())))
        .collect();
    watches.sort();
    look.extend(watches);
    look.push(format!("{:?}", store.special_perms));
    for (domid, domain) in &store.domains {
        look.push(format!("{domid} {:?} {}", domain.ring, domain.conn.is_some()));
    }
    look
}

fn successor(records: &[u8]) -> Bench {
    let mut store = Xenstore::new(Limits::default());
    let dom0 = store.connect_kernel(Duration::ZERO);
    let mut world = Quiet::default();
    store.restore(records, 1 << 20, &mut world);
    Bench { store, world, dom0 }
}

#[test]
fn a_successor_goes_on_where_its_predecessor_stopped() {
    let mut bench = Bench::new();
    bench.store.keep_journal();
    let mut records = bench.store.snapshot();
    let guest = bench.guest(3);
    bench.ask(guest, T::WRITE, 0, "data/x\0before").unwrap();
    bench.ask(guest, T::WATCH, 0, "data\0token\0").unwrap();
    let tx = bench.ask(guest, T::TRANSACTION_START, 0, "\0").unwrap();
    let tx: u32 = tx.trim_end_matches('\0').parse().unwrap();
    records.extend(bench.store.take_journal());

    let mut bench = successor(&records);
    let guest = bench.world.attached[&3];
    // What it was to hear of last may have been lost, so it hears of all.
    assert_eq!(bench.events(guest), ["data"]);
    assert_eq!(bench.ask(guest, T::READ, 0, "data/x\0").unwrap(), "before");
    bench
        .ask(bench.dom0, T::WRITE, 0, "/local/domain/3/data/y\0new")
        .unwrap();
    assert_eq!(bench.events(guest), ["data/y"]);
    // Its transaction goes on, and has to be begun again.
    bench.ask(guest, T::WRITE, tx, "data/x\0lost").unwrap();
    assert_eq!(bench.ask(guest, T::TRANSACTION_END, tx, "T\0"), Err("EAGAIN".into()));
    assert_eq!(bench.ask(guest, T::READ, 0, "data/x\0").unwrap(), "before");
    let again = bench.ask(guest, T::TRANSACTION_START, 0, "\0").unwrap();
    let again: u32 = again.trim_end_matches('\0').parse().unwrap();
    assert!(again != tx);
    bench.ask(guest, T::WRITE, again, "data/x\0after").unwrap();
    bench.ask(guest, T::TRANSACTION_END, again, "T\0").unwrap();
    assert_eq!(bench.ask(guest, T::READ, 0, "data/x\0").unwrap(), "after");
    // No more transactions than any guest may have, begun or made up.
    for made_up in 1..100 {
        let _ = bench.ask(guest, T::READ, made_up, "data/x\0");
    }
    assert!(bench.store.conns[&guest].transactions.len() <= Limits::default().transactions as usize);
}

#[test]
fn a_successor_knows_who_was_struck_from_an_events_permissions() {
    let mut bench = Bench::new();
    bench.store.keep_journal();
    let mut records = bench.store.snapshot();
    bench.guest(1);
    bench
        .ask(bench.dom0, T::SET_PERMS, 0, "@releaseDomain\0n2\0r1\0b3\0")
        .unwrap();
    bench.store.domain_is(1, DomainState::Gone, &mut bench.world);
    records.extend(bench.store.take_journal());
    assert_eq!(look_of(&successor(&records).store), look_of(&bench.store));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn no_history_breaks_what_is_always_true(history in prop::collection::vec(request(), 1..60)) {
        let limits = Limits { nodes: 8, watches: 4, transactions: 2, node_size: 200, ..Limits::default() };
        let mut bench = Bench::with(limits);
        bench.store.keep_journal();
        let mut records = bench.store.snapshot();
        bench.guest(1);
        bench.guest(2);
        for (who, kind, tx, payload) in history {
            let conn = match who {
                0 => bench.dom0,
                domid => match bench.world.attached.get(&(domid as u16)) {
                    Some(conn) => *conn,
                    None => continue,
                },
            };
            let header = Header { kind: MessageType(kind), req_id: 1, tx_id: tx, len: payload.len() as u32 };
            let waiting = bench.store.conns[&conn].outbox.reply_count();
            bench.store.handle(conn, &Message { header, payload }, &mut bench.world);
            prop_assert!(bench.store.audit().is_ok(), "{:?}", bench.store.audit());
            // Whatever was asked, there is an answer, unless it ended the asker itself.
            if let Some(connection) = bench.store.conns.get(&conn) {
                prop_assert_eq!(connection.outbox.reply_count(), waiting + 1);
            }
            for domid in [1, 2] {
                let owned = bench.store.tree.owned_by(domid);
                prop_assert!(who == 0 || owned <= limits.nodes || kind == T::TRANSACTION_END.0 || owned <= 16);
            }
        }
        records.extend(bench.store.take_journal());
        for records in [records, bench.store.snapshot()] {
            let heir = successor(&records);
            prop_assert!(heir.store.audit().is_ok(), "{:?}", heir.store.audit());
            prop_assert_eq!(look_of(&heir.store), look_of(&bench.store));
        }
        for domid in [1, 2] {
            bench.store.domain_is(domid, DomainState::Gone, &mut bench.world);
            prop_assert!(bench.store.audit().is_ok(), "{:?}", bench.store.audit());
            prop_assert_eq!(bench.store.tree.owned_by(domid), 0);
        }
    }
}

/// What a store without transactions is: paths, and what they hold.
type Plain = BTreeMap<String, String>;

/// Something that is asked of the store, and can be asked of the model.
#[derive(Clone, Debug)]
enum Deed {
    Read(&'static str),
    List(&'static str),
    Write(&'static str, u8),
    Make(&'static str),
    Remove(&'static str),
}

impl Deed {
    fn words(&self) -> (T, String) {
        match self {
            Deed::Read(path) => (T::READ, format!("{path}\0")),
            Deed::List(path) => (T::DIRECTORY, format!("{path}\0")),
            Deed::Write(path, value) => (T::WRITE, format!("{path}\0{value}")),
            Deed::Make(path) => (T::MKDIR, format!("{path}\0")),
            Deed::Remove(path) => (T::RM, format!("{path}\0")),
        }
    }

    /// Does it, and gives the answer.
    fn on(&self, plain: &mut Plain) -> Result<String, String> {
        let missing = || Err("ENOENT".to_owned());
        let is_below = |path: &str, above: &str| path.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'));
        match self {
            Deed::Read(path) => plain.get(*path).cloned().map_or_else(missing, Ok),
            Deed::List(path) if !plain.contains_key(*path) => missing(),
            Deed::List(path) => {
                let names = plain.keys().filter(|other| is_below(other, path));
                let names = names
                    .map(|other| &other[path.len() + 1..])
                    .filter(|name| !name.contains('/'));
                Ok(names.map(|name| format!("{name}\0")).collect())
            }
            Deed::Write(path, value) => {
                with_parents(plain, path);
                plain.insert((*path).to_owned(), value.to_string());
                Ok("OK\0".to_owned())
            }
            Deed::Make(path) => {
                with_parents(plain, path);
                plain.entry((*path).to_owned()).or_default();
                Ok("OK\0".to_owned())
            }
            Deed::Remove(path) => {
                let parent = &path[..path.rfind('/').unwrap_or(0)];
                if !parent.is_empty() && !plain.contains_key(parent) {
                    return missing();
                }
                plain.retain(|other, _| other != path && !is_below(other, path));
                Ok("OK\0".to_owned())
            }
        }
    }
}

fn with_parents(plain: &mut Plain, path: &str) {
    for (at, _) in path.match_indices('/').skip(1) {
        plain.entry(path[..at].to_owned()).or_default();
    }
}

/// The children of a directory have no order.
fn sorted(answer: Result<String, String>, deed: &Deed) -> Result<String, String> {
    let Deed::List(_) = deed else { return answer };
    answer.map(|names| {
        let mut names: Vec<_> = names.split_inclusive('\0').collect();
        names.sort_unstable();
        names.concat()
    })
}

fn deed() -> impl Strategy<Value = Deed> {
    let path = prop::sample::select(vec!["/m", "/m/a", "/m/a/x", "/m/a/y", "/m/b", "/m/b/x"]);
    (path, 0..5_u8, any::<u8>()).prop_map(|(path, kind, value)| match kind {
        0 => Deed::Read(path),
        1 => Deed::List(path),
        2 => Deed::Make(path),
        3 => Deed::Remove(path),
        _ => Deed::Write(path, value),
    })
}

/// A turn: who takes it (0 is nobody's transaction), and what they do; `None` ends the transaction, well or not.
fn turns() -> impl Strategy<Value = Vec<(usize, Option<Deed>, bool)>> {
    prop::collection::vec((0..3_usize, prop::option::weighted(0.8, deed()), any::<bool>()), 1..40)
}

/// A transaction: its number, what it sees, what was done and answered, and how often the store had changed.
struct Open {
    tx: u32,
    view: Plain,
    done: Vec<(Deed, Result<String, String>)>,
    since: u32,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    /// Inside, only what it did itself has happened since its start. It comes about at its end as if it had been asked for
    /// then, answer for answer; or not at all, for which somebody else must have changed something.
    #[test]
    fn a_transaction_happens_at_its_end_or_never(turns in turns()) {
        let mut bench = Bench::new();
        let (mut live, mut changes) = (Plain::new(), 0);
        let mut open: [Option<Open>; 3] = Default::default();
        for (who, deed, is_wanted) in turns {
            if who > 0 && open[who].is_none() {
                let tx = bench.ask(bench.dom0, T::TRANSACTION_START, 0, "\0").unwrap();
                let tx = tx.trim_end_matches('\0').parse().unwrap();
                open[who] = Some(Open { tx, view: live.clone(), done: Vec::new(), since: changes });
            }
            match (&mut open[who], deed) {
                (None, None) => {}
                (None, Some(deed)) => {
                    let (kind, payload) = deed.words();
                    let answer = sorted(bench.ask(bench.dom0, kind, 0, &payload), &deed);
                    let before = live.clone();
                    prop_assert_eq!(answer, deed.on(&mut live), "{:?}", deed);
                    // To write the same again is a change, too.
                    changes += u32::from(before != live || matches!(deed, Deed::Write(..)));
                }
                (Some(own), Some(deed)) => {
                    let (kind, payload) = deed.words();
                    let answer = sorted(bench.ask(bench.dom0, kind, own.tx, &payload), &deed);
                    prop_assert_eq!(&answer, &deed.on(&mut own.view), "{:?}", deed);
                    own.done.push((deed, answer));
                }
                (Some(own), None) => {
                    let word = if is_wanted { "T\0" } else { "F\0" };
                    let end = bench.ask(bench.dom0, T::TRANSACTION_END, own.tx, word);
                    if end.is_err() {
                        prop_assert_eq!(end.as_ref().unwrap_err(), "EAGAIN");
                        prop_assert!(is_wanted && own.since != changes, "nobody was in its way");
                    } else if is_wanted {
                        let before = live.clone();
                        for (deed, answer) in &own.done {
                            prop_assert_eq!(answer, &deed.on(&mut live), "{:?} of {:?}", deed, own.done);
                        }
                        let wrote = own.done.iter().any(|(deed, _)| matches!(deed, Deed::Write(..)));
                        changes += u32::from(wrote || before != live);
                    }
                    open[who] = None;
                }
            }
            for path in ["/m", "/m/a", "/m/a/x", "/m/a/y", "/m/b", "/m/b/x"] {
                let read = bench.ask(bench.dom0, T::READ, 0, &format!("{path}\0"));
                prop_assert_eq!(read.ok(), live.get(path).cloned(), "{}", path);
            }
        }
    }
}
