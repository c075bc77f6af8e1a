//! `xl migrate`: a domain goes to another host, through a pipe to the `xl migrate-receive` there.
//!
//! Both sides speak stock xl 4.17's protocol, so either may be stock's: the receiver says that it is ready; the sender
//! sends what `xl save` would write, most of it while the domain runs; the receiver says that it has the domain; the sender lets it go, and hears whether
//! it runs. Until it has let go the sender can take everything back, and does.

use crate::create::Start;
use crate::{progress, save};
use anyhow::{Context, bail};
use clap::Args;
use ferroxen_consoled::interrupts;
use ferroxen_domains::Toolstack;
use ferroxen_domains::create::{self, Holder};
use ferroxen_domains::patience::{Interrupt, Patience, Piped};
use ferroxen_domains::save::Sender;
use ferroxen_stream::{envelope, file::Head};
use ferroxen_words::DomId;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

const BANNER: &str = "xl migration receiver ready, send binary domain data.\n";
// The zero that ends a string in C goes along with all but the first.
const RECEIVED: &str = "domain received, ready to unpause\0";
const GO: &str = "domain is yours, you are cleared to unpause\0";
const REPORT: &str = "my copy unpause results are as follows\0";
/// Bytes gathered before they are sent, or read ahead.
const BUFFER: usize = 1 << 20;
/// How long a sender may take to end its domain, once ours runs.
const LETTING_GO: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub struct Migrate {
    /// A domain, by name or number
    #[arg(value_name = "Domain")]
    pub domain: String,
    /// The host to go to; `localhost` is this one, without ssh
    #[arg(value_name = "Host")]
    pub host: String,
    /// The command to use instead of ssh; if empty, Host is a command that runs `xl migrate-receive` somewhere
    #[arg(short = 's', value_name = "sshcommand")]
    pub ssh: Option<String>,
    /// On the new host, do not wait in the background for the death of the domain
    #[arg(short = 'e')]
    pub exit: bool,
    /// Let the domain keep its number on the new host
    #[arg(short = 'D')]
    pub keeps_domid: bool,
    /// A configuration to send instead of the domain's own
    #[arg(short = 'C', value_name = "config")]
    pub config: Option<PathBuf>,
    /// Leave the domain paused on the new host
    #[arg(short = 'p')]
    pub paused: bool,
    /// Accepted for the sake of xm: a domain is moved while it runs wherever the hypervisor can tell what it writes
    #[arg(long, short = 'l')]
    live: bool,
    /// Say more
    #[arg(long)]
    debug: bool,
}

#[derive(Debug, Args)]
pub struct Receive {
    /// Do not wait in the background for the death of the domain
    #[arg(short = 'e')]
    pub exit: bool,
    /// Leave the domain paused
    #[arg(short = 'p')]
    pub paused: bool,
    /// Say more
    #[arg(short = 'd', long)]
    debug: bool,
}

/// The other side, at the end of two pipes.
struct Peer<'a> {
    child: Child,
    to: Piped<'a, ChildStdin>,
    from: Piped<'a, ChildStdout>,
}

impl<'a> Peer<'a> {
    fn start(args: &Migrate, patience: Patience<'a>) -> anyhow::Result<Peer<'a>> {
        let receive = ["migrate-receive"]
            .into_iter()
            .chain(args.exit.then_some("-e"))
            .chain(args.paused.then_some("-p"));
        let mut command = match args.ssh.as_deref() {
            None if args.host == "localhost" => {
                let mut command = Command::new("/proc/self/exe");
                command.args(receive);
                command
            }
            Some("") => shell(&format!("exec {}", args.host)),
            ssh => {
                let words: Vec<&str> = receive.collect();
                let mut command = shell(&format!("exec {} \"$0\" xl {}", ssh.unwrap_or("ssh"), words.join(" ")));
                command.arg(&args.host);
                command
            }
        };
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the command that reaches the other host")?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(to), Some(from)) => Ok(Peer {
                child,
                to: Piped::new(to, patience)?,
                from: Piped::new(from, patience)?,
            }),
            _ => bail!("the command that reaches the other host has no pipes"),
        }
    }

    fn expect(&mut self, message: &str, what: &str) -> anyhow::Result<()> {
        expect(&mut self.from, message).with_context(|| format!("waiting until {what}"))
    }

    fn say(&mut self, message: &str) -> anyhow::Result<()> {
        self.to
            .write_all(message.as_bytes())
            .context("answering the other host")
    }

    /// Ends the connection, and waits for whoever held it: at the end of its pipe it takes back what it has made.
    fn end(mut self) {
        drop((self.to, self.from));
        // What it had to say has been said.
        let _ = self.child.wait();
    }

    /// The same for one that may be stuck.
    fn abandon(self) {
        if let Ok(child) = i32::try_from(self.child.id()).map(Pid::from_raw)
            && let Some(child) = child
        {
            // It has not been waited for, so that the number is its own. That it has ended is as well.
            let _ = kill_process(child, Signal::TERM);
        }
        self.end();
    }
}

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(script);
    command
}

