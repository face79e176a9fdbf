//! Random schedules of the same fabric, larger and rougher than what can be explored to the end. One number is one schedule.

use std::fmt::Write as _;

use throughline_cutover::Coordinator;

use crate::{
    properties::ALWAYS,
    state::{Left, State},
    system::{Action, Fabric},
};

/// Of so many steps one goes wrong, as long as any may.
const ONE_IN: u64 = 12;
/// No schedule is as long: what has not ended by then goes round in circles.
const LONGEST: usize = 5_000;

/// `SplitMix64` (Steele et al. 2014): what matters is that a seed gives the same on every machine.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }

    fn choose(&mut self, among: &[Action]) -> Option<Action> {
        let place = self.roll(among.len().max(1) as u64);
        among.get(usize::try_from(place).unwrap_or_default()).copied()
    }
}

/// A schedule that went wrong.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    pub(crate) seed: u64,
    pub(crate) what: &'static str,
    pub(crate) trace: Vec<Action>,
}

impl Wrong {
    /// For people, with how to see it again.
    pub(crate) fn tell(&self) -> String {
        let mut words = format!(
            "seed {}: not so: {}\nreplay: THROUGHLINE_SEED={} cargo test -p throughline-tests --test model schedules -- --nocapture\n",
            self.seed, self.what, self.seed
        );
        for (step, action) in self.trace.iter().enumerate() {
            let _ = writeln!(words, "{:>4}  {action:?}", step + 1);
        }
        words
    }
}

/// Three peers, and more that goes wrong than an exploration could bear.
pub(crate) fn rough() -> Fabric {
    let left = Left { crashes: 4, losses: 4, haste: 4 };
    Fabric { prompt: false, ..Fabric::new(3, 2, left) }
}

/// Plays one schedule to its end; its length, or what went wrong.
pub(crate) fn play(fabric: &Fabric, seed: u64) -> Result<usize, Wrong> {
    let mut dice = Dice(seed);
    let mut trace = Vec::new();
    let mut state = fabric.beginning();
    // Not every schedule is to be as rough as can be.
    for left in [&mut state.left.crashes, &mut state.left.losses, &mut state.left.haste] {
        *left = u8::try_from(dice.roll(u64::from(*left) + 1)).unwrap_or_default();
    }
    state.disks.there = dice.roll(2) == 0;
    while let Some(action) = next(fabric, &state, &mut dice) {
        trace.push(action);
        state = fabric.act(&state, action);
        let phase = fabric.coordinators.look(state.controller.machine, Coordinator::phase);
        if let Some((what, _)) = ALWAYS.iter().find(|(_, holds)| !holds(&state, phase)) {
            return Err(Wrong { seed, what, trace });
        }
        if trace.len() == LONGEST {
            break;
        }
    }
    let phase = fabric.coordinators.look(state.controller.machine, Coordinator::phase);
    if state.is_over(phase) { Ok(trace.len()) } else { Err(Wrong { seed, what: "it comes to an end", trace }) }
}

fn next(fabric: &Fabric, state: &State, dice: &mut Dice) -> Option<Action> {
    let mut actions = Vec::new();
    if dice.roll(ONE_IN) == 0 {
        fabric.go_wrong(state, &mut actions);
        if let Some(wrong) = dice.choose(&actions) {
            return Some(wrong);
        }
    }
    fabric.go_on(state, &mut actions);
    dice.choose(&actions)
}
