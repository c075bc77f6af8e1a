//! libxl's layer, version 2: a header, a mark where libxc's image stands, and an end.
//!
//! The other records are those of a domain with an emulator, which PV domains have not.

use crate::record::{self, OPTIONAL};
use crate::{Error, Result, fill};
use std::io::{Read, Write};

const IDENT: &[u8; 8] = b"LibxlFmt";
const VERSION: u32 = 2;
/// Big-endian records.
const OPTION_BIG_ENDIAN: u32 = 1;
/// Converted from the format before Xen 4.6.
const OPTION_LEGACY: u32 = 2;

const END: u32 = 0;
const LIBXC_CONTEXT: u32 = 1;

/// What comes next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// libxc's image, from the next byte on.
    Image,
    /// Nothing more.
    End,
}

/// Writes the header, and the mark behind which the image stands.
pub fn open(to: &mut impl Write) -> Result<()> {
    to.write_all(IDENT)?;
    to.write_all(&VERSION.to_be_bytes())?;
    to.write_all(&0u32.to_be_bytes())?;
    record::write(to, LIBXC_CONTEXT, &[])
}

/// Writes the end.
pub fn close(to: &mut impl Write) -> Result<()> {
    record::write(to, END, &[])
}

/// Reads the header.
pub fn header(from: &mut impl Read) -> Result<()> {
    let mut ident = [0; IDENT.len()];
    fill(from, &mut ident, "libxl's header")?;
    if &ident != IDENT {
        return Err(Error::NotOne("domain that libxl saved"));
    }
    let mut words = [[0; 4]; 2];
    fill(from, words.as_flattened_mut(), "libxl's header")?;
    let [version, options] = words.map(u32::from_be_bytes);
    if version != VERSION {
        return Err(Error::Version {
            what: "libxl's stream",
            version,
            ours: VERSION,
        });
    }
    if options & (OPTION_BIG_ENDIAN | OPTION_LEGACY) != 0 {
        return Err(Error::Malformed(format!(
            "libxl's stream has options {options:#x}: big-endian ones, and those converted from before Xen 4.6, \
             cannot be read"
        )));
    }
    Ok(())
}

/// Reads on to what is next.
pub fn next(from: &mut impl Read) -> Result<Next> {
    loop {
        let record = record::read(from)?;
        match record.kind {
            END => return Ok(Next::End),
            LIBXC_CONTEXT => return Ok(Next::Image),
            kind if kind & OPTIONAL != 0 => {}
            kind => {
                return Err(Error::Malformed(format!(
                    "libxl's record of type {kind:#x} is for domains with an emulator, or for checkpoints"
                )));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_reads_back() {
        let mut bytes = Vec::new();
        open(&mut bytes).unwrap();
        record::write(&mut bytes, OPTIONAL | 9, &[b"who knows"]).unwrap();
        close(&mut bytes).unwrap();
        let mut rest = bytes.as_slice();
        header(&mut rest).unwrap();
        assert_eq!(next(&mut rest).unwrap(), Next::Image);
        assert_eq!(next(&mut rest).unwrap(), Next::End);
        assert!(rest.is_empty());
    }

    #[test]
    fn others_are_told_apart() {
        let header_of = |ident: &[u8], version: u32, options: u32| {
            let bytes = [ident, &version.to_be_bytes(), &options.to_be_bytes()].concat();
            header(&mut bytes.as_slice())
        };
        assert!(header_of(IDENT, 2, 0).is_ok());
        assert!(matches!(header_of(b"LibxlXXX", 2, 0), Err(Error::NotOne(_))));
        assert!(matches!(header_of(IDENT, 3, 0), Err(Error::Version { version: 3, .. })));
        assert!(matches!(header_of(IDENT, 2, OPTION_LEGACY), Err(Error::Malformed(_))));
    }
}
