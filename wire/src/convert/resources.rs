//! Networks, ports, guests, endpoints, bindings.

use std::net::{IpAddr, Ipv4Addr};

use throughline_cutover::{
    Binding, Boot, Disk, Endpoint, Failure, Generation, GuestName, GuestSpec, HostName, InterfaceName, Limits, MacAddr,
    Network, OnStall, Port, Progress, Queues,
};

use super::{
    disks::disks,
    field::{InvalidField, Problem, number, parse, required, within},
};
use crate::{
    limits::{LONGEST_REASON, LONGEST_TEXT, MOST_IPS, MOST_PORTS, cut},
    v1,
};

/// MTU of a network whose creator named none: an underlay of 1500 less VXLAN's 50 bytes.
const DEFAULT_MTU: u32 = 1450;
/// QEMU's direct boot copies the command line into a fixed area.
const LONGEST_CMDLINE: usize = 2047;

impl TryFrom<v1::Network> for Network {
    type Error = InvalidField;
    fn try_from(network: v1::Network) -> Result<Self, InvalidField> {
        let mtu = if network.mtu == 0 { DEFAULT_MTU } else { network.mtu };
        Ok(Self { name: parse("name", &network.name)?, vni: number("vni", network.vni)?, mtu: number("mtu", mtu)? })
    }
}

impl From<Network> for v1::Network {
    fn from(network: Network) -> Self {
        Self { name: network.name.into(), vni: network.vni.get(), mtu: network.mtu.get() }
    }
}

/// Checks a unicast MAC address.
pub(super) fn mac(field: &str, text: &str) -> Result<MacAddr, InvalidField> {
    let mac: MacAddr = parse(field, text)?;
    mac.unicast().map_err(|error| InvalidField::new(field, error))
}

/// Checks a port's addresses.
pub(super) fn ips(texts: &[String]) -> Result<Vec<IpAddr>, InvalidField> {
    within("ips", texts.len() as u64, 1..=MOST_IPS as u64, "addresses a port")?;
    let mut ips = Vec::with_capacity(texts.len());
    for (at, text) in texts.iter().enumerate() {
        let field = format!("ips[{at}]");
        let ip: IpAddr = parse(&field, text)?;
        if ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) || ip.is_loopback() {
            return Err(InvalidField::new(
                field,
                Problem::Other(format!("is {ip}, which no port can have; give a unicast address")),
            ));
        }
        if ips.contains(&ip) {
            return Err(InvalidField::new(
                field,
                Problem::Other(format!("is {ip} a second time; name each address once")),
            ));
        }
        ips.push(ip);
    }
    Ok(ips)
}

impl TryFrom<v1::Port> for Port {
    type Error = InvalidField;
    fn try_from(port: v1::Port) -> Result<Self, InvalidField> {
        Ok(Self {
            id: number("id", port.id)?,
            network: parse("network", &port.network)?,
            mac: mac("mac", &port.mac)?,
            ips: ips(&port.ips)?,
        })
    }
}

impl From<Port> for v1::Port {
    fn from(port: Port) -> Self {
        Self {
            id: port.id.get(),
            network: port.network.into(),
            mac: port.mac.into(),
            ips: port.ips.iter().map(IpAddr::to_string).collect(),
        }
    }
}

/// An absolute path without NUL; whether the file is there is the host's to say.
pub(super) fn path(field: &str, text: String) -> Result<String, InvalidField> {
    if text.len() > 4095 {
        return Err(InvalidField::new(
            field,
            Problem::Range { value: text.len() as u64, least: 1, most: 4095, unit: "bytes" },
        ));
    }
    if !text.starts_with('/') || text.contains(|c: char| c == ',' || c.is_control()) {
        return Err(InvalidField::new(
            field,
            Problem::Other("must be an absolute path without commas or control characters".into()),
        ));
    }
    Ok(text)
}

