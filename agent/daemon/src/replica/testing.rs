//! A failover, tested: a guest is booted from a point of a replica that is kept here. It is as the guest would be, but that its cards are
//! plugged into nothing and that what it writes goes to files without names: neither the guest, wherever it runs, nor the replica is
//! concerned. No journal has it, and it is reported as a test and never as the guest.
//!
//! ```text
//!  the replica's file ◄── its keeper, which makes points as ever, and deletes all but the one that is tested
//!    ▲ the point, read only
//!  qemu-nbd ◄── the test's QEMU ──► a file for what it writes
//! ```
//!
//! A test ends by word, by its time, when its guest shuts down, or with its agent: the server is killed with it, files without a name go
//! with the last who has them open, and a QEMU that an agent was killed over is ended by the next.

use std::{
    fs, io,
    sync::{Arc, Mutex},
    time::Duration,
};

use throughline_cutover::{Boot, Failure, GuestName, Keeping, ReplicaId, ReplicaTest, TestState};
use throughline_hypervisor::{Below, DiskFd, Guest, Launch, NicFds, RunDir, RunState};
use throughline_wire::v1;
use tokio::{
    sync::watch,
    time::{Instant, interval, sleep, sleep_until, timeout},
};
use tracing::{Instrument as _, info, info_span, warn};

use super::{Kept, point_name};
use crate::{
    disks::{PointServer, TestDisk},
    host::Host,
    lock::lock,
    resident::hypervisor_failure,
};

/// How often it is looked how the test gets on.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often, and how soon again, its QEMU is tried to be ended.
const TRIES: u32 = 3;
const AGAIN: Duration = Duration::from_secs(1);
/// How long an agent that ends waits for its tests' ends.
const LAST_WAIT: Duration = Duration::from_secs(10);
/// How the names of run directories of tests begin; no guest has such a name, and no keeper.
const RUN_DIR: &str = ".test-";

/// A test that was ordered.
#[derive(Debug)]
pub(super) struct Test {
    wanted: ReplicaTest,
    deadline: Instant,
    is_to_end: watch::Sender<bool>,
    seen: watch::Sender<Seen>,
}

/// How it gets on.
#[derive(Debug, Clone)]
struct Seen {
    state: TestState,
    failure: Option<Failure>,
    console: String,
}

impl Test {
    fn new(wanted: ReplicaTest) -> Self {
        let deadline = Instant::now() + Duration::from_millis(wanted.for_ms.into());
        let seen = Seen { state: TestState::Starting, failure: None, console: String::new() };
        Self { wanted, deadline, is_to_end: watch::Sender::new(false), seen: watch::Sender::new(seen) }
    }

    fn is_over(&self) -> bool {
        self.seen.borrow().state.is_over()
    }

    /// It is to end. Can be repeated.
    fn end(&self) {
        self.is_to_end.send_replace(true);
    }

    /// Returns when it is to end.
    async fn end_is_wanted(&self) {
        let mut told = self.is_to_end.subscribe();
        drop(told.wait_for(|is_to_end| *is_to_end).await);
    }

    /// Returns when nothing of it is left.
    async fn ends(&self) {
        let mut seen = self.seen.subscribe();
        drop(seen.wait_for(|seen| seen.state.is_over()).await);
    }

    fn ended(&self, failure: Option<Failure>) {
        let state = if failure.is_some() { TestState::Failed } else { TestState::Ended };
        self.seen.send_replace(Seen { state, failure, console: String::new() });
    }

    fn observed(&self) -> v1::ObservedTest {
        let Seen { state, failure, console } = self.seen.borrow().clone();
        let state = if *self.is_to_end.borrow() && !state.is_over() { TestState::Ending } else { state };
        let (id, failure) = (self.wanted.id.to_string(), failure.map(Into::into));
        v1::ObservedTest { id, state: v1::TestState::from(state).into(), failure, console }
    }
}

/// The test of one replica.
#[derive(Debug, Default)]
pub(super) struct Testing(Mutex<Option<Arc<Test>>>);