/// Reads one of the protocol's sentences.
fn expect(from: &mut impl Read, message: &str) -> anyhow::Result<()> {
    let mut heard = Vec::new();
    from.by_ref().take(message.len() as u64).read_to_end(&mut heard)?;
    match heard.as_slice() {
        bytes if bytes == message.as_bytes() => Ok(()),
        [] => bail!("the other side ended without a word on this pipe; what it said may stand above"),
        bytes => bail!(
            "the other side said \"{}\" instead of \"{}\"",
            bytes.escape_ascii(),
            message.escape_debug()
        ),
    }
}

/// `xl migrate`
pub fn send(args: &Migrate) -> anyhow::Result<()> {
    let stop = interrupts().context("preparing for Ctrl-C")?;
    let tools = Toolstack::open()?
        .until(Interrupt::from_pipe(stop))
        .showing(progress::for_people("migrate"));
    let domid = crate::domain(&tools, &args.domain)?;
    if args.keeps_domid && args.host == "localhost" && args.ssh.is_none() {
        bail!("-D: here, the domain that goes has the number until the other one runs");
    }
    let head = save::head(&tools, domid, args.config.as_deref(), args.keeps_domid)?;
    if save::recalled(&head)?.config.stays {
        bail!("{} may not be moved: its configuration says nomigrate = 1", args.domain);
    }
    let mut peer = Peer::start(args, tools.until_interrupted())?;
    let sent = transfer(&tools, domid, &head, &mut peer);
    let name = tools.name(domid);
    let began = match sent {
        Ok(began) => began,
        Err(error) => {
            match tools.is_interrupted() {
                true => peer.abandon(),
                false => peer.end(),
            }
            return Err(error.context("the domain was not moved, and runs on here"));
        }
    };
    match hand_over(&tools, domid, &name, &mut peer) {
        Ok(true) => {
            eprintln!(
                "migration sender: {name} stood still for {} ms",
                began.elapsed().as_millis()
            );
            let gone = tools.destroy(domid);
            // The end of its pipe tells the other host that the disks are its own.
            peer.end();
            gone?;
            eprintln!("Migration successful.");
            Ok(())
        }
        Err(error) => {
            peer.end();
            Err(error)
        }
        Ok(false) => {
            peer.end();
            tools.rename(domid, &name)?;
            tools.resume(domid)?;
            bail!("{} could not start the domain; it runs on here", args.host)
        }
    }
}

/// Sends the domain, which stands still in the end; gives the moment since when. When this fails it runs on.
fn transfer(tools: &Toolstack, domid: DomId, head: &Head, peer: &mut Peer<'_>) -> anyhow::Result<Instant> {
    peer.expect(BANNER, "the other host is ready")?;
    let mut to = BufWriter::with_capacity(BUFFER, &mut peer.to);
    head.write(&mut to)?;
    envelope::open(&mut to)?;
    let mut sender = Sender::begin(tools, domid)?;
    sender.rounds(&mut to)?;
    to.flush().context("sending the domain")?;
    let began = Instant::now();
    tools.suspend(domid)?;
    let mut finish = || {
        sender.finish(&mut to)?;
        envelope::close(&mut to)?;
        to.flush().context("sending the domain")?;
        expect(&mut peer.from, RECEIVED).context("waiting until the other host has the domain")
    };
    let finished = finish();
    drop(sender);
    match finished {
        Ok(()) => Ok(began),
        Err(error) => {
            tools.resume(domid)?;
            Err(error)
        }
    }
}

/// Lets the other host start the domain. `false`: it could not, and has given it back.
fn hand_over(tools: &Toolstack, domid: DomId, name: &str, peer: &mut Peer<'_>) -> anyhow::Result<bool> {
    // What is begun here cannot be taken back by us alone.
    peer.to.wait_with(Patience::without_end());
    peer.from.wait_with(Patience::without_end());
    let away = format!("{name}--migratedaway");
    tools.rename(domid, &away)?;
    let mut ask = || -> anyhow::Result<bool> {
        peer.say(GO)?;
        peer.expect(REPORT, "the other host has started the domain")?;
        let mut code = [0];
        peer.from.read_exact(&mut code)?;
        if code != [0] {
            // Only when it has taken its copy away may ours run.
            peer.expect(GO, "the other host has removed its copy")?;
        }
        Ok(code == [0])
    };
    ask().with_context(|| {
        format!(
            "it is not known whether the other host runs the domain now: look there. If it does, `xl destroy {away}` \
             here; two at once would ruin its disks"
        )
    })
}

