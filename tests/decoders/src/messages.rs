//! gRPC bodies, and what is made of them.

use std::{fmt::Debug, net::Ipv4Addr};

use prost::Message;
use throughline_agent::{cold, flip, invitation, memberships, peer, reconcile};
use throughline_controller::read_agent_message;
use throughline_cutover::{
    Binding, Disk, DiskBus, DiskFormat, DiskPlace, Endpoint, GuestSpec, Keeping, Limits, Mandate, MigrationPlan,
    Network, OwnedGuest, Point, Port, Promotion, Replication, Stop,
    admission::{Greeting, MigrationRequest, NewEndpoint, NewGuest, NewReplica, PromotionRequest, TestRequest},
};
use throughline_wire::{
    points,
    v1::{
        self, controller_message::Message as Order, disk_from_source, from_destination, from_source, point_from_keeper,
        point_from_source,
    },
};

use crate::chosen;

/// Where memory is to go.
const DESTINATION: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// Bytes of a disk's file that comes.
const FILE: u64 = 64 << 20;

/// What operators send: the first byte says which message.
pub(crate) fn requests(bytes: &[u8]) {
    let Some((choice, body)) = chosen(bytes) else { return };
    match choice {
        0 => stable::<v1::Network, Network>(body),
        1 => read::<v1::GuestSpec, NewGuest>(body),
        2 => read::<v1::Endpoint, NewEndpoint>(body),
        3 => stable::<v1::MigrationLimits, Limits>(body),
        4 => read::<v1::MigrateGuestRequest, MigrationRequest>(body),
        5 => stable::<v1::GuestSpec, GuestSpec>(body),
        6 => stable::<v1::Endpoint, Endpoint>(body),
        7 => stable::<v1::Port, Port>(body),
        8 => stable::<v1::Stop, Stop>(body),
        9 => read::<v1::CreateReplicaRequest, NewReplica>(body),
        10 => read::<v1::PromoteReplicaRequest, PromotionRequest>(body),
        11 => read::<v1::TestReplicaRequest, TestRequest>(body),
        _ => {}
    }
}

/// The plan of a migration.
pub(crate) fn plans(bytes: &[u8]) {
    stable::<v1::MigrationPlan, MigrationPlan>(bytes);
}

/// What agents say to the controller.
pub(crate) fn agent(bytes: &[u8]) {
    let Ok(message) = v1::AgentMessage::decode(bytes) else { return };
    if let Some(v1::agent_message::Message::Hello(hello)) = message.message.clone() {
        let _greeting = Greeting::try_from(hello.clone());
        for guest in hello.guests {
            reads_again::<v1::OwnedGuest, OwnedGuest>(guest);
        }
    }
    let _read = read_agent_message(message);
}

/// What the controller orders an agent.
pub(crate) fn controller(bytes: &[u8]) {
    let Ok(message) = v1::ControllerMessage::decode(bytes) else { return };
    match message.message {
        Some(Order::Welcome(v1::Welcome { mandate: Some(mandate), .. })) => {
            reads_again::<v1::Mandate, Mandate>(mandate);
        }
        Some(Order::Desired(state)) => {
            for problem in reconcile::read(&state) {
                assert!(!problem.is_empty());
            }
            for guest in state.guests {
                guest.spec.into_iter().for_each(reads_again::<v1::GuestSpec, GuestSpec>);
                guest.stop.into_iter().for_each(reads_again::<v1::Stop, Stop>);
                guest.promotion.into_iter().for_each(reads_again::<v1::Promotion, Promotion>);
            }
            state.replications.into_iter().for_each(reads_again::<v1::DesiredReplication, Replication>);
            state.replicas.into_iter().for_each(reads_again::<v1::DesiredReplica, Keeping>);
            for binding in state.networks.into_iter().flat_map(|network| network.bindings) {
                reads_again::<v1::Binding, Binding>(binding);
            }
        }
        Some(
            Order::Expect(v1::ExpectMigration { plan: Some(plan) })
            | Order::Start(v1::StartMigration { plan: Some(plan) }),
        ) => {
            reads_again::<v1::MigrationPlan, MigrationPlan>(plan);
        }
        Some(Order::Rebind(rebind)) => drop(flip::read(rebind)),
        _ => {}
    }
}

