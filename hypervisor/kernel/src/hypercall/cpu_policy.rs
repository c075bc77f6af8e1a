//! CPU policies, as tools read and set them: the host's through `sysctl`, a domain's through `domctl`.

use super::domctl::Reply;
use crate::domain::Domain;
use crate::guest::GuestPtr;
use crate::pv::policy;
use alloc::boxed::Box;
use alloc::sync::Arc;
use ferroxen_abi::domctl::{self as abi, CPUID_NO_SUBLEAF, CpuidLeaf, Domctl, MsrEntry};
use ferroxen_abi::errno::Errno;
use ferroxen_abi::sysctl::{self, CpuPolicyIndex, FeaturesetIndex, Sysctl};
use ferroxen_x86policy::features::WORDS;
use ferroxen_x86policy::serial::{MAX_LEAVES, REGISTERS};
use ferroxen_x86policy::{Leaf, Misfit, Policy, Record};

/// One of the host's policies; `EOPNOTSUPP` for those of guests that there cannot be.
fn host_policy(index: CpuPolicyIndex) -> Result<&'static Policy, Errno> {
    let all = policy::of_host();
    match index {
        CpuPolicyIndex::RAW => Ok(&all.raw),
        CpuPolicyIndex::HOST => Ok(&all.host),
        CpuPolicyIndex::PV_MAX => Ok(&all.pv_max),
        CpuPolicyIndex::PV_DEFAULT => Ok(&all.pv_default),
        CpuPolicyIndex::HVM_MAX | CpuPolicyIndex::HVM_DEFAULT => Err(Errno::EOPNOTSUPP),
        _ => Err(Errno::EINVAL),
    }
}

/// `XEN_SYSCTL_get_cpu_policy`
pub(super) fn of_host(request: &mut Sysctl) -> Result<(), Errno> {
    let mut wanted: sysctl::CpuPolicy = request.payload();
    if wanted.rsvd != 0 {
        return Err(Errno::EINVAL);
    }
    let policy = host_policy(wanted.index)?;
    let answer = give_leaves(policy, wanted.leaves, &mut wanted.nr_leaves)
        .and_then(|()| give_registers(policy, wanted.msrs, &mut wanted.nr_msrs));
    request.set_payload(&wanted);
    answer
}

/// `XEN_SYSCTL_get_cpu_featureset`
pub(super) fn feature_set(request: &mut Sysctl) -> Result<(), Errno> {
    let mut wanted: sysctl::CpuFeatureset = request.payload();
    let room = wanted.nr_features as usize;
    wanted.nr_features = WORDS as u32;
    let policy = match wanted.index {
        FeaturesetIndex::RAW => CpuPolicyIndex::RAW,
        FeaturesetIndex::HOST => CpuPolicyIndex::HOST,
        FeaturesetIndex::PV => CpuPolicyIndex::PV_DEFAULT,
        FeaturesetIndex::PV_MAX => CpuPolicyIndex::PV_MAX,
        FeaturesetIndex::HVM | FeaturesetIndex::HVM_MAX => CpuPolicyIndex::HVM_DEFAULT,
        _ if wanted.features == 0 => CpuPolicyIndex::HOST,
        _ => return Err(Errno::EINVAL),
    };
    let mut answer = Ok(());
    if wanted.features != 0 {
        let words = host_policy(policy)?.feature_set().0;
        let given = room.min(WORDS);
        GuestPtr::<u32>::new(wanted.features).write_slice(&words[..given])?;
        if given < WORDS {
            answer = Err(Errno::ENOBUFS);
        }
        wanted.nr_features = given as u32;
    }
    request.set_payload(&wanted);
    answer
}

/// `XEN_DOMCTL_get_cpu_policy`
pub(super) fn of_domain(subject: &Arc<Domain>, request: &mut Domctl) -> Result<(), Errno> {
    let mut wanted: abi::CpuPolicy = request.payload();
    // A copy, as nothing of a guest's is written under the lock.
    let policy = Box::new(subject.policy.lock().get().clone());
    give_leaves(&policy, wanted.leaves, &mut wanted.nr_leaves)?;
    give_registers(&policy, wanted.msrs, &mut wanted.nr_msrs)?;
    request.set_payload(&wanted);
    Ok(())
}

