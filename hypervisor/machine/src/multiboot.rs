//! What the loader left: Multiboot 1 and 2 information, read just far enough to find memory and modules.
//!
//! This runs before there is a heap. Everything is read by copy through [`Physical`], and nothing of it can make us
//! panic, read out of bounds or run away: every count is bounded by a length or a capacity, and what makes no sense
//! is refused with a sentence. (Why not by other people's crates: docs/decisions/0005.)
//!
//! Sources: "Multiboot Specification version 0.6.96", "Multiboot2 Specification version 2.0".

use arrayvec::ArrayVec;
use core::fmt;

/// Physical memory, as far as it can be read.
pub trait Physical {
    /// Fills `into` from address `at`; `false` if not all of it can be read.
    fn read(&self, at: u64, into: &mut [u8]) -> bool;
}

/// What `eax` holds at the entry of an image loaded by Multiboot 1.
pub const MAGIC1: u32 = 0x2bad_b002;
/// What `eax` holds at the entry of an image loaded by Multiboot 2.
pub const MAGIC2: u32 = 0x36d7_6289;

/// The kind of [`Range`] that is RAM.
pub const RAM: u32 = 1;

const MAX_MODULES: usize = 64;
const MAX_RANGES: usize = 256;
/// A module and its words each, and what the loader tells of itself.
const MAX_PIECES: usize = MAX_MODULES * 2 + 8;
/// Words longer than this are cut.
const MAX_TEXT: usize = 4096;

/// Why the information cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// `eax` holds neither magic number.
    NotMultiboot(u32),
    /// Something lies where nothing can be read.
    Unreadable(u64),
    /// It contradicts itself.
    Malformed(&'static str),
    /// It names more than we have room for.
    TooMany(&'static str),
    /// It has no memory map.
    NoMemoryMap,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::NotMultiboot(eax) => write!(f, "not started by a Multiboot loader (eax was {eax:#x})"),
            Refused::Unreadable(at) => write!(f, "the loader points to {at:#x}, where nothing can be read"),
            Refused::Malformed(what) => write!(f, "the loader's information makes no sense: {what}"),
            Refused::TooMany(what) => write!(f, "the loader left too many {what}"),
            Refused::NoMemoryMap => f.write_str("the loader gave no memory map"),
        }
    }
}

/// Bytes of the loader's in physical memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Text {
    /// Where they begin.
    pub at: u64,
    /// How many, without a final NUL.
    pub len: usize,
}

/// A module as the loader left it: `[start, end)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Module {
    /// Its first byte.
    pub start: u64,
    /// Behind its last byte.
    pub end: u64,
    /// The words that came with it.
    pub text: Text,
}

/// One entry of the firmware's memory map (an "e820" entry).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// Where it begins.
    pub base: u64,
    /// Its bytes.
    pub bytes: u64,
    /// What it is; [`RAM`] or something else.
    pub kind: u32,
}

/// All that we keep of it. About 12 KiB.
#[derive(Default, Debug)]
pub struct Loader {
    /// The modules, in order.
    pub modules: ArrayVec<Module, MAX_MODULES>,
    /// The memory map, as it stands.
    pub memory_map: ArrayVec<Range, MAX_RANGES>,
    /// Everything that the loader put into memory: starts and ends.
    pub busy: ArrayVec<(u64, u64), MAX_PIECES>,
    /// The hypervisor's command line.
    pub command_line: Text,
    /// The loader's name for itself.
    pub name: Text,
    /// A copy of the ACPI root pointer.
    pub acpi_root: Text,
}

impl Loader {
    /// Reads what the loader left at `info`; `magic` says which protocol it speaks.
    pub fn read(magic: u32, info: u32, memory: &impl Physical) -> Result<Loader, Refused> {
        let mut loader = Loader::default();
        match magic {
            MAGIC1 => loader.read_first(info.into(), &Reader(memory))?,
            MAGIC2 => loader.read_second(info.into(), &Reader(memory))?,
            _ => return Err(Refused::NotMultiboot(magic)),
        }
        if loader.memory_map.is_empty() {
            return Err(Refused::NoMemoryMap);
        }
        Ok(loader)
    }

