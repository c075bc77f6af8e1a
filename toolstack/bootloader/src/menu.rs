//! Boot menus: GRUB's `grub.cfg`, GRUB legacy's `menu.lst`, and extlinux's.
//!
//! `grub.cfg` is a program; only its menu is read, as the words in it stand, and nothing is run. That is right for the
//! files that distributions' tools write.

/// One thing to start.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Entry {
    /// What people see.
    pub title: String,
    /// The kernel's path.
    pub kernel: String,
    /// The ramdisks' paths.
    pub ramdisks: Vec<String>,
    /// The command line.
    pub args: String,
    /// Its number, behind those of the submenus that it is in.
    pub place: Vec<usize>,
}

/// A menu.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Menu {
    /// What can be started.
    pub entries: Vec<Entry>,
    /// The title or number of what is started unasked.
    pub default: Option<String>,
}

/// Reads a menu that lies in a directory.
pub type Parse = fn(&str, &str) -> Menu;

/// Where menus are, in the order in which they are looked for.
pub const PLACES: &[(&str, Parse)] = &[
    ("/boot/grub/grub.cfg", grub),
    ("/grub/grub.cfg", grub),
    ("/boot/grub2/grub.cfg", grub),
    ("/grub2/grub.cfg", grub),
    ("/boot/extlinux/extlinux.conf", extlinux),
    ("/extlinux/extlinux.conf", extlinux),
    ("/extlinux.conf", extlinux),
    ("/boot/syslinux/syslinux.cfg", extlinux),
    ("/boot/grub/menu.lst", legacy),
    ("/boot/grub/grub.conf", legacy),
    ("/grub/menu.lst", legacy),
    ("/grub/grub.conf", legacy),
];

impl Menu {
    /// The entry that a title, a number, or a way through submenus (`1>2`) means.
    pub fn entry(&self, wanted: &str) -> Option<&Entry> {
        if let Some(entry) = self.entries.iter().find(|entry| entry.title == wanted) {
            return Some(entry);
        }
        let steps: Option<Vec<usize>> = wanted.split('>').map(|step| step.trim().parse().ok()).collect();
        match steps {
            // A submenu means its first entry.
            Some(steps) => self.entries.iter().find(|entry| entry.place.starts_with(&steps)),
            None => {
                let last = wanted.rsplit('>').next()?.trim();
                self.entries.iter().find(|entry| entry.title == last)
            }
        }
    }
}

/// `grub.cfg`
pub fn grub(text: &str, _directory: &str) -> Menu {
    let mut menu = Menu::default();
    // For each open submenu: how many entries it has had, and how deep its braces are.
    let mut levels = vec![(0usize, 0usize)];
    let mut depth = 0usize;
    let mut open: Option<(Entry, usize)> = None;
    for line in text.lines() {
        let words = words(line);
        let Some(verb) = words.first().map(String::as_str) else {
            continue;
        };
        let (opens, closes) = (words.last().is_some_and(|word| word == "{"), verb == "}");
        match verb {
            "menuentry" | "submenu" if words.len() > 1 && opens => {
                let mut place: Vec<usize> = levels.iter().map(|(count, _)| *count).collect();
                // The levels above have counted this submenu already.
                let last = place.len() - 1;
                place[..last].iter_mut().for_each(|count| *count -= 1);
                if let Some(level) = levels.last_mut() {
                    level.0 += 1;
                }
                if verb == "submenu" {
                    levels.push((0, depth));
                } else {
                    let title = words[1].clone();
                    open = Some((
                        Entry {
                            title,
                            place,
                            ..Entry::default()
                        },
                        depth,
                    ));
                }
            }
            "set" => {
                let default = words.get(1).and_then(|word| word.strip_prefix("default="));
                // What is in a variable is for GRUB to know.
                if let Some(default) = default.filter(|default| !default.contains('$') && open.is_none()) {
                    menu.default = Some(default.to_owned());
                }
            }
            _ => {
                if let Some((entry, _)) = &mut open {
                    fill(entry, verb, &words[1..]);
                }
            }
        }
        if opens {
            depth += 1;
        }
        if closes {
            depth = depth.saturating_sub(1);
            if open.as_ref().is_some_and(|(_, at)| *at == depth) {
                menu.entries.extend(
                    open.take()
                        .map(|(entry, _)| entry)
                        .filter(|entry| !entry.kernel.is_empty()),
                );
            }
            if levels.len() > 1 && levels.last().is_some_and(|(_, at)| *at == depth) {
                levels.pop();
            }
        }
    }
    menu
}

