//! Who may command, and what an order from the past may not do. Pure: what is known and what is claimed in, a verdict out.
//!
//! A *mandate* is what a controller commands by: its fabric, a term, and the life it was drawn in. A host obeys the highest it
//! has heard of, and writes it down first. A controller raises its term, durably, before it commands: at its start, and
//! when a host it has not commanded in this life knows a higher one, for then its own record is an old copy. A host that it *has*
//! commanded and that comes back with a higher term was taken by another controller, which is alive: this one stands down.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{FabricId, Failure, Generation, GuestName};

/// Counts takings of command in a fabric. Only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Term(pub u64);

impl Term {
    /// The next one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// By what right a controller commands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mandate {
    /// The fabric it is for.
    pub fabric: FabricId,
    /// Its term.
    pub term: Term,
    /// Drawn at random when the controller started: controllers on copies of one store may come to the same term.
    pub life: u64,
    /// Proves to a controller of the fabric that one of its kind gave it; nothing to anybody else. Those on record from before
    /// there were proofs have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub proof: Vec<u8>,
}

impl Mandate {
    /// What a host has that its operator gave to a fabric and that has obeyed nobody there yet.
    pub fn to_join(fabric: FabricId) -> Self {
        Self { fabric, term: Term(0), life: 0, proof: Vec::new() }
    }

    /// Whether it comes from the past where `other` is known.
    fn is_beaten_by(&self, other: &Self) -> bool {
        other.term > self.term || (other.term == self.term && other.life != self.life)
    }
}

/// What an operator vouches for when a destination is gone for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// It does not run the guest and never will.
    GuestStays,
    /// It runs the guest.
    GuestLeft,
}

/// What a host does with a mandate it may obey.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obedience {
    /// It is the one on record.
    Known,
    /// It is to be written down before anything ordered by it is done.
    ToRecord,
}

/// Whether a host that has obeyed `known` obeys `offered`.
///
/// # Errors
/// `OTHER_FABRIC`, `STALE_TERM` with the term that beat it.
pub fn obey(known: Option<&Mandate>, offered: &Mandate) -> Result<Obedience, Failure> {
    match known {
        None => Ok(Obedience::ToRecord),
        Some(known) if known.fabric != offered.fabric => Err(other_fabric(&known.fabric, &offered.fabric)),
        Some(known) if offered.is_beaten_by(known) => Err(stale_term(offered.term, known.term)),
        Some(known) if known == offered => Ok(Obedience::Known),
        Some(_) => Ok(Obedience::ToRecord),
    }
}

/// What a controller does about a host that connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// Commands it.
    Command,
    /// Raises its term above this one first: its record is a copy from before that term.
    RaiseAbove(Term),
    /// Does not: the host belongs to another fabric.
    Leave(Failure),
    /// Commands nobody any more: another controller has taken over a host that was this one's.
    StandDown(Failure),
    /// Commands all others, and not this host: what it says of another controller is not proved.
    Doubt(Failure),
}

/// Whether a controller with the mandate `own` may command a host that says which it has obeyed. `proved`: that mandate was given
/// by a controller of this fabric, whoever the host is. `commanded`: this controller has commanded that host in this life.
///
/// A host's word alone moves nobody's term and ends nobody's command: whoever came by one host's certificate could say as much.
pub fn claim(own: &Mandate, obeyed: Option<&Mandate>, proved: bool, commanded: bool) -> Claim {
    match obeyed {
        Some(obeyed) if obeyed.fabric != own.fabric => Claim::Leave(other_fabric(&obeyed.fabric, &own.fabric)),
        Some(obeyed) if obeyed.life != own.life && own.is_beaten_by(obeyed) => match (proved, commanded) {
            (false, _) => Claim::Doubt(term_unproved(own.term, obeyed.term)),
            (true, true) => Claim::StandDown(stale_term(own.term, obeyed.term)),
            (true, false) => Claim::RaiseAbove(obeyed.term),
        },
        Some(_) | None => Claim::Command,
    }
}

