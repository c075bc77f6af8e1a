//! Every setting of xl.cfg(5), and `xm`'s, with what becomes of it for a PV domain.

/// What becomes of a setting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It is honoured.
    Used,
    /// It speaks of hardware that only an HVM or PVH domain has.
    HardwareOnly,
    /// It is known, but nothing honours it yet.
    NotYet,
    /// It is of an older tool, and nothing has honoured it for long.
    Old,
}

use Fate::{HardwareOnly, NotYet, Old, Used};

/// In alphabetical order within each group.
const KEYS: &[(&str, Fate)] = &[
    ("bootloader", NotYet),
    ("bootloader_args", NotYet),
    ("builder", Used),
    ("cap", Used),
    ("cmdline", Used),
    ("cpu_weight", Used),
    ("cpus", Used),
    ("cpus_soft", Used),
    ("disk", Used),
    ("extra", Used),
    ("kernel", Used),
    ("localtime", Used),
    ("max_event_channels", Used),
    ("max_grant_frames", Used),
    ("max_maptrack_frames", Used),
    ("maxmem", Used),
    ("maxvcpus", Used),
    ("memory", Used),
    ("msr_relaxed", Used),
    ("name", Used),
    ("on_crash", Used),
    ("on_poweroff", Used),
    ("on_reboot", Used),
    ("on_soft_reset", Used),
    ("on_watchdog", Used),
    ("pool", Used),
    ("ramdisk", Used),
    ("root", Used),
    ("rtc_timeoffset", Used),
    ("tsc_mode", Used),
    ("type", Used),
    ("uuid", Used),
    ("vcpus", Used),
    ("vif", Used),
    // Known; a PV domain could have these.
    ("channel", NotYet),
    ("claim_mode", NotYet),
    ("cpuid", NotYet),
    ("device_tree", NotYet),
    ("driver_domain", NotYet),
    ("dtdev", NotYet),
    ("e820_host", NotYet),
    ("firmware", NotYet),
    ("init_seclabel", NotYet),
    ("iomem", NotYet),
    ("ioports", NotYet),
    ("irqs", NotYet),
    ("max_grant_version", NotYet),
    ("mca_caps", NotYet),
    ("nomigrate", NotYet),
    ("numa_placement", NotYet),
    ("p9", NotYet),
    ("passthrough", NotYet),
    ("pci", NotYet),
    ("pci_msitranslate", NotYet),
    ("pci_permissive", NotYet),
    ("pci_power_mgmt", NotYet),
    ("pci_seize", NotYet),
    ("pvcalls", NotYet),
    ("rdm", NotYet),
    ("seclabel", NotYet),
    ("usbctrl", NotYet),
    ("usbdev", NotYet),
    ("vdispl", NotYet),
    ("vfb", NotYet),
    ("vkb", NotYet),
    ("vmtrace_buf_kb", NotYet),
    ("vnuma", NotYet),
    ("vpmu", NotYet),
    ("vsnd", NotYet),
    ("vtpm", NotYet),
    ("xend_suspend_evtchn_compat", NotYet),
    // Hardware that a PV domain has not.
    ("acpi", HardwareOnly),
    ("acpi_firmware", HardwareOnly),
    ("acpi_laptop_slate", HardwareOnly),
    ("acpi_s3", HardwareOnly),
    ("acpi_s4", HardwareOnly),
    ("altp2m", HardwareOnly),
    ("altp2mhvm", HardwareOnly),
    ("apic", HardwareOnly),
    ("bios", HardwareOnly),
    ("bios_path_override", HardwareOnly),
    ("boot", HardwareOnly),
    ("device_model_args", HardwareOnly),
    ("device_model_args_hvm", HardwareOnly),
    ("device_model_args_pv", HardwareOnly),
    ("device_model_override", HardwareOnly),
    ("device_model_stubdomain_override", HardwareOnly),
    ("device_model_stubdomain_seclabel", HardwareOnly),
    ("device_model_user", HardwareOnly),
    ("device_model_version", HardwareOnly),
    ("dm_restrict", HardwareOnly),
    ("gfx_passthru", HardwareOnly),
    ("hap", HardwareOnly),
    ("hdtype", HardwareOnly),
    ("hpet", HardwareOnly),
    ("keymap", HardwareOnly),
    ("mmio_hole", HardwareOnly),
    ("ms_vm_genid", HardwareOnly),
    ("nestedhvm", HardwareOnly),
    ("nographic", HardwareOnly),
    ("nx", HardwareOnly),
    ("oos", HardwareOnly),
    ("opengl", HardwareOnly),
    ("pae", HardwareOnly),
    ("pvshim", HardwareOnly),
    ("pvshim_cmdline", HardwareOnly),
    ("pvshim_extra", HardwareOnly),
    ("pvshim_path", HardwareOnly),
    ("rdm_mem_boundary", HardwareOnly),
    ("sdl", HardwareOnly),
    ("serial", HardwareOnly),
    ("shadow_memory", HardwareOnly),
    ("smbios_firmware", HardwareOnly),
    ("soundhw", HardwareOnly),
    ("spice", HardwareOnly),
    ("spice_clipboard_sharing", HardwareOnly),
    ("spice_image_compression", HardwareOnly),
    ("spice_streaming_video", HardwareOnly),
    ("spiceagent_mouse", HardwareOnly),
    ("spicedisable_ticketing", HardwareOnly),
    ("spicehost", HardwareOnly),
    ("spicepasswd", HardwareOnly),
    ("spiceport", HardwareOnly),
    ("spicetls_port", HardwareOnly),
    ("spiceusbredirection", HardwareOnly),
    ("spicevdagent", HardwareOnly),
    ("stdvga", HardwareOnly),
    ("stubdomain_cmdline", HardwareOnly),
    ("stubdomain_kernel", HardwareOnly),
    ("stubdomain_memory", HardwareOnly),
    ("stubdomain_ramdisk", HardwareOnly),
    ("timer_mode", HardwareOnly),
    ("usb", HardwareOnly),
    ("usbdevice", HardwareOnly),
    ("usbversion", HardwareOnly),
    ("vendor_device", HardwareOnly),
    ("vga", HardwareOnly),
    ("videoram", HardwareOnly),
    ("viridian", HardwareOnly),
    ("vkb_device", HardwareOnly),
    ("vnc", HardwareOnly),
    ("vncdisplay", HardwareOnly),
    ("vnclisten", HardwareOnly),
    ("vncpasswd", HardwareOnly),
    ("vncunused", HardwareOnly),
    ("vpt_align", HardwareOnly),
    ("xen_platform_pci", HardwareOnly),
    // xm's.
    ("dhcp", Old),
    ("gateway", Old),
    ("hostname", Old),
    ("ip", Old),
    ("netmask", Old),
    ("nfs_root", Old),
    ("nfs_server", Old),
    ("nics", Old),
    ("vcpu_avail", Old),
    ("vncconsole", Old),
    ("vncviewer", Old),
];

