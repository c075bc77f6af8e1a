//! What a Multiboot 1 or 2 boot loader leaves for us, read into one description.
//!
//! Everything is addressed by machine addresses, so reading goes through [`Memory`]. Nothing is
//! allocated: this runs before there is a heap. Texts stay where they are as [`Text`], to be read when
//! wanted; the caller keeps the memory they lie in until then ([`BootInfo::occupied`] lists it all).
//!
//! Sources: "Multiboot Specification version 0.6.96", "Multiboot2 Specification version 2.0".

use crate::memory_map::{Kind, Region};
use arrayvec::ArrayVec;
use core::ops::Range;

/// Machine memory, as far as it is there.
pub trait Memory {
    /// Fills `bytes` from machine address `at`; `false` if not all of it can be read.
    fn read(&self, at: u64, bytes: &mut [u8]) -> bool;
}

/// What `eax` holds at the entry of an image loaded by Multiboot 1.
pub const MAGIC1: u32 = 0x2bad_b002;
/// What `eax` holds at the entry of an image loaded by Multiboot 2.
pub const MAGIC2: u32 = 0x36d7_6289;

/// Modules taken in: kernel, initrd, microcode and more.
pub const MAX_MODULES: usize = 32;
/// Memory regions taken in.
pub const MAX_REGIONS: usize = crate::memory_map::MAX_CLAIMS;
/// Longest text we look at.
pub const MAX_TEXT: usize = 4096;

/// Why the boot information cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadBootInfo {
    /// `eax` holds neither magic number.
    NotMultiboot(u32),
    /// The structure lies where nothing can be read.
    Unreadable(u64),
    /// The tags do not add up.
    Malformed,
    /// No memory map at all.
    NoMemoryMap,
}

/// A NUL-terminated text in machine memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Text {
    /// Its first byte; 0 for "none".
    pub at: u64,
    /// Its length without the NUL, at most [`MAX_TEXT`].
    pub length: usize,
}

impl Text {
    fn find(memory: &impl Memory, at: u64) -> Text {
        let mut length = 0;
        let mut byte = [0];
        while at != 0 && length < MAX_TEXT && memory.read(at.wrapping_add(length as u64), &mut byte) && byte[0] != 0 {
            length += 1;
        }
        Text { at, length }
    }

    /// Reads into `buffer`; what does not fit is left out, and so is anything behind odd bytes.
    pub fn read<'b>(&self, memory: &impl Memory, buffer: &'b mut [u8]) -> &'b str {
        let length = self.length.min(buffer.len());
        let bytes = &mut buffer[..length];
        if !memory.read(self.at, bytes) {
            return "";
        }
        let bytes: &'b [u8] = bytes;
        match core::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => core::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or(""),
        }
    }

    fn range(&self) -> Range<u64> {
        self.at..self.at.saturating_add(self.length as u64 + 1)
    }
}

/// A file loaded beside us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Module {
    /// First byte.
    pub start: u64,
    /// Behind the last byte.
    pub end: u64,
    /// Its command line, see [`arguments`].
    pub command_line: Text,
}

/// A linear frame buffer or, with `kind` 2, a text screen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Framebuffer {
    /// First byte.
    pub address: u64,
    /// Bytes per line.
    pub pitch: u32,
    /// Pixels or characters per line.
    pub width: u32,
    /// Lines.
    pub height: u32,
    /// Bits per pixel.
    pub depth: u8,
    /// 0 indexed, 1 RGB, 2 EGA text.
    pub kind: u8,
}

/// All that the boot loader told. About 8 KiB.
#[derive(Clone, Debug, Default)]
pub struct BootInfo {
    /// The loader's name.
    pub loader: Text,
    /// Our own command line, see [`arguments`].
    pub command_line: Text,
    /// Files loaded beside us; the first is Domain 0's kernel.
    pub modules: ArrayVec<Module, MAX_MODULES>,
    /// The memory map as told, to be sanitised.
    pub memory: ArrayVec<Region, MAX_REGIONS>,
    /// The ACPI root pointer, copied by the loader (20 bytes, or 36 from ACPI 2 on).
    pub rsdp: Option<ArrayVec<u8, 36>>,
    /// The screen.
    pub framebuffer: Option<Framebuffer>,
    /// EFI's 64-bit system table.
    pub efi_system_table: Option<u64>,
    /// EFI's memory map (the tag's content: descriptor size, version, descriptors).
    pub efi_memory_map: Option<Range<u64>>,
    /// EFI's boot services still run.
    pub efi_boot_services: bool,
    /// Modules or regions that found no room here.
    pub dropped: usize,
    structure: Range<u64>,
}

