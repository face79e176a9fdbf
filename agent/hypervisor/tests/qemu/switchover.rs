//! Two QEMUs hand a guest over, step by step.

use std::time::Duration;

use crate::harness::{HOST, await_event, await_status, in_lab, ip, ticks, ticks_past};
use throughline_hypervisor::{Guest, GuestEventKind, Invitation, MigrationStatus, RunState};

/// Bytes per second; more than any guest here dirties.
const BANDWIDTH: u64 = 1_250_000_000;

/// Waits until pre-copy has been over memory twice.
async fn converged(source: &Guest) {
    let started = std::time::Instant::now();
    loop {
        let progress = source.progress().await.unwrap();
        if progress.passes >= 2 {
            assert!(progress.total > 100 << 20, "{progress:?}");
            println!("pass {}: expected pause {:?}, {progress:?}", progress.passes, progress.expected_pause());
            return;
        }
        assert!(started.elapsed() < crate::harness::PATIENCE, "{progress:?}");
        assert_ne!(progress.status, MigrationStatus::Failed, "{progress:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn a_coordinated_switchover_moves_a_busy_guest() {
    in_lab("switchover", |lab| async move {
        let source = lab.counting("a", "dirty").await;
        let (destination, invitation) = lab.listening("b").await;
        let (mut at_source, mut at_destination) = (source.events(), destination.events());
        lab.send(&source, &invitation, BANDWIDTH, false).await.unwrap();
        converged(&source).await;

        source.let_stop().await.unwrap();
        let stop = await_event(&mut at_source, &mut Vec::new(), |kind| *kind == GuestEventKind::Stop).await;
        let ready = await_status(&mut at_source, MigrationStatus::PreSwitchover).await;
        let left = ticks(&source).unwrap();
        source.continue_switchover().await.unwrap();
        let arrived = await_status(&mut at_destination, MigrationStatus::Completed).await;
        destination.cont().await.unwrap();
        let resume = await_event(&mut at_destination, &mut Vec::new(), |kind| *kind == GuestEventKind::Resume).await;

        let since_stop = |event: &throughline_hypervisor::GuestEvent| event.at.duration_since(stop.at).unwrap();
        println!(
            "pause {:?}; pre-switchover after {:?}, memory and devices in after {:?}",
            since_stop(&resume),
            since_stop(&ready),
            since_stop(&arrived)
        );
        assert!(since_stop(&resume) < Duration::from_secs(3));
        ticks_past(&destination, left + 5).await;
        assert!(ticks(&source).unwrap() <= left + 1, "it went on at the source");
        assert_eq!(source.run_state().await.unwrap(), RunState::PostMigrate);
        assert_eq!(destination.run_state().await.unwrap(), RunState::Running);
        source.quit().await.unwrap();

        // What was a destination can be a source.
        let (third, invitation) = lab.listening("a").await;
        let mut at_third = third.events();
        let mut at_source = destination.events();
        lab.send(&destination, &invitation, BANDWIDTH, false).await.unwrap();
        converged(&destination).await;
        destination.let_stop().await.unwrap();
        await_status(&mut at_source, MigrationStatus::PreSwitchover).await;
        let left = ticks(&destination).unwrap();
        destination.continue_switchover().await.unwrap();
        await_status(&mut at_third, MigrationStatus::Completed).await;
        third.cont().await.unwrap();
        ticks_past(&third, left + 5).await;
        destination.quit().await.unwrap();
        third.quit().await.unwrap();
    });
}

#[test]
fn a_destination_that_dies_before_the_commit_costs_nothing_but_the_pause() {
    in_lab("rollback", |lab| async move {
        let source = lab.counting("a", "dirty").await;
        // Twice: what the first attempt leaves is not in the second one's way.
        for _ in 0..2 {
            let (destination, invitation) = lab.listening("b").await;
            let mut events = source.events();
            lab.send(&source, &invitation, BANDWIDTH, false).await.unwrap();
            converged(&source).await;
            source.let_stop().await.unwrap();
            await_status(&mut events, MigrationStatus::PreSwitchover).await;
            let left = ticks(&source).unwrap();
            let killed = nix::unistd::Pid::from_raw(destination.pid());
            nix::sys::signal::kill(killed, nix::sys::signal::Signal::SIGKILL).unwrap();
            println!("destination ended: {}", destination.wait_exit().await);

            let began = std::time::Instant::now();
            assert_eq!(source.cancel_migration().await.unwrap(), MigrationStatus::Cancelled);
            println!("source runs {:?} after the cancel", began.elapsed());
            assert_eq!(source.run_state().await.unwrap(), RunState::Running, "what QEMU stopped, QEMU starts");
            ticks_past(&source, left + 5).await;
            destination.quit().await.unwrap();
        }
        assert_eq!(source.cancel_migration().await.unwrap(), MigrationStatus::Cancelled, "nothing to cancel");
        source.quit().await.unwrap();
    });
}

#[test]
fn a_destination_that_has_gone_is_said_and_the_guest_runs_on() {
    in_lab("nobody", |lab| async move {
        let source = lab.counting("a", "").await;
        let (destination, invitation, received) = lab.receiving("b", Some(&lab.sealer)).await;
        received.abort();
        assert!(received.await.unwrap_err().is_cancelled());
        let error = source.call(&invitation, HOST, &lab.sealer).await.unwrap_err().to_string();
        assert!(error.contains("did not reach the destination") && error.contains("refused"), "{error}");
        assert_eq!(source.cancel_migration().await.unwrap(), MigrationStatus::None, "QEMU was not told yet");
        assert_eq!(source.run_state().await.unwrap(), RunState::Running);
        destination.quit().await.unwrap();
        source.quit().await.unwrap();
    });
}

/// TCP tries for minutes, a cancel does not wait for it.
#[test]
fn a_destination_that_does_not_answer_is_no_hindrance_to_a_cancel() {
    in_lab("silent", |lab| async move {
        ip("link add silent type veth peer name nobody");
        for link in ["silent", "nobody"] {
            ip(&format!("link set {link} up"));
        }
        ip("address add 192.0.2.1/24 dev silent");
        ip("neighbour add 192.0.2.2 lladdr 02:00:00:00:00:02 dev silent");
        let source = lab.counting("a", "").await;
        let (destination, invitation) = lab.listening("b").await;
        let silent = Invitation { address: "192.0.2.2:7".parse().unwrap(), ..invitation };
        let (caller, sealer) = (source.clone(), lab.sealer.clone());
        let calling = tokio::spawn(async move { caller.call(&silent, [192, 0, 2, 1].into(), &sealer).await });
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!calling.is_finished());
        calling.abort();
        let asked = std::time::Instant::now();
        assert_eq!(source.cancel_migration().await.unwrap(), MigrationStatus::None);
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
        assert_eq!(source.run_state().await.unwrap(), RunState::Running);
        source.quit().await.unwrap();
        destination.quit().await.unwrap();
    });
}

#[test]
fn an_idle_guest_runs_until_it_is_let_go() {
    in_lab("idle", |lab| async move {
        let source = lab.counting("a", "").await;
        let (destination, invitation) = lab.listening("b").await;
        let (mut events, mut at_destination) = (source.events(), destination.events());
        lab.send(&source, &invitation, BANDWIDTH, false).await.unwrap();
        converged(&source).await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let held = source.progress().await.unwrap();
        println!("under its anchor {held:?}");
        assert_eq!(held.status, MigrationStatus::Active);
        assert!(held.passes > 10, "memory is gone over again and again");
        assert_eq!(source.run_state().await.unwrap(), RunState::Running);

        let let_go = std::time::Instant::now();
        source.let_stop().await.unwrap();
        let stop = await_event(&mut events, &mut Vec::new(), |kind| *kind == GuestEventKind::Stop).await;
        println!("stopped {:?} after it was let go", let_go.elapsed());
        assert!(let_go.elapsed() < Duration::from_secs(1), "a slot takes 100 ms");
        let ready = await_status(&mut events, MigrationStatus::PreSwitchover).await;
        println!("pre-switchover {:?} after stop", ready.at.duration_since(stop.at).unwrap());
        assert_eq!(source.run_state().await.unwrap(), RunState::FinishMigrate);
        // It waits there for as long as the caller needs.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(source.progress().await.unwrap().status, MigrationStatus::PreSwitchover);
        let left = ticks(&source).unwrap();
        source.continue_switchover().await.unwrap();
        await_status(&mut at_destination, MigrationStatus::Completed).await;
        assert_eq!(destination.run_state().await.unwrap(), RunState::Paused);
        destination.cont().await.unwrap();
        ticks_past(&destination, left + 5).await;
        source.quit().await.unwrap();
        destination.quit().await.unwrap();
    });
}

/// How fast the guest dirties its memory once QEMU takes this much of its time, bytes per second.
async fn dirtied(source: &Guest, percent: u32) -> u64 {
    let started = std::time::Instant::now();
    while source.progress().await.unwrap().throttle_percent != percent {
        assert!(started.elapsed() < crate::harness::PATIENCE, "{:?}", source.progress().await.unwrap());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let slowed_after = started.elapsed();
    // QEMU measures once a second at most, at the end of a pass.
    tokio::time::sleep(Duration::from_millis(3500)).await;
    let progress = source.progress().await.unwrap();
    assert_eq!(progress.throttle_percent, percent, "no more than it was told");
    println!("slowed by {percent} % after {slowed_after:?}: dirties {} bytes/s", progress.dirty_bytes_per_s);
    progress.dirty_bytes_per_s
}

/// Under its anchor QEMU looks at memory again and again, and so comes to slow the guest when it is told to, not before.
#[test]
fn a_guest_is_slowed_as_far_as_asked() {
    in_lab("throttle", |lab| async move {
        let source = lab.counting("a", "dirty").await;
        let (destination, invitation) = lab.listening("b").await;
        lab.send(&source, &invitation, 40_000_000, true).await.unwrap();
        converged(&source).await;
        let free = dirtied(&source, 0).await;
        source.throttle(50).await.unwrap();
        // Still as much as fits into a pass.
        dirtied(&source, 50).await;
        source.throttle(95).await.unwrap();
        let slow = dirtied(&source, 95).await;
        assert!(slow < free / 2, "{free}, then {slow} bytes/s");
        assert_eq!(source.cancel_migration().await.unwrap(), MigrationStatus::Cancelled);
        let left = ticks(&source).unwrap();
        ticks_past(&source, left + 5).await;
        source.quit().await.unwrap();
        destination.quit().await.unwrap();
    });
}
