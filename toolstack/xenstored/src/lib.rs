//! xenstored: the tree that Domain 0 and the guests share.
//!
//! [`core`] is the whole protocol as plain data and decisions; [`daemon`] connects it to sockets, ring pages
//! and the hypervisor.
#![forbid(unsafe_code)]

pub mod core;
pub mod daemon;
