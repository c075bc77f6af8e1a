//! What failed, with which thing, and the way out.

use std::fmt;

/// A step that failed.
#[derive(Debug)]
pub struct Error {
    /// What was being done, with which thing: `opening the kernel /boot/vmlinuz`.
    doing: String,
    /// Why it failed.
    why: String,
    /// What the reader can do about it.
    way_out: Option<String>,
    /// What the calls below said, if it was a refusal of the system or the hypervisor.
    errno: Option<i32>,
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(doing: impl Into<String>, why: impl Into<String>) -> Error {
        Error {
            doing: doing.into(),
            why: why.into(),
            way_out: None,
            errno: None,
        }
    }

    pub(crate) fn way_out(mut self, way_out: impl Into<String>) -> Error {
        self.way_out = Some(way_out.into());
        self
    }

    /// The same, as a part of a larger step.
    pub(crate) fn in_step(mut self, step: impl Into<String>) -> Error {
        self.why = format!("{}: {}", self.doing, self.why);
        self.doing = step.into();
        self
    }

    /// The same as a part of a step, unless it is that step already.
    pub(crate) fn in_step_once(self, step: String) -> Error {
        match self.doing == step {
            true => self,
            false => self.in_step(step),
        }
    }

    /// The error number below, if there is one.
    pub fn errno(&self) -> Option<i32> {
        self.errno
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.doing, self.why)?;
        match &self.way_out {
            Some(way_out) => write!(f, "; {way_out}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// Puts the step in front of an error from below.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Doing<T> for std::io::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error {
            doing: what(),
            why: explain(&error),
            way_out: None,
            errno: error.raw_os_error(),
        })
    }
}

impl<T> Doing<T> for ferroxen_stream::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        match self {
            Err(ferroxen_stream::Error::Io(error)) => Err(error).doing(what),
            other => other.map_err(|error| Error::new(what(), error.to_string())),
        }
    }
}

impl<T> Doing<T> for ferroxen_xenstore::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::new(what(), error.to_string()))
    }
}

/// An errno by Xen's name too, since that is what its sources and lists speak of.
fn explain(error: &std::io::Error) -> String {
    match error.raw_os_error().and_then(rustix_name) {
        Some(name) => format!("{error} [{name}]"),
        None => error.to_string(),
    }
}

fn rustix_name(number: i32) -> Option<&'static str> {
    Some(match number {
        1 => "EPERM",
        2 => "ENOENT",
        3 => "ESRCH",
        11 => "EAGAIN",
        12 => "ENOMEM",
        14 => "EFAULT",
        16 => "EBUSY",
        17 => "EEXIST",
        22 => "EINVAL",
        38 => "ENOSYS",
        95 => "EOPNOTSUPP",
        _ => return None,
    })
}
