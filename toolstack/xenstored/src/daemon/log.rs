//! The daemon's log: standard error, or a file.

use ferroxen_xenstore_wire::Message;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// Where lines go, and whether requests are among them.
#[derive(Debug)]
pub struct Log {
    file: Option<File>,
    /// Whether every request is noted.
    pub requests: bool,
}

impl Log {
    /// Logs to a file, or to standard error.
    pub fn open(path: Option<&Path>, requests: bool) -> io::Result<Log> {
        let file = path
            .map(|path| OpenOptions::new().create(true).append(true).open(path))
            .transpose()?;
        Ok(Log { file, requests })
    }

    /// Notes a line.
    pub fn line(&mut self, text: &str) {
        // A log that cannot be written must not stop the daemon.
        let _ = match &mut self.file {
            Some(file) => writeln!(file, "{text}"),
            None => writeln!(io::stderr(), "xenstored: {text}"),
        };
    }

    /// Notes a message, if requests are noted.
    pub fn message(&mut self, who: &str, direction: &str, message: &Message) {
        if self.requests {
            let payload = message.payload.escape_ascii();
            let header = message.header;
            self.line(&format!(
                "{who} {direction} {} tx {} \"{payload}\"",
                header.kind, header.tx_id
            ));
        }
    }
}
