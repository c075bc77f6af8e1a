//! libxc's layer, version 3: a domain's memory, and what its vcpus were at.
//!
//! A PV domain is written as: [`Header`], [`Record::PvInfo`], the CPU policy, [`Record::StaticDataEnd`],
//! [`Record::P2mFrames`], its pages, [`Record::TscInfo`], [`Record::SharedInfo`], its vcpus, [`Record::End`]. Frame
//! numbers are the domain's own throughout, also in page tables and in vcpus' contexts.

use crate::record::{self, OPTIONAL};
use crate::{Error, Result, fill};
use ferroxen_words::PAGE_SIZE;
use std::io::{Read, Write};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const MARKER: u64 = !0;
/// "XENF"
const ID: u32 = 0x5845_4e46;
const VERSION: u32 = 3;
/// The version before, which says the same in another order.
const VERSION_BEFORE: u32 = 2;
/// Big-endian records.
const OPTION_BIG_ENDIAN: u16 = 1;
/// `XEN_DOMCTL_PFINFO_*`'s place in a word of [`Record::PageData`].
const TYPE_SHIFT: u32 = 60;
const PFN_MASK: u64 = (1 << 52) - 1;

/// Most pages in one record, as libxc has it.
pub const BATCH: usize = 1024;

/// A kind of domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DomainKind {
    /// Paravirtual.
    Pv,
    /// With hardware containers (HVM, PVH).
    Hvm,
}

/// What stands before the records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What was saved.
    pub kind: DomainKind,
    /// The hypervisor it ran on: major and minor version.
    pub xen: (u32, u32),
}

impl Header {
    /// Writes the two headers.
    pub fn write(&self, to: &mut impl Write) -> Result<()> {
        to.write_all(&MARKER.to_be_bytes())?;
        to.write_all(&ID.to_be_bytes())?;
        to.write_all(&VERSION.to_be_bytes())?;
        to.write_all(&[0; 8])?;
        let kind = match self.kind {
            DomainKind::Pv => 1u32,
            DomainKind::Hvm => 2,
        };
        to.write_all(&kind.to_le_bytes())?;
        to.write_all(&(PAGE_SIZE.trailing_zeros()).to_le_bytes())?;
        to.write_all(&self.xen.0.to_le_bytes())?;
        to.write_all(&self.xen.1.to_le_bytes())?;
        Ok(())
    }

    /// Reads the two headers.
    pub fn read(from: &mut impl Read) -> Result<Header> {
        const WHAT: &str = "the image's header";
        let mut marker = [0; 8];
        fill(from, &mut marker, WHAT)?;
        let mut words = [[0; 4]; 2];
        fill(from, words.as_flattened_mut(), WHAT)?;
        let [id, version] = words.map(u32::from_be_bytes);
        if u64::from_be_bytes(marker) != MARKER || id != ID {
            return Err(Error::NotOne("domain image"));
        }
        if !matches!(version, VERSION | VERSION_BEFORE) {
            return Err(Error::Version {
                what: "the domain image",
                version,
                ours: VERSION,
            });
        }
        let mut options = [0; 8];
        fill(from, &mut options, WHAT)?;
        if u16::from_be_bytes([options[0], options[1]]) & OPTION_BIG_ENDIAN != 0 {
            return Err(Error::Malformed("the domain image is big-endian".to_owned()));
        }
        let mut words = [[0; 4]; 4];
        fill(from, words.as_flattened_mut(), WHAT)?;
        let [kind, page_shift, major, minor] = words.map(u32::from_le_bytes);
        let kind = match kind {
            1 => DomainKind::Pv,
            2 => DomainKind::Hvm,
            other => return Err(Error::Malformed(format!("the domain image is of unknown kind {other}"))),
        };
        // The upper half is reserved.
        if page_shift & 0xffff != PAGE_SIZE.trailing_zeros() {
            return Err(Error::Malformed(format!("its pages have 2^{page_shift} bytes")));
        }
        Ok(Header {
            kind,
            xen: (major, minor),
        })
    }
}

