//! The peer's probes, which trust nobody, around whatever a test does to the lab.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use serde::de::DeserializeOwned;
use throughline_probe::disk::Status;
use throughline_probe::observe::{Sighting, Sightings};
use throughline_probe::peer::Report;

use crate::lab::{GUEST, GUEST_ADDRESS, GUEST_MAC, Lab, wait_for};

/// Packets a second, each way: many enough that no hand-over falls between two of them.
const PPS: &str = "1000";
/// How long the guest may take to boot and answer.
const BOOT: Duration = Duration::from_secs(60);
/// How long the guest may take to read its disks back.
const READ_BACK: Duration = Duration::from_secs(180);
/// How long a probe may take to answer.
const ANSWER: Duration = Duration::from_secs(20);
/// What has not arrived this long after the window's last packet is lost.
const DRAIN: Duration = Duration::from_millis(1500);
const NO_ANSWER: &str = "a probe does not answer (its last words are above)";
/// Where the guest may be, and its taps are watched.
const HYPERVISORS: [&str; 2] = ["h1", "h2"];

/// A probing session; its windows follow each other without a gap.
pub(crate) struct Probe {
    peer: Program,
    observers: [Program; 2],
    mark: String,
}

impl Probe {
    /// Starts probing when the guest answers; the first window begins.
    pub(crate) fn start(lab: &Lab) -> Self {
        let observe = ["throughline-probe", "observe", "--mac", GUEST_MAC, "--guest", GUEST_ADDRESS];
        let observers = HYPERVISORS.map(|host| Program::start(lab.on(host, &observe)));
        let probe = ["throughline-probe", "peer", "--guest", GUEST_ADDRESS, "--pps", PPS];
        let mut peer = Program::start(lab.on("peer", &probe));
        let mark = peer.ask("mark");
        Self { peer, observers, mark }
    }

    /// Waits until the guest has read back every block of its disks since now; all must be what it wrote, and nothing it was told is
    /// written may be missing.
    pub(crate) fn assert_disks_read_back(&mut self) {
        let began = self.disks();
        let goals: Vec<_> = began.iter().map(|disk| disk.verified + 2 * disk.blocks).collect();
        assert!(!goals.is_empty(), "the guest has no disks that it writes");
        wait_for("the guest has read its disks back", READ_BACK, || {
            let disks = self.disks();
            let bad: Vec<_> = disks.iter().filter(|disk| disk.wrong + disk.missing + disk.failed > 0).collect();
            assert!(bad.is_empty(), "{bad:?}");
            disks.iter().zip(&goals).all(|(disk, goal)| disk.verified >= *goal && disk.written > 0).then_some(())
        });
    }

    /// How its disks are doing, as the guest says.
    pub(crate) fn disks(&mut self) -> Vec<Status> {
        let (from, to) = (self.peer.ask("mark"), self.peer.ask("mark"));
        parse::<Report>(&self.peer.ask(&format!("report {from} {to}"))).disks
    }

    /// A mark; a guest that does not answer shows itself before the test fails: whether frames came to it, and its console.
    fn mark_or_show(&mut self, lab: &Lab) -> String {
        self.peer.try_ask("mark").unwrap_or_else(|error| {
            for (host, observer) in HYPERVISORS.iter().zip(&mut self.observers) {
                let frames = parse::<Sightings>(&observer.ask("take")).frames;
                let (count, last) = (frames.len(), frames.last().map(|frame| frame.at_ns));
                eprintln!(
                    "--- {host}: {count} packets were put on the guest's tap, the last at {last:?}; its console:"
                );
                eprintln!("{}", lab.console(host));
            }
            panic!("the guest does not answer: {error}; the newest migration: {:#}", newest_migration(lab))
        })
    }

