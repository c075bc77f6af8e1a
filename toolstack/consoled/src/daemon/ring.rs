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
