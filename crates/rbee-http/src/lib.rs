//! HTTP as rbee does it, the same in all three daemons: the accept loop, the
//! order of the layers, the one way from an error to a response, the client
//! for the next hop, those for foreign endpoints and documents, streams, logs and metrics.
//! Knows no route and decides nothing about work. No other crate opens a
//! listener or makes an HTTP call.

mod audit;
mod auth;
mod client;
mod connections;
mod credential;
mod document;
mod endpoint;
mod error;
mod grant;
mod handshake;
mod health;
mod host;
mod json;
mod listener;
mod load_events;
mod log_file;
mod log_lines;
mod log_tail;
mod marked;
mod metrics;
mod relay;
mod renewal;
mod request;
mod routes;
mod server;
mod sse;
mod telemetry;
mod throttle;
mod unread;
mod vanished;

pub use audit::Caller;
pub use auth::{Access, Authenticator, Principal};
pub use client::{CallError, HopClient, collect};
pub use credential::{Credential, ReloadError};
pub use document::{DocumentClient, DocumentError};
pub use endpoint::EndpointClient;
pub use error::ApiError;
pub use grant::Grant;
pub use health::Readiness;
pub use host::{AllowedHosts, BadHostName};
pub use json::{JsonBody, RawJson};
pub use listener::{bind, inherited, reached_from_here};
pub use load_events::{LoadWatch, load_events};
pub use log_file::{bound_log, former_log};
pub use log_tail::open_at_last_lines;
pub use marked::{ForwardedBody, cache_scope};
pub use metrics::{Metrics, MetricsError};
pub use relay::{Relay, relay_events};
pub use renewal::keep_fresh;
pub use request::{RequestContext, new_request_id};
pub use routes::RouteTable;
pub use server::{RemoteAddress, Server};
pub use sse::{DONE_EVENT, error_event, event, event_stream_response, json_event};
pub use telemetry::{LogError, LogFormat, LogSettings, check_log_filter, init_logs};
