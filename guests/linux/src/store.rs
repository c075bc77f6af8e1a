//! A client of xenstore's, by the daemon's socket (public/io/xs_wire.h): reads a node, each time between two marks.

use crate::rows::{WARM_UP, Wrong, check};
use crate::sys::{Connection, EAGAIN, Errno, mark};

const READ: u32 = 2;
const WRITE: u32 = 11;
/// Where daemons listen: the one that there is.
const SOCKETS: [&str; 2] = ["/run/xenstored/socket", "/var/run/xenstored/socket"];
const PATH: &[u8] = b"/measured\0";
const VALUE: &[u8] = b"what is read";
/// A message's kind, request, transaction and length.
const HEADER: usize = 16;

/// How long an answer is waited for, in seconds.
const PATIENCE: u64 = 2;

/// Reads so often, after four times that do not count; says how often it did. A read without an answer is the last one,
/// and counts as what it took until it was given up.
pub fn reads(count: u32) -> Result<u32, Wrong> {
    let store = SOCKETS.iter().find_map(|path| Connection::to(path).ok());
    let store = store.ok_or(Wrong::Effect("a xenstored listens"))?;
    let mut answer = [0; 256];
    ask(&store, WRITE, &[PATH, VALUE], &mut answer)?;
    store.give_up_after(PATIENCE)?;
    for done in 1..=WARM_UP + count {
        mark();
        let read = ask(&store, READ, &[PATH], &mut answer);
        mark();
        match read {
            Err(EAGAIN) => return Ok(done),
            read => {
                let (kind, value) = read?;
                check("the node's value", kind == READ && value == VALUE)?;
            }
        }
    }
    Ok(WARM_UP + count)
}

/// Sends a request; returns the answer's kind, and what it says.
fn ask<'a>(
    store: &Connection,
    kind: u32,
    parts: &[&[u8]],
    answer: &'a mut [u8; 256],
) -> Result<(u32, &'a [u8]), Errno> {
    let mut request = [0; 256];
    let mut used = HEADER;
    for part in parts {
        request[used..used + part.len()].copy_from_slice(part);
        used += part.len();
    }
    request[..4].copy_from_slice(&kind.to_le_bytes());
    request[12..HEADER].copy_from_slice(&((used - HEADER) as u32).to_le_bytes());
    store.send(&request[..used])?;
    let word = |bytes: &[u8; 256], at: usize| {
        let word = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        u32::from_le_bytes(word)
    };
    let (mut got, mut wanted) = (0, HEADER);
    while got < wanted {
        got += store.receive(&mut answer[got..])?;
        if got >= HEADER {
            wanted = HEADER + word(answer, 12) as usize;
        }
    }
    Ok((word(answer, 0), &answer[HEADER..wanted.min(answer.len())]))
}
