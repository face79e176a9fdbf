//! Golden files: event → effects, in `snapshots/`; re-bless with `INSTA_UPDATE=always cargo test -p throughline-cutover`.
//! And properties that hold for any order of events.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use proptest::prelude::*;
use serde::Serialize;

use super::*;
use crate::{
    Boot, CarryId, End, Generation, GuestSpec, Limits, MacAddr, MarkerPeer, MarkerSecret, Port, PortId, PortPlan,
    Queues, RunsOn, Vni,
};

fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

const SECRET: MarkerSecret = MarkerSecret::new([7; MarkerSecret::BYTES]);

/// `web-1` moves from h1 to h2; h3 and h4 are peers, h4 sends no markers that count.
fn plan() -> MigrationPlan {
    let end = |name: &str, n: u8| End {
        host: host(name),
        vtep: [192, 0, 2, n].into(),
        peer_endpoint: format!("192.0.2.{n}:7701"),
    };
    let port = Port {
        id: PortId::try_from(7_u32).unwrap(),
        network: "blue".parse().unwrap(),
        mac: MacAddr::new([2, 0, 0, 0, 0, 7]),
        ips: vec![[10, 7, 0, 10].into()],
    };
    let boot = Boot { kernel: "/k".into(), initrd: String::new(), cmdline: String::new() };
    MigrationPlan {
        id: "m-1".into(),
        token: "00".into(),
        guest: GuestSpec {
            name: "web-1".parse().unwrap(),
            vcpus: 1,
            queues: Queues::ONE,
            memory_kib: 262_136,
            boot,
            ports: vec![port.clone()],
            disks: vec![],
            guest_agent: false,
        },
        generation: Generation(4),
        source: end("h1", 1),
        destination: end("h2", 2),
        ports: vec![PortPlan {
            port,
            vni: Vni::try_from(7_u32).unwrap(),
            carry_id: CarryId::try_from(99_u32).unwrap(),
            marker_mac: MacAddr::new([2, 9, 9, 9, 9, 9]),
            markers: vec![MarkerPeer { host: host("h3"), vtep: [192, 0, 2, 3].into(), index: 0, secret: SECRET }],
        }],
        limits: Limits::default(),
        cold: false,
        flatten: false,
    }
}

/// A line of a golden file.
#[derive(Serialize)]
struct Line {
    at_ms: u64,
    event: CoordinatorEvent,
    effects: Vec<CoordinatorEffect>,
    phase: Phase,
    next_deadline_ms: Option<u64>,
}

/// Plays events and writes down what comes of them.
struct Play {
    machine: Coordinator,
    lines: Vec<Line>,
}

impl Play {
    fn new() -> Self {
        Self::of(Coordinator::new(plan(), Duration::ZERO))
    }

    /// The guest is stopped first, which may take a minute.
    fn stopping() -> Self {
        Self::stopping_or(RunsOn::Stay)
    }

    fn stopping_or(otherwise: RunsOn) -> Self {
        let plan = MigrationPlan { cold: true, ..plan() };
        let stop = StopFirst { deadline_ms: 60_000, otherwise };
        Self::of(Coordinator::new(plan, Duration::ZERO).after_its_stop(stop))
    }

    fn one_of_both(stops: bool) -> Self {
        if stops { Self::stopping() } else { Self::new() }
    }

    fn of(machine: Coordinator) -> Self {
        let mut play = Self { machine, lines: Vec::new() };
        let hosts = ["h1", "h2", "h3", "h4"].map(|name| (host(name), true));
        play.at(0, CoordinatorEvent::Begin { hosts: BTreeMap::from(hosts) });
        play
    }

    fn at(&mut self, at_ms: u64, event: CoordinatorEvent) -> &mut Self {
        let effects = self.machine.step(event.clone(), Duration::from_millis(at_ms));
        let next_deadline_ms = self.machine.next_deadline().map(|at| at.as_millis() as u64);
        self.lines.push(Line { at_ms, event, effects, phase: self.machine.phase(), next_deadline_ms });
        self
    }

    fn news(&mut self, at_ms: u64, role: Role, step: Step) -> &mut Self {
        self.at(at_ms, news(role, step))
    }

    fn ack(&mut self, at_ms: u64, name: &str) -> &mut Self {
        self.at(at_ms, CoordinatorEvent::RebindAck { host: host(name), port: 0, outcome: Ok(()) })
    }

