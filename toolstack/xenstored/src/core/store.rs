//! Connections, requests and domains: the protocol itself.

use super::budget::Budget;
use super::journal::Record;
use super::limits::{Limits, exceeds};
use super::outbox::Outbox;
use super::succession::watch_record;
use super::transaction::Transaction;
use super::tree::{Actor, Aspect, Change, Node, Op, Tree};
use super::watches::{Watch, Watches};
use ferroxen_xenstore_wire::path::{self, Kind};
use ferroxen_xenstore_wire::{
    ErrorCode, Header, INTRODUCE_DOMAIN, Message, MessageType, PAYLOAD_MAX, Permission, REL_PATH_MAX, RELEASE_DOMAIN,
    Rights, encode, parse_permissions, strings,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Names a connection; never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnId(pub(super) u64);

impl ConnId {
    /// For whoever keeps numbers only.
    pub fn number(self) -> u64 {
        self.0
    }

    /// The connection that had this number.
    pub fn from_number(number: u64) -> ConnId {
        ConnId(number)
    }
}

/// How many changes of the store a guest's transaction may outlive, and how often that is looked at. Old
/// snapshots keep old nodes in memory, and a guest could hold them for ever.
const TRANSACTION_LIFE: u64 = 2048;
const BETWEEN_SWEEPS: u64 = 256;

/// What must happen outside for some requests.
pub trait World {
    /// Maps a domain's ring page and binds its port; messages then go between that ring and `conn`.
    /// If the domain is attached already, only the port is bound anew.
    fn attach(&mut self, domid: u16, conn: ConnId, gfn: u64, port: u32) -> Result<(), ErrorCode>;
    /// Lets go of a domain's ring and port.
    fn detach(&mut self, domid: u16);
    /// Whether there is such a domain.
    fn exists(&mut self, domid: u16) -> bool;
    /// Turns the log of requests on or off.
    fn set_logging(&mut self, on: bool);
    /// Notes a line in the daemon's log.
    fn note(&mut self, line: &str);
    /// Writes the log to another file from now on. `Err` is what to print.
    fn set_log_file(&mut self, _path: &str) -> Result<(), String> {
        Err("there is no log".into())
    }
    /// Makes sure that a program can take our place. `Err` is what to print.
    fn check_successor(&mut self, _program: &str) -> Result<(), String> {
        Err("nobody can take this one's place".into())
    }
    /// Lets another take our place once the request in hand is answered.
    fn succeed(&mut self, _successor: Successor) {}
}

/// Who is to take our place.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Successor {
    /// The program; none: our own.
    pub program: Option<String>,
    /// Its options; none: ours.
    pub options: Option<String>,
}

/// What the hypervisor says of a domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DomainState {
    /// It runs, or could.
    Alive,
    /// It has shut down or crashed, and is still there.
    ShutDown,
    /// It is being destroyed: what it had in the store goes, but the last of its pages may still be held.
    Dying,
    /// It is not there any more.
    Gone,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) actor: Actor,
    pub(super) transactions: BTreeMap<u32, Transaction>,
    pub(super) next_transaction: u32,
    pub(super) outbox: Outbox,
    budget: Budget,
    /// It was there before us, and may have transactions that we do not know.
    pub(super) has_past: bool,
}

#[derive(Debug)]
pub(super) struct Domain {
    /// Its ring, while it is introduced.
    pub(super) conn: Option<ConnId>,
    /// Its shutdown has been announced.
    pub(super) is_shut_down: bool,
    /// The frame of its ring, and its port.
    pub(super) ring: Option<(u64, u32)>,
}

/// The store and everybody connected to it.
#[derive(Debug)]
pub struct Xenstore {
    pub(super) tree: Tree,
    pub(super) clock: u64,
    /// When to look for old transactions again.
    next_sweep: u64,
    pub(super) conns: BTreeMap<ConnId, Connection>,
    next_conn: u64,
    pub(super) watches: Watches,
    pub(super) domains: BTreeMap<u16, Domain>,
    /// Domain 0's kernel, which has a ring.
    pub(super) kernel: Option<ConnId>,
    /// What is to be noted for our successor.
    pub(super) journal: Option<Vec<u8>>,
    /// Domains that we have forgotten, and of which the hypervisor still has something.
    husks: BTreeSet<u16>,
    /// Who may watch `@introduceDomain` and its like, where it is not just Domain 0.
    pub(super) special_perms: BTreeMap<String, Arc<[Permission]>>,
    pub(super) limits: Limits,
    /// Connections that have something to send.
    dirty: BTreeSet<ConnId>,
    pub(super) requests: u64,
    /// What was said so far of a live update.
    pub(super) successor: Successor,
}