impl TryFrom<v1::Boot> for Boot {
    type Error = InvalidField;
    fn try_from(boot: v1::Boot) -> Result<Self, InvalidField> {
        let initrd = if boot.initrd.is_empty() { boot.initrd } else { path("initrd", boot.initrd)? };
        within("cmdline", boot.cmdline.len() as u64, 0..=LONGEST_CMDLINE as u64, "bytes")?;
        if boot.cmdline.contains(|c: char| c.is_control() && c != '\t') {
            let words = "has a line end or another control character; give one line".to_owned();
            return Err(InvalidField::new("cmdline", Problem::Other(words)));
        }
        Ok(Self { kernel: path("kernel", boot.kernel)?, initrd, cmdline: boot.cmdline })
    }
}

impl From<Boot> for v1::Boot {
    fn from(boot: Boot) -> Self {
        Self { kernel: boot.kernel, initrd: boot.initrd, cmdline: boot.cmdline }
    }
}

impl TryFrom<v1::GuestSpec> for GuestSpec {
    type Error = InvalidField;
    fn try_from(spec: v1::GuestSpec) -> Result<Self, InvalidField> {
        let (vcpus, queues, memory_kib, guest_agent) = (spec.vcpus, queues(&spec)?, spec.memory_kib, spec.guest_agent);
        let (name, boot, ports, disks) = guest_parts(spec)?;
        Ok(Self { name, vcpus, queues, memory_kib, boot, ports, disks, guest_agent })
    }
}

/// Checks how many queues a guest's cards have. Its driver uses no more than it has processors.
pub(super) fn queues(spec: &v1::GuestSpec) -> Result<Queues, InvalidField> {
    if spec.queues == 0 {
        return Ok(Queues::default());
    }
    let queues: Queues = number("queues", spec.queues)?;
    if queues.get() > spec.vcpus {
        let words = format!(
            "is {queues}; {} of them would be idle, the guest has vcpus {}",
            queues.get() - spec.vcpus,
            spec.vcpus
        );
        return Err(InvalidField::new("queues", Problem::Other(words)));
    }
    Ok(queues)
}

/// Checks a guest, whose ports are allotted already or still to be.
pub(super) fn guest_parts<P>(spec: v1::GuestSpec) -> Result<(GuestName, Boot, Vec<P>, Vec<Disk>), InvalidField>
where
    P: TryFrom<v1::Port, Error = InvalidField>,
{
    let name = parse("name", &spec.name)?;
    within("vcpus", spec.vcpus.into(), 1..=64, "virtual processors")?;
    within("memory_kib", spec.memory_kib, 16_384..=4_294_967_296, "KiB (16 MiB to 4 TiB)")?;
    if !spec.memory_kib.is_multiple_of(4) {
        return Err(InvalidField::new(
            "memory_kib",
            Problem::Other(format!("is {}; give whole pages, a multiple of 4", spec.memory_kib)),
        ));
    }
    within("ports", spec.ports.len() as u64, 1..=MOST_PORTS as u64, "ports a guest")?;
    let boot = required("boot", spec.boot)?.try_into().map_err(|e: InvalidField| e.within("boot"))?;
    let ports = spec.ports.into_iter().enumerate();
    let ports = ports.map(|(at, port)| P::try_from(port).map_err(|e| e.within(format_args!("ports[{at}]"))));
    Ok((name, boot, ports.collect::<Result<_, _>>()?, disks(spec.disks)?))
}

impl From<GuestSpec> for v1::GuestSpec {
    fn from(spec: GuestSpec) -> Self {
        Self {
            name: spec.name.into(),
            vcpus: spec.vcpus,
            queues: spec.queues.get(),
            memory_kib: spec.memory_kib,
            boot: Some(spec.boot.into()),
            ports: spec.ports.into_iter().map(Into::into).collect(),
            disks: spec.disks.into_iter().map(Into::into).collect(),
            guest_agent: spec.guest_agent,
        }
    }
}

