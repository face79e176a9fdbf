//! Whom this host obeys, and which guests are gone from it: what an order from the past is held against.

use redb::{ReadableDatabase as _, ReadableTable as _, TableDefinition, WriteTransaction};
use throughline_cutover::{FabricId, Generation, GuestName, Mandate};

use super::{Journal, JournalError, disown, encode, format::META};

/// Guests that left or ended here: the highest generation at which each was known.
pub(super) const GONE: TableDefinition<'_, &str, u64> = TableDefinition::new("gone");
const MANDATE: &str = "mandate";
/// Guests that are gone and remembered; those of the lowest generations are forgotten first.
const GONE_KEPT: usize = 16_384;

impl Journal {
    /// The highest mandate obeyed; `None`: this host belongs to no fabric yet.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn mandate(&self) -> Result<Option<Mandate>, JournalError> {
        self.one(META, MANDATE)
    }

    /// This host obeys a mandate.
    ///
    /// # Errors
    /// When it could not be made durable: then it is not obeyed.
    pub fn obey(&self, mandate: &Mandate) -> Result<(), JournalError> {
        self.write(|write| {
            write.open_table(META)?.insert(MANDATE, encode(mandate)?.as_slice())?;
            Ok(())
        })
    }

    /// This host belongs to a fabric, by its operator's word. False: it did before, and what it has obeyed there counts.
    ///
    /// # Errors
    /// When it could not be made durable.
    pub fn join(&self, fabric: &FabricId) -> Result<bool, JournalError> {
        if self.mandate()?.is_some_and(|known| known.fabric == *fabric) {
            return Ok(false);
        }
        self.obey(&Mandate::to_join(fabric.clone())).map(|()| true)
    }

    /// The highest generation at which a guest is known to have been, here or where it went to, when it was gone from here.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn gone(&self, guest: &GuestName) -> Result<Option<Generation>, JournalError> {
        self.on_store(|database| {
            // As in `Journal::one`.
            let table = database.begin_read()?.open_table(GONE)?;
            let value = table.get(guest.as_str())?;
            Ok(value.map(|value| Generation(value.value())))
        })
    }

    /// The highest generation at which this host knows a guest, there or gone.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn newest(&self, guest: &GuestName) -> Result<Option<Generation>, JournalError> {
        Ok(self.find_guest(guest)?.map(|owned| owned.generation).max(self.gone(guest)?))
    }

    /// A guest ended here by an order for `generation`: this host no longer owns it, and does not start it again at that
    /// generation or below.
    ///
    /// # Errors
    /// When it could not be made durable.
    pub fn ended(&self, guest: &GuestName, generation: Generation) -> Result<(), JournalError> {
        self.write(|write| {
            disown(write, guest)?;
            note_gone(write, guest, generation)
        })
    }

    pub(super) fn forget_oldest_gone(&self) -> Result<(), JournalError> {
        let mut gone = self.on_store(|database| {
            let table = database.begin_read()?.open_table(GONE)?;
            let mut gone = Vec::new();
            for entry in table.iter()? {
                let (guest, generation) = entry?;
                gone.push((generation.value(), guest.value().to_owned()));
            }
            Ok(gone)
        })?;
        if gone.len() <= GONE_KEPT {
            return Ok(());
        }
        gone.sort_unstable();
        self.write(|write| {
            let mut table = write.open_table(GONE)?;
            for (_, guest) in &gone[..gone.len() - GONE_KEPT] {
                table.remove(guest.as_str())?;
            }
            Ok(())
        })
    }
}

pub(super) fn note_gone(
    write: &WriteTransaction,
    guest: &GuestName,
    generation: Generation,
) -> Result<(), JournalError> {
    let mut table = write.open_table(GONE)?;
    let before = table.get(guest.as_str())?.map_or(0, |value| value.value());
    table.insert(guest.as_str(), before.max(generation.0))?;
    Ok(())
}
