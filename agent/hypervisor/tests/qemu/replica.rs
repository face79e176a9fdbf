//! A running guest's replica: points of all its disks at one instant, whatever breaks on the way.

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        signal::{Signal, kill},
    },
    unistd::Pid,
};
use throughline_hypervisor::{Guest, HypervisorError, Launch, PointState, RunState};

use crate::harness::{
    Lab,
    image::Image,
    in_lab,
    initrd::number,
    replicating::{Disks, SIZE_MIB, Write, complete, over, send, send_with, until},
    seals, ticks, ticks_past,
};

const MIB: u64 = 1 << 20;
/// Slow enough that much happens meanwhile.
const SLOWLY: u64 = 4 * MIB;

/// Here and there on both disks, some of it not aligned to anything QEMU copies.
fn scribble(seed: u8) -> Vec<Write> {
    let write = |step: u64| {
        let pattern = seed.wrapping_add(u8::try_from(step).unwrap());
        let offset = (step * 7_919 + u64::from(seed) * 104_729) % (SIZE_MIB * 1024 - 64) * 1024 / 4096 * 4096;
        (
            usize::try_from(step % 2).unwrap(),
            pattern,
            offset,
            [512, 4096, 65_536][usize::try_from(step / 2 % 3).unwrap()],
        )
    };
    (0..40).map(write).collect()
}

async fn runs_on(guest: &Guest) {
    assert_eq!(guest.run_state().await.unwrap(), RunState::Running);
    let seen = ticks(guest).unwrap();
    ticks_past(guest, seen + 3).await;
}

#[test]
fn a_replica_has_points_each_of_which_is_the_disks_at_one_instant() {
    in_lab("points", |lab| async move {
        let mut disks = Disks::new(&lab);
        let mut guest = disks.guest(&lab).await;
        let keeper = disks.keeper(&lab).await;
        let mut then = Vec::new();
        for (name, seed) in [("p-1", 1), ("p-2", 60), ("p-3", 120)] {
            let speed = if name == "p-1" { SLOWLY } else { SLOWLY / 16 };
            send(&lab, &guest, &keeper, speed).await.unwrap();
            then.push((name, disks.now.clone()));
            // What is sent is overwritten before it is, by an agent that then is another.
            guest = disks.write(&lab, guest, scribble(seed)).await.0;
            assert!(
                guest.point_progress().await.unwrap().iter().all(|it| it.state == PointState::Sending),
                "it is too fast to prove anything"
            );
            let sent = complete(&guest, &keeper, name).await;
            if name == "p-1" {
                assert_eq!(sent, [SIZE_MIB * MIB, SIZE_MIB / 2 * MIB], "all that is charted");
            } else {
                assert!(sent.iter().all(|bytes| (1..4 * MIB).contains(bytes)), "what was written since: {sent:?}");
            }
            runs_on(&guest).await;
        }
        let names = |points: Vec<throughline_hypervisor::RestorePoint>| -> Vec<String> {
            points.into_iter().map(|point| point.name.to_string()).collect()
        };
        assert_eq!(names(keeper.points().await.unwrap()), ["p-1", "p-2", "p-3"]);
        for _ in 0..2 {
            keeper.delete_point(&"p-1".parse().unwrap()).await.unwrap();
        }
        assert_eq!(names(keeper.points().await.unwrap()), ["p-2", "p-3"]);
        keeper.quit().await.unwrap();
        for (name, then) in &then[1..] {
            disks.assert_point(name, then);
        }
        guest.forget_replica().await.unwrap();
        assert_eq!(guest.replica_begun().await.unwrap(), None);
        guest.quit().await.unwrap();
        // What went aside meanwhile cost the guest nothing.
        for (image, now) in disks.here.iter().zip(&disks.now) {
            assert!(image.content() == *now, "the guest's own {}", image.name);
        }
        disks.there.iter().for_each(Image::assert_sound);
    });
}

#[test]
fn a_guests_disks_are_of_one_instant() {
    in_lab("oneinstant", |lab| async move {
        let disks = Disks::new(&lab);
        let images = disks.here.iter().map(Image::open).collect();
        let guest = lab.launch(Launch { disks: images, ..lab.plan("a", "alternate", false) }).await.unwrap();
        ticks_past(&guest, 20).await;
        disks.begin(&lab, &guest).await;
        let keeper = disks.keeper(&lab).await;
        let names = ["p-1", "p-2", "p-3", "p-4", "p-5", "p-6", "p-7", "p-8"];
        for (step, name) in (0..).zip(names) {
            send(&lab, &guest, &keeper, 0).await.unwrap();
            complete(&guest, &keeper, name).await;
            tokio::time::sleep(Duration::from_millis(50 + 7 * step)).await;
        }
        guest.quit().await.unwrap();
        keeper.quit().await.unwrap();
        let mut last = 0;
        for name in names {
            let [first, second] = disks.there.each_ref().map(|image| number(&image.snapshot(name)));
            println!("{name}: {first} {second}");
            assert!(first == second || first == second + 1, "{name}: {first} {second}");
            assert!(first > last, "the guest goes on writing");
            last = first;
        }
    });
}