impl Testing {
    fn now(&self) -> Option<Arc<Test>> {
        lock(&self.0).clone()
    }

    /// Has the one that is wanted and no other: gives it if it is to begin, and what is to be over before. One that is over is known for as
    /// long as it is wanted, so that it is not begun again.
    fn want(&self, wanted: Option<ReplicaTest>) -> Option<(Arc<Test>, Option<Arc<Test>>)> {
        let mut now = lock(&self.0);
        if let Some(test) = &*now
            && wanted.as_ref().is_none_or(|wanted| wanted.id != test.wanted.id)
        {
            test.end();
        }
        match (wanted, &*now) {
            (Some(wanted), Some(test)) if test.wanted.id == wanted.id => None,
            (Some(wanted), _) => {
                let test = Arc::new(Test::new(wanted));
                Some((test.clone(), now.replace(test)))
            }
            (None, Some(test)) if test.is_over() => {
                *now = None;
                None
            }
            (None, _) => None,
        }
    }

    /// The point that is not to go.
    pub(super) fn point(&self) -> Option<u64> {
        self.now().filter(|test| !test.is_over()).map(|test| test.wanted.point)
    }

    /// What is told of it.
    pub(super) fn observed(&self) -> Option<v1::ObservedTest> {
        self.now().map(|test| test.observed())
    }

    /// Ends it, if there is one; nothing of it is left when this returns.
    pub(super) async fn end(&self) {
        if let Some(test) = self.now() {
            test.end();
            test.ends().await;
        }
    }
}

impl Kept {
    /// Tests as told. One of a replica that is becoming a guest's disks ends.
    pub(super) fn test_as_told(self: &Arc<Self>, host: &Arc<Host>) {
        let wanted = self.wanted().test.filter(|_| self.is_open(host));
        if let Some((test, before)) = self.testing.want(wanted) {
            let span = info_span!("test", replica = %self.id(), point = test.wanted.point);
            tokio::spawn(run(host.clone(), self.clone(), test, before).instrument(span));
        }
    }
}

/// One test, from its beginning to its end.
async fn run(host: Arc<Host>, kept: Arc<Kept>, test: Arc<Test>, before: Option<Arc<Test>>) {
    if let Some(before) = before {
        before.ends().await;
    }
    // What is begun is waited for: a QEMU that is just being started must not be forgotten.
    let ended = match boot(&host, &kept, &test).await {
        Ok((vm, servers)) => {
            let why = watch_over(&host, &kept, &test, &vm, &servers).await;
            let ended = end(&vm).await;
            drop(servers);
            why.and(ended)
        }
        Err(failure) => {
            // What QEMU said is in the failure.
            if let Err(error) = host.test_dir(kept.id()).remove() {
                warn!(%error, "files of a test's QEMU that did not start stay");
            }
            Err(failure)
        }
    };
    match &ended {
        Ok(()) => info!("the test of a replica is over"),
        Err(failure) => warn!(%failure, "the test of a replica has failed"),
    }
    test.ended(ended.err());
    host.look_again.notify_one();
}

/// Boots its guest.
async fn boot(host: &Host, kept: &Kept, test: &Test) -> Result<(Guest, Vec<PointServer>), Failure> {
    let wanted = kept.wanted();
    let disks = open_disks(host, kept, &wanted, test).await?;
    let (mut servers, mut fds) = (Vec::with_capacity(disks.len()), Vec::with_capacity(disks.len()));
    for TestDisk { disk, file, below, server } in disks {
        servers.push(server);
        let (name, format, bus) = (disk.name, disk.format, disk.bus);
        fds.push(DiskFd { name, format, bus, image: file.into(), below: Some(Below::Connection(below.into())) });
    }
    let launch = launch(host, &wanted, fds)?;
    let console = launch.run_dir.serial_log();
    let vm = Guest::launch(launch, &host.confinement).await.map_err(hypervisor_failure)?;
    info!(guest = %wanted.spec.name, pid = vm.pid(), "a guest is booted from a point of its replica, for a test");
    let console = console.display().to_string();
    test.seen.send_replace(Seen { state: TestState::Running, failure: None, console });
    host.look_again.notify_one();
    Ok((vm, servers))
}

