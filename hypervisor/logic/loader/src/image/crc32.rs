//! The checksum of gzip, with tables that are made when it is asked for: in the image they would be 8 KiB.

use alloc::boxed::Box;

/// The polynomial, its highest power in bit 0 (RFC 1952 "Appendix: Sample CRC Code").
const POLYNOMIAL: u32 = 0xedb8_8320;
/// Bytes that are taken at once.
const STRIDE: usize = 8;

/// Adds up bytes.
pub fn crc32(bytes: &[u8]) -> u32 {
    let tables = tables();
    let (strides, rest) = bytes.as_chunks::<STRIDE>();
    let mut sum = u32::MAX;
    for stride in strides {
        let [a, b, c, d, e, f, g, h] = stride.map(usize::from);
        let [low, second, third, high] = sum.to_le_bytes().map(usize::from);
        sum = tables[7][a ^ low]
            ^ tables[6][b ^ second]
            ^ tables[5][c ^ third]
            ^ tables[4][d ^ high]
            ^ tables[3][e]
            ^ tables[2][f]
            ^ tables[1][g]
            ^ tables[0][h];
    }
    for byte in rest {
        sum = tables[0][usize::from(sum as u8 ^ byte)] ^ sum >> 8;
    }
    !sum
}

/// What a byte adds with so many others behind it.
fn tables() -> Box<[[u32; 256]; STRIDE]> {
    let mut tables = Box::new([[0; 256]; STRIDE]);
    for byte in 0..256 {
        let mut sum = byte as u32;
        for _ in 0..8 {
            sum = if sum & 1 == 0 { sum >> 1 } else { POLYNOMIAL ^ sum >> 1 };
        }
        tables[0][byte] = sum;
    }
    for behind in 1..STRIDE {
        for byte in 0..256 {
            let sum: u32 = tables[behind - 1][byte];
            tables[behind][byte] = tables[0][usize::from(sum as u8)] ^ sum >> 8;
        }
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    /// A bit at a time.
    fn slowly(bytes: &[u8]) -> u32 {
        let mut sum = u32::MAX;
        for byte in bytes {
            sum ^= u32::from(*byte);
            for _ in 0..8 {
                sum = if sum & 1 == 0 { sum >> 1 } else { POLYNOMIAL ^ sum >> 1 };
            }
        }
        !sum
    }

    #[test]
    fn the_nine_digits_have_the_sum_that_everybody_gives() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b""), 0);
    }

    proptest! {
        #[test]
        fn eight_at_a_time_is_one_at_a_time(bytes: Vec<u8>) {
            prop_assert_eq!(crc32(&bytes), slowly(&bytes));
        }
    }
}
