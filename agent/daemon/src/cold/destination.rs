//! A cold move as its destination lives it.

use std::{
    collections::HashMap,
    fs::File,
    sync::{Arc, Mutex},
    time::Duration,
};

use throughline_cutover::{
    ColdDestination, DestinationEffect, DestinationEvent, DestinationReport, Disk, DiskName, Failure, MigrationPlan,
};
use throughline_wire::v1::{self, from_destination::Message};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::{
    destination::{CANCELLED, decline},
    disks::{CopyId, Unfinished},
    driver::Hands,
    host::Host,
    lock::lock,
    moves::{SourceCall, ToSource},
    moving::until,
    peer::answer,
    slot::Slot,
    uplink::MigrationNews,
};

/// How long a disk that comes may take to stop coming: what has come of it may just be written out.
const STOP_DEADLINE: Duration = Duration::from_secs(60);

/// Files that a stopped guest's disks come to.
#[derive(Debug)]
pub struct Incoming {
    files: Mutex<Files>,
    open: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Files {
    waiting: HashMap<DiskName, Arc<File>>,
    /// Disks that are being written.
    coming: usize,
    /// Disks that are not here yet.
    missing: usize,
}

impl Default for Incoming {
    fn default() -> Self {
        Self { files: Mutex::default(), open: watch::Sender::new(true) }
    }
}

impl Incoming {
    fn expect(&self, disks: Vec<(DiskName, File)>) {
        let mut files = lock(&self.files);
        files.missing = disks.len();
        files.waiting = disks.into_iter().map(|(name, file)| (name, Arc::new(file))).collect();
    }

    /// A disk's file, to write to; nobody else gets it until it is put back.
    pub(super) fn take(&self, disk: &DiskName) -> Option<Arc<File>> {
        let mut files = lock(&self.files);
        let taken = files.waiting.remove(disk).filter(|_| *self.open.borrow())?;
        files.coming += 1;
        Some(taken)
    }

    /// It did not come to its end, and may be begun again.
    pub(super) fn put_back(&self, disk: DiskName, file: Arc<File>) {
        let mut files = lock(&self.files);
        files.coming -= 1;
        if *self.open.borrow() {
            files.waiting.insert(disk, file);
        }
    }

    /// One is in; true: all are.
    pub(super) fn is_in(&self) -> bool {
        let mut files = lock(&self.files);
        files.coming -= 1;
        files.missing -= 1;
        files.missing == 0
    }

    /// Returns when nothing is to come any more.
    pub(super) async fn closes(&self) {
        // An error says that it is gone altogether.
        let _ = self.open.subscribe().wait_for(|open| !open).await;
    }

    /// Nothing comes any more, and no file is open.
    async fn close(&self) {
        self.open.send_replace(false);
        lock(&self.files).waiting.clear();
        let stopped = until(|| lock(&self.files).coming == 0);
        if tokio::time::timeout(STOP_DEADLINE, stopped).await.is_err() {
            warn!("a disk that is not wanted any more is still being written");
        }
    }
}

/// Carries out a cold destination's effects.
#[derive(Debug)]
pub struct ColdDestinationHands {
    host: Arc<Host>,
    plan: Arc<MigrationPlan>,
    events: mpsc::UnboundedSender<DestinationEvent>,
    caller: Slot<SourceCall>,
    incoming: Arc<Incoming>,
    to_source: Option<ToSource>,
    news: MigrationNews,
    /// Somebody does not want this migration.
    no_next_try: bool,
}

impl ColdDestinationHands {
    /// For one move.
    pub fn new(
        host: Arc<Host>,
        plan: Arc<MigrationPlan>,
        events: mpsc::UnboundedSender<DestinationEvent>,
        caller: Slot<SourceCall>,
        incoming: Arc<Incoming>,
        news: MigrationNews,
    ) -> Self {
        Self { host, plan, events, caller, incoming, to_source: None, news, no_next_try: false }
    }

    /// Files for what is to come.
    async fn prepare(&mut self) -> Result<(), Failure> {
        let mut here = HashMap::new();
        if let Some(SourceCall { answers, disks }) = self.caller.take() {
            self.to_source = Some(answers);
            here = disks.into_iter().map(|disk| (disk.name.clone(), disk)).collect();
        }
        let (guest, disks) = (self.plan.guest.name.clone(), self.plan.guest.disks.clone());
        let copy: CopyId = self.plan.id.parse()?;
        let source = self.plan.source.host.clone();
        if !disks.is_empty() {
            let with_here = |disk: Disk| {
                let here = here.remove(disk.name.as_str()).unwrap_or_default();
                (disk, here)
            };
            let wanted: Vec<_> = disks.into_iter().map(with_here).collect();
            let files = self.host.with_disks(move |store| {
                store.check_disks(&guest, &source, &wanted)?;
                let receive = |(disk, here): &(Disk, v1::DiskHere)| {
                    let file = store.receive_file(&guest, disk, here.used_bytes, &copy)?;
                    // A shared disk is there; nothing comes.
                    Ok(disk.goes_along().then(|| (disk.name.clone(), file)))
                };
                wanted.iter().map(receive).collect::<Result<Vec<_>, _>>()
            });
            self.incoming.expect(files.await?.into_iter().flatten().collect());
        }
        if !self.plan.guest.brings_disks() {
            let _ = self.events.send(DestinationEvent::MemoryIn);
        }
        Ok(())
    }

