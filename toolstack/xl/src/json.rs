//! Domains as JSON, under libxl's names, for `xl list -l` and `xl create -n`.

use ferroxen_abi::domctl::Getdomaininfo;
use ferroxen_domains::Toolstack;
use ferroxen_domains::describe::{self, pretty};
use ferroxen_words::DomId;
use ferroxen_xlconfig::{Disk, DomainConfig, Vif};
use serde_json::{Value, json};
use uuid::Uuid;

/// `xl list -l`
pub fn domains(tools: &Toolstack, infos: &[Getdomaininfo]) -> String {
    let domains = infos
        .iter()
        .filter_map(|info| {
            Some(json!({"domid": info.domain.0, "config": of_running(tools, info, DomId::new(info.domain.0)?)}))
        })
        .collect();
    pretty(&Value::Array(domains))
}

/// `xl create -n`
pub fn config(config: &DomainConfig) -> String {
    pretty(&describe::config(config))
}

/// `xl -N block-attach`
pub fn disk(disk: &Disk) -> String {
    pretty(&describe::disk(disk))
}

/// `xl -N network-attach`
pub fn nic(vif: &Vif) -> String {
    pretty(&describe::nic(None, 0, vif))
}

/// From what was kept at its creation; else the little that the hypervisor knows.
fn of_running(tools: &Toolstack, info: &Getdomaininfo, domid: DomId) -> Value {
    let uuid = Uuid::from_bytes(info.handle);
    let name = tools.name(domid);
    let mut value = match tools.keep.load(domid, &uuid) {
        Some(loaded) => describe::config(&loaded.config),
        None => json!({"c_info": {"type": "pv"}, "b_info": {}}),
    };
    value["c_info"]["name"] = name.into();
    if !uuid.is_nil() {
        value["c_info"]["uuid"] = uuid.to_string().into();
    }
    if value["b_info"]["max_memkb"].is_null() {
        value["b_info"]["max_memkb"] = info.max_pages.saturating_mul(4).into();
    }
    // As it is now, not as it was asked for.
    value["b_info"]["target_memkb"] = info.tot_pages.saturating_mul(4).into();
    if let Ok(credit) = tools.hypervisor.sched_credit(domid) {
        let scheduler = tools
            .hypervisor
            .scheduler()
            .map_or("unknown", crate::host::scheduler_name);
        value["b_info"]["sched_params"] = json!({"sched": scheduler, "weight": credit.weight, "cap": credit.cap});
    }
    value
}
