//! Both ends of a cold move, played to the end in every order of events, with messages lost, an abort at any time, and crashes: never two
//! owners, never a copy fewer than one, and every path ends.

use std::{
    collections::{BTreeSet, HashSet},
    time::Duration,
};

use serde::Serialize;

use super::{ColdDestination, ColdSource};
use crate::{
    DestinationEffect as DoD, DestinationEvent as D, DestinationReport, Failure, Generation, Limits, Machine as _,
    SourceEffect as DoS, SourceEvent as S,
};

/// How many crashes there are, of either agent, in any order.
const CRASHES: u8 = 2;
const GENERATION: Generation = Generation(4);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
enum Promise {
    Sending,
    GivenUp,
    Left,
    Receiving,
    Committed,
    Declined,
}

#[derive(Debug, Clone, Serialize)]
struct World {
    source: Option<ColdSource>,
    destination: Option<ColdDestination>,
    source_journal: Promise,
    destination_journal: Promise,
    /// What is on its way, in any order; the stream's end among it.
    to_source: BTreeSet<Word>,
    to_destination: BTreeSet<Word>,
    /// The stream between the two is open.
    stream: bool,
    source_has_copy: bool,
    destination_has_copy: bool,
    /// The controller knows of the commit, of the source's end, and has aborted.
    commit_known: bool,
    source_settled: bool,
    aborted: bool,
    crashes: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
enum Word {
    Called,
    Prepared,
    Compared,
    GiveUp,
    Abort,
    Ask,
    Committed,
    Declined,
    Broken,
}

fn failure() -> Failure {
    Failure::new("TEST", "it was played")
}

impl World {
    fn begin() -> Self {
        let mut world = Self {
            source: Some(ColdSource::new(GENERATION, Limits::default())),
            destination: Some(ColdDestination::new(GENERATION, Limits::default())),
            source_journal: Promise::Sending,
            destination_journal: Promise::Receiving,
            to_source: BTreeSet::new(),
            to_destination: BTreeSet::new(),
            stream: false,
            source_has_copy: true,
            destination_has_copy: false,
            commit_known: false,
            source_settled: false,
            aborted: false,
            crashes: CRASHES,
        };
        world.at_destination(D::Announced);
        world.at_source(S::Begin);
        world
    }

    /// Time only passes for an event that says so, and then as much as is needed.
    fn at_source(&mut self, event: S) {
        let Some(mut machine) = self.source.take() else { return };
        let now = if event == S::Tick { Duration::MAX / 2 } else { Duration::ZERO };
        let effects = machine.step(event, now);
        machine.deadline = machine.deadline.map(|_| Duration::ZERO);
        self.source = (!machine.ended()).then_some(machine);
        for effect in effects {
            self.source_does(effect);
        }
    }

    fn source_does(&mut self, effect: DoS) {
        match effect {
            DoS::CallPeer => {
                self.stream = true;
                self.to_destination.insert(Word::Called);
            }
            DoS::RecordGiveUp if self.source_journal == Promise::Sending => {
                self.source_journal = Promise::GivenUp;
                self.at_source(S::GiveUpRecorded);
            }
            DoS::TellGiveUp => self.say(Word::GiveUp),
            DoS::TellAbort(_) => self.say(Word::Abort),
            DoS::Resolve => drop(self.to_destination.insert(Word::Ask)),
            DoS::RemoveGuest => {
                self.source_has_copy = false;
                self.source_journal = Promise::Left;
                self.source_settled = true;
                self.at_source(S::Removed);
            }
            DoS::Undo => {
                self.source_journal = Promise::Declined;
                self.at_source(S::Undone);
            }
            _ => {}
        }
    }

    fn say(&mut self, word: Word) {
        if self.stream {
            self.to_destination.insert(word);
        }
    }

    fn answer(&mut self, word: Word) {
        if self.stream {
            self.to_source.insert(word);
        }
    }

    fn at_destination(&mut self, event: D) {
        let Some(mut machine) = self.destination.take() else { return };
        let now = if event == D::Tick { Duration::MAX / 2 } else { Duration::ZERO };
        let effects = machine.step(event, now);
        machine.deadline = machine.deadline.map(|_| Duration::ZERO);
        self.destination = (!machine.ended()).then_some(machine);
        for effect in effects {
            self.destination_does(effect);
        }
    }

    fn destination_does(&mut self, effect: DoD) {
        match effect {
            DoD::Prepare => self.at_destination(D::Ready),
            DoD::TellPrepared => self.answer(Word::Prepared),
            DoD::RecordCommit { .. } => {
                assert!(self.destination_has_copy, "nothing is committed that was not compared");
                self.destination_journal = Promise::Committed;
                self.at_destination(D::CommitRecorded);
            }
            DoD::TellCommitted { .. } => self.answer(Word::Committed),
            DoD::Report(DestinationReport::Committed(_)) => self.commit_known = true,
            DoD::Close => self.at_destination(D::Closed),
            DoD::RecordDecline => {
                self.destination_journal = Promise::Declined;
                self.at_destination(D::DeclineRecorded);
            }
            DoD::TellDeclined(_) => self.answer(Word::Declined),
            DoD::Undo => {
                self.destination_has_copy = false;
                self.at_destination(D::Undone);
            }
            _ => {}
        }
    }

