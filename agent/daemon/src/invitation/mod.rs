//! Where a guest's memory may come, and its disks, as one agent tells another.

pub mod disks;
pub mod replica;

use std::net::{Ipv4Addr, SocketAddrV4};

use throughline_cutover::Failure;
use throughline_hypervisor::{Credentials, Invitation, Token};
use throughline_wire::v1::{self, prepared::Memory};

/// For the source, and for nobody else.
pub fn to_wire(invitation: Invitation, disks: Vec<v1::PreparedDisk>) -> v1::Prepared {
    let memory = match invitation.sealed {
        Some(Credentials { authority, certificate, key }) => Memory::Sealed(v1::Sealed { authority, certificate, key }),
        None => Memory::Plaintext(v1::Plaintext {}),
    };
    v1::Prepared {
        memory_address: invitation.address.to_string(),
        memory_token: invitation.token.as_bytes().to_vec(),
        memory: Some(memory),
        disks,
    }
}

/// As the destination sent it, whose tunnel end point is `vtep`: no other address is called for it. One in the clear is accepted
/// only with `plaintext`.
///
/// # Errors
/// What is wrong with it.
pub fn from_wire(prepared: v1::Prepared, vtep: Ipv4Addr, plaintext: bool) -> Result<Invitation, Failure> {
    let odd = |what: &str| {
        Failure::new(
            "MEMORY_STREAM",
            format!("the destination's answer has no {what}; do both agents have one version?"),
        )
    };
    let sealed = match prepared.memory {
        Some(Memory::Sealed(v1::Sealed { authority, certificate, key })) => {
            Some(Credentials { authority, certificate, key })
        }
        Some(Memory::Plaintext(_)) if plaintext => None,
        Some(Memory::Plaintext(_)) => {
            let message = "the destination would take the guest's memory in the clear (--memory-plaintext), and this host's agent \
                           was not told to send it so; start both agents with that flag, or neither";
            return Err(Failure::new("MEMORY_PLAINTEXT_REFUSED", message));
        }
        None => return Err(odd("seal")),
    };
    let address = prepared.memory_address.parse().map_err(|_| odd("address for memory"))?;
    is_there(address, vtep).map_err(|why| Failure::new("MEMORY_STREAM", why))?;
    Ok(Invitation {
        address,
        token: Token::from_bytes(&prepared.memory_token).ok_or_else(|| odd("token for memory"))?,
        sealed,
    })
}

/// Only the destination itself is called.
fn is_there(address: SocketAddrV4, vtep: Ipv4Addr) -> Result<(), String> {
    if *address.ip() == vtep {
        return Ok(());
    }
    Err(format!("the other host wants to be called at {address}, and is {vtep}; nobody is called there"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VTEP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

    fn invitation(sealed: bool) -> Invitation {
        let credentials = Credentials { authority: vec![1], certificate: vec![2], key: vec![3] };
        Invitation {
            address: "192.0.2.2:49152".parse().unwrap(),
            token: Token::from_bytes(&[7; 32]).unwrap(),
            sealed: sealed.then_some(credentials),
        }
    }

    #[test]
    fn an_invitation_arrives_as_it_was_sent() {
        for plaintext in [false, true] {
            let arrived = from_wire(to_wire(invitation(true), vec![]), VTEP, plaintext).unwrap();
            assert_eq!(arrived.address, invitation(true).address);
            assert_eq!(arrived.token.as_bytes(), [7; 32]);
            assert_eq!(arrived.sealed.unwrap().key, [3]);
        }
    }

    #[test]
    fn in_the_clear_only_if_both_operators_say_so() {
        assert!(from_wire(to_wire(invitation(false), vec![]), VTEP, true).unwrap().sealed.is_none());
        let refused = from_wire(to_wire(invitation(false), vec![]), VTEP, false).unwrap_err();
        assert_eq!(refused.reason, "MEMORY_PLAINTEXT_REFUSED");
    }

    #[test]
    fn what_is_missing_is_no_plaintext() {
        let whole = to_wire(invitation(true), vec![]);
        for broken in [
            v1::Prepared { memory: None, ..whole.clone() },
            v1::Prepared { memory_token: vec![7; 31], ..whole.clone() },
            v1::Prepared { memory_address: "tcp:192.0.2.2:7".to_owned(), ..whole.clone() },
            // Nobody else is called in the destination's name.
            v1::Prepared { memory_address: "127.0.0.1:7700".to_owned(), ..whole },
        ] {
            assert_eq!(from_wire(broken, VTEP, true).unwrap_err().reason, "MEMORY_STREAM");
        }
    }
}
