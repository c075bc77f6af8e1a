//! Which I/O ports stay ours, how wide an access is, and how configuration space is addressed.

use core::ops::RangeInclusive;

/// How many bytes an access moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Width {
    /// One byte.
    Byte,
    /// Two bytes.
    Word,
    /// Four bytes.
    Dword,
}

impl Width {
    /// The width of so many bytes.
    pub const fn from_bytes(count: usize) -> Option<Width> {
        match count {
            1 => Some(Width::Byte),
            2 => Some(Width::Word),
            4 => Some(Width::Dword),
            _ => None,
        }
    }

    /// How many bytes it is.
    pub const fn bytes(self) -> u16 {
        match self {
            Width::Byte => 1,
            Width::Word => 2,
            Width::Dword => 4,
        }
    }

    /// What a bus answers when nobody is there: all ones.
    pub const fn ones(self) -> u32 {
        match self {
            Width::Byte => 0xff,
            Width::Word => 0xffff,
            Width::Dword => 0xffff_ffff,
        }
    }
}

/// Ports that the door for domains refuses to touch: both 8259s, the 8254, and PCI configuration space.
pub const OWNED: [RangeInclusive<u16>; 4] = [0x20..=0x21, 0x40..=0x43, 0xa0..=0xa1, 0xcf8..=0xcff];

/// The port through which firmware resets the machine; it lies among PCI's and is a byte wide.
const RESET_CONTROL: u16 = 0xcf9;

/// Tells whether any byte of the access falls on a port that stays ours.
pub fn is_owned(port: u16, width: Width) -> bool {
    let Some(last) = port.checked_add(width.bytes() - 1) else {
        return true;
    };
    if port == RESET_CONTROL && width == Width::Byte {
        return false;
    }
    OWNED.iter().any(|range| port <= *range.end() && *range.start() <= last)
}

/// A PCI function's address: segment 0, reached through ports 0xcf8 and 0xcfc.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PciFunction {
    /// Bus number.
    pub bus: u8,
    /// Device number in bits 7..3, function in bits 2..0.
    pub devfn: u8,
}

impl PciFunction {
    /// What to write to 0xcf8 for the aligned dword that holds `offset`.
    pub const fn address(self, offset: u8) -> u32 {
        0x8000_0000 | (self.bus as u32) << 16 | (self.devfn as u32) << 8 | (offset as u32 & 0xfc)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wide_access_that_laps_over_an_owned_port_is_refused() {
        assert!(is_owned(0x1f, Width::Word));
        assert!(is_owned(0x3e, Width::Dword));
        assert!(!is_owned(0x3e, Width::Word));
        assert!(is_owned(0xcfc, Width::Byte));
        assert!(is_owned(0xffff, Width::Word), "no wrapping round the end");
        assert!(!is_owned(0xffff, Width::Byte));
    }

    #[test]
    fn the_reset_register_is_reached_only_as_a_byte() {
        assert!(!is_owned(0xcf9, Width::Byte));
        assert!(is_owned(0xcf9, Width::Word));
    }

    #[test]
    fn configuration_addresses_name_bus_device_function_and_dword() {
        let function = PciFunction {
            bus: 2,
            devfn: 0x1f << 3 | 1,
        };
        assert_eq!(function.address(0x47), 0x8002_f944);
    }
}
