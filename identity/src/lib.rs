//! Who is who in the fabric: identities in certificates, and who is at the other end of a connection.

mod caller;
mod name;

pub use caller::Caller;
pub use name::{Identity, InvalidIdentity, SpiffeId, TrustDomain};
