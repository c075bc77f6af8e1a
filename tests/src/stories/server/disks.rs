//! Disks of every kind behind one guest, and what an administrator does with them: a volume, a partition with swap, a
//! whole disk, files by three words, two of QEMU's formats, and disks that may be used only so much.

use anyhow::{Result, ensure};

use crate::dom0::{Dom0, PATIENCE};
use crate::guest::{Tiny, micro};

const LV: &str = "/dev/mapper/VolGroup00-LogVol00";
/// As the guest's kernel names them: every virtual disk is xvd…, by its number.
const DISKS: [(&str, &str, &str); 7] = [
    ("phy:/dev/mapper/VolGroup00-LogVol00,sda1,w", "xvda1", "131072"),
    ("phy:/dev/vdd1,sda2,w", "xvda2", "260096"),
    ("phy:/dev/vde,hdc,r", "xvdc", "131072"),
    ("file:/vmimages/a.img,0xca30,w", "xvdd", "65536"),
    ("tap:aio:/vmimages/t.img,xvde,w", "xvde", "32768"),
    ("tap:qcow2:/vmimages/b.qcow2,xvdf,w", "xvdf", "524288"),
    ("format=vhd,vdev=xvdg,access=rw,target=/vmimages/c.vhd", "xvdg", "65552"),
];
const WRITTEN: [&str; 4] = ["xvdd", "xvde", "xvdf", "xvdg"];

pub(super) fn are_served(dom0: &mut Dom0) -> Result<()> {
    make(dom0)?;
    let shop = DISKS.iter().fold(Tiny::new("shop"), |tiny, (spec, ..)| tiny.disk(spec));
    dom0.start_tiny(&shop)?;
    for (spec, name, sectors) in DISKS {
        let look = format!(
            "for _ in $(seq 50); do [ -b /dev/{name} ] && break; usleep 100000; done; cat /sys/class/block/{name}/size"
        );
        let found = dom0.in_guest("shop", &look, PATIENCE)?;
        ensure!(
            found == sectors,
            "{spec} has {found} sectors in the guest, not {sectors}"
        );
    }
    let mark = format!(
        "for d in {}; do echo on-$d | dd of=/dev/$d bs=512 seek=9 conv=sync,fsync 2>/dev/null; done; \
         swapon /dev/xvda2 && grep -c xvda2 /proc/swaps",
        WRITTEN.join(" ")
    );
    let swaps = dom0.in_guest("shop", &mark, PATIENCE)?;
    ensure!(swaps == "1", "the guest has {swaps} swaps");
    cannot_be_written(dom0)?;
    grow(dom0)?;
    are_backed_up(dom0, &shop)?;
    go_with_who_was_killed(dom0)
}

/// `xl` is killed as soon as there is a loop device: either nobody has it any more, or the domain's nodes say who has. And
/// QEMU's server is killed under a guest, which gets errors from that disk, and is destroyed like any other.
fn go_with_who_was_killed(dom0: &mut Dom0) -> Result<()> {
    let disk = "disk = [ 'file:/vmimages/a.img,xvda,w' ]\n";
    dom0.write_config("half", &(micro("half", "idle") + disk))?;
    let kill = "xl create -q -p /tmp/half.cfg >/dev/null 2>&1 & \
                until set -- /sys/block/loop*/loop && [ -e $1 ]; do kill -0 $! 2>/dev/null || break; done; kill -9 $!; wait $!; \
                nodes=$(xenstore-ls -f /local/domain/0/backend/vbd 2>/dev/null | grep /node); unknown=0; \
                for l in /sys/block/loop*/loop; do [ -e $l ] || continue; l=${l%/loop}; \
                case $nodes in *\"/dev/${l##*/}\"*) ;; *) unknown=$((unknown + 1));; esac; done; echo $unknown; \
                for d in $(xl list | awk 'NR > 2 && $1 != \"hello\" { print $2 }'); do xl destroy $d; done";
    let unknown = dom0.run(kill)?;
    ensure!(
        unknown.lines().last() == Some("0"),
        "loop devices that no domain's nodes have: {unknown}"
    );
    nothing_is_left(dom0)?;

    let served = Tiny::new("served")
        .disk("vdev=xvdd,rate=2MB/s,target=/vmimages/a.img")
        .disk("vdev=xvde,iops=40,target=/vmimages/t.img")
        .disk("tap:qcow2:/vmimages/b.qcow2,xvdf,w");
    dom0.start_tiny(&served)?;
    keep_their_limits(dom0)?;
    follow_their_guest(dom0)?;
    dom0.run("pkill -KILL -x qemu-nbd")?;
    let read = "dd if=/dev/xvdf of=/dev/null bs=64k count=1 skip=900 iflag=direct 2>&1 | grep -c 'Input/output error'";
    let errors = dom0.in_guest("served", read, PATIENCE)?;
    ensure!(
        errors == "1",
        "of a disk without its server the guest reads: {errors} errors"
    );
    dom0.destroy("served")?;
    let servers = dom0.run("ls /sys/block/nbd*/pid 2>/dev/null | wc -l")?;
    ensure!(servers == "0", "{servers} nbd devices are in use");
    nothing_is_left(dom0)
}

