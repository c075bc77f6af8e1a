//! What waits for a client to read it.
//!
//! An event that waits already is not queued again: its reader will look at the path after the last change in
//! any case. When too many wait for a guest, a watch's events are folded into one at the watched path itself.
//! So a guest that does not read costs a bounded amount of memory, and still misses nothing.

use super::limits::exceeds;
use super::watches::{Watch, WatchId};
use ferroxen_xenstore_wire::{MessageType, encode};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

/// Events that may wait for one guest before they are folded.
const EVENTS_BEFORE_FOLDING: u32 = 1024;

#[derive(Clone, Debug)]
enum Waiting {
    Reply(Vec<u8>),
    Event(WatchId, Arc<str>),
}

/// The queue towards one client.
#[derive(Clone, Debug, Default)]
pub struct Outbox {
    queue: VecDeque<Waiting>,
    events: BTreeSet<(WatchId, Arc<str>)>,
}

impl Outbox {
    /// Queues an answer.
    pub fn reply(&mut self, frame: Vec<u8>) {
        self.queue.push_back(Waiting::Reply(frame));
    }

    /// Takes the last answer back, which nobody has seen.
    pub fn take_back_reply(&mut self) {
        let last = self
            .queue
            .iter()
            .rposition(|waiting| matches!(waiting, Waiting::Reply(_)));
        last.and_then(|at| self.queue.remove(at));
    }

    /// Queues an event for a watch.
    pub fn event(&mut self, id: WatchId, watch: &Watch, path: &Arc<str>, is_guest: bool) {
        let path = if is_guest && exceeds(self.events.len() + 1, EVENTS_BEFORE_FOLDING) {
            &watch.path
        } else {
            path
        };
        if self.events.insert((id, path.clone())) {
            self.queue.push_back(Waiting::Event(id, path.clone()));
        }
    }

    /// Forgets the events of a watch that was taken away.
    pub fn drop_events_of(&mut self, id: WatchId) {
        self.events.retain(|(other, _)| *other != id);
        self.queue
            .retain(|waiting| !matches!(waiting, Waiting::Event(other, _) if *other == id));
    }

    /// Takes the next message in wire form.
    pub fn next_frame<'a>(&mut self, watch_of: impl Fn(WatchId) -> Option<&'a Watch>) -> Option<Vec<u8>> {
        loop {
            match self.queue.pop_front()? {
                Waiting::Reply(frame) => return Some(frame),
                Waiting::Event(id, path) => {
                    self.events.remove(&(id, path.clone()));
                    let Some(watch) = watch_of(id) else { continue };
                    let parts: &[&[u8]] = &[watch.shown(&path).as_bytes(), &[0], &watch.token, &[0]];
                    // A watch is refused if its path and token do not fit into an event together; a longer
                    // path below it is reported as the watch's own.
                    let frame = encode(MessageType::WATCH_EVENT, 0, 0, parts).or_else(|| {
                        let own: &[&[u8]] = &[watch.shown(&watch.path).as_bytes(), &[0], &watch.token, &[0]];
                        encode(MessageType::WATCH_EVENT, 0, 0, own)
                    });
                    if frame.is_some() {
                        return frame;
                    }
                }
            }
        }
    }

    /// Answers that wait, in wire form.
    pub fn answers(&self) -> Vec<u8> {
        let answers = self.queue.iter().filter_map(|waiting| match waiting {
            Waiting::Reply(frame) => Some(frame.as_slice()),
            Waiting::Event(..) => None,
        });
        answers.collect::<Vec<_>>().concat()
    }

    /// Messages that wait.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Answers that wait.
    pub fn reply_count(&self) -> usize {
        self.queue.len().saturating_sub(self.events.len())
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Outbox::default();
    }

    /// Checks that the two views of waiting events agree, and the bound on them.
    pub fn audit(&self, is_guest: bool, watch_count: usize) -> Result<(), String> {
        let queued = self
            .queue
            .iter()
            .filter(|waiting| matches!(waiting, Waiting::Event(..)))
            .count();
        if queued != self.events.len() {
            return Err(format!(
                "{queued} events are queued, {} are known to be",
                self.events.len()
            ));
        }
        if is_guest && queued > EVENTS_BEFORE_FOLDING as usize + watch_count {
            return Err(format!("{queued} events wait for a guest with {watch_count} watches"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::store::ConnId;
    use super::super::watches::Watches;
    use super::*;

    fn setup() -> (Outbox, Watches, WatchId) {
        let mut watches = Watches::default();
        let token = b"tok".as_slice().into();
        let id = watches.add(Watch {
            conn: ConnId(1),
            path: "/a".into(),
            base_len: 0,
            token,
            depth: None,
        });
        (Outbox::default(), watches, id)
    }

    #[test]
    fn an_event_that_waits_is_not_queued_twice() {
        let (mut outbox, watches, id) = setup();
        let watch = watches.get(id).unwrap();
        for path in ["/a/x", "/a/x", "/a/y", "/a/x"] {
            outbox.event(id, watch, &path.into(), true);
        }
        assert_eq!(outbox.len(), 2);
        assert!(
            outbox
                .next_frame(|id| watches.get(id))
                .unwrap()
                .ends_with(b"/a/x\0tok\0")
        );
        outbox.event(id, watch, &"/a/x".into(), true);
        assert_eq!(outbox.len(), 2);
        outbox.audit(true, 1).unwrap();
    }

    #[test]
    fn a_flood_folds_into_one_event_at_the_watched_path() {
        let (mut outbox, watches, id) = setup();
        for i in 0..5000 {
            outbox.event(id, watches.get(id).unwrap(), &format!("/a/{i}").into(), true);
        }
        outbox.audit(true, 1).unwrap();
        let mut last = vec![];
        while let Some(frame) = outbox.next_frame(|id| watches.get(id)) {
            last = frame;
        }
        assert!(last.ends_with(b"/a\0tok\0"));
    }

    #[test]
    fn a_taken_watch_takes_its_events_along() {
        let (mut outbox, watches, id) = setup();
        outbox.event(id, watches.get(id).unwrap(), &"/a".into(), false);
        outbox.reply(vec![1]);
        outbox.drop_events_of(id);
        assert_eq!((outbox.len(), outbox.reply_count()), (1, 1));
    }
}
