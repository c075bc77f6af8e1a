//! Transactions: a snapshot to work on, and a list of what it depends on.
//!
//! Reads and writes happen on the snapshot. At the end, everything that was looked at must be as old in the
//! live tree as it was in the snapshot; then the changes are done again on the live tree, in order. Two
//! transactions that add different children to one directory do not conflict, unless one listed it.

use super::limits::{Limits, exceeds};
use super::tree::{Actor, Aspect, Change, Node, Op, Tree};
use ferroxen_xenstore_wire::{ErrorCode, path};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Bytes that the changes of one unprivileged transaction may take.
const LOG_BYTES: usize = 256 * 1024;

/// An open transaction.
#[derive(Clone, Debug)]
pub struct Transaction {
    base: Tree,
    view: Tree,
    log: Vec<Op>,
    log_bytes: usize,
    /// What the log did to the snapshot; for privileged ones only, since it keeps every version of a node in memory.
    done: Vec<Change>,
    depends: BTreeSet<(Arc<str>, Aspect)>,
    /// The clock when the snapshot was taken.
    started: u64,
    /// It took so long that its snapshot was let go; it cannot be committed any more.
    is_stale: bool,
}

impl Transaction {
    /// Starts from the tree as it is now.
    pub fn new(tree: &Tree, clock: u64) -> Transaction {
        Transaction {
            base: tree.clone(),
            view: tree.clone(),
            log: vec![],
            log_bytes: 0,
            done: vec![],
            depends: BTreeSet::new(),
            started: clock,
            is_stale: false,
        }
    }

    /// One that cannot be committed any more: whoever began it has to begin again.
    pub fn stale(tree: &Tree, clock: u64) -> Transaction {
        Transaction {
            is_stale: true,
            ..Transaction::new(tree, clock)
        }
    }

    /// What it changes, in order.
    pub fn changes(&self) -> &[Op] {
        &self.log
    }

    /// Lets go of an old snapshot, which keeps old versions of nodes in memory. The transaction goes on with a
    /// new one, and its commit will be `EAGAIN`.
    pub fn refresh_if_older(&mut self, than: u64, tree: &Tree, clock: u64) {
        if self.started < than {
            *self = Transaction::stale(tree, clock);
        }
    }

    /// Reads a node, remembering that it was looked at.
    pub fn read(&mut self, path: &str, aspect: Aspect, who: Actor, limits: &Limits) -> Result<Arc<Node>, ErrorCode> {
        self.depend(path, Aspect::Itself);
        if aspect != Aspect::Itself {
            self.depend(path, aspect);
        }
        self.check_size(who, limits)?;
        self.view.read(path, who).cloned()
    }

    /// Changes a node in the snapshot, remembering what that depended on.
    pub fn apply(&mut self, op: Op, who: Actor, limits: &Limits, clock: u64) -> Result<(), ErrorCode> {
        self.depend_for(&op);
        self.log_bytes += op.size();
        self.check_size(who, limits)?;
        let change = self.view.apply(&op, who, limits, clock)?;
        if who.is_privileged() {
            self.done.extend(change);
        }
        self.log.push(op);
        Ok(())
    }

    /// Does the changes on the live tree, or says `EAGAIN` and leaves it alone. If nobody else has changed that, they
    /// are done already.
    pub fn commit(self, live: &mut Tree, who: Actor, limits: &Limits, clock: u64) -> Result<Vec<Change>, ErrorCode> {
        let is_current = |(path, aspect): &(Arc<str>, Aspect)| live.age(path, *aspect) == self.base.age(path, *aspect);
        if !self.is_stale && who.is_privileged() && live.is_same(&self.base) {
            *live = self.view;
            return Ok(self.done);
        }
        if self.is_stale || !self.depends.iter().all(is_current) {
            return Err(ErrorCode::EAGAIN);
        }
        let mut tree = live.clone();
        let mut changes = vec![];
        for op in &self.log {
            changes.extend(tree.apply(op, who, limits, clock)?);
        }
        *live = tree;
        Ok(changes)
    }

