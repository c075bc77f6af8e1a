//! From libxl's JSON back to a configuration: what a saved domain brings along, whoever saved it.
//!
//! The counterpart of [`describe`](crate::describe), which writes the same names.

use crate::error::{Error, Result};
use ferroxen_xlconfig::{Loaded, Value as Setting, from_values};
use serde_json::{Map, Value};

const ACTIONS: [&str; 5] = ["on_poweroff", "on_reboot", "on_watchdog", "on_crash", "on_soft_reset"];

/// Reads `libxl_domain_config`. Of what it has and we have no setting for, the names come beside it.
pub fn config(json: &str) -> Result<(Loaded, Vec<String>)> {
    let wrong = |why: String| Error::new("reading the saved configuration", why);
    let whole: Value = serde_json::from_str(json).map_err(|error| wrong(error.to_string()))?;
    let whole = whole
        .as_object()
        .ok_or_else(|| wrong("it is no JSON object".to_owned()))?;
    let mut found = Found::default();
    for (key, value) in whole {
        match (key.as_str(), value) {
            ("c_info", Value::Object(info)) => found.general(info),
            ("b_info", Value::Object(info)) => found.build(info),
            ("disks", Value::Array(disks)) => found.devices("disk", disks, disk),
            ("nics", Value::Array(nics)) => found.devices("vif", nics, nic),
            ("vfbs", Value::Array(screens)) => found.devices("vfb", screens, screen),
            // One comes with each screen.
            ("vkbs", Value::Array(_)) => {}
            ("p9s", Value::Array(shares)) => found.devices("p9", shares, share),
            ("channels", Value::Array(channels)) => found.devices("channel", channels, channel),
            (key, Value::String(_)) if ACTIONS.contains(&key) => {}
            _ => found.strange(key, value),
        }
    }
    for key in ACTIONS {
        // libxl writes `_` where files have `-`, and leaves out what it does unasked.
        let action = whole.get(key).and_then(Value::as_str).unwrap_or("destroy");
        let action = action.replace("restart_rename", "rename_restart").replace('_', "-");
        found.set(key, Setting::Text(action));
    }
    let mut loaded =
        from_values("the saved configuration", found.settings).map_err(|problem| wrong(problem.to_string()))?;
    loaded.config.domid = found.domid;
    Ok((loaded, found.strange))
}

#[derive(Default)]
struct Found {
    settings: Vec<(String, Setting)>,
    domid: Option<u16>,
    strange: Vec<String>,
}

impl Found {
    fn set(&mut self, key: &str, value: Setting) {
        self.settings.push((key.to_owned(), value));
    }

    /// Notes what we have no setting for, if it asks for something.
    fn strange(&mut self, key: &str, value: &Value) {
        let asks = match value {
            Value::Null => false,
            Value::Bool(truth) => *truth,
            Value::Number(number) => number.as_i64() != Some(0),
            Value::String(text) => !matches!(text.as_str(), "" | "False" | "unknown" | "none" | "default"),
            Value::Array(items) => !items.is_empty(),
            Value::Object(items) => !items.is_empty(),
        };
        if asks {
            self.strange.push(key.to_owned());
        }
    }

    fn general(&mut self, info: &Map<String, Value>) {
        for (key, value) in info {
            match (key.as_str(), scalar(value)) {
                ("name" | "uuid" | "type", Some(value)) => self.set(key, value),
                ("pool_name", Some(value)) => self.set("pool", value),
                ("run_hotplug_scripts", _) => {}
                // Zero is none, and so are those that no domain can have.
                ("domid", _) => {
                    self.domid = value
                        .as_u64()
                        .and_then(|domid| u16::try_from(domid).ok())
                        .filter(|domid| *domid != 0)
                }
                _ => self.strange(key, value),
            }
        }
    }

    fn build(&mut self, info: &Map<String, Value>) {
        for (key, value) in info {
            let as_it_is = scalar(value);
            match (key.as_str(), as_it_is) {
                ("max_vcpus", Some(value)) => self.set("maxvcpus", value),
                ("avail_vcpus", _) => {
                    let count = value.as_array().map_or(1, |vcpus| vcpus.len().max(1));
                    self.set("vcpus", Setting::Number(count as i64));
                }
                ("vcpu_hard_affinity", _) => self.set("cpus", affinities(value)),
                ("vcpu_soft_affinity", _) => self.set("cpus_soft", affinities(value)),
                ("max_memkb", _) => self.mebibytes("maxmem", value),
                ("target_memkb", _) => self.mebibytes("memory", value),
                ("tsc_mode" | "rtc_timeoffset" | "localtime" | "max_grant_frames", Some(value)) => self.set(key, value),
                ("max_maptrack_frames" | "kernel" | "ramdisk" | "cmdline", Some(value)) => self.set(key, value),
                ("event_channels", Some(value)) => self.set("max_event_channels", value),
                ("disable_migrate", Some(value)) => self.set("nomigrate", value),
                ("sched_params", _) => {
                    for (name, setting) in [("weight", "cpu_weight"), ("cap", "cap")] {
                        if let Some(value) = value.get(name).and_then(scalar) {
                            self.set(setting, value);
                        }
                    }
                }
                ("arch_x86", _) => {
                    if let Some(value) = value.get("msr_relaxed").and_then(scalar) {
                        self.set("msr_relaxed", value);
                    }
                }
                ("claim_mode" | "video_memkb" | "numa_placement", _) => {}
                _ => self.strange(key, value),
            }
        }
    }

