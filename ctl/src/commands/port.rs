//! A guest's network card on the command line: `network=NET,mac=MAC,ip=IP,ip=IP`.

use throughline_wire::v1::Port;

/// Why a text is no port. clap puts the flag's name and the text in front.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidPort {
    /// A part without "=", or with an unknown key.
    #[error("{0:?} is none of network=NET, mac=MAC, ip=IP")]
    Part(String),
    /// A key that may come once came twice.
    #[error("{0} is given twice")]
    Twice(&'static str),
    /// A key that must be there is not.
    #[error("{0}= is missing")]
    Missing(&'static str),
}

/// Reads a port. Whether names and addresses are good ones is for the controller to say.
pub(super) fn port(text: &str) -> Result<Port, InvalidPort> {
    let mut port = Port::default();
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("network", value)) => once("network", &mut port.network, value)?,
            Some(("mac", value)) => once("mac", &mut port.mac, value)?,
            Some(("ip", value)) => port.ips.push(value.to_owned()),
            _ => return Err(InvalidPort::Part(part.to_owned())),
        }
    }
    if port.network.is_empty() {
        return Err(InvalidPort::Missing("network"));
    }
    if port.ips.is_empty() {
        return Err(InvalidPort::Missing("ip"));
    }
    Ok(port)
}

fn once(key: &'static str, slot: &mut String, value: &str) -> Result<(), InvalidPort> {
    if !slot.is_empty() {
        return Err(InvalidPort::Twice(key));
    }
    value.clone_into(slot);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read() {
        let expected = Port {
            id: 0,
            network: "blue".to_owned(),
            mac: "02:00:00:00:00:01".to_owned(),
            ips: vec!["10.0.0.1".to_owned(), "fd00::1".to_owned()],
        };
        assert_eq!(port("network=blue,mac=02:00:00:00:00:01,ip=10.0.0.1,ip=fd00::1"), Ok(expected));
        assert_eq!(port("ip=10.0.0.1,network=blue").unwrap().mac, "");
    }

    #[test]
    fn what_is_no_port_is_refused() {
        assert_eq!(port(""), Err(InvalidPort::Part(String::new())));
        assert_eq!(port("network=a,ip"), Err(InvalidPort::Part("ip".to_owned())));
        assert_eq!(port("network=a,speed=1"), Err(InvalidPort::Part("speed=1".to_owned())));
        assert_eq!(port("network=a,network=b,ip=::1"), Err(InvalidPort::Twice("network")));
        assert_eq!(port("ip=::1"), Err(InvalidPort::Missing("network")));
        assert_eq!(port("network=a"), Err(InvalidPort::Missing("ip")));
    }
}
