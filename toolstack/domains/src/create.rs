//! Making a domain, in libxl's order, and taking all of it back if a step fails.

use crate::error::{Doing, Error, Result};
use crate::hyper::Affinity;
use crate::image::{self, Claimant};
use crate::nodes;
use crate::pv::{self, Built, Channels};
use crate::{Toolstack, block, boot, device_model, grants, network, restore, rights};
use ferroxen_abi::domctl::{self, SchedCredit};
use ferroxen_abi::memory::{E820Entry, E820Type};
use ferroxen_abi::sysctl::physcap;
use ferroxen_words::DomId;
use ferroxen_xlconfig::{CpuList, DomainConfig, DomainType, TscMode};
use std::io::Read;
use uuid::Uuid;

/// The number is another domain's.
const EEXIST: i32 = 17;
/// What the hypervisor lets a domain have beyond its memory, as libxl does (KiB).
pub(crate) const SLACK_KIB: u64 = 1024;

/// Checks what can be checked before anything is made; gives the domains that there are, none of which has its name.
pub fn check(tools: &Toolstack, config: &DomainConfig) -> Result<Vec<DomId>> {
    let what = || format!("creating \"{}\"", config.name);
    let kind = match config.kind {
        DomainType::Pv => None,
        DomainType::Pvh => Some("PVH"),
        DomainType::Hvm => Some("HVM"),
    };
    if let Some(kind) = kind {
        return Err(
            Error::new(what(), format!("domains of type {kind} are not available yet"))
                .way_out("use type = \"pv\" with a kernel that supports Xen PV"),
        );
    }
    if let Some((setting, why)) = config.missing.first() {
        return Err(Error::new(what(), format!("`{setting}` cannot be had: {why}"))
            .way_out(format!("take `{setting}` out of its configuration")));
    }
    let others = nodes::all_named(&tools.store).doing(what)?;
    if let Some((taken, _)) = others.iter().find(|(_, name)| name.as_ref() == Some(&config.name)) {
        return Err(name_taken(config, *taken));
    }
    let vm = config.uuid.map(|uuid| nodes::vm(&uuid));
    let claimant = Claimant {
        domid: None,
        vm: vm.as_deref(),
    };
    for disk in &config.disks {
        block::check(tools, claimant, disk)?;
    }
    for (index, vif) in (0..).zip(&config.vifs) {
        network::check(tools, vif, index)?;
    }
    device_model::check(tools, config)?;
    Ok(others.into_iter().map(|(domid, _)| domid).collect())
}

fn name_taken(config: &DomainConfig, taken: DomId) -> Error {
    // The first sentence is libxl's, which scripts look for.
    let why = format!(
        "Domain with name \"{}\" already exists. It is domain {}",
        config.name,
        taken.raw()
    );
    Error::new("choosing its name", why).way_out("choose another `name`, or destroy that one")
}

/// Makes a domain, complete and paused.
pub fn create(tools: &Toolstack, config: &DomainConfig) -> Result<DomId> {
    let mut config = config.clone();
    tools.conf.complete(&mut config);
    let others = check(tools, &config)?;
    let payload = boot::payload(&mut config)?;
    let layout = payload.plan(config.memory_mib)?;
    let cmdline = config.cmdline.clone().unwrap_or_default();
    bring_up(tools, config, &others, Holder::Nobody, |domid, channels| {
        let claimed = !tools.conf.without_claim && claim(tools, domid, layout.frames)?;
        let built = pv::build(tools, domid, &payload, &layout, &cmdline, channels)?;
        if claimed {
            tools
                .hypervisor
                .claim_pages(domid, 0)
                .doing(|| "ending the claim on memory".to_owned())?;
        }
        Ok(built)
    })
}

/// Who has the disks of a domain that is made from an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holder {
    /// Nobody.
    Nobody,
    /// The domain itself, where it comes from. QEMU may have to write there yet what it holds of an image, and locks it.
    Sender,
}

/// Makes a domain from an image, complete and paused; but for the disks that QEMU serves, if the sender has them:
/// [`open_disks`] is for when it has let go.
pub fn restore(tools: &Toolstack, config: &DomainConfig, image: &mut dyn Read, holder: Holder) -> Result<DomId> {
    let mut config = config.clone();
    tools.conf.complete(&mut config);
    let others = check(tools, &config)?;
    let maxmem_mib = config.maxmem_mib;
    bring_up(tools, config, &others, holder, |domid, channels| {
        restore::read_image(tools, domid, maxmem_mib, channels, image)
    })
}

/// Whether a domain that comes from elsewhere has disks that wait for [`open_disks`].
pub fn has_held_disks(config: &DomainConfig) -> bool {
    config.disks.iter().any(image::is_served)
}

