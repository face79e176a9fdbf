//! `throughline guest create`: asks for the guest, then looks until it runs.

use clap::{ArgGroup, Args};
use throughline_wire::v1::{Boot, CreateGuestRequest, Disk, GuestSpec, GuestState, Port, fabric_client::FabricClient};
use tonic::transport::Channel;

use super::{
    disk::disk,
    power::{RUNS, failed},
    wait::Wait,
};
use crate::{commands::port::port, failure::Failure, session::Session, units};

pub(super) const EXAMPLES: &str = "\
EXAMPLES:
  throughline guest create web-1 --host h1 --network blue --ip 10.0.0.10 \\
    --memory 1G --kernel /boot/vmlinuz
  throughline guest create web-2 --host h1 \\
    --network blue --mac 02:00:00:00:00:02 --ip 10.0.0.11 --ip fd00::11 \\
    --memory 262136KiB --vcpus 2 --queues 2 \\
    --kernel /srv/vmlinuz --initrd /srv/initrd --cmdline 'console=ttyS0 quiet'
  throughline guest create db-1 --host h2 --memory 4GiB --kernel /boot/vmlinuz --no-wait \\
    --port network=blue,ip=10.0.0.20 --port network=storage,ip=10.1.0.20
  throughline guest create db-2 --host h2 --network blue --ip 10.0.0.21 \\
    --memory 4GiB --kernel /boot/vmlinuz \\
    --disk name=root,size=10GiB,format=qcow2,image=/srv/images/base.qcow2 \\
    --disk name=data,size=100GiB,bus=virtio-scsi";

/// Arguments of `guest create`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("cards").required(true).multiple(true).args(["network", "ports"])))]
pub(crate) struct Create {
    /// Name, unique in the fabric: a-z, 0-9, '-' and '.', at most 63 characters
    name: String,
    /// Host to start it on
    #[arg(long)]
    host: String,
    /// RAM, at least 16M: 256M, 262136KiB, 1GiB, 1G; a plain number counts MiB
    #[arg(long = "memory", value_name = "SIZE", value_parser = units::memory_kib)]
    memory_kib: u64,
    /// Virtual processors, 1 to 64
    #[arg(long, value_name = "N", default_value_t = 1)]
    vcpus: u32,
    /// Queues of each network card, 1 to 8, at most as many as virtual processors: they share what comes flow by flow
    #[arg(long, value_name = "N", default_value_t = 1)]
    queues: u32,
    /// Kernel image; the path on every host that may start the guest
    #[arg(long, value_name = "PATH")]
    kernel: String,
    /// Initial RAM disk; a path like --kernel
    #[arg(long, value_name = "PATH", default_value = "", hide_default_value = true)]
    initrd: String,
    /// Kernel command line
    #[arg(long, value_name = "STRING", default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    cmdline: String,
    /// Network of the first network card
    #[arg(long, value_name = "NET", requires = "ips")]
    network: Option<String>,
    /// MAC address of the first card; allotted when not given
    #[arg(long, requires = "network")]
    mac: Option<String>,
    /// IP address of the first card, IPv4 or IPv6, without prefix; repeat for more
    #[arg(long = "ip", value_name = "IP", requires = "network")]
    ips: Vec<String>,
    /// A network card: network=NET,mac=MAC,ip=IP,ip=IP (mac may be left out); repeat for more
    #[arg(long = "port", value_name = "PORT", value_parser = port)]
    ports: Vec<Port>,
    /// A disk: name=NAME,size=SIZE,format=raw|qcow2,bus=virtio-blk|virtio-scsi,image=PATH (the last three may be left out: raw,
    /// virtio-blk, blank); over=PATH instead of image= for a qcow2 that keeps only what differs from that image; device=NAME if it is
    /// a block device or shared=NAME if it is on storage that hosts have in common, each by the name that their agents were told;
    /// repeat for more, up to 8
    #[arg(long = "disk", value_name = "DISK", value_parser = disk)]
    disks: Vec<Disk>,
    /// Give it a channel to an agent of its own, qemu-guest-agent, which is asked to freeze its file systems for a replica's points
    #[arg(long)]
    guest_agent: bool,
    #[command(flatten)]
    wait: Wait,
}

impl Create {
    /// Creates it; waits until it runs unless told not to.
    ///
    /// # Errors
    /// It was refused, it failed, or it did not run in time.
    pub(super) async fn run(self, session: &Session, mut fabric: FabricClient<Channel>) -> Result<(), Failure> {
        let (name, wait) = (self.name.clone(), self.wait);
        let what = format!("create guest {name}");
        let guest = session.answer(&what, fabric.create_guest(CreateGuestRequest::from(self))).await?;
        let guest = wait.until(session, fabric, guest, RUNS).await?;
        session.output.one(&guest)?;
        let again = format!("put it right, then {} and create it again", session.hint(&format!("guest delete {name}")));
        if guest.state() == GuestState::Failed { Err(failed(&name, &guest).next(again)) } else { Ok(()) }
    }
}

impl From<Create> for CreateGuestRequest {
    fn from(create: Create) -> Self {
        let Create { name, host, memory_kib, vcpus, queues, kernel, initrd, cmdline, .. } = create;
        let Create { network, mac, ips, ports, disks, guest_agent, .. } = create;
        let first = network.map(|network| Port { id: 0, network, mac: mac.unwrap_or_default(), ips });
        let ports = first.into_iter().chain(ports).collect();
        let boot = Some(Boot { kernel, initrd, cmdline });
        Self { spec: Some(GuestSpec { name, vcpus, queues, memory_kib, boot, ports, disks, guest_agent }), host }
    }
}
