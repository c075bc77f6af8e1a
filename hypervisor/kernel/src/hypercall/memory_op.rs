//! `memory_op`: how much memory a domain has, and which frames.
//!
//! The reservation calls answer with the number of extents done, whatever stopped them; a long one keeps that number
//! in the command's upper bits while it is interrupted (`MEMOP_EXTENT_SHIFT`).

use super::{Answer, Call};
use crate::access;
use crate::domain::{self, Domain};
use crate::guest::GuestPtr;
use crate::memory::{self, AllocFlags, Stolen};
use alloc::sync::Arc;
use alloc::vec::Vec;
use ferroxen_abi::errno::Errno;
use ferroxen_abi::memory::{
    AcquireResource, AddToPhysmap, AddToPhysmapBatch, E820Entry, E820Type, ForeignMemoryMap, MEMOP_CMD_MASK,
    MEMOP_EXTENT_SHIFT, MachphysMapping, MachphysMfnList, MapSpace, MemoryCmd, MemoryExchange, MemoryMap,
    MemoryReservation, PodTarget, RemoveFromPhysmap, ReservedDeviceMemoryMap, ResourceType, VnumaTopologyInfo, memf,
};
use ferroxen_abi::xen::{MACH2PHYS_VIRT_END, shared_info};
use ferroxen_access::Operation;
use ferroxen_machine::{ioapic, m2p, time};
use ferroxen_words::{DomId, Mfn, PAGE_SHIFT, PAGE_SIZE, RawDomId};

/// The largest extent: 2 MiB. Upstream allows the control domain more; its tools fall back to this.
const MAX_ORDER: u32 = 9;
/// The most entries of a domain's memory map (upstream: `E820MAX`).
const MAX_MAP: u32 = 1024;
/// Extents that fit beside the command.
const MAX_EXTENTS: u64 = (u32::MAX >> MEMOP_EXTENT_SHIFT) as u64;

/// `memory_op(command, argument)`
pub fn memory_op(call: &mut Call<'_>) -> Answer {
    let [command, at, ..] = call.args();
    let command = command & 0xffff_ffff;
    let start = command >> MEMOP_EXTENT_SHIFT;
    let op = MemoryCmd((command & MEMOP_CMD_MASK) as u32);
    match op {
        MemoryCmd::INCREASE_RESERVATION | MemoryCmd::DECREASE_RESERVATION | MemoryCmd::POPULATE_PHYSMAP => {
            reservation(call, op, start)
        }
        MemoryCmd::EXCHANGE => exchange(call),
        MemoryCmd::MAXIMUM_RAM_PAGE => Ok(ferroxen_machine::memory::max_mfn()),
        MemoryCmd::CURRENT_RESERVATION | MemoryCmd::MAXIMUM_RESERVATION | MemoryCmd::MAXIMUM_GPFN => count(call, op),
        MemoryCmd::MACHPHYS_MFN_LIST => machphys_mfn_list(GuestPtr::new(at)),
        MemoryCmd::MACHPHYS_COMPAT_MFN_LIST => Err(Errno::EOPNOTSUPP),
        MemoryCmd::MACHPHYS_MAPPING => machphys_mapping(GuestPtr::new(at)),
        MemoryCmd::ADD_TO_PHYSMAP => {
            let wanted = GuestPtr::<AddToPhysmap>::new(at).read()?;
            if wanted.space == MapSpace::GMFN_FOREIGN {
                return Err(Errno::ENOSYS);
            }
            // A PV guest has no physical map of ours: it maps frames by its page tables. So whoever asks is refused.
            domain::resolve(call.caller.domain(), wanted.domid)?;
            Err(Errno::EACCES)
        }
        MemoryCmd::ADD_TO_PHYSMAP_BATCH => {
            let wanted = GuestPtr::<AddToPhysmapBatch>::new(at).read()?;
            domain::resolve(call.caller.domain(), wanted.domid)?;
            Err(Errno::EACCES)
        }
        MemoryCmd::REMOVE_FROM_PHYSMAP => remove_from_physmap(call),
        MemoryCmd::MEMORY_MAP => memory_map(call),
        MemoryCmd::MACHINE_MEMORY_MAP => machine_memory_map(call),
        MemoryCmd::SET_MEMORY_MAP => set_memory_map(call),
        MemoryCmd::SET_POD_TARGET | MemoryCmd::GET_POD_TARGET => {
            let wanted = GuestPtr::<PodTarget>::new(at).read()?;
            domain::resolve(call.caller.domain(), wanted.domid)?;
            // Populate-on-demand is for guests with a physical map.
            Err(Errno::EINVAL)
        }
        MemoryCmd::GET_SHARING_FREED_PAGES | MemoryCmd::GET_SHARING_SHARED_PAGES => Ok(0),
        MemoryCmd::CLAIM_PAGES => claim_pages(call),
        MemoryCmd::GET_VNUMAINFO => {
            let wanted = GuestPtr::<VnumaTopologyInfo>::new(at).read()?;
            if wanted.pad != 0 {
                return Err(Errno::EINVAL);
            }
            subject_of(call, wanted.domid)?;
            Err(Errno::EOPNOTSUPP)
        }
        MemoryCmd::RESERVED_DEVICE_MEMORY_MAP => reserved_device_memory(GuestPtr::new(at)),
        MemoryCmd::ACQUIRE_RESOURCE => acquire_resource(call, start),
        _ => Err(Errno::ENOSYS),
    }
}

