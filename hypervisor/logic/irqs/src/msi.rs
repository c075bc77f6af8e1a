//! A device's own interrupt capabilities: where they are in its configuration space, and what to write there.
//!
//! Everything read here is a device's word and may be nonsense: lists that never end, tables outside of any region.
//! What makes no sense is an absent capability.

/// A function's first 256 bytes of configuration space.
pub trait Configuration {
    /// Reads a byte.
    fn read8(&self, at: u8) -> u8;
    /// Reads an aligned word.
    fn read16(&self, at: u8) -> u16;
    /// Reads an aligned dword.
    fn read32(&self, at: u8) -> u32;
    /// Writes an aligned word.
    fn write16(&mut self, at: u8, value: u16);
    /// Writes an aligned dword.
    fn write32(&mut self, at: u8, value: u32);
}

const VENDOR: u8 = 0x00;
const COMMAND: u8 = 0x04;
const STATUS: u8 = 0x06;
const HEADER_TYPE: u8 = 0x0e;
const FIRST_BAR: u8 = 0x10;
const CAPABILITIES: u8 = 0x34;

const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_NO_INTX: u16 = 1 << 10;
const STATUS_HAS_LIST: u16 = 1 << 4;
const ID_MSI: u8 = 0x05;
const ID_MSIX: u8 = 0x11;
/// As many as fit between the header and the end.
const MAX_CAPABILITIES: usize = 48;

const MSI_ENABLE: u16 = 1 << 0;
const MSI_64_BIT: u16 = 1 << 7;
const MSI_MASKABLE: u16 = 1 << 8;
const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_MASK_ALL: u16 = 1 << 14;

/// Bytes of one MSI-X table entry.
pub const TABLE_ENTRY: u64 = 16;

/// Tells whether any device answers.
pub fn is_present(device: &impl Configuration) -> bool {
    let vendor = device.read16(VENDOR);
    vendor != 0xffff && vendor != 0
}

/// Tells whether the device answers in memory, without which its MSI-X table cannot be reached.
pub fn decodes_memory(device: &impl Configuration) -> bool {
    device.read16(COMMAND) & COMMAND_MEMORY != 0
}

/// Keeps a device from using its interrupt line beside messages, or lets it again.
pub fn set_intx(device: &mut impl Configuration, enabled: bool) {
    let command = device.read16(COMMAND);
    let new = if enabled {
        command & !COMMAND_NO_INTX
    } else {
        command | COMMAND_NO_INTX
    };
    if new != command {
        device.write16(COMMAND, new);
    }
}

fn find(device: &impl Configuration, id: u8) -> Option<u8> {
    if device.read16(STATUS) & STATUS_HAS_LIST == 0 {
        return None;
    }
    let mut at = device.read8(CAPABILITIES) & !3;
    for _ in 0..MAX_CAPABILITIES {
        if at < 0x40 {
            return None;
        }
        let [found, next] = device.read16(at).to_le_bytes();
        if found == id {
            return Some(at);
        }
        at = next & !3;
    }
    None
}

/// The MSI capability.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Msi {
    at: u8,
    /// Addresses above 4 GiB can be given.
    pub is_64_bit: bool,
    /// Single messages can be masked.
    pub is_maskable: bool,
    /// The most messages, a power of two up to 32.
    pub max_messages: u8,
}

impl Msi {
    /// Finds the capability.
    pub fn find(device: &impl Configuration) -> Option<Msi> {
        let at = find(device, ID_MSI)?;
        let control = device.read16(at.checked_add(2)?);
        let log2 = (control >> 1 & 7).min(5);
        let msi = Msi {
            at,
            is_64_bit: control & MSI_64_BIT != 0,
            is_maskable: control & MSI_MASKABLE != 0,
            max_messages: 1 << log2,
        };
        // The whole capability must lie within the space.
        msi.mask_register().checked_add(8).map(|_| msi)
    }

    fn data_register(self) -> u8 {
        self.at.saturating_add(if self.is_64_bit { 12 } else { 8 })
    }

    fn mask_register(self) -> u8 {
        self.at.saturating_add(if self.is_64_bit { 16 } else { 12 })
    }

