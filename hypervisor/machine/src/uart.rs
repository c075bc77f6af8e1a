//! A serial port's settings, as `com1=` and `com2=` spell them: `115200,8n1,0x3f8,4`.

/// What the 16550's baud rate generator divides: 1.8432 MHz by 16.
const CLOCK: u32 = 115_200;

/// How a port talks and where it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Bits per second; `None` keeps what firmware set.
    pub baud: Option<u32>,
    /// Data bits, 5 to 8.
    pub data_bits: u8,
    /// Parity.
    pub parity: Parity,
    /// Stop bits, 1 or 2.
    pub stop_bits: u8,
    /// First I/O port.
    pub base: u16,
    /// ISA interrupt; 0 for none (polling).
    pub irq: u8,
}

/// A parity bit's rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the words of the trade")]
pub enum Parity {
    None,
    Odd,
    Even,
    Mark,
    Space,
}

impl Settings {
    /// COM1 as every PC has it, at the speed most firmware leaves.
    pub const COM1: Settings = Settings {
        baud: Some(115_200),
        data_bits: 8,
        parity: Parity::None,
        stop_bits: 1,
        base: 0x3f8,
        irq: 4,
    };

    /// COM2.
    pub const COM2: Settings = Settings {
        base: 0x2f8,
        irq: 3,
        ..Settings::COM1
    };

    /// Applies an option's text on top of `self`. An error names the part that makes no sense.
    pub fn with_option(mut self, text: &str) -> Result<Settings, &str> {
        let mut parts = text.split(',');
        let first = parts.next().unwrap_or("");
        let (baud, clock) = first.split_once('/').map_or((first, None), |(b, c)| (b, Some(c)));
        if clock.is_some() {
            return Err(first); // a different input clock: no board with one has turned up
        }
        self.baud = match baud {
            "" => self.baud,
            "auto" => None,
            digits => Some(number(digits).filter(|baud| divisor(*baud).is_some()).ok_or(first)?),
        };
        if let Some(dps) = parts.next().filter(|part| !part.is_empty()) {
            self = self.with_shape(dps).ok_or(dps)?;
        }
        if let Some(base) = parts.next().filter(|part| !part.is_empty()) {
            self.base = number(base)
                .and_then(|base| u16::try_from(base).ok())
                .filter(|base| *base <= 0xfff8 && *base != 0)
                .ok_or(base)?;
        }
        if let Some(irq) = parts.next().filter(|part| !part.is_empty()) {
            self.irq = number(irq)
                .filter(|irq| *irq < 16)
                .and_then(|irq| u8::try_from(irq).ok())
                .ok_or(irq)?;
        }
        match parts.next() {
            Some(extra) => Err(extra),
            None => Ok(self),
        }
    }

    fn with_shape(mut self, dps: &str) -> Option<Settings> {
        let [data, parity, stop] = dps.as_bytes() else {
            return None;
        };
        self.data_bits = data.checked_sub(b'0').filter(|bits| (5..=8).contains(bits))?;
        self.parity = match parity {
            b'n' => Parity::None,
            b'o' => Parity::Odd,
            b'e' => Parity::Even,
            b'm' => Parity::Mark,
            b's' => Parity::Space,
            _ => return None,
        };
        self.stop_bits = stop.checked_sub(b'0').filter(|bits| (1..=2).contains(bits))?;
        Some(self)
    }

    /// The line control register that says so.
    pub const fn line_control(self) -> u8 {
        let parity = match self.parity {
            Parity::None => 0,
            Parity::Odd => 0b001,
            Parity::Even => 0b011,
            Parity::Mark => 0b101,
            Parity::Space => 0b111,
        };
        (self.data_bits.wrapping_sub(5) & 3) | (self.stop_bits.wrapping_sub(1) & 1) << 2 | parity << 3
    }
}

/// What the baud rate generator divides by, if the rate is one it can make.
pub const fn divisor(baud: u32) -> Option<u16> {
    if baud == 0 || baud > CLOCK || CLOCK / baud > 0xffff {
        return None;
    }
    Some((CLOCK / baud) as u16)
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_rates_divide_evenly() {
        assert_eq!(divisor(115_200), Some(1));
        assert_eq!(divisor(9600), Some(12));
        assert_eq!(divisor(0), None);
        assert_eq!(divisor(230_400), None);
        assert_eq!(divisor(1), None);
    }

    #[test]
    fn an_option_may_leave_parts_out() {
        let full = Settings::COM1.with_option("57600,7e2,0x2e8,5").unwrap();
        assert_eq!(full.baud, Some(57_600));
        assert_eq!((full.data_bits, full.parity, full.stop_bits), (7, Parity::Even, 2));
        assert_eq!((full.base, full.irq), (0x2e8, 5));
        assert_eq!(Settings::COM2.with_option("115200"), Ok(Settings::COM2));
        assert_eq!(Settings::COM1.with_option("auto").map(|s| s.baud), Ok(None));
        assert_eq!(
            Settings::COM1.with_option(",,0x3e8"),
            Ok(Settings {
                base: 0x3e8,
                ..Settings::COM1
            })
        );
    }

    #[test]
    fn a_wrong_part_is_named() {
        assert_eq!(Settings::COM1.with_option("fast"), Err("fast"));
        assert_eq!(Settings::COM1.with_option("9600,9n1"), Err("9n1"));
        assert_eq!(Settings::COM1.with_option("9600,8n1,0x12345"), Err("0x12345"));
        assert_eq!(Settings::COM1.with_option("9600,8n1,0x3f8,4,pci"), Err("pci"));
    }

    #[test]
    fn line_control_packs_bits_parity_and_stops() {
        assert_eq!(Settings::COM1.line_control(), 0x03);
        assert_eq!(
            Settings::COM1.with_option("9600,7e2").unwrap().line_control(),
            0b0001_1110
        );
    }
}