/// Opens the disks of a domain that the sender had until now. The first that fails is told; the others are opened all the same.
pub fn open_disks(tools: &Toolstack, domid: DomId, config: &DomainConfig) -> Result<()> {
    let mut result = Ok(());
    for disk in config.disks.iter().filter(|disk| image::is_served(disk)) {
        result = result.and(block::open_announced(tools, domid, disk));
    }
    result
}

/// Makes a domain of which `fill` makes the contents; `others` have other names.
fn bring_up(
    tools: &Toolstack,
    mut config: DomainConfig,
    others: &[DomId],
    holder: Holder,
    fill: impl FnOnce(DomId, Channels) -> Result<Built>,
) -> Result<DomId> {
    let uuid = config.uuid.unwrap_or_else(ferroxen_uuids::fresh);
    config.uuid = Some(uuid);

    let domid = make(tools, &config, &uuid)?;
    let unfinished = Unfinished { tools, domid };
    limits(tools, domid, &config)?;
    rights::grant(tools, domid, &config)?;
    if let Some(taken) = nodes::create(&tools.store, domid, &uuid, &config, others)? {
        return Err(name_taken(&config, taken));
    }
    let channels = channels(tools, domid)?;
    let built = fill(domid, channels)?;
    tools.progress.end();
    introduce(tools, domid, &config, &built, channels)?;
    for disk in &config.disks {
        match holder == Holder::Sender && image::is_served(disk) {
            true => block::announce_held(tools, domid, disk)?,
            false => block::attach(tools, domid, disk)?,
        }
    }
    for (index, vif) in (0..).zip(&config.vifs) {
        network::attach(tools, domid, &uuid, vif, index)?;
    }
    device_model::start(tools, domid, &config)?;
    tools
        .interrupt
        .check()
        .doing(|| format!("creating \"{}\"", config.name))?;
    unfinished.keep();
    Ok(domid)
}

/// A domain that goes away again unless it is finished.
struct Unfinished<'a> {
    tools: &'a Toolstack,
    domid: DomId,
}

impl Unfinished<'_> {
    fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        // The complaint that led here is the one worth reading.
        let _ = self.tools.destroy(self.domid);
    }
}

fn make(tools: &Toolstack, config: &DomainConfig, uuid: &Uuid) -> Result<DomId> {
    let info = tools
        .hypervisor
        .physinfo()
        .doing(|| "asking about the host".to_owned())?;
    if info.capabilities & physcap::PV == 0 {
        return Err(Error::new(
            format!("making a domain for \"{}\"", config.name),
            "the hypervisor makes no PV guests",
        )
        .way_out("boot it without `pv=off`"));
    }
    let limit = |limit: Option<u32>| limit.and_then(|limit| i32::try_from(limit).ok()).unwrap_or(-1);
    let newest_grants = match info.capabilities & physcap::GNTTAB_V2 != 0 {
        true => 2,
        false => 1,
    };
    if config.max_grant_version.is_some_and(|version| version > newest_grants) {
        return Err(Error::new(
            format!("making a domain for \"{}\"", config.name),
            "max_grant_version = 2: the hypervisor has version 1 of grant tables only",
        )
        .way_out("leave `max_grant_version` out: guests use what there is"));
    }
    let cpupool_id = config.pool.as_deref().map_or(Ok(0), |pool| tools.pool_named(pool))?;
    let request = domctl::Createdomain {
        handle: *uuid.as_bytes(),
        cpupool_id,
        max_vcpus: config.maxvcpus,
        max_evtchn_port: config.max_event_channels,
        max_grant_frames: limit(config.max_grant_frames),
        max_maptrack_frames: limit(config.max_maptrack_frames),
        grant_opts: config.max_grant_version.unwrap_or(newest_grants),
        arch: domctl::ArchDomainconfig {
            emulation_flags: 0,
            misc_flags: if config.msr_relaxed { domctl::MSR_RELAXED } else { 0 },
        },
        ..Default::default()
    };
    let wanted = config.domid.and_then(DomId::new);
    let doing = || match wanted {
        None => format!("making a domain for \"{}\"", config.name),
        Some(domid) => format!(
            "making domain {} for \"{}\", as it was where it was saved",
            domid.raw(),
            config.name
        ),
    };
    let made = tools.hypervisor.create_domain(&request, wanted).doing(doing);
    made.map_err(|error| match error.errno() {
        Some(EEXIST) => error.way_out("another domain has that number: save without -D, or let that one go"),
        _ => error,
    })
}