    /// Ends a window and begins the next. Every packet sent in it must have arrived once and in order, no connection may have
    /// broken, and the guest's memory must be what it wrote.
    #[track_caller]
    pub(crate) fn assert_unnoticed(&mut self, lab: &Lab, what: &str) {
        let end = self.mark_or_show(lab);
        thread::sleep(DRAIN);
        let report: Report = parse(&self.peer.ask(&format!("report {} {end}", self.mark)));
        self.mark = end;
        let taps = [0, 1].map(|host| parse::<Sightings>(&self.observers[host].ask("take")).frames);
        let broken = broken(&report);
        if !broken.is_empty() {
            let traces: Vec<_> = report.to_guest.lost_numbers.iter().map(|lost| trace(*lost, &taps)).collect();
            panic!(
                "the network noticed that {what}: {}\n{}\nthe newest migration: {:#}",
                broken.join(", "),
                traces.join("\n"),
                newest_migration(lab)
            );
        }
    }
}

fn newest_migration(lab: &Lab) -> serde_json::Value {
    let mut list = lab.throughline(&["migration", "list", "--guest", GUEST]).done();
    list["migrations"].get_mut(0).map(serde_json::Value::take).unwrap_or_default()
}

/// A probe as a program: a question is a line to its standard input, an answer a line of JSON.
struct Program {
    child: Child,
    questions: ChildStdin,
    answers: Receiver<String>,
}

impl Program {
    /// Starts it and waits until it is ready: until the guest answers, if that is what it waits for.
    fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (questions, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (answer, answers) = channel();
        thread::spawn(move || BufReader::new(output).lines().map_while(Result::ok).try_for_each(|it| answer.send(it)));
        let program = Self { child, questions, answers };
        let first = program.answers.recv_timeout(BOOT).unwrap_or_else(|error| panic!("{NO_ANSWER}: {error}"));
        assert_eq!(first, r#""ready""#, "a probe began with something else");
        program
    }

    fn ask(&mut self, question: &str) -> String {
        self.try_ask(question).unwrap_or_else(|error| panic!("{NO_ANSWER}: {error}"))
    }

    fn try_ask(&mut self, question: &str) -> Result<String, RecvTimeoutError> {
        writeln!(self.questions, "{question}").expect("the probe has ended; its last words are above");
        self.answers.recv_timeout(ANSWER)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Both only fail if it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn parse<T: DeserializeOwned>(answer: &str) -> T {
    serde_json::from_str(answer).unwrap_or_else(|error| panic!("a probe answered {answer:?}: {error}"))
}

/// When a lost packet was put on each host's tap, in nanoseconds as a migration's report has them.
fn trace(sequence: u64, taps: &[Vec<Sighting>; 2]) -> String {
    let on = |tap: &[Sighting]| -> Vec<u64> {
        tap.iter().filter(|frame| frame.sequence == sequence).map(|frame| frame.at_ns).collect()
    };
    format!("packet {sequence} was put on the tap of h1 at {:?}, of h2 at {:?}", on(&taps[0]), on(&taps[1]))
}

/// What went wrong in a window, in words.
fn broken(report: &Report) -> Vec<String> {
    let Report { to_guest, echoes, from_guest, ping, memory, stream, disks, .. } = report;
    let flows = [("to the guest", to_guest), ("echoed", echoes), ("from the guest", from_guest), ("pings", ping)];
    let mut broken = Vec::new();
    for (name, flow) in flows {
        if flow.sent == 0 || flow.lost + flow.duplicated + flow.reordered > 0 {
            broken.push(format!(
                "{name}: {} sent, {} lost {:?}, {} duplicated, {} reordered",
                flow.sent, flow.lost, flow.lost_numbers, flow.duplicated, flow.reordered
            ));
        }
    }
    if stream.sent == 0 || stream.resets + stream.corrupted + stream.undelivered > 0 {
        broken.push(format!("TCP stream: {stream:?}"));
    }
    for disk in disks.iter().filter(|disk| disk.wrong + disk.missing + disk.failed > 0) {
        broken.push(format!("guest disk: {disk:?}"));
    }
    if memory.corrupted > 0 || memory.rewritten == 0 {
        broken.push(format!("guest memory: {memory:?}"));
    }
    broken
}
