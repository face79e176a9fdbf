//! Every denial by name, and that whatever is admitted keeps the record free of collisions.

mod replica;

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::{Disk, DiskBus, DiskFate, DiskFormat, DiskPlace, DiskSize, Phase, RunsOn, StopFirst, Vni};

/// A record small enough to write down.
#[derive(Default)]
struct Fabric {
    networks: Vec<Network>,
    hosts: Vec<HostFacts>,
    guests: Vec<(GuestSpec, GuestFacts)>,
    endpoints: Vec<Endpoint>,
    /// Disks that are being deleted, by host and guest.
    deleting: Vec<(HostName, GuestName)>,
    replicas: Vec<ReplicaFacts>,
    /// Hosts that are still to end a copy of any guest.
    ending: Vec<HostName>,
}

impl View for Fabric {
    fn networks(&self) -> impl Iterator<Item = &Network> {
        self.networks.iter()
    }
    fn hosts(&self) -> impl Iterator<Item = HostFacts> {
        self.hosts.iter().cloned()
    }
    fn ports(&self) -> impl Iterator<Item = UsedPort<'_>> {
        let guests = self.guests.iter().flat_map(|(spec, _)| {
            spec.ports.iter().map(|port| UsedPort { kind: Kind::Guest, owner: spec.name.as_str(), port })
        });
        let endpoints =
            self.endpoints.iter().map(|it| UsedPort { kind: Kind::Endpoint, owner: it.name.as_str(), port: &it.port });
        guests.chain(endpoints)
    }
    fn network(&self, name: &NetworkName) -> Option<&Network> {
        self.networks.iter().find(|it| it.name == *name)
    }
    fn host(&self, name: &HostName) -> Option<HostFacts> {
        self.hosts.iter().find(|it| it.name == *name).cloned()
    }
    fn guest(&self, name: &GuestName) -> Option<GuestFacts> {
        self.guests.iter().find(|(spec, _)| spec.name == *name).map(|(_, facts)| facts.clone())
    }
    fn endpoint(&self, name: &InterfaceName) -> Option<&Endpoint> {
        self.endpoints.iter().find(|it| it.name == *name)
    }
    fn replicas(&self) -> impl Iterator<Item = &ReplicaName> {
        self.replicas.iter().map(|it| &it.name)
    }
    fn replica(&self, name: &ReplicaName) -> Option<ReplicaFacts> {
        self.replicas.iter().find(|it| it.name == *name).cloned()
    }
    fn holders(&self, guest: &GuestName) -> Vec<HostName> {
        self.guest(guest).map(|it| it.host).into_iter().chain(self.ending.clone()).collect()
    }
    fn deletes_disks(&self, host: &HostName, guest: &GuestName) -> bool {
        self.deleting.contains(&(host.clone(), guest.clone()))
    }
    fn host_needed_for(&self, name: &HostName) -> Option<String> {
        let guest = self.guests.iter().find(|(_, facts)| facts.host == *name);
        guest.map(|(spec, _)| format!("guest {}", spec.name))
    }
}

impl Fabric {
    /// Takes in an admitted guest, as the record would.
    fn add(&mut self, guest: NewGuest, on: &str) {
        let first = self.ports().count() as u32 + 1;
        let ports = guest.ports.iter().cloned().zip(first..).map(|(port, n)| {
            let [_, _, c, d] = n.to_be_bytes();
            port.allot(PortId::try_from(n).unwrap(), MacAddr::new([6, 0, 0, 0, c, d]))
        });
        let spec = guest.clone().allot(ports.collect());
        let (host, memory_kib, disks) = (host(on), guest.memory_kib, guest.disks.len());
        let (power, running, failed, stopped) = (Power::On, true, false, false);
        let facts = GuestFacts { host, memory_kib, disks, power, running, failed, stopped, migration: None };
        if let Some(host) = self.hosts.iter_mut().find(|it| it.name.as_str() == on) {
            host.memory_used_kib += guest.memory_kib;
        }
        self.guests.push((spec, facts));
    }
}

fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

fn host_facts(name: &str, n: u8) -> HostFacts {
    HostFacts {
        name: host(name),
        connected: true,
        peer_only: false,
        vtep: Some([192, 0, 2, n].into()),
        peer_endpoint: Some(format!("192.0.2.{n}:7701")),
        memory_kib: 1 << 20,
        memory_used_kib: 0,
        memory_of_tests_kib: 0,
    }
}

fn network(name: &str, vni: u32) -> Network {
    Network { name: name.parse().unwrap(), vni: Vni::try_from(vni).unwrap(), mtu: 1450_u32.try_into().unwrap() }
}

fn port(mac: Option<u8>, ip: u8) -> NewPort {
    let mac = mac.map(|n| MacAddr::new([2, 0, 0, 0, 0, n]));
    NewPort { network: "blue".parse().unwrap(), mac, ips: vec![IpAddr::from([10, 7, 0, ip])] }
}

