use super::*;
use crate::{Mapping, Use};
use core::cell::RefCell;
use ferroxen_words::Handle;
use proptest::prelude::*;
extern crate std;
use std::vec::Vec;

struct Shared(RefCell<Vec<u64>>);

impl SharedEntries for Shared {
    type Frame = Mfn;

    fn frame(&self, frame: Mfn) -> Mfn {
        frame
    }
    fn load(&self, _: Mfn, index: usize) -> u64 {
        self.0.borrow()[index]
    }
    fn replace(&self, _: Mfn, index: usize, old: u64, new: u64) -> bool {
        let mut entries = self.0.borrow_mut();
        let same = entries[index] == old;
        if same {
            entries[index] = new;
        }
        same
    }
    fn clear_flags(&self, _: Mfn, index: usize, flags: u16) {
        self.0.borrow_mut()[index] &= !u64::from(flags);
    }
}

impl Shared {
    fn entry(&self, gref: u32) -> Entry {
        Entry(self.0.borrow()[gref as usize])
    }
}

fn id(n: u16) -> DomId {
    DomId::new(n).unwrap()
}

fn offer(shared: &Shared, gref: u32, to: u16, flags: u16, frame: u32) {
    shared.0.borrow_mut()[gref as usize] = u64::from(flags) | u64::from(to) << 16 | u64::from(frame) << 32;
}

fn fresh() -> (GrantTable<DomId>, Shared) {
    let mut table = GrantTable::new(2, 1).unwrap();
    table.prepare_frame().unwrap();
    table.add_frame(Mfn::new(7));
    (table, Shared(RefCell::new(std::vec![0; 512])))
}

const GREF: Gref = Gref::new(9);

#[test]
fn a_grant_in_use_says_so_until_its_last_use_ends() {
    let (mut table, shared) = fresh();
    offer(&shared, 9, 3, Entry::PERMIT_ACCESS, 0x1234);
    assert_eq!(
        table.pin(&shared, GREF, id(3), Access::ReadOnly),
        Ok(Pinned {
            frame: Mfn::new(0x1234)
        })
    );
    assert_eq!(shared.entry(9).flags(), Entry::PERMIT_ACCESS | Entry::READING);
    let _ = table.pin(&shared, GREF, id(3), Access::ReadWrite).unwrap();
    assert_eq!(
        shared.entry(9).flags(),
        Entry::PERMIT_ACCESS | Entry::READING | Entry::WRITING
    );
    table.unpin(&shared, GREF, Access::ReadWrite);
    assert_eq!(shared.entry(9).flags(), Entry::PERMIT_ACCESS | Entry::READING);
    table.unpin(&shared, GREF, Access::ReadOnly);
    assert_eq!(shared.entry(9).flags(), Entry::PERMIT_ACCESS);
}

#[test]
fn a_grant_is_only_for_whom_it_names() {
    let (mut table, shared) = fresh();
    offer(&shared, 9, 3, Entry::PERMIT_ACCESS, 1);
    assert_eq!(
        table.pin(&shared, GREF, id(4), Access::ReadOnly),
        Err(Refused::NotForYou)
    );
    let _ = table.pin(&shared, GREF, id(3), Access::ReadOnly).unwrap();
    // Renaming the grantee while the grant is in use gives nobody else access.
    offer(&shared, 9, 4, Entry::PERMIT_ACCESS | Entry::READING, 2);
    assert_eq!(
        table.pin(&shared, GREF, id(4), Access::ReadOnly),
        Err(Refused::NotForYou)
    );
}

#[test]
fn the_frame_of_a_grant_in_use_does_not_change() {
    let (mut table, shared) = fresh();
    offer(&shared, 9, 3, Entry::PERMIT_ACCESS, 1);
    let _ = table.pin(&shared, GREF, id(3), Access::ReadOnly).unwrap();
    offer(&shared, 9, 3, Entry::PERMIT_ACCESS | Entry::READING, 2);
    assert_eq!(
        table.pin(&shared, GREF, id(3), Access::ReadOnly),
        Ok(Pinned { frame: Mfn::new(1) })
    );
}

#[test]
fn a_read_only_grant_cannot_be_written() {
    let (mut table, shared) = fresh();
    offer(&shared, 9, 3, Entry::PERMIT_ACCESS | Entry::READONLY, 1);
    assert_eq!(
        table.pin(&shared, GREF, id(3), Access::ReadWrite),
        Err(Refused::ReadOnly)
    );
    let _ = table.pin(&shared, GREF, id(3), Access::ReadOnly).unwrap();
    assert_eq!(
        table.pin(&shared, GREF, id(3), Access::ReadWrite),
        Err(Refused::ReadOnly)
    );
}

#[test]
fn nothing_is_granted_by_transfer_transitive_or_sub_page_entries_or_beyond_the_table() {
    let (mut table, shared) = fresh();
    for flags in [0, 2, 3, Entry::PERMIT_ACCESS | Entry::SUB_PAGE] {
        offer(&shared, 9, 3, flags, 1);
        assert_eq!(
            table.pin(&shared, GREF, id(3), Access::ReadOnly),
            Err(Refused::NotOffered)
        );
    }
    assert_eq!(
        table.pin(&shared, Gref::new(512), id(3), Access::ReadOnly),
        Err(Refused::NoSuchGrant)
    );
    assert_eq!(
        table.pin(&shared, Gref::new(u32::MAX), id(3), Access::ReadOnly),
        Err(Refused::NoSuchGrant)
    );
}

