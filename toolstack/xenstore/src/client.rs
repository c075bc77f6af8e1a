//! One connection: requests out, answers and events in.

use crate::error::{Error, Result};
use crate::store::{self, Change, Changes, Store};
use ferroxen_xenstore_wire::{Decoder, ErrorCode, Header, Message, MessageType, encode, path, strings};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Where xenstored listens, and where the kernel passes requests on, in the order in which they are tried.
const SOCKETS: &[&str] = &["/run/xenstored/socket", "/var/run/xenstored/socket"];
const DEVICES: &[&str] = &["/dev/xen/xenbus", "/proc/xen/xenbus"];

/// How long a xenstored that is reached through the kernel may take to answer at all.
const PATIENCE: Duration = Duration::from_secs(5);

/// Questions on their way at a time: their bytes fit into any socket, and so do the answers.
const AT_ONCE: usize = 32;
const BYTES_AT_ONCE: usize = 8192;

/// One of many requests.
struct Request<'a> {
    kind: MessageType,
    subject: &'a str,
    payload: [&'a [u8]; 2],
}

/// A connection to xenstored.
#[derive(Debug)]
pub struct Client {
    /// A socket or a character device: the same bytes either way.
    file: File,
    /// How many questions may be on their way at a time.
    at_once: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    decoder: Decoder,
    events: VecDeque<Event>,
    last_id: u32,
    /// Set once answers can no longer be told apart.
    broken: bool,
}

impl State {
    /// Takes a message that is here already.
    fn next_message(&mut self) -> Result<Option<Message>> {
        self.decoder.next().map_err(|error| Error::Protocol(error.to_string()))
    }

    /// Gives an answer on; an event goes to its queue.
    fn sort(&mut self, message: Message) -> Result<Option<Message>> {
        if message.header.kind != MessageType::WATCH_EVENT {
            return Ok(Some(message));
        }
        let mut words = strings(&message.payload).map(|word| String::from_utf8_lossy(word).into_owned());
        match (words.next(), words.next()) {
            (Some(path), Some(token)) => self.events.push_back(Event { path, token }),
            _ => return Err(nonsense("a watch event", &message.payload)),
        }
        Ok(None)
    }
}

/// Children of a directory, each with what it has at some place below it, if it has anything there.
pub type Values = Vec<(String, Option<String>)>;

/// Something happened at a watched path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// Where: below the watched path, and relative if that was.
    pub path: String,
    /// The token that was given with the watch.
    pub token: String,
}

impl Client {
    /// Connects to xenstored: by its socket (also `$XENSTORED_PATH`), else through the kernel.
    pub fn connect() -> Result<Client> {
        let by_socket = match Client::connect_socket() {
            Err(error) if std::env::var_os("XENSTORED_PATH").is_none() => error,
            other => return other,
        };
        match Client::connect_kernel() {
            Err(Error::Connect(why)) => Err(Error::Connect(format!("{by_socket}; {why}"))),
            other => other,
        }
    }

    /// Connects by the socket only.
    pub fn connect_socket() -> Result<Client> {
        if let Some(path) = std::env::var_os("XENSTORED_PATH") {
            let socket = UnixStream::connect(&path)
                .map_err(|error| Error::Connect(format!("{} (from XENSTORED_PATH): {error}", path.display())))?;
            return Ok(Client::over(socket.into()));
        }
        let mut reasons = vec![];
        for path in SOCKETS {
            match UnixStream::connect(path) {
                Ok(socket) => return Ok(Client::over(socket.into())),
                Err(error) => reasons.push(format!("{path}: {error}")),
            }
        }
        Err(Error::Connect(reasons.join(", ")))
    }

    /// Connects through the kernel only, which takes requests also while there is no xenstored: so one is tried.
    pub fn connect_kernel() -> Result<Client> {
        let mut reasons = vec![];
        for path in DEVICES {
            match OpenOptions::new().read(true).write(true).open(path) {
                Ok(device) => {
                    let client = Client::over_device(device.into());
                    match client.answers_within(PATIENCE)? {
                        true => return Ok(client),
                        false => reasons.push(format!("{path}: nobody answers; is xenstored running?")),
                    }
                }
                Err(error) => reasons.push(format!("{path}: {error}")),
            }
        }
        Err(Error::Connect(reasons.join(", ")))
    }

