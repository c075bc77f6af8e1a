//! The numbers everyone shares, as distinct types.
//!
//! A frame number of the machine, one of a guest and one that the guest merely counts are all "u64"
//! in C, and mixing them up has been the root of more than one advisory. Here each is a type of its
//! own and no `From` joins two spaces: crossing from one to another is a named look-up that may fail.
#![no_std]
#![forbid(unsafe_code)]

use core::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes in a page: the only granule in which memory is handed out (4096).
pub const PAGE_SIZE: usize = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

macro_rules! word {
    ($(#[$doc:meta])* $name:ident($raw:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
        )]
        #[repr(transparent)]
        pub struct $name($raw);

        impl $name {
            /// Wraps a raw number.
            #[inline]
            pub const fn new(raw: $raw) -> Self {
                Self(raw)
            }

            /// Gives the raw number back.
            #[inline]
            pub const fn raw(self) -> $raw {
                self.0
            }

            /// The number `count` further on, unless that overflows.
            #[inline]
            pub const fn checked_add(self, count: $raw) -> Option<Self> {
                match self.0.checked_add(count) {
                    Some(raw) => Some(Self(raw)),
                    None => None,
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{:x}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

word!(
    /// Machine frame number: a real page of the host.
    Mfn(u64), "mfn:"
);
word!(
    /// Guest frame number: what the guest's page tables say. For a PV guest this is an mfn.
    Gfn(u64), "gfn:"
);
word!(
    /// Pseudo-physical frame number: the guest's own count, from 0.
    Pfn(u64), "pfn:"
);
word!(
    /// Machine address: a byte of the host's memory or of a device.
    Maddr(u64), "maddr:"
);
word!(
    /// Virtual address, in whichever address space the context names.
    Vaddr(u64), "vaddr:"
);
word!(
    /// Event channel port: a doorbell's number within one domain.
    Port(u32), "port:"
);
word!(
    /// Grant reference: the index at which a domain offers one of its pages.
    Gref(u32), "gref:"
);
word!(
    /// Grant handle: what a domain holds for a grant it has mapped.
    Handle(u32), "handle:"
);
word!(
    /// Physical interrupt as a guest sees it.
    Pirq(u32), "pirq:"
);
word!(
    /// Global system interrupt: an IO-APIC input, in ACPI's numbering.
    Gsi(u32), "gsi:"
);

impl Mfn {
    /// The "no such frame" of the public ABI (`~0`).
    pub const INVALID: Mfn = Mfn(!0);

    /// The address of the frame's first byte.
    #[inline]
    pub const fn maddr(self) -> Maddr {
        Maddr(self.0 << PAGE_SHIFT)
    }
}

impl Maddr {
    /// The frame that holds this byte.
    #[inline]
    pub const fn mfn(self) -> Mfn {
        Mfn(self.0 >> PAGE_SHIFT)
    }

    /// The byte's offset within its frame, below [`PAGE_SIZE`].
    #[inline]
    pub const fn offset(self) -> usize {
        (self.0 & (PAGE_SIZE as u64 - 1)) as usize
    }
}

impl Vaddr {
    /// The byte's offset within its page, below [`PAGE_SIZE`].
    #[inline]
    pub const fn offset(self) -> usize {
        (self.0 & (PAGE_SIZE as u64 - 1)) as usize
    }

    /// The address of the page's first byte.
    #[inline]
    pub const fn page(self) -> Vaddr {
        Vaddr(self.0 & !(PAGE_SIZE as u64 - 1))
    }

    /// Whether bits 63..47 are all equal (4-level paging; SDM 1 "Canonical Addressing").
    #[inline]
    pub const fn is_canonical(self) -> bool {
        let top = (self.0 as i64) >> 47;
        top == 0 || top == -1
    }
}

/// Domain id as it stands in ABI structures: any 16-bit value, `DOMID_SELF` included.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct RawDomId(pub u16);

impl RawDomId {
    /// The first id that no ordinary domain can have (`DOMID_FIRST_RESERVED`, xen.h).
    pub const FIRST_RESERVED: RawDomId = RawDomId(0x7ff0);
    /// "The caller itself" (`DOMID_SELF`).
    pub const SELF: RawDomId = RawDomId(0x7ff0);
    /// The owner of I/O memory (`DOMID_IO`).
    pub const IO: RawDomId = RawDomId(0x7ff1);
    /// The hypervisor as an owner (`DOMID_XEN`).
    pub const XEN: RawDomId = RawDomId(0x7ff2);
    /// Copy-on-write pages' owner (`DOMID_COW`).
    pub const COW: RawDomId = RawDomId(0x7ff3);
    /// "No domain" (`DOMID_INVALID`).
    pub const INVALID: RawDomId = RawDomId(0x7ff4);
    /// The idle domain (`DOMID_IDLE`).
    pub const IDLE: RawDomId = RawDomId(0x7fff);
}

/// Domain id of an ordinary domain: 0 ..= 0x7fef.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomId(u16);

impl DomId {
    /// The privileged first domain.
    pub const DOM0: DomId = DomId(0);

    /// The id, if it is one that an ordinary domain can have.
    #[inline]
    pub const fn new(raw: u16) -> Option<DomId> {
        if raw < RawDomId::FIRST_RESERVED.0 {
            Some(DomId(raw))
        } else {
            None
        }
    }

    /// The number.
    #[inline]
    pub const fn raw(self) -> u16 {
        self.0
    }

    /// The id as an ABI field.
    #[inline]
    pub const fn to_abi(self) -> RawDomId {
        RawDomId(self.0)
    }
}

impl fmt::Display for DomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "d{}", self.0)
    }
}

impl fmt::Debug for DomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Number of a vcpu within its domain, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VcpuId(pub u32);

/// Number of a physical CPU, from 0 in the order in which they were found (not its APIC id).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CpuId(pub u32);

impl fmt::Display for VcpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

impl fmt::Display for CpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cpu{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_addresses_are_the_two_halves() {
        assert!(Vaddr::new(0x7fff_ffff_ffff).is_canonical());
        assert!(!Vaddr::new(0x8000_0000_0000).is_canonical());
        assert!(Vaddr::new(0xffff_8000_0000_0000).is_canonical());
    }

    #[test]
    fn reserved_ids_are_not_ordinary_domains() {
        assert_eq!(DomId::new(0x7ff0), None);
        assert_eq!(DomId::new(0x7fef).map(DomId::raw), Some(0x7fef));
    }
}
