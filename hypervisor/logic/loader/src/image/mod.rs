//! Kernel images: what a file is packed as, how large it gets, and unpacking it.
//!
//! A Linux bzImage is a real-mode stub, a small decompressor and, at an offset that the boot protocol
//! tells, the ELF kernel packed by gzip, xz, zstd or lz4. We run neither stub nor decompressor.
//!
//! Nothing here allocates the unpacked kernel: [`Packed::unpack_into`] fills memory that the caller
//! reserved, [`Packed::unpacked_size`] bytes of it. The heap serves the decoders' own state:
//! [`Packed::heap_needed`] says how much. Every refusal leaves `out` in an unspecified state.
//!
//! Sources: Linux `Documentation/x86/boot.rst` ("The real-mode kernel header"), RFC 1952, RFC 8878,
//! the LZ4 frame description ("Legacy frame").

mod crc32;
mod xz;
mod zstd;

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

/// Why an image cannot be unpacked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Refused {
    /// Neither ELF, bzImage nor gzip.
    UnknownFormat,
    /// A boot protocol older than 2.08, which does not tell where the payload lies.
    BootProtocolTooOld(u16),
    /// The payload named by the header lies outside of the file.
    PayloadOutside,
    /// Known, but not supported.
    Unsupported(&'static str),
    /// The compressed data ends too early.
    Truncated(&'static str),
    /// The compressed data is damaged.
    Broken(&'static str),
    /// The unpacked data does not match its checksum.
    Checksum(&'static str),
    /// The data unpacks to more than the size it carries.
    LargerThanTold,
    /// The data unpacks to less than the size it carries.
    SmallerThanTold,
    /// The heap has no room for the decoder.
    NoMemory(&'static str),
    /// The memory offered is smaller than the unpacked image.
    DoesNotFit {
        /// Bytes needed.
        needed: usize,
        /// Bytes offered.
        offered: usize,
    },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::UnknownFormat => f.write_str("neither an ELF file, a bzImage nor gzip"),
            Refused::BootProtocolTooOld(version) => {
                write!(
                    f,
                    "bzImage of boot protocol {}.{:02}, need 2.08",
                    version >> 8,
                    version & 0xff
                )
            }
            Refused::PayloadOutside => f.write_str("bzImage header points outside of the file"),
            Refused::Unsupported(what) => write!(f, "not supported: {what}"),
            Refused::Truncated(format) => write!(f, "{format} data ends too early"),
            Refused::Broken(format) => write!(f, "{format} data is damaged"),
            Refused::Checksum(format) => write!(f, "{format} data fails its checksum"),
            Refused::LargerThanTold => f.write_str("unpacks to more than it says"),
            Refused::SmallerThanTold => f.write_str("unpacks to less than it says"),
            Refused::NoMemory(format) => write!(f, "no memory to unpack {format} data"),
            Refused::DoesNotFit { needed, offered } => {
                write!(f, "needs {needed} bytes, {offered} are there")
            }
        }
    }
}

impl core::error::Error for Refused {}

/// How the kernel proper is packed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Packing {
    /// Not at all.
    Plain,
    /// RFC 1952.
    Gzip,
    /// LZMA2, perhaps behind the x86 branch filter.
    Xz,
    /// RFC 8878.
    Zstd,
    /// Blocks of 8 MiB behind the legacy magic.
    Lz4,
}

/// A kernel within its file.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a> {
    packing: Packing,
    payload: &'a [u8],
    unpacked_size: usize,
}

const XZ_MAGIC: &[u8] = b"\xfd7zXZ\0";
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZSTD_MAGIC: &[u8; 4] = &[0x28, 0xb5, 0x2f, 0xfd];
const LZ4_LEGACY_MAGIC: &[u8] = &[0x02, 0x21, 0x4c, 0x18];
const ELF_MAGIC: &[u8] = b"\x7fELF";

/// Looks at a kernel file: an ELF file, a gzipped one, or a bzImage.
///
/// The result of unpacking a gzip file may be packed again (a gzipped bzImage): call it once more.
pub fn inspect(file: &[u8]) -> Result<Packed<'_>, Refused> {
    if file.starts_with(ELF_MAGIC) {
        return Ok(Packed {
            packing: Packing::Plain,
            payload: file,
            unpacked_size: file.len(),
        });
    }
    if file.starts_with(GZIP_MAGIC) {
        return Ok(Packed {
            packing: Packing::Gzip,
            payload: file,
            unpacked_size: size_at_end(file)?,
        });
    }
    if file.get(0x202..0x206) == Some(b"HdrS") {
        return bzimage(file);
    }
    Err(Refused::UnknownFormat)
}