fn guest(name: &str, ports: Vec<NewPort>) -> NewGuest {
    let boot = Boot { kernel: "/k".into(), initrd: String::new(), cmdline: String::new() };
    let (name, queues) = (name.parse().unwrap(), Queues::ONE);
    NewGuest { name, vcpus: 1, queues, memory_kib: 262_136, boot, ports, disks: vec![], guest_agent: false }
}

/// Network blue, h1 with web-1, h2 empty, gw a peer.
fn fabric() -> Fabric {
    let gateway = HostFacts { peer_only: true, memory_kib: 0, ..host_facts("gw", 9) };
    let mut fabric = Fabric {
        networks: vec![network("blue", 7)],
        hosts: vec![host_facts("h1", 1), host_facts("h2", 2), gateway],
        ..Fabric::default()
    };
    fabric.add(guest("web-1", vec![port(Some(1), 10)]), "h1");
    fabric
}

fn request(destination: Option<&str>) -> MigrationRequest {
    let (request_id, guest) = ("r-1".into(), "web-1".parse().unwrap());
    MigrationRequest { request_id, guest, destination: destination.map(host), stop_first: None, flatten: false }
}

#[track_caller]
fn denied<T: std::fmt::Debug>(result: Result<T, Denial>, reason: &str, field: &str) {
    let denial = result.expect_err("must be denied");
    assert_eq!((denial.reason(), denial.field()), (reason, field), "{denial}");
}

#[test]
fn networks_have_one_name_and_one_vni() {
    let fabric = fabric();
    assert_eq!(create_network(&fabric, &network("red", 8)), Ok(()));
    denied(create_network(&fabric, &network("blue", 8)), "NAME_IN_USE", "network.name");
    denied(create_network(&fabric, &network("red", 7)), "VNI_IN_USE", "network.vni");
    denied(delete_network(&fabric, &"blue".parse().unwrap()), "NETWORK_IN_USE", "name");
    denied(delete_network(&fabric, &"red".parse().unwrap()), "UNKNOWN_NETWORK", "name");
}

#[test]
fn guests_need_a_host_that_can_run_them() {
    let mut fabric = fabric();
    let create = |fabric: &Fabric, on: &str| create_guest(fabric, &guest("web-2", vec![port(None, 11)]), &host(on));
    assert_eq!(create(&fabric, "h2"), Ok(()));
    denied(create_guest(&fabric, &guest("web-1", vec![]), &host("h2")), "NAME_IN_USE", "spec.name");
    denied(create(&fabric, "nowhere"), "UNKNOWN_HOST", "host");
    denied(create(&fabric, "gw"), "HOST_PEER_ONLY", "host");
    fabric.hosts[1].memory_used_kib = fabric.hosts[1].memory_kib - 262_135;
    denied(create(&fabric, "h2"), "NOT_ENOUGH_MEMORY", "spec.memory_kib");
    let words = |fabric: &Fabric| create(fabric, "h2").unwrap_err().to_string();
    assert!(words(&fabric).ends_with("or free memory there"), "{}", words(&fabric));
    fabric.hosts[1].memory_of_tests_kib = 262_136;
    assert!(words(&fabric).contains("(tests of replicas have 262136 KiB:"), "{}", words(&fabric));
    fabric.hosts[1].connected = false;
    denied(create(&fabric, "h2"), "HOST_DOWN", "host");
}

#[test]
fn ports_do_not_collide() {
    let fabric = fabric();
    let create = |ports: Vec<NewPort>| create_guest(&fabric, &guest("web-2", ports), &host("h2"));
    denied(create(vec![port(Some(1), 11)]), "MAC_IN_USE", "spec.ports[0].mac");
    denied(create(vec![port(None, 11), port(None, 10)]), "IP_IN_USE", "spec.ports[1].ips[0]");
    denied(create(vec![port(Some(2), 11), port(Some(2), 12)]), "MAC_IN_USE", "spec.ports[1].mac");
    denied(create(vec![port(None, 11), port(None, 11)]), "IP_IN_USE", "spec.ports[1].ips[0]");
    let elsewhere = NewPort { network: "red".parse().unwrap(), ..port(None, 11) };
    denied(create(vec![elsewhere]), "UNKNOWN_NETWORK", "spec.ports[0].network");
    let endpoint = NewEndpoint { name: "gw0".parse().unwrap(), host: host("gw"), port: port(None, 10), prefix_len: 24 };
    denied(create_endpoint(&fabric, &endpoint), "IP_IN_USE", "endpoint.port.ips[0]");
}

