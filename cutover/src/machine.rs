//! What every decision machine looks like to the loop that drives it.

use std::{fmt::Debug, time::Duration};

/// Takes events and the time, returns effects. Nothing else.
pub trait Machine {
    /// What happens to it.
    type Event: Debug + Send;
    /// What it wants done.
    type Effect: Debug + Send;

    /// Takes an event at `now`, a monotonic clock's reading; returns what to do, in order.
    fn step(&mut self, event: Self::Event, now: Duration) -> Vec<Self::Effect>;
    /// When it wants [`Machine::tick`] at the latest.
    fn next_deadline(&self) -> Option<Duration>;
    /// The event that says that time has passed.
    fn tick() -> Self::Event;
    /// True once no event can change anything any more.
    fn ended(&self) -> bool;
}
