//! Guests of which a replica is kept, and what their disks should have.

use std::{
    fs::OpenOptions,
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    time::{Duration, Instant},
};

use throughline_cutover::{DiskBus, DiskFormat};
use throughline_hypervisor::{
    Guest, HypervisorError, Keeper, PointDisk, PointInstant, PointName, PointProgress, PointState, ReplicaRecord,
};

use super::{
    HOST, Lab, PATIENCE,
    copying::with_disks,
    guest_name,
    hand::{Hand, by_hand},
    image::Image,
};

pub(crate) const SIZE_MIB: u64 = 32;
const MIB: u64 = 1 << 20;

/// A write of the guest's: which disk, the pattern, where and how much.
pub(crate) type Write = (usize, u8, u64, u64);

/// A guest's two disks, one of each format, where they are kept, and what the guest would read now.
pub(crate) struct Disks {
    pub(crate) here: [Image; 2],
    pub(crate) there: [Image; 2],
    pub(crate) now: [Vec<u8>; 2],
}

impl Disks {
    /// Half of each is written.
    pub(crate) fn new(lab: &Lab) -> Self {
        let blank = |side: &str, name, format, bus| Image::blank(&lab.dir, side, name, format, bus, SIZE_MIB);
        let here = [
            blank("a", "root", DiskFormat::Qcow2, DiskBus::VirtioBlk),
            blank("a", "data", DiskFormat::Raw, DiskBus::VirtioBlk),
        ];
        let there = ["root", "data"].map(|name| blank("k", name, DiskFormat::Qcow2, DiskBus::VirtioBlk));
        let mut now = [0, 1].map(|_| vec![0; usize::try_from(SIZE_MIB * MIB).unwrap()]);
        for (disk, (image, now)) in (0_u8..).zip(here.iter().zip(&mut now)) {
            image.fill(0xa1 + disk, 0, SIZE_MIB / 2);
            now[..usize::try_from(SIZE_MIB * MIB / 2).unwrap()].fill(0xa1 + disk);
        }
        Self { here, there, now }
    }

    /// The guest that has them, with a replica begun.
    pub(crate) async fn guest(&self, lab: &Lab) -> Guest {
        let guest = with_disks(lab, "a", &self.here).await;
        self.begin(lab, &guest).await;
        guest
    }

    pub(crate) async fn begin(&self, lab: &Lab, guest: &Guest) {
        guest.begin_replica().await.expect("begin");
        for (image, mib) in self.here.iter().zip([SIZE_MIB, SIZE_MIB / 2]) {
            let chart = Image::chart(&lab.dir, SIZE_MIB, &[(0, mib)]);
            guest.merge_replica_chart(&image.name.parse().unwrap(), chart.into()).await.expect("chart");
        }
        assert_eq!(guest.replica_begun().await.unwrap(), None, "it is not said yet that all of it is marked");
        guest.name_replica(&"r-1".parse().unwrap()).await.expect("name");
    }

    /// Has them open where they are kept.
    pub(crate) async fn keeper(&self, lab: &Lab) -> Guest {
        let run_dir = lab.run_dir("k");
        let confinement = lab.confinement(&run_dir);
        let disks = self.there.iter().map(Image::open).collect();
        Guest::keep(Keeper { name: guest_name(), run_dir, disks }, &confinement).await.expect("keep")
    }

    /// Writes through the guest's devices; nobody may have its monitor meanwhile. Gives the longest that one took.
    pub(crate) async fn write(&mut self, lab: &Lab, guest: Guest, writes: Vec<Write>) -> (Guest, Duration) {
        for &(disk, pattern, offset, bytes) in &writes {
            let range = usize::try_from(offset).unwrap()..usize::try_from(offset + bytes).unwrap();
            self.now[disk][range].fill(pattern);
        }
        let devices = self.here.each_ref().map(Image::device);
        let (told, longest) = std::sync::mpsc::channel();
        let deed = move |hand: &mut Hand| {
            let mut slowest = Duration::ZERO;
            for (disk, pattern, offset, bytes) in writes {
                let began = Instant::now();
                hand.write(&devices[disk], pattern, offset, bytes);
                slowest = slowest.max(began.elapsed());
            }
            told.send(slowest).unwrap();
        };
        (by_hand(lab, guest, "a", deed).await, longest.recv().unwrap())
    }

