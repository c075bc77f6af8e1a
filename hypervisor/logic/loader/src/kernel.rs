//! A kernel's ELF file and what its Xen notes ask for.
//!
//! Notes are looked for in the segments, then in the sections; a kernel without any may carry the older
//! `__xen_guest` string. What a note leaves out has a default: base 0, and the entry of the ELF header.
//!
//! Three spaces meet here. `p_paddr` is what the linker wrote. Less `paddr_offset` it is a
//! *pseudo-physical* address, the guest's count from 0. Plus `virt_base` that is the *virtual* address
//! at which the kernel expects the byte at its start. `p_vaddr` plays no part: Linux links its per-CPU
//! segment at 0.
//!
//! The names and defaults are those of `abi::xen::elfnote`; upstream: xen/common/libelf.

use core::fmt;
use elf::ElfBytes;
use elf::abi::{EM_386, EM_X86_64, ET_DYN, ET_EXEC, PF_R, PF_W, PF_X, PT_LOAD, PT_NOTE, SHT_NOTE};
use elf::endian::LittleEndian;
use elf::file::Class;
use ferroxen_abi::elfnote::{self, ElfNote};
use ferroxen_abi::features::Features;

/// Why a file is no kernel that we can start as a PV domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum NotBootable {
    /// Not ELF, or its tables lie outside of the file.
    BadElf,
    /// For another machine (`e_machine`).
    OtherMachine(u16),
    /// A 32-bit kernel; 32-bit PV is not offered.
    ThirtyTwoBit,
    /// Neither executable nor shared (`e_type`).
    NotExecutable(u16),
    /// Nothing to load.
    NoSegments,
    /// A segment's bytes lie outside of the file, or are more than its memory.
    BadSegment,
    /// Neither Xen notes nor `__xen_guest`.
    NoXenNotes,
    /// A note is longer than its segment or of a wrong kind.
    MalformedNote(ElfNote),
    /// `__xen_guest` holds a number that is none.
    MalformedLegacy,
    /// A feature is required that we have never heard of.
    UnknownFeatureRequired,
    /// Made for another loader than `generic`.
    OtherLoader,
    /// Made for another interface than `xen-3.0`.
    OtherXenVersion,
    /// `PADDR_OFFSET` without `VIRT_BASE`.
    OffsetWithoutBase,
    /// `VIRT_BASE` is not on a page boundary.
    UnalignedBase(u64),
    /// The kernel lies below its base, or its entry outside of itself.
    OutOfBounds,
    /// `INIT_P2M` lies within the kernel.
    P2mInsideKernel(u64),
    /// Needs features that it does not support itself.
    ContradictoryFeatures(Features),
    /// Cannot be Domain 0.
    NotForDom0,
}

impl fmt::Display for NotBootable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotBootable::BadElf => f.write_str("not a sound ELF file"),
            NotBootable::OtherMachine(machine) => write!(f, "for another machine (ELF machine {machine})"),
            NotBootable::ThirtyTwoBit => f.write_str("a 32-bit kernel; PV needs a 64-bit one"),
            NotBootable::NotExecutable(kind) => write!(f, "not an executable (ELF type {kind})"),
            NotBootable::NoSegments => f.write_str("has no loadable segment"),
            NotBootable::BadSegment => f.write_str("a segment reaches outside of the file"),
            NotBootable::NoXenNotes => f.write_str("has no Xen ELF notes: not built with PV support"),
            NotBootable::MalformedNote(note) => write!(f, "Xen ELF note {} is malformed", note.0),
            NotBootable::MalformedLegacy => f.write_str("section __xen_guest is malformed"),
            NotBootable::UnknownFeatureRequired => f.write_str("requires a feature that does not exist here"),
            NotBootable::OtherLoader => f.write_str("wants a loader other than \"generic\""),
            NotBootable::OtherXenVersion => f.write_str("built for an interface other than \"xen-3.0\""),
            NotBootable::OffsetWithoutBase => f.write_str("has a PADDR_OFFSET note but no VIRT_BASE"),
            NotBootable::UnalignedBase(base) => write!(f, "VIRT_BASE {base:#x} is not on a page boundary"),
            NotBootable::OutOfBounds => f.write_str("start, end or entry point are out of bounds"),
            NotBootable::P2mInsideKernel(base) => write!(f, "INIT_P2M {base:#x} lies within the kernel"),
            NotBootable::ContradictoryFeatures(features) => {
                write!(f, "requires but does not support features {:#x}", features.bits())
            }
            NotBootable::NotForDom0 => f.write_str("is not able to run as Domain 0"),
        }
    }
}

