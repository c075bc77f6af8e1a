//! Configurations as people write them, and what they are told when they slip.

use ferroxen_xlconfig::{Loaded, Source, load, parse, parse_all};
use proptest::prelude::*;
use std::path::Path;

fn old(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/old").join(name);
    match load(&path, &[]) {
        Ok(loaded) => show(&loaded),
        Err(problem) => problem.to_string().replace(env!("CARGO_MANIFEST_DIR"), "."),
    }
}

fn show(loaded: &Loaded) -> String {
    let notices: Vec<_> = loaded
        .notices
        .iter()
        .map(|n| n.to_string().replace(env!("CARGO_MANIFEST_DIR"), "."))
        .collect();
    format!("{:#?}\n{notices:#?}", loaded.config)
}

fn read(text: &str) -> Loaded {
    parse(Source::new("web.cfg", text), &[]).unwrap_or_else(|problem| panic!("{problem}"))
}

fn refusal(text: &str) -> String {
    match parse(Source::new("web.cfg", text), &[]) {
        Ok(loaded) => panic!("accepted: {}", show(&loaded)),
        Err(problem) => problem.to_string(),
    }
}

/// The seven different files that the how-tos print, with what is said of them: without `name` they are called after the file
/// (M075), `builder` is as good as `type` and deprecated (M081), `boot` and `sdl` are an HVM domain's and `vncviewer` is
/// history (M082); quotes, lists and spaces of every kind (M084), and `dhcp` (M041, M086).
#[test]
fn files_of_2006_parse_as_they_stand() {
    for name in [
        "testvm.hvm",
        "centos4.4.hvm",
        "winxp.hvm",
        "winxp-2.hvm",
        "debian1",
        "netbsd",
        "freebsd",
    ] {
        insta::assert_snapshot!(name.replace('.', "_"), old(name));
    }
}

/// M083.
#[test]
fn extra_can_be_set_again_and_added_to() {
    let loaded = read("extra = \"4\"\nextra = \"boot_verbose\"\nextra += \",boot_single\"\n");
    assert_eq!(loaded.config.cmdline.as_deref(), Some("boot_verbose,boot_single"));
}

/// M070.
#[test]
fn a_script_and_a_plain_file_mean_the_same() {
    let plain = read(
        "name = 'web'\nmemory = 256\nextra = 'a' \nextra += ' b'\ndisk = ['phy:/dev/a,xvda,w', 'phy:/dev/b,xvdb,w']",
    );
    let script = read(
        "
def image(letter):
    return 'phy:/dev/%s,xvd%s,w' % (letter, letter)
name = 'w' + 'eb'
memory = 2 * 128
extra = 'a'
extra += ' b'
disk =
[image(l) for l in ['a']]
for _letter in ['b']:
    disk += [f'phy:/dev/{_letter},xvd{_letter},w']
",
    );
    assert_eq!(plain.config, script.config);
    assert_eq!(script.notices, []);
}

#[test]
fn one_file_can_describe_many_domains() {
    let text = "kernel = '/boot/vmlinuz'\nmemory = 64\n\
                domains = [dict(name='web%d' % n, vif=['bridge=xenbr%d' % n]) for n in range(3)]\n";
    let all = parse_all(Source::new("farm.cfg", text), &["memory=96".to_owned()]).expect("is right");
    let seen: Vec<_> = all
        .iter()
        .map(|one| {
            (
                one.config.name.as_str(),
                one.config.memory_mib,
                one.config.vifs[0].bridge.as_deref(),
            )
        })
        .collect();
    let expected = [("web0", "xenbr0"), ("web1", "xenbr1"), ("web2", "xenbr2")];
    assert_eq!(seen, expected.map(|(name, bridge)| (name, 96, Some(bridge))));
    let problem = parse(Source::new("farm.cfg", text), &[]).expect_err("one is wanted");
    assert!(problem.to_string().contains("describes 3 domains"), "{problem}");
}