    /// One that asks has lost the stream, or an earlier agent had it.
    fn asked(&mut self) {
        if self.destination_journal == Promise::Receiving {
            match self.destination.is_some() {
                true => self.at_destination(D::Asked),
                false => self.destination_journal = Promise::Declined,
            }
        }
        let committed = self.destination_journal == Promise::Committed;
        self.to_source.insert(if committed { Word::Committed } else { Word::Declined });
    }

    fn break_stream(&mut self) {
        if std::mem::replace(&mut self.stream, false) {
            self.to_source.insert(Word::Broken);
            self.to_destination.insert(Word::Broken);
        }
    }

    /// Everything that may happen next.
    fn next(&self) -> Vec<Self> {
        let mut all = Vec::new();
        let mut then = |change: &dyn Fn(&mut Self)| {
            let mut world = self.clone();
            change(&mut world);
            all.push(world);
        };
        for word in &self.to_source {
            then(&|it| {
                it.to_source.remove(word);
            });
            then(&|it| {
                it.to_source.remove(word);
                it.at_source(match word {
                    Word::Prepared => S::PeerPrepared,
                    Word::Compared => S::DisksMirrored,
                    Word::Committed => S::PeerCommitted { generation: GENERATION.next() },
                    Word::Declined => S::PeerDeclined(failure()),
                    _ => S::PeerLost,
                });
            });
        }
        for word in &self.to_destination {
            then(&|it| {
                it.to_destination.remove(word);
            });
            then(&|it| {
                it.to_destination.remove(word);
                match word {
                    Word::Called => it.at_destination(D::SourceCalled),
                    Word::GiveUp => it.at_destination(D::SourceGaveUp { generation: GENERATION }),
                    Word::Abort => it.at_destination(D::SourceAborted(failure())),
                    Word::Ask => it.asked(),
                    _ => it.at_destination(D::SourceLost),
                }
            });
        }
        if self.stream {
            then(&Self::break_stream);
            // The disks are compared: both ends hear of it, each in its own time. Or they break.
            if self.source.is_some() && self.destination.is_some() && self.source_has_copy {
                then(&|it| {
                    it.destination_has_copy = true;
                    it.at_destination(D::MemoryIn);
                    it.to_source.insert(Word::Compared);
                });
                then(&|it| it.at_source(S::MirrorFailed(failure())));
            }
        }
        if self.source.as_ref().is_some_and(|it| it.next_deadline().is_some()) {
            then(&|it| it.at_source(S::Tick));
        }
        if self.destination.as_ref().is_some_and(|it| it.next_deadline().is_some()) {
            then(&|it| it.at_destination(D::Tick));
        }
        if !self.aborted && !self.commit_known {
            then(&|it| {
                it.aborted = true;
                it.at_source(S::Abort(failure()));
                it.at_destination(D::Abort(failure()));
            });
        }
        if self.commit_known {
            then(&|it| it.at_source(S::SettleOrdered));
        }
        if self.source_settled {
            then(&|it| it.at_destination(D::SettleOrdered));
        }
        if self.crashes > 0 {
            then(&Self::crash_source);
            then(&Self::crash_destination);
        }
        all
    }

    fn crash_source(&mut self) {
        self.crashes -= 1;
        self.break_stream();
        self.to_source.clear();
        self.source = None;
        match self.source_journal {
            Promise::Sending => self.source_journal = Promise::Declined,
            Promise::GivenUp => {
                self.source = Some(ColdSource::given_up_before(GENERATION, Limits::default()));
                self.at_source(S::Begin);
            }
            _ => {}
        }
    }

    fn crash_destination(&mut self) {
        self.crashes -= 1;
        self.break_stream();
        self.to_destination.clear();
        self.destination = None;
        if self.destination_journal == Promise::Receiving {
            self.destination_journal = Promise::Declined;
            self.destination_has_copy = false;
        }
        // Its journal tells the controller.
        self.commit_known |= self.destination_journal == Promise::Committed;
    }

    fn check(&self) {
        let committed = self.destination_journal == Promise::Committed;
        assert!(!(committed && self.source_journal == Promise::Declined), "two owners: {self:?}");
        assert!(self.source_has_copy || (committed && self.destination_has_copy), "no copy is left: {self:?}");
        assert!(self.source_journal != Promise::Left || committed, "nobody owns it: {self:?}");
    }

    /// Nothing more is done by anybody: an owner there must be, and no end left hanging.
    fn check_end(&self) {
        let moved = (self.source_journal, self.destination_journal) == (Promise::Left, Promise::Committed);
        let stayed = self.source_journal == Promise::Declined && self.destination_journal == Promise::Declined;
        assert!(moved || stayed, "an end without an owner: {self:?}");
    }
}

#[test]
fn a_stopped_guest_has_one_owner_and_one_copy_at_least_whatever_happens() {
    let (mut seen, mut left, mut ends) = (HashSet::new(), vec![World::begin()], 0_u64);
    while let Some(world) = left.pop() {
        let key = serde_json::to_string(&world).expect("plain data");
        if !seen.insert(key.clone()) {
            continue;
        }
        world.check();
        let next = world.next();
        let same = |other: &World| serde_json::to_string(other).expect("plain data") == key;
        if next.iter().all(same) {
            world.check_end();
            ends += 1;
        }
        left.extend(next);
    }
    println!("{} states, {ends} of them ends", seen.len());
    assert!(ends > 0);
}
