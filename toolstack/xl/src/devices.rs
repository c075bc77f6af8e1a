//! `xl block-list` and `xl network-list`

use crate::cli::Named;
use ferroxen_domains::{Toolstack, nodes};
use ferroxen_words::DomId;
use ferroxen_xenstore::Store;

/// All backends are in Domain 0.
const BACKEND: u16 = 0;

/// `xl block-list`
pub fn disks(tools: &Toolstack, args: &Named) -> anyhow::Result<()> {
    println!(
        "{:<5} {:<3} {:<6} {:<5} {:<6} {:<8} {:<30}",
        "Vdev", "BE", "handle", "state", "evt-ch", "ring-ref", "BE-path"
    );
    for (domid, id) in each(tools, args, "vbd")? {
        let front = Front::new(tools, domid, "vbd", id);
        let (backend, state) = (BACKEND, front.number("state"));
        let (channel, ring) = (front.number("event-channel"), front.number("ring-ref"));
        println!(
            "{id:<5} {backend:<3} {domid:<6} {state:<5} {channel:<6} {ring:<8} {:<30}",
            front.noted("backend"),
            domid = domid.raw()
        );
    }
    Ok(())
}

/// `xl network-list`
pub fn cards(tools: &Toolstack, args: &Named) -> anyhow::Result<()> {
    println!(
        "{:<3} {:<2} {:<17} {:<6} {:<5} {:<6} {:>5}/{:<5} {:<30}",
        "Idx", "BE", "Mac Addr.", "handle", "state", "evt-ch", "tx-", "rx-ring-ref", "BE-path"
    );
    for (domid, id) in each(tools, args, "vif")? {
        let front = Front::new(tools, domid, "vif", id);
        let (backend, state) = (BACKEND, front.number("state"));
        let channel = front.number("event-channel");
        let (tx, rx) = (front.number("tx-ring-ref"), front.number("rx-ring-ref"));
        println!(
            "{id:<3} {backend:<2} {:<17} {id:>6} {state:>5} {channel:>6} {tx:>5}/{rx:<11} {:<30}",
            front.noted("mac"),
            front.noted("backend")
        );
    }
    Ok(())
}

/// The devices of a kind, of every domain named.
fn each(tools: &Toolstack, args: &Named, kind: &str) -> anyhow::Result<Vec<(DomId, u32)>> {
    let mut found = Vec::new();
    for word in &args.domains {
        let domid = crate::domain(tools, word)?;
        let names = tools
            .store
            .directory_opt(&format!("{}/device/{kind}", nodes::domain(domid)))?;
        let mut ids: Vec<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
        ids.sort_unstable();
        found.extend(ids.into_iter().map(|id| (domid, id)));
    }
    Ok(found)
}

/// What is known of a device: our own note, and the guest's directory, to which it may have written anything.
struct Front<'a> {
    tools: &'a Toolstack,
    note: String,
    path: String,
}

impl Front<'_> {
    fn new<'a>(tools: &'a Toolstack, domid: DomId, kind: &str, id: u32) -> Front<'a> {
        Front {
            tools,
            note: format!("{}/device/{kind}/{id}", nodes::libxl(domid)),
            path: nodes::frontend(domid, kind, id),
        }
    }

    /// What we noted ourselves.
    fn noted(&self, name: &str) -> String {
        self.tools
            .store
            .read_opt(&format!("{}/{name}", self.note))
            .ok()
            .flatten()
            .unwrap_or_default()
    }

    /// Printable, whatever the guest wrote.
    fn text(&self, name: &str) -> String {
        let value = self
            .tools
            .store
            .read_opt(&format!("{}/{name}", self.path))
            .ok()
            .flatten()
            .unwrap_or_default();
        value.chars().filter(|c| c.is_ascii_graphic()).collect()
    }

    /// -1 where there is none, as xl has it.
    fn number(&self, name: &str) -> i64 {
        self.text(name).parse().unwrap_or(-1)
    }
}
