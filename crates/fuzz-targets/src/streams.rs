//! Streams of events, in whatever pieces they come.

use bytes::Bytes;
use queen_rbee::client_events;
use rbee_keeper::read_events;

use crate::Target;

/// The queen's reader of workers' streams.
pub const MARKED_STREAM: Target = Target {
    name: "marked_stream",
    run: |data| {
        let (size, stream) = cut(data);
        let whole = client_events([Bytes::copy_from_slice(stream)]);
        let pieces = client_events(stream.chunks(size).map(Bytes::copy_from_slice));
        assert_eq!(whole.0, pieces.0, "what a client gets depends on how the stream was cut");
        assert_eq!(whole.1, pieces.1, "the end of a stream depends on how it was cut");
        assert!(whole.0.len() <= stream.len());
    },
    seeds: streams,
    words: WORDS,
};

/// The keeper's reader of the queen's streams.
pub const EVENT_STREAM: Target = Target {
    name: "event_stream",
    run: |data| {
        let (size, stream) = cut(data);
        let whole = read_events(vec![Bytes::copy_from_slice(stream)]).ok();
        let pieces = read_events(stream.chunks(size).map(Bytes::copy_from_slice).collect()).ok();
        assert_eq!(whole, pieces, "what is read depends on how the stream was cut");
    },
    seeds: streams,
    words: WORDS,
};

/// The first byte says into how large pieces the rest is cut.
fn cut(data: &[u8]) -> (usize, &[u8]) {
    match data.split_first() {
        Some((size, stream)) => (usize::from(*size % 16) + 1, stream),
        None => (1, data),
    }
}

fn streams() -> Vec<Vec<u8>> {
    let head = ": rbee {\"head\":{\"id\":\"r\",\"created\":1,\"seed\":5}}\n\n";
    let mark = ": rbee {\"told\":[{\"index\":0,\"tokens\":[1,2]}]}\n\n";
    let error = "data: {\"error\":{\"message\":\"gone\",\"type\":\"api_error\",\"code\":\"worker_failed\",\"param\":null,\"request_id\":null,\"retryable\":true,\"details\":null}}\n\n";
    let event = "data: {\"text\":\"grü🐝\"}\n\n";
    let done = "data: [DONE]\n\n";
    let texts = [
        [head, event, event, mark, event, mark, event, done].concat(),
        [event, event, done].concat(),
        [head, event, mark, event, error].concat(),
        ["event: x\nid: 1\nretry: 5\r\ndata: a\rdata: b\n\n: ping\n\n", event].concat(),
    ];
    texts.map(|text| [&[3], text.as_bytes()].concat()).into()
}

const WORDS: &[&str] = &[
    "data: ",
    "data:",
    ": rbee ",
    "\n\n",
    "\r\n",
    "\r",
    "[DONE]",
    "event: ",
    "id: ",
    "{\"told\":[",
    "{\"error\":",
    "\u{feff}",
    "tokens",
];
