//! What outlives us: a list of records from which another xenstored makes the same store again.
//!
//! Guests keep their rings, watches and transactions over our end; whoever is connected by a socket hears of it and
//! connects again, unless our successor takes the sockets over, too (a live update). So the records tell of the tree, of the introduced domains, of what watches came through rings, and
//! of messages that are half-way.
//!
//! A record is a kind, and fields with their lengths. What cannot be read ends the list: the last record may have been
//! cut short.

use super::tree::{Actor, Op};
use ferroxen_xenstore_wire::{Permission, parse_permissions};
use std::sync::Arc;

/// One thing to do again.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of the requests")]
pub enum Record {
    /// Somebody changed a node.
    Change { who: Actor, op: Op },
    /// A domain was introduced, or its port has changed.
    Introduce { domid: u16, gfn: u64, port: u32 },
    /// A domain may act for another.
    Target { domid: u16, target: u16 },
    /// A domain has gone, with all that it had.
    Forget { domid: u16 },
    /// Somebody with a ring watches.
    Watch {
        domid: u16,
        path: Arc<str>,
        base_len: u32,
        token: Arc<[u8]>,
        depth: Option<u32>,
    },
    /// It watches no more.
    Unwatch {
        domid: u16,
        path: Arc<str>,
        token: Arc<[u8]>,
    },
    /// It watches nothing any more.
    ResetWatches { domid: u16 },
    /// Who may watch an event.
    EventPerms { event: String, perms: Arc<[Permission]> },
    /// The part of a request that has come in through a ring, and what is still to go out.
    HalfWay {
        domid: u16,
        input: Vec<u8>,
        output: Vec<u8>,
    },
    /// A client at a socket that stays open, and its own records (in which the domid means nothing).
    Client { records: Vec<u8> },
}

/// No limit, in a field.
const NONE: u32 = u32::MAX;

/// Puts a record behind the others.
pub fn write(bytes: &mut Vec<u8>, record: &Record) {
    let numbers = |numbers: &[u64]| -> Vec<u8> { numbers.iter().flat_map(|number| number.to_le_bytes()).collect() };
    let who = |who: &Actor| numbers(&[who.domid.into(), who.target.map_or(u64::from(NONE), u64::from)]);
    let mut put = |kind: u8, fields: &[&[u8]]| {
        bytes.push(kind);
        for field in fields {
            // No field is as long as that.
            bytes.extend_from_slice(&(field.len() as u32).to_le_bytes());
            bytes.extend_from_slice(field);
        }
    };
    match record {
        Record::Change { who: actor, op } => {
            let (actor, path) = (who(actor), op.path().as_bytes());
            match op {
                Op::Write(_, value) => put(b'w', &[&actor, path, value]),
                Op::Mkdir(_) => put(b'm', &[&actor, path]),
                Op::Remove(_) => put(b'r', &[&actor, path]),
                Op::SetPerms(_, perms) => put(b'p', &[&actor, path, &Permission::encode_all(perms)]),
            }
        }
        Record::Introduce { domid, gfn, port } => put(b'i', &[&numbers(&[(*domid).into(), *gfn, (*port).into()])]),
        Record::Target { domid, target } => put(b't', &[&numbers(&[(*domid).into(), (*target).into()])]),
        Record::Forget { domid } => put(b'f', &[&numbers(&[(*domid).into()])]),
        Record::Watch {
            domid,
            path,
            base_len,
            token,
            depth,
        } => {
            let depth = depth.unwrap_or(NONE);
            let numbers = numbers(&[(*domid).into(), (*base_len).into(), depth.into()]);
            put(b'W', &[&numbers, path.as_bytes(), token]);
        }
        Record::Unwatch { domid, path, token } => {
            put(b'U', &[&numbers(&[(*domid).into()]), path.as_bytes(), token]);
        }
        Record::ResetWatches { domid } => put(b'R', &[&numbers(&[(*domid).into()])]),
        Record::EventPerms { event, perms } => put(b'e', &[event.as_bytes(), &Permission::encode_all(perms)]),
        Record::Client { records } => put(b'c', &[records]),
        Record::HalfWay { domid, input, output } => put(b'h', &[&numbers(&[(*domid).into()]), input, output]),
    }
}

/// The records, as far as they can be read.
pub fn read(bytes: &[u8]) -> impl Iterator<Item = Record> {
    let mut rest = bytes;
    std::iter::from_fn(move || next(&mut rest))
}