/// The answer to a request: its payload, or why not.
type Answer = Result<Vec<u8>, ErrorCode>;

impl Xenstore {
    /// A store with the nodes that are always there.
    pub fn new(limits: Limits) -> Xenstore {
        let mut store = Xenstore {
            tree: Tree::new(),
            clock: 1,
            next_sweep: BETWEEN_SWEEPS,
            conns: BTreeMap::new(),
            next_conn: 1,
            watches: Watches::default(),
            domains: BTreeMap::new(),
            kernel: None,
            journal: None,
            husks: BTreeSet::new(),
            special_perms: BTreeMap::new(),
            limits,
            dirty: BTreeSet::new(),
            requests: 0,
            successor: Successor::default(),
        };
        for path in ["/tool/xenstored", "/local/domain", "/vm"] {
            // Cannot be refused to Domain 0 in an empty tree.
            let _ = store.tree.apply(&Op::Mkdir(path.into()), Actor::PRIVILEGED, &limits, 1);
        }
        store
    }

    /// Somebody privileged connects, by a socket.
    pub fn connect(&mut self, now: Duration) -> ConnId {
        self.add_connection(Actor::PRIVILEGED, now)
    }

    /// Domain 0's own kernel, by its ring.
    pub fn connect_kernel(&mut self, now: Duration) -> ConnId {
        let conn = self.connect(now);
        self.kernel = Some(conn);
        conn
    }

    /// A connection ends: its watches and transactions go.
    pub fn disconnect(&mut self, conn: ConnId) {
        self.watches.remove_all_of(conn);
        self.conns.remove(&conn);
        self.dirty.remove(&conn);
    }

    /// A connection starts afresh: watches, transactions and unsent messages go.
    pub fn reset(&mut self, conn: ConnId) {
        self.remove_watches(conn);
        if let Some(connection) = self.conns.get_mut(&conn) {
            connection.transactions.clear();
            connection.outbox.clear();
        }
    }

    fn remove_watches(&mut self, conn: ConnId) {
        self.watches.remove_all_of(conn);
        if let Some(domid) = self.owner_of_ring(conn) {
            self.note(|| Record::ResetWatches { domid });
        }
    }

    /// Whether a connection's next request may be taken now; `Err` says when to ask again, if it is not until
    /// the client reads its answers.
    pub fn may_ask(&mut self, conn: ConnId, now: Duration) -> Result<(), Option<Duration>> {
        let Some(connection) = self.conns.get_mut(&conn) else {
            return Err(None);
        };
        let limit = if connection.actor.is_privileged() {
            4096
        } else {
            self.limits.outstanding
        };
        if exceeds(connection.outbox.reply_count() + 1, limit) {
            return Err(None);
        }
        if connection.actor.is_privileged() {
            return Ok(());
        }
        connection.budget.check(&self.limits, now).map_err(Some)
    }

    /// Takes the next message for a connection, in wire form.
    pub fn next_frame(&mut self, conn: ConnId) -> Option<Vec<u8>> {
        let watches = &self.watches;
        self.conns.get_mut(&conn)?.outbox.next_frame(|id| watches.get(id))
    }

    /// Takes the list of connections that may have something to send.
    pub fn take_dirty(&mut self) -> BTreeSet<ConnId> {
        std::mem::take(&mut self.dirty)
    }

    /// Answers one request. The answer, and events for whoever watches, go to the outboxes.
    pub fn handle(&mut self, conn: ConnId, message: &Message, world: &mut dyn World) {
        let Some(actor) = self.conns.get(&conn).map(|connection| connection.actor) else {
            return;
        };
        self.requests += 1;
        let header = message.header;
        let mut events = Events::default();
        let answer = self.answer(conn, actor, message, world, &mut events);
        let (kind, payload) = match answer {
            Ok(payload) => (header.kind, payload),
            Err(code) => (MessageType::ERROR, [code.name().as_bytes(), &[0]].concat()),
        };
        let frame = encode(kind, header.req_id, header.tx_id, &[&payload])
            .or_else(|| encode(MessageType::ERROR, header.req_id, header.tx_id, &[b"E2BIG\0"]));
        if let Some(connection) = self.conns.get_mut(&conn) {
            connection.outbox.reply(frame.unwrap_or_default());
            self.dirty.insert(conn);
        }
        let told = self.tell(events);
        if self.clock >= self.next_sweep {
            self.refresh_old_transactions();
        }
        if let Some(connection) = self.conns.get_mut(&conn) {
            connection.budget.spend(message.payload.len(), told);
        }
    }