impl TryFrom<v1::Endpoint> for Endpoint {
    type Error = InvalidField;
    fn try_from(endpoint: v1::Endpoint) -> Result<Self, InvalidField> {
        let generation = Generation(endpoint.generation);
        let (name, host, port, prefix_len) = endpoint_parts(endpoint)?;
        Ok(Self { name, host, port, prefix_len, generation })
    }
}

/// Checks an endpoint, whose port is allotted already or still to be.
pub(super) fn endpoint_parts<P>(endpoint: v1::Endpoint) -> Result<(InterfaceName, HostName, P, u8), InvalidField>
where
    P: TryFrom<v1::Port, Error = InvalidField>,
{
    let prefix_len = if endpoint.prefix_len == 0 { 24 } else { endpoint.prefix_len };
    within("prefix_len", prefix_len.into(), 1..=32, "bits")?;
    let port = P::try_from(required("port", endpoint.port)?).map_err(|e| e.within("port"))?;
    Ok((parse("name", &endpoint.name)?, parse("host", &endpoint.host)?, port, prefix_len as u8))
}

impl From<Endpoint> for v1::Endpoint {
    fn from(endpoint: Endpoint) -> Self {
        Self {
            name: endpoint.name.into(),
            host: endpoint.host.into(),
            port: Some(endpoint.port.into()),
            prefix_len: endpoint.prefix_len.into(),
            generation: endpoint.generation.0,
        }
    }
}

impl TryFrom<v1::Binding> for Binding {
    type Error = InvalidField;
    fn try_from(binding: v1::Binding) -> Result<Self, InvalidField> {
        let vtep = if binding.vtep.is_empty() { None } else { Some(parse("vtep", &binding.vtep)?) };
        Ok(Self {
            vni: number("vni", binding.vni)?,
            port: required("port", binding.port)?.try_into().map_err(|e: InvalidField| e.within("port"))?,
            host: parse("host", &binding.host)?,
            vtep,
            generation: Generation(binding.generation),
        })
    }
}

impl From<Binding> for v1::Binding {
    fn from(binding: Binding) -> Self {
        Self {
            vni: binding.vni.get(),
            port: Some(binding.port.into()),
            host: binding.host.into(),
            vtep: binding.vtep.map(|vtep| vtep.to_string()).unwrap_or_default(),
            generation: binding.generation.0,
        }
    }
}

impl TryFrom<v1::MigrationLimits> for Limits {
    type Error = InvalidField;
    fn try_from(limits: v1::MigrationLimits) -> Result<Self, InvalidField> {
        let default = Self::default();
        let or = |value: u64, default: u64| if value == 0 { default } else { value };
        let longest_pause_ms = or(limits.longest_pause_ms.into(), default.longest_pause_ms.into());
        let bandwidth = or(limits.bandwidth, default.bandwidth);
        let deadline_ms = or(limits.deadline_ms.into(), default.deadline_ms.into());
        within("longest_pause_ms", longest_pause_ms, 1..=60_000, "milliseconds")?;
        within("bandwidth", bandwidth, 1_048_576..=1 << 40, "bytes per second")?;
        within("deadline_ms", deadline_ms, 1_000..=86_400_000, "milliseconds")?;
        let on_stall = on_stall(&limits, longest_pause_ms)?;
        Ok(Self { longest_pause_ms: longest_pause_ms as u32, bandwidth, deadline_ms: deadline_ms as u32, on_stall })
    }
}