#[test]
fn an_override_wins_and_needs_no_quotes() {
    let overrides = [
        "memory=64".to_owned(),
        "name=other".to_owned(),
        "vif=['bridge=br1']".to_owned(),
    ];
    let loaded = parse(Source::new("web.cfg", "name = 'web'\nmemory = 512\n"), &overrides).expect("is right");
    assert_eq!((loaded.config.memory_mib, loaded.config.name.as_str()), (64, "other"));
    assert_eq!(loaded.config.vifs[0].bridge.as_deref(), Some("br1"));
}

#[test]
fn spaces_semicolons_comments_and_escapes_are_as_in_xl() {
    let loaded = read(
        "  name = \"web\" ; memory = 0x80 # all\n\tkernel = '/a\\\\b\\'\\d\\n\\x41\\101'\r\nvif = [\n  # none\n]\n",
    );
    assert_eq!((loaded.config.memory_mib, loaded.config.name.as_str()), (128, "web"));
    assert_eq!(loaded.config.kernel.as_deref(), Some(Path::new("/a\\b'\\d\nAA")));
}

#[test]
fn mistakes_are_shown_where_they_are() {
    let texts = [
        ("misspelt", "name = 'web'\nmemroy = 256\n"),
        (
            "bad_disk",
            "name = 'web'\ndisk = [ 'phy:/dev/vg/web,xvda,w',\n         'file:/images/swap.img,xvdz9x,w' ]\n",
        ),
        ("bad_mac", "name = 'web'\nvif = ['bridge=xenbr0, mac=00:16:3e']\n"),
        ("wrong_kind", "name = 'web'\nmemory = [1]\n"),
        ("too_much", "name = 'web'\n\tvcpus = 100000\n"),
        ("maxmem_below_memory", "name = 'web'\nmemory = 512\nmaxmem = 256\n"),
        ("unclosed", "name = 'web'\ndisk = [ 'phy:/dev/a,xvda,w'\nmemory = 256\n"),
        ("undefined", "name = 'web'\nmemory = megabytes * 2\n"),
        (
            "in_a_function",
            "def size(n):\n    return n + 'MiB'\nname = 'web'\nmemory = size(2)\n",
        ),
        ("same_disk_twice", "disk = ['phy:/dev/a,xvda,w', 'phy:/dev/b,xvda,r']\n"),
        ("action", "on_crash = 'resart'\n"),
        ("cpus", "cpus = '0-3,x'\n"),
        ("name", "name = 'my web'\n"),
        ("number_as_name", "name = '7'\n"),
    ];
    for (name, text) in texts {
        insta::assert_snapshot!(format!("mistake_{name}"), refusal(text));
    }
}

#[test]
fn a_stranger_is_mentioned_and_an_own_name_is_not() {
    let loaded = read("name = 'web'\n_size = 3\nguests = 7\nvnc = 1\npci = ['00:1f.0']\n");
    let notices: Vec<_> = loaded.notices.iter().map(ToString::to_string).collect();
    insta::assert_debug_snapshot!(notices);
}

/// Bits of configurations, put together at random.
fn scraps() -> impl Strategy<Value = String> {
    let scrap = prop_oneof![
        "[a-z_]{1,8}",
        "[ \t\r\n;#,=+'\"\\[\\]\\\\(){}:]{1,3}",
        "[0-9xa-f-]{1,6}",
        Just("disk".to_owned()),
        Just("vif".to_owned()),
        Just("cpus".to_owned()),
        Just(" = ".to_owned()),
        Just("'file:/a.img,xvda1,w'".to_owned()),
        Just("['mac=00:16:3e:00:00:01, rate=1Mb/s@20ms']".to_owned()),
        "\\PC{0,4}",
    ];
    prop::collection::vec(scrap, 0..24).prop_map(|scraps| scraps.concat())
}