    fn until_paused(&mut self) -> &mut Self {
        self.news(5, Role::Destination, Step::Expecting);
        self.news(400, Role::Source, Step::Precopy).news(900, Role::Source, Step::Armed);
        self.news(901, Role::Source, Step::Paused)
    }

    fn until_committed(&mut self) -> &mut Self {
        self.until_paused().news(910, Role::Destination, Step::Committed)
    }
}

fn news(role: Role, step: Step) -> CoordinatorEvent {
    let undone = Failure::new("PEER_UNREACHABLE", "the other end cannot be reached");
    CoordinatorEvent::News(Box::new(News {
        role,
        step,
        progress: None,
        failure: (step == Step::Aborted).then_some(undone),
        report: CutoverReport::default(),
        generation: (step == Step::Committed).then_some(Generation(5)),
    }))
}

#[test]
fn happy_path() {
    let mut play = Play::new();
    play.until_committed().news(912, Role::Destination, Step::Running);
    play.ack(914, "h3").ack(915, "h4").ack(917, "h1");
    play.news(930, Role::Source, Step::LineEmpty).news(931, Role::Destination, Step::GateOpen);
    play.news(1100, Role::Source, Step::Settled).news(1200, Role::Destination, Step::Settled);
    insta::assert_json_snapshot!(play.lines);
}

#[test]
fn stopped_first() {
    let mut play = Play::stopping();
    // The hosts come and go, and the controller does: nothing has been begun that it could harm.
    play.at(100, CoordinatorEvent::HostLost(host("h1"))).at(200, CoordinatorEvent::HostBack(host("h1")));
    play.at(59_000, CoordinatorEvent::Restarted).at(60_000, CoordinatorEvent::Tick);
    play.at(60_001, CoordinatorEvent::HostBack(host("h1")));
    play.at(89_999, CoordinatorEvent::GuestStopped).at(90_000, CoordinatorEvent::HostBack(host("h2")));
    play.at(90_001, CoordinatorEvent::GuestStopped).at(90_001, CoordinatorEvent::HostBack(host("h2")));
    play.news(90_002, Role::Destination, Step::Expecting).news(90_003, Role::Source, Step::Precopy);
    play.news(90_500, Role::Destination, Step::Committed);
    insta::assert_json_snapshot!(play.lines);
}

#[test]
fn a_guest_that_does_not_stop_stays() {
    let mut late = Play::stopping();
    late.news(1, Role::Source, Step::Aborted);
    late.at(59_999, CoordinatorEvent::Tick)
        .at(60_000, CoordinatorEvent::Tick)
        .at(60_001, CoordinatorEvent::GuestStopped);
    let mut nowhere = Play::stopping();
    nowhere.at(100, CoordinatorEvent::HostLost(host("h2"))).at(200, CoordinatorEvent::GuestStopped);
    nowhere.at(10_200, CoordinatorEvent::Tick);
    let mut cancelled = Play::stopping();
    cancelled.at(500, CoordinatorEvent::Cancel(Failure::new("CANCELLED", "by request")));
    for play in [&late, &nowhere, &cancelled] {
        assert_eq!(play.machine.phase(), Phase::Aborted);
    }
    let told = |lines: &[Line]| lines.iter().flat_map(|line| &line.effects).any(|it| *it == CoordinatorEffect::Expect);
    assert!(!told(&late.lines) && !told(&cancelled.lines), "neither end has heard of it");
    insta::assert_json_snapshot!([late.lines, nowhere.lines, cancelled.lines]);
}

#[test]
fn a_guest_whose_power_is_cut_has_its_time_and_its_host_the_time_to_do_it() {
    let mut play = Play::stopping_or(RunsOn::Cut);
    play.at(89_999, CoordinatorEvent::Tick);
    assert_eq!(play.machine.phase(), Phase::Stopping);
    play.at(90_000, CoordinatorEvent::Tick);
    let words = &play.machine.failure().unwrap().message;
    assert!(words.contains("within 90s; it runs on at h1") && words.ends_with("then migrate again"), "{words}");
}

