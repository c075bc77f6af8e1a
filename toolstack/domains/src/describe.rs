//! A domain's configuration as JSON, under libxl's names and in libxl's order (`libxl_domain_config`): for people,
//! and for libxl's tools, which look for it.
//!
//! What libxl leaves out, because it was not written or is the default, is left out here too: `xl create -n` prints
//! the same as stock xl's, byte for byte (tests/stock holds what that one printed).

use crate::network;
use ferroxen_words::DomId;
use ferroxen_xlconfig::{
    Action, Bootloader, Channel, Connection, CpuList, CpuidRules, Disk, DiskAccess, DiskBackend, DiskFormat,
    DomainConfig, DomainType, Loaded, Screen, Share, TscMode, Value as Written, Vif, VifType,
};
use serde_json::ser::{Formatter, Serializer};
use serde_json::{Map, Value, json};
use std::io::{self, Write};
use std::num::NonZero;
use uuid::Uuid;

/// Values in the order in which they were put.
#[derive(Default)]
struct Record(Map<String, Value>);

impl Record {
    fn put(&mut self, key: &str, value: impl Into<Value>) {
        self.0.insert(key.to_owned(), value.into());
    }

    fn put_some(&mut self, key: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.put(key, value);
        }
    }
}

/// libxl's booleans that may also be neither are words.
fn truth(truth: bool) -> &'static str {
    if truth { "True" } else { "False" }
}

/// `libxl_domain_config`
pub fn config(loaded: &Loaded) -> Value {
    let config = &loaded.config;
    let mut whole = Record::default();
    whole.put("c_info", general(loaded));
    whole.put("b_info", build(loaded));
    if !config.disks.is_empty() {
        whole.put("disks", config.disks.iter().map(disk).collect::<Value>());
    }
    if !config.vifs.is_empty() {
        let nics = (0..).zip(&config.vifs).map(|(index, vif)| nic(index, vif));
        whole.put("nics", nics.collect::<Value>());
    }
    if let Some(of_config) = &config.screen {
        whole.put("vfbs", json!([screen(of_config)]));
        whole.put("vkbs", json!([{"devid": 0}]));
    }
    if !config.shares.is_empty() {
        whole.put("p9s", config.shares.iter().map(share).collect::<Value>());
    }
    if !config.channels.is_empty() {
        whole.put("channels", config.channels.iter().map(channel).collect::<Value>());
    }
    for (key, action) in [
        ("on_poweroff", config.on_poweroff),
        ("on_reboot", config.on_reboot),
        ("on_watchdog", config.on_watchdog),
        ("on_crash", config.on_crash),
        ("on_soft_reset", config.on_soft_reset),
    ] {
        whole.put_some(key, action_name(action));
    }
    Value::Object(whole.0)
}

/// Nothing for what libxl does unasked.
fn action_name(action: Action) -> Option<&'static str> {
    Some(match action {
        Action::Destroy => return None,
        Action::Restart => "restart",
        Action::RenameRestart => "restart_rename",
        Action::Preserve => "preserve",
        Action::CoredumpDestroy => "coredump_destroy",
        Action::CoredumpRestart => "coredump_restart",
        Action::SoftReset => "soft_reset",
    })
}

/// `libxl_domain_create_info`
fn general(loaded: &Loaded) -> Value {
    let config = &loaded.config;
    let mut info = Record::default();
    info.put("type", kind(config.kind));
    info.put("name", config.name.clone());
    info.put_some("domid", config.domid);
    info.put_some("uuid", config.uuid.map(|uuid| uuid.to_string()));
    info.put_some("pool_name", config.pool.clone());
    info.put("run_hotplug_scripts", truth(true));
    info.put_some("driver_domain", flag(loaded, "driver_domain"));
    info.put_some("xend_suspend_evtchn_compat", flag(loaded, "xend_suspend_evtchn_compat"));
    Value::Object(info.0)
}

