//! What callers and agents ask for: things whose numbers and addresses are still to be allotted.

use std::net::{Ipv4Addr, SocketAddr};

use throughline_cutover::{
    Mandate, OwnedGuest, StopFirst,
    admission::{Enrolment, Greeting, MigrationRequest, NewEndpoint, NewGuest, NewPort},
};

use super::{
    field::{InvalidField, Problem, parse, required, within},
    resources::{endpoint_parts, guest_parts, ips, mac, queues},
};
use crate::{
    limits::{LONGEST_ID, MOST_GUESTS},
    v1,
};

/// Longest free text an agent may say about itself, bytes.
const LONGEST_WORD: u64 = 64;

impl TryFrom<v1::Port> for NewPort {
    type Error = InvalidField;
    fn try_from(port: v1::Port) -> Result<Self, InvalidField> {
        if port.id != 0 {
            let words = format!("is {}; leave it 0, the controller allots it", port.id);
            return Err(InvalidField::new("id", Problem::Other(words)));
        }
        let mac = if port.mac.is_empty() { None } else { Some(mac("mac", &port.mac)?) };
        Ok(Self { network: parse("network", &port.network)?, mac, ips: ips(&port.ips)? })
    }
}

impl TryFrom<v1::GuestSpec> for NewGuest {
    type Error = InvalidField;
    fn try_from(spec: v1::GuestSpec) -> Result<Self, InvalidField> {
        let (vcpus, queues, memory_kib, guest_agent) = (spec.vcpus, queues(&spec)?, spec.memory_kib, spec.guest_agent);
        let (name, boot, ports, disks) = guest_parts(spec)?;
        Ok(Self { name, vcpus, queues, memory_kib, boot, ports, disks, guest_agent })
    }
}

impl TryFrom<v1::Endpoint> for NewEndpoint {
    type Error = InvalidField;
    fn try_from(endpoint: v1::Endpoint) -> Result<Self, InvalidField> {
        let (name, host, port, prefix_len) = endpoint_parts(endpoint)?;
        Ok(Self { name, host, port, prefix_len })
    }
}

impl TryFrom<v1::Hello> for Enrolment {
    type Error = InvalidField;
    fn try_from(hello: v1::Hello) -> Result<Self, InvalidField> {
        let peer_endpoint: SocketAddr = parse("peer_endpoint", &hello.peer_endpoint)?;
        let vtep: Ipv4Addr = parse("vtep", &hello.vtep)?;
        if vtep.is_unspecified() || vtep.is_multicast() || vtep.is_broadcast() || vtep.is_loopback() {
            let words =
                format!("is {vtep}, which is not one host's address on the underlay; give the address of --vtep");
            return Err(InvalidField::new("vtep", Problem::Other(words)));
        }
        if peer_endpoint.ip().is_unspecified() || peer_endpoint.ip().is_multicast() {
            let words =
                format!("is {peer_endpoint}, which other hosts cannot reach; listen on one of the host's addresses");
            return Err(InvalidField::new("peer_endpoint", Problem::Other(words)));
        }
        within("accelerator", hello.accelerator.len() as u64, 0..=LONGEST_WORD, "bytes")?;
        within("agent_version", hello.agent_version.len() as u64, 0..=LONGEST_WORD, "bytes")?;
        Ok(Self {
            host: parse("host", &hello.host)?,
            vtep,
            peer_endpoint: peer_endpoint.to_string(),
            memory_kib: hello.memory_kib,
            accelerator: hello.accelerator,
            agent_version: hello.agent_version,
            peer_only: hello.peer_only,
        })
    }
}

impl TryFrom<v1::Hello> for Greeting {
    type Error = InvalidField;
    fn try_from(mut hello: v1::Hello) -> Result<Self, InvalidField> {
        let obeyed = hello.obeyed.take().map(Mandate::try_from).transpose().map_err(|e| e.within("obeyed"))?;
        within("guests", hello.guests.len() as u64, 0..=MOST_GUESTS as u64, "guests a host")?;
        let guests = std::mem::take(&mut hello.guests).into_iter().enumerate();
        let guests = guests.map(|(at, guest)| {
            OwnedGuest::try_from(guest).map_err(|e: InvalidField| e.within(format_args!("guests[{at}]")))
        });
        Ok(Self { obeyed, guests: guests.collect::<Result<_, _>>()?, enrolment: hello.try_into()? })
    }
}

