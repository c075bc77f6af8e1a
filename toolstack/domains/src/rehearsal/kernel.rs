//! The smallest file that is a PV kernel.

/// A page of code at 1 MiB, and the notes that every PV kernel has.
pub fn image() -> Vec<u8> {
    let mut notes = Vec::new();
    let base = 0xffff_ffff_8000_0000u64;
    for (kind, value) in [
        (5u32, b"xen-3.0\0".to_vec()),
        (3, base.to_le_bytes().to_vec()),
        (4, 0u64.to_le_bytes().to_vec()),
        (1, (base + 0x10_0000).to_le_bytes().to_vec()),
        (2, (base + 0x10_1000).to_le_bytes().to_vec()),
        (8, b"generic\0".to_vec()),
    ] {
        notes.extend(4u32.to_le_bytes());
        notes.extend((value.len() as u32).to_le_bytes());
        notes.extend(kind.to_le_bytes());
        notes.extend(b"Xen\0");
        notes.extend(&value);
        notes.resize(notes.len().next_multiple_of(4), 0);
    }
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // An executable for x86-64, whose two program headers follow.
    [2u16, 62].iter().for_each(|half| file.extend(half.to_le_bytes()));
    file.extend(1u32.to_le_bytes());
    [0x10_0000u64, 64, 0]
        .iter()
        .for_each(|word| file.extend(word.to_le_bytes()));
    file.extend(0u32.to_le_bytes());
    [64u16, 56, 2, 64, 0, 0]
        .iter()
        .for_each(|half| file.extend(half.to_le_bytes()));
    let length = notes.len() as u64;
    for (kind, flags, words) in [
        (1u32, 7u32, [4096, base + 0x10_0000, 0x10_0000, 4096, 8192, 4096]),
        (4, 4, [8192, 0, 0, length, length, 4]),
    ] {
        file.extend(kind.to_le_bytes());
        file.extend(flags.to_le_bytes());
        words.iter().for_each(|word: &u64| file.extend(word.to_le_bytes()));
    }
    file.resize(8192, 0x90);
    file.extend(notes);
    file
}