/// The domain that a call concerns, if the caller may change its memory.
fn subject_of(call: &Call<'_>, id: RawDomId) -> Result<Arc<Domain>, Errno> {
    let subject = domain::resolve(call.caller.domain(), id)?;
    access::to_domain(call.caller.domain(), &subject, Operation::Memory)?;
    Ok(subject)
}

/// How one step over extents ended.
enum Step {
    Done,
    /// The call ends here; the extents before it are done.
    Stop,
}

/// `increase_reservation`, `decrease_reservation`, `populate_physmap`.
fn reservation(call: &mut Call<'_>, op: MemoryCmd, start: u64) -> Answer {
    let stopped_at = |extent: u64| Ok(extent);
    let Ok(wanted) = GuestPtr::<MemoryReservation>::new(call.args()[1]).read() else {
        return stopped_at(start);
    };
    if wanted.nr_extents > MAX_EXTENTS || start >= wanted.nr_extents {
        return stopped_at(start);
    }
    let (Ok(address_bits), Ok(subject)) = (address_bits(wanted.mem_flags), subject_of(call, wanted.domid)) else {
        return stopped_at(start);
    };
    let flags = AllocFlags {
        address_bits,
        unscrubbed: false,
    };
    let on_demand = op == MemoryCmd::POPULATE_PHYSMAP && wanted.mem_flags & memf::POPULATE_ON_DEMAND != 0;
    if wanted.extent_order > MAX_ORDER || on_demand || !node_is_possible(wanted.mem_flags) {
        return stopped_at(start);
    }
    let extents = GuestPtr::<u64>::new(wanted.extent_start);
    for extent in start..wanted.nr_extents {
        if extent != start && time::entry_budget_spent() {
            let command = u64::from(op.0) | extent << MEMOP_EXTENT_SHIFT;
            return call.again([command]);
        }
        let step = match op {
            MemoryCmd::DECREASE_RESERVATION => decrease(&subject, extents, extent, wanted.extent_order),
            MemoryCmd::POPULATE_PHYSMAP => populate(&subject, extents, extent, wanted.extent_order, flags),
            _ => increase(&subject, extents, extent, wanted.extent_order, flags),
        };
        if let Step::Stop = step {
            return stopped_at(extent);
        }
    }
    stopped_at(wanted.nr_extents)
}

/// How many address bits the caller allows. `EINVAL` for a number with which no page can be had.
fn address_bits(mem_flags: u32) -> Result<Option<u32>, Errno> {
    match mem_flags & memf::ADDRESS_BITS_MASK {
        0 => Ok(None),
        bits if bits >= u64::BITS + PAGE_SHIFT => Ok(None),
        bits if bits <= PAGE_SHIFT => Err(Errno::EINVAL),
        bits => Ok(Some(bits)),
    }
}

/// Whether the NUMA node that is asked for, if any, has a number that some node may have (XSA-231). That all memory is
/// on one node here makes the wish idle, but not wrong.
fn node_is_possible(mem_flags: u32) -> bool {
    const MAX_NODES: u32 = 64;
    let node_plus_one = mem_flags >> memf::NODE_SHIFT & 0xff;
    mem_flags & memf::VNODE != 0 || node_plus_one <= MAX_NODES
}

fn populate(subject: &Domain, extents: GuestPtr<u64>, extent: u64, order: u32, flags: AllocFlags) -> Step {
    let Ok(first) = extents.read_element(extent) else {
        return Step::Stop;
    };
    let Ok(mfn) = memory::allocate_with(subject, order, flags) else {
        return Step::Stop;
    };
    for index in 0..1u64 << order {
        m2p::set(Mfn::new(mfn.raw() + index), first.wrapping_add(index));
    }
    if extents.write_element(extent, &mfn.raw()).is_ok() {
        Step::Done
    } else {
        Step::Stop
    }
}

