//! The agent as a whole: outside systems opened, services served, until told to stop.

use std::sync::Arc;

use anyhow::Context as _;
use throughline_hypervisor::{Confinement, QemuUser, Sealer, probe_accelerator};
use throughline_loader::Datapath;
use throughline_netlink::Netlink;
use throughline_wire::v1::peer_server::PeerServer;
use tokio::{net::TcpListener, sync::watch};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tracing::{info, warn};

use crate::{
    config::Config,
    host::{Host, Systems},
    journal::Journal,
    link,
    peer::PeerService,
    reconcile, recover,
    uplink::Uplink,
};

/// Largest message another agent may send, bytes.
const LARGEST_MESSAGE: usize = 1 << 20;
/// User and group of who has nothing.
const NOBODY: QemuUser = QemuUser::One { uid: 65_534, gid: 65_534 };

/// Runs an agent until `shutdown` completes. Guests run on.
///
/// # Errors
/// When an outside system cannot be opened, or the listener fails.
pub async fn run(config: Config, shutdown: impl Future<Output = ()> + Send + 'static) -> anyhow::Result<()> {
    let listener = TcpListener::bind(config.peer_listen)
        .await
        .with_context(|| format!("--peer-listen {} cannot be listened on", config.peer_listen))?;
    let systems = open_systems(&config).await?;
    let (uplink, news) = Uplink::new();
    let host = Arc::new(Host::new(config, systems, uplink));
    recover::recover(&host).await?;

    let (desired, wanted) = watch::channel(None);
    let reconciling = tokio::spawn(reconcile::run(host.clone(), wanted));
    let linking = tokio::spawn(link::run(host.clone(), news, desired));

    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<PeerServer<PeerService>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(throughline_wire::DESCRIPTORS)
        .build_v1()
        .context("the protocol's own description does not read")?;
    info!(host = %host.name(), listen = %host.config.peer_listen, accelerator = %host.accelerator, "agent is up");
    let served = Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(std::time::Duration::from_secs(2)))
        .add_service(PeerServer::new(PeerService::new(host)).max_decoding_message_size(LARGEST_MESSAGE))
        .add_service(health_service)
        .add_service(reflection)
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), shutdown);
    served.await.context("the Peer service failed")?;
    linking.abort();
    reconciling.abort();
    info!("agent ends; guests run on");
    Ok(())
}

async fn open_systems(config: &Config) -> anyhow::Result<Systems> {
    let state_dir = &config.state_dir;
    std::fs::create_dir_all(state_dir)
        .with_context(|| format!("--state-dir {} cannot be made", state_dir.display()))?;
    let journal = Journal::open(&state_dir.join("journal.redb"))?;
    if let Some(fabric) = &config.join
        && journal.join(fabric)?
    {
        warn!(%fabric, "this host belongs to another fabric from now on, by its operator's word");
    }
    // A host that runs no guests needs no user for them; nobody is everywhere.
    let user = if config.peer_only { &NOBODY } else { &config.qemu_user };
    let confinement = Confinement::new(user, &config.cgroup)?;
    let program = Sealer::installed()?;
    let sealer = Sealer::open(&program).with_context(|| {
        format!("{}, which seals guests' memory on its way, is not beside the agent", program.display())
    })?;
    if config.memory_plaintext {
        warn!(
            "GUESTS' MEMORY CROSSES THE WIRE IN THE CLEAR (--memory-plaintext): whoever can reach the underlay can read and change it"
        );
    }
    let accelerator = probe_accelerator(config.accel, &confinement).await?;
    let netlink = Netlink::open().context("the kernel's network configuration cannot be reached; run as root")?;
    let bpffs = config.bpffs.clone();
    let datapath = tokio::task::spawn_blocking(move || Datapath::load(Some(&bpffs))).await?;
    let datapath =
        datapath.context("the tc programs could not be loaded; --bpffs must be on a mounted bpf file system")?;
    Ok(Systems { netlink, datapath, journal, accelerator, confinement, sealer })
}
