//! The commands and their options, under xl's names.

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::str::FromStr;

/// Manages domains on Ferroxen and on Xen.
#[derive(Debug, Parser)]
#[command(
    name = "xl",
    disable_help_subcommand = true,
    override_usage = "xl [-vfNtT] <subcommand> [args]"
)]
pub struct Cli {
    /// Say more.
    #[arg(short, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Accepted for xl's sake.
    #[arg(short = 'f', hide = true)]
    force: bool,
    /// Accepted for xl's sake.
    #[arg(short = 'N', hide = true)]
    dry: bool,
    /// Accepted for xl's sake.
    #[arg(short = 't', hide = true)]
    carriage: bool,
    /// Accepted for xl's sake.
    #[arg(short = 'T', hide = true)]
    timestamps: bool,
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a domain from config file <filename>
    Create(Create),
    /// List information about all/some domains
    List(List),
    /// Terminate a domain immediately
    Destroy(Many),
    /// Issue a shutdown signal to a domain
    Shutdown(Ending),
    /// Issue a reboot signal to a domain
    Reboot(Ending),
    /// Pause execution of a domain
    Pause(One),
    /// Unpause a paused domain
    Unpause(One),
    /// Attach to domain's console
    Console(ConsoleArgs),
    /// Set the maximum amount reservation for a domain
    MemMax(Memory),
    /// Set the current memory usage for a domain
    MemSet(Memory),
    /// List the VCPUs for all/some domains
    VcpuList(Some_),
    /// Set which CPUs a VCPU can use
    VcpuPin(VcpuPin),
    /// Set the number of active VCPUs allowed for the domain
    VcpuSet(VcpuSet),
    /// List guest domains, excluding dom0, stubdoms, etc.
    VmList,
    /// List virtual block devices for a domain
    BlockList(Named),
    /// List virtual network interfaces for a domain
    NetworkList(Named),
    /// Send a sysrq to a domain
    Sysrq(Sysrq),
    /// List outstanding claim information about all domains
    Claims,
    /// Get information about Xen host
    Info,
    /// Get/set credit2 scheduler parameters
    #[command(name = "sched-credit2")]
    SchedCredit2(SchedCredit2),
    /// Convert a domain name to domain id
    Domid(One),
    /// Convert a domain id to domain name
    Domname(Domname),
    /// Rename a domain
    Rename(Rename),
    /// Send debug keys to Xen
    DebugKeys(DebugKeys),
    /// Read and/or clear dmesg buffer
    Dmesg(Dmesg),
    /// Print uptime for all/some domains
    Uptime(Uptime),
    /// List the commands, or explain one
    Help(Help),
    /// Stay with a domain (started by `create`)
    #[command(hide = true)]
    Monitor(Monitor),
}