/// Unpacks `file`, layer by layer, into memory of its own: for the toolstack. At most `limit` bytes.
pub fn unpack_to_vec(file: &[u8], limit: usize) -> Result<Vec<u8>, Refused> {
    let mut packed = inspect(file)?;
    let mut whole;
    // A gzipped bzImage is two layers; anything deeper is not a kernel.
    for _ in 0..3 {
        if packed.unpacked_size > limit {
            return Err(Refused::DoesNotFit {
                needed: packed.unpacked_size,
                offered: limit,
            });
        }
        let mut out = vec![0; packed.unpacked_size];
        packed.unpack_into(&mut out)?;
        if packed.packing == Packing::Plain || out.starts_with(ELF_MAGIC) {
            return Ok(out);
        }
        whole = out;
        packed = inspect(&whole)?;
    }
    Err(Refused::UnknownFormat)
}

fn bzimage(file: &[u8]) -> Result<Packed<'_>, Refused> {
    let version = u16::from_le_bytes(field(file, 0x206)?);
    if version < 0x0208 {
        return Err(Refused::BootProtocolTooOld(version));
    }
    let setup_sectors = match file.get(0x1f1) {
        Some(0) => 4,
        Some(&count) => usize::from(count),
        None => return Err(Refused::PayloadOutside),
    };
    let offset = u32::from_le_bytes(field(file, 0x248)?) as usize;
    let length = u32::from_le_bytes(field(file, 0x24c)?) as usize;
    let begin = ((setup_sectors + 1) * 512)
        .checked_add(offset)
        .ok_or(Refused::PayloadOutside)?;
    let end = begin.checked_add(length).ok_or(Refused::PayloadOutside)?;
    let payload = file.get(begin..end).ok_or(Refused::PayloadOutside)?;
    if payload.starts_with(ELF_MAGIC) {
        return Ok(Packed {
            packing: Packing::Plain,
            payload,
            unpacked_size: payload.len(),
        });
    }
    let packing = match payload {
        _ if payload.starts_with(GZIP_MAGIC) => Packing::Gzip,
        _ if payload.starts_with(XZ_MAGIC) => Packing::Xz,
        _ if payload.starts_with(ZSTD_MAGIC) => Packing::Zstd,
        _ if payload.starts_with(LZ4_LEGACY_MAGIC) => Packing::Lz4,
        [b'B', b'Z', b'h', ..] => return Err(Refused::Unsupported("bzip2")),
        [0x5d, 0, 0, ..] => return Err(Refused::Unsupported("lzma")),
        [0x89, b'L', b'Z', ..] => return Err(Refused::Unsupported("lzo")),
        _ => return Err(Refused::Unsupported("an unknown compression")),
    };
    let unpacked_size = size_at_end(payload)?;
    // gzip has the size in its own trailer; for the others, Linux's build appends it.
    let payload = match packing {
        Packing::Gzip => payload,
        _ => payload.get(..payload.len() - 4).ok_or(Refused::PayloadOutside)?,
    };
    Ok(Packed {
        packing,
        payload,
        unpacked_size,
    })
}

fn size_at_end(payload: &[u8]) -> Result<usize, Refused> {
    payload
        .last_chunk()
        .map(|size| u32::from_le_bytes(*size) as usize)
        .ok_or(Refused::PayloadOutside)
}

