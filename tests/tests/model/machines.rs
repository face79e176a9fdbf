//! The machines that ship, taken for a model checker: each situation of one has a number, each step is taken once and then
//! known.
//!
//! Machines keep deadlines as moments, and time that goes on would make every situation a new one. Here it does not go on:
//! all that happens happens at [`NOW`], and a timer may fire at any moment. What the firing sets is counted from `NOW` again;
//! what it left alone stays. So a deadline is either set or not, which is all that matters to who may act next, and any
//! order in which timers can fire in the world is among those tried here.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt::Debug,
    hash::Hash,
    sync::{Arc, RwLock},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use throughline_cutover::{
    Coordinator, CoordinatorEffect, CoordinatorEvent, Destination, DestinationEffect, DestinationEvent, Machine as _,
    Source, SourceEffect, SourceEvent,
};

/// When everything happens.
pub(crate) const NOW: Duration = Duration::from_secs(1_000_000);
/// Longer than anybody's patience.
const AGES: Duration = Duration::from_secs(3600);
/// Longer than the convergence waits for a slot's end.
const A_WHILE: Duration = Duration::from_millis(500);

/// A situation of a machine, by number.
pub(crate) type Id = u16;

/// When an event comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum When {
    /// As soon as it can.
    Now,
    /// Some time later.
    Later,
    /// When the machine's next deadline has come.
    Due,
    /// When all its deadlines have.
    Overdue,
}

/// What this module needs of a machine.
pub(crate) trait Kept: Serialize + DeserializeOwned + Clone {
    type Event;
    type Effect: Debug;
    fn take(&mut self, event: Self::Event, now: Duration) -> Vec<Self::Effect>;
    fn due(&self) -> Option<Duration>;
}

macro_rules! kept {
    ($($machine:ty, $event:ty, $effect:ty;)*) => { $(impl Kept for $machine {
        type Event = $event;
        type Effect = $effect;
        fn take(&mut self, event: $event, now: Duration) -> Vec<$effect> {
            self.step(event, now)
        }
        fn due(&self) -> Option<Duration> {
            self.next_deadline()
        }
    })* };
}
kept! {
    Source, SourceEvent, SourceEffect;
    Destination, DestinationEvent, DestinationEffect;
    Coordinator, CoordinatorEvent, CoordinatorEffect;
}

type Effects<M> = Arc<[<M as Kept>::Effect]>;

#[derive(Debug)]
struct Inner<M: Kept, K> {
    ids: HashMap<String, Id>,
    all: Vec<M>,
    steps: HashMap<(Id, K, When), (Id, Effects<M>)>,
}

/// Every situation met so far of one kind of machine. `K` names its events.
#[derive(Debug)]
pub(crate) struct Situations<M: Kept, K>(RwLock<Inner<M, K>>);

impl<M: Kept, K: Copy + Eq + Hash> Situations<M, K> {
    pub(crate) fn new() -> Self {
        Self(RwLock::new(Inner { ids: HashMap::new(), all: Vec::new(), steps: HashMap::new() }))
    }

    /// The number of a machine that has just begun.
    pub(crate) fn enter(&self, machine: &M) -> Id {
        let value = value_of(machine);
        self.0.write().expect("no panic").number(settled(value.clone(), &value, Duration::ZERO))
    }

    /// Looks at a situation.
    pub(crate) fn look<T>(&self, id: Id, look: impl FnOnce(&M) -> T) -> T {
        look(&self.0.read().expect("no panic").all[usize::from(id)])
    }

    /// What comes of an event: the next situation, and what is to be done. A timer that is not set does nothing.
    pub(crate) fn step(&self, id: Id, key: K, when: When, event: impl FnOnce() -> M::Event) -> (Id, Effects<M>) {
        if let Some(known) = self.0.read().expect("no panic").steps.get(&(id, key, when)) {
            return known.clone();
        }
        let mut machine = self.look(id, M::clone);
        let now = match when {
            When::Now => Some(NOW),
            When::Later => Some(NOW + A_WHILE),
            When::Due => machine.due(),
            When::Overdue => machine.due().map(|_| NOW + AGES),
        };
        let before = value_of(&machine);
        let effects = now.map(|now| machine.take(event(), now.max(NOW))).unwrap_or_default();
        let value = settled(value_of(&machine), &before, now.unwrap_or(NOW).saturating_sub(NOW));
        let mut inner = self.0.write().expect("no panic");
        let known = (inner.number(value), effects.into());
        inner.steps.entry((id, key, when)).or_insert(known).clone()
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.read().expect("no panic").all.len()
    }
}

impl<M: Kept, K> Inner<M, K> {
    fn number(&mut self, value: Value) -> Id {
        let next = Id::try_from(self.all.len()).expect("a machine has not so many situations");
        match self.ids.entry(value.to_string()) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                self.all.push(serde_json::from_value(value).expect("machines read what they wrote"));
                *new.insert(next)
            }
        }
    }
}

fn value_of(machine: &impl Serialize) -> Value {
    serde_json::to_value(machine).expect("machines are plain data with text keys")
}

/// A situation as it is kept: moments that this step has set are counted from [`NOW`]; reasons, which are for people, and
/// what is in the history already are forgotten.
fn settled(value: Value, before: &Value, passed: Duration) -> Value {
    match value {
        Value::Object(map) if is_moment(&map) => {
            let value = Value::Object(map);
            if value == *before { value } else { moved_back(value, passed) }
        }
        Value::Object(map) if map.contains_key("reason") && map.contains_key("message") => {
            json!({"reason": "REASON", "message": ""})
        }
        Value::Object(map) => {
            let settle = |(key, value): (String, Value)| match key.as_str() {
                "noted" => (key, json!([])),
                _ => {
                    let value = settled(value, before.get(&key).unwrap_or(&Value::Null), passed);
                    (key, value)
                }
            };
            Value::Object(map.into_iter().map(settle).collect())
        }
        other => other,
    }
}

fn is_moment(map: &Map<String, Value>) -> bool {
    map.len() == 2 && map.contains_key("secs") && map.contains_key("nanos")
}

fn moved_back(moment: Value, by: Duration) -> Value {
    let moment: Duration = serde_json::from_value(moment).expect("a duration");
    value_of(&moment.saturating_sub(by).max(NOW))
}
