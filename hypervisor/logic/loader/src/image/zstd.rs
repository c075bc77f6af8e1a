//! zstd, by `ruzstd`.
//!
//! Linux's build packs without telling zstd the size, so every frame asks for the window of its level: 128 MiB. No
//! match reaches back further than what has been written, so the decoder is given a header of ours, with a window
//! that is no larger than the kernel.

use super::Refused;
use alloc::boxed::Box;
use ruzstd::decoding::errors::{DecodeBlockContentError, FrameDecoderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

const BROKEN: Refused = Refused::Broken("zstd");
const CUT: Refused = Refused::Truncated("zstd");

/// What we need of a frame's header (RFC 8878 "Frame_Header").
struct Header {
    length: usize,
    window: u64,
    has_checksum: bool,
}

impl Header {
    fn parse(frame: &[u8]) -> Result<Header, Refused> {
        let descriptor = *frame.get(4).ok_or(CUT)?;
        if !frame.starts_with(super::ZSTD_MAGIC) || descriptor & 0x08 != 0 {
            return Err(BROKEN);
        }
        if descriptor & 3 != 0 {
            return Err(Refused::Unsupported("zstd with a dictionary"));
        }
        let is_single_segment = descriptor & 0x20 != 0;
        let size_bytes = match descriptor >> 6 {
            0 => usize::from(is_single_segment),
            power => 1 << power,
        };
        // Of one segment, the window is the whole.
        let window = match is_single_segment {
            true => u64::MAX,
            false => window_of(*frame.get(5).ok_or(CUT)?),
        };
        Ok(Header {
            length: 5 + usize::from(!is_single_segment) + size_bytes,
            window,
            has_checksum: descriptor & 4 != 0,
        })
    }

    /// The byte that names the smallest window that is enough.
    fn window_byte(&self, unpacked: usize) -> u8 {
        let enough = self.window.min(unpacked as u64);
        (0..=u8::MAX).find(|&byte| window_of(byte) >= enough).unwrap_or(u8::MAX)
    }
}

/// RFC 8878 "Window_Descriptor".
fn window_of(byte: u8) -> u64 {
    let base = 1u64 << (10 + (byte >> 3));
    base + base / 8 * u64::from(byte & 7)
}

/// An upper bound of what [`unpack`] takes from the heap.
pub(super) fn heap_needed(frame: &[u8], unpacked: usize) -> usize {
    /// Beyond the window: one block, or what a damaged one writes before it is noticed.
    const BEYOND: usize = 512 << 10;
    let Ok(header) = Header::parse(frame) else {
        return 0;
    };
    let window = usize::try_from(window_of(header.window_byte(unpacked))).unwrap_or(usize::MAX / 8);
    // The ring grows to powers of two; the old rings together are no larger than the last.
    2 * (window + BEYOND).next_power_of_two() + (4 << 20)
}

/// Unpacks the one frame in `frame` into the front of `out` and gives its length.
pub(super) fn unpack(frame: &[u8], out: &mut [u8]) -> Result<usize, Refused> {
    let header = Header::parse(frame)?;
    let window_byte = header.window_byte(out.len());
    let mut decoder = Box::new(FrameDecoder::new());
    decoder.set_max_window_size(window_of(window_byte));
    let [a, b, c, d] = *super::ZSTD_MAGIC;
    let ours = [a, b, c, d, u8::from(header.has_checksum) << 2, window_byte];
    decoder.init(&ours[..]).map_err(refusal)?;
    let mut rest = frame.get(header.length..).ok_or(CUT)?;
    let mut written = 0;
    while !decoder.is_finished() {
        decoder
            .decode_blocks(&mut rest, BlockDecodingStrategy::UptoBlocks(1))
            .map_err(refusal)?;
        written += read(&mut decoder, out.get_mut(written..).unwrap_or(&mut []))?;
        if decoder.can_collect() != 0 {
            return Err(Refused::LargerThanTold);
        }
    }
    if header.has_checksum && decoder.get_checksum_from_data() != decoder.get_calculated_checksum() {
        return Err(Refused::Checksum("zstd"));
    }
    Ok(written)
}

fn read(decoder: &mut FrameDecoder, out: &mut [u8]) -> Result<usize, Refused> {
    ruzstd::io::Read::read(decoder, out).map_err(|_| BROKEN)
}

fn refusal(error: FrameDecoderError) -> Refused {
    match error {
        FrameDecoderError::FailedToReadBlockHeader(_)
        | FrameDecoderError::FailedToReadChecksum(_)
        | FrameDecoderError::FailedToReadBlockBody(DecodeBlockContentError::ReadError { .. }) => CUT,
        _ => BROKEN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_as_long_as_its_fields() {
        let length = |bytes: &[u8]| Header::parse(bytes).map(|header| header.length);
        assert_eq!(length(&[0x28, 0xb5, 0x2f, 0xfd, 0x04, 0x88]), Ok(6));
        assert_eq!(length(&[0x28, 0xb5, 0x2f, 0xfd, 0x24, 0x88]), Ok(6));
        assert_eq!(length(&[0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0x88]), Ok(9));
        assert_eq!(length(&[0x28, 0xb5, 0x2f, 0xfd, 0xc4, 0x88]), Ok(14));
        assert_eq!(length(&[0x28, 0xb5, 0x2f, 0xfd, 0x04]), Err(CUT));
        assert_eq!(length(&[0x28, 0xb5, 0x2f, 0xfd, 0x0c, 0x88]), Err(BROKEN));
    }

    #[test]
    fn a_window_is_no_larger_than_what_it_unpacks_to() {
        let header = Header {
            length: 6,
            window: 128 << 20,
            has_checksum: true,
        };
        assert_eq!(window_of(header.window_byte(60 << 20)), 60 << 20);
        assert_eq!(window_of(header.window_byte((60 << 20) + 1)), 64 << 20);
        assert_eq!(window_of(header.window_byte(1 << 30)), 128 << 20);
        assert_eq!(window_of(header.window_byte(1)), 1 << 10);
    }
}