fn other_fabric(host: &FabricId, controller: &FabricId) -> Failure {
    let message = format!(
        "the host belongs to fabric {host}, this controller is of fabric {controller}; nothing was changed on the host; if the \
         host is to change fabrics, start its agent with --join {controller}"
    );
    Failure::new("OTHER_FABRIC", message)
}

fn stale_term(ours: Term, theirs: Term) -> Failure {
    let message = format!(
        "term {ours} is beaten by term {theirs} of another controller of this fabric; stop one of the two; \
         one that was beaten commands again only after it is started anew"
    );
    Failure::new("STALE_TERM", message)
}

fn term_unproved(ours: Term, theirs: Term) -> Failure {
    let message = format!(
        "the host says that it obeyed term {theirs}, this controller's is {ours}, and it does not prove that a controller of \
         this fabric gave it that term; nothing was believed; if nobody restored a record, its certificate may be in wrong \
         hands: revoke it"
    );
    Failure::new("TERM_UNPROVED", message)
}

/// What a host does when it is told to have a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Have {
    /// It has it, as told.
    Kept,
    /// It has it at a lower generation, and takes the new one over.
    Raise,
    /// It starts it.
    Boot,
    /// It refuses; a guest that is there runs on.
    Refuse(Failure),
}

/// Whether a host has or starts a guest that should be there at `ordered`. `held`: at which generation it has it; `gone`: the
/// highest at which it knows it to have been anywhere, after it left or ended here; `boot`: it may be started.
pub fn have(
    guest: &GuestName,
    held: Option<Generation>,
    gone: Option<Generation>,
    ordered: Generation,
    boot: bool,
) -> Have {
    match (held, gone) {
        (Some(held), _) if held == ordered => Have::Kept,
        (Some(held), _) if held < ordered => Have::Raise,
        (Some(beat), _) => Have::Refuse(stale_generation(guest, ordered, beat)),
        (None, Some(beat)) if beat >= ordered => Have::Refuse(stale_generation(guest, ordered, beat)),
        (None, _) if boot => Have::Boot,
        (None, _) => Have::Refuse(Failure::new(
            "GUEST_LOST",
            format!(
                "guest {guest} should be here and is not; it is not started a second time, for it may run on another host \
                 whose agent is away; if it runs nowhere, delete it and create it anew"
            ),
        )),
    }
}

/// Whether a host that holds a guest at `held` ends it by an order that names `ordered`.
///
/// # Errors
/// `STALE_GENERATION`, with the generation held.
pub fn end(guest: &GuestName, held: Generation, ordered: Generation) -> Result<(), Failure> {
    if held <= ordered { Ok(()) } else { Err(stale_generation(guest, ordered, held)) }
}

/// An instruction on a guest that a newer generation has overtaken.
pub fn stale_generation(guest: &GuestName, ordered: Generation, beat: Generation) -> Failure {
    let message =
        format!("guest {guest} is at generation {beat}; an order for generation {ordered} is older and was refused");
    Failure::new("STALE_GENERATION", message)
}

/// What a controller makes of a guest that a host says it owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// As recorded, or about to be: a migration on record leads there.
    AsRecorded,
    /// The record is older: it takes the host's word over.
    TakeOver,
    /// The host's copy is older: it is to end, at this generation or below.
    End(Generation),
    /// The record knows no such guest: it is left alone and shown.
    Unknown,
}

/// Owner and generation of a guest, by the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recorded {
    /// The owner is the host that speaks.
    pub is_here: bool,
    /// Generation of the ownership.
    pub generation: Generation,
    /// A migration on record makes the host that speaks the owner at this generation; its coordinator will hear of it.
    pub arriving: Option<Generation>,
}

