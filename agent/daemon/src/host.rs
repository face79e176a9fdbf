//! What every part of the agent shares: the outside systems, the guests that live here, the moves under way.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use throughline_cutover::{GuestName, HostName, MacAddr, Vni};
use throughline_hypervisor::{Accelerator, Confinement, GuestEventKind, Sealer};
use throughline_identity::Security;
use throughline_loader::Datapath;
use throughline_netlink::Netlink;
use tokio::sync::{Mutex, Notify, Semaphore};

use crate::{
    bindings::Bindings,
    clock::Monotonic,
    config::Config,
    disks::{Replicas, Store},
    flows,
    gates::Gates,
    journal::Journal,
    moves::Moves,
    replica::{Keepers, Senders},
    resident::Resident,
    stops::{self, Stops},
    uplink::Uplink,
    watch::next,
};

/// One host's agent.
#[derive(Debug)]
pub struct Host {
    /// What the operator decided.
    pub config: Config,
    /// How connections are proved.
    pub security: Security,
    /// What guests' QEMUs run in.
    pub confinement: Confinement,
    /// What seals guests' memory on its way.
    pub sealer: Sealer,
    /// Guests' disks; `None` on a host that runs no guests.
    pub disks: Option<Store>,
    /// Disks of guests' replicas; `None` there too.
    pub replicas: Option<Replicas>,
    /// The kernel's network configuration.
    pub netlink: Netlink,
    /// The tc programs and their state.
    pub datapath: Datapath,
    /// What must not be forgotten.
    pub journal: Journal,
    /// The way to the controller.
    pub uplink: Uplink,
    /// Time for decisions.
    pub clock: Monotonic,
    /// Which ports lead where, and who may change that.
    pub bindings: Bindings,
    /// Migrations this host has a part in.
    pub moves: Moves,
    /// Guests that are to stop.
    pub stops: Stops,
    /// Replicas of this host's guests.
    pub senders: Senders,
    /// Replicas that are kept here.
    pub keepers: Keepers,
    /// MiB that may still be promised to frames that wait.
    pub hold_memory: Arc<Semaphore>,
    /// Gates that are up here.
    pub gates: Gates,
    /// Rung when the observed state should be looked at again.
    pub look_again: Notify,
    accelerator: OnceLock<Accelerator>,
    residents: Mutex<BTreeMap<GuestName, Arc<Resident>>>,
}

/// The outside systems an agent is made of.
#[derive(Debug)]
pub struct Systems {
    /// How connections are proved.
    pub security: Security,
    /// The kernel's network configuration.
    pub netlink: Netlink,
    /// The tc programs.
    pub datapath: Datapath,
    /// The journal.
    pub journal: Journal,
    /// What guests' QEMUs run in.
    pub confinement: Confinement,
    /// What seals guests' memory on its way.
    pub sealer: Sealer,
    /// Guests' disks; `None` on a host that runs no guests.
    pub disks: Option<Store>,
    /// Disks of guests' replicas; `None` there too.
    pub replicas: Option<Replicas>,
}

impl Host {
    /// An agent over its outside systems.
    pub fn new(config: Config, systems: Systems, uplink: Uplink) -> Self {
        let Systems { security, netlink, datapath, journal, confinement, sealer, disks, replicas } = systems;
        let hold_memory = Arc::new(Semaphore::new(config.hold_budget_mib() as usize));
        Self {
            config,
            security,
            accelerator: OnceLock::new(),
            confinement,
            sealer,
            disks,
            replicas,
            netlink,
            datapath,
            journal,
            uplink,
            clock: Monotonic::start(),
            bindings: Bindings::default(),
            moves: Moves::default(),
            stops: Stops::default(),
            senders: Senders::default(),
            keepers: Keepers::default(),
            hold_memory,
            gates: Gates::default(),
            look_again: Notify::new(),
            residents: Mutex::default(),
        }
    }

    /// Notes what the probe found; guests are started, and the controller is called, only after that.
    pub fn offers(&self, accelerator: Accelerator) {
        let _ = self.accelerator.set(accelerator);
    }

    /// What runs guests here; translation until [`Host::offers`] has said better.
    pub fn accelerator(&self) -> Accelerator {
        self.accelerator.get().copied().unwrap_or(Accelerator::Tcg)
    }

    /// This host's name.
    pub fn name(&self) -> &HostName {
        &self.config.host
    }

    /// A guest that lives here.
    pub async fn resident(&self, name: &GuestName) -> Option<Arc<Resident>> {
        self.residents.lock().await.get(name).cloned()
    }

    /// All guests that live here.
    pub async fn residents(&self) -> Vec<Arc<Resident>> {
        self.residents.lock().await.values().cloned().collect()
    }

    /// A guest has come to live here.
    pub async fn settle_in(self: &Arc<Self>, resident: Arc<Resident>) {
        if resident.spec.queues.are_several() {
            tokio::spawn(flows::watch(self.clone(), Arc::downgrade(&resident), resident.vm.events()));
        }
        let mut events = resident.vm.events();
        let (host, this) = (self.clone(), Arc::downgrade(&resident));
        tokio::spawn(async move {
            // Whatever QEMU says may change what is to be reported; the last thing it says is that it ended.
            let mut shut_down = false;
            while let Some(event) = next(&mut events).await {
                shut_down |= event.kind == GuestEventKind::Shutdown { by_guest: true };
                if shut_down && matches!(event.kind, GuestEventKind::Exited(_)) {
                    return stops::see_off_who_went(host, this).await;
                }
                host.look_again.notify_one();
            }
        });
        self.residents.lock().await.insert(resident.spec.name.clone(), resident);
        self.look_again.notify_one();
    }

    /// A guest of this host on that network: the one with that MAC address, or any.
    pub async fn resident_on(&self, vni: Vni, mac: Option<MacAddr>) -> Option<Arc<Resident>> {
        let has = |resident: &Resident| {
            resident.ports.iter().any(|it| it.vni == vni && mac.is_none_or(|mac| it.port.mac == mac))
        };
        self.residents.lock().await.values().find(|resident| has(resident)).cloned()
    }

    /// That guest no longer lives here; one of the same name that came since does.
    pub async fn move_out_this(&self, resident: &Arc<Resident>) {
        let mut residents = self.residents.lock().await;
        if residents.get(&resident.spec.name).is_some_and(|it| Arc::ptr_eq(it, resident)) {
            residents.remove(&resident.spec.name);
        }
        drop(residents);
        self.look_again.notify_one();
    }

    /// A guest no longer lives here.
    pub async fn move_out(&self, name: &GuestName) -> Option<Arc<Resident>> {
        let resident = self.residents.lock().await.remove(name);
        self.look_again.notify_one();
        resident
    }
}
