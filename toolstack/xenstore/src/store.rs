//! The requests that make sense both outside and inside a transaction.

use crate::error::{Error, Result};
use ferroxen_xenstore_wire::{ErrorCode, MessageType, Permission, parse_permissions, strings};

/// Changes to make one after the other, of which none depends on another's answer.
///
/// What a request costs is mostly the way to xenstored and back; [`Store::apply`] shares it among many.
#[derive(Clone, Debug, Default)]
pub struct Changes(pub(crate) Vec<Change>);

/// One of them.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) kind: MessageType,
    pub(crate) path: String,
    /// All of the request's, the path included.
    pub(crate) payload: Vec<u8>,
}

impl Changes {
    /// See [`Store::write`].
    pub fn write(&mut self, path: &str, value: impl AsRef<[u8]>) {
        self.add(MessageType::WRITE, path, value.as_ref());
    }

    /// See [`Store::mkdir`].
    pub fn mkdir(&mut self, path: &str) {
        self.add(MessageType::MKDIR, path, &[]);
    }

    /// See [`Store::rm`].
    pub fn rm(&mut self, path: &str) {
        self.add(MessageType::RM, path, &[]);
    }

    /// See [`Store::set_permissions`].
    pub fn set_permissions(&mut self, path: &str, entries: &[Permission]) {
        self.add(MessageType::SET_PERMS, path, &Permission::encode_all(entries));
    }

    fn add(&mut self, kind: MessageType, path: &str, rest: &[u8]) {
        self.0.push(Change {
            kind,
            path: path.to_owned(),
            payload: [path.as_bytes(), &[0], rest].concat(),
        });
    }
}

impl Change {
    /// What the answer means: nothing is left to remove of what is not there.
    pub(crate) fn done(&self, answer: Result<Vec<u8>>) -> Result<()> {
        match answer {
            Err(error) if self.kind == MessageType::RM && error.is_not_found() => Ok(()),
            other => other.map(drop),
        }
    }
}

/// The value of a node, as text.
pub(crate) fn text(path: &str, value: Vec<u8>) -> Result<String> {
    String::from_utf8(value).map_err(|error| Error::Value {
        path: path.into(),
        found: format!("{:?}", error.as_bytes().escape_ascii().to_string()),
    })
}

/// Something that answers requests about nodes: a [`Client`](crate::Client) or a
/// [`Transaction`](crate::Transaction).
pub trait Store {
    /// Sends one request and gives the answer's payload. `subject` is for the error message.
    fn request(&self, kind: MessageType, subject: &str, payload: &[&[u8]]) -> Result<Vec<u8>>;

    /// Reads a node's value.
    fn read(&self, path: &str) -> Result<Vec<u8>> {
        self.request(MessageType::READ, path, &[path.as_bytes(), &[0]])
    }

    /// Reads a node's value as text.
    fn read_string(&self, path: &str) -> Result<String> {
        text(path, self.read(path)?)
    }