    /// Puts another text in the place of a control command's answer that has not gone out.
    pub fn answer_anew(&mut self, conn: ConnId, header: Header, text: &str) {
        let frame = encode(header.kind, header.req_id, header.tx_id, &[text.as_bytes(), &[0]]);
        if let Some(connection) = self.conns.get_mut(&conn) {
            connection.outbox.take_back_reply();
            connection.outbox.reply(frame.unwrap_or_default());
        }
    }

    /// The limits of every guest.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Hears from the hypervisor how a domain is doing; lets go of it if it is gone.
    pub fn domain_is(&mut self, domid: u16, state: DomainState, world: &mut dyn World) {
        let mut events = Events::default();
        match state {
            DomainState::Alive => {}
            DomainState::ShutDown => {
                if let Some(domain) = self.domains.get_mut(&domid)
                    && !domain.is_shut_down
                {
                    domain.is_shut_down = true;
                    events.special.push((RELEASE_DOMAIN, domid));
                }
            }
            DomainState::Dying => {
                self.husks.insert(domid);
                self.forget(domid, world, &mut events);
            }
            DomainState::Gone => {
                self.forget(domid, world, &mut events);
                // Whoever waits until nothing is left of it hears of it a second time.
                if self.husks.remove(&domid) && events.special.is_empty() {
                    events.special.push((RELEASE_DOMAIN, domid));
                }
            }
        }
        self.tell(events);
    }

    /// Domains whose end we must not miss: the introduced ones, those that own nodes, and those that are dying.
    pub fn domains_to_check(&self) -> BTreeSet<u16> {
        self.domains
            .keys()
            .copied()
            .chain(self.tree.owners())
            .chain(self.husks.iter().copied())
            .filter(|domid| *domid != 0)
            .collect()
    }

    /// Whether we talk to that domain.
    pub fn is_introduced(&self, domid: u16) -> bool {
        domid == 0 || self.domains.get(&domid).is_some_and(|domain| domain.conn.is_some())
    }

