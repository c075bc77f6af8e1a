//! What the loader left: Multiboot 1 and 2 information, read just far enough to find memory and modules.
//!
//! Everything is read through the early direct map (the first 4 GiB) and copied; the loader is trusted as
//! firmware is, yet counts are bounded, so that rubbish gives a refusal rather than a wild run.

use super::handoff::MemoryRange;
use super::layout::DIRECT_MAP;
use ferroxen_words::Maddr;

/// The kind of [`MemoryRange`] that is RAM.
pub const RAM: u32 = 1;

const MAX_MODULES: usize = 64;
const MAX_RANGES: usize = 160;
/// Words longer than this are cut.
const MAX_TEXT: usize = 4096;

/// Bytes of the loader's in physical memory.
#[derive(Clone, Copy, Default)]
pub struct Text {
    pub at: u64,
    pub len: usize,
}

/// A module as the loader left it: `[start, end)`.
#[derive(Clone, Copy, Default)]
pub struct Module {
    pub start: u64,
    pub end: u64,
    pub text: Text,
}

/// All that we keep of it.
pub struct Loader {
    modules: [Module; MAX_MODULES],
    modules_len: usize,
    map: [MemoryRange; MAX_RANGES],
    map_len: usize,
    busy: [(u64, u64); MAX_MODULES * 2 + 8],
    busy_len: usize,
    pub command_line: Text,
    pub name: Text,
    pub acpi_root: Text,
}

impl Loader {
    /// The modules, in order.
    pub fn modules(&self) -> &[Module] {
        &self.modules[..self.modules_len]
    }

    /// The memory map, as it stands.
    pub fn memory_map(&self) -> &[MemoryRange] {
        &self.map[..self.map_len]
    }

    /// Everything that the loader put into memory.
    pub fn busy(&self) -> &[(u64, u64)] {
        &self.busy[..self.busy_len]
    }

    fn new() -> Self {
        Loader {
            modules: [Module::default(); MAX_MODULES],
            modules_len: 0,
            map: [MemoryRange {
                base: Maddr::new(0),
                bytes: 0,
                kind: 0,
            }; MAX_RANGES],
            map_len: 0,
            busy: [(0, 0); MAX_MODULES * 2 + 8],
            busy_len: 0,
            command_line: Text::default(),
            name: Text::default(),
            acpi_root: Text::default(),
        }
    }

    fn keep(&mut self, start: u64, end: u64) {
        let slot = self
            .busy
            .get_mut(self.busy_len)
            .expect("the loader left too many pieces");
        *slot = (start, end);
        self.busy_len += 1;
    }

    fn text(&mut self, at: u64) -> Text {
        let len = (0..MAX_TEXT).find(|&i| byte(at + i as u64) == 0).unwrap_or(MAX_TEXT);
        self.keep(at, at + len as u64 + 1);
        Text { at, len }
    }

    fn module(&mut self, start: u64, end: u64, text: Text) {
        assert!(
            start <= end,
            "the loader's module {} ends before it starts",
            self.modules_len
        );
        let slot = self
            .modules
            .get_mut(self.modules_len)
            .expect("the loader left too many modules");
        *slot = Module { start, end, text };
        self.modules_len += 1;
        self.keep(start, end);
    }

    fn range(&mut self, base: u64, bytes: u64, kind: u32) {
        if let Some(slot) = self.map.get_mut(self.map_len) {
            *slot = MemoryRange {
                base: Maddr::new(base),
                bytes,
                kind,
            };
            self.map_len += 1;
        }
    }
}

/// Reads what the loader left at `info`; `magic` says which loader it was.
pub fn parse(magic: u32, info: u64) -> Loader {
    let mut loader = Loader::new();
    match magic {
        0x2bad_b002 => multiboot1(&mut loader, info),
        0x36d7_6289 => multiboot2(&mut loader, info),
        _ => panic!("not started by a Multiboot loader (eax was {magic:#x})"),
    }
    assert!(loader.map_len != 0, "the loader gave no memory map");
    loader
}

fn multiboot1(loader: &mut Loader, info: u64) {
    loader.keep(info, info + 120);
    let flags = dword(info);
    if flags & 1 << 2 != 0 {
        loader.command_line = loader.text(dword(info + 16).into());
    }
    if flags & 1 << 3 != 0 {
        let (count, list) = (dword(info + 20), u64::from(dword(info + 24)));
        loader.keep(list, list + 16 * u64::from(count));
        for i in 0..u64::from(count) {
            let at = list + 16 * i;
            let words = u64::from(dword(at + 8));
            let text = if words == 0 {
                Text::default()
            } else {
                loader.text(words)
            };
            loader.module(dword(at).into(), dword(at + 4).into(), text);
        }
    }
    if flags & 1 << 6 != 0 {
        let (len, start) = (u64::from(dword(info + 44)), u64::from(dword(info + 48)));
        loader.keep(start, start + len);
        let mut at = start;
        while at + 24 <= start + len {
            loader.range(qword(at + 4), qword(at + 12), dword(at + 20));
            at += u64::from(dword(at)) + 4;
        }
    }
    if flags & 1 << 9 != 0 {
        loader.name = loader.text(dword(info + 64).into());
    }
}

fn multiboot2(loader: &mut Loader, info: u64) {
    let total = u64::from(dword(info));
    loader.keep(info, info + total);
    let mut at = info + 8;
    while at + 8 <= info + total {
        let (kind, size) = (dword(at), u64::from(dword(at + 4)));
        assert!(size >= 8, "the loader left a tag without a size");
        match kind {
            0 => break,
            1 => loader.command_line = inner_text(at + 8, size - 8),
            2 => loader.name = inner_text(at + 8, size - 8),
            3 => {
                let text = inner_text(at + 16, size.saturating_sub(16));
                loader.module(dword(at + 8).into(), dword(at + 12).into(), text);
            }
            6 => {
                let step = u64::from(dword(at + 8)).max(24);
                let mut entry = at + 16;
                while entry + step <= at + size {
                    loader.range(qword(entry), qword(entry + 8), dword(entry + 16));
                    entry += step;
                }
            }
            // The newer root pointer (with the XSDT) comes later and wins.
            14 | 15 if loader.acpi_root.len < size as usize - 8 => {
                loader.acpi_root = Text {
                    at: at + 8,
                    len: (size - 8) as usize,
                };
            }
            _ => {}
        }
        at += (size + 7) & !7;
    }
}

fn inner_text(at: u64, most: u64) -> Text {
    let most = most.min(MAX_TEXT as u64) as usize;
    let len = (0..most).find(|&i| byte(at + i as u64) == 0).unwrap_or(most);
    Text { at, len }
}

fn early<T: Copy>(at: u64) -> T {
    assert!(at < (4 << 30) - 16, "the loader points beyond 4 GiB");
    // SAFETY: the early direct map holds the first 4 GiB; only integers are read, copied out at once.
    unsafe { ((DIRECT_MAP + at) as *const T).read_unaligned() }
}

fn byte(at: u64) -> u8 {
    early(at)
}

fn dword(at: u64) -> u32 {
    early(at)
}

fn qword(at: u64) -> u64 {
    early(at)
}