impl core::error::Error for NotBootable {}

/// Page-table width that a 32-bit kernel asks for; 64-bit kernels say `yes` and mean nothing by it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PaeMode {
    /// Not told.
    #[default]
    No,
    /// PAE, page directories below 4 GiB.
    Yes,
    /// PAE, page directories anywhere.
    ExtendedCr3,
    /// Either.
    Bimodal,
}

/// A PV kernel and all that its builder needs to know.
#[derive(Clone, Copy, Debug)]
pub struct PvImage<'a> {
    /// Virtual address of the first instruction.
    pub entry: u64,
    /// Virtual address of pseudo-physical page 0.
    pub virt_base: u64,
    /// What to take off `p_paddr` to get a pseudo-physical address.
    pub paddr_offset: u64,
    /// Virtual address of the kernel's first byte.
    pub kernel_start: u64,
    /// Virtual address behind the kernel's last byte, cleared memory included.
    pub kernel_end: u64,
    /// Virtual address of the page that takes the hypercall stubs.
    pub hypercall_page: Option<u64>,
    /// Where the kernel wants its initial P2M list, if not behind itself.
    pub init_p2m: Option<u64>,
    /// Lowest address at which the hypervisor's hole may begin.
    pub hv_start_low: Option<u64>,
    /// Mask and value by which a non-present L1 entry is known to hold an mfn.
    pub l1_mfn_valid: Option<(u64, u64)>,
    /// Whether the initrd may stay out of the initial mapping (`MOD_START_PFN`).
    pub unmapped_initrd: bool,
    /// Whether a suspend may be called off.
    pub suspend_cancel: bool,
    /// Of interest to 32-bit kernels only.
    pub pae: PaeMode,
    /// Features the kernel cannot do without.
    pub required: Features,
    /// Features the kernel can make use of.
    pub supported: Features,
    /// The kernel gave its features as a bitmap, so what is missing there is really not supported.
    pub tells_supported: bool,
    /// Such as `linux`; empty if not told.
    pub guest_os: &'a str,
    /// Such as `2.6`.
    pub guest_version: &'a str,
    /// `generic`.
    pub loader: &'a str,
    /// `xen-3.0`.
    pub xen_version: &'a str,
    /// Physical 32-bit entry for PVH, which PV has no use for.
    pub phys32_entry: Option<u32>,
    /// Wants its symbol table behind the kernel (BSD); it boots without, but its debugger has no names.
    pub bsd_symtab: bool,
    /// The facts come from `__xen_guest`.
    pub legacy: bool,
    file: &'a [u8],
}

/// A piece of the kernel, and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Pseudo-physical address: offset from the domain's first page.
    pub paddr: u64,
    /// Virtual address, `virt_base + paddr`.
    pub vaddr: u64,
    /// What to copy there.
    pub bytes: &'a [u8],
    /// Bytes of memory; those behind `bytes` are to be cleared.
    pub size: u64,
    /// The linker's wish; the builder maps everything writable and the kernel tightens it.
    pub is_writable: bool,
    /// The linker's wish.
    pub is_executable: bool,
}

type Elf<'a> = ElfBytes<'a, LittleEndian>;

