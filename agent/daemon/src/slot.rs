//! A place to leave one thing for somebody who comes later.

use std::sync::{Arc, Mutex};

use crate::lock::lock;

/// One value, put once, taken once.
#[derive(Debug)]
pub struct Slot<T>(Arc<Mutex<Option<T>>>);

impl<T> Slot<T> {
    /// Empty.
    pub fn empty() -> Self {
        Self(Arc::new(Mutex::new(None)))
    }

    /// Leaves a value, instead of the one that may be there.
    pub fn put(&self, value: T) {
        *lock(&self.0) = Some(value);
    }

    /// Takes the value, if there is one.
    pub fn take(&self) -> Option<T> {
        lock(&self.0).take()
    }
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}