    /// Whether anybody answers a request in time.
    fn answers_within(&self, patience: Duration) -> Result<bool> {
        let mut state = self.lock()?;
        state.last_id = state.last_id.wrapping_add(1);
        let request = encode(MessageType::GET_DOMAIN_PATH, state.last_id, 0, &[b"0\0"]).unwrap_or_default();
        (&self.file).write_all(&request)?;
        if !self.wait_readable(Some(Instant::now() + patience))? {
            state.broken = true;
            return Ok(false);
        }
        // Whatever it says, somebody is there.
        while self.receive(&mut state)?.is_none() {}
        Ok(true)
    }

    /// Whether it can be used on: it cannot after any error but a refusal.
    pub fn is_usable(&self) -> bool {
        self.lock().is_ok()
    }

    /// Speaks over a descriptor that is connected already.
    pub fn over(connected: OwnedFd) -> Client {
        Client {
            file: File::from(connected),
            at_once: AT_ONCE,
            state: Mutex::default(),
        }
    }

    /// Speaks over the kernel's device, which looks at the first message of a write only and forgets the others.
    fn over_device(opened: OwnedFd) -> Client {
        Client {
            at_once: 1,
            ..Client::over(opened)
        }
    }

    /// Runs `body` in a transaction and commits it; again from the start if others got in between.
    pub fn transaction<T>(&self, mut body: impl FnMut(&Transaction<'_>) -> Result<T>) -> Result<T> {
        loop {
            let transaction = self.start_transaction()?;
            let result = body(&transaction)?;
            match transaction.commit() {
                Ok(()) => return Ok(result),
                Err(error) if error.code() == Some(ErrorCode::EAGAIN) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Starts a transaction. Dropped without [`Transaction::commit`], it is undone.
    pub fn start_transaction(&self) -> Result<Transaction<'_>> {
        let payload = self.ask(MessageType::TRANSACTION_START, "", 0, &[&[0]])?;
        let id = number(&payload).ok_or_else(|| nonsense("a transaction id", &payload))?;
        Ok(Transaction {
            client: self,
            id,
            is_open: true,
        })
    }

    /// Asks to hear of changes at `path` and below. An event comes at once, to begin with.
    pub fn watch(&self, path: &str, token: &str) -> Result<()> {
        self.ask(
            MessageType::WATCH,
            path,
            0,
            &[path.as_bytes(), &[0], token.as_bytes(), &[0]],
        )
        .map(drop)
    }

    /// Like [`watch`](Self::watch), but only `depth` levels below `path`.
    pub fn watch_depth(&self, path: &str, token: &str, depth: u32) -> Result<()> {
        let depth = depth.to_string();
        let payload: &[&[u8]] = &[path.as_bytes(), &[0], token.as_bytes(), &[0], depth.as_bytes(), &[0]];
        self.ask(MessageType::WATCH, path, 0, payload).map(drop)
    }

    /// Takes a watch back. Events that had come already stay in the queue.
    pub fn unwatch(&self, path: &str, token: &str) -> Result<()> {
        self.ask(
            MessageType::UNWATCH,
            path,
            0,
            &[path.as_bytes(), &[0], token.as_bytes(), &[0]],
        )
        .map(drop)
    }

    /// Takes all watches and transactions of this connection back.
    pub fn reset_watches(&self) -> Result<()> {
        self.ask(MessageType::RESET_WATCHES, "", 0, &[&[0]]).map(drop)
    }

    /// Waits for the next event; `None` if none came in time. Without a timeout it waits for ever.
    pub fn next_event(&self, timeout: Option<Duration>) -> Result<Option<Event>> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let mut state = self.lock()?;
            if let Some(event) = state.events.pop_front() {
                return Ok(Some(event));
            }
            if !state.decoder.is_mid_message() && !self.wait_readable(deadline)? {
                return Ok(None);
            }
            let received = self.receive(&mut state);
            state.broken = !matches!(received, Ok(None));
            if let Some(answer) = received? {
                return Err(Error::Protocol(format!(
                    "an answer that nobody waits for: {:?}",
                    answer.header
                )));
            }
        }
    }

    /// Takes an event that is there already, without waiting.
    pub fn try_event(&self) -> Result<Option<Event>> {
        self.next_event(Some(Duration::ZERO))
    }

    /// Tells xenstored of a new domain: its ring page and the port it left unbound for us.
    pub fn introduce(&self, domid: u16, gfn: u64, port: u32) -> Result<()> {
        let text = format!("{domid}\0{gfn}\0{port}\0");
        self.ask(MessageType::INTRODUCE, &path::domain_path(domid), 0, &[text.as_bytes()])
            .map(drop)
    }

    /// Tells xenstored to let go of a domain.
    pub fn release(&self, domid: u16) -> Result<()> {
        self.about_domain(MessageType::RELEASE, domid).map(drop)
    }

    /// Asks to hear again of a domain's shutdown, after it was resumed.
    pub fn resume(&self, domid: u16) -> Result<()> {
        self.about_domain(MessageType::RESUME, domid).map(drop)
    }

    /// Lets `domid` act as `target` would (a device model for its guest).
    pub fn set_target(&self, domid: u16, target: u16) -> Result<()> {
        let text = format!("{domid}\0{target}\0");
        self.ask(
            MessageType::SET_TARGET,
            &path::domain_path(domid),
            0,
            &[text.as_bytes()],
        )
        .map(drop)
    }

    /// Whether xenstored talks to that domain.
    pub fn is_introduced(&self, domid: u16) -> Result<bool> {
        let payload = self.about_domain(MessageType::IS_DOMAIN_INTRODUCED, domid)?;
        match payload.first() {
            Some(b'T') => Ok(true),
            Some(b'F') => Ok(false),
            _ => Err(nonsense("T or F", &payload)),
        }
    }

    /// The directory of a domain.
    pub fn domain_path(&self, domid: u16) -> Result<String> {
        let payload = self.about_domain(MessageType::GET_DOMAIN_PATH, domid)?;
        let text = strings(&payload)
            .next()
            .and_then(|text| String::from_utf8(text.to_vec()).ok());
        text.ok_or_else(|| nonsense("a path", &payload))
    }

    /// Sends a control command and gives what xenstored prints.
    pub fn control(&self, words: &[&str]) -> Result<String> {
        let text: String = words.iter().flat_map(|word| [word, "\0"]).collect();
        let payload = self.ask(
            MessageType::CONTROL,
            words.first().unwrap_or(&""),
            0,
            &[text.as_bytes()],
        )?;
        Ok(String::from_utf8_lossy(payload.strip_suffix(&[0]).unwrap_or(&payload)).into_owned())
    }

    /// What each child of `directory` has at `below`, in as few answers as they fit into; `None` from a xenstored that
    /// tells of one at a time only, as Xen's own do.
    pub fn values(&self, directory: &str, below: &str) -> Result<Option<Values>> {
        let mut found: Values = vec![];
        loop {
            let after = found.last().map_or("", |(name, _)| name);
            let request = format!("values\0{directory}\0{below}\0{after}\0");
            let answer = match self.ask(MessageType::CONTROL, directory, 0, &[request.as_bytes()]) {
                Err(error) if error.code().is_some() => return Ok(None),
                // oxenstored's to all that it does not know.
                Ok(answer) if answer == b"OK\0" => return Ok(None),
                other => other?,
            };
            let before = found.len();
            let mut words = strings(&answer).map(|word| String::from_utf8_lossy(word));
            while let Some(name) = words.next() {
                if name.is_empty() {
                    return Ok(Some(found));
                }
                let value = words.next().ok_or_else(|| nonsense("a value", &answer))?;
                found.push((name.into_owned(), value.strip_prefix('+').map(str::to_owned)));
            }
            if found.len() == before {
                return Err(nonsense("children and what they have", &answer));
            }
        }
    }

    fn about_domain(&self, kind: MessageType, domid: u16) -> Result<Vec<u8>> {
        self.ask(kind, &path::domain_path(domid), 0, &[format!("{domid}\0").as_bytes()])
    }

    fn ask(&self, kind: MessageType, subject: &str, tx_id: u32, payload: &[&[u8]]) -> Result<Vec<u8>> {
        let mut state = self.lock()?;
        state.last_id = state.last_id.wrapping_add(1);
        let id = state.last_id;
        let request = encoded(kind, subject, id, tx_id, payload)?;
        let answer = self.exchange(&mut state, &request, id);
        if answer.is_err() {
            state.broken = true;
        }
        said(kind, subject, answer?)
    }

    /// Sends many requests, with several on their way at a time: what an answer costs is mostly the two changes between
    /// programs, and they are shared. Gives the answers in the requests' order.
    fn ask_each<'a>(&self, tx_id: u32, requests: impl Iterator<Item = Request<'a>>) -> Result<Vec<Result<Vec<u8>>>> {
        let mut answers = Vec::new();
        let mut left = requests.peekable();
        while left.peek().is_some() {
            let mut state = self.lock()?;
            let (mut bytes, mut asked) = (vec![], vec![]);
            while let Some(request) = left.next_if(|_| asked.len() < self.at_once && bytes.len() < BYTES_AT_ONCE) {
                state.last_id = state.last_id.wrapping_add(1);
                bytes.extend(encoded(
                    request.kind,
                    request.subject,
                    state.last_id,
                    tx_id,
                    &request.payload,
                )?);
                asked.push((request, state.last_id));
            }
            // Until all answers are here, none can be told apart.
            state.broken = true;
            (&self.file).write_all(&bytes)?;
            for (request, id) in asked {
                let answer = self.answer_to(&mut state, id)?;
                answers.push(said(request.kind, request.subject, answer));
            }
            state.broken = false;
        }
        Ok(answers)
    }

