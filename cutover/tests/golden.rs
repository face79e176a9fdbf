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

/// QEMU's rate tells one slot from another.
fn progress(passes: u32, rate_mib: u64, expected_pause_us: u64) -> S {
    S::Progress(Progress { passes, rate: rate_mib << 20, expected_pause_us, ..Progress::default() })
}

/// Near, braked; armed at the end of a slot.
fn until_armed() -> Vec<(u64, S)> {
    vec![
        (0, S::Begin),
        (20, S::Ready),
        (30, S::PeerPrepared { uri: uri() }),
        (400, progress(1, 600, 150_000)),
        (498, progress(2, 600, 8_000)),
        (500, progress(3, 300, 900)),
        (504, S::GiveUpRecorded),
        (506, progress(4, 300, 1_700)),
        (591, S::Tick),
        (592, S::Armed),
    ]
}

fn until_given_up() -> Vec<(u64, S)> {
    let mut events = until_armed();
    events.extend([(594, progress(4, 300, 1_700)), (601, S::Stopped), (602, S::PreSwitchover)]);
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
fn source_whose_guest_is_stopped_too_soon() {
    let mut events = until_armed();
    events.truncate(7);
    events.extend([(505, S::Stopped), (506, S::PreSwitchover), (507, S::Undone)]);
    insta::assert_snapshot!(source(&events));
}

#[test]
fn source_of_a_busy_guest() {
    insta::assert_snapshot!(source(&[
        (0, S::Begin),
        (20, S::Ready),
        (30, S::PeerPrepared { uri: uri() }),
        (900, progress(2, 600, 150_000)),
        (1_300, progress(3, 600, 150_000)),
        (1_330, progress(3, 600, 150_000)),
        (1_332, S::GiveUpRecorded),
        (1_400, progress(3, 600, 150_000)),
        (1_749, progress(4, 600, 150_000)),
        (1_751, progress(4, 600, 150_000)),
        (1_752, S::Armed),
        (1_830, S::Stopped),
    ]));
}

#[test]
fn source_whose_last_word_comes_before_its_stop() {
    let mut events = until_armed();
    events.extend([
        (603, S::PreSwitchover),
        (604, S::Stopped),
        (608, S::PeerCommitted { generation: GENERATION.next() }),
    ]);
    insta::assert_snapshot!(source(&events));
}

#[test]
fn source_whose_qemu_does_not_stop() {
    let mut events = until_armed();
    events.extend([(700, S::Tick), (2_600, S::Tick), (2_610, S::Undone)]);
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
    events.truncate(until_armed().len() + 2);
    events.extend([(602, S::PeerLost), (612, S::Undone)]);
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

/// Nobody would try again once the move has ended.
#[test]
fn destination_that_is_to_settle_before_its_guest_runs() {
    let mut events = until_received();
    events.extend([
        (906, D::CommitRecorded),
        (907, D::RunFailed),
        (909, D::LineEmpty),
        (911, D::MarkersIn(FIRST)),
        (912, D::MarkersIn(SECOND)),
        (913, D::Sealed),
        (915, D::SettleOrdered),
        (1007, D::Tick),
        (1008, D::Running),
        (1030, D::Closed),
    ]);
    insta::assert_snapshot!(destination(&events));
}

/// Neither the guest nor the source's word comes any more, and the move ends all the same.
#[test]
fn destination_whose_guest_ends_before_it_runs() {
    let mut events = until_received();
    events.extend([
        (906, D::CommitRecorded),
        (907, D::MemoryFailed(lost("QEMU ended"))),
        (908, D::RunFailed),
        (910, D::SettleOrdered),
        (2907, D::Tick),
        (2908, D::Sealed),
        (2920, D::Closed),
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
fn destination_whose_memory_stops_coming() {
    let mut events = until_received();
    events.truncate(3);
    events.extend([(500, D::MemoryFailed(lost("QEMU ended"))), (501, D::DeclineRecorded), (520, D::Undone)]);
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