impl BootInfo {
    /// Reads what `at` points to, told apart by the `magic` of the entry's `eax`.
    pub fn read(memory: &impl Memory, magic: u32, at: u64) -> Result<Self, BadBootInfo> {
        let mut info = BootInfo::default();
        match magic {
            MAGIC1 => info.read_first(&Reader { memory, at })?,
            MAGIC2 => info.read_second(&Reader { memory, at })?,
            other => return Err(BadBootInfo::NotMultiboot(other)),
        }
        if info.memory.is_empty() {
            Err(BadBootInfo::NoMemoryMap)
        } else {
            Ok(info)
        }
    }

    /// Everything that lies in memory and must be kept until it is no longer needed.
    pub fn occupied(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let texts = [self.loader, self.command_line].into_iter().map(|text| text.range());
        let modules = self
            .modules
            .iter()
            .flat_map(|module| [module.start..module.end, module.command_line.range()]);
        core::iter::once(self.structure.clone())
            .chain(texts)
            .chain(modules)
            .filter(|range| range.start != 0)
    }

    fn read_first(&mut self, info: &Reader<'_, impl Memory>) -> Result<(), BadBootInfo> {
        self.structure = info.at..info.at + 116;
        let flags = info.u32(0)?;
        let has = |bit: u32| flags & 1 << bit != 0;
        if has(2) {
            self.command_line = info.text(u64::from(info.u32(16)?));
        }
        if has(9) {
            self.loader = info.text(u64::from(info.u32(64)?));
        }
        if has(3) {
            let list = info.at(u64::from(info.u32(24)?));
            for index in 0..info.u32(20)?.min(MAX_MODULES as u32 * 4) {
                let module = list.at(list.at + u64::from(index) * 16);
                let text = module.text(u64::from(module.u32(8)?));
                self.add_module(u64::from(module.u32(0)?), u64::from(module.u32(4)?), text);
            }
        }
        if has(6) {
            let begin = u64::from(info.u32(48)?);
            let end = begin + u64::from(info.u32(44)?);
            let mut entry = info.at(begin);
            while entry.at + 24 <= end {
                let start = entry.u64(4)?;
                self.add_region(start, entry.u64(12)?, entry.u32(20)?);
                entry.at += u64::from(entry.u32(0)?) + 4;
            }
        } else if has(0) {
            self.add_region(0, u64::from(info.u32(4)?) << 10, Kind::RAM.0);
            self.add_region(1 << 20, u64::from(info.u32(8)?) << 10, Kind::RAM.0);
        }
        if has(12) {
            self.framebuffer = Some(info.framebuffer(88)?);
        }
        Ok(())
    }

    fn read_second(&mut self, info: &Reader<'_, impl Memory>) -> Result<(), BadBootInfo> {
        let end = info.at + u64::from(info.u32(0)?);
        self.structure = info.at..end;
        let mut tag = info.at(info.at + 8);
        while tag.at + 8 <= end {
            let (kind, size) = (tag.u32(0)?, u64::from(tag.u32(4)?));
            if size < 8 || tag.at + size > end {
                return Err(BadBootInfo::Malformed);
            }
            if kind == 0 {
                break;
            }
            self.read_tag(&tag, kind, size)?;
            tag.at += size.next_multiple_of(8);
        }
        Ok(())
    }

