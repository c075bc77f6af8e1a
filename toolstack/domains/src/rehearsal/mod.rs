//! Making and ending domains, rehearsed: a hypervisor, a Linux and a xenstore in which one call fails, each in turn.
//!
//! [`Stage`] counts whatever is asked of any of the three. A test plays the same scene again and again, with the
//! first call failing, then the second, until a scene ends without having come to the failing call. After each one
//! the stage is looked over for what was left behind.

mod hypervisor;
mod images;
mod kernel;
mod linux;
mod store;

use crate::create::Holder;
use crate::devd::Devd;
use crate::dump::Manner;
use crate::keep::Keep;
use crate::patience::{Interrupt, Patience};
use crate::progress::Silent;
use crate::{Result, Toolstack, create};
use ferroxen_words::DomId;
use ferroxen_xenstore::Store as _;
use ferroxen_xlconfig::{Loaded, Source};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use store::Store;

/// What the three share: who exists, what is held, and when something goes wrong.
#[derive(Debug, Default)]
struct Stage {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// How often the stage was asked for something.
    calls: usize,
    /// What goes wrong, at which call.
    plan: Option<(usize, Trouble)>,
    /// The next call of that name goes wrong.
    fails_next: Option<&'static str>,
    /// The call at which it went wrong.
    failed: Option<String>,
    next_domid: u16,
    /// How often domains were paused more than unpaused.
    pauses: i32,
    /// Frames of each domain.
    domains: BTreeMap<u16, u64>,
    /// Domains that are dead, but of which somebody still holds a page.
    husks: BTreeSet<u16>,
    claims: BTreeMap<u16, u64>,
    loops: BTreeSet<PathBuf>,
    /// The nbd devices, and whose disks they are for.
    servers: BTreeMap<PathBuf, String>,
    /// Domains that have a QEMU.
    device_models: BTreeSet<u16>,
    links: BTreeMap<String, u32>,
    introduced: BTreeSet<u16>,
    /// Devices that a script has connected and not disconnected.
    connected_by_script: BTreeSet<String>,
}

const EIO: i32 = 5;

#[derive(Debug)]
enum Trouble {
    /// The call fails.
    Failure,
    /// The person at the keyboard presses Ctrl-C.
    Interrupt(UnixStream),
}

