//! What can go wrong, and on which path.

use ferroxen_xenstore_wire::{ErrorCode, MessageType};
use std::{fmt, io};

/// A failed request.
#[derive(Debug)]
pub enum Error {
    /// xenstored is not there, or cannot be talked to.
    Connect(String),
    /// xenstored said no.
    Refused {
        /// What was asked.
        asked: MessageType,
        /// About which path (or domain).
        subject: String,
        /// Why not.
        code: ErrorCode,
    },
    /// The connection failed; it is of no more use.
    Io(io::Error),
    /// xenstored's answer makes no sense.
    Protocol(String),
    /// A value that was to be text or a number is not.
    Value {
        /// Where it stands.
        path: String,
        /// What it is instead.
        found: String,
    },
    /// The request is longer than the protocol allows, or has a NUL where none may be.
    Unsendable(String),
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The refusal's code, if it is one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Error::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether it says that there is no such node.
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(ErrorCode::ENOENT)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Connect(why) => write!(f, "cannot reach xenstored: {why}"),
            Error::Refused { asked, subject, code } => write!(f, "xenstore refused {asked} of {subject:?}: {code}"),
            Error::Io(error) => write!(f, "the connection to xenstored failed: {error}"),
            Error::Protocol(what) => write!(f, "xenstored's answer makes no sense: {what}"),
            Error::Value { path, found } => {
                write!(f, "the value of {path} is not as expected: {found}")
            }
            Error::Unsendable(what) => write!(f, "cannot be sent to xenstored: {what}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io(error) => Some(error),
            Error::Refused { code, .. } => Some(code),
            _ => None,
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Error::Io(error)
    }
}
