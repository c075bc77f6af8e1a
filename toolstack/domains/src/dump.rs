//! Core dumps: a domain's memory and its vcpus in a file, for whoever wants to know what happened in it.
//!
//! The file is an ELF core without segments (xen-doc: misc/dump-core-format). Its sections are notes about the
//! hypervisor, the vcpus' contexts, the shared page, the pages, and which frame each page is: the guest's number and the
//! machine's, in the order of the guest's. How many pages there are stands in front, so the file is written from its
//! beginning to its end, also into a pipe; pages of zeroes are holes in it.
//!
//! A domain that runs (`--live`) may give a frame back while we look. Such a page is left out, and at the end of the list
//! stands "no frame" in its place. Which frames a domain has is asked of the domain; of one that has not said so yet, or
//! that has spoilt its list when it crashed, all of the machine's frames are looked at.

use crate::Toolstack;
use crate::draft::Draft;
use crate::error::{Doing, Error, Result};
use crate::frames::{self, Frames, NO_FRAME};
use crate::hyper::{FRAME_TYPES, Hypervisor};
use crate::inquiry::VersionInfo;
use ferroxen_abi::domctl::{Getdomaininfo, INVALID_MAX_VCPU_ID};
use ferroxen_abi::version::{CapabilitiesInfo, ChangesetInfo, CompileInfo, Extraversion};
use ferroxen_abi::x86::VcpuGuestContext;
use ferroxen_words::{DomId, Gfn, PAGE_SIZE};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

/// Where cores are that are given no name, as with stock xl.
const DIRECTORY: &str = "/var/lib/xen/dump";

/// Whether the domain runs on meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Manner {
    /// It stands still, so that all is of one moment.
    Paused,
    /// It runs on, and what is written may not fit together.
    Live,
}

/// The file of a domain's core that is given no name of its own.
pub fn usual_path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

impl Toolstack {
    /// Writes a domain's core to a file, which appears once it is whole.
    pub fn dump_core(&self, domid: DomId, path: &Path, manner: Manner) -> Result<()> {
        let doing = || format!("dumping the core of domain {} to {}", domid.raw(), path.display());
        if let Some(directory) = path.parent().filter(|parent| *parent == Path::new(DIRECTORY)) {
            std::fs::create_dir_all(directory).doing(doing)?;
        }
        let mut draft = Draft::open(path).doing(doing)?;
        let is_paused = manner == Manner::Paused;
        if is_paused {
            self.pause(domid)?;
        }
        let written = self.write_core(domid, &mut draft);
        self.progress.end();
        if is_paused {
            let goes_on = self.unpause(domid);
            written.and(goes_on)
        } else {
            written
        }
        .map_err(|error| error.in_step(doing()))?;
        draft.keep().doing(doing)
    }

    fn write_core(&self, domid: DomId, to: &mut Draft) -> Result<()> {
        let core = Core::of(self, domid)?;
        self.progress
            .begin("dumping memory", (core.frames.len() * PAGE_SIZE) as u64);
        let mut done = 0;
        core.write(to, |frames| {
            let so_far = done / 256;
            let doing = || format!("dumping memory, {so_far} of {} MiB done", core.frames.len() / 256);
            self.interrupt.check().doing(doing)?;
            done += frames.len();
            let found = pages(&*self.hypervisor, domid, frames).doing(doing);
            self.progress.advance((frames.len() * PAGE_SIZE) as u64);
            found
        })
    }
}

/// What some frames hold, without those that have gone.
struct Pages {
    frames: Vec<(u64, u64)>,
    bytes: Vec<u8>,
}

