//! The tree of nodes: a persistent data structure, so that a snapshot costs nothing.
//!
//! A change copies the nodes from the root down to what changes and shares all the rest. Each node remembers
//! when it last changed, by a clock that counts changes: of its own value or permissions, of its list of
//! children, of anything at or below it. Transactions compare these to find conflicts.
//!
//! When a domain ends, its nodes go, and its name from the permissions of all others. To find them without looking at
//! every node, each knows whom the permissions at or below it may name: a bit for a domain, which others share.

use super::limits::{Limits, exceeds};
use ferroxen_xenstore_wire::{ErrorCode, Permission, Rights, path};
use imbl::OrdMap;
use std::ops::Bound;
use std::sync::Arc;

/// Who acts: a domain, and the one it may act for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Actor {
    /// The domain.
    pub domid: u16,
    /// The domain whose device model it is, if it is one.
    pub target: Option<u16>,
}

impl Actor {
    /// Domain 0 and whoever speaks through our socket.
    pub const PRIVILEGED: Actor = Actor { domid: 0, target: None };

    /// Whether nothing is refused to it.
    pub fn is_privileged(self) -> bool {
        self.domid == 0
    }

    fn is(self, domid: u16) -> bool {
        self.domid == domid || self.target == Some(domid)
    }

    /// Whether it owns what has these permissions.
    pub fn owns(self, perms: &[Permission]) -> bool {
        self.is_privileged() || perms.first().is_some_and(|owner| self.is(owner.domid))
    }

    /// What it may do with what has these permissions.
    pub fn rights(self, perms: &[Permission]) -> Rights {
        if self.owns(perms) {
            return Rights::Both;
        }
        let Some((default, exceptions)) = perms.split_first() else {
            return Rights::None;
        };
        match exceptions.iter().find(|entry| self.is(entry.domid)) {
            Some(entry) => entry.rights,
            None => default.rights,
        }
    }
}

/// One node. Cloning shares everything.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its value.
    pub value: Arc<[u8]>,
    /// Who may do what with it; the first entry names the owner.
    pub perms: Arc<[Permission]>,
    children: OrdMap<Arc<str>, Arc<Node>>,
    /// Bytes of the children's names, each with its NUL.
    names_len: usize,
    changed: u64,
    children_changed: u64,
    changed_below: u64,
    /// Whom permissions at or below it may name, by [`bit`]. A bit stays when its reason has gone.
    named: u64,
}

/// The bit that stands for a domain.
fn bit(domid: u16) -> u64 {
    1 << (domid % 64)
}

fn bits(perms: &[Permission]) -> u64 {
    perms.iter().fold(0, |bits, entry| bits | bit(entry.domid))
}

impl Node {
    fn new(value: Arc<[u8]>, perms: Arc<[Permission]>, clock: u64) -> Node {
        Node {
            named: bits(&perms),
            value,
            perms,
            children: OrdMap::new(),
            names_len: 0,
            changed: clock,
            children_changed: clock,
            changed_below: clock,
        }
    }

    /// Whose it is.
    pub fn owner(&self) -> u16 {
        self.perms.first().map_or(0, |owner| owner.domid)
    }

    /// The children's names, in order.
    pub fn child_names(&self) -> impl Iterator<Item = &str> {
        self.children.keys().map(|name| &**name)
    }

    /// The children with their names, in order.
    pub fn children(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.children.iter().map(|(name, node)| (&**name, &**node))
    }

    /// Those whose names come after `name`.
    pub fn children_after<'a>(&'a self, name: &str) -> impl Iterator<Item = (&'a str, &'a Node)> {
        let behind = self.children.range::<_, str>((Bound::Excluded(name), Bound::Unbounded));
        behind.map(|(name, node)| (&**name, &**node))
    }

    /// The child of that name.
    pub fn child(&self, name: &str) -> Option<&Node> {
        self.children.get(name).map(|child| &**child)
    }

    /// A number that changes whenever the list of children does.
    pub fn listing_generation(&self) -> u64 {
        self.children_changed
    }

    /// Bytes that count against the node-size limit.
    fn size(&self) -> usize {
        self.value.len() + self.names_len + size_of_val(&*self.perms)
    }
}

