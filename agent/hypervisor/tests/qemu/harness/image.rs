//! Disks' files, made and looked at by QEMU's own tools.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use throughline_cutover::{DiskBus, DiskFormat};
use throughline_hypervisor::DiskFd;

const MIB: u64 = 1 << 20;

/// A disk, and where a side has its file.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) name: &'static str,
    pub(crate) format: DiskFormat,
    pub(crate) bus: DiskBus,
    pub(crate) path: PathBuf,
}

impl Image {
    /// A blank one.
    pub(crate) fn blank(
        dir: &Path,
        side: &str,
        name: &'static str,
        format: DiskFormat,
        bus: DiskBus,
        mib: u64,
    ) -> Self {
        let path = dir.join(format!("{side}-{name}.{format}"));
        tool("qemu-img", &["create", "-q", "-f", format.as_str(), path.to_str().unwrap(), &format!("{mib}M")]);
        Self { name, format, bus, path }
    }

    /// The same disk on another side, blank.
    pub(crate) fn elsewhere(&self, side: &str, mib: u64) -> Self {
        Self::blank(self.path.parent().unwrap(), side, self.name, self.format, self.bus, mib)
    }

    /// Writes to it while no QEMU has it.
    pub(crate) fn fill(&self, pattern: u8, offset_mib: u64, mib: u64) {
        let write = format!("write -P {pattern} {offset_mib}M {mib}M");
        tool("qemu-io", &["-f", self.format.as_str(), "-c", &write, self.path.to_str().unwrap()]);
    }

    pub(crate) fn open(&self) -> DiskFd {
        let image = OpenOptions::new().read(true).write(true).open(&self.path).unwrap().into();
        DiskFd { name: self.name.parse().unwrap(), format: self.format, bus: self.bus, image, below: None }
    }

    /// Where the guest's driver would be.
    pub(crate) fn device(&self) -> String {
        match self.bus {
            DiskBus::VirtioBlk => format!("/machine/peripheral/dev-{}/virtio-backend", self.name),
            DiskBus::VirtioScsi => format!("dev-{}", self.name),
        }
    }

    /// What it takes on the host, MiB.
    pub(crate) fn allocated_mib(&self) -> u64 {
        std::fs::metadata(&self.path).unwrap().blocks() * 512 / MIB
    }

    /// Has the same content for a guest.
    pub(crate) fn assert_equals(&self, other: &Self) {
        let [format, here, there] = [self.format.as_str(), self.path.to_str().unwrap(), other.path.to_str().unwrap()];
        let said = tool("qemu-img", &["compare", "-f", format, "-F", format, here, there]);
        assert!(String::from_utf8_lossy(&said.stdout).contains("identical"), "{said:?}");
    }

    /// What a snapshot in it has, while no QEMU may write it.
    pub(crate) fn snapshot(&self, name: &str) -> Vec<u8> {
        let raw = self.path.with_extension("point");
        let [from, to] = [self.path.to_str().unwrap(), raw.to_str().unwrap()];
        tool("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", "-l", &format!("snapshot.name={name}"), from, to]);
        let content = std::fs::read(&raw).unwrap();
        std::fs::remove_file(raw).unwrap();
        content
    }

    /// What a guest would read now, while no QEMU may write it.
    pub(crate) fn content(&self) -> Vec<u8> {
        let raw = self.path.with_extension("content");
        let [from, to] = [self.path.to_str().unwrap(), raw.to_str().unwrap()];
        tool("qemu-img", &["convert", "-f", self.format.as_str(), "-O", "raw", from, to]);
        let content = std::fs::read(&raw).unwrap();
        std::fs::remove_file(raw).unwrap();
        content
    }

    /// Goes back to a snapshot, as an operator who wants it would.
    pub(crate) fn apply(&self, name: &str) {
        tool("qemu-img", &["snapshot", "-a", name, self.path.to_str().unwrap()]);
    }

    /// Nothing in it contradicts itself. What nobody uses any more may be there.
    pub(crate) fn assert_sound(&self) {
        let output = Command::new("qemu-img").args(["check", "-q", "-f", "qcow2"]).arg(&self.path).output().unwrap();
        assert!(matches!(output.status.code(), Some(0 | 3)), "{output:?}");
    }

    /// A chart of a disk of `mib`, on which `extents` are marked, MiB: offset and length.
    pub(crate) fn chart(dir: &Path, mib: u64, extents: &[(u64, u64)]) -> File {
        let path = dir.join("chart.qcow2");
        let chart = path.to_str().unwrap();
        tool("qemu-img", &["create", "-q", "-f", "qcow2", chart, &format!("{mib}M")]);
        tool("qemu-img", &["bitmap", "--add", "-g", "65536", chart, "chart"]);
        for (offset, length) in extents {
            tool("qemu-io", &["-c", &format!("write -z {offset}M {length}M"), chart]);
        }
        let open = File::open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        open
    }
}

fn tool(program: &str, arguments: &[&str]) -> Output {
    let missing = |error| panic!("{program}: {error}; install qemu-utils");
    let output = Command::new(program).args(arguments).output().unwrap_or_else(missing);
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    output
}
