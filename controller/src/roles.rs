//! Who may do what: one table with every method this controller serves, and the one place where it is read.
//!
//! Moving guests is daily work and an operator's, and so is having them replicated, and a replica tested; changing what the fabric is made of, giving up
//! what is kept, or vouching for a guest nobody can ask about, as a failover does, is an administrator's. An agent may attach, for its own host, and nothing else. A method that is not in the table is
//! refused, so that a new one cannot be served before somebody has decided who may call it.

mod book;

use std::fmt;

use throughline_identity::{Caller, Identity};
use throughline_wire::status;
use tonic::{Code, Status};

pub use book::{BadLine, BadRoles, RolesError, read_roles};
pub(crate) use book::{Book, follow, read};

/// What an operator may do. Each includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// Looks.
    Viewer,
    /// Moves guests.
    Operator,
    /// Changes the fabric.
    Admin,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        })
    }
}

/// What it takes to call a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// An operator with this role or a higher one.
    Role(Role),
    /// An agent.
    Agent,
    /// Any certificate of the fabric: load balancers and monitors ask whether the controller is well.
    Identity,
}

/// What a call leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing.
    Look,
    /// Nothing, and it may last.
    Watch,
    /// A change of the fabric: it goes into the audit log, whatever comes of it.
    Deed,
    /// A host's stream: it lasts, its beginning goes into the audit log.
    Stream,
}

/// A method of the table.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Method {
    /// Its path on the wire.
    pub(crate) path: &'static str,
    /// What it takes.
    pub(crate) needs: Needs,
    /// What it leaves.
    pub(crate) kind: Kind,
}

impl Method {
    /// Without its service.
    pub(crate) fn name(&self) -> &'static str {
        self.path.rsplit('/').next().unwrap_or(self.path)
    }
}

macro_rules! table {
    ($($service:literal { $($method:literal: $needs:expr, $kind:ident;)* })*) => {
        &[$($(Method { path: concat!("/", $service, "/", $method), needs: $needs, kind: Kind::$kind }),*),*]
    };
}

const VIEWER: Needs = Needs::Role(Role::Viewer);
const OPERATOR: Needs = Needs::Role(Role::Operator);
const ADMIN: Needs = Needs::Role(Role::Admin);

/// Every method this controller serves.
pub(crate) const TABLE: &[Method] = table! {
    "throughline.v1.Fabric" {
        "GetNetwork": VIEWER, Look;
        "ListNetworks": VIEWER, Look;
        "GetHost": VIEWER, Look;
        "ListHosts": VIEWER, Look;
        "GetGuest": VIEWER, Look;
        "ListGuests": VIEWER, Look;
        "GetEndpoint": VIEWER, Look;
        "ListEndpoints": VIEWER, Look;
        "GetReplica": VIEWER, Look;
        "ListReplicas": VIEWER, Look;
        "GetMigration": VIEWER, Look;
        "ListMigrations": VIEWER, Look;
        "WatchMigration": VIEWER, Watch;
        "MigrateGuest": OPERATOR, Deed;
        "StopGuest": OPERATOR, Deed;
        "StartGuest": OPERATOR, Deed;
        "CancelMigration": OPERATOR, Deed;
        "CreateReplica": OPERATOR, Deed;
        "TestReplica": OPERATOR, Deed;
        "EndReplicaTest": OPERATOR, Deed;
        "CreateNetwork": ADMIN, Deed;
        "DeleteNetwork": ADMIN, Deed;
        "CreateHost": ADMIN, Deed;
        "DeleteHost": ADMIN, Deed;
        "CreateGuest": ADMIN, Deed;
        "DeleteGuest": ADMIN, Deed;
        "CreateEndpoint": ADMIN, Deed;
        "DeleteEndpoint": ADMIN, Deed;
        "DeleteReplica": ADMIN, Deed;
        "PromoteReplica": ADMIN, Deed;
        "ResolveMigration": ADMIN, Deed;
    }
    "throughline.v1.AgentLink" {
        "Attach": Needs::Agent, Stream;
    }
    "grpc.health.v1.Health" {
        "Check": Needs::Identity, Look;
        "Watch": Needs::Identity, Watch;
    }
    "grpc.reflection.v1.ServerReflection" {
        "ServerReflectionInfo": VIEWER, Watch;
    }
};

/// The method at a path.
pub(crate) fn method(path: &str) -> Option<&'static Method> {
    TABLE.iter().find(|method| method.path == path)
}

