//! Taking up the store of a xenstored that has ended, and noting ours for the next one.

use super::journal::{self, Record};
use super::limits::{Limits, exceeds};
use super::store::{ConnId, Connection, Domain, Events, World, Xenstore};
use super::transaction::Transaction;
use super::tree::{Actor, Node, Op};
use super::watches::Watch;
use ferroxen_xenstore_wire::ErrorCode;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// The bytes of a ring that were half-way: of a request, and of answers.
pub type HalfWay = (Vec<u8>, Vec<u8>);

/// What is known of somebody with a ring.
#[derive(Default)]
struct Heir {
    ring: Option<(u64, u32)>,
    target: Option<u16>,
    watches: Vec<Record>,
    half_way: HalfWay,
}

/// What was half-way on the connections that go on.
#[derive(Debug, Default)]
pub struct Restored {
    /// On rings, by their domains.
    pub rings: BTreeMap<u16, HalfWay>,
    /// On sockets, in the order of their records.
    pub clients: Vec<(ConnId, HalfWay)>,
}

impl Xenstore {
    /// From now on, whatever must outlive us is noted; [`take_journal`](Self::take_journal) gives it.
    pub fn keep_journal(&mut self) {
        self.journal = Some(Vec::new());
    }

    /// What has been noted since the last time.
    pub fn take_journal(&mut self) -> Vec<u8> {
        match &mut self.journal {
            Some(bytes) => std::mem::take(bytes),
            None => Vec::new(),
        }
    }

    pub(super) fn note(&mut self, record: impl FnOnce() -> Record) {
        if let Some(bytes) = &mut self.journal {
            journal::write(bytes, &record());
        }
    }

    /// The domain at the other end of a connection that outlives us: one with a ring.
    pub fn owner_of_ring(&self, conn: ConnId) -> Option<u16> {
        if self.kernel == Some(conn) {
            return Some(0);
        }
        let domid = self.conns.get(&conn)?.actor.domid;
        (domid != 0).then_some(domid)
    }

    /// The connection through a domain's ring.
    pub fn ring_of(&self, domid: u16) -> Option<ConnId> {
        match domid {
            0 => self.kernel,
            domid => self.domains.get(&domid)?.conn,
        }
    }

    /// Answers that wait to be read.
    pub fn waiting_answers(&self, conn: ConnId) -> Vec<u8> {
        self.conns
            .get(&conn)
            .map(|connection| connection.outbox.answers())
            .unwrap_or_default()
    }

    /// All that there is, as records.
    pub fn snapshot(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Some(root) = self.tree.get("/") {
            snapshot_node(&mut bytes, "/", root);
        }
        for (domid, domain) in &self.domains {
            if let (Some(conn), Some((gfn, port))) = (domain.conn, domain.ring) {
                let introduce = Record::Introduce {
                    domid: *domid,
                    gfn,
                    port,
                };
                journal::write(&mut bytes, &introduce);
                let target = self.conns.get(&conn).and_then(|connection| connection.actor.target);
                if let Some(target) = target {
                    let record = Record::Target { domid: *domid, target };
                    journal::write(&mut bytes, &record);
                }
            }
        }
        for conn in self.conns.keys() {
            let Some(domid) = self.owner_of_ring(*conn) else {
                continue;
            };
            for watch in self.watches.of(*conn).iter().filter_map(|id| self.watches.get(*id)) {
                journal::write(&mut bytes, &watch_record(domid, watch));
            }
        }
        for (event, perms) in &self.special_perms {
            let (event, perms) = (event.clone(), perms.clone());
            journal::write(&mut bytes, &Record::EventPerms { event, perms });
        }
        bytes
    }

    /// What a client at a socket has, as a record of its own.
    pub fn client_record(&self, conn: ConnId, (input, output): HalfWay) -> Vec<u8> {
        let (mut records, mut bytes) = (Vec::new(), Vec::new());
        for watch in self.watches.of(conn).iter().filter_map(|id| self.watches.get(*id)) {
            journal::write(&mut records, &watch_record(0, watch));
        }
        let domid = 0;
        journal::write(&mut records, &Record::HalfWay { domid, input, output });
        journal::write(&mut bytes, &Record::Client { records });
        bytes
    }

    /// Whether somebody's transaction would not go on with our successor as it does with us.
    pub fn has_open_transactions(&self) -> bool {
        self.conns
            .values()
            .any(|connection| !connection.transactions.is_empty())
    }

    /// Makes the store as the records tell it, attaches the rings, and tells everybody with a ring of all that they
    /// watch, since what they were to hear of last may have been lost. Gives the messages that were half-way.
    ///
    /// `first_transaction` begins the numbers of new transactions: those of the old ones may still be used.
    pub fn restore(&mut self, records: &[u8], first_transaction: u32, world: &mut dyn World) -> Restored {
        let mut heirs: BTreeMap<u16, Heir> = BTreeMap::new();
        let mut sockets = Vec::new();
        for record in journal::read(records) {
            match record {
                Record::Client { records } => sockets.push(records),
                record => self.replay(record, &mut heirs),
            }
        }
        let mut restored = Restored::default();
        let mut events = Events::default();
        for (domid, heir) in heirs {
            let conn = match (domid, heir.ring) {
                (0, _) => self.kernel,
                (domid, Some((gfn, port))) => self.take_up(domid, heir.target, gfn, port, world),
                (_, None) => None,
            };
            let Some(conn) = conn else { continue };
            let half_way = self.go_on(conn, heir, first_transaction, &mut events);
            restored.rings.insert(domid, half_way);
        }
        for records in sockets {
            let mut heirs: BTreeMap<u16, Heir> = BTreeMap::new();
            journal::read(&records).for_each(|record| self.replay(record, &mut heirs));
            let conn = self.connect(Duration::ZERO);
            let heir = heirs.remove(&0).unwrap_or_default();
            let half_way = self.go_on(conn, heir, first_transaction, &mut events);
            restored.clients.push((conn, half_way));
        }
        self.tell(events);
        restored
    }