/// What one line of an entry says.
fn fill(entry: &mut Entry, verb: &str, words: &[String]) {
    let path = |word: &String| word.rsplit(')').next().unwrap_or_default().to_owned();
    match (verb, words) {
        ("linux" | "linux16" | "linuxefi" | "kernel", [kernel, args @ ..]) => {
            (entry.kernel, entry.args) = (path(kernel), args.join(" "));
        }
        ("initrd" | "initrd16" | "initrdefi", paths) => entry.ramdisks = paths.iter().map(path).collect(),
        // A hypervisor's entry: its modules are the kernel and the ramdisk.
        ("module" | "module2", words) => {
            let words: Vec<&String> = words.iter().filter(|word| !word.starts_with("--")).collect();
            match words.as_slice() {
                [kernel, args @ ..] if entry.kernel.is_empty() || entry.kernel.contains("xen") => {
                    entry.kernel = path(kernel);
                    // Its own path stands there once more, as a placeholder.
                    let args = args.iter().map(|arg| arg.as_str()).filter(|arg| *arg != "placeholder");
                    entry.args = args.collect::<Vec<_>>().join(" ");
                }
                [ramdisk, ..] => entry.ramdisks.push(path(ramdisk)),
                [] => {}
            }
        }
        _ => {}
    }
}

/// `menu.lst`
pub fn legacy(text: &str, _directory: &str) -> Menu {
    let mut menu = Menu::default();
    for line in text.lines() {
        let line = line.trim();
        let (verb, rest) = line.split_once([' ', '\t', '=']).unwrap_or((line, ""));
        let rest = rest.trim();
        match verb {
            "default" => menu.default = Some(rest.to_owned()),
            "title" => menu.entries.push(Entry {
                title: rest.to_owned(),
                place: vec![menu.entries.len()],
                ..Entry::default()
            }),
            _ if verb.starts_with('#') => {}
            _ => {
                if let Some(entry) = menu.entries.last_mut() {
                    fill(entry, verb, &words(rest));
                }
            }
        }
    }
    menu.entries.retain(|entry| !entry.kernel.is_empty());
    menu
}

/// `extlinux.conf`: its words are in any case, and paths may begin in its own directory.
pub fn extlinux(text: &str, directory: &str) -> Menu {
    let whole = |path: &str| match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("{directory}/{path}"),
    };
    let paths = |list: &str| {
        list.split(',')
            .filter(|path| !path.is_empty())
            .map(whole)
            .collect::<Vec<_>>()
    };
    let mut menu = Menu::default();
    for line in text.lines() {
        let line = line.trim();
        let (verb, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        let place = vec![menu.entries.len()];
        match (verb.to_ascii_lowercase().as_str(), menu.entries.last_mut()) {
            ("default" | "ontimeout", None) => menu.default = Some(rest.to_owned()),
            ("label", _) => menu.entries.push(Entry {
                title: rest.to_owned(),
                place,
                ..Entry::default()
            }),
            ("kernel" | "linux", Some(entry)) => entry.kernel = whole(rest),
            ("initrd", Some(entry)) => entry.ramdisks = paths(rest),
            ("append", Some(entry)) => {
                let (ramdisks, args): (Vec<&str>, Vec<&str>) =
                    rest.split_whitespace().partition(|word| word.starts_with("initrd="));
                let ramdisks = ramdisks.iter().flat_map(|word| paths(&word["initrd=".len()..]));
                entry.ramdisks.extend(ramdisks);
                entry.args = args.join(" ");
            }
            _ => {}
        }
    }
    menu.entries.retain(|entry| !entry.kernel.is_empty());
    menu
}

