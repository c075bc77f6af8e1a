//! Network specifications: xl-network-configuration(5), with `xm`'s habits (`mac=` empty, spaces anywhere).

use crate::disk::SpecError;
use crate::rate;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Mac, String> {
        let wrong = || format!("`{text}` is no MAC address such as 00:16:3e:12:34:56");
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|part| (1..=2).contains(&part.len()))
                .ok_or_else(wrong)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() {
            return Err(wrong());
        }
        if bytes[0] & 1 != 0 {
            return Err(format!("`{text}` is a multicast address, which no card can have"));
        }
        Ok(Mac(bytes))
    }
}

/// What the guest sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VifType {
    /// The paravirtual card only.
    Vif,
    /// An emulated card beside it (HVM).
    Ioemu,
}

/// How fast the guest may send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// Bytes in each interval.
    pub bytes: u64,
    /// The interval in microseconds.
    pub interval_us: u32,
}

/// A virtual network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vif {
    /// The address; none: one is made up.
    pub mac: Option<Mac>,
    /// The bridge, if one is named.
    pub bridge: Option<String>,
    /// For routed networks: the outgoing device.
    pub gatewaydev: Option<String>,
    /// What the guest sees.
    pub kind: VifType,
    /// The emulated card's model (HVM).
    pub model: Option<String>,
    /// The backend device's name, if not `vifD.N`.
    pub vifname: Option<String>,
    /// A hotplug script that was asked for by name.
    pub script: Option<String>,
    /// The guest's addresses, for scripts and filters.
    pub ip: Vec<String>,
    /// The domain that serves the card, if not Domain 0.
    pub backend: Option<String>,
    /// The sending limit.
    pub rate: Option<Rate>,
    /// The number of the card; by default its place in the list.
    pub devid: Option<u32>,
    /// Largest packet.
    pub mtu: Option<u32>,
    /// Whether the guest may trust the backend; the guest's default is yes.
    pub trusted: Option<bool>,
}

/// Reads one element of `vif = [...]`; the empty string is a card with defaults.
pub fn parse(spec: &str) -> Result<Vif, SpecError> {
    let mut vif = Vif {
        mac: None,
        bridge: None,
        gatewaydev: None,
        kind: VifType::Vif,
        model: None,
        vifname: None,
        script: None,
        ip: Vec::new(),
        backend: None,
        rate: None,
        devid: None,
        mtu: None,
        trusted: None,
    };
    let mut start = 0;
    for raw in spec.split(',') {
        let part = raw.trim();
        let at = start + (raw.len() - raw.trim_start().len());
        start += raw.len() + 1;
        if part.is_empty() {
            continue;
        }
        let range = at..at + part.len();
        let Some((key, value)) = part.split_once('=') else {
            return Err(SpecError {
                range,
                message: format!("`{part}`: expected key=value, such as bridge=xenbr0"),
            });
        };
        let (key, value) = (key.trim(), value.trim());
        let value_range = range.end - value.len()..range.end;
        let wrong = |message: String| SpecError {
            range: value_range.clone(),
            message,
        };
        let text = (!value.is_empty()).then(|| value.to_owned());
        match key {
            "mac" => vif.mac = text.map(|text| text.parse()).transpose().map_err(wrong)?,
            "bridge" => vif.bridge = text.map(device_name).transpose().map_err(wrong)?,
            "gatewaydev" | "netdev" => vif.gatewaydev = text.map(device_name).transpose().map_err(wrong)?,
            "vifname" => vif.vifname = text.map(device_name).transpose().map_err(wrong)?,
            "type" => {
                vif.kind = match value {
                    "vif" | "netfront" => VifType::Vif,
                    "ioemu" => VifType::Ioemu,
                    _ => return Err(wrong(format!("unknown card type `{value}`: vif or ioemu"))),
                }
            }
            "model" => vif.model = text,
            "script" => vif.script = text,
            "ip" => {
                vif.ip = value
                    .split_whitespace()
                    .map(address)
                    .collect::<Result<_, _>>()
                    .map_err(wrong)?;
            }
            "backend" => vif.backend = text,
            "rate" => vif.rate = Some(dosed(value).map_err(wrong)?),
            "devid" => {
                vif.devid = Some(
                    value
                        .parse()
                        .map_err(|_| wrong(format!("`{value}` is no device number")))?,
                )
            }
            "mtu" => {
                let mtu = value.parse().ok().filter(|mtu| (68..=65535).contains(mtu));
                vif.mtu = Some(mtu.ok_or_else(|| wrong(format!("`{value}` is no packet size (68 to 65535)")))?);
            }
            "trusted" => {
                vif.trusted = Some(match value {
                    "1" | "true" => true,
                    "0" | "false" => false,
                    _ => return Err(wrong(format!("`{value}`: 0 or 1"))),
                })
            }
            _ => {
                return Err(SpecError {
                    range: at..at + key.len(),
                    message: format!("unknown network setting `{key}`"),
                });
            }
        }
    }
    Ok(vif)
}