    fn read_first(&mut self, info: u64, from: &Reader<'_, impl Physical>) -> Result<(), Refused> {
        const BYTES: u64 = 116;
        self.keep(info, info + BYTES)?;
        let flags = from.u32(info)?;
        let has = |bit: u32| flags & 1 << bit != 0;
        if has(2) {
            self.command_line = self.outer_text(from, from.u32(info + 16)?)?;
        }
        if has(3) {
            let (count, list) = (from.u32(info + 20)?, u64::from(from.u32(info + 24)?));
            if count as usize > MAX_MODULES {
                return Err(Refused::TooMany("modules"));
            }
            self.keep(list, list + 16 * u64::from(count))?;
            for at in (list..).step_by(16).take(count as usize) {
                let text = self.outer_text(from, from.u32(at + 8)?)?;
                self.add_module(from.u32(at)?, from.u32(at + 4)?, text)?;
            }
        }
        if has(6) {
            let (length, start) = (u64::from(from.u32(info + 44)?), u64::from(from.u32(info + 48)?));
            self.keep(start, start + length)?;
            // An entry's size does not count the field that tells it.
            let mut at = start;
            while at + 24 <= start + length {
                self.add_range(from.u64(at + 4)?, from.u64(at + 12)?, from.u32(at + 20)?)?;
                at += u64::from(from.u32(at)?) + 4;
            }
        }
        if has(9) {
            self.name = self.outer_text(from, from.u32(info + 64)?)?;
        }
        Ok(())
    }

    fn read_second(&mut self, info: u64, from: &Reader<'_, impl Physical>) -> Result<(), Refused> {
        let end = info + u64::from(from.u32(info)?);
        self.keep(info, end)?;
        let mut at = info + 8;
        while at + 8 <= end {
            let (kind, size) = (from.u32(at)?, u64::from(from.u32(at + 4)?));
            if size < 8 || at + size > end {
                return Err(Refused::Malformed(
                    "a tag is shorter than its head or longer than the whole",
                ));
            }
            if kind == 0 {
                break;
            }
            self.read_tag(from, kind, at + 8, size - 8)?;
            at += size.next_multiple_of(8);
        }
        Ok(())
    }

    fn read_tag(&mut self, from: &Reader<'_, impl Physical>, kind: u32, body: u64, length: u64) -> Result<(), Refused> {
        match kind {
            1 => self.command_line = from.text(body, length)?,
            2 => self.name = from.text(body, length)?,
            3 if length >= 8 => {
                let text = from.text(body + 8, length - 8)?;
                self.add_module(from.u32(body)?, from.u32(body + 4)?, text)?;
            }
            6 if length >= 8 => {
                // Later versions may append fields to an entry.
                let step = u64::from(from.u32(body)?);
                if step < 24 {
                    return Err(Refused::Malformed("entries of the memory map are too short"));
                }
                let mut at = body + 8;
                while at + 24 <= body + length {
                    self.add_range(from.u64(at)?, from.u64(at + 8)?, from.u32(at + 16)?)?;
                    at += step;
                }
            }
            3 | 6 => return Err(Refused::Malformed("a tag is too short")),
            // The newer root pointer, which knows the XSDT, is the longer one.
            14 | 15 if length as usize > self.acpi_root.len => {
                self.acpi_root = Text {
                    at: body,
                    len: (length as usize).min(MAX_TEXT),
                };
            }
            _ => {}
        }
        Ok(())
    }

    /// A text somewhere in memory; address 0 stands for none.
    fn outer_text(&mut self, from: &Reader<'_, impl Physical>, at: u32) -> Result<Text, Refused> {
        if at == 0 {
            return Ok(Text::default());
        }
        let text = from.text(at.into(), MAX_TEXT as u64)?;
        self.keep(text.at, text.at + text.len as u64 + 1)?;
        Ok(text)
    }

    fn add_module(&mut self, start: u32, end: u32, text: Text) -> Result<(), Refused> {
        let (start, end) = (start.into(), end.into());
        if start > end {
            return Err(Refused::Malformed("a module ends before it starts"));
        }
        self.modules
            .try_push(Module { start, end, text })
            .map_err(|_| Refused::TooMany("modules"))?;
        self.keep(start, end)
    }