/// The words of a line as a shell takes them apart; a comment ends it.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            ('\\', None | Some('"')) => word.get_or_insert_default().extend(chars.next()),
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            ('#', None) if word.is_none() => break,
            (c, None) if c.is_whitespace() || c == ';' => words.extend(word.take()),
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DEBIAN: &str = r#"
if [ -s $prefix/grubenv ]; then
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
else
   set default="1>0"
fi
menuentry 'Debian GNU/Linux' --class debian $menuentry_id_option 'gnulinux-simple' {
	insmod gzio
	if [ x$feature_platform_search_hint = xy ]; then
	  search --no-floppy --fs-uuid --set=root 9b1e
	fi
	linux	/boot/vmlinuz-6.1.0-2 root=UUID=9b1e ro  quiet "a b"
	initrd	/boot/initrd.img-6.1.0-2
}
submenu 'Advanced options for Debian GNU/Linux' {
	menuentry 'Debian GNU/Linux, with Linux 6.1.0-1' --class debian {
		linux	($root)/boot/vmlinuz-6.1.0-1 root=UUID=9b1e ro
		initrd	/boot/early.img /boot/initrd.img-6.1.0-1
	}
	menuentry 'with Xen' {
		multiboot2	/boot/xen.gz placeholder
		module2	/boot/vmlinuz-6.1.0-1 placeholder root=UUID=9b1e ro
		module2	--nounzip   /boot/initrd.img-6.1.0-1
	}
}
menuentry "UEFI Firmware Settings" {
	fwsetup
}
"#;

    #[test]
    fn debians_menu_is_understood() {
        insta::assert_debug_snapshot!(grub(DEBIAN, "/boot/grub"));
    }

    #[test]
    fn entries_are_found_by_title_number_and_way() {
        let menu = grub(DEBIAN, "/boot/grub");
        let kernel = |wanted: &str| menu.entry(wanted).map(|entry| entry.kernel.as_str());
        assert_eq!(kernel("0"), Some("/boot/vmlinuz-6.1.0-2"));
        assert_eq!(kernel("1>0"), Some("/boot/vmlinuz-6.1.0-1"));
        assert_eq!(kernel("1"), Some("/boot/vmlinuz-6.1.0-1"));
        assert_eq!(kernel("Advanced options>with Xen"), Some("/boot/vmlinuz-6.1.0-1"));
        assert_eq!(kernel("7"), None);
    }

    #[test]
    fn the_old_menus_are_understood_too() {
        let lst = "default 1\ntimeout 5\n# title no\ntitle  CentOS (2.6.9)\n\troot (hd0,0)\n\tkernel /vmlinuz-2.6.9 ro \
                   root=/dev/sda1\n\tinitrd /initrd-2.6.9.img\ntitle second\n kernel (hd0,0)/vmlinuz2\n";
        let conf = "DEFAULT linux\nLABEL linux\n  MENU LABEL Debian\n  KERNEL ../vmlinuz\n  APPEND \
                    initrd=/a.img,/b.img root=/dev/xvda1 ro\nlabel other\n linux /k\n initrd /i\n";
        insta::assert_debug_snapshot!((legacy(lst, ""), extlinux(conf, "/boot/extlinux")));
    }

    proptest! {
        #[test]
        fn any_text_is_some_menu(text in "(menuentry|submenu|set default=|linux|title|kernel|[ '\"{}>\\\\\n\tA-z0-9é;#])*") {
            for parse in [grub, legacy, extlinux] {
                let menu = parse(&text, "/boot");
                prop_assert!(menu.entries.iter().all(|entry| !entry.kernel.is_empty()));
                menu.entry(&text);
            }
        }
    }
}
