//! A domain's ring page, from xenstored's end.

use ferroxen_words::Port;
use ferroxen_xenctl::ForeignPages;
use ferroxen_xenstore_wire::ring::{self, connection, feature};
use std::io;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// A mapped ring and our end of its event channel.
#[derive(Debug)]
pub struct Ring {
    page: ForeignPages,
    /// Our port.
    pub port: Port,
    /// The other side has not been told yet that an index moved.
    pub owes_notify: bool,
}

/// Why a ring cannot be followed.
#[derive(Debug)]
pub enum RingError {
    /// The indices make no sense.
    Indices,
    /// The page cannot be accessed.
    Page(io::Error),
}

impl From<io::Error> for RingError {
    fn from(error: io::Error) -> RingError {
        RingError::Page(error)
    }
}

impl From<ring::BadIndices> for RingError {
    fn from(_: ring::BadIndices) -> RingError {
        RingError::Indices
    }
}

impl Ring {
    /// Takes a ring into service and tells its domain what we can do.
    pub fn new(page: ForeignPages, port: Port) -> io::Result<Ring> {
        let features = feature::RECONNECTION | feature::ERROR | feature::WATCH_DEPTH;
        page.store_u32(ring::SERVER_FEATURES, features, Release)?;
        Ok(Ring {
            page,
            port,
            owes_notify: true,
        })
    }

    /// Takes requests out, as many bytes as there are and fit. 0: none at the moment.
    pub fn receive(&mut self, bytes: &mut [u8]) -> Result<usize, RingError> {
        let cons = self.page.load_u32(ring::REQ_CONS, Relaxed)?;
        let prod = self.page.load_u32(ring::REQ_PROD, Acquire)?;
        let chunk = ring::readable(cons, prod)?;
        let len = chunk.len.min(bytes.len());
        if len > 0 {
            self.page.read(ring::REQ + chunk.start, &mut bytes[..len])?;
            self.advance(ring::REQ_CONS, cons, len)?;
        }
        Ok(len)
    }

    /// Puts responses in, as many bytes as there is room for. 0: none at the moment.
    pub fn send(&mut self, bytes: &[u8]) -> Result<usize, RingError> {
        let prod = self.page.load_u32(ring::RSP_PROD, Relaxed)?;
        let cons = self.page.load_u32(ring::RSP_CONS, Acquire)?;
        let chunk = ring::writable(cons, prod)?;
        let len = chunk.len.min(bytes.len());
        if len > 0 {
            self.page.write(ring::RSP + chunk.start, &bytes[..len])?;
            self.advance(ring::RSP_PROD, prod, len)?;
        }
        Ok(len)
    }

    /// Whether the domain asks for a fresh start.
    pub fn wants_reconnect(&self) -> bool {
        self.page
            .load_u32(ring::CONNECTION, Acquire)
            .is_ok_and(|state| state == connection::RECONNECT)
    }

    /// Gives the domain its fresh start.
    pub fn reconnect(&mut self) -> io::Result<()> {
        for index in [
            ring::REQ_CONS,
            ring::REQ_PROD,
            ring::RSP_CONS,
            ring::RSP_PROD,
            ring::ERROR,
        ] {
            self.page.store_u32(index, 0, Relaxed)?;
        }
        self.page.store_u32(ring::CONNECTION, connection::CONNECTED, Release)?;
        self.owes_notify = true;
        Ok(())
    }

    /// Tells the domain why we stop listening.
    pub fn fail(&mut self, why: u32) -> io::Result<()> {
        self.owes_notify = true;
        self.page.store_u32(ring::ERROR, why, Release)
    }

    fn advance(&mut self, index: usize, from: u32, len: usize) -> io::Result<()> {
        // A chunk is never longer than the ring.
        self.page.store_u32(index, from.wrapping_add(len as u32), Release)?;
        self.owes_notify = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferroxen_xenctl::Access;
    use proptest::prelude::*;

    fn ring() -> Ring {
        Ring::new(ForeignPages::anonymous(1, Access::ReadWrite).unwrap(), Port::new(1)).unwrap()
    }

    fn set(ring: &Ring, word: usize, value: u32) {
        ring.page.store_u32(word, value, Relaxed).unwrap();
    }

    fn get(ring: &Ring, word: usize) -> u32 {
        ring.page.load_u32(word, Relaxed).unwrap()
    }

    /// The guest puts bytes in, wherever its index stands.
    fn guest_asks(ring: &Ring, bytes: &[u8]) {
        let mut prod = get(ring, ring::REQ_PROD);
        for byte in bytes {
            ring.page
                .write(ring::REQ + (prod % ring::SIZE) as usize, &[*byte])
                .unwrap();
            prod = prod.wrapping_add(1);
        }
        set(ring, ring::REQ_PROD, prod);
    }

    #[test]
    fn requests_pass_across_the_ends_of_ring_and_index() {
        let mut ring = ring();
        for start in [1020, u32::MAX - 3] {
            set(&ring, ring::REQ_CONS, start);
            set(&ring, ring::REQ_PROD, start);
            guest_asks(&ring, b"0123456789");
            let (mut all, mut bytes) = (vec![], [0; 64]);
            while let len @ 1.. = ring.receive(&mut bytes).unwrap() {
                all.extend_from_slice(&bytes[..len]);
            }
            assert_eq!(all, b"0123456789");
        }
    }

    #[test]
    fn responses_stop_when_the_ring_is_full() {
        let mut ring = ring();
        assert_eq!(ring.send(&[7; 2000]).unwrap(), 1024);
        assert_eq!(ring.send(&[7; 2000]).unwrap(), 0);
        set(&ring, ring::RSP_CONS, 10);
        assert_eq!(ring.send(&[8; 2000]).unwrap(), 10);
    }

    #[test]
    fn a_reconnected_ring_is_empty_and_says_so() {
        let mut ring = ring();
        guest_asks(&ring, b"half a mess");
        set(&ring, ring::CONNECTION, connection::RECONNECT);
        assert!(ring.wants_reconnect());
        ring.reconnect().unwrap();
        assert!(!ring.wants_reconnect());
        assert_eq!(ring.receive(&mut [0; 8]).unwrap(), 0);
    }

    proptest! {
        #[test]
        fn indices_may_be_anything(cons: u32, prod: u32, len in 0usize..2000) {
            let mut ring = ring();
            for (a, b) in [(ring::REQ_CONS, ring::REQ_PROD), (ring::RSP_CONS, ring::RSP_PROD)] {
                set(&ring, a, cons);
                set(&ring, b, prod);
            }
            let is_sane = prod.wrapping_sub(cons) <= ring::SIZE;
            prop_assert_eq!(ring.receive(&mut vec![0; len]).is_ok(), is_sane);
            prop_assert_eq!(ring.send(&vec![0; len]).is_ok(), is_sane);
        }
    }
}