/// A change that one may ask for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// Set the value; make the node and its parents if they are missing.
    Write(Arc<str>, Arc<[u8]>),
    /// Make the node and its parents if they are missing.
    Mkdir(Arc<str>),
    /// Remove the node and all below it.
    Remove(Arc<str>),
    /// Set the permissions.
    SetPerms(Arc<str>, Arc<[Permission]>),
}

impl Op {
    /// The node that it is about.
    pub fn path(&self) -> &Arc<str> {
        match self {
            Op::Write(path, _) | Op::Mkdir(path) | Op::Remove(path) | Op::SetPerms(path, _) => path,
        }
    }

    /// Bytes that remembering it takes, roughly.
    pub fn size(&self) -> usize {
        self.path().len()
            + match self {
                Op::Write(_, value) => value.len(),
                Op::SetPerms(_, perms) => size_of_val(&**perms),
                Op::Mkdir(_) | Op::Remove(_) => 0,
            }
    }
}

/// Something that happened to a node, for its watchers.
#[derive(Clone, Debug)]
pub struct Change {
    /// Where.
    pub path: Arc<str>,
    /// The node before, with all that was below it.
    pub before: Option<Arc<Node>>,
    /// The node after; `None` if it was removed.
    pub after: Option<Arc<Node>>,
}

/// Which of a node's three ages a transaction depends on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Aspect {
    /// Its value and permissions, or that it does not exist.
    Itself,
    /// Its list of children.
    Children,
    /// Anything at or below it.
    Below,
}

/// A state of the whole store. Cloning takes a snapshot.
#[derive(Clone, Debug)]
pub struct Tree {
    root: Arc<Node>,
    /// Nodes that each domain owns.
    owned: OrdMap<u16, u32>,
}

impl Tree {
    /// A tree with just a root, which is Domain 0's and closed to all others.
    pub fn new() -> Tree {
        let root = Node::new([].into(), [Permission::new(Rights::None, 0)].into(), 0);
        Tree {
            root: Arc::new(root),
            owned: OrdMap::unit(0, 1),
        }
    }

    /// Whether it is that very state.
    pub fn is_same(&self, other: &Tree) -> bool {
        Arc::ptr_eq(&self.root, &other.root)
    }

    /// The node at an absolute path.
    pub fn get(&self, path: &str) -> Option<&Arc<Node>> {
        path::components(path).try_fold(&self.root, |node, name| node.children.get(name))
    }

    /// Nodes that a domain owns.
    pub fn owned_by(&self, domid: u16) -> u32 {
        self.owned.get(&domid).copied().unwrap_or(0)
    }

    /// Every domain that owns nodes.
    pub fn owners(&self) -> impl Iterator<Item = u16> {
        self.owned.keys().copied()
    }

    /// Nodes in all.
    pub fn len(&self) -> usize {
        self.owned.values().map(|count| *count as usize).sum()
    }

    /// Never: there is always a root.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// When an aspect of a path last changed; `None` if there is no such node.
    pub fn age(&self, path: &str, aspect: Aspect) -> Option<u64> {
        self.get(path).map(|node| match aspect {
            Aspect::Itself => node.changed,
            Aspect::Children => node.children_changed,
            Aspect::Below => node.changed_below,
        })
    }

    /// The node at a path, if `who` may read it.
    pub fn read(&self, path: &str, who: Actor) -> Result<&Arc<Node>, ErrorCode> {
        match self.get(path) {
            Some(node) if who.rights(&node.perms).may_read() => Ok(node),
            Some(_) => Err(ErrorCode::EACCES),
            None if who.rights(&self.nearest(path).1.perms).may_read() => Err(ErrorCode::ENOENT),
            // Whoever may not look there may not learn what is not there.
            None => Err(ErrorCode::EACCES),
        }
    }

