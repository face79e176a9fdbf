//! The process: store, driver and services, started and stopped together.

use std::{future::Future, io, path::PathBuf, time::Duration};

use throughline_cutover::{Mandate, Term};
use throughline_identity::Door;
use throughline_wire::{
    DESCRIPTORS,
    v1::{agent_link_server::AgentLinkServer, fabric_server::FabricServer},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{oneshot, watch},
    task::JoinHandle,
    time,
};
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::{Server, server::Connected};

use crate::{
    audit::Audit,
    core::{Core, Policy, Standing},
    driver::{self, Handle},
    guard::{Accepted, Arrival, CallLimits, Guard},
    record::Record,
    roles::{self, Book, RolesError},
    rpc::{AgentLinkService, FabricService},
    store::{EmbeddedStore, Store as _, StoreError, Writer},
};

/// Largest message taken, bytes.
const LARGEST_MESSAGE: usize = 1 << 20;
/// Largest message taken from an agent, bytes: it begins by naming its guests, at most some 6 KiB each.
const LARGEST_GREETING: usize = 16 << 20;
/// Calls under way on one connection.
const STREAMS: u32 = 256;
/// For a call that is not a stream.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How often an idle connection is probed, and how long it may take to answer.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// How long open calls may take to end once the controller stops.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Migrations that are over and kept, if nobody says otherwise.
pub const KEEP_MIGRATIONS: usize = 1000;

/// What the operator decides.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory of the record; made if it is not there.
    pub state_dir: PathBuf,
    /// May hosts nobody announced join?
    pub open_enrolment: bool,
    /// How often agents are to send a heartbeat, 100 ms to 60 s.
    pub heartbeat: Duration,
    /// The record was restored from a copy: until the next start, hosts that have guests at newer generations are believed. A
    /// copy from before the last start is recognised without being told.
    pub restored: bool,
    /// Which operator has which role; `None`: nobody has one. Read again when it changes.
    pub roles: Option<PathBuf>,
    /// How much one identity may ask for.
    pub limits: CallLimits,
    /// How many migrations that are over are kept with all that happened; older ones only so that a request that comes again
    /// is recognised.
    pub keep_migrations: usize,
}

impl Config {
    /// The defaults: anybody may join, a heartbeat a second, nobody has a role.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
            open_enrolment: true,
            heartbeat: Duration::from_secs(1),
            restored: false,
            roles: None,
            limits: CallLimits::default(),
            keep_migrations: KEEP_MIGRATIONS,
        }
    }
}

