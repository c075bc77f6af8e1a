//! A file in the making: it has its name only once it is complete.
//!
//! What is no plain file (a pipe, say) is written as it is.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Zeroes that are written where no hole can be.
static ZEROES: [u8; 1 << 16] = [0; 1 << 16];

/// The file. Unless it is kept it goes again.
#[derive(Debug)]
pub struct Draft {
    file: File,
    /// The draft's name and the final one.
    rename: Option<(PathBuf, PathBuf)>,
}

impl Draft {
    /// Begins a file that only its owner may read: all that a guest knows will be in it.
    pub fn open(path: &Path) -> io::Result<Draft> {
        if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            let file = OpenOptions::new().write(true).open(path)?;
            return Ok(Draft { file, rename: None });
        }
        let mut draft = path.as_os_str().to_owned();
        draft.push(".part");
        let draft = PathBuf::from(draft);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)?;
        Ok(Draft {
            file,
            rename: Some((draft, path.to_owned())),
        })
    }

    /// Goes on with so many zeroes: a hole, where there can be one.
    pub fn skip(&mut self, bytes: u64) -> io::Result<()> {
        if self.rename.is_some() {
            let far = i64::try_from(bytes).map_err(|_| io::ErrorKind::FileTooLarge)?;
            return self.file.seek(SeekFrom::Current(far)).map(drop);
        }
        let mut left = bytes;
        while left > 0 {
            let step = left.min(ZEROES.len() as u64);
            self.file.write_all(&ZEROES[..step as usize])?;
            left -= step;
        }
        Ok(())
    }

    /// It is complete.
    pub fn keep(mut self) -> io::Result<()> {
        if let Some((draft, path)) = &self.rename {
            // It may end with a hole.
            let end = self.file.stream_position()?;
            self.file.set_len(end)?;
            self.file.sync_all()?;
            std::fs::rename(draft, path)?;
        }
        self.rename = None;
        Ok(())
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some((draft, _)) = &self.rename {
            // What is left of it is only clutter.
            let _ = std::fs::remove_file(draft);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_its_name_only_once_it_is_complete() {
        let directory = std::env::temp_dir().join(format!("draft-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let path = directory.join("whole");
        let begin = || {
            let mut draft = Draft::open(&path).expect("can be written");
            draft.write_all(b"abc").expect("is written");
            draft.skip(5).expect("is skipped");
            draft
        };
        drop(begin());
        let left = std::fs::read_dir(&directory).expect("can be read").count();
        assert_eq!(left, 0, "of a draft that was given up something is left");
        begin().keep().expect("is kept");
        assert_eq!(std::fs::read(&path).expect("is there"), b"abc\0\0\0\0\0");
        std::fs::remove_dir_all(&directory).expect("can be removed");
    }
}
