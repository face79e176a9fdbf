//! A guest's initial RAM disk: busybox and an `/init` that counts on the serial line.

use std::{fs, path::Path};

/// Counts aloud for ever. With `dirty` on the kernel's command line it also rewrites some 24 MB of memory without a pause; with
/// `fill=N` it first fills memory with N times 2 MB, and says so; with `alternate` it writes a number that grows to its first disk,
/// then to its second, and so on: see [`number`].
const INIT: &str = "\
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
echo throughline-guest-up
for word in $(/bin/busybox cat /proc/cmdline); do case $word in fill=*)
  /bin/busybox mount -t tmpfs -o size=90% tmpfs /fill
  i=0; while [ $i -lt ${word#fill=} ]; do /bin/busybox cat /bin/busybox > /fill/$i; i=$((i+1)); done
  echo filled $i;;
esac; done
if /bin/busybox grep -q dirty /proc/cmdline; then
  (while :; do for n in 1 2 3 4 5 6 7 8 9 10 11 12; do /bin/busybox cat /bin/busybox; done > /scratch; done) &
fi
if /bin/busybox grep -q alternate /proc/cmdline; then
  for module in $(/bin/busybox cat /modules/order); do /bin/busybox insmod /modules/$module.ko; done
  (n=10000000; while :; do n=$((n+1)); printf $n > /dev/vda; printf $n > /dev/vdb; done) &
fi
i=0
while :; do echo tick $i; i=$((i+1)); /bin/busybox usleep 20000; done
";

/// What a kernel needs to find its disks, in the order it needs it.
const MODULES: [&str; 6] =
    ["virtio_ring", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio", "virtio_pci", "virtio_blk"];

/// The number on a disk of a guest that writes it to one after the other. A disk that is closed has been written, so it is there before
/// the guest goes on to the next.
pub(crate) fn number(disk: &[u8]) -> u64 {
    str::from_utf8(&disk[..8]).expect("the guest has written").parse().unwrap()
}

/// Writes the RAM disk to `path`, with modules out of a directory that `make setup` makes.
pub(crate) fn write(path: &Path, modules: &Path) {
    let busybox = fs::read("/bin/busybox").expect("/bin/busybox is missing: install busybox-static");
    let mut archive = Archive(Vec::new());
    for dir in ["bin", "dev", "fill", "modules", "proc"] {
        archive.entry(dir, 0o040_755, (0, 0), &[]);
    }
    archive.entry("dev/console", 0o020_600, (5, 1), &[]);
    archive.entry("bin/busybox", 0o100_755, (0, 0), &busybox);
    archive.entry("modules/order", 0o100_644, (0, 0), MODULES.join("\n").as_bytes());
    for module in MODULES {
        // Of a kernel that has it built in there is none.
        if let Ok(module_file) = fs::read(modules.join(format!("{module}.ko"))) {
            archive.entry(&format!("modules/{module}.ko"), 0o100_644, (0, 0), &module_file);
        }
    }
    archive.entry("init", 0o100_755, (0, 0), INIT.as_bytes());
    archive.entry("TRAILER!!!", 0, (0, 0), &[]);
    fs::write(path, archive.0).expect("write the initrd");
}

/// A cpio archive, format newc (Documentation/driver-api/early-userspace/buffer-format.rst).
struct Archive(Vec<u8>);

impl Archive {
    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        let inode = u32::try_from(self.0.len()).expect("small");
        let (size, name_size) = (u32::try_from(content.len()).expect("small"), u32::try_from(name.len() + 1).unwrap());
        let fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.0.extend_from_slice(b"070701");
        for field in fields {
            self.0.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(0);
        self.pad();
        self.0.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}