/// Names that other tools and manuals have for settings, too far from ours to be slips.
const OTHER_WORDS: &[(&str, &str)] = &[
    ("initrd", "ramdisk"),
    ("mem", "memory"),
    ("mac", "vif"),
    ("network", "vif"),
    ("on_halt", "on_poweroff"),
    ("on_shutdown", "on_poweroff"),
];

/// What becomes of `key`, if it is a setting at all.
pub fn fate(key: &str) -> Option<Fate> {
    KEYS.iter().find(|(known, _)| *known == key).map(|(_, fate)| *fate)
}

/// The setting that `key` is most likely a slip of, if it is near one.
pub fn nearest(key: &str) -> Option<&'static str> {
    let lower = key.to_ascii_lowercase();
    if let Some((_, meant)) = OTHER_WORDS.iter().find(|(word, _)| *word == lower) {
        return Some(meant);
    }
    let allowed = match lower.len() {
        0..=2 => 0,
        3..=6 => 1,
        _ => 2,
    };
    KEYS.iter()
        .map(|(known, _)| (strsim::damerau_levenshtein(&lower, known), *known))
        .filter(|(distance, known)| *distance <= allowed && known.len() > 2)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_find_their_setting_and_strangers_none() {
        assert_eq!(nearest("memroy"), Some("memory"));
        assert_eq!(nearest("vcpu"), Some("vcpus"));
        assert_eq!(nearest("Kernel"), Some("kernel"));
        assert_eq!(nearest("onpoweroff"), Some("on_poweroff"));
        assert_eq!(nearest("guests"), None);
        assert_eq!(nearest("i"), None);
    }

    #[test]
    fn no_setting_stands_twice() {
        for (at, (key, _)) in KEYS.iter().enumerate() {
            assert!(KEYS[at + 1..].iter().all(|(other, _)| other != key), "{key}");
        }
    }
}
