//! Steps that are called off: whichever program is at work is ended, and what was begun goes.

use anyhow::{Result, bail};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How much there is that would be left behind.
static BEGUN: AtomicUsize = AtomicUsize::new(0);
/// How often somebody has had enough.
static CALLS: AtomicUsize = AtomicUsize::new(0);
/// Those at work, each the first of a group.
static AT_WORK: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// Ends the step that goes on, whose call then fails and leaves nothing; asked again, it ends programs that take their
/// time. False if nothing is begun: whoever asks may go at once.
pub fn call_off() -> bool {
    if BEGUN.load(Ordering::SeqCst) == 0 {
        return false;
    }
    let signal = match CALLS.fetch_add(1, Ordering::SeqCst) {
        0 => Signal::TERM,
        _ => Signal::KILL,
    };
    for group in at_work().iter() {
        // Whoever has ended by itself is not there any more.
        let _ = kill_process_group(*group, signal);
    }
    true
}

/// Fails if the step was called off.
pub(crate) fn go_on() -> Result<()> {
    match CALLS.load(Ordering::SeqCst) {
        0 => Ok(()),
        _ => bail!("called off: all is as it was"),
    }
}

/// Something that would be left behind, for as long as this is there.
#[derive(Debug)]
pub(crate) struct Begun(());

impl Begun {
    pub(crate) fn new() -> Begun {
        BEGUN.fetch_add(1, Ordering::SeqCst);
        Begun(())
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        BEGUN.fetch_sub(1, Ordering::SeqCst);
    }
}

fn at_work() -> MutexGuard<'static, Vec<Pid>> {
    AT_WORK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a program that ends when the step is called off. A terminal's Ctrl-C is for us alone.
pub(crate) fn start(command: &mut Command) -> io::Result<Child> {
    let mut at_work = at_work();
    if CALLS.load(Ordering::SeqCst) > 0 {
        return Err(io::ErrorKind::Interrupted.into());
    }
    let child = command.process_group(0).spawn()?;
    at_work.push(Pid::from_child(&child));
    Ok(child)
}

/// Waits for its end. Until it is off the list it keeps its number.
pub(crate) fn end(child: &mut Child) -> io::Result<ExitStatus> {
    let pid = Pid::from_child(child);
    let waited = rustix::io::retry_on_intr(|| waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT));
    at_work().retain(|other| *other != pid);
    waited?;
    child.wait()
}