/// Why the controller stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The record cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It cannot be said who may do what.
    #[error(transparent)]
    Roles(#[from] RolesError),
    /// gRPC cannot be served.
    #[error("cannot serve gRPC: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// The protocol's description is damaged: the build is.
    #[error("cannot describe the protocol: {0}; build the controller anew")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The driver died of a defect.
    #[error("the driver died: {0}; please report it, with the log")]
    Driver(#[from] tokio::task::JoinError),
}

/// Serves those whom `door` lets in, see [`serve_connections`].
///
/// # Errors
/// As [`serve_connections`].
pub async fn serve(door: Door, config: Config, shutdown: impl Future<Output = ()> + Send) -> Result<(), ServeError> {
    let incoming = door.incoming().map(|connection| {
        let io = connection?;
        let arrival = Arrival { caller: io.caller().clone(), from: Some(io.peer()) };
        Ok(Accepted { io, arrival })
    });
    serve_connections(incoming, config, shutdown).await
}

/// Serves connections until `shutdown`, then lets open calls end. A connection says who is at its other end, by an [`Arrival`] or
/// a [`Caller`](throughline_identity::Caller) as its `ConnectInfo`; over one that does not, nothing may be called.
///
/// # Errors
/// [`ServeError`]. After [`ServeError::Store`] the record on disk is what holds; start again from it.
pub async fn serve_connections<IO>(
    incoming: impl Stream<Item = io::Result<IO>> + Send + 'static,
    config: Config,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError>
where
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let book = config.roles.as_deref().map_or_else(|| Ok(Book::default()), roles::read)?;
    let Running { driver, stop, task, mut standing, audit } = start(&config)?;
    let (book, roles) = watch::channel(book);
    if let Some(path) = config.roles.clone() {
        // Ends with the guard, which reads what it says.
        tokio::spawn(roles::follow(path, book));
    }
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<FabricServer<FabricService>>().await;
    health.set_serving::<AgentLinkServer<AgentLinkService>>().await;
    let reporter = health.clone();
    tokio::spawn(async move {
        // Ends with the driver, who has the other end.
        if standing.wait_for(|standing| *standing != Standing::Commands).await.is_ok() {
            reporter.set_not_serving::<FabricServer<FabricService>>().await;
            reporter.set_not_serving::<AgentLinkServer<AgentLinkService>>().await;
        }
    });
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let fabric = FabricServer::new(FabricService::new(driver.clone())).max_decoding_message_size(LARGEST_MESSAGE);
    let agents = AgentLinkServer::new(AgentLinkService::new(driver)).max_decoding_message_size(LARGEST_GREETING);
    let router = Server::builder()
        .max_concurrent_streams(STREAMS)
        .timeout(CALL_TIMEOUT)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .layer(Guard::new(roles, config.limits, audit.clone()))
        .add_service(health_service)
        .add_service(reflection)
        .add_service(fabric)
        .add_service(agents);
    let (drain, draining) = oneshot::channel();
    let mut server = tokio::spawn(router.serve_with_incoming_shutdown(incoming, async {
        // Either told to drain, or this function is gone: the same.
        let _ = draining.await;
    }));
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "systemd cannot be told that the controller serves");
    }
    let outcome = watch_over(shutdown, task, stop, &mut server).await;
    health.set_not_serving::<FabricServer<FabricService>>().await;
    let _ = drain.send(());
    if time::timeout(STOP_PATIENCE, &mut server).await.is_err() {
        server.abort();
    }
    audit.flush().await;
    outcome
}

/// The driver's task, the way to it, and its end.
struct Running {
    driver: Handle,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), StoreError>>,
    standing: watch::Receiver<Standing>,
    audit: Audit,
}

/// Opens the record, takes command in a new term, and starts the driver on it.
fn start(config: &Config) -> Result<Running, StoreError> {
    let mut store = EmbeddedStore::open(&config.state_dir)?;
    let mut record = Record::load(&store)?;
    record.take_command(Term(0));
    store.commit(&record.take_changes())?;
    let Mandate { fabric, term, .. } = record.mandate();
    tracing::info!(%fabric, %term, "takes command");
    let audit = Audit::open(&config.state_dir)?;
    let (writer, durable) = Writer::start(store);
    let (standing, told) = watch::channel(Standing::Commands);
    let policy = Policy {
        open_enrolment: config.open_enrolment,
        restored: config.restored,
        keep_migrations: config.keep_migrations,
        migrations_per_operator: config.limits.migrations,
    };
    let core = Core::new(record, writer, standing, config.heartbeat, policy, audit.clone());
    let (driver, jobs) = Handle::new();
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(driver::run(core, jobs, durable, stopped));
    Ok(Running { driver, stop, task, standing: told, audit })
}

/// Waits for the shutdown, or for the driver or the server to fail. Ends the driver, and with it every stream.
async fn watch_over(
    shutdown: impl Future<Output = ()>,
    mut driver: JoinHandle<Result<(), StoreError>>,
    stop: oneshot::Sender<()>,
    server: &mut JoinHandle<Result<(), tonic::transport::Error>>,
) -> Result<(), ServeError> {
    tokio::select! {
        () = shutdown => {}
        ended = &mut driver => return Ok(ended??),
        ended = server => ended??,
    }
    // A driver that has ended meanwhile is found below.
    let _ = stop.send(());
    Ok(driver.await??)
}