fn kind(kind: DomainType) -> &'static str {
    match kind {
        DomainType::Pv => "pv",
        DomainType::Pvh => "pvh",
        DomainType::Hvm => "hvm",
    }
}

/// `libxl_domain_build_info`
fn build(loaded: &Loaded) -> Value {
    let config = &loaded.config;
    let is_written = |key: &str| loaded.written(key).is_some();
    let mut info = Record::default();
    if is_written("vcpus") || is_written("maxvcpus") {
        info.put("max_vcpus", config.maxvcpus);
        info.put("avail_vcpus", (0..config.vcpus).collect::<Value>());
    }
    affinities(loaded, &mut info);
    info.put_some(
        "tsc_mode",
        match config.tsc_mode {
            TscMode::Default => None,
            TscMode::AlwaysEmulate => Some("always_emulate"),
            TscMode::Native => Some("native"),
        },
    );
    if is_written("memory") || is_written("maxmem") {
        info.put("max_memkb", config.maxmem_mib * 1024);
    }
    if is_written("memory") {
        info.put("target_memkb", config.memory_mib * 1024);
    }
    if config.rtc_timeoffset != 0 {
        info.put("rtc_timeoffset", config.rtc_timeoffset);
    }
    info.put_some("localtime", is_written("localtime").then(|| truth(config.localtime)));
    info.put_some("disable_migrate", flag(loaded, "nomigrate"));
    if !config.cpuid.is_empty() {
        info.put("cpuid", cpuid(&config.cpuid));
    }
    info.put_some("max_grant_frames", config.max_grant_frames);
    info.put_some("max_maptrack_frames", config.max_maptrack_frames);
    info.put_some("max_grant_version", config.max_grant_version);
    let mut sched = Record::default();
    sched.put_some("weight", config.cpu_weight);
    sched.put_some("cap", config.cap);
    info.put("sched_params", Value::Object(sched.0));
    rights(config, &mut info);
    info.put("claim_mode", truth(true));
    if is_written("max_event_channels") {
        info.put("event_channels", config.max_event_channels);
    }
    info.put_some("kernel", config.kernel.as_ref().map(|path| path.display().to_string()));
    info.put_some("cmdline", config.cmdline.clone());
    info.put_some(
        "ramdisk",
        config.ramdisk.as_ref().map(|path| path.display().to_string()),
    );
    if let Some(Bootloader { program, args }) = &config.bootloader {
        info.put("bootloader", program.clone());
        info.put_some("bootloader_args", (!args.is_empty()).then(|| args.clone()));
    }
    let mut of_kind = Record::default();
    of_kind.put_some("e820_host", flag(loaded, "e820_host"));
    info.put(&format!("type.{}", kind(config.kind)), Value::Object(of_kind.0));
    info.put("arch_arm", json!({}));
    let mut arch = Record::default();
    arch.put_some("msr_relaxed", flag(loaded, "msr_relaxed"));
    info.put("arch_x86", Value::Object(arch.0));
    Value::Object(info.0)
}

/// A setting that is only passed on.
fn flag(loaded: &Loaded, key: &str) -> Option<&'static str> {
    match loaded.written(key)? {
        Written::Number(number) => Some(truth(*number != 0)),
        Written::Bool(is) => Some(truth(*is)),
        _ => None,
    }
}

/// What of the host it may use.
fn rights(config: &DomainConfig, info: &mut Record) {
    let (ports, memory) = (config.ioports.iter(), config.iomem.iter());
    let ports = ports.map(|ports| json!({"first": ports.first, "number": u32::from(ports.last - ports.first) + 1}));
    let memory = memory.map(|memory| json!({"start": memory.first, "number": memory.pages}));
    for (name, list) in [
        ("ioports", ports.collect::<Vec<_>>()),
        ("irqs", config.irqs.iter().map(|irq| json!(irq)).collect()),
        ("iomem", memory.collect()),
    ] {
        info.put_some(name, (!list.is_empty()).then_some(list));
    }
}

