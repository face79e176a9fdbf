//! A guest that lives on this host: its QEMU, its ports, and the devices they are made of.

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use throughline_cutover::{
    Boot, Failure, Generation, GuestName, GuestSpec, Mtu, OwnedGuest, Port, PortId, Queues, Vni,
};
use throughline_hypervisor::{Below, DiskFd, FdRole, Guest, HypervisorError, Launch, NicFds, RunDir};
use throughline_netlink::{BindingWanted, Path, TapConfig, names};
use tracing::info;

use crate::{disks::Opened, host::Host};

/// Frames a tap or hold keeps: 32,768 pointers, 256 KiB; the frames themselves are bounded by the hold's line limit.
pub const RING: u32 = 32_768;

/// A tap device of ours and the descriptor that keeps it.
#[derive(Debug)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its interface index.
    pub index: u32,
    /// A descriptor of its queue, or of the first of several. QEMU holds another.
    pub fd: OwnedFd,
    /// Descriptors of a tap's further queues. QEMU holds others.
    pub further: Vec<OwnedFd>,
}

impl Device {
    /// Its queues, in the order of their opening.
    pub fn queues(&self) -> impl Iterator<Item = &OwnedFd> {
        std::iter::once(&self.fd).chain(&self.further)
    }

    /// Second descriptors of all its queues.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn copy_queues(&self) -> Result<Vec<OwnedFd>, Failure> {
        self.queues().map(duplicate).collect()
    }
}

/// A guest's port on this host.
#[derive(Debug)]
pub struct ResidentPort {
    /// As the fabric knows it.
    pub port: Port,
    /// VNI of its network.
    pub vni: Vni,
    /// What QEMU reads and writes.
    pub tap: Device,
    /// Where frames wait during a move.
    pub hold: Device,
}

impl ResidentPort {
    /// The binding that leads to this host's tap.
    pub fn binding_here(&self) -> BindingWanted {
        let path = Path::Local { device: self.tap.name.clone() };
        BindingWanted { mac: self.port.mac, ips: self.port.ips.clone(), path }
    }
}

/// A guest that lives here.
#[derive(Debug)]
pub struct Resident {
    /// As it was asked for.
    pub spec: GuestSpec,
    /// Generation at which this host holds it; grows when the record affirms it at a higher one.
    held_at: AtomicU64,
    /// Its QEMU.
    pub vm: Guest,
    /// Its ports, in slot order.
    pub ports: Vec<Arc<ResidentPort>>,
}

impl Resident {
    /// A guest held at `generation`.
    pub fn new(spec: GuestSpec, generation: Generation, vm: Guest, ports: Vec<Arc<ResidentPort>>) -> Self {
        Self { spec, held_at: AtomicU64::new(generation.0), vm, ports }
    }

    /// Generation at which this host holds it.
    pub fn generation(&self) -> Generation {
        Generation(self.held_at.load(Ordering::Acquire))
    }

    /// As the journal has it while it runs, at another generation.
    pub fn owned_at(&self, generation: Generation) -> OwnedGuest {
        let vnis = self.ports.iter().map(|port| port.vni).collect();
        OwnedGuest { spec: self.spec.clone(), generation, vnis, stopped: false, asked: false }
    }

    /// It is held at a higher generation, which is in the journal.
    pub fn raise(&self, generation: Generation) {
        self.held_at.fetch_max(generation.0, Ordering::AcqRel);
    }
}

/// How a guest begins here.
#[derive(Debug)]
pub enum Start<'a> {
    /// It boots.
    Boot,
    /// Its memory comes from another host; it is paused until told. QEMU keeps the lanes of its ports' gates.
    Incoming {
        /// Port by port, in the guest's order.
        lanes: Vec<&'a [OwnedFd]>,
    },
}

/// Which network a port is on: VNI and MTU.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    /// VNI.
    pub vni: Vni,
    /// Largest payload.
    pub mtu: Mtu,
}

impl Host {
    /// Where the guest's sockets and logs are.
    pub fn run_dir(&self, guest: &GuestName) -> RunDir {
        RunDir::new(self.config.state_dir.join("guests").join(guest.as_str()))
    }