#[test]
fn a_table_grows_to_its_limit_and_no_further() {
    let (mut table, _) = fresh();
    table.prepare_frame().unwrap();
    table.add_frame(Mfn::new(8));
    assert_eq!(table.prepare_frame(), Err(Refused::NoSuchGrant));
    assert_eq!(table.frame(1), Some(Mfn::new(8)));
    assert_eq!(table.frame(2), None);
}

#[test]
fn entries_swap_unless_one_is_in_use() {
    let (mut table, shared) = fresh();
    offer(&shared, 1, 3, Entry::PERMIT_ACCESS, 0x10);
    offer(&shared, 2, 4, Entry::PERMIT_ACCESS, 0x20);
    assert_eq!(table.swap(&shared, Gref::new(1), Gref::new(2)), Ok(()));
    assert_eq!((shared.entry(1).grantee(), shared.entry(2).grantee()), (4, 3));
    let _ = table.pin(&shared, Gref::new(1), id(4), Access::ReadOnly).unwrap();
    assert!(table.swap(&shared, Gref::new(2), Gref::new(1)).is_err());
}

#[test]
fn handles_end_at_the_limit() {
    let mut maps = MapTrack::<DomId>::new(1);
    for _ in 0..256 {
        maps.take().unwrap();
    }
    assert_eq!(maps.take(), Err(Refused::NoHandleLeft));
    maps.free(Handle::new(40));
    assert_eq!(maps.take(), Ok(Handle::new(40)));
}

#[test]
fn a_handle_that_somebody_works_on_is_no_handle_for_others() {
    let mut maps = MapTrack::<DomId>::new(1);
    let handle = maps.take().unwrap();
    assert_eq!(maps.begin(handle), Err(Refused::NoSuchHandle));
    let mapping = Mapping {
        owner: id(1),
        gref: GREF,
        frame: Mfn::new(1),
        access: Access::ReadOnly,
        uses: Use {
            host: true,
            device: false,
        },
        names_entry: false,
    };
    maps.set(handle, mapping);
    let frame = maps.begin(handle).map(|facts| facts.frame);
    assert_eq!(frame, Ok(mapping.frame));
    assert_eq!(maps.begin(handle), Err(Refused::NoSuchHandle));
    maps.keep(handle, Use::default());
    assert_eq!(maps.begin(handle).map(|facts| facts.uses), Ok(Use::default()));
    let uses = Use::default();
    assert_eq!(maps.finish(handle), Mapping { uses, ..mapping });
    assert_eq!(maps.begin(handle), Err(Refused::NoSuchHandle));
    assert_eq!(maps.audit(), Ok(()));
}

/// A use that its entry does not tell of, which can only be where the guest wrote to an entry in use.
fn what_the_flags_miss(table: &GrantTable<DomId>, shared: &Shared) -> Option<Gref> {
    (0..8).map(Gref::new).find(|gref| {
        let flags = shared.entry(gref.raw()).flags();
        table
            .uses(*gref)
            .is_some_and(|(_, writers, _)| flags & Entry::READING == 0 || writers != 0 && flags & Entry::WRITING == 0)
    })
}

proptest! {
    #[test]
    fn no_history_breaks_what_is_always_true(
        steps in prop::collection::vec((0_u8..6, 0_u32..6, 1_u16..4, any::<bool>(), any::<u16>()), 1..150),
    ) {
        let (mut table, shared) = fresh();
        let mut pins: Vec<(Gref, Access)> = Vec::new();
        let mut handles: Vec<Handle> = Vec::new();
        for (what, gref, who, write, noise) in steps {
            let access = if write { Access::ReadWrite } else { Access::ReadOnly };
            match what {
                // A guest that keeps to the rules does not touch an entry in use; one that does not
                // harms only itself, but then the flags no longer tell.
                0 if table.uses(Gref::new(gref)).is_none() => {
                    offer(&shared, gref, who, noise & 0x1e7 | u16::from(write), u32::from(noise));
                }
                1 | 2 if table.pin(&shared, Gref::new(gref), id(who), access).is_ok() => {
                    pins.push((Gref::new(gref), access));
                }
                3 if !pins.is_empty() => {
                    let (gref, access) = pins.swap_remove(usize::from(noise) % pins.len());
                    table.unpin(&shared, gref, access);
                }
                4 => handles.extend(table.maps.take()),
                5 if !handles.is_empty() => {
                    let handle = handles.swap_remove(usize::from(noise) % handles.len());
                    table.maps.free(handle);
                }
                _ => {}
            }
            prop_assert_eq!(table.audit(), Ok(()));
            prop_assert_eq!(what_the_flags_miss(&table, &shared), None);
            prop_assert_eq!(table.is_in_use(), !pins.is_empty());
        }
    }
}