/// A record for each leaf, with its registers bit by bit.
fn cpuid(rules: &CpuidRules) -> Vec<Value> {
    let mut leaves: Vec<((u32, Option<u32>), Record)> = Vec::new();
    for rule in rules.iter() {
        let place = (rule.leaf, rule.subleaf);
        let at = leaves.iter().position(|(known, _)| *known == place).unwrap_or_else(|| {
            let mut record = Record::default();
            record.put("leaf", rule.leaf);
            record.put_some("subleaf", rule.subleaf);
            leaves.push((place, record));
            leaves.len() - 1
        });
        let letter = |bit: u32| match [rule.ones, rule.zeroes, rule.host].map(|mask| mask >> bit & 1 != 0) {
            [true, ..] => '1',
            [_, true, _] => '0',
            [.., true] => 'k',
            _ => 'x',
        };
        let bits: String = (0..32).rev().map(letter).collect();
        leaves[at].1.put(rule.register.name(), bits);
    }
    leaves.into_iter().map(|(_, record)| Value::Object(record.0)).collect()
}

fn affinities(loaded: &Loaded, info: &mut Record) {
    let config = &loaded.config;
    let mut by_hand = false;
    for (key, name, lists) in [
        ("cpus", "vcpu_hard_affinity", &config.cpus),
        ("cpus_soft", "vcpu_soft_affinity", &config.cpus_soft),
    ] {
        let is_list = matches!(loaded.written(key), Some(Written::List(_)));
        by_hand |= is_list || (key == "cpus_soft" && !lists.is_empty());
        let list_of = |vcpu: usize| match is_list {
            true => lists.get(vcpu),
            false => lists.first(),
        };
        let lists: Vec<&CpuList> = (0..config.maxvcpus as usize).map_while(list_of).collect();
        if lists.iter().any(|list| **list != CpuList::All) {
            let of_vcpus: Vec<Value> = lists.into_iter().map(cpus).collect();
            info.put(name, of_vcpus);
        }
    }
    if by_hand {
        info.put("numa_placement", truth(false));
    }
}

/// More than any host is likely to have: libxl lists what it knows the host to have.
const ALL_CPUS: u32 = 64;

fn cpus(list: &CpuList) -> Value {
    match list {
        CpuList::All => (0..ALL_CPUS).collect(),
        CpuList::These(cpus) => cpus.iter().copied().collect(),
    }
}

/// `libxl_device_disk`
pub fn disk(disk: &Disk) -> Value {
    let mut info = Record::default();
    info.put_some("backend_domname", disk.backend.clone());
    info.put_some("pdev_path", disk.target.as_ref().map(|path| path.display().to_string()));
    info.put("vdev", disk.vdev.name.clone());
    info.put_some(
        "backend",
        disk.backend_type.map(|kind| match kind {
            DiskBackend::Phy => "phy",
            DiskBackend::Tap => "tap",
            DiskBackend::Qdisk => "qdisk",
        }),
    );
    info.put(
        "format",
        match disk.format {
            DiskFormat::Raw | DiskFormat::File | DiskFormat::Phy => "raw",
            DiskFormat::Other(format) => format,
            DiskFormat::Empty => "empty",
        },
    );
    info.put_some("script", disk.script.clone());
    if disk.is_cdrom {
        info.put("removable", 1);
    }
    if disk.access != DiskAccess::ReadOnly {
        info.put("readwrite", 1);
    }
    if disk.is_cdrom {
        info.put("is_cdrom", 1);
    }
    if disk.direct_io_safe {
        info.put("direct_io_safe", true);
    }
    info.put_some("discard_enable", disk.discard.map(truth));
    // Ours: libxl passes them over.
    info.put_some("rate_bytes_per_second", disk.limits.bytes.map(NonZero::get));
    info.put_some("requests_per_second", disk.limits.requests.map(NonZero::get));
    Value::Object(info.0)
}