#[test]
fn a_torn_stream_costs_the_guest_nothing_and_a_next_try_sends_only_the_rest() {
    in_lab("torn", |lab| async move {
        let mut disks = Disks::new(&lab);
        let guest = disks.guest(&lab).await;
        let keeper = disks.keeper(&lab).await;
        send(&lab, &guest, &keeper, SLOWLY).await.unwrap();
        until(&guest, |all| all.iter().all(|it| it.sent >= 8 * MIB)).await;
        for seal in seals(keeper.run_dir().path()) {
            kill(seal, Signal::SIGKILL).unwrap();
        }
        let failed = over(&guest).await;
        println!("torn: {failed:?}");
        assert!(failed.iter().all(|it| matches!(it.state, PointState::Failed(_))), "{failed:?}");
        assert!(matches!(guest.end_point().await.unwrap_err(), HypervisorError::Disk { .. }));
        // Written while nobody has cleared up, by an agent that then is another.
        let writes = vec![(0, 0x77, 20 * MIB, 4096), (1, 0x78, 0, 4096)];
        let (mut guest, _) = disks.write(&lab, guest, writes).await;
        for _ in 0..2 {
            guest.abandon_point().await.unwrap();
        }
        assert!(guest.point_progress().await.unwrap().is_empty());
        runs_on(&guest).await;
        keeper.close_disks().await.unwrap();
        let record = guest.replica_begun().await.unwrap().unwrap();
        assert_eq!((record.point, record.left), (None, Some(keeper.keeper_id().await.unwrap())));

        guest = disks.write(&lab, guest, vec![(0, 0x79, 21 * MIB, 4096)]).await.0;
        send(&lab, &guest, &keeper, 0).await.unwrap();
        let then = disks.now.clone();
        let sent = complete(&guest, &keeper, "p-1").await;
        let wanted = [SIZE_MIB * MIB, SIZE_MIB / 2 * MIB].map(|all| all - 6 * MIB);
        assert!(sent.iter().zip(wanted).all(|(sent, most)| *sent < most && *sent > MIB), "only the rest: {sent:?}");
        // And an increment, of which nothing is left when it is over.
        let (guest, _) = disks.write(&lab, guest, vec![(1, 0x80, 3 * MIB, 4096)]).await;
        send(&lab, &guest, &keeper, 0).await.unwrap();
        assert_eq!(complete(&guest, &keeper, "p-2").await, [0, 1 << 16]);
        keeper.quit().await.unwrap();
        disks.assert_point("p-1", &then);
        disks.assert_point("p-2", &disks.now);
        guest.quit().await.unwrap();
    });
}

#[test]
fn a_keeper_that_is_killed_keeps_its_last_point() {
    in_lab("killed", |lab| async move {
        let mut disks = Disks::new(&lab);
        let guest = disks.guest(&lab).await;
        let keeper = disks.keeper(&lab).await;
        send(&lab, &guest, &keeper, 0).await.unwrap();
        let then = disks.now.clone();
        complete(&guest, &keeper, "p-1").await;
        let (guest, _) = disks.write(&lab, guest, vec![(0, 0x66, 0, 12 * MIB), (1, 0x67, MIB, 12 * MIB)]).await;
        send(&lab, &guest, &keeper, SLOWLY).await.unwrap();
        until(&guest, |all| all.iter().all(|it| it.sent >= 4 * MIB)).await;
        kill(Pid::from_raw(keeper.pid()), Signal::SIGKILL).unwrap();
        keeper.wait_exit().await;
        keeper.quit().await.unwrap();
        over(&guest).await;
        guest.abandon_point().await.unwrap();
        runs_on(&guest).await;
        disks.assert_point("p-1", &then);
        disks.there.iter().for_each(Image::assert_sound);

        // Nothing is gone on with but the last point: what the keeper said it had may be lost.
        let (guest, _) = disks.write(&lab, guest, scribble(5)).await;
        let keeper = disks.keeper(&lab).await;
        send(&lab, &guest, &keeper, 0).await.unwrap();
        let second = disks.now.clone();
        let sent = complete(&guest, &keeper, "p-2").await;
        assert!(sent.iter().all(|bytes| (12 * MIB..20 * MIB).contains(bytes)), "{sent:?}");
        keeper.quit().await.unwrap();
        disks.assert_point("p-1", &then);
        disks.assert_point("p-2", &second);
        disks.there.iter().for_each(Image::assert_sound);
        for (image, then) in disks.there.iter().zip(&then) {
            image.apply("p-1");
            assert!(image.content() == *then, "an operator goes back to it");
        }
        guest.quit().await.unwrap();
    });
}