    /// The deepest node on the way to a path, and its path.
    fn nearest<'a>(&self, path: &'a str) -> (&'a str, &Arc<Node>) {
        let (mut node, mut len) = (&self.root, 0);
        for name in path::components(path) {
            let Some(child) = node.children.get(name) else { break };
            // Before each component there is one slash.
            (node, len) = (child, len + 1 + name.len());
        }
        (path.get(..len).filter(|path| !path.is_empty()).unwrap_or("/"), node)
    }

    /// The first path on the way to `path` that does not exist, and its parent, which does.
    pub fn first_missing<'a>(&self, path: &'a str) -> Option<(&'a str, &'a str)> {
        let (nearest, _) = self.nearest(path);
        let below = path.strip_prefix(nearest)?.trim_start_matches('/');
        let name = path::components(below).next()?;
        let missing = path.len() - below.len() + name.len();
        Some((path.get(..missing)?, nearest))
    }

    /// Does one change for `who`, or says why not and leaves everything as it was. `None`: nothing to do.
    pub fn apply(&mut self, op: &Op, who: Actor, limits: &Limits, clock: u64) -> Result<Option<Change>, ErrorCode> {
        match op {
            Op::Write(path, value) => self.write(path, Some(value), who, limits, clock).map(Some),
            Op::Mkdir(path) if self.get(path).is_some() => self.check_mkdir_of_existing(path, who),
            Op::Mkdir(path) => self.write(path, None, who, limits, clock).map(Some),
            Op::Remove(path) => self.remove(path, who, clock),
            Op::SetPerms(path, perms) => self.set_perms(path, perms, who, limits, clock).map(Some),
        }
    }

    fn check_mkdir_of_existing(&self, path: &str, who: Actor) -> Result<Option<Change>, ErrorCode> {
        match self.get(path) {
            Some(node) if !who.rights(&node.perms).may_write() => Err(ErrorCode::EACCES),
            _ => Ok(None),
        }
    }

    fn write(
        &mut self,
        path: &Arc<str>,
        value: Option<&Arc<[u8]>>,
        who: Actor,
        limits: &Limits,
        clock: u64,
    ) -> Result<Change, ErrorCode> {
        let (nearest, node) = self.nearest(path);
        if !who.rights(&node.perms).may_write() {
            return Err(ErrorCode::EACCES);
        }
        let before = (nearest == &**path).then(|| node.clone());
        let value = value.cloned().unwrap_or_else(|| [].into());
        let new_names: Vec<Arc<str>> = match path.strip_prefix(nearest) {
            Some(rest) => path::components(rest).map(Arc::from).collect(),
            None => return Err(ErrorCode::EIO),
        };
        let perms = inherited(&node.perms, who);
        if !who.is_privileged() {
            check_sizes(node, &new_names, &value, &perms, limits)?;
            let owned = self.owned_by(who.domid) as usize + new_names.len();
            if !new_names.is_empty() && exceeds(owned, limits.nodes) {
                return Err(ErrorCode::ENOSPC);
            }
        }
        let (owner, count) = (perms.first().map_or(0, |owner| owner.domid), new_names.len());
        let named = bits(&perms);
        edit(&mut self.root, path::components(nearest), (clock, named), |node| {
            if new_names.is_empty() {
                node.value = value;
                node.changed = clock;
            } else {
                grow(node, &new_names, value, &perms, clock);
            }
        });
        self.count(owner, count as i64);
        Ok(Change {
            path: path.clone(),
            before,
            after: self.get(path).cloned(),
        })
    }

    fn remove(&mut self, path: &Arc<str>, who: Actor, clock: u64) -> Result<Option<Change>, ErrorCode> {
        let Some((parent, name)) = path.rsplit_once('/').filter(|(_, name)| !name.is_empty()) else {
            return Err(ErrorCode::EINVAL);
        };
        let parent = if parent.is_empty() { "/" } else { parent };
        let Some(node) = self.get(path) else {
            // No error if it is not there, but its parent must be.
            return match self.nearest(path) {
                (_, node) if !who.rights(&node.perms).may_write() => Err(ErrorCode::EACCES),
                (nearest, _) if nearest != parent => Err(ErrorCode::ENOENT),
                _ => Ok(None),
            };
        };
        if !who.rights(&node.perms).may_write() {
            return Err(ErrorCode::EACCES);
        }
        let removed = edit(&mut self.root, path::components(parent), (clock, 0), |node| {
            let removed = node.children.remove(name);
            if removed.is_some() {
                node.names_len = node.names_len.saturating_sub(name.len() + 1);
                node.children_changed = clock;
            }
            removed
        })
        .flatten();
        let Some(removed) = removed else {
            return Err(ErrorCode::EIO);
        };
        self.uncount_all(&removed);
        Ok(Some(Change {
            path: path.clone(),
            before: Some(removed),
            after: None,
        }))
    }

    fn set_perms(
        &mut self,
        path: &Arc<str>,
        perms: &Arc<[Permission]>,
        who: Actor,
        limits: &Limits,
        clock: u64,
    ) -> Result<Change, ErrorCode> {
        let new_owner = perms.first().ok_or(ErrorCode::EINVAL)?.domid;
        let Some(node) = self.get(path) else {
            let may = who.rights(&self.nearest(path).1.perms).may_write();
            return Err(if may { ErrorCode::ENOENT } else { ErrorCode::EACCES });
        };
        if !who.owns(&node.perms) {
            return Err(ErrorCode::EACCES);
        }
        let (before, owner) = (node.clone(), node.owner());
        if !who.is_privileged() {
            if owner != new_owner {
                return Err(ErrorCode::EPERM);
            }
            let size = node.size() - size_of_val(&*node.perms) + size_of_val(&**perms);
            if exceeds(perms.len(), limits.permissions) || exceeds(size, limits.node_size) {
                return Err(ErrorCode::ENOSPC);
            }
        }
        edit(&mut self.root, path::components(path), (clock, bits(perms)), |node| {
            node.perms = perms.clone();
            node.changed = clock;
        });
        self.count(owner, -1);
        self.count(new_owner, 1);
        Ok(Change {
            path: path.clone(),
            before: Some(before),
            after: self.get(path).cloned(),
        })
    }

    /// Removes all that a gone domain owned, with what is below, and its name from all permissions.
    pub fn forget_domain(&mut self, domid: u16, clock: u64) -> Vec<Change> {
        self.take_root_from(domid, clock);
        let mut owned = vec![];
        let mut mentioned = vec![];
        find(&self.root, &mut String::new(), domid, &mut owned, &mut mentioned);
        let mut changes = vec![];
        for path in owned {
            // Cannot be refused: the paths were just found, none is the root, none is below another.
            if let Ok(Some(change)) = self.remove(&path, Actor::PRIVILEGED, clock) {
                changes.push(change);
            }
        }
        for path in mentioned {
            edit(&mut self.root, path::components(&path), (clock, 0), |node| {
                let owner = node.perms.first().copied();
                let others = node.perms.iter().skip(1).copied().filter(|entry| entry.domid != domid);
                node.perms = owner.into_iter().chain(others).collect();
                node.changed = clock;
            });
        }
        changes
    }

    /// The root outlives an owner that Domain 0 gave it, and falls back to Domain 0.
    fn take_root_from(&mut self, domid: u16, clock: u64) {
        if domid == 0 || self.root.owner() != domid {
            return;
        }
        edit(&mut self.root, path::components("/"), (clock, bit(0)), |node| {
            let (owner, others) = (node.perms.first().copied(), node.perms.iter().skip(1).copied());
            let owner = owner.map(|entry| Permission { domid: 0, ..entry });
            node.perms = owner.into_iter().chain(others).collect();
            node.changed = clock;
        });
        self.count(domid, -1);
        self.count(0, 1);
    }

    /// Counts `count` more (or fewer) nodes for a domain.
    fn count(&mut self, domid: u16, count: i64) {
        let new = i64::from(self.owned_by(domid)) + count;
        match u32::try_from(new) {
            Ok(0) | Err(_) => drop(self.owned.remove(&domid)),
            Ok(new) => drop(self.owned.insert(domid, new)),
        }
    }

    fn uncount_all(&mut self, node: &Node) {
        self.count(node.owner(), -1);
        for child in node.children.values() {
            self.uncount_all(child);
        }
    }

    /// Checks what must always be true, by counting everything anew.
    pub fn audit(&self) -> Result<(), String> {
        let mut owned = OrdMap::new();
        audit_node(&self.root, "/", &mut owned)?;
        if owned != self.owned {
            return Err(format!("nodes are owned {owned:?}, and {:?} is remembered", self.owned));
        }
        Ok(())
    }
}

