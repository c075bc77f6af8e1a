//! The host: `xl info`, `xl dmesg`, `xl debug-keys`, `xl set-parameters`, `xl top`. None of these needs xenstore.

use crate::json::Format;
use anyhow::{Context, bail};
use clap::Args;
use ferroxen_abi::domctl::SchedulerId;
use ferroxen_abi::sysctl::{Physinfo, physcap};
use ferroxen_domains::describe::pretty;
use ferroxen_domains::hyper::Hypervisor;
use ferroxen_domains::inquiry::{Node, Topology, VersionInfo};
use ferroxen_domains::xen::Xen;
use std::io::Write as _;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Pages in a MiB.
const MIB: u64 = 256;

#[derive(Debug, Args)]
pub struct Info {
    /// List host NUMA topology information
    #[arg(short, long)]
    pub numa: bool,
    #[command(flatten)]
    pub format: Format,
    /// Only this field's value, such as xen_version
    #[arg(value_name = "Field")]
    pub field: Option<String>,
}

#[derive(Debug, Args)]
pub struct Dmesg {
    /// Clear the buffer after reading it
    #[arg(short = 'c', long = "clear")]
    pub clear: bool,
}

#[derive(Debug, Args)]
pub struct DebugKeys {
    /// Keys, as on the serial console
    #[arg(value_name = "Keys")]
    pub keys: String,
}

#[derive(Debug, Args)]
pub struct SetParameters {
    /// Options as on the hypervisor's command line, such as guest_loglvl=all
    #[arg(value_name = "Params", required = true)]
    pub parameters: Vec<String>,
}

/// `xl info`
pub fn info(args: &Info) -> anyhow::Result<()> {
    let asking = "asking the hypervisor about the host";
    let xen = Xen::open()?;
    let (physical, version) = (xen.physinfo().context(asking)?, xen.version().context(asking)?);
    let uname = rustix::system::uname();
    let kernel = [uname.nodename(), uname.release(), uname.version(), uname.machine()]
        .map(|text| text.to_string_lossy().into_owned());
    let host = host_fields(
        &kernel,
        &physical,
        xen.sharing(),
        xen.free_cpus().map_or(0, |cpus| cpus.len()),
    );
    let scheduler = scheduler_name(xen.scheduler().context(asking)?);
    let hypervisor = version_fields(&version, scheduler);
    if let Some(wanted) = &args.field {
        let mut all = host.iter().chain(&hypervisor);
        return match all.find(|(field, _)| field == wanted) {
            Some((_, value)) => crate::show(&format!("{value}\n")),
            None => bail!("there is no field \"{wanted}\"; `xl info` shows all"),
        };
    }
    if args.format.json {
        let record = host.into_iter().chain(hypervisor);
        let record = record.map(|(field, value)| (field.to_owned(), value.into())).collect();
        return crate::show(&pretty(&serde_json::Value::Object(record)));
    }
    let mut text = lines(&host);
    if args.numa {
        let topology = xen.topology().context(asking)?;
        text.push_str(&numa(&topology, &xen.nodes().context(asking)?));
    }
    text.push_str(&lines(&hypervisor));
    crate::show(&text)
}