fn on_stall(limits: &v1::MigrationLimits, longest_pause_ms: u64) -> Result<OnStall, InvalidField> {
    const AT_MOST: &str = "longest_pause_at_most_ms";
    let at_most_ms = limits.longest_pause_at_most_ms;
    let policy = match v1::OnStall::try_from(limits.on_stall) {
        Ok(v1::OnStall::Unspecified | v1::OnStall::GiveUp) => OnStall::GiveUp,
        Ok(v1::OnStall::Throttle) => OnStall::Throttle,
        Ok(v1::OnStall::LongerPause) if at_most_ms == 0 => return Err(InvalidField::new(AT_MOST, Problem::Missing)),
        Ok(v1::OnStall::LongerPause) => {
            within(AT_MOST, at_most_ms.into(), longest_pause_ms + 1..=60_000, "milliseconds")?;
            return Ok(OnStall::LongerPause { at_most_ms });
        }
        Ok(v1::OnStall::PostCopy) => return Err(InvalidField::new("on_stall", Problem::PostCopy)),
        Err(_) => {
            let words = format!("is {}, which this version does not know", limits.on_stall);
            return Err(InvalidField::new("on_stall", Problem::Other(words)));
        }
    };
    if at_most_ms != 0 {
        let words = format!("is {at_most_ms}; it is for on_stall LONGER_PAUSE only, leave it 0");
        return Err(InvalidField::new(AT_MOST, Problem::Other(words)));
    }
    Ok(policy)
}

impl From<Limits> for v1::MigrationLimits {
    fn from(limits: Limits) -> Self {
        let (on_stall, longest_pause_at_most_ms) = match limits.on_stall {
            OnStall::GiveUp => (v1::OnStall::GiveUp, 0),
            OnStall::Throttle => (v1::OnStall::Throttle, 0),
            OnStall::LongerPause { at_most_ms } => (v1::OnStall::LongerPause, at_most_ms),
        };
        Self {
            longest_pause_ms: limits.longest_pause_ms,
            bandwidth: limits.bandwidth,
            deadline_ms: limits.deadline_ms,
            on_stall: on_stall.into(),
            longest_pause_at_most_ms,
        }
    }
}

impl From<Progress> for v1::Progress {
    fn from(p: Progress) -> Self {
        Self {
            transferred: p.transferred,
            remaining: p.remaining,
            total: p.total,
            rate: p.rate,
            dirty_rate: p.dirty_rate,
            expected_pause_us: p.expected_pause_us,
            passes: p.passes,
            throttle_percent: p.throttle_percent,
            disk_copied: p.disk_copied,
            disk_total: p.disk_total,
        }
    }
}

impl From<Failure> for v1::Failure {
    fn from(failure: Failure) -> Self {
        Self { reason: failure.reason, message: failure.message }
    }
}