impl Default for Tree {
    fn default() -> Tree {
        Tree::new()
    }
}

/// The permissions of what `who` makes below a node: the node's, but what a guest makes is its own.
fn inherited(perms: &Arc<[Permission]>, who: Actor) -> Arc<[Permission]> {
    match perms.split_first() {
        Some((owner, rest)) if !who.is_privileged() && owner.domid != who.domid => std::iter::once(Permission {
            domid: who.domid,
            ..*owner
        })
        .chain(rest.iter().copied())
        .collect(),
        _ => perms.clone(),
    }
}

/// Whether the written node, and the one that gets a new child, stay within the node-size limit.
fn check_sizes(
    nearest: &Node,
    new_names: &[Arc<str>],
    value: &[u8],
    perms: &[Permission],
    limits: &Limits,
) -> Result<(), ErrorCode> {
    let fits = match new_names.first() {
        None => !exceeds(nearest.size() - nearest.value.len() + value.len(), limits.node_size),
        Some(name) => {
            !exceeds(nearest.size() + name.len() + 1, limits.node_size)
                && !exceeds(value.len() + size_of_val(perms), limits.node_size)
        }
    };
    if fits { Ok(()) } else { Err(ErrorCode::ENOSPC) }
}

/// Hangs a chain of new nodes below `node`; the last one gets the value.
fn grow(node: &mut Node, names: &[Arc<str>], value: Arc<[u8]>, perms: &Arc<[Permission]>, clock: u64) {
    let Some((name, above)) = names.split_first() else {
        return;
    };
    let mut chain: Option<(Arc<str>, Node)> = None;
    for (i, name) in above.iter().rev().enumerate() {
        let value = if i == 0 { value.clone() } else { [].into() };
        let mut link = Node::new(value, perms.clone(), clock);
        adopt(&mut link, chain.take());
        chain = Some((name.clone(), link));
    }
    let value = if above.is_empty() { value } else { [].into() };
    let mut first = Node::new(value, perms.clone(), clock);
    adopt(&mut first, chain);
    adopt(node, Some((name.clone(), first)));
    node.children_changed = clock;
}

