//! xenstored's own core behind sockets, with the kernel's backends as its neighbours.
//!
//! A request of the toolstack's counts as a call on the stage, and may fail like any other.

use super::Stage;
use ferroxen_xenstore::wire::{Decoder, ErrorCode, MessageType, encode};
use ferroxen_xenstore::{Client, Store as _};
use ferroxen_xenstored::core::{ConnId, DomainState, Limits, Node, World, Xenstore};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    shop: Mutex<Shop>,
    /// A watch was set.
    watched: Condvar,
    stage: Arc<Stage>,
}

struct Shop {
    store: Xenstore,
    sockets: BTreeMap<ConnId, UnixStream>,
    watches: Vec<String>,
    usual: Vec<String>,
}

/// Introductions are noted on the stage.
struct Outside<'a>(&'a Stage);

impl World for Outside<'_> {
    fn attach(&mut self, domid: u16, _conn: ConnId, _gfn: u64, _port: u32) -> Result<(), ErrorCode> {
        self.0.state().introduced.insert(domid);
        Ok(())
    }
    fn detach(&mut self, domid: u16) {
        self.0.state().introduced.remove(&domid);
    }
    fn exists(&mut self, _domid: u16) -> bool {
        true
    }
    fn set_logging(&mut self, _on: bool) {}
    fn note(&mut self, _line: &str) {}
}

impl Store {
    /// An empty store, and the backends' kernel.
    pub fn open(stage: &Arc<Stage>) -> Store {
        let shop = Shop {
            store: Xenstore::new(Limits::default()),
            sockets: BTreeMap::new(),
            watches: Vec::new(),
            usual: Vec::new(),
        };
        let inner = Arc::new(Inner {
            shop: Mutex::new(shop),
            watched: Condvar::new(),
            stage: stage.clone(),
        });
        let kernel = Client::over(serve(&inner, None).into());
        let store = Store { inner };
        let usual = store.paths();
        store.shop().usual = usual;
        kernel
            .watch("/local/domain/0/backend", "backend")
            .expect("no device yet");
        thread::spawn(move || answer_for_backends(&kernel));
        store
    }

    /// A connection whose requests count.
    pub fn connect(&self) -> Client {
        Client::over(serve(&self.inner, Some(self.inner.stage.clone())).into())
    }

    /// A connection whose requests neither count nor fail.
    pub fn connect_neighbour(&self) -> Client {
        Client::over(serve(&self.inner, None).into())
    }

    /// Hangs up on everybody.
    pub fn close(&self) {
        for socket in self.shop().sockets.values() {
            // Whoever has gone already hears nothing of it.
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
    }

    /// All paths there are.
    pub fn paths(&self) -> Vec<String> {
        fn walk(path: &str, node: &Node, paths: &mut Vec<String>) {
            for (name, child) in node.children() {
                let path = format!("{path}/{name}");
                walk(&path, child, paths);
                paths.push(path);
            }
        }
        let mut paths = Vec::new();
        if let Some(root) = self.shop().store.tree().get("/") {
            walk("", root, &mut paths);
        }
        paths
    }

    /// Whether a path was there from the start, or belongs to Domain 0.
    pub fn is_usual(&self, path: &str) -> bool {
        const DOM0: [&str; 7] = [
            "/local/domain/0",
            "/local/pool",
            "/local/pool/0",
            "/local/pool/0/name",
            "/libxl",
            "/local",
            "/vm",
        ];
        DOM0.contains(&path) || self.shop().usual.iter().any(|usual| usual == path)
    }

    /// Waits until somebody watches `path`.
    pub fn wait_for_watch(&self, path: &str) {
        let mut shop = self.shop();
        while !shop.watches.iter().any(|watched| watched == path) {
            shop = self.inner.watched.wait(shop).expect("nobody panics while holding it");
        }
    }

    /// Hears from the hypervisor that nothing is left of a domain.
    pub fn nothing_left(&self, domid: u16) {
        let mut shop = self.shop();
        shop.store
            .domain_is(domid, DomainState::Gone, &mut Outside(&self.inner.stage));
        shop.deliver();
    }

    fn shop(&self) -> MutexGuard<'_, Shop> {
        self.inner.shop.lock().expect("nobody panics while holding it")
    }
}

impl Shop {
    /// Sends whatever waits for anybody.
    fn deliver(&mut self) {
        for conn in self.store.take_dirty() {
            while let Some(frame) = self.store.next_frame(conn) {
                // Whoever has hung up will not miss it.
                let _ = self.sockets.get_mut(&conn).map(|socket| socket.write_all(&frame));
            }
        }
    }
}

/// Serves a new connection; gives its far end.
fn serve(inner: &Arc<Inner>, stage: Option<Arc<Stage>>) -> UnixStream {
    let (near, far) = UnixStream::pair().expect("sockets");
    let mut shop = inner.shop.lock().expect("nobody panics while holding it");
    let conn = shop.store.connect(Duration::ZERO);
    shop.sockets.insert(conn, near.try_clone().expect("a descriptor"));
    drop(shop);
    let inner = inner.clone();
    thread::spawn(move || listen(&inner, conn, near, stage.as_deref()));
    far
}

fn listen(inner: &Inner, conn: ConnId, mut socket: UnixStream, stage: Option<&Stage>) {
    let mut decoder = Decoder::default();
    let mut bytes = [0; 4096];
    loop {
        while let Ok(Some(message)) = decoder.next() {
            let header = message.header;
            let subject = String::from_utf8_lossy(&message.payload).replace('\0', " ");
            let allowed = stage.map_or(Ok(()), |stage| {
                stage.call(&format!("{} {subject}", header.kind)).map(drop)
            });
            let mut shop = inner.shop.lock().expect("nobody panics while holding it");
            if allowed.is_err() {
                let refusal = encode(MessageType::ERROR, header.req_id, header.tx_id, &[b"EIO\0"]);
                let _ = socket.write_all(&refusal.expect("is short"));
                continue;
            }
            shop.store.handle(conn, &message, &mut Outside(&inner.stage));
            if header.kind == MessageType::WATCH {
                shop.watches.extend(subject.split(' ').next().map(str::to_owned));
                inner.watched.notify_all();
            }
            shop.deliver();
        }
        match socket.read(&mut bytes) {
            Ok(count) if count > 0 => decoder.push(&bytes[..count]),
            _ => return,
        }
    }
}

/// What blkback and netback do when a device comes: they look at it; and when it is to go, they close it.
pub fn answer_for_backends(kernel: &Client) {
    while let Ok(event) = kernel.next_event(None) {
        let Some(path) = event.map(|event| event.path).filter(|path| path.ends_with("/state")) else {
            continue;
        };
        // In a transaction, as Linux does: a state that goes meanwhile is not made anew.
        let _ = kernel.transaction(|transaction| match transaction.read_opt(&path)?.as_deref() {
            Some("1") => transaction.write(&path, "2"),
            Some("5") => transaction.write(&path, "6"),
            _ => Ok(()),
        });
    }
}
