//! A domain's xenstore nodes, in libxl's layout, so that libxl's tools and the guest's drivers find them.
//!
//! Upstream: docs/misc/xenstore-paths.

use crate::error::{Doing, Result};
use crate::pv::{Built, Channels};
use ferroxen_words::DomId;
use ferroxen_xenstore::{Changes, Client, Permission, Result as StoreResult, Rights, Store};
use ferroxen_xlconfig::DomainConfig;
use uuid::Uuid;

/// Where every domain has its directory.
const DOMAINS: &str = "/local/domain";

/// `/local/domain/N`
pub fn domain(domid: DomId) -> String {
    format!("/local/domain/{}", domid.raw())
}

/// `/vm/UUID`
pub fn vm(uuid: &Uuid) -> String {
    format!("/vm/{uuid}")
}

/// `/libxl/N`
pub fn libxl(domid: DomId) -> String {
    format!("/libxl/{}", domid.raw())
}

/// The guest's directory of a device.
pub fn frontend(domid: DomId, kind: &str, id: u32) -> String {
    format!("/local/domain/{}/device/{kind}/{id}", domid.raw())
}

/// Domain 0's directory of a guest's device.
pub fn backend(domid: DomId, kind: &str, id: u32) -> String {
    backend_in(DomId::DOM0, domid, kind, id)
}

/// The directory of a guest's device in the domain that serves it.
pub fn backend_in(server: DomId, domid: DomId, kind: &str, id: u32) -> String {
    format!("{}/backend/{kind}/{}/{id}", domain(server), domid.raw())
}

/// The notes about a guest's devices of one kind, where libxl has them.
pub fn notes(domid: DomId, kind: &str) -> String {
    format!("{}/device/{kind}", libxl(domid))
}

/// The notes about one device.
pub fn note(domid: DomId, kind: &str, id: &str) -> String {
    format!("{}/{id}", notes(domid, kind))
}

/// The backend's directory of one device, wherever that is.
pub fn serving(store: &impl Store, domid: DomId, kind: &str, id: u32) -> StoreResult<Option<String>> {
    store.read_opt(&format!("{}/backend", note(domid, kind, &id.to_string())))
}

/// The domain in whose directory a path is.
pub fn domain_of(path: &str) -> Option<DomId> {
    let below = path.strip_prefix(DOMAINS)?.strip_prefix('/')?;
    DomId::new(below.split('/').next()?.parse().ok()?)
}

/// Where Domain 0's directories of guests' devices are.
pub const BACKENDS: &str = "/local/domain/0/backend";

/// Bytes of console output kept for a domain that nobody watches, as libxl has it.
pub const CONSOLE_LIMIT: &str = "1048576";

fn entry(rights: Rights, domid: DomId) -> Permission {
    Permission {
        rights,
        domid: domid.raw(),
    }
}

/// Domain 0's, and the guest may read.
pub fn readable(domid: DomId) -> [Permission; 2] {
    [entry(Rights::None, DomId::DOM0), entry(Rights::Read, domid)]
}

/// The guest's own.
pub fn writable(domid: DomId) -> [Permission; 1] {
    [entry(Rights::None, domid)]
}

/// `owner`'s, and `reader` may read: a frontend's or a backend's directory.
pub fn shared(owner: DomId, reader: DomId) -> [Permission; 2] {
    [entry(Rights::None, owner), entry(Rights::Read, reader)]
}

/// Makes a directory with these permissions.
pub fn make(changes: &mut Changes, path: &str, permissions: &[Permission]) {
    changes.mkdir(path);
    changes.set_permissions(path, permissions);
}

/// Writes values below a directory.
pub fn write_all(changes: &mut Changes, directory: &str, values: &[(&str, String)]) {
    for (name, value) in values {
        changes.write(&format!("{directory}/{name}"), value);
    }
}

/// Gives Domain 0 the nodes that every tool looks for, unless it has them (Debian's xen-init-dom0 makes the same).
pub fn ensure_dom0(store: &Client) -> Result<()> {
    let home = domain(DomId::DOM0);
    let doing = || "noting Domain 0 in xenstore".to_owned();
    if store.exists(&format!("{home}/name")).doing(doing)? {
        return Ok(());
    }
    let values = [("domid", "0".to_owned()), ("name", "Domain-0".to_owned())];
    let mut changes = Changes::default();
    write_all(&mut changes, &home, &values);
    changes.write("/local/pool/0/name", "Pool-0");
    store.transaction(|tx| tx.apply(&changes)).doing(doing)
}

