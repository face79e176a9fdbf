//! Guests with disks, and the beginning of a copy.

use throughline_hypervisor::{Guest, Launch, Rest};

use super::{HOST, Lab, image::Image, ticks_past};

/// A running guest with disks.
pub(crate) async fn with_disks(lab: &Lab, side: &str, images: &[Image]) -> Guest {
    let disks = images.iter().map(Image::open).collect();
    let guest = lab.launch(Launch { disks, ..lab.plan(side, "", false) }).await.expect("launch");
    ticks_past(&guest, 3).await;
    guest
}

/// A destination's QEMU that has nothing open yet.
pub(crate) async fn awaiting(lab: &Lab, side: &str, images: &[Image]) -> Guest {
    let disks = images.iter().map(Image::open).collect();
    lab.launch(Launch { disks, ..lab.plan(side, "", true) }).await.expect("launch")
}

/// Begins to copy one disk.
pub(crate) async fn mirror(lab: &Lab, source: &Guest, destination: &Guest, image: &Image, rest: Rest, speed: u64) {
    let disk = image.name.parse().unwrap();
    let (awaited, invitation) = destination.offer_disk(&disk, HOST, HOST, &lab.sealer).await.expect("offer");
    let calling = source.call_disk(&invitation, HOST, &lab.sealer);
    let (admitted, called) = tokio::join!(destination.admit_disk(awaited), calling);
    admitted.expect("admitted");
    source.mirror_disk(&disk, called.expect("called"), rest, speed).await.expect("mirror");
}