    /// None may be left out: one that is not RAM may lie within one that is.
    fn add_range(&mut self, base: u64, bytes: u64, kind: u32) -> Result<(), Refused> {
        self.memory_map
            .try_push(Range { base, bytes, kind })
            .map_err(|_| Refused::TooMany("ranges of memory"))
    }

    fn keep(&mut self, start: u64, end: u64) -> Result<(), Refused> {
        self.busy.try_push((start, end)).map_err(|_| Refused::TooMany("pieces"))
    }
}

struct Reader<'m, M>(&'m M);

impl<M: Physical> Reader<'_, M> {
    fn bytes<const N: usize>(&self, at: u64) -> Result<[u8; N], Refused> {
        let mut bytes = [0; N];
        if self.0.read(at, &mut bytes) {
            Ok(bytes)
        } else {
            Err(Refused::Unreadable(at))
        }
    }

    fn u32(&self, at: u64) -> Result<u32, Refused> {
        self.bytes(at).map(u32::from_le_bytes)
    }

    fn u64(&self, at: u64) -> Result<u64, Refused> {
        self.bytes(at).map(u64::from_le_bytes)
    }

    /// The bytes up to a NUL, at most so many.
    fn text(&self, at: u64, most: u64) -> Result<Text, Refused> {
        let most = most.min(MAX_TEXT as u64) as usize;
        let mut len = 0;
        while len < most && self.bytes(at + len as u64)? != [0] {
            len += 1;
        }
        Ok(Text { at, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Ram(Vec<u8>);

    impl Physical for Ram {
        fn read(&self, at: u64, into: &mut [u8]) -> bool {
            let range = usize::try_from(at)
                .ok()
                .and_then(|at| Some(at..at.checked_add(into.len())?));
            match range.and_then(|range| self.0.get(range)) {
                Some(found) => {
                    into.copy_from_slice(found);
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
            for (index, word) in words.iter().enumerate() {
                self.put(at + index * 4, &word.to_le_bytes());
            }
        }

        fn text(&self, text: Text) -> &str {
            std::str::from_utf8(&self.0[text.at as usize..][..text.len]).unwrap()
        }
    }

    fn first() -> Ram {
        let mut ram = Ram(vec![0; 0x2000]);
        let flags = 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9;
        ram.words(
            0x100,
            &[flags, 0, 0, 0, 0x400, 2, 0x200, 0, 0, 0, 0, 48, 0x300, 0, 0, 0, 0x440],
        );
        ram.put(0x400, b"xen.gz dom0_mem=512M\0");
        ram.put(0x440, b"qemu\0");
        ram.words(0x200, &[0x10_0000, 0x20_0000, 0x460, 0, 0x30_0000, 0x30_1000, 0, 0]);
        ram.put(0x460, b"vmlinuz console=hvc0\0");
        ram.words(0x300, &[20, 0, 0, 0xa_0000, 0, 1, 20, 0x10_0000, 0, 0, 1, 1]);
        ram
    }

    fn tags(tags: &[(u32, &[u8])]) -> Ram {
        let mut ram = Ram(vec![0; 0x2000]);
        let mut at = 0x108;
        for &(kind, body) in tags {
            ram.words(at, &[kind, 8 + body.len() as u32]);
            ram.put(at + 8, body);
            at += (8 + body.len()).next_multiple_of(8);
        }
        ram.words(0x100, &[at as u32 - 0x100, 0]);
        ram
    }

    fn map(step: u32) -> Vec<u8> {
        let mut map = Vec::from_iter([step, 0].into_iter().flat_map(u32::to_le_bytes));
        for words in [[0, 0, 0x8000_0000, 0, 1], [0, 1, 0x8000_0000, 0, 1]] {
            let entry = Vec::from_iter(words.into_iter().flat_map(u32::to_le_bytes));
            map.extend(entry);
            map.resize(map.len() + step as usize - 20, 0);
        }
        map
    }

    fn second() -> Ram {
        tags(&[
            (1, b"loglvl=all\0"),
            (2, b"GRUB 2.06\0"),
            (3, b"\0\0\x10\0\0\0\x20\0console=hvc0 quiet\0"),
            (14, b"RSD PTR old 20 bytes"),
            (15, b"RSD PTR new 36 bytes 36 bytes 36 byt"),
            (6, &map(24)),
            (18, b""),
            (0, b""),
        ])
    }

    #[test]
    fn multiboot_1_is_understood() {
        let ram = first();
        let loader = Loader::read(MAGIC1, 0x100, &ram).unwrap();
        assert_eq!(ram.text(loader.command_line), "xen.gz dom0_mem=512M");
        assert_eq!(ram.text(loader.name), "qemu");
        let modules: Vec<_> = loader
            .modules
            .iter()
            .map(|m| (m.start, m.end, ram.text(m.text)))
            .collect();
        let expected = [
            (0x10_0000, 0x20_0000, "vmlinuz console=hvc0"),
            (0x30_0000, 0x30_1000, ""),
        ];
        assert_eq!(modules, expected);
        assert_eq!(
            (loader.memory_map[1].base, loader.memory_map[1].bytes),
            (0x10_0000, 1 << 32)
        );
        for piece in [(0x30_0000, 0x30_1000), (0x460, 0x475), (0x200, 0x220), (0x300, 0x330)] {
            assert!(loader.busy.contains(&piece), "{piece:x?}");
        }
    }

    #[test]
    fn multiboot_2_is_understood() {
        let ram = second();
        let loader = Loader::read(MAGIC2, 0x100, &ram).unwrap();
        assert_eq!(ram.text(loader.command_line), "loglvl=all");
        assert_eq!(ram.text(loader.name), "GRUB 2.06");
        assert_eq!(ram.text(loader.modules[0].text), "console=hvc0 quiet");
        assert_eq!(loader.acpi_root.len, 36);
        assert_eq!(loader.memory_map[1].base, 1 << 32);
    }

    #[test]
    fn entries_of_the_map_may_be_longer_than_today() {
        let ram = tags(&[(6, &map(40))]);
        let loader = Loader::read(MAGIC2, 0x100, &ram).unwrap();
        assert_eq!(loader.memory_map.len(), 2);
        assert_eq!(loader.memory_map[1].base, 1 << 32);
    }

    #[test]
    fn nonsense_is_refused_with_a_sentence() {
        let read = |ram: &Ram| Loader::read(MAGIC2, 0x100, ram).map(drop);
        assert_eq!(Loader::read(7, 0x100, &first()).unwrap_err(), Refused::NotMultiboot(7));
        let far = Loader::read(MAGIC1, !0, &first()).unwrap_err();
        assert_eq!(far, Refused::Unreadable(0xffff_ffff));
        assert_eq!(read(&tags(&[(1, b"quiet\0")])), Err(Refused::NoMemoryMap));
        assert!(matches!(read(&tags(&[(3, b"\0\0\0\0")])), Err(Refused::Malformed(_))));
        assert!(matches!(
            read(&tags(&[(3, b"\0\0\x20\0\0\0\x10\0")])),
            Err(Refused::Malformed(_))
        ));
        assert!(matches!(
            read(&tags(&[(6, b"\x17\0\0\0\0\0\0\0")])),
            Err(Refused::Malformed(_))
        ));
        let mut many = first();
        many.words(0x114, &[65]);
        assert_eq!(
            Loader::read(MAGIC1, 0x100, &many).unwrap_err(),
            Refused::TooMany("modules")
        );
        let mut no_size = second();
        no_size.words(0x10c, &[0]);
        assert!(matches!(read(&no_size), Err(Refused::Malformed(_))));
    }

    proptest! {
        #[test]
        fn damage_never_hangs_or_panics(
            changes in prop::collection::vec((0x100usize..0x480, any::<u8>()), 1..12),
            newer in any::<bool>(),
        ) {
            let (mut ram, magic) = if newer { (second(), MAGIC2) } else { (first(), MAGIC1) };
            for (at, byte) in changes {
                ram.0[at] = byte;
            }
            let _ = Loader::read(magic, 0x100, &ram);
        }

        #[test]
        fn random_bytes_never_hang_or_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..600),
            newer in any::<bool>(),
            info in 0u32..64,
        ) {
            let _ = Loader::read(if newer { MAGIC2 } else { MAGIC1 }, info, &Ram(bytes));
        }
    }
}