    fn read_tag(&mut self, tag: &Reader<'_, impl Memory>, kind: u32, size: u64) -> Result<(), BadBootInfo> {
        match kind {
            1 => self.command_line = tag.text(tag.at + 8),
            2 => self.loader = tag.text(tag.at + 8),
            3 => self.add_module(u64::from(tag.u32(8)?), u64::from(tag.u32(12)?), tag.text(tag.at + 16)),
            // Only when there is no full map: that one comes as tag 6 and replaces this.
            4 if self.memory.is_empty() => {
                self.add_region(0, u64::from(tag.u32(8)?) << 10, Kind::RAM.0);
                self.add_region(1 << 20, u64::from(tag.u32(12)?) << 10, Kind::RAM.0);
            }
            6 => {
                self.memory.clear();
                let step = u64::from(tag.u32(8)?);
                if step < 24 {
                    return Err(BadBootInfo::Malformed);
                }
                let mut entry = tag.at(tag.at + 16);
                while entry.at + 24 <= tag.at + size {
                    let start = entry.u64(0)?;
                    self.add_region(start, entry.u64(8)?, entry.u32(16)?);
                    entry.at += step;
                }
            }
            8 => self.framebuffer = Some(tag.framebuffer(8)?),
            12 => self.efi_system_table = Some(tag.u64(8)?),
            // The newer root pointer (15) is preferred, in whichever order they come.
            14 | 15 if kind == 15 || self.rsdp.is_none() => {
                let mut bytes = [0; 36];
                let length = (size as usize - 8).min(36);
                tag.bytes(8, &mut bytes[..length])?;
                self.rsdp = Some(bytes[..length].iter().copied().collect());
            }
            17 => self.efi_memory_map = Some(tag.at + 8..tag.at + size),
            18 => self.efi_boot_services = true,
            _ => {}
        }
        Ok(())
    }

    fn add_module(&mut self, start: u64, end: u64, command_line: Text) {
        if start > end
            || self
                .modules
                .try_push(Module {
                    start,
                    end,
                    command_line,
                })
                .is_err()
        {
            self.dropped += 1;
        }
    }

    fn add_region(&mut self, start: u64, size: u64, kind: u32) {
        let region = Region {
            start,
            end: start.saturating_add(size),
            kind: Kind(kind),
        };
        if size != 0 && self.memory.try_push(region).is_err() {
            self.dropped += 1;
        }
    }
}

/// A command line without the file's name, which every loader but GRUB 2 puts in front.
pub fn arguments<'t>(command_line: &'t str, loader: &str) -> &'t str {
    let text = command_line.trim_start();
    let is_grub2 = loader
        .strip_prefix("GRUB ")
        .is_some_and(|version| !version.starts_with('0'));
    if is_grub2 {
        text
    } else {
        text.split_once(' ').map_or("", |(_, rest)| rest.trim_start())
    }
}

struct Reader<'m, M> {
    memory: &'m M,
    at: u64,
}