/// What a frame is to its domain (`XEN_DOMCTL_PFINFO_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameType(u8);

impl FrameType {
    /// A page of data.
    pub const PLAIN: FrameType = FrameType(0);
    /// The hardware is broken.
    pub const BROKEN: FrameType = FrameType(0xd);
    /// To be allocated, contents of no interest.
    pub const ALLOCATE: FrameType = FrameType(0xe);
    /// There is no such frame.
    pub const NONE: FrameType = FrameType(0xf);
    const PINNED: u8 = 8;

    /// From the four bits of the ABI; nothing for those that are reserved.
    pub fn from_bits(bits: u8) -> Option<FrameType> {
        matches!(bits, 0..=4 | 9..=0xf).then_some(FrameType(bits))
    }

    /// The four bits.
    pub fn bits(self) -> u8 {
        self.0
    }

    /// 1 to 4 for a page table.
    pub fn level(self) -> Option<u8> {
        let level = self.0 & !FrameType::PINNED;
        (!matches!(self.0, 0 | 0xd..)).then_some(level)
    }

    /// A page table that stays one when nothing refers to it.
    pub fn is_pinned(self) -> bool {
        self.level().is_some() && self.0 & FrameType::PINNED != 0
    }

    /// Its bytes are in the stream.
    pub fn has_data(self) -> bool {
        self.0 < FrameType::BROKEN.0
    }
}

/// Some frames, and the bytes of those that have any.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PageData {
    /// The domain's frame numbers, with what each is.
    pub frames: Vec<(u64, FrameType)>,
    /// The bytes of those that have data, one page each, in order.
    pub bytes: Vec<u8>,
}

impl PageData {
    /// Frames with their bytes.
    pub fn pages(&self) -> impl Iterator<Item = (u64, FrameType, Option<&[u8]>)> {
        let mut bytes = self.bytes.chunks_exact(PAGE_SIZE);
        self.frames.iter().map(move |(pfn, kind)| {
            let data = if kind.has_data() { bytes.next() } else { None };
            (*pfn, *kind, data)
        })
    }
}

/// Blobs of a vcpu, each for a pair of control calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VcpuPart {
    /// `getvcpucontext`, with the domain's own frame numbers.
    Basic,
    /// `get_ext_vcpucontext`
    Extended,
    /// `getvcpuextstate`
    Xsave,
    /// `get_vcpu_msrs`
    Msrs,
}

/// `X86_TSC_INFO`
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TscInfo {
    /// `TSC_MODE_*`
    pub mode: u32,
    /// Frequency.
    pub khz: u32,
    /// Time that the domain has seen.
    pub elapsed_ns: u64,
    /// How often it was moved.
    pub incarnation: u32,
    /// Zero.
    pub reserved: u32,
}

/// One record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    /// The image is complete.
    End,
    /// Memory.
    PageData(PageData),
    /// Bytes in a word of the guest's, and levels of its page tables.
    PvInfo {
        /// 4 or 8.
        width: u8,
        /// 3 or 4.
        levels: u8,
    },
    /// Where the guest keeps its P2M list.
    P2mFrames {
        /// Its first frame.
        first: u32,
        /// Its last frame.
        last: u32,
        /// The frames that hold the list, for these frames.
        frames: Vec<u64>,
    },
    /// A part of a vcpu.
    Vcpu {
        /// Which part.
        part: VcpuPart,
        /// Whose.
        vcpu: u32,
        /// What the control call gave.
        bytes: Vec<u8>,
    },
    /// The shared page.
    SharedInfo(Box<[u8; PAGE_SIZE]>),
    /// How time passes.
    TscInfo(TscInfo),
    /// All memory has been sent; what follows is sent again, to compare.
    Verify,
    /// The records so far are a whole.
    Checkpoint,
    /// What does not change while the domain runs has been sent.
    StaticDataEnd,
    /// CPUID leaves, as `get_cpu_policy` gives them.
    CpuidPolicy(Vec<u8>),
    /// MSRs, likewise.
    MsrPolicy(Vec<u8>),
}

