//! The commands, under xl's names. What a command takes stands with what it does.

use crate::json::Format;
use crate::{
    cdrom, console, create, devd, devices, domids, dump, help, host, image, lifecycle, list, migrate, network, pools,
    save, sched, screen, time, tune,
};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

/// Manages domains on Ferroxen and on Xen.
#[derive(Debug, Parser)]
#[command(name = "xl", disable_help_subcommand = true, override_usage = USAGE, version)]
pub struct Cli {
    #[command(flatten)]
    pub general: General,
    #[command(subcommand)]
    pub command: Option<Command>,
}

const USAGE: &str = "xl [-vfNtT] <subcommand> [args]";

/// What stands before a command.
#[derive(Debug, Args)]
pub struct General {
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
}

/// Defines the commands by their names, and for each that takes anything how to define that alone.
macro_rules! commands {
    ($($(#[$about:meta])* $name:literal $variant:ident $(($args:ty))?,)*) => {
        /// In stock xl's order.
        #[derive(Debug, Subcommand)]
        pub enum Command {
            $($(#[$about])* #[command(name = $name)] $variant $(($args))?,)*
        }

        const DEFINITIONS: &[(&str, fn(clap::Command) -> clap::Command)] =
            &[$($(($name, <$args as Args>::augment_args),)?)*];
    };
}

commands! {
    /// Create a domain from config file <filename>
    "create" Create(create::Create),
    /// Check configuration files: the resulting domains, or what is wrong with them
    "validate" Validate(create::Validate),
    /// Update a running domain's saved configuration, used when rebuilding the domain after reboot
    "config-update" ConfigUpdate(create::ConfigUpdate),
    /// List information about all/some domains
    "list" List(list::List),
    /// Terminate a domain immediately
    "destroy" Destroy(lifecycle::Destroy),
    /// Issue a shutdown signal to a domain
    "shutdown" Shutdown(lifecycle::Ending),
    /// Issue a reboot signal to a domain
    "reboot" Reboot(lifecycle::Ending),
    /// Pause execution of a domain
    "pause" Pause(One),
    /// Unpause a paused domain
    "unpause" Unpause(One),
    /// Save a domain state to restore later
    "save" Save(save::Save),
    /// Migrate a domain to another host
    "migrate" Migrate(migrate::Migrate),
    /// Restore a domain from a saved state
    "restore" Restore(save::Restore),
    /// Take a domain that another host migrates here (what `migrate` runs there)
    "migrate-receive" MigrateReceive(migrate::Receive),
    /// Attach to domain's console
    "console" Console(console::Console),
    /// Attach to domain's VNC server.
    "vncviewer" Vncviewer(screen::VncViewer),
    /// Set the maximum amount reservation for a domain
    "mem-max" MemMax(tune::Memory),
    /// Set the current memory usage for a domain
    "mem-set" MemSet(tune::Memory),
    /// List the VCPUs for all/some domains
    "vcpu-list" VcpuList(Any),
    /// Set which CPUs a VCPU can use
    "vcpu-pin" VcpuPin(tune::VcpuPin),
    /// Set the number of active VCPUs allowed for the domain
    "vcpu-set" VcpuSet(tune::VcpuSet),
    /// List guest domains, excluding dom0, stubdoms, etc.
    "vm-list" VmList(list::Whole),
    /// Core dump a domain
    "dump-core" DumpCore(dump::DumpCore),
    /// Get information about Xen host
    "info" Info(host::Info),
    /// Get information about page sharing
    "sharing" Sharing(list::Sharing),
    /// Get/set credit scheduler parameters
    "sched-credit" SchedCredit(sched::SchedCredit),
    /// Get/set credit2 scheduler parameters
    "sched-credit2" SchedCredit2(sched::SchedCredit),
    /// Convert a domain name to domain id
    "domid" Domid(domids::Domid),
    /// Convert a domain id to domain name
    "domname" Domname(domids::Domname),
    /// Rename a domain
    "rename" Rename(lifecycle::Rename),
    /// Send a trigger to a domain
    "trigger" Trigger(lifecycle::Trigger),
    /// Send a sysrq to a domain
    "sysrq" Sysrq(lifecycle::Sysrq),
    /// Send debug keys to Xen
    "debug-keys" DebugKeys(host::DebugKeys),
    /// Set hypervisor parameters
    "set-parameters" SetParameters(host::SetParameters),
    /// Read and/or clear dmesg buffer
    "dmesg" Dmesg(host::Dmesg),
    /// Monitor a host and the domains in real time
    "top" Top,
    /// Daemon that listens for devices and launches backends
    "devd" Devd(devd::Devd),
    /// Create a new virtual network device
    "network-attach" NetworkAttach(devices::NetworkAttach),
    /// List virtual network interfaces for a domain
    "network-list" NetworkList(Some_),
    /// Destroy a domain's virtual network device
    "network-detach" NetworkDetach(devices::NetworkDetach),
    /// Create a new virtual block device
    "block-attach" BlockAttach(devices::BlockAttach),
    /// List virtual block devices for a domain
    "block-list" BlockList(Some_),
    /// Destroy a domain's virtual block device
    "block-detach" BlockDetach(devices::BlockDetach),
    /// List virtual channel devices for a domain
    "channel-list" ChannelList(Some_),
    /// Insert a cdrom into a guest's cd drive
    "cd-insert" CdInsert(cdrom::CdInsert),
    /// Eject a cdrom from a guest's cd drive
    "cd-eject" CdEject(cdrom::CdEject),
    /// Make, fill, copy, grow and check disk images
    "image" Image(image::Image),
    /// Set up the host's network by the script that xend's configuration names
    "network-script" NetworkScript(network::NetworkScript),
    /// Let a virtual block device grow while its domain uses it
    "block-resize" BlockResize(devices::BlockResize),
    /// Print uptime for all/some domains
    "uptime" Uptime(time::Uptime),
    /// List outstanding claim information about all domains
    "claims" Claims(list::Whole),
    /// Create a new CPU pool
    "cpupool-create" CpupoolCreate(pools::CpupoolCreate),
    /// List CPU pools on host
    "cpupool-list" CpupoolList(pools::CpupoolList),
    /// Deactivates a CPU pool
    "cpupool-destroy" CpupoolDestroy(pools::OnePool),
    /// Renames a CPU pool
    "cpupool-rename" CpupoolRename(pools::CpupoolRename),
    /// Adds a CPU to a CPU pool
    "cpupool-cpu-add" CpupoolCpuAdd(pools::CpupoolCpus),
    /// Removes a CPU from a CPU pool
    "cpupool-cpu-remove" CpupoolCpuRemove(pools::CpupoolCpus),
    /// Moves a domain into a CPU pool
    "cpupool-migrate" CpupoolMigrate(pools::CpupoolMigrate),
    /// Splits up the machine into one CPU pool per NUMA node
    "cpupool-numa-split" CpupoolNumaSplit,
    /// Issue a qemu monitor command to the device model of a domain
    "qemu-monitor-command" QemuMonitor(screen::MonitorCommand),
    /// List the commands, or explain one
    "help" Help(help::Help),
}

/// Understands a command line.
///
/// One without a mistake needs what its own command takes to be defined, and no other's: there are sixty, and their
/// definitions are most of what a short command would do.
pub fn parse(words: &[String]) -> Result<Cli, clap::Error> {
    parse_known(words).map_or_else(|| Cli::try_parse_from(words), Ok)
}

fn parse_known(words: &[String]) -> Option<Cli> {
    let named = words.iter().skip(1).find(|word| !word.starts_with('-'))?;
    let (name, define) = DEFINITIONS.iter().find(|(name, _)| name == named)?;
    let xl = General::augment_args(clap::Command::new("xl").disable_help_subcommand(true));
    let xl = xl.subcommand(define(clap::Command::new(*name)));
    let matches = xl.try_get_matches_from(words).ok()?;
    Some(Cli {
        general: General::from_arg_matches(&matches).ok()?,
        command: Some(Command::from_arg_matches(&matches).ok()?),
    })
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
    fn a_line_without_a_mistake_means_the_same_either_way() {
        let lines = [
            "xl create -p web.cfg memory=512",
            "xl -vN create web.cfg",
            "xl list",
            "xl list -l --json web",
            "xl destroy web",
            "xl sched-credit2 -d web -w 512",
            "xl vcpu-list",
            "xl help save",
        ];
        for line in lines {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            let (short, whole) = (parse_known(&words), Cli::try_parse_from(&words));
            assert_eq!(
                format!("{:?}", short.unwrap()),
                format!("{:?}", whole.unwrap()),
                "{line}"
            );
        }
    }

    #[test]
    fn mistakes_and_help_are_answered_with_all_commands_in_view() {
        for line in [
            "xl",
            "xl lits",
            "xl list --nonsense",
            "xl list --help",
            "xl --version",
            "xl destroy",
            "xl -Q list",
        ] {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            assert!(parse_known(&words).is_none(), "{line}");
        }
    }

    #[test]
    fn every_command_that_lists_can_do_so_for_programs() {
        const LISTS: [&str; 13] = [
            "list",
            "vcpu-list",
            "vm-list",
            "info",
            "sharing",
            "sched-credit",
            "sched-credit2",
            "network-list",
            "block-list",
            "channel-list",
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
