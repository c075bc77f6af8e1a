//! Who wants to hear of which paths.

use super::store::ConnId;
use ferroxen_xenstore_wire::path;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// Names a watch; never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WatchId(u64);

/// One watch.
#[derive(Clone, Debug)]
pub struct Watch {
    /// Who is told.
    pub conn: ConnId,
    /// What is watched, with all below it: an absolute path or an event's name.
    pub path: Arc<str>,
    /// Bytes that are cut off the front of reported paths: the base of a relative watch.
    pub base_len: usize,
    /// What the client recognises it by.
    pub token: Arc<[u8]>,
    /// How many levels below the path count, if not all.
    pub depth: Option<u32>,
}

impl Watch {
    /// The path as its client calls it.
    pub fn shown<'a>(&self, path: &'a str) -> &'a str {
        path.get(self.base_len..).unwrap_or(path)
    }

    /// Whether the watch covers a path so many levels below its own.
    pub fn covers(&self, levels: usize) -> bool {
        self.depth.is_none_or(|depth| levels <= depth as usize)
    }
}

/// All watches.
#[derive(Clone, Debug, Default)]
pub struct Watches {
    all: BTreeMap<WatchId, Watch>,
    by_path: BTreeMap<Arc<str>, Vec<WatchId>>,
    by_conn: BTreeMap<ConnId, Vec<WatchId>>,
    next: u64,
}

impl Watches {
    /// The watch of that name.
    pub fn get(&self, id: WatchId) -> Option<&Watch> {
        self.all.get(&id)
    }

    /// Watches of one connection.
    pub fn of(&self, conn: ConnId) -> &[WatchId] {
        self.by_conn.get(&conn).map_or(&[], |ids| ids)
    }

    /// Finds a connection's watch by path and token.
    pub fn find(&self, conn: ConnId, path: &str, token: &[u8]) -> Option<WatchId> {
        let is_it = |watch: &Watch| &*watch.path == path && &*watch.token == token;
        self.of(conn)
            .iter()
            .copied()
            .find(|id| self.all.get(id).is_some_and(is_it))
    }

    /// Adds a watch.
    pub fn add(&mut self, watch: Watch) -> WatchId {
        let id = WatchId(self.next);
        self.next += 1;
        self.by_path.entry(watch.path.clone()).or_default().push(id);
        self.by_conn.entry(watch.conn).or_default().push(id);
        self.all.insert(id, watch);
        id
    }

    /// Takes a watch away.
    pub fn remove(&mut self, id: WatchId) {
        let Some(watch) = self.all.remove(&id) else { return };
        strike(&mut self.by_path, &watch.path, id);
        strike(&mut self.by_conn, &watch.conn, id);
    }

    /// Takes all watches of a connection away.
    pub fn remove_all_of(&mut self, conn: ConnId) {
        for id in self.of(conn).to_vec() {
            self.remove(id);
        }
    }

    /// Watches at `path` or above it that cover it.
    pub fn covering(&self, path: &str) -> Vec<WatchId> {
        let mut found = vec![];
        let depth = path::components(path).count();
        let parents = path.match_indices('/').skip(1).filter_map(|(end, _)| path.get(..end));
        let itself = (path != "/").then_some(path);
        // From the root down, as long as anything is watched there or further down.
        for (level, at) in std::iter::once("/").chain(parents).chain(itself).enumerate() {
            let from_here = (Bound::Included(at), Bound::Unbounded);
            match self.by_path.range::<str, _>(from_here).next() {
                Some((watched, ids)) if **watched == *at => found.push((depth - level, ids)),
                Some((watched, _)) if watched.starts_with(at) => {}
                _ => break,
            }
        }
        // The nearest first.
        let all = found
            .into_iter()
            .rev()
            .flat_map(|(levels, ids)| ids.iter().map(move |id| (levels, *id)));
        let covers = |(levels, id): &(usize, WatchId)| self.all.get(id).is_some_and(|watch| watch.covers(*levels));
        all.filter(covers).map(|(_, id)| id).collect()
    }

    /// Watches on exactly this path or name.
    pub fn exactly(&self, path: &str) -> Vec<WatchId> {
        self.by_path.get(path).cloned().unwrap_or_default()
    }

    /// Watches on paths below `path` (not on it).
    pub fn below(&self, path: &str) -> Vec<(Arc<str>, WatchId)> {
        let start = format!("{}/", path.trim_end_matches('/'));
        let from_start = self
            .by_path
            .range::<str, _>((Bound::Included(start.as_str()), Bound::Unbounded));
        from_start
            .take_while(|(watched, _)| watched.starts_with(&start))
            .filter(|(watched, _)| watched.len() > start.len())
            .flat_map(|(watched, ids)| ids.iter().map(|id| (watched.clone(), *id)))
            .collect()
    }

    /// Watches in all.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Checks that the three ways to a watch agree; `is_live` says whether a connection is.
    pub fn audit(&self, is_live: impl Fn(ConnId) -> bool) -> Result<(), String> {
        let listed: usize = self.by_path.values().map(Vec::len).sum();
        let owned: usize = self.by_conn.values().map(Vec::len).sum();
        if listed != self.all.len() || owned != self.all.len() {
            return Err(format!(
                "{} watches, {listed} by path, {owned} by connection",
                self.all.len()
            ));
        }
        for (id, watch) in &self.all {
            let by_path = self.by_path.get(&watch.path).is_some_and(|ids| ids.contains(id));
            if !by_path || !self.of(watch.conn).contains(id) || !is_live(watch.conn) {
                return Err(format!("{watch:?} cannot be found or belongs to nobody"));
            }
        }
        Ok(())
    }
}

fn strike<K: Ord + Clone>(map: &mut BTreeMap<K, Vec<WatchId>>, key: &K, id: WatchId) {
    if let Some(ids) = map.get_mut(key) {
        ids.retain(|other| *other != id);
        if ids.is_empty() {
            map.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(path: &str, depth: Option<u32>) -> Watch {
        Watch {
            conn: ConnId(1),
            path: path.into(),
            base_len: 0,
            token: b"t".as_slice().into(),
            depth,
        }
    }

    #[test]
    fn a_watch_covers_what_is_below_it_down_to_its_depth() {
        let mut watches = Watches::default();
        let all = watches.add(watch("/a", None));
        let near = watches.add(watch("/a", Some(1)));
        let root = watches.add(watch("/", Some(0)));
        assert_eq!(watches.covering("/a/b"), [all, near]);
        assert_eq!(watches.covering("/a/b/c"), [all]);
        assert_eq!(watches.covering("/ab"), []);
        assert_eq!(watches.covering("/"), [root]);
        // Of those beside and above, none hides the one at the path itself.
        watches.add(watch("/a-b", None));
        let deep = watches.add(watch("/a/b/c/d", None));
        assert_eq!(watches.covering("/a/b/c/d"), [deep, all]);
        assert_eq!(watches.covering("/a/b/c/d/e"), [deep, all]);
    }

    #[test]
    fn below_means_below() {
        let mut watches = Watches::default();
        watches.add(watch("/a", None));
        watches.add(watch("/a-b", None));
        let deep = watches.add(watch("/a/b/c", None));
        assert_eq!(watches.below("/a"), [("/a/b/c".into(), deep)]);
        assert_eq!(watches.below("/").len(), 3);
        watches.remove(deep);
        assert!(watches.below("/a").is_empty());
        watches.audit(|_| true).unwrap();
    }
}
