//! CONTROL: questions and orders for the daemon itself, from Domain 0 only.

use super::store::{Successor, World, Xenstore};
use ferroxen_xenstore_wire::{ErrorCode, PAYLOAD_MAX, path, strings};
use std::fmt::Write;

const COMMANDS: &str = "check help live-update log logfile memreport print quota values";

impl Xenstore {
    pub(super) fn control(&mut self, payload: &[u8], world: &mut dyn World) -> Result<Vec<u8>, ErrorCode> {
        let words: Vec<&str> = strings(payload)
            .map(std::str::from_utf8)
            .collect::<Result<_, _>>()
            .map_err(|_| ErrorCode::EINVAL)?;
        if let ["values", directory, below, after] = words.as_slice() {
            return self.values(directory, below, after);
        }
        let text = match words.as_slice() {
            ["help"] => format!("Supported commands:\n{}\n", COMMANDS.replace(' ', "\n")),
            ["check"] => match self.audit() {
                Ok(()) => "OK".into(),
                Err(what) => {
                    world.note(&format!("check: {what}"));
                    what
                }
            },
            ["log", "on"] => {
                world.set_logging(true);
                "OK".into()
            }
            ["log", "off"] => {
                world.set_logging(false);
                "OK".into()
            }
            ["logfile", path] => said(world.set_log_file(path)),
            ["live-update", words @ ..] => self.live_update(words, world)?,
            ["print", line] => {
                world.note(line);
                "OK".into()
            }
            ["memreport"] => self.report(),
            // For the log, as with C's xenstored; nobody's file is written to.
            ["memreport", _] => {
                world.note(&self.report());
                "OK".into()
            }
            ["quota"] => self
                .limits
                .list()
                .iter()
                .fold(String::new(), |mut text, (name, value)| {
                    // Writing to a String cannot fail.
                    let _ = writeln!(text, "{name:18}: {value:8}");
                    text
                }),
            ["quota", "set", name, value] => {
                let limit = self.limits.get_mut(name).ok_or(ErrorCode::EINVAL)?;
                *limit = value.parse().map_err(|_| ErrorCode::EINVAL)?;
                "OK".into()
            }
            ["quota", domid] => self.usage(domid.parse().map_err(|_| ErrorCode::EINVAL)?),
            _ => return Err(ErrorCode::EINVAL),
        };
        Ok([text.as_bytes(), &[0]].concat())
    }

    /// The steps of `xenstore-control live-update` (docs/misc/xenstore.txt); a text that is not `OK` says what is wrong,
    /// and after `BUSY` it asks again.
    fn live_update(&mut self, words: &[&str], world: &mut dyn World) -> Result<String, ErrorCode> {
        Ok(match words {
            ["-f", program] => said(world.check_successor(program).map(|()| {
                self.successor.program = Some((*program).to_owned());
            })),
            ["-c", options] => {
                self.successor.options = Some((*options).to_owned());
                "OK".into()
            }
            ["-a"] => {
                self.successor = Successor::default();
                "OK".into()
            }
            ["-s", rest @ ..] => match self.has_open_transactions() && !rest.contains(&"-F") {
                true => "BUSY".into(),
                false => {
                    world.succeed(std::mem::take(&mut self.successor));
                    "OK".into()
                }
            },
            _ => return Err(ErrorCode::EINVAL),
        })
    }

    /// What each child of `directory` has at `below`: its name, then `+` with the value, or `-`; an empty name after the
    /// last one. What does not fit is for whoever asks again, for those after the last name that it got.
    ///
    /// So the names of all domains are one question, and not as many as there are domains.
    fn values(&self, directory: &str, below: &str, after: &str) -> Result<Vec<u8>, ErrorCode> {
        let node = self.tree.get(directory).ok_or(ErrorCode::ENOENT)?;
        let mut answer = Vec::new();
        for (name, child) in node.children_after(after) {
            let node = path::components(below).try_fold(child, |node, name| node.child(name));
            let (sign, value) = node.map_or((b'-', &[][..]), |node| (b'+', &*node.value));
            if value.contains(&0) {
                return Err(ErrorCode::EINVAL);
            }
            let before = answer.len();
            for part in [name.as_bytes(), &[0, sign], value, &[0]] {
                answer.extend_from_slice(part);
            }
            // The end's mark has to fit, too.
            if answer.len() >= PAYLOAD_MAX {
                answer.truncate(before);
                return if before == 0 { Err(ErrorCode::E2BIG) } else { Ok(answer) };
            }
        }
        answer.push(0);
        Ok(answer)
    }

    fn report(&self) -> String {
        format!(
            "nodes: {}\nwatches: {}\nconnections: {}\nrequests: {}\n",
            self.tree.len(),
            self.watches.len(),
            self.connection_count(),
            self.requests
        )
    }

    fn usage(&self, domid: u16) -> String {
        let (watches, transactions, waiting) = self.usage_of(domid);
        format!(
            "Domain {domid}:\nnodes: {}\nwatches: {watches}\ntransactions: {transactions}\noutstanding: {waiting}\n",
            self.tree.owned_by(domid),
        )
    }
}

fn said(result: Result<(), String>) -> String {
    match result {
        Ok(()) => "OK".into(),
        Err(why) => why,
    }
}