fn pages(hypervisor: &dyn Hypervisor, domid: DomId, frames: &[(u64, u64)]) -> io::Result<Pages> {
    let read = |frames: &[(u64, u64)]| {
        let mapped: Vec<Gfn> = frames.iter().map(|(_, mfn)| Gfn::new(*mfn)).collect();
        let mut bytes = vec![0; mapped.len() * PAGE_SIZE];
        hypervisor.map_to_read(domid, &mapped)?.read(0, &mut bytes)?;
        io::Result::Ok(bytes)
    };
    if let Ok(bytes) = read(frames) {
        let frames = frames.to_vec();
        return Ok(Pages { frames, bytes });
    }
    // One by one: the others are worth having.
    let mut found = Pages {
        frames: Vec::new(),
        bytes: Vec::new(),
    };
    for frame in frames {
        if let Ok(bytes) = read(&[*frame]) {
            found.frames.push(*frame);
            found.bytes.extend(bytes);
        }
    }
    Ok(found)
}

/// All of a core but the pages.
struct Core {
    about: VersionInfo,
    contexts: Vec<Box<VcpuGuestContext>>,
    shared: Vec<u8>,
    /// The guest's number of each frame, in order, and the machine's.
    frames: Vec<(u64, u64)>,
}

/// No such vcpu, or one that was never started.
const NO_CONTEXT: [i32; 2] = [3, 61];

impl Core {
    fn of(tools: &Toolstack, domid: DomId) -> Result<Core> {
        let hypervisor = &*tools.hypervisor;
        let doing = || format!("looking at domain {}", domid.raw());
        let info = hypervisor.domain(domid).doing(doing)?;
        let info = info.ok_or_else(|| Error::new(doing(), "it has gone"))?;
        let shared_page = hypervisor
            .map_to_read(domid, &[Gfn::new(info.shared_info_frame)])
            .doing(|| "mapping the shared page".to_owned())?;
        let mut shared = vec![0; PAGE_SIZE];
        shared_page.read(0, &mut shared).doing(doing)?;
        let frames = match Frames::of(hypervisor, domid, &shared_page) {
            Ok(frames) => frames.all().collect(),
            Err(error) => {
                tools
                    .progress
                    .tell(&format!("{error}: looking at all of the machine's frames"));
                frames::owned_by(hypervisor, domid).doing(|| "looking for its frames".to_owned())?
            }
        };
        Ok(Core {
            about: hypervisor
                .about_itself()
                .doing(|| "asking for the version".to_owned())?,
            contexts: contexts(hypervisor, domid, &info)?,
            shared,
            frames,
        })
    }

    /// Writes it with the pages that `pages` finds.
    fn write(&self, to: &mut Draft, mut pages: impl FnMut(&[(u64, u64)]) -> Result<Pages>) -> Result<()> {
        let doing = || "writing the file".to_owned();
        let notes = self.notes();
        let contexts: Vec<u8> = self
            .contexts
            .iter()
            .flat_map(|context| context.as_bytes().to_vec())
            .collect();
        let count = self.frames.len();
        let names = names();
        let lengths = [
            0,
            notes.len(),
            contexts.len(),
            self.shared.len(),
            count * PAGE_SIZE,
            count * size_of::<[u64; 2]>(),
            names.len(),
        ];
        let (head, first_page) = head(lengths);
        for part in [&head, &notes, &contexts, &self.shared] {
            to.write_all(part).doing(doing)?;
        }
        let so_far = head.len() + notes.len() + contexts.len() + self.shared.len();
        to.skip(first_page - so_far as u64).doing(doing)?;
        let mut list: Vec<[u64; 2]> = Vec::with_capacity(count);
        for batch in self.frames.chunks(FRAME_TYPES) {
            let found = pages(batch)?;
            list.extend(found.frames.iter().map(|(pfn, mfn)| [*pfn, *mfn]));
            put_pages(to, &found.bytes).doing(doing)?;
        }
        to.skip(((count - list.len()) * PAGE_SIZE) as u64).doing(doing)?;
        list.resize(count, [NO_FRAME; 2]);
        to.write_all(list.as_bytes()).doing(doing)?;
        to.write_all(&names).doing(doing)
    }

