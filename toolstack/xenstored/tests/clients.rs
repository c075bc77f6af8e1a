//! The whole daemon, without a hypervisor, and real clients at its socket.

use ferroxen_xenstore::{Client, ErrorCode, Permission, Rights, Store};
use ferroxen_xenstored::core::Limits;
use ferroxen_xenstored::daemon::{Daemon, Log, Setup};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A daemon's socket, in a directory of its own that goes with the test.
struct Socket(PathBuf);

impl std::ops::Deref for Socket {
    type Target = Path;
    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(directory) = self.0.parent() {
            let _ = std::fs::remove_dir_all(directory);
        }
    }
}

/// Starts a daemon and leaves it running for the rest of the test program.
fn start(name: &str) -> Socket {
    let directory = std::env::temp_dir().join(format!("xenstored-{}-{name}", std::process::id()));
    let setup = Setup {
        socket_dir: directory.clone(),
        limits: Limits::default(),
        without_hypervisor: true,
        inheritance: None,
    };
    let daemon = Daemon::start(setup, Log::open(None, false).unwrap()).unwrap();
    std::thread::spawn(move || daemon.run());
    Socket(directory.join("socket"))
}

fn connect(socket: &Path) -> Client {
    Client::over(UnixStream::connect(socket).unwrap().into())
}

const SOON: Option<Duration> = Some(Duration::from_secs(20));

#[test]
fn one_client_hears_of_another_ones_changes() {
    let socket = start("hears");
    let (writer, watcher) = (connect(&socket), connect(&socket));
    watcher.watch("/a", "token").unwrap();
    assert_eq!(watcher.next_event(SOON).unwrap().unwrap().path, "/a");
    writer.write("/a/b", "value").unwrap();
    let event = watcher.next_event(SOON).unwrap().unwrap();
    assert_eq!((event.path.as_str(), event.token.as_str()), ("/a/b", "token"));
    assert_eq!(watcher.read_string("/a/b").unwrap(), "value");
    writer.rm("/a").unwrap();
    assert_eq!(watcher.next_event(SOON).unwrap().unwrap().path, "/a");
    assert_eq!(watcher.read_opt("/a/b").unwrap(), None);
}

#[test]
fn transactions_of_many_clients_lose_no_increment() {
    let socket = start("increments");
    connect(&socket).write("/counter", "0").unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let client = connect(&socket);
                for _ in 0..50 {
                    let add_one = |tx: &ferroxen_xenstore::Transaction<'_>| {
                        let count: u32 = tx.read_parsed("/counter")?;
                        tx.write("/counter", (count + 1).to_string())
                    };
                    client.transaction(add_one).unwrap();
                }
            });
        }
    });
    assert_eq!(connect(&socket).read_parsed::<u32>("/counter").unwrap(), 200);
}

#[test]
fn a_dropped_transaction_leaves_nothing() {
    let client = connect(&start("dropped"));
    let transaction = client.start_transaction().unwrap();
    transaction.write("/a", "x").unwrap();
    drop(transaction);
    assert!(!client.exists("/a").unwrap());
}

#[test]
fn long_listings_and_permissions_survive_the_way() {
    let client = connect(&start("listings"));
    let names: Vec<String> = (0..700).map(|i| format!("node-{i:03}")).collect();
    for name in &names {
        client.write(&format!("/big/{name}"), "").unwrap();
    }
    assert_eq!(client.directory("/big").unwrap(), names);
    let entries = [Permission::new(Rights::None, 0), Permission::new(Rights::Both, 7)];
    client.set_permissions("/big", &entries).unwrap();
    assert_eq!(client.permissions("/big").unwrap(), entries);
}

#[test]
fn a_client_that_breaks_the_rules_is_cut_off_and_the_others_go_on() {
    let socket = start("rules");
    let good = connect(&socket);
    let mut bad = UnixStream::connect(&*socket).unwrap();
    // A header that announces more than a message may have.
    bad.write_all(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0])
        .unwrap();
    assert_eq!(bad.read(&mut [0; 64]).unwrap(), 0);
    good.write("/still", "here").unwrap();
    let error = good.read("/a b").unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::EINVAL));
}