#[test]
fn talk_while_the_guest_is_being_stopped_is_no_happening() {
    let mut play = Play::stopping();
    for (role, step) in
        [(Role::Source, Step::Aborted), (Role::Destination, Step::Committed), (Role::Source, Step::Progress)]
    {
        play.news(1, role, step);
        assert_eq!(play.lines.last().unwrap().effects, []);
    }
    assert_eq!(play.machine.phase(), Phase::Stopping);
}

/// The record may be an older copy: whoever has begun since is asked, and believed.
#[test]
fn after_a_restart_the_ends_may_be_further_than_a_stop() {
    let restarted = || {
        let mut play = Play::stopping();
        play.at(10, CoordinatorEvent::Restarted).at(11, CoordinatorEvent::HostBack(host("h1")));
        play.at(12, CoordinatorEvent::HostBack(host("h2")));
        play
    };
    let asked = |play: &Play| {
        let effects = &play.lines.last().unwrap().effects;
        let asked = |role: Role| {
            effects.iter().any(|it| matches!(it, CoordinatorEffect::Abort { role: to, .. } if *to == role))
        };
        (asked(Role::Source), asked(Role::Destination))
    };
    let cancel = || CoordinatorEvent::Cancel(Failure::new("CANCELLED", "by request"));
    let mut cancelled = restarted();
    cancelled.at(20, cancel());
    assert_eq!((asked(&cancelled), cancelled.machine.phase().is_end()), ((true, true), false));
    cancelled.news(21, Role::Destination, Step::Committed);
    assert_eq!(cancelled.machine.owner(), (&host("h2"), Generation(5)), "it had moved");

    let mut overdue = restarted();
    overdue.at(60_010, CoordinatorEvent::Tick);
    assert_eq!(asked(&overdue), (true, true));
    overdue.news(60_011, Role::Source, Step::Aborted).news(60_012, Role::Destination, Step::Aborted);
    assert_eq!((overdue.machine.phase(), overdue.machine.owner()), (Phase::Aborted, (&host("h1"), Generation(4))));

    let mut begun = restarted();
    begun.at(20, CoordinatorEvent::GuestStopped).at(21, cancel());
    assert_eq!(asked(&begun), (true, true), "even of a move that begins only now, by this record");

    let mut told = restarted();
    told.news(20, Role::Destination, Step::Expecting);
    assert_eq!(told.machine.phase(), Phase::Stopping, "that says nothing of the guest");
    told.news(21, Role::Source, Step::Precopy).news(22, Role::Destination, Step::Committed);
    assert!(told.machine.phase() >= Phase::Committed, "the move goes on from where its ends are");
    assert_eq!(told.machine.owner(), (&host("h2"), Generation(5)));
}

#[test]
fn cancel() {
    let mut play = Play::new();
    play.news(5, Role::Destination, Step::Expecting).news(400, Role::Source, Step::Precopy);
    play.at(500, CoordinatorEvent::Cancel(Failure::new("CANCELLED", "by request")));
    play.news(510, Role::Source, Step::Aborted).news(520, Role::Destination, Step::Aborted);
    insta::assert_json_snapshot!(play.lines);
}

#[test]
fn cancel_comes_too_late() {
    let mut play = Play::new();
    play.until_paused().at(905, CoordinatorEvent::Cancel(Failure::new("CANCELLED", "by request")));
    play.news(910, Role::Destination, Step::Committed);
    assert_eq!(play.machine.phase(), Phase::Committed);
    assert_eq!(play.machine.failure(), None);
    insta::assert_json_snapshot!(play.lines);
}

#[test]
fn destination_lost_before_commit() {
    let mut play = Play::new();
    play.until_paused().at(905, CoordinatorEvent::HostLost(host("h2")));
    play.news(1500, Role::Source, Step::Aborted);
    insta::assert_json_snapshot!(play.lines);
}

#[test]
fn both_ends_silent_is_undecided_until_one_speaks() {
    let mut play = Play::new();
    play.until_paused().at(905, CoordinatorEvent::HostLost(host("h2"))).at(906, CoordinatorEvent::HostLost(host("h1")));
    for _ in 0..8 {
        let due = play.machine.next_deadline().unwrap().as_millis() as u64;
        play.at(due, CoordinatorEvent::Tick);
    }
    assert_eq!(play.machine.phase(), Phase::Paused, "no deadline may decide who owns the guest");
    play.at(100_000, CoordinatorEvent::HostBack(host("h2")));
    play.news(100_010, Role::Destination, Step::Committed);
    insta::assert_json_snapshot!(play.lines);
}

