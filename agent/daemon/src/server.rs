//! The agent as a whole: outside systems opened, services served, until told to stop.

use std::sync::Arc;

use anyhow::Context as _;
use throughline_confine::{passage_dir, private_dir};
use throughline_hypervisor::{AcceleratorChoice, Confinement, QemuUser, Sealer, probe_accelerator};
use throughline_identity::{Door, Identity, Security};
use throughline_loader::Datapath;
use throughline_netlink::Netlink;
use throughline_wire::{limits::LARGEST_PEER_MESSAGE, v1::peer_server::PeerServer};
use tokio::{net::TcpListener, sync::watch};
use tonic::transport::Server;
use tracing::{info, warn};

use crate::{
    config::Config,
    disks::Store,
    host::{Host, Systems},
    journal::Journal,
    link,
    peer::{PeerService, Proof},
    reconcile, recover, strays,
    uplink::Uplink,
};

/// Calls under way on one connection.
const STREAMS: u32 = 16;
/// Longest headers of a call, bytes.
const LONGEST_HEADERS: u32 = 16 << 10;
/// User and group of who has nothing.
const NOBODY: QemuUser = QemuUser::One { uid: 65_534, gid: 65_534 };

/// Runs an agent until `shutdown` completes. Guests run on.
///
/// # Errors
/// When an outside system cannot be opened, or the listener fails.
pub async fn run(config: Config, shutdown: impl Future<Output = ()> + Send + 'static) -> anyhow::Result<()> {
    let security = open_security(&config)?;
    let listener = TcpListener::bind(config.peer_listen)
        .await
        .with_context(|| format!("--peer-listen {} cannot be listened on", config.peer_listen))?;
    let door = Door::new(listener, security.clone())
        .with_context(|| format!("--peer-listen {} cannot be served on", config.peer_listen))?;
    let systems = open_systems(&config, security).await?;
    let (uplink, news) = Uplink::new();
    let host = Arc::new(Host::new(config, systems, uplink));
    // Beside the rest: it may take 2 s, and an end of a move may be waiting for this agent.
    let probed = host.clone();
    // A host that runs no guests has no use for one, nor the privileges to try.
    let choice = if host.config.peer_only { AcceleratorChoice::Tcg } else { host.config.accel };
    let probing = tokio::spawn(async move { probe_accelerator(choice, &probed.confinement).await });
    recover::recover(&host).await?;

    let (desired, wanted) = watch::channel(None);
    let reconciling = tokio::spawn(reconcile::run(host.clone(), wanted));
    let linked = host.clone();
    let linking = tokio::spawn(async move {
        linked.offers(probing.await??);
        link::run(linked, news, desired).await;
        anyhow::Ok(())
    });
    let watching = tokio::spawn(strays::watch(host.clone()));
    let sweeping = tokio::spawn(host.clone().remove_old_parts());

    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<PeerServer<PeerService>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(throughline_wire::DESCRIPTORS)
        .build_v1()
        .context("the protocol's own description does not read")?;
    info!(host = %host.name(), listen = %host.config.peer_listen, "agent is up");
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        warn!(%error, "systemd cannot be told that the agent is up");
    }
    let proof = if host.config.insecure { Proof::NotAsked } else { Proof::Required };
    let served = Server::builder()
        .http2_keepalive_interval(Some(std::time::Duration::from_secs(2)))
        .max_concurrent_streams(STREAMS)
        .http2_max_header_list_size(LONGEST_HEADERS)
        .add_service(
            PeerServer::new(PeerService::new(host.clone(), proof)).max_decoding_message_size(LARGEST_PEER_MESSAGE),
        )
        .add_service(health_service)
        .add_service(reflection)
        .serve_with_incoming_shutdown(door.incoming(), shutdown);
    let unlink = linking.abort_handle();
    tokio::select! {
        served = served => served.context("the Peer service failed")?,
        linked = linking => linked.context("the link to the controller died")??,
    }
    unlink.abort();
    reconciling.abort();
    watching.abort();
    sweeping.abort();
    host.end_tests().await;
    info!("agent ends; guests run on");
    Ok(())
}

/// What proves that this is the agent of `--host`. What can be seen to be wrong now is said now, not at the first call.
fn open_security(config: &Config) -> anyhow::Result<Security> {
    let security = Security::of_daemon(&config.tls, config.insecure, &Identity::Agent(config.host.clone()))?;
    let controller = config.controller().parse().context("--controller is no address")?;
    security.check(&controller).context("--controller")?;
    Ok(security)
}

async fn open_systems(config: &Config, security: Security) -> anyhow::Result<Systems> {
    let state_dir = &config.state_dir;
    // Guests' users pass through it to their run directories.
    let keep_to_itself = if config.peer_only { private_dir } else { passage_dir };
    keep_to_itself(state_dir).context("--state-dir cannot be used")?;
    private_dir(&config.bpffs).context("--bpffs cannot be used; it must be on a mounted bpf file system")?;
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
    let disks = (!config.peer_only).then(|| Store::open(&config.disk_dir(), user, config.elsewhere())).transpose()?;
    let replicas = disks.as_ref().map(Store::open_replicas).transpose()?;
    let netlink = Netlink::open().context("the kernel's network configuration cannot be reached; run as root")?;
    let bpffs = config.bpffs.clone();
    let datapath = tokio::task::spawn_blocking(move || Datapath::load(Some(&bpffs))).await?;
    let datapath =
        datapath.context("the tc programs could not be loaded; --bpffs must be on a mounted bpf file system")?;
    Ok(Systems { security, netlink, datapath, journal, confinement, sealer, disks, replicas })
}