impl Stage {
    /// Counts a call; fails if it is this one's turn.
    fn call(&self, what: &str) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        state.calls += 1;
        if state.fails_next == Some(what) {
            (state.fails_next, state.failed) = (None, Some(what.to_owned()));
            return Err(io::Error::from_raw_os_error(EIO));
        }
        if state.plan.as_ref().is_none_or(|(turn, _)| state.calls != *turn) {
            return Ok(state);
        }
        state.failed = Some(what.to_owned());
        match state.plan.take() {
            Some((_, Trouble::Interrupt(mut pipe))) => {
                pipe.write_all(b"!")?;
                Ok(state)
            }
            _ => Err(io::Error::from_raw_os_error(EIO)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while holding it")
    }
}

/// A toolstack on a stage, and the files of one test.
struct Scene {
    stage: Arc<Stage>,
    tools: Toolstack,
    store: Store,
    directory: PathBuf,
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Scene {
    /// An empty stage.
    fn new() -> Scene {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("domains-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("there is a place for files");
        let stage = Arc::new(Stage::default());
        let store = Store::open(&stage);
        let client = store.connect();
        crate::nodes::ensure_dom0(&client).expect("an empty store can be written to");
        let tools = Toolstack {
            hypervisor: Box::new(hypervisor::Rehearsed(stage.clone())),
            store: client,
            keep: Keep::in_directory(directory.join("kept")),
            conf: Default::default(),
            conf_notices: Vec::new(),
            host: Box::new(linux::Rehearsed {
                stage: stage.clone(),
                store: store.connect_neighbour(),
                home: "/local/domain/0",
            }),
            interrupt: Interrupt::never(),
            progress: Box::new(Silent),
        };
        let scene = Scene {
            stage,
            tools,
            store,
            directory,
        };
        for name in ["disk.img", "other.img", "third.qcow2", "fourth.img"] {
            std::fs::write(scene.directory.join(name), [0; 512]).expect("a file");
        }
        std::fs::write(scene.directory.join("kernel"), kernel::image()).expect("a file");
        scene
    }

    /// From the next call on: `trouble` at the `turn`-th.
    fn plan(&mut self, turn: usize, interrupts: bool) {
        let trouble = if interrupts {
            let (near, far) = UnixStream::pair().expect("sockets");
            self.tools.interrupt = Interrupt::from_pipe(near.into());
            Trouble::Interrupt(far)
        } else {
            Trouble::Failure
        };
        let mut state = self.stage.state();
        (state.calls, state.plan, state.failed) = (0, Some((turn, trouble)), None);
    }

    /// Nothing goes wrong any more. Where did it?
    fn calm(&mut self) -> Option<String> {
        self.tools.interrupt = Interrupt::never();
        let mut state = self.stage.state();
        state.plan = None;
        state.failed.take()
    }

    fn config(&self, more: &str) -> Loaded {
        let text = format!(
            "name = 'web'\nkernel = '{dir}/kernel'\nmemory = 8\nvcpus = 2\ncpus = '0'\ncpu_weight = 512\n{more}",
            dir = self.directory.display()
        );
        let loaded = ferroxen_xlconfig::parse(Source::new("web.cfg", text), &[]);
        let mut loaded = loaded.unwrap_or_else(|problem| panic!("{problem}"));
        loaded.settle();
        loaded
    }

    /// With all the devices there are.
    fn full_config(&self) -> Loaded {
        let dir = self.directory.display();
        self.config(&format!(
            "maxmem = 16\nlocaltime = 1\nrtc_timeoffset = 60\ntsc_mode = 'native'\ndriver_domain = 1\ncpuid = 'host,avx=0'\n\
             ioports = ['2f8-2ff']\niomem = ['fed00,1']\nirqs = [3]\n\
             disk = ['file:{dir}/disk.img,xvda,w', 'file:{dir}/other.img,xvdb,r',\
             'tap:qcow2:{dir}/third.qcow2,xvdd,w', 'script=block-drbd,vdev=xvdc,access=rw,target=r0',\
             'vdev=xvde,access=rw,rate=1MB/s,iops=9,target={dir}/fourth.img']\n\
             pool = 'Pool-0'\n\
             p9 = ['tag=data,path={dir},security_model=none']\nvfb = ['vnc=1']\n\
             channel = ['connection=pty,name=one', 'connection=socket,name=other,path={dir}/other.sock']\n\
             vif = ['', 'vifname=cable,mtu=1400', 'script=vif-route,ip=192.0.2.7,mac=00:16:3e:00:00:07']\n"
        ))
    }

    /// Makes the domain and keeps its configuration, as `xl create` does.
    fn create(&self, loaded: &Loaded) -> Result<DomId> {
        let domid = create::create(&self.tools, &loaded.config)?;
        match self.tools.keep.save(domid, loaded) {
            Ok(_) => Ok(domid),
            Err(error) => {
                self.tools.destroy(domid)?;
                Err(error)
            }
        }
    }

    /// All that a domain could have left behind.
    fn litter(&self) -> Vec<String> {
        let state = self.stage.state();
        let mut litter = Vec::new();
        litter.extend(state.domains.keys().map(|domid| format!("domain {domid}")));
        litter.extend(
            state
                .claims
                .iter()
                .map(|(domid, pages)| format!("{pages} claimed for {domid}")),
        );
        let devices = state.loops.iter().chain(state.servers.keys());
        litter.extend(devices.map(|path| path.display().to_string()));
        litter.extend(
            state
                .connected_by_script
                .iter()
                .map(|path| format!("{path} is connected")),
        );
        litter.extend(state.device_models.iter().map(|domid| format!("QEMU of {domid}")));
        litter.extend(state.introduced.iter().map(|domid| format!("{domid} introduced")));
        drop(state);
        // Empty directories of backends, and the bridge, stay for the next one.
        let is_expected = |path: &String| {
            let parts = path.split('/').count();
            path.starts_with("/local/domain/0/") && parts <= 6 || self.store.is_usual(path)
        };
        litter.extend(self.store.paths().into_iter().filter(|path| !is_expected(path)));
        let kept = std::fs::read_dir(self.directory.join("kept"))
            .into_iter()
            .flatten()
            .flatten();
        litter.extend(kept.map(|entry| entry.path().display().to_string()));
        litter
    }
}

/// Plays `scene` with trouble at each call in turn, until it ends before the trouble.
fn with_trouble_at_each_call(mut play: impl FnMut(&mut Scene, usize) -> Option<String>) -> usize {
    for turn in 1..10_000 {
        let mut scene = Scene::new();
        if play(&mut scene, turn).is_none() {
            return turn - 1;
        }
    }
    panic!("it never ends")
}

#[test]
fn a_domain_is_made_and_goes_without_a_trace() {
    let scene = Scene::new();
    let domid = scene.create(&scene.full_config()).expect("nothing goes wrong");
    let state = scene.stage.state();
    assert_eq!((state.domains.len(), state.claims.len()), (1, 0));
    assert_eq!(
        (state.loops.len(), state.servers.len(), state.device_models.len()),
        (2, 2, 1)
    );
    assert!(state.links.contains_key("cable") && !state.links.contains_key("vif1.1"));
    drop(state);
    assert_eq!(scene.stage.state().connected_by_script.len(), 2);
    assert!(!scene.litter().is_empty());
    scene.tools.destroy(domid).expect("nothing goes wrong");
    assert_eq!(scene.litter(), Vec::<String>::new());
}

#[test]
fn a_domain_that_was_saved_may_keep_its_number() {
    let scene = Scene::new();
    let mut config = scene.config("");
    config.config.domid = Some(7);
    assert_eq!(scene.create(&config).map(DomId::raw).ok(), Some(7));
    let mut other = scene.config("");
    (other.config.name, other.config.uuid, other.config.domid) = ("other".to_owned(), None, Some(7));
    let error = scene.create(&other).expect_err("it is taken");
    assert_eq!(error.errno(), Some(17), "{error}");
    // What is kept of it says nothing of that: built anew, it may have any.
    let (kept, _) = crate::recall::config(&crate::describe::pretty(&crate::describe::config(&config))).expect("is one");
    assert_eq!(kept.config.domid, Some(7));
}

/// Whatever making a domain asks of the hypervisor and of Linux.
const STEPS: [&str; 29] = [
    "create_domain",
    "set_max_vcpus",
    "set_affinity",
    "set_max_memory_kib",
    "set_memory_map",
    "set_tsc_mode",
    "set_time_offset",
    "set_sched_credit",
    "permit_ports",
    "permit_iomem",
    "permit_irq",
    "set_cpu_policy",
    "alloc_unbound_port",
    "claim_pages",
    "populate",
    "map",
    "init_hypercall_page",
    "pin",
    "set_vcpu_context",
    "map_grant_table",
    "attach_loop",
    "keep_loop",
    "attach_nbd",
    "device_number",
    "add_bridge",
    "wait_link",
    "change_link",
    "run_script",
    "start_device_model",
];

#[test]
fn a_failing_step_leaves_nothing_behind() {
    let steps = with_trouble_at_each_call(|scene, turn| {
        let config = scene.full_config();
        scene.plan(turn, false);
        let made = scene.create(&config);
        let failed = scene.calm()?;
        if let Ok(domid) = made {
            // Some answers can be done without.
            scene.tools.destroy(domid).expect("nothing goes wrong any more");
        }
        assert_eq!(
            scene.litter(),
            Vec::<String>::new(),
            "after call {turn}, {failed}, had failed"
        );
        Some(failed)
    });
    assert!(steps > 100, "only {steps} calls");
}

/// How often a domain asks differs from time to time, since it waits for others; what it asks for does not.
#[test]
fn each_step_fails_once_by_its_name() {
    for step in STEPS {
        let mut scene = Scene::new();
        let config = scene.full_config();
        scene.stage.state().fails_next = Some(step);
        let made = scene.create(&config);
        let failed = scene.calm();
        assert_eq!(failed.as_deref(), Some(step), "it was never asked for");
        if let Ok(domid) = made {
            scene.tools.destroy(domid).expect("nothing goes wrong any more");
        }
        assert_eq!(scene.litter(), Vec::<String>::new(), "after {step} had failed");
    }
}

#[test]
fn a_failing_step_of_a_restoration_leaves_nothing_behind() {
    let image = images::of_a_small_domain();
    let mut restored = 0;
    let steps = with_trouble_at_each_call(|scene, turn| {
        let config = scene.config("maxmem = 16\n").config;
        scene.plan(turn, false);
        let made = create::restore(&scene.tools, &config, &mut image.as_slice(), Holder::Nobody);
        let failed = scene.calm();
        if let Ok(domid) = made {
            restored += 1;
            scene.tools.destroy(domid).expect("nothing goes wrong any more");
        }
        let failed = failed?;
        assert_eq!(
            scene.litter(),
            Vec::<String>::new(),
            "after call {turn}, {failed}, had failed"
        );
        Some(failed)
    });
    assert!(
        steps > 30 && restored > 0,
        "only {steps} calls, {restored} times restored"
    );
}

/// The sender's QEMU locks an image, and may have to write to it yet.
#[test]
fn a_disk_that_the_sender_has_is_opened_when_it_has_let_go() {
    let image = images::of_a_small_domain();
    let mut opened = 0;
    let steps = with_trouble_at_each_call(|scene, turn| {
        let dir = scene.directory.display();
        let disks = format!(
            "['tap:qcow2:{dir}/third.qcow2,xvda,w', '{dir}/disk.img,raw,xvdb,w,iops=9', '{dir}/disk.img,raw,xvdc,w!']"
        );
        let config = scene.config(&format!("maxmem = 16\ndisk = {disks}\n")).config;
        scene.plan(turn, false);
        let made = create::restore(&scene.tools, &config, &mut image.as_slice(), Holder::Sender);
        assert!(scene.stage.state().servers.is_empty(), "a server has begun");
        if let Ok(domid) = made {
            opened += usize::from(create::open_disks(&scene.tools, domid, &config).is_ok());
            let failed = scene.calm();
            if failed.is_none() {
                assert_eq!(scene.stage.state().servers.len(), 2, "two disks are QEMU's");
            }
            scene.tools.destroy(domid).expect("nothing goes wrong any more");
            assert_eq!(
                scene.litter(),
                Vec::<String>::new(),
                "after call {turn}, {failed:?}, had failed"
            );
            return failed;
        }
        let failed = scene.calm()?;
        assert_eq!(
            scene.litter(),
            Vec::<String>::new(),
            "after call {turn}, {failed}, had failed"
        );
        Some(failed)
    });
    assert!(steps > 40 && opened > 0, "only {steps} calls, {opened} times opened");
}

#[test]
fn a_frame_that_went_while_its_domain_was_sent_holds_no_memory() {
    let frames_of = |image: Vec<u8>| {
        let scene = Scene::new();
        let config = scene.config("maxmem = 16\n").config;
        let domid =
            create::restore(&scene.tools, &config, &mut image.as_slice(), Holder::Nobody).expect("it makes sense");
        scene.stage.state().domains[&domid.raw()]
    };
    assert_eq!(
        frames_of(images::of_one_that_shrank()),
        frames_of(images::of_a_small_domain())
    );
}

#[test]
fn an_image_that_makes_no_sense_is_refused_with_the_reason() {
    for (image, reason) in images::without_sense() {
        let scene = Scene::new();
        let config = scene.config("maxmem = 16\n").config;
        let refused = create::restore(&scene.tools, &config, &mut image.as_slice(), Holder::Nobody).expect_err(reason);
        assert!(refused.to_string().contains(reason), "{refused} instead of {reason}");
        assert_eq!(scene.litter(), Vec::<String>::new(), "after {reason}");
    }
}

#[test]
fn an_interrupt_at_any_time_leaves_nothing_behind() {
    let mut stopped = 0;
    with_trouble_at_each_call(|scene, turn| {
        let config = scene.full_config();
        scene.plan(turn, true);
        let made = scene.create(&config);
        let failed = scene.calm()?;
        match made {
            Ok(domid) => scene.tools.destroy(domid).expect("nothing goes wrong any more"),
            Err(error) => {
                stopped += 1;
                assert!(error.to_string().contains("interrupted"), "{error}");
            }
        }
        assert_eq!(
            scene.litter(),
            Vec::<String>::new(),
            "after Ctrl-C during call {turn}, {failed}"
        );
        Some(failed)
    });
    assert!(stopped > 100, "only {stopped} were stopped");
}

#[test]
fn an_end_that_failed_can_be_tried_again() {
    with_trouble_at_each_call(|scene, turn| {
        let domid = scene.create(&scene.full_config()).expect("nothing goes wrong");
        scene.plan(turn, false);
        let ended = scene.tools.destroy(domid);
        let failed = scene.calm()?;
        scene
            .tools
            .destroy(domid)
            .unwrap_or_else(|error| panic!("after {failed} had failed ({ended:?}): {error}"));
        assert_eq!(
            scene.litter(),
            Vec::<String>::new(),
            "after call {turn}, {failed}, had failed"
        );
        Some(failed)
    });
}

/// It runs on as before, whatever happens, and a file that is not whole is none.
#[test]
fn a_core_that_cannot_be_dumped_disturbs_nobody() {
    let steps = with_trouble_at_each_call(|scene, turn| {
        let domid = scene.create(&scene.config("")).expect("nothing goes wrong");
        let path = scene.directory.join("core");
        let before = scene.stage.state().pauses;
        scene.plan(turn, false);
        let dumped = scene.tools.dump_core(domid, &path, Manner::Paused);
        let failed = scene.calm()?;
        // Of a call that fails there is nothing to be undone.
        let paused = scene.stage.state().pauses - before;
        assert_eq!(paused, i32::from(failed == "unpause"), "after {failed} had failed");
        let files = std::fs::read_dir(&scene.directory).expect("can be read").flatten();
        let cores = files.filter(|file| file.file_name().to_string_lossy().starts_with("core"));
        assert_eq!(cores.count(), usize::from(dumped.is_ok()), "after {failed} had failed");
        Some(failed)
    });
    assert!(steps > 5, "only {steps} calls");
}

/// Whoever made it was killed before it could write where the server is.
#[test]
fn a_server_that_nobody_noted_goes_with_its_domain() {
    let scene = Scene::new();
    let domid = scene.create(&scene.config("")).expect("nothing goes wrong");
    let image = scene.directory.join("third.qcow2");
    for owner in [crate::nbd::owner(domid, 51712), "77/51712".to_owned()] {
        let image = crate::nbd::Served {
            image: &image,
            format: "qcow2",
            read_only: false,
            limits: ferroxen_xlconfig::DiskLimits::default(),
        };
        let served = scene.tools.host.attach_nbd(image, &owner);
        served.expect("nothing goes wrong");
    }
    scene.tools.destroy(domid).expect("nothing goes wrong");
    assert_eq!(
        scene.litter(),
        ["/dev/nbd-rehearsal-1"],
        "another domain's server is its own"
    );
}

#[test]
fn a_husk_is_waited_for() {
    let scene = Scene::new();
    let domid = scene.create(&scene.config("")).expect("nothing goes wrong");
    scene.stage.state().husks.insert(domid.raw());
    std::thread::scope(|scope| {
        let (stage, store) = (&scene.stage, &scene.store);
        scope.spawn(move || {
            // Whoever held the page lets go once it has heard of the end.
            store.wait_for_watch(&format!("@releaseDomain/{}", domid.raw()));
            stage.state().husks.clear();
            store.nothing_left(domid.raw());
        });
        scene.tools.destroy(domid).expect("nothing goes wrong");
        assert_eq!(
            scene
                .tools
                .hypervisor
                .domain(domid)
                .expect("an answer")
                .map(|info| info.domain),
            None
        );
    });
}

/// Whoever waits for its end may make the next one of that name.
#[test]
fn a_domain_is_gone_when_its_nodes_are() {
    let scene = Scene::new();
    let domid = scene.create(&scene.config("")).expect("nothing goes wrong");
    let home = crate::nodes::domain(domid);
    let other = scene.store.connect_neighbour();
    scene
        .tools
        .hypervisor
        .destroy_domain(domid)
        .expect("nothing goes wrong");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            scene.store.wait_for_watch(&home);
            other.rm(&home).expect("nothing goes wrong");
        });
        let gone = scene
            .tools
            .wait_gone(domid, Patience::stubborn(Duration::from_secs(10)));
        assert!(gone.expect("nothing goes wrong"));
        assert_eq!(scene.tools.store.read_opt(&home).expect("an answer"), None);
    });
}