/// 4 MiB at 2 MB/s take two seconds, 60 requests at 40 each second one and a half, but for what QEMU lets pass at once.
fn keep_their_limits(dom0: &mut Dom0) -> Result<()> {
    for (dd, centiseconds) in [
        ("if=/dev/zero of=/dev/xvdd bs=64k count=64 oflag=direct", 170),
        ("if=/dev/xvde of=/dev/null bs=4k count=60 iflag=direct", 120),
        ("if=/dev/xvdd of=/dev/null bs=64k count=64 iflag=direct", 170),
    ] {
        let clock = "$(sed 's/ .*//;s/[.]//' /proc/uptime)";
        let timed = format!("began={clock}; dd {dd} 2>/dev/null && echo $(({clock} - began))");
        let taken: u64 = dom0.in_guest("served", &timed, PATIENCE)?.parse()?;
        ensure!(
            taken >= centiseconds,
            "`dd {dd}` takes {taken} hundredths of a second only"
        );
    }
    Ok(())
}

/// Over a real ssh, to this very host: for a moment two domains are announced with the same images.
fn follow_their_guest(dom0: &mut Dom0) -> Result<()> {
    dom0.run(
        "mkdir -pm 700 /root/.ssh && cd /root/.ssh && ssh-keygen -q -N '' -t ed25519 -f id_ed25519 && \
         cp id_ed25519.pub authorized_keys && ssh-keyscan -t ed25519 127.0.0.1 2>/dev/null >known_hosts",
    )?;
    let write = |word: &str| {
        format!("for d in xvdd xvde xvdf; do echo {word}-$d | dd of=/dev/$d bs=512 conv=sync,fsync 2>/dev/null; done")
    };
    dom0.in_guest("served", &write("there"), PATIENCE)?;
    let before = dom0.run("xl domid served")?;
    dom0.run_within("xl migrate served 127.0.0.1 2>&1", PATIENCE * 3)?;
    ensure!(dom0.run("xl domid served")? != before, "it has not moved");
    let read = "for d in xvdd xvde xvdf; do head -n 1 /dev/$d; done | xargs";
    let found = dom0.in_guest("served", read, PATIENCE)?;
    ensure!(
        found == "there-xvdd there-xvde there-xvdf",
        "after it has moved the guest reads: {found}"
    );
    keep_their_limits(dom0)?;
    dom0.in_guest("served", &write("here"), PATIENCE)?;
    let servers = dom0.run("pgrep -xc qemu-nbd")?;
    ensure!(servers == "3", "{servers} servers for three disks");
    Ok(())
}

fn make(dom0: &mut Dom0) -> Result<()> {
    dom0.run("pvcreate -q /dev/vdc && vgcreate -q VolGroup00 /dev/vdc && lvcreate -q -L 64m -n LogVol00 VolGroup00")?;
    dom0.run("echo ',,L' | sfdisk -q /dev/vdd && udevadm settle && mkswap -q /dev/vdd1")?;
    dom0.run(&format!("mkfs.ext4 -q /dev/vde && mkfs.ext4 -q {LV}"))?;
    dom0.run(
        "mkdir -p /vmimages && cd /vmimages && truncate -s 32M a.img && truncate -s 16M t.img && \
         qemu-img create -q -f qcow2 b.qcow2 256M && qemu-img create -q -f vpc c.vhd 32M",
    )?;
    Ok(())
}