    /// Gives a connection what it had.
    fn go_on(&mut self, conn: ConnId, heir: Heir, first_transaction: u32, events: &mut Events) -> HalfWay {
        if let Some(connection) = self.conns.get_mut(&conn) {
            connection.next_transaction = first_transaction;
            connection.has_past = true;
        }
        for watch in heir.watches {
            let Record::Watch {
                path,
                base_len,
                token,
                depth,
                ..
            } = watch
            else {
                continue;
            };
            let id = self.watches.add(Watch {
                conn,
                path: path.clone(),
                base_len: base_len as usize,
                token,
                depth,
            });
            events.first.push((id, path));
        }
        heir.half_way
    }

    fn replay(&mut self, record: Record, heirs: &mut BTreeMap<u16, Heir>) {
        match record {
            Record::Change { who, op } => {
                self.clock += 1;
                // It was done once, so it cannot be refused now.
                let _ = self.tree.apply(&op, who, &Limits::NONE, self.clock);
            }
            Record::Introduce { domid, gfn, port } => heirs.entry(domid).or_default().ring = Some((gfn, port)),
            Record::Target { domid, target } => heirs.entry(domid).or_default().target = Some(target),
            Record::Forget { domid } => {
                heirs.remove(&domid);
                for heir in heirs.values_mut().filter(|heir| heir.target == Some(domid)) {
                    heir.target = None;
                }
                self.forget_in_event_perms(domid);
                self.clock += 1;
                self.tree.forget_domain(domid, self.clock);
            }
            Record::Watch { domid, .. } => heirs.entry(domid).or_default().watches.push(record),
            Record::Unwatch { domid, path, token } => {
                let is_other = |watch: &Record| !matches!(watch, Record::Watch { path: other, token: its, .. } if *other == path && *its == token);
                heirs.entry(domid).or_default().watches.retain(is_other);
            }
            Record::ResetWatches { domid } => heirs.entry(domid).or_default().watches.clear(),
            Record::EventPerms { event, perms } => drop(self.special_perms.insert(event, perms)),
            // Taken out before.
            Record::Client { .. } => {}
            Record::HalfWay { domid, input, output } => heirs.entry(domid).or_default().half_way = (input, output),
        }
    }

    /// A domain that the one before us knew. One that cannot be reached is looked after like any that has ended.
    fn take_up(
        &mut self,
        domid: u16,
        target: Option<u16>,
        gfn: u64,
        port: u32,
        world: &mut dyn World,
    ) -> Option<ConnId> {
        let conn = self.add_connection(Actor { domid, target }, Duration::ZERO);
        let is_attached = world.attach(domid, conn, gfn, port).is_ok();
        if !is_attached {
            self.disconnect(conn);
        }
        let domain = Domain {
            conn: is_attached.then_some(conn),
            is_shut_down: false,
            ring: Some((gfn, port)),
        };
        self.domains.insert(domid, domain);
        is_attached.then_some(conn)
    }
}

impl Connection {
    /// An open transaction. One that was begun with the xenstored before us goes on with the tree as it is now, and
    /// its end will be `EAGAIN`.
    pub(super) fn transaction(
        &mut self,
        id: u32,
        most: u32,
        stale: impl FnOnce() -> Transaction,
    ) -> Result<&mut Transaction, ErrorCode> {
        let may_have_more = self.actor.is_privileged() || !exceeds(self.transactions.len() + 1, most);
        if self.has_past && may_have_more {
            return Ok(self.transactions.entry(id).or_insert_with(stale));
        }
        self.transactions.get_mut(&id).ok_or(ErrorCode::ENOENT)
    }
}

pub(super) fn watch_record(domid: u16, watch: &Watch) -> Record {
    Record::Watch {
        domid,
        path: watch.path.clone(),
        base_len: u32::try_from(watch.base_len).unwrap_or(0),
        token: watch.token.clone(),
        depth: watch.depth,
    }
}

fn snapshot_node(bytes: &mut Vec<u8>, at: &str, node: &Node) {
    let path: Arc<str> = at.into();
    let mut change = |op| {
        let who = Actor::PRIVILEGED;
        journal::write(bytes, &Record::Change { who, op });
    };
    change(Op::Write(path.clone(), node.value.clone()));
    change(Op::SetPerms(path, node.perms.clone()));
    for (name, child) in node.children() {
        snapshot_node(bytes, &format!("{}/{name}", at.trim_end_matches('/')), child);
    }
}