/// Who owns a guest that a host says it holds at `held`. `ended`: the record has an order for the host to end it at this
/// generation or below.
pub fn ownership(held: Generation, recorded: Option<Recorded>, ended: Option<Generation>) -> Ownership {
    if let Some(ended) = ended.filter(|ended| held <= *ended) {
        return Ownership::End(ended);
    }
    match recorded {
        None => Ownership::Unknown,
        Some(it) if it.arriving == Some(held) => Ownership::AsRecorded,
        Some(it) if held > it.generation => Ownership::TakeOver,
        Some(it) if it.is_here => Ownership::AsRecorded,
        // Also of two hosts at one generation: only the recorded one runs it.
        Some(_) => Ownership::End(held),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mandate(fabric: &str, term: u64, life: u64) -> Mandate {
        Mandate { fabric: fabric.parse().expect("valid"), term: Term(term), life, proof: Vec::new() }
    }

    fn guest() -> GuestName {
        "web-1".parse().expect("valid")
    }

    #[test]
    fn a_host_obeys_the_highest_term_of_its_own_fabric() {
        let known = mandate("a", 5, 1);
        assert_eq!(obey(None, &known), Ok(Obedience::ToRecord));
        assert_eq!(obey(Some(&known), &known), Ok(Obedience::Known));
        assert_eq!(obey(Some(&known), &mandate("a", 6, 2)), Ok(Obedience::ToRecord));
        assert_eq!(obey(Some(&Mandate::to_join(known.fabric.clone())), &known), Ok(Obedience::ToRecord));
        let refused = obey(Some(&known), &mandate("a", 4, 2)).expect_err("older");
        assert_eq!(refused.reason, "STALE_TERM");
        assert!(refused.message.contains("term 4 is beaten by term 5"), "{refused}");
        let same_term = obey(Some(&known), &mandate("a", 5, 2)).expect_err("a copy's controller");
        assert_eq!(same_term.reason, "STALE_TERM");
        let other = obey(Some(&known), &mandate("b", 9, 1)).expect_err("another fabric");
        assert_eq!(other.reason, "OTHER_FABRIC");
        assert!(other.message.contains("--join b"), "{other}");
    }

    #[test]
    fn a_controller_on_an_old_store_goes_above_what_it_hears() {
        let own = mandate("a", 5, 1);
        assert_eq!(claim(&own, None, true, false), Claim::Command);
        assert_eq!(claim(&own, Some(&mandate("a", 4, 7)), true, false), Claim::Command);
        assert_eq!(claim(&own, Some(&own), true, true), Claim::Command);
        assert_eq!(claim(&own, Some(&mandate("a", 5, 7)), true, false), Claim::RaiseAbove(Term(5)));
        assert_eq!(claim(&own, Some(&mandate("a", 9, 7)), true, false), Claim::RaiseAbove(Term(9)));
    }

    #[test]
    fn a_controller_whose_host_was_taken_stands_down() {
        let own = mandate("a", 5, 1);
        let Claim::StandDown(why) = claim(&own, Some(&mandate("a", 6, 7)), true, true) else { panic!("it was beaten") };
        assert_eq!(why.reason, "STALE_TERM");
        assert!(why.message.contains("term 5 is beaten by term 6"), "{why}");
        let Claim::Leave(why) = claim(&own, Some(&mandate("b", 1, 7)), true, true) else { panic!("not its host") };
        assert_eq!(why.reason, "OTHER_FABRIC");
    }

    #[test]
    fn a_hosts_word_alone_moves_no_term() {
        let own = mandate("a", 5, 1);
        for term in [5, 6, u64::MAX] {
            for commanded in [false, true] {
                let Claim::Doubt(why) = claim(&own, Some(&mandate("a", term, 7)), false, commanded) else {
                    panic!("term {term} was believed")
                };
                assert_eq!(why.reason, "TERM_UNPROVED");
            }
        }
        assert_eq!(claim(&own, Some(&mandate("a", 4, 7)), false, false), Claim::Command, "what is older moves nothing");
    }

    #[test]
    fn of_two_controllers_one_commands() {
        let (mut a, mut b) = (mandate("f", 5, 1), mandate("f", 5, 2));
        let host = a.clone();
        let Claim::RaiseAbove(above) = claim(&b, Some(&host), true, false) else { panic!("b starts on a copy") };
        b.term = above.next();
        assert_eq!(obey(Some(&host), &b), Ok(Obedience::ToRecord));
        assert!(obey(Some(&b), &a).is_err(), "the host refuses a now");
        assert!(matches!(claim(&a, Some(&b), true, true), Claim::StandDown(_)), "and a is told");
        // Started anew by its operator, it may take the host back: then b is told.
        a = mandate("f", 6, 3);
        let Claim::RaiseAbove(above) = claim(&a, Some(&b), true, false) else { panic!("the same term, another life") };
        a.term = above.next();
        assert!(matches!(claim(&b, Some(&a), true, true), Claim::StandDown(_)));
    }

    #[test]
    fn a_guest_is_not_started_twice() {
        let at = |n| Some(Generation(n));
        let have = |held, gone, ordered, boot| have(&guest(), held, gone, Generation(ordered), boot);
        assert_eq!(have(at(3), None, 3, false), Have::Kept);
        assert_eq!(have(at(3), None, 5, false), Have::Raise);
        assert_eq!(have(None, None, 1, true), Have::Boot);
        assert_eq!(have(None, at(4), 5, true), Have::Boot);
        let reason = |it| match it {
            Have::Refuse(failure) => failure.reason,
            other => panic!("must be refused: {other:?}"),
        };
        assert_eq!(reason(have(at(3), None, 2, true)), "STALE_GENERATION");
        assert_eq!(reason(have(None, at(4), 4, true)), "STALE_GENERATION");
        assert_eq!(reason(have(None, None, 1, false)), "GUEST_LOST");
    }

    #[test]
    fn a_guest_ends_only_by_an_order_as_new_as_itself() {
        assert_eq!(end(&guest(), Generation(2), Generation(2)), Ok(()));
        let refused = end(&guest(), Generation(3), Generation(2)).expect_err("newer");
        assert_eq!(refused.reason, "STALE_GENERATION");
        assert!(refused.message.contains("at generation 3"), "{refused}");
    }

    #[test]
    fn a_record_learns_from_the_hosts() {
        let recorded = |is_here, generation, arriving: Option<u64>| {
            Some(Recorded { is_here, generation: Generation(generation), arriving: arriving.map(Generation) })
        };
        let ownership =
            |held, recorded, ended: Option<u64>| ownership(Generation(held), recorded, ended.map(Generation));
        assert_eq!(ownership(1, None, None), Ownership::Unknown);
        assert_eq!(ownership(1, recorded(true, 1, None), None), Ownership::AsRecorded);
        assert_eq!(ownership(1, recorded(true, 3, None), None), Ownership::AsRecorded, "it is told to raise it");
        assert_eq!(ownership(2, recorded(false, 1, None), None), Ownership::TakeOver);
        assert_eq!(ownership(2, recorded(true, 1, None), None), Ownership::TakeOver, "there and back again");
        assert_eq!(
            ownership(2, recorded(false, 1, Some(2)), None),
            Ownership::AsRecorded,
            "its coordinator will hear of it"
        );
        assert_eq!(ownership(1, recorded(false, 2, None), None), Ownership::End(Generation(1)));
        assert_eq!(ownership(2, recorded(false, 2, None), None), Ownership::End(Generation(2)));
        assert_eq!(
            ownership(2, recorded(true, 3, None), Some(2)),
            Ownership::End(Generation(2)),
            "its name was used again"
        );
        assert_eq!(ownership(3, None, Some(2)), Ownership::Unknown, "newer than what was deleted");
    }
}
