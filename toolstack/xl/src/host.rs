//! `xl info` and `xl dmesg`

use crate::cli::Dmesg;
use anyhow::Context;
use ferroxen_abi::domctl::SchedulerId;
use ferroxen_abi::sysctl::{Physinfo, physcap};
use ferroxen_domains::Toolstack;
use ferroxen_domains::hyper::VersionInfo;
use std::io::Write as _;

/// Pages in a MiB.
const MIB: u64 = 256;

/// `xl info`
pub fn info(tools: &Toolstack) -> anyhow::Result<String> {
    let asking = "asking the hypervisor about the host";
    let physical = tools.hypervisor.physinfo().context(asking)?;
    let version = tools.hypervisor.version().context(asking)?;
    let scheduler = scheduler_name(tools.hypervisor.scheduler().context(asking)?);
    let uname = rustix::system::uname();
    let kernel = [uname.nodename(), uname.release(), uname.version(), uname.machine()]
        .map(|text| text.to_string_lossy().into_owned());
    let free_cpus = tools.hypervisor.free_cpus().unwrap_or(0);
    Ok(render(
        &kernel,
        &physical,
        tools.hypervisor.sharing(),
        free_cpus,
        &version,
        scheduler,
    ))
}

fn render(
    kernel: &[String; 4],
    physical: &Physinfo,
    sharing: (u64, u64),
    free_cpus: u32,
    version: &VersionInfo,
    scheduler: &str,
) -> String {
    let [host, release, kernel_version, machine] = kernel;
    let hw_caps: Vec<String> = physical.hw_cap.iter().map(|word| format!("{word:08x}")).collect();
    let lines = [
        ("host", host.clone()),
        ("release", release.clone()),
        ("version", kernel_version.clone()),
        ("machine", machine.clone()),
        ("nr_cpus", physical.nr_cpus.to_string()),
        ("max_cpu_id", physical.max_cpu_id.to_string()),
        ("nr_nodes", physical.nr_nodes.to_string()),
        ("cores_per_socket", physical.cores_per_socket.to_string()),
        ("threads_per_core", physical.threads_per_core.to_string()),
        ("cpu_mhz", format!("{:.3}", f64::from(physical.cpu_khz) / 1000.0)),
        ("hw_caps", hw_caps.join(":")),
        ("virt_caps", virt_caps(physical.capabilities)),
        ("total_memory", (physical.total_pages / MIB).to_string()),
        (
            "free_memory",
            (physical.free_pages.saturating_sub(physical.outstanding_pages) / MIB).to_string(),
        ),
        ("sharing_freed_memory", (sharing.0 / MIB).to_string()),
        ("sharing_used_memory", (sharing.1 / MIB).to_string()),
        ("outstanding_claims", (physical.outstanding_pages / MIB).to_string()),
        ("free_cpus", free_cpus.to_string()),
        ("xen_major", version.major.to_string()),
        ("xen_minor", version.minor.to_string()),
        ("xen_extra", version.extra.clone()),
        (
            "xen_version",
            format!("{}.{}{}", version.major, version.minor, version.extra),
        ),
        ("xen_caps", version.capabilities.clone()),
        ("xen_scheduler", scheduler.to_owned()),
        ("xen_pagesize", version.pagesize.to_string()),
        ("platform_params", format!("virt_start=0x{:x}", version.virt_start)),
        ("xen_changeset", version.changeset.clone()),
        ("xen_commandline", version.commandline.clone()),
        ("cc_compiler", version.compiler.clone()),
        ("cc_compile_by", version.compile_by.clone()),
        ("cc_compile_domain", version.compile_domain.clone()),
        ("cc_compile_date", version.compile_date.clone()),
        ("build_id", version.build_id.clone()),
        ("xend_config_format", "4".to_owned()),
    ];
    lines
        .iter()
        .map(|(key, value)| format!("{key:<23}: {value}\n"))
        .collect()
}

fn virt_caps(capabilities: u32) -> String {
    let has = |bit: u32| capabilities & bit != 0;
    [
        (has(physcap::PV), "pv"),
        (has(physcap::HVM), "hvm"),
        (has(physcap::HVM) && has(physcap::DIRECTIO), "hvm_directio"),
        (has(physcap::PV) && has(physcap::DIRECTIO), "pv_directio"),
        (has(physcap::HAP), "hap"),
        (has(physcap::SHADOW), "shadow"),
        (has(physcap::IOMMU_HAP_PT_SHARE), "iommu_hap_pt_share"),
        (has(physcap::VMTRACE), "vmtrace"),
        (has(physcap::VPMU), "vpmu"),
        (has(physcap::GNTTAB_V1), "gnttab-v1"),
        (has(physcap::GNTTAB_V2), "gnttab-v2"),
    ]
    .iter()
    .filter(|(is_there, _)| *is_there)
    .map(|(_, name)| *name)
    .collect::<Vec<_>>()
    .join(" ")
}

pub fn scheduler_name(id: SchedulerId) -> &'static str {
    match id {
        SchedulerId::CREDIT => "credit",
        SchedulerId::CREDIT2 => "credit2",
        SchedulerId::ARINC653 => "arinc653",
        SchedulerId::RTDS => "rtds",
        SchedulerId::NULL => "null",
        _ => "unknown",
    }
}

/// `xl dmesg`
pub fn dmesg(tools: &Toolstack, args: &Dmesg) -> anyhow::Result<()> {
    let text = tools
        .hypervisor
        .console(args.clear)
        .context("reading the hypervisor's console")?;
    std::io::stdout().write_all(&text).context("printing")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_stock_xls_layout() {
        let kernel = ["dom0", "6.1.0", "#1 SMP", "x86_64"].map(str::to_owned);
        let physical = Physinfo {
            nr_cpus: 2,
            max_cpu_id: 1,
            nr_nodes: 1,
            cores_per_socket: 2,
            threads_per_core: 1,
            cpu_khz: 2_596_150,
            capabilities: physcap::PV | physcap::GNTTAB_V1 | physcap::GNTTAB_V2,
            total_pages: 1023 * MIB,
            free_pages: 512 * MIB,
            outstanding_pages: 2 * MIB,
            hw_cap: [0x078b_f3fd, 0x8000_2001, 0, 0, 0, 0, 0, 5],
            ..Default::default()
        };
        let version = VersionInfo {
            major: 4,
            minor: 17,
            extra: ".7".to_owned(),
            compiler: "rustc".to_owned(),
            compile_by: "me".to_owned(),
            compile_domain: "example.org".to_owned(),
            compile_date: "today".to_owned(),
            capabilities: "xen-3.0-x86_64 ".to_owned(),
            changeset: String::new(),
            virt_start: 0xffff_8000_0000_0000,
            pagesize: 4096,
            commandline: "console=com1".to_owned(),
            build_id: "00ff".to_owned(),
        };
        insta::assert_snapshot!(render(&kernel, &physical, (0, 0), 0, &version, "credit2"));
    }
}
