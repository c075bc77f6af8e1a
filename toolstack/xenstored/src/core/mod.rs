//! What xenstored decides, without doing anything: deterministic, no clock and no file.
//!
//! A request goes into [`Xenstore::handle`]; answers and events come out of [`Xenstore::next_frame`]. What must
//! happen outside (map a ring, bind a port) is asked of a [`World`].
//!
//! Always true ([`Xenstore::audit`] checks; the property tests call it after every step):
//! 1. Every node's parents exist, and a domain's count of owned nodes is what a walk of the tree counts.
//! 2. A transaction commits only if nothing that it read or wrote was changed by others since it began.
//! 3. A watch belongs to a live connection, and is found both by its path and by its connection.
//! 4. A store that is [restored](Xenstore::restore) from what was noted has the same nodes and the same watches of rings.
//! 5. An unprivileged domain's nodes, watches, transactions and waiting events stay within its limits.

mod budget;
mod control;
mod journal;
mod limits;
mod outbox;
mod store;
mod succession;
mod transaction;
mod tree;
mod watches;

pub use budget::Budget;
pub use ferroxen_xenstore_wire::ErrorCode;
pub use journal::{Record, write as write_record};
pub use limits::Limits;
pub use store::{ConnId, DomainState, Successor, World, Xenstore};
pub use succession::{HalfWay, Restored};
pub use tree::{Actor, Change, Node, Op, Tree};
