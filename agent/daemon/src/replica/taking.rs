//! The keeper's end of one point.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use throughline_cutover::{Failure, HostName, Keeping, Point, Sender};
use throughline_hypervisor::Guest;
use throughline_wire::v1::{
    KeeperReady, PointFromKeeper, PointFromSource, PointMade, point_from_keeper::Message,
    point_from_source::Message as Said,
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tonic::{Code, Status, Streaming};
use tracing::{info, warn};

use super::{Kept, point_name};
use crate::{host::Host, invitation::replica::to_wire, resident::hypervisor_failure};

/// How often what has come is written to the disk itself, so that little is left when the point is made.
const WRITE_OUT_EVERY: Duration = Duration::from_millis(500);
/// How long a call waits until an earlier one, which it takes the place of, has let go.
const TURN_DEADLINE: Duration = Duration::from_secs(10);
/// Answers that wait: there are two.
const QUEUE: usize = 4;

type Answers = mpsc::Sender<Result<PointFromKeeper, Status>>;

/// Why there is no point.
enum Ended {
    /// The guest's host let go, or must.
    LetGo(&'static str),
    /// Something broke here.
    Broke(Failure),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Broke(failure)
    }
}

/// Takes a point from the guest's host, which has proved itself; what it is answered comes out.
pub fn take(
    host: Arc<Host>,
    kept: Arc<Kept>,
    caller: HostName,
    from_source: Streaming<PointFromSource>,
) -> mpsc::Receiver<Result<PointFromKeeper, Status>> {
    let (answer, answers) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        match serve(&host, &kept, &caller, from_source, &answer).await {
            Ok(()) => {}
            Err(Ended::LetGo(why)) => {
                info!(replica = %kept.id(), why, "no point");
                let _ = answer.try_send(Err(Status::aborted(why)));
            }
            Err(Ended::Broke(failure)) => {
                warn!(replica = %kept.id(), %failure, "no point");
                kept.failed(failure.clone());
                let status = throughline_wire::status(Code::Aborted, &failure.reason, None, failure.message);
                let _ = answer.try_send(Err(status));
            }
        }
        host.look_again.notify_one();
    });
    answers
}

async fn serve(
    host: &Host,
    kept: &Arc<Kept>,
    caller: &HostName,
    from_source: Streaming<PointFromSource>,
    answer: &Answers,
) -> Result<(), Ended> {
    // Only one may send: an earlier call is one whose end has not been noticed yet.
    kept.superseded.notify_waiters();
    let turn = tokio::time::timeout(TURN_DEADLINE, kept.qemu.lock()).await;
    let mut qemu = turn.map_err(|_| Ended::LetGo("an earlier point is still being taken here; try again"))?;
    let superseded = kept.superseded.notified();
    tokio::pin!(superseded);
    superseded.as_mut().enable();
    let wanted = kept.wanted();
    // Who may send may have changed since the call came in.
    let sender = wanted.source.clone().filter(|sender| kept.is_open(host) && sender.host == *caller);
    let Some(sender) = sender else {
        return Err(Ended::LetGo("the replica is being promoted or removed, or another host sends it now"));
    };
    let vm = kept.running(host, &mut qemu).await?;
    // What an earlier call has left.
    vm.close_disks().await.map_err(hypervisor_failure)?;
    let taken = tokio::select! {
        taken = point(host, kept, (&wanted, &sender), &vm, from_source, answer) => taken,
        () = superseded => Err(Ended::LetGo("its host calls again, or may send no more")),
        () = answer.closed() => Err(Ended::LetGo("the guest's host has let go")),
    };
    if taken.is_err()
        && let Err(error) = vm.close_disks().await
    {
        warn!(replica = %kept.id(), %error, "the doors of a replica stay open until the next point");
    }
    if taken.is_ok() {
        // The guest's host has its answer, and need not wait for this.
        forget_oldest(kept, &vm, &wanted).await?;
    }
    taken
}

async fn point(
    host: &Host,
    kept: &Kept,
    (wanted, sender): (&Keeping, &Sender),
    vm: &Guest,
    mut from_source: Streaming<PointFromSource>,
    answer: &Answers,
) -> Result<(), Ended> {
    check_room(host, wanted).await?;
    let points = kept.points_of(vm).await?;
    let instance = vm.keeper_id().await.map_err(hypervisor_failure)?.to_string();
    let mut doors = JoinSet::new();
    let mut invited = Vec::with_capacity(wanted.spec.disks.len());
    let unknown = || Ended::LetGo("the host that may send has never connected to its controller");
    let source = sender.vtep.ok_or_else(unknown)?;
    for disk in &wanted.spec.disks {
        let offered = vm.offer_replica(&disk.name, host.config.vtep, source, &host.sealer).await;
        let (awaited, invitation) = offered.map_err(hypervisor_failure)?;
        invited.push(to_wire(invitation));
        let vm = vm.clone();
        doors.spawn(async move { vm.admit_replica(awaited).await });
    }
    let known = points.iter().copied().map(Into::into).collect();
    say(answer, Message::Ready(KeeperReady { points: known, instance, disks: invited })).await?;
    let point = await_point(host, wanted, vm, &mut doors, &mut from_source).await?;
    drop(doors);
    if points.last().is_some_and(|newest| newest.number >= point.number) {
        return Err(Ended::LetGo("the point's number is no higher than that of one that is here"));
    }
    make(host, kept, vm, wanted, point).await?;
    say(answer, Message::Made(PointMade {})).await
}