#[test]
fn hosts_come_and_go() {
    let mut fabric = fabric();
    let enrolment = |name: &str, n: u8| Enrolment {
        host: host(name),
        vtep: [192, 0, 2, n].into(),
        peer_endpoint: format!("192.0.2.{n}:7701"),
        memory_kib: 0,
        accelerator: "tcg".into(),
        agent_version: "0.1.0".into(),
        peer_only: false,
    };
    assert_eq!(enrol(&fabric, &enrolment("h3", 3), true), Ok(()));
    assert_eq!(enrol(&fabric, &enrolment("h1", 1), false), Ok(()));
    denied(enrol(&fabric, &enrolment("h3", 3), false), "HOST_NOT_ENROLLED", "hello.host");
    denied(enrol(&fabric, &enrolment("h3", 1), true), "VTEP_IN_USE", "hello.vtep");
    let theirs = Enrolment { peer_endpoint: "192.0.2.1:7701".into(), ..enrolment("h3", 3) };
    denied(enrol(&fabric, &theirs, true), "PEER_ENDPOINT_IN_USE", "hello.peer_endpoint");
    denied(create_host(&fabric, &host("h1")), "NAME_IN_USE", "name");
    denied(delete_host(&fabric, &host("h1")), "HOST_IN_USE", "name");
    denied(delete_host(&fabric, &host("h2")), "HOST_CONNECTED", "name");
    fabric.hosts[1].connected = false;
    assert_eq!(delete_host(&fabric, &host("h2")), Ok(()));
}

#[test]
fn moves_that_cannot_be() {
    let mut fabric = fabric();
    let to = |fabric: &Fabric, name: &str| migrate(fabric, &request(Some(name)), None);
    denied(to(&fabric, "nowhere"), "UNKNOWN_HOST", "destination_host");
    denied(to(&fabric, "h1"), "SAME_HOST", "destination_host");
    denied(to(&fabric, "gw"), "HOST_PEER_ONLY", "destination_host");
    let nobody = MigrationRequest { guest: "web-9".parse().unwrap(), ..request(None) };
    denied(migrate(&fabric, &nobody, None), "UNKNOWN_GUEST", "guest");
    let stop_first = Some(StopFirst { deadline_ms: 9, otherwise: RunsOn::Stay });
    let stopping = MigrationRequest { stop_first, ..request(Some("h2")) };
    let manner = |fabric: &Fabric, request: &MigrationRequest| match migrate(fabric, request, None) {
        Ok(Verdict::Admitted { manner, .. }) => manner,
        other => panic!("{other:?}"),
    };
    assert_eq!(manner(&fabric, &request(Some("h2"))), Manner::Running);
    assert_eq!(Some(manner(&fabric, &stopping)), stop_first.map(Manner::StoppedFirst));
    let flattening = MigrationRequest { flatten: true, ..request(Some("h2")) };
    assert_eq!(manner(&fabric, &flattening), Manner::Running);
    denied(migrate(&fabric, &MigrationRequest { stop_first, ..flattening }, None), "FLATTENS_STOPPED", "guest");
    denied(migrate(&fabric, &stopping, Some(("m-1", &request(Some("h2"))))), "REQUEST_ID_REUSED", "request_id");
    fabric.guests[0].1.running = false;
    denied(to(&fabric, "h2"), "GUEST_NOT_RUNNING", "guest");
    denied(migrate(&fabric, &stopping, None), "GUEST_NOT_RUNNING", "guest");
    fabric.guests[0].1.migration = Some("m-1".into());
    denied(to(&fabric, "h2"), "ALREADY_MIGRATING", "guest");
    denied(delete_guest(&fabric, &"web-1".parse().unwrap(), Some(DiskFate::Delete)), "ALREADY_MIGRATING", "guest");
    fabric.guests[0].1.migration = None;
    fabric.hosts[1].connected = false;
    denied(to(&fabric, "h2"), "HOST_DOWN", "destination_host");
    denied(migrate(&fabric, &request(None), None), "NO_DESTINATION", "destination_host");
}

#[test]
fn disks_are_deleted_or_kept_by_somebodys_word() {
    let mut fabric = fabric();
    let name: GuestName = "web-1".parse().unwrap();
    for fate in [None, Some(DiskFate::Delete)] {
        assert_eq!(delete_guest(&fabric, &name, fate), Ok(DiskFate::Keep), "it has none");
    }
    fabric.guests[0].1.disks = 2;
    denied(delete_guest(&fabric, &name, None), "DISK_FATE_NEEDED", "disks");
    for fate in [DiskFate::Keep, DiskFate::Delete] {
        assert_eq!(delete_guest(&fabric, &name, Some(fate)), Ok(fate));
    }
    denied(delete_guest(&fabric, &"web-9".parse().unwrap(), None), "UNKNOWN_GUEST", "name");
}

