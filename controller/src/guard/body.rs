//! An answer that counts as a call under way until it has been read, or given up.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use http_body::{Frame, SizeHint};
use tonic::body::Body;

use super::Permit;

/// A body that holds its caller's permit.
pub(super) struct Held {
    body: Body,
    _permit: Permit,
}

impl Held {
    /// The same answer; whoever called may call once more when it is over.
    pub(super) fn until_read(body: Body, permit: Option<Permit>) -> Body {
        match permit {
            Some(permit) => Body::new(Self { body, _permit: permit }),
            None => body,
        }
    }
}

impl http_body::Body for Held {
    type Data = <Body as http_body::Body>::Data;
    type Error = <Body as http_body::Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}
