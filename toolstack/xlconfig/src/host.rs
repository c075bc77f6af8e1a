//! xl's smaller files, which have xl.cfg's plain grammar: the host's `xl.conf`, and those of CPU pools.

use crate::cpus::{CpuList, parse_cpu_list};
use crate::model::DomainConfig;
use crate::plain;
use crate::source::{Notice, Problem, Source};
use crate::value::{Setting, Settings, Value};
use crate::vif::Vif;
use std::collections::BTreeSet;

/// Settings of `xl.conf` that make no difference here, and why.
const IDLE: [(&str, &str); 9] = [
    (
        "autoballoon",
        "Domain 0 keeps its memory: start it with `dom0_mem`, or use `xl mem-set 0`",
    ),
    (
        "blkdev_start",
        "boot loaders are built in: no image is attached to Domain 0 for them",
    ),
    (
        "colo.default.proxyscript",
        "no domain is copied to another host while it runs on",
    ),
    ("domid_policy", "the hypervisor gives numbers"),
    ("lockfile", "domains are made at the same time: there is no lock"),
    ("output_format", "tables for programs are JSON only"),
    (
        "remus.default.netbufscript",
        "no domain is copied to another host while it runs on",
    ),
    ("run_hotplug_scripts", "xl runs scripts by itself"),
    ("vm.hvm.cpumask", "there are no HVM domains yet"),
];

/// What `xl.conf` sets for every domain of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct XlConf {
    /// Memory is not set aside before it is allocated.
    pub without_claim: bool,
    /// CPUs that domains may run on at most: each list holds for all.
    pub cpumasks: Vec<CpuList>,
    max_grant_frames: Option<u32>,
    max_maptrack_frames: Option<u32>,
    max_grant_version: Option<u32>,
    vif_script: Option<String>,
    vif_bridge: Option<String>,
    vif_backend: Option<String>,
    vif_gatewaydev: Option<String>,
}

impl XlConf {
    /// Fills in what a domain's configuration leaves open.
    pub fn complete(&self, config: &mut DomainConfig) {
        let or = |own: &mut Option<u32>, default: Option<u32>| *own = own.or(default);
        or(&mut config.max_grant_frames, self.max_grant_frames);
        or(&mut config.max_maptrack_frames, self.max_maptrack_frames);
        or(&mut config.max_grant_version, self.max_grant_version);
        config.vifs.iter_mut().for_each(|vif| self.complete_vif(vif));
        if !self.cpumasks.is_empty() {
            let lists = std::mem::take(&mut config.cpus);
            let vcpus = (0..config.maxvcpus as usize).map(|vcpu| match lists.len() {
                1 => lists.first(),
                _ => lists.get(vcpu),
            });
            config.cpus = vcpus.map(|list| self.masked(list.unwrap_or(&CpuList::All))).collect();
        }
    }

    /// The same for a network card.
    pub fn complete_vif(&self, vif: &mut Vif) {
        for (own, default) in [
            (&mut vif.script, &self.vif_script),
            (&mut vif.bridge, &self.vif_bridge),
            (&mut vif.backend, &self.vif_backend),
            (&mut vif.gatewaydev, &self.vif_gatewaydev),
        ] {
            *own = own.take().or_else(|| default.clone());
        }
    }

    /// What of a list the host's masks leave.
    pub fn masked(&self, list: &CpuList) -> CpuList {
        self.cpumasks
            .iter()
            .fold(list.clone(), |left, mask| match (left, mask) {
                (left, CpuList::All) => left,
                (CpuList::All, mask) => mask.clone(),
                (CpuList::These(left), CpuList::These(mask)) => {
                    CpuList::These(left.intersection(mask).copied().collect())
                }
            })
    }
}

/// A CPU pool's file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolConfig {
    /// Its name.
    pub name: Option<String>,
    /// Its scheduler's name.
    pub scheduler: Option<String>,
    /// NUMA nodes whose free CPUs it gets.
    pub nodes: BTreeSet<u32>,
    /// Its CPUs.
    pub cpus: Option<CpuList>,
}

/// Settings as they are taken out, with what there is to say of them.
struct Taken {
    settings: Settings,
    notices: Vec<Notice>,
}

impl Taken {
    fn take(&mut self, key: &str) -> Option<Setting> {
        self.settings.remove(key)
    }

