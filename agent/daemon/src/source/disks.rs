//! A guest's disks, as its source sends them.

use std::time::{Duration, Instant};

use throughline_cutover::{Disk, DiskFormat, Failure, MigrationPlan, SourceEvent};
use throughline_hypervisor::{DiskProgress, DiskState, Guest, HypervisorError, Rest};
use throughline_wire::v1;
use tokio::{sync::mpsc, time::MissedTickBehavior};
use tracing::{info, warn};

use crate::{host::Host, invitation::disks::Wanted, resident::hypervisor_failure};

/// How long after their rests are over the disks' streams of them are closed: twice as long as a destination may take until it writes out
/// what has come. A close waits for that disk, and QEMU's main loop, which the guest's network needs, for the close.
const WRITTEN_OUT: Duration = Duration::from_millis(1100);
/// How often QEMU is asked how the disks are getting on.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What the destination is told of them.
pub(super) async fn here(host: &Host, vm: &Guest, plan: &MigrationPlan) -> Result<Vec<v1::DiskHere>, Failure> {
    let mut here = host.disks_here(&plan.guest, plan.flatten).await?;
    if !here.is_empty() {
        // A point of a replica that another agent began: QEMU could not let go of the disks.
        vm.abandon_point().await.map_err(disk_failure)?;
    }
    for (disk, here) in plan.guest.disks.iter().zip(&mut here) {
        here.begun_by = vm.copy_begun(&disk.name).await.map_err(disk_failure)?.unwrap_or_default();
    }
    Ok(here)
}

/// Begins to mirror and copy them all, then tells how they get on for as long as it is let: also that a mirror broke while
/// memory moves.
pub(super) async fn send(
    host: &Host,
    vm: &Guest,
    plan: &MigrationPlan,
    wanted: Vec<Wanted>,
    events: &mpsc::UnboundedSender<SourceEvent>,
) {
    // What an earlier move could not end.
    if let Err(error) = vm.abandon_mirrors().await {
        let _ = events.send(SourceEvent::MirrorFailed(disk_failure(error)));
        return;
    }
    let speed = plan.limits.bandwidth / (wanted.len() as u64).max(1);
    for (disk, wanted) in plan.guest.disks_to_bring().zip(wanted) {
        if let Err(failure) = begin(host, vm, plan, disk, wanted, speed).await {
            let _ = events.send(SourceEvent::MirrorFailed(failure));
            return;
        }
    }
    watch(vm, events).await;
}

async fn begin(
    host: &Host,
    vm: &Guest,
    plan: &MigrationPlan,
    disk: &Disk,
    wanted: Wanted,
    speed: u64,
) -> Result<(), Failure> {
    let streams = vm.call_disk(&wanted.invitation, host.config.vtep, &host.sealer).await.map_err(disk_failure)?;
    if wanted.continued {
        info!(guest = %plan.guest.name, disk = %disk.name, "goes on with what an earlier try has copied");
        return vm.mirror_disk(&disk.name, streams, Rest::Marked, speed).await.map_err(disk_failure);
    }
    vm.begin_bitmap(&disk.name).await.map_err(disk_failure)?;
    let rest = match disk.format {
        DiskFormat::Qcow2 if disk.over && !plan.flatten => Rest::OverImage,
        DiskFormat::Qcow2 => Rest::Everything,
        DiskFormat::Raw => {
            // After the bitmap: what is written from now on is in that.
            let (guest, raw) = (plan.guest.name.clone(), disk.clone());
            let chart = host.with_disks(move |store| store.chart(&guest, &raw)).await?;
            vm.merge_chart(&disk.name, chart).await.map_err(disk_failure)?;
            Rest::Marked
        }
    };
    vm.mirror_disk(&disk.name, streams, rest, speed).await.map_err(disk_failure)?;
    vm.name_copy(&disk.name, &plan.id).await.map_err(disk_failure)
}

