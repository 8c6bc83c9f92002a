//! Somebody else's server: OpenAI's routes with scripted replies, and nothing of rbee's. What is asked is kept, with
//! the headers it came with.

use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use rbee_http::{Server, bind};
use rbee_tls::{Peer, TlsMode, TlsSettings};
use serde_json::{Value, json};
use tokio::sync::{Barrier, watch};
use tokio_util::sync::CancellationToken;

/// What one request gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Three words, after a time to the first and a time between them.
    Words { first: Duration, gap: Duration },
    /// The same, without usage.
    Uncounted,
    /// Three words, when as many requests are here as the barrier wants.
    Together,
    /// One word after the other until the long prompt has come, then the end.
    UntilLong,
    /// The long prompt's reply, which says that it has come.
    Long,
    /// A status and a page.
    Status(u16),
    /// A word, then an error within the stream.
    ErrorEvent,
    /// A word, then the end of the connection.
    BreakOff,
    /// An event that is no JSON.
    Garbled,
    /// A whole reply without a word.
    NoText,
    /// Nothing, ever.
    Hang,
}

/// Three words at once.
pub(crate) const WORDS: Step = Step::Words { first: Duration::ZERO, gap: Duration::ZERO };

/// One request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) server: &'static str,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
    /// How many requests were running at this server, this one included.
    pub(crate) running: usize,
    /// How many of the `UntilLong` replies had begun.
    pub(crate) begun: usize,
}

impl Asked {
    /// Returns the last message, or the prompt.
    pub(crate) fn prompt(&self) -> &str {
        let messages = self.body["messages"].as_array();
        let last = messages.and_then(|messages| messages.last());
        last.map_or(&self.body["prompt"], |message| &message["content"]).as_str().unwrap()
    }
}

/// What all servers of a test heard, in order.
pub(crate) type Log = Arc<Mutex<Vec<Asked>>>;

type Script = Box<dyn Fn(usize, &Value) -> Step + Send + Sync>;

/// The server, for as long as it is kept.
pub(crate) struct FakeEndpoint {
    pub(crate) url: String,
    stop: CancellationToken,
}

struct Shared {
    name: &'static str,
    script: Script,
    log: Log,
    count: AtomicUsize,
    running: Arc<AtomicUsize>,
    begun: Arc<AtomicUsize>,
    barrier: Arc<Barrier>,
    long_came: watch::Sender<bool>,
}

impl FakeEndpoint {
    /// `script` gets the number of the request at this server and its body; `together` is how many requests a reply
    /// of [`Step::Together`] waits for.
    pub(crate) async fn start(
        name: &'static str,
        log: &Log,
        together: usize,
        script: impl Fn(usize, &Value) -> Step + Send + Sync + 'static,
    ) -> Self {
        Self::start_with(None, name, log, together, script).await
    }

    /// The same over TLS, with a certificate of the CA in `tls`, which is made where there is none.
    pub(crate) async fn start_with(
        tls: Option<&Path>,
        name: &'static str,
        log: &Log,
        together: usize,
        script: impl Fn(usize, &Value) -> Step + Send + Sync + 'static,
    ) -> Self {
        let shared = Arc::new(Shared {
            name,
            script: Box::new(script),
            log: Arc::clone(log),
            count: AtomicUsize::new(0),
            running: Arc::default(),
            begun: Arc::default(),
            barrier: Arc::new(Barrier::new(together)),
            long_came: watch::Sender::new(false),
        });
        let router = Router::new()
            .route("/v1/chat/completions", post(answer))
            .route("/v1/completions", post(answer))
            .with_state(shared);
        let listener = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let settings = TlsSettings { mode: TlsMode::Local, ..TlsSettings::default() };
        let served = tls.map(|tls| settings.open(tls, address, &Peer::Queen).unwrap().unwrap());
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{address}");
        let stop = CancellationToken::new();
        let server = Server::new(listener, router, Duration::ZERO).over(served.as_ref());
        tokio::spawn(server.run(stop.clone()));
        Self { url, stop }
    }
}

impl Drop for FakeEndpoint {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Counts a request for as long as its reply lasts.
struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let body: Value = serde_json::from_slice(&body).unwrap();
    let number = shared.count.fetch_add(1, Ordering::SeqCst);
    let step = (shared.script)(number, &body);
    let running = shared.running.fetch_add(1, Ordering::SeqCst) + 1;
    let guard = Running(Arc::clone(&shared.running));
    shared.log.lock().unwrap().push(Asked {
        server: shared.name,
        path: uri.path().to_owned(),
        headers,
        body,
        running,
        begun: shared.begun.load(Ordering::SeqCst),
    });
    if let Step::Status(status) = step {
        return (StatusCode::from_u16(status).unwrap(), "<p>no\u{1b}[2J</p>").into_response();
    }
    let end = [usage(), "data: [DONE]\n\n".to_owned()];
    let fixed = |events: Vec<String>| stream::iter(events).boxed();
    let events = match step {
        Step::Words { first, gap } => stream::iter(0..3)
            .then(move |index| async move {
                tokio::time::sleep(if index == 0 { first } else { gap }).await;
                word()
            })
            .chain(stream::iter(end))
            .boxed(),
        Step::Uncounted => fixed(vec![word(), word(), word(), "data: [DONE]\n\n".to_owned()]),
        Step::Together => {
            shared.barrier.wait().await;
            fixed([vec![word(); 3], end.to_vec()].concat())
        }
        Step::UntilLong => {
            shared.begun.fetch_add(1, Ordering::SeqCst);
            until_long(shared.long_came.subscribe()).chain(stream::iter(end)).boxed()
        }
        Step::Long => {
            shared.long_came.send_replace(true);
            fixed([vec![word()], end.to_vec()].concat())
        }
        Step::ErrorEvent => {
            fixed(vec![word(), "data: {\"error\":{\"message\":\"out of luck\"}}\n\n".to_owned()])
        }
        Step::BreakOff => fixed(vec![word()]),
        Step::Garbled => fixed(vec!["data: nonsense\n\n".to_owned()]),
        Step::NoText => fixed(end.to_vec()),
        Step::Hang | Step::Status(_) => stream::pending().boxed(),
    };
    let body = events.map(move |event| {
        let _counted = &guard;
        Ok::<_, Infallible>(event)
    });
    ([("content-type", "text/event-stream")], Body::from_stream(body)).into_response()
}

/// Twenty words, then silence until the long prompt has come, then one word more.
fn until_long(mut long_came: watch::Receiver<bool>) -> impl futures_util::Stream<Item = String> {
    let last = stream::once(async move {
        long_came.wait_for(|came| *came).await.unwrap();
        word()
    });
    stream::iter(vec![word(); 20]).chain(last)
}

fn word() -> String {
    let chunk =
        json!({ "choices": [{ "index": 0, "delta": { "content": "word " }, "text": "word " }] });
    format!("data: {chunk}\n\n")
}

/// The server's own count, which differs from the number of events.
fn usage() -> String {
    let usage = json!({
        "prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12,
        "prompt_tokens_details": { "cached_tokens": 2 },
    });
    format!("data: {}\n\n", json!({ "choices": [], "usage": usage }))
}
