//! The same of a guest's disks. They are sealed whatever becomes of memory.

use std::net::Ipv4Addr;

use throughline_cutover::{Disk, DiskName, Failure};
use throughline_hypervisor::{Credentials, DiskInvitation, Invitation, Token};
use throughline_wire::v1;

use super::is_there;

/// A disk that the destination waits for.
#[derive(Debug)]
pub struct Wanted {
    /// Where it may come.
    pub invitation: DiskInvitation,
    /// What an earlier migration copied is there.
    pub continued: bool,
}

/// For the source, and for nobody else.
pub fn to_wire(wanted: Wanted) -> v1::PreparedDisk {
    let Wanted { invitation: DiskInvitation { disk, mirror, rest }, continued } = wanted;
    v1::PreparedDisk { name: disk.into(), continued, mirror: Some(stream(mirror)), rest: Some(stream(rest)) }
}

pub(super) fn stream(invitation: Invitation) -> v1::DiskStream {
    let sealed =
        invitation.sealed.map(|Credentials { authority, certificate, key }| v1::Sealed { authority, certificate, key });
    let (address, token) = (invitation.address.to_string(), invitation.token.as_bytes().to_vec());
    v1::DiskStream { address, token, sealed }
}

/// As the destination sent it, whose tunnel end point is `vtep`, for a guest that brings `disks`: one for each, in their order.
///
/// # Errors
/// What is wrong with it.
pub fn from_wire(prepared: Vec<v1::PreparedDisk>, disks: &[Disk], vtep: Ipv4Addr) -> Result<Vec<Wanted>, Failure> {
    let names = prepared.iter().map(|disk| disk.name.as_str());
    if !names.eq(disks.iter().map(|disk| disk.name.as_str())) {
        return Err(odd("wants other disks than the guest has"));
    }
    let wanted = prepared.into_iter().zip(disks).map(|(prepared, disk)| {
        let invited = |stream| invitation(&disk.name, stream, vtep);
        let (mirror, rest) = (invited(prepared.mirror)?, invited(prepared.rest)?);
        let invitation = DiskInvitation { disk: disk.name.clone(), mirror, rest };
        Ok(Wanted { invitation, continued: prepared.continued })
    });
    wanted.collect()
}

pub(super) fn odd(what: &str) -> Failure {
    Failure::new("DISK_STREAM", format!("the host that disks are sent to {what}; do both agents have one version?"))
}

pub(super) fn invitation(
    disk: &DiskName,
    stream: Option<v1::DiskStream>,
    vtep: Ipv4Addr,
) -> Result<Invitation, Failure> {
    let missing = |what: &str| odd(&format!("says no {what} for disk {disk}"));
    let v1::DiskStream { address, token, sealed } = stream.ok_or_else(|| missing("connection"))?;
    let v1::Sealed { authority, certificate, key } = sealed.ok_or_else(|| missing("seal"))?;
    let address = address.parse().map_err(|_| missing("address"))?;
    is_there(address, vtep).map_err(|why| Failure::new("DISK_STREAM", why))?;
    let token = Token::from_bytes(&token).ok_or_else(|| missing("token"))?;
    Ok(Invitation { address, token, sealed: Some(Credentials { authority, certificate, key }) })
}

#[cfg(test)]
mod tests {
    use throughline_cutover::{DiskBus, DiskFormat, DiskPlace};

    use super::*;

    const VTEP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

    fn disks() -> Vec<Disk> {
        let disk = |name: &str| Disk {
            name: name.parse().unwrap(),
            size: (1 << 20).try_into().unwrap(),
            format: DiskFormat::Raw,
            bus: DiskBus::VirtioBlk,
            image: String::new(),
            place: DiskPlace::Directory,
            over: false,
        };
        vec![disk("root"), disk("data")]
    }

    fn wanted(disk: &Disk) -> Wanted {
        let invitation = |port| Invitation {
            address: std::net::SocketAddrV4::new(VTEP, port),
            token: Token::from_bytes(&[7; 32]).unwrap(),
            sealed: Some(Credentials { authority: vec![1], certificate: vec![2], key: vec![3] }),
        };
        let invitation =
            DiskInvitation { disk: disk.name.clone(), mirror: invitation(49_152), rest: invitation(49_153) };
        Wanted { invitation, continued: true }
    }

    fn sent() -> Vec<v1::PreparedDisk> {
        disks().iter().map(|disk| to_wire(wanted(disk))).collect()
    }

    #[test]
    fn an_invitation_arrives_as_it_was_sent() {
        let arrived = from_wire(sent(), &disks(), VTEP).unwrap();
        let [root, data] = arrived.as_slice() else { panic!("{arrived:?}") };
        assert_eq!((root.invitation.disk.as_str(), data.invitation.disk.as_str()), ("root", "data"));
        assert!(root.continued);
        assert_eq!((root.invitation.mirror.address.port(), root.invitation.rest.address.port()), (49_152, 49_153));
        assert_eq!(root.invitation.rest.sealed.as_ref().unwrap().key, [3]);
    }

    #[test]
    fn what_is_missing_or_leads_elsewhere_is_refused() {
        let broken = |change: fn(&mut Vec<v1::PreparedDisk>)| {
            let mut sent = sent();
            change(&mut sent);
            from_wire(sent, &disks(), VTEP).unwrap_err().reason
        };
        let changes: [fn(&mut Vec<v1::PreparedDisk>); 7] = [
            |sent| sent.truncate(1),
            |sent| sent.reverse(),
            |sent| sent.clear(),
            |sent| sent[0].mirror = None,
            |sent| sent[1].rest.as_mut().unwrap().sealed = None,
            |sent| sent[1].rest.as_mut().unwrap().token.truncate(31),
            |sent| sent[0].mirror.as_mut().unwrap().address = "127.0.0.1:7700".to_owned(),
        ];
        for change in changes {
            assert_eq!(broken(change), "DISK_STREAM");
        }
        assert!(from_wire(Vec::new(), &[], VTEP).unwrap().is_empty(), "a guest without disks");
    }
}