async fn watch(vm: &Guest, events: &mpsc::UnboundedSender<SourceEvent>) {
    let mut every = tokio::time::interval(LOOK_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut over_at, mut mirrored) = (None, false);
    loop {
        every.tick().await;
        let disks = match vm.disk_progress().await {
            Ok(disks) => disks,
            // Its own end tells.
            Err(HypervisorError::Gone { .. }) => return,
            Err(error) => {
                warn!(%error, "QEMU does not say how its disks are getting on; it is asked again");
                continue;
            }
        };
        let (mut news, over) = meaning(&disks, mirrored);
        if news.contains(&SourceEvent::DisksMirrored) {
            if over_at.get_or_insert_with(Instant::now).elapsed() < WRITTEN_OUT {
                news.retain(|event| *event != SourceEvent::DisksMirrored);
            } else if let Err(error) = close_rests(vm, &disks).await {
                news = vec![SourceEvent::MirrorFailed(disk_failure(error))];
            }
        }
        mirrored |= news.contains(&SourceEvent::DisksMirrored);
        for event in news {
            if events.send(event).is_err() {
                return;
            }
        }
        if over {
            return;
        }
    }
}

/// The mirrors alone are left.
async fn close_rests(vm: &Guest, disks: &[DiskProgress]) -> Result<(), HypervisorError> {
    for progress in disks {
        vm.close_rest(&progress.disk).await?;
    }
    Ok(())
}

/// What the machine hears of it, and whether there is nothing more to hear.
fn meaning(disks: &[DiskProgress], mirrored: bool) -> (Vec<SourceEvent>, bool) {
    let broken = disks.iter().find_map(|disk| match &disk.state {
        DiskState::Failed(why) => Some((&disk.disk, why)),
        DiskState::Copying | DiskState::Mirrored => None,
    });
    if let Some((disk, why)) = broken {
        let message = format!(
            "disk {disk} could not be copied to the destination: {why}; the guest and its disks are as they were; see that the \
             hosts reach each other and that the destination has room, and migrate again"
        );
        return (vec![SourceEvent::MirrorFailed(Failure::new("DISK_COPY", message))], true);
    }
    if mirrored {
        return (vec![], false);
    }
    let (copied, total) = disks.iter().fold((0, 0), |(copied, total), disk| (copied + disk.copied, total + disk.total));
    let mut news = vec![SourceEvent::DiskProgress { copied, total }];
    if disks.iter().all(|disk| disk.state == DiskState::Mirrored) {
        news.push(SourceEvent::DisksMirrored);
    }
    (news, false)
}

/// While the guest stands.
pub(super) async fn end(vm: &Guest, plan: &MigrationPlan) -> SourceEvent {
    let disks: Vec<_> = plan.guest.disks_to_bring().map(|disk| disk.name.clone()).collect();
    match vm.end_mirrors(&disks).await {
        Ok(()) => SourceEvent::MirrorsEnded,
        Err(error) => SourceEvent::MirrorFailed(disk_failure(error)),
    }
}

fn disk_failure(error: HypervisorError) -> Failure {
    if matches!(error, HypervisorError::Gone { .. }) {
        return super::guest_ended();
    }
    let Failure { message, .. } = hypervisor_failure(error);
    Failure::new("DISK_COPY", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(name: &str, copied: u64, state: DiskState) -> DiskProgress {
        DiskProgress { disk: name.parse().unwrap(), copied, total: 10, state }
    }

    #[test]
    fn disks_are_mirrored_together_and_it_is_said_once() {
        let both = |first, second| [disk("root", 10, first), disk("data", 4, second)];
        let half = both(DiskState::Mirrored, DiskState::Copying);
        let progress = SourceEvent::DiskProgress { copied: 14, total: 20 };
        assert_eq!(meaning(&half, false), (vec![progress.clone()], false));
        let all = both(DiskState::Mirrored, DiskState::Mirrored);
        assert_eq!(meaning(&all, false), (vec![progress, SourceEvent::DisksMirrored], false));
        assert_eq!(meaning(&all, true), (vec![], false), "it is watched on");
    }

    #[test]
    fn one_that_breaks_is_told_with_its_name_also_after_all_were_mirrored() {
        let disks = [disk("root", 10, DiskState::Mirrored), disk("data", 4, DiskState::Failed("torn".into()))];
        for mirrored in [false, true] {
            let (news, over) = meaning(&disks, mirrored);
            let [SourceEvent::MirrorFailed(failure)] = news.as_slice() else { panic!("{news:?}") };
            assert!(over && failure.reason == "DISK_COPY" && failure.message.contains("disk data"), "{failure}");
        }
    }

    #[test]
    fn a_qemu_that_is_gone_is_no_fault_of_its_disks() {
        let gone = HypervisorError::Gone { guest: "web-1".parse().unwrap(), command: "query-jobs" };
        assert_eq!(disk_failure(gone).reason, "GUEST_ENDED");
    }
}