/// What the two ends of a migration or of a replica say to each other: the first byte says which end speaks, and of what.
pub(crate) fn peer(bytes: &[u8]) {
    let Some((choice, body)) = chosen(bytes) else { return };
    match choice {
        0 => {
            let Ok(message) = v1::FromSource::decode(body) else { return };
            if let Some(from_source::Message::Joined(joined)) = &message.message {
                for membership in &joined.memberships {
                    assert!(memberships::read(membership).groups.iter().all(std::net::IpAddr::is_multicast));
                }
            }
            let _event = peer::event_of(message);
        }
        2 => {
            let Ok(message) = v1::DiskFromSource::decode(body) else { return };
            if let Some(disk_from_source::Message::Data(data)) = message.message
                && cold::is_within(&data, FILE)
            {
                assert!(data.offset < FILE, "nothing is written beyond the file");
            }
        }
        3 => {
            let Ok(message) = v1::PointFromSource::decode(body) else { return };
            if let Some(point_from_source::Message::Sent(v1::PointSent { point: Some(point) })) = message.message {
                reads_again::<v1::Point, Point>(point);
            }
        }
        4 => {
            let Ok(message) = v1::PointFromKeeper::decode(body) else { return };
            let Some(point_from_keeper::Message::Ready(ready)) = message.message else { return };
            if let Ok(points) = points(ready.points) {
                assert!(points.is_sorted_by_key(|point| point.number), "the last is the newest");
            }
            invited(ready.disks);
        }
        _ => {
            let Ok(message) = v1::FromDestination::decode(body) else { return };
            if let Some(from_destination::Message::Prepared(prepared)) = message.message
                && let Ok(invitation) = invitation::from_wire(prepared, DESTINATION, true)
            {
                assert_eq!(
                    *invitation.address.ip(),
                    DESTINATION,
                    "memory goes to the plan's destination and nowhere else"
                );
            }
        }
    }
}

/// Where a keeper would have the disks of a replica sent.
fn invited(wanted: Vec<v1::ReplicaDisk>) {
    let disk = |wanted: &v1::ReplicaDisk| {
        Some(Disk {
            name: wanted.name.parse().ok()?,
            size: FILE.try_into().ok()?,
            format: DiskFormat::Raw,
            bus: DiskBus::VirtioBlk,
            image: String::new(),
            place: DiskPlace::Directory,
            over: false,
        })
    };
    let disks: Vec<_> = wanted.iter().filter_map(disk).collect();
    if let Ok(invited) = invitation::replica::from_wire(wanted, &disks, DESTINATION) {
        for invitation in invited {
            assert_eq!(*invitation.stream.address.ip(), DESTINATION, "a replica goes to its keeper and nowhere else");
        }
    }
}

/// Bytes to a message, and to what it means.
fn read<M, T>(bytes: &[u8])
where
    M: Message + Default,
    T: TryFrom<M>,
{
    let _read = M::decode(bytes).ok().map(T::try_from);
}

/// The same of what can be written again.
fn stable<M, T>(bytes: &[u8])
where
    M: Message + Default + From<T>,
    T: TryFrom<M, Error: Debug> + Clone + PartialEq + Debug,
{
    if let Ok(message) = M::decode(bytes) {
        reads_again::<M, T>(message);
    }
}

/// What reads means the same when it was written and read once more.
fn reads_again<M, T>(message: M)
where
    M: From<T>,
    T: TryFrom<M, Error: Debug> + Clone + PartialEq + Debug,
{
    if let Ok(read) = T::try_from(message) {
        assert_eq!(T::try_from(M::from(read.clone())).expect("what was read can be written"), read);
    }
}
