//! `hypfs_op`: the hypervisor's own little file system, which `xenhypfs` and `xl set-parameters` read and write.
//!
//! The tree is fixed; what its leaves hold is asked for when somebody reads them. A directory's contents are records, one
//! for each entry, in the order of their names.

use super::{Answer, Call, version};
use crate::access;
use crate::console;
use crate::guest::GuestPtr;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use ferroxen_abi::errno::Errno;
use ferroxen_abi::hypfs::{self as abi, DirEntry, EntryType, HypfsCmd};
use ferroxen_access::Operation;
use zerocopy::IntoBytes;

/// The interface that there is.
const VERSION: u64 = 1;

/// What stands at a path.
enum Entry {
    Dir(&'static [(&'static str, Entry)]),
    Text(fn() -> String),
    Number(fn() -> u32),
    /// A parameter of the command line that can be set while the host runs.
    Parameter(&'static console::Parameter),
}

use Entry::{Dir, Number, Parameter, Text};

const ROOT: Entry = Dir(&[
    ("buildinfo", Dir(BUILD)),
    (
        "cpupool",
        Dir(&[("0", Dir(&[("sched-gran", Text(|| "cpu".to_string()))]))]),
    ),
    (
        "params",
        Dir(&[
            ("console_timestamps", Parameter(&console::TIMESTAMPS)),
            ("conswitch", Parameter(&console::CONSWITCH)),
            ("guest_loglvl", Parameter(&console::GUEST_LOGLVL)),
            ("loglvl", Parameter(&console::LOGLVL)),
        ]),
    ),
]);

const BUILD: &[(&str, Entry)] = &[
    ("changeset", Text(|| version::CHANGESET.to_string())),
    (
        "compileinfo",
        Dir(&[
            ("compile_by", Text(|| version::COMPILE_BY.to_string())),
            ("compile_date", Text(|| version::COMPILE_DATE.to_string())),
            ("compile_domain", Text(String::new)),
            ("compiler", Text(|| version::COMPILER.to_string())),
        ]),
    ),
    (
        "version",
        Dir(&[
            ("extra", Text(|| version::EXTRAVERSION.to_string())),
            ("major", Number(|| version::VERSION.0 as u32)),
            ("minor", Number(|| version::VERSION.1 as u32)),
        ]),
    ),
];

impl Entry {
    /// Walks down to `path`, which begins with a slash. `ENOENT`, also for what goes on below a leaf.
    fn at(path: &str) -> Result<&'static Entry, Errno> {
        const TOP: &Entry = &ROOT;
        let names = path.strip_prefix('/').ok_or(Errno::EINVAL)?;
        names
            .split('/')
            .filter(|name| !name.is_empty())
            .try_fold(TOP, |at, name| {
                let Dir(entries) = at else { return Err(Errno::ENOENT) };
                let found = entries.iter().find(|(entry, _)| *entry == name);
                found.map(|(_, entry)| entry).ok_or(Errno::ENOENT)
            })
    }

    fn contents(&self) -> Vec<u8> {
        let text = |text: String| [text.as_bytes(), &[0]].concat();
        match self {
            Dir(entries) => listing(entries),
            Text(read) => text(read()),
            Number(read) => read().as_bytes().to_vec(),
            Parameter(parameter) => text((parameter.read)()),
        }
    }

    /// What is said of an entry whose contents have so many bytes.
    fn described(&self, bytes: usize) -> DirEntry {
        let type_ = match self {
            Dir(_) => EntryType::DIR,
            Text(_) | Parameter(_) => EntryType::STRING,
            Number(_) => EntryType::UINT,
        };
        let writable = matches!(self, Parameter(_));
        DirEntry {
            type_,
            encoding: abi::ENC_PLAIN,
            pad: 0,
            content_len: bytes as u32,
            max_write_len: if writable { MOST_WRITTEN as u32 } else { 0 },
        }
    }
}

/// Most bytes of a parameter's text, its end included.
const MOST_WRITTEN: usize = 32;

/// A record for each entry: what it is, how far it is to the next (0 after the last), and its name.
fn listing(entries: &[(&str, Entry)]) -> Vec<u8> {
    const ALIGNMENT: usize = 4;
    let mut bytes = Vec::new();
    for (index, (name, entry)) in entries.iter().enumerate() {
        let length = (size_of::<DirEntry>() + 2 + name.len() + 1).next_multiple_of(ALIGNMENT);
        let is_last = index + 1 == entries.len();
        let start = bytes.len();
        bytes.extend_from_slice(entry.described(entry.contents().len()).as_bytes());
        bytes.extend_from_slice(if is_last { 0 } else { length as u16 }.as_bytes());
        bytes.extend_from_slice(name.as_bytes());
        bytes.resize(start + length, 0);
    }
    bytes
}

/// `hypfs_op(command, path, its length, buffer, its length)`: Domain 0's alone. `ENOENT` for a path that there is not,
/// `ENOBUFS` (and how much it would be) for a buffer too small, `EACCES` for what cannot be written.
pub fn hypfs_op(call: &mut Call<'_>) -> Answer {
    access::to_host(call.caller.domain(), Operation::ControlHost)?;
    let [command, path, path_length, buffer, length, _] = call.args();
    let command = HypfsCmd(command as u32);
    if command == HypfsCmd::GET_VERSION {
        let has_arguments = [path, path_length, buffer, length].iter().any(|word| *word != 0);
        return if has_arguments { Err(Errno::EINVAL) } else { Ok(VERSION) };
    }
    let mut name = [0; abi::MAX_PATHLEN];
    let entry = Entry::at(text_of(&mut name, path, path_length)?)?;
    match command {
        HypfsCmd::READ => read(entry, buffer, length),
        HypfsCmd::WRITE_CONTENTS => write(entry, buffer, length),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

/// Reads a text with its zero byte, which is its only one, into `room`.
fn text_of(room: &mut [u8], at: u64, length: u64) -> Result<&str, Errno> {
    let length = usize::try_from(length).map_err(|_| Errno::EINVAL)?;
    let bytes = room.get_mut(..length).ok_or(Errno::EINVAL)?;
    GuestPtr::<u8>::new(at).read_slice(bytes)?;
    let text = core::ffi::CStr::from_bytes_with_nul(bytes).map_err(|_| Errno::EINVAL)?;
    text.to_str().map_err(|_| Errno::EINVAL)
}

fn read(entry: &Entry, buffer: u64, length: u64) -> Answer {
    const HEAD: usize = size_of::<DirEntry>();
    let room = (length as usize).checked_sub(HEAD).ok_or(Errno::EINVAL)?;
    let contents = entry.contents();
    GuestPtr::new(buffer).write(&entry.described(contents.len()))?;
    if contents.len() > room {
        return Err(Errno::ENOBUFS);
    }
    GuestPtr::<u8>::new(buffer)
        .element(HEAD as u64)?
        .write_slice(&contents)?;
    Ok(0)
}

fn write(entry: &Entry, buffer: u64, length: u64) -> Answer {
    let Parameter(parameter) = entry else {
        return Err(Errno::EACCES);
    };
    if length > MOST_WRITTEN as u64 {
        return Err(Errno::ENOSPC);
    }
    let mut text = [0; MOST_WRITTEN];
    let text = text_of(&mut text, buffer, length)?;
    if (parameter.write)(text) {
        Ok(0)
    } else {
        Err(Errno::EINVAL)
    }
}
