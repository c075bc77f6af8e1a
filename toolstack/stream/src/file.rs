//! xl's layer: a magic word, flags, and the domain's configuration as libxl's JSON; behind it libxl's stream.

use crate::{Error, Result, fill};
use std::io::{Read, Write};

const MAGIC: &[u8; 32] = b"Xen saved domain, xl format\n \0 \r";
/// Tells who wrote it in the other byte order.
const BYTE_ORDER: u32 = 0x0102_0304;
/// The configuration is JSON, and not a file as people write it.
const JSON: u32 = 1 << 0;
/// What follows is libxl's stream, and not libxc's image of before Xen 4.6.
const ENVELOPE: u32 = 1 << 1;
/// The longest configuration that is read.
const LONGEST: u32 = 16 << 20;

/// What stands before the stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Head {
    /// The domain's configuration (`libxl_domain_config` as JSON).
    pub config: String,
}

impl Head {
    /// Writes it.
    pub fn write(&self, to: &mut impl Write) -> Result<()> {
        let too_long = |_| Error::Malformed("the configuration is too long".to_owned());
        // libxl's own ends with a zero byte, which is counted.
        let config = [self.config.as_bytes(), b"\0"].concat();
        let len = u32::try_from(config.len()).map_err(too_long)?;
        to.write_all(MAGIC)?;
        for word in [BYTE_ORDER, JSON | ENVELOPE, 0, len + 4, len] {
            to.write_all(&word.to_le_bytes())?;
        }
        to.write_all(&config)?;
        Ok(())
    }

    /// Reads it.
    pub fn read(from: &mut impl Read) -> Result<Head> {
        const WHAT: &str = "xl's header";
        let mut magic = [0; MAGIC.len()];
        fill(from, &mut magic, WHAT)?;
        if &magic != MAGIC {
            return Err(Error::NotOne("domain that xl saved"));
        }
        let mut words = [[0; 4]; 4];
        fill(from, words.as_flattened_mut(), WHAT)?;
        let [order, mandatory, _optional, len] = words.map(u32::from_le_bytes);
        if order != BYTE_ORDER {
            return Err(Error::Malformed(
                "it was saved on a machine of the other byte order".to_owned(),
            ));
        }
        if mandatory != JSON | ENVELOPE {
            return Err(Error::Malformed(format!(
                "it has flags {mandatory:#x}: only what Xen 4.6 and later saved can be read"
            )));
        }
        if len > LONGEST {
            return Err(Error::Malformed(format!("its configuration claims {len} bytes")));
        }
        let mut data = Vec::new();
        if from.by_ref().take(len.into()).read_to_end(&mut data)? != len as usize {
            return Err(Error::Truncated("the configuration"));
        }
        // Whatever a later xl may put behind the configuration is for it alone.
        let config = data.split_first_chunk().and_then(|(len, rest)| {
            let len = u32::from_le_bytes(*len) as usize;
            rest.get(..len)
        });
        let config = config.ok_or_else(|| Error::Malformed("it has no configuration".to_owned()))?;
        let config = config.strip_suffix(b"\0").unwrap_or(config);
        let config = String::from_utf8(config.to_vec())
            .map_err(|_| Error::Malformed("its configuration is not text".to_owned()))?;
        Ok(Head { config })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_reads_back_and_leaves_the_stream() {
        let head = Head {
            config: "{\"c_info\": {}}".to_owned(),
        };
        let mut bytes = Vec::new();
        head.write(&mut bytes).unwrap();
        bytes.extend(b"LibxlFmt");
        let mut rest = bytes.as_slice();
        assert_eq!(Head::read(&mut rest).unwrap(), head);
        assert_eq!(rest, b"LibxlFmt");
    }

    #[test]
    fn what_is_none_is_refused() {
        assert!(matches!(Head::read(&mut &[0u8; 64][..]), Err(Error::NotOne(_))));
        assert!(matches!(Head::read(&mut &MAGIC[..]), Err(Error::Truncated(_))));
        let mut bytes = MAGIC.to_vec();
        for word in [BYTE_ORDER, JSON, 0, 0] {
            bytes.extend(word.to_le_bytes());
        }
        assert!(matches!(Head::read(&mut bytes.as_slice()), Err(Error::Malformed(_))));
    }
}
