//! Messages that hold secrets do not show them.

use std::fmt;

use crate::v1::{Prepared, Sealed, prepared::Memory};

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sealed = matches!(self.memory, Some(Memory::Sealed(_)));
        let mut shown = f.debug_struct("Prepared");
        shown.field("memory_address", &self.memory_address).field("sealed", &sealed).finish_non_exhaustive()
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealed(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{FromDestination, from_destination::Message};

    #[test]
    fn what_opens_a_memory_stream_is_in_no_log() {
        let sealed = Sealed { authority: vec![71; 3], certificate: vec![72; 3], key: vec![73; 3] };
        let prepared = Prepared {
            memory_address: "192.0.2.2:7".to_owned(),
            memory_token: vec![74; 3],
            memory: Some(Memory::Sealed(sealed)),
        };
        let shown = format!("{:?}", FromDestination { message: Some(Message::Prepared(prepared)) });
        assert!(shown.contains("192.0.2.2:7"), "{shown}");
        for secret in ["71", "72", "73", "74"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }
}