/// Why a caller is turned away.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Barred {
    #[error(
        "the connection does not say who calls, and nobody without an identity may call anything here; call with a certificate of this fabric"
    )]
    CallerUnknown,
    #[error(
        "this controller serves no such method to anybody; see the services it names, and whether caller and controller are of one version"
    )]
    MethodUnknown,
    #[error(
        "{who} has no role here, and {method} needs the role {needed}; have it given one in the controller's roles file"
    )]
    NoRole { who: Identity, method: &'static str, needed: Role },
    #[error(
        "{who} has the role {has}, and {method} needs the role {needed}; have it done by someone who has that, or the role raised in the controller's roles file"
    )]
    RoleTooLow { who: Identity, has: Role, method: &'static str, needed: Role },
    #[error(
        "{who} is no operator, and {method} is for operators with the role {needed}; call with an operator's certificate"
    )]
    NotAnOperator { who: Identity, method: &'static str, needed: Role },
    #[error("{who} is no agent, and {method} is for agents; operators use the Fabric service")]
    NotAnAgent { who: Identity, method: &'static str },
}

impl Barred {
    /// The stable code.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::CallerUnknown => "CALLER_UNKNOWN",
            Self::MethodUnknown => "METHOD_UNKNOWN",
            Self::NoRole { .. } => "NO_ROLE",
            Self::RoleTooLow { .. } => "ROLE_TOO_LOW",
            Self::NotAnOperator { .. } => "NOT_AN_OPERATOR",
            Self::NotAnAgent { .. } => "NOT_AN_AGENT",
        }
    }
}

impl From<&Barred> for Status {
    fn from(barred: &Barred) -> Self {
        let code = match barred {
            Barred::CallerUnknown => Code::Unauthenticated,
            _ => Code::PermissionDenied,
        };
        status(code, barred.reason(), None, barred.to_string())
    }
}

/// Whether `caller` may call `method`.
///
/// # Errors
/// [`Barred`], for all but `MethodUnknown`.
pub(crate) fn may(caller: &Caller, method: &Method, book: &Book) -> Result<(), Barred> {
    let Caller::Known(who) = caller else { return Ok(()) };
    let (who, name) = (who.clone(), method.name());
    match (method.needs, &who) {
        (Needs::Identity, _) | (Needs::Agent, Identity::Agent(_)) => Ok(()),
        (Needs::Agent, Identity::Operator(_) | Identity::Controller) => Err(Barred::NotAnAgent { who, method: name }),
        (Needs::Role(needed), Identity::Operator(operator)) => match book.role(operator) {
            Some(has) if has >= needed => Ok(()),
            Some(has) => Err(Barred::RoleTooLow { who, has, method: name, needed }),
            None => Err(Barred::NoRole { who, method: name, needed }),
        },
        (Needs::Role(needed), Identity::Agent(_) | Identity::Controller) => {
            Err(Barred::NotAnOperator { who, method: name, needed })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;
    use prost_types::FileDescriptorSet;
    use throughline_wire::DESCRIPTORS;

    use super::*;

    /// What agents serve to each other, and no controller.
    const AGENTS_OWN: &str = "throughline.v1.Peer";

    fn described(set: &[u8]) -> BTreeSet<String> {
        let set = FileDescriptorSet::decode(set).unwrap();
        let services = set.file.iter().flat_map(|file| file.service.iter().map(move |it| (file.package(), it)));
        let services = services.map(|(package, it)| (format!("{package}.{}", it.name()), &it.method));
        let served = services.filter(|(service, _)| service != AGENTS_OWN);
        served
            .flat_map(|(service, methods)| methods.iter().map(move |it| format!("/{service}/{}", it.name())))
            .collect()
    }

    #[test]
    fn every_method_of_the_protocol_is_in_the_table_once() {
        let listed: BTreeSet<_> = TABLE.iter().map(|method| method.path.to_owned()).collect();
        assert_eq!(listed.len(), TABLE.len(), "no method twice");
        let sets = [DESCRIPTORS, tonic_health::pb::FILE_DESCRIPTOR_SET, tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET];
        let described: BTreeSet<_> = sets.into_iter().flat_map(described).collect();
        assert_eq!(listed, described, "decide who may call it, in TABLE");
    }

    #[test]
    fn what_is_not_in_the_table_is_refused() {
        for path in
            ["", "/", "/throughline.v1.Fabric/", "/throughline.v1.Fabric/getguest", "/throughline.v1.Peer/Cutover"]
        {
            assert_eq!(method(path), None, "{path}");
        }
    }

    #[test]
    fn whatever_changes_the_fabric_is_a_deed() {
        for method in TABLE.iter().filter(|it| it.path.starts_with("/throughline.v1.Fabric/")) {
            let looks = ["Get", "List", "Watch"].iter().any(|verb| method.name().starts_with(verb));
            assert_eq!(method.kind == Kind::Deed, !looks, "{}", method.path);
            assert_eq!(method.needs == VIEWER, looks, "{}", method.path);
        }
    }
}
