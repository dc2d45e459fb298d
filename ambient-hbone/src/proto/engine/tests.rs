//! The engine end to end with itself, and against a peer that sends whatever frames it likes.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

mod bounds;
mod costs;
mod hostile;
mod pair;

fn terms() -> Terms {
    Terms {
        streams: 8,
        windows: [frame::DEFAULT_WINDOW, 1 << 20],
        spare: Spare::new(1 << 22),
        ample: (1 << 20, Spare::new(1 << 26)),
        frame: frame::DEFAULT_FRAME,
        header_list: 1 << 12,
        send_buffer: 1 << 16,
    }
}

fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn authority() -> Authority {
    "10.0.2.2:8080".parse().unwrap()
}

/// All that an engine has to send now.
fn output(engine: &mut Engine) -> Vec<u8> {
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

/// Frames by kind, stream and payload.
fn frames(mut bytes: &[u8]) -> Vec<(u8, u8, u32, Vec<u8>)> {
    let mut all = Vec::new();
    while let Some(head) = bytes.first_chunk() {
        let head = frame::Head::read(head);
        let end = frame::HEAD + head.length as usize;
        all.push((head.kind, head.flags, head.stream, bytes[frame::HEAD..end].to_vec()));
        bytes = &bytes[end..];
    }
    assert!(bytes.is_empty());
    all
}

/// One frame.
fn framed(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    frame::head(&mut out, payload.len(), kind, flags, stream);
    out.extend_from_slice(payload);
    out.to_vec()
}

fn request_block() -> Vec<u8> {
    let mut block = BytesMut::new();
    connect::write_request(&mut block, &authority(), &HeaderMap::new());
    block.to_vec()
}

fn request(stream: u32) -> Vec<u8> {
    framed(kind::HEADERS, flag::END_HEADERS, stream, &request_block())
}

/// A server whose client has greeted.
fn server() -> Engine {
    let mut engine = Engine::new(Role::Server, terms());
    output(&mut engine);
    feed(&mut engine, frame::PREFACE).unwrap();
    feed(&mut engine, &framed(kind::SETTINGS, 0, 0, &[])).unwrap();
    assert!(engine.is_greeted());
    output(&mut engine);
    engine
}

/// A client whose server has greeted.
fn client() -> Engine {
    let mut engine = Engine::new(Role::Client, terms());
    output(&mut engine);
    feed(&mut engine, &framed(kind::SETTINGS, 0, 0, &[])).unwrap();
    output(&mut engine);
    engine
}

fn feed(engine: &mut Engine, bytes: &[u8]) -> Result<(), Broken> {
    engine.receive(&Bytes::copy_from_slice(bytes), Duration::ZERO)
}

fn open(engine: &mut Engine) -> Key {
    open_as(engine, false)
}

fn open_as(engine: &mut Engine, ample: bool) -> Key {
    match engine.poll_open(&cx(), &authority(), &HeaderMap::new(), ample) {
        Poll::Ready(key) => key.unwrap(),
        Poll::Pending => panic!("there is room for one more"),
    }
}

fn accepted(engine: &mut Engine) -> Key {
    match engine.accept() {
        Some(Incoming::Request(key, _)) => key,
        other => panic!("{other:?}"),
    }
}