/// What is read-only for the guest is so for its kernel.
fn cannot_be_written(dom0: &mut Dom0) -> Result<()> {
    let said = dom0.in_guest(
        "shop",
        "cat /sys/block/xvdc/ro; mount -t ext4 -o ro /dev/xvdc /mnt && touch /mnt/x 2>&1 || true; umount /mnt",
        PATIENCE,
    )?;
    ensure!(
        said.starts_with('1') && said.contains("Read-only file system"),
        "writing to a read-only disk: {said}"
    );
    Ok(())
}

/// The guest sees what LVM has added without a reboot; it looks when it asks its backend for something.
fn grow(dom0: &mut Dom0) -> Result<()> {
    dom0.run("lvextend -q -L 72m VolGroup00/LogVol00 && xl block-resize shop sda1")?;
    let look = "for _ in $(seq 100); do dd if=/dev/xvda1 of=/dev/null bs=512 count=1 iflag=direct 2>/dev/null; \
                now=$(cat /sys/class/block/xvda1/size); [ $now = 147456 ] && break; usleep 100000; done; echo $now";
    let sectors = dom0.in_guest("shop", look, PATIENCE)?;
    ensure!(
        sectors == "147456",
        "the grown volume has {sectors} sectors in the guest"
    );
    let (code, said) = dom0.ask("xl block-resize shop xvdf 300m 2>&1", PATIENCE)?;
    ensure!(
        code == 1 && said.contains("qemu-img resize"),
        "growing a qcow2: {code}, {said}"
    );
    Ok(())
}

/// A running guest's disk is copied from a snapshot, at a time that was set before; then the disk is lost, and the drill is
/// that the guest goes on with the copy. When it has gone, all behind its disks has.
fn are_backed_up(dom0: &mut Dom0, shop: &Tiny) -> Result<()> {
    dom0.in_guest(
        "shop",
        "mount -t ext4 /dev/xvda1 /mnt && dd if=/dev/urandom of=/mnt/books bs=64k count=16 2>/dev/null; \
         sha256sum /mnt/books >/mnt/sum; date >/mnt/log; sync; (while :; do date >>/mnt/log; usleep 500000; done >/dev/null 2>&1 &)",
        PATIENCE,
    )?;
    // The guest writes on.
    dom0.run(
        "systemd-run -q --unit=nightly --on-active=1s -p Type=oneshot -p RemainAfterExit=yes sh -c \
         'lvcreate -q -s -L 64m -n nightly VolGroup00/LogVol00 && \
         dd if=/dev/VolGroup00/nightly of=/vmimages/shop.backup bs=1M conv=sparse status=none && \
         lvremove -q -y VolGroup00/nightly && { e2fsck -f -p /vmimages/shop.backup; [ $? -le 1 ]; }'",
    )?;
    let made = "for _ in $(seq 300); do state=$(systemctl show -P ActiveState nightly.service); \
                case $state in active | failed) break ;; esac; sleep 1; done; \
                [ $state = active ] || { journalctl --no-pager -u nightly; false; }";
    dom0.run_within(made, PATIENCE * 5)?;
    dom0.destroy("shop")?;
    nothing_is_left(dom0)?;
    dom0.run(&format!("wipefs -q -a {LV} && ! blkid -p {LV}"))?;
    dom0.run_within(
        &format!("dd if=/vmimages/shop.backup of={LV} bs=1M conv=fsync status=none"),
        PATIENCE * 2,
    )?;
    dom0.start_tiny(shop)?;
    let read = format!(
        "mount -t ext4 /dev/xvda1 /mnt && sha256sum -c /mnt/sum >/dev/null && test -s /mnt/log && \
         for d in {}; do dd if=/dev/$d bs=512 skip=9 count=1 2>/dev/null | tr -d '\\0'; done | xargs",
        WRITTEN.join(" ")
    );
    let kept = dom0.in_guest("shop", &read, PATIENCE)?;
    let written = WRITTEN.map(|disk| format!("on-{disk}")).join(" ");
    ensure!(kept == written, "with its disk restored the guest reads {kept:?}");
    dom0.destroy("shop")?;
    nothing_is_left(dom0)
}

fn nothing_is_left(dom0: &mut Dom0) -> Result<()> {
    let left =
        dom0.run("pgrep -c qemu-nbd; losetup -a | wc -l; dmsetup info -c --noheadings -o open VolGroup00-LogVol00")?;
    ensure!(
        left.split_whitespace().eq(["0", "0", "0"]),
        "servers, loops, holders of the volume when the guest has gone: {left}"
    );
    Ok(())
}
