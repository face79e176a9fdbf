//! The same of the disks of a replica.

use std::net::Ipv4Addr;

use throughline_cutover::Disk;
use throughline_cutover::Failure;
use throughline_hypervisor::ReplicaInvitation;
use throughline_wire::v1;

use super::disks::{invitation, odd, stream};

/// For the guest's host, and for nobody else.
pub fn to_wire(wanted: ReplicaInvitation) -> v1::ReplicaDisk {
    let ReplicaInvitation { disk, stream: invitation } = wanted;
    v1::ReplicaDisk { name: disk.into(), stream: Some(stream(invitation)) }
}

/// As the keeper sent it, whose tunnel end point is `vtep`, for a guest that has `disks`: one for each, in their order.
///
/// # Errors
/// What is wrong with it.
pub fn from_wire(
    wanted: Vec<v1::ReplicaDisk>,
    disks: &[Disk],
    vtep: Ipv4Addr,
) -> Result<Vec<ReplicaInvitation>, Failure> {
    let names = wanted.iter().map(|disk| disk.name.as_str());
    if !names.eq(disks.iter().map(|disk| disk.name.as_str())) {
        return Err(odd("wants other disks than the guest has"));
    }
    let invited = |(wanted, disk): (v1::ReplicaDisk, &Disk)| {
        Ok(ReplicaInvitation { disk: disk.name.clone(), stream: invitation(&disk.name, wanted.stream, vtep)? })
    };
    wanted.into_iter().zip(disks).map(invited).collect()
}

#[cfg(test)]
mod tests {
    use throughline_cutover::{DiskBus, DiskFormat, DiskPlace};
    use throughline_hypervisor::{Credentials, Invitation, Token};

    use super::*;

    const VTEP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

    #[test]
    fn an_invitation_arrives_as_it_was_sent_and_none_leads_elsewhere() {
        let disk = Disk {
            name: "root".parse().unwrap(),
            size: (1 << 20).try_into().unwrap(),
            format: DiskFormat::Raw,
            bus: DiskBus::VirtioBlk,
            image: String::new(),
            place: DiskPlace::Directory,
            over: false,
        };
        let credentials = Credentials { authority: vec![1], certificate: vec![2], key: vec![3] };
        let stream = Invitation {
            address: std::net::SocketAddrV4::new(VTEP, 49_152),
            token: Token::from_bytes(&[7; 32]).unwrap(),
            sealed: Some(credentials),
        };
        let sent = to_wire(ReplicaInvitation { disk: disk.name.clone(), stream });
        let read = |sent: Vec<v1::ReplicaDisk>, vtep| from_wire(sent, std::slice::from_ref(&disk), vtep);
        let arrived = read(vec![sent.clone()], VTEP).unwrap();
        assert_eq!((arrived[0].disk.as_str(), arrived[0].stream.address.port()), ("root", 49_152));
        let elsewhere = Ipv4Addr::new(192, 0, 2, 3);
        let open = v1::ReplicaDisk { stream: None, ..sent.clone() };
        for refused in
            [read(vec![sent.clone()], elsewhere), read(vec![open], VTEP), read(vec![sent.clone(), sent], VTEP)]
        {
            assert_eq!(refused.unwrap_err().reason, "DISK_STREAM");
        }
    }
}
