//! Disks, network cards and channels of running domains: listing, attaching, detaching.

use crate::cli::Some_;
use crate::json::{self, Format};
use crate::tune::Amount;
use anyhow::{Context, bail};
use clap::Args;
use ferroxen_domains::device::Manner;
use ferroxen_domains::{Toolstack, nodes};
use ferroxen_words::DomId;
use ferroxen_xenstore::Store;
use ferroxen_xlconfig::{Disk, Mac, Value, VirtualDisk, parse_disk, parse_vif};
use serde_json::json;
use std::fmt::Write as _;
use std::process::ExitCode;
use uuid::Uuid;

#[derive(Debug, Args)]
#[command(
    after_help = "The parts are those of xl-disk-configuration(5), in one word or in several:\n  \
                        xl block-attach web 'format=raw, vdev=xvdb, access=rw, target=/srv/data.img'\n  \
                        xl block-attach web file:/srv/data.img xvdb w"
)]
pub struct BlockAttach {
    /// A domain, by name or number
    #[arg(value_name = "Domain")]
    pub domain: String,
    /// What the disk is
    #[arg(value_name = "disk-spec-component(s)", required = true)]
    pub parts: Vec<String>,
}

#[derive(Debug, Args)]
pub struct BlockDetach {
    /// A domain, by name or number
    #[arg(value_name = "Domain")]
    pub domain: String,
    /// The disk: `xvdb`, or its number
    #[arg(value_name = "DevId")]
    pub device: String,
    /// Do not wait for the domain to release the device
    #[arg(short = 'f', long = "force")]
    pub force: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "A disk can only grow. Without a size, the guest learns of the size that an image has by now;\n\
                        a device (`lvextend`) tells by itself. The guest sees it at its next request to the disk."
)]
pub struct BlockResize {
    /// A domain, by name or number
    #[arg(value_name = "Domain")]
    pub domain: String,
    /// The disk: `xvdb`, or its number
    #[arg(value_name = "DevId")]
    pub device: String,
    /// The image's new size: MiB, or with a suffix b, k, m, g or t
    #[arg(value_name = "Size")]
    pub size: Option<Amount>,
}

#[derive(Debug, Args)]
#[command(after_help = "The parts are those of xl-network-configuration(5):\n  \
                        xl network-attach web bridge=xenbr1 mac=00:16:3e:12:34:56")]
pub struct NetworkAttach {
    /// A domain, by name or number
    #[arg(value_name = "Domain")]
    pub domain: String,
    /// What the card is; all has defaults
    #[arg(value_name = "KEY=VALUE")]
    pub parts: Vec<String>,
}

#[derive(Debug, Args)]
pub struct NetworkDetach {
    /// A domain, by name or number
    #[arg(value_name = "Domain")]
    pub domain: String,
    /// The card: its number, or its address
    #[arg(value_name = "DevId|mac")]
    pub device: String,
    /// Do not wait for the domain to release the device
    #[arg(short = 'f', long = "force")]
    pub force: bool,
}

/// `xl block-list`
pub fn disks(tools: &Toolstack, args: &Some_) -> anyhow::Result<ExitCode> {
    let mut text = format!(
        "{:<5} {:<3} {:<6} {:<5} {:<6} {:<8} {:<30}\n",
        "Vdev", "BE", "handle", "state", "evt-ch", "ring-ref", "BE-path"
    );
    let (domids, code) = crate::chosen(tools, &args.domains)?;
    let mut records = Vec::new();
    for (domid, id) in each(tools, &domids, "vbd")? {
        let front = Front::new(tools, domid, "vbd", id);
        let (state, domid) = (front.number("state"), domid.raw());
        let (channel, ring) = (front.number("event-channel"), front.number("ring-ref"));
        let path = front.noted("backend");
        let server = server(&path);
        records.push(json!({
            "vdev": id, "name": front.noted("dev"), "backend_domid": server, "domid": domid, "state": state,
            "event_channel": channel, "ring_ref": ring, "backend_path": path, "mode": front.noted("mode"),
            "target": front.noted("params"),
        }));
        let _ = writeln!(
            text,
            "{id:<5} {server:<3} {domid:<6} {state:<5} {channel:<6} {ring:<8} {path:<30}"
        );
    }
    print(&text, records, args.format)?;
    Ok(code)
}

