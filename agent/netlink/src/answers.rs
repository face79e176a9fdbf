//! The kernel's answers, from their bytes: what this crate reads out of a datagram, in one call. Pure.

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;

use crate::{
    link::Link,
    mdb,
    network::{Entry, neighbour},
    verbs::refusal,
};

/// Reads a datagram as the lists of devices, entries and neighbours are read, and as a multicast database is. How many
/// things it found that mean something here.
pub fn read_answer(datagram: &[u8]) -> usize {
    let members = mdb::read(datagram).map_or(0, |lines| lines.len());
    let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(datagram) else { return members };
    members
        + match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(message)) => {
                usize::from(!Link::from(message).name.is_empty())
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(message)) => {
                usize::from(Entry::from(&message).mac.is_some()) + usize::from(neighbour(&message).is_some())
            }
            NetlinkPayload::Error(error) => usize::from(!refusal(&error).to_string().is_empty()),
            _ => 0,
        }
}
