//! Replicas as the controller wants them here, and as they are.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use throughline_cutover::{Keeping, MOST_POINTS, ReplicaId, Replication};
use throughline_wire::v1;
use tokio::time::sleep;
use tracing::{info, warn};

use super::Kept;
use crate::host::Host;

/// How soon it is looked again what there is of a replica, if that could not be seen.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Sends and keeps what is wanted, and lets go of what is not. What takes time goes its own way; what cannot be read or removed is told in
/// words.
pub async fn reconcile(host: &Arc<Host>, state: &v1::DesiredState, problems: &mut Vec<String>) {
    let mut sent = Vec::new();
    for wanted in state.replications.iter().cloned() {
        // One that cannot be read in all is not one that is not wanted.
        sent.extend(wanted.id.parse::<ReplicaId>());
        match Replication::try_from(wanted) {
            Ok(replication) => host.senders.send(host, replication),
            Err(error) => problems.push(format!("a replica to be sent: {error}")),
        }
    }
    host.senders.retain(host, &sent);
    let mut wanted = Vec::new();
    for keeping in state.replicas.iter().cloned() {
        wanted.extend(keeping.id.parse::<ReplicaId>());
        match Keeping::try_from(keeping) {
            Ok(keeping) => keep(host, keeping),
            Err(error) => problems.push(format!("a replica to be kept: {error}")),
        }
    }
    let goes = |id: &ReplicaId| state.remove_replicas.iter().any(|it| it == id.as_str());
    for kept in host.keepers.all().into_iter().filter(|kept| !wanted.contains(kept.id()) && !goes(kept.id())) {
        // Its files stay until they are named to go.
        host.keepers.forget(kept.id());
        let host = host.clone();
        tokio::spawn(async move {
            kept.testing.end().await;
            if let Err(failure) = kept.rest(&host).await {
                warn!(replica = %kept.id(), %failure, "the QEMU of a replica that is not wanted any more runs on");
            }
        });
    }
    for id in &state.remove_replicas {
        if let Err(problem) = remove(host, id).await {
            problems.push(format!("replica {id}, which is to go: {problem}; it is tried again"));
            let host = host.clone();
            tokio::spawn(async move {
                sleep(LOOK_AGAIN).await;
                host.look_again.notify_one();
            });
        }
    }
}

/// It is kept as told; its points are looked at if nobody has since this agent began.
fn keep(host: &Arc<Host>, keeping: Keeping) {
    let is_new = host.keepers.get(&keeping.id).is_none();
    let kept = host.keepers.keep(keeping);
    kept.test_as_told(host);
    if is_new {
        tokio::spawn(look(host.clone(), kept));
    }
}

/// Looks what points there are, until that is known or nobody wants to know.
async fn look(host: Arc<Host>, kept: Arc<Kept>) {
    while host.keepers.get(kept.id()).is_some_and(|now| Arc::ptr_eq(&now, &kept)) {
        match kept.look(&host).await {
            Ok(()) => {
                host.look_again.notify_one();
                return;
            }
            Err(failure) => {
                warn!(replica = %kept.id(), %failure, "what there is of a replica is not known yet");
                kept.failed(failure);
            }
        }
        sleep(LOOK_AGAIN).await;
    }
}

async fn remove(host: &Arc<Host>, id: &str) -> Result<(), String> {
    let id: ReplicaId = id.parse().map_err(|_| "it is no id".to_owned())?;
    if host.replicas.is_none() {
        return Ok(());
    }
    let ended = match host.keepers.forget(&id) {
        Some(kept) => {
            kept.testing.end().await;
            kept.rest(host).await.map(drop)
        }
        None => host.end_keeper(&id).await,
    };
    ended.map_err(|failure| failure.to_string())?;
    let gone = id.clone();
    let was_there = host.with_replicas(move |replicas| {
        let was_there = replicas.ids()?.contains(&gone);
        replicas.remove(&gone).map(|()| was_there)
    });
    if was_there.await.map_err(|failure| failure.to_string())? {
        info!(replica = %id, "a replica is removed");
    }
    Ok(())
}

/// What there is of replicas here, and how those of this host's guests get on.
pub async fn observed(host: &Host) -> Vec<v1::ObservedReplica> {
    let mut all: BTreeMap<ReplicaId, v1::ObservedReplica> = BTreeMap::new();
    let entry = |id: &ReplicaId| v1::ObservedReplica { id: id.to_string(), ..Default::default() };
    if host.replicas.is_some() {
        match host.with_replicas(|replicas| replicas.ids()).await {
            Ok(ids) => all.extend(ids.iter().map(|id| (id.clone(), entry(id)))),
            Err(failure) => warn!(%failure, "replicas that are kept here are not told of"),
        }
    }
    for kept in host.keepers.all() {
        let (points, failure) = kept.seen();
        let it = all.entry(kept.id().clone()).or_insert_with(|| entry(kept.id()));
        // One more than may be told of is there for a moment, until the oldest has gone.
        let untold = points.len().saturating_sub(MOST_POINTS as usize);
        it.points = points.into_iter().skip(untold).map(Into::into).collect();
        it.failure = failure.map(Into::into);
        it.test = kept.testing.observed();
    }
    for (id, sender) in host.senders.all() {
        let sent = sender.sent();
        let it = all.entry(id.clone()).or_insert_with(|| entry(&id));
        (it.copied, it.total, it.failure) = (sent.copied, sent.total, sent.failure.map(Into::into));
    }
    all.into_values().collect()
}
