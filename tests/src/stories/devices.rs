//! Disks and network cards of a running guest.

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::dom0::{Dom0, PATIENCE};
use crate::guest::{Tiny, micro};
use crate::machine::Parts;

const NAME: &str = "dev";

pub(super) fn come_and_go(parts: &Parts) -> Result<()> {
    let mut dom0 = Dom0::boot(parts)?;
    dom0.run("for n in 1 2 3; do dd if=/dev/zero of=/tmp/d$n.img bs=1M count=0 seek=16 2>/dev/null; done")?;
    dom0.start_tiny(&Tiny::new(NAME).disk("file:/tmp/d1.img,xvda,w"))?;
    a_disk_comes_and_goes(&mut dom0)?;
    a_disk_grows(&mut dom0)?;
    a_disk_cannot_be_taken_twice(&mut dom0)?;
    a_card_comes_and_goes(&mut dom0)?;
    a_driver_domain_serves(&mut dom0)?;
    every_way_of_writing(&mut dom0)?;
    let loops = dom0.run("losetup -a | grep -c /tmp/d || true")?;
    ensure!(loops == "0", "{loops} loop devices are left");
    dom0.power_off(PATIENCE)
}

fn a_disk_comes_and_goes(dom0: &mut Dom0) -> Result<()> {
    for (spec, device) in [
        ("file:/tmp/d2.img,xvdb,w", "xvdb"),
        ("tap:aio:/tmp/d2.img,xvdc,w", "xvdc"),
        ("'format=raw, vdev=xvdd, access=rw, target=/tmp/d2.img'", "xvdd"),
        ("file:/tmp/d2.img xvde w", "xvde"),
    ] {
        dom0.run(&format!("xl block-attach {NAME} {spec}"))?;
        let written = format!(
            "for _ in $(seq 50); do [ -b /dev/{device} ] && break; usleep 100000; done; \
             echo hello-{device} | dd of=/dev/{device} conv=fsync 2>/dev/null && cat /sys/block/{device}/size"
        );
        let sectors = dom0.in_guest(NAME, &written, PATIENCE)?;
        ensure!(sectors == "32768", "{device} has {sectors} sectors in the guest");
        let list = dom0.run(&format!("xl block-list --json {NAME}"))?;
        let list: Value = serde_json::from_str(&list)?;
        let found = list
            .as_array()
            .into_iter()
            .flatten()
            .find(|disk| disk["name"] == device);
        ensure!(
            found.is_some_and(|disk| disk["state"] == 4 && disk["target"] == "/tmp/d2.img"),
            "the list says of {device}: {list}"
        );
        dom0.run(&format!("xl block-detach {NAME} {device}"))?;
        let gone = dom0.in_guest(NAME, &format!("[ -b /dev/{device} ] || echo gone"), PATIENCE)?;
        ensure!(gone == "gone", "{device} is still in the guest");
        let kept = dom0.run("head -c 16 /tmp/d2.img | tr -d '\\0'")?;
        ensure!(kept.trim() == format!("hello-{device}"), "the image holds {kept}");
    }
    let (code, said) = dom0.ask(&format!("xl block-detach {NAME} xvdb 2>&1"), PATIENCE)?;
    ensure!(
        code == 1 && said.contains("not connected"),
        "detaching twice: {code}, {said}"
    );
    Ok(())
}

/// The guest sees more without a reboot, and what it had is still there.
fn a_disk_grows(dom0: &mut Dom0) -> Result<()> {
    dom0.in_guest(NAME, "echo before | dd of=/dev/xvda conv=fsync 2>/dev/null", PATIENCE)?;
    dom0.run(&format!("xl block-resize {NAME} xvda 24m"))?;
    let look = "for _ in $(seq 50); do dd if=/dev/xvda of=/dev/null bs=512 count=1 iflag=direct 2>/dev/null; \
                now=$(cat /sys/block/xvda/size); [ $now = 49152 ] && break; usleep 100000; done; echo $now";
    let sectors = dom0.in_guest(NAME, look, PATIENCE)?;
    ensure!(sectors == "49152", "the grown disk has {sectors} sectors in the guest");
    // As an administrator would by hand.
    dom0.run(&format!("truncate -s 32M /tmp/d1.img && xl block-resize {NAME} xvda"))?;
    let sectors = dom0.in_guest(NAME, &look.replace("49152", "65536"), PATIENCE)?;
    ensure!(
        sectors == "65536",
        "the disk that was grown by hand has {sectors} sectors"
    );
    let first = dom0.in_guest(NAME, "head -c 6 /dev/xvda", PATIENCE)?;
    ensure!(first == "before", "the grown disk begins with {first:?}");
    let (code, said) = dom0.ask(&format!("xl block-resize {NAME} xvda 8m 2>&1"), PATIENCE)?;
    ensure!(code == 1 && said.contains("can only grow"), "shrinking: {code}, {said}");
    Ok(())
}

