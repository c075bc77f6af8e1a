//! Domains: making them, what an empty one takes, and giving them memory.

use ferroxen_words::RawDomId;
use pv::abi::domctl::{Createdomain, Domctl, DomctlCmd, MaxMem, MaxVcpus};
use pv::abi::memory::{MemoryCmd, MemoryReservation};
use pv::abi::sysctl::{DebugKeys, Physinfo, Sysctl, SysctlCmd};
use pv::hypercall::{address, call, number};
use pv::{Answer, println};
use zerocopy::{FromZeros, Immutable, IntoBytes};

use crate::events;
use crate::row::{Row, rounds};

fn domctl(request: &mut Domctl) -> Answer {
    call(number::DOMCTL, [address(request)])
}

fn ask<T: IntoBytes + Immutable>(cmd: DomctlCmd, of: RawDomId, payload: &T) -> Answer {
    domctl(&mut Domctl::with(cmd, of, payload))
}

/// A PV domain with one vcpu, and no memory.
fn create() -> Result<RawDomId, Answer> {
    let mut wanted = Createdomain::new_zeroed();
    wanted.max_vcpus = 1;
    wanted.max_evtchn_port = 1023;
    wanted.max_grant_frames = 64;
    wanted.max_maptrack_frames = 1024;
    wanted.grant_opts = 1;
    let mut request = Domctl::with(DomctlCmd::CREATEDOMAIN, RawDomId(0), &wanted);
    domctl(&mut request).ok()?;
    ask(DomctlCmd::MAX_VCPUS, request.domain, &MaxVcpus { max: 1 }).ok()?;
    Ok(request.domain)
}

fn destroy(domain: RawDomId) -> Answer {
    domctl(&mut Domctl::new(DomctlCmd::DESTROYDOMAIN, domain))
}

fn exists(domain: RawDomId) -> bool {
    let mut request = Domctl::new(DomctlCmd::GETDOMAININFO, domain);
    domctl(&mut request).is_ok() && request.domain == domain
}

/// Free pages of the host.
fn free_pages() -> Result<u64, Answer> {
    let mut request = Sysctl::new(SysctlCmd::PHYSINFO);
    call(number::SYSCTL, [address(&mut request)]).ok()?;
    Ok(request.payload::<Physinfo>().free_pages)
}

/// Creation and populating.
pub fn all() -> Result<(), Answer> {
    let mut row = Row::new("create a domain and its vcpu");
    for _ in rounds() {
        let made = row.time(create);
        row.check(
            "made",
            made.is_ok_and(|domain| exists(domain) && destroy(domain).is_ok() && !exists(domain)),
        );
    }
    row.report();
    populate()
}

/// What an empty domain takes of the host's memory: of its free pages, and, by the debug key `m`, of what the
/// hypervisor keeps for itself.
pub fn memory() -> Result<(), Answer> {
    const DOMAINS: usize = 16;
    // Those that were destroyed may go a little later.
    const A_MOMENT: u64 = events::SECOND / 10;
    events::sleep(A_MOMENT);
    press(b'm')?;
    let before = free_pages()?;
    let mut made = [RawDomId(0); DOMAINS];
    for domain in &mut made {
        *domain = create()?;
    }
    let taken = before.saturating_sub(free_pages()?);
    press(b'm')?;
    for domain in made {
        destroy(domain).ok()?;
    }
    println!("[bench] bytes per empty domain: {}", taken * 4096 / DOMAINS as u64);
    Ok(())
}

/// Presses a debug key.
fn press(key: u8) -> Result<(), Answer> {
    let mut keys = [key];
    let wanted = DebugKeys {
        keys: address(&mut keys),
        nr_keys: 1,
        pad: 0,
    };
    let mut request = Sysctl::with(SysctlCmd::DEBUG_KEYS, &wanted);
    call(number::SYSCTL, [address(&mut request)]).ok().map(drop)
}

/// Pages one by one, 64 in a call.
fn populate() -> Result<(), Answer> {
    const PAGES: usize = 64;
    let domain = create()?;
    ask(DomctlCmd::MAX_MEM, domain, &MaxMem { max_memkb: 64 << 10 }).ok()?;
    let mut row = Row::each("populate, each page", PAGES as u64);
    for round in rounds() {
        let mut frames: [u64; PAGES] = core::array::from_fn(|index| (round * PAGES + index) as u64);
        let mut wanted = MemoryReservation::new_zeroed();
        wanted.extent_start = address(&mut frames);
        wanted.nr_extents = PAGES as u64;
        wanted.domid = domain;
        let command = u64::from(MemoryCmd::POPULATE_PHYSMAP.0);
        let answer = row.time(|| call(number::MEMORY_OP, [command, address(&mut wanted)]));
        let distinct = frames.windows(2).all(|pair| pair[0] != pair[1]);
        row.check("all populated", answer == Answer(PAGES as i64) && distinct);
    }
    row.report();
    destroy(domain).ok().map(drop)
}
