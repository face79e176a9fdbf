//! Two hosts and a peer that is wired to both: `old0` leads to the source, `new0` to the destination.
//!
//! ```text
//!            old0 ── up0 ┐ br0 ┌ guest0, hold0     source,      192.0.2.1
//!   peer                 └─────┘        carry0 ── und0
//!                                                  │
//!            new0 ── up0 ┐ br0 ┌        carry0 ── und0
//!                        └─────┘ guest0, hold0     destination, 192.0.2.2
//! ```

use std::{
    net::Ipv4Addr,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use throughline_abi::{MARKER_FRAME_LEN, MARKERS, MarkerPayload, marker_frame};
use throughline_loader::{
    ALL_MARKERS, AttachVia, Datapath, Direction, Exit, LandingConfig, Mode, Options, PortConfig, PortHandle, PortState,
    Pump, PumpOptions,
};

use super::{
    eventually,
    frames::{GUEST, MARKER, PEER, Sender, number_of, numbered, of_flow},
    netns::{Netns, ifindex, ip},
    tap::Tap,
};

pub(crate) const SOURCE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const DESTINATION: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub(crate) const CARRY_ID: u32 = 0x00c0_ffee;
/// The peer's number in this move.
pub(crate) const PEER_INDEX: u32 = 3;
/// Frames that a hold takes.
pub(crate) const DEPTH: u32 = 50_000;

/// Longer than anything that was sent is under way.
const SETTLE: Duration = Duration::from_millis(100);

/// What may differ from one test to the next.
#[derive(Clone)]
pub(crate) struct Shape {
    pub(crate) line_limit: u32,
    pub(crate) bytes_limit: u64,
    pub(crate) tap_ring: u32,
    pub(crate) tap_queues: usize,
    pub(crate) attach: AttachVia,
    /// Of the source.
    pub(crate) pin_dir: Option<PathBuf>,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            line_limit: DEPTH,
            bytes_limit: 1 << 30,
            tap_ring: 10_000,
            tap_queues: 1,
            attach: AttachVia::detect(),
            pin_dir: None,
        }
    }
}

impl Shape {
    pub(crate) fn options(&self) -> Options {
        Options { pin_dir: self.pin_dir.clone(), attach: Some(self.attach) }
    }
}

/// A host with one port on the move.
pub(crate) struct Host {
    pub(crate) netns: Netns,
    pub(crate) datapath: Datapath,
    pub(crate) port: PortHandle,
    pub(crate) tap: Tap,
    pub(crate) hold: Tap,
}

impl Host {
    fn new(netns: Netns, vtep: Ipv4Addr, remote: Ipv4Addr, options: &Options, shape: &Shape) -> Self {
        let (datapath, port, tap, hold) = netns.run(|| {
            ip("link add br0 type bridge mcast_snooping 0");
            ip("link set up0 master br0 up");
            ip(&format!("addr add {vtep}/24 dev und0"));
            ip("link set und0 up");
            ip("link add carry0 type vxlan external dstport 4790 nolearning");
            ip("link set carry0 up");
            let tap = Tap::with_queues("guest0", shape.tap_ring, shape.tap_queues);
            ip("link set guest0 master br0");
            ip("link set br0 up");
            let hold = Tap::hold("hold0", DEPTH);
            let datapath = Datapath::load_with(options).unwrap();
            datapath.attach_land(ifindex("carry0")).unwrap();
            let port = datapath
                .open_port(&PortConfig {
                    tap_ifindex: tap.ifindex,
                    hold_ifindex: hold.ifindex,
                    carry_ifindex: ifindex("carry0"),
                    carry_id: CARRY_ID,
                    remote_vtep: remote,
                    line_limit: shape.line_limit,
                    bytes_limit: shape.bytes_limit,
                    mode: Mode::Pass,
                    direction: Direction::Tap,
                })
                .unwrap();
            (datapath, port, tap, hold)
        });
        Self { netns, datapath, port, tap, hold }
    }

    /// As [`Pump::release`], from inside the host's namespace.
    pub(crate) fn release(&self, exit: Exit) -> Pump {
        self.netns.run(|| Pump::release(&self.port, vec![self.hold.dup()], exit, PumpOptions::default()).unwrap())
    }

    /// As [`PortHandle::close`], from inside the host's namespace.
    pub(crate) fn close(&self) -> PortState {
        self.netns.run(|| self.port.close().unwrap())
    }

