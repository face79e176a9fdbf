//! Real QEMUs in a network namespace of their own, taken down whatever happens.

pub(crate) mod agent;
pub(crate) mod copying;
pub(crate) mod hand;
pub(crate) mod image;
pub(crate) mod initrd;
pub(crate) mod replicating;
mod tap;
pub(crate) mod wire;

use std::{
    env, fs,
    net::Ipv4Addr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use throughline_cutover::{Boot, GuestName, Mtu, PortId};
use throughline_hypervisor::{
    Accelerator, Confinement, Guest, GuestEvent, GuestEventKind, HypervisorError, Invitation, Launch, MigrationStatus,
    NicFds, RunDir, Sealer,
};
use tokio::{sync::broadcast, task::JoinHandle, time::timeout};

pub(crate) use tap::{inject, name_of, read_frames};

/// Translated guests share two cores: one test at a time keeps their pauses meaningful.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
/// Users for guests, numbers no host gives to anybody.
const USERS: &str = "1900001000-1900001099";
/// Both ends of every stream are here.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// How long anything may take in a test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Runs `test` in its own thread, network namespace and runtime.
pub(crate) fn in_lab<F: Future<Output = ()>>(name: &'static str, test: impl FnOnce(Lab) -> F + Send + 'static) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let outcome = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of one's own needs root");
        ip("link set lo up");
        let lab = Lab::new(name);
        let _cleanup = Cleanup(lab.dir.clone(), lab.cgroup.clone());
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test(lab));
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` in this thread's namespace.
pub(crate) fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("iproute2 is missing");
    assert!(status.success(), "ip {arguments}: {status}");
}

/// Where a test's guests live.
pub(crate) struct Lab {
    pub(crate) dir: PathBuf,
    pub(crate) sealer: Sealer,
    /// RAM of its guests.
    pub(crate) memory_kib: u64,
    cgroup: PathBuf,
    initrd: PathBuf,
}

impl Lab {
    fn new(name: &str) -> Self {
        let dir = env::temp_dir().join(format!("tl-qemu-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let initrd = dir.join("initrd");
        initrd::write(&initrd, &kernel().with_file_name("modules"));
        let cgroup = Path::new("throughline-test").join(format!("{}-{name}", std::process::id()));
        let sealer = Sealer::open(Path::new(env!("CARGO_BIN_EXE_throughline-seal"))).unwrap();
        Self { dir, sealer, memory_kib: 131_072, cgroup, initrd }
    }

    pub(crate) fn run_dir(&self, side: &str) -> RunDir {
        RunDir::new(self.dir.join(side))
    }

    /// A guest called `g` without network cards, its files under `side`; `extra` goes to the kernel's command line.
    pub(crate) fn plan(&self, side: &str, extra: &str, incoming: bool) -> Launch {
        Launch {
            name: guest_name(),
            run_dir: self.run_dir(side),
            vcpus: 1,
            memory_kib: self.memory_kib,
            boot: Boot {
                kernel: kernel().to_str().unwrap().to_owned(),
                initrd: self.initrd.to_str().unwrap().to_owned(),
                cmdline: format!("console=ttyS0 quiet panic=-1 {extra}"),
            },
            accelerator: Accelerator::Tcg,
            nics: Vec::new(),
            disks: Vec::new(),
            guest_agent: false,
            incoming,
        }
    }

    /// A running guest that has begun to count.
    pub(crate) async fn counting(&self, side: &str, extra: &str) -> Guest {
        let guest = self.launch(self.plan(side, extra, false)).await.expect("launch");
        ticks_past(&guest, 3).await;
        guest
    }

    /// Each side is a host of its own, but for the users, of which there are enough.
    pub(crate) fn confinement(&self, run_dir: &RunDir) -> Confinement {
        let group = self.cgroup.join(run_dir.path().file_name().unwrap());
        Confinement::new(&USERS.parse().unwrap(), &group).unwrap()
    }

    pub(crate) async fn launch(&self, plan: Launch) -> Result<Guest, HypervisorError> {
        let confinement = self.confinement(&plan.run_dir);
        Guest::launch(plan, &confinement).await
    }

    /// The guest that runs under `side`.
    pub(crate) async fn adopt(&self, name: &str, side: &str) -> Result<Option<Guest>, HypervisorError> {
        let run_dir = self.run_dir(side);
        Guest::adopt(name.parse().unwrap(), run_dir.clone(), &self.confinement(&run_dir)).await
    }

    /// A QEMU that waits for it, behind a door that is open, and the invitation.
    pub(crate) async fn listening(&self, side: &str) -> (Guest, Invitation) {
        let (guest, invitation, received) = self.receiving(side, Some(&self.sealer)).await;
        // What fails is to be seen, not to be waited for.
        tokio::spawn(async move { received.await.unwrap().expect("the stream arrives") });
        (guest, invitation)
    }

    /// The same, sealed or not, and how its stream arrives.
    pub(crate) async fn receiving(
        &self,
        side: &str,
        sealer: Option<&Sealer>,
    ) -> (Guest, Invitation, JoinHandle<Result<(), HypervisorError>>) {
        let guest = self.launch(self.plan(side, "", true)).await.expect("launch");
        let (awaited, invitation) = guest.listen(HOST, HOST, sealer).await.expect("listen");
        let receiver = guest.clone();
        (guest, invitation, tokio::spawn(async move { receiver.receive(awaited).await }))
    }

    /// Begins to send a guest's memory where it is invited.
    pub(crate) async fn send(
        &self,
        source: &Guest,
        invitation: &Invitation,
        bandwidth: u64,
        may_throttle: bool,
    ) -> Result<(), HypervisorError> {
        let stream = source.call(invitation, HOST, &self.sealer).await?;
        source.start_migration(stream, bandwidth, may_throttle).await
    }
}

pub(crate) fn guest_name() -> GuestName {
    "g".parse().unwrap()
}

/// A card for `port` whose tap and hold are devices called `tap<port>` and `hold<port>`.
pub(crate) fn nic(port: u32) -> (NicFds, [OwnedFd; 2]) {
    let nic = nic_over(port, vec![tap::open(&format!("tap{port}"), 0)]);
    let own = [nic.tap[0].try_clone().unwrap(), nic.hold.as_ref().unwrap().try_clone().unwrap()];
    (nic, own)
}

/// The same with several queues.
pub(crate) fn nic_with_queues(port: u32, queues: usize) -> NicFds {
    let tap = format!("tap{port}");
    nic_over(port, (0..queues).map(|_| tap::open(&tap, libc::IFF_MULTI_QUEUE)).collect())
}

fn nic_over(port: u32, tap: Vec<OwnedFd>) -> NicFds {
    NicFds {
        port: PortId::try_from(port).unwrap(),
        mac: "02:00:00:00:00:01".parse().unwrap(),
        mtu: Mtu::try_from(1450_u32).unwrap(),
        tap,
        hold: Some(tap::open(&format!("hold{port}"), 0)),
        lanes: Vec::new(),
    }
}

fn kernel() -> PathBuf {
    let cache = || {
        env::var_os("THROUGHLINE_CACHE")
            .map(PathBuf::from)
            .unwrap_or_else(|| PathBuf::from(env::var_os("HOME").expect("HOME")).join(".cache/throughline"))
            .join("guest/vmlinuz")
    };
    let kernel = env::var_os("THROUGHLINE_GUEST_KERNEL").map_or_else(cache, PathBuf::from);
    assert!(kernel.exists(), "no guest kernel at {}: run make setup", kernel.display());
    kernel
}

/// The number the guest came to on its serial line; `None` before the first.
pub(crate) fn ticks(guest: &Guest) -> Option<u64> {
    let log = fs::read(guest.run_dir().serial_log()).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    // The last line may be half written.
    let whole = &log[..log.rfind('\n').map_or(0, |end| end + 1)];
    whole.lines().rev().find_map(|line| line.trim().strip_prefix("tick ")?.parse().ok())
}

/// Waits until the guest has counted past `number`.
pub(crate) async fn ticks_past(guest: &Guest, number: u64) {
    let started = Instant::now();
    while ticks(guest).is_none_or(|tick| tick <= number) {
        assert!(started.elapsed() < PATIENCE, "the guest does not count past {number}: {:?}", ticks(guest));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The next event for which `wanted` holds; earlier ones go to `seen`.
pub(crate) async fn await_event(
    events: &mut broadcast::Receiver<GuestEvent>,
    seen: &mut Vec<GuestEvent>,
    wanted: impl Fn(&GuestEventKind) -> bool,
) -> GuestEvent {
    loop {
        let event = match timeout(PATIENCE, events.recv()).await {
            Ok(event) => event.expect("events"),
            Err(_) => panic!("awaited in vain; seen: {seen:#?}"),
        };
        seen.push(event.clone());
        if wanted(&event.kind) {
            return event;
        }
    }
}

/// Waits for a migration's status.
pub(crate) async fn await_status(events: &mut broadcast::Receiver<GuestEvent>, status: MigrationStatus) -> GuestEvent {
    await_event(events, &mut Vec::new(), |kind| *kind == GuestEventKind::Migration(status)).await
}

/// Ends what a failed test left: what runs in the lab's directory, the directory, and the lab's control groups.
struct Cleanup(PathBuf, PathBuf);

impl Drop for Cleanup {
    fn drop(&mut self) {
        for pid in running(&self.0) {
            let _ended = kill(pid, Signal::SIGKILL);
            let _reaped = nix::sys::wait::waitpid(pid, None);
        }
        for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(|root| Path::new(root).join(&self.1)) {
            remove_groups(&root);
            let _other_tests = fs::remove_dir(root.parent().unwrap());
        }
        if thread::panicking() {
            eprintln!("the guests' logs are in {}", self.0.display());
        } else {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }
}

/// Groups that are empty, the deepest first.
fn remove_groups(group: &Path) {
    let inside = fs::read_dir(group).into_iter().flatten().flatten().map(|entry| entry.path());
    inside.filter(|path| path.is_dir()).for_each(|path| remove_groups(&path));
    let _not_there = fs::remove_dir(group);
}

/// The live QEMUs that run in `dir`.
pub(crate) fn qemus(dir: &Path) -> Vec<Pid> {
    let is_qemu =
        |pid: &Pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("qemu-system"));
    running(dir).into_iter().filter(is_qemu).collect()
}

/// What seals the streams of the guest that runs in `dir`.
pub(crate) fn seals(dir: &Path) -> Vec<Pid> {
    let is_seal = |pid: &Pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "memory-seal\n");
    running(dir).into_iter().filter(is_seal).collect()
}

/// All that runs in `dir`: QEMUs, and what seals their streams.
fn running(dir: &Path) -> Vec<Pid> {
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok().map(Pid::from_raw))
        .filter(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir)))
        .collect()
}