    fn mebibytes(&mut self, key: &str, value: &Value) {
        if let Some(kib) = value.as_u64() {
            self.set(
                key,
                Setting::Number(i64::try_from(kib.div_ceil(1024)).unwrap_or(i64::MAX)),
            );
        }
    }

    fn devices(&mut self, key: &str, devices: &[Value], spec: impl Fn(&Value) -> String) {
        let specs = devices.iter().map(|device| Setting::Text(spec(device))).collect();
        self.set(key, Setting::List(specs));
    }
}

/// libxl's truth values are words.
fn scalar(value: &Value) -> Option<Setting> {
    Some(match value {
        Value::String(word) if word == "True" => Setting::Number(1),
        Value::String(word) if word == "False" => Setting::Number(0),
        Value::String(text) => Setting::Text(text.clone()),
        Value::Number(number) => Setting::Number(number.as_i64()?),
        Value::Bool(truth) => Setting::Number((*truth).into()),
        _ => return None,
    })
}

/// A list of CPU numbers for each vcpu.
fn affinities(value: &Value) -> Setting {
    let of_vcpu = |cpus: &Value| {
        let numbers: Vec<String> = cpus.as_array().into_iter().flatten().map(Value::to_string).collect();
        Setting::Text(numbers.join(","))
    };
    Setting::List(value.as_array().into_iter().flatten().map(of_vcpu).collect())
}

