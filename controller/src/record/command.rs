//! By what right this controller commands.

use std::fmt;

use hmac::{Hmac, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use throughline_cutover::{FabricId, Mandate, Term};
use uuid::Uuid;

use super::{Record, one};
use crate::store::{Store, StoreError, Table};

const KEY: &str = "mandate";

/// What every copy of a fabric's record has and nobody else: it proves mandates.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Secret([u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    fn draw() -> Self {
        Self(rand::random())
    }

    fn over(&self, mandate: &Mandate) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("a key may have any length");
        let Mandate { fabric, term, life, .. } = mandate;
        mac.update(format!("throughline mandate\n{fabric}\n{term}\n{life}").as_bytes());
        mac
    }

    /// The mandate, with its proof.
    fn prove(&self, mandate: Mandate) -> Mandate {
        Mandate { proof: self.over(&mandate).finalize().into_bytes().to_vec(), ..mandate }
    }

    /// Compared in constant time.
    fn proves(&self, mandate: &Mandate) -> bool {
        self.over(mandate).verify_slice(&mandate.proof).is_ok()
    }
}

/// What of a mandate outlives a controller.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    fabric: FabricId,
    term: Term,
    /// Records from before there were proofs draw one at their next start.
    #[serde(default = "Secret::draw")]
    secret: Secret,
}

/// Whether a value reads as what is kept of a mandate.
pub(super) fn reads(value: &[u8]) -> bool {
    serde_json::from_slice::<Kept>(value).is_ok()
}

/// The mandate on record, in a new life; a record without one begins a fabric.
pub(super) fn load(store: &impl Store) -> Result<(Mandate, Secret), StoreError> {
    let new = || Kept {
        fabric: Uuid::new_v4().to_string().parse().expect("a UUID is a name"),
        term: Term(0),
        secret: Secret::draw(),
    };
    let Kept { fabric, term, secret } = one(store, KEY)?.unwrap_or_else(new);
    let mandate = Mandate { fabric, term, life: rand::random(), proof: Vec::new() };
    Ok((secret.prove(mandate), secret))
}

impl Record {
    /// By what right this controller commands.
    pub(crate) fn mandate(&self) -> &Mandate {
        &self.mandate
    }

    /// A controller of this fabric gave that mandate: this one, or one on another copy of this record.
    pub(crate) fn proves(&self, mandate: &Mandate) -> bool {
        self.secret.proves(mandate)
    }

    /// Takes command, in a term above `above` and above its own. Nobody may be commanded before that is durable.
    pub(crate) fn take_command(&mut self, above: Term) {
        let term = self.mandate.term.max(above).next();
        self.mandate = self.secret.prove(Mandate { term, ..self.mandate.clone() });
        let Mandate { fabric, term, .. } = self.mandate.clone();
        self.put(Table::Meta, KEY, &Kept { fabric, term, secret: self.secret.clone() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mandate_is_proved_as_a_whole_and_by_its_own_fabric() {
        let (ours, theirs) = (Secret::draw(), Secret::draw());
        let unproved = Mandate { fabric: "a".parse().unwrap(), term: Term(3), life: 9, proof: Vec::new() };
        let proved = ours.prove(unproved.clone());
        assert!(ours.proves(&proved) && !theirs.proves(&proved) && !ours.proves(&unproved));
        for forged in [
            Mandate { term: Term(4), ..proved.clone() },
            Mandate { life: 8, ..proved.clone() },
            Mandate { fabric: "b".parse().unwrap(), ..proved.clone() },
            Mandate { proof: proved.proof[1..].to_vec(), ..proved.clone() },
        ] {
            assert!(!ours.proves(&forged), "{forged:?}");
        }
    }
}