/// Makes the directories of a new domain; gives the domain that has its name already, if one has.
///
/// `others` are known to have other names. So that of two who come at once only one gets the name, those that have come
/// since are looked at in the transaction: a domain that comes, or gets another name, changes the directory of all
/// domains, and so makes it start again.
pub fn create(
    store: &Client,
    domid: DomId,
    uuid: &Uuid,
    config: &DomainConfig,
    others: &[DomId],
) -> Result<Option<DomId>> {
    let changes = directories(domid, uuid, config);
    store
        .transaction(|tx| {
            let mut new = all(tx)?;
            new.retain(|domid| !others.contains(domid));
            match named(tx, &new, &config.name)? {
                None => tx.apply(&changes).map(|()| None),
                taken => Ok(taken),
            }
        })
        .doing(|| format!("making the xenstore directories of domain {}", domid.raw()))
}

/// Gives a domain another name, unless one has that already: then gives that one.
pub fn rename(store: &Client, domid: DomId, name: &str) -> StoreResult<Option<DomId>> {
    store.transaction(|tx| {
        if let Some(taken) = find(tx, name)? {
            return Ok(Some(taken));
        }
        let home = domain(domid);
        let mut changes = Changes::default();
        // Whoever is looking through the names starts again.
        changes.write(DOMAINS, "");
        changes.write(&format!("{home}/name"), name);
        if let Some(vm) = tx.read_opt(&format!("{home}/vm"))? {
            changes.write(&format!("{vm}/name"), name);
        }
        tx.apply(&changes).map(|()| None)
    })
}

fn directories(domid: DomId, uuid: &Uuid, config: &DomainConfig) -> Changes {
    let (home, vm) = (domain(domid), vm(uuid));
    let mut changes = Changes::default();
    for path in [&home, &vm, &libxl(domid)] {
        changes.rm(path);
    }
    make(&mut changes, &home, &readable(domid));
    make(&mut changes, &vm, &readable(domid));
    make(&mut changes, &libxl(domid), &[entry(Rights::None, DomId::DOM0)]);
    changes.write(&format!("{}/type", libxl(domid)), "pv");
    let values = [
        ("vm", vm.clone()),
        ("name", config.name.clone()),
        ("domid", domid.raw().to_string()),
    ];
    write_all(&mut changes, &home, &values);
    for name in ["cpu", "memory", "device", "control"] {
        make(&mut changes, &format!("{home}/{name}"), &readable(domid));
    }
    for name in [
        "control/shutdown",
        "control/feature-poweroff",
        "control/feature-reboot",
        "control/feature-suspend",
        "control/sysrq",
        "data",
        "drivers",
        "feature",
        "attr",
        "error",
    ] {
        make(&mut changes, &format!("{home}/{name}"), &writable(domid));
    }
    if config.suspends_as_with_xend {
        // The guest makes the node itself, and may make others beside it.
        changes.set_permissions(&format!("{home}/device"), &writable(domid));
    } else {
        make(
            &mut changes,
            &format!("{home}/device/suspend/event-channel"),
            &writable(domid),
        );
    }
    if config.is_driver_domain {
        // What libxl and QEMU in there keep.
        for name in ["libxl", "device-model"] {
            make(&mut changes, &format!("{home}/{name}"), &writable(domid));
        }
    }
    for name in [
        "platform-feature-multiprocessor-suspend",
        "platform-feature-xs_reset_watches",
    ] {
        changes.write(&format!("{home}/control/{name}"), "1");
    }
    vm_nodes(&mut changes, &vm, uuid, config);
    changes
}

fn vm_nodes(changes: &mut Changes, vm: &str, uuid: &Uuid, config: &DomainConfig) {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    let path =
        |path: &Option<std::path::PathBuf>| path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    let values = [
        ("uuid", uuid.to_string()),
        ("name", config.name.clone()),
        (
            "start_time",
            format!("{}.{:02}", now.as_secs(), now.subsec_millis() / 10),
        ),
        ("image/ostype", "linux".to_owned()),
        ("image/kernel", path(&config.kernel)),
        ("image/ramdisk", path(&config.ramdisk)),
        ("image/cmdline", config.cmdline.clone().unwrap_or_default()),
    ];
    write_all(changes, vm, &values);
}