    /// Off the loop; nothing waits for it but the source.
    fn record_commit(&self) {
        let (host, plan, events) = (self.host.clone(), self.plan.clone(), self.events.clone());
        tokio::task::spawn_blocking(move || {
            let event = match host.journal.begin_commit(&plan).and_then(crate::journal::PendingCommit::write) {
                Ok(()) => DestinationEvent::CommitRecorded,
                Err(error) => DestinationEvent::CommitFailed(error.into()),
            };
            let committed = event == DestinationEvent::CommitRecorded;
            let _ = events.send(event);
            if committed && let Err(error) = host.journal.follow_commits() {
                warn!(%error, "the commit is on disk, but the journal's store has not followed it yet");
            }
        });
    }

    fn record_decline(&self) {
        let (host, plan, events) = (self.host.clone(), self.plan.clone(), self.events.clone());
        tokio::task::spawn_blocking(move || drop(events.send(decline(&host, &plan))));
    }

    async fn keep(&self) {
        if let Err(failure) = self.host.keep_disks(&self.plan.guest).await {
            warn!(guest = %self.plan.guest.name, %failure, "its disks are not under their names yet; restart this agent");
        }
        info!(guest = %self.plan.guest.name, generation = %self.plan.generation.next(), "committed; it is stopped here");
    }

    async fn undo(&self) {
        self.incoming.close().await;
        let fate = if self.no_next_try { Unfinished::Discard } else { Unfinished::PutAside { ended_badly: false } };
        if let Err(failure) = self.host.leave_disks(&self.plan.guest, fate).await {
            warn!(%failure, "what came of the guest's disks stays until the next try, or until this agent is restarted");
        }
    }

    fn tell_source(&self, message: Message) {
        answer(self.to_source.as_ref(), message);
    }

    fn tell_controller(&self, report: DestinationReport) {
        let counted = v1::CutoverReport::default();
        match report {
            DestinationReport::Expecting => self.news.step(v1::Step::Expecting, counted),
            DestinationReport::Committed(generation) => self.news.committed(generation, counted),
            DestinationReport::Settled => self.news.will_say_settled(counted),
            DestinationReport::Aborted(failure) => self.news.will_say_aborted(failure, counted),
            DestinationReport::Running | DestinationReport::GateOpen => {}
        }
    }
}

impl Hands for ColdDestinationHands {
    type Machine = ColdDestination;

    async fn execute(&mut self, effect: DestinationEffect) -> Option<DestinationEvent> {
        match effect {
            DestinationEffect::Prepare => {
                return Some(match self.prepare().await {
                    Ok(()) => DestinationEvent::Ready,
                    Err(failure) => DestinationEvent::NotReady(failure),
                });
            }
            DestinationEffect::TellPrepared => self.tell_source(Message::Prepared(v1::Prepared::default())),
            DestinationEffect::RecordCommit { .. } => self.record_commit(),
            DestinationEffect::TellCommitted { generation } => {
                self.tell_source(Message::Committed(v1::Committed { generation: generation.0 }));
            }
            DestinationEffect::FlipOwn => self.keep().await,
            DestinationEffect::Close => return Some(DestinationEvent::Closed),
            DestinationEffect::RecordDecline => self.record_decline(),
            DestinationEffect::TellDeclined(failure) => {
                self.no_next_try = failure.reason == CANCELLED;
                self.tell_source(Message::Declined(v1::Declined { failure: Some(failure.into()) }));
            }
            DestinationEffect::Undo => {
                self.undo().await;
                return Some(DestinationEvent::Undone);
            }
            DestinationEffect::Report(report) => self.tell_controller(report),
            // A guest that runs has these.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_written_by_one_and_by_nobody_after_the_end() {
        let (incoming, [root, data]) = (Incoming::default(), ["root", "data"].map(|name| name.parse().unwrap()));
        let null = || File::open("/dev/null").unwrap();
        incoming.expect(vec![(root, null()), (data, null())]);
        let [root, data]: [DiskName; 2] = ["root", "data"].map(|name| name.parse().unwrap());
        let taken = incoming.take(&root).expect("awaited");
        assert!(incoming.take(&root).is_none(), "another has it");
        incoming.put_back(root.clone(), taken);
        assert!(incoming.take(&root).is_some() && incoming.take(&data).is_some());
        assert!(!incoming.is_in() && incoming.is_in(), "with the second all are");

        let incoming = Incoming::default();
        incoming.expect(vec![(root.clone(), null()), (data.clone(), null())]);
        let taken = incoming.take(&root).expect("awaited");
        let close = incoming.close();
        let put_back = async {
            incoming.closes().await;
            incoming.put_back(root.clone(), taken);
        };
        tokio::join!(close, put_back);
        assert!(incoming.take(&root).is_none() && incoming.take(&data).is_none());
    }
}