/// `libxl_device_nic`
pub fn nic(index: u32, vif: &Vif) -> Value {
    let mut info = Record::default();
    info.put_some("backend_domname", vif.backend.clone());
    info.put("devid", vif.devid.unwrap_or(index));
    info.put_some("mtu", vif.mtu);
    info.put_some("model", vif.model.clone());
    info.put_some("mac", vif.mac.map(|mac| mac.to_string()));
    info.put_some("ip", (!vif.ip.is_empty()).then(|| vif.ip.join(" ")));
    info.put_some("bridge", vif.bridge.clone());
    info.put_some("ifname", vif.vifname.clone());
    info.put_some("script", vif.script.clone());
    info.put_some("nictype", (vif.kind == VifType::Ioemu).then_some("vif_ioemu"));
    info.put_some("rate_bytes_per_interval", vif.rate.map(|rate| rate.bytes));
    info.put_some("rate_interval_usecs", vif.rate.map(|rate| rate.interval_us));
    info.put_some("gatewaydev", vif.gatewaydev.clone());
    Value::Object(info.0)
}

/// `libxl_device_vfb`
fn screen(screen: &Screen) -> Value {
    let mut vnc = Record::default();
    vnc.put_some("enable", screen.vnc.map(truth));
    vnc.put_some("listen", screen.listen.map(|address| address.to_string()));
    vnc.put_some("passwd", screen.password.clone());
    vnc.put_some("display", screen.display.filter(|number| *number != 0));
    vnc.put_some("findunused", screen.unused.map(truth));
    let mut info = Record::default();
    info.put("devid", 0);
    info.put("vnc", Value::Object(vnc.0));
    info.put("sdl", json!({}));
    info.put_some("keymap", screen.keymap.clone());
    Value::Object(info.0)
}

/// `libxl_device_p9`
fn share(share: &Share) -> Value {
    json!({
        "tag": share.tag,
        "path": share.path.display().to_string(),
        "security_model": "none",
    })
}

/// `libxl_device_channel`. Without a number: stock xl 4.17 gives the first one 0, which is the console's, and then refuses it.
fn channel(channel: &Channel) -> Value {
    let (kind, ends) = match &channel.connection {
        Connection::Pty => ("connection.pty", json!({})),
        Connection::Socket(path) => ("connection.socket", json!({"path": path.display().to_string()})),
    };
    json!({"name": channel.name, kind: ends})
}

/// What a domain has got that its configuration leaves open, as libxl tells it of one that is there.
pub fn settle(value: &mut Value, uuid: &Uuid, config: &DomainConfig) {
    let build = &mut value["b_info"];
    put_after(build, "target_memkb", "video_memkb", 0);
    if let Some(arch) = build["arch_x86"].as_object_mut() {
        arch.entry("msr_relaxed").or_insert_with(|| truth(false).into());
    }
    for disk in value
        .get_mut("disks")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        disk["colo_restore_enable"] = truth(false).into();
    }
    let nics = value
        .get_mut("nics")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten();
    for ((index, vif), nic) in (0..).zip(&config.vifs).zip(nics) {
        let id = vif.devid.unwrap_or(index);
        nic["mac"] = network::mac_of(vif, uuid, id).to_string().into();
        nic["bridge"] = vif.bridge.as_deref().unwrap_or(network::DEFAULT_BRIDGE).into();
        nic["nictype"] = "vif".into();
    }
}

/// Adds a domain's number, which is saved with it only if it shall have that again.
pub fn number(value: &mut Value, domid: DomId) {
    put_after(&mut value["c_info"], "name", "domid", domid.raw());
}

/// Puts `key` where libxl has it: behind `before`, or last without that.
fn put_after(record: &mut Value, before: &str, key: &str, value: impl Into<Value>) {
    let Some(record) = record.as_object_mut() else { return };
    let at = record.keys().position(|key| key == before);
    record.shift_insert(at.map_or(record.len(), |at| at + 1), key.to_owned(), value.into());
}

