//! The real controller on a loopback port, and scripted agents that speak `AgentLink` to it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use futures::StreamExt as _;
use throughline_controller::{Accepted, Arrival, Config, ServeError, serve_connections};
use throughline_identity::{Caller, Door, Security};
use throughline_wire::{
    Explanation,
    v1::{
        self, AgentMessage, CreateGuestRequest, CreateNetworkRequest, agent_link_client::AgentLinkClient,
        agent_message::Message as Up, controller_message::Message as Down, fabric_client::FabricClient,
    },
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Status, Streaming, transport::Channel};

/// Longest wait for anything; a test that waits longer has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A directory that goes with the test.
pub(crate) struct StateDir(pub(crate) PathBuf);

impl StateDir {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("throughline-controller-test-{}-{number}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    /// Makes the directory, as a controller would, so that a file can be put there before there is one.
    pub(crate) fn make(&self) {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0).unwrap();
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running controller.
pub(crate) struct Controller {
    /// Whoever comes in here has proved nothing and may do anything.
    pub(crate) address: SocketAddr,
    doors: BTreeMap<String, SocketAddr>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Controller {
    pub(crate) async fn start(state: &StateDir) -> Self {
        Self::with(Config { heartbeat: Duration::from_millis(200), ..Config::new(&state.0) }).await
    }

    pub(crate) async fn with(config: Config) -> Self {
        Self::with_doors(config, &[]).await
    }

    /// A controller with a door of its own for each of some identities: who comes in there is that one.
    pub(crate) async fn with_doors(config: Config, identities: &[&str]) -> Self {
        let mut doors = BTreeMap::new();
        let mut incoming = Vec::new();
        let known = identities.iter().map(|it| ((*it).to_owned(), Caller::Known(it.parse().unwrap())));
        for (name, caller) in [(String::new(), Caller::Unproven)].into_iter().chain(known) {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            doors.insert(name, listener.local_addr().unwrap());
            incoming.push(TcpListenerStream::new(listener).map(move |accepted| {
                let io = accepted?;
                let arrival = Arrival { caller: caller.clone(), from: io.peer_addr().ok() };
                Ok(Accepted { io, arrival })
            }));
        }
        let incoming = futures::stream::select_all(incoming);
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            let _ = stopped.await;
        };
        let task = tokio::spawn(serve_connections(incoming, config, shutdown));
        Self { address: doors[""], doors, stop, task }
    }

    /// The door of an identity.
    pub(crate) fn door(&self, identity: &str) -> SocketAddr {
        self.doors[identity]
    }

    pub(crate) async fn channel_as(&self, identity: &str) -> Channel {
        Channel::from_shared(format!("http://{}", self.door(identity))).unwrap().connect().await.unwrap()
    }

    pub(crate) async fn fabric_as(&self, identity: &str) -> FabricClient<Channel> {
        FabricClient::new(self.channel_as(identity).await)
    }

    pub(crate) async fn stop(self) {
        self.stop.send(()).unwrap();
        timeout(PATIENCE, self.task).await.expect("stops in time").unwrap().expect("stops cleanly");
    }

    pub(crate) async fn fabric(&self) -> FabricClient<Channel> {
        FabricClient::connect(format!("http://{}", self.address)).await.unwrap()
    }

    /// Network blue, h1 and h2 with 1 GiB each, a peer h3, and web-1 running on h1.
    pub(crate) async fn three_hosts(&self) -> (FabricClient<Channel>, [Agent; 3]) {
        let mut fabric = self.fabric().await;
        fabric.create_network(blue()).await.unwrap();
        let agents = [self.agent("h1", 1).await, self.agent("h2", 2).await, self.peer("h3", 3).await];
        fabric.create_guest(web(1, "h1")).await.unwrap();
        agents[0].runs("web-1", 1).await;
        while fabric.get_guest(named_guest("web-1")).await.unwrap().into_inner().state() != v1::GuestState::Running {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        (fabric, agents)
    }

    pub(crate) async fn agent(&self, name: &str, n: u8) -> Agent {
        Agent::connect(self.address, hello(name, n)).await.expect("agent is taken in")
    }

    pub(crate) async fn peer(&self, name: &str, n: u8) -> Agent {
        let hello = v1::Hello { peer_only: true, memory_kib: 0, ..hello(name, n) };
        Agent::connect(self.address, hello).await.expect("peer is taken in")
    }
}

/// A door on a free port of the loopback interface that asks nobody who they are.
pub(crate) async fn insecure_door() -> Door {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Door::new(listener, Security::Insecure).unwrap()
}

pub(crate) fn hello(name: &str, n: u8) -> v1::Hello {
    v1::Hello {
        host: name.into(),
        vtep: format!("192.0.2.{n}"),
        peer_endpoint: format!("192.0.2.{n}:7701"),
        memory_kib: 1 << 20,
        accelerator: "tcg".into(),
        agent_version: "0.1.0".into(),
        ..Default::default()
    }
}

pub(crate) fn blue() -> CreateNetworkRequest {
    CreateNetworkRequest { network: Some(v1::Network { name: "blue".into(), vni: 7, mtu: 0 }) }
}

pub(crate) fn web(n: u8, host: &str) -> CreateGuestRequest {
    let port = v1::Port { id: 0, network: "blue".into(), mac: String::new(), ips: vec![format!("10.7.0.{}", 9 + n)] };
    let boot = v1::Boot { kernel: "/boot/vmlinuz".into(), initrd: String::new(), cmdline: "console=ttyS0".into() };
    let spec = v1::GuestSpec {
        name: format!("web-{n}"),
        vcpus: 1,
        queues: 1,
        memory_kib: 262_136,
        boot: Some(boot),
        ports: vec![port],
        disks: vec![],
        guest_agent: false,
    };
    CreateGuestRequest { spec: Some(spec), host: host.into() }
}

/// Ends a guest that has no disks.
pub(crate) fn delete(name: &str) -> v1::DeleteGuestRequest {
    v1::DeleteGuestRequest { name: name.into(), disks: v1::DiskFate::Unspecified.into() }
}

/// The order that comes of it.
pub(crate) fn end_guest(name: &str, generation: u64) -> v1::EndGuest {
    v1::EndGuest { name: name.into(), generation, disks: v1::DiskFate::Keep.into() }
}

pub(crate) fn named_guest(name: &str) -> v1::GetGuestRequest {
    v1::GetGuestRequest { name: name.into() }
}

pub(crate) fn move_web_1(request_id: &str, to: &str) -> v1::MigrateGuestRequest {
    v1::MigrateGuestRequest {
        request_id: request_id.into(),
        guest: "web-1".into(),
        destination_host: to.into(),
        ..Default::default()
    }
}

/// Reason and field of an error.
pub(crate) fn told<T: std::fmt::Debug>(result: Result<T, Status>) -> (tonic::Code, String, String) {
    let status = result.expect_err("must be refused");
    let Explanation { reason, field, message } = Explanation::from(&status);
    assert!(message.len() < 300, "a giant value must not be repeated: {} bytes", message.len());
    (status.code(), reason, field.unwrap_or_default())
}

/// A scripted agent.
pub(crate) struct Agent {
    up: mpsc::Sender<AgentMessage>,
    down: Streaming<v1::ControllerMessage>,
    heart: JoinHandle<()>,
    /// By what right it is commanded.
    pub(crate) mandate: v1::Mandate,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.heart.abort();
    }
}

impl Agent {
    pub(crate) async fn connect(address: SocketAddr, hello: v1::Hello) -> Result<Self, Status> {
        let mut client = AgentLinkClient::connect(format!("http://{address}")).await.unwrap();
        let (up, queue) = mpsc::channel(64);
        up.send(AgentMessage { message: Some(Up::Hello(hello)) }).await.unwrap();
        let down = client.attach(ReceiverStream::new(queue)).await?.into_inner();
        let beats = up.clone();
        let heart = tokio::spawn(async move {
            for sequence in 1.. {
                let beat = AgentMessage { message: Some(Up::Heartbeat(v1::Heartbeat { sequence })) };
                if beats.send(beat).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        let mut agent = Self { up, down, heart, mandate: v1::Mandate::default() };
        agent.mandate = agent.welcome().await;
        Ok(agent)
    }

    /// The next message, which greets.
    pub(crate) async fn welcome(&mut self) -> v1::Mandate {
        match self.next().await {
            Down::Welcome(welcome) => welcome.mandate.expect("a controller says by what right it commands"),
            other => panic!("a greeting was due: {other:?}"),
        }
    }

    /// Goes silent, its stream still open.
    pub(crate) fn stop_heart(&self) {
        self.heart.abort();
    }

    pub(crate) async fn send(&self, message: Up) {
        self.up.send(AgentMessage { message: Some(message) }).await.unwrap();
    }

    /// The next message down.
    pub(crate) async fn next(&mut self) -> Down {
        self.try_next().await.expect("stream is well").expect("stream is open")
    }

    pub(crate) async fn try_next(&mut self) -> Result<Option<Down>, Status> {
        let message = timeout(PATIENCE, self.down.message()).await.expect("a message in time")?;
        Ok(message.and_then(|message| message.message))
    }

    /// The next message that is no desired state.
    pub(crate) async fn order(&mut self) -> Down {
        loop {
            match self.next().await {
                Down::Desired(_) => {}
                order => return order,
            }
        }
    }

    /// The first desired state that fits, from here on.
    pub(crate) async fn desired(&mut self, fits: impl Fn(&v1::DesiredState) -> bool) -> v1::DesiredState {
        loop {
            match self.next().await {
                Down::Desired(desired) if fits(&desired) => return desired,
                Down::Desired(_) => {}
                other => panic!("an order instead of a desired state: {other:?}"),
            }
        }
    }

    pub(crate) async fn runs(&self, guest: &str, generation: u64) {
        let mut observed = v1::ObservedGuest { name: guest.into(), generation, ..Default::default() };
        observed.set_state(v1::GuestState::Running);
        self.send(Up::Observed(v1::ObservedState {
            revision: 1,
            guests: vec![observed],
            problems: vec![],
            ..Default::default()
        }))
        .await;
    }

    pub(crate) async fn news(&self, id: &str, role: v1::Role, step: v1::Step) {
        self.update(update(id, role, step)).await;
    }

    pub(crate) async fn update(&self, update: v1::MigrationUpdate) {
        self.send(Up::Migration(update)).await;
    }

    pub(crate) async fn ack(&self, rebind: &v1::Rebind) {
        let ack = v1::RebindAck { rebind_id: rebind.rebind_id.clone(), applied: true, failure: None };
        self.send(Up::RebindAck(ack)).await;
    }
}

pub(crate) fn update(id: &str, role: v1::Role, step: v1::Step) -> v1::MigrationUpdate {
    let mut update = v1::MigrationUpdate { migration_id: id.into(), ..Default::default() };
    update.set_role(role);
    update.set_step(step);
    update
}

/// The beginning of a move: the destination is told first, and the source when it expects the guest.
pub(crate) async fn begin(id: &str, source: &mut Agent, destination: &mut Agent) {
    let Down::Expect(_) = destination.order().await else { panic!("the destination is told first") };
    destination.news(id, v1::Role::Destination, v1::Step::Expecting).await;
    let Down::Start(_) = source.order().await else { panic!("then the source") };
}
