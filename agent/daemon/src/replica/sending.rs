//! The guest's host's end of one point.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use throughline_cutover::{Disk, DiskName, Failure, Point, Replication};
use throughline_hypervisor::{
    HypervisorError, KeeperId, PointDisk, PointProgress, PointState, ReplicaInvitation, ReplicaName,
};
use throughline_wire::{
    Explanation, points,
    v1::{
        BeginPoint, KeeperReady, PointFromKeeper, PointFromSource, PointSent, point_from_keeper::Message,
        point_from_source,
    },
};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tracing::{debug, info};

use super::{point_name, sender::Sender};
use crate::{
    host::Host,
    invitation::replica::from_wire,
    resident::{Resident, hypervisor_failure},
    source::Way,
};

/// How long the keeper may take until it is ready: it may have to start, and to see off an earlier call.
const READY_DEADLINE: Duration = Duration::from_secs(45);
/// And to make the point when all of it is there: QEMU has 120 s for it.
const MADE_DEADLINE: Duration = Duration::from_secs(150);
/// How long nothing may get over until a point is given up.
const STALLED: Duration = Duration::from_secs(30);
/// How often QEMU is asked how it gets on, and how often the controller is told.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const TELL_EVERY: Duration = Duration::from_secs(1);

/// A call to the keeper.
struct Call {
    to_keeper: mpsc::Sender<PointFromSource>,
    answers: Streaming<PointFromKeeper>,
}

/// Sends a point of a guest's disks, all of one instant. After a failure, and if it is dropped, `abandon_point` is next.
pub(super) async fn send(
    host: &Host,
    replication: &Replication,
    resident: &Resident,
    sender: &Sender,
) -> Result<Point, Failure> {
    let (vm, disks) = (&resident.vm, &resident.spec.disks);
    // What another agent, or a try that was dropped, has left.
    vm.abandon_point().await.map_err(hypervisor_failure)?;
    let mut call = Call::place(host, replication, resident).await?;
    let ready = call.ready().await?;
    let known = points(ready.points).map_err(|error| odd(format!("names points that are none: {error}")))?;
    let newest = known.last().map_or(0, |point| point.number);
    let last = begin(host, replication, resident, newest).await?;
    let keeper: KeeperId = ready.instance.parse().map_err(|error| odd(format!("says who it is, and {error}")))?;
    let invited = from_wire(ready.disks, disks, replication.keeper.vtep)?;
    let sent = open(host, resident, invited).await?;
    let speed = replication.bandwidth / (disks.len() as u64).max(1);
    let instant = vm.send_point(sent, &keeper, speed).await.map_err(broke)?;
    call.watch(host, resident, sender).await?;
    vm.end_point().await.map_err(broke)?;
    let number = newest.max(last).checked_add(1).ok_or_else(|| odd("has numbered its points to the end"))?;
    let point = Point { number, at_ms: milliseconds(instant.at), quiesced: instant.quiesced };
    call.sent(point).await?;
    let name = point_name::name(&replication.id, &point);
    vm.complete_point(&name).await.map_err(broke)?;
    Ok(point)
}

/// Has on record in QEMU what is to be sent, and tells the number of the last point that it knows of; 0: of none. `newest`: that of the
/// newest point that the keeper has.
async fn begin(host: &Host, replication: &Replication, resident: &Resident, newest: u64) -> Result<u64, Failure> {
    let vm = &resident.vm;
    let replica: ReplicaName = replication.id.as_str().parse().map_err(|error| odd(format!("is no id: {error}")))?;
    let record = vm.replica_begun().await.map_err(hypervisor_failure)?.filter(|record| record.replica == replica);
    if let Some(record) = record {
        let last = record.point.as_ref().map(|name| point_name::read(&replication.id, name).map(|it| it.number));
        match last {
            None => return Ok(0),
            // The keeper may have made one more than it could tell of; it cannot have less than what the record is since.
            Some(Some(last)) if last <= newest => return Ok(last),
            Some(_) => info!(newest, "the keeper has not what was sent before; it is sent everything"),
        }
    }
    // Of everything, holes too: what the keeper has there may be from before them.
    info!("everything is sent");
    vm.begin_replica().await.map_err(hypervisor_failure)?;
    for disk in &resident.spec.disks {
        let (guest, charted) = (resident.spec.name.clone(), disk.clone());
        let chart = host.with_disks(move |store| store.chart_of_all(&guest, &charted)).await?;
        vm.merge_replica_chart(&disk.name, chart).await.map_err(hypervisor_failure)?;
    }
    vm.name_replica(&replica).await.map_err(hypervisor_failure)?;
    Ok(0)
}

/// Opens a stream for each disk, and a file for what the guest overwrites meanwhile.
async fn open(host: &Host, resident: &Resident, invited: Vec<ReplicaInvitation>) -> Result<Vec<PointDisk>, Failure> {
    let (guest, disks) = (resident.spec.name.clone(), resident.spec.disks.clone());
    let files = move |store: &crate::disks::Store| {
        let aside = |disk: &Disk| Ok((disk.name.clone(), OwnedFd::from(store.aside(&guest, disk)?)));
        disks.iter().map(aside).collect::<Result<BTreeMap<DiskName, OwnedFd>, _>>()
    };
    let mut asides = host.with_disks(files).await?;
    let mut opened = Vec::with_capacity(invited.len());
    for invitation in invited {
        let stream = resident.vm.call_replica(&invitation, host.config.vtep, &host.sealer).await.map_err(broke)?;
        // There is one for each disk, and the invitations are the disks'.
        let Some(aside) = asides.remove(&invitation.disk) else { continue };
        opened.push(PointDisk { disk: invitation.disk, stream, aside });
    }
    Ok(opened)
}