/// Told, then both ends cut off from each other and the destination from everybody.
fn unresolved() -> Play {
    let mut play = Play::new();
    play.until_paused().at(1000, CoordinatorEvent::HostLost(host("h2")));
    play.at(1100, CoordinatorEvent::Cancel(Failure::new("CANCELLED", "cancelled")));
    assert!(play.machine.is_unresolved());
    play
}

fn last(play: &Play) -> &[CoordinatorEffect] {
    &play.lines.last().unwrap().effects
}

#[test]
fn an_operators_word_that_the_guest_stays_fences_the_destination() {
    let mut play = unresolved();
    play.at(2000, CoordinatorEvent::Resolve { guest_stays: true });
    let fence = CoordinatorEffect::FenceDestination { generation: Generation(6), ended: Generation(5) };
    assert_eq!(last(&play)[0], fence, "above the one it can have committed");
    assert!(last(&play).contains(&CoordinatorEffect::Resolve { guest_stays: true }));
    assert!(!play.machine.is_unresolved(), "said once");
    play.at(60_000, CoordinatorEvent::Tick);
    assert_eq!(play.machine.phase(), Phase::Paused, "it does not end before the source has heard");
    assert!(last(&play).contains(&CoordinatorEffect::Resolve { guest_stays: true }), "who is told again");

    play.news(61_000, Role::Source, Step::Aborted);
    assert_eq!(play.machine.phase(), Phase::Aborted);
    play.at(70_000, CoordinatorEvent::HostBack(host("h2"))).news(70_001, Role::Destination, Step::Committed);
    assert_eq!(last(&play), [CoordinatorEffect::Settle { role: Role::Destination }], "it ends its part, then its copy");
}

#[test]
fn a_commit_that_comes_after_an_operators_word_changes_nothing() {
    let mut play = unresolved();
    play.at(2000, CoordinatorEvent::Resolve { guest_stays: true });
    play.at(2100, CoordinatorEvent::HostBack(host("h2"))).news(2101, Role::Destination, Step::Committed);
    let owns =
        |it: &CoordinatorEffect| matches!(it, CoordinatorEffect::RecordOwner { .. } | CoordinatorEffect::Rebind { .. });
    assert!(!last(&play).iter().any(owns), "{:?}", last(&play));
    assert!(last(&play).contains(&CoordinatorEffect::Settle { role: Role::Destination }));
}

#[test]
fn an_operators_word_that_the_guest_left_is_a_commit() {
    let mut play = unresolved();
    play.at(2000, CoordinatorEvent::Resolve { guest_stays: false });
    assert!(last(&play).contains(&CoordinatorEffect::Resolve { guest_stays: false }));
    assert!(last(&play).contains(&CoordinatorEffect::RecordOwner { generation: Generation(5) }));
    play.ack(2100, "h3").ack(2101, "h4").ack(2102, "h1");
    let told = last(&play).iter().filter(|it| matches!(it, CoordinatorEffect::Resolve { guest_stays: false })).count();
    assert_eq!(told, 1, "again with the order to settle, should the first word have been lost: {:?}", last(&play));
}

#[test]
fn only_what_is_being_undone_is_resolved_by_word() {
    let mut play = Play::new();
    play.until_paused();
    assert!(!play.machine.is_unresolved());
    play.at(1000, CoordinatorEvent::Resolve { guest_stays: true });
    assert_eq!(last(&play), []);
}

#[test]
fn missing_peer() {
    let mut play = Play::new();
    play.until_paused().at(905, CoordinatorEvent::HostLost(host("h3")));
    play.news(910, Role::Destination, Step::Committed).ack(914, "h4");
    play.at(1000, CoordinatorEvent::HostBack(host("h3"))).ack(1010, "h3");
    play.news(1100, Role::Source, Step::Settled).news(1200, Role::Destination, Step::Settled);
    insta::assert_json_snapshot!(play.lines);
}

#[test]
fn late_ack() {
    let mut play = Play::new();
    play.until_committed().ack(914, "h4").at(1910, CoordinatorEvent::Tick);
    play.at(2910, CoordinatorEvent::Tick).ack(2915, "h3").ack(2917, "h1");
    play.news(3100, Role::Source, Step::Settled).news(3200, Role::Destination, Step::Settled);
    insta::assert_json_snapshot!(play.lines);
}