fn increase(subject: &Domain, extents: GuestPtr<u64>, extent: u64, order: u32, flags: AllocFlags) -> Step {
    let Ok(mfn) = memory::allocate_with(subject, order, flags) else {
        return Step::Stop;
    };
    if extents.is_null() || extents.write_element(extent, &mfn.raw()).is_ok() {
        Step::Done
    } else {
        Step::Stop
    }
}

fn decrease(subject: &Domain, extents: GuestPtr<u64>, extent: u64, order: u32) -> Step {
    let Ok(first) = extents.read_element(extent) else {
        return Step::Stop;
    };
    for index in 0..1u64 << order {
        let Some(mfn) = first.checked_add(index) else {
            return Step::Stop;
        };
        if memory::release_page(subject, Mfn::new(mfn)).is_err() {
            return Step::Stop;
        }
    }
    Step::Done
}

/// `XENMEM_exchange`: gives pages back and gets others for them, contiguous or low ones say.
///
/// It works in chunks of the larger of the two extents; a chunk is exchanged as a whole or not at all.
fn exchange(call: &mut Call<'_>) -> Answer {
    let at = GuestPtr::<MemoryExchange>::new(call.args()[1]);
    let mut exchange = at.read()?;
    let (input, output) = (exchange.in_, exchange.out);
    if input.extent_order.max(output.extent_order) > MAX_ORDER {
        return Err(Errno::EPERM);
    }
    let pages = |of: &MemoryReservation| {
        of.nr_extents
            .checked_mul(1 << of.extent_order)
            .filter(|&pages| pages < 1 << (u64::BITS - 4))
    };
    let sizes_match = pages(&input).is_some() && pages(&input) == pages(&output);
    if exchange.nr_exchanged > input.nr_extents || input.domid != output.domid || !sizes_match {
        return Err(Errno::EINVAL);
    }
    if exchange.nr_exchanged == input.nr_extents {
        return Ok(0);
    }
    let chunk_order = input.extent_order.max(output.extent_order);
    let inputs_shift = chunk_order - input.extent_order;
    let subject = subject_of(call, input.domid)?;
    if !node_is_possible(output.mem_flags) {
        return Err(Errno::EINVAL);
    }
    let flags = AllocFlags {
        // With so few bits there is no page to be had.
        address_bits: address_bits(output.mem_flags).map_err(|_| Errno::ENOMEM)?,
        unscrubbed: false,
    };

    let first_chunk = exchange.nr_exchanged >> inputs_shift;
    let chunks = input.nr_extents >> inputs_shift;
    let mut failed = None;
    let mut chunk = first_chunk;
    while chunk < chunks {
        if chunk != first_chunk && time::entry_budget_spent() {
            exchange.nr_exchanged = chunk << inputs_shift;
            at.write(&exchange)?;
            return Err(Errno::ERESTART);
        }
        if let Err(why) = exchange_chunk(&subject, &exchange, chunk, flags) {
            failed = Some(why);
            break;
        }
        chunk += 1;
    }
    exchange.nr_exchanged = if failed.is_none() {
        input.nr_extents
    } else {
        chunk << inputs_shift
    };
    at.write(&exchange)?;
    failed.map_or(Ok(0), Err)
}

fn exchange_chunk(subject: &Domain, exchange: &MemoryExchange, chunk: u64, flags: AllocFlags) -> Result<(), Errno> {
    let (input, output) = (&exchange.in_, &exchange.out);
    let chunk_order = input.extent_order.max(output.extent_order);
    let inputs = 1u64 << (chunk_order - input.extent_order);
    let outputs = 1u64 << (chunk_order - output.extent_order);
    let mut stolen: Vec<Stolen> = Vec::new();
    let mut given: Vec<Mfn> = Vec::new();
    let room = stolen
        .try_reserve(1 << chunk_order)
        .and_then(|()| given.try_reserve(outputs as usize));
    room.map_err(|_| Errno::ENOMEM)?;

    let taken = (|| {
        for extent in 0..inputs {
            let first = GuestPtr::<u64>::new(input.extent_start).read_element(chunk * inputs + extent)?;
            for index in 0..1u64 << input.extent_order {
                let mfn = first.checked_add(index).ok_or(Errno::EINVAL)?;
                stolen.push(memory::steal(subject, Mfn::new(mfn))?);
            }
        }
        for _ in 0..outputs {
            given.push(memory::allocate_with(subject, output.extent_order, flags)?);
        }
        Ok(())
    })();
    if let Err(why) = taken {
        for mfn in given
            .iter()
            .flat_map(|first| (0..1u64 << output.extent_order).map(|index| first.raw() + index))
        {
            // It was given to the domain just now; if it has it back already, that is its own doing.
            let _ = memory::release_page(subject, Mfn::new(mfn));
        }
        stolen.into_iter().for_each(|page| page.give_back(subject));
        return Err(why);
    }
    stolen.into_iter().for_each(Stolen::free);
    let list = GuestPtr::<u64>::new(output.extent_start);
    for (extent, mfn) in given.iter().enumerate() {
        let at = chunk * outputs + extent as u64;
        let number = list.read_element(at)?;
        for index in 0..1u64 << output.extent_order {
            m2p::set(Mfn::new(mfn.raw() + index), number.wrapping_add(index));
        }
        list.write_element(at, &mfn.raw())?;
    }
    Ok(())
}

