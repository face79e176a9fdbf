//! A guest's disks, as its destination takes them.

use std::{collections::HashMap, time::Duration};

use throughline_cutover::{DestinationEvent, Disk, Failure, MigrationPlan};
use throughline_hypervisor::{Guest, HypervisorError};
use throughline_wire::v1::{DiskHere, PreparedDisk};
use tokio::{sync::mpsc, task::JoinSet, time::sleep};

use crate::{
    disks::{CopyId, DiskError, Received, Store},
    host::Host,
    invitation::disks::{Wanted, to_wire},
    resident::hypervisor_failure,
};

/// What is said when what came may not be on the host's disk, whatever a later sync says: it is of no use to a next try.
pub(super) const NOT_WRITTEN: &str = "DISK_NOT_WRITTEN";
/// How often what has come is written to the disk itself, so that little is left when the mirrors end: the guest stands then.
const WRITE_OUT_EVERY: Duration = Duration::from_millis(500);

/// Files for the guest's QEMU, open: for what comes, and of shared disks what is there. The source says in `here` what each takes, what an
/// earlier try left to do, and what it can be known by.
///
/// # Errors
/// The store's, such as `DISK_SPACE`; `DISK_STREAM` if the source has other disks than the plan.
pub(super) async fn make_room(host: &Host, plan: &MigrationPlan, here: &[DiskHere]) -> Result<Vec<Received>, Failure> {
    if plan.guest.disks.is_empty() {
        return Ok(Vec::new());
    }
    let here: HashMap<&str, &DiskHere> = here.iter().map(|disk| (disk.name.as_str(), disk)).collect();
    let wanted = plan.guest.disks.iter().map(|disk| match here.get(disk.name.as_str()) {
        Some(here) => Ok((disk.clone(), DiskHere::clone(here))),
        None => Err(Failure::new("DISK_STREAM", format!("the source says nothing of disk {}", disk.name))),
    });
    let wanted: Vec<(Disk, DiskHere)> = wanted.collect::<Result<_, _>>()?;
    // Before anything is made.
    let begun_by: Vec<_> = wanted.iter().map(|(_, here)| begun_by(here)).collect::<Result<_, _>>()?;
    let (guest, copy): (_, CopyId) = (plan.guest.name.clone(), plan.id.parse()?);
    let source = plan.source.host.clone();
    let receive = move |store: &Store| {
        store.check_disks(&guest, &source, &wanted)?;
        let receive = |((disk, here), begun_by): (&(Disk, DiskHere), &Option<CopyId>)| {
            // One that is brought whole is over nothing here.
            let disk = Disk { over: !here.image_sum.is_empty(), ..disk.clone() };
            let received = store.receive(&guest, &disk, here.used_bytes, &copy, begun_by.as_ref())?;
            store.check_over(&guest, &disk, &received.file, &here.image_sum)?;
            Ok(received)
        };
        wanted.iter().zip(&begun_by).map(receive).collect()
    };
    host.with_disks(receive).await
}

/// Which copying the source could go on with.
fn begun_by(here: &DiskHere) -> Result<Option<CopyId>, DiskError> {
    if here.begun_by.is_empty() { Ok(None) } else { Ok(Some(here.begun_by.parse()?)) }
}

/// Lets the source in to write them, and nobody else. What goes wrong later comes as an event.
///
/// # Errors
/// QEMU's refusal.
pub(super) async fn open(
    host: &Host,
    plan: &MigrationPlan,
    vm: &Guest,
    continued: &[bool],
    events: &mpsc::UnboundedSender<DestinationEvent>,
    waits: &mut JoinSet<()>,
) -> Result<Vec<PreparedDisk>, Failure> {
    let mut prepared = Vec::with_capacity(plan.guest.disks.len());
    let rooms = plan.guest.disks.iter().zip(continued).filter(|(disk, _)| disk.goes_along());
    for (disk, continued) in rooms {
        let offered = vm.offer_disk(&disk.name, host.config.vtep, plan.source.vtep, &host.sealer).await;
        let (awaited, invitation) = offered.map_err(hypervisor_failure)?;
        prepared.push(to_wire(Wanted { invitation, continued: *continued }));
        let (vm, events) = (vm.clone(), events.clone());
        waits.spawn(async move {
            if let Err(error) = vm.admit_disk(awaited).await {
                let _ = events.send(DestinationEvent::MemoryFailed(hypervisor_failure(error)));
            }
        });
    }
    Ok(prepared)
}

/// Writes to the host's disk what has come, over and over; that it cannot be written is the end of the move.
pub(super) async fn write_out(vm: Guest, events: mpsc::UnboundedSender<DestinationEvent>) {
    loop {
        sleep(WRITE_OUT_EVERY).await;
        match vm.settle_disks().await {
            Ok(()) => {}
            // Its own end tells; what it wrote is not lost with it.
            Err(HypervisorError::Gone { .. }) => return,
            Err(error) => {
                let _ = events.send(DestinationEvent::MemoryFailed(not_written(error)));
                return;
            }
        }
    }
}

/// Nobody writes them from outside any more.
pub(super) async fn close(vm: &Guest) -> DestinationEvent {
    match vm.close_disks().await {
        Ok(()) => DestinationEvent::DisksClosed,
        Err(error) => DestinationEvent::MemoryFailed(not_written(error)),
    }
}

fn not_written(error: HypervisorError) -> Failure {
    Failure::new(NOT_WRITTEN, hypervisor_failure(error).message)
}
