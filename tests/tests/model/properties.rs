//! What must hold, always; and that an end can be reached from everywhere.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Mutex,
};

use stateright::{Model, Property};
use throughline_cutover::Phase;

use crate::{
    state::{DestinationVm, Process, Promise, Question, SourceVm, State},
    system::{Action, Fabric},
};

impl State {
    fn processes(&self) -> impl Iterator<Item = Option<&Process>> {
        let source = self.source.agent.as_ref().map(|agent| &agent.process);
        let destination = self.destination.agent.as_ref().map(|agent| &agent.process);
        [source, destination].into_iter().chain(self.peers.iter().map(|peer| peer.agent.as_ref()))
    }

    /// Never two hosts on which it runs.
    pub(crate) fn runs_once(&self) -> bool {
        !(self.source.vm.runs() && self.destination.vm == DestinationVm::Runs)
    }

    /// From the destination's durable commit on the guest is its own: it does not run at the source, whose word is then
    /// never that it kept it.
    pub(crate) fn has_one_owner(&self) -> bool {
        let committed = self.destination.promise == Some(Promise::Committed);
        let kept = !matches!(self.source.promise, Some(Promise::GivenUp | Promise::Left));
        let runs_unowned = self.destination.vm == DestinationVm::Runs && !committed;
        !(committed && (self.source.vm.runs() || kept)) && !runs_unowned
    }

    /// The migration is over, everybody is there, nothing is on its way or left to be done.
    pub(crate) fn is_over(&self, phase: Phase) -> bool {
        let links = [&self.source.link, &self.destination.link].into_iter().chain(self.peers.iter().map(|it| &it.link));
        let idle = |process: Option<&Process>| process.is_some_and(|it| it.machine.is_none() && it.news.is_empty());
        let paths = self.peers.iter().flat_map(|peer| [&peer.old_path, &peer.new_path]);
        let ports = [&self.source.port, &self.destination.port];
        phase.is_end()
            && self.controller.up
            && links.into_iter().all(|link| link.up && link.down.is_empty())
            && self.processes().all(idle)
            && !self
                .source
                .agent
                .as_ref()
                .is_some_and(|agent| agent.starting || agent.giving_up || agent.asks_for_remains)
            && !self.destination.agent.as_ref().is_some_and(|agent| agent.asked)
            && self.question == Question::None
            && self.call.to_destination.is_empty()
            && self.carry.is_empty()
            && paths.into_iter().all(Vec::is_empty)
            && ports.iter().all(|port| port.line.is_empty())
    }

    /// What must be when it is over: the guest runs where the record says that it is, everything leads there, nothing is
    /// left elsewhere.
    pub(crate) fn ended_well(&self, phase: Phase) -> bool {
        let (source, destination) = (&self.source, &self.destination);
        let killed = self.fate.killed;
        let at_rest = !source.port.attached
            && !destination.port.attached
            && (!destination.landing || killed)
            && self.disks_are_at_rest();
        let moved = phase == Phase::Done;
        let there = if moved {
            source.vm == SourceVm::Gone
                && !source.owns
                && source.promise == Some(Promise::Left)
                && source.leads_away
                && destination.owns
                && destination.promise == Some(Promise::Committed)
                && (destination.vm == DestinationVm::Runs && destination.leads_here || killed)
        } else {
            (source.vm.runs() || killed)
                && source.owns
                && matches!(source.promise, None | Some(Promise::Declined))
                && !source.leads_away
                && !destination.owns
                && matches!(destination.promise, None | Some(Promise::Declined))
                && matches!(destination.vm, DestinationVm::None | DestinationVm::Gone)
        };
        let led = self.peers.iter().all(|peer| peer.flipped == moved);
        self.controller.moved == moved && there && led && at_rest
    }
}

/// Which situations follow which without anything more going wrong; to find those from which no end is reached.
#[derive(Debug, Default)]
pub(crate) struct Trail {
    steps: Mutex<Vec<(u64, u64)>>,
    seen: Mutex<HashMap<u64, bool>>,
}

