//! What comes from files and certificates.

use throughline_agent::{
    disks::qcow2_length,
    journal::{MoveRecord, PAGE, read_page},
};
use throughline_controller::{read_roles, read_value};
use throughline_cutover::{Mandate, OwnedGuest};
use throughline_identity::SpiffeId;

use crate::chosen;

/// The agent's journal: the first byte says whether a page of the commits' file, or a value of which table.
pub(crate) fn journal(bytes: &[u8]) {
    let Some((choice, body)) = chosen(bytes) else { return };
    match choice {
        0 => {
            let mut page = [0; PAGE];
            let length = body.len().min(PAGE);
            page[..length].copy_from_slice(&body[..length]);
            let _commit = read_page(&page);
        }
        1 => drop(serde_json::from_slice::<MoveRecord>(body)),
        2 => drop(serde_json::from_slice::<OwnedGuest>(body)),
        _ => drop(serde_json::from_slice::<Mandate>(body)),
    }
}

/// The controller's record: the first byte says which table the value is of.
pub(crate) fn record(bytes: &[u8]) {
    const TABLES: [&str; 8] =
        ["meta", "networks", "hosts", "guests", "endpoints", "migrations", "removals", "replicas"];
    let Some((choice, body)) = chosen(bytes) else { return };
    let _reads = read_value(TABLES[usize::from(choice) % TABLES.len()], body);
}

/// An image that a disk is to begin as.
pub(crate) fn images(bytes: &[u8]) {
    let _read = qcow2_length(bytes);
}

/// Which operator has which role.
pub(crate) fn roles(bytes: &[u8]) {
    if let Ok(text) = str::from_utf8(bytes)
        && let Ok(operators) = read_roles(text)
    {
        assert!(operators <= text.lines().count(), "one operator a line");
    }
}

/// A containerlab topology.
pub(crate) fn topology(bytes: &[u8]) {
    if let Ok(text) = str::from_utf8(bytes) {
        let _read = throughline_lab::read_topology(text);
    }
}

/// What a certificate says its holder is.
pub(crate) fn identity(bytes: &[u8]) {
    if let Ok(text) = str::from_utf8(bytes)
        && let Ok(id) = text.parse::<SpiffeId>()
    {
        assert_eq!(id.to_string(), text, "one identity, one text: what compares unequal is not the same");
    }
}