impl<'a> PvImage<'a> {
    /// Reads a 64-bit PV kernel.
    pub fn parse(file: &'a [u8]) -> Result<Self, NotBootable> {
        let elf = Elf::minimal_parse(file).map_err(|_| NotBootable::BadElf)?;
        check_header(&elf)?;
        let extent = load_extent(&elf)?;
        let notes = Notes::find(&elf)?;
        notes.check_versions()?;
        notes.place(extent, elf.ehdr.e_entry, file)
    }

    /// Whether the kernel can serve as Domain 0, as far as it tells.
    pub fn check_dom0(&self) -> Result<(), NotBootable> {
        let refuses = self.tells_supported && !self.supported.contains(Features::DOM0);
        if refuses { Err(NotBootable::NotForDom0) } else { Ok(()) }
    }

    /// The pieces to load, in the file's order.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'a>> + use<'a> {
        let (file, base, offset) = (self.file, self.virt_base, self.paddr_offset);
        let table = Elf::minimal_parse(file).ok().and_then(|elf| elf.segments());
        table
            .into_iter()
            .flat_map(|table| table.iter())
            .filter(is_loadable)
            .filter_map(move |header| {
                let paddr = header.p_paddr.checked_sub(offset)?;
                Some(Segment {
                    paddr,
                    vaddr: base.checked_add(paddr)?,
                    bytes: segment_bytes(file, &header)?,
                    size: header.p_memsz,
                    is_writable: header.p_flags & PF_W != 0,
                    is_executable: header.p_flags & PF_X != 0,
                })
            })
    }

    /// The kernel's extent as pseudo-physical addresses.
    pub fn kernel_paddrs(&self) -> core::ops::Range<u64> {
        self.kernel_start - self.virt_base..self.kernel_end - self.virt_base
    }
}

fn check_header(elf: &Elf<'_>) -> Result<(), NotBootable> {
    let header = &elf.ehdr;
    match (header.e_machine, header.class) {
        (EM_X86_64, Class::ELF64) => {}
        (EM_386, _) | (EM_X86_64, Class::ELF32) => return Err(NotBootable::ThirtyTwoBit),
        (machine, _) => return Err(NotBootable::OtherMachine(machine)),
    }
    match header.e_type {
        ET_EXEC | ET_DYN => Ok(()),
        kind => Err(NotBootable::NotExecutable(kind)),
    }
}

fn is_loadable(header: &elf::segment::ProgramHeader) -> bool {
    header.p_type == PT_LOAD && header.p_flags & (PF_R | PF_W | PF_X) != 0 && header.p_memsz != 0
}

fn segment_bytes<'a>(file: &'a [u8], header: &elf::segment::ProgramHeader) -> Option<&'a [u8]> {
    let begin = usize::try_from(header.p_offset).ok()?;
    let length = usize::try_from(header.p_filesz).ok()?;
    (header.p_filesz <= header.p_memsz).then(|| file.get(begin..begin.checked_add(length)?))?
}

/// Lowest and highest `p_paddr` in use.
fn load_extent(elf: &Elf<'_>) -> Result<core::ops::Range<u64>, NotBootable> {
    let table = elf.segments().ok_or(NotBootable::NoSegments)?;
    let mut extent: Option<core::ops::Range<u64>> = None;
    for header in table.iter().filter(is_loadable) {
        let end = header
            .p_paddr
            .checked_add(header.p_memsz)
            .ok_or(NotBootable::BadSegment)?;
        if segment_bytes_missing(elf, &header) {
            return Err(NotBootable::BadSegment);
        }
        extent = Some(match extent {
            None => header.p_paddr..end,
            Some(known) => known.start.min(header.p_paddr)..known.end.max(end),
        });
    }
    extent.ok_or(NotBootable::NoSegments)
}

fn segment_bytes_missing(elf: &Elf<'_>, header: &elf::segment::ProgramHeader) -> bool {
    header.p_filesz > header.p_memsz || elf.segment_data(header).is_err()
}

