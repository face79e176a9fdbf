//! Golden transcripts: events in, effects out. Bless changes with `INSTA_UPDATE=always cargo test -p throughline-cutover`.

use std::{fmt::Write as _, time::Duration};

use throughline_cutover::{
    Destination, DestinationEvent as D, Failure, GatePeer, Generation, Limits, Machine, Progress, Source,
    SourceEvent as S,
};

const GENERATION: Generation = Generation(4);

fn transcript<M: Machine>(mut machine: M, phase: fn(&M) -> String, events: &[(u64, M::Event)]) -> String
where
    M::Event: Clone,
{
    let mut transcript = String::new();
    for (ms, event) in events {
        let effects = machine.step(event.clone(), Duration::from_millis(*ms));
        writeln!(transcript, "{ms:>6} ms  {event:?}").expect("to a string");
        for effect in effects {
            writeln!(transcript, "           → {effect:?}").expect("to a string");
        }
        writeln!(transcript, "           = {}", phase(&machine)).expect("to a string");
    }
    transcript
}

fn source(events: &[(u64, S)]) -> String {
    transcript(Source::new(GENERATION, Limits::default()), |machine| format!("{:?}", machine.phase()), events)
}

fn destination(events: &[(u64, D)]) -> String {
    let machine = Destination::new(GENERATION, Limits::default(), [FIRST, SECOND].into());
    transcript(machine, |machine| format!("{:?}", machine.phase()), events)
}

/// Peers the gate waits for.
const FIRST: GatePeer = GatePeer { port: 0, peer: 0 };
const SECOND: GatePeer = GatePeer { port: 0, peer: 1 };

fn uri() -> String {
    "tcp:192.0.2.2:49152".into()
}

fn lost(what: &str) -> Failure {
    Failure::new("TEST", what)
}

fn progress(passes: u32, left_mib: u64, rate_mib: u64, expected_pause_us: u64) -> S {
    S::Progress(Progress {
        passes,
        remaining: left_mib << 20,
        rate: rate_mib << 20,
        expected_pause_us,
        ..Progress::default()
    })
}

/// Braked; armed at the end of a slot.
fn until_armed() -> Vec<(u64, S)> {
    vec![
        (0, S::Begin),
        (20, S::Ready),
        (30, S::PeerPrepared { uri: uri() }),
        (400, progress(1, 90, 600, 150_000)),
        (500, progress(1, 30, 600, 50_000)),
        (502, S::GiveUpRecorded),
        (504, progress(1, 29, 600, 49_000)),
        (700, progress(1, 28, 0, 40_000)),
        (792, progress(1, 28, 0, 40_000)),
        (793, S::Armed),
    ]
}

fn until_given_up() -> Vec<(u64, S)> {
    let mut events = until_armed();
    events.extend([
        (803, progress(1, 2, 0, 3_900)),
        (809, progress(2, 1, 0, 1_900)),
        (811, S::Stopped),
        (812, S::PreSwitchover),
    ]);
    events
}

#[test]
fn source_moves_a_guest() {
    let mut events = until_given_up();
    events.extend([
        (916, S::PeerCommitted { generation: GENERATION.next() }),
        (919, S::LineEmpty),
        (925, S::SettleOrdered),
        (1025, S::Quiet),
        (1060, S::Removed),
    ]);
    insta::assert_snapshot!(source(&events));
}

#[test]
fn source_whose_qemu_stops_by_itself() {
    insta::assert_snapshot!(source(&[
        (0, S::Begin),
        (20, S::PeerPrepared { uri: uri() }),
        (30, S::Ready),
        (100, S::Stopped),
        (101, S::PreSwitchover),
        (103, S::Retreated),
        (104, progress(1, 0, 0, 0)),
        (250, S::PeerPrepared { uri: uri() }),
        (600, progress(1, 60, 600, 100_000)),
    ]));
}

