//! What unpacking takes from the heap is no more than it says: the hypervisor lends it just that.
//!
//! One test in a program of its own, since the allocator counts for all threads.

use ferroxen_loader::image::inspect;
use peak_alloc::PeakAlloc;
use std::io::Write;
use std::process::{Command, Stdio};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

const BYTES: usize = 5 << 20;

/// Something that neither packs to nothing nor not at all, with matches over long distances.
fn kernel() -> Vec<u8> {
    let mut bytes = b"\x7fELF".to_vec();
    let mut seed = 1u64;
    while bytes.len() < BYTES {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let length = 8 + (seed >> 58) as usize;
        if seed >> 40 & 3 != 0 {
            let from = (seed >> 8) as usize % bytes.len();
            let end = (from + length).min(bytes.len());
            bytes.extend_from_within(from..end);
        } else {
            bytes.extend(seed.to_le_bytes());
        }
    }
    bytes.truncate(BYTES);
    bytes
}

fn bzimage(tool: &str, arguments: &[&str], kernel: &[u8]) -> Option<Vec<u8>> {
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
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(kernel).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success());
    let mut file = vec![0; 3 * 512];
    file[0x1f1] = 2;
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    let length = output.stdout.len() as u32 + 4;
    file[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
    file.extend(output.stdout);
    file.extend((kernel.len() as u32).to_le_bytes());
    Some(file)
}

/// Unpacks, and returns whether that worked. Whether or not, it must have kept its word.
fn unpacks(file: &[u8], out: &mut [u8], what: &str) -> bool {
    let Ok(packed) = inspect(file) else { return false };
    let before = HEAP.current_usage();
    HEAP.reset_peak_usage();
    let needed = packed.heap_needed();
    let unpacked = packed.unpack_into(out);
    let taken = HEAP.peak_usage() - before;
    assert!(
        taken <= needed,
        "{what}: took {taken} bytes, said {needed}: {unpacked:?}"
    );
    assert_eq!(HEAP.current_usage(), before, "{what}: something is left on the heap");
    unpacked.is_ok()
}

#[test]
fn unpacking_takes_no_more_heap_than_it_says() {
    let kernel = kernel();
    let mut out = vec![0; BYTES];
    let packers: [(&str, &[&str]); 9] = [
        ("xz", &["--check=crc32", "--x86", "--lzma2=preset=1,dict=1MiB"]),
        ("xz", &["--check=crc32", "--x86", "--lzma2=preset=1,dict=3MiB"]),
        ("xz", &["--check=crc64", "--lzma2=preset=1,dict=64MiB"]),
        ("xz", &["--check=sha256", "--block-size=65536", "--lzma2=preset=0"]),
        ("zstd", &["-q", "-1", "--stdout", "-"]),
        ("zstd", &["-q", "-3", "--no-check", "--stdout", "-"]),
        ("zstd", &["-q", "-19", "--stdout", "-"]),
        ("zstd", &["-q", "-5", "--ultra", "--long=27", "--stdout", "-"]),
        ("lz4", &["-q", "-l", "-1", "-", "-"]),
    ];
    for (tool, arguments) in packers {
        let what = format!("{tool} {}", arguments.join(" "));
        let Some(file) = bzimage(tool, arguments, &kernel) else {
            continue;
        };
        assert!(unpacks(&file, &mut out, &what) && out == kernel, "{what}");
        let mut seed = 1usize;
        for step in 0..8 {
            let mut damaged = file.clone();
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = 3 * 512 + (seed >> 20) % (file.len() - 3 * 512);
            damaged[at] ^= 1 << step;
            unpacks(&damaged, &mut out, &format!("{what}, bit {step} of byte {at} flipped"));
        }
    }
}