mod kind {
    pub const END: u32 = 0;
    pub const PAGE_DATA: u32 = 1;
    pub const X86_PV_INFO: u32 = 2;
    pub const X86_PV_P2M_FRAMES: u32 = 3;
    pub const X86_PV_VCPU_BASIC: u32 = 4;
    pub const X86_PV_VCPU_EXTENDED: u32 = 5;
    pub const X86_PV_VCPU_XSAVE: u32 = 6;
    pub const SHARED_INFO: u32 = 7;
    pub const X86_TSC_INFO: u32 = 8;
    pub const X86_PV_VCPU_MSRS: u32 = 0xc;
    pub const VERIFY: u32 = 0xd;
    pub const CHECKPOINT: u32 = 0xe;
    pub const STATIC_DATA_END: u32 = 0x10;
    pub const X86_CPUID_POLICY: u32 = 0x11;
    pub const X86_MSR_POLICY: u32 = 0x12;
}

impl VcpuPart {
    const ALL: [(VcpuPart, u32); 4] = [
        (VcpuPart::Basic, kind::X86_PV_VCPU_BASIC),
        (VcpuPart::Extended, kind::X86_PV_VCPU_EXTENDED),
        (VcpuPart::Xsave, kind::X86_PV_VCPU_XSAVE),
        (VcpuPart::Msrs, kind::X86_PV_VCPU_MSRS),
    ];

    fn kind(self) -> u32 {
        VcpuPart::ALL
            .iter()
            .find(|(part, _)| *part == self)
            .map_or(0, |(_, kind)| *kind)
    }
}

/// Writes a record of pages without copying them together first.
pub fn write_pages(to: &mut impl Write, frames: &[(u64, FrameType)], bytes: &[u8]) -> Result<()> {
    let count = u32::try_from(frames.len()).unwrap_or(u32::MAX);
    let words: Vec<u64> = frames
        .iter()
        .map(|(pfn, kind)| pfn & PFN_MASK | u64::from(kind.bits()) << TYPE_SHIFT)
        .collect();
    let head = [count, 0];
    record::write(to, kind::PAGE_DATA, &[head.as_bytes(), words.as_bytes(), bytes])
}

impl Record {
    /// Writes it.
    pub fn write(&self, to: &mut impl Write) -> Result<()> {
        match self {
            Record::End => record::write(to, kind::END, &[]),
            Record::PageData(pages) => write_pages(to, &pages.frames, &pages.bytes),
            Record::PvInfo { width, levels } => {
                record::write(to, kind::X86_PV_INFO, &[&[*width, *levels, 0, 0, 0, 0, 0, 0]])
            }
            Record::P2mFrames { first, last, frames } => {
                let range = [*first, *last];
                record::write(to, kind::X86_PV_P2M_FRAMES, &[range.as_bytes(), frames.as_bytes()])
            }
            Record::Vcpu { part, vcpu, bytes } => {
                let head = [*vcpu, 0];
                record::write(to, part.kind(), &[head.as_bytes(), bytes])
            }
            Record::SharedInfo(page) => record::write(to, kind::SHARED_INFO, &[&page[..]]),
            Record::TscInfo(info) => record::write(to, kind::X86_TSC_INFO, &[info.as_bytes()]),
            Record::Verify => record::write(to, kind::VERIFY, &[]),
            Record::Checkpoint => record::write(to, kind::CHECKPOINT, &[]),
            Record::StaticDataEnd => record::write(to, kind::STATIC_DATA_END, &[]),
            Record::CpuidPolicy(bytes) => record::write(to, kind::X86_CPUID_POLICY, &[bytes]),
            Record::MsrPolicy(bytes) => record::write(to, kind::X86_MSR_POLICY, &[bytes]),
        }
    }

    /// Reads the next one that we know; those that may be skipped are.
    pub fn read(from: &mut impl Read) -> Result<Record> {
        loop {
            let raw = record::read(from)?;
            if raw.kind & OPTIONAL == 0 {
                return Record::decode(raw);
            }
        }
    }