pub(crate) fn print_of(state: &State) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}

impl Trail {
    /// Situations from which, whatever happens, it is never over.
    pub(crate) fn dead_ends(&self) -> HashSet<u64> {
        let seen = self.seen.lock().expect("no panic");
        let mut before: HashMap<u64, Vec<u64>> = HashMap::new();
        for (from, to) in self.steps.lock().expect("no panic").iter() {
            before.entry(*to).or_default().push(*from);
        }
        let mut ending: Vec<u64> = seen.iter().filter(|(_, over)| **over).map(|(print, _)| *print).collect();
        let mut ends: HashSet<u64> = ending.iter().copied().collect();
        while let Some(print) = ending.pop() {
            for from in before.get(&print).into_iter().flatten() {
                if ends.insert(*from) {
                    ending.push(*from);
                }
            }
        }
        seen.keys().copied().filter(|print| !ends.contains(print)).collect()
    }
}

/// The fabric under the checker.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) fabric: Fabric,
    /// `None`: only what must always hold is of interest.
    pub(crate) trail: Option<Trail>,
    /// Situations not to come to.
    pub(crate) dead_ends: HashSet<u64>,
}

impl Checked {
    pub(crate) fn new(fabric: Fabric) -> Self {
        Self { fabric, trail: Some(Trail::default()), dead_ends: HashSet::new() }
    }

    fn phase(&self, state: &State) -> Phase {
        self.fabric.coordinators.look(state.controller.machine, throughline_cutover::Coordinator::phase)
    }
}

/// What holds of a state, the controller being in a phase.
type Holds = fn(&State, Phase) -> bool;

/// What must always hold, each with its name.
pub(crate) const ALWAYS: [(&str, Holds); 8] = [
    ("it never runs twice", |state, _| state.runs_once()),
    ("it has one owner", |state, _| state.has_one_owner()),
    ("no disk has two writers", |state, _| state.disks_have_one_writer()),
    ("the guest finds what it wrote", |state, _| state.disks_are_whole()),
    ("it is never booted anew", |state, _| !state.fate.reborn),
    ("no frame is lost", |state, _| !state.fate.lost),
    ("no frame comes twice or past another", |state, _| !state.fate.disordered),
    ("what is over ended well", |state, phase| !state.is_over(phase) || state.ended_well(phase)),
];

impl Model for Checked {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.fabric.beginning()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.fabric.go_on(state, actions);
        self.fabric.go_wrong(state, actions);
        if let Some(trail) = &self.trail {
            let over = state.is_over(self.phase(state));
            trail.seen.lock().expect("no panic").insert(print_of(state), over);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let next = self.fabric.act(state, action);
        if next == *state {
            return None;
        }
        if let Some(trail) = &self.trail
            && next.left == state.left
        {
            trail.steps.lock().expect("no panic").push((print_of(state), print_of(&next)));
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ALWAYS[0].0, |it, state| ALWAYS[0].1(state, it.phase(state))),
            Property::always(ALWAYS[1].0, |it, state| ALWAYS[1].1(state, it.phase(state))),
            Property::always(ALWAYS[2].0, |it, state| ALWAYS[2].1(state, it.phase(state))),
            Property::always(ALWAYS[3].0, |it, state| ALWAYS[3].1(state, it.phase(state))),
            Property::always(ALWAYS[4].0, |it, state| ALWAYS[4].1(state, it.phase(state))),
            Property::always(ALWAYS[5].0, |it, state| ALWAYS[5].1(state, it.phase(state))),
            Property::always(ALWAYS[6].0, |it, state| ALWAYS[6].1(state, it.phase(state))),
            Property::always(ALWAYS[7].0, |it, state| ALWAYS[7].1(state, it.phase(state))),
            Property::always("it can always come to an end", |it, state| {
                it.dead_ends.is_empty() || !it.dead_ends.contains(&print_of(state))
            }),
        ]
    }
}