fn adopt(parent: &mut Node, child: Option<(Arc<str>, Node)>) {
    if let Some((name, node)) = child {
        parent.names_len += name.len() + 1;
        parent.named |= node.named;
        parent.children.insert(name, Arc::new(node));
    }
}

/// Walks down, copying what is shared, and lets `change` at the node, whose permissions may then name those of `named`.
/// `None` if there is no such node.
fn edit<'a, T>(
    node: &mut Arc<Node>,
    mut names: impl Iterator<Item = &'a str>,
    (clock, named): (u64, u64),
    change: impl FnOnce(&mut Node) -> T,
) -> Option<T> {
    let mut at = Arc::make_mut(node);
    loop {
        at.changed_below = clock;
        at.named |= named;
        match names.next() {
            None => return Some(change(at)),
            Some(name) => at = Arc::make_mut(at.children.get_mut(name)?),
        }
    }
}

/// Finds what a domain owns (not what is below that), and where else its permissions name it.
fn find(node: &Node, path: &mut String, domid: u16, owned: &mut Vec<Arc<str>>, mentioned: &mut Vec<String>) {
    if node.owner() == domid && !path.is_empty() {
        owned.push(path.as_str().into());
        return;
    }
    if node.perms.iter().skip(1).any(|entry| entry.domid == domid) {
        mentioned.push(if path.is_empty() { "/".into() } else { path.clone() });
    }
    for (name, child) in node.children.iter().filter(|(_, child)| child.named & bit(domid) != 0) {
        let len = path.len();
        path.push('/');
        path.push_str(name);
        find(child, path, domid, owned, mentioned);
        path.truncate(len);
    }
}

