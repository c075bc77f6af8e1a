//! Mistakes, one file each, and beside each what is said of it: file, line, column, caret, and the way out.
//!
//! After a change of words, `BLESS=1 cargo test -p ferroxen-xlconfig --test broken` writes the answers anew; the diff
//! is to be read.

use ferroxen_xlconfig::{Source, parse_all};
use std::path::{Path, PathBuf};

fn files() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/broken");
    let entries = std::fs::read_dir(directory).expect("the files are there").flatten();
    let mut files: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "cfg"))
        .collect();
    files.sort();
    files
}

#[test]
fn every_mistake_is_told_where_it_is() {
    let files = files();
    assert!(files.len() >= 100, "only {} files", files.len());
    let mut wrong = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(&path).expect("is text");
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let said = match parse_all(Source::new(name.clone(), text), &[]) {
            Ok(_) => "accepted\n".to_owned(),
            Err(problem) => format!("{problem}\n"),
        };
        let answer = path.with_extension("txt");
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&answer, &said).expect("can be written");
        }
        let expected = std::fs::read_to_string(&answer).unwrap_or_default();
        let has_place = said.contains(&format!("--> {name}:")) && said.contains('^');
        if said != expected || !has_place {
            wrong.push(format!("{name}: expected\n{expected}\nbut was told\n{said}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