async fn say(answer: &Answers, message: Message) -> Result<(), Ended> {
    let said = answer.send(Ok(PointFromKeeper { message: Some(message) })).await;
    said.map_err(|_| Ended::LetGo("the guest's host has let go"))
}

/// Writes out what comes until the guest's host says that this is all, and which point it is.
async fn await_point(
    host: &Host,
    wanted: &Keeping,
    vm: &Guest,
    doors: &mut JoinSet<Result<(), throughline_hypervisor::HypervisorError>>,
    from_source: &mut Streaming<PointFromSource>,
) -> Result<Point, Ended> {
    let mut every = interval(WRITE_OUT_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            // A stream that is open is noted before it is said to be over.
            biased;
            Some(opened) = doors.join_next() => match opened {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(hypervisor_failure(error).into()),
                Err(panicked) => return Err(Failure::new("HYPERVISOR", panicked.to_string()).into()),
            },
            message = from_source.message() => {
                let said = message.map_err(|_| Ended::LetGo("the call of the guest's host broke"))?;
                let Some(PointFromSource { message: Some(Said::Sent(sent)) }) = said else {
                    return Err(Ended::LetGo("the guest's host gave the point up"));
                };
                if !doors.is_empty() {
                    return Err(Ended::LetGo("the guest's host says that it has sent a disk whose stream it did not open"));
                }
                let point = sent.point.ok_or(Ended::LetGo("the guest's host does not say which point it is"))?;
                return Point::try_from(point).map_err(|_| Ended::LetGo("the guest's host names a point that is none"));
            }
            _ = every.tick() => {
                check_room(host, wanted).await?;
                vm.settle_disks().await.map_err(hypervisor_failure)?;
            }
        }
    }
}

/// What comes must not take what the disks of guests here need.
async fn check_room(host: &Host, wanted: &Keeping) -> Result<(), Failure> {
    let (id, disks) = (wanted.id.clone(), wanted.spec.disks.clone());
    host.with_replicas(move |replicas| replicas.check_room(&id, &disks)).await
}

/// Makes what has come the point.
async fn make(host: &Host, kept: &Kept, vm: &Guest, wanted: &Keeping, point: Point) -> Result<(), Failure> {
    let began = Instant::now();
    vm.close_disks().await.map_err(hypervisor_failure)?;
    let _changing = kept.points_change.lock().await;
    vm.make_point(&point_name::name(&wanted.id, &point)).await.map_err(hypervisor_failure)?;
    let points = kept.points_of(vm).await?;
    info!(
        replica = %wanted.id, guest = %wanted.spec.name, point = point.number, points = points.len(),
        took = ?began.elapsed(), "a point is made"
    );
    kept.has_points(points);
    host.look_again.notify_one();
    Ok(())
}

/// Lets the oldest points go that are too many, but for the one that is tested.
async fn forget_oldest(kept: &Kept, vm: &Guest, wanted: &Keeping) -> Result<(), Failure> {
    let _changing = kept.points_change.lock().await;
    let points = kept.points_of(vm).await?;
    for old in too_many(&points, wanted.keep as usize, kept.testing.point()) {
        if let Err(error) = vm.delete_point(&point_name::name(&wanted.id, old)).await {
            warn!(replica = %wanted.id, point = old.number, %error, "an old point stays; it is tried again with the next one");
        }
    }
    kept.has_points(kept.points_of(vm).await?);
    Ok(())
}

/// Which points go. The one that is tested does not, and counts as one of those that are kept; nor does the newest.
fn too_many(points: &[Point], keep: usize, tested: Option<u64>) -> Vec<&Point> {
    let older = points.split_last().map_or(&[][..], |(_, older)| older);
    let may_go = older.iter().filter(|point| Some(point.number) != tested);
    may_go.take(points.len().saturating_sub(keep)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_and_what_is_tested_stays() {
        let point = |number| Point { number, at_ms: number, quiesced: false };
        let points = [1, 2, 3, 4].map(point);
        let go = |keep, tested| too_many(&points, keep, tested).iter().map(|it| it.number).collect::<Vec<_>>();
        assert_eq!([go(4, None), go(5, None), go(3, None), go(1, None)], [vec![], vec![], vec![1], vec![1, 2, 3]]);
        assert_eq!([go(3, Some(1)), go(2, Some(2)), go(3, Some(9))], [vec![2], vec![1, 3], vec![1]]);
        assert_eq!([go(1, Some(1)), go(1, Some(4))], [vec![2, 3], vec![1, 2, 3]], "the newest stays too");
        assert!(too_many(&[], 1, None).is_empty());
    }
}