impl<'m, M: Memory> Reader<'m, M> {
    fn at(&self, at: u64) -> Reader<'m, M> {
        Reader {
            memory: self.memory,
            at,
        }
    }

    fn bytes(&self, offset: u64, bytes: &mut [u8]) -> Result<(), BadBootInfo> {
        let at = self.at.checked_add(offset).ok_or(BadBootInfo::Malformed)?;
        if self.memory.read(at, bytes) {
            Ok(())
        } else {
            Err(BadBootInfo::Unreadable(at))
        }
    }

    fn u32(&self, offset: u64) -> Result<u32, BadBootInfo> {
        let mut bytes = [0; 4];
        self.bytes(offset, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn u64(&self, offset: u64) -> Result<u64, BadBootInfo> {
        let mut bytes = [0; 8];
        self.bytes(offset, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn text(&self, at: u64) -> Text {
        Text::find(self.memory, at)
    }

    fn framebuffer(&self, offset: u64) -> Result<Framebuffer, BadBootInfo> {
        let mut kinds = [0; 2];
        self.bytes(offset + 20, &mut kinds)?;
        Ok(Framebuffer {
            address: self.u64(offset)?,
            pitch: self.u32(offset + 8)?,
            width: self.u32(offset + 12)?,
            height: self.u32(offset + 16)?,
            depth: kinds[0],
            kind: kinds[1],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    struct Ram(Vec<u8>);

    impl Memory for Ram {
        fn read(&self, at: u64, bytes: &mut [u8]) -> bool {
            let Ok(at) = usize::try_from(at) else { return false };
            match at.checked_add(bytes.len()).and_then(|end| self.0.get(at..end)) {
                Some(found) => {
                    bytes.copy_from_slice(found);
                    true
                }
                None => false,
            }
        }
    }

    impl Ram {
        fn put(&mut self, at: usize, bytes: &[u8]) {
            self.0[at..at + bytes.len()].copy_from_slice(bytes);
        }
        fn words(&mut self, at: usize, words: &[u32]) {
            words
                .iter()
                .enumerate()
                .for_each(|(index, word)| self.put(at + index * 4, &word.to_le_bytes()));
        }
        fn text(&self, text: Text) -> alloc::string::String {
            text.read(self, &mut [0; 256]).into()
        }
    }

    fn first() -> Ram {
        let mut ram = Ram(vec![0; 0x2000]);
        ram.words(
            0x100,
            &[
                1 << 2 | 1 << 3 | 1 << 6 | 1 << 9,
                0,
                0,
                0,
                0x400,
                2,
                0x200,
                0,
                0,
                0,
                0,
                48,
                0x300,
                0,
                0,
                0,
                0x440,
            ],
        );
        ram.put(0x400, b"xen.gz dom0_mem=512M\0");
        ram.put(0x440, b"qemu\0");
        ram.words(0x200, &[0x10_0000, 0x20_0000, 0x460, 0, 0x30_0000, 0x30_1000, 0, 0]);
        ram.put(0x460, b"vmlinuz console=hvc0\0");
        ram.words(0x300, &[20, 0, 0, 0xa_0000, 0, 1, 20, 0x10_0000, 0, 0, 1, 1]);
        ram
    }

    fn second() -> Ram {
        let mut ram = Ram(vec![0; 0x2000]);
        let mut at = 0x108;
        let mut tag = |kind: u32, body: &[u8]| {
            ram.words(at, &[kind, 8 + body.len() as u32]);
            ram.put(at + 8, body);
            at += (8 + body.len()).next_multiple_of(8);
        };
        tag(1, b"loglvl=all\0");
        tag(2, b"GRUB 2.06\0");
        tag(3, b"\0\0\x10\0\0\0\x20\0console=hvc0 quiet\0");
        tag(14, b"RSD PTR old 20 bytes");
        tag(15, b"RSD PTR new 36 bytes 36 bytes 36 byt");
        let mut map = Vec::new();
        for word in [24u32, 0, 0, 0, 0x8000_0000, 0, 1, 0, 0, 1, 0x8000_0000, 0, 1, 0] {
            map.extend(word.to_le_bytes());
        }
        tag(6, &map);
        tag(18, b"");
        tag(0, b"");
        ram.words(0x100, &[at as u32 - 0x100, 0]);
        ram
    }

    #[test]
    fn multiboot_1_is_understood() {
        let ram = first();
        let info = BootInfo::read(&ram, MAGIC1, 0x100).unwrap();
        let loader = ram.text(info.loader);
        assert_eq!(arguments(&ram.text(info.command_line), &loader), "dom0_mem=512M");
        assert_eq!(info.modules.len(), 2);
        assert_eq!(
            arguments(&ram.text(info.modules[0].command_line), &loader),
            "console=hvc0"
        );
        assert_eq!((info.modules[0].start, info.modules[0].end), (0x10_0000, 0x20_0000));
        assert_eq!(info.memory.len(), 2);
        assert_eq!((info.memory[1].start, info.memory[1].end), (0x10_0000, 0x1_0010_0000));
        assert!(info.occupied().any(|range| range == (0x30_0000..0x30_1000)));
    }

    #[test]
    fn multiboot_2_is_understood() {
        let ram = second();
        let info = BootInfo::read(&ram, MAGIC2, 0x100).unwrap();
        let loader = ram.text(info.loader);
        assert_eq!(arguments(&ram.text(info.command_line), &loader), "loglvl=all");
        assert_eq!(
            arguments(&ram.text(info.modules[0].command_line), &loader),
            "console=hvc0 quiet"
        );
        assert_eq!(info.rsdp.as_ref().unwrap().len(), 36);
        assert_eq!(info.memory[1].end, 0x1_8000_0000);
        assert!(info.efi_boot_services);
    }

    #[test]
    fn a_strange_entry_is_refused() {
        assert_eq!(
            BootInfo::read(&first(), 7, 0x100).unwrap_err(),
            BadBootInfo::NotMultiboot(7)
        );
        assert_eq!(
            BootInfo::read(&first(), MAGIC1, 1 << 40).unwrap_err(),
            BadBootInfo::Unreadable(1 << 40)
        );
    }

    proptest! {
        #[test]
        fn damaged_structures_never_hang_or_panic(changes in prop::collection::vec((0x100usize..0x360, any::<u8>()), 1..8), newer in any::<bool>()) {
            let (mut ram, magic) = if newer { (second(), MAGIC2) } else { (first(), MAGIC1) };
            changes.into_iter().for_each(|(at, byte)| ram.0[at] = byte);
            drop(BootInfo::read(&ram, magic, 0x100));
        }
    }
}