    fn text(&mut self, key: &str) -> Result<Option<String>, Problem> {
        match self.take(key) {
            None => Ok(None),
            Some(Setting {
                value: Value::Text(text),
                ..
            }) => Ok(Some(text).filter(|text| !text.is_empty())),
            Some(other) => Err(wrong(key, "a string", &other)),
        }
    }

    /// The same under a name that is out of use.
    fn text_once(&mut self, key: &str, old: &str) -> Result<Option<String>, Problem> {
        let place = self.settings.get(old).and_then(|setting| setting.place.clone());
        let old_value = self.text(old)?;
        if old_value.is_some() {
            self.notices
                .push(Notice::new(place, format!("`{old}` is called `{key}` by now")));
        }
        Ok(self.text(key)?.or(old_value))
    }

    fn number(&mut self, key: &str) -> Result<Option<u32>, Problem> {
        let Some(setting) = self.take(key) else { return Ok(None) };
        let number = match &setting.value {
            Value::Number(number) => u32::try_from(*number).ok(),
            Value::Text(text) => text.parse().ok(),
            _ => None,
        };
        number
            .map(Some)
            .ok_or_else(|| wrong(key, "a number from 0 to 4294967295", &setting))
    }

    fn cpus(&mut self, key: &str) -> Result<Option<CpuList>, Problem> {
        let Some(setting) = self.take(key) else { return Ok(None) };
        let word = |value: &Value| match value {
            Value::Text(text) => Ok(text.clone()),
            Value::Number(number) => Ok(number.to_string()),
            _ => Err(wrong(key, "a list of CPUs", &setting)),
        };
        let text = match &setting.value {
            Value::List(items) => items.iter().map(word).collect::<Result<Vec<_>, _>>()?.join(","),
            value => word(value)?,
        };
        let list = parse_cpu_list(&text);
        list.map(Some)
            .map_err(|why| Problem::at(setting.place.clone(), format!("`{key}`: {why}")))
    }

    /// What nobody has taken is said to mean nothing.
    fn rest(mut self) -> Vec<Notice> {
        for (key, setting) in self.settings {
            self.notices.push(Notice::new(
                setting.place,
                format!("`{key}` is no setting here, and has no effect"),
            ));
        }
        self.notices
    }
}

fn wrong(key: &str, wanted: &str, found: &Setting) -> Problem {
    Problem::at(
        found.place.clone(),
        format!("`{key}` is {}, and {wanted} is wanted", found.value.kind()),
    )
}

/// Reads `xl.conf`.
pub fn parse_xl_conf(source: &Source) -> Result<(XlConf, Vec<Notice>), Problem> {
    let mut all = Taken {
        settings: plain::parse(source)?,
        notices: Vec::new(),
    };
    for (key, why) in IDLE {
        if let Some(setting) = all.take(key) {
            all.notices
                .push(Notice::new(setting.place, format!("`{key}` has no effect: {why}")));
        }
    }
    let mut cpumasks = Vec::new();
    for key in ["vm.cpumask", "vm.pv.cpumask"] {
        cpumasks.extend(all.cpus(key)?);
    }
    let conf = XlConf {
        without_claim: all.number("claim_mode")? == Some(0),
        cpumasks,
        max_grant_frames: all.number("max_grant_frames")?,
        max_maptrack_frames: all.number("max_maptrack_frames")?,
        max_grant_version: all.number("max_grant_version")?,
        vif_script: all.text_once("vif.default.script", "vifscript")?,
        vif_bridge: all.text_once("vif.default.bridge", "defaultbridge")?,
        vif_backend: all.text("vif.default.backend")?.filter(|backend| backend != "0"),
        vif_gatewaydev: all.text("vif.default.gatewaydev")?,
    };
    Ok((conf, all.rest()))
}

