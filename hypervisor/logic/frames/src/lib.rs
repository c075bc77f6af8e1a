//! Who holds each machine frame, and as what: the accounts that keep PV guests honest.
//!
//! A PV guest writes its own page tables, so what keeps it from mapping its neighbour is this: every frame
//! has an owner, a count of references and a *type* with a count of its own (level-1..4 table, descriptor
//! page, writable page). An entry of a table that is in use holds a reference to what it names, and a type
//! reference if it lets the guest write there or is itself the way to a lower table.
//!
//! Always true ([`audit`](tables) in the tests; each line is one class of past advisories):
//! 1. A frame has at most one type at a time, and changes it only while nobody holds it as that type; so it is
//!    never writable by a guest and a page table at once.
//! 2. A table that the CPU may walk is *validated*: every entry obeys the rules of [`entry`] and holds what it
//!    names.
//! 3. A table that is not validated, but is held as a table, is *partial*: exactly its entries below the cursor
//!    hold what they name, and the one at the cursor too if the cursor says so.
//! 4. Nothing counts past its width: a count that would overflow refuses the reference.
//! 5. After a type change, no CPU uses a translation from before it.
//!
//! The layers, each usable without the one above: [`word`] (pure steps of the one atomic word), [`frame`] (the
//! frame's record and its compare-exchange loops), [`entry`] (what a table's entry may say), [`tables`]
//! (promotion, demotion and update of tables, interruptible at every entry).
//!
//! Locks: types of tables and descriptor pages change only under the owning domain's page-table lock.
//! References and the writable type need none. Guests see this through `mmu_update`, `mmuext_op` and
//! `update_va_mapping`; upstream: xen/arch/x86/mm.c.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod descriptor;
pub mod entry;
pub mod frame;
pub mod mirror;
pub mod tables;
pub mod word;

pub use frame::{Frame, Put};
pub use tables::{Dropped, Flavour, Host, Space, Stop};
pub use word::{Kind, Refused, Word};