    /// At the destination: opens the gate when the source's line is empty and all of the peer's markers are in.
    pub(crate) fn open_gate_after(&self, source: &Pump, carry_id: u32) -> Pump {
        eventually("the source's line is empty", || source.is_line_empty());
        eventually("all markers are in", || self.datapath.markers_seen(carry_id, PEER_INDEX).unwrap() == ALL_MARKERS);
        self.release_to_tap()
    }

    /// Into its own tap.
    pub(crate) fn release_to_tap(&self) -> Pump {
        self.release(Exit::Tap { tap: self.tap.queues() })
    }

    /// After the guest, what is in its ring first.
    pub(crate) fn release_to_carry(&self) -> Pump {
        self.release(Exit::Carry { drain: self.tap.queues() })
    }

    /// The guest runs: reads its tap until paused.
    pub(crate) fn run_guest(&self) -> Guest {
        Guest::run(self.tap.queues(), Duration::ZERO)
    }
}

/// All of it.
pub(crate) struct Fabric {
    pub(crate) peer: Netns,
    pub(crate) source: Host,
    pub(crate) destination: Host,
}

impl Fabric {
    pub(crate) fn new() -> Self {
        Self::shaped(&Shape::default())
    }

    pub(crate) fn shaped(shape: &Shape) -> Self {
        let (peer, source, destination) = (Netns::new(), Netns::new(), Netns::new());
        peer.run(|| {
            ip(&format!("link add old0 type veth peer name up0 netns {}", source.path()));
            ip(&format!("link add new0 type veth peer name up0 netns {}", destination.path()));
            ip("link set old0 up");
            ip("link set new0 up");
        });
        source.run(|| ip(&format!("link add und0 type veth peer name und0 netns {}", destination.path())));
        let source = Host::new(source, SOURCE, DESTINATION, &shape.options(), shape);
        let unpinned = Options { pin_dir: None, ..shape.options() };
        let destination = Host::new(destination, DESTINATION, SOURCE, &unpinned, shape);
        destination.datapath.open_landing(CARRY_ID, &destination.port, &landing(SOURCE, MARKER)).unwrap();
        let fabric = Self { peer, source, destination };
        fabric.wait_for("old0", &fabric.source);
        fabric.wait_for("new0", &fabric.destination);
        fabric
    }

    /// A link takes its time to be up: sends until a frame gets through to the tap, and takes it out again.
    fn wait_for(&self, interface: &str, host: &Host) {
        let sender = self.peer.run(|| Sender::new(interface));
        eventually("the path is up", || {
            sender.send(&numbered(GUEST, 0));
            host.port.counters().passed > 0
        });
        std::thread::sleep(SETTLE);
        for queue in host.tap.queues().into_iter().map(Tap::from_fd) {
            while queue.read().is_some() {}
        }
    }

    /// The peer sends numbered frames down the old path, `rate` a second.
    pub(crate) fn traffic(&self, rate: u32) -> Traffic {
        let (old, new) = self.peer.run(|| (Sender::new("old0"), Sender::new("new0")));
        Traffic::start(old, new, rate, |number| numbered(GUEST, number))
    }

    /// The same of several flows, which take turns.
    pub(crate) fn flows(&self, rate: u32, flows: u16) -> Traffic {
        let (old, new) = self.peer.run(|| (Sender::new("old0"), Sender::new("new0")));
        Traffic::start(old, new, rate, move |number| of_flow((number % u64::from(flows)) as u16, number))
    }

    /// Sends `numbers` down the old path, as fast as they go.
    pub(crate) fn send(&self, numbers: std::ops::Range<u64>) {
        let old = self.peer.run(|| Sender::new("old0"));
        for number in numbers {
            old.send(&numbered(GUEST, number));
        }
    }
}

/// Numbered frames at a rate.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    flip: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Traffic {
    fn start(old: Sender, new: Sender, rate: u32, frame: impl Fn(u64) -> Vec<u8> + Send + 'static) -> Self {
        let (stop, flip) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let (stop, flip) = (Arc::clone(&stop), Arc::clone(&flip));
            move || {
                let began = Instant::now();
                let mut sent = 0;
                let mut flipped = false;
                while !stop.load(SeqCst) {
                    if !flipped && flip.load(SeqCst) {
                        flipped = true;
                        send_markers(&old);
                    }
                    let due = (began.elapsed().as_secs_f64() * f64::from(rate)) as u64;
                    for number in sent..due {
                        if flipped { &new } else { &old }.send(&frame(number));
                    }
                    sent = due.max(sent);
                    std::thread::sleep(Duration::from_micros(300));
                }
                sent
            }
        });
        Self { stop, flip, thread }
    }

    /// As when the peer's entries are replaced: markers down the old path, everything after them down the new one.
    pub(crate) fn flip(&self) {
        self.flip.store(true, SeqCst);
    }

    /// Frames sent in all.
    pub(crate) fn stop(self) -> u64 {
        self.stop.store(true, SeqCst);
        self.thread.join().unwrap()
    }
}

