//! Whatever happens, in whatever order: never two owners, and nobody acts before what must be durable is.

use std::time::Duration;

use proptest::prelude::*;
use throughline_cutover::{
    Destination, DestinationEffect, DestinationEvent as D, Failure, GatePeer, Generation, Limits, Machine, Progress,
    Source, SourceEffect, SourceEvent as S, SourceReport,
};

const GENERATION: Generation = Generation(4);

fn failure() -> Failure {
    Failure::new("TEST", "a reason")
}

fn source_event() -> impl Strategy<Value = S> {
    prop_oneof![
        Just(S::Ready),
        Just(S::PeerPrepared),
        (0_u64..9, 0_u64..9).prop_map(|(copied, total)| S::DiskProgress { copied, total }),
        Just(S::DisksMirrored),
        Just(S::MirrorFailed(failure())),
        Just(S::MirrorsEnded),
        (1_u64..3, 1_u32..5).prop_map(|(rate, passes)| S::Progress(Progress { rate, passes, ..Progress::default() })),
        (1_u32..40).prop_map(|passes| S::Progress(Progress {
            passes,
            expected_pause_us: 400_000,
            ..Progress::default()
        })),
        Just(S::Armed),
        Just(S::Stopped),
        Just(S::PreSwitchover),
        Just(S::GiveUpRecorded),
        Just(S::MemoryFailed(failure())),
        Just(S::PeerCommitted { generation: GENERATION.next() }),
        Just(S::PeerCommitted { generation: GENERATION }),
        Just(S::PeerDeclined(failure())),
        Just(S::PeerLost),
        Just(S::LineEmpty),
        Just(S::SettleOrdered),
        Just(S::Quiet),
        Just(S::Abort(failure())),
        Just(S::Resolved { guest_stays: true }),
        Just(S::Resolved { guest_stays: false }),
        Just(S::Undone),
        Just(S::Removed),
        Just(S::Tick),
    ]
}

/// How it goes if nothing goes wrong, each with the time that passes before it; the guest's disks are mirrored if it has any.
/// A schedule that begins with some of it comes further than chance would.
fn source_course() -> [(S, u64); 9] {
    let near = |rate| S::Progress(Progress { rate, passes: 3, ..Progress::default() });
    [
        (S::Ready, 1),
        (S::PeerPrepared, 1),
        (S::DisksMirrored, 1),
        (near(1), 1),
        (S::GiveUpRecorded, 1),
        (near(2), 500),
        (S::Armed, 1),
        (S::Stopped, 1),
        (S::PreSwitchover, 1),
    ]
}

fn destination_course() -> [(D, u64); 4] {
    [D::Announced, D::SourceCalled, D::Ready, D::SourceGaveUp { generation: GENERATION }].map(|event| (event, 1))
}

/// Two ports, two peers on each; the gate waits for three of them.
fn gate_peer() -> impl Strategy<Value = GatePeer> {
    (0_u32..2, 0_u32..2).prop_map(|(port, peer)| GatePeer { port, peer })
}

const AWAITED: [GatePeer; 3] =
    [GatePeer { port: 0, peer: 0 }, GatePeer { port: 0, peer: 1 }, GatePeer { port: 1, peer: 0 }];

