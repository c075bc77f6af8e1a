//! A saved domain as bytes: what `xl save` writes and `xl migrate` sends.
//!
//! Three formats lie in each other, and each has its module:
//!
//! | module | what it is | described in |
//! | --- | --- | --- |
//! | [`file`] | xl's: a magic word, and the domain's configuration | seen in files of xl 4.17 |
//! | [`envelope`] | libxl's, version 2: where the image starts and ends | xen-doc, specs/libxl-migration-stream |
//! | [`image`] | libxc's, version 3: memory, vcpus, the shared page | xen-doc, specs/libxc-migration-stream |
//!
//! The two inner ones are made of the same [`record`]s. Numbers are little-endian but for the headers', which are
//! big-endian in the inner two.
//!
//! Always true:
//! 1. Reading takes exactly the bytes of what is read, so that what follows on the same pipe is untouched.
//! 2. A length that a stream claims costs no memory before its bytes are there.
//! 3. What is written reads back as the same values (the tests make up records to see it).
#![forbid(unsafe_code)]

pub mod envelope;
pub mod file;
pub mod image;
pub mod record;

use std::io::{self, Read};

/// Why a stream cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes do not come, or cannot be written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It ends in the middle of something.
    #[error("the stream ends in the middle of {0}")]
    Truncated(&'static str),
    /// It is no such stream.
    #[error("this is no {0}")]
    NotOne(&'static str),
    /// It is one that we cannot read.
    #[error("{what} is version {version}; version {ours} can be read")]
    Version {
        /// What has a version.
        what: &'static str,
        /// Which it has.
        version: u32,
        /// Which we read.
        ours: u32,
    },
    /// Something in it is not as it must be.
    #[error("{0}")]
    Malformed(String),
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Fills `bytes`; a stream that ends before is truncated in the middle of `what`.
fn fill(from: &mut impl Read, bytes: &mut [u8], what: &'static str) -> Result<()> {
    from.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Error::Truncated(what),
        _ => Error::Io(error),
    })
}