#[derive(Default)]
struct Notes<'a> {
    entry: Option<u64>,
    hypercall_page: Option<u64>,
    virt_base: Option<u64>,
    paddr_offset: Option<u64>,
    init_p2m: Option<u64>,
    hv_start_low: Option<u64>,
    l1_mfn_valid: Option<(u64, u64)>,
    unmapped_initrd: bool,
    suspend_cancel: bool,
    pae: PaeMode,
    required: Features,
    supported: Features,
    tells_supported: bool,
    guest_os: &'a str,
    guest_version: &'a str,
    loader: &'a str,
    xen_version: &'a str,
    phys32_entry: Option<u32>,
    bsd_symtab: bool,
    legacy: bool,
}

impl<'a> Notes<'a> {
    fn find(elf: &Elf<'a>) -> Result<Self, NotBootable> {
        let mut notes = Notes::default();
        let mut found = false;
        for header in elf
            .segments()
            .into_iter()
            .flatten()
            .filter(|header| header.p_type == PT_NOTE)
        {
            let bytes = elf.segment_data(&header).map_err(|_| NotBootable::BadElf)?;
            found |= notes.read_all(bytes)?;
        }
        if found {
            return Ok(notes);
        }
        for header in elf
            .section_headers()
            .into_iter()
            .flatten()
            .filter(|header| header.sh_type == SHT_NOTE)
        {
            let (bytes, _) = elf.section_data(&header).map_err(|_| NotBootable::BadElf)?;
            found |= notes.read_all(bytes)?;
        }
        if found {
            return Ok(notes);
        }
        let name = core::str::from_utf8(elfnote::LEGACY_SECTION).map_err(|_| NotBootable::BadElf)?;
        let section = elf
            .section_header_by_name(name)
            .ok()
            .flatten()
            .ok_or(NotBootable::NoXenNotes)?;
        let (bytes, _) = elf.section_data(&section).map_err(|_| NotBootable::BadElf)?;
        Notes::from_legacy(bytes)
    }

    /// Reads a run of notes, each padded to 4 bytes; tells whether one was Xen's.
    fn read_all(&mut self, mut rest: &'a [u8]) -> Result<bool, NotBootable> {
        let mut found = false;
        while let Some((header, after)) = rest.split_first_chunk::<12>() {
            let word = |at: usize| header[at..].first_chunk().map_or(0, |word| u32::from_le_bytes(*word));
            let (name_length, length, note) = (word(0) as usize, word(4) as usize, ElfNote(word(8)));
            let padded = |length: usize| length.checked_add(3).map(|length| length & !3);
            let malformed = NotBootable::MalformedNote(note);
            let name = after.get(..name_length).ok_or(malformed)?;
            let after = padded(name_length)
                .and_then(|length| after.get(length..))
                .ok_or(malformed)?;
            let value = after.get(..length).ok_or(malformed)?;
            // The last note's padding may be cut off.
            rest = padded(length).and_then(|length| after.get(length..)).unwrap_or(&[]);
            if name.strip_suffix(b"\0").unwrap_or(name) == elfnote::OWNER {
                found = true;
                self.read(note, value).ok_or(malformed)??;
            }
        }
        Ok(found)
    }

