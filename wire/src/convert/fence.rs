//! By what right a controller commands, and what a host owns.

use throughline_cutover::{Generation, Mandate, OwnedGuest, Term, fence::Word};

use super::field::{InvalidField, Problem, number, parse, required, within};
use crate::v1;

/// Longest proof of a mandate.
const LONGEST_PROOF: u64 = 64;

impl TryFrom<v1::Mandate> for Mandate {
    type Error = InvalidField;
    fn try_from(mandate: v1::Mandate) -> Result<Self, InvalidField> {
        within("proof", mandate.proof.len() as u64, 0..=LONGEST_PROOF, "bytes")?;
        let (fabric, term) = (parse("fabric_id", &mandate.fabric_id)?, Term(mandate.term));
        Ok(Self { fabric, term, life: mandate.life, proof: mandate.proof })
    }
}

impl From<Mandate> for v1::Mandate {
    fn from(mandate: Mandate) -> Self {
        Self { fabric_id: mandate.fabric.into(), term: mandate.term.0, life: mandate.life, proof: mandate.proof }
    }
}

impl TryFrom<v1::OwnedGuest> for OwnedGuest {
    type Error = InvalidField;
    fn try_from(guest: v1::OwnedGuest) -> Result<Self, InvalidField> {
        within("generation", guest.generation, 1..=u64::MAX, "ownerships")?;
        let spec: throughline_cutover::GuestSpec =
            required("spec", guest.spec)?.try_into().map_err(|e: InvalidField| e.within("spec"))?;
        if guest.vnis.len() != spec.ports.len() {
            let words = format!(
                "has {} entries; give one for each of the guest's {} ports",
                guest.vnis.len(),
                spec.ports.len()
            );
            return Err(InvalidField::new("vnis", Problem::Other(words)));
        }
        let vnis = guest.vnis.into_iter().enumerate().map(|(at, vni)| number(&format!("vnis[{at}]"), vni));
        let (vnis, stopped) = (vnis.collect::<Result<_, _>>()?, guest.stopped);
        // Whether it was asked to shut down is its host's alone.
        Ok(Self { spec, generation: Generation(guest.generation), vnis, stopped, asked: false })
    }
}

impl From<OwnedGuest> for v1::OwnedGuest {
    fn from(guest: OwnedGuest) -> Self {
        Self {
            spec: Some(guest.spec.into()),
            generation: guest.generation.0,
            vnis: guest.vnis.iter().map(|vni| vni.get()).collect(),
            stopped: guest.stopped,
        }
    }
}

impl TryFrom<v1::Word> for Word {
    type Error = InvalidField;
    fn try_from(word: v1::Word) -> Result<Self, InvalidField> {
        match word {
            v1::Word::Unspecified => Err(InvalidField::new("word", Problem::Missing)),
            v1::Word::GuestStays => Ok(Self::GuestStays),
            v1::Word::GuestLeft => Ok(Self::GuestLeft),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mandate_round_trips_and_names_a_fabric() {
        let mandate = v1::Mandate { fabric_id: "5f1c7a52-0c3d".into(), term: 3, life: u64::MAX, proof: vec![7; 32] };
        assert_eq!(v1::Mandate::from(Mandate::try_from(mandate.clone()).expect("good")), mandate);
        let giant = v1::Mandate { proof: vec![7; 65], ..mandate.clone() };
        assert_eq!(Mandate::try_from(giant).expect_err("too long").field, "proof");
        let nameless = v1::Mandate { fabric_id: String::new(), ..mandate };
        assert_eq!(Mandate::try_from(nameless).expect_err("of no fabric").field, "fabric_id");
    }

    #[test]
    fn a_word_is_one_or_the_other() {
        assert!(Word::try_from(v1::Word::Unspecified).is_err());
        assert_eq!(Word::try_from(v1::Word::GuestStays), Ok(Word::GuestStays));
    }

    #[test]
    fn an_owned_guest_has_a_vni_a_port() {
        let port =
            v1::Port { id: 7, network: "blue".into(), mac: "02:00:00:00:00:07".into(), ips: vec!["10.7.0.10".into()] };
        let boot = v1::Boot { kernel: "/k".into(), ..Default::default() };
        let (name, ports) = ("web-1".into(), vec![port]);
        let spec = v1::GuestSpec {
            name,
            vcpus: 1,
            queues: 1,
            memory_kib: 262_136,
            boot: Some(boot),
            ports,
            disks: vec![],
            guest_agent: false,
        };
        let guest = v1::OwnedGuest { spec: Some(spec), generation: 2, vnis: vec![7], stopped: true };
        assert_eq!(v1::OwnedGuest::from(OwnedGuest::try_from(guest.clone()).expect("good")), guest);
        let field = |guest: v1::OwnedGuest| OwnedGuest::try_from(guest).expect_err("must be refused").field;
        assert_eq!(field(v1::OwnedGuest { vnis: vec![], ..guest.clone() }), "vnis");
        assert_eq!(field(v1::OwnedGuest { vnis: vec![0], ..guest.clone() }), "vnis[0]");
        assert_eq!(field(v1::OwnedGuest { generation: 0, ..guest }), "generation");
    }
}
