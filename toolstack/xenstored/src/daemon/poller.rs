//! Who has something for us.
//!
//! The kernel is told what we expect of a client when that changes, not each time we wait: most of a host's clients stay
//! with a guest for its whole life and say nothing.

use crate::core::ConnId;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// How many are heard of at once; the others stay ready.
const AT_ONCE: usize = 64;
/// What stands for the listener and for the event channels where else a connection's number does.
const CALLER: u64 = u64::MAX;
const EVENT: u64 = u64::MAX - 1;

/// Somebody who has something for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// A new client.
    Caller,
    /// A domain, or the hypervisor.
    Event,
    /// A client, which may be gone by now.
    Client(ConnId),
}

/// All whom we wait for.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    /// Expects callers of a socket, and events if there are any.
    pub fn new(listener: impl AsFd, events: Option<BorrowedFd<'_>>) -> io::Result<Poller> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, listener, EventData::new_u64(CALLER), EventFlags::IN)?;
        if let Some(events) = events {
            epoll::add(&epoll, events, EventData::new_u64(EVENT), EventFlags::IN)?;
        }
        Ok(Poller { epoll })
    }

    /// Expects `now` of a client, of which `before` was expected; it is forgotten when its socket is closed.
    pub fn expect(
        &self,
        conn: ConnId,
        client: &UnixStream,
        before: Option<EventFlags>,
        now: EventFlags,
    ) -> io::Result<()> {
        let data = EventData::new_u64(conn.number());
        match before {
            None => epoll::add(&self.epoll, client, data, now)?,
            Some(before) if before == now => {}
            Some(_) => epoll::modify(&self.epoll, client, data, now)?,
        }
        Ok(())
    }

    /// Waits until somebody is ready, for `timeout` at most.
    pub fn wait(&self, timeout: Option<&Timespec>) -> io::Result<Vec<Ready>> {
        let mut room = [const { MaybeUninit::uninit() }; AT_ONCE];
        let events = match epoll::wait(&self.epoll, &mut room[..], timeout) {
            Ok((events, _)) => events,
            Err(rustix::io::Errno::INTR) => return Ok(vec![]),
            Err(error) => return Err(error.into()),
        };
        let ready = events.iter().map(|event| match event.data.u64() {
            CALLER => Ready::Caller,
            EVENT => Ready::Event,
            number => Ready::Client(ConnId::from_number(number)),
        });
        Ok(ready.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

    fn ready(poller: &Poller) -> Vec<Ready> {
        poller.wait(Some(&NOW)).unwrap()
    }

    #[test]
    fn a_client_is_ready_for_what_is_expected_of_it_until_it_is_closed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let poller = Poller::new(&listener, None).unwrap();
        assert_eq!(ready(&poller), []);
        let mut theirs = UnixStream::connect(&path).unwrap();
        assert_eq!(ready(&poller), [Ready::Caller]);

        let (ours, _) = listener.accept().unwrap();
        let conn = ConnId::from_number(7);
        poller.expect(conn, &ours, None, EventFlags::IN).unwrap();
        assert_eq!(ready(&poller), []);
        theirs.write_all(b"?").unwrap();
        assert_eq!(ready(&poller), [Ready::Client(conn)]);
        // What is held is not heard, and stays where it is.
        let held = EventFlags::empty();
        poller.expect(conn, &ours, Some(EventFlags::IN), held).unwrap();
        assert_eq!(ready(&poller), []);
        poller.expect(conn, &ours, Some(held), EventFlags::OUT).unwrap();
        assert_eq!(ready(&poller), [Ready::Client(conn)]);
        drop(ours);
        assert_eq!(ready(&poller), []);
    }
}
