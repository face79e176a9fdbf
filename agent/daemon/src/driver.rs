//! The only bridge between decisions and effects: event → step → effects → execute → event.

use std::{collections::VecDeque, time::Duration};

use throughline_cutover::Machine;
use tokio::sync::mpsc;
use tracing::debug;

use crate::clock::Monotonic;

/// A deadline that has passed without changing anything is not looked at again sooner than this.
const TICK_AGAIN: Duration = Duration::from_millis(50);

/// Carries out one machine's effects.
pub trait Hands {
    /// Whose effects.
    type Machine: Machine;

    /// Does what the effect says. An answer that is known at once is returned; a later one comes as an event.
    fn execute(
        &mut self,
        effect: <Self::Machine as Machine>::Effect,
    ) -> impl Future<Output = Option<<Self::Machine as Machine>::Event>> + Send;
}

/// Drives a machine until it has ended or nobody can send it events any more.
pub async fn drive<H: Hands>(
    mut machine: H::Machine,
    hands: &mut H,
    events: &mut mpsc::UnboundedReceiver<<H::Machine as Machine>::Event>,
    clock: Monotonic,
) {
    let mut no_tick_before = Duration::ZERO;
    while !machine.ended() {
        let tick_at = machine.next_deadline().map(|deadline| clock.at(deadline.max(no_tick_before)));
        let event = tokio::select! {
            biased;
            event = events.recv() => match event {
                Some(event) => event,
                None => return,
            },
            () = sleep_until(tick_at) => {
                no_tick_before = clock.now() + TICK_AGAIN;
                H::Machine::tick()
            }
        };
        let mut ready = VecDeque::from([event]);
        while let Some(event) = ready.pop_front() {
            debug!(?event, "step");
            for effect in machine.step(event, clock.now()) {
                debug!(?effect, "execute");
                ready.extend(hands.execute(effect).await);
            }
        }
    }
}

async fn sleep_until(moment: Option<std::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}
