//! What can be written down: who did what to which thing, and how that came out. Text from outside is held to a length
//! and made harmless here; there is no field for a token or a prompt.

use std::fmt::Display;
use std::net::SocketAddr;

use auth_min::Fingerprint;
use input_validation::{RequestId, sanitize_for_log};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};

/// Longest text in an entry, in characters; what is beyond is cut off.
const TEXT_MAX: usize = 256;

/// Declares kinds and outcomes with their names once.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
        pub enum $name { $($(#[$variant_doc])* #[serde(rename = $text)] $variant,)* }

        impl $name {
            /// Returns the name that stands in entries.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

named! {
    /// What happened.
    Kind {
        /// A daemon began.
        Start = "daemon.start",
        /// A daemon ended in order.
        Stop = "daemon.stop",
        /// A caller asked a daemon to end.
        Shutdown = "daemon.shutdown",
        /// A credential was good.
        AuthSuccess = "auth.success",
        /// A credential was missing or wrong.
        AuthFailure = "auth.failure",
        /// A good credential does not allow what was asked.
        AuthDenied = "auth.denied",
        /// A key was made.
        KeyCreate = "key.create",
        /// A key was taken back.
        KeyRevoke = "key.revoke",
        /// A secret was replaced by another.
        KeyRotate = "key.rotate",
        /// A one-time code for a machine was made, or used.
        HivePair = "hive.pair",
        /// A paired machine was to be forgotten.
        HiveForget = "hive.forget",
        /// Settings changed while a daemon ran.
        ConfigChange = "config.change",
        /// A worker's process was to be started.
        WorkerSpawn = "worker.spawn",
        /// A worker was to end, and did when asked.
        WorkerStop = "worker.stop",
        /// A worker was killed.
        WorkerKill = "worker.force_kill",
        /// A worker ended unasked.
        WorkerExit = "worker.exit",
        /// The failures of a model's workers were to be forgotten.
        WorkerReset = "worker.reset",
        /// A model was to be added.
        ModelPull = "model.pull",
        /// A model was to be removed.
        ModelDelete = "model.delete",
        /// A request for tokens, embeddings or a ranking came.
        InferenceStart = "inference.start",
        /// Such a request was given to a worker.
        WorkerAssigned = "worker.assigned",
        /// Such a request ended.
        InferenceComplete = "inference.complete",
        /// The log was found with an end that is no whole entry, which was cut off.
        Recovered = "audit.recovered",
        /// The log was found with an end that is not good, and goes on in a file of its own.
        Damaged = "audit.damaged",
        /// Entries could not be written.
        Lost = "audit.lost",
        /// The oldest entries are removed, as configured.
        Retention = "audit.retention",
        /// Another machine's log is shorter, or another, than it was before.
        PeerRegressed = "audit.peer_regressed",
    }
}

impl Kind {
    /// Says whether it is one request's work, which goes on even where it cannot be written down.
    #[must_use]
    pub const fn is_inference(self) -> bool {
        matches!(self, Self::InferenceStart | Self::WorkerAssigned | Self::InferenceComplete)
    }
}

named! {
    /// How it came out.
    Outcome {
        /// It is about to be done.
        Requested = "requested",
        /// It is done.
        Success = "success",
        /// It was tried and failed.
        Failure = "failure",
        /// It was not allowed.
        Denied = "denied",
    }
}

named! {
    /// What kind of caller it was.
    ActorKind {
        /// The daemon itself.
        System = "system",
        /// Who holds the client token.
        Client = "client",
        /// Who holds a key with a name, or a signed token.
        Key = "key",
        /// The neighbouring program.
        Peer = "peer",
        /// A worker.
        Worker = "worker",
        /// Somebody without a good credential.
        Unknown = "unknown",
    }
}

named! {
    /// What kind of thing it was done to.
    SubjectKind {
        /// A worker, by its id.
        Worker = "worker",
        /// A model, by its reference or alias.
        Model = "model",
        /// A key, by its name or fingerprint.
        Key = "key",
        /// A route, as `METHOD path`.
        Route = "route",
        /// A machine, by its name.
        Machine = "machine",
        /// A setting, by its key in the config file.
        Setting = "setting",
    }
}

/// Who did it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Actor {
    /// What kind of caller.
    pub kind: ActorKind,
    /// The fingerprint of the credential shown.
    pub key: Option<Fingerprint>,
    /// The other end of the connection.
    pub address: Option<SocketAddr>,
}

impl Actor {
    /// The daemon itself.
    pub const SYSTEM: Self = Self { kind: ActorKind::System, key: None, address: None };
}

/// One thing to be written down.
#[derive(Debug, Clone)]
pub struct Event {
    at: Timestamp,
    kind: Kind,
    outcome: Outcome,
    actor: Actor,
    request_id: Option<RequestId>,
    subject: Option<(SubjectKind, String)>,
    details: Map<String, Value>,
}

impl Event {
    /// Describes something that happens now, done by the daemon itself.
    #[must_use]
    pub fn new(kind: Kind, outcome: Outcome) -> Self {
        let (actor, details) = (Actor::SYSTEM, Map::new());
        let at = Timestamp::now();
        Self { at, kind, outcome, actor, request_id: None, subject: None, details }
    }

    /// Says who did it.
    #[must_use]
    pub fn by(self, actor: Actor) -> Self {
        Self { actor, ..self }
    }

    /// Says on behalf of which request.
    #[must_use]
    pub fn request(self, id: RequestId) -> Self {
        Self { request_id: Some(id), ..self }
    }

    /// Says to what it was done.
    #[must_use]
    pub fn on(self, kind: SubjectKind, id: impl Display) -> Self {
        Self { subject: Some((kind, id.to_string())), ..self }
    }

    /// Adds a detail in words. Never a prompt, a reply or a secret.
    #[must_use]
    pub fn with(mut self, name: &'static str, text: impl Display) -> Self {
        self.details.insert(name.to_owned(), Value::String(harmless(&text.to_string())));
        self
    }

    /// Adds a detail that is a number.
    #[must_use]
    pub fn with_number(mut self, name: &'static str, number: u64) -> Self {
        self.details.insert(name.to_owned(), number.into());
        self
    }

    /// Returns what happened.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Writes the entry's own part as the inside of a JSON object.
    pub(crate) fn body(&self, service: &str) -> String {
        let Actor { kind, key, address } = self.actor;
        let body = Body {
            timestamp: format!("{:.3}", self.at),
            event_type: self.kind.as_str(),
            service,
            outcome: self.outcome.as_str(),
            actor: ActorBody {
                kind: kind.as_str(),
                key: key.map(|key| key.to_string()),
                address: address.map(|address| address.to_string()),
            },
            request_id: self.request_id.as_ref().map(AsRef::as_ref),
            subject: self
                .subject
                .as_ref()
                .map(|(kind, id)| SubjectBody { kind: kind.as_str(), id: harmless(id) }),
            details: &self.details,
        };
        // Text and numbers alone, which JSON can always hold.
        let object = serde_json::to_string(&body).unwrap_or_default();
        object.trim_start_matches('{').strip_suffix('}').unwrap_or_default().to_owned()
    }
}

#[derive(Serialize)]
struct Body<'a> {
    timestamp: String,
    event_type: &'static str,
    service: &'a str,
    outcome: &'static str,
    actor: ActorBody,
    request_id: Option<&'a str>,
    subject: Option<SubjectBody>,
    details: &'a Map<String, Value>,
}

#[derive(Serialize)]
struct ActorBody {
    kind: &'static str,
    key: Option<String>,
    address: Option<String>,
}

#[derive(Serialize)]
struct SubjectBody {
    kind: &'static str,
    id: String,
}

fn harmless(text: &str) -> String {
    let cut: String = text.chars().take(TEXT_MAX).collect();
    sanitize_for_log(&cut).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_cannot_break_out_of_its_entry() {
        let hostile = "m\r\n{\"x\":1}\u{1b}[31m\u{202e}\u{2028}\"";
        let event = Event::new(Kind::ModelPull, Outcome::Requested)
            .on(SubjectKind::Model, hostile)
            .with("reason", hostile);
        let body = event.body("queen-rbee");
        assert!(!body.contains(['\n', '\r', '\u{1b}', '\u{202e}', '\u{2028}']), "{body}");
        let parsed: Value = serde_json::from_str(&format!("{{{body}}}")).unwrap();
        let expected = "m\\r\\n{\"x\":1}\\u{1b}[31m\\u{202e}\\u{2028}\"";
        assert_eq!(parsed["subject"]["id"], expected);
        assert_eq!(parsed["details"]["reason"], expected);
        assert_eq!(parsed["event_type"], "model.pull");
    }

    #[test]
    fn long_text_is_cut() {
        let body = Event::new(Kind::Lost, Outcome::Failure).with("x", "é".repeat(1000)).body("s");
        let parsed: Value = serde_json::from_str(&format!("{{{body}}}")).unwrap();
        assert_eq!(parsed["details"]["x"].as_str().unwrap().chars().count(), TEXT_MAX);
    }
}
