//! How fast a line empties, and what it takes of memory while it waits.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use throughline_loader::{Mode, Pump};

use crate::{
    report::Report,
    support::{
        crafted::{datagram, tcp_super_frame},
        eventually,
        netns::run,
        tap::{Tap, VNET_HEADER},
        topology::{Fabric, Host, Shape},
        whole_way::neighbour,
    },
};

const ROUNDS: usize = 5;
const FULL: usize = 64 << 20;
const SMALL: usize = 30_000;
const MTU: usize = 1_450;
const MIB: f64 = (1 << 20) as f64;

/// What waits.
struct Load {
    name: &'static str,
    frame: ([u8; VNET_HEADER], Vec<u8>),
    count: usize,
}

impl Load {
    fn all() -> [Self; 3] {
        let plain = |length: usize| ([0; VNET_HEADER], datagram(1, length - 42));
        let full = |frame: &([u8; VNET_HEADER], Vec<u8>)| FULL / frame.1.len();
        let (large, super_frame) = (plain(MTU + 14), tcp_super_frame(1, 60_000, 1_400));
        [
            Self { name: "30,000 frames of 100 bytes", frame: plain(100), count: SMALL },
            Self { name: "64 MiB of 1,464-byte frames", count: full(&large), frame: large },
            Self { name: "64 MiB of super-frames", count: full(&super_frame), frame: super_frame },
        ]
    }

    fn bytes(&self) -> f64 {
        (self.count * self.frame.1.len()) as f64
    }
}

pub(crate) fn measure(report: &mut Report) {
    report.part("hold");
    let fabric = Fabric::shaped(&Shape { tap_ring: 60_000, ..Shape::default() });
    let (source, destination) = (&fabric.source, &fabric.destination);
    for host in [source, destination] {
        // Or every frame would be flooded to the wire as well.
        host.netns.run(|| run("bridge", "fdb replace 02:00:00:00:00:10 dev guest0 master static"));
    }
    let carried = |host: &Host| host.release_to_carry();
    let gate = |host: &Host| {
        let pump = host.netns.run(|| Pump::at_gate(&host.port, vec![host.hold.dup()], host.tap.queues()).unwrap());
        pump.open_all();
        pump
    };
    // A gate that is up is where carried frames go past.
    destination.port.set_mode(Mode::Hold);
    for load in Load::all() {
        flushes(report, &load, "hold, carry, gate, tap", source, destination, carried);
    }
    for load in Load::all() {
        flushes(report, &load, "gate, tap", destination, destination, gate);
    }
}

fn flushes(report: &mut Report, load: &Load, way: &str, from: &Host, to: &Host, release: impl Fn(&Host) -> Pump) {
    let writer = neighbour(from);
    let (mut times, mut frames, mut bytes, mut memory) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let round = flush(load, &writer, from, to, &release);
        let seconds = round.time.as_secs_f64();
        times.push(seconds * 1e3);
        frames.push(load.count as f64 / seconds);
        bytes.push(load.bytes() / seconds / 1e9);
        memory.push(round.memory);
    }
    let name = |what: &str| format!("{way}: {}{what}", load.name);
    report.row(name(""), "ms to the guest", times);
    if load.count == SMALL {
        report.row(name(""), "frames/s", frames);
    } else {
        report.row(name(""), "GB/s", bytes);
    }
    report.row(name(", memory while they wait"), "MiB", memory);
}

struct Round {
    time: Duration,
    memory: f64,
}

fn flush(load: &Load, writer: &Tap, from: &Host, to: &Host, release: impl Fn(&Host) -> Pump) -> Round {
    from.port.set_mode(Mode::Hold);
    let available = memory_available();
    for _ in 0..load.count {
        writer.write(&load.frame.0, &load.frame.1);
    }
    eventually("all are held", || from.port.line() == load.count as i64);
    let memory = (available - memory_available()) / MIB;

    let guest = Reader::start(to, load.frame.1.len());
    let began = Instant::now();
    let pump = release(from);
    eventually("all have reached the guest", || guest.count.load(Relaxed) >= load.count as u64);
    let time = began.elapsed();
    let state = from.port.counters();
    assert_eq!((state.line, state.overflowed, pump.stop().lost), (0, 0, 0));
    assert_eq!(guest.stop(), load.count as u64, "each once");
    // The next round begins with the memory given back.
    std::thread::sleep(Duration::from_millis(50));
    Round { time, memory }
}

/// A guest that reads its tap without looking at what it reads.
struct Reader {
    count: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Reader {
    fn start(host: &Host, length: usize) -> Self {
        let (count, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let thread = std::thread::spawn({
            let (tap, count, stop) = (host.tap.dup(), Arc::clone(&count), Arc::clone(&stop));
            move || {
                let mut buffer = vec![0; 80 * 1024];
                while !stop.load(Relaxed) {
                    match nix::unistd::read(&tap, &mut buffer) {
                        Ok(read) => {
                            assert_eq!(read, VNET_HEADER + length, "whole");
                            count.fetch_add(1, Relaxed);
                        }
                        Err(_) => std::thread::sleep(Duration::from_micros(20)),
                    }
                }
            }
        });
        Self { count, stop, thread }
    }

    fn stop(self) -> u64 {
        self.stop.store(true, Relaxed);
        self.thread.join().unwrap();
        self.count.load(Relaxed)
    }
}

/// `MemAvailable`, bytes, and what each CPU keeps for itself of what was freed there.
fn memory_available() -> f64 {
    const PAGE: f64 = 4096.0;
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:")).expect("MemAvailable");
    let zones = std::fs::read_to_string("/proc/zoneinfo").unwrap();
    let kept = zones.lines().filter_map(|line| line.trim().strip_prefix("count:")?.trim().parse::<f64>().ok());
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() * 1024.0 + PAGE * kept.sum::<f64>()
}
