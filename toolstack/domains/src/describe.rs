//! A domain's configuration as JSON, under libxl's names: for people, and for libxl's tools, which look for it.

use crate::network;
use ferroxen_xlconfig::{DiskAccess, DiskFormat, DomainConfig, DomainType, TscMode};
use serde_json::ser::{PrettyFormatter, Serializer};
use serde_json::{Map, Value, json};
use uuid::Uuid;

/// `libxl_domain_config`
pub fn config(config: &DomainConfig) -> Value {
    let kind = match config.kind {
        DomainType::Pv => "pv",
        DomainType::Pvh => "pvh",
        DomainType::Hvm => "hvm",
    };
    let mut general = Map::new();
    general.insert("type".to_owned(), kind.into());
    general.insert("name".to_owned(), config.name.clone().into());
    if let Some(uuid) = config.uuid {
        general.insert("uuid".to_owned(), uuid.to_string().into());
    }
    let mut value = json!({"c_info": general, "b_info": build(config, kind)});
    if !config.disks.is_empty() {
        value["disks"] = config.disks.iter().map(disk).collect();
    }
    if !config.vifs.is_empty() {
        value["nics"] = (0..)
            .zip(&config.vifs)
            .map(|(index, vif)| nic(config.uuid.as_ref(), index, vif))
            .collect();
    }
    for (key, action) in [
        ("on_poweroff", config.on_poweroff),
        ("on_reboot", config.on_reboot),
        ("on_watchdog", config.on_watchdog),
        ("on_crash", config.on_crash),
        ("on_soft_reset", config.on_soft_reset),
    ] {
        value[key] = action.name().replace('-', "_").into();
    }
    value
}

fn build(config: &DomainConfig, kind: &str) -> Value {
    let mut build = Map::new();
    let mut put = |key: &str, value: Value| build.insert(key.to_owned(), value);
    put("max_vcpus", config.maxvcpus.into());
    put("avail_vcpus", (0..config.vcpus).collect());
    put("max_memkb", (config.maxmem_mib * 1024).into());
    put("target_memkb", (config.memory_mib * 1024).into());
    if config.tsc_mode != TscMode::Default {
        put(
            "tsc_mode",
            if config.tsc_mode == TscMode::Native {
                "native"
            } else {
                "always_emulate"
            }
            .into(),
        );
    }
    if config.rtc_timeoffset != 0 {
        put("rtc_timeoffset", config.rtc_timeoffset.into());
    }
    if config.localtime {
        put("localtime", true.into());
    }
    if let Some(kernel) = &config.kernel {
        put("kernel", kernel.display().to_string().into());
    }
    if let Some(cmdline) = &config.cmdline {
        put("cmdline", cmdline.clone().into());
    }
    if let Some(ramdisk) = &config.ramdisk {
        put("ramdisk", ramdisk.display().to_string().into());
    }
    if let Some(weight) = config.cpu_weight {
        put("sched_params", json!({"weight": weight}));
    }
    put("event_channels", config.max_event_channels.into());
    put(&format!("type.{kind}"), json!({}));
    Value::Object(build)
}

/// `libxl_device_disk`
pub fn disk(disk: &ferroxen_xlconfig::Disk) -> Value {
    let mut value = json!({
        "pdev_path": disk.target.as_ref().map(|path| path.display().to_string()),
        "vdev": disk.vdev.name,
    });
    match disk.format {
        DiskFormat::Raw | DiskFormat::File | DiskFormat::Phy => value["format"] = "raw".into(),
        DiskFormat::Other(format) => value["format"] = format.into(),
        DiskFormat::Empty => value["format"] = "empty".into(),
    }
    if disk.access != DiskAccess::ReadOnly {
        value["readwrite"] = 1.into();
    }
    if disk.is_cdrom {
        value["is_cdrom"] = 1.into();
    }
    value
}

/// `libxl_device_nic`; the UUID is for the address of a card that has none of its own.
pub fn nic(uuid: Option<&Uuid>, index: u32, vif: &ferroxen_xlconfig::Vif) -> Value {
    let id = vif.devid.unwrap_or(index);
    let mut value = json!({"devid": id});
    if let Some(mac) = vif.mac.or_else(|| uuid.map(|uuid| network::mac_of(vif, uuid, id))) {
        value["mac"] = mac.to_string().into();
    }
    value["bridge"] = vif.bridge.as_deref().unwrap_or(network::DEFAULT_BRIDGE).into();
    value["nictype"] = "vif".into();
    if let Some(mtu) = vif.mtu {
        value["mtu"] = mtu.into();
    }
    value
}

/// With libxl's four spaces.
pub fn pretty(value: &Value) -> String {
    let mut bytes = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(b"    "));
    // A Vec takes any bytes, and all keys are strings.
    let _ = serde::Serialize::serialize(value, &mut serializer);
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferroxen_xlconfig::Source;

    #[test]
    fn a_configuration_reads_as_libxl_would_write_it() {
        let text = "name = 'web'\nuuid = '6a4b1c9e-0d0f-4a63-9a53-0f8a4cb5fd6e'\nmemory = 256\nkernel = '/boot/vmlinuz'\n\
                    root = '/dev/xvda1 ro'\nextra = 'quiet'\nvcpus = 2\ndisk = ['file:/srv/web.img,xvda1,w']\nvif = ['']\n";
        let loaded = ferroxen_xlconfig::parse(Source::new("web.cfg", text), &[]).expect("is right");
        insta::assert_snapshot!(pretty(&config(&loaded.config)));
    }
}
