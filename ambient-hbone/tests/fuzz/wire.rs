//! What an engine says, held to the rules that its peer may count on.

use std::{
    collections::HashMap,
    task::{Context, Waker},
};

use bytes::BytesMut;
use http::HeaderMap;

use crate::proto::{
    code::Code,
    connect,
    engine::{Engine, Frames, Spare, Terms},
    frame::{self, HEAD, Head, flag, kind},
};

/// What all windows may grow by.
pub(super) const SPARE: usize = 1 << 22;

/// Streams that a peer may have open.
pub(super) const STREAMS: u32 = 8;

pub(super) fn terms(spare: &Spare, first: u32, send_buffer: usize) -> Terms {
    Terms {
        streams: STREAMS,
        windows: [first, 1 << 20],
        spare: spare.clone(),
        ample: (1 << 18, spare.clone()),
        frame: frame::DEFAULT_FRAME,
        header_list: 1 << 12,
        send_buffer,
    }
}

/// All that has to go now.
pub(super) fn output(engine: &mut Engine) -> Vec<u8> {
    let mut all = Vec::new();
    while engine.has_something_to_send() {
        let mut frames = Frames::default();
        engine.transmit(&mut frames);
        while !frames.is_empty() {
            let mut chunks = [&[][..]; 4];
            let count = frames.chunks(&mut chunks);
            let some = chunks[..count].concat();
            frames.advance(some.len());
            all.extend(some);
        }
    }
    all
}

/// One frame.
pub(super) fn framed(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    frame::head(&mut out, payload.len(), kind, flags, stream);
    out.extend_from_slice(payload);
    out.to_vec()
}

/// A request for a connection.
pub(super) fn request(stream: u32, flags: u8) -> Vec<u8> {
    let mut block = BytesMut::new();
    let authority = "10.0.2.2:8080".parse().expect("host and port");
    connect::write_request(&mut block, &authority, &HeaderMap::new());
    framed(kind::HEADERS, flag::END_HEADERS | flags, stream, &block)
}

/// An engine all of whose streams were let go keeps nothing of them, and what windows have grown by is given back.
pub(super) fn assert_empty(engine: &mut Engine, spare: &Spare) {
    engine.name_last(Code::NO_ERROR);
    assert!(engine.is_finished() && engine.orphans() == 0, "no stream is active");
    let rest = format!("{engine:?}");
    assert!(
        rest.contains("places: [], free: [], by_id: {}"),
        "no stream keeps its place: {rest}"
    );
    assert_eq!(left(spare), SPARE, "what windows have grown by is given back");
}

/// What is left to grow by. It shows nothing else of itself.
pub(super) fn left(spare: &Spare) -> usize {
    let text = format!("{spare:?}");
    let digits = text.trim_matches(|c: char| !c.is_ascii_digit());
    digits.parse().expect("it shows a number")
}

/// The context of one who is not to be woken: everything is looked at again.
pub(super) fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// Frames by kind, and what they bring each stream to.
#[derive(Default)]
pub(super) struct Said {
    preface: bool,
    streams: HashMap<u32, Stage>,
    goaways: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
enum Stage {
    Headers,
    Ended,
    Reset,
}

impl Said {
    /// Of a server, or of a client, who begins with the preface.
    pub(super) fn new(client: bool) -> Self {
        Self {
            preface: client,
            ..Self::default()
        }
    }

    /// Hears what an engine says: whole frames, none on a stream behind its end, none behind its reset, data only behind
    /// headers. Gives how many bytes of it were not data.
    pub(super) fn hear(&mut self, mut bytes: &[u8]) -> usize {
        let mut overhead = 0;
        if self.preface && !bytes.is_empty() {
            bytes = bytes.strip_prefix(&frame::PREFACE[..]).expect("a client begins with the preface");
            self.preface = false;
        }
        while !bytes.is_empty() {
            let head = Head::read(bytes.first_chunk().expect("whole frames"));
            let end = HEAD + head.length as usize;
            assert!(end <= bytes.len(), "whole frames: {head:?}");
            self.frame(head);
            overhead += if head.kind == kind::DATA { HEAD } else { end };
            bytes = &bytes[end..];
        }
        overhead
    }

    fn frame(&mut self, head: Head) {
        let stage = self.streams.get(&head.stream).copied();
        match head.kind {
            kind::HEADERS => assert!(stage.is_none(), "one header list for a stream: {head:?}"),
            kind::DATA => assert_eq!(stage, Some(Stage::Headers), "{head:?}"),
            kind::RST_STREAM => assert_ne!(stage, Some(Stage::Reset), "{head:?}"),
            kind::WINDOW_UPDATE if head.stream > 0 => assert_ne!(stage, Some(Stage::Reset), "{head:?}"),
            kind::GOAWAY => self.goaways += 1,
            _ => {}
        }
        assert!(self.goaways <= 2, "a leave is announced and named, once each");
        let to = match head.kind {
            kind::RST_STREAM => Stage::Reset,
            kind::HEADERS | kind::DATA if head.has(flag::END_STREAM) => Stage::Ended,
            kind::HEADERS => Stage::Headers,
            _ => return,
        };
        self.streams.insert(head.stream, to);
    }
}