#[test]
fn a_restart_takes_up_where_it_was() {
    let mut play = Play::new();
    play.until_committed().ack(914, "h4");
    let kept = serde_json::to_string(&play.machine).unwrap();
    play.machine = serde_json::from_str(&kept).unwrap();
    play.at(60_000, CoordinatorEvent::Restarted);
    for name in ["h1", "h2", "h3", "h4"] {
        play.at(60_100, CoordinatorEvent::HostBack(host(name)));
    }
    play.ack(60_200, "h3").ack(60_300, "h1");
    play.news(60_400, Role::Source, Step::Settled).news(60_500, Role::Destination, Step::Settled);
    assert_eq!(play.machine.phase(), Phase::Done);
    insta::assert_json_snapshot!(play.lines);
}

/// Deadlines are readings of the wall clock, for they outlive the controller; what it was set to meanwhile must not count.
#[test]
fn a_clock_set_while_the_controller_was_away_moves_no_deadline() {
    let hour = 3_600_000;
    for back_at in [hour / 2, hour, 3 * hour] {
        let begun = || {
            let mut play = Play::new();
            play.machine = Coordinator::new(plan(), Duration::from_millis(hour));
            play.machine.hosts = ["h1", "h2", "h3", "h4"].map(|name| (host(name), true)).into();
            play
        };
        let next = |play: &Play| play.machine.next_deadline().unwrap().saturating_sub(Duration::from_millis(back_at));

        let mut copying = begun();
        copying.news(hour, Role::Destination, Step::Expecting).news(hour + 400, Role::Source, Step::Precopy);
        copying.at(back_at, CoordinatorEvent::Restarted).at(back_at, CoordinatorEvent::Tick);
        assert_eq!(copying.machine.phase(), Phase::Precopy, "nobody was late");
        assert!(next(&copying) <= Duration::from_millis(Limits::default().deadline_ms.into()));

        let mut settling = begun();
        settling.news(hour, Role::Destination, Step::Expecting);
        settling.news(hour + 900, Role::Destination, Step::Committed);
        settling.ack(hour + 910, "h3").ack(hour + 911, "h4").ack(hour + 912, "h1");
        settling.at(back_at, CoordinatorEvent::Restarted).at(back_at, CoordinatorEvent::Tick);
        assert_eq!(settling.machine.phase(), Phase::Settling);
        assert!(next(&settling) <= Duration::from_secs(5), "the ends are told to settle again soon");
    }
}

#[test]
fn what_went_with_the_source_is_said_of_a_guest_that_moved() {
    let mut play = Play::new();
    play.until_committed().ack(914, "h3").ack(915, "h4").ack(917, "h1");
    let died = Failure::new("SOURCE_DIED", "frames went with it");
    for at in [1100, 1101] {
        let CoordinatorEvent::News(mut settled) = news(Role::Source, Step::Settled) else { unreachable!() };
        settled.failure = Some(died.clone());
        play.at(at, CoordinatorEvent::News(settled));
    }
    play.news(1200, Role::Destination, Step::Settled);
    assert_eq!((play.machine.phase(), play.machine.failure()), (Phase::Done, Some(&died)));
    let told = play.lines.iter().flat_map(|line| &line.effects);
    let told = told.filter(
        |effect| matches!(effect, CoordinatorEffect::Event { message, .. } if message.contains("went with it")),
    );
    assert_eq!(told.count(), 1);
}

#[test]
fn every_phase_before_commit_has_a_deadline_with_a_name() {
    let reason = |steps: &[(Role, Step)]| {
        let mut play = Play::new();
        for (role, step) in steps {
            play.news(10, *role, *step);
        }
        let due = play.machine.next_deadline().unwrap().as_millis() as u64;
        play.at(due, CoordinatorEvent::Tick);
        play.machine.failure().unwrap().reason.clone()
    };
    let (expecting, precopy) = ((Role::Destination, Step::Expecting), (Role::Source, Step::Precopy));
    assert_eq!(reason(&[]), "PREPARE_TIMED_OUT");
    assert_eq!(reason(&[expecting]), "PREPARE_TIMED_OUT");
    assert_eq!(reason(&[expecting, precopy]), "DEADLINE_EXCEEDED");
    assert_eq!(reason(&[expecting, precopy, (Role::Source, Step::Paused)]), "CUTOVER_TIMED_OUT");
}

