//! What every call passes before anything is done for it: who calls, whether they may, whether they call too often; and what
//! is written down of it. The decisions are in `roles` and `limits`, what is kept is `audit`'s.

mod arrival;
mod body;
mod deed;
mod limits;

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

pub use arrival::{Accepted, Arrival};
pub(crate) use deed::Deed;
pub use limits::CallLimits;

use body::Held;
use http::{Request, Response};
use limits::{Meter, Permit};
use throughline_cutover::Failure;
use throughline_identity::Caller;
use throughline_wire::{Explanation, Refusal};
use tokio::sync::watch;
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use crate::{
    audit::{Audit, Outcome, Visitor},
    roles::{self, Barred, Book, Kind, Method},
};

/// The guard. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Guard(Arc<Keeper>);

struct Keeper {
    roles: watch::Receiver<Book>,
    meter: Arc<Meter>,
    audit: Audit,
}

impl Guard {
    pub(crate) fn new(roles: watch::Receiver<Book>, limits: CallLimits, audit: Audit) -> Self {
        Self(Arc::new(Keeper { roles, meter: Arc::new(Meter::new(limits)), audit }))
    }
}

/// A call that was let in.
struct Visit {
    caller: Caller,
    visitor: Visitor,
    method: &'static Method,
    permit: Option<Permit>,
}

impl Keeper {
    /// Lets a call in, or says why not.
    fn admit(&self, request: &Request<Body>) -> Result<Visit, Status> {
        let arrival = Arrival::of(request.extensions());
        let caller = arrival.as_ref().map(|arrival| &arrival.caller);
        let visitor = Visitor::new(caller, arrival.as_ref().and_then(|arrival| arrival.from));
        let method = roles::method(request.uri().path());
        let did = method.map_or("unknown method", Method::name);
        let refuse = |reason: &str, status: Status| {
            self.audit.refused(&visitor, did, reason);
            status
        };
        let bar = |barred: Barred| refuse(barred.reason(), (&barred).into());
        let caller = caller.ok_or_else(|| bar(Barred::CallerUnknown))?;
        let permit = match caller {
            Caller::Known(who) => {
                let lasts = method.is_some_and(|method| matches!(method.kind, Kind::Watch | Kind::Stream));
                let permit = self.meter.admit(who, lasts);
                Some(permit.map_err(|too_many| refuse(too_many.reason(), (&too_many).into()))?)
            }
            Caller::Unproven => None,
        };
        let method = method.ok_or_else(|| bar(Barred::MethodUnknown))?;
        roles::may(caller, method, &self.roles.borrow()).map_err(bar)?;
        if method.kind == Kind::Deed && !self.audit.is_kept() {
            return Err(Refusal::Unavailable(Failure::new("AUDIT_UNWRITABLE", UNWRITABLE)).into());
        }
        Ok(Visit { caller: caller.clone(), visitor, method, permit })
    }
}

const UNWRITABLE: &str = "the audit log cannot be written, and nothing is changed that is not written down; make room in the \
                          controller's state directory, then try again";

/// Any answer that is an error names itself.
fn refusal_of(answer: &Response<Body>) -> Option<Explanation> {
    answer.extensions().get::<Status>().map(Explanation::from)
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, guard: self.clone() }
    }
}

/// The services behind the guard.
#[derive(Clone)]
pub(crate) struct Guarded<S> {
    inner: S,
    guard: Guard,
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error: Send + 'static>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let Visit { caller, visitor, method, permit } = match self.guard.0.admit(&request) {
            Ok(visit) => visit,
            Err(status) => return Box::pin(std::future::ready(Ok(status.into_http()))),
        };
        let deed = Deed::default();
        request.extensions_mut().insert(caller);
        request.extensions_mut().insert(deed.clone());
        let entry = matches!(method.kind, Kind::Deed | Kind::Stream)
            .then(|| self.guard.0.audit.begin(visitor, method.name(), deed));
        let answering = self.inner.call(request);
        Box::pin(async move {
            let answer = answering.await?;
            if let Some(entry) = entry {
                let outcome = refusal_of(&answer).map_or(Outcome::Done, Outcome::of);
                // A host that is sent away comes again and again.
                if method.kind == Kind::Deed || outcome == Outcome::Done {
                    entry.end(outcome).await
                } else {
                    entry.repeat(outcome)
                }
            }
            Ok(answer.map(|body| Held::until_read(body, permit)))
        })
    }
}
