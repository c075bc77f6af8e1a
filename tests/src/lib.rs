//! Whole-system stories: a machine boots, guests live and die, and someone watches.
//!
//! [`machine`] is a virtual machine, [`console`] what it says, [`dom0`] the prompt a story works at,
//! [`guest`] what it starts there, [`built`] what is set in an image that our tools build, [`lan`] what else is on its network,
//! [`stories`] the stories. `cargo xtask test` makes the images and calls them.

#![forbid(unsafe_code)]

pub mod built;
pub mod console;
pub mod dom0;
pub mod guest;
pub mod lan;
pub mod machine;
pub mod stories;