/// As libxl's JSON library writes it: four spaces, and an empty line in what is empty.
pub fn pretty(value: &Value) -> String {
    let mut bytes = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut bytes, Yajl::default());
    // A Vec takes any bytes, and all keys are strings.
    let _ = serde::Serialize::serialize(value, &mut serializer);
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    text.push('\n');
    text
}

/// The layout of yajl's "beautify".
#[derive(Default)]
struct Yajl {
    depth: usize,
}

impl Yajl {
    fn begin<W: Write + ?Sized>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        writer.write_all(bracket)?;
        writer.write_all(b"\n")
    }

    fn end<W: Write + ?Sized>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        writer.write_all(b"\n")?;
        self.indent(writer)?;
        writer.write_all(bracket)
    }

    fn next<W: Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(b",\n")?;
        }
        self.indent(writer)
    }

    fn indent<W: Write + ?Sized>(&self, writer: &mut W) -> io::Result<()> {
        (0..self.depth).try_for_each(|_| writer.write_all(b"    "))
    }
}

impl Formatter for Yajl {
    fn begin_array<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.begin(writer, b"[")
    }

    fn end_array<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.end(writer, b"]")
    }

    fn begin_array_value<W: Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.begin(writer, b"{")
    }

    fn end_object<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.end(writer, b"}")
    }

    fn begin_object_key<W: Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object_value<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferroxen_xlconfig::Source;
    use std::path::Path;

    /// Each `.cfg` in tests/stock stands beside what stock xl 4.17's `create -n` printed of it on Xen.
    #[test]
    fn plain_files_read_as_stock_xl_reads_them() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stock");
        let mut compared = 0;
        for entry in std::fs::read_dir(directory).expect("the files are there").flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|kind| kind != "cfg") {
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("is text");
            let stock = std::fs::read_to_string(path.with_extension("json")).expect("is text");
            let mut loaded = ferroxen_xlconfig::parse(Source::new("stock.cfg", text), &[])
                .unwrap_or_else(|problem| panic!("{}: {problem}", path.display()));
            // Stock xl makes one up each time.
            loaded.config.uuid.get_or_insert(Uuid::nil());
            assert_eq!(pretty(&config(&loaded)), stock, "{}", path.display());
            compared += 1;
        }
        assert!(compared >= 25, "only {compared} files");
    }

    /// Under the names and in the order of libxl's structures.
    #[test]
    fn rights_and_the_bootloader_are_shown() {
        let text = "name = 'web'\nuuid = '6a4b1c9e-0d0f-4a63-9a53-0f8a4cb5fd6e'\nbootloader = 'pygrub'\n\
                    bootloader_args = ['--entry=1']\nioports = ['2f8-2ff', '60']\niomem = ['fed00,1']\nirqs = [3]\n\
                    max_grant_version = 1\ndriver_domain = 1\nxend_suspend_evtchn_compat = 1\n\
                    cpuid = 'host,cx16=0,sse3=k,avx2=1,tm=x'\n";
        let loaded = ferroxen_xlconfig::parse(Source::new("web.cfg", text), &[]);
        insta::assert_snapshot!(pretty(&config(&loaded.unwrap_or_else(|problem| panic!("{problem}")))));
    }

    #[test]
    fn of_a_domain_that_is_there_libxl_tells_more() {
        let text = "name = 'web'\nmemory = 64\ndisk = ['/web.img,raw,xvda,rw']\nvif = ['mac=00:16:3e:00:00:01']\n";
        let loaded = ferroxen_xlconfig::parse(Source::new("web.cfg", text), &[]);
        let loaded = loaded.unwrap_or_else(|problem| panic!("{problem}"));
        let mut value = config(&loaded);
        settle(&mut value, &Uuid::nil(), &loaded.config);
        number(&mut value, DomId::new(7).unwrap());
        insta::assert_snapshot!(pretty(&value));
    }
}
