//! A guest's console ring (`struct xencons_interface`), from our end.

use ferroxen_words::Port;
use ferroxen_xenctl::ForeignPages;
use std::io;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

const IN: usize = 0;
const IN_SIZE: u32 = 1024;
const OUT: usize = 1024;
const OUT_SIZE: u32 = 2048;
const IN_CONS: usize = 3072;
const IN_PROD: usize = 3076;
const OUT_CONS: usize = 3080;
const OUT_PROD: usize = 3084;

/// A mapped ring and our end of its event channel.
#[derive(Debug)]
pub struct Ring {
    page: ForeignPages,
    /// Our port.
    pub port: Port,
    /// What the store says of it, to notice a change.
    pub source: (u64, u32),
}

impl Ring {
    /// Takes a ring into service.
    pub fn new(page: ForeignPages, port: Port, source: (u64, u32)) -> Ring {
        Ring { page, port, source }
    }

    /// Takes what the guest has printed, at most `room` bytes. Indices that make no sense give nothing but a
    /// fresh start.
    pub fn take_output(&self, room: usize) -> io::Result<Vec<u8>> {
        let cons = self.page.load_u32(OUT_CONS, Relaxed)?;
        let prod = self.page.load_u32(OUT_PROD, Acquire)?;
        let used = prod.wrapping_sub(cons);
        if used > OUT_SIZE {
            self.page.store_u32(OUT_CONS, prod, Release)?;
            return Ok(vec![]);
        }
        let len = (used as usize).min(room);
        let mut bytes = vec![0; len];
        let start = (cons % OUT_SIZE) as usize;
        let split = len.min(OUT_SIZE as usize - start);
        self.page.read(OUT + start, &mut bytes[..split])?;
        self.page.read(OUT, &mut bytes[split..])?;
        // No longer than the ring, so it fits.
        self.page.store_u32(OUT_CONS, cons.wrapping_add(len as u32), Release)?;
        Ok(bytes)
    }

    /// Whether the guest has printed more than was taken.
    pub fn has_output(&self) -> io::Result<bool> {
        Ok(self.page.load_u32(OUT_CONS, Relaxed)? != self.page.load_u32(OUT_PROD, Acquire)?)
    }

    /// Puts typed bytes in; says how many there was room for.
    pub fn put_input(&self, bytes: &[u8]) -> io::Result<usize> {
        let prod = self.page.load_u32(IN_PROD, Relaxed)?;
        let cons = self.page.load_u32(IN_CONS, Acquire)?;
        let used = prod.wrapping_sub(cons);
        if used > IN_SIZE {
            // The guest's own doing; nothing can be typed until it is sane again.
            return Ok(0);
        }
        let len = bytes.len().min((IN_SIZE - used) as usize);
        let start = (prod % IN_SIZE) as usize;
        let split = len.min(IN_SIZE as usize - start);
        self.page.write(IN + start, &bytes[..split])?;
        self.page.write(IN, &bytes[split..len])?;
        self.page.store_u32(IN_PROD, prod.wrapping_add(len as u32), Release)?;
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferroxen_xenctl::Access;
    use proptest::prelude::*;

    fn ring() -> Ring {
        Ring::new(
            ForeignPages::anonymous(1, Access::ReadWrite).unwrap(),
            Port::new(1),
            (0, 0),
        )
    }

    fn set(ring: &Ring, word: usize, value: u32) {
        ring.page.store_u32(word, value, Relaxed).unwrap();
    }

    #[test]
    fn output_passes_across_the_ends_of_ring_and_index() {
        let ring = ring();
        for start in [2046, u32::MAX - 1] {
            set(&ring, OUT_CONS, start);
            set(&ring, OUT_PROD, start.wrapping_add(4));
            for (i, byte) in b"abcd".iter().enumerate() {
                let at = (start.wrapping_add(i as u32) % OUT_SIZE) as usize;
                ring.page.write(OUT + at, &[*byte]).unwrap();
            }
            assert_eq!(ring.take_output(3).unwrap(), b"abc");
            assert!(ring.has_output().unwrap());
            assert_eq!(ring.take_output(3).unwrap(), b"d");
        }
    }

    #[test]
    fn input_stops_when_the_ring_is_full() {
        let ring = ring();
        set(&ring, IN_CONS, 1000);
        set(&ring, IN_PROD, 1000);
        assert_eq!(ring.put_input(&[b'x'; 3000]).unwrap(), 1024);
        assert_eq!(ring.put_input(b"y").unwrap(), 0);
    }

    proptest! {
        #[test]
        fn indices_may_be_anything(cons: u32, prod: u32, room in 0usize..4000) {
            let ring = ring();
            for (a, b) in [(IN_CONS, IN_PROD), (OUT_CONS, OUT_PROD)] {
                set(&ring, a, cons);
                set(&ring, b, prod);
            }
            prop_assert!(ring.take_output(room).unwrap().len() <= room.min(OUT_SIZE as usize));
            prop_assert!(ring.put_input(&vec![0; room]).unwrap() <= room.min(IN_SIZE as usize));
        }
    }
}
