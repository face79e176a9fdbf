//! How much one caller may ask for, and that nobody else notices.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use throughline_controller::{CallLimits, Config};
use throughline_wire::{
    Explanation,
    v1::{self, Role, Step, controller_message::Message as Down},
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::support::*;

async fn controller(state: &StateDir, limits: CallLimits) -> Controller {
    state.make();
    let roles = state.0.join("roles");
    fs::write(&roles, "greta operator\notto operator\n").unwrap();
    let heartbeat = Duration::from_millis(200);
    let config = Config { roles: Some(roles), limits, heartbeat, ..Config::new(&state.0) };
    Controller::with_doors(config, &["operator/greta", "operator/otto"]).await
}

fn assert_too_many(refused: &Status) -> Duration {
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert_eq!(Explanation::from(refused).reason, "TOO_MANY_CALLS");
    let details = refused.get_error_details();
    let delay = details.retry_info().and_then(|retry| retry.retry_delay).expect("it says when to try again");
    assert!(delay > Duration::ZERO && delay <= Duration::from_secs(1), "{delay:?}");
    delay
}

#[tokio::test]
async fn who_calls_too_often_is_told_when_to_call_again() {
    let state = StateDir::new();
    let controller = controller(&state, CallLimits { per_second: 2, ..CallLimits::default() }).await;
    let mut greta = controller.fabric_as("operator/greta").await;
    let look = v1::ListHostsRequest::default;
    let refused = loop {
        if let Err(refused) = greta.list_hosts(look()).await {
            break refused;
        }
    };
    let delay = assert_too_many(&refused);
    controller.fabric_as("operator/otto").await.list_hosts(look()).await.expect("others are not concerned");
    tokio::time::sleep(delay + Duration::from_millis(600)).await;
    greta.list_hosts(look()).await.expect("again by then");
    controller.stop().await;
}

#[tokio::test]
async fn watches_are_counted_until_they_end() {
    let state = StateDir::new();
    let controller = controller(&state, CallLimits { streams: 2, ..CallLimits::default() }).await;
    let (mut anyone, _agents) = controller.three_hosts().await;
    let id = anyone.migrate_guest(move_web_1("r-1", "h2")).await.unwrap().into_inner().id;
    let mut greta = controller.fabric_as("operator/greta").await;
    let watch = || v1::WatchMigrationRequest { id: id.clone() };
    let first = greta.watch_migration(watch()).await.unwrap();
    let _second = greta.watch_migration(watch()).await.unwrap();
    assert_too_many(&greta.watch_migration(watch()).await.unwrap_err());
    greta.get_migration(v1::GetMigrationRequest { id: id.clone() }).await.expect("a call is no watch");
    drop(first);
    let began = Instant::now();
    while let Err(refused) = greta.watch_migration(watch()).await {
        assert_too_many(&refused);
        assert!(began.elapsed() < PATIENCE, "a watch that was given up counts for ever");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    controller.stop().await;
}

#[tokio::test]
async fn one_operator_does_not_take_all_moves() {
    let state = StateDir::new();
    let controller = controller(&state, CallLimits { migrations: 1, ..CallLimits::default() }).await;
    let (mut anyone, [h1, _h2, _h3]) = controller.three_hosts().await;
    anyone.create_guest(web(2, "h1")).await.unwrap();
    let running = |name: &str, generation| {
        let mut guest = v1::ObservedGuest { name: name.into(), generation, ..Default::default() };
        guest.set_state(v1::GuestState::Running);
        guest
    };
    let guests = vec![running("web-1", 1), running("web-2", 2)];
    h1.send(v1::agent_message::Message::Observed(v1::ObservedState {
        revision: 1,
        guests,
        problems: vec![],
        ..Default::default()
    }))
    .await;
    while anyone.get_guest(named_guest("web-2")).await.unwrap().into_inner().state() != v1::GuestState::Running {}
    let (mut greta, mut otto) =
        (controller.fabric_as("operator/greta").await, controller.fabric_as("operator/otto").await);
    greta.migrate_guest(move_web_1("r-1", "h2")).await.unwrap();
    greta.migrate_guest(move_web_1("r-1", "h2")).await.expect("the same request is no second migration");
    let second = || v1::MigrateGuestRequest { guest: "web-2".into(), ..move_web_1("r-2", "h2") };
    let refused = told(greta.migrate_guest(second()).await);
    assert_eq!(refused, (Code::ResourceExhausted, "TOO_MANY_MIGRATIONS".into(), "guest".into()));
    otto.migrate_guest(second()).await.expect("another operator's are another's");
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_greedy_operator_does_not_slow_agents() {
    let state = StateDir::new();
    let controller = controller(&state, CallLimits::default()).await;
    let (mut anyone, [mut h1, mut h2, mut h3]) = controller.three_hosts().await;
    let stop = Arc::new(AtomicBool::new(false));
    let (served, refused) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let began = Instant::now();
    let mut greedy = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let mut fabric = controller.fabric_as("operator/greta").await;
        let (stop, served, refused) = (stop.clone(), served.clone(), refused.clone());
        greedy.spawn(async move {
            while !stop.load(Relaxed) {
                match fabric.list_guests(v1::ListGuestsRequest::default()).await {
                    Ok(_) => served.fetch_add(1, Relaxed),
                    Err(status) => {
                        assert_too_many(&status);
                        refused.fetch_add(1, Relaxed)
                    }
                };
                // Slower than it could be: this test is not alone on the machine.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }
    while refused.load(Relaxed) < 200 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // A whole move meanwhile, and no agent is lost.
    let moved = Instant::now();
    let id = anyone.migrate_guest(move_web_1("r-1", "h2")).await.unwrap().into_inner().id;
    begin(&id, &mut h1, &mut h2).await;
    let committed = Instant::now();
    h2.news(&id, Role::Destination, Step::Running).await;
    let Down::Rebind(rebind) = h3.order().await else { panic!("the peer is told") };
    let told_after = committed.elapsed();
    h3.ack(&rebind).await;
    let Down::Rebind(rebind) = h1.order().await else { panic!("the source last") };
    h1.ack(&rebind).await;
    let Down::Settle(_) = h1.order().await else { panic!("settle was due") };
    let whole = moved.elapsed();
    stop.store(true, Relaxed);
    while let Some(ended) = greedy.join_next().await {
        ended.unwrap();
    }
    let most = 200 + (began.elapsed().as_secs_f64() * 100.0) as u32 + 1;
    let (served, refused) = (served.load(Relaxed), refused.load(Relaxed));
    println!("rebind after {told_after:?}, settle after {whole:?}; {served} calls served, {refused} refused");
    assert!(served <= most, "{served} of at most {most}");
    assert!(told_after < Duration::from_millis(500), "{told_after:?}");
    assert!(whole < Duration::from_secs(3), "{whole:?}");
    controller.stop().await;
}
