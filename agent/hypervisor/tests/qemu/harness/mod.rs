//! Real QEMUs in a network namespace of their own, taken down whatever happens.

mod initrd;
mod tap;

use std::{
    env, fs,
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
use throughline_hypervisor::{Accelerator, Guest, GuestEvent, GuestEventKind, Launch, MigrationStatus, NicFds, RunDir};
use tokio::{sync::broadcast, time::timeout};

pub(crate) use tap::{inject, name_of, read_frames};

/// Translated guests share two cores: one test at a time keeps their pauses meaningful.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
/// How long anything may take in a test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Runs `test` in its own thread, network namespace and runtime.
pub(crate) fn in_lab<F: Future<Output = ()>>(name: &'static str, test: impl FnOnce(Lab) -> F + Send + 'static) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let outcome = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of one's own needs root");
        ip("link set lo up");
        let lab = Lab::new(name);
        let _cleanup = Cleanup(lab.dir.clone());
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
    initrd: PathBuf,
}

impl Lab {
    fn new(name: &str) -> Self {
        let dir = env::temp_dir().join(format!("tl-qemu-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let initrd = dir.join("initrd");
        initrd::write(&initrd);
        Self { dir, initrd }
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
            memory_kib: 131_072,
            boot: Boot {
                kernel: kernel().to_str().unwrap().to_owned(),
                initrd: self.initrd.to_str().unwrap().to_owned(),
                cmdline: format!("console=ttyS0 quiet panic=-1 {extra}"),
            },
            accelerator: Accelerator::Tcg,
            nics: Vec::new(),
            incoming,
        }
    }

    /// A running guest that has begun to count.
    pub(crate) async fn counting(&self, side: &str, extra: &str) -> Guest {
        let guest = Guest::launch(self.plan(side, extra, false)).await.expect("launch");
        ticks_past(&guest, 3).await;
        guest
    }

    /// A QEMU that waits for it, and where.
    pub(crate) async fn listening(&self, side: &str) -> (Guest, String) {
        let guest = Guest::launch(self.plan(side, "", true)).await.expect("launch");
        let uri = guest.listen([127, 0, 0, 1].into()).await.expect("listen");
        (guest, uri)
    }
}

pub(crate) fn guest_name() -> GuestName {
    "g".parse().unwrap()
}

/// A card for `port` whose tap and hold are devices called `tap<port>` and `hold<port>`.
pub(crate) fn nic(port: u32) -> (NicFds, [OwnedFd; 2]) {
    let nic = nic_over(port, vec![tap::open(&format!("tap{port}"), 0)]);
    let own = [nic.tap[0].try_clone().unwrap(), nic.hold.try_clone().unwrap()];
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
        hold: tap::open(&format!("hold{port}"), 0),
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

/// Ends what a failed test left: the QEMUs whose command line names the lab's directory, and the directory.
struct Cleanup(PathBuf);

impl Drop for Cleanup {
    fn drop(&mut self) {
        for pid in qemus(&self.0) {
            let _ended = kill(pid, Signal::SIGKILL);
            let _reaped = nix::sys::wait::waitpid(pid, None);
        }
        if thread::panicking() {
            eprintln!("the guests' logs are in {}", self.0.display());
        } else {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }
}

/// The live QEMUs whose command line names `dir`.
pub(crate) fn qemus(dir: &Path) -> Vec<Pid> {
    let names_dir = |cmdline: &[u8]| {
        let text = String::from_utf8_lossy(cmdline);
        text.starts_with("qemu-system") && text.contains(dir.to_str().unwrap())
    };
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok().map(Pid::from_raw))
        .filter(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|cmdline| names_dir(&cmdline)))
        .collect()
}
