//! How fast a guest's disk goes to the destination's file, beside `qemu-img convert` to the same export.
//!
//! ```text
//! cargo bench -p throughline-hypervisor --bench disks -- [--json FILE] [--rounds N]
//! ```
//!
//! Needs root and a machine that does nothing else. A raw disk of 1 GiB, full, of a guest that runs and writes nothing; in each
//! round it is copied three times to an empty file at a destination's QEMU, without a limit: by a mirror and its copy, sealed;
//! by `qemu-img convert` to that QEMU's NBD export in the clear, which has no write of a running guest to care for; and by
//! `qemu-img convert` to such a file itself, which is what the disk bears. The time ends when the file is on disk.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot be made must stop")]

#[path = "../figures/mod.rs"]
mod figures;
#[path = "../../tests/qemu/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "shared with the tests, which need more of it")]
mod harness;

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use figures::{arguments, row, shares, tell};
use harness::{
    HOST, Lab,
    copying::{awaiting, mirror, with_disks},
    image::Image,
    in_lab, ip,
};
use throughline_cutover::{DiskBus, DiskFormat};
use throughline_hypervisor::{DiskState, Guest, Rest};

/// Size of the disk, MiB.
const MIB: u64 = 1024;
const COMMAND: &str = "cargo bench -p throughline-hypervisor --bench disks";

fn main() {
    let (json, rounds) = arguments();
    in_lab("bench", move |lab| async move {
        ip("link set lo mtu 1500");
        let image = Image::blank(&lab.dir, "a", "root", DiskFormat::Raw, DiskBus::VirtioBlk, MIB);
        fill(&image.path);
        let guest = with_disks(&lab, "a", std::slice::from_ref(&image)).await;
        let (mut mirror_rates, mut converted, mut plain) = (Vec::new(), Vec::new(), Vec::new());
        for round in 1..=rounds {
            mirror_rates.push(mirrored(&lab, &guest, &image).await);
            converted.push(convert_to_export(&lab, &image).await);
            plain.push(convert_to_file(&lab, &image));
            let last = [&mirror_rates, &converted, &plain].map(|rates| rates.last().copied().unwrap_or_default());
            eprintln!("disks: round {round} of {rounds}: {last:.0?} MB/s");
        }
        guest.quit().await.unwrap();
        let beside = shares(&mirror_rates, &converted);
        let rows = [
            row(COMMAND, "a running guest's disk, mirrored, sealed", "MB/s", mirror_rates, None),
            row(COMMAND, "`qemu-img convert` to the same export, in the clear", "MB/s", converted, None),
            row(COMMAND, "`qemu-img convert` to such a file", "MB/s", plain, None),
            row(COMMAND, "mirrored, of the rate to the same export, round by round", "%", beside, None),
        ];
        tell(&rows, json.as_deref());
    });
}

/// What no tool can make smaller.
fn fill(path: &Path) {
    let mut noise = File::open("/dev/urandom").unwrap().take(MIB << 20);
    let mut file = OpenOptions::new().write(true).open(path).unwrap();
    io::copy(&mut noise, &mut file).unwrap();
    file.sync_all().unwrap();
}

fn rate(began: Instant) -> f64 {
    (MIB << 20) as f64 / 1e6 / began.elapsed().as_secs_f64()
}

/// A destination's QEMU with an empty disk.
async fn empty(lab: &Lab, image: &Image) -> Guest {
    awaiting(lab, "b", &[image.elsewhere("b", MIB)]).await
}

async fn mirrored(lab: &Lab, guest: &Guest, image: &Image) -> f64 {
    let disk = image.name.parse().unwrap();
    let destination = empty(lab, image).await;
    guest.begin_bitmap(&disk).await.unwrap();
    let began = Instant::now();
    mirror(lab, guest, &destination, image, Rest::Everything, 0).await;
    loop {
        let progress = guest.disk_progress().await.unwrap();
        match &progress[0].state {
            DiskState::Mirrored => break,
            DiskState::Copying => tokio::time::sleep(Duration::from_millis(5)).await,
            DiskState::Failed(why) => panic!("{why}"),
        }
    }
    guest.close_rest(&disk).await.unwrap();
    destination.settle_disks().await.unwrap();
    let rate = rate(began);
    guest.abandon_mirrors().await.unwrap();
    guest.forget_copies().await.unwrap();
    destination.quit().await.unwrap();
    rate
}

async fn convert_to_export(lab: &Lab, image: &Image) -> f64 {
    let disk = image.name.parse().unwrap();
    let destination = empty(lab, image).await;
    // The doors are not used: the tool comes to the server's own socket, on the same host.
    let _doors = destination.offer_disk(&disk, HOST, HOST, &lab.sealer).await.unwrap();
    let socket = destination.run_dir().disks_socket();
    let began = Instant::now();
    convert(image, &["-n"], &format!("nbd+unix:///export-{disk}?socket={}", socket.display()));
    destination.settle_disks().await.unwrap();
    let rate = rate(began);
    destination.quit().await.unwrap();
    rate
}

fn convert_to_file(lab: &Lab, image: &Image) -> f64 {
    let there = lab.dir.join("plain.raw");
    let began = Instant::now();
    convert(image, &[], there.to_str().unwrap());
    File::open(&there).unwrap().sync_data().unwrap();
    let rate = rate(began);
    std::fs::remove_file(there).unwrap();
    rate
}

/// The guest's QEMU has the disk locked, and writes nothing to it.
fn convert(image: &Image, options: &[&str], target: &str) {
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-U", "-f", "raw", "-O", "raw"]).args(options).arg(&image.path).arg(target);
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}