#[test]
fn source_of_a_busy_guest() {
    insta::assert_snapshot!(source(&[
        (0, S::Begin),
        (20, S::Ready),
        (30, S::PeerPrepared { uri: uri() }),
        (900, progress(2, 90, 600, 150_000)),
        (1_300, progress(3, 90, 600, 150_000)),
        (1_302, S::GiveUpRecorded),
        (1_303, S::Armed),
        (1_304, S::Stopped),
    ]));
}

#[test]
fn source_whose_qemu_is_quicker_than_the_last_pass() {
    let mut events = until_armed();
    events.extend([
        (903, S::Stopped),
        (904, S::PreSwitchover),
        (908, S::PeerCommitted { generation: GENERATION.next() }),
    ]);
    insta::assert_snapshot!(source(&events));
}

#[test]
fn source_whose_qemu_always_stops_too_soon() {
    let mut events = vec![(0, S::Begin), (20, S::Ready), (30, S::PeerPrepared { uri: uri() })];
    for attempt in 1..=4 {
        events.push((attempt * 1_000, S::Stopped));
        if attempt < 4 {
            events.push((attempt * 1_000 + 2, S::PeerPrepared { uri: uri() }));
            events.push((attempt * 1_000 + 3, S::Retreated));
        }
    }
    events.push((4_010, S::Undone));
    insta::assert_snapshot!(source(&events));
}

#[test]
fn source_whose_first_flight_does_not_get_there() {
    let left = |mib: u64| Progress { passes: 1, remaining: mib << 20, ..Progress::default() };
    let mut events = until_armed();
    events.extend([
        (801, progress(1, 26, 0, 38_000)),
        (823, S::Tick),
        (824, S::HeldBack(left(9))),
        (825, S::Disarmed),
        (900, progress(1, 8, 0, 9_000)),
        (991, progress(1, 8, 0, 9_000)),
        (992, S::Armed),
        (1_001, progress(1, 6, 0, 7_000)),
        (1_012, progress(2, 1, 0, 1_900)),
        (1_013, S::Stopped),
    ]);
    insta::assert_snapshot!(source(&events));
}

#[test]
fn source_whose_qemu_ends_as_it_is_held_back() {
    let mut events = until_armed();
    events.extend([
        (801, progress(1, 26, 0, 38_000)),
        (823, S::Tick),
        (824, S::HeldBack(Progress { passes: 1, ..Progress::default() })),
        (825, S::Stopped),
        (826, S::PreSwitchover),
    ]);
    insta::assert_snapshot!(source(&events));
}

#[test]
fn source_cancelled_in_precopy() {
    insta::assert_snapshot!(source(&[
        (0, S::Begin),
        (20, S::Ready),
        (30, S::PeerPrepared { uri: uri() }),
        (400, S::Abort(lost("operator"))),
        (410, S::Undone),
    ]));
}

#[test]
fn source_that_loses_the_destination_before_it_was_told() {
    let mut events = until_given_up();
    events.truncate(5);
    events.extend([(501, S::PeerLost), (912, S::Undone)]);
    insta::assert_snapshot!(source(&events));
}

#[test]
fn source_that_loses_the_destination_after_giving_up() {
    let mut events = until_given_up();
    events.extend([
        (920, S::PeerLost),
        (1000, S::Tick),
        (1500, S::Tick),
        (1510, S::PeerDeclined(lost("restarted, never committed"))),
        (1520, S::Undone),
    ]);
    insta::assert_snapshot!(source(&events));
}

#[test]
fn source_cancelled_while_paused() {
    let mut events = until_given_up();
    events.extend([(913, S::Abort(lost("operator"))), (914, S::PeerDeclined(lost("operator"))), (918, S::Undone)]);
    insta::assert_snapshot!(source(&events));
}

#[test]
fn source_restarted_after_giving_up() {
    let mut machine = Source::given_up_before(GENERATION, Limits::default());
    let asked = machine.step(S::Begin, Duration::ZERO);
    let carried = machine.step(S::PeerCommitted { generation: GENERATION.next() }, Duration::from_millis(3));
    insta::assert_snapshot!(format!("{asked:?}\n{carried:?}"));
}