    /// The tree, for looking at.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    pub(super) fn connection_count(&self) -> usize {
        self.conns.len()
    }

    /// Watches, open transactions and waiting messages of a domain.
    pub(super) fn usage_of(&self, domid: u16) -> (usize, usize, usize) {
        let of_domain = self
            .conns
            .iter()
            .filter(|(_, connection)| connection.actor.domid == domid);
        of_domain.fold((0, 0, 0), |(watches, transactions, waiting), (conn, connection)| {
            (
                watches + self.watches.of(*conn).len(),
                transactions + connection.transactions.len(),
                waiting + connection.outbox.len(),
            )
        })
    }

    /// Checks what must always be true.
    pub fn audit(&self) -> Result<(), String> {
        self.tree.audit()?;
        self.watches.audit(|conn| self.conns.contains_key(&conn))?;
        for (conn, connection) in &self.conns {
            let is_guest = !connection.actor.is_privileged();
            let watches = self.watches.of(*conn).len();
            connection.outbox.audit(is_guest, watches)?;
            if is_guest && exceeds(watches, self.limits.watches) {
                return Err(format!("{conn:?} has {watches} watches"));
            }
            if is_guest && exceeds(connection.transactions.len(), self.limits.transactions) {
                return Err(format!("{conn:?} has {} transactions", connection.transactions.len()));
            }
        }
        for (domid, domain) in &self.domains {
            let actor = domain
                .conn
                .and_then(|conn| self.conns.get(&conn))
                .map(|connection| connection.actor.domid);
            if domain.conn.is_some() && actor != Some(*domid) {
                return Err(format!("domain {domid} has the connection of {actor:?}"));
            }
        }
        Ok(())
    }

    pub(super) fn add_connection(&mut self, actor: Actor, now: Duration) -> ConnId {
        let conn = ConnId(self.next_conn);
        self.next_conn += 1;
        let connection = Connection {
            actor,
            transactions: BTreeMap::new(),
            next_transaction: 1,
            outbox: Outbox::default(),
            budget: Budget::full(&self.limits, now),
            has_past: false,
        };
        self.conns.insert(conn, connection);
        conn
    }

    fn refresh_old_transactions(&mut self) {
        self.next_sweep = self.clock + BETWEEN_SWEEPS;
        let oldest = self.clock.saturating_sub(TRANSACTION_LIFE);
        let guests = self
            .conns
            .values_mut()
            .filter(|connection| !connection.actor.is_privileged());
        for transaction in guests.flat_map(|connection| connection.transactions.values_mut()) {
            transaction.refresh_if_older(oldest, &self.tree, self.clock);
        }
    }

    fn answer(
        &mut self,
        conn: ConnId,
        who: Actor,
        message: &Message,
        world: &mut dyn World,
        events: &mut Events,
    ) -> Answer {
        let (payload, tx) = (message.payload.as_slice(), message.header.tx_id);
        match message.header.kind {
            MessageType::READ => self.read(conn, who, tx, payload).map(|node| node.value.to_vec()),
            MessageType::DIRECTORY => self.directory(conn, who, tx, payload),
            MessageType::DIRECTORY_PART => self.directory_part(conn, who, tx, payload),
            MessageType::GET_PERMS => self.get_perms(conn, who, tx, payload),
            MessageType::SET_PERMS => self.set_perms(conn, who, tx, payload, world, events),
            MessageType::WRITE => {
                let nul = payload.iter().position(|byte| *byte == 0).ok_or(ErrorCode::EINVAL)?;
                let path = absolute(who, &payload[..nul])?;
                self.change(conn, who, tx, Op::Write(path, payload[nul + 1..].into()), events)
            }
            MessageType::MKDIR => {
                let path = absolute(who, only_string(payload)?)?;
                self.change(conn, who, tx, Op::Mkdir(path), events)
            }
            MessageType::RM => {
                let path = absolute(who, only_string(payload)?)?;
                self.change(conn, who, tx, Op::Remove(path), events)
            }
            MessageType::WATCH => self.watch(conn, who, payload, events),
            MessageType::UNWATCH => self.unwatch(conn, who, payload),
            MessageType::RESET_WATCHES => {
                self.remove_watches(conn);
                if let Some(connection) = self.conns.get_mut(&conn) {
                    connection.transactions.clear();
                }
                ok()
            }
            MessageType::TRANSACTION_START => self.start_transaction(conn, who, tx),
            MessageType::TRANSACTION_END => self.end_transaction(conn, who, tx, payload, events),
            MessageType::INTRODUCE => self.introduce(who, payload, world, events),
            MessageType::RELEASE => {
                let domid = self.privileged_domid(who, payload)?;
                if !self.is_introduced(domid) {
                    return Err(ErrorCode::ENOENT);
                }
                self.forget(domid, world, events);
                self.husks.insert(domid);
                ok()
            }
            MessageType::RESUME => {
                let domid = self.privileged_domid(who, payload)?;
                self.domains.get_mut(&domid).ok_or(ErrorCode::ENOENT)?.is_shut_down = false;
                ok()
            }
            MessageType::SET_TARGET => self.set_target(who, payload),
            MessageType::IS_DOMAIN_INTRODUCED => {
                let is_there = self.is_introduced(domid_of(only_string(payload)?)?);
                Ok(if is_there { b"T\0" } else { b"F\0" }.to_vec())
            }
            MessageType::GET_DOMAIN_PATH => {
                let domid = domid_of(only_string(payload)?)?;
                Ok(format!("{}\0", path::domain_path(domid)).into_bytes())
            }
            MessageType::CONTROL if who.is_privileged() => self.control(payload, world),
            MessageType::CONTROL => Err(ErrorCode::EACCES),
            _ => Err(ErrorCode::ENOSYS),
        }
    }

    fn look_up(
        &mut self,
        conn: ConnId,
        who: Actor,
        tx: u32,
        path: &str,
        aspect: Aspect,
    ) -> Result<Arc<Node>, ErrorCode> {
        let limits = self.limits;
        match self.transaction(conn, tx)? {
            Some(transaction) => transaction.read(path, aspect, who, &limits),
            None => self.tree.read(path, who).cloned(),
        }
    }

    fn read(&mut self, conn: ConnId, who: Actor, tx: u32, payload: &[u8]) -> Result<Arc<Node>, ErrorCode> {
        let path = absolute(who, only_string(payload)?)?;
        self.look_up(conn, who, tx, &path, Aspect::Itself)
    }

    fn directory(&mut self, conn: ConnId, who: Actor, tx: u32, payload: &[u8]) -> Answer {
        let path = absolute(who, only_string(payload)?)?;
        let names = listing(&*self.look_up(conn, who, tx, &path, Aspect::Children)?);
        if names.len() > PAYLOAD_MAX {
            Err(ErrorCode::E2BIG)
        } else {
            Ok(names)
        }
    }

    fn directory_part(&mut self, conn: ConnId, who: Actor, tx: u32, payload: &[u8]) -> Answer {
        let [path, offset] = exact_strings(payload)?;
        let path = absolute(who, path)?;
        let offset: usize = number(offset)?;
        let node = self.look_up(conn, who, tx, &path, Aspect::Children)?;
        let names = listing(&node);
        let mut answer = format!("{}\0", node.listing_generation()).into_bytes();
        let Some(rest) = names.get(offset..).filter(|rest| !rest.is_empty()) else {
            answer.push(0);
            return Ok(answer);
        };
        let room = PAYLOAD_MAX - answer.len() - 1;
        if rest.len() <= room {
            answer.extend_from_slice(rest);
            // An empty name marks the end.
            answer.push(0);
        } else {
            let whole_names = rest[..room]
                .iter()
                .rposition(|byte| *byte == 0)
                .map_or(0, |nul| nul + 1);
            answer.extend_from_slice(&rest[..whole_names]);
        }
        Ok(answer)
    }

    fn get_perms(&mut self, conn: ConnId, who: Actor, tx: u32, payload: &[u8]) -> Answer {
        let name = only_string(payload)?;
        if let Some(event) = special(name)? {
            let perms = self.special_perms(event);
            let may = who.rights(&perms).may_read();
            return if may {
                Ok(Permission::encode_all(&perms))
            } else {
                Err(ErrorCode::EACCES)
            };
        }
        Ok(Permission::encode_all(&self.read(conn, who, tx, payload)?.perms))
    }

    fn set_perms(
        &mut self,
        conn: ConnId,
        who: Actor,
        tx: u32,
        payload: &[u8],
        world: &mut dyn World,
        events: &mut Events,
    ) -> Answer {
        let nul = payload.iter().position(|byte| *byte == 0).ok_or(ErrorCode::EINVAL)?;
        let (name, entries) = (&payload[..nul], &payload[nul + 1..]);
        let perms: Arc<[Permission]> = parse_permissions(entries).map_err(|_| ErrorCode::EINVAL)?.into();
        if let Some(event) = special(name)? {
            if !who.is_privileged() {
                return Err(ErrorCode::EACCES);
            }
            let event = event.to_string();
            self.note(|| Record::EventPerms {
                event: event.clone(),
                perms: perms.clone(),
            });
            self.special_perms.insert(event, perms);
            return ok();
        }
        let owner = perms.first().map_or(0, |owner| owner.domid);
        if who.is_privileged() && owner != 0 && self.tree.owned_by(owner) == 0 && !world.exists(owner) {
            // Nobody would ever tell us to clean up after it.
            return Err(ErrorCode::ENOENT);
        }
        self.change(conn, who, tx, Op::SetPerms(absolute(who, name)?, perms), events)
    }

    fn change(&mut self, conn: ConnId, who: Actor, tx: u32, op: Op, events: &mut Events) -> Answer {
        self.clock += 1;
        let (clock, limits) = (self.clock, self.limits);
        match self.transaction(conn, tx)? {
            Some(transaction) => transaction.apply(op, who, &limits, clock)?,
            None => {
                events.changes.extend(self.tree.apply(&op, who, &limits, clock)?);
                self.note(|| Record::Change { who, op });
            }
        }
        ok()
    }

    fn transaction(&mut self, conn: ConnId, tx: u32) -> Result<Option<&mut Transaction>, ErrorCode> {
        if tx == 0 {
            return Ok(None);
        }
        let connection = self.conns.get_mut(&conn).ok_or(ErrorCode::EIO)?;
        let stale = || Transaction::stale(&self.tree, self.clock);
        connection.transaction(tx, self.limits.transactions, stale).map(Some)
    }

    fn start_transaction(&mut self, conn: ConnId, who: Actor, tx: u32) -> Answer {
        if tx != 0 {
            return Err(ErrorCode::EBUSY);
        }
        let connection = self.conns.get_mut(&conn).ok_or(ErrorCode::EIO)?;
        if !who.is_privileged() && exceeds(connection.transactions.len() + 1, self.limits.transactions) {
            return Err(ErrorCode::ENOSPC);
        }
        let mut id = connection.next_transaction;
        while id == 0 || connection.transactions.contains_key(&id) {
            id = id.wrapping_add(1);
        }
        connection.next_transaction = id.wrapping_add(1);
        connection
            .transactions
            .insert(id, Transaction::new(&self.tree, self.clock));
        Ok(format!("{id}\0").into_bytes())
    }

    fn end_transaction(&mut self, conn: ConnId, who: Actor, tx: u32, payload: &[u8], events: &mut Events) -> Answer {
        let is_commit = match only_string(payload)? {
            b"T" => true,
            b"F" => false,
            _ => return Err(ErrorCode::EINVAL),
        };
        let connection = self.conns.get_mut(&conn).ok_or(ErrorCode::EIO)?;
        connection.transaction(tx, self.limits.transactions, || {
            Transaction::stale(&self.tree, self.clock)
        })?;
        let transaction = connection.transactions.remove(&tx).ok_or(ErrorCode::ENOENT)?;
        if is_commit {
            self.clock += 1;
            let ops = transaction.changes().to_vec();
            events.changes = transaction.commit(&mut self.tree, who, &self.limits, self.clock)?;
            ops.into_iter().for_each(|op| self.note(|| Record::Change { who, op }));
        }
        ok()
    }

    fn watch(&mut self, conn: ConnId, who: Actor, payload: &[u8], events: &mut Events) -> Answer {
        let mut words = terminated_strings(payload)?;
        let (name, token) = (
            words.next().ok_or(ErrorCode::EINVAL)?,
            words.next().ok_or(ErrorCode::EINVAL)?,
        );
        let depth = words.next().map(number::<u32>).transpose()?;
        let (kind, text) = path::check(name).map_err(|_| ErrorCode::EINVAL)?;
        let path: Arc<str> = if kind == Kind::Special {
            text.into()
        } else {
            absolute(who, name)?
        };
        if kind == Kind::Special && (event_of(text).is_none() || depth.is_some_and(|depth| depth > 1)) {
            return Err(ErrorCode::EINVAL);
        }
        let base_len = if kind == Kind::Relative {
            path.len() - text.len()
        } else {
            0
        };
        // Its events must fit into a message.
        if text.len() + token.len() + 2 > PAYLOAD_MAX {
            return Err(ErrorCode::E2BIG);
        }
        if self.watches.find(conn, &path, token).is_some() {
            return Err(ErrorCode::EEXIST);
        }
        if !who.is_privileged() && exceeds(self.watches.of(conn).len() + 1, self.limits.watches) {
            return Err(ErrorCode::E2BIG);
        }
        let watch = Watch {
            conn,
            path: path.clone(),
            base_len,
            token: token.into(),
            depth,
        };
        if let Some(domid) = self.owner_of_ring(conn) {
            self.note(|| watch_record(domid, &watch));
        }
        let id = self.watches.add(watch);
        events.first.push((id, path));
        ok()
    }

    fn unwatch(&mut self, conn: ConnId, who: Actor, payload: &[u8]) -> Answer {
        let mut words = terminated_strings(payload)?;
        let (name, token) = (
            words.next().ok_or(ErrorCode::EINVAL)?,
            words.next().ok_or(ErrorCode::EINVAL)?,
        );
        let (kind, text) = path::check(name).map_err(|_| ErrorCode::EINVAL)?;
        let path: Arc<str> = if kind == Kind::Special {
            text.into()
        } else {
            absolute(who, name)?
        };
        let id = self.watches.find(conn, &path, token).ok_or(ErrorCode::ENOENT)?;
        self.watches.remove(id);
        if let Some(domid) = self.owner_of_ring(conn) {
            let token = token.into();
            self.note(|| Record::Unwatch { domid, path, token });
        }
        if let Some(connection) = self.conns.get_mut(&conn) {
            connection.outbox.drop_events_of(id);
        }
        ok()
    }

    fn introduce(&mut self, who: Actor, payload: &[u8], world: &mut dyn World, events: &mut Events) -> Answer {
        if !who.is_privileged() {
            return Err(ErrorCode::EACCES);
        }
        let mut words = terminated_strings(payload)?;
        let mut next = || words.next().ok_or(ErrorCode::EINVAL);
        let domid = real_domid(next()?)?;
        // The frame is a signed number for historical reasons.
        let gfn = number::<i64>(next()?)? as u64;
        let port: u32 = number(next()?)?;
        if port == 0 {
            return Err(ErrorCode::EINVAL);
        }
        let known = self.domains.get(&domid).and_then(|domain| domain.conn);
        let conn = match known {
            Some(conn) => conn,
            None => self.add_connection(Actor { domid, target: None }, Duration::ZERO),
        };
        if let Err(code) = world.attach(domid, conn, gfn, port) {
            if known.is_none() {
                self.disconnect(conn);
            }
            return Err(code);
        }
        if known.is_none() {
            self.husks.remove(&domid);
            self.domains.insert(
                domid,
                Domain {
                    conn: Some(conn),
                    is_shut_down: false,
                    ring: None,
                },
            );
            events.special.push((INTRODUCE_DOMAIN, domid));
        }
        if let Some(domain) = self.domains.get_mut(&domid) {
            domain.ring = Some((gfn, port));
        }
        self.note(|| Record::Introduce { domid, gfn, port });
        ok()
    }

    fn set_target(&mut self, who: Actor, payload: &[u8]) -> Answer {
        if !who.is_privileged() {
            return Err(ErrorCode::EACCES);
        }
        let [domid, target] = exact_strings(payload)?;
        let (domid, target) = (real_domid(domid)?, real_domid(target)?);
        if !self.is_introduced(target) {
            return Err(ErrorCode::ENOENT);
        }
        let conn = self
            .domains
            .get(&domid)
            .and_then(|domain| domain.conn)
            .ok_or(ErrorCode::ENOENT)?;
        self.conns.get_mut(&conn).ok_or(ErrorCode::ENOENT)?.actor.target = Some(target);
        self.note(|| Record::Target { domid, target });
        ok()
    }

    fn privileged_domid(&self, who: Actor, payload: &[u8]) -> Result<u16, ErrorCode> {
        if who.is_privileged() {
            real_domid(only_string(payload)?)
        } else {
            Err(ErrorCode::EACCES)
        }
    }

    /// Lets go of a domain: its connection, its nodes, its name in others' permissions.
    fn forget(&mut self, domid: u16, world: &mut dyn World, events: &mut Events) {
        if let Some(domain) = self.domains.remove(&domid) {
            if let Some(conn) = domain.conn {
                world.detach(domid);
                self.disconnect(conn);
            }
            events.special.push((RELEASE_DOMAIN, domid));
        }
        for connection in self.conns.values_mut() {
            if connection.actor.target == Some(domid) {
                connection.actor.target = None;
            }
        }
        self.forget_in_event_perms(domid);
        self.clock += 1;
        self.note(|| Record::Forget { domid });
        events.changes.extend(self.tree.forget_domain(domid, self.clock));
    }

    /// Strikes a domain that is gone from the permissions of events.
    pub(super) fn forget_in_event_perms(&mut self, domid: u16) {
        for perms in self.special_perms.values_mut() {
            let is_kept = |(i, entry): &(usize, &Permission)| *i == 0 || entry.domid != domid;
            *perms = perms
                .iter()
                .enumerate()
                .filter(is_kept)
                .map(|(_, entry)| *entry)
                .collect();
        }
    }

    fn special_perms(&self, event: &str) -> Arc<[Permission]> {
        let own = self.special_perms.get(event);
        // What is set for all domains holds for each, unless that one has its own.
        let general = || event.split_once('/').and_then(|(name, _)| self.special_perms.get(name));
        own.or_else(general)
            .cloned()
            .unwrap_or_else(|| [Permission::new(Rights::None, 0)].into())
    }

    /// Puts events into the outboxes of those who watch and may know; says how many.
    pub(super) fn tell(&mut self, events: Events) -> usize {
        let mut told = 0;
        for (id, path) in events.first {
            told += self.push(id, &path, |_| true);
        }
        for change in &events.changes {
            for id in self.watches.covering(&change.path) {
                told += self.push(id, &change.path, |who| {
                    may_know(who, change.before.as_deref(), change.after.as_deref())
                });
            }
            if change.after.is_none()
                && let Some(removed) = &change.before
            {
                for (path, id) in self.watches.below(&change.path) {
                    let node = descend(removed, &path[change.path.len()..]);
                    told += self.push(id, &path, |who| node.is_some() && may_know(who, node, None));
                }
            }
        }
        for (event, domid) in events.special {
            told += self.tell_special(event, domid);
        }
        told
    }

    fn tell_special(&mut self, event: &str, domid: u16) -> usize {
        let one: Arc<str> = format!("{event}/{domid}").into();
        let all: Arc<str> = event.into();
        let (perms, perms_of_one) = (self.special_perms(event), self.special_perms(&one));
        let mut told = 0;
        for id in self.watches.exactly(event) {
            let wants_domid = self.watches.get(id).is_some_and(|watch| watch.depth == Some(1));
            let path = if wants_domid { &one } else { &all };
            told += self.push(id, path, |who| who.rights(&perms).may_read());
        }
        for id in self.watches.exactly(&one) {
            told += self.push(id, &one, |who| who.rights(&perms_of_one).may_read());
        }
        told
    }

    fn push(&mut self, id: super::watches::WatchId, path: &Arc<str>, may: impl FnOnce(Actor) -> bool) -> usize {
        let Some(watch) = self.watches.get(id) else { return 0 };
        let Some(connection) = self.conns.get_mut(&watch.conn) else {
            return 0;
        };
        if !may(connection.actor) {
            return 0;
        }
        connection
            .outbox
            .event(id, watch, path, !connection.actor.is_privileged());
        self.dirty.insert(watch.conn);
        1
    }
}