/// `current_reservation`, `maximum_reservation`, `maximum_gpfn`.
fn count(call: &Call<'_>, op: MemoryCmd) -> Answer {
    let id = GuestPtr::<RawDomId>::new(call.args()[1]).read()?;
    let subject = subject_of(call, id)?;
    let counts = memory::counts(&subject);
    Ok(match op {
        MemoryCmd::CURRENT_RESERVATION => counts.total,
        // "No limit" must not look like an error: upstream counts in 32 bits.
        MemoryCmd::MAXIMUM_RESERVATION => counts.max.min(u32::MAX.into()),
        // A PV guest says itself how many frames it counts.
        _ => subject.shared_info.load_u64_at(shared_info::MAX_PFN).saturating_sub(1),
    })
}

fn machphys_mfn_list(at: GuestPtr<MachphysMfnList>) -> Answer {
    let mut wanted = at.read()?;
    let extents = GuestPtr::<u64>::new(wanted.extent_start);
    let mut last = 0;
    let mut count = 0;
    for first in m2p::frames().take(wanted.max_extents as usize) {
        // Where the machine has no RAM the table has no piece: any frame will do.
        last = first.map_or(last, Mfn::raw);
        extents.write_element(count.into(), &last)?;
        count += 1;
    }
    wanted.nr_extents = count;
    at.write(&wanted)?;
    Ok(0)
}

fn machphys_mapping(at: GuestPtr<MachphysMapping>) -> Answer {
    let (start, _, entries) = m2p::bounds();
    at.write(&MachphysMapping {
        v_start: start.raw(),
        // What is set aside for the table, not what this machine fills of it.
        v_end: MACH2PHYS_VIRT_END,
        max_mfn: entries.saturating_sub(1),
    })?;
    Ok(0)
}

fn remove_from_physmap(call: &Call<'_>) -> Answer {
    let wanted = GuestPtr::<RemoveFromPhysmap>::new(call.args()[1]).read()?;
    domain::resolve(call.caller.domain(), wanted.domid)?;
    // There is nothing to remove it from.
    Err(Errno::EACCES)
}

fn claim_pages(call: &Call<'_>) -> Answer {
    let wanted = GuestPtr::<MemoryReservation>::new(call.args()[1]).read()?;
    if wanted.extent_start != 0 || wanted.extent_order != 0 || wanted.mem_flags != 0 {
        return Err(Errno::EINVAL);
    }
    // By its number; as upstream, where there is none that is a wrong argument.
    let subject = DomId::new(wanted.domid.0)
        .and_then(domain::by_id)
        .ok_or(Errno::EINVAL)?;
    access::to_host(call.caller.domain(), Operation::ControlHost)?;
    memory::claim(&subject, wanted.nr_extents)?;
    Ok(0)
}

/// The caller's own map, which its builder wrote.
fn memory_map(call: &Call<'_>) -> Answer {
    let at = GuestPtr::<MemoryMap>::new(call.args()[1]);
    let mut wanted = at.read()?;
    let map = memory::map_of(call.caller.domain());
    if map.is_empty() {
        return Err(Errno::ENOSYS);
    }
    if wanted.buffer == 0 {
        wanted.nr_entries = map.len() as u32;
    } else {
        wanted.nr_entries = wanted.nr_entries.min(map.len() as u32);
        let part = map.get(..wanted.nr_entries as usize).ok_or(Errno::EFAULT)?;
        GuestPtr::new(wanted.buffer).write_slice(part)?;
    }
    at.write(&wanted)?;
    Ok(0)
}