/// Its disks, while nobody changes which points there are.
async fn open_disks(host: &Host, kept: &Kept, wanted: &Keeping, test: &Test) -> Result<Vec<TestDisk>, Failure> {
    let _points_stay = kept.points_change.lock().await;
    if !kept.is_open(host) {
        return Err(Failure::new("REPLICA_PROMOTED", "the replica is being promoted or removed, and is not tested"));
    }
    let point = kept.seen().0.into_iter().find(|point| point.number == test.wanted.point);
    let point = point.ok_or_else(|| {
        let message = format!("point {} has gone in the meantime; test another one", test.wanted.point);
        Failure::new("UNKNOWN_POINT", message)
    })?;
    let (id, disks) = (wanted.id.clone(), wanted.spec.disks.clone());
    let name = point_name::name(&id, &point).to_string();
    host.with_replicas(move |replicas| replicas.test_disks(&id, &disks, &name)).await
}

/// As the guest, on no network.
fn launch(host: &Host, wanted: &Keeping, disks: Vec<DiskFd>) -> Result<Launch, Failure> {
    let spec = &wanted.spec;
    let cards = spec.ports.iter().zip(host.bindings.segments(spec)?);
    let unplugged = cards.map(|(port, segment)| NicFds {
        port: port.id,
        mac: port.mac,
        mtu: segment.mtu,
        tap: Vec::new(),
        hold: None,
        lanes: Vec::new(),
    });
    Ok(Launch {
        name: test_name(&wanted.id),
        run_dir: host.test_dir(&wanted.id),
        vcpus: spec.vcpus,
        memory_kib: spec.memory_kib,
        boot: Boot::clone(&spec.boot),
        accelerator: host.accelerator(),
        nics: unplugged.collect(),
        disks,
        guest_agent: spec.guest_agent,
        incoming: false,
    })
}

/// Returns when it is to end, or has.
async fn watch_over(host: &Host, kept: &Kept, test: &Test, vm: &Guest, servers: &[PointServer]) -> Result<(), Failure> {
    let mut every = interval(LOOK_EVERY);
    loop {
        tokio::select! {
            () = test.end_is_wanted() => return Ok(()),
            () = sleep_until(test.deadline) => return Ok(()),
            exit = vm.wait_exit() => return match exit.orderly {
                true => Ok(()),
                false => Err(Failure::new("HYPERVISOR", format!("the test's QEMU has ended: {exit}"))),
            },
            _ = every.tick() => look(host, kept, vm, servers).await?,
        }
    }
}