fn word(device: &Value, key: &str) -> Option<String> {
    match device.get(key)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn is_set(device: &Value, key: &str) -> bool {
    matches!(device.get(key), Some(value) if value == 1 || value == true || value == "True")
}

/// xl-disk-configuration(5); the target comes last, since it may hold anything.
fn disk(device: &Value) -> String {
    let mut parts = Vec::new();
    let mut put = |name: &str, value: Option<String>| parts.extend(value.map(|value| format!("{name}={value}")));
    put("vdev", word(device, "vdev"));
    put("format", word(device, "format"));
    put("backendtype", word(device, "backend").filter(|kind| kind != "unknown"));
    put("backend", word(device, "backend_domname"));
    put("script", word(device, "script"));
    put(
        "rate",
        word(device, "rate_bytes_per_second").map(|rate| format!("{rate}B/s")),
    );
    put("iops", word(device, "requests_per_second"));
    put(
        "access",
        Some(if is_set(device, "readwrite") { "rw" } else { "ro" }.to_owned()),
    );
    for (key, flag) in [
        ("is_cdrom", "cdrom"),
        ("direct_io_safe", "direct-io-safe"),
        ("discard_enable", "discard"),
    ] {
        if is_set(device, key) {
            parts.push(flag.to_owned());
        }
    }
    if device.get("discard_enable").is_some_and(|word| word == "False") {
        parts.push("no-discard".to_owned());
    }
    if let Some(target) = word(device, "pdev_path") {
        parts.push(format!("target={target}"));
    }
    parts.join(",")
}

/// xl-network-configuration(5)
fn nic(device: &Value) -> String {
    const SAME: [(&str, &str); 9] = [
        ("mac", "mac"),
        ("bridge", "bridge"),
        ("ip", "ip"),
        ("ifname", "vifname"),
        ("script", "script"),
        ("model", "model"),
        ("mtu", "mtu"),
        ("gatewaydev", "gatewaydev"),
        ("devid", "devid"),
    ];
    let same = SAME
        .into_iter()
        .filter_map(|(from, to)| Some(format!("{to}={}", word(device, from)?)));
    let mut parts: Vec<String> = same.collect();
    if let Some(domain) = word(device, "backend_domname") {
        parts.push(format!("backend={domain}"));
    }
    let rate = ["rate_bytes_per_interval", "rate_interval_usecs"].map(|key| device.get(key).and_then(Value::as_u64));
    if let [Some(bytes), Some(interval)] = rate
        && bytes != 0
        && interval != 0
    {
        let bytes_per_second = (u128::from(bytes) * 1_000_000).div_ceil(interval.into());
        parts.push(format!("rate={bytes_per_second}B/s@{interval}us"));
    }
    parts.join(",")
}

fn screen(device: &Value) -> String {
    let vnc = device.get("vnc").unwrap_or(&Value::Null);
    let flag = |key: &str| Some(u32::from(is_set(vnc, key)).to_string()).filter(|_| vnc.get(key).is_some());
    let parts = [
        ("vnc", flag("enable")),
        ("vnclisten", word(vnc, "listen")),
        ("vncdisplay", word(vnc, "display")),
        ("vncunused", flag("findunused")),
        ("vncpasswd", word(vnc, "passwd")),
        ("keymap", word(device, "keymap")),
    ];
    let written = parts
        .into_iter()
        .filter_map(|(key, value)| Some(format!("{key}={}", value?)));
    written.collect::<Vec<_>>().join(",")
}

fn share(device: &Value) -> String {
    let parts = ["tag", "path", "security_model"].map(|key| Some(format!("{key}={}", word(device, key)?)));
    parts.into_iter().flatten().collect::<Vec<_>>().join(",")
}

fn channel(device: &Value) -> String {
    let mut parts: Vec<String> = word(device, "name")
        .map(|name| format!("name={name}"))
        .into_iter()
        .collect();
    if device.get("connection.pty").is_some() {
        parts.push("connection=pty".to_owned());
    }
    if let Some(socket) = device.get("connection.socket") {
        parts.push("connection=socket".to_owned());
        parts.extend(word(socket, "path").map(|path| format!("path={path}")));
    }
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::describe;
    use ferroxen_xlconfig::{CpuList, DiskFormat, Source};
    use std::path::Path;

    /// What is described and recalled is described the same: of every file that stands beside stock xl's reading.
    #[test]
    fn what_is_written_reads_back() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stock");
        for entry in std::fs::read_dir(directory).expect("the files are there").flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|kind| kind != "cfg") {
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("is text");
            reads_back(&path.display().to_string(), text);
        }
    }

    /// What libxl does not know is recalled, too.
    #[test]
    fn what_is_ours_reads_back() {
        let disks = "disk = [ 'vdev=xvda,rate=8Mb/s,iops=200,target=/srv/a', '/srv/b,qcow2,xvdb,r,iops=7' ]";
        let text = format!("name = 'a'\nkernel = '/boot/vmlinuz'\n{disks}\n");
        reads_back("ours", text);
    }

    fn reads_back(name: &str, text: String) {
        let mut loaded = ferroxen_xlconfig::parse(Source::new("stock.cfg", text), &[]).expect("is valid");
        loaded.settle();
        if loaded.config.kind != ferroxen_xlconfig::DomainType::Pv {
            return;
        }
        let json = describe::pretty(&describe::config(&loaded));
        let (recalled, _) = config(&json).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (mut ours, mut theirs) = (recalled.config, loaded.config);
        // The same in other words: a list for each vcpu, CPUs one by one, cards with their numbers.
        let plainly = |config: &mut ferroxen_xlconfig::DomainConfig| {
            config.disks.iter_mut().for_each(|disk| disk.spec.clear());
            for disk in &mut config.disks {
                if matches!(disk.format, DiskFormat::File | DiskFormat::Phy) {
                    disk.format = DiskFormat::Raw;
                }
            }
            for lists in [&mut config.cpus, &mut config.cpus_soft] {
                if let [one] = lists.as_slice() {
                    *lists = vec![one.clone(); config.maxvcpus as usize];
                }
                for list in lists.iter_mut().filter(|list| **list == CpuList::All) {
                    *list = CpuList::These((0..64).collect());
                }
            }
            for (index, vif) in (0..).zip(&mut config.vifs) {
                vif.devid.get_or_insert(index);
            }
        };
        plainly(&mut ours);
        plainly(&mut theirs);
        assert_eq!(ours, theirs, "{name}");
    }

    #[test]
    fn channels_are_as_libxl_has_them_and_read_back() {
        let text = "name = 'web'\nkernel = '/k'\n\
                    channel = ['connection=pty,name=a', 'connection=socket,name=b,path=/run/b.sock']\n";
        let loaded = ferroxen_xlconfig::parse(Source::new("web.cfg", text), &[]).expect("is valid");
        let json = describe::pretty(&describe::config(&loaded));
        let (recalled, strange) = config(&json).expect("is one");
        assert_eq!(recalled.config.channels, loaded.config.channels);
        assert_eq!(strange, Vec::<String>::new());
        // libxl's own words for the second.
        let words = json.split_whitespace().collect::<String>();
        assert!(
            words.contains(r#"{"name":"b","connection.socket":{"path":"/run/b.sock"}}"#),
            "{json}"
        );
    }
}