fn limits(tools: &Toolstack, domid: DomId, config: &DomainConfig) -> Result<()> {
    let hypervisor = &*tools.hypervisor;
    hypervisor
        .set_max_vcpus(domid, config.maxvcpus)
        .doing(|| format!("giving the domain {} vcpus", config.maxvcpus))?;
    affinities(tools, domid, config)?;
    hypervisor
        .set_max_memory_kib(domid, config.memory_mib * 1024 + SLACK_KIB)
        .doing(|| format!("limiting the domain to {} MiB", config.memory_mib))?;
    if config.maxmem_mib > config.memory_mib {
        let map = [E820Entry {
            addr: 0,
            size: config.maxmem_mib << 20,
            type_: E820Type::RAM.0,
        }];
        hypervisor
            .set_memory_map(domid, &map)
            .doing(|| "telling the domain its largest size".to_owned())?;
    }
    let mode = match config.tsc_mode {
        TscMode::Default => 0,
        TscMode::AlwaysEmulate => 1,
        TscMode::Native => 2,
    };
    hypervisor
        .set_tsc_mode(domid, mode)
        .doing(|| "choosing the time stamp counter's mode".to_owned())?;
    let offset = config.rtc_timeoffset + if config.localtime { local_offset_seconds() } else { 0 };
    if offset != 0 {
        hypervisor
            .set_time_offset(domid, offset)
            .doing(|| "setting the clock's offset".to_owned())?;
    }
    if config.cpu_weight.is_some() || config.cap.is_some() {
        let old = hypervisor
            .sched_credit(domid)
            .doing(|| "reading the scheduling parameters".to_owned())?;
        let credit = SchedCredit {
            weight: config.cpu_weight.unwrap_or(old.weight),
            cap: config.cap.unwrap_or(old.cap),
        };
        hypervisor
            .set_sched_credit(domid, &credit)
            .doing(|| format!("setting weight {} and cap {}", credit.weight, credit.cap))?;
    }
    Ok(())
}

fn affinities(tools: &Toolstack, domid: DomId, config: &DomainConfig) -> Result<()> {
    for (kind, lists) in [(Affinity::Hard, &config.cpus), (Affinity::Soft, &config.cpus_soft)] {
        for vcpu in 0..config.maxvcpus {
            let list = if lists.len() == 1 {
                lists.first()
            } else {
                lists.get(vcpu as usize)
            };
            if let Some(CpuList::These(cpus)) = list {
                if cpus.is_empty() {
                    return Err(Error::new(
                        format!("pinning vcpu {vcpu}"),
                        "`vm.cpumask` and `vm.pv.cpumask` of xl.conf leave it no CPU",
                    ));
                }
                tools
                    .hypervisor
                    .set_affinity(domid, vcpu, kind, Some(cpus))
                    .doing(|| format!("pinning vcpu {vcpu} to CPUs {cpus:?}"))?;
            }
        }
    }
    Ok(())
}

/// Seconds that local time is ahead of UTC. Only the `TZ` of a fixed offset would be known without reading time
/// zone files, so the C library's idea is asked for through `date`.
fn local_offset_seconds() -> i64 {
    let output = std::process::Command::new("date").arg("+%z").output();
    let text = output
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .unwrap_or_default();
    let text = text.trim();
    let (sign, digits) = match text.split_at_checked(1) {
        Some(("-", digits)) => (-1, digits),
        Some(("+", digits)) => (1, digits),
        _ => return 0,
    };
    match (
        digits.get(..2).and_then(|h| h.parse::<i64>().ok()),
        digits.get(2..4).and_then(|m| m.parse::<i64>().ok()),
    ) {
        (Some(hours), Some(minutes)) => sign * (hours * 3600 + minutes * 60),
        _ => 0,
    }
}

fn channels(tools: &Toolstack, domid: DomId) -> Result<Channels> {
    let port = |what: &str| {
        tools
            .hypervisor
            .alloc_unbound_port(domid)
            .doing(|| format!("making the event channel for the {what}"))
    };
    Ok(Channels {
        store: port("xenstore ring")?,
        console: port("console")?,
    })
}

/// Whether memory was set aside; a hypervisor without claims builds just as well.
fn claim(tools: &Toolstack, domid: DomId, frames: u64) -> Result<bool> {
    match tools.hypervisor.claim_pages(domid, frames) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(38 | 95)) => Ok(false),
        Err(error) => {
            let free = tools
                .hypervisor
                .physinfo()
                .map_or(0, |info| info.free_pages.saturating_sub(info.outstanding_pages));
            Err::<(), _>(error)
                .doing(|| format!("setting {} MiB of {} MiB aside", frames / 256, free / 256))
                .map_err(|error| {
                    error.way_out(
                        "ask for less `memory`, shut a domain down, or give Domain 0 less (`xl mem-set 0 MIB`)",
                    )
                })?;
            Ok(false)
        }
    }
}

fn introduce(tools: &Toolstack, domid: DomId, config: &DomainConfig, built: &Built, channels: Channels) -> Result<()> {
    grants::seed(&*tools.hypervisor, domid, built)?;
    nodes::complete(&tools.store, domid, config, built, channels)?;
    tools
        .store
        .introduce(domid.raw(), built.store.raw(), channels.store.raw())
        .doing(|| format!("introducing domain {} to xenstore", domid.raw()))
}