/// Adds what is known only once the domain is built.
pub fn complete(store: &Client, domid: DomId, config: &DomainConfig, built: &Built, channels: Channels) -> Result<()> {
    let home = domain(domid);
    let values = [
        ("memory/static-max", (config.maxmem_mib * 1024).to_string()),
        ("memory/target", (config.memory_mib * 1024).to_string()),
        ("memory/videoram", "0".to_owned()),
        ("store/port", channels.store.raw().to_string()),
        ("store/ring-ref", built.store.raw().to_string()),
    ];
    let mut changes = Changes::default();
    write_all(&mut changes, &home, &values);
    for cpu in 0..config.maxvcpus {
        let availability = if cpu < config.vcpus { "online" } else { "offline" };
        changes.write(&format!("{home}/cpu/{cpu}/availability"), availability);
    }
    console(&mut changes, domid, built, channels);
    store
        .transaction(|tx| tx.apply(&changes))
        .doing(|| format!("writing the xenstore nodes of domain {}", domid.raw()))
}

fn console(changes: &mut Changes, domid: DomId, built: &Built, channels: Channels) {
    let front = format!("{}/console", domain(domid));
    let back = backend(domid, "console", 0);
    make(changes, &front, &readable(domid));
    make(changes, &back, &shared(DomId::DOM0, domid));
    let values = [
        ("backend", back.clone()),
        ("backend-id", "0".to_owned()),
        ("limit", CONSOLE_LIMIT.to_owned()),
        ("type", "xenconsoled".to_owned()),
        ("output", "pty".to_owned()),
        ("tty", String::new()),
        ("port", channels.console.raw().to_string()),
        ("ring-ref", built.console.raw().to_string()),
    ];
    write_all(changes, &front, &values);
    let values = [
        ("frontend", front.clone()),
        ("frontend-id", domid.raw().to_string()),
        ("online", "1".to_owned()),
        ("state", "1".to_owned()),
        ("protocol", "vt100".to_owned()),
    ];
    write_all(changes, &back, &values);
    register(changes, domid, "console", 0, &back, &values);
}

/// Notes a device where libxl looks for a domain's devices: both directories, and a copy of the backend's.
pub fn register(changes: &mut Changes, domid: DomId, kind: &str, id: u32, back: &str, backend: &[(&str, String)]) {
    let note = note(domid, kind, &id.to_string());
    changes.write(&format!("{note}/backend"), back);
    write_all(changes, &note, backend);
}

/// A domain's name, if it has one.
pub fn name(store: &impl Store, domid: DomId) -> StoreResult<Option<String>> {
    store.read_opt(&format!("{}/name", domain(domid)))
}

/// The domain of that name.
pub fn find(store: &impl Store, wanted: &str) -> StoreResult<Option<DomId>> {
    named(store, &all(store)?, wanted)
}

/// All domains that have a directory, each with its name if it has one.
pub fn all_named(store: &Client) -> StoreResult<Vec<(DomId, Option<String>)>> {
    if let Some(values) = store.values(DOMAINS, "name")? {
        let domid = |id: &str| DomId::new(id.parse().ok()?);
        let named = |(id, name): (String, _)| Some((domid(&id)?, name));
        return Ok(values.into_iter().filter_map(named).collect());
    }
    let all = all(store)?;
    let names = names(store, &all)?;
    Ok(all.into_iter().zip(names).collect())
}

/// The one of these domains that has a name.
pub fn named(store: &impl Store, domids: &[DomId], wanted: &str) -> StoreResult<Option<DomId>> {
    let names = names(store, domids)?;
    let found = names.iter().position(|name| name.as_deref() == Some(wanted));
    Ok(found.and_then(|at| domids.get(at).copied()))
}

/// The domains that have a directory.
pub fn all(store: &impl Store) -> StoreResult<Vec<DomId>> {
    let ids = store.directory_opt(DOMAINS)?;
    Ok(ids.iter().filter_map(|id| DomId::new(id.parse().ok()?)).collect())
}

/// The names of domains, in their order.
pub fn names(store: &impl Store, domids: &[DomId]) -> StoreResult<Vec<Option<String>>> {
    let paths: Vec<_> = domids.iter().map(|domid| format!("{}/name", domain(*domid))).collect();
    store.read_each(&paths)
}