/// The domain that a backend is in.
fn server(path: &str) -> u16 {
    nodes::domain_of(path).unwrap_or(DomId::DOM0).raw()
}

fn print(table: &str, records: Vec<serde_json::Value>, format: Format) -> anyhow::Result<()> {
    match format.json {
        true => json::print(records),
        false => crate::show(table),
    }
}

/// `xl network-list`
pub fn cards(tools: &Toolstack, args: &Some_) -> anyhow::Result<ExitCode> {
    let mut text = format!(
        "{:<3} {:<2} {:<17} {:<6} {:<5} {:<6} {:>5}/{:<5} {:<30}\n",
        "Idx", "BE", "Mac Addr.", "handle", "state", "evt-ch", "tx-", "rx-ring-ref", "BE-path"
    );
    let (domids, code) = crate::chosen(tools, &args.domains)?;
    let mut records = Vec::new();
    for (domid, id) in each(tools, &domids, "vif")? {
        let front = Front::new(tools, domid, "vif", id);
        let (state, channel) = (front.number("state"), front.number("event-channel"));
        let (tx, rx) = (front.number("tx-ring-ref"), front.number("rx-ring-ref"));
        let (mac, path) = (front.noted("mac"), front.noted("backend"));
        let server = server(&path);
        records.push(json!({
            "devid": id, "backend_domid": server, "domid": domid.raw(), "mac": mac, "state": state,
            "event_channel": channel, "tx_ring_ref": tx, "rx_ring_ref": rx, "backend_path": path,
            "bridge": front.noted("bridge"),
        }));
        let _ = writeln!(
            text,
            "{id:<3} {server:<2} {mac:<17}{id:>6} {state:>5} {channel:>6} {tx:>5}/{rx:<11} {path:<30}"
        );
    }
    print(&text, records, args.format)?;
    Ok(code)
}

/// `xl channel-list`
pub fn channels(tools: &Toolstack, args: &Some_) -> anyhow::Result<ExitCode> {
    let mut text = format!(
        "{:<3} {:<2} {:<5} {:<6} {:>8} {:<10} {:<30}\n",
        "Idx", "BE", "state", "evt-ch", "ring-ref", "connection", ""
    );
    let (domids, code) = crate::chosen(tools, &args.domains)?;
    let mut records = Vec::new();
    for (domid, id) in each(tools, &domids, "console")? {
        let front = Front::new(tools, domid, "console", id);
        let name = front.noted("name");
        // A console is a channel if it has a name.
        if name.is_empty() {
            continue;
        }
        let (state, channel, ring) = (front.number("state"), front.number("port"), front.number("ring-ref"));
        let (connection, path) = (front.noted("connection"), front.noted("backend"));
        let server = server(&path);
        let tty = front.text("tty");
        let end = if connection == "pty" { tty } else { front.noted("path") };
        records.push(json!({
            "devid": id, "backend_domid": server, "domid": domid.raw(), "name": name, "state": state,
            "event_channel": channel, "ring_ref": ring, "connection": connection, "path": end, "backend_path": path,
        }));
        let _ = write!(
            text,
            "{id:<3} {server:<2} {state:<5} {channel:<6} {ring:<8} {connection:<10} "
        );
        // Of a socket stock xl does not tell the path.
        let _ = match connection.as_str() {
            "pty" => writeln!(text, "{end:<30} "),
            _ => writeln!(text),
        };
    }
    print(&text, records, args.format)?;
    Ok(code)
}

/// `xl block-attach`
pub fn attach_disk(args: &BlockAttach, dry: bool) -> anyhow::Result<()> {
    let spec = args.parts.join(",");
    let disk = parse_disk(&spec).map_err(|problem| anyhow::anyhow!("{problem}"))?;
    if dry {
        return crate::show(&json::disk(&disk));
    }
    let tools = crate::tools()?;
    let domid = guest(&tools, &args.domain)?;
    tools.attach_disk(domid, &disk)?;
    keep(&tools, domid, "disk", |items| items.push(Value::Text(spec)))
}

/// `xl block-resize`
pub fn resize_disk(tools: &Toolstack, args: &BlockResize) -> anyhow::Result<()> {
    let domid = guest(tools, &args.domain)?;
    let number = VirtualDisk::parse(&args.device).map_err(anyhow::Error::msg)?.number;
    let size = args.size.map(|size| size.kib() * 1024);
    Ok(tools.grow_disk(domid, number, size)?)
}