fn field<const N: usize>(file: &[u8], at: usize) -> Result<[u8; N], Refused> {
    file.get(at..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .ok_or(Refused::PayloadOutside)
}

impl<'a> Packed<'a> {
    /// How the kernel is packed.
    pub fn packing(&self) -> Packing {
        self.packing
    }

    /// Bytes that [`Self::unpack_into`] will write.
    pub fn unpacked_size(&self) -> usize {
        self.unpacked_size
    }

    /// The kernel itself, if it lies in the file unpacked and need not be copied.
    pub fn plain(&self) -> Option<&'a [u8]> {
        (self.packing == Packing::Plain).then_some(self.payload)
    }

    /// An upper bound of what unpacking takes from the heap for a while.
    ///
    /// xz and zstd are the expensive ones: their decoders keep a window of their own.
    pub fn heap_needed(&self) -> usize {
        match self.packing {
            Packing::Plain | Packing::Lz4 => 0,
            Packing::Gzip => 64 << 10,
            Packing::Xz => xz::heap_needed(self.payload, self.unpacked_size),
            Packing::Zstd => zstd::heap_needed(self.payload, self.unpacked_size),
        }
    }

    /// Unpacks into the front of `out`, exactly [`Self::unpacked_size`] bytes.
    pub fn unpack_into(&self, out: &mut [u8]) -> Result<(), Refused> {
        let offered = out.len();
        let out = out.get_mut(..self.unpacked_size).ok_or(Refused::DoesNotFit {
            needed: self.unpacked_size,
            offered,
        })?;
        let written = match self.packing {
            Packing::Plain => {
                out.copy_from_slice(self.payload);
                self.payload.len()
            }
            Packing::Gzip => gunzip(self.payload, out)?,
            Packing::Xz => xz::unpack(self.payload, out)?,
            Packing::Zstd => zstd::unpack(self.payload, out)?,
            Packing::Lz4 => unpack_lz4(self.payload, out)?,
        };
        if written == self.unpacked_size {
            Ok(())
        } else {
            Err(Refused::SmallerThanTold)
        }
    }
}

// Not inlined: making the inflater takes 10 KiB of stack for a moment, which the other decoders need not pay.
#[inline(never)]
fn gunzip(file: &[u8], out: &mut [u8]) -> Result<usize, Refused> {
    use miniz_oxide::inflate::TINFLStatus;
    use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
    const CUT: Refused = Refused::Truncated("gzip");

    let deflated = file.get(gzip_header_length(file)?..).ok_or(CUT)?;
    let mut inflater = Box::<DecompressorOxide>::default();
    let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let (status, read, written) = decompress(&mut inflater, deflated, out, 0, flags);
    match status {
        TINFLStatus::Done => {}
        TINFLStatus::HasMoreOutput => return Err(Refused::LargerThanTold),
        TINFLStatus::FailedCannotMakeProgress | TINFLStatus::NeedsMoreInput => return Err(CUT),
        _ => return Err(Refused::Broken("gzip")),
    }
    let told = deflated
        .get(read..)
        .and_then(|trailer| trailer.first_chunk())
        .ok_or(CUT)?;
    let unpacked = out.get(..written).ok_or(CUT)?;
    if u32::from_le_bytes(*told) != crc32::crc32(unpacked) {
        return Err(Refused::Checksum("gzip"));
    }
    Ok(written)
}

/// RFC 1952 "Member header and trailer".
fn gzip_header_length(file: &[u8]) -> Result<usize, Refused> {
    const CUT: Refused = Refused::Truncated("gzip");
    const BROKEN: Refused = Refused::Broken("gzip");
    let [_, _, method, flags, ..] = *file else {
        return Err(CUT);
    };
    if method != 8 || flags & 0xe0 != 0 {
        return Err(BROKEN);
    }
    let mut at = 10usize;
    if flags & 4 != 0 {
        let extra: [u8; 2] = file.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or(CUT)?;
        at += 2 + usize::from(u16::from_le_bytes(extra));
    }
    for text in [8, 16] {
        if flags & text != 0 {
            let rest = file.get(at..).ok_or(CUT)?;
            at += rest.iter().position(|&byte| byte == 0).ok_or(CUT)? + 1;
        }
    }
    if flags & 2 != 0 {
        at += 2;
    }
    Ok(at)
}

/// Blocks of up to 8 MiB, each behind its packed length; the magic may come again between them.
fn unpack_lz4(mut rest: &[u8], out: &mut [u8]) -> Result<usize, Refused> {
    const CUT: Refused = Refused::Truncated("lz4");
    let mut done = 0;
    while let Some((word, after)) = rest.split_first_chunk() {
        rest = after;
        if word == LZ4_LEGACY_MAGIC {
            continue;
        }
        let length = u32::from_le_bytes(*word) as usize;
        let block = rest.get(..length).ok_or(CUT)?;
        rest = rest.get(length..).ok_or(CUT)?;
        let target = out.get_mut(done..).ok_or(CUT)?;
        done += lz4_flex::block::decompress_into(block, target).map_err(|error| match error {
            lz4_flex::block::DecompressError::OutputTooSmall { .. } => Refused::LargerThanTold,
            _ => Refused::Broken("lz4"),
        })?;
    }
    if rest.is_empty() { Ok(done) } else { Err(CUT) }
}

#[cfg(test)]
mod tests;