/// What a request made happen, to be told after it is answered.
#[derive(Default)]
pub(super) struct Events {
    pub(super) first: Vec<(super::watches::WatchId, Arc<str>)>,
    changes: Vec<Change>,
    special: Vec<(&'static str, u16)>,
}

/// Whoever may read the node before or after may know that it changed.
fn may_know(who: Actor, before: Option<&Node>, after: Option<&Node>) -> bool {
    [before, after]
        .into_iter()
        .flatten()
        .any(|node| who.rights(&node.perms).may_read())
}

fn descend<'a>(node: &'a Node, below: &str) -> Option<&'a Node> {
    path::components(below).try_fold(node, |node, name| node.child(name))
}

fn listing(node: &Node) -> Vec<u8> {
    node.child_names()
        .flat_map(|name| [name.as_bytes(), &[0]])
        .flatten()
        .copied()
        .collect()
}

fn ok() -> Answer {
    Ok(b"OK\0".to_vec())
}

/// The path of a node as a client sent it, made absolute.
fn absolute(who: Actor, name: &[u8]) -> Result<Arc<str>, ErrorCode> {
    match path::check(name) {
        Ok((Kind::Absolute, text)) => Ok(text.into()),
        Ok((Kind::Relative, text)) => Ok(format!("{}/{text}", path::domain_path(who.domid)).into()),
        // An event is no node, and malformed is malformed.
        Ok((Kind::Special, _)) | Err(_) => Err(ErrorCode::EINVAL),
    }
}

