//! Bytes in, plain descriptions out: what boots us and what we boot.
//!
//! - [`image`]: kernel files, packed or not
//! - [`kernel`]: the ELF file inside, and its Xen notes
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod image;
pub mod kernel;
