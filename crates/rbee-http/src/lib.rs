//! HTTP as rbee does it, the same in all three daemons: the accept loop, the
//! order of the layers, the one way from an error to a response, the client
//! for the next hop and that for foreign endpoints, streams, logs and metrics.
//! Knows no route and decides nothing about work. No other crate opens a
//! listener or makes an HTTP call.

mod auth;
mod client;
mod endpoint;
mod error;
mod health;
mod json;
mod load_events;
mod marked;
mod metrics;
mod relay;
mod request;
mod routes;
mod server;
mod sse;
mod telemetry;
mod vanished;

pub use auth::{Access, Authenticator, Principal};
pub use client::{CallError, HopClient, collect};
pub use endpoint::EndpointClient;
pub use error::ApiError;
pub use health::Readiness;
pub use json::{JsonBody, RawJson};
pub use load_events::{LoadWatch, load_events};
pub use marked::ForwardedBody;
pub use metrics::{Metrics, MetricsError};
pub use relay::{Relay, relay_events};
pub use request::{RequestContext, new_request_id};
pub use routes::RouteTable;
pub use server::{RemoteAddress, Server, bind};
pub use sse::{DONE_EVENT, error_event, event, event_stream_response, json_event};
pub use telemetry::{LogError, LogFormat, check_log_filter, init_logs};