fn next(rest: &mut &[u8]) -> Option<Record> {
    let (kind, after) = rest.split_first()?;
    *rest = after;
    Some(match kind {
        b'w' => Record::Change {
            who: actor(rest)?,
            op: Op::Write(text(rest)?, field(rest)?.into()),
        },
        b'm' => Record::Change {
            who: actor(rest)?,
            op: Op::Mkdir(text(rest)?),
        },
        b'r' => Record::Change {
            who: actor(rest)?,
            op: Op::Remove(text(rest)?),
        },
        b'p' => Record::Change {
            who: actor(rest)?,
            op: Op::SetPerms(text(rest)?, perms(rest)?),
        },
        b'i' => {
            let [domid, gfn, port] = numbers(rest)?;
            Record::Introduce {
                domid: domid.try_into().ok()?,
                gfn,
                port: port.try_into().ok()?,
            }
        }
        b't' => {
            let [domid, target] = numbers(rest)?;
            Record::Target {
                domid: domid.try_into().ok()?,
                target: target.try_into().ok()?,
            }
        }
        b'f' => Record::Forget { domid: domid(rest)? },
        b'W' => {
            let [domid, base_len, depth] = numbers(rest)?;
            Record::Watch {
                domid: domid.try_into().ok()?,
                base_len: base_len.try_into().ok()?,
                depth: u32::try_from(depth).ok().filter(|depth| *depth != NONE),
                path: text(rest)?,
                token: field(rest)?.into(),
            }
        }
        b'U' => Record::Unwatch {
            domid: domid(rest)?,
            path: text(rest)?,
            token: field(rest)?.into(),
        },
        b'R' => Record::ResetWatches { domid: domid(rest)? },
        b'e' => Record::EventPerms {
            event: text(rest)?.to_string(),
            perms: perms(rest)?,
        },
        b'c' => Record::Client {
            records: field(rest)?.to_vec(),
        },
        b'h' => Record::HalfWay {
            domid: domid(rest)?,
            input: field(rest)?.to_vec(),
            output: field(rest)?.to_vec(),
        },
        _ => return None,
    })
}

fn field<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, after) = rest.split_first_chunk::<4>()?;
    let (field, after) = after.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    *rest = after;
    Some(field)
}

fn text(rest: &mut &[u8]) -> Option<Arc<str>> {
    std::str::from_utf8(field(rest)?).ok().map(Arc::from)
}

fn numbers<const N: usize>(rest: &mut &[u8]) -> Option<[u64; N]> {
    let (numbers, _) = field(rest)?.as_chunks::<8>();
    let numbers: Vec<u64> = numbers.iter().map(|number| u64::from_le_bytes(*number)).collect();
    numbers.try_into().ok()
}

fn domid(rest: &mut &[u8]) -> Option<u16> {
    let [domid] = numbers(rest)?;
    domid.try_into().ok()
}

fn actor(rest: &mut &[u8]) -> Option<Actor> {
    let [domid, target] = numbers(rest)?;
    Some(Actor {
        domid: domid.try_into().ok()?,
        target: target.try_into().ok(),
    })
}

fn perms(rest: &mut &[u8]) -> Option<Arc<[Permission]>> {
    parse_permissions(field(rest)?).ok().map(Arc::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferroxen_xenstore_wire::Rights;
    use proptest::prelude::*;

    fn records() -> Vec<Record> {
        let who = Actor {
            domid: 7,
            target: Some(8),
        };
        let perms: Arc<[Permission]> = [Permission::new(Rights::Read, 7)].into();
        vec![
            Record::Change {
                who: Actor::PRIVILEGED,
                op: Op::Write("/a".into(), b"\0\xff".as_slice().into()),
            },
            Record::Change {
                who,
                op: Op::SetPerms("/a".into(), perms.clone()),
            },
            Record::Change {
                who,
                op: Op::Remove("/a".into()),
            },
            Record::Introduce {
                domid: 7,
                gfn: 1 << 40,
                port: 3,
            },
            Record::Target { domid: 7, target: 8 },
            Record::Forget { domid: 8 },
            Record::Watch {
                domid: 7,
                path: "/local/domain/7/a".into(),
                base_len: 16,
                token: b"t".as_slice().into(),
                depth: None,
            },
            Record::Unwatch {
                domid: 7,
                path: "/a".into(),
                token: b"t".as_slice().into(),
            },
            Record::ResetWatches { domid: 7 },
            Record::EventPerms {
                event: "@releaseDomain".into(),
                perms,
            },
            Record::Client { records: vec![0, 1] },
            Record::HalfWay {
                domid: 0,
                input: vec![1, 2],
                output: vec![],
            },
        ]
    }

    #[test]
    fn what_was_written_is_read_again_up_to_where_it_was_cut() {
        let mut bytes = Vec::new();
        let mut ends = vec![0];
        for record in records() {
            write(&mut bytes, &record);
            ends.push(bytes.len());
        }
        for cut in 0..=bytes.len() {
            let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
            assert_eq!(read(&bytes[..cut]).collect::<Vec<_>>(), records()[..whole]);
        }
    }

    proptest! {
        #[test]
        fn anything_can_be_read(bytes: Vec<u8>) {
            read(&bytes).for_each(drop);
        }
    }
}
