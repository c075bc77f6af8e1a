//! What `xl` does without a hypervisor: checking files, explaining itself, and its pages.

use std::path::Path;
use std::process::{Command, Output};

fn xl(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xl"))
        .args(words)
        .current_dir(env!("CARGO_TARGET_TMPDIR"))
        .output()
        .expect("it starts")
}

fn file(name: &str, text: &str) -> String {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, text).expect("can be written");
    path.display().to_string()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_good_file_is_shown_as_a_domain_and_several_as_a_list() {
    let one = file(
        "good.cfg",
        "name = 'web'\nkernel = '/boot/vmlinuz'\nuuid = '6a4b1c9e-0d0f-4a63-9a53-0f8a4cb5fd6e'\n",
    );
    let (validated, dry) = (xl(&["validate", &one]), xl(&["create", "-n", &one]));
    assert_eq!((validated.status.code(), dry.status.code()), (Some(0), Some(0)));
    assert_eq!(out(&validated), out(&dry));
    assert!(out(&validated).contains("\"name\": \"web\""), "{}", out(&validated));
    let several = file("several.cfg", "domains = [{'name': 'a' + str(n)} for n in [1, 2]]\n");
    let list: serde_json::Value = serde_json::from_str(&out(&xl(&["validate", &several]))).expect("is JSON");
    assert_eq!(list[1]["c_info"]["name"], "a2");
}

#[test]
fn all_that_is_wrong_with_a_file_is_told_at_once() {
    let bad = file(
        "bad.cfg",
        "name = 'my web'\nmemroy = 64\ndisk = [ 'phy:/dev/a,xvda,q' ]\n",
    );
    let output = xl(&["validate", "-q", &bad]);
    assert_eq!(output.status.code(), Some(1));
    for place in [":1:1", ":2:1", ":3:27"] {
        assert!(
            errors(&output).contains(&format!("bad.cfg{place}")),
            "{}",
            errors(&output)
        );
    }
}

/// All of xl(1) 4.17: of each line the first word is a command, the others are its options.
#[test]
fn every_command_and_option_of_the_manual_is_known() {
    let mut xl = ferroxen_xl::command();
    xl.build();
    let mut known = 0;
    for line in include_str!("xl-commands.txt").lines() {
        let mut words = line.split(' ');
        let name = words.next().unwrap_or_default();
        let Some(command) = xl.find_subcommand(name) else {
            let reason = ferroxen_xl::ABSENT.iter().find(|command| command.name == name);
            assert!(
                reason.is_some_and(|command| !command.why.is_empty()),
                "{name} is unknown"
            );
            continue;
        };
        for option in words {
            let is_it = |arg: &clap::Arg| match option.strip_prefix("--") {
                Some(long) => arg
                    .get_long_and_visible_aliases()
                    .is_some_and(|all| all.contains(&long)),
                None => arg.get_short().is_some_and(|short| option == format!("-{short}")),
            };
            assert!(command.get_arguments().any(is_it), "{name} does not know {option}");
            known += 1;
        }
    }
    assert_eq!(known, 87, "so many options has the manual");
}

#[test]
fn what_is_not_there_says_so_with_a_status() {
    for (words, code, said) in [
        (&["crete"][..], 1, "did you mean `create`?"),
        (&["start", "web"], 1, "xl create FILE"),
        (&["remus", "web", "host"], 1, "not available"),
        (&["list", "--nonsense"], 2, "--nonsense"),
        (&["create"], 6, "no configuration file"),
        (&["create", "nowhere.cfg"], 3, "neither here nor in /etc/xen"),
    ] {
        let output = xl(words);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}", errors(&output));
        assert!(errors(&output).contains(said), "{words:?}: {}", errors(&output));
    }
}

/// `xl image import` of an archive that never ends, whose `tar` waits for more of it.
fn import_without_end(folder: &Path) -> (std::process::Child, std::fs::File) {
    let pipe = folder.join("pipe").join("web.tar");
    std::fs::create_dir_all(pipe.parent().expect("has one")).expect("can be made");
    let _ = std::fs::remove_file(&pipe);
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("it starts").success());
    let xl = Command::new(env!("CARGO_BIN_EXE_xl"))
        .args(["image", "import"])
        .args([&pipe, &folder.join("images")])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("it starts");
    // Somebody reads it from here on.
    let pipe = std::fs::File::options().write(true).open(&pipe).expect("can be opened");
    (xl, pipe)
}