#[test]
fn a_replica_that_does_not_answer_keeps_no_write_waiting() {
    in_lab("silent", |lab| async move {
        let mut disks = Disks::new(&lab);
        let guest = disks.guest(&lab).await;
        let keeper = disks.keeper(&lab).await;
        let frozen = Pid::from_raw(keeper.pid());
        send(&lab, &guest, &keeper, 0).await.unwrap();
        kill(frozen, Signal::SIGSTOP).unwrap();
        // Over what is not sent, and over what is on its way.
        let writes = (0..SIZE_MIB / 2).map(|mib| (usize::from(mib % 2 == 0), 0x55, mib * MIB, 1 << 16)).collect();
        let (guest, longest) = disks.write(&lab, guest, writes).await;
        println!("the slowest write took {longest:?}");
        assert!(longest < Duration::from_secs(1), "{longest:?}");
        runs_on(&guest).await;
        let asked = Instant::now();
        guest.abandon_point().await.unwrap();
        println!("abandoned in {:?}", asked.elapsed());
        assert!(asked.elapsed() < Duration::from_secs(1));
        kill(frozen, Signal::SIGCONT).unwrap();
        keeper.close_disks().await.unwrap();
        send(&lab, &guest, &keeper, 0).await.unwrap();
        complete(&guest, &keeper, "p-1").await;
        keeper.quit().await.unwrap();
        disks.assert_point("p-1", &disks.now);
        guest.quit().await.unwrap();
    });
}

/// A file nothing can be written to, as one is on a full disk.
fn no_room() -> OwnedFd {
    let file = memfd_create(c"no-room", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).unwrap();
    file
}

#[test]
fn no_room_for_what_is_overwritten_breaks_the_point_and_no_write() {
    in_lab("noroom", |lab| async move {
        let mut disks = Disks::new(&lab);
        let guest = disks.guest(&lab).await;
        let keeper = disks.keeper(&lab).await;
        send_with(&lab, &guest, &keeper, SLOWLY, no_room).await.unwrap();
        let (guest, _) = disks.write(&lab, guest, vec![(0, 0x44, 12 * MIB, 4096), (1, 0x45, 12 * MIB, 4096)]).await;
        runs_on(&guest).await;
        let failed = over(&guest).await;
        println!("no room: {failed:?}");
        assert!(failed.iter().all(|it| matches!(it.state, PointState::Failed(_))), "{failed:?}");
        guest.abandon_point().await.unwrap();
        keeper.close_disks().await.unwrap();
        again(&lab, &mut disks, guest, keeper).await;
    });
}

/// A point of everything, and the ends.
async fn again(lab: &Lab, disks: &mut Disks, guest: Guest, keeper: Guest) {
    send(lab, &guest, &keeper, 0).await.unwrap();
    complete(&guest, &keeper, "p-1").await;
    keeper.quit().await.unwrap();
    disks.assert_point("p-1", &disks.now);
    guest.quit().await.unwrap();
}

/// A QEMU whose server is stopped in the wrong moment stands for ever: see [`Guest::close_disks`].
#[test]
fn a_keeper_can_close_at_any_moment() {
    in_lab("closing", |lab| async move {
        let disks = Disks::new(&lab);
        let guest = disks.guest(&lab).await;
        let keeper = disks.keeper(&lab).await;
        for round in 0..100_u64 {
            tokio::select! {
                _ = send(&lab, &guest, &keeper, 0) => {}
                () = tokio::time::sleep(Duration::from_micros(round * 500)) => {}
            }
            let (closed, abandoned) = tokio::join!(keeper.close_disks(), guest.abandon_point());
            closed.unwrap_or_else(|error| panic!("round {round}: {error}"));
            abandoned.unwrap();
        }
        keeper.quit().await.unwrap();
        guest.quit().await.unwrap();
    });
}
