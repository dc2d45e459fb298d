//! What a peer makes this end do and keep, without doing anything for it that is forbidden by itself.

use super::*;

fn word(kind: u8, stream: u32, value: u32) -> Vec<u8> {
    framed(kind, 0, stream, &value.to_be_bytes())
}

/// To be reset by us for a fault of its own is as cheap for a peer as to reset, and costs us the same.
#[test]
fn streams_that_the_peer_has_us_reset_are_abandoned_too() {
    type Fault = fn(u32) -> Vec<u8>;
    fn ended(id: u32) -> Vec<u8> {
        framed(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, id, &request_block())
    }
    let faults: [(&str, Fault); 5] = [
        ("data behind the end", |id| [ended(id), framed(kind::DATA, 0, id, b"x")].concat()),
        ("headers behind the end", |id| [ended(id), ended(id)].concat()),
        ("a second request", |id| [request(id), request(id)].concat()),
        ("no window", |id| [request(id), word(kind::WINDOW_UPDATE, id, 0)].concat()),
        ("a window overflown", |id| {
            [request(id), word(kind::WINDOW_UPDATE, id, frame::WIDEST_WINDOW)].concat()
        }),
    ];
    for (what, fault) in faults {
        for answered in [false, true] {
            let mut engine = server();
            let mut seen = 0;
            let outcome = (0..5000_u32).try_for_each(|n| {
                let bytes = fault(2 * n + 1);
                let (asks, rest) = bytes.split_at(request(1).len());
                feed(&mut engine, asks)?;
                let key = accepted(&mut engine);
                seen += 1;
                if answered {
                    engine.respond(key, StatusCode::OK, &HeaderMap::new()).unwrap();
                }
                output(&mut engine);
                let outcome = feed(&mut engine, rest);
                engine.release(key);
                outcome
            });
            assert_eq!(outcome, Err(Broken(Code::ENHANCE_YOUR_CALM)), "{what}");
            assert!(seen <= 1001, "{what}: {seen}");
        }
    }
}

#[test]
fn streams_that_wait_for_the_connections_window_are_forgotten_with_their_end() {
    let mut engine = server();
    engine.credit = 0;
    for n in 0..2000_u32 {
        let id = 2 * n + 1;
        feed(&mut engine, &request(id)).unwrap();
        let key = accepted(&mut engine);
        engine.respond(key, StatusCode::OK, &HeaderMap::new()).unwrap();
        engine.send(key, Bytes::from_static(b"x")).unwrap();
        output(&mut engine);
        feed(&mut engine, &word(kind::RST_STREAM, id, 8)).unwrap();
        engine.release(key);
        assert!(engine.starved.len() + engine.ready.len() <= 1, "{n}");
    }
}

#[test]
fn answers_to_streams_that_are_reset_before_they_are_read_are_bounded() {
    let mut engine = server();
    let outcome = (0..100_000_u32).try_for_each(|n| {
        let id = 2 * n + 1;
        engine.tick();
        feed(&mut engine, &request(id))?;
        let key = accepted(&mut engine);
        engine.respond(key, StatusCode::OK, &HeaderMap::new()).unwrap();
        let outcome = feed(&mut engine, &word(kind::RST_STREAM, id, 8));
        engine.release(key);
        assert!(engine.control.len() < 300 << 10);
        outcome
    });
    assert_eq!(outcome, Err(Broken(Code::ENHANCE_YOUR_CALM)));
}

#[test]
fn requests_that_nobody_took_go_with_the_connection() {
    let mut engine = server();
    feed(&mut engine, &request(1)).unwrap();
    let held = accepted(&mut engine);
    for id in [3, 5, 7] {
        feed(&mut engine, &[request(id), framed(kind::DATA, 0, id, &[7; 10_000])].concat()).unwrap();
    }
    engine.lose();
    assert_eq!(engine.streams.keys(), [held], "who holds one stream keeps the bytes of no other");
    engine.release(held);
    assert_eq!(engine.streams.keys(), []);
}

/// Each entry may touch every stream.
#[test]
fn settings_cost_what_is_in_them() {
    let entries: Vec<u8> = (0..600_u32).flat_map(|n| [0, 4, 0, 0, 0x10, n as u8]).collect();
    let outcome = (0..1000).try_fold((server(), 0), |(mut engine, seen), _| {
        feed(&mut engine, &framed(kind::SETTINGS, 0, 0, &entries)).map_err(|broken| (broken, seen))?;
        output(&mut engine);
        Ok((engine, seen + 600))
    });
    let (broken, seen) = outcome.map(drop).unwrap_err();
    assert!(broken == Broken(Code::ENHANCE_YOUR_CALM) && seen <= 10_000, "{seen}");
}

#[test]
fn announcements_without_an_answer_have_an_end() {
    let mut engine = client();
    let key = open(&mut engine);
    let mut block = BytesMut::new();
    hpack::literal(&mut block, b":status", b"103");
    let one = framed(kind::HEADERS, flag::END_HEADERS, 1, &block);
    assert_eq!(feed(&mut engine, &one.repeat(20_000)), Err(Broken(Code::ENHANCE_YOUR_CALM)));
    engine.release(key);
}
