//! What is left of a request's body when its answer is there: many refusals come before the body is read. Owns that the
//! rest is read and forgotten, within limits, before the answer goes out. Otherwise the connection would be closed over
//! unread bytes, and the client see it break instead of what it is told.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::HttpBody;
use bytes::Bytes;
use http::Request;
use http::header::EXPECT;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::timeout;

/// Most of a body that is read after its request was answered.
const DISCARD_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long a client may go on sending it.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);

/// Where a body comes back to when it is dropped before its end.
#[derive(Debug, Default, Clone)]
pub(crate) struct Unread(Arc<Mutex<Option<Incoming>>>);

/// A body that is lent to who answers the request.
#[derive(Debug)]
pub(crate) struct Lent {
    body: Option<Incoming>,
    owner: Unread,
}

impl Unread {
    /// Lends the body of a request out; `None` where nobody is to read it: one that is sent only when it is asked for.
    pub(crate) fn lend(request: Request<Incoming>) -> (Request<Lent>, Option<Self>) {
        let owner = Self::default();
        let waits_to_be_asked = request.headers().contains_key(EXPECT);
        let lent = |body| Lent { body: Some(body), owner: owner.clone() };
        let request = request.map(lent);
        (request, (!waits_to_be_asked).then_some(owner))
    }

    /// Reads what was left, for as long as a client may take to send it.
    pub(crate) async fn forget(self) {
        let left = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(body) = left {
            // Both ends are good ones: all was read, or the client was given its time.
            drop(timeout(DISCARD_TIMEOUT, discard(body)).await);
        }
    }
}

async fn discard(mut body: Incoming) {
    let mut seen = 0;
    while let Some(Ok(frame)) = body.frame().await {
        seen += frame.data_ref().map_or(0, Bytes::len);
        if seen > DISCARD_BYTES_MAX {
            return;
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) {
            *self.owner.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
        }
    }
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}