fn a_disk_cannot_be_taken_twice(dom0: &mut Dom0) -> Result<()> {
    for (spec, reason) in [
        ("file:/tmp/d1.img,xvdb,w", "is in use by"),
        ("file:/tmp/d3.img,xvda,w", "already"),
        ("file:/tmp/nothing.img,xvdb,w", "No such file"),
        ("phy:/tmp/d3.img,xvdb,w", "file:/tmp/d3.img"),
    ] {
        let (code, said) = dom0.ask(&format!("xl block-attach {NAME} {spec} 2>&1"), PATIENCE)?;
        ensure!(code == 1 && said.contains(reason), "{spec}: {code}, {said}");
    }
    let list = dom0.run(&format!("xl block-list {NAME} | wc -l"))?;
    ensure!(list == "2", "a refused disk is in the list");
    Ok(())
}

fn a_card_comes_and_goes(dom0: &mut Dom0) -> Result<()> {
    const MAC: &str = "00:16:3e:01:02:03";
    dom0.run(&format!("xl network-attach {NAME} bridge=xenbr0 mac={MAC} rate=10Mb/s"))?;
    let rate = dom0.run(&format!(
        "xenstore-read /local/domain/0/backend/vif/$(xl domid {NAME})/0/rate"
    ))?;
    ensure!(rate == "62500,50000", "10 Mb/s are {rate}");
    dom0.in_guest(
        NAME,
        "for _ in $(seq 50); do [ -e /sys/class/net/eth0 ] && break; usleep 100000; done; \
         ip addr add 10.0.2.50/24 dev eth0; ip link set eth0 up",
        PATIENCE,
    )?;
    dom0.run("ping -c 2 -W 5 10.0.2.50")?;
    let listed = dom0.run(&format!("xl network-list {NAME}"))?;
    ensure!(listed.contains(MAC), "the list is:\n{listed}");
    dom0.run(&format!("xl network-detach {NAME} {MAC}"))?;
    let gone = dom0.in_guest(NAME, "[ -e /sys/class/net/eth0 ] || echo gone", PATIENCE)?;
    let links = dom0.run("ip -br link")?;
    ensure!(
        gone == "gone" && !links.contains("vif"),
        "the card is still there: {gone}\n{links}"
    );
    Ok(())
}

const DRIVER: &str = "driver";