    /// Writes the message, for `count` messages of which this is the first; masks all where that can be done.
    pub fn program(self, device: &mut impl Configuration, address: u64, data: u32, count: u8) {
        if self.is_maskable {
            device.write32(self.mask_register(), u32::MAX);
        }
        let [low, high] = halves(address);
        device.write32(self.at + 4, low);
        if self.is_64_bit {
            device.write32(self.at + 8, high);
        }
        device.write16(
            self.data_register(),
            data.to_le_bytes()
                .first_chunk()
                .map_or(0, |low| u16::from_le_bytes(*low)),
        );
        let log2 = u16::try_from(count.max(1).next_power_of_two().trailing_zeros().min(5)).unwrap_or(0);
        let control = device.read16(self.at + 2) & !(7 << 4);
        device.write16(self.at + 2, control | log2 << 4);
    }

    /// Lets the device send messages, or not.
    pub fn enable(self, device: &mut impl Configuration, enabled: bool) {
        let control = device.read16(self.at + 2);
        let new = if enabled {
            control | MSI_ENABLE
        } else {
            control & !MSI_ENABLE
        };
        if new != control {
            device.write16(self.at + 2, new);
        }
    }

    /// Masks or unmasks one message, where that can be done.
    pub fn mask(self, device: &mut impl Configuration, index: u8, masked: bool) {
        if !self.is_maskable || index >= 32 {
            return;
        }
        let old = device.read32(self.mask_register());
        let new = if masked { old | 1 << index } else { old & !(1 << index) };
        device.write32(self.mask_register(), new);
    }
}

/// The MSI-X capability.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MsiX {
    at: u8,
    /// Entries of the table.
    pub entries: u16,
    /// Which base address register the table lies behind.
    pub region: u8,
    /// Where behind it.
    pub offset: u32,
}

impl MsiX {
    /// Finds the capability.
    pub fn find(device: &impl Configuration) -> Option<MsiX> {
        let at = find(device, ID_MSIX)?;
        at.checked_add(12)?;
        let control = device.read16(at + 2);
        let table = device.read32(at + 4);
        let region = (table & 7) as u8;
        (region < 6).then_some(MsiX {
            at,
            entries: (control & 0x7ff) + 1,
            region,
            offset: table & !7,
        })
    }

    /// Lets the device send messages, or not; messages whose entries are masked stay so.
    pub fn enable(self, device: &mut impl Configuration, enabled: bool) {
        let control = device.read16(self.at + 2);
        let new = if enabled {
            (control | MSIX_ENABLE) & !MSIX_MASK_ALL
        } else {
            control & !MSIX_ENABLE
        };
        if new != control {
            device.write16(self.at + 2, new);
        }
    }

    /// Switches the capability on with everything masked, so that table entries can be written. Answers what
    /// [`Self::restore`] takes to undo that.
    pub fn hold(self, device: &mut impl Configuration) -> u16 {
        let control = device.read16(self.at + 2);
        device.write16(self.at + 2, control | MSIX_ENABLE | MSIX_MASK_ALL);
        control
    }

    /// Ends [`Self::hold`].
    pub fn restore(self, device: &mut impl Configuration, control: u16) {
        device.write16(self.at + 2, control);
    }

    /// The machine address of the table, by what the device's base address registers say now.
    pub fn table(self, device: &impl Configuration) -> Option<u64> {
        region(device, self.region)?.checked_add(u64::from(self.offset))
    }
}

/// Where a memory region of the device lies. `None` for I/O ports, for nothing, and for the upper half of another.
pub fn region(device: &impl Configuration, number: u8) -> Option<u64> {
    let is_bridge = device.read8(HEADER_TYPE) & 0x7f != 0;
    let registers = if is_bridge { 2 } else { 6 };
    if number >= registers {
        return None;
    }
    let at = FIRST_BAR + number * 4;
    let low = device.read32(at);
    if low & 1 != 0 {
        return None;
    }
    let base = match low >> 1 & 3 {
        0 => u64::from(low & !0xf),
        2 if number + 1 < registers => u64::from(low & !0xf) | u64::from(device.read32(at + 4)) << 32,
        _ => return None,
    };
    (base != 0).then_some(base)
}

fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Device([u8; 256]);

    impl Configuration for Device {
        fn read8(&self, at: u8) -> u8 {
            self.0[usize::from(at)]
        }
        fn read16(&self, at: u8) -> u16 {
            assert!(at.is_multiple_of(2));
            u16::from_le_bytes([self.read8(at), self.read8(at + 1)])
        }
        fn read32(&self, at: u8) -> u32 {
            assert!(at.is_multiple_of(4));
            u32::from(self.read16(at)) | u32::from(self.read16(at + 2)) << 16
        }
        fn write16(&mut self, at: u8, value: u16) {
            self.0[usize::from(at)..][..2].copy_from_slice(&value.to_le_bytes());
        }
        fn write32(&mut self, at: u8, value: u32) {
            self.0[usize::from(at)..][..4].copy_from_slice(&value.to_le_bytes());
        }
    }

    fn device() -> Device {
        let mut device = Device([0; 256]);
        device.write16(VENDOR, 0x1af4);
        device.write16(STATUS, STATUS_HAS_LIST);
        device.0[usize::from(CAPABILITIES)] = 0x40;
        device
    }

    fn with_msi(control: u16) -> Device {
        let mut device = device();
        device.write16(0x40, 0x5009); // some vendor's capability, then 0x50
        device.write16(0x50, u16::from(ID_MSI));
        device.write16(0x52, control);
        device
    }

    #[test]
    fn a_list_that_bites_its_tail_ends() {
        let mut device = device();
        device.write16(0x40, 0x4009);
        assert_eq!(Msi::find(&device), None);
    }

    #[test]
    fn without_the_status_bit_there_is_no_list() {
        let mut device = with_msi(0);
        device.write16(STATUS, 0);
        assert_eq!(Msi::find(&device), None);
    }

    #[test]
    fn a_capability_that_runs_off_the_end_is_absent() {
        let mut device = device();
        device.0[usize::from(CAPABILITIES)] = 0xf8;
        device.write16(0xf8, u16::from(ID_MSIX));
        assert_eq!(MsiX::find(&device), None);
        device.write16(0xf8, u16::from(ID_MSI));
        assert_eq!(Msi::find(&device), None);
    }

    #[test]
    fn a_wide_maskable_message_is_written_masked() {
        let mut device = with_msi(MSI_64_BIT | MSI_MASKABLE | 3 << 1);
        let msi = Msi::find(&device).unwrap();
        assert_eq!(msi.max_messages, 8);
        msi.program(&mut device, 0xfee0_1000, 0x41, 4);
        assert_eq!(device.read32(0x54), 0xfee0_1000);
        assert_eq!(device.read32(0x58), 0);
        assert_eq!(device.read16(0x5c), 0x41);
        assert_eq!(device.read32(0x60), u32::MAX);
        assert_eq!(device.read16(0x52) >> 4 & 7, 2);
        msi.mask(&mut device, 1, false);
        assert_eq!(device.read32(0x60), !2);
        msi.enable(&mut device, true);
        assert_eq!(device.read16(0x52) & 1, 1);
    }

    #[test]
    fn a_narrow_message_keeps_its_data_next_to_its_address() {
        let mut device = with_msi(0);
        Msi::find(&device).unwrap().program(&mut device, 0xfee0_0000, 0x99, 1);
        assert_eq!(device.read16(0x58), 0x99);
    }

    #[test]
    fn a_table_is_found_behind_a_64_bit_region() {
        let mut device = device();
        device.write16(0x40, u16::from(ID_MSIX));
        device.write16(0x42, 3);
        device.write32(0x44, 0x2000 | 4);
        device.write32(0x20, 0xfeb0_0000 | 0xc);
        device.write32(0x24, 1);
        let msix = MsiX::find(&device).unwrap();
        assert_eq!(msix.entries, 4);
        assert_eq!(msix.table(&device), Some(0x1_feb0_2000));
        device.write32(0x20, 0xc001);
        assert_eq!(msix.table(&device), None, "I/O ports hold no table");
    }

    #[test]
    fn enabling_msix_lifts_the_common_mask() {
        let mut device = device();
        device.write16(0x40, u16::from(ID_MSIX));
        let msix = MsiX::find(&device).unwrap();
        let before = msix.hold(&mut device);
        assert_eq!(device.read16(0x42), MSIX_ENABLE | MSIX_MASK_ALL);
        msix.restore(&mut device, before);
        msix.enable(&mut device, true);
        assert_eq!(device.read16(0x42), MSIX_ENABLE);
    }
}
