//! The commands, under xl's names. What a command takes stands with what it does.

use crate::json::Format;
use crate::{
    cdrom, console, create, devd, devices, domids, dump, help, host, image, lifecycle, list, migrate, network, pools,
    save, sched, screen, time, tune,
};
use clap::{Args, CommandFactory, Parser, Subcommand};

/// Manages domains on Ferroxen and on Xen.
#[derive(Debug, Parser)]
#[command(
    name = "xl",
    disable_help_subcommand = true,
    override_usage = "xl [-vfNtT] <subcommand> [args]",
    version
)]
pub struct Cli {
    /// Say more
    #[arg(short, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Accepted for the sake of stock xl, whose lock it breaks; there is none here
    #[arg(short = 'f')]
    force: bool,
    /// Dry run: print what would be made, make nothing
    #[arg(short = 'N')]
    pub dry_run: bool,
    /// Accepted for the sake of stock xl, whose progress it shows on one line
    #[arg(short = 't')]
    carriage: bool,
    /// Accepted for the sake of stock xl, whose messages it dates
    #[arg(short = 'T')]
    timestamps: bool,
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// In stock xl's order.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a domain from config file <filename>
    Create(create::Create),
    /// Check configuration files: the resulting domains, or what is wrong with them
    Validate(create::Validate),
    /// Update a running domain's saved configuration, used when rebuilding the domain after reboot
    ConfigUpdate(create::ConfigUpdate),
    /// List information about all/some domains
    List(list::List),
    /// Terminate a domain immediately
    Destroy(lifecycle::Destroy),
    /// Issue a shutdown signal to a domain
    Shutdown(lifecycle::Ending),
    /// Issue a reboot signal to a domain
    Reboot(lifecycle::Ending),
    /// Pause execution of a domain
    Pause(One),
    /// Unpause a paused domain
    Unpause(One),
    /// Save a domain state to restore later
    Save(save::Save),
    /// Migrate a domain to another host
    Migrate(migrate::Migrate),
    /// Restore a domain from a saved state
    Restore(save::Restore),
    /// Take a domain that another host migrates here (what `migrate` runs there)
    MigrateReceive(migrate::Receive),
    /// Attach to domain's console
    Console(console::Console),
    /// Attach to domain's VNC server.
    Vncviewer(screen::VncViewer),
    /// Set the maximum amount reservation for a domain
    MemMax(tune::Memory),
    /// Set the current memory usage for a domain
    MemSet(tune::Memory),
    /// List the VCPUs for all/some domains
    VcpuList(Any),
    /// Set which CPUs a VCPU can use
    VcpuPin(tune::VcpuPin),
    /// Set the number of active VCPUs allowed for the domain
    VcpuSet(tune::VcpuSet),
    /// List guest domains, excluding dom0, stubdoms, etc.
    VmList(list::Whole),
    /// Core dump a domain
    DumpCore(dump::DumpCore),
    /// Get information about Xen host
    Info(host::Info),
    /// Get information about page sharing
    Sharing(list::Sharing),
    /// Get/set credit scheduler parameters
    SchedCredit(sched::SchedCredit),
    /// Get/set credit2 scheduler parameters
    #[command(name = "sched-credit2")]
    SchedCredit2(sched::SchedCredit),
    /// Convert a domain name to domain id
    Domid(domids::Domid),
    /// Convert a domain id to domain name
    Domname(domids::Domname),
    /// Rename a domain
    Rename(lifecycle::Rename),
    /// Send a sysrq to a domain
    Sysrq(lifecycle::Sysrq),
    /// Send debug keys to Xen
    DebugKeys(host::DebugKeys),
    /// Read and/or clear dmesg buffer
    Dmesg(host::Dmesg),
    /// Monitor a host and the domains in real time
    Top,
    /// Daemon that listens for devices and launches backends
    Devd(devd::Devd),
    /// Create a new virtual network device
    NetworkAttach(devices::NetworkAttach),
    /// List virtual network interfaces for a domain
    NetworkList(Some_),
    /// Destroy a domain's virtual network device
    NetworkDetach(devices::NetworkDetach),
    /// Create a new virtual block device
    BlockAttach(devices::BlockAttach),
    /// List virtual block devices for a domain
    BlockList(Some_),
    /// Destroy a domain's virtual block device
    BlockDetach(devices::BlockDetach),
    /// Insert a cdrom into a guest's cd drive
    CdInsert(cdrom::CdInsert),
    /// Eject a cdrom from a guest's cd drive
    CdEject(cdrom::CdEject),
    /// Make, fill, copy, grow and check disk images
    Image(image::Image),
    /// Set up the host's network by the script that xend's configuration names
    NetworkScript(network::NetworkScript),
    /// Let a virtual block device grow while its domain uses it
    BlockResize(devices::BlockResize),
    /// Print uptime for all/some domains
    Uptime(time::Uptime),
    /// List outstanding claim information about all domains
    Claims(list::Whole),
    /// Create a new CPU pool
    CpupoolCreate(pools::CpupoolCreate),
    /// List CPU pools on host
    CpupoolList(pools::CpupoolList),
    /// Deactivates a CPU pool
    CpupoolDestroy(pools::OnePool),
    /// Renames a CPU pool
    CpupoolRename(pools::CpupoolRename),
    /// Adds a CPU to a CPU pool
    CpupoolCpuAdd(pools::CpupoolCpus),
    /// Removes a CPU from a CPU pool
    CpupoolCpuRemove(pools::CpupoolCpus),
    /// Moves a domain into a CPU pool
    CpupoolMigrate(pools::CpupoolMigrate),
    /// Splits up the machine into one CPU pool per NUMA node
    CpupoolNumaSplit,
    /// Issue a qemu monitor command to the device model of a domain
    #[command(name = "qemu-monitor-command")]
    QemuMonitor(screen::MonitorCommand),
    /// List the commands, or explain one
    Help(help::Help),
}

/// One domain.
#[derive(Debug, Args)]
pub struct One {
    /// A domain, by name or number
    #[arg(value_name = "Domain")]
    pub domain: String,
}

/// Some domains, or all.
#[derive(Debug, Args)]
pub struct Any {
    #[command(flatten)]
    pub format: Format,
    /// Domains, by name or number; all if none is named
    #[arg(value_name = "Domain")]
    pub domains: Vec<String>,
}

/// Some domains.
#[derive(Debug, Args)]
pub struct Some_ {
    #[command(flatten)]
    pub format: Format,
    /// Domains, by name or number
    #[arg(value_name = "Domain", required = true)]
    pub domains: Vec<String>,
}

/// All commands and their options, for manuals and completions.
pub fn command() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_agree_with_each_other() {
        command().debug_assert();
    }

    #[test]
    fn every_command_that_lists_can_do_so_for_programs() {
        const LISTS: [&str; 12] = [
            "list",
            "vcpu-list",
            "vm-list",
            "info",
            "sharing",
            "sched-credit",
            "sched-credit2",
            "network-list",
            "block-list",
            "uptime",
            "claims",
            "cpupool-list",
        ];
        let xl = command();
        let named_so = |name: &str| name.ends_with("list") || LISTS.contains(&name);
        let lists: Vec<_> = xl
            .get_subcommands()
            .filter(|command| named_so(command.get_name()))
            .collect();
        assert_eq!(lists.len(), LISTS.len(), "one of them is new, or gone");
        for command in lists {
            assert!(
                command.get_arguments().any(|arg| arg.get_long() == Some("json")),
                "{}",
                command.get_name()
            );
        }
    }
}
