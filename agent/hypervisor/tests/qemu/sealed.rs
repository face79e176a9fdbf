//! Memory crosses the wire sealed, between the two ends that were announced and nobody else.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use crate::harness::{HOST, Lab, await_status, in_lab, ticks, ticks_past, wire::Wire};
use throughline_hypervisor::{Guest, HypervisorError, Invitation, MigrationStatus, RunState, Token};

const BANDWIDTH: u64 = 1_250_000_000;
/// How QEMU's stream begins, and what it tells of the guest; in the clear for whoever looks.
const PLAIN: &[u8] = b"QEVM";

/// Moves it over to `destination`, to whom memory is on its way, and sees it count there.
async fn finish(source: &Guest, destination: &Guest) {
    let mut at_source = source.events();
    let mut at_destination = destination.events();
    while source.progress().await.unwrap().passes < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    source.let_stop().await.unwrap();
    await_status(&mut at_source, MigrationStatus::PreSwitchover).await;
    let left = ticks(source).unwrap();
    source.continue_switchover().await.unwrap();
    await_status(&mut at_destination, MigrationStatus::Completed).await;
    destination.cont().await.unwrap();
    ticks_past(destination, left + 3).await;
    assert_eq!(source.run_state().await.unwrap(), RunState::PostMigrate);
}

/// It has lost nothing by an attempt that failed.
async fn assert_runs_on(guest: &Guest) {
    assert_eq!(guest.run_state().await.unwrap(), RunState::Running);
    let seen = ticks(guest).unwrap();
    ticks_past(guest, seen + 3).await;
}

fn sockets(guest: &Guest) -> usize {
    let links = fs::read_dir(format!("/proc/{}/fd", guest.pid())).unwrap().flatten();
    links.filter(|it| fs::read_link(it.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))).count()
}

/// Whether the beginning of the stream can be read on the wire.
async fn is_readable(lab: &Lab, sealed: bool) -> bool {
    let source = lab.counting("a", "dirty").await;
    let wire = Wire::tap();
    let (destination, invitation, received) = lab.receiving("b", sealed.then_some(&lab.sealer)).await;
    assert_eq!(invitation.sealed.is_some(), sealed);
    lab.send(&source, &invitation, BANDWIDTH, false).await.unwrap();
    received.await.unwrap().unwrap();
    finish(&source, &destination).await;
    let (seen, bytes) = wire.look_for(PLAIN);
    assert!(bytes > 1 << 20, "the stream passed here: {bytes} bytes");
    source.quit().await.unwrap();
    destination.quit().await.unwrap();
    seen
}

#[test]
fn nobody_on_the_wire_reads_a_guests_memory() {
    in_lab("sealed", |lab| async move {
        assert!(!is_readable(&lab, true).await, "it is sealed");
        assert!(is_readable(&lab, false).await, "and in the clear it would be seen");
    });
}

#[test]
fn strangers_at_the_door_do_not_disturb_a_move() {
    in_lab("strangers", |lab| async move {
        let source = lab.counting("a", "dirty").await;
        let (destination, invitation, received) = lab.receiving("b", Some(&lab.sealer)).await;
        let call = || TcpStream::connect(invitation.address).unwrap();
        let (mut first, mut babbler, mut guesser) = (call(), call(), call());
        babbler.write_all(&[0x16; 4096]).unwrap();
        guesser.write_all(&[0; 32]).unwrap();
        let silent: Vec<_> = (0..100).map(|_| call()).collect();
        lab.send(&source, &invitation, BANDWIDTH, false).await.unwrap();
        received.await.unwrap().unwrap();
        // A second one with the right token finds nobody.
        let second = source.call(&invitation, HOST, &lab.sealer).await.unwrap_err();
        assert!(second.to_string().contains("did not reach the destination"), "{second}");
        for stranger in [&mut first, &mut babbler, &mut guesser] {
            stranger.set_read_timeout(Some(Duration::from_secs(4))).unwrap();
            let answer = stranger.read(&mut [0; 16]);
            let closed = answer.as_ref().is_ok_and(|read| *read == 0)
                || answer.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset);
            assert!(closed, "a stranger got {answer:?}");
        }
        finish(&source, &destination).await;
        drop(silent);
        source.quit().await.unwrap();
        destination.quit().await.unwrap();
    });
}

