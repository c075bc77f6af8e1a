//! Commands of stock xl and of the older `xm` that do nothing here, and why. They are known, so that whoever types one
//! hears the reason and the way out.

/// Such a command.
#[derive(Debug)]
pub struct Absent {
    /// Its name.
    pub name: &'static str,
    /// Why there is none, as the rest of "this command is not available: ...".
    pub why: &'static str,
}

const HVM: &str = "it is for HVM domains, and there are only PV ones yet";
const PCI: &str = "no PCI device can be passed to a domain yet";
const REMUS: &str = "no domain is copied to another host while it runs on (Remus, COLO)";
const XSM: &str = "the hypervisor has no security modules (XSM)";
const PSR: &str = "cache and bandwidth allocation (PSR) is not supported";
const USB: &str = "no USB device can be passed to a domain";

const STORED: &str = "nobody keeps a list of domains that do not run: a domain is its file (`xl create FILE`)";
const LABELS: &str = "the hypervisor has no security labels (ACM)";
const NETS: &str = "networks between hosts are the bridges' affair (`ip link`, `bridge`)";
const SCSI: &str = "SCSI devices are passed as disks (`xl block-attach`)";
const TMEM: &str = "transcendent memory has gone from Xen";

const fn absent(name: &'static str, why: &'static str) -> Absent {
    Absent { name, why }
}

/// `xm`'s alone, which stock xl does not know either.
pub const OLD: &[Absent] = &[
    absent("new", STORED),
    absent("delete", STORED),
    absent("start", STORED),
    absent(
        "suspend",
        "a domain that is to rest keeps its memory (`xl pause`); nobody saves it under its name",
    ),
    absent(
        "resume",
        "nobody saves domains under their names; `xl unpause` ends a pause",
    ),
    absent(
        "log",
        "each domain has its own log: /var/log/xen/xl-NAME.log; the hypervisor's is `xl dmesg`",
    ),
    absent(
        "reset",
        "an HVM domain's reset button; `xl destroy` and `xl create` do the same to any domain",
    ),
    absent(
        "serve",
        "no daemon listens for `xm` over SSH; type the command there: ssh HOST xl COMMAND",
    ),
    absent(
        "shell",
        "there is no shell of its own; every shell completes `xl` (xl-pages writes the files)",
    ),
    absent("dry-run", "`xl create -n FILE` shows what would be made"),
    absent("block-configure", "detach the disk and attach it as it should be"),
    absent("sched-sedf", "the scheduler is credit2: `xl sched-credit2`"),
    absent("vnet-list", NETS),
    absent("vnet-create", NETS),
    absent("vnet-delete", NETS),
    absent("scsi-attach", SCSI),
    absent("scsi-detach", SCSI),
    absent("scsi-list", SCSI),
    absent("usb-add", USB),
    absent("usb-del", USB),
    absent("usb-hc-create", USB),
    absent("usb-hc-destroy", USB),
    absent("usb-attach", USB),
    absent("usb-detach", USB),
    absent("usb-list-assignable-devices", USB),
    absent("pci-list-assignable-devices", PCI),
    absent("change-vnc-passwd", HVM),
    absent("tmem-list", TMEM),
    absent("tmem-set", TMEM),
    absent("tmem-freeze", TMEM),
    absent("tmem-thaw", TMEM),
    absent("tmem-destroy", TMEM),
    absent("tmem-freeable", TMEM),
    absent("tmem-shared-auth", TMEM),
    absent("labels", LABELS),
    absent("addlabel", LABELS),
    absent("rmlabel", LABELS),
    absent("getlabel", LABELS),
    absent("resources", LABELS),
    absent("setpolicy", LABELS),
    absent("getpolicy", LABELS),
    absent("resetpolicy", LABELS),
    absent("makepolicy", LABELS),
    absent("cfgbootpolicy", LABELS),
    absent("dumppolicy", LABELS),
];

/// In stock xl's order.
pub const ABSENT: &[Absent] = &[
    absent("pci-attach", PCI),
    absent("pci-detach", PCI),
    absent("pci-list", PCI),
    absent("pci-assignable-add", PCI),
    absent("pci-assignable-remove", PCI),
    absent("pci-assignable-list", PCI),
    absent("button-press", HVM),
    absent("sched-rtds", "the scheduler is credit2"),
    absent("vtpm-attach", "virtual TPMs are not supported"),
    absent("vtpm-list", "virtual TPMs are not supported"),
    absent("vtpm-detach", "virtual TPMs are not supported"),
    absent(
        "vkb-attach",
        "a keyboard comes with a screen: `vfb` in the configuration",
    ),
    absent("vkb-list", "a keyboard comes with a screen: `vfb` in the configuration"),
    absent(
        "vkb-detach",
        "a keyboard comes with a screen: `vfb` in the configuration",
    ),
    absent("vdispl-attach", "virtual displays are not supported"),
    absent("vdispl-list", "virtual displays are not supported"),
    absent("vdispl-detach", "virtual displays are not supported"),
    absent("vsnd-attach", "virtual sound cards are not supported"),
    absent("vsnd-list", "virtual sound cards are not supported"),
    absent("vsnd-detach", "virtual sound cards are not supported"),
    absent("getenforce", XSM),
    absent("setenforce", XSM),
    absent("loadpolicy", XSM),
    absent("remus", REMUS),
    absent("psr-hwinfo", PSR),
    absent("psr-cmt-attach", PSR),
    absent("psr-cmt-detach", PSR),
    absent("psr-cmt-show", PSR),
    absent("psr-cat-set", PSR),
    absent("psr-cat-show", PSR),
    absent("psr-mba-set", PSR),
    absent("psr-mba-show", PSR),
    absent("usbctrl-attach", USB),
    absent("usbctrl-detach", USB),
    absent("usbdev-attach", USB),
    absent("usbdev-detach", USB),
    absent("usb-list", USB),
];