    /// Makes the tap of a port, with so many queues, and its hold. The tap is not in the bridge yet.
    ///
    /// # Errors
    /// The kernel's refusal, in words.
    pub async fn make_port(&self, port: &Port, segment: Segment, queues: Queues) -> Result<ResidentPort, Failure> {
        let tap_config = |name: String| TapConfig { name, mtu: segment.mtu, queue_len: RING };
        let tap_name = names::tap(port.id);
        let tap = self.netlink.create_tap(&tap_config(tap_name.clone()), queues).await.map_err(network_failure)?;
        let hold_name = names::hold(port.id);
        let hold = self.netlink.create_hold(&tap_config(hold_name.clone())).await.map_err(network_failure)?;
        Ok(ResidentPort {
            port: port.clone(),
            vni: segment.vni,
            tap: Device { name: tap_name, index: tap.index, fd: tap.fd, further: tap.further },
            hold: Device { name: hold_name, index: hold.index, fd: hold.fd, further: hold.further },
        })
    }

    /// Puts the port's tap into its network's bridge.
    ///
    /// # Errors
    /// The kernel's refusal, in words.
    pub async fn plug_in(&self, port: &ResidentPort) -> Result<(), Failure> {
        self.netlink.attach_to_bridge(port.tap.index, port.vni).await.map_err(network_failure)
    }

    /// Starts QEMU over ports and disks that exist, in the guest's order.
    ///
    /// # Errors
    /// QEMU's refusal, in words.
    pub async fn launch(
        &self,
        spec: &GuestSpec,
        ports: &[Arc<ResidentPort>],
        mtus: &[Mtu],
        start: Start<'_>,
        disks: Vec<Opened>,
    ) -> Result<Guest, Failure> {
        let disks = spec.disks.iter().zip(disks).map(|(disk, opened)| DiskFd {
            name: disk.name.clone(),
            format: disk.format,
            bus: disk.bus,
            image: opened.file.into(),
            below: opened.image.map(|image| Below::Image(image.into())),
        });
        let mut nics = Vec::with_capacity(ports.len());
        let (incoming, lanes) = match start {
            Start::Boot => (false, Vec::new()),
            Start::Incoming { lanes } => (true, lanes),
        };
        for (at, (port, mtu)) in ports.iter().zip(mtus).enumerate() {
            let lanes = lanes.get(at).copied().unwrap_or_default();
            nics.push(NicFds {
                port: port.port.id,
                mac: port.port.mac,
                mtu: *mtu,
                tap: port.tap.copy_queues()?,
                hold: Some(duplicate(&port.hold.fd)?),
                lanes: lanes.iter().map(duplicate).collect::<Result<_, _>>()?,
            });
        }
        let launch = Launch {
            name: spec.name.clone(),
            run_dir: self.run_dir(&spec.name),
            vcpus: spec.vcpus,
            memory_kib: spec.memory_kib,
            boot: Boot::clone(&spec.boot),
            accelerator: self.accelerator(),
            nics,
            disks: disks.collect(),
            guest_agent: spec.guest_agent,
            incoming,
        };
        Guest::launch(launch, &self.confinement).await.map_err(hypervisor_failure)
    }

    /// Boots a guest here: devices, disks, QEMU, bridge, bindings.
    ///
    /// # Errors
    /// What failed, in words; what was made is gone again.
    pub async fn boot(
        &self,
        spec: &GuestSpec,
        generation: Generation,
        segments: &[Segment],
    ) -> Result<Arc<Resident>, Failure> {
        let mut ports = Vec::with_capacity(spec.ports.len());
        for (port, segment) in spec.ports.iter().zip(segments) {
            let made = self.make_port(port, *segment, spec.queues).await?;
            self.plug_in(&made).await?;
            ports.push(Arc::new(made));
        }
        let mtus: Vec<Mtu> = segments.iter().map(|segment| segment.mtu).collect();
        let disks = self.disks_to_boot(spec).await?;
        let vm = self.launch(spec, &ports, &mtus, Start::Boot, disks).await?;
        for port in &ports {
            if let Err(error) = self.netlink.set_binding(port.vni, &port.binding_here()).await {
                vm.quit().await.map_err(hypervisor_failure)?;
                return Err(network_failure(error));
            }
        }
        info!(guest = %spec.name, %generation, "started");
        Ok(Arc::new(Resident::new(spec.clone(), generation, vm, ports)))
    }