#[test]
fn a_guest_waits_until_the_disks_of_its_namesake_are_deleted() {
    let mut fabric = fabric();
    fabric.deleting = vec![(host("h2"), "web-1".parse().unwrap()), (host("h2"), "web-2".parse().unwrap())];
    let create = |on: &str| create_guest(&fabric, &guest("web-2", vec![port(None, 11)]), &host(on));
    denied(create("h2"), "DISKS_BEING_DELETED", "spec.name");
    assert_eq!(create("h1"), Ok(()), "not there");
    let disk = Disk {
        name: "root".parse().unwrap(),
        size: DiskSize::try_from(1 << 20).unwrap(),
        format: DiskFormat::Raw,
        bus: DiskBus::VirtioBlk,
        image: String::new(),
        place: DiskPlace::Shared("nfs1".parse().unwrap()),
        over: false,
    };
    let sharing = NewGuest { disks: vec![disk], ..guest("web-2", vec![port(None, 11)]) };
    denied(create_guest(&fabric, &sharing, &host("h1")), "DISKS_BEING_DELETED", "spec.name");
    denied(migrate(&fabric, &request(Some("h2")), None), "DISKS_BEING_DELETED", "guest");
    denied(migrate(&fabric, &request(None), None), "NO_DESTINATION", "destination_host");
}

#[test]
fn a_request_id_is_one_wish() {
    let fabric = fabric();
    let wish = request(Some("h2"));
    let known = migrate(&fabric, &wish, Some(("m-1", &wish)));
    assert_eq!(known, Ok(Verdict::Known { migration: "m-1".into() }));
    denied(migrate(&fabric, &request(None), Some(("m-1", &wish))), "REQUEST_ID_REUSED", "request_id");
}

#[test]
fn cancel_ends_with_commit() {
    for early in [Phase::Preparing, Phase::Precopy, Phase::Armed, Phase::Paused] {
        assert_eq!(cancel("m-1", early), Ok(()));
    }
    for late in [Phase::Committed, Phase::Settling, Phase::Done, Phase::Aborted] {
        denied(cancel("m-1", late), "TOO_LATE", "id");
    }
}

fn any_guest() -> impl Strategy<Value = NewGuest> {
    let any_port = (prop::option::of(0_u8..12), 0_u8..24).prop_map(|(mac, ip)| port(mac, ip));
    ("[a-d]{1,2}", prop::collection::vec(any_port, 1..4), 4096_u64..200_000)
        .prop_map(|(name, ports, memory_kib)| NewGuest { memory_kib, ..guest(&name, ports) })
}

proptest! {
    #[test]
    fn whatever_is_admitted_collides_with_nothing(
        wishes in prop::collection::vec((any_guest(), prop::sample::select(vec!["h1", "h2", "gw"])), 0..30),
    ) {
        let mut fabric = fabric();
        for (wish, on) in wishes {
            if create_guest(&fabric, &wish, &host(on)).is_ok() {
                fabric.add(wish, on);
            }
        }
        let ports: Vec<_> = fabric.ports().collect();
        for (at, one) in ports.iter().enumerate() {
            for other in &ports[at + 1..] {
                prop_assert_ne!(one.port.mac, other.port.mac);
                prop_assert!(!one.port.ips.iter().any(|ip| other.port.ips.contains(ip)));
            }
        }
        prop_assert!(fabric.hosts.iter().all(|host| host.memory_used_kib <= host.memory_kib));
        prop_assert!(fabric.guests.iter().all(|(_, facts)| facts.host.as_str() != "gw"));
    }

    #[test]
    fn the_chosen_destination_is_able_and_none_able_has_more(
        frees in prop::collection::vec((0_u64..500_000, any::<bool>(), any::<bool>()), 0..8),
    ) {
        let mut fabric = fabric();
        fabric.hosts.truncate(1);
        for ((memory_kib, connected, peer_only), n) in frees.into_iter().zip(20_u8..) {
            fabric.hosts.push(HostFacts { memory_kib, connected, peer_only, ..host_facts(&format!("x{n}"), n) });
        }
        let able = |it: &&HostFacts| {
            it.name.as_str() != "h1" && it.connected && !it.peer_only && it.memory_free_kib() >= 262_136
        };
        let most = fabric.hosts.iter().filter(able).map(HostFacts::memory_free_kib).max();
        match migrate(&fabric, &request(None), None) {
            Ok(Verdict::Admitted { source, destination, .. }) => {
                prop_assert_eq!(source, host("h1"));
                let chosen = fabric.host(&destination).unwrap();
                prop_assert!(able(&&chosen));
                prop_assert_eq!(Some(chosen.memory_free_kib()), most);
            }
            Err(Denial::NoDestination { .. }) => prop_assert_eq!(most, None),
            other => prop_assert!(false, "{other:?}"),
        }
    }
}