    fn read_each_in(&self, tx_id: u32, paths: &[String]) -> Result<Vec<Option<String>>> {
        let requests = paths.iter().map(|path| Request {
            kind: MessageType::READ,
            subject: path,
            payload: [path.as_bytes(), &[0]],
        });
        let answers = self.ask_each(tx_id, requests)?;
        let value = |(path, answer): (&String, Result<Vec<u8>>)| match answer {
            Ok(value) => store::text(path, value).map(Some),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        };
        paths.iter().zip(answers).map(value).collect()
    }

    fn apply_in(&self, tx_id: u32, changes: &Changes) -> Result<()> {
        let requests = changes.0.iter().map(|change| Request {
            kind: change.kind,
            subject: &change.path,
            payload: [change.payload.as_slice(), &[]],
        });
        let answers = self.ask_each(tx_id, requests)?;
        let done = |(change, answer): (&Change, Result<Vec<u8>>)| change.done(answer);
        changes.0.iter().zip(answers).map(done).fold(Ok(()), Result::and)
    }

    fn exchange(&self, state: &mut State, request: &[u8], id: u32) -> Result<Message> {
        (&self.file).write_all(request)?;
        self.answer_to(state, id)
    }

    fn answer_to(&self, state: &mut State, id: u32) -> Result<Message> {
        loop {
            match self.receive(state)? {
                Some(answer) if answer.header.req_id == id => return Ok(answer),
                Some(answer) => {
                    return Err(Error::Protocol(format!(
                        "an answer to another question: {:?}",
                        answer.header
                    )));
                }
                None => {}
            }
        }
    }

