//! Golden transcripts: events in, effects out. Bless changes with `INSTA_UPDATE=always cargo test -p throughline-cutover`.

use std::{fmt::Write as _, time::Duration};

use throughline_cutover::{
    Destination, DestinationEvent as D, Failure, GatePeer, Generation, Limits, Machine, OnStall, Progress, Source,
    SourceEffect, SourceEvent as S, SourceReport,
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
        (30, S::PeerPrepared),
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

fn source_with_disks(events: &[(u64, S)]) -> String {
    let machine = Source::new(GENERATION, Limits::default()).with_disks(true);
    transcript(machine, |machine| format!("{:?}", machine.phase()), events)
}

/// Disks first; then as without.
fn until_mirrors_end() -> Vec<(u64, S)> {
    let disks = [
        (100, S::DiskProgress { copied: 1 << 20, total: 4 << 20 }),
        (200, S::DiskProgress { copied: 3 << 20, total: 4 << 20 }),
        (300, S::DisksMirrored),
    ];
    let mut events = until_given_up();
    events.splice(3..3, disks);
    events
}

#[test]
fn source_moves_a_guest_with_disks() {
    let mut events = until_mirrors_end();
    events.extend([
        (603, S::PreSwitchover),
        (606, S::MirrorsEnded),
        (916, S::PeerCommitted { generation: GENERATION.next() }),
        (919, S::LineEmpty),
        (925, S::SettleOrdered),
        (1025, S::Quiet),
        (1060, S::Removed),
    ]);
    insta::assert_snapshot!(source_with_disks(&events));
}

/// QEMU may be where it waits before its stop is heard of.
#[test]
fn source_with_disks_whose_last_word_comes_before_its_stop() {
    let mut events = until_mirrors_end();
    events.truncate(events.len() - 2);
    events.extend([(601, S::PreSwitchover), (602, S::Stopped), (603, S::MirrorsEnded)]);
    insta::assert_snapshot!(source_with_disks(&events));
}

#[test]
fn source_whose_disks_fail_while_they_are_copied() {
    let mut events = until_mirrors_end();
    events.truncate(4);
    events.extend([(150, S::MirrorFailed(lost("no space"))), (160, S::Undone)]);
    insta::assert_snapshot!(source_with_disks(&events));
}

#[test]
fn source_whose_mirrors_fail_while_memory_moves() {
    let mut events = until_mirrors_end();
    events.truncate(7);
    events.extend([(410, S::MirrorFailed(lost("link cut"))), (420, S::Undone)]);
    insta::assert_snapshot!(source_with_disks(&events));
}

/// The destination has not been told: the guest may stay on this end's own word.
#[test]
fn source_whose_mirrors_do_not_finish() {
    let mut failing = until_mirrors_end();
    failing.extend([(604, S::MirrorFailed(lost("link cut"))), (605, S::MirrorsEnded), (610, S::Undone)]);
    let mut late = until_mirrors_end();
    late.extend([(3_900, S::Tick), (3_901, S::Tick), (3_902, S::MirrorsEnded), (3_910, S::Undone)]);
    insta::assert_snapshot!(format!("{}\n{}", source_with_disks(&failing), source_with_disks(&late)));
}

#[test]
fn source_whose_disks_take_too_long() {
    let mut events = until_mirrors_end();
    events.truncate(5);
    events.extend([(300_000, S::Tick), (300_010, S::Undone)]);
    insta::assert_snapshot!(source_with_disks(&events));
}

#[test]
fn source_whose_guest_is_stopped_while_its_disks_are_copied() {
    let mut events = until_mirrors_end();
    events.truncate(4);
    events.extend([(150, S::Stopped), (160, S::Undone)]);
    insta::assert_snapshot!(source_with_disks(&events));
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
        (30, S::PeerPrepared),
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
        (30, S::PeerPrepared),
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

/// A pass of 1 s leaves 1 s each time.
fn source_of_a_guest_that_does_not_converge(on_stall: OnStall) -> String {
    let mut events = vec![(0, S::Begin), (20, S::Ready), (30, S::PeerPrepared)];
    let rates = |passes, throttle_percent| Progress {
        passes,
        throttle_percent,
        rate: 20 << 20,
        dirty_rate: 30 << 20,
        expected_pause_us: 1_000_000,
        ..Progress::default()
    };
    events.extend((1..=6).map(|pass| (u64::from(pass) * 1_000, S::Progress(rates(pass, 0)))));
    events.extend((7..=20).map(|pass| (u64::from(pass) * 1_000, S::Progress(rates(pass, 20)))));
    events.push((21_000, S::Undone));
    let mut machine = Source::new(GENERATION, Limits { on_stall, ..Limits::default() });
    let mut told = String::new();
    for (ms, event) in events {
        let effects = machine.step(event, Duration::from_millis(ms));
        // What is reported of each look at QEMU is not what this is about.
        let told_now = effects.iter().filter(|it| !matches!(it, SourceEffect::Report(SourceReport::Progress(_))));
        told_now.for_each(|effect| writeln!(told, "{ms:>6} ms → {effect:?}").expect("to a string"));
    }
    told
}

#[test]
fn source_that_gives_a_stalled_move_up() {
    insta::assert_snapshot!(source_of_a_guest_that_does_not_converge(OnStall::GiveUp));
}

#[test]
fn source_that_throttles() {
    insta::assert_snapshot!(source_of_a_guest_that_does_not_converge(OnStall::Throttle));
}

#[test]
fn source_that_allows_a_longer_pause() {
    insta::assert_snapshot!(source_of_a_guest_that_does_not_converge(OnStall::LongerPause { at_most_ms: 800 }));
}

#[test]
fn destination_restarted_after_commit() {
    let restarted = |open| Destination::committed_before(GENERATION, Limits::default(), [FIRST, SECOND].into(), open);
    let phase = |machine: &Destination| format!("{:?}", machine.phase());
    let gated = [
        (0, D::Announced),
        (3, D::Running),
        (40, D::MarkersIn(FIRST)),
        (50, D::MarkersIn(SECOND)),
        (1_999, D::Tick),
        (2_003, D::Tick),
        (2_004, D::Sealed),
        (2_050, D::SettleOrdered),
        (2_060, D::Closed),
    ];
    let open = [(0, D::Announced), (1, D::Sealed), (3, D::Running), (50, D::SettleOrdered), (60, D::Closed)];
    insta::assert_snapshot!(format!(
        "{}\n{}",
        transcript(restarted(false), phase, &gated),
        transcript(restarted(true), phase, &open)
    ));
}

#[test]
fn source_past_its_deadline() {
    insta::assert_snapshot!(source(&[(0, S::Begin), (20, S::Ready), (300_000, S::Tick), (300_010, S::Undone)]));
}

fn until_received() -> Vec<(u64, D)> {
    vec![
        (0, D::Announced),
        (5, D::SourceCalled),
        (60, D::Ready),
        (890, D::SourceArmed),
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

fn destination_with_disks(events: &[(u64, D)]) -> String {
    let machine = Destination::new(GENERATION, Limits::default(), [FIRST, SECOND].into()).with_disks(true);
    transcript(machine, |machine| format!("{:?}", machine.phase()), events)
}

#[test]
fn destination_takes_a_guest_with_disks() {
    let gave_up = || (904, D::SourceGaveUp { generation: GENERATION });
    let begin = &until_received()[..3];
    let memory_first = [(903, D::MemoryIn), gave_up(), gave_up(), (905, D::DisksClosed), (906, D::CommitRecorded)];
    let disks_first = [gave_up(), (905, D::DisksClosed), (907, D::MemoryIn), (908, D::CommitRecorded)];
    insta::assert_snapshot!(format!(
        "{}\n{}",
        destination_with_disks(&[begin, &memory_first].concat()),
        destination_with_disks(&[begin, &disks_first].concat())
    ));
}

#[test]
fn destination_whose_disks_do_not_close() {
    let mut events = until_received();
    events.extend([
        (2_905, D::MemoryFailed(lost("QEMU does not answer"))),
        (2_906, D::DisksClosed),
        (2_907, D::DeclineRecorded),
        (2_910, D::Undone),
    ]);
    insta::assert_snapshot!(destination_with_disks(&events));
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

/// A long line over a narrow underlay; then the source dies.
#[test]
fn destination_that_waits_for_a_long_line() {
    let mut events = until_received();
    events.extend([(906, D::CommitRecorded), (907, D::Running)]);
    events.extend((0..4).map(|second| (1_500 + second * 1_000, D::LineMoves)));
    events.extend([(5_000, D::Tick), (6_499, D::Tick), (6_500, D::Tick)]);
    insta::assert_snapshot!(destination(&events));
}

/// Frames that do not end, and a source that never says that its line is empty.
#[test]
fn destination_whose_line_never_ends() {
    let mut machine = Destination::new(GENERATION, Limits::default(), [FIRST, SECOND].into());
    for (ms, event) in until_received().into_iter().chain([(906, D::CommitRecorded), (907, D::Running)]) {
        machine.step(event, Duration::from_millis(ms));
    }
    let opened = (0..).map(|look| 1_000 + look * 250).find(|ms| {
        let at = Duration::from_millis(*ms);
        machine.step(D::LineMoves, at);
        machine.next_deadline().is_some_and(|due| due <= at) && !machine.step(D::Tick, at).is_empty()
    });
    assert_eq!(opened, Some(31_000));
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