fn audit_node(node: &Node, path: &str, owned: &mut OrdMap<u16, u32>) -> Result<(), String> {
    *owned.entry(node.owner()).or_insert(0) += 1;
    if node.perms.is_empty() {
        return Err(format!("{path} has no owner"));
    }
    let names: usize = node.children.keys().map(|name| name.len() + 1).sum();
    if names != node.names_len {
        return Err(format!(
            "{path} has {names} bytes of names, and {} is remembered",
            node.names_len
        ));
    }
    if bits(&node.perms) & !node.named != 0 {
        return Err(format!("{path} names somebody, and does not know"));
    }
    if node.changed_below < node.changed.max(node.children_changed) {
        return Err(format!("{path} changed after anything at or below it did"));
    }
    for (name, child) in &node.children {
        let child_path = if path == "/" {
            format!("/{name}")
        } else {
            format!("{path}/{name}")
        };
        if name.is_empty() || name.contains('/') {
            return Err(format!("{child_path} has an impossible name"));
        }
        if child.named & !node.named != 0 {
            return Err(format!(
                "{child_path} may name somebody that nothing at or below {path} may"
            ));
        }
        if child.changed_below > node.changed_below {
            return Err(format!("{child_path} changed after anything at or below {path} did"));
        }
        audit_node(child, &child_path, owned)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: Actor = Actor { domid: 5, target: None };

    fn later(tree: &Tree) -> u64 {
        tree.root.changed_below + 1
    }

    fn write(tree: &mut Tree, path: &str, value: &str, who: Actor) -> Result<Change, ErrorCode> {
        let op = Op::Write(path.into(), value.as_bytes().into());
        let clock = later(tree);
        let result = tree.apply(&op, who, &Limits::default(), clock).map(Option::unwrap);
        tree.audit().unwrap();
        result
    }

    fn set_perms(tree: &mut Tree, path: &str, perms: &[(Rights, u16)], who: Actor) -> Result<(), ErrorCode> {
        let perms = perms
            .iter()
            .map(|(rights, domid)| Permission::new(*rights, *domid))
            .collect();
        let clock = later(tree);
        tree.apply(&Op::SetPerms(path.into(), perms), who, &Limits::default(), clock)
            .map(drop)
    }

    fn remove(tree: &mut Tree, path: &str, who: Actor) -> Result<bool, ErrorCode> {
        let result = tree
            .apply(&Op::Remove(path.into()), who, &Limits::default(), later(tree))
            .map(|change| change.is_some());
        tree.audit().unwrap();
        result
    }

    /// A tree in which domain 5 owns `/home`.
    fn with_home() -> Tree {
        let mut tree = Tree::new();
        write(&mut tree, "/home", "", Actor::PRIVILEGED).unwrap();
        set_perms(&mut tree, "/home", &[(Rights::None, 5)], Actor::PRIVILEGED).unwrap();
        tree
    }

    #[test]
    fn writing_makes_the_parents_and_keeps_their_values_empty() {
        let mut tree = Tree::new();
        write(&mut tree, "/a/b/c", "deep", Actor::PRIVILEGED).unwrap();
        assert_eq!(&*tree.get("/a/b/c").unwrap().value, b"deep");
        assert_eq!(&*tree.get("/a/b").unwrap().value, b"");
        assert_eq!(tree.len(), 4);
    }

    #[test]
    fn what_a_guest_makes_is_its_own_and_outsiders_cannot_look() {
        let mut tree = with_home();
        write(&mut tree, "/home/x/y", "1", GUEST).unwrap();
        assert_eq!(tree.get("/home/x").unwrap().owner(), 5);
        assert_eq!(tree.owned_by(5), 3);
        let other = Actor { domid: 6, target: None };
        assert_eq!(tree.read("/home/x", other).unwrap_err(), ErrorCode::EACCES);
        assert_eq!(tree.read("/home/nothing", other).unwrap_err(), ErrorCode::EACCES);
        assert_eq!(tree.read("/home/nothing", GUEST).unwrap_err(), ErrorCode::ENOENT);
        assert_eq!(write(&mut tree, "/home/z", "", other).unwrap_err(), ErrorCode::EACCES);
        assert_eq!(
            write(&mut tree, "/elsewhere", "", GUEST).unwrap_err(),
            ErrorCode::EACCES
        );
    }

    #[test]
    fn a_device_model_acts_for_its_guest() {
        let tree = with_home();
        assert!(
            tree.read(
                "/home",
                Actor {
                    domid: 7,
                    target: Some(5)
                }
            )
            .is_ok()
        );
        assert!(
            tree.read(
                "/home",
                Actor {
                    domid: 7,
                    target: Some(6)
                }
            )
            .is_err()
        );
    }

    #[test]
    fn only_domain_0_gives_a_node_away() {
        let mut tree = with_home();
        assert_eq!(
            set_perms(&mut tree, "/home", &[(Rights::None, 6)], GUEST),
            Err(ErrorCode::EPERM)
        );
        assert_eq!(
            set_perms(&mut tree, "/home", &[(Rights::None, 5), (Rights::Read, 6)], GUEST),
            Ok(())
        );
        assert!(tree.read("/home", Actor { domid: 6, target: None }).is_ok());
        set_perms(&mut tree, "/home", &[(Rights::Read, 0)], Actor::PRIVILEGED).unwrap();
        assert_eq!((tree.owned_by(5), tree.owned_by(0)), (0, 2));
        assert_eq!(
            set_perms(&mut tree, "/home", &[(Rights::None, 5)], GUEST),
            Err(ErrorCode::EACCES)
        );
    }

    #[test]
    fn removing_takes_all_below_and_needs_a_parent() {
        let mut tree = with_home();
        write(&mut tree, "/home/a/b", "", GUEST).unwrap();
        assert_eq!(remove(&mut tree, "/home/a", GUEST), Ok(true));
        assert_eq!(tree.owned_by(5), 1);
        assert_eq!(remove(&mut tree, "/home/a", GUEST), Ok(false));
        assert_eq!(remove(&mut tree, "/home/a/b", GUEST), Err(ErrorCode::ENOENT));
        assert_eq!(remove(&mut tree, "/", Actor::PRIVILEGED), Err(ErrorCode::EINVAL));
    }

    #[test]
    fn a_guest_stays_within_its_nodes_and_their_sizes() {
        let mut tree = with_home();
        let limits = Limits {
            nodes: 3,
            node_size: 64,
            ..Limits::default()
        };
        let mut write = |path: &str, len: usize, who| {
            tree.apply(&Op::Write(path.into(), vec![b'x'; len].into()), who, &limits, 1)
                .map(drop)
        };
        assert_eq!(write("/home/a/b/c", 0, GUEST), Err(ErrorCode::ENOSPC));
        assert_eq!(write("/home/a/b", 10, GUEST), Ok(()));
        assert_eq!(write("/home/c", 0, GUEST), Err(ErrorCode::ENOSPC));
        assert_eq!(write("/home/a", 65, GUEST), Err(ErrorCode::ENOSPC));
        assert_eq!(write("/home/a", 50, GUEST), Ok(()));
        assert_eq!(write("/home/c", 1000, Actor::PRIVILEGED), Ok(()));
    }

    #[test]
    fn names_of_children_and_permissions_count_as_a_nodes_size() {
        let mut tree = with_home();
        let limits = Limits {
            nodes: 0,
            node_size: 64,
            permissions: 0,
            ..Limits::default()
        };
        let mut apply = |op: Op| tree.apply(&op, GUEST, &limits, 1).map(drop);
        let name = |at: usize| format!("/home/{}{at}", "n".repeat(20));
        let fits = (0..9)
            .take_while(|at| apply(Op::Mkdir(name(*at).into())).is_ok())
            .count();
        assert!((1..=3).contains(&fits), "{fits} names of 22 bytes in 64");
        let perms = |count: u16| Op::SetPerms(name(0).into(), perms_for(count));
        assert_eq!(apply(perms(2)), Ok(()));
        assert_eq!(apply(perms(64)), Err(ErrorCode::ENOSPC));
    }

    /// The guest's own, and for others to read.
    fn perms_for(others: u16) -> Arc<[Permission]> {
        let owner = Permission::new(Rights::None, GUEST.domid);
        std::iter::once(owner)
            .chain((0..others).map(|at| Permission::new(Rights::Read, 100 + at)))
            .collect()
    }

    #[test]
    fn a_gone_domain_leaves_nothing_behind() {
        let mut tree = with_home();
        write(&mut tree, "/home/x", "", GUEST).unwrap();
        write(&mut tree, "/home/x/dom0s", "", Actor::PRIVILEGED).unwrap();
        set_perms(&mut tree, "/home/x/dom0s", &[(Rights::None, 0)], Actor::PRIVILEGED).unwrap();
        write(&mut tree, "/shared", "", Actor::PRIVILEGED).unwrap();
        set_perms(
            &mut tree,
            "/shared",
            &[(Rights::None, 0), (Rights::Both, 5)],
            Actor::PRIVILEGED,
        )
        .unwrap();
        let changes = tree.forget_domain(5, 9);
        tree.audit().unwrap();
        assert_eq!(changes.len(), 1);
        assert_eq!(&*changes[0].path, "/home");
        assert_eq!(tree.owned_by(5), 0);
        assert_eq!(tree.get("/shared").unwrap().perms.len(), 1);
    }

    /// Domains 5 and 69 share a bit.
    #[test]
    fn who_is_taken_for_the_gone_one_keeps_what_it_has() {
        let mut tree = with_home();
        write(&mut tree, "/away/x", "", Actor::PRIVILEGED).unwrap();
        set_perms(&mut tree, "/away/x", &[(Rights::None, 69)], Actor::PRIVILEGED).unwrap();
        tree.forget_domain(5, 9);
        tree.audit().unwrap();
        assert_eq!((tree.owned_by(5), tree.owned_by(69)), (0, 1));
        tree.forget_domain(69, 10);
        tree.audit().unwrap();
        assert_eq!((tree.owned_by(69), tree.len()), (0, 2));
    }

    #[test]
    fn a_snapshot_does_not_move() {
        let mut tree = with_home();
        let snapshot = tree.clone();
        write(&mut tree, "/home/x", "", GUEST).unwrap();
        assert!(snapshot.get("/home/x").is_none());
        assert_eq!(snapshot.owned_by(5), 1);
    }
}