/// Tags of a peer's markers, for landings of one peer and of several. Theirs are not these tests' to make; all that counts
/// here is that they differ.
pub(crate) fn tags(peer: u32) -> [u64; MARKERS as usize] {
    std::array::from_fn(|sequence| 0x7a65_0000_0000_0000 | u64::from(peer) << 32 | sequence as u64)
}

/// A landing that awaits [`PEER_INDEX`].
pub(crate) fn landing(source_vtep: Ipv4Addr, marker_mac: [u8; 6]) -> LandingConfig {
    LandingConfig { source_vtep, marker_mac, peers: vec![(PEER_INDEX, tags(PEER_INDEX))] }
}

/// All markers of one peer, as frames to `marker_mac`.
pub(crate) fn markers(marker_mac: [u8; 6], peer: u32) -> impl Iterator<Item = [u8; MARKER_FRAME_LEN]> {
    tags(peer).into_iter().zip(0..).map(move |(tag, sequence)| {
        let payload = MarkerPayload::new(peer as u16, sequence, tag);
        marker_frame(marker_mac, PEER, [10, 9, 0, 1], [10, 9, 0, 2], payload)
    })
}

/// Sends all of them.
pub(crate) fn send_markers(sender: &Sender) {
    markers(MARKER, PEER_INDEX).for_each(|frame| sender.send(&frame));
}

/// A guest that does nothing but read its tap.
pub(crate) struct Guest {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<u64>>,
}

impl Guest {
    /// Reads its queues in turn; `pause` after every frame makes it a slow one.
    pub(crate) fn run(queues: Vec<OwnedFd>, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let queues: Vec<_> = queues.into_iter().map(Tap::from_fd).collect();
                let mut seen = Vec::new();
                while !stop.load(SeqCst) {
                    let before = seen.len();
                    let frames = queues.iter().filter_map(Tap::read);
                    seen.extend(
                        frames.map(|frame| number_of(&frame).unwrap_or_else(|| panic!("not ours: {frame:02x?}"))),
                    );
                    let taken = seen.len() - before;
                    if taken == 0 {
                        std::thread::sleep(Duration::from_micros(100));
                    }
                    std::thread::sleep(pause * taken as u32);
                }
                seen
            }
        });
        Self { stop, thread }
    }

    /// Stops reading; the numbers seen. What is in the ring stays there.
    pub(crate) fn pause(self) -> Vec<u64> {
        self.stop.store(true, SeqCst);
        self.thread.join().unwrap()
    }

    /// Lets what is under way arrive, then as [`Guest::pause`].
    pub(crate) fn finish(self) -> Vec<u64> {
        std::thread::sleep(SETTLE);
        self.pause()
    }
}

/// Nothing lost, nothing twice, nothing out of order.
#[track_caller]
pub(crate) fn assert_exact(seen: &[u64], sent: u64) {
    assert_exact_flows(seen, sent, 1);
}

/// The same of frames of [`Fabric::flows`], the order being that of each flow.
#[track_caller]
pub(crate) fn assert_exact_flows(seen: &[u64], sent: u64, flows: u16) {
    let mut sorted = seen.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let lost = sent - sorted.len() as u64;
    let duplicated = seen.len() - sorted.len();
    let reordered: usize = (0..u64::from(flows))
        .map(|flow| {
            let of_flow: Vec<_> = seen.iter().filter(|number| **number % u64::from(flows) == flow).collect();
            of_flow.windows(2).filter(|pair| pair[1] < pair[0]).count()
        })
        .sum();
    let missing: Vec<u64> = (0..sent).filter(|number| sorted.binary_search(number).is_err()).take(10).collect();
    assert_eq!(
        (lost, duplicated, reordered),
        (0, 0, 0),
        "(lost, duplicated, reordered) of {sent}; first missing: {missing:?}"
    );
}