/// `XEN_DOMCTL_set_cpu_policy`: `EEXIST` once the domain has run, `ERANGE` for a leaf or register that policies do not
/// have, `EINVAL` for more than the host can give; the last two say where.
pub(super) fn set(caller: &Arc<Domain>, subject: &Arc<Domain>, request: &mut Domctl) -> Result<Reply, Errno> {
    if Arc::ptr_eq(caller, subject) {
        return Err(Errno::EINVAL);
    }
    if subject.has_run() {
        return Err(Errno::EEXIST);
    }
    let mut wanted: abi::CpuPolicy = request.payload();
    if wanted.nr_leaves > MAX_LEAVES || wanted.nr_msrs > REGISTERS {
        return Err(Errno::E2BIG);
    }
    let mut policy = Box::new(subject.policy.lock().get().clone());
    let fault = match take(&mut policy, &wanted)? {
        Some(refused) => Some(refused),
        None => subject
            .policy
            .lock()
            .replace(*policy)
            .err()
            .map(|misfit| (Errno::EINVAL, misfit)),
    };
    let Some((why, place)) = fault else {
        subject.cpuid_masks.follow(subject.policy.lock().get());
        return Ok(Reply::Done);
    };
    (wanted.err_leaf, wanted.err_subleaf, wanted.err_msr) = match place {
        Misfit::Leaf(leaf, subleaf) => (leaf, subleaf.unwrap_or(CPUID_NO_SUBLEAF), u32::MAX),
        Misfit::Register(register) => (u32::MAX, u32::MAX, register),
    };
    request.set_payload(&wanted);
    Ok(Reply::Refused(why))
}

/// Takes a tool's leaves and registers over; what is wrong with them, and where.
fn take(policy: &mut Policy, wanted: &abi::CpuPolicy) -> Result<Option<(Errno, Misfit)>, Errno> {
    let leaves = GuestPtr::<CpuidLeaf>::new(wanted.leaves);
    for index in 0..wanted.nr_leaves {
        let CpuidLeaf {
            leaf,
            subleaf,
            a,
            b,
            c,
            d,
        } = leaves.read_element(index.into())?;
        let subleaf = (subleaf != CPUID_NO_SUBLEAF).then_some(subleaf);
        let says = Leaf { a, b, c, d };
        if policy.take_leaf(Record { leaf, subleaf, says }).is_err() {
            return Ok(Some((Errno::ERANGE, Misfit::Leaf(leaf, subleaf))));
        }
    }
    let registers = GuestPtr::<MsrEntry>::new(wanted.msrs);
    for index in 0..wanted.nr_msrs {
        let MsrEntry { idx, flags, val } = registers.read_element(index.into())?;
        if flags != 0 {
            return Ok(Some((Errno::EINVAL, Misfit::Register(idx))));
        }
        if policy.take_register(idx, val).is_err() {
            return Ok(Some((Errno::ERANGE, Misfit::Register(idx))));
        }
    }
    Ok(None)
}

/// Writes a policy's leaves to a tool's array of `count`; without an array, how many there can be. `ENOBUFS` if they do
/// not fit; `count` then is what did.
fn give_leaves(policy: &Policy, at: u64, count: &mut u32) -> Result<(), Errno> {
    if at == 0 {
        *count = MAX_LEAVES;
        return Ok(());
    }
    let array = GuestPtr::<CpuidLeaf>::new(at);
    let mut given = 0;
    for Record { leaf, subleaf, says } in policy.leaves() {
        if given == *count {
            return Err(Errno::ENOBUFS);
        }
        let Leaf { a, b, c, d } = says;
        let subleaf = subleaf.unwrap_or(CPUID_NO_SUBLEAF);
        array.write_element(
            given.into(),
            &CpuidLeaf {
                leaf,
                subleaf,
                a,
                b,
                c,
                d,
            },
        )?;
        given += 1;
    }
    *count = given;
    Ok(())
}

/// As [`give_leaves`], for registers.
fn give_registers(policy: &Policy, at: u64, count: &mut u32) -> Result<(), Errno> {
    if at == 0 {
        *count = REGISTERS;
        return Ok(());
    }
    if *count < REGISTERS {
        return Err(Errno::ENOBUFS);
    }
    let array = GuestPtr::<MsrEntry>::new(at);
    for (index, (idx, val)) in (0u64..).zip(policy.registers()) {
        array.write_element(index, &MsrEntry { idx, flags: 0, val })?;
    }
    *count = REGISTERS;
    Ok(())
}