    fn notes(&self) -> Vec<u8> {
        let mut notes = Vec::new();
        put_note(&mut notes, NOTE_NONE, &[]);
        let header = Header {
            magic: MAGIC,
            vcpus: self.contexts.len() as u64,
            pages: self.frames.len() as u64,
            page_size: PAGE_SIZE as u64,
        };
        put_note(&mut notes, NOTE_HEADER, header.as_bytes());
        put_note(&mut notes, NOTE_XEN_VERSION, version(&self.about).as_bytes());
        put_note(&mut notes, NOTE_FORMAT_VERSION, FORMAT_VERSION.as_bytes());
        notes
    }
}

/// The contexts of all vcpus that have one.
fn contexts(hypervisor: &dyn Hypervisor, domid: DomId, info: &Getdomaininfo) -> Result<Vec<Box<VcpuGuestContext>>> {
    let mut found = Vec::new();
    if info.max_vcpu_id == INVALID_MAX_VCPU_ID {
        return Ok(found);
    }
    for vcpu in 0..=info.max_vcpu_id {
        match hypervisor.vcpu_context(domid, vcpu) {
            Ok(context) => found.push(context),
            Err(error) if error.raw_os_error().is_some_and(|code| NO_CONTEXT.contains(&code)) => {}
            Err(error) => return Err(error).doing(|| format!("asking for vcpu {vcpu}")),
        }
    }
    Ok(found)
}

/// Writes pages; those of zeroes are holes.
fn put_pages(to: &mut Draft, bytes: &[u8]) -> io::Result<()> {
    let is_empty = |page: &[u8]| page.iter().all(|byte| *byte == 0);
    let pages: Vec<&[u8]> = bytes.chunks(PAGE_SIZE).collect();
    let mut at = 0;
    for run in pages.chunk_by(|one, next| is_empty(one) == is_empty(next)) {
        let len = run.len() * PAGE_SIZE;
        match run.first().is_some_and(|page| is_empty(page)) {
            true => to.skip(len as u64)?,
            false => to.write_all(&bytes[at..at + len])?,
        }
        at += len;
    }
    Ok(())
}

/// `XC_CORE_MAGIC`: of a PV domain.
const MAGIC: u64 = 0xf00f_ebed;
/// 0.1
const FORMAT_VERSION: u64 = 1;
/// `XEN_ELFNOTE_DUMPCORE_NONE`: this is such a file.
const NOTE_NONE: u32 = 0x200_0000;
const NOTE_HEADER: u32 = 0x200_0001;
const NOTE_XEN_VERSION: u32 = 0x200_0002;
const NOTE_FORMAT_VERSION: u32 = 0x200_0003;

/// `xen_dumpcore_elfnote_header_desc`
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Header {
    magic: u64,
    vcpus: u64,
    pages: u64,
    page_size: u64,
}

/// `xen_dumpcore_elfnote_xen_version_desc`
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Version {
    major: u64,
    minor: u64,
    extra: Extraversion,
    compile: CompileInfo,
    capabilities: CapabilitiesInfo,
    changeset: ChangesetInfo,
    virt_start: u64,
    page_size: u64,
}

fn version(about: &VersionInfo) -> Version {
    Version {
        major: about.major.into(),
        minor: about.minor.into(),
        extra: c_text(&about.extra),
        compile: CompileInfo {
            compiler: c_text(&about.compiler),
            compile_by: c_text(&about.compile_by),
            compile_domain: c_text(&about.compile_domain),
            compile_date: c_text(&about.compile_date),
        },
        capabilities: c_text(&about.capabilities),
        changeset: c_text(&about.changeset),
        virt_start: about.virt_start,
        page_size: about.pagesize,
    }
}

/// Text as C has it, cut short if it is too long.
fn c_text<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    for (byte, letter) in bytes.iter_mut().take(N - 1).zip(text.bytes()) {
        *byte = letter;
    }
    bytes
}