    /// Reads one message, waiting for it; an event goes to its queue.
    ///
    /// What has come in behind it is taken along, and stays with the decoder.
    fn receive(&self, state: &mut State) -> Result<Option<Message>> {
        let mut bytes = [0; Header::SIZE + ferroxen_xenstore_wire::PAYLOAD_MAX];
        loop {
            if let Some(message) = state.next_message()? {
                return state.sort(message);
            }
            match (&self.file).read(&mut bytes) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(count) => state.decoder.push(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn wait_readable(&self, deadline: Option<Instant>) -> Result<bool> {
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut [PollFd::new(&self.file, PollFlags::IN)], timeout.as_ref()) {
                Ok(count) => return Ok(count > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
    }

    fn lock(&self) -> Result<MutexGuard<'_, State>> {
        match self.state.lock() {
            Ok(state) if !state.broken => Ok(state),
            _ => Err(Error::Protocol("this connection failed earlier; connect again".into())),
        }
    }
}

fn encoded(kind: MessageType, subject: &str, id: u32, tx_id: u32, payload: &[&[u8]]) -> Result<Vec<u8>> {
    encode(kind, id, tx_id, payload)
        .ok_or_else(|| Error::Unsendable(format!("{kind} of {subject:?} is longer than a message may be")))
}

/// What an answer to a request of that kind says.
fn said(kind: MessageType, subject: &str, answer: Message) -> Result<Vec<u8>> {
    match answer.header.kind {
        answered if answered == kind => Ok(answer.payload),
        MessageType::ERROR => {
            let name = strings(&answer.payload).next().unwrap_or_default();
            let code = ErrorCode::from_name(name).ok_or_else(|| nonsense("an error's name", name))?;
            Err(Error::Refused {
                asked: kind,
                subject: subject.into(),
                code,
            })
        }
        other => Err(Error::Protocol(format!("{other} in answer to {kind}"))),
    }
}

impl Store for Client {
    fn request(&self, kind: MessageType, subject: &str, payload: &[&[u8]]) -> Result<Vec<u8>> {
        self.ask(kind, subject, 0, payload)
    }

    fn read_each(&self, paths: &[String]) -> Result<Vec<Option<String>>> {
        self.read_each_in(0, paths)
    }

    fn apply(&self, changes: &Changes) -> Result<()> {
        self.apply_in(0, changes)
    }
}

/// Polls readable when an event (or an answer) has come. Also look at [`Client::try_event`] before sleeping:
/// events may wait in the queue already.
impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A transaction: nobody sees its changes before [`commit`](Self::commit), and all of them after.
#[derive(Debug)]
pub struct Transaction<'a> {
    client: &'a Client,
    id: u32,
    is_open: bool,
}

impl Transaction<'_> {
    /// Makes the changes visible. `EAGAIN` if others changed what was read or written here.
    pub fn commit(mut self) -> Result<()> {
        self.is_open = false;
        self.client
            .ask(MessageType::TRANSACTION_END, "", self.id, &[b"T\0"])
            .map(drop)
    }
}

impl Store for Transaction<'_> {
    fn request(&self, kind: MessageType, subject: &str, payload: &[&[u8]]) -> Result<Vec<u8>> {
        self.client.ask(kind, subject, self.id, payload)
    }