/// A guest with our `xl` and Linux' backends in it serves the other one, until that one is destroyed.
fn a_driver_domain_serves(dom0: &mut Dom0) -> Result<()> {
    // What Domain 0 itself runs, laid over a guest's ramdisk.
    dom0.run(
        "mkdir -p /tmp/over/sbin /tmp/over/etc/xen && cd /tmp/over && cp -r /etc/xen/scripts etc/xen/ && \
         for p in xl xenstore-read xenstore-write; do cp -L $(command -v $p) sbin/; done && \
         for m in xen-blkback loop llc stp bridge xen-netback; do cp $(find /lib/modules -name $m.ko) sbin/; done && \
         find . | cpio -o -H newc 2>/dev/null | cat /srv/guests/tiny.img - >/tmp/driver.img && cd / && rm -r /tmp/over",
    )?;
    let driver = Tiny::new(DRIVER)
        .memory(160)
        .setting("ramdisk = \"/tmp/driver.img\"")
        .setting("driver_domain = 1");
    dom0.start_tiny(&driver)?;
    let served = "insmod /sbin/loop.ko && insmod /sbin/xen-blkback.ko && truncate -s 16M /tmp/served.img && xl devd";
    dom0.in_guest(DRIVER, served, PATIENCE)?;
    serves_a_card(dom0)?;
    let attach = |image: &str| {
        format!("xl block-attach {NAME} backend={DRIVER},vdev=xvdf,access=rw,target=/tmp/{image}.img 2>&1")
    };
    let (code, said) = dom0.ask(&attach("absent"), PATIENCE)?;
    ensure!(
        code == 1 && said.contains("No such file"),
        "what the driver domain does not have: {code}, {said}"
    );
    let (code, said) = dom0.ask(&attach("served").replace(DRIVER, "nobody"), PATIENCE)?;
    ensure!(
        code == 1 && said.contains("no such domain"),
        "served by nobody: {code}, {said}"
    );
    dom0.run(&attach("served"))?;
    let number = dom0.run(&format!("xl domid {DRIVER}"))?;
    let list = dom0.run(&format!("xl block-list {NAME} | awk '$1 == 51792 {{ print $2, $4 }}'"))?;
    ensure!(
        list.starts_with(&number),
        "domain {number} serves it, and the list says {list}"
    );
    let write = "for _ in $(seq 50); do [ -b /dev/xvdf ] && break; usleep 100000; done; \
                 echo served | dd of=/dev/xvdf conv=fsync 2>/dev/null";
    dom0.in_guest(NAME, write, PATIENCE)?;
    dom0.run(&format!("xl block-detach {NAME} xvdf"))?;
    let look = "for _ in $(seq 100); do [ -z \"$(losetup -a)\" ] && break; usleep 100000; done; \
                head -c 6 /tmp/served.img; losetup -a | wc -l";
    let kept = dom0.in_guest(DRIVER, look, PATIENCE)?;
    ensure!(kept == "served0", "after it was detached, the driver domain has {kept}");
    dom0.run(&attach("served"))?;
    dom0.destroy(NAME)?;
    let kept = dom0.in_guest(DRIVER, look, PATIENCE)?;
    ensure!(
        kept == "served0",
        "after its guest was destroyed, the driver domain has {kept}"
    );
    let look =
        "for _ in $(seq 100); do ls /sys/class/net | grep -q vif || break; usleep 100000; done; ls /sys/class/net";
    let links = dom0.in_guest(DRIVER, look, PATIENCE)?;
    ensure!(!links.contains("vif"), "the driver domain has {links}");
    dom0.destroy(DRIVER)
}

/// On a bridge of the driver domain's own, by the script in there.
fn serves_a_card(dom0: &mut Dom0) -> Result<()> {
    let bridge = "for m in llc stp bridge xen-netback; do insmod /sbin/$m.ko; done; ip link add inner type bridge && \
                  ip addr add 10.9.0.1/24 dev inner && ip link set inner up";
    dom0.in_guest(DRIVER, bridge, PATIENCE)?;
    dom0.run_within(
        &format!("xl network-attach {NAME} backend={DRIVER},bridge=inner"),
        PATIENCE,
    )?;
    let card = "for _ in $(seq 50); do [ -e /sys/class/net/eth0 ] && break; usleep 100000; done; \
                ip addr add 10.9.0.2/24 dev eth0; ip link set eth0 up; ping -c 2 -W 5 10.9.0.1 | grep -c seq=";
    let answers = dom0.in_guest(NAME, card, PATIENCE)?;
    ensure!(answers == "2", "the driver domain answers {answers} of 2 times");
    let links = dom0.run("ip -br link")?;
    ensure!(!links.contains("vif"), "Domain 0 has a part in it:\n{links}");
    Ok(())
}

/// Numbers as in xen-vbd-interface(7), and NetBSD's.
fn every_way_of_writing(dom0: &mut Dom0) -> Result<()> {
    const DISKS: [(&str, u32); 5] = [
        ("file:/tmp/d1.img,0x3,r", 3),
        ("file:/tmp/d1.img,cd0a,r", 1536),
        ("tap:aio:/tmp/d1.img,hdc,r", 5632),
        ("file:/tmp/d1.img,ioemu:hdd,r", 5696),
        ("/tmp/d1.img,raw,xvdq,ro", 268_439_552),
    ];
    let list = DISKS.map(|(spec, _)| format!("'{spec}'")).join(", ");
    dom0.write_config("many", &format!("{}disk = [ {list} ]\n", micro("many", "idle")))?;
    dom0.run("xl create -p /tmp/many.cfg")?;
    let numbers = dom0.run("xl block-list many | awk 'NR > 1 { print $1 }' | sort -n | xargs")?;
    let expected = DISKS.map(|(_, number)| number);
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    let expected: Vec<String> = expected.iter().map(u32::to_string).collect();
    ensure!(
        numbers == expected.join(" "),
        "the disks are {numbers}, not {}",
        expected.join(" ")
    );
    dom0.destroy("many")
}