    fn decode(raw: record::Record) -> Result<Record> {
        let body = raw.body.as_slice();
        let part = VcpuPart::ALL.iter().find(|(_, kind)| *kind == raw.kind);
        if let Some((part, _)) = part {
            let (vcpu, bytes) = after_word(body, "a vcpu's record")?;
            return Ok(Record::Vcpu {
                part: *part,
                vcpu,
                bytes: bytes.to_vec(),
            });
        }
        Ok(match raw.kind {
            kind::END => Record::End,
            kind::PAGE_DATA => Record::PageData(pages(body)?),
            kind::X86_PV_INFO => match body {
                [width, levels, ..] => Record::PvInfo {
                    width: *width,
                    levels: *levels,
                },
                _ => return Err(Error::Malformed("X86_PV_INFO is empty".to_owned())),
            },
            kind::X86_PV_P2M_FRAMES => {
                let (range, rest) = <[u32; 2]>::read_from_prefix(body).map_err(|_| short("X86_PV_P2M_FRAMES"))?;
                Record::P2mFrames {
                    first: range[0],
                    last: range[1],
                    frames: words(rest, "X86_PV_P2M_FRAMES")?,
                }
            }
            kind::SHARED_INFO => {
                let page = <[u8; PAGE_SIZE]>::read_from_bytes(body);
                Record::SharedInfo(Box::new(page.map_err(|_| short("SHARED_INFO"))?))
            }
            kind::X86_TSC_INFO => Record::TscInfo(TscInfo::read_from_bytes(body).map_err(|_| short("X86_TSC_INFO"))?),
            kind::VERIFY => Record::Verify,
            kind::CHECKPOINT => Record::Checkpoint,
            kind::STATIC_DATA_END => Record::StaticDataEnd,
            kind::X86_CPUID_POLICY => Record::CpuidPolicy(raw.body),
            kind::X86_MSR_POLICY => Record::MsrPolicy(raw.body),
            other => {
                return Err(Error::Malformed(format!(
                    "the image has a record of type {other:#x}, which a PV domain has not"
                )));
            }
        })
    }
}

fn short(what: &str) -> Error {
    Error::Malformed(format!("{what} has not the length that it must have"))
}

/// A first word, its padding, and the rest.
fn after_word<'a>(body: &'a [u8], what: &str) -> Result<(u32, &'a [u8])> {
    let (head, rest) = <[u32; 2]>::read_from_prefix(body).map_err(|_| short(what))?;
    Ok((head[0], rest))
}

fn words(bytes: &[u8], what: &str) -> Result<Vec<u64>> {
    let (chunks, []) = bytes.as_chunks::<8>() else {
        return Err(short(what));
    };
    Ok(chunks.iter().map(|chunk| u64::from_le_bytes(*chunk)).collect())
}