#[test]
fn markers_come_from_whoever_can_send() {
    let hosts = [("h1", true), ("h2", true), ("h3", true), ("h4", false), ("h5", true)];
    let hosts = hosts.map(|(h, up)| (host(h), Ipv4Addr::LOCALHOST, up));
    let names = |others: &[&str]| {
        let peers = marker_peers(&hosts, &host("h1"), &host("h2"), |end| others.contains(&end.as_str()), || SECRET);
        peers.iter().map(|peer| (peer.host.to_string(), peer.index)).collect::<Vec<_>>()
    };
    assert_eq!(names(&[]), [("h3".into(), 0), ("h5".into(), 1)]);
    assert_eq!(names(&["h1"]), [("h1".into(), 0), ("h3".into(), 1), ("h5".into(), 2)]);
    assert_eq!(names(&["h1", "h2"]).len(), 4);
}

#[test]
fn an_end_that_ends_after_all_is_told_what_is_wanted() {
    let mut moved = Play::new();
    moved.until_committed().ack(911, "h3").ack(911, "h4").ack(912, "h1");
    moved.news(1_000, Role::Source, Step::Settled).at(1_001, CoordinatorEvent::HostLost(host("h2")));
    moved.at(61_912, CoordinatorEvent::Tick);
    let mut undone = Play::new();
    undone.until_paused().at(950, CoordinatorEvent::HostLost(host("h2")));
    undone.at(951, CoordinatorEvent::Cancel(Failure::new("CANCELLED", "by request")));
    undone.news(952, Role::Source, Step::Aborted);
    for (play, end, step) in [(moved, Phase::Done, Step::Settled), (undone, Phase::Aborted, Step::Aborted)] {
        let mut play = play;
        assert_eq!(play.machine.phase(), end);
        play.news(70_000, Role::Destination, step);
        let refresh = CoordinatorEffect::RefreshEnd { role: Role::Destination };
        assert_eq!(play.lines.last().unwrap().effects, [refresh]);
    }
}

fn any_event() -> impl Strategy<Value = CoordinatorEvent> {
    let step = prop::sample::select(vec![
        Step::Expecting,
        Step::Precopy,
        Step::Progress,
        Step::Stalled,
        Step::Armed,
        Step::Paused,
        Step::Committed,
        Step::Running,
        Step::LineEmpty,
        Step::GateOpen,
        Step::Settled,
        Step::Aborted,
    ]);
    let role = prop::sample::select(vec![Role::Source, Role::Destination]);
    let any_host = prop::sample::select(vec!["h1", "h2", "h3", "h4", "h5"]).prop_map(host);
    let failed = Err(Failure::new("KERNEL", "no such device"));
    let outcome = prop::sample::select(vec![Ok(()), failed]);
    prop_oneof![
        4 => (role, step).prop_map(|(role, step)| news(role, step)),
        3 => (any_host.clone(), outcome).prop_map(|(host, outcome)| CoordinatorEvent::RebindAck { host, port: 0, outcome }),
        1 => any_host.clone().prop_map(CoordinatorEvent::HostLost),
        1 => any_host.prop_map(CoordinatorEvent::HostBack),
        1 => Just(CoordinatorEvent::Cancel(Failure::new("CANCELLED", "by request"))),
        1 => any::<bool>().prop_map(|guest_stays| CoordinatorEvent::Resolve { guest_stays }),
        1 => Just(CoordinatorEvent::Restarted),
        1 => Just(CoordinatorEvent::GuestStopped),
        3 => Just(CoordinatorEvent::Tick),
    ]
}

/// What must hold whatever happens, checked step by step.
#[derive(Default)]
struct Invariants {
    expects: u32,
    starts: u32,
    owners: u32,
    /// Owners there can be no more: an operator said that the guest stays.
    fenced: u32,
    ends: u32,
    phase: Option<Phase>,
}