impl From<v1::Failure> for Failure {
    fn from(failure: v1::Failure) -> Self {
        Self { reason: cut(failure.reason, LONGEST_REASON), message: cut(failure.message, LONGEST_TEXT) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port() -> v1::Port {
        v1::Port { id: 7, network: "blue".into(), mac: "02:00:00:00:00:07".into(), ips: vec!["10.7.0.10".into()] }
    }

    fn spec() -> v1::GuestSpec {
        let boot = v1::Boot { kernel: "/k".into(), initrd: "/i".into(), cmdline: "console=ttyS0".into() };
        let (name, ports) = ("web-1".into(), vec![port()]);
        let (image, place) = ("/base.qcow2".into(), Some(v1::disk::Place::Shared("nfs1".into())));
        let disks = vec![v1::Disk { name: "root".into(), size: 1 << 30, format: 2, bus: 2, image, place, over: true }];
        v1::GuestSpec {
            name,
            vcpus: 2,
            queues: 2,
            memory_kib: 262_136,
            boot: Some(boot),
            ports,
            disks,
            guest_agent: true,
        }
    }

    fn field(change: impl FnOnce(&mut v1::GuestSpec)) -> String {
        let mut spec = spec();
        change(&mut spec);
        GuestSpec::try_from(spec).expect_err("must be refused").field
    }

    #[test]
    fn a_good_guest_round_trips() {
        let domain = GuestSpec::try_from(spec()).expect("good");
        assert_eq!(v1::GuestSpec::from(domain), spec());
    }

    #[test]
    fn a_guest_of_an_older_fabric_has_plain_cards() {
        let domain = GuestSpec::try_from(v1::GuestSpec { queues: 0, ..spec() }).expect("good");
        assert_eq!(domain.queues, Queues::ONE);
        let mut on_record = serde_json::to_value(&domain).expect("JSON");
        on_record.as_object_mut().expect("an object").remove("queues");
        assert_eq!(serde_json::from_value::<GuestSpec>(on_record).expect("reads"), domain);
    }

    #[test]
    fn a_guest_of_an_older_fabric_has_no_disks() {
        let domain = GuestSpec::try_from(v1::GuestSpec { disks: vec![], ..spec() }).expect("good");
        let mut on_record = serde_json::to_value(&domain).expect("JSON");
        on_record.as_object_mut().expect("an object").remove("disks");
        assert_eq!(serde_json::from_value::<GuestSpec>(on_record).expect("reads"), domain);
    }

    #[test]
    fn every_refusal_names_its_field() {
        assert_eq!(field(|s| s.name = "a/b".into()), "name");
        assert_eq!(field(|s| s.name = "a".repeat(10_240)), "name");
        assert_eq!(field(|s| (s.vcpus, s.queues) = (0, 0)), "vcpus");
        assert_eq!(field(|s| (s.vcpus, s.queues) = (16, 9)), "queues");
        assert_eq!(field(|s| s.queues = 3), "queues");
        assert_eq!(field(|s| s.memory_kib = 0), "memory_kib");
        assert_eq!(field(|s| s.memory_kib = 1_000_000_000 * 1024), "memory_kib");
        assert_eq!(field(|s| s.memory_kib = 262_137), "memory_kib");
        assert_eq!(field(|s| s.boot = None), "boot");
        assert_eq!(field(|s| s.boot.as_mut().expect("set").kernel = "k".into()), "boot.kernel");
        assert_eq!(field(|s| s.boot.as_mut().expect("set").cmdline = "x".repeat(3000)), "boot.cmdline");
        assert_eq!(field(|s| s.boot.as_mut().expect("set").cmdline = "a\nb".into()), "boot.cmdline");
        assert_eq!(field(|s| s.boot.as_mut().expect("set").initrd = "/i,readonly=on".into()), "boot.initrd");
        assert_eq!(field(|s| s.boot.as_mut().expect("set").initrd = "/i\u{1b}[2J".into()), "boot.initrd");
        assert_eq!(field(|s| s.boot.as_mut().expect("set").kernel = format!("/{}", "k".repeat(4095))), "boot.kernel");
        assert_eq!(field(|s| s.ports.clear()), "ports");
        assert_eq!(field(|s| s.ports = vec![port(); MOST_PORTS + 1]), "ports");
        assert_eq!(field(|s| s.ports[0].ips = (0..=MOST_IPS).map(|n| format!("10.7.1.{n}")).collect()), "ports[0].ips");
        assert_eq!(field(|s| s.ports[0].mac = "02:00".into()), "ports[0].mac");
        assert_eq!(field(|s| s.ports[0].mac = "01:00:5e:00:00:01".into()), "ports[0].mac");
        assert_eq!(field(|s| s.ports[0].ips = vec!["10.7.0.300".into()]), "ports[0].ips[0]");
        assert_eq!(field(|s| s.ports[0].ips.clear()), "ports[0].ips");
        assert_eq!(field(|s| s.ports[0].network = "UP".into()), "ports[0].network");
        assert_eq!(field(|s| s.disks[0].size = 1), "disks[0].size");
    }

    #[test]
    fn what_went_wrong_is_told_at_bearable_length() {
        let failure = v1::Failure { reason: "R".repeat(1_000_000), message: "m".repeat(1_000_000) };
        let failure = Failure::from(failure);
        assert_eq!((failure.reason.len(), failure.message.len()), (LONGEST_REASON, LONGEST_TEXT));
    }

    #[test]
    fn a_vni_has_24_bits() {
        let network = v1::Network { name: "blue".into(), vni: 1 << 24, mtu: 0 };
        assert_eq!(Network::try_from(network).expect_err("too large").field, "vni");
    }
}