    /// Reads a node's value as text, or `None` if there is no such node.
    fn read_opt(&self, path: &str) -> Result<Option<String>> {
        match self.read_string(path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads the values of many nodes as text; `None` for those that are not there.
    fn read_each(&self, paths: &[String]) -> Result<Vec<Option<String>>> {
        paths.iter().map(|path| self.read_opt(path)).collect()
    }

    /// Makes all of the changes that can be made; the error is the first one's.
    fn apply(&self, changes: &Changes) -> Result<()> {
        let make = |change: &Change| change.done(self.request(change.kind, &change.path, &[&change.payload]));
        changes.0.iter().map(make).fold(Ok(()), Result::and)
    }

    /// Reads a node's value as a number, or whatever else parses.
    fn read_parsed<T: std::str::FromStr>(&self, path: &str) -> Result<T> {
        let text = self.read_string(path)?;
        text.trim().parse().map_err(|_| Error::Value {
            path: path.into(),
            found: format!("{text:?}"),
        })
    }

    /// Writes a node's value; makes the node and its parents if they are missing.
    fn write(&self, path: &str, value: impl AsRef<[u8]>) -> Result<()>
    where
        Self: Sized,
    {
        self.request(MessageType::WRITE, path, &[path.as_bytes(), &[0], value.as_ref()])
            .map(drop)
    }

    /// Makes a node and its parents, if they are missing.
    fn mkdir(&self, path: &str) -> Result<()> {
        self.request(MessageType::MKDIR, path, &[path.as_bytes(), &[0]])
            .map(drop)
    }

    /// Removes a node and all below it. It is no error if it is not there.
    fn rm(&self, path: &str) -> Result<()> {
        let mut change = Changes::default();
        change.rm(path);
        self.apply(&change)
    }

    /// Lists the names of a node's children.
    fn directory(&self, path: &str) -> Result<Vec<String>> {
        match self.request(MessageType::DIRECTORY, path, &[path.as_bytes(), &[0]]) {
            Ok(payload) => names(path, &payload),
            // Longer than one message: comes in parts.
            Err(error) if error.code() == Some(ErrorCode::E2BIG) => self.directory_in_parts(path),
            Err(error) => Err(error),
        }
    }

    /// Lists the names of a node's children, or nothing if there is no such node.
    fn directory_opt(&self, path: &str) -> Result<Vec<String>> {
        match self.directory(path) {
            Err(error) if error.is_not_found() => Ok(vec![]),
            other => other,
        }
    }

    /// Whether there is such a node.
    fn exists(&self, path: &str) -> Result<bool> {
        match self.read(path) {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads a node's permissions; the first entry is its owner.
    fn permissions(&self, path: &str) -> Result<Vec<Permission>> {
        let payload = self.request(MessageType::GET_PERMS, path, &[path.as_bytes(), &[0]])?;
        parse_permissions(&payload).map_err(|_| {
            Error::Protocol(format!(
                "permissions of {path}: {:?}",
                payload.escape_ascii().to_string()
            ))
        })
    }

    /// Sets a node's permissions; the first entry is its owner.
    fn set_permissions(&self, path: &str, entries: &[Permission]) -> Result<()> {
        let entries = Permission::encode_all(entries);
        self.request(MessageType::SET_PERMS, path, &[path.as_bytes(), &[0], &entries])
            .map(drop)
    }

    /// Lists children by `DIRECTORY_PART`, from the start again if the node changes meanwhile.
    fn directory_in_parts(&self, path: &str) -> Result<Vec<String>> {
        let mut listing = Vec::new();
        let mut generation = Vec::new();
        loop {
            let offset = listing.len().to_string();
            let payload = self.request(
                MessageType::DIRECTORY_PART,
                path,
                &[path.as_bytes(), &[0], offset.as_bytes(), &[0]],
            )?;
            let nul = payload.iter().position(|byte| *byte == 0);
            let Some((count, part)) = nul.map(|nul| (&payload[..nul], &payload[nul + 1..])) else {
                return Err(Error::Protocol(format!("a listing of {path} without a generation")));
            };
            if generation != count && !listing.is_empty() {
                listing.clear();
                continue;
            }
            generation = count.to_vec();
            // The end is an empty name.
            if part.is_empty() || part == [0] {
                return names(path, &listing);
            }
            match part.strip_suffix(&[0, 0]) {
                Some(last) => {
                    listing.extend_from_slice(last);
                    listing.push(0);
                    return names(path, &listing);
                }
                None => listing.extend_from_slice(part),
            }
        }
    }
}

fn names(path: &str, payload: &[u8]) -> Result<Vec<String>> {
    strings(payload)
        .map(|name| {
            String::from_utf8(name.to_vec())
                .map_err(|_| Error::Protocol(format!("a child of {path}: {:?}", name.escape_ascii().to_string())))
        })
        .collect()
}