fn signal(process: &std::process::Child, signal: &str) {
    let sent = Command::new("sh")
        .args(["-c", "kill -$1 $2", "sh", signal])
        .arg(process.id().to_string())
        .status();
    assert!(sent.expect("it starts").success());
}

fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("is there").flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_step_that_is_called_off_leaves_nothing_and_one_that_is_killed_nothing_for_long() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("interrupted");
    let _ = std::fs::remove_dir_all(&folder);
    let images = folder.join("images");
    for kind in ["INT", "TERM", "HUP"] {
        let (process, pipe) = import_without_end(&folder);
        signal(&process, kind);
        let output = process.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(1), "{kind}: {}", errors(&output));
        assert!(
            errors(&output).contains("called off: all is as it was"),
            "{}",
            errors(&output)
        );
        assert_eq!(files(&images), [""; 0]);
        drop(pipe);
    }
    // Who is killed can clear nothing away, and its program goes on: nobody may do the same beside it.
    let (process, pipe) = import_without_end(&folder);
    signal(&process, "KILL");
    let output = process.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), None);
    assert_eq!(files(&images), [".web.tar.files"]);
    let (image, archive) = (folder.join("web.img"), folder.join("web.tar"));
    std::fs::write(&image, [0; 4096]).expect("can be written");
    let (image, archive) = (image.display().to_string(), archive.display().to_string());
    assert!(xl(&["image", "export", "-y", &archive, &image]).status.success());
    let import = || xl(&["image", "import", &archive, &images.display().to_string()]);
    assert!(
        errors(&import()).contains("somebody else is making"),
        "{}",
        errors(&import())
    );
    drop(pipe);
    let imported = (0..1000).map(|_| import()).find(|output| output.status.success());
    assert!(imported.is_some(), "{}", errors(&import()));
    assert_eq!(files(&images), ["web.img"]);
}

#[test]
fn every_command_has_a_page_and_every_shell_its_completions() {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pages");
    let written = Command::new(env!("CARGO_BIN_EXE_xl-pages")).arg(&directory).status();
    assert!(written.expect("it starts").success());
    let mut xl = ferroxen_xl::command();
    xl.build();
    for command in xl.get_subcommands().filter(|command| !command.is_hide_set()) {
        let path = directory.join(format!("share/man/man1/xl-{}.1", command.get_name()));
        let page = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(page.contains(".SH OPTIONS"), "{page}");
    }
    let page = std::fs::read_to_string(directory.join("share/man/man1/xl.1")).expect("is there");
    assert!(
        page.contains("remus") && page.contains("no domain is copied to another host"),
        "{page}"
    );
    for place in [
        "bash-completion/completions/xl",
        "zsh/vendor-completions/_xm",
        "fish/vendor_completions.d/xl.fish",
    ] {
        let text = std::fs::read_to_string(directory.join("share").join(place)).expect("is there");
        assert!(text.contains("vcpu-list"), "{place}");
    }
    // What a page tells of is there.
    let manuals = directory.join("share/man/man1");
    let mut told = 0;
    for entry in std::fs::read_dir(&manuals).expect("is there").flatten() {
        let page = std::fs::read_to_string(entry.path()).expect("is text");
        for line in page
            .lines()
            .filter(|line| line.starts_with("xl\\-") && line.ends_with("(1)"))
        {
            let other = manuals.join(line.replace('\\', "").replace("(1)", ".1"));
            assert!(other.exists(), "{} tells of {line}", entry.path().display());
            told += 1;
        }
    }
    assert!(told > 60, "only {told} pages are told of");
    let shell = "source share/bash-completion/completions/xl && complete -p xl && COMP_WORDS=(xl image cl) COMP_CWORD=2 && \
                 _xl xl cl image && echo ${COMPREPLY[@]}";
    let completed = Command::new("bash")
        .args(["-ec", shell])
        .current_dir(&directory)
        .output()
        .expect("it starts");
    assert!(
        String::from_utf8_lossy(&completed.stdout).ends_with("clone\n"),
        "{completed:?}"
    );
}
