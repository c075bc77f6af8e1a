//! The page through which a domain and xenstored talk (`struct xenstore_domain_interface`).
//!
//! Two byte queues of 1 KiB, requests towards xenstored and responses back. The indices run freely modulo
//! 2^32: a byte with index `i` lies at `i % SIZE`. Whoever moves an index rings the event channel.

/// Bytes in each queue (`XENSTORE_RING_SIZE`).
pub const SIZE: u32 = 1024;

/// Where the requests' bytes lie in the page.
pub const REQ: usize = 0;
/// Where the responses' bytes lie.
pub const RSP: usize = 1024;
/// Where the index lies up to which xenstored has taken requests.
pub const REQ_CONS: usize = 2048;
/// Where the index lies up to which the domain has put requests.
pub const REQ_PROD: usize = 2052;
/// Where the index lies up to which the domain has taken responses.
pub const RSP_CONS: usize = 2056;
/// Where the index lies up to which xenstored has put responses.
pub const RSP_PROD: usize = 2060;
/// Where xenstored tells what it can do ([`feature`]).
pub const SERVER_FEATURES: usize = 2064;
/// Where the domain asks for a fresh start ([`connection`]).
pub const CONNECTION: usize = 2068;
/// Where xenstored tells why it stopped listening ([`error`]).
pub const ERROR: usize = 2072;

/// Bits of the word at [`SERVER_FEATURES`].
pub mod feature {
    /// The ring may be reconnected (`XENSTORE_SERVER_FEATURE_RECONNECTION`).
    pub const RECONNECTION: u32 = 1;
    /// The error word is there (`XENSTORE_SERVER_FEATURE_ERROR`).
    pub const ERROR: u32 = 2;
    /// WATCH takes a depth (bit 2 in `xenstore-ring.txt`).
    pub const WATCH_DEPTH: u32 = 4;
}

/// Values of the word at [`CONNECTION`].
pub mod connection {
    /// The steady state (`XENSTORE_CONNECTED`).
    pub const CONNECTED: u32 = 0;
    /// The domain asks for empty queues (`XENSTORE_RECONNECT`).
    pub const RECONNECT: u32 = 1;
}

/// Values of the word at [`ERROR`].
pub mod error {
    /// All is well.
    pub const NONE: u32 = 0;
    /// The event channel does not work.
    pub const COMM: u32 = 1;
    /// The indices make no sense.
    pub const RING_INDEX: u32 = 2;
    /// A message was too long.
    pub const PROTOCOL: u32 = 3;
}

/// The grant under which every domain offers this page (`GNTTAB_RESERVED_XENSTORE`).
pub const GRANT_REF: u32 = 1;

/// A run of bytes within one queue: where it starts in the queue, and how long it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chunk {
    /// Offset within the queue.
    pub start: usize,
    /// Bytes, without wrapping.
    pub len: usize,
}

/// Indices that are further apart than the queue is long: the other side is broken or hostile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadIndices;

/// The next run that may be read, up to the queue's end.
pub fn readable(cons: u32, prod: u32) -> Result<Chunk, BadIndices> {
    let used = used(cons, prod)?;
    let start = cons % SIZE;
    Ok(Chunk {
        start: start as usize,
        len: used.min(SIZE - start) as usize,
    })
}

/// The next run that may be written, up to the queue's end.
pub fn writable(cons: u32, prod: u32) -> Result<Chunk, BadIndices> {
    let free = SIZE - used(cons, prod)?;
    let start = prod % SIZE;
    Ok(Chunk {
        start: start as usize,
        len: free.min(SIZE - start) as usize,
    })
}

fn used(cons: u32, prod: u32) -> Result<u32, BadIndices> {
    let used = prod.wrapping_sub(cons);
    if used > SIZE { Err(BadIndices) } else { Ok(used) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_stop_at_the_end_of_the_queue_and_wrap_with_the_index() {
        assert_eq!(readable(1000, 1050), Ok(Chunk { start: 1000, len: 24 }));
        assert_eq!(readable(1024, 1050), Ok(Chunk { start: 0, len: 26 }));
        assert_eq!(writable(1000, 1050), Ok(Chunk { start: 26, len: 974 }));
        assert_eq!(readable(u32::MAX - 1, 2), Ok(Chunk { start: 1022, len: 2 }));
        assert_eq!(writable(5, 5), Ok(Chunk { start: 5, len: 1019 }));
        assert_eq!(writable(0, 1024), Ok(Chunk { start: 0, len: 0 }));
    }

    #[test]
    fn indices_too_far_apart_are_refused() {
        assert_eq!(readable(0, 1025), Err(BadIndices));
        assert_eq!(writable(1, 0), Err(BadIndices));
    }
}