#[test]
fn a_client_that_does_not_read_does_not_stop_the_others() {
    let socket = start("deaf");
    let (deaf, good) = (connect(&socket), connect(&socket));
    deaf.watch("/", "t").unwrap();
    for i in 0..5000 {
        good.write(&format!("/flood/{}", i % 2500), "x").unwrap();
    }
    good.write("/end", "").unwrap();
    // What it has missed is all still there.
    let mut seen = BTreeSet::new();
    loop {
        let event = deaf.next_event(SOON).unwrap().expect("an event is missing");
        if event.path == "/end" {
            break;
        }
        seen.insert(event.path);
    }
    assert_eq!(seen.iter().filter(|path| path.starts_with("/flood/")).count(), 2500);
}

#[test]
fn a_second_daemon_does_not_take_the_first_ones_socket() {
    let socket = start("second");
    let setup = Setup {
        socket_dir: socket.parent().unwrap().into(),
        limits: Limits::default(),
        without_hypervisor: true,
        inheritance: None,
    };
    let error = Daemon::start(setup, Log::open(None, false).unwrap()).unwrap_err();
    assert!(error.to_string().contains("another xenstored"), "{error}");
    connect(&socket).write("/a", "b").unwrap();
}

/// A daemon in a process of its own, which ends with the test.
struct Process(std::process::Child, PathBuf);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        let _ = std::fs::remove_dir_all(&self.1);
    }
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_xenstored");

fn spawn(name: &str) -> (Process, PathBuf) {
    let directory = std::env::temp_dir().join(format!("xenstored-{}-{name}", std::process::id()));
    let mut child = std::process::Command::new(PROGRAM)
        .args(["-N", "-D", "--say-ready", "-Q", "watches=7", "--socket-dir"])
        .arg(&directory)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    child.stdout.take().unwrap().read_exact(&mut ready).unwrap();
    (Process(child, directory.clone()), directory.join("socket"))
}

#[test]
fn a_live_update_keeps_every_connection() {
    let (process, socket) = spawn("update");
    let (admin, watcher) = (connect(&socket), connect(&socket));
    let others: Vec<Client> = (0..450).map(|_| connect(&socket)).collect();
    admin.write("/a/b", "before").unwrap();
    admin.control(&["quota", "set", "nodes", "77"]).unwrap();
    watcher.watch("/a", "token").unwrap();
    watcher.next_event(SOON).unwrap().unwrap();
    // Half a request is on its way.
    let frame =
        ferroxen_xenstore::wire::encode(ferroxen_xenstore::wire::MessageType::READ, 9, 0, &[b"/a/b\0"]).unwrap();
    let mut slow = UnixStream::connect(&socket).unwrap();
    slow.write_all(&frame[..20]).unwrap();
    for _ in 0..2 {
        assert_eq!(admin.control(&["live-update", "-f", PROGRAM]).unwrap(), "OK");
        assert_eq!(admin.control(&["live-update", "-s", "-t", "60"]).unwrap(), "OK");
    }
    // The event that tells watchers to look again, and one for a change after it.
    assert_eq!(watcher.next_event(SOON).unwrap().unwrap().path, "/a");
    assert_eq!(watcher.read_string("/a/b").unwrap(), "before");
    others.iter().for_each(|client| client.write("/c", "x").unwrap());
    admin.write("/a/b", "after").unwrap();
    while watcher.next_event(SOON).unwrap().unwrap().path != "/a/b" {}
    slow.write_all(&frame[20..]).unwrap();
    let mut answer = [0; 21];
    slow.read_exact(&mut answer).unwrap();
    assert_eq!(&answer[16..], b"after");
    // New ones find it too, and what was set stays set.
    let quota = connect(&socket).control(&["quota"]).unwrap();
    assert!(
        quota.contains("nodes             :       77") && quota.contains("watches           :        7"),
        "{quota}"
    );
    assert!(process.0.id() > 0 && Path::new(&format!("/proc/{}", process.0.id())).exists());
}

#[test]
fn a_live_update_waits_for_transactions_and_refuses_strangers() {
    let (_process, socket) = spawn("refuses");
    let (admin, other) = (connect(&socket), connect(&socket));
    let said = admin.control(&["live-update", "-f", "/bin/true"]).unwrap();
    assert!(said.contains("is not a xenstored"), "{said}");
    let transaction = other.start_transaction().unwrap();
    transaction.write("/x", "1").unwrap();
    assert_eq!(admin.control(&["live-update", "-s"]).unwrap(), "BUSY");
    assert_eq!(admin.control(&["live-update", "-s", "-F"]).unwrap(), "OK");
    assert!(matches!(transaction.commit(), Err(error) if error.to_string().contains("EAGAIN")));
    assert!(!other.exists("/x").unwrap());
    assert_eq!(admin.control(&["live-update", "-a"]).unwrap(), "OK");
}
