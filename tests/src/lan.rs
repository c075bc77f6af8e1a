//! A server on the LAN that the machine's network card is plugged into: on the host, for the guests to fetch from.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// A web server with one page: bytes that compress badly.
///
/// It listens on the loopback only, which the machine's network shows as 10.0.2.2, until the process ends.
pub struct Server {
    port: u16,
    page: Arc<Vec<u8>>,
}

impl Server {
    /// Starts one with a page of `length` bytes.
    pub fn start(length: usize) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("no port for the server on the LAN")?;
        let port = listener.local_addr()?.port();
        let page = Arc::new(noise(length));
        let served = Arc::clone(&page);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A visitor who leaves early has taken what they wanted.
                let _ = serve(stream, &served);
            }
        });
        Ok(Self { port, page })
    }

    /// Returns the port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the page's SHA-256, as `sha256sum` prints it.
    pub fn checksum(&self) -> String {
        checksum(&self.page)
    }
}

/// Returns a SHA-256 as `sha256sum` prints it.
pub fn checksum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn serve(stream: TcpStream, page: &[u8]) -> Result<()> {
    let mut request = BufReader::new(stream.try_clone()?.take(64 << 10));
    let mut line = String::new();
    // Up to the empty line that ends the request.
    while request.read_line(&mut line)? > 2 {
        line.clear();
    }
    let mut answer = stream;
    write!(
        answer,
        "HTTP/1.0 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
        page.len()
    )?;
    Ok(answer.write_all(page)?)
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        // Xorshift.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A shell's command that ends once somebody listens at `port` (proc(5), "/proc/net/tcp").
pub fn until_listened(port: u16) -> String {
    format!("until grep -q ':{port:04X} .* 0A ' /proc/net/tcp /proc/net/tcp6 2>/dev/null; do usleep 10000; done")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_asks_gets_the_page() {
        let server = Server::start(1000).unwrap();
        let mut visitor = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
        visitor.write_all(b"GET / HTTP/1.0\r\nHost: here\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        visitor.read_to_end(&mut answer).unwrap();
        let start = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
        assert_eq!(checksum(&answer[start..]), server.checksum());
        assert_eq!(answer.len() - start, 1000);
    }
}
