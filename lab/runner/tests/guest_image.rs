//! The lab guest boots, and on a network and disks that do nothing wrong its probes find nothing wrong. Needs root, QEMU and the
//! guest image.

#![expect(clippy::unwrap_used, reason = "a helper of tests panics as they do")]

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use throughline_probe::control::{Client, Ports, Request, Response};
use throughline_probe::disk::{block::Label, check::check};
use throughline_probe::observe::{Filter, Observer};
use throughline_probe::peer::{Config, Peer};

const MAC: [u8; 6] = [2, 0, 0, 7, 0, 0x10];
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 10);

/// A process that ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ip(line: &str) {
    let status = Command::new("ip").args(line.split_whitespace()).status().expect("iproute2 is installed: make setup");
    assert!(status.success(), "ip {line}");
}

fn image(file: &str) -> PathBuf {
    let cache = std::env::var_os("THROUGHLINE_CACHE").map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/throughline"));
    let path = cache.join("guest").join(file);
    assert!(path.exists(), "there is no {}: run `make setup`", path.display());
    path
}

fn boot(parameters: &str, devices: &[String]) -> Ended {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args("-machine q35 -accel tcg,thread=multi -m 262136k -nodefaults -no-user-config -display none".split(' '));
    qemu.arg("-kernel").arg(image("vmlinuz")).arg("-initrd").arg(image("initrd.img"));
    qemu.args(["-append", &format!("quiet panic=-1 tl.ip={GUEST}/24 {parameters}")]);
    qemu.args(["-netdev", "tap,id=net,ifname=tlt1,script=no,downscript=no"]);
    qemu.args(["-device", "virtio-net-pci,netdev=net,mac=02:00:00:07:00:10,romfile="]);
    qemu.args(devices);
    Ended(qemu.stdin(Stdio::null()).spawn().expect("QEMU is installed: make setup"))
}

/// A disk's file; gone with the value.
struct Image(PathBuf);

impl Image {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("guest-disk-{}-{name}", std::process::id()));
        File::create(&path).unwrap().set_len(4 << 20).unwrap();
        Self(path)
    }

    fn drive(&self, id: &str) -> [String; 2] {
        ["-drive".to_owned(), format!("if=none,id={id},format=raw,file={}", self.0.display())]
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn a_guest_writes_to_its_disks_on_either_bus_and_what_it_flushed_is_there_when_it_is_killed() {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of its own needs root");
    for line in ["tuntap add tlt1 mode tap vnet_hdr", "address add 10.7.0.1/24 dev tlt1", "link set tlt1 up"] {
        ip(line);
    }
    let images = [Image::new("root"), Image::new("data")];
    let mut devices = [images[0].drive("d0"), images[1].drive("d1")].concat();
    for device in [
        "virtio-blk-pci,drive=d0,serial=root",
        "virtio-scsi-pci,id=scsi",
        "scsi-hd,bus=scsi.0,scsi-id=1,lun=0,drive=d1,serial=data,device_id=data",
    ] {
        devices.extend(["-device", device].map(str::to_owned));
    }
    let guest = boot("tl.disk=root tl.disk=data tl.disk-rate=4096", &devices);
    let mut client =
        Client::connect(GUEST, Ports::default().control, Duration::from_secs(90)).expect("the guest boots");
    let deadline = Instant::now() + Duration::from_secs(90);
    let disks = loop {
        let Response::Disks(disks) = client.ask(&Request::Disks).unwrap() else { panic!("another answer") };
        if disks
            .iter()
            .all(|disk| disk.blocks > 0 && disk.acknowledged > disk.blocks && disk.verified > 2 * disk.blocks)
        {
            break disks;
        }
        assert!(Instant::now() < deadline, "{disks:?}");
        thread::sleep(Duration::from_millis(200));
    };
    drop(guest);
    for (disk, (image, name)) in disks.iter().zip(images.iter().zip(["root", "data"])) {
        assert_eq!((disk.name.as_str(), disk.blocks), (name, 1024));
        assert_eq!((disk.wrong, disk.missing, disk.failed), (0, 0, 0), "{disk:?}");
        let verdict = check(&File::open(&image.0).unwrap(), Some(Label::new(name)), disk.acknowledged).unwrap();
        assert!(verdict.is_sound() && verdict.sound == 1024, "{verdict:?}");
    }
}

#[test]
fn a_guest_on_a_faithful_network_misses_nothing() {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of its own needs root");
    for line in [
        "link set lo up",
        "tuntap add tlt1 mode tap vnet_hdr",
        "link add br0 type bridge",
        "link add gw0 mtu 1450 type veth peer name gw0-b mtu 1450",
        "link set tlt1 master br0 up",
        "link set gw0-b master br0 up",
        "link set br0 up",
        "address add 10.7.0.1/24 dev gw0",
        "link set gw0 up",
    ] {
        ip(line);
    }
    let ports = Ports::default();
    let mut observer = Observer::start(Filter { mac: MAC, address: GUEST, port: ports.echo }).unwrap();
    let _guest = boot("", &[]);
    let mut peer = Peer::start(&Config {
        guest: GUEST,
        ports,
        oneway_port: 0,
        oneway_via: None,
        pps: 2000,
        stream_rate: 100,
        ping_rate: 50,
        patience: Duration::from_secs(90),
    })
    .expect("the guest boots and answers");
    thread::sleep(Duration::from_secs(2));
    let from = peer.mark().unwrap();
    thread::sleep(Duration::from_secs(3));
    let to = peer.mark().unwrap();
    thread::sleep(Duration::from_millis(1500));
    let report = peer.report(from, to).unwrap();

    for (name, summary) in [
        ("to the guest", &report.to_guest),
        ("echoes", &report.echoes),
        ("from the guest", &report.from_guest),
        ("ping", &report.ping),
    ] {
        assert_eq!((summary.lost, summary.duplicated, summary.reordered), (0, 0, 0), "{name}: {summary:?}");
    }
    // An emulated guest sends what it has time for.
    assert!(report.to_guest.sent > 3000 && report.from_guest.sent > 1000, "{report:?}");
    assert_eq!(report.memory.corrupted, 0);
    assert!(report.memory.rewritten > 0, "{:?}", report.memory);
    assert_eq!((report.stream.resets, report.stream.corrupted, report.stream.undelivered), (0, 0, 0));

    drop(peer);
    let (mut seen, end) = (Vec::new(), Instant::now() + Duration::from_secs(1));
    while Instant::now() < end {
        seen.extend(observer.look().unwrap().map(|sighting| sighting.sequence));
    }
    assert_eq!(observer.missed().unwrap(), 0);
    assert!(seen.len() as u64 >= report.to_guest.sent, "the observer saw {} frames", seen.len());
    assert!(seen.windows(2).all(|pair| pair[1] == pair[0] + 1), "every frame on the tap, once and in order");
}