    /// `None`: the value is of a wrong kind.
    fn read(&mut self, note: ElfNote, value: &'a [u8]) -> Option<Result<(), NotBootable>> {
        match note {
            ElfNote::ENTRY => self.entry = Some(number(value)?),
            ElfNote::HYPERCALL_PAGE => self.hypercall_page = Some(number(value)?),
            ElfNote::VIRT_BASE => self.virt_base = Some(number(value)?),
            ElfNote::PADDR_OFFSET => self.paddr_offset = Some(number(value)?),
            ElfNote::INIT_P2M => self.init_p2m = Some(number(value)?),
            ElfNote::HV_START_LOW => self.hv_start_low = Some(number(value)?),
            ElfNote::MOD_START_PFN => self.unmapped_initrd = number(value)? != 0,
            ElfNote::SUSPEND_CANCEL => self.suspend_cancel = number(value)? != 0,
            ElfNote::PHYS32_ENTRY => self.phys32_entry = Some(u32::try_from(number(value)?).ok()?),
            ElfNote::L1_MFN_VALID => self.l1_mfn_valid = Some(pair(value)?),
            ElfNote::XEN_VERSION => self.xen_version = text(value)?,
            ElfNote::GUEST_OS => self.guest_os = text(value)?,
            ElfNote::GUEST_VERSION => self.guest_version = text(value)?,
            ElfNote::LOADER => self.loader = text(value)?,
            ElfNote::BSD_SYMTAB => self.bsd_symtab = text(value)? == "yes",
            ElfNote::PAE_MODE => {
                self.pae = match text(value)? {
                    mode if mode.contains("bimodal") => PaeMode::Bimodal,
                    mode if mode.starts_with("yes") => PaeMode::ExtendedCr3,
                    _ => PaeMode::No,
                }
            }
            ElfNote::FEATURES => return Some(self.read_features(text(value)?)),
            ElfNote::SUPPORTED_FEATURES => {
                let submap = value.first_chunk().map(|word| u32::from_le_bytes(*word))?;
                self.supported |= Features::from_bits_retain(submap);
                self.tells_supported = true;
            }
            // Information only, or newer than we are: harmless by design.
            _ => {}
        }
        Some(Ok(()))
    }

    fn read_features(&mut self, list: &str) -> Result<(), NotBootable> {
        (self.required, self.supported) = {
            let (required, supported) = parse_features(list)?;
            (self.required | required, self.supported | supported)
        };
        Ok(())
    }

    /// `NAME=VALUE` pairs with commas between.
    fn from_legacy(section: &'a [u8]) -> Result<Self, NotBootable> {
        let malformed = NotBootable::MalformedLegacy;
        let mut notes = Notes {
            legacy: true,
            ..Notes::default()
        };
        let mut hypercall_pfn = None;
        for pair in text(section).ok_or(malformed)?.split(',') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let number = || legacy_number(value).ok_or(malformed);
            match name {
                "LOADER" => notes.loader = value,
                "GUEST_OS" => notes.guest_os = value,
                "GUEST_VER" => notes.guest_version = value,
                "XEN_VER" => notes.xen_version = value,
                "VIRT_BASE" => notes.virt_base = Some(number()?),
                "VIRT_ENTRY" => notes.entry = Some(number()?),
                "ELF_PADDR_OFFSET" => notes.paddr_offset = Some(number()?),
                "HYPERCALL_PAGE" => hypercall_pfn = Some(number()?),
                "BSD_SYMTAB" => notes.bsd_symtab = true,
                "PAE" if value.contains("bimodal") => notes.pae = PaeMode::Bimodal,
                "PAE" if value.contains("[extended-cr3]") => notes.pae = PaeMode::ExtendedCr3,
                "PAE" if value.starts_with("yes") => notes.pae = PaeMode::Yes,
                "FEATURES" => notes.read_features(value)?,
                _ => {}
            }
        }
        // Here the page is told by its number, not by its address.
        notes.hypercall_page = match hypercall_pfn {
            None => None,
            Some(pfn) => Some(
                pfn.checked_mul(4096)
                    .and_then(|paddr| paddr.checked_add(notes.virt_base.unwrap_or(0)))
                    .ok_or(malformed)?,
            ),
        };
        Ok(notes)
    }

    fn check_versions(&self) -> Result<(), NotBootable> {
        if !self.loader.starts_with("generic") && !self.guest_os.starts_with("linux") {
            return Err(NotBootable::OtherLoader);
        }
        if !self.xen_version.starts_with("xen-3.0") {
            return Err(NotBootable::OtherXenVersion);
        }
        let missing = self.required - self.supported;
        if missing.is_empty() {
            Ok(())
        } else {
            Err(NotBootable::ContradictoryFeatures(missing))
        }
    }

    fn place(self, paddrs: core::ops::Range<u64>, elf_entry: u64, file: &'a [u8]) -> Result<PvImage<'a>, NotBootable> {
        if self.paddr_offset.is_some() && self.virt_base.is_none() {
            return Err(NotBootable::OffsetWithoutBase);
        }
        let virt_base = self.virt_base.unwrap_or(0);
        if !virt_base.is_multiple_of(4096) {
            return Err(NotBootable::UnalignedBase(virt_base));
        }
        // Kernels of the legacy interface put their base into p_paddr, too.
        let paddr_offset = self.paddr_offset.unwrap_or(if self.legacy { virt_base } else { 0 });
        let virtual_of = |paddr: u64| {
            let pseudo = paddr.checked_sub(paddr_offset)?;
            virt_base.checked_add(pseudo)
        };
        let kernel_start = virtual_of(paddrs.start).ok_or(NotBootable::OutOfBounds)?;
        let kernel_end = virtual_of(paddrs.end).ok_or(NotBootable::OutOfBounds)?;
        let entry = self.entry.unwrap_or(elf_entry);
        if entry < kernel_start || entry > kernel_end {
            return Err(NotBootable::OutOfBounds);
        }
        if self
            .hypercall_page
            .is_some_and(|page| page < kernel_start || page >= kernel_end || page % 4096 != 0)
        {
            return Err(NotBootable::OutOfBounds);
        }
        if let Some(base) = self.init_p2m
            && (kernel_start..kernel_end).contains(&base)
        {
            return Err(NotBootable::P2mInsideKernel(base));
        }
        Ok(PvImage {
            entry,
            virt_base,
            paddr_offset,
            kernel_start,
            kernel_end,
            hypercall_page: self.hypercall_page,
            init_p2m: self.init_p2m,
            hv_start_low: self.hv_start_low,
            l1_mfn_valid: self.l1_mfn_valid,
            unmapped_initrd: self.unmapped_initrd,
            suspend_cancel: self.suspend_cancel,
            pae: self.pae,
            required: self.required,
            supported: self.supported,
            tells_supported: self.tells_supported,
            guest_os: self.guest_os,
            guest_version: self.guest_version,
            loader: self.loader,
            xen_version: self.xen_version,
            phys32_entry: self.phys32_entry,
            bsd_symtab: self.bsd_symtab,
            legacy: self.legacy,
            file,
        })
    }
}

