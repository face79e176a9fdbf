//! Messages that hold secrets do not show them.

use std::fmt;

use crate::v1::{BeginPoint, DesiredReplica, DesiredReplication, DiskStream, Prepared, Sealed, prepared::Memory};

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sealed = matches!(self.memory, Some(Memory::Sealed(_)));
        let mut shown = f.debug_struct("Prepared");
        shown.field("memory_address", &self.memory_address).field("sealed", &sealed);
        shown.field("disks", &self.disks).finish_non_exhaustive()
    }
}

impl fmt::Debug for DiskStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskStream").field("address", &self.address).finish_non_exhaustive()
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealed(…)")
    }
}

impl fmt::Debug for DesiredReplication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("DesiredReplication");
        shown.field("id", &self.id).field("guest", &self.guest).field("generation", &self.generation);
        shown.field("host", &self.host).field("every_ms", &self.every_ms);
        shown.field("target_lag_ms", &self.target_lag_ms).finish_non_exhaustive()
    }
}

impl fmt::Debug for DesiredReplica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("DesiredReplica");
        shown.field("id", &self.id).field("generation", &self.generation).field("source", &self.source);
        shown.field("keep", &self.keep).finish_non_exhaustive()
    }
}

impl fmt::Debug for BeginPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("BeginPoint");
        shown.field("replica_id", &self.replica_id).field("generation", &self.generation).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{FromDestination, PreparedDisk, from_destination::Message};

    #[test]
    fn what_opens_a_stream_is_in_no_log() {
        let sealed = Sealed { authority: vec![71; 3], certificate: vec![72; 3], key: vec![73; 3] };
        let stream = DiskStream { address: "192.0.2.2:8".to_owned(), token: vec![75; 3], sealed: Some(sealed.clone()) };
        let disk = PreparedDisk { name: "root".to_owned(), mirror: Some(stream), ..PreparedDisk::default() };
        let prepared = Prepared {
            memory_address: "192.0.2.2:7".to_owned(),
            memory_token: vec![74; 3],
            memory: Some(Memory::Sealed(sealed)),
            disks: vec![disk],
        };
        let shown = format!("{:?}", FromDestination { message: Some(Message::Prepared(prepared)) });
        assert!(shown.contains("192.0.2.2:7") && shown.contains("192.0.2.2:8"), "{shown}");
        for secret in ["71", "72", "73", "74", "75"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }

    #[test]
    fn what_lets_a_replicas_sender_in_is_in_no_log() {
        let sent = DesiredReplication { id: "r-1".into(), token: "secret".into(), ..Default::default() };
        let kept = DesiredReplica { id: "r-1".into(), token: "secret".into(), ..Default::default() };
        let begun = BeginPoint { replica_id: "r-1".into(), token: "secret".into(), ..Default::default() };
        for shown in [format!("{sent:?}"), format!("{kept:?}"), format!("{begun:?}")] {
            assert!(shown.contains("r-1") && !shown.contains("secret"), "{shown}");
        }
    }
}