/// Reads a CPU pool's file; each of `overrides` is a `KEY=VALUE` as if it stood at its end.
pub fn parse_pool(source: &Source, overrides: &[String]) -> Result<(PoolConfig, Vec<Notice>), Problem> {
    let mut settings = plain::parse(source)?;
    for line in overrides {
        settings = plain::parse_override(line, &settings)?;
    }
    let mut all = Taken {
        settings,
        notices: Vec::new(),
    };
    let nodes = match all.cpus("nodes")? {
        Some(CpuList::These(nodes)) => nodes,
        Some(CpuList::All) => return Err(Problem::general("`nodes` is a list of numbers")),
        None => BTreeSet::new(),
    };
    let pool = PoolConfig {
        name: all.text("name")?,
        scheduler: all.text("sched")?,
        nodes,
        cpus: all.cpus("cpus")?,
    };
    Ok((pool, all.rest()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(text: &str) -> Result<(XlConf, Vec<String>), String> {
        let read = parse_xl_conf(&Source::new("xl.conf", text));
        let (conf, notices) = read.map_err(|problem| problem.to_string())?;
        Ok((conf, notices.iter().map(ToString::to_string).collect()))
    }

    fn completed(conf_text: &str, domain: &str) -> DomainConfig {
        let mut loaded = crate::parse(Source::new("a", domain), &[]).expect("is right");
        conf(conf_text).expect("is right").0.complete(&mut loaded.config);
        loaded.config
    }

    #[test]
    fn a_domain_gets_what_it_leaves_open() {
        let text = "vif.default.bridge=\"br7\"\nmax_grant_frames=9\nclaim_mode=0\n";
        let config = completed(text, "vif = ['', 'bridge=own']\nmax_maptrack_frames = 5\n");
        let bridges: Vec<_> = config.vifs.iter().map(|vif| vif.bridge.as_deref()).collect();
        assert_eq!(bridges, [Some("br7"), Some("own")]);
        assert_eq!(
            (config.max_grant_frames, config.max_maptrack_frames),
            (Some(9), Some(5))
        );
        assert!(conf(text).expect("is right").0.without_claim);
        assert!(!conf("").expect("is right").0.without_claim);
    }

    #[test]
    fn masks_leave_what_both_have() {
        let text = "vm.cpumask=\"0-3\"\nvm.pv.cpumask=\"2-5\"\n";
        let these = |cpus: &[u32]| CpuList::These(cpus.iter().copied().collect());
        assert_eq!(completed(text, "vcpus = 2").cpus, [these(&[2, 3]), these(&[2, 3])]);
        assert_eq!(completed(text, "vcpus = 1\ncpus = \"3-9\"").cpus, [these(&[3])]);
    }

    #[test]
    fn every_setting_of_the_manual_is_known() {
        const ALL: &str = "domid_policy=\"xen\"\nautoballoon=\"auto\"\nrun_hotplug_scripts=1\nlockfile=\"/x\"\n\
            max_grant_frames=1\nmax_maptrack_frames=1\nmax_grant_version=1\nvif.default.script=\"a\"\n\
            vif.default.bridge=\"b\"\nvif.default.backend=\"0\"\nvif.default.gatewaydev=\"c\"\n\
            remus.default.netbufscript=\"d\"\ncolo.default.proxyscript=\"e\"\noutput_format=\"json\"\n\
            blkdev_start=\"xvda\"\nclaim_mode=1\nvm.cpumask=\"all\"\nvm.hvm.cpumask=\"0\"\nvm.pv.cpumask=\"0\"\n";
        let (_, notices) = conf(ALL).expect("is right");
        assert_eq!(notices.len(), IDLE.len(), "{notices:?}");
        assert!(notices.iter().all(|notice| notice.contains("has no effect: ")));
        let (_, notices) = conf("claim_mod=1\n").expect("is read");
        assert!(notices[0].contains("`claim_mod` is no setting here"), "{notices:?}");
    }

    #[test]
    fn mistakes_have_a_place() {
        let error = conf("claim_mode = []\n").expect_err("a list");
        assert!(
            error.contains("xl.conf:1:1") && error.contains("`claim_mode` is a list"),
            "{error}"
        );
        assert!(
            conf("vm.cpumask = \"x\"\n")
                .expect_err("no CPU")
                .contains("`vm.cpumask`")
        );
    }

    #[test]
    fn a_pools_file_and_what_follows_it_are_read() {
        let source = Source::new(
            "pool.cfg",
            "name = \"fast\"\nsched = \"credit2\"\ncpus = [\"2\", 3]\nnodes = 0\n",
        );
        let (pool, notices) = parse_pool(&source, &["cpus=\"0-3,^1\"".to_owned()]).expect("is right");
        assert_eq!(
            (pool.name.as_deref(), pool.scheduler.as_deref()),
            (Some("fast"), Some("credit2"))
        );
        assert_eq!(pool.cpus, Some(CpuList::These([0, 2, 3].into())));
        assert_eq!((pool.nodes, notices.len()), ([0].into(), 0));
    }
}
