//! Disk images for guests: making, filling, copying, growing and checking them.
//!
//! An image is a file with one file system and no partitions, as `sda1` of the how-tos. Its insides are changed by
//! e2fsprogs' `debugfs`, so nothing is mounted and no loop device is needed.
//!
//! Always true: a file gets its name only once it is whole. Until then it is called `NAME.new`, so an interrupted step
//! leaves the old image as it was, and one that failed or was called off leaves nothing. Who makes it, down to the last
//! program, holds a lock on it, so two never write to one. What one that was killed has left, the next one clears away;
//! nothing stays mounted.
#![forbid(unsafe_code)]

mod bundle;
mod copy;
mod fstab;
mod identity;
mod inside;
mod interruption;
mod make;
mod metadata;
mod moved;
mod overlay;
mod qcow2;
mod tools;
mod unfinished;

pub use bundle::{Bundle, export, import};
pub use copy::{Way, clone};
pub use identity::{Identity, Network};
pub use inside::Inside;
pub use interruption::call_off;
pub use make::{FileSystem, Origin, build, check, create, resize};
pub use moved::take_over;
pub use overlay::overlay;
