//! A controller on a port of its own whose answers are scripted, in JSON.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use throughline_identity::{Door, Security};
use throughline_wire::v1::{
    fabric_server::{Fabric, FabricServer},
    *,
};
use tokio::{net::TcpListener, runtime::Runtime, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, transport::Server};

use crate::run::pki;

/// What a call is answered with.
pub(crate) enum Answer {
    /// This message.
    Message(Value),
    /// This error.
    Error(Status),
    /// Nothing, ever.
    Silence,
}

/// What happens on a watch.
pub(crate) enum Step {
    /// This event is sent.
    Event(Value),
    /// Nothing, for so long.
    Wait(Duration),
    /// The stream stays open and nothing more is sent.
    Silence,
}

#[derive(Default)]
struct Script {
    answers: HashMap<String, VecDeque<Answer>>,
    watches: VecDeque<Vec<Step>>,
    asked: Vec<(String, Value)>,
}

#[derive(Clone, Default)]
struct Service(Arc<Mutex<Script>>);

/// The controller; gone when dropped, its connections with it.
pub(crate) struct Controller {
    pub(crate) address: SocketAddr,
    service: Service,
    runtime: Option<Runtime>,
}

impl Controller {
    /// Starts one on a free port of the loopback interface.
    pub(crate) fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap())
    }

    /// Starts one at an address.
    pub(crate) fn start_at(address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind(address)).expect("a free port on the loopback interface");
        let address = listener.local_addr().unwrap();
        let security = Security::load(&pki().join("controller"), false).unwrap();
        let door = Door::new(listener, security).unwrap();
        let service = Service::default();
        let server = Server::builder().add_service(FabricServer::new(service.clone()));
        // On the runtime, which the door's own task needs.
        runtime.spawn(async { server.serve_with_incoming(door.incoming()).await });
        Self { address, service, runtime: Some(runtime) }
    }

    /// The next answer to `call` (its Rust name: `create_network`).
    pub(crate) fn answer(&self, call: &str, answer: Answer) -> &Self {
        self.service.0.lock().unwrap().answers.entry(call.to_owned()).or_default().push_back(answer);
        self
    }

    /// The next answer to `call` is this message.
    pub(crate) fn says(&self, call: &str, message: Value) -> &Self {
        self.answer(call, Answer::Message(message))
    }

    /// What happens on the next watch.
    pub(crate) fn watched(&self, steps: Vec<Step>) -> &Self {
        self.service.0.lock().unwrap().watches.push_back(steps);
        self
    }

    /// Requests so far to `call`.
    pub(crate) fn asked(&self, call: &str) -> Vec<Value> {
        let script = self.service.0.lock().unwrap();
        script.asked.iter().filter(|(name, _)| name == call).map(|(_, request)| request.clone()).collect()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

impl Service {
    fn note(&self, call: &str, request: impl Serialize) {
        let request = serde_json::to_value(request).unwrap();
        self.0.lock().unwrap().asked.push((call.to_owned(), request));
    }

    async fn answer<T: DeserializeOwned>(&self, call: &str, request: impl Serialize) -> Result<Response<T>, Status> {
        self.note(call, request);
        let answer = self.0.lock().unwrap().answers.get_mut(call).and_then(VecDeque::pop_front);
        match answer {
            Some(Answer::Message(message)) => Ok(Response::new(serde_json::from_value(message).unwrap())),
            Some(Answer::Error(status)) => Err(status),
            Some(Answer::Silence) => std::future::pending().await,
            None => Err(Status::unimplemented(format!("the test has no answer to {call}"))),
        }
    }
}

/// Plays `steps` into a watch until they end or the watcher leaves.
async fn play(steps: Vec<Step>, events: mpsc::Sender<Result<MigrationEvent, Status>>) {
    for step in steps {
        match step {
            Step::Event(event) => {
                if events.send(Ok(serde_json::from_value(event).unwrap())).await.is_err() {
                    return;
                }
            }
            Step::Wait(time) => tokio::time::sleep(time).await,
            Step::Silence => events.closed().await,
        }
    }
}

/// The service: every unary call is answered from the script.
macro_rules! fabric {
    ($($call:ident($request:ty) -> $response:ty;)*) => {
        #[tonic::async_trait]
        impl Fabric for Service {
            $(async fn $call(&self, request: Request<$request>) -> Result<Response<$response>, Status> {
                self.answer(stringify!($call), request.into_inner()).await
            })*

            type WatchMigrationStream = ReceiverStream<Result<MigrationEvent, Status>>;

            async fn watch_migration(
                &self,
                request: Request<WatchMigrationRequest>,
            ) -> Result<Response<Self::WatchMigrationStream>, Status> {
                self.note("watch_migration", request.into_inner());
                let steps = self.0.lock().unwrap().watches.pop_front();
                let steps = steps.ok_or_else(|| Status::not_found("the test has no such migration"))?;
                let (sender, receiver) = mpsc::channel(1);
                tokio::spawn(play(steps, sender));
                Ok(Response::new(ReceiverStream::new(receiver)))
            }
        }
    };
}

fabric! {
    create_network(CreateNetworkRequest) -> Network;
    get_network(GetNetworkRequest) -> Network;
    list_networks(ListNetworksRequest) -> ListNetworksResponse;
    delete_network(DeleteNetworkRequest) -> DeleteNetworkResponse;
    create_host(CreateHostRequest) -> Host;
    get_host(GetHostRequest) -> Host;
    list_hosts(ListHostsRequest) -> ListHostsResponse;
    delete_host(DeleteHostRequest) -> DeleteHostResponse;
    create_guest(CreateGuestRequest) -> Guest;
    get_guest(GetGuestRequest) -> Guest;
    list_guests(ListGuestsRequest) -> ListGuestsResponse;
    stop_guest(StopGuestRequest) -> Guest;
    start_guest(StartGuestRequest) -> Guest;
    delete_guest(DeleteGuestRequest) -> DeleteGuestResponse;
    create_endpoint(CreateEndpointRequest) -> Endpoint;
    get_endpoint(GetEndpointRequest) -> Endpoint;
    list_endpoints(ListEndpointsRequest) -> ListEndpointsResponse;
    delete_endpoint(DeleteEndpointRequest) -> DeleteEndpointResponse;
    create_replica(CreateReplicaRequest) -> Replica;
    get_replica(GetReplicaRequest) -> Replica;
    list_replicas(ListReplicasRequest) -> ListReplicasResponse;
    delete_replica(DeleteReplicaRequest) -> DeleteReplicaResponse;
    promote_replica(PromoteReplicaRequest) -> Guest;
    test_replica(TestReplicaRequest) -> Replica;
    end_replica_test(EndReplicaTestRequest) -> Replica;
    migrate_guest(MigrateGuestRequest) -> Migration;
    get_migration(GetMigrationRequest) -> Migration;
    list_migrations(ListMigrationsRequest) -> ListMigrationsResponse;
    cancel_migration(CancelMigrationRequest) -> Migration;
    resolve_migration(ResolveMigrationRequest) -> Migration;
}