fn put_note(notes: &mut Vec<u8>, kind: u32, descriptor: &[u8]) {
    const OWNER: &[u8; 4] = b"Xen\0";
    for word in [OWNER.len() as u32, descriptor.len() as u32, kind] {
        notes.extend(word.to_le_bytes());
    }
    notes.extend(OWNER);
    // All of them are whole words.
    notes.extend(descriptor);
}

/// `Elf64_Ehdr`
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct ElfHeader {
    ident: [u8; 16],
    kind: u16,
    machine: u16,
    version: u32,
    entry: u64,
    segments: u64,
    sections: u64,
    flags: u32,
    size: u16,
    segment_size: u16,
    segment_count: u16,
    section_size: u16,
    section_count: u16,
    names: u16,
}

/// `Elf64_Shdr`
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct SectionHeader {
    name: u32,
    kind: u32,
    flags: u64,
    address: u64,
    offset: u64,
    size: u64,
    link: u32,
    info: u32,
    alignment: u64,
    entry_size: u64,
}

/// `SHT_PROGBITS`
const PROGBITS: u32 = 1;
/// `SHT_STRTAB`
const STRINGS: u32 = 3;
/// `SHT_NOTE`
const NOTES: u32 = 7;

/// In the order of the file: name, type, alignment, bytes of an entry. The first has to be empty.
const SECTIONS: [(&str, u32, usize, usize); 7] = [
    ("", 0, 0, 0),
    (".note.Xen", NOTES, 4, 0),
    (".xen_prstatus", PROGBITS, 8, size_of::<VcpuGuestContext>()),
    (".xen_shared_info", PROGBITS, 8, PAGE_SIZE),
    (".xen_pages", PROGBITS, PAGE_SIZE, PAGE_SIZE),
    (".xen_p2m", PROGBITS, 8, size_of::<[u64; 2]>()),
    (".shstrtab", STRINGS, 1, 0),
];

/// The names of the sections, each ended by a zero byte.
fn names() -> Vec<u8> {
    let names = SECTIONS.iter().flat_map(|(name, ..)| name.bytes().chain([0]));
    names.collect()
}