impl TryFrom<v1::MigrateGuestRequest> for MigrationRequest {
    type Error = InvalidField;
    fn try_from(request: v1::MigrateGuestRequest) -> Result<Self, InvalidField> {
        within("request_id", request.request_id.len() as u64, 1..=LONGEST_ID as u64, "characters")?;
        if !request.request_id.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
            let words = "has a character that is not printable ASCII; a UUID is a good request id".to_owned();
            return Err(InvalidField::new("request_id", Problem::Other(words)));
        }
        let (guest, destination) = (parse("guest", &request.guest)?, &request.destination_host);
        let destination = if destination.is_empty() { None } else { Some(parse("destination_host", destination)?) };
        let stop_first = request.stop_first.map(StopFirst::try_from).transpose().map_err(|e| e.within("stop_first"))?;
        Ok(Self { guest, destination, request_id: request.request_id, stop_first, flatten: request.flatten })
    }
}

/// The message a field must carry, converted; failures name the path from `field` on.
///
/// # Errors
/// [`Problem::Missing`], or whatever is wrong within.
pub fn nested<T, V>(field: &str, value: Option<V>) -> Result<T, InvalidField>
where
    T: TryFrom<V, Error = InvalidField>,
{
    T::try_from(required(field, value)?).map_err(|error| error.within(field))
}

/// A name, or any other value with a text form; a failure names the field.
///
/// # Errors
/// Whatever is wrong with it.
pub fn parsed<T>(field: &str, text: &str) -> Result<T, InvalidField>
where
    T: std::str::FromStr,
    Problem: From<T::Err>,
{
    parse(field, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_bounded_and_says_where() {
        let hello = || v1::Hello {
            host: "h1".into(),
            vtep: "192.0.2.1".into(),
            peer_endpoint: "192.0.2.1:7701".into(),
            ..Default::default()
        };
        Greeting::try_from(hello()).expect("good");
        let field = |change: fn(&mut v1::Hello)| {
            let mut hello = hello();
            change(&mut hello);
            Greeting::try_from(hello).expect_err("must be refused").field
        };
        assert_eq!(field(|hello| hello.guests = vec![v1::OwnedGuest::default(); MOST_GUESTS + 1]), "guests");
        assert_eq!(field(|hello| hello.guests = vec![v1::OwnedGuest::default()]), "guests[0].generation");
        assert_eq!(field(|hello| hello.host = "h".repeat(1 << 20)), "host");
        assert_eq!(field(|hello| hello.accelerator = "k".repeat(65)), "accelerator");
        assert_eq!(field(|hello| hello.agent_version = "v".repeat(65)), "agent_version");
        assert_eq!(field(|hello| hello.peer_endpoint = "h1:7701".into()), "peer_endpoint");
    }

    #[test]
    fn a_request_to_migrate_is_bounded_and_says_where() {
        let field = |guest: &str, destination_host: &str, request_id: &str| {
            let (guest, request_id) = (guest.to_owned(), request_id.to_owned());
            let destination_host = destination_host.to_owned();
            let stop_first = Some(v1::StopFirst { otherwise: 3, ..Default::default() });
            let request =
                v1::MigrateGuestRequest { guest, destination_host, request_id, stop_first, ..Default::default() };
            MigrationRequest::try_from(request).expect_err("must be refused").field
        };
        assert_eq!(field("web-1", "h2", ""), "request_id");
        assert_eq!(field("web-1", "h2", &"r".repeat(65)), "request_id");
        assert_eq!(field("web-1", "h2", "r\n1"), "request_id");
        assert_eq!(field("../web-1", "h2", "r-1"), "guest");
        assert_eq!(field("web-1", "h2;reboot", "r-1"), "destination_host");
        assert_eq!(field("web-1", "h2", "r-1"), "stop_first.otherwise");
    }
}
