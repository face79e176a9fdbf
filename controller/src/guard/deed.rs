//! What a call is about: filled in by whoever has checked the names in it, read when the call is written down.

use std::sync::{Arc, Mutex, PoisonError};

use tonic::Request;

use crate::audit::Object;

/// What a call is about, as far as it is known yet.
#[derive(Debug, Clone, Default)]
pub(crate) struct Deed(Arc<Mutex<Object>>);

impl Deed {
    /// The one that came with a request.
    pub(crate) fn of<T>(request: &Request<T>) -> Self {
        request.extensions().get::<Self>().cloned().unwrap_or_default()
    }

    /// It is about this.
    pub(crate) fn concerns(&self, object: Object) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = object;
    }

    /// What it is about.
    pub(crate) fn object(&self) -> Object {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