#[derive(Debug, Args)]
pub struct Create {
    /// The configuration file; a bare name is also looked for in /etc/xen
    #[arg(value_name = "ConfigFile")]
    pub config: PathBuf,
    /// Settings that override the file's, as KEY=VALUE
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Connect to the console after the domain is created
    #[arg(short = 'c')]
    pub console: bool,
    /// Leave the domain paused after it is created
    #[arg(short = 'p')]
    pub paused: bool,
    /// Dry run: print the resulting configuration, make nothing
    #[arg(short = 'n', long = "dryrun")]
    pub dry_run: bool,
    /// Quiet
    #[arg(short = 'q', long = "quiet")]
    pub quiet: bool,
    /// Do not wait in the background for the death of the domain
    #[arg(short = 'e')]
    pub exit: bool,
    /// Run in foreground until death of the domain
    #[arg(short = 'F')]
    pub foreground: bool,
    /// Use the given configuration file
    #[arg(short = 'f', long = "defconfig", value_name = "FILE", hide = true)]
    pub defconfig: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct List {
    /// Output all VM details
    #[arg(short, long)]
    pub long: bool,
    /// Prints out UUIDs and security context
    #[arg(short, long)]
    pub verbose: bool,
    /// Prints out security context
    #[arg(short = 'Z', long)]
    pub context: bool,
    /// Prints the cpupool the domain is in
    #[arg(short, long)]
    pub cpupool: bool,
    /// Prints out NUMA node affinity
    #[arg(short, long)]
    pub numa: bool,
    /// Only this one
    #[arg(value_name = "Domain")]
    pub domain: Option<String>,
}

#[derive(Debug, Args)]
pub struct One {
    /// A domain, by name or number
    #[arg(value_name = "Domain")]
    pub domain: String,
}

#[derive(Debug, Args)]
pub struct Domname {
    /// A domain's number
    #[arg(value_name = "DomainId")]
    pub domid: u16,
}

#[derive(Debug, Args)]
pub struct ConsoleArgs {
    /// A domain, by name or number
    #[arg(value_name = "Domain")]
    pub domain: String,
    /// The kind of console; a PV domain has one of kind `pv`
    #[arg(short = 't', value_name = "TYPE", value_parser = ["pv", "serial"])]
    kind: Option<String>,
    /// The console's number
    #[arg(short = 'n', value_name = "NUM", value_parser = clap::value_parser!(u32).range(0..=0))]
    number: Option<u32>,
}

#[derive(Debug, Args)]
pub struct Many {
    /// Domains, by name or number
    #[arg(value_name = "Domain", required = true)]
    pub domains: Vec<String>,
    /// Permit to destroy Domain 0 (which still refuses)
    #[arg(short = 'f')]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct Some_ {
    /// Domains, by name or number; all if none is named
    #[arg(value_name = "Domains")]
    pub domains: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Named {
    /// Domains, by name or number
    #[arg(value_name = "Domain(s)", required = true)]
    pub domains: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Sysrq {
    /// A domain, by name or number
    #[arg(value_name = "Domain")]
    pub domain: String,
    /// The key, such as `s` for a sync
    #[arg(value_name = "letter")]
    pub letter: char,
}

#[derive(Debug, Args)]
pub struct Ending {
    /// Do it for all guest domains
    #[arg(short = 'a', long = "all", conflicts_with = "domains")]
    pub all: bool,
    /// Wait for the guests to have done it
    #[arg(short = 'w', long = "wait")]
    pub wait: bool,
    /// Fall back to an ACPI event (accepted for xl's sake: PV guests hear of it without)
    #[arg(short = 'F')]
    pub fallback: bool,
    /// Domains, by name or number
    #[arg(value_name = "Domain", required_unless_present = "all")]
    pub domains: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Memory {
    /// A domain, by name or number
    #[arg(value_name = "Domain")]
    pub domain: String,
    /// How much: MiB, or with a suffix b, k, m, g or t
    #[arg(value_name = "MemMB")]
    pub memory: Amount,
}

/// An amount of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount(u64);

impl Amount {
    /// In KiB.
    pub fn kib(self) -> u64 {
        self.0
    }
}

impl FromStr for Amount {
    type Err = String;

    fn from_str(text: &str) -> Result<Amount, String> {
        let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(split);
        let wrong = || format!("`{text}` is no amount of memory such as 512, 512m or 1g");
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        let kib = match unit.to_ascii_lowercase().as_str() {
            "b" => Some(number / 1024),
            "k" => Some(number),
            "" | "m" => number.checked_mul(1 << 10),
            "g" => number.checked_mul(1 << 20),
            "t" => number.checked_mul(1 << 30),
            _ => None,
        };
        kib.filter(|kib| *kib > 0).map(Amount).ok_or_else(wrong)
    }
}

#[derive(Debug, Args)]
pub struct VcpuSet {
    /// A domain, by name or number
    #[arg(value_name = "Domain")]
    pub domain: String,
    /// How many
    #[arg(value_name = "vCPUs")]
    pub count: u32,
}

#[derive(Debug, Args)]
pub struct VcpuPin {
    /// A domain, by name or number
    #[arg(value_name = "Domain")]
    pub domain: String,
    /// A vcpu's number, or `all`
    #[arg(value_name = "VCPU|all")]
    pub vcpu: String,
    /// CPUs it may use, `all`, or `-` to leave that as it is
    #[arg(value_name = "Hard affinity|-|all", allow_hyphen_values = true)]
    pub hard: String,
    /// CPUs it would rather use, `all`, or `-`
    #[arg(value_name = "Soft affinity|-|all", allow_hyphen_values = true)]
    pub soft: Option<String>,
}

#[derive(Debug, Args)]
pub struct SchedCredit2 {
    /// The domain to look at or change; all if none is named
    #[arg(short = 'd', long = "domain", value_name = "DOMAIN")]
    pub domain: Option<String>,
    /// Its share among domains, from 1 to 65535
    #[arg(short = 'w', long = "weight", value_name = "WEIGHT", requires = "domain", value_parser = clap::value_parser!(u16).range(1..))]
    pub weight: Option<u16>,
    /// The most it may use, in percent of one CPU; 0: no limit
    #[arg(short = 'c', long = "cap", value_name = "CAP", requires = "domain")]
    pub cap: Option<u16>,
}

#[derive(Debug, Args)]
pub struct Rename {
    /// A domain, by name or number
    #[arg(value_name = "Domain")]
    pub domain: String,
    /// Its new name
    #[arg(value_name = "NewDomainName")]
    pub name: String,
}

#[derive(Debug, Args)]
pub struct DebugKeys {
    /// Keys, as on the serial console
    #[arg(value_name = "Keys")]
    pub keys: String,
}

#[derive(Debug, Args)]
pub struct Dmesg {
    /// Clear the buffer after reading it
    #[arg(short = 'c', long = "clear")]
    pub clear: bool,
}

#[derive(Debug, Args)]
pub struct Uptime {
    /// Domains, by name or number; all if none is named
    #[arg(value_name = "Domain")]
    pub domains: Vec<String>,
    /// One line in the manner of uptime(1) per domain
    #[arg(short = 's', long = "short")]
    pub short: bool,
}

#[derive(Debug, Args)]
pub struct Help {
    /// Explain all commands
    #[arg(long)]
    pub long: bool,
    /// Explain this one
    pub command: Option<String>,
}

#[derive(Debug, Args)]
pub struct Monitor {
    /// The domain's number
    pub domid: u16,
    /// Where its configuration is kept
    pub config: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_agree_with_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn amounts_are_mib_unless_they_say_otherwise() {
        let kib = |text: &str| text.parse::<Amount>().map(Amount::kib).ok();
        assert_eq!(
            (kib("512"), kib("1g"), kib("64K"), kib("4096b")),
            (Some(524_288), Some(1 << 20), Some(64), Some(4))
        );
        assert_eq!(
            (kib("x"), kib("0"), kib("5q"), kib("99999999999999999t")),
            (None, None, None, None)
        );
    }
}
