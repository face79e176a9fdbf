//! Whatever comes late, and however late: the frames of every flow reach the guest once, in order. Drives the verdicts and the
//! machines that ship through schedules made to catch them; the kernel's part is in `ebpf/loader/tests`.

#![expect(clippy::cast_possible_truncation, reason = "a handful of peers and lanes")]

mod world;

use proptest::prelude::*;
use world::{Without, World};

type Schedule = Vec<(u8, usize)>;

fn schedule() -> impl Strategy<Value = Schedule> {
    prop::collection::vec((any::<u8>(), 0_usize..8), 0..1_500)
}

/// Plays it to the end; what went wrong, if anything.
fn play(peers: usize, commits: bool, without: Without, schedule: &Schedule) -> Result<(), String> {
    let mut world = World::new(peers, commits, without);
    for &(what, who) in schedule {
        world.happen(what, who);
    }
    world.come_to_rest();
    for (flow, (delivered, sent)) in world.fates().enumerate() {
        if !delivered.iter().copied().eq(0..sent) {
            return Err(format!("of flow {flow} {sent} were sent, the guest got {delivered:?}"));
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_move_keeps_every_flow_in_order(peers in 1_usize..5, schedule in schedule()) {
        prop_assert_eq!(play(peers, true, Without::Nothing, &schedule), Ok(()));
    }

    #[test]
    fn so_does_one_that_is_declined(peers in 1_usize..5, schedule in schedule()) {
        prop_assert_eq!(play(peers, false, Without::Nothing, &schedule), Ok(()));
    }
}

/// The schedules are nasty enough: without any one of its cures the world is caught at it.
#[test]
fn what_is_taken_out_is_missed() {
    use proptest::{strategy::ValueTree as _, test_runner::TestRunner};

    for without in [Without::TheGate, Without::TheSeal, Without::TheMarkers] {
        let mut runner = TestRunner::deterministic();
        let caught = (0..200).any(|_| {
            let schedule = schedule().new_tree(&mut runner).expect("a schedule").current();
            play(3, true, without, &schedule).is_err()
        });
        assert!(caught, "without {without:?} nothing went wrong in 200 schedules");
    }
}