fn destination_event() -> impl Strategy<Value = D> {
    prop_oneof![
        Just(D::Announced),
        Just(D::SourceCalled),
        Just(D::Ready),
        Just(D::NotReady(failure())),
        Just(D::MemoryIn),
        Just(D::MemoryFailed(failure())),
        Just(D::SourceArmed),
        Just(D::SourceGaveUp { generation: GENERATION }),
        Just(D::SourceGaveUp { generation: Generation(1) }),
        Just(D::DisksClosed),
        Just(D::CommitRecorded),
        Just(D::Running),
        Just(D::RunFailed),
        Just(D::LineMoves),
        Just(D::LineEmpty),
        gate_peer().prop_map(D::MarkersIn),
        Just(D::Sealed),
        Just(D::SettleOrdered),
        Just(D::Closed),
        Just(D::SourceAborted(failure())),
        Just(D::SourceLost),
        Just(D::Asked),
        Just(D::Abort(failure())),
        Just(D::DeclineRecorded),
        Just(D::Undone),
        Just(D::Tick),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_source_that_gave_up_resumes_only_on_the_destinations_word(disks: bool, course in 0_usize..10, events in prop::collection::vec((source_event(), 0_u64..4_000), 1..60)) {
        let mut machine = Source::new(GENERATION, Limits::default()).with_disks(disks);
        machine.step(S::Begin, Duration::ZERO);
        let mut now = Duration::ZERO;
        let (mut gave_up, mut removed, mut undone) = (false, false, false);
        let (mut recorded, mut armed, mut let_go, mut stopped) = (false, false, false, false);
        let (mut mirrors, mut mirrored, mut mirrors_end, mut mirrors_ended) = (false, false, false, false);
        for (event, later) in source_course().into_iter().take(course).chain(events) {
            now += Duration::from_millis(later);
            // An operator's word counts as the destination's.
            let declined = matches!(event, S::PeerDeclined(_) | S::Resolved { guest_stays: true });
            let committed = matches!(event, S::PeerCommitted { generation } if generation == GENERATION.next())
                || event == S::Resolved { guest_stays: false };
            recorded |= event == S::GiveUpRecorded;
            armed |= event == S::Armed;
            stopped |= event == S::Stopped;
            mirrored |= mirrors && event == S::DisksMirrored;
            mirrors_ended |= mirrors_end && event == S::MirrorsEnded;
            for effect in machine.step(event, now) {
                match effect {
                    SourceEffect::MirrorDisks => { prop_assert!(disks && !mirrors, "mirrored twice"); mirrors = true; }
                    SourceEffect::StartPrecopy => prop_assert_eq!(disks, mirrored, "memory before disks"),
                    SourceEffect::EndMirrors => { prop_assert!(stopped && mirrored && !mirrors_end && !gave_up); mirrors_end = true; }
                    SourceEffect::Arm => prop_assert!(recorded),
                    SourceEffect::Pause => { prop_assert!(armed && recorded, "let go before frames are held"); let_go = true; }
                    SourceEffect::TellGiveUp => {
                        prop_assert!(!undone && let_go && stopped && !gave_up);
                        prop_assert_eq!(disks, mirrors_ended, "what was written may be missing over there");
                        gave_up = true;
                    }
                    SourceEffect::ContinueSwitchover => prop_assert!(gave_up),
                    SourceEffect::Undo => { prop_assert!(!gave_up || declined); prop_assert!(!removed && !undone); undone = true; }
                    SourceEffect::ReleaseToCarry => { prop_assert!(gave_up && committed && !undone); }
                    SourceEffect::RemoveGuest => { prop_assert!(gave_up && !undone); removed = true; }
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn a_destination_runs_only_what_it_durably_owns(disks: bool, course in 0_usize..5, events in prop::collection::vec((destination_event(), 0_u64..4_000), 1..60)) {
        let mut machine = Destination::new(GENERATION, Limits::default(), AWAITED.into()).with_disks(disks);
        let (mut closing, mut closed) = (false, false);
        let mut now = Duration::ZERO;
        let (mut memory_in, mut given_up, mut asked_to_record, mut recorded, mut declined) = (false, false, false, false, false);
        for (event, later) in destination_course().into_iter().take(course).chain(events) {
            now += Duration::from_millis(later);
            memory_in |= event == D::MemoryIn;
            given_up |= event == D::SourceGaveUp { generation: GENERATION };
            recorded |= asked_to_record && event == D::CommitRecorded;
            closed |= closing && event == D::DisksClosed;
            for effect in machine.step(event, now) {
                match effect {
                    DestinationEffect::CloseDisks => { prop_assert!(disks && given_up && !closing && !asked_to_record); closing = true; }
                    DestinationEffect::RecordCommit { .. } => {
                        prop_assert!(memory_in && given_up && !declined);
                        prop_assert_eq!(disks, closed, "somebody else may write to its disks");
                        asked_to_record = true;
                    }
                    DestinationEffect::RaiseGate | DestinationEffect::Run | DestinationEffect::FlipOwn | DestinationEffect::TellCommitted { .. } => prop_assert!(recorded && !declined),
                    DestinationEffect::RecordDecline | DestinationEffect::TellDeclined(_) | DestinationEffect::Undo => { prop_assert!(!recorded); declined = true; }
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn nobody_is_let_in_before_what_is_older(events in prop::collection::vec((destination_event(), 0_u64..150), 1..80)) {
        let mut machine = Destination::new(GENERATION, Limits::default(), AWAITED.into());
        let mut now = Duration::ZERO;
        for event in [D::Announced, D::SourceCalled, D::Ready, D::MemoryIn] {
            machine.step(event, now);
        }
        machine.step(D::SourceGaveUp { generation: GENERATION }, now);
        machine.step(D::CommitRecorded, now);
        let (mut line_empty, mut opened) = (None, false);
        let mut markers_in = std::collections::BTreeSet::new();
        let mut let_in = std::collections::BTreeSet::new();
        for (event, later) in events {
            now += Duration::from_millis(later);
            if let D::MarkersIn(peer) = event { markers_in.insert(peer); }
            if event == D::LineEmpty { line_empty.get_or_insert(now); }
            for effect in machine.step(event.clone(), now) {
                match effect {
                    DestinationEffect::LetIn(peer) => {
                        prop_assert!(line_empty.is_some() && markers_in.contains(&peer) && !opened);
                        prop_assert!(let_in.insert(peer), "let in twice");
                    }
                    DestinationEffect::OpenGate => {
                        let complete = line_empty.is_some() && AWAITED.iter().all(|peer| markers_in.contains(peer));
                        prop_assert!(!opened && (complete || event == D::Tick), "opened by {event:?}");
                        opened = true;
                    }
                    _ => {}
                }
            }
        }
    }

    /// Both machines, every message between them lost at the whim of the schedule, either asked and cancelled at any time.
    #[test]
    fn never_two_owners(disks: bool, schedule in prop::collection::vec((0_u8..12, any::<bool>()), 1..80)) {
        let mut source = Source::new(GENERATION, Limits::default()).with_disks(disks);
        let mut destination = Destination::new(GENERATION, Limits::default(), AWAITED.into()).with_disks(disks);
        let mut now = Duration::ZERO;
        let mut to_source: Vec<S> = vec![S::Begin];
        let mut to_destination: Vec<D> = vec![D::Announced];
        let (mut resumed, mut ran, mut written_to, mut open) = (false, false, false, disks);
        for (choice, lose) in schedule {
            now += Duration::from_millis(300);
            match choice {
                0 => to_source.push(S::Abort(failure())),
                1 => to_destination.push(D::Abort(failure())),
                2 => { to_source.push(S::PeerLost); to_destination.push(D::SourceLost); }
                3 => { to_source.push(S::Tick); to_destination.push(D::Tick); }
                _ => {}
            }
            for event in std::mem::take(&mut to_source) {
                for effect in source.step(event, now) {
                    match effect {
                        SourceEffect::PrepareDatapath => to_source.push(S::Ready),
                        SourceEffect::CallPeer => to_destination.push(D::SourceCalled),
                        // A copy may fail at any time, the end of the mirrors included.
                        SourceEffect::MirrorDisks | SourceEffect::EndMirrors if lose => to_source.push(S::MirrorFailed(failure())),
                        SourceEffect::MirrorDisks => { written_to = true; to_source.push(S::DisksMirrored); }
                        SourceEffect::EndMirrors => { written_to = false; to_source.push(S::MirrorsEnded); }
                        SourceEffect::StartPrecopy | SourceEffect::Report(SourceReport::Progress(_)) => {
                            to_source.push(S::Progress(Progress { passes: 3, ..Progress::default() }));
                        }
                        SourceEffect::Arm => to_source.push(S::Armed),
                        SourceEffect::Pause => to_source.extend([S::Stopped, S::PreSwitchover]),
                        SourceEffect::RecordGiveUp => to_source.push(S::GiveUpRecorded),
                        SourceEffect::ContinueSwitchover if !lose => to_destination.push(D::MemoryIn),
                        SourceEffect::TellGiveUp if !lose => to_destination.push(D::SourceGaveUp { generation: GENERATION }),
                        SourceEffect::TellAbort(why) if !lose => to_destination.push(D::SourceAborted(why)),
                        SourceEffect::Resolve if !lose => {
                            to_destination.push(D::Asked);
                            if destination.committed() { to_source.push(S::PeerCommitted { generation: GENERATION.next() }); }
                        }
                        SourceEffect::Undo => { resumed = true; to_source.push(S::Undone); }
                        _ => {}
                    }
                }
            }
            for event in std::mem::take(&mut to_destination) {
                open &= event != D::DisksClosed;
                for effect in destination.step(event, now) {
                    match effect {
                        DestinationEffect::Prepare => to_destination.push(D::Ready),
                        DestinationEffect::TellPrepared => to_source.push(S::PeerPrepared),
                        DestinationEffect::RecordCommit { .. } => {
                            prop_assert!(!open, "somebody else may write to its disks");
                            to_destination.push(D::CommitRecorded);
                        }
                        DestinationEffect::TellCommitted { generation } if !lose => to_source.push(S::PeerCommitted { generation }),
                        DestinationEffect::CloseDisks => to_destination.push(D::DisksClosed),
                        DestinationEffect::Run => {
                            prop_assert!(!written_to, "a disk has two writers");
                            ran = true;
                            to_destination.push(D::Running);
                        }
                        DestinationEffect::RecordDecline => to_destination.push(D::DeclineRecorded),
                        DestinationEffect::TellDeclined(why) if !lose => to_source.push(S::PeerDeclined(why)),
                        DestinationEffect::Undo => to_destination.push(D::Undone),
                        _ => {}
                    }
                }
            }
            prop_assert!(!(resumed && ran), "the guest runs twice");
        }
    }
}
