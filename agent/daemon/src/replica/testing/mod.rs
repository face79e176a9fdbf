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

mod left_over;
mod order;

use std::{sync::Arc, time::Duration};

use throughline_cutover::{Boot, Failure, GuestName, Keeping, ReplicaId};
use throughline_hypervisor::{Below, DiskFd, Guest, Launch, NicFds, RunDir, RunState};
use tokio::time::{interval, sleep, sleep_until};
use tracing::{Instrument as _, info, info_span, warn};

use self::order::Test;
pub(super) use self::order::Testing;
use super::{Kept, point_name};
use crate::{
    disks::{PointServer, TestDisk},
    host::Host,
    resident::hypervisor_failure,
};

/// How often it is looked how the test gets on.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often, and how soon again, its QEMU is tried to be ended.
const TRIES: u32 = 3;
const AGAIN: Duration = Duration::from_secs(1);
/// How the names of run directories of tests begin; no guest has such a name, and no keeper.
const RUN_DIR: &str = ".test-";

impl Kept {
    /// Tests as told. One of a replica that is becoming a guest's disks ends.
    pub(super) fn test_as_told(self: &Arc<Self>, host: &Arc<Host>) {
        let wanted = self.wanted().test.filter(|_| self.is_open(host));
        if let Some((test, before)) = self.testing.want(wanted) {
            let span = info_span!("test", replica = %self.id(), point = test.point());
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
    test.runs(console);
    host.look_again.notify_one();
    Ok((vm, servers))
}

/// Its disks, while nobody changes which points there are.
async fn open_disks(host: &Host, kept: &Kept, wanted: &Keeping, test: &Test) -> Result<Vec<TestDisk>, Failure> {
    let _points_stay = kept.points_change.lock().await;
    if !kept.is_open(host) {
        return Err(Failure::new("REPLICA_PROMOTED", "the replica is being promoted or removed, and is not tested"));
    }
    let point = kept.seen().0.into_iter().find(|point| point.number == test.point());
    let point = point.ok_or_else(|| {
        let message = format!("point {} has gone in the meantime; test another one", test.point());
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
            () = sleep_until(test.deadline()) => return Ok(()),
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
    /// Where its QEMU has its files.
    fn test_dir(&self, id: &ReplicaId) -> RunDir {
        RunDir::new(self.config.state_dir.join("guests").join(format!("{RUN_DIR}{id}")))
    }
}