type Fields = Vec<(&'static str, String)>;

fn host_fields(kernel: &[String; 4], physical: &Physinfo, sharing: (u64, u64), free_cpus: usize) -> Fields {
    let [host, release, version, machine] = kernel;
    let hw_caps: Vec<String> = physical.hw_cap.iter().map(|word| format!("{word:08x}")).collect();
    let free = physical.free_pages.saturating_sub(physical.outstanding_pages);
    vec![
        ("host", host.clone()),
        ("release", release.clone()),
        ("version", version.clone()),
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
        ("free_memory", (free / MIB).to_string()),
        ("sharing_freed_memory", (sharing.0 / MIB).to_string()),
        ("sharing_used_memory", (sharing.1 / MIB).to_string()),
        ("outstanding_claims", (physical.outstanding_pages / MIB).to_string()),
        ("free_cpus", free_cpus.to_string()),
    ]
}

fn version_fields(version: &VersionInfo, scheduler: &str) -> Fields {
    let VersionInfo {
        major, minor, extra, ..
    } = version;
    vec![
        ("xen_major", major.to_string()),
        ("xen_minor", minor.to_string()),
        ("xen_extra", extra.clone()),
        ("xen_version", format!("{major}.{minor}{extra}")),
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
    ]
}

fn lines(fields: &Fields) -> String {
    fields
        .iter()
        .map(|(key, value)| format!("{key:<23}: {value}\n"))
        .collect()
}

/// `xl info -n`
fn numa(topology: &[Option<Topology>], nodes: &[Node]) -> String {
    let mut text = "cpu_topology           :\ncpu:    core    socket     node\n".to_owned();
    for (cpu, place) in (0..).zip(topology) {
        if let Some(Topology { core, socket, node }) = place {
            text.push_str(&format!("{cpu:3}:    {core:4}     {socket:4}     {node:4}\n"));
        }
    }
    text.push_str("device topology        :\ndevice           node\nNo device topology data available\n");
    text.push_str("numa_info              :\nnode:    memsize    memfree    distances\n");
    for (number, node) in (0..).zip(nodes) {
        let distances: Vec<String> = node.distances.iter().map(u32::to_string).collect();
        text.push_str(&format!(
            "{number:4}:    {:6}     {:6}      {}\n",
            node.size >> 20,
            node.free >> 20,
            distances.join(",")
        ));
    }
    text
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
pub fn dmesg(args: &Dmesg) -> anyhow::Result<()> {
    let text = Xen::open()?
        .console(args.clear)
        .context("reading the hypervisor's console")?;
    let mut out = std::io::stdout().lock();
    out.write_all(&text)?;
    out.flush()?;
    Ok(())
}

/// `xl debug-keys`
pub fn debug_keys(args: &DebugKeys) -> anyhow::Result<()> {
    Xen::open()?.debug_keys(&args.keys).context("sending debug keys")
}

/// `xl set-parameters`
pub fn set_parameters(args: &SetParameters) -> anyhow::Result<()> {
    let xen = Xen::open()?;
    for word in args.parameters.iter().flat_map(|words| words.split_whitespace()) {
        let (name, value) = parameter(word);
        xen.set_parameter(name, value)
            .with_context(|| format!("setting {word}"))?;
    }
    Ok(())
}

/// Name and value of an option; one without is switched on, or off behind `no-`.
fn parameter(word: &str) -> (&str, &str) {
    match (word.split_once('='), word.strip_prefix("no-")) {
        (Some(both), _) => both,
        (None, Some(name)) => (name, "0"),
        (None, None) => (word, "1"),
    }
}

/// `xl top`: Xen's own program takes our place.
pub fn top() -> anyhow::Result<()> {
    const PLACES: [&str; 4] = [
        "/usr/sbin/xentop",
        "/usr/lib/xen-4.17/bin/xentop",
        "/usr/lib/xen/bin/xentop",
        "/usr/local/sbin/xentop",
    ];
    match PLACES.iter().find(|path| Path::new(path).exists()) {
        Some(path) => Err(Command::new(path).exec()).with_context(|| format!("starting {path}")),
        None => {
            bail!("there is no `xentop` (Debian: package xen-utils-4.17); `xl list` and `xl vcpu-list` show CPU time")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_without_a_value_is_a_switch() {
        let words = ["loglvl=all", "no-pcid", "pcid", "empty="];
        assert_eq!(
            words.map(parameter),
            [("loglvl", "all"), ("pcid", "0"), ("pcid", "1"), ("empty", "")]
        );
    }

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
        let fields = [
            host_fields(&kernel, &physical, (0, 0), 0),
            version_fields(&version, "credit2"),
        ];
        insta::assert_snapshot!(lines(&fields.concat()));
    }

    #[test]
    fn the_topology_has_stock_xls_layout() {
        let place = |core| {
            Some(Topology {
                core,
                socket: 0,
                node: 0,
            })
        };
        let node = Node {
            size: 1799 << 20,
            free: 1178 << 20,
            distances: vec![10],
        };
        insta::assert_snapshot!(numa(&[place(0), place(1)], &[node]));
    }
}