impl Invariants {
    fn check(&mut self, effects: &[CoordinatorEffect], phase: Phase) {
        for effect in effects {
            match effect {
                CoordinatorEffect::Expect => self.expects += 1,
                CoordinatorEffect::Start => self.starts += 1,
                CoordinatorEffect::RecordOwner { generation } => {
                    assert_eq!(*generation, Generation(5));
                    assert_eq!(self.fenced, 0, "an operator's word is not taken back");
                    self.owners += 1;
                }
                CoordinatorEffect::Rebind { host, .. } => {
                    assert_eq!(self.owners, 1, "nobody hears of a move that has not committed");
                    assert_ne!(host.as_str(), "h2", "the destination flips by itself");
                }
                CoordinatorEffect::FenceDestination { generation, ended } => {
                    assert!(generation > ended);
                    assert_eq!(self.owners, 0);
                    self.fenced += 1;
                }
                CoordinatorEffect::Resolve { guest_stays } => {
                    assert_eq!((self.fenced, *guest_stays), (u32::from(*guest_stays), self.fenced == 1));
                }
                CoordinatorEffect::Settle { role: Role::Destination } => assert_eq!(self.owners + self.fenced, 1),
                CoordinatorEffect::Settle { .. } | CoordinatorEffect::Done => assert_eq!(self.owners, 1),
                CoordinatorEffect::Abort { .. } | CoordinatorEffect::Aborted { .. } => assert_eq!(self.owners, 0),
                CoordinatorEffect::GuestRuns => assert_eq!(self.owners, 1),
                CoordinatorEffect::Refresh
                | CoordinatorEffect::RefreshEnd { .. }
                | CoordinatorEffect::Progressed
                | CoordinatorEffect::Event { .. } => {}
            }
            self.ends += u32::from(matches!(effect, CoordinatorEffect::Done | CoordinatorEffect::Aborted { .. }));
        }
        assert!(self.expects <= 1 && self.starts <= self.expects && self.owners <= 1 && self.ends <= 1);
        assert!(self.phase.is_none_or(|before| before <= phase), "time does not run back");
        assert_eq!(self.ends == 1, phase.is_end());
        self.phase = Some(phase);
    }
}

proptest! {
    #[test]
    fn any_order_of_events_keeps_the_invariants(
        stops: bool,
        events in prop::collection::vec((any_event(), 0_u64..3000), 0..60),
    ) {
        let mut play = Play::one_of_both(stops);
        let mut invariants = Invariants::default();
        invariants.check(&play.lines[0].effects, play.machine.phase());
        let mut now = 0;
        for (event, later) in events {
            now += later;
            play.at(now, event);
            invariants.check(&play.lines.last().unwrap().effects, play.machine.phase());
        }
    }

    #[test]
    fn deadlines_move_on(stops: bool, events in prop::collection::vec((any_event(), 0_u64..3000), 0..40)) {
        let mut play = Play::one_of_both(stops);
        let mut now = 0;
        for (event, later) in events {
            now += later;
            play.at(now, event);
        }
        // After a tick that is due, the next one is later: the driver never spins.
        for _ in 0..20 {
            let Some(due) = play.machine.next_deadline() else { break };
            now = now.max(due.as_millis() as u64);
            play.at(now, CoordinatorEvent::Tick);
            if let Some(next) = play.machine.next_deadline() {
                prop_assert!(next > Duration::from_millis(now), "{next:?} after a tick at {now} ms");
            }
        }
    }

    #[test]
    fn ends_that_answer_bring_it_to_an_end(
        stops: bool,
        events in prop::collection::vec((any_event(), 0_u64..3000), 0..40),
    ) {
        let mut play = Play::one_of_both(stops);
        for (event, _) in events {
            play.at(1, event);
        }
        for name in ["h1", "h2", "h3", "h4", "h5"] {
            play.at(2, CoordinatorEvent::HostBack(host(name)));
        }
        let committed = play.machine.phase() >= Phase::Committed;
        play.at(3, CoordinatorEvent::Cancel(Failure::new("CANCELLED", "by request")));
        let step = if committed { Step::Settled } else { Step::Aborted };
        play.news(4, Role::Source, step).news(5, Role::Destination, step);
        for _ in 0..20 {
            let Some(due) = play.machine.next_deadline() else { break };
            play.at(due.as_millis() as u64, CoordinatorEvent::Tick);
        }
        prop_assert!(play.machine.phase().is_end(), "stuck in {:?}", play.machine.phase());
    }
}