/// An address, or a network as `192.0.2.0/24`.
fn address(text: &str) -> Result<String, String> {
    let (address, width) = text.split_once('/').unwrap_or((text, "0"));
    let most = match address.parse() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return Err(format!("`{text}` is no IP address such as 192.0.2.10 or 2001:db8::10")),
    };
    match width.parse::<u32>() {
        Ok(width) if (0..=most).contains(&width) => Ok(text.to_owned()),
        _ => Err(format!("`{text}`: a network is {most} bits wide at most")),
    }
}

fn device_name(name: String) -> Result<String, String> {
    let fits = name.len() <= 15 && !name.contains(['/', ' ', '\0']) && name != "." && name != "..";
    if fits {
        Ok(name)
    } else {
        Err(format!("`{name}` is no network device's name (15 characters at most)"))
    }
}

/// `10Mb/s`, `1GB/s@50ms`: bits or bytes a second, dosed out in intervals.
fn dosed(text: &str) -> Result<Rate, String> {
    let wrong = || format!("`{text}` is no rate such as 10Mb/s or 1MB/s@20ms");
    let (speed, interval) = text
        .split_once('@')
        .map_or((text, None), |(speed, interval)| (speed, Some(interval)));
    let speed = rate::bytes_per_second(speed).ok_or_else(wrong)?;
    let interval_us = match interval.map(str::trim) {
        None => 50_000,
        Some(interval) => {
            let (number, scale) = [("us", 1u32), ("ms", 1_000), ("s", 1_000_000)]
                .iter()
                .find_map(|(unit, scale)| Some((interval.strip_suffix(unit)?, *scale)))
                .ok_or_else(wrong)?;
            number
                .trim()
                .parse::<u32>()
                .ok()
                .and_then(|n| n.checked_mul(scale))
                .filter(|us| *us > 0)
                .ok_or_else(wrong)?
        }
    };
    let bytes = (u128::from(speed) * u128::from(interval_us) / 1_000_000)
        .try_into()
        .map_err(|_| wrong())?;
    if bytes == 0 {
        Err(wrong())
    } else {
        Ok(Rate { bytes, interval_us })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_mac_and_an_empty_spec_mean_defaults() {
        let vif = parse("bridge=xenbr0,mac=").expect("is right");
        assert_eq!((vif.mac, vif.bridge.as_deref()), (None, Some("xenbr0")));
        assert_eq!(parse("").expect("is right").kind, VifType::Vif);
    }

    #[test]
    fn spaces_after_commas_are_nothing() {
        let vif = parse("mac=00:11:85:13:37:DD, bridge=xenbr0").expect("is right");
        assert_eq!(vif.mac.map(|mac| mac.to_string()).as_deref(), Some("00:11:85:13:37:dd"));
    }

    #[test]
    fn rates_count_bytes_per_interval() {
        assert_eq!(
            parse("rate=10Mb/s").expect("is right").rate,
            Some(Rate {
                bytes: 62_500,
                interval_us: 50_000
            })
        );
        assert_eq!(
            parse("rate=1MB/s@20ms").expect("is right").rate,
            Some(Rate {
                bytes: 20_000,
                interval_us: 20_000
            })
        );
        assert!(parse("rate=fast").is_err());
    }

    #[test]
    fn a_mistake_is_pointed_at() {
        assert_eq!(parse("bridge=xenbr0, mac=00:16").expect_err("mac").range, 19..24);
        assert_eq!(parse("mac=01:00:00:00:00:01").expect_err("multicast").range, 4..21);
        assert_eq!(parse("brigde=x").expect_err("typo").range, 0..6);
    }
}