/// `xl migrate-receive`
pub fn receive(args: &Receive) -> anyhow::Result<()> {
    let stop = interrupts().context("preparing for Ctrl-C")?;
    let tools = Toolstack::open()?.until(Interrupt::from_pipe(stop.try_clone()?));
    let mut to = std::io::stdout().lock();
    to.write_all(BANNER.as_bytes())?;
    to.flush()?;
    let mut from = BufReader::with_capacity(BUFFER, std::io::stdin().lock());
    let head = Head::read(&mut from)?;
    let mut loaded = save::recalled(&head)?;
    let name = loaded.config.name.clone();
    loaded.rename(&format!("{name}--incoming"));
    let domid = save::receive(&tools, &loaded, &mut from, Holder::Sender)?;
    let mut say = |words: &[&[u8]]| -> anyhow::Result<()> {
        words.iter().try_for_each(|word| to.write_all(word))?;
        to.flush()?;
        Ok(())
    };
    let cleared = say(&[RECEIVED.as_bytes()]).and_then(|()| expect(&mut from, GO));
    if let Err(error) = cleared {
        tools.destroy(domid)?;
        return Err(error.context("the domain stays where it was"));
    }
    loaded.rename(&name);
    let started = start(args, &tools, domid, &loaded, stop);
    match &started {
        Ok(()) => say(&[REPORT.as_bytes(), &[0]])?,
        Err(_) => say(&[REPORT.as_bytes(), &[1], GO.as_bytes()])?,
    }
    started?;
    if create::has_held_disks(&loaded.config) {
        let opened = wait_for_end(&mut from, tools.until_interrupted().within(LETTING_GO))
            .and_then(|()| Ok(create::open_disks(&tools, domid, &loaded.config)?));
        opened.with_context(|| {
            format!(
                "{name} runs here, and waits for a disk: detach it (`xl block-detach --force`), and attach it again"
            )
        })?;
    }
    Ok(())
}

/// Waits until the sender closes its pipe, which it does when it has let go of the domain's disks.
fn wait_for_end(from: &mut BufReader<impl Read + AsFd>, patience: Patience<'_>) -> anyhow::Result<()> {
    while patience.ready(from.get_ref())? {
        let rest = from.fill_buf()?.len();
        if rest == 0 {
            return Ok(());
        }
        from.consume(rest);
    }
    bail!(
        "the sender has not closed its pipe in {LETTING_GO:?}, so it may have the disks still (OpenBSD's nc needs -N for that)"
    )
}

/// Starts the domain under its own name; takes it back if that fails.
fn start(
    args: &Receive,
    tools: &Toolstack,
    domid: DomId,
    loaded: &ferroxen_xlconfig::Loaded,
    stop: OwnedFd,
) -> anyhow::Result<()> {
    if let Err(error) = tools.rename(domid, &loaded.config.name) {
        tools.destroy(domid)?;
        return Err(error.into());
    }
    let start = Start {
        paused: args.paused,
        alone: args.exit,
        quiet: true,
        ..Start::default()
    };
    start.finish(tools, domid, loaded, stop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_are_as_long_as_those_of_stock_xl() {
        assert_eq!([BANNER, RECEIVED, GO, REPORT].map(str::len), [54, 34, 44, 39]);
    }

    #[test]
    fn the_end_of_a_pipe_is_waited_for_and_not_for_ever() {
        let (near, mut far) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut from = BufReader::new(near);
        far.write_all(b"more").unwrap();
        let error = wait_for_end(&mut from, Patience::stubborn(Duration::ZERO)).unwrap_err();
        assert!(error.to_string().contains("has not closed its pipe"), "{error}");
        drop(far);
        wait_for_end(&mut from, Patience::stubborn(LETTING_GO)).unwrap();
    }

    #[test]
    fn a_sentence_is_read_to_its_last_byte() {
        let both = [GO, REPORT].concat();
        let mut from = both.as_bytes();
        expect(&mut from, GO).unwrap();
        assert_eq!(from, REPORT.as_bytes());
        assert!(expect(&mut from, GO).unwrap_err().to_string().contains("instead of"));
        assert!(expect(&mut &b""[..], GO).unwrap_err().to_string().contains("ended"));
    }
}