    fn read_each(&self, paths: &[String]) -> Result<Vec<Option<String>>> {
        self.client.read_each_in(self.id, paths)
    }

    fn apply(&self, changes: &Changes) -> Result<()> {
        self.client.apply_in(self.id, changes)
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if self.is_open {
            // Nothing depends on it: what fails here ends with the connection.
            let _ = self.client.ask(MessageType::TRANSACTION_END, "", self.id, &[b"F\0"]);
        }
    }
}

fn number<T: std::str::FromStr>(payload: &[u8]) -> Option<T> {
    std::str::from_utf8(strings(payload).next()?).ok()?.parse().ok()
}

fn nonsense(wanted: &str, found: &[u8]) -> Error {
    Error::Protocol(format!(
        "{wanted} was expected, not {:?}",
        found.escape_ascii().to_string()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client and the far end of its socket, on which the answers lie ready.
    fn with_answers(answers: &[Vec<u8>]) -> (Client, UnixStream) {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(&answers.concat()).unwrap();
        (Client::over(near.into()), far)
    }

    #[test]
    fn events_that_come_before_the_answer_wait_their_turn() {
        let (client, _far) = with_answers(&[
            encode(MessageType::WATCH_EVENT, 0, 0, &[b"/a/b\0tok\0"]).unwrap(),
            encode(MessageType::READ, 1, 0, &[b"value"]).unwrap(),
        ]);
        assert_eq!(client.read_string("/a").unwrap(), "value");
        let event = client.try_event().unwrap().unwrap();
        assert_eq!((event.path.as_str(), event.token.as_str()), ("/a/b", "tok"));
        assert_eq!(client.try_event().unwrap(), None);
    }

    /// It was read along with the answer: the socket has nothing more, and nobody would wait for that.
    #[test]
    fn an_event_right_behind_an_answer_is_there_without_waiting() {
        let (client, _far) = with_answers(&[
            encode(MessageType::READ, 1, 0, &[b"value"]).unwrap(),
            encode(MessageType::WATCH_EVENT, 0, 0, &[b"/a\0tok\0"]).unwrap(),
        ]);
        assert_eq!(client.read_string("/a").unwrap(), "value");
        assert_eq!(client.try_event().unwrap().unwrap().path, "/a");
        assert_eq!(client.try_event().unwrap(), None);
    }

    #[test]
    fn refusals_name_the_path_and_leave_the_connection_usable() {
        let (client, _far) = with_answers(&[
            encode(MessageType::ERROR, 1, 0, &[b"EACCES\0"]).unwrap(),
            encode(MessageType::ERROR, 2, 0, &[b"ENOENT\0"]).unwrap(),
        ]);
        let error = client.read("/secret").unwrap_err();
        assert_eq!(
            error.to_string(),
            "xenstore refused READ of \"/secret\": permission denied (EACCES)"
        );
        assert_eq!(client.read_opt("/nothing").unwrap(), None);
    }

    #[test]
    fn xenstoreds_that_tell_of_one_value_at_a_time_say_so_each_in_its_way() {
        let (client, _far) = with_answers(&[
            encode(MessageType::ERROR, 1, 0, &[b"EINVAL\0"]).unwrap(),
            encode(MessageType::CONTROL, 2, 0, &[b"OK\0"]).unwrap(),
            encode(MessageType::CONTROL, 3, 0, &[b"1\0+one\0" as &[u8], b"2\0-\0\0"]).unwrap(),
        ]);
        assert_eq!(client.values("/a", "name").unwrap(), None);
        assert_eq!(client.values("/a", "name").unwrap(), None);
        let all = [("1".to_owned(), Some("one".to_owned())), ("2".to_owned(), None)];
        assert_eq!(client.values("/a", "name").unwrap().unwrap(), all);
    }

    #[test]
    fn many_reads_are_answered_in_their_order_and_some_with_nothing() {
        let mut answers: Vec<_> = (1..=40)
            .map(|id| encode(MessageType::READ, id, 0, &[format!("v{id}").as_bytes()]).unwrap())
            .collect();
        answers[6] = encode(MessageType::ERROR, 7, 0, &[b"ENOENT\0"]).unwrap();
        answers.insert(3, encode(MessageType::WATCH_EVENT, 0, 0, &[b"/a\0tok\0"]).unwrap());
        let (client, _far) = with_answers(&answers);
        let paths: Vec<_> = (1..=40).map(|id| format!("/{id}")).collect();
        let values = client.read_each(&paths).unwrap();
        assert_eq!(
            (values[5].as_deref(), &values[6], values[39].as_deref()),
            (Some("v6"), &None, Some("v40"))
        );
        assert!(client.try_event().unwrap().is_some());
        assert!(client.is_usable());
    }

    /// Answers as Linux' device does: one message of each write, and nobody hears of the rest.
    fn serve_as_the_device(mut far: UnixStream) {
        let mut bytes = [0; 8192];
        while let Ok(count @ 1..) = far.read(&mut bytes) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes[..count]);
            let Ok(Some(asked)) = decoder.next() else { return };
            let answer = encode(asked.header.kind, asked.header.req_id, 0, &[b"v"]).unwrap();
            far.write_all(&answer).unwrap();
        }
    }

    #[test]
    fn the_kernels_device_is_asked_one_thing_at_a_time() {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let device = std::thread::spawn(|| serve_as_the_device(far));
        let client = Client::over_device(near.into());
        let values = client.read_each(&["/a".to_owned(), "/b".to_owned()]).unwrap();
        assert_eq!(values, [Some("v".to_owned()), Some("v".to_owned())]);
        let mut changes = Changes::default();
        changes.write("/a", "1");
        changes.write("/b", "2");
        client.apply(&changes).unwrap();
        drop(client);
        device.join().unwrap();
    }

    #[test]
    fn of_many_changes_all_are_tried_and_the_first_refusal_is_told() {
        let (client, _far) = with_answers(&[
            encode(MessageType::RM, 1, 0, &[b"OK\0"]).unwrap(),
            encode(MessageType::ERROR, 2, 0, &[b"ENOENT\0"]).unwrap(),
            encode(MessageType::ERROR, 3, 0, &[b"EACCES\0"]).unwrap(),
            encode(MessageType::WRITE, 4, 0, &[b"OK\0"]).unwrap(),
        ]);
        let mut changes = Changes::default();
        for path in ["/a", "/b", "/c"] {
            changes.rm(path);
        }
        changes.write("/d", "x");
        let error = client.apply(&changes).unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::EACCES));
        assert!(client.is_usable());
    }

    #[test]
    fn an_answer_to_another_question_ends_the_connection() {
        let (client, _far) = with_answers(&[encode(MessageType::READ, 9, 0, &[b"x"]).unwrap()]);
        assert!(matches!(client.read("/a"), Err(Error::Protocol(_))));
        assert!(matches!(client.read("/a"), Err(Error::Protocol(_))));
    }

    #[test]
    fn long_directories_come_in_parts() {
        let (client, _far) = with_answers(&[
            encode(MessageType::ERROR, 1, 0, &[b"E2BIG\0"]).unwrap(),
            encode(MessageType::DIRECTORY_PART, 2, 0, &[b"17\0a\0bc\0"]).unwrap(),
            encode(MessageType::DIRECTORY_PART, 3, 0, &[b"18\0d\0"]).unwrap(),
            encode(MessageType::DIRECTORY_PART, 4, 0, &[b"18\0a\0"]).unwrap(),
            encode(MessageType::DIRECTORY_PART, 5, 0, &[b"18\0e\0\0"]).unwrap(),
        ]);
        assert_eq!(client.directory("/d").unwrap(), ["a", "e"]);
    }
}