    fn depend_for(&mut self, op: &Op) {
        let path = op.path().clone();
        match self.view.first_missing(&path) {
            // Making something depends on what is missing, and on the permissions that it inherits.
            Some((missing, parent)) => {
                self.depend(missing, Aspect::Itself);
                self.depend(parent, Aspect::Itself);
            }
            None if matches!(op, Op::Remove(_)) => {
                self.depend(&path, Aspect::Below);
                if let Some(parent) = path::parent(&path) {
                    self.depend(parent, Aspect::Itself);
                }
            }
            None => self.depend(&path, Aspect::Itself),
        }
    }

    fn depend(&mut self, path: &str, aspect: Aspect) {
        self.depends.insert((path.into(), aspect));
    }

    fn check_size(&self, who: Actor, limits: &Limits) -> Result<(), ErrorCode> {
        let is_too_big = exceeds(self.depends.len(), limits.transaction_nodes)
            || exceeds(self.log.len(), limits.transaction_nodes)
            || self.log_bytes > LOG_BYTES;
        if is_too_big && !who.is_privileged() {
            Err(ErrorCode::ENOSPC)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferroxen_xenstore_wire::{Permission, Rights};

    const DOM0: Actor = Actor::PRIVILEGED;

    fn op(path: &str, value: &str) -> Op {
        Op::Write(path.into(), value.as_bytes().into())
    }

    fn live_with(paths: &[&str]) -> Tree {
        let mut tree = Tree::new();
        for path in paths {
            tree.apply(&op(path, "old"), DOM0, &Limits::default(), 1).unwrap();
        }
        tree
    }

    fn apply(tree: &mut Tree, operation: Op, clock: u64) {
        tree.apply(&operation, DOM0, &Limits::default(), clock).unwrap();
    }

    fn commit(transaction: Transaction, live: &mut Tree) -> Result<usize, ErrorCode> {
        transaction
            .commit(live, DOM0, &Limits::default(), 99)
            .map(|changes| changes.len())
    }

    #[test]
    fn changes_show_only_after_the_commit() {
        let mut live = live_with(&["/a"]);
        let mut tx = Transaction::new(&live, 1);
        tx.apply(op("/a", "new"), DOM0, &Limits::default(), 2).unwrap();
        assert_eq!(
            &*tx.read("/a", Aspect::Itself, DOM0, &Limits::default()).unwrap().value,
            b"new"
        );
        assert_eq!(&*live.get("/a").unwrap().value, b"old");
        assert_eq!(commit(tx, &mut live), Ok(1));
        assert_eq!(&*live.get("/a").unwrap().value, b"new");
    }

    #[test]
    fn a_quiet_tree_gets_what_a_busy_one_does() {
        let quiet = live_with(&["/a", "/b/c"]);
        let mut busy = quiet.clone();
        apply(&mut busy, op("/other", ""), 2);
        let mut tx = Transaction::new(&quiet, 2);
        for operation in [
            op("/b/new", "1"),
            Op::Remove("/a".into()),
            op("/b/c", "2"),
            Op::Mkdir("/b/c".into()),
        ] {
            tx.apply(operation, DOM0, &Limits::default(), 3).unwrap();
        }
        let outcome = |mut live: Tree| {
            let changes = tx.clone().commit(&mut live, DOM0, &Limits::default(), 9).unwrap();
            let told: Vec<_> = changes
                .iter()
                .map(|change| (change.path.clone(), change.before.is_some(), change.after.is_some()))
                .collect();
            live.audit().unwrap();
            let value = |path: &str| live.get(path).map(|node| node.value.to_vec());
            (told, ["/a", "/b/c", "/b/new"].map(value))
        };
        assert_eq!(outcome(quiet), outcome(busy));
    }

    #[test]
    fn what_was_read_must_not_have_changed() {
        let mut live = live_with(&["/a", "/b"]);
        let mut tx = Transaction::new(&live, 1);
        tx.read("/a", Aspect::Itself, DOM0, &Limits::default()).unwrap();
        tx.apply(op("/b", "new"), DOM0, &Limits::default(), 2).unwrap();
        apply(&mut live, op("/a", "meanwhile"), 3);
        assert_eq!(commit(tx, &mut live), Err(ErrorCode::EAGAIN));
        assert_eq!(&*live.get("/b").unwrap().value, b"old");
    }

    /// How many writes of so many bytes to one node a guest's transaction takes; a hundred are tried.
    fn writes_taken(limits: &Limits, bytes: usize) -> usize {
        let mut live = live_with(&["/a"]);
        let guests = [Permission::new(Rights::None, 5)];
        apply(&mut live, Op::SetPerms("/a".into(), guests.into()), 2);
        let guest = Actor { domid: 5, target: None };
        let mut tx = Transaction::new(&live, 2);
        let write = || op("/a", &"x".repeat(bytes));
        (0..100)
            .take_while(|_| tx.apply(write(), guest, limits, 3).is_ok())
            .count()
    }

    #[test]
    fn a_guests_transaction_takes_so_many_changes_and_bytes() {
        let unlimited = Limits::NONE;
        let three = Limits {
            transaction_nodes: 3,
            ..unlimited
        };
        assert_eq!(writes_taken(&unlimited, 1), 100);
        assert!(writes_taken(&three, 1) <= 4);
        assert!(writes_taken(&unlimited, 4000) <= LOG_BYTES / 4000);
    }

    #[test]
    fn what_was_not_there_must_still_not_be() {
        let mut live = live_with(&["/a"]);
        let mut tx = Transaction::new(&live, 1);
        assert!(tx.read("/a/lock", Aspect::Itself, DOM0, &Limits::default()).is_err());
        apply(&mut live, op("/a/lock", ""), 3);
        assert_eq!(commit(tx, &mut live), Err(ErrorCode::EAGAIN));
    }

    #[test]
    fn neighbours_do_not_conflict_unless_one_listed_the_directory() {
        let mut live = live_with(&["/dir"]);
        let (mut first, mut second, mut lister) = (
            Transaction::new(&live, 1),
            Transaction::new(&live, 1),
            Transaction::new(&live, 1),
        );
        lister.read("/dir", Aspect::Children, DOM0, &Limits::default()).unwrap();
        for (tx, path) in [(&mut first, "/dir/1"), (&mut second, "/dir/2"), (&mut lister, "/dir/3")] {
            tx.apply(op(path, ""), DOM0, &Limits::default(), 2).unwrap();
        }
        assert_eq!(commit(first, &mut live), Ok(1));
        assert_eq!(commit(second, &mut live), Ok(1));
        assert_eq!(commit(lister, &mut live), Err(ErrorCode::EAGAIN));
    }

    #[test]
    fn removing_a_directory_conflicts_with_any_change_below_it() {
        let mut live = live_with(&["/dir/a/b", "/other"]);
        let mut tx = Transaction::new(&live, 1);
        tx.apply(Op::Remove("/dir".into()), DOM0, &Limits::default(), 2)
            .unwrap();
        let quiet = tx.clone();
        apply(&mut live, op("/other", "x"), 3);
        assert_eq!(commit(quiet, &mut live.clone()), Ok(1));
        apply(&mut live, op("/dir/a/b", "x"), 4);
        assert_eq!(commit(tx, &mut live), Err(ErrorCode::EAGAIN));
    }

    #[test]
    fn a_new_node_conflicts_with_a_change_of_what_it_inherits() {
        let mut live = live_with(&["/dir"]);
        let mut tx = Transaction::new(&live, 1);
        tx.apply(op("/dir/a/b", ""), DOM0, &Limits::default(), 2).unwrap();
        apply(&mut live, op("/dir/a", ""), 3);
        assert_eq!(commit(tx, &mut live), Err(ErrorCode::EAGAIN));
    }

    #[test]
    fn a_transaction_that_takes_too_long_must_be_tried_again() {
        let mut live = live_with(&["/a"]);
        let mut tx = Transaction::new(&live, 5);
        tx.apply(op("/b", ""), DOM0, &Limits::default(), 6).unwrap();
        tx.refresh_if_older(5, &live, 10);
        assert!(tx.read("/b", Aspect::Itself, DOM0, &Limits::default()).is_ok());
        tx.refresh_if_older(6, &live, 10);
        assert!(tx.read("/a", Aspect::Itself, DOM0, &Limits::default()).is_ok());
        assert_eq!(commit(tx, &mut live), Err(ErrorCode::EAGAIN));
        assert!(live.get("/b").is_none());
    }
}