/// What stands before the first section, of sections of these lengths; and where the pages begin.
fn head(lengths: [usize; SECTIONS.len()]) -> (Vec<u8>, u64) {
    let mut headers = Vec::new();
    let mut offset = size_of::<ElfHeader>() + SECTIONS.len() * size_of::<SectionHeader>();
    let (mut name, mut first_page) = (0, 0);
    for ((text, kind, alignment, entry_size), len) in SECTIONS.into_iter().zip(lengths) {
        offset = offset.next_multiple_of(alignment.max(1));
        if alignment == PAGE_SIZE {
            first_page = offset as u64;
        }
        let is_there = kind != 0;
        headers.push(SectionHeader {
            name,
            kind,
            offset: if is_there { offset as u64 } else { 0 },
            size: len as u64,
            alignment: alignment as u64,
            entry_size: entry_size as u64,
            ..SectionHeader::new_zeroed()
        });
        name += text.len() as u32 + 1;
        offset += len;
    }
    let header = ElfHeader {
        // 64 bits, little-endian, version 1; of the ABI too, as in Xen's cores.
        ident: [0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        // ET_CORE
        kind: 4,
        // EM_X86_64
        machine: 62,
        version: 1,
        entry: 0,
        segments: 0,
        sections: size_of::<ElfHeader>() as u64,
        flags: 0,
        size: size_of::<ElfHeader>() as u16,
        segment_size: 0,
        segment_count: 0,
        section_size: size_of::<SectionHeader>() as u16,
        section_count: SECTIONS.len() as u16,
        names: SECTIONS.len() as u16 - 1,
    };
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(headers.as_bytes());
    (bytes, first_page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use elf::ElfBytes;
    use elf::endian::LittleEndian;
    use elf::note::Note;

    /// Frame 7 has gone when it is looked at; frame 5 is empty.
    fn written() -> (Vec<u8>, u64) {
        use std::os::unix::fs::MetadataExt;
        let path = std::env::temp_dir().join(format!("core-{}-{:?}", std::process::id(), std::thread::current().id()));
        let core = Core {
            about: VersionInfo {
                major: 4,
                minor: 17,
                extra: ".7".to_owned(),
                capabilities: "xen-3.0-x86_64".to_owned(),
                virt_start: 0xffff_8000_0000_0000,
                pagesize: 4096,
                ..VersionInfo::default()
            },
            contexts: vec![Box::new(VcpuGuestContext::new_zeroed()); 2],
            shared: vec![0x55; PAGE_SIZE],
            frames: vec![(0, 100), (5, 90), (7, 80), (9, 70)],
        };
        let mut draft = Draft::open(&path).expect("can be written");
        let done = core.write(&mut draft, |frames| {
            let there = frames.iter().filter(|(pfn, _)| *pfn != 7);
            let frames: Vec<_> = there.copied().collect();
            let page = |(pfn, _): &(u64, u64)| vec![if *pfn == 5 { 0 } else { *pfn as u8 + 1 }; PAGE_SIZE];
            let bytes = frames.iter().flat_map(page).collect();
            Ok(Pages { frames, bytes })
        });
        done.expect("is written");
        draft.keep().expect("is kept");
        let bytes = std::fs::read(&path).expect("is there");
        let blocks = std::fs::metadata(&path).expect("is there").blocks();
        std::fs::remove_file(&path).expect("can be removed");
        (bytes, blocks * 512)
    }

    #[test]
    fn a_core_is_an_elf_file_with_the_sections_of_its_format() {
        let (bytes, on_disk) = written();
        let core = ElfBytes::<LittleEndian>::minimal_parse(&bytes).expect("is ELF");
        assert_eq!(core.ehdr.e_type, elf::abi::ET_CORE);
        assert_eq!(core.ehdr.e_machine, elf::abi::EM_X86_64);
        let section = |name: &str| {
            let header = core.section_header_by_name(name).expect("has names");
            let header = header.unwrap_or_else(|| panic!("there is no {name}"));
            core.section_data(&header).expect("is in the file").0
        };
        assert_eq!(section(".xen_prstatus").len(), 2 * 5168);
        assert_eq!(section(".xen_shared_info"), [0x55; PAGE_SIZE]);
        let firsts: Vec<u8> = section(".xen_pages").chunks(PAGE_SIZE).map(|page| page[0]).collect();
        assert_eq!(firsts, [1, 0, 10, 0]);
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight"));
        let list: Vec<u64> = section(".xen_p2m").chunks(8).map(word).collect();
        assert_eq!(list, [0, 100, 5, 90, 9, 70, NO_FRAME, NO_FRAME]);
        assert!(on_disk < bytes.len() as u64, "the empty pages are no holes: {on_disk}");
    }

    #[test]
    fn its_notes_tell_of_the_domain_and_of_the_hypervisor() {
        let (bytes, _) = written();
        let core = ElfBytes::<LittleEndian>::minimal_parse(&bytes).expect("is ELF");
        let header = core.section_header_by_name(".note.Xen").expect("has names");
        let notes = core
            .section_data_as_notes(&header.expect("is there"))
            .expect("are notes");
        let notes: Vec<(u64, &[u8])> = notes
            .map(|note| match note {
                Note::Unknown(note) if note.name == b"Xen" || note.name == b"Xen\0" => (note.n_type, note.desc),
                other => panic!("{other:?}"),
            })
            .collect();
        let kinds: Vec<u64> = notes.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [0x200_0000, 0x200_0001, 0x200_0002, 0x200_0003]);
        assert_eq!(notes[1].1, [0xf00f_ebed_u64, 2, 4, 4096].as_bytes());
        assert_eq!(notes[2].1.len(), 1280);
        assert_eq!(&notes[2].1[..18], b"\x04\0\0\0\0\0\0\0\x11\0\0\0\0\0\0\0.7");
        assert_eq!(notes[3].1, 1u64.as_bytes());
    }
}