/// The event's name, if it is one: `Err` if it starts like one and is none.
fn special(name: &[u8]) -> Result<Option<&str>, ErrorCode> {
    match path::check(name) {
        Ok((Kind::Special, text)) => event_of(text).map(|_| Some(text)).ok_or(ErrorCode::EINVAL),
        Ok(_) => Ok(None),
        Err(_) => Err(ErrorCode::EINVAL),
    }
}

/// The event that a special name is about.
fn event_of(text: &str) -> Option<&'static str> {
    let (event, domid) = text
        .split_once('/')
        .map_or((text, None), |(event, domid)| (event, Some(domid)));
    if domid.is_some_and(|domid| real_domid(domid.as_bytes()).is_err()) || text.len() > REL_PATH_MAX {
        return None;
    }
    [INTRODUCE_DOMAIN, RELEASE_DOMAIN]
        .into_iter()
        .find(|known| *known == event)
}

/// The one NUL-terminated string that the payload is.
fn only_string(payload: &[u8]) -> Result<&[u8], ErrorCode> {
    exact_strings::<1>(payload).map(|[only]| only)
}

/// The strings of a payload that must have so many.
fn exact_strings<const N: usize>(payload: &[u8]) -> Result<[&[u8]; N], ErrorCode> {
    let all: Vec<&[u8]> = terminated_strings(payload)?.collect();
    all.try_into().map_err(|_| ErrorCode::EINVAL)
}

fn terminated_strings(payload: &[u8]) -> Result<impl Iterator<Item = &[u8]>, ErrorCode> {
    if payload.ends_with(&[0]) {
        Ok(strings(payload))
    } else {
        Err(ErrorCode::EINVAL)
    }
}

fn number<T: std::str::FromStr>(text: &[u8]) -> Result<T, ErrorCode> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(ErrorCode::EINVAL)
}

fn domid_of(text: &[u8]) -> Result<u16, ErrorCode> {
    number(text)
}

/// The id of a domain that is not Domain 0 and none of the reserved ones.
fn real_domid(text: &[u8]) -> Result<u16, ErrorCode> {
    let domid: u16 = number(text)?;
    if (1..0x7ff0).contains(&domid) {
        Ok(domid)
    } else {
        Err(ErrorCode::EINVAL)
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
