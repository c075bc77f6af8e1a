//! Speeds as xl-network-configuration(5) writes them: `10Mb/s`, `1GB/s`.

/// Bits (`b`) or bytes (`B`) a second, times a thousand (`K`), a million (`M`) or a milliard (`G`); in whole bytes. None if it is no
/// speed, or has no number.
pub(crate) fn bytes_per_second(text: &str) -> Option<u64> {
    let speed = text.trim().strip_suffix("/s")?;
    let (speed, bits_per_unit) = match speed.strip_suffix('b') {
        Some(rest) => (rest, 1),
        None => (speed.strip_suffix('B')?, 8),
    };
    let (number, scale) = match speed.chars().last()? {
        'G' => (&speed[..speed.len() - 1], 1_000_000_000),
        'M' => (&speed[..speed.len() - 1], 1_000_000),
        'K' => (&speed[..speed.len() - 1], 1_000),
        _ => (speed, 1),
    };
    let number: u64 = number.trim().parse().ok()?;
    Some(number.checked_mul(scale)?.checked_mul(bits_per_unit)? / 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_and_bytes_are_told_apart() {
        let of = bytes_per_second;
        assert_eq!(
            [of("8Mb/s"), of("1MB/s"), of("9b/s")],
            [Some(1_000_000), Some(1_000_000), Some(1)]
        );
        assert_eq!([of("1 GB/s"), of(" 3KB/s ")], [Some(1_000_000_000), Some(3000)]);
        for wrong in [
            "",
            "/s",
            "b/s",
            "GB/s",
            "1M/s",
            "1MB",
            "-1B/s",
            "99999999999GB/s",
            "1TB/s",
        ] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }
}
