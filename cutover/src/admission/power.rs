//! May the guest be stopped, or started again?

use super::{Denial, GuestFacts, View};
use crate::{GuestName, Power};

/// A guest that is not on the move. Whether it runs does not matter: of one that is lost the stop takes note.
///
/// # Errors
/// `UNKNOWN_GUEST`, `ALREADY_MIGRATING`.
pub fn stop_guest(view: &impl View, name: &GuestName) -> Result<(), Denial> {
    at_rest(view, "name", name).map(drop)
}

/// A guest that is to be stopped, or runs.
///
/// # Errors
/// `UNKNOWN_GUEST`, `ALREADY_MIGRATING`, `GUEST_FAILED`.
pub fn start_guest(view: &impl View, name: &GuestName) -> Result<(), Denial> {
    let guest = at_rest(view, "name", name)?;
    // It might be started a second time by mistake; after a stop its host knows that it is not there.
    if guest.power == Power::On && guest.failed { Err(Denial::GuestFailed { guest: name.clone() }) } else { Ok(()) }
}

/// The guest, if nothing moves it.
pub(super) fn at_rest(view: &impl View, field: &str, name: &GuestName) -> Result<GuestFacts, Denial> {
    let Some(guest) = view.guest(name) else {
        return Err(Denial::UnknownGuest { field: field.to_owned(), name: name.clone() });
    };
    match guest.migration {
        Some(migration) => Err(Denial::AlreadyMigrating { guest: name.clone(), migration }),
        None => Ok(guest),
    }
}
