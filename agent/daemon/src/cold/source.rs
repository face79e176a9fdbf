//! A cold move as its source lives it.

use std::{fs::File, sync::Arc, time::Duration};

use throughline_cutover::{ColdSource, Disk, Failure, MigrationPlan, SourceEffect, SourceEvent, SourceReport};
use throughline_wire::v1::{self, CopyDisk, DiskFromSource, disk_from_source, from_source};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tracing::{info, warn};

use super::send::{SendError, Sending};
use crate::{
    driver::Hands,
    host::Host,
    journal::Promise,
    moving::until,
    slot::Slot,
    source::{Call, REPORT_EVERY, Way, ask, give_up},
    uplink::MigrationNews,
};

/// Messages that wait on the way to the destination.
const QUEUE: usize = 16;
/// How long a thread that reads a disk may take to end.
const CLOSE_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes between two words on how it is getting on.
const TELL_EVERY: u64 = 16 << 20;

/// That this host has the guest, as the plan says, and that nothing runs of it.
///
/// # Errors
/// `GUEST_NOT_STOPPED`, `STALE_GENERATION`, or the journal's.
pub async fn check(host: &Host, plan: &MigrationPlan) -> Result<(), Failure> {
    let name = &plan.guest.name;
    let not_stopped = || Failure::new("GUEST_NOT_STOPPED", format!("guest {name} is not stopped on {}", host.name()));
    let owned = host.journal.find_guest(name)?.filter(|owned| owned.stopped).ok_or_else(not_stopped)?;
    if owned.generation != plan.generation {
        let message = format!(
            "{} holds {name} at generation {}, the plan is for {}",
            host.name(),
            owned.generation,
            plan.generation
        );
        return Err(Failure::new("STALE_GENERATION", message));
    }
    let runs = host.resident(name).await.is_some() || host.find_qemu(name).await?.is_some();
    if runs { Err(not_stopped()) } else { Ok(()) }
}

/// Carries out a cold source's effects.
#[derive(Debug)]
pub struct ColdSourceHands {
    host: Arc<Host>,
    plan: Arc<MigrationPlan>,
    events: mpsc::UnboundedSender<SourceEvent>,
    news: MigrationNews,
    reported_at: Option<Duration>,
    call: Option<Call>,
    copying: Option<AbortHandle>,
    /// Also had by whoever has a disk open.
    busy: Arc<()>,
    waits: JoinSet<()>,
}

impl ColdSourceHands {
    /// For one move.
    pub fn new(
        host: Arc<Host>,
        plan: Arc<MigrationPlan>,
        events: mpsc::UnboundedSender<SourceEvent>,
        news: MigrationNews,
    ) -> Self {
        let waits = JoinSet::new();
        Self { host, plan, events, news, reported_at: None, call: None, copying: None, busy: Arc::default(), waits }
    }

    async fn call_peer(&mut self) -> Option<SourceEvent> {
        let here = match self.host.disks_here(&self.plan.guest, false).await {
            Ok(here) => here,
            Err(failure) => return Some(SourceEvent::Abort(failure)),
        };
        let events = self.events.clone();
        self.call = Some(Call::place(&self.host.security, &self.plan, events, Slot::empty(), here));
        None
    }

    fn copy_disks(&mut self) {
        let (host, plan, events) = (self.host.clone(), self.plan.clone(), self.events.clone());
        let busy = self.busy.clone();
        self.copying = Some(self.waits.spawn(async move {
            let event = match copy_all(&host, &plan, &events, &busy).await {
                Ok(()) => SourceEvent::DisksMirrored,
                Err(failure) => SourceEvent::MirrorFailed(failure),
            };
            let _ = events.send(event);
        }));
    }

    fn record_give_up(&mut self) {
        let (host, plan, events) = (self.host.clone(), self.plan.clone(), self.events.clone());
        self.waits.spawn_blocking(move || drop(events.send(give_up(&host, &plan))));
    }

    /// Every step is tried; what fails is logged.
    async fn remove_guest(&self) {
        let name = &self.plan.guest.name;
        // They are at the destination, compared, and are its guest's since its commit.
        self.host.clear_out_disks(&self.plan.guest).await;
        if let Err(error) = self.host.journal.promise(&self.plan.id, Some(&self.plan), Promise::Left) {
            warn!(%error, "the journal still names a guest that has left");
        }
        info!(guest = %name, destination = %self.plan.destination.host, "left this host");
    }

    /// The disks are closed first: the guest may be started as soon as it is said that it stays.
    async fn undo(&mut self) {
        if let Some(copying) = self.copying.take() {
            copying.abort();
        }
        if tokio::time::timeout(CLOSE_DEADLINE, until(|| Arc::strong_count(&self.busy) == 1)).await.is_err() {
            warn!("a disk that is not copied any more is still being read");
        }
        if let Err(error) = self.host.journal.promise(&self.plan.id, Some(&self.plan), Promise::Declined) {
            warn!(%error, "the journal still shows this migration as under way");
        }
        info!(guest = %self.plan.guest.name, "stays at the source, stopped");
    }

    fn say(&self, message: from_source::Message) {
        if let Some(call) = &self.call {
            call.say(message);
        }
    }

    fn tell_controller(&mut self, report: SourceReport) {
        let counted = v1::CutoverReport::default();
        match report {
            SourceReport::Progress(progress) => {
                let now = self.host.clock.now();
                let over = progress.disk_copied == progress.disk_total;
                if over || self.reported_at.is_none_or(|at| now >= at + REPORT_EVERY) {
                    self.reported_at = Some(now);
                    self.news.progress(progress);
                }
            }
            SourceReport::Precopy => self.news.step(v1::Step::Precopy, counted),
            SourceReport::Settled => self.news.will_say_settled(counted),
            SourceReport::Aborted(failure) => self.news.will_say_aborted(failure, counted),
            SourceReport::Stalled(_) | SourceReport::Armed | SourceReport::Paused | SourceReport::LineEmpty => {}
        }
    }
}

