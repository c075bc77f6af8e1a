//! Domains from cradle to grave: libxl's role.
//!
//! - [`hyper`]: the hypervisor's control calls
//! - [`layout`], [`pv`]: a PV domain's memory and how it is filled
#![forbid(unsafe_code)]

mod error;
pub mod hyper;
pub mod layout;
pub mod pv;

pub use error::{Error, Result};
