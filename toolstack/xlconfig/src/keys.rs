//! Every setting of xl.cfg(5), and `xm`'s, with what becomes of it for a PV domain.

/// What becomes of a setting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It is honoured.
    Used,
    /// It speaks of hardware that only an HVM or PVH domain has.
    HardwareOnly,
    /// It makes no difference to a PV domain, and why.
    Idle(&'static str),
    /// The domain would lack what it asks for, so such a domain is not made, and why.
    Missing(&'static str),
    /// It is of an older tool, and nothing has honoured it for long.
    Old,
}

use Fate::{HardwareOnly, Idle, Missing, Old, Used};

const ARM: &str = "it is for Arm";
const ABOUT_PCI: &str = "it is about `pci`";
const XSM: &str = "the hypervisor has no security modules (XSM), nor has Debian's Xen";
const QEMU: &str = "its backend is QEMU's, which is run for `p9`, `vfb` and `channel` alone";

/// In alphabetical order within each group.
const KEYS: &[(&str, Fate)] = &[
    ("bootloader", Used),
    ("bootloader_args", Used),
    ("builder", Used),
    ("cap", Used),
    ("channel", Used),
    ("cmdline", Used),
    ("cpu_weight", Used),
    ("cpuid", Used),
    ("cpus", Used),
    ("cpus_soft", Used),
    ("disk", Used),
    ("driver_domain", Used),
    ("extra", Used),
    ("firmware", Used),
    ("iomem", Used),
    ("ioports", Used),
    ("irqs", Used),
    ("kernel", Used),
    ("localtime", Used),
    ("max_event_channels", Used),
    ("max_grant_frames", Used),
    ("max_grant_version", Used),
    ("max_maptrack_frames", Used),
    ("maxmem", Used),
    ("maxvcpus", Used),
    ("memory", Used),
    ("msr_relaxed", Used),
    ("name", Used),
    ("nomigrate", Used),
    ("on_crash", Used),
    ("on_poweroff", Used),
    ("on_reboot", Used),
    ("on_soft_reset", Used),
    ("on_watchdog", Used),
    ("p9", Used),
    ("passthrough", Used),
    ("pool", Used),
    ("ramdisk", Used),
    ("root", Used),
    ("rtc_timeoffset", Used),
    ("tsc_mode", Used),
    ("type", Used),
    ("uuid", Used),
    ("vcpus", Used),
    ("vfb", Used),
    ("vif", Used),
    ("xend_suspend_evtchn_compat", Used),
    // What makes no difference.
    (
        "claim_mode",
        Idle("it is xl.conf's; memory is always claimed before it is given"),
    ),
    ("device_tree", Idle(ARM)),
    ("dtdev", Idle(ARM)),
    (
        "e820_host",
        Idle("it makes room for PCI devices, and none can be passed to a domain"),
    ),
    ("gic_version", Idle(ARM)),
    ("init_seclabel", Idle(XSM)),
    ("numa_placement", Idle("memory is given from all nodes alike")),
    ("pci_msitranslate", Idle(ABOUT_PCI)),
    ("pci_permissive", Idle(ABOUT_PCI)),
    ("pci_power_mgmt", Idle(ABOUT_PCI)),
    ("pci_seize", Idle(ABOUT_PCI)),
    ("seclabel", Idle(XSM)),
    ("tee", Idle(ARM)),
    ("vpmu", Idle(ARM)),
    ("vuart", Idle(ARM)),
    // What a PV domain could have elsewhere.
    ("pci", Missing("no PCI device can be passed to a domain")),
    (
        "pvcalls",
        Missing("no backend for sockets is there (Linux' pvcalls is a frontend)"),
    ),
    ("usbctrl", Missing(QEMU)),
    ("usbdev", Missing(QEMU)),
    ("vdispl", Missing("no backend for displays is there")),
    ("vkb", Missing("a keyboard comes with a screen: write `vfb`")),
    (
        "vmtrace_buf_kb",
        Missing("the hypervisor does not trace guests' instructions"),
    ),
    ("vnuma", Missing("the hypervisor shows no NUMA nodes to its guests")),
    ("vsnd", Missing("no backend for sound is there")),
    ("vtpm", Missing("no backend for TPMs is there")),
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
    ("display", HardwareOnly),
    ("dm_restrict", HardwareOnly),
    ("gfx_passthru", HardwareOnly),
    ("hap", HardwareOnly),
    ("hdtype", HardwareOnly),
    ("hpet", HardwareOnly),
    ("keymap", HardwareOnly),
    ("mca_caps", HardwareOnly),
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
    ("rdm", HardwareOnly),
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
    ("xauthority", HardwareOnly),
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

    /// All of xl.cfg(5) 4.17, as far as it is not of a device model's own.
    #[test]
    fn every_setting_of_the_manual_is_known() {
        let manual = include_str!("../tests/xl-cfg-settings.txt");
        let unknown: Vec<&str> = manual.lines().filter(|key| fate(key).is_none()).collect();
        assert_eq!(unknown, Vec::<&str>::new());
    }

    #[test]
    fn no_setting_stands_twice() {
        for (at, (key, _)) in KEYS.iter().enumerate() {
            assert!(KEYS[at + 1..].iter().all(|(other, _)| other != key), "{key}");
        }
    }
}