/// One disk after the other.
async fn copy_all(
    host: &Host,
    plan: &MigrationPlan,
    events: &mpsc::UnboundedSender<SourceEvent>,
    busy: &Arc<()>,
) -> Result<(), Failure> {
    let mut files = Vec::with_capacity(plan.guest.disks.len());
    for disk in plan.guest.disks_to_bring() {
        let (guest, wanted) = (plan.guest.name.clone(), disk.clone());
        let opened = host.with_disks(move |store| {
            let file = store.open_disk(&guest, &wanted)?;
            Ok(measure(&file).map(|(length, data)| (file, length, data)))
        });
        let (file, length, data) = opened.await?.map_err(|error| copy_failed(disk, &SendError::Read(error)))?;
        files.push((disk, file, length, data));
    }
    let total = files.iter().map(|(_, _, _, data)| data).sum();
    let mut before = 0;
    for (disk, file, length, data) in files {
        let told = events.clone();
        let tell = move |over: u64| drop(told.send(SourceEvent::DiskProgress { copied: before + over, total }));
        tell(0);
        copy_one(host, plan, disk, (file, length, busy.clone()), tell).await?;
        before += data;
    }
    let _ = events.send(SourceEvent::DiskProgress { copied: total, total });
    Ok(())
}

/// Bytes of a file, and of its regions that have data.
fn measure(file: &File) -> std::io::Result<(u64, u64)> {
    use super::compare::{REGION, has_data, region_length, regions};
    let (length, mut data) = (crate::disks::length(file)?, 0);
    for region in 0..regions(length) {
        if has_data(file, region * REGION)? {
            data += region_length(region, length) as u64;
        }
    }
    Ok((length, data))
}

async fn copy_one(
    host: &Host,
    plan: &MigrationPlan,
    disk: &Disk,
    (file, length, busy): (File, u64, Arc<()>),
    tell: impl FnMut(u64) + Send + 'static,
) -> Result<(), Failure> {
    let (to, queue) = mpsc::channel(QUEUE);
    let begin =
        CopyDisk { migration_id: plan.id.clone(), token: plan.token.clone(), disk: disk.name.to_string(), length };
    // There is room for the first.
    let _ = to.send(disk_from_source::Message::Begin(begin)).await;
    let queue = ReceiverStream::new(queue).map(|message| DiskFromSource { message: Some(message) });
    let refused = |status: tonic::Status| {
        let message = format!(
            "disk {} could not be copied: {}; the guest stays here, stopped; migrate again",
            disk.name,
            status.message()
        );
        Failure::new("DISK_COPY", message)
    };
    let mut client = Way::to_destination(&host.security, plan).connect().await.map_err(refused)?;
    let mut answers = client.copy_disk(queue).await.map_err(refused)?.into_inner();
    let (pass_on, from) = mpsc::channel(QUEUE);
    let bandwidth = plan.limits.bandwidth;
    let sending = tokio::task::spawn_blocking(move || {
        let (mut tell, mut over, mut told) = (tell, 0, 0);
        let progress = |bytes| {
            over += bytes;
            if over >= told + TELL_EVERY {
                told = over;
                tell(over);
            }
        };
        let sent = Sending { file: &file, length, bandwidth, to, from }.run(progress);
        drop(file);
        drop(busy);
        sent
    });
    let mut why = None;
    loop {
        match answers.message().await {
            Ok(Some(answer)) => {
                if pass_on.send(answer.sums.unwrap_or_default()).await.is_err() {
                    break;
                }
            }
            Ok(None) => break,
            Err(status) => {
                why = Some(status);
                break;
            }
        }
    }
    drop(pass_on);
    match (sending.await, why) {
        (Ok(Ok(())), None) => Ok(()),
        (_, Some(status)) => Err(refused(status)),
        (Ok(Err(error)), None) => Err(copy_failed(disk, &error)),
        (Err(panicked), None) => Err(Failure::new("DISK_COPY", panicked.to_string())),
    }
}

fn copy_failed(disk: &Disk, error: &SendError) -> Failure {
    let message = format!(
        "disk {} could not be copied: {error}; the guest stays here, stopped; see that the hosts reach each other and that the \
         destination has room, and migrate again",
        disk.name
    );
    Failure::new("DISK_COPY", message)
}

impl Hands for ColdSourceHands {
    type Machine = ColdSource;

    async fn execute(&mut self, effect: SourceEffect) -> Option<SourceEvent> {
        match effect {
            SourceEffect::CallPeer => return self.call_peer().await,
            SourceEffect::MirrorDisks => self.copy_disks(),
            SourceEffect::RecordGiveUp => self.record_give_up(),
            SourceEffect::TellGiveUp => {
                self.say(from_source::Message::GiveUp(v1::GiveUp { generation: self.plan.generation.0 }));
            }
            SourceEffect::TellAbort(failure) => {
                self.say(from_source::Message::Abort(v1::Abort { failure: Some(failure.into()) }));
            }
            SourceEffect::Resolve => ask(&self.host.security, &self.plan, self.events.clone()),
            SourceEffect::RemoveGuest => {
                self.remove_guest().await;
                return Some(SourceEvent::Removed);
            }
            SourceEffect::Undo => {
                self.undo().await;
                return Some(SourceEvent::Undone);
            }
            SourceEffect::Report(report) => self.tell_controller(report),
            // A guest that runs has these.
            _ => {}
        }
        None
    }
}