/// Splits `!required|supported|...` into both sets; what is required counts as supported, too.
pub fn parse_features(list: &str) -> Result<(Features, Features), NotBootable> {
    let (mut required, mut supported) = (Features::empty(), Features::empty());
    for item in list.split('|').map(str::trim).filter(|item| !item.is_empty()) {
        let (name, is_required) = match item.strip_prefix('!') {
            Some(name) => (name, true),
            None => (item, false),
        };
        match Features::by_note_name(name) {
            Some(feature) => {
                supported |= feature;
                if is_required {
                    required |= feature;
                }
            }
            None if is_required => return Err(NotBootable::UnknownFeatureRequired),
            None => {}
        }
    }
    Ok((required, supported))
}

fn number(value: &[u8]) -> Option<u64> {
    match *value {
        [a] => Some(u64::from(a)),
        [a, b] => Some(u64::from(u16::from_le_bytes([a, b]))),
        [a, b, c, d] => Some(u64::from(u32::from_le_bytes([a, b, c, d]))),
        _ => value.try_into().ok().map(u64::from_le_bytes),
    }
}

/// The first of the pairs; 4- or 8-byte words (no kernel has more than one pair).
fn pair(value: &[u8]) -> Option<(u64, u64)> {
    match value.len() {
        8 => Some((number(value.get(..4)?)?, number(value.get(4..)?)?)),
        _ => Some((number(value.get(..8)?)?, number(value.get(8..16)?)?)),
    }
}

fn text(value: &[u8]) -> Option<&str> {
    core::str::from_utf8(value.split(|&byte| byte == 0).next()?).ok()
}

fn legacy_number(value: &str) -> Option<u64> {
    match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => value.parse().ok(),
    }
}

#[cfg(test)]
mod tests;