#[test]
fn the_wrong_key_or_none_is_refused_and_costs_the_guest_nothing() {
    in_lab("wrongkey", |lab| async move {
        let source = lab.counting("a", "dirty").await;
        let before = sockets(&source);

        // Another migration's credentials.
        let (destination, invitation, received) = lab.receiving("b", Some(&lab.sealer)).await;
        let (other, others, _) = lab.receiving("c", Some(&lab.sealer)).await;
        let wrong = Invitation { sealed: others.sealed, ..invitation };
        let error = lab.send(&source, &wrong, BANDWIDTH, false).await.unwrap_err();
        println!("source: {error}");
        assert!(matches!(error, HypervisorError::Stream { .. }), "{error:?}");
        let error = received.await.unwrap().unwrap_err();
        println!("destination: {error}");
        assert!(matches!(error, HypervisorError::Stream { .. }), "{error:?}");
        assert_eq!(source.cancel_migration().await.unwrap(), MigrationStatus::None, "QEMU was not told yet");
        assert_runs_on(&source).await;
        destination.quit().await.unwrap();
        other.quit().await.unwrap();

        // None: what comes in the clear is not taken for memory.
        let (destination, invitation, received) = lab.receiving("b", Some(&lab.sealer)).await;
        let mut events = source.events();
        let clear = Invitation { sealed: None, ..invitation };
        lab.send(&source, &clear, BANDWIDTH, false).await.unwrap();
        assert!(received.await.unwrap().is_err());
        await_status(&mut events, MigrationStatus::Failed).await;
        assert_runs_on(&source).await;
        destination.quit().await.unwrap();

        // And the other way about: what is sealed is no stream of QEMU's.
        let (destination, invitation, received) = lab.receiving("b", None).await;
        let odd = Invitation { sealed: clear_credentials(&lab).await, ..invitation };
        assert!(lab.send(&source, &odd, BANDWIDTH, false).await.is_err());
        received.await.unwrap().unwrap();
        assert_runs_on(&source).await;
        destination.quit().await.unwrap();

        // The wrong token: sent away before anything is said.
        let (destination, invitation, received) = lab.receiving("b", Some(&lab.sealer)).await;
        let stranger = Invitation { token: Token::from_bytes(&[7; 32]).unwrap(), ..invitation.clone() };
        assert!(lab.send(&source, &stranger, BANDWIDTH, false).await.is_err());
        assert!(!received.is_finished());

        // The right one then moves it, and QEMU kept nothing of all that failed.
        assert_eq!(sockets(&source), before);
        lab.send(&source, &invitation, BANDWIDTH, false).await.unwrap();
        received.await.unwrap().unwrap();
        finish(&source, &destination).await;
        source.quit().await.unwrap();
        destination.quit().await.unwrap();
    });
}

async fn clear_credentials(lab: &Lab) -> Option<throughline_hypervisor::Credentials> {
    let (other, invitation, received) = lab.receiving("c", Some(&lab.sealer)).await;
    received.abort();
    other.quit().await.unwrap();
    invitation.sealed
}

#[test]
fn a_stream_outlives_both_agents() {
    in_lab("outlives", |lab| async move {
        let source = lab.counting("a", "dirty").await;
        let (destination, invitation, received) = lab.receiving("b", Some(&lab.sealer)).await;
        lab.send(&source, &invitation, BANDWIDTH, false).await.unwrap();
        received.await.unwrap().unwrap();
        // Handles, monitors and whatever the agents have of the stream.
        drop((source, destination));
        tokio::time::sleep(Duration::from_millis(300)).await;
        let source = lab.adopt("g", "a").await.unwrap().expect("it runs");
        let destination = lab.adopt("g", "b").await.unwrap().expect("it runs");
        assert_eq!(source.progress().await.unwrap().status, MigrationStatus::Active);
        finish(&source, &destination).await;
        source.quit().await.unwrap();
        destination.quit().await.unwrap();
    });
}
