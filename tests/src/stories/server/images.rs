//! Disk images: cloned into machines of their own, and grown with an interruption.

use anyhow::{Result, ensure};

use crate::dom0::{Dom0, PATIENCE};
use crate::guest::micro;

/// Enough of a system to have an identity, on a file system whose files can share blocks.
const TEMPLATE: &str = "mkfs.btrfs -q /dev/vdf && mkdir -p /clones && mount /dev/vdf /clones && \
                        mkdir -p /tmp/t/etc/ssh /tmp/t/root && cd /tmp/t && echo template >etc/hostname && \
                        echo 0123456789abcdef0123456789abcdef >etc/machine-id && echo 127.0.0.1 localhost >etc/hosts && \
                        ssh-keygen -q -N '' -t ed25519 -f etc/ssh/ssh_host_ed25519_key && cd / && \
                        dd if=/dev/urandom of=/tmp/t/root/data bs=1M count=16 status=none && \
                        xl image build /clones/template.img --size 128 --folder /tmp/t && rm -r /tmp/t";
const IDENTITY: [&str; 3] = ["/etc/machine-id", "/etc/hostname", "/etc/ssh/ssh_host_ed25519_key"];

/// Clones share what they have in common, and differ in all that tells machines apart.
pub(super) fn are_machines_of_their_own(dom0: &mut Dom0) -> Result<()> {
    dom0.run_within(TEMPLATE, PATIENCE * 2)?;
    for name in ["one", "two"] {
        let (file, card) = (format!("/clones/{name}.img"), "vif = [ '' ]");
        dom0.run(&format!(
            "xl image clone /clones/template.img {file} --hostname {name} | grep shares && xl image check {file}"
        ))?;
        dom0.write_config(
            name,
            &(micro(name, "idle") + &format!("{card}\ndisk = [ 'file:{file},xvda1,w' ]\n")),
        )?;
        dom0.run(&format!("xl create -q -p /tmp/{name}.cfg"))?;
    }
    for path in IDENTITY {
        let script = format!(
            "for n in template one two; do debugfs -R 'cat {path}' /clones/$n.img 2>/dev/null | sha256sum; done | \
             sort -u | wc -l"
        );
        let different = dom0.run(&script)?;
        ensure!(different == "3", "{path} has {different} values in three images");
    }
    let cards = dom0.run("xl network-list one two | awk '/00:16:3e/ { print $3 }' | sort -u | wc -l")?;
    ensure!(cards == "2", "two clones have {cards} addresses");
    dom0.destroy("one")?;
    dom0.destroy("two")
}

/// On a file system that shares no blocks: an image that stands on the template, which may not change from then on.
pub(super) fn stand_on_their_template(dom0: &mut Dom0) -> Result<()> {
    dom0.run(
        "cp --sparse=always /clones/template.img /vmimages/below.img && cd /vmimages && \
         xl image clone --overlay below.img stands.qcow2 --hostname stands | grep vdev=xvda1 && \
         qemu-img check -q stands.qcow2 && [ $(stat -c %s stands.qcow2) -lt 4000000 ]",
    )?;
    let refused = dom0.run("! xl image set /vmimages/below.img --hostname other 2>&1")?;
    ensure!(
        refused.contains("clones may stand on it"),
        "changing the template says: {refused}"
    );
    let disk = "disk = [ 'format=qcow2,vdev=xvda1,access=rw,target=/vmimages/stands.qcow2' ]\n";
    dom0.write_config("stands", &(micro("stands", "idle") + disk))?;
    dom0.run("xl create -q -p /tmp/stands.cfg")?;
    let inside = dom0.run(
        "device=/dev/$(basename $(dirname $(ls /sys/block/nbd*/pid))); e2fsck -f -n $device >/dev/null 2>&1 && \
         debugfs -R 'cat /etc/hostname' $device 2>/dev/null && \
         for i in $device /vmimages/below.img; do debugfs -R 'cat /etc/machine-id' $i 2>/dev/null; done | sort -u | wc -l",
    )?;
    ensure!(
        inside == "stands\n2",
        "in the image that stands on another there is {inside:?}"
    );
    dom0.destroy("stands")
}

/// Whoever is killed in the middle leaves the old image as it was, with a word on what to do, and the next one succeeds once the
/// program that was at work has ended.
pub(super) fn survive_interruption(dom0: &mut Dom0) -> Result<()> {
    let killed = "cd /clones; before=$(sha256sum <template.img); xl image resize template.img 200m >/dev/null 2>&1 & \
                  until [ -e template.img.new ]; do :; done; kill -9 $!; wait $!; \
                  flock template.img.new true; [ \"$(sha256sum <template.img)\" = \"$before\" ] && xl image check template.img";
    let said = dom0.run_within(killed, PATIENCE * 2)?;
    ensure!(
        said.contains("template.img.new is left of a step that was interrupted"),
        "of an interrupted step the check says:\n{said}"
    );
    let steps = dom0.run_within(
        "cd /clones; xl image resize template.img 200m 2>&1; stat -c %s template.img; ls",
        PATIENCE * 2,
    )?;
    for step in ["copying", "checking", "growing", "209715200"] {
        ensure!(steps.contains(step), "growing an image says:\n{steps}");
    }
    ensure!(!steps.contains(".new"), "something is left:\n{steps}");
    Ok(())
}