#[test]
fn a_driver_domain_connects_a_card_and_a_disk_and_lets_them_go() {
    let scene = Scene::new();
    let driver = scene
        .create(&scene.config("driver_domain = 1"))
        .expect("nothing goes wrong");
    let home = "/local/domain/1";
    assert_eq!(crate::nodes::domain(driver), home);
    let (devd_store, netback, script_store) = (
        scene.store.connect_neighbour(),
        scene.store.connect_neighbour(),
        scene.store.connect_neighbour(),
    );
    let linux = linux::Rehearsed {
        stage: scene.stage.clone(),
        store: script_store,
        home,
    };
    let mut lines = Vec::new();
    std::thread::scope(|scope| {
        netback
            .watch(&format!("{home}/backend"), "netback")
            .expect("can be watched");
        scope.spawn(move || store::answer_for_backends(&netback));
        let mut devd = Devd::in_home(&devd_store, &linux, home);
        devd.watch().expect("can be watched");
        let (devd_store, lines) = (&devd_store, &mut lines);
        let served = scope.spawn(move || {
            // A disk and a card that come, and go.
            while lines.len() < 4 {
                Patience::stubborn(Duration::from_secs(60))
                    .ready(devd_store)
                    .expect("can be waited for");
                devd.turn(&mut |line| lines.push(line)).expect("nothing goes wrong");
            }
        });
        let image = scene.directory.join("disk.img");
        let config = scene.config(&format!(
            "name = 'guest'\nvif = ['backend=web,bridge=br7']\ndisk = ['backend=web,vdev=xvda,access=rw,target={}']",
            image.display()
        ));
        let guest = scene.create(&config).unwrap_or_else(|error| panic!("{error}"));
        let state = scene.stage.state();
        assert_eq!((state.connected_by_script.len(), state.loops.len()), (1, 1));
        drop(state);
        for (kind, id) in [("vif", 0), ("vbd", 51712)] {
            let front = format!("/local/domain/{}/device/{kind}/{id}", guest.raw());
            let read = |node: &str| {
                scene
                    .tools
                    .store
                    .read_string(&format!("{front}/{node}"))
                    .expect("is there")
            };
            assert_eq!(read("backend"), format!("{home}/backend/{kind}/{}/{id}", guest.raw()));
            assert_eq!(read("backend-id"), "1");
            let rights = scene.tools.store.permissions(&front).expect("has some");
            assert_eq!(rights, crate::nodes::shared(guest, driver), "its backend looks at it");
        }
        scene.tools.destroy(guest).expect("nothing goes wrong");
        served.join().expect("it has seen both");
        let state = scene.stage.state();
        assert!(state.connected_by_script.is_empty() && state.loops.is_empty());
        drop(state);
        scene.tools.destroy(driver).expect("nothing goes wrong");
        scene.store.close();
    });
    let said = |word: &str| lines.iter().any(|line| line.contains(word));
    assert!(
        said(": connected by /etc/xen/scripts/vif-bridge") && said(": connected by /etc/xen/scripts/block"),
        "{lines:?}"
    );
    assert!(
        lines[2..].iter().all(|line| line.contains(": disconnected")),
        "{lines:?}"
    );
    assert_eq!(scene.litter(), Vec::<String>::new());
}

/// M074; and of M116 what one host can do: an image that one domain writes to is no other's.
#[test]
fn two_domains_do_not_get_one_name_or_one_disk() {
    let scene = Scene::new();
    let dir = scene.directory.display();
    let first = scene.config(&format!("disk = ['file:{dir}/disk.img,xvda,w']"));
    scene.create(&first).expect("nothing goes wrong");
    let error = scene.create(&first).expect_err("the name is taken").to_string();
    assert!(error.contains("already exists. It is domain 1"), "{error}");
    let refusal = |disk: &str| {
        let config = scene.config(&format!("name = 'other'\ndisk = ['file:{dir}/disk.img,{disk}']"));
        scene.create(&config).map_err(|error| error.to_string())
    };
    for disk in ["xvda,w", "xvda,r"] {
        let error = refusal(disk).expect_err("the disk is taken");
        assert!(
            error.contains("is in use by \"web\" (domid 1)") && error.contains("`w!`"),
            "{error}"
        );
    }
    refusal("xvda,w!").expect("is asked for");
}