impl Call {
    async fn place(host: &Host, replication: &Replication, resident: &Resident) -> Result<Self, Failure> {
        let mut client = Way::to(&host.security, &replication.keeper).connect().await.map_err(refused)?;
        let (to_keeper, queue) = mpsc::channel(2);
        let begin = BeginPoint {
            replica_id: replication.id.to_string(),
            token: replication.token.as_str().to_owned(),
            generation: resident.generation().0,
        };
        let call = to_keeper.send(PointFromSource { message: Some(point_from_source::Message::Begin(begin)) });
        call.await.map_err(|_| odd("does not listen"))?;
        let answers = timeout(READY_DEADLINE, client.keep_point(ReceiverStream::new(queue))).await;
        let answers = answers.map_err(|_| late(READY_DEADLINE))?.map_err(refused)?.into_inner();
        Ok(Self { to_keeper, answers })
    }

    async fn ready(&mut self) -> Result<KeeperReady, Failure> {
        match self.answer(READY_DEADLINE).await? {
            Message::Ready(ready) => Ok(ready),
            Message::Made(_) => Err(odd("says that it has made what was not sent")),
        }
    }

    async fn answer(&mut self, deadline: Duration) -> Result<Message, Failure> {
        let answer = timeout(deadline, self.answers.message()).await.map_err(|_| late(deadline))?.map_err(refused)?;
        answer.and_then(|answer| answer.message).ok_or_else(|| odd("hung up"))
    }

    /// Until all disks are sent.
    async fn watch(&mut self, host: &Host, resident: &Resident, sender: &Sender) -> Result<(), Failure> {
        let mut every = interval(LOOK_EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut moved, mut told) = ((0, Instant::now()), Instant::now());
        loop {
            tokio::select! {
                _ = every.tick() => {}
                answer = self.answers.message() => {
                    return Err(answer.map_or_else(refused, |_| odd("hung up while disks were being sent")));
                }
            }
            let progress = resident.vm.point_progress().await.map_err(broke)?;
            let (copied, total) = progress.iter().fold((0, 0), |(sent, all), it| (sent + it.sent, all + it.total));
            sender.comes_along(copied, total);
            if is_over(&progress, resident.spec.disks.len())? {
                debug!(total, "all disks are sent");
                return Ok(());
            }
            if moved.0 != copied {
                moved = (copied, Instant::now());
            }
            if moved.1.elapsed() > STALLED {
                let message = format!("nothing has reached the replica for {} s; it is tried again", STALLED.as_secs());
                return Err(Failure::new("REPLICA_STALLED", message));
            }
            if told.elapsed() > TELL_EVERY {
                told = Instant::now();
                host.look_again.notify_one();
                check_room(host, resident).await?;
            }
        }
    }

    /// Says which point it is, and waits until it is made.
    async fn sent(&mut self, point: Point) -> Result<(), Failure> {
        let sent = point_from_source::Message::Sent(PointSent { point: Some(point.into()) });
        let said = self.to_keeper.send(PointFromSource { message: Some(sent) }).await;
        said.map_err(|_| odd("does not listen any more"))?;
        match self.answer(MADE_DEADLINE).await? {
            Message::Made(_) => Ok(()),
            Message::Ready(_) => Err(odd("begins anew when all is sent")),
        }
    }
}

/// What is overwritten meanwhile must not take what guests' own disks need.
async fn check_room(host: &Host, resident: &Resident) -> Result<(), Failure> {
    let (guest, disks) = (resident.spec.name.clone(), resident.spec.disks.clone());
    host.with_disks(move |store| disks.iter().try_for_each(|disk| store.check_aside(&guest, disk))).await
}

fn late(deadline: Duration) -> Failure {
    let message = format!("the replica's host did not answer within {} s; see its agent's log", deadline.as_secs());
    Failure::new("REPLICA_LATE", message)
}

/// Whether every one of so many disks is sent; that one broke is an error.
fn is_over(progress: &[PointProgress], disks: usize) -> Result<bool, Failure> {
    for it in progress {
        if let PointState::Failed(why) = &it.state {
            let message = format!(
                "disk {} could not be sent to the replica: {why}; the guest is not concerned; see that the hosts reach each other \
                 and that both have room",
                it.disk
            );
            return Err(Failure::new("REPLICA_COPY", message));
        }
    }
    Ok(progress.len() == disks && progress.iter().all(|it| it.state == PointState::Sent))
}

fn milliseconds(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[expect(clippy::needless_pass_by_value, reason = "used as map_err's function")]
fn broke(error: HypervisorError) -> Failure {
    match &error {
        HypervisorError::Gone { .. } => Failure::new("GUEST_ENDED", "the guest's QEMU ended while a point was sent"),
        _ => Failure::new("REPLICA_COPY", error.to_string()),
    }
}

/// The keeper's refusal, by its own code if it has one.
#[expect(clippy::needless_pass_by_value, reason = "used as map_err's function")]
fn refused(status: Status) -> Failure {
    let Explanation { reason, message, .. } = Explanation::from(&status);
    let reason = if reason == "UNEXPLAINED" { "REPLICA_UNREACHABLE".to_owned() } else { reason };
    Failure::new(&reason, format!("the replica's host: {message}"))
}

fn odd(what: impl std::fmt::Display) -> Failure {
    Failure::new("REPLICA_KEEPER", format!("the replica's host {what}; do both agents have one version?"))
}
