//! Points of a guest that has an agent of its own: its file systems are written out in them, and it is thawed whatever happens.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use throughline_cutover::{DiskBus, DiskFormat};
use throughline_hypervisor::{Guest, GuestEventKind, MigrationStatus};

use crate::harness::{
    HOST, Lab, PATIENCE,
    agent::{ask, examine, format, plan, stop, writes_on},
    await_event, await_status,
    image::Image,
    in_lab,
    replicating::{Disks, SIZE_MIB, complete, send},
};

/// Two disks, the first of which has a file system.
fn disks(lab: &Lab) -> Disks {
    let Disks { there, now, .. } = Disks::new(lab);
    let blank = |name| Image::blank(&lab.dir, "e", name, DiskFormat::Raw, DiskBus::VirtioBlk, SIZE_MIB);
    let here = [blank("root"), blank("data")];
    format(&here[0]);
    Disks { here, there, now }
}

/// The guest, which writes and whose agent answers, with a replica begun.
async fn writing(lab: &Lab, disks: &Disks) -> Guest {
    let guest = lab.launch(plan(lab, "a", &disks.here, false)).await.expect("launch");
    writes_on(&guest).await;
    assert_eq!(ask(&guest, &status()), json!({"return": "thawed"}));
    disks.begin(lab, &guest).await;
    guest
}

fn status() -> Value {
    json!({"execute": "guest-fsfreeze-status"})
}

#[test]
fn a_point_has_file_systems_that_were_written_out_or_says_that_it_has_not() {
    in_lab("quiesced", |lab| async move {
        let disks = disks(&lab);
        let guest = writing(&lab, &disks).await;
        let keeper = disks.keeper(&lab).await;
        for name in ["p-1", "p-2", "p-3"] {
            assert!(send(&lab, &guest, &keeper, 0).await.unwrap().quiesced, "{name}: its agent answers");
            writes_on(&guest).await;
            complete(&guest, &keeper, name).await;
        }
        // It is there and does not answer: waited for once, and not again at once.
        stop(&guest);
        let mut took = Vec::new();
        for name in ["p-4", "p-5"] {
            let began = Instant::now();
            assert!(!send(&lab, &guest, &keeper, 0).await.unwrap().quiesced, "{name}");
            took.push(began.elapsed());
            complete(&guest, &keeper, name).await;
            writes_on(&guest).await;
        }
        println!("without an agent: {took:?}");
        assert!(took[0] < Duration::from_secs(8) && took[1] < Duration::from_secs(3), "{took:?}");
        guest.quit().await.unwrap();
        keeper.quit().await.unwrap();
        for (name, quiesced) in [("p-1", true), ("p-2", true), ("p-3", true), ("p-4", false), ("p-5", false)] {
            let (head, check) = examine(&lab.dir, &disks.there[0].snapshot(name));
            assert_eq!(!head.contains("needs_recovery"), quiesced, "{name}: {head}");
            assert!(!quiesced || check.status.success(), "{name}: {check:?}");
        }
    });
}

/// What a daemon leaves that was killed while the guest was frozen, and one that gave up the point.
#[test]
fn a_guest_is_thawed_by_whoever_comes_next() {
    in_lab("thawed", |lab| async move {
        let disks = disks(&lab);
        let guest = writing(&lab, &disks).await;
        let frozen = ask(&guest, &json!({"execute": "guest-fsfreeze-freeze"}));
        assert_eq!(frozen, json!({"return": 1}));
        drop(guest);
        let guest = lab.adopt("g", "a").await.unwrap().expect("it runs");
        guest.abandon_point().await.unwrap();
        writes_on(&guest).await;

        let keeper = disks.keeper(&lab).await;
        let mut quiesced = 0;
        for step in 0..8 {
            let given_up = tokio::time::timeout(Duration::from_millis(20 + 40 * step), send(&lab, &guest, &keeper, 0));
            quiesced += usize::from(given_up.await.is_ok_and(|sent| sent.unwrap().quiesced));
            guest.abandon_point().await.unwrap();
            keeper.close_disks().await.unwrap();
            writes_on(&guest).await;
        }
        println!("{quiesced} of 8 were not given up");
        assert!(quiesced < 8, "some have to be given up on the way");
        assert_eq!(ask(&guest, &status()), json!({"return": "thawed"}));
        guest.quit().await.unwrap();
        keeper.quit().await.unwrap();
    });
}

#[test]
fn a_guest_moves_with_its_agent() {
    in_lab("agentmoves", |lab| async move {
        let source = lab.launch(plan(&lab, "a", &[], false)).await.expect("launch");
        assert_eq!(ask(&source, &status()), json!({"return": "thawed"}));
        let destination = lab.launch(plan(&lab, "b", &[], true)).await.expect("launch");
        let (awaited, invitation) = destination.listen(HOST, HOST, Some(&lab.sealer)).await.expect("listen");
        let receiver = destination.clone();
        tokio::spawn(async move { receiver.receive(awaited).await.expect("the stream arrives") });
        let (mut at_source, mut at_destination) = (source.events(), destination.events());
        lab.send(&source, &invitation, 1_250_000_000, false).await.unwrap();
        let started = Instant::now();
        while source.progress().await.unwrap().passes < 2 {
            assert!(started.elapsed() < PATIENCE, "it is not sent");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        source.let_stop().await.unwrap();
        await_status(&mut at_source, MigrationStatus::PreSwitchover).await;
        source.continue_switchover().await.unwrap();
        await_status(&mut at_destination, MigrationStatus::Completed).await;
        destination.cont().await.unwrap();
        await_event(&mut at_destination, &mut Vec::new(), |kind| *kind == GuestEventKind::Resume).await;
        source.quit().await.unwrap();
        assert_eq!(ask(&destination, &status()), json!({"return": "thawed"}), "it is asked where it is now");
        destination.quit().await.unwrap();
    });
}