/// That it can go on.
async fn look(host: &Host, kept: &Kept, vm: &Guest, servers: &[PointServer]) -> Result<(), Failure> {
    if servers.iter().any(PointServer::is_over) {
        return Err(Failure::new("DISK_TOOL", "qemu-nbd, which serves the point, has ended"));
    }
    // What the test writes must not take what points need.
    let Keeping { id, spec, .. } = kept.wanted();
    host.with_replicas(move |replicas| replicas.check_room(&id, &spec.disks)).await?;
    match vm.run_state().await {
        Ok(RunState::DiskError) => {
            let message = "QEMU stopped the test's guest because a request to one of its disks failed; see that this host has room";
            Err(Failure::new("DISK_SPACE", message))
        }
        Ok(state @ (RunState::Panicked | RunState::Broken)) => {
            Err(Failure::new("HYPERVISOR", format!("QEMU reports {state:?} of the test's guest")))
        }
        // One that has just ended is heard of as that.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Nothing runs of it when this returns without an error.
async fn end(vm: &Guest) -> Result<(), Failure> {
    let mut tries = TRIES;
    while let Err(error) = vm.quit().await {
        tries -= 1;
        if tries == 0 {
            return Err(hypervisor_failure(error));
        }
        warn!(%error, "the QEMU of a test has not ended");
        sleep(AGAIN).await;
    }
    Ok(())
}

/// What its QEMU calls itself.
fn test_name(id: &ReplicaId) -> GuestName {
    let name = format!("test-{id}");
    name.parse().or_else(|_| id.as_str().parse()).expect("an id is a name")
}

impl Host {
    fn test_dir(&self, id: &ReplicaId) -> RunDir {
        RunDir::new(self.config.state_dir.join("guests").join(format!("{RUN_DIR}{id}")))
    }

    /// Ends what a killed agent has left of tests. What cannot be ended is told of and left.
    pub async fn end_tests_left_over(&self) {
        let left = match fs::read_dir(self.config.state_dir.join("guests")) {
            Ok(entries) => entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => return warn!(%error, "what is left of tests of replicas is not known"),
        };
        for id in left.filter_map(|name| name.strip_prefix(RUN_DIR)?.parse::<ReplicaId>().ok()) {
            match self.end_test_left_over(&id).await {
                Ok(()) => info!(replica = %id, "a test that an agent was killed over is ended"),
                Err(failure) => warn!(replica = %id, %failure, "a test that an agent was killed over has not ended"),
            }
        }
    }

    async fn end_test_left_over(&self, id: &ReplicaId) -> Result<(), Failure> {
        let found = Guest::adopt(test_name(id), self.test_dir(id), &self.confinement).await;
        match found.map_err(hypervisor_failure)? {
            Some(vm) => end(&vm).await,
            None => {
                let failed = |error| Failure::new("HYPERVISOR", format!("its files stay: {error}"));
                self.test_dir(id).remove().map_err(failed)
            }
        }
    }

    /// Ends all tests: this agent does.
    pub async fn end_tests(&self) {
        let all = self.keepers.all();
        all.iter().filter_map(|kept| kept.testing.now()).for_each(|test| test.end());
        let ends = async {
            for kept in &all {
                kept.testing.end().await;
            }
        };
        if timeout(LAST_WAIT, ends).await.is_err() {
            warn!("tests of replicas have not ended; the next agent ends them");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(id: &str) -> Option<ReplicaTest> {
        Some(ReplicaTest { id: id.parse().unwrap(), point: 7, for_ms: 60_000 })
    }

    #[test]
    fn there_is_one_test_and_it_is_begun_once() {
        let testing = Testing::default();
        assert!(testing.want(None).is_none() && testing.point().is_none());
        let (first, before) = testing.want(wish("t-1")).expect("it begins");
        assert!(before.is_none() && testing.want(wish("t-1")).is_none(), "it has begun");
        assert_eq!((testing.point(), *first.is_to_end.borrow()), (Some(7), false));

        let (second, before) = testing.want(wish("t-2")).expect("another one begins");
        assert!(*first.is_to_end.borrow() && before.is_some_and(|it| Arc::ptr_eq(&it, &first)), "after the first");
        second.ended(Some(Failure::new("HYPERVISOR", "no")));
        assert!(testing.want(wish("t-2")).is_none(), "what is over is not begun again while it is wanted");
        assert_eq!(testing.point(), None, "and its point may go");
        let told = testing.observed().expect("it is told of");
        assert_eq!(
            (told.state(), told.failure.map(|it| it.reason)),
            (v1::TestState::Failed, Some("HYPERVISOR".into()))
        );
        assert!(testing.want(None).is_none() && testing.observed().is_none(), "then it is forgotten");
    }

    #[test]
    fn one_that_is_wanted_no_more_is_told_of_until_nothing_is_left() {
        let testing = Testing::default();
        let (test, _) = testing.want(wish("t-1")).expect("it begins");
        assert!(testing.want(None).is_none());
        assert_eq!(testing.observed().map(|it| it.state()), Some(v1::TestState::Ending));
        assert_eq!(testing.point(), Some(7));
        test.ended(None);
        assert_eq!(testing.observed().map(|it| it.state()), Some(v1::TestState::Ended));
        testing.want(None);
        assert_eq!(testing.observed(), None);
    }
}
