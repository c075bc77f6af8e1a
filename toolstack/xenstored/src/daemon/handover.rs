//! Live update: another program takes our place in the same process, and every connection stays.
//!
//! Rings are attached again, as after any end of ours. Sockets go along: the new program finds, as its standard input,
//! a socket on which we have sent it all descriptors. The first is a file with the store and with what is half-way on
//! each connection; the second is the listening socket; the others are our clients', in the order of the file.

use anyhow::{Context, Result, bail};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Descriptors in one message; the kernel allows 253.
const BATCH: usize = 200;
/// By which option a program learns that it takes somebody's place.
pub const OPTION: &str = "--take-over";

/// What a program that takes our place finds.
#[derive(Debug)]
pub struct Inheritance {
    /// The store, and what is half-way, as records.
    pub records: Vec<u8>,
    /// The socket that clients connect to.
    pub listener: UnixListener,
    /// Those who are connected.
    pub clients: VecDeque<UnixStream>,
}

/// Makes sure that `program` is a xenstored.
pub fn check(program: &str) -> Result<(), String> {
    if !program.starts_with('/') {
        return Err(format!("{program} is no whole path"));
    }
    let said = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    let said = said.map_err(|error| format!("{program} cannot be run: {error}"))?;
    match said.status.success() && said.stdout.starts_with(b"xenstored ") {
        true => Ok(()),
        false => Err(format!(
            "{program} is not a xenstored that can take over (`{program} --version`)"
        )),
    }
}

/// Becomes `program`. Comes back only if that fails.
pub fn become_program(
    program: &Path,
    args: &[OsString],
    records: &[u8],
    listener: BorrowedFd<'_>,
    clients: &[BorrowedFd<'_>],
) -> Result<()> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).context("making sockets")?;
    let mut file = File::from(memfd_create("xenstored", MemfdFlags::CLOEXEC).context("making a file in memory")?);
    file.write_all(records).context("writing the store down")?;
    let all: Vec<BorrowedFd<'_>> = [file.as_fd(), listener]
        .into_iter()
        .chain(clients.iter().copied())
        .collect();
    for batch in all.chunks(BATCH) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut message = SendAncillaryBuffer::new(&mut space);
        if !message.push(SendAncillaryMessage::ScmRights(batch)) {
            bail!("{} descriptors do not fit into a message", batch.len());
        }
        sendmsg(&ours, &[IoSlice::new(b"+")], &mut message, SendFlags::empty()).context("handing descriptors over")?;
    }
    let error = Command::new(program).arg0("xenstored").args(args).stdin(theirs).exec();
    Err(error).with_context(|| format!("becoming {}", program.display()))
}

impl Inheritance {
    /// Takes what the program before us has left on our standard input.
    pub fn receive() -> Result<Inheritance> {
        let socket = std::io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .context("looking at standard input")?;
        let mut descriptors: VecDeque<OwnedFd> = VecDeque::new();
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
            let mut message = RecvAncillaryBuffer::new(&mut space);
            let mut byte = [0];
            let got = recvmsg(
                &socket,
                &mut [IoSliceMut::new(&mut byte)],
                &mut message,
                RecvFlags::CMSG_CLOEXEC,
            )
            .context("taking over what the xenstored before has left")?;
            for part in message.drain() {
                if let RecvAncillaryMessage::ScmRights(several) = part {
                    descriptors.extend(several);
                }
            }
            if got.bytes == 0 {
                break;
            }
        }
        if let Ok(nothing) = File::open("/dev/null") {
            // It has done its part; nobody reads from it.
            let _ = rustix::stdio::dup2_stdin(&nothing);
        }
        let (Some(file), Some(listener)) = (descriptors.pop_front(), descriptors.pop_front()) else {
            bail!("the xenstored before has left nothing");
        };
        let (mut file, mut records) = (File::from(file), Vec::new());
        file.rewind().context("reading the store")?;
        file.read_to_end(&mut records).context("reading the store")?;
        Ok(Inheritance {
            records,
            listener: listener.into(),
            clients: descriptors.into_iter().map(UnixStream::from).collect(),
        })
    }
}
