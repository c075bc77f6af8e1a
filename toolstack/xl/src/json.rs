//! JSON instead of tables: domains under libxl's names for `xl list -l` and `xl create -n`, and for every other command
//! that lists, the table's rows as records.

use clap::Args;
use ferroxen_abi::domctl::Getdomaininfo;
use ferroxen_domains::Toolstack;
use ferroxen_domains::describe::{self, pretty};
use ferroxen_words::DomId;
use ferroxen_xlconfig::{Disk, Loaded, Vif};
use serde_json::{Value, json};
use uuid::Uuid;

/// What stands for "no limit": what libxl has for Domain 0.
const MOST_KIB: u64 = 17_179_869_180;

/// Table or JSON.
#[derive(Clone, Copy, Debug, Args)]
pub struct Format {
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Prints a table's rows as records.
pub fn print(rows: Vec<Value>) -> anyhow::Result<()> {
    crate::show(&pretty(&Value::Array(rows)))
}

/// `xl list -l`
pub fn domains(tools: &Toolstack, infos: &[Getdomaininfo]) -> String {
    let numbered = |info: &Getdomaininfo| {
        let domid = DomId::new(info.domain.0)?;
        let mut config = of_running(tools, info, domid);
        // Stock xl knows nothing of how Domain 0 came about.
        if domid != DomId::DOM0 {
            describe::number(&mut config, domid);
        }
        Some(json!({"domid": domid.raw(), "config": config}))
    };
    pretty(&infos.iter().filter_map(numbered).collect())
}

/// `xl create -n`: one domain, or a list of several.
pub fn configs(all: &[Loaded]) -> String {
    match all {
        [loaded] => pretty(&describe::config(loaded)),
        all => pretty(&all.iter().map(describe::config).collect()),
    }
}

/// `xl -N block-attach`
pub fn disk(disk: &Disk) -> String {
    pretty(&describe::disk(disk))
}

/// `xl -N network-attach`
pub fn nic(vif: &Vif) -> String {
    pretty(&describe::nic(0, vif))
}

/// One running domain's configuration.
pub fn running(tools: &Toolstack, info: &Getdomaininfo, domid: DomId, keeps_domid: bool) -> String {
    let mut value = of_running(tools, info, domid);
    if keeps_domid {
        describe::number(&mut value, domid);
    }
    pretty(&value)
}

/// From what was kept at its creation; else the little that the hypervisor knows.
fn of_running(tools: &Toolstack, info: &Getdomaininfo, domid: DomId) -> Value {
    let uuid = Uuid::from_bytes(info.handle);
    let name = tools.name(domid);
    let mut value = match tools.keep.load(domid, &uuid) {
        Some(loaded) => {
            let mut value = describe::config(&loaded);
            describe::settle(&mut value, &uuid, &loaded.config);
            value
        }
        None => json!({
            "c_info": {"type": "pv", "name": null},
            "b_info": {
                "max_memkb": null, "target_memkb": null, "sched_params": {},
                "type.pv": {}, "arch_arm": {}, "arch_x86": {},
            },
        }),
    };
    value["c_info"]["name"] = name.into();
    if !uuid.is_nil() {
        value["c_info"]["uuid"] = uuid.to_string().into();
    }
    let build = &mut value["b_info"];
    if build["max_memkb"].is_null() {
        build["max_memkb"] = info.max_pages.saturating_mul(4).min(MOST_KIB).into();
    }
    // As it is now, not as it was asked for.
    build["target_memkb"] = info.tot_pages.saturating_mul(4).into();
    if !build["avail_vcpus"].is_null() {
        build["avail_vcpus"] = tools.available_vcpus(domid, info).into();
    }
    if let (Ok(credit), Ok(scheduler)) = (tools.hypervisor.sched_credit(domid), tools.hypervisor.scheduler()) {
        let scheduler = crate::host::scheduler_name(scheduler);
        build["sched_params"] = json!({"sched": scheduler, "weight": credit.weight, "cap": credit.cap});
    }
    value
}
