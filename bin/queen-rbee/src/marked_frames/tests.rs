//! Streams in every way of cutting them.

use proptest::prelude::*;

use super::*;

const HEAD: &str = ": rbee {\"head\":{\"id\":\"r\",\"created\":1,\"seed\":5}}\n\n";
const DONE: &str = "data: [DONE]\n\n";

fn event(text: &str) -> String {
    format!("data: {{\"text\":\"{text}\"}}\n\n")
}

fn mark(tokens: &[u32]) -> String {
    format!(": rbee {{\"told\":[{{\"index\":0,\"tokens\":{tokens:?}}}]}}\n\n")
}

/// What the client gets of a stream that comes in these pieces, and its end.
fn run<'a>(
    frames: &mut MarkedFrames,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (String, Option<End>) {
    let mut seen = Vec::new();
    for piece in pieces {
        let Taken { events, end, .. } = frames.take(Bytes::copy_from_slice(piece));
        seen.extend_from_slice(&events);
        if end.is_some() {
            return (String::from_utf8(seen).unwrap(), end);
        }
    }
    (String::from_utf8(seen).unwrap(), None)
}

fn tokens(frames: &MarkedFrames) -> Vec<u32> {
    match frames.remedy() {
        Remedy::GoOnAfter(delivered) => delivered.choice(0).unwrap().tokens.clone(),
        Remedy::AskAgain | Remedy::Unmarked | Remedy::TooLong => Vec::new(),
    }
}

proptest! {
    #[test]
    fn marks_are_taken_out_however_the_stream_is_cut(at: Vec<usize>) {
        let text = [HEAD.to_owned(), event("a"), event("b🐝"), mark(&[1, 2]), event("c"), mark(&[3]),
            event("d"), DONE.to_owned()].concat();
        let mut points: Vec<usize> = at.iter().map(|i| i % text.len()).collect();
        points.extend([0, text.len()]);
        points.sort_unstable();
        let mut frames = MarkedFrames::new();
        let pieces = points.windows(2).map(|w| &text.as_bytes()[w[0]..w[1]]);
        let (seen, end) = run(&mut frames, pieces);
        prop_assert_eq!(seen, [event("a"), event("b🐝"), event("c"), event("d"), DONE.to_owned()].concat());
        prop_assert!(matches!(end, Some(End::Whole)));
        prop_assert_eq!(tokens(&frames), [1, 2, 3]);
    }

    #[test]
    fn what_the_client_has_is_what_the_marks_tell_wherever_the_stream_ends(cut in 0..1000_usize) {
        let parts = [HEAD.to_owned(), event("a"), mark(&[1]), event("b"), event("c"), mark(&[2, 3])];
        let text = parts.concat();
        let mut frames = MarkedFrames::new();
        let (seen, end) = run(&mut frames, [&text.as_bytes()[..cut % (text.len() + 1)]]);
        prop_assert!(end.is_none());
        let expected = match tokens(&frames).as_slice() {
            [] => String::new(),
            [1] => event("a"),
            [1, 2, 3] => [event("a"), event("b"), event("c")].concat(),
            other => panic!("{other:?}"),
        };
        prop_assert_eq!(seen, expected);
    }
}

#[test]
fn a_stream_without_marks_passes_as_it_is() {
    let mut frames = MarkedFrames::new();
    let pieces = ["data: {\"a\"", ":1}\n\ndata: {\"b\":", "2}\n\n: note\n\n", DONE];
    let (seen, end) = run(&mut frames, pieces.map(str::as_bytes));
    assert_eq!((seen, end.is_none()), (pieces.concat(), true));
    assert!(matches!(frames.remedy(), Remedy::Unmarked));
}

#[test]
fn an_error_event_comes_with_what_was_held_back() {
    let mut frames = MarkedFrames::new();
    let error = "data: {\"error\":{\"message\":\"m\",\"type\":\"t\",\"code\":\"worker_failed\",\"retryable\":true}}\n\n";
    let text = [HEAD, &event("a"), &mark(&[1]), &event("b"), error].concat();
    let (seen, end) = run(&mut frames, [text.as_bytes()]);
    assert_eq!(seen, event("a"));
    let Some(End::Failed { detail, events }) = end else { panic!("{end:?}") };
    assert_eq!(detail.code, ErrorCode::WorkerFailed);
    assert_eq!(events, format!("{}{error}", event("b")));
}

#[test]
fn another_worker_goes_on_in_the_same_record() {
    let mut frames = MarkedFrames::new();
    run(&mut frames, [[HEAD, &event("a"), &mark(&[1]), &event("lost")].concat().as_bytes()]);
    assert!(frames.has_progressed());
    frames.begin_again();
    assert!(!frames.has_progressed());
    let (seen, _) = run(&mut frames, [[HEAD, &event("b"), &mark(&[2]), DONE].concat().as_bytes()]);
    assert_eq!(seen, [event("b"), DONE.to_owned()].concat());
    assert_eq!(tokens(&frames), [1, 2]);
}

#[test]
fn a_reply_of_which_the_client_has_nothing_begins_again() {
    let mut frames = MarkedFrames::new();
    run(&mut frames, [[HEAD, &event("lost")].concat().as_bytes()]);
    assert!(matches!(frames.remedy(), Remedy::AskAgain));
    frames.begin_again();
    let other = HEAD.replace("\"r\"", "\"s\"");
    run(&mut frames, [[&other, &event("a"), &mark(&[1])].map(String::as_str).concat().as_bytes()]);
    let Remedy::GoOnAfter(delivered) = frames.remedy() else { panic!() };
    assert_eq!(delivered.head.id, "s");
}

#[test]
fn what_is_remembered_and_held_back_is_bounded() {
    let mut frames = MarkedFrames::new();
    run(&mut frames, [HEAD.as_bytes()]);
    let many = mark(&vec![1; CONTINUABLE_TOKENS_MAX]);
    run(&mut frames, [many.as_bytes()]);
    assert!(matches!(frames.remedy(), Remedy::GoOnAfter(_)));
    let (seen, end) = run(&mut frames, [[event("a"), mark(&[2])].concat().as_bytes()]);
    assert!(matches!(frames.remedy(), Remedy::TooLong));
    assert_eq!((seen, end.is_none()), (event("a"), true), "it goes on, unremembered");
    let endless = vec![b'x'; HELD_BYTES_MAX + 1];
    assert!(matches!(run(&mut frames, [endless.as_slice()]).1, Some(End::Garbled)));
    let mut frames = MarkedFrames::new();
    let (_, end) = run(&mut frames, [": rbee {\"what\":1}\n\n".as_bytes()]);
    assert!(matches!(end, Some(End::Garbled)));
}
