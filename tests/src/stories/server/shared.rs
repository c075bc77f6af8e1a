//! What QEMU serves: a folder of the host's, and a screen.

use anyhow::{Result, ensure};

use crate::dom0::{Dom0, PATIENCE};
use crate::guest::Tiny;

const NAME: &str = "sees";
const TAG: &str = "data";

/// What is written on one side is read on the other, the screen shows the guest's own words, and QEMU goes with the guest.
pub(super) fn folders_and_screens(dom0: &mut Dom0) -> Result<()> {
    // The modules of 9p are not in a guest's ramdisk; Domain 0 has them.
    dom0.run(
        "mkdir -p /tmp/over/lib9p /srv/shared && cd /tmp/over && echo of the host >/srv/shared/word && \
         for m in $(modprobe -a --show-depends 9p 9pnet_xen | awk '{ print $2 }'); do cp $m lib9p/; done && \
         modprobe -a --show-depends 9p 9pnet_xen | awk '!had[$2]++ { sub(\".*/\", \"\"); print }' >lib9p/order && \
         find . | cpio -o -H newc 2>/dev/null | cat /srv/guests/tiny.img - >/tmp/nine.img && cd / && rm -r /tmp/over",
    )?;
    let guest = Tiny::new(NAME)
        .setting("ramdisk = \"/tmp/nine.img\"")
        .setting(&format!("p9 = [ 'tag={TAG},path=/srv/shared,security_model=none' ]"))
        .setting("vfb = [ 'vnc=1' ]");
    dom0.start_tiny(&guest)?;
    let mount = format!(
        "for m in $(cat /lib9p/order); do insmod /lib9p/$m; done; mkdir -p /mnt/data && \
         mount -t 9p -o trans=xen,version=9p2000.L {TAG} /mnt/data && cat /mnt/data/word && echo of the guest >/mnt/data/word"
    );
    let read = dom0.in_guest(NAME, &mount, PATIENCE)?;
    ensure!(read == "of the host", "the guest reads {read:?}");
    let written = dom0.run("cat /srv/shared/word")?;
    ensure!(written == "of the guest", "the guest wrote {written:?}");
    dom0.in_guest(NAME, "yes 'on the screen' | head -n 40 >/dev/tty1", PATIENCE)?;
    // A picture of one colour would have two kinds of bytes at most.
    let kinds = dom0.run(&format!(
        "xl qemu-monitor-command {NAME} 'screendump /tmp/screen.ppm' && \
         tail -c +16 /tmp/screen.ppm | od -An -v -tx1 -w3 | sort -u | wc -l"
    ))?;
    ensure!(kinds != "1", "the screen has one colour");
    let port = dom0.run(&format!(
        "xenstore-read /local/domain/$(xl domid {NAME})/console/vnc-port"
    ))?;
    let greeting = dom0.run(&format!("timeout 10 bash -c 'head -c 4 </dev/tcp/127.0.0.1/{port}'"))?;
    ensure!(greeting == "RFB ", "at port {port} somebody says {greeting:?}");
    dom0.destroy(NAME)?;
    let left = dom0.run("ps -e | grep qemu-system; ls /run/xen; xenstore-ls /local/domain/0/device-model; true")?;
    ensure!(left.is_empty(), "this is left:\n{left}");
    Ok(())
}
