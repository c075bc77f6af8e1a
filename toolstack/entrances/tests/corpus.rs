//! Every entrance with the remembered bytes of `fuzz/corpus`, with pieces of them, and with random ones.

use ferroxen_entrances::ALL;
use proptest::prelude::*;
use std::path::{Path, PathBuf};

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = top().join("corpus").join(name);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries
        .flatten()
        .map(|entry| std::fs::read(entry.path()).expect("is a file"))
        .collect()
}

#[test]
fn what_is_remembered_passes() {
    for (name, enter) in ALL {
        let corpus = corpus(name);
        assert!(!corpus.is_empty(), "{name} has no corpus");
        for bytes in corpus {
            enter(&bytes);
            (0..bytes.len().min(256)).for_each(|cut| enter(&bytes[..cut]));
        }
    }
}

#[test]
fn every_entrance_has_its_target() {
    let manifest = std::fs::read_to_string(top().join("Cargo.toml")).expect("is there");
    for (name, _) in ALL {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is no target");
        let target = std::fs::read_to_string(top().join(format!("fuzz_targets/{name}.rs"))).expect("is there");
        assert!(
            target.contains(&format!("ferroxen_entrances::{name}(bytes)")),
            "{target}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn anything_may_come(bytes in prop::collection::vec(any::<u8>(), 0..400), text in "[ -~\n\té]{0,200}") {
        for (_, enter) in ALL {
            enter(&bytes);
            enter(text.as_bytes());
        }
    }

    #[test]
    fn pieces_of_what_is_right_may_come(seed in any::<usize>(), cuts in prop::collection::vec((any::<usize>(), any::<usize>()), 1..4)) {
        for (name, enter) in ALL {
            let corpus = corpus(name);
            let mut mixed = Vec::new();
            for (number, (from, to)) in cuts.iter().enumerate() {
                let piece = &corpus[seed.wrapping_add(number) % corpus.len()];
                let (from, to) = (from % (piece.len() + 1), to % (piece.len() + 1));
                mixed.extend_from_slice(&piece[from.min(to)..from.max(to)]);
            }
            enter(&mixed);
        }
    }

    #[test]
    fn what_is_right_may_come_with_a_few_wrong_bytes(
        seed in any::<usize>(),
        slips in prop::collection::vec((any::<usize>(), any::<u8>()), 1..8),
    ) {
        for (name, enter) in ALL {
            let corpus = corpus(name);
            let mut bytes = corpus[seed % corpus.len()].clone();
            for (at, byte) in &slips {
                // Most of a disk is empty: half of the slips hit its head, where its structures are.
                let room = if at % 2 == 0 { bytes.len() } else { bytes.len().min(16 << 10) };
                if let Some(slot) = bytes.get_mut(at / 2 % room.max(1)) {
                    *slot = *byte;
                }
            }
            enter(&bytes);
        }
    }
}

#[test]
fn a_remembered_disk_has_a_kernel() {
    for bytes in
        ["ext2", "ext4"].map(|name| std::fs::read(top().join("corpus/boot_disk").join(name)).expect("is there"))
    {
        let found = ferroxen_bootloader::find_in(std::sync::Arc::new(bytes), &ferroxen_bootloader::Wish::default());
        assert_eq!(found.expect("can be read").kernel, b"kern\n");
    }
}
