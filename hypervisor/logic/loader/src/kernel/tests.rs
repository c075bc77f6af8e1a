use super::*;
use alloc::vec::Vec;
use proptest::prelude::*;

/// A kernel of one segment (4 KiB of file, 8 KiB of memory at `paddr`) and the given notes.
fn kernel(paddr: u64, elf_entry: u64, notes: &[(u32, &[u8])]) -> Vec<u8> {
    let mut section = Vec::new();
    for (kind, value) in notes {
        section.extend(4u32.to_le_bytes());
        section.extend((value.len() as u32).to_le_bytes());
        section.extend(kind.to_le_bytes());
        section.extend(b"Xen\0");
        section.extend(*value);
        section.resize(section.len().next_multiple_of(4), 0);
    }
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend(2u16.to_le_bytes());
    file.extend(62u16.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    file.extend(elf_entry.to_le_bytes());
    file.extend(64u64.to_le_bytes());
    file.extend(0u64.to_le_bytes());
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 2, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let mut header = |kind: u32, flags: u32, rest: [u64; 6]| {
        file.extend(kind.to_le_bytes());
        file.extend(flags.to_le_bytes());
        rest.iter().for_each(|word| file.extend(word.to_le_bytes()));
    };
    header(1, 7, [4096, 0xdead_0000, paddr, 4096, 8192, 4096]);
    let length = section.len() as u64;
    header(4, 4, [8192, 0, 0, length, length, 4]);
    file.resize(4096, 0);
    file.resize(8192, 0x90);
    file.extend(section);
    file
}

const LINUX: &[(u32, &[u8])] = &[
    (6, b"linux\0"),
    (7, b"2.6\0"),
    (5, b"xen-3.0\0"),
    (3, &0xffff_ffff_8000_0000u64.to_le_bytes()),
    (15, &0x80_0000_0000u64.to_le_bytes()),
    (1, &0xffff_ffff_8100_0000u64.to_le_bytes()),
    (10, b"!writable_page_tables|pae_pgdir_above_4gb\0"),
    (17, &0x8801u32.to_le_bytes()),
    (9, b"yes\0"),
    (8, b"generic\0"),
    (13, &[1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]),
    (14, &1u32.to_le_bytes()),
    (16, &1u32.to_le_bytes()),
    (12, &0xffff_8000_0000_0000u64.to_le_bytes()),
    (4, &0u64.to_le_bytes()),
    (18, &0x100_0850u64.to_le_bytes()),
];

#[test]
fn linux_notes_are_all_understood() {
    let file = kernel(0x100_0000, 0x100_0000, LINUX);
    let image = PvImage::parse(&file).unwrap();
    assert_eq!(image.entry, 0xffff_ffff_8100_0000);
    assert_eq!(image.kernel_start, 0xffff_ffff_8100_0000);
    assert_eq!(image.kernel_end, 0xffff_ffff_8100_2000);
    assert_eq!(image.kernel_paddrs(), 0x100_0000..0x100_2000);
    assert_eq!(image.init_p2m, Some(0x80_0000_0000));
    assert_eq!(image.hv_start_low, Some(0xffff_8000_0000_0000));
    assert_eq!(image.l1_mfn_valid, Some((1, 1)));
    assert_eq!(image.phys32_entry, Some(0x100_0850));
    assert!(image.unmapped_initrd && image.suspend_cancel && !image.legacy);
    assert_eq!(image.required, Features::WRITABLE_PAGE_TABLES);
    assert!(image.supported.contains(Features::DOM0 | Features::PAE_PGDIR_ABOVE_4GB));
    assert_eq!(
        (image.guest_os, image.guest_version, image.loader),
        ("linux", "2.6", "generic")
    );
    assert_eq!(image.check_dom0(), Ok(()));
    let segments: Vec<_> = image.segments().collect();
    assert_eq!(segments.len(), 1);
    assert_eq!(
        (segments[0].paddr, segments[0].vaddr),
        (0x100_0000, 0xffff_ffff_8100_0000)
    );
    assert_eq!((segments[0].bytes.len(), segments[0].size), (4096, 8192));
}

#[test]
fn without_entry_and_base_the_elf_header_decides() {
    let file = kernel(0x10_0000, 0x10_0010, &[(8, b"generic\0"), (5, b"xen-3.0\0")]);
    let image = PvImage::parse(&file).unwrap();
    assert_eq!(
        (image.virt_base, image.entry, image.kernel_start),
        (0, 0x10_0010, 0x10_0000)
    );
}

#[test]
fn an_offset_moves_the_kernel_down() {
    let base = 0xffff_ffff_8000_0000u64.to_le_bytes();
    let notes: &[(u32, &[u8])] = &[(8, b"generic"), (5, b"xen-3.0"), (3, &base), (4, &base)];
    let file = kernel(0xffff_ffff_8020_0000, 0xffff_ffff_8020_0000, notes);
    assert_eq!(PvImage::parse(&file).unwrap().kernel_paddrs(), 0x20_0000..0x20_2000);
    let without_base = kernel(0, 0, &[(8, b"generic"), (5, b"xen-3.0"), (4, &base)]);
    assert_eq!(
        PvImage::parse(&without_base).unwrap_err(),
        NotBootable::OffsetWithoutBase
    );
}

#[test]
fn the_legacy_string_says_the_same() {
    let notes = Notes::from_legacy(
        b"GUEST_OS=Mini-OS,XEN_VER=xen-3.0,VIRT_BASE=0x100000,ELF_PADDR_OFFSET=0x0,HYPERCALL_PAGE=0x2,LOADER=generic,PAE=yes[extended-cr3]\0",
    )
    .unwrap();
    assert_eq!(notes.check_versions(), Ok(()));
    let image = notes.place(0..0x8000, 0x10_0000, &[]).unwrap();
    assert_eq!(image.hypercall_page, Some(0x10_2000));
    assert_eq!(
        (image.entry, image.kernel_end, image.guest_os),
        (0x10_0000, 0x10_8000, "Mini-OS")
    );
    assert_eq!(image.pae, PaeMode::ExtendedCr3);
    let old = Notes::from_legacy(b"XEN_VER=xen-3.0,VIRT_BASE=0xC0000000,LOADER=generic").unwrap();
    let image = old.place(0xc010_0000..0xc020_0000, 0xc010_0000, &[]).unwrap();
    assert_eq!(image.kernel_paddrs(), 0x10_0000..0x20_0000);
}

#[test]
fn refusals_name_what_is_wrong() {
    let refusal = |file: &[u8]| PvImage::parse(file).unwrap_err();
    assert_eq!(refusal(b"\x7fELF"), NotBootable::BadElf);
    assert_eq!(refusal(&kernel(0, 0, &[])), NotBootable::NoXenNotes);
    let mut other = kernel(0, 0, LINUX);
    other[18] = 183;
    assert_eq!(refusal(&other), NotBootable::OtherMachine(183));
    other[18] = 3;
    assert_eq!(refusal(&other), NotBootable::ThirtyTwoBit);
    let loader: &[(u32, &[u8])] = &[(8, b"special\0"), (5, b"xen-3.0\0")];
    assert_eq!(refusal(&kernel(0, 0, loader)), NotBootable::OtherLoader);
    let version: &[(u32, &[u8])] = &[(8, b"generic\0"), (5, b"xen-2.0\0")];
    assert_eq!(refusal(&kernel(0, 0, version)), NotBootable::OtherXenVersion);
    let feature: &[(u32, &[u8])] = &[(8, b"generic\0"), (5, b"xen-3.0\0"), (10, b"!telepathy\0")];
    assert_eq!(refusal(&kernel(0, 0, feature)), NotBootable::UnknownFeatureRequired);
    let short: &[(u32, &[u8])] = &[(8, b"generic\0"), (5, b"xen-3.0\0"), (1, b"abc")];
    assert_eq!(
        refusal(&kernel(0, 0, short)),
        NotBootable::MalformedNote(ElfNote::ENTRY)
    );
    let outside: &[(u32, &[u8])] = &[(8, b"generic\0"), (5, b"xen-3.0\0"), (1, &[0xff; 8])];
    assert_eq!(refusal(&kernel(0, 0, outside)), NotBootable::OutOfBounds);
    let guest_only: &[(u32, &[u8])] = &[(8, b"generic\0"), (5, b"xen-3.0\0"), (17, &[1, 0, 0, 0])];
    let file = kernel(0, 0, guest_only);
    assert_eq!(
        PvImage::parse(&file).unwrap().check_dom0(),
        Err(NotBootable::NotForDom0)
    );
}

proptest! {
    #[test]
    fn damaged_kernels_are_refused_or_stay_in_bounds(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12), cut in any::<prop::sample::Index>()) {
        let mut file = kernel(0x100_0000, 0x100_0000, LINUX);
        for (at, byte) in changes {
            // Only headers and notes: the kernel's own bytes mean nothing here.
            let at = at.index(176 + file.len() - 8192);
            let at = if at < 176 { at } else { at - 176 + 8192 };
            file[at] = byte;
        }
        file.truncate(cut.index(file.len() + 1).max(4096));
        if let Ok(image) = PvImage::parse(&file) {
            for segment in image.segments() {
                prop_assert!(segment.vaddr >= image.kernel_start);
                prop_assert!(segment.vaddr + segment.size <= image.kernel_end);
                prop_assert!(segment.bytes.len() as u64 <= segment.size);
            }
        }
    }

    #[test]
    fn random_bytes_are_no_kernel(bytes in prop::collection::vec(any::<u8>(), 0..1000), is_elf in any::<bool>()) {
        let mut file = bytes;
        if is_elf {
            file.splice(0..0, *b"\x7fELF\x02\x01\x01");
        }
        let _ = PvImage::parse(&file);
        let text: Vec<u8> = file.iter().map(|byte| byte & 0x7f).collect();
        let _ = Notes::from_legacy(&text).map(|notes| notes.place(0..0x8000, 0x10_0000, &[]).map(drop));
    }
}
