//! What every gRPC service owes its operators: health, reflection, one process a record.

use throughline_controller::{Config, ServeError, StoreError, serve};
use throughline_wire::v1;
use tokio_stream::StreamExt as _;
use tonic::transport::Channel;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::support::*;

async fn channel(controller: &Controller) -> Channel {
    Channel::from_shared(format!("http://{}", controller.address)).unwrap().connect().await.unwrap()
}

#[tokio::test]
async fn health_and_reflection_are_served() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let channel = channel(&controller).await;
    let request = HealthCheckRequest { service: "throughline.v1.Fabric".into() };
    let health = HealthClient::new(channel.clone()).check(request).await.unwrap().into_inner();
    assert_eq!(health.status(), ServingStatus::Serving);

    let message_request = Some(MessageRequest::ListServices(String::new()));
    let request = ServerReflectionRequest { host: String::new(), message_request };
    let mut client = ServerReflectionClient::new(channel);
    let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let answer = answers.next().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
    let names: Vec<_> = list.service.iter().map(|it| it.name.as_str()).collect();
    for name in ["throughline.v1.Fabric", "throughline.v1.AgentLink", "grpc.health.v1.Health"] {
        assert!(names.contains(&name), "{names:?}");
    }
    controller.stop().await;
}

#[tokio::test]
async fn a_record_has_one_controller() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    controller.fabric().await;
    let second = serve(insecure_door().await, Config::new(&state.0), std::future::pending()).await;
    assert!(matches!(second, Err(ServeError::Store(StoreError::InUse { .. }))), "{second:?}");
    controller.stop().await;
}

#[tokio::test]
async fn it_stops_while_agents_and_watchers_are_there() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let (mut fabric, [mut h1, _h2, _h3]) = controller.three_hosts().await;
    let id = fabric.migrate_guest(move_web_1("r-1", "h2")).await.unwrap().into_inner().id;
    let mut events = fabric.watch_migration(v1::WatchMigrationRequest { id }).await.unwrap().into_inner();
    let started = std::time::Instant::now();
    controller.stop().await;
    assert!(
        started.elapsed() < std::time::Duration::from_secs(3),
        "it waited for streams that do not end by themselves"
    );
    while let Ok(Some(_)) = h1.try_next().await {}
    let ended = loop {
        match events.message().await {
            Ok(Some(_)) => {}
            other => break other,
        }
    };
    assert!(ended.is_err(), "the migration has not ended, so the watch must not seem to have");
}
