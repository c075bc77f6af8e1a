//! The compressors are the ones that Linux's build calls; a test whose tool is missing says so and passes.

use super::*;
use proptest::prelude::*;
use std::eprintln;
use std::io::Write;
use std::process::{Command, Stdio};

/// Something like a kernel: text with many calls, tables, zeroes; its first bytes say ELF.
fn kernel() -> Vec<u8> {
    let mut bytes = ELF_MAGIC.to_vec();
    let mut seed = 1u32;
    for index in 0..300_000u32 {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        match seed >> 28 {
            0..6 => {
                bytes.push(0xe8);
                let target = (seed >> 8 & 0xfffff).wrapping_sub(bytes.len() as u32);
                bytes.extend(target.to_le_bytes());
            }
            6..9 => bytes.extend((index & 0xff0).to_le_bytes()),
            9 => bytes.extend([0; 24]),
            10 => bytes.extend([0xe8, 0xe9, (seed >> 3) as u8, 0, 0xff]),
            _ => bytes.push((seed >> 20) as u8),
        }
    }
    bytes
}

fn pack(tool: &str, arguments: &[&str], input: &[u8]) -> Option<Vec<u8>> {
    let spawned = Command::new(tool)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut child) = spawned else {
        eprintln!("{tool} is not installed: not tried");
        return None;
    };
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap().unwrap();
    assert!(output.status.success());
    Some(output.stdout)
}

fn as_bzimage(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 3 * 512 + 100];
    file[0x1f1] = 2;
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    file[0x248..0x24c].copy_from_slice(&100u32.to_le_bytes());
    file[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    file.extend(payload);
    file.extend([0xcc; 64]);
    file
}

fn check(packing: Packing, tool: &str, arguments: &[&str]) {
    let kernel = kernel();
    let Some(mut payload) = pack(tool, arguments, &kernel) else {
        return;
    };
    if packing != Packing::Gzip {
        payload.extend((kernel.len() as u32).to_le_bytes());
    }
    let file = as_bzimage(&payload);
    let packed = inspect(&file).unwrap();
    assert_eq!(packed.packing(), packing);
    assert_eq!(packed.unpacked_size(), kernel.len());
    assert!(unpack_to_vec(&file, kernel.len()).unwrap() == kernel);
    damage_is_refused(&file, &kernel);
}

/// Flips bits and cuts the tail: a refusal or, where nothing covers the bit, some output. Never a panic.
fn damage_is_refused(file: &[u8], kernel: &[u8]) {
    let mut out = vec![0; kernel.len()];
    let mut unnoticed = 0;
    for step in 0..24 {
        let mut damaged = file.to_vec();
        let at = 3 * 512 + 100 + (damaged.len() - 3 * 512 - 170) * step / 24 + step * 7 % 5;
        damaged[at] ^= 1 << (step % 8);
        if let Ok(packed) = inspect(&damaged) {
            unnoticed += usize::from(packed.unpack_into(&mut out).is_ok() && out != kernel);
        }
        let mut short = file.to_vec();
        let keep = short.len() * step / 24;
        short.truncate(keep);
        assert!(inspect(&short).is_err());
    }
    // lz4's legacy frame carries no checksum.
    if inspect(file).unwrap().packing() != Packing::Lz4 {
        assert_eq!(unnoticed, 0);
    }
}

#[test]
fn gzip_kernels_unpack() {
    check(Packing::Gzip, "gzip", &["-n", "-9"]);
}

#[test]
fn xz_kernels_unpack_with_the_x86_filter() {
    check(Packing::Xz, "xz", &["--check=crc32", "--x86", "--lzma2=,dict=32MiB"]);
}

#[test]
fn xz_kernels_unpack_without_a_filter_and_in_several_blocks() {
    check(
        Packing::Xz,
        "xz",
        &["--check=crc32", "--block-size=100000", "--lzma2=lc=1,lp=2,pb=0"],
    );
}

#[test]
fn xz_stores_what_does_not_shrink() {
    let mut noise = ELF_MAGIC.to_vec();
    let mut seed = 7u64;
    noise.extend((0..200_000).map(|_| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as u8
    }));
    let Some(mut payload) = pack("xz", &["--check=crc32", "--x86", "--lzma2="], &noise) else {
        return;
    };
    payload.extend((noise.len() as u32).to_le_bytes());
    assert!(unpack_to_vec(&as_bzimage(&payload), noise.len()).unwrap() == noise);
}

#[test]
fn zstd_kernels_unpack() {
    check(Packing::Zstd, "zstd", &["-q", "-22", "--ultra", "--stdout", "-"]);
}

#[test]
fn lz4_kernels_unpack() {
    check(Packing::Lz4, "lz4", &["-q", "-l", "-9", "-", "-"]);
}

#[test]
fn a_gzipped_bzimage_is_unpacked_twice() {
    let kernel = kernel();
    let Some(inner) = pack("gzip", &["-n"], &kernel) else {
        return;
    };
    let Some(outer) = pack("gzip", &["-n"], &as_bzimage(&inner)) else {
        return;
    };
    assert!(unpack_to_vec(&outer, 64 << 20).unwrap() == kernel);
}

#[test]
fn a_plain_elf_file_is_taken_as_it_stands() {
    let kernel = kernel();
    assert_eq!(inspect(&kernel).unwrap().plain().unwrap().len(), kernel.len());
}

#[test]
fn refusals_name_what_is_wrong() {
    assert_eq!(inspect(b"#!/bin/sh").unwrap_err(), Refused::UnknownFormat);
    let mut old = as_bzimage(b"");
    old[0x206] = 7;
    assert_eq!(inspect(&old).unwrap_err(), Refused::BootProtocolTooOld(0x0207));
    let bzip2 = as_bzimage(b"BZh91AY&SY");
    assert_eq!(inspect(&bzip2).unwrap_err(), Refused::Unsupported("bzip2"));
    let mut far = as_bzimage(b"\x1f\x8b\x08\0\0\0\0\0");
    far[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(inspect(&far).unwrap_err(), Refused::PayloadOutside);
}

proptest! {
    /// Random bytes behind each magic. For more of it: `PROPTEST_CASES=1000000 cargo test -p ferroxen-loader random`.
    #[test]
    fn random_payloads_are_refused_or_unpacked(
        magic in prop::sample::select(&[GZIP_MAGIC, XZ_MAGIC, ZSTD_MAGIC, LZ4_LEGACY_MAGIC, ELF_MAGIC, b"BZh"][..]),
        mut payload in prop::collection::vec(any::<u8>(), 0..400),
        size in 0u32..100_000,
        is_bzimage in any::<bool>(),
    ) {
        payload.splice(0..0, magic.iter().copied());
        payload.extend(size.to_le_bytes());
        let file = if is_bzimage { as_bzimage(&payload) } else { payload };
        if let Ok(unpacked) = unpack_to_vec(&file, 1 << 20) {
            prop_assert!(unpacked.len() <= 1 << 20);
        }
    }

    #[test]
    fn random_headers_are_refused_or_point_inside(
        changes in prop::collection::vec((0x1f1usize..0x260, any::<u8>()), 0..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut file = as_bzimage(b"\x7fELF and so on");
        for (at, byte) in changes {
            file[at] = byte;
        }
        file.truncate(cut.index(file.len() + 1));
        if let Ok(packed) = inspect(&file) {
            prop_assert!(packed.plain().is_none_or(|plain| plain.len() <= file.len()));
            packed.heap_needed();
        }
    }
}