fn set_memory_map(call: &Call<'_>) -> Answer {
    let wanted = GuestPtr::<ForeignMemoryMap>::new(call.args()[1]).read()?;
    if wanted.map.nr_entries > MAX_MAP {
        return Err(Errno::EINVAL);
    }
    let subject = subject_of(call, wanted.domid)?;
    let mut map = Vec::new();
    map.try_reserve_exact(wanted.map.nr_entries as usize)
        .map_err(|_| Errno::ENOMEM)?;
    map.resize(wanted.map.nr_entries as usize, E820Entry::default());
    GuestPtr::new(wanted.map.buffer).read_slice(&mut map)?;
    memory::set_map(&subject, map);
    Ok(0)
}

/// The host's map, with the interrupt controllers as reserved: those are not Domain 0's.
fn machine_memory_map(call: &Call<'_>) -> Answer {
    access::to_host(call.caller.domain(), Operation::ControlHost)?;
    let at = GuestPtr::<MemoryMap>::new(call.args()[1]);
    let mut wanted = at.read()?;
    let mut map: Vec<E820Entry> = crate::boot::memory_map()
        .iter()
        .map(|region| E820Entry {
            addr: region.start,
            size: region.end.saturating_sub(region.start),
            type_: region.kind.0,
        })
        .collect();
    let controllers = ioapic::all().map(|(controller, _)| controller.base.raw());
    /// Local APICs, and where devices write their messages.
    const MESSAGES: (u64, u64) = (0xfee0_0000, 0x10_0000);
    for (base, size) in controllers.map(|base| (base, PAGE_SIZE as u64)).chain([MESSAGES]) {
        let page = E820Entry {
            addr: base & !0xfff,
            size,
            type_: E820Type::RESERVED.0,
        };
        let (start, end) = (page.addr, page.addr + page.size);
        let is_free = map.iter().all(|other| {
            let (other_start, other_size) = (other.addr, other.size);
            end <= other_start || other_start.saturating_add(other_size) <= start
        });
        if is_free {
            map.insert(map.partition_point(|entry| entry.addr <= start), page);
        }
    }
    if wanted.buffer != 0 {
        if map.len() > wanted.nr_entries as usize {
            return Err(Errno::EINVAL);
        }
        GuestPtr::new(wanted.buffer).write_slice(&map)?;
    }
    wanted.nr_entries = map.len() as u32;
    at.write(&wanted)?;
    Ok(0)
}

/// There is no IOMMU of ours, so no device needs memory of its own.
fn reserved_device_memory(at: GuestPtr<ReservedDeviceMemoryMap>) -> Answer {
    let mut wanted = at.read()?;
    const ALL: u32 = 1;
    if wanted.flags & !ALL != 0 {
        return Err(Errno::EINVAL);
    }
    wanted.nr_entries = 0;
    at.write(&wanted)?;
    Ok(0)
}

/// Frames that belong to a domain but to no place in its memory: its grant table.
fn acquire_resource(call: &Call<'_>, start: u64) -> Answer {
    let at = GuestPtr::<AcquireResource>::new(call.args()[1]);
    let mut wanted = at.read()?;
    let end = wanted
        .frame
        .checked_add(wanted.nr_frames.into())
        .filter(|&end| end <= u32::MAX.into());
    if wanted.pad != 0 || end.is_none() || start != 0 {
        return Err(Errno::EINVAL);
    }
    // Another domain's, and by its number: `DOMID_SELF` is none.
    let subject = DomId::new(wanted.domid.0)
        .and_then(domain::list::by_id)
        .ok_or(Errno::ESRCH)?;
    if Arc::ptr_eq(&subject, call.caller.domain()) {
        return Err(Errno::EPERM);
    }
    access::to_domain(call.caller.domain(), &subject, Operation::Memory)?;
    let is_grant_table =
        wanted.type_ == ResourceType::GRANT_TABLE && wanted.id == ferroxen_abi::memory::GRANT_TABLE_ID_SHARED;
    if !is_grant_table {
        return Err(if wanted.type_ == ResourceType::GRANT_TABLE {
            Errno::EINVAL
        } else {
            Errno::EOPNOTSUPP
        });
    }
    let most = subject.limits.grant_frames;
    if wanted.frame_list == 0 {
        if wanted.nr_frames != 0 {
            return Err(Errno::EINVAL);
        }
        wanted.nr_frames = most;
        at.write(&wanted)?;
        return Ok(0);
    }
    if end.is_none_or(|end| end > most.into()) {
        return Err(Errno::EINVAL);
    }
    let list = GuestPtr::<u64>::new(wanted.frame_list);
    for index in 0..wanted.nr_frames {
        // Below the limit, so it fits.
        let frame = super::grant_table::shared_frame(&subject, wanted.frame as u32 + index)?;
        list.write_element(index.into(), &frame.raw())?;
    }
    Ok(0)
}