#[test]
fn source_past_its_deadline() {
    insta::assert_snapshot!(source(&[(0, S::Begin), (20, S::Ready), (300_000, S::Tick), (300_010, S::Undone)]));
}

fn until_received() -> Vec<(u64, D)> {
    vec![
        (0, D::Announced),
        (5, D::SourceCalled),
        (60, D::Ready { uri: uri() }),
        (904, D::SourceGaveUp { generation: GENERATION }),
        (905, D::MemoryIn),
    ]
}

#[test]
fn destination_takes_a_guest() {
    let mut events = until_received();
    events.extend([
        (906, D::CommitRecorded),
        (907, D::Running),
        (909, D::LineEmpty),
        (911, D::MarkersIn(FIRST)),
        (912, D::MarkersIn(SECOND)),
        (913, D::Sealed),
        (915, D::SettleOrdered),
        (930, D::Closed),
    ]);
    insta::assert_snapshot!(destination(&events));
}

#[test]
fn destination_whose_peers_flip_before_the_line_is_empty() {
    let stranger = GatePeer { port: 1, peer: 0 };
    let mut events = until_received();
    events.extend([
        (906, D::CommitRecorded),
        (907, D::Running),
        (908, D::MarkersIn(SECOND)),
        (909, D::MarkersIn(stranger)),
        (911, D::LineEmpty),
        (912, D::MarkersIn(SECOND)),
        (913, D::MarkersIn(FIRST)),
        (914, D::Sealed),
    ]);
    insta::assert_snapshot!(destination(&events));
}

#[test]
fn destination_with_a_silent_peer() {
    let mut events = until_received();
    events.extend([
        (906, D::CommitRecorded),
        (907, D::Running),
        (909, D::LineEmpty),
        (915, D::MarkersIn(FIRST)),
        (1008, D::Tick),
        (1009, D::Tick),
    ]);
    insta::assert_snapshot!(destination(&events));
}

#[test]
fn destination_whose_source_goes_away() {
    let mut events = until_received();
    events.truncate(3);
    events.extend([(500, D::SourceLost), (501, D::DeclineRecorded), (520, D::Undone)]);
    insta::assert_snapshot!(destination(&events));
}

#[test]
fn destination_whose_source_begins_again() {
    let mut events = until_received();
    events.truncate(3);
    events.extend([
        (500, D::MemoryFailed(lost("QEMU ended"))),
        (501, D::SourceBeganAgain),
        (502, D::MemoryFailed(lost("late news of the old QEMU"))),
        (650, D::Ready { uri: uri() }),
        (700, D::SourceBeganAgain),
        (850, D::Ready { uri: uri() }),
        (904, D::SourceGaveUp { generation: GENERATION }),
        (905, D::MemoryIn),
    ]);
    insta::assert_snapshot!(destination(&events));
}

#[test]
fn destination_whose_memory_stops_coming() {
    let mut events = until_received();
    events.truncate(3);
    events.extend([
        (500, D::MemoryFailed(lost("QEMU ended"))),
        (700, D::Tick),
        (1_000, D::Tick),
        (1_001, D::DeclineRecorded),
        (1_020, D::Undone),
    ]);
    insta::assert_snapshot!(destination(&events));
}

#[test]
fn destination_asked_before_it_has_everything() {
    let mut events = until_received();
    events.truncate(4);
    events.extend([(1500, D::Asked), (1501, D::DeclineRecorded), (1502, D::MemoryIn), (1520, D::Undone)]);
    insta::assert_snapshot!(destination(&events));
}

#[test]
fn destination_given_a_stale_generation() {
    let mut events = until_received();
    events.truncate(3);
    events.push((900, D::SourceGaveUp { generation: Generation(3) }));
    insta::assert_snapshot!(destination(&events));
}
