//! What is kept of migrations that are over.

use throughline_controller::Config;
use throughline_wire::{
    limits::LONGEST_TEXT,
    v1::{self, Role, Step, controller_message::Message as Down},
};

use crate::support::*;

type Fabric = v1::fabric_client::FabricClient<tonic::transport::Channel>;

/// Admitted and undone.
async fn one(fabric: &mut Fabric, h2: &mut Agent, request: &str) -> v1::Migration {
    let id = fabric.migrate_guest(move_web_1(request, "h2")).await.unwrap().into_inner().id;
    let Down::Expect(_) = h2.order().await else { panic!("the destination is told first") };
    let mut aborted = update(&id, Role::Destination, Step::Aborted);
    aborted.failure = Some(v1::Failure { reason: "NO_ROOM".into(), message: "no room".into() });
    h2.update(aborted).await;
    get(fabric, &id).await
}

async fn get(fabric: &mut Fabric, id: &str) -> v1::Migration {
    loop {
        let migration = fabric.get_migration(v1::GetMigrationRequest { id: id.into() }).await.unwrap().into_inner();
        if migration.ended_at_ms > 0 {
            return migration;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

async fn listed(fabric: &mut Fabric) -> Vec<String> {
    let page = fabric.list_migrations(v1::ListMigrationsRequest::default()).await.unwrap().into_inner();
    page.migrations.into_iter().map(|it| it.request_id).collect()
}

#[tokio::test]
async fn old_migrations_are_kept_as_outlines() {
    let state = StateDir::new();
    let config = || Config { keep_migrations: 2, ..Config::new(&state.0) };
    let controller = Controller::with(config()).await;
    let (mut fabric, [_h1, mut h2, _h3]) = controller.three_hosts().await;
    let mut all = Vec::new();
    for n in 0..5 {
        all.push(one(&mut fabric, &mut h2, &format!("r-{n}")).await);
    }
    assert_eq!(listed(&mut fabric).await, ["r-4", "r-3"], "the newest are kept whole");
    let outline = |whole: &v1::Migration| v1::Migration { progress: None, report: None, ..whole.clone() };
    for whole in &all[..3] {
        assert_eq!(get(&mut fabric, &whole.id).await, outline(whole), "how the others ended is known");
        let watch = v1::WatchMigrationRequest { id: whole.id.clone() };
        assert_eq!(told(fabric.watch_migration(watch).await).1, "UNKNOWN_MIGRATION", "not what happened");
    }
    controller.stop().await;

    // A request that comes again is recognised, also by another controller.
    let controller = Controller::with(config()).await;
    let mut fabric = controller.fabric().await;
    for (n, whole) in all.iter().enumerate() {
        let again = fabric.migrate_guest(move_web_1(&format!("r-{n}"), "h2")).await.unwrap().into_inner();
        assert_eq!((&again.id, again.phase()), (&whole.id, v1::Phase::Aborted));
        let other = move_web_1(&format!("r-{n}"), "h3");
        assert_eq!(told(fabric.migrate_guest(other).await).1, "REQUEST_ID_REUSED");
    }
    assert_eq!(listed(&mut fabric).await, ["r-4", "r-3"]);
    controller.stop().await;

    // One that is told to keep less does so at its start.
    let controller = Controller::with(Config { keep_migrations: 1, ..config() }).await;
    assert_eq!(listed(&mut controller.fabric().await).await, ["r-4"]);
    controller.stop().await;
}

#[tokio::test]
async fn an_outline_says_that_its_guest_was_stopped_first() {
    let state = StateDir::new();
    let controller = Controller::with(Config { keep_migrations: 0, ..Config::new(&state.0) }).await;
    let (mut fabric, _agents) = controller.three_hosts().await;
    let stop_first = Some(v1::StopFirst { deadline_ms: 7, otherwise: v1::RunsOn::Stay.into() });
    let wish = v1::MigrateGuestRequest { stop_first, ..move_web_1("r-1", "h2") };
    let id = fabric.migrate_guest(wish).await.unwrap().into_inner().id;
    let outline = get(&mut fabric, &id).await;
    assert_eq!((outline.phase(), outline.stop_first), (v1::Phase::Aborted, stop_first));
    assert_eq!(listed(&mut fabric).await, [""; 0], "nothing else is left of it");
    controller.stop().await;
}

#[tokio::test]
async fn an_agent_that_talks_on_and_on_does_not_fill_the_record() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let (mut fabric, [mut h1, mut h2, _h3]) = controller.three_hosts().await;
    let id = fabric.migrate_guest(move_web_1("r-1", "h2")).await.unwrap().into_inner().id;
    begin(&id, &mut h1, &mut h2).await;
    for n in 0..700 {
        let mut stalled = update(&id, Role::Source, Step::Stalled);
        stalled.failure =
            Some(v1::Failure { reason: "NOT_CONVERGING".into(), message: format!("{n}{}", "x".repeat(4096)) });
        h1.update(stalled).await;
        h1.news(&id, Role::Source, Step::Running).await;
    }
    let mut aborted = update(&id, Role::Source, Step::Aborted);
    aborted.failure = Some(v1::Failure { reason: "X".into(), message: "y\nz".into() });
    h1.update(aborted).await;
    let Down::Abort(_) = h2.order().await else { panic!("an abort was due") };
    h2.news(&id, Role::Destination, Step::Aborted).await;
    let migration = get(&mut fabric, &id).await;
    assert!(
        migration.stalls.len() <= 64 && migration.stalls.iter().all(|it| it.len() <= LONGEST_TEXT),
        "{}",
        migration.stalls.len()
    );
    assert_eq!(migration.failure.unwrap().message, "y\u{fffd}z");
    let mut events = fabric.watch_migration(v1::WatchMigrationRequest { id }).await.unwrap().into_inner();
    let (mut count, mut last) = (0, None);
    while let Some(event) = events.message().await.unwrap() {
        (count, last) = (count + 1, Some(event));
    }
    assert!(count <= 300, "{count}");
    assert_eq!(last.unwrap().migration.unwrap().phase(), v1::Phase::Aborted, "what was last is kept");
    controller.stop().await;
}
