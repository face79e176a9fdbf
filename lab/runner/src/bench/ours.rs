//! Throughline itself, moved as an operator would.

use anyhow::Result;

use super::way::{Ground, Moved};
use crate::demo::move_guest::Mover;
use crate::demo::stage::Stage;

/// A stage with the guest on it.
#[derive(Debug)]
pub(super) struct Ours<'a>(Mover<'a>);

impl<'a> Ours<'a> {
    /// Creates the guest.
    pub(super) fn up(stage: &'a Stage) -> Result<Self> {
        stage.create_guest("", &[])?;
        Ok(Self(Mover::new(&stage.operator, false)))
    }
}

impl Ground for Ours<'_> {
    fn move_guest(&mut self, from: &str, to: &str) -> Result<Moved> {
        self.0.moved(from, to)
    }
}