    /// What a point has is what the disks had.
    pub(crate) fn assert_point(&self, name: &str, then: &[Vec<u8>; 2]) {
        for (image, then) in self.there.iter().zip(then) {
            assert!(image.snapshot(name) == *then, "{name} of disk {}", image.name);
        }
    }
}

/// A file for what a guest overwrites.
pub(crate) fn aside(lab: &Lab) -> OwnedFd {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).open(&lab.dir).unwrap().into()
}

/// Opens a stream for each disk and begins a point.
pub(crate) async fn send(
    lab: &Lab,
    guest: &Guest,
    keeper: &Guest,
    speed: u64,
) -> Result<PointInstant, HypervisorError> {
    send_with(lab, guest, keeper, speed, || aside(lab)).await
}

/// The same with other files for what is overwritten.
pub(crate) async fn send_with(
    lab: &Lab,
    guest: &Guest,
    keeper: &Guest,
    speed: u64,
    aside: impl Fn() -> OwnedFd,
) -> Result<PointInstant, HypervisorError> {
    let mut disks = Vec::new();
    for disk in ["root", "data"].map(|name| name.parse().unwrap()) {
        let (awaited, invitation) = keeper.offer_replica(&disk, HOST, HOST, &lab.sealer).await?;
        let calling = guest.call_replica(&invitation, HOST, &lab.sealer);
        let (admitted, stream) = tokio::join!(keeper.admit_replica(awaited), calling);
        admitted?;
        disks.push(PointDisk { disk, stream: stream?, aside: aside() });
    }
    let began = Instant::now();
    let instant = guest.send_point(disks, &keeper.keeper_id().await?, speed).await?;
    println!("a point of {instant:?}, begun in {:?}", began.elapsed());
    Ok(instant)
}

/// Waits until it is sent so far.
pub(crate) async fn until(guest: &Guest, wanted: impl Fn(&[PointProgress]) -> bool) -> Vec<PointProgress> {
    let started = Instant::now();
    loop {
        let progress = guest.point_progress().await.unwrap();
        if wanted(&progress) {
            return progress;
        }
        assert!(started.elapsed() < PATIENCE, "{progress:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until it is sent, or broke.
pub(crate) async fn over(guest: &Guest) -> Vec<PointProgress> {
    until(guest, |all| !all.iter().any(|it| it.state == PointState::Sending)).await
}

/// Waits until it is sent, and makes it count. Gives the bytes each disk had to send.
pub(crate) async fn complete(guest: &Guest, keeper: &Guest, name: &str) -> [u64; 2] {
    let point: PointName = name.parse().unwrap();
    let sent = over(guest).await;
    assert!(sent.len() == 2 && sent.iter().all(|it| it.state == PointState::Sent), "{sent:?}");
    keeper.settle_disks().await.unwrap();
    let refused = keeper.make_point(&point).await.unwrap_err();
    assert!(refused.to_string().contains("open to its source"), "{refused}");
    guest.end_point().await.expect("end");
    keeper.close_disks().await.expect("close");
    for _ in 0..2 {
        keeper.make_point(&point).await.expect("make");
        guest.complete_point(&point).await.expect("complete");
    }
    let ReplicaRecord { point: last, left, .. } = guest.replica_begun().await.unwrap().expect("a record");
    assert_eq!((last, left), (Some(point), None));
    println!("{name}: {sent:?}");
    // By name: data, root.
    [sent[1].total, sent[0].total]
}