/// `xl block-detach`
pub fn detach_disk(tools: &Toolstack, args: &BlockDetach) -> anyhow::Result<()> {
    let domid = guest(tools, &args.domain)?;
    let number = VirtualDisk::parse(&args.device).map_err(anyhow::Error::msg)?.number;
    if !exists(tools, domid, "vbd", number)? {
        bail!("Device {} not connected.", args.device);
    }
    tools.detach(domid, "vbd", number, manner(args.force))?;
    keep(tools, domid, "disk", |items| {
        items.retain(|item| disk_of(item).is_none_or(|disk| disk.vdev.number != number))
    })
}

fn disk_of(item: &Value) -> Option<Disk> {
    match item {
        Value::Text(spec) => parse_disk(spec).ok(),
        _ => None,
    }
}

/// `xl network-attach`
pub fn attach_card(args: &NetworkAttach, dry: bool) -> anyhow::Result<()> {
    let spec = args.parts.join(",");
    let vif = parse_vif(&spec).map_err(|problem| anyhow::anyhow!("{problem}"))?;
    if dry {
        return crate::show(&json::nic(&vif));
    }
    let tools = crate::tools()?;
    let domid = guest(&tools, &args.domain)?;
    tools.attach_vif(domid, &vif)?;
    keep(&tools, domid, "vif", |items| items.push(Value::Text(spec)))
}

/// `xl network-detach`
pub fn detach_card(tools: &Toolstack, args: &NetworkDetach) -> anyhow::Result<()> {
    let domid = guest(tools, &args.domain)?;
    let ids: Vec<u32> = each(tools, &[domid], "vif")?.into_iter().map(|(_, id)| id).collect();
    let has_mac = |id: &u32| Some(Front::new(tools, domid, "vif", *id).noted("mac")) == mac_text(&args.device);
    let number = args.device.parse().ok();
    let Some(at) = ids.iter().position(|id| Some(*id) == number || has_mac(id)) else {
        bail!("Unknown device {}.", args.device);
    };
    tools.detach(domid, "vif", ids[at], manner(args.force))?;
    keep(tools, domid, "vif", |items| {
        if at < items.len() {
            items.remove(at);
        }
    })
}

fn mac_text(word: &str) -> Option<String> {
    word.parse::<Mac>().ok().map(|mac| mac.to_string())
}

fn manner(force: bool) -> Manner {
    match force {
        true => Manner::ByForce,
        false => Manner::Asking,
    }
}

/// A domain that can have devices of ours.
fn guest(tools: &Toolstack, word: &str) -> anyhow::Result<DomId> {
    let domid = crate::domain(tools, word)?;
    if domid == DomId::DOM0 {
        bail!("Domain-0 has the host's own devices");
    }
    Ok(domid)
}

fn exists(tools: &Toolstack, domid: DomId, kind: &str, id: u32) -> anyhow::Result<bool> {
    Ok(nodes::serving(&tools.store, domid, kind, id)?.is_some())
}

/// Lets a change of a domain's devices outlive its reboot.
fn keep(tools: &Toolstack, domid: DomId, key: &str, change: impl FnOnce(&mut Vec<Value>)) -> anyhow::Result<()> {
    let info = tools.hypervisor.domain(domid)?.context("the domain has gone")?;
    // One that another toolstack has started has its configuration elsewhere.
    if let Some(loaded) = tools.keep.load(domid, &Uuid::from_bytes(info.handle)) {
        let changed = loaded
            .with_list(key, change)
            .map_err(|problem| anyhow::anyhow!("{problem}"))?;
        tools.keep.save(domid, &changed)?;
    }
    Ok(())
}

/// The devices of a kind, of every domain named.
fn each(tools: &Toolstack, domids: &[DomId], kind: &str) -> anyhow::Result<Vec<(DomId, u32)>> {
    let mut found = Vec::new();
    for domid in domids {
        let names = tools.store.directory_opt(&nodes::notes(*domid, kind))?;
        let mut ids: Vec<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
        ids.sort_unstable();
        found.extend(ids.into_iter().map(|id| (*domid, id)));
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
            note: nodes::note(domid, kind, &id.to_string()),
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