fn pages(body: &[u8]) -> Result<PageData> {
    const WHAT: &str = "PAGE_DATA";
    let (count, rest) = after_word(body, WHAT)?;
    let split = (count as usize)
        .checked_mul(8)
        .and_then(|len| rest.split_at_checked(len));
    let (frames, bytes) = split.filter(|_| count != 0).ok_or_else(|| short(WHAT))?;
    let frames: Vec<(u64, FrameType)> = words(frames, WHAT)?
        .into_iter()
        .map(|word| {
            let kind = FrameType::from_bits((word >> TYPE_SHIFT) as u8);
            kind.map(|kind| (word & PFN_MASK, kind))
                .ok_or_else(|| Error::Malformed(format!("frame {:#x} is of a reserved type", word & PFN_MASK)))
        })
        .collect::<Result<_>>()?;
    let with_data = frames.iter().filter(|(_, kind)| kind.has_data()).count();
    if bytes.len() != with_data * PAGE_SIZE {
        return Err(short(WHAT));
    }
    Ok(PageData {
        frames,
        bytes: bytes.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame_type() -> impl Strategy<Value = FrameType> {
        (0u8..16).prop_filter_map("reserved", FrameType::from_bits)
    }

    fn page_data() -> impl Strategy<Value = PageData> {
        prop::collection::vec((0..1u64 << 52, frame_type()), 1..4).prop_map(|frames| {
            let with_data = frames.iter().filter(|(_, kind)| kind.has_data());
            let bytes = with_data.flat_map(|(pfn, _)| [*pfn as u8; PAGE_SIZE]).collect();
            PageData { frames, bytes }
        })
    }

    fn any_record() -> impl Strategy<Value = Record> {
        let bytes = prop::collection::vec(any::<u8>(), 0..40);
        prop_oneof![
            Just(Record::End),
            Just(Record::Verify),
            Just(Record::StaticDataEnd),
            page_data().prop_map(Record::PageData),
            any::<(u8, u8)>().prop_map(|(width, levels)| Record::PvInfo { width, levels }),
            (any::<u32>(), any::<u32>(), prop::collection::vec(any::<u64>(), 0..5))
                .prop_map(|(first, last, frames)| Record::P2mFrames { first, last, frames }),
            (0usize..4, any::<u32>(), bytes.clone()).prop_map(|(part, vcpu, bytes)| Record::Vcpu {
                part: VcpuPart::ALL[part].0,
                vcpu,
                bytes,
            }),
            any::<u8>().prop_map(|byte| Record::SharedInfo(Box::new([byte; PAGE_SIZE]))),
            any::<(u32, u32, u64, u32)>().prop_map(|(mode, khz, elapsed_ns, incarnation)| {
                Record::TscInfo(TscInfo {
                    mode,
                    khz,
                    elapsed_ns,
                    incarnation,
                    reserved: 0,
                })
            }),
            bytes.clone().prop_map(Record::CpuidPolicy),
            bytes.prop_map(Record::MsrPolicy),
        ]
    }

    proptest! {
        #[test]
        fn records_read_back(records in prop::collection::vec(any_record(), 0..6)) {
            let mut stream = Vec::new();
            for record in &records {
                record.write(&mut stream).unwrap();
                record::write(&mut stream, OPTIONAL | 3, &[b"skip me"]).unwrap();
            }
            let mut rest = stream.as_slice();
            for record in &records {
                prop_assert_eq!(&Record::read(&mut rest).unwrap(), record);
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0u32..0x14) {
            // Mostly a kind that exists, and a length that is there.
            let len = (bytes.len() as u32).saturating_sub(8) & !7;
            if let Some(head) = bytes.first_chunk_mut::<8>() {
                head[..4].copy_from_slice(&kind.to_le_bytes());
                head[4..].copy_from_slice(&len.to_le_bytes());
            }
            let _ = Record::read(&mut bytes.as_slice());
        }
    }

    #[test]
    fn the_header_is_as_the_specification_draws_it() {
        let mut bytes = Vec::new();
        let header = Header {
            kind: DomainKind::Pv,
            xen: (4, 17),
        };
        header.write(&mut bytes).unwrap();
        let expected = [
            &[0xff; 8][..],
            b"XENF",
            &[0, 0, 0, 3],
            &[0; 8],
            &[1, 0, 0, 0],
            &[12, 0, 0, 0],
            &[4, 0, 0, 0],
            &[17, 0, 0, 0],
        ];
        assert_eq!(bytes, expected.concat());
        assert_eq!(Header::read(&mut bytes.as_slice()).unwrap(), header);
        bytes[15] = 4;
        assert!(matches!(
            Header::read(&mut bytes.as_slice()),
            Err(Error::Version { version: 4, .. })
        ));
    }

    #[test]
    fn tables_are_told_from_what_is_none() {
        let of = |bits| FrameType::from_bits(bits).unwrap();
        assert_eq!(of(4).level(), Some(4));
        assert_eq!((of(0xc).level(), of(0xc).is_pinned()), (Some(4), true));
        assert!(!of(4).is_pinned() && !of(0).is_pinned() && !of(0xf).is_pinned());
        assert_eq!((of(0).level(), of(0xd).level(), of(0xf).level()), (None, None, None));
        assert!(FrameType::from_bits(8).is_none());
    }
}
