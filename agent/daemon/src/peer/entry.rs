//! Who may ask what of this host as a destination: decided from what the connection proves, what the caller says, and what the
//! controller announced. Pure.

use subtle::ConstantTimeEq as _;
use throughline_cutover::{Generation, HostName, MigrationPlan};
use throughline_identity::{Caller, Identity};
use throughline_wire::status;
use tonic::{Code, Status};

/// Whether callers have to prove who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// By a certificate.
    Required,
    /// Not: this agent itself runs with `--insecure`.
    NotAsked,
}

/// Why a caller is turned away.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("{who} is not the agent of {source_host}, which is the source of this migration; only that one may call")]
    NotTheSource { who: Caller, source_host: HostName },
    #[error("the caller has proved nothing, and this agent asks for proof; call with the agent's certificate")]
    Unproven,
    #[error(
        "no such migration was announced to this host, or the token is not its token; migrations are begun through the \
         controller"
    )]
    NotAnnounced,
    #[error("generation {offered} was offered, the plan is for {planned}; the source's knowledge is stale")]
    StaleGeneration { offered: Generation, planned: Generation },
    #[error(
        "the source has called for this migration before, and its token is good for one call; begin a new migration"
    )]
    CalledBefore,
    #[error("{who} has {most} calls under way here, which is the most; try again when one has ended")]
    TooMany { who: Caller, most: u32 },
}

impl Refused {
    /// The stable code.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::NotTheSource { .. } => "NOT_THE_SOURCE",
            Self::Unproven => "CALLER_UNKNOWN",
            Self::NotAnnounced => "NOT_ANNOUNCED",
            Self::StaleGeneration { .. } => "STALE_GENERATION",
            Self::CalledBefore => "CALLED_BEFORE",
            Self::TooMany { .. } => "TOO_MANY_CALLS",
        }
    }
}

impl From<&Refused> for Status {
    fn from(refused: &Refused) -> Self {
        let code = match refused {
            Refused::NotTheSource { .. } | Refused::NotAnnounced => Code::PermissionDenied,
            Refused::Unproven => Code::Unauthenticated,
            Refused::StaleGeneration { .. } | Refused::CalledBefore => Code::FailedPrecondition,
            Refused::TooMany { .. } => Code::ResourceExhausted,
        };
        status(code, refused.reason(), None, refused.to_string())
    }
}

/// Whether `caller` may ask about a migration, `token` being what it shows: only its source may.
pub(super) fn may_ask(caller: &Caller, proof: Proof, plan: &MigrationPlan, token: &str) -> Result<(), Refused> {
    let source = &plan.source.host;
    match (caller, proof) {
        (Caller::Known(Identity::Agent(host)), _) if host == source => {}
        (Caller::Unproven, Proof::NotAsked) => {}
        (Caller::Unproven, Proof::Required) => return Err(Refused::Unproven),
        (Caller::Known(_), _) => {
            return Err(Refused::NotTheSource { who: caller.clone(), source_host: source.clone() });
        }
    }
    // How long it takes must not tell how much of a token was right.
    if bool::from(plan.token.as_bytes().ct_eq(token.as_bytes())) { Ok(()) } else { Err(Refused::NotAnnounced) }
}

/// Whether `caller` may begin the cutover of an announced migration: its source may, once. A source whose call broke asks, by
/// `Resolve`; it never calls again, and nobody else has anything to say.
pub(super) fn may_call(
    caller: &Caller,
    proof: Proof,
    plan: &MigrationPlan,
    token: &str,
    offered: Generation,
    called_before: bool,
) -> Result<(), Refused> {
    may_ask(caller, proof, plan, token)?;
    if offered != plan.generation {
        return Err(Refused::StaleGeneration { offered, planned: plan.generation });
    }
    if called_before { Err(Refused::CalledBefore) } else { Ok(()) }
}

#[cfg(test)]
pub(super) mod tests {
    use throughline_cutover::{Boot, End, GuestSpec, Limits, Queues};

    use super::*;

    /// Of web-1, at generation 3, from h1 to h2.
    pub(in crate::peer) fn plan() -> MigrationPlan {
        let end = |host: &str, n: u8| End {
            host: host.parse().unwrap(),
            vtep: [192, 0, 2, n].into(),
            peer_endpoint: format!("192.0.2.{n}:7701"),
        };
        let boot = Boot { kernel: "/k".into(), initrd: String::new(), cmdline: String::new() };
        let name = "web-1".parse().unwrap();
        MigrationPlan {
            id: "5f1c7a52-0c3d-4c8e-9a57-2f0e8f0a9a11".into(),
            token: "ab".repeat(32),
            guest: GuestSpec {
                name,
                vcpus: 1,
                queues: Queues::ONE,
                memory_kib: 262_136,
                boot,
                ports: vec![],
                disks: vec![],
            },
            generation: Generation(3),
            source: end("h1", 1),
            destination: end("h2", 2),
            ports: vec![],
            limits: Limits::default(),
            cold: false,
        }
    }

    fn known(identity: &str) -> Caller {
        Caller::Known(identity.parse().unwrap())
    }

    fn call(caller: &Caller, token: &str, generation: u64, called_before: bool) -> Option<&'static str> {
        let called = may_call(caller, Proof::Required, &plan(), token, Generation(generation), called_before);
        called.err().map(|refused| refused.reason())
    }

    #[test]
    fn the_source_may_call_once() {
        let (source, token) = (known("agent/h1"), plan().token);
        assert_eq!(call(&source, &token, 3, false), None);
        assert_eq!(call(&source, &token, 3, true), Some("CALLED_BEFORE"));
    }

    #[test]
    fn nobody_else_may_though_they_know_the_token() {
        let token = plan().token;
        for who in ["agent/h2", "agent/h3", "operator/alice", "controller"] {
            assert_eq!(call(&known(who), &token, 3, false), Some("NOT_THE_SOURCE"), "{who}");
            let asked = may_ask(&known(who), Proof::NotAsked, &plan(), &token).map_err(|refused| refused.reason());
            assert_eq!(asked, Err("NOT_THE_SOURCE"), "{who}: a certificate counts, asked for or not");
        }
    }

    #[test]
    fn the_source_may_not_with_another_token_or_generation() {
        let (source, token) = (known("agent/h1"), plan().token);
        for wrong in ["", "ab", &token[1..], &token.to_uppercase(), &"cd".repeat(32)] {
            assert_eq!(call(&source, wrong, 3, false), Some("NOT_ANNOUNCED"), "{wrong}");
            let asked = may_ask(&source, Proof::Required, &plan(), wrong).map_err(|refused| refused.reason());
            assert_eq!(asked, Err("NOT_ANNOUNCED"), "{wrong}");
        }
        for generation in [0, 2, 4, u64::MAX] {
            assert_eq!(call(&source, &token, generation, false), Some("STALE_GENERATION"), "{generation}");
        }
    }

    #[test]
    fn proof_is_not_asked_for_only_by_an_insecure_agent() {
        let token = plan().token;
        assert_eq!(call(&Caller::Unproven, &token, 3, false), Some("CALLER_UNKNOWN"));
        assert_eq!(may_ask(&Caller::Unproven, Proof::NotAsked, &plan(), &token), Ok(()));
        assert_eq!(may_ask(&Caller::Unproven, Proof::NotAsked, &plan(), "x"), Err(Refused::NotAnnounced));
    }
}