    /// The QEMU of that guest, if one runs here.
    ///
    /// # Errors
    /// When what runs in its directory is not that guest.
    pub async fn find_qemu(&self, guest: &GuestName) -> Result<Option<Guest>, Failure> {
        Guest::adopt(guest.clone(), self.run_dir(guest), &self.confinement).await.map_err(hypervisor_failure)
    }

    /// Takes a guest back that ran on while the agent did not: its QEMU, and from it the taps and holds.
    ///
    /// # Errors
    /// What failed, in words. `Ok(None)`: that guest's QEMU is not there any more.
    pub async fn adopt(&self, owned: &OwnedGuest) -> Result<Option<Resident>, Failure> {
        let OwnedGuest { spec, generation, vnis, .. } = owned;
        let Some(vm) = self.find_qemu(&spec.name).await? else { return Ok(None) };
        let mut ports = Vec::with_capacity(spec.ports.len());
        for (port, vni) in spec.ports.iter().zip(vnis) {
            let mut tap = self.adopt_device(&vm, FdRole::Tap(port.id), names::tap(port.id)).await?;
            for queue in 1..spec.queues.get() {
                tap.further.push(vm.take_fd(FdRole::of_tap(port.id, queue)).await.map_err(hypervisor_failure)?);
            }
            let hold = self.adopt_device(&vm, FdRole::Hold(port.id), names::hold(port.id)).await?;
            ports.push(Arc::new(ResidentPort { port: port.clone(), vni: *vni, tap, hold }));
        }
        info!(guest = %spec.name, %generation, "adopted");
        Ok(Some(Resident::new(spec.clone(), *generation, vm, ports)))
    }

    /// The lanes of a gate that an earlier agent made, from QEMU; none if there was no gate.
    ///
    /// # Errors
    /// QEMU's refusal, in words.
    pub async fn adopt_lanes(&self, vm: &Guest, port: PortId) -> Result<Vec<OwnedFd>, Failure> {
        let mut lanes = Vec::new();
        for lane in 1.. {
            match vm.take_fd(FdRole::Lane(port, lane)).await {
                Ok(queue) => lanes.push(queue),
                Err(HypervisorError::NoSuchFd { .. }) => break,
                Err(error) => return Err(hypervisor_failure(error)),
            }
        }
        Ok(lanes)
    }

    async fn adopt_device(&self, vm: &Guest, role: FdRole, name: String) -> Result<Device, Failure> {
        let fd = vm.take_fd(role).await.map_err(hypervisor_failure)?;
        let index = self.netlink.link_index(&name).await.map_err(network_failure)?;
        Ok(Device { name, index, fd, further: Vec::new() })
    }
}

/// A second descriptor of the same queue.
pub fn duplicate(fd: &OwnedFd) -> Result<OwnedFd, Failure> {
    fd.try_clone()
        .map_err(|error| Failure::new("HOST_RESOURCES", format!("a descriptor could not be duplicated: {error}")))
}

/// A kernel's refusal as the fabric reports it.
#[expect(clippy::needless_pass_by_value, reason = "used as map_err's function")]
pub fn network_failure(error: throughline_netlink::Error) -> Failure {
    Failure::new("HOST_NETWORK", error.to_string())
}

/// QEMU's refusal as the fabric reports it.
#[expect(clippy::needless_pass_by_value, reason = "used as map_err's function")]
pub fn hypervisor_failure(error: throughline_hypervisor::HypervisorError) -> Failure {
    Failure::new("HYPERVISOR", error.to_string())
}

/// The programs' refusal as the fabric reports it.
#[expect(clippy::needless_pass_by_value, reason = "used as map_err's function")]
pub fn datapath_failure(error: throughline_loader::DatapathError) -> Failure {
    Failure::new("DATAPATH", error.to_string())
}
