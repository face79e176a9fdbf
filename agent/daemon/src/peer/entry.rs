//! Who may ask what of this host as a destination: decided from what the connection proves, what the caller says, and what the
//! controller announced. Pure.

use subtle::ConstantTimeEq as _;
use throughline_cutover::{Generation, HostName, Keeping, MigrationPlan};
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
    #[error("{who} is not the agent of {source_host}, where the guest is; only that one may call for it")]
    NotTheSource { who: Caller, source_host: HostName },
    #[error("the caller has proved nothing, and this agent asks for proof; call with the agent's certificate")]
    Unproven,
    #[error(
        "no such migration was announced to this host, or the token is not its token; migrations are begun through the \
         controller"
    )]
    NotAnnounced,
    #[error(
        "no such replica is to be kept here, or the token is not its token; replicas are made through the controller"
    )]
    NotKept,
    #[error("the replica is being promoted; nobody may send to it any more")]
    BeingPromoted,
    #[error("generation {offered} was offered, {planned} is known here; the source's knowledge is stale")]
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
            Self::NotKept => "REPLICA_NOT_KEPT",
            Self::BeingPromoted => "REPLICA_PROMOTED",
            Self::StaleGeneration { .. } => "STALE_GENERATION",
            Self::CalledBefore => "CALLED_BEFORE",
            Self::TooMany { .. } => "TOO_MANY_CALLS",
        }
    }
}

impl From<&Refused> for Status {
    fn from(refused: &Refused) -> Self {
        let code = match refused {
            Refused::NotTheSource { .. } | Refused::NotAnnounced | Refused::NotKept => Code::PermissionDenied,
            Refused::Unproven => Code::Unauthenticated,
            Refused::StaleGeneration { .. } | Refused::CalledBefore | Refused::BeingPromoted => {
                Code::FailedPrecondition
            }
            Refused::TooMany { .. } => Code::ResourceExhausted,
        };
        status(code, refused.reason(), None, refused.to_string())
    }
}

/// Whether `caller` may ask about a migration, `token` being what it shows: only its source may.
pub(super) fn may_ask(caller: &Caller, proof: Proof, plan: &MigrationPlan, token: &str) -> Result<(), Refused> {
    is_agent_of(caller, proof, &plan.source.host)?;
    if is_token(&plan.token, token) { Ok(()) } else { Err(Refused::NotAnnounced) }
}

fn is_agent_of(caller: &Caller, proof: Proof, source: &HostName) -> Result<(), Refused> {
    match (caller, proof) {
        (Caller::Known(Identity::Agent(host)), _) if host == source => Ok(()),
        (Caller::Unproven, Proof::NotAsked) => Ok(()),
        (Caller::Unproven, Proof::Required) => Err(Refused::Unproven),
        (Caller::Known(_), _) => Err(Refused::NotTheSource { who: caller.clone(), source_host: source.clone() }),
    }
}

/// How long it takes must not tell how much of a token was right.
fn is_token(wanted: &str, token: &str) -> bool {
    wanted.as_bytes().ct_eq(token.as_bytes()).into()
}

/// Whether `caller` may send a point of a replica that is kept here: the guest's host may, at the generation that is known here or a later
/// one, while the replica is not being promoted.
pub(super) fn may_send(
    caller: &Caller,
    proof: Proof,
    keeping: &Keeping,
    token: &str,
    offered: Generation,
) -> Result<(), Refused> {
    let Some(source) = &keeping.source else { return Err(Refused::BeingPromoted) };
    is_agent_of(caller, proof, &source.host)?;
    if !is_token(keeping.token.as_str(), token) {
        return Err(Refused::NotKept);
    }
    if offered < keeping.generation {
        return Err(Refused::StaleGeneration { offered, planned: keeping.generation });
    }
    Ok(())
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
                guest_agent: false,
            },
            generation: Generation(3),
            source: end("h1", 1),
            destination: end("h2", 2),
            ports: vec![],
            limits: Limits::default(),
            cold: false,
            flatten: false,
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
    fn a_replicas_points_come_from_its_guests_host_and_nobody_else() {
        use throughline_cutover::{ReplicaToken, Sender};
        let token = "ab".repeat(32);
        let keeping = |source: Option<&str>| Keeping {
            id: "r-1".parse().unwrap(),
            spec: plan().guest,
            generation: Generation(3),
            source: source.map(|host| Sender { host: host.parse().unwrap(), vtep: None }),
            token: ReplicaToken::new(token.clone()),
            keep: 3,
            test: None,
        };
        let send = |who: &str, source, token: &str, generation| {
            let sent = may_send(&known(who), Proof::Required, &keeping(source), token, Generation(generation));
            sent.err().map(|refused| refused.reason())
        };
        let h1 = Some("h1");
        assert_eq!(send("agent/h1", h1, &token, 3), None);
        assert_eq!(send("agent/h1", h1, &token, 4), None, "the controller has not told this host yet");
        assert_eq!(send("agent/h1", h1, &token, 2), Some("STALE_GENERATION"), "a host that was fenced");
        assert_eq!(send("agent/h1", h1, &token[1..], 3), Some("REPLICA_NOT_KEPT"));
        assert_eq!(send("agent/h1", None, &token, 3), Some("REPLICA_PROMOTED"));
        for who in ["agent/h2", "operator/alice", "controller"] {
            assert_eq!(send(who, h1, &token, 3), Some("NOT_THE_SOURCE"), "{who}");
        }
        let unproven = may_send(&Caller::Unproven, Proof::Required, &keeping(h1), &token, Generation(3));
        assert_eq!(unproven, Err(Refused::Unproven));
    }

    #[test]
    fn proof_is_not_asked_for_only_by_an_insecure_agent() {
        let token = plan().token;
        assert_eq!(call(&Caller::Unproven, &token, 3, false), Some("CALLER_UNKNOWN"));
        assert_eq!(may_ask(&Caller::Unproven, Proof::NotAsked, &plan(), &token), Ok(()));
        assert_eq!(may_ask(&Caller::Unproven, Proof::NotAsked, &plan(), "x"), Err(Refused::NotAnnounced));
    }
}