/// A card and a disk in the manuals' words, with values that are theirs.
const CARD: [&str; 11] = [
    "mac=00:16:3e:00:00:01",
    "bridge=xenbr1",
    "gatewaydev=eth1",
    "type=vif",
    "vifname=web",
    "script=vif-route",
    "ip=192.0.2.1 192.0.2.2",
    "rate=5MB/s",
    "devid=3",
    "mtu=1400",
    "trusted=0",
];
const DISK: [&str; 8] = [
    "format=raw",
    "vdev=xvdb",
    "access=ro",
    "rate=20MB/s",
    "iops=100",
    "discard",
    "direct-io-safe",
    "backendtype=phy",
];

/// Each setting of xl.cfg(5), given anything, shows in what is read, or is told: there is none that just goes by.
#[test]
fn no_setting_of_the_manual_is_passed_over() {
    let start = "name='a'\nkernel='/k'\nmemory=64\nuuid='6a4b1c9e-0d0f-4a63-9a53-0f8a4cb5fd6e'\n";
    let plain = format!("{:?}", read(start).config);
    let settings = include_str!("xl-cfg-settings.txt").lines();
    for key in settings.filter(|key| *key != "name") {
        for value in ["5", "'x'", "['x']"] {
            let Ok(loaded) = parse(Source::new("web.cfg", format!("{start}{key} = {value}\n")), &[]) else {
                continue;
            };
            let is_told = loaded
                .notices
                .iter()
                .any(|notice| notice.to_string().contains(&format!("`{key}`")));
            let shows = format!("{:?}", loaded.config) != plain;
            assert!(is_told || shows, "{key} = {value} is passed over");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// In whatever order its words stand, and however many spaces, a card is the same; and each word counts.
    #[test]
    fn a_cards_words_have_no_order(
        words in Just(CARD.to_vec()).prop_shuffle(), much in 1..=CARD.len(), space in " {0,2}",
    ) {
        let read = |words: &[&str]| read(&format!("name='a'\nkernel='/k'\nvif=['{}']\n", words.join(&format!(",{space}")))).config.vifs;
        let (all, some) = (read(&words), read(&words[..much]));
        prop_assert_eq!(&all, &read(&CARD));
        prop_assert_eq!(&some, &{ let mut sorted = words[..much].to_vec(); sorted.sort_unstable(); read(&sorted) });
        prop_assert_eq!(some == all, much == CARD.len() || words[much..] == ["type=vif"]);
    }

    /// A disk likewise, and it means the same by place as by name. Its target stands last, since a comma may be in it.
    #[test]
    fn a_disks_words_have_no_order(words in Just(DISK.to_vec()).prop_shuffle(), much in 1..=DISK.len()) {
        let read = |words: &[&str]| {
            let mut disks = read(&format!("name='a'\nkernel='/k'\ndisk=['{}']\n", words.join(","))).config.disks;
            disks.iter_mut().for_each(|disk| disk.spec.clear());
            disks
        };
        let with = |words: &[&str], target: &str| {
            let own: Vec<_> = words.iter().copied().filter(|word| *word != "vdev=xvdb").chain(["vdev=xvdb"]).collect();
            read(&[&own[..], &[target]].concat())
        };
        let target = "target=/a,b.img";
        prop_assert_eq!(with(&words, target), with(&DISK, target));
        let mut sorted = words[..much].to_vec();
        sorted.sort_unstable();
        prop_assert_eq!(with(&words[..much], target), with(&sorted, target));
        prop_assert_eq!(read(&["/a.img", "raw", "xvdb", "ro"]), read(&["access=ro", "vdev=xvdb", "format=raw", "target=/a.img"]));
    }

    #[test]
    fn nothing_that_is_written_makes_us_panic(text in scraps(), spec in "[ -~é]{0,40}") {
        // Complaints are fine, and have to come out as text.
        if let Err(problem) = parse(Source::new("odd.cfg", text), &[]) {
            prop_assert!(!problem.to_string().is_empty());
        }
        for list in ["disk", "vif"] {
            let text = format!("{list} = [ \"{}\" ]\n", spec.replace(['"', '\\'], ","));
            if let Err(problem) = parse(Source::new("odd.cfg", text), &[]) {
                prop_assert!(problem.to_string().contains(list) || problem.to_string().contains("odd.cfg"));
            }
        }
    }
}
