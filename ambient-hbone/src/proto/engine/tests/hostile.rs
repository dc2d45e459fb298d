//! A peer that keeps no rules.

use super::*;

fn broken(engine: &mut Engine, bytes: &[u8]) -> Code {
    match feed(engine, bytes) {
        Err(Broken(code)) => code,
        Ok(()) => panic!("that was taken"),
    }
}

/// The codes with which an engine resets streams now.
fn resets(engine: &mut Engine) -> Vec<(u32, u32)> {
    let sent = output(engine);
    let word = |payload: &[u8]| u32::from_be_bytes(payload.try_into().unwrap());
    let resets = frames(&sent).into_iter().filter(|f| f.0 == kind::RST_STREAM);
    resets.map(|(_, _, stream, payload)| (stream, word(&payload))).collect()
}

#[test]
fn what_breaks_the_connection() {
    let data = |flags, stream, payload: &[u8]| framed(kind::DATA, flags, stream, payload);
    let cases: Vec<(&str, Vec<u8>, Code)> = vec![
        (
            "a frame too large",
            vec![1, 0, 0, kind::DATA, 0, 0, 0, 0, 1],
            Code::FRAME_SIZE_ERROR,
        ),
        ("data of no stream", data(0, 0, b"x"), Code::PROTOCOL_ERROR),
        ("data of a stream that was not opened", data(0, 1, b"x"), Code::PROTOCOL_ERROR),
        (
            "padding longer than its frame",
            data(flag::PADDED, 1, &[9, 0]),
            Code::PROTOCOL_ERROR,
        ),
        ("padding without a length", data(flag::PADDED, 1, &[]), Code::FRAME_SIZE_ERROR),
        ("a request on an even stream", request(2), Code::PROTOCOL_ERROR),
        (
            "a block cut short",
            framed(kind::HEADERS, flag::END_HEADERS, 1, &[0x40]),
            Code::COMPRESSION_ERROR,
        ),
        (
            "a continuation of nothing",
            framed(kind::CONTINUATION, 0, 1, &[]),
            Code::PROTOCOL_ERROR,
        ),
        ("a short PING", framed(kind::PING, 0, 0, &[0; 7]), Code::FRAME_SIZE_ERROR),
        ("a PING of a stream", framed(kind::PING, 0, 1, &[0; 8]), Code::PROTOCOL_ERROR),
        ("SETTINGS of a stream", framed(kind::SETTINGS, 0, 1, &[]), Code::PROTOCOL_ERROR),
        ("half a setting", framed(kind::SETTINGS, 0, 0, &[0; 5]), Code::FRAME_SIZE_ERROR),
        (
            "an answer with settings",
            framed(kind::SETTINGS, flag::ACK, 0, &[0; 6]),
            Code::FRAME_SIZE_ERROR,
        ),
        (
            "a window beyond all",
            framed(kind::SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0]),
            Code::FLOW_CONTROL_ERROR,
        ),
        (
            "frames of 10 bytes",
            framed(kind::SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 10]),
            Code::PROTOCOL_ERROR,
        ),
        ("push of 2", framed(kind::SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 2]), Code::PROTOCOL_ERROR),
        ("a push", framed(kind::PUSH_PROMISE, 0, 1, &[0; 4]), Code::PROTOCOL_ERROR),
        (
            "a reset of a stream that was not opened",
            framed(kind::RST_STREAM, 0, 1, &[0; 4]),
            Code::PROTOCOL_ERROR,
        ),
        ("no window at all", framed(kind::WINDOW_UPDATE, 0, 0, &[0; 4]), Code::PROTOCOL_ERROR),
        (
            "a window overflown",
            framed(kind::WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
            Code::FLOW_CONTROL_ERROR,
        ),
        ("a short GOAWAY", framed(kind::GOAWAY, 0, 0, &[0; 7]), Code::FRAME_SIZE_ERROR),
    ];
    for (what, bytes, code) in cases {
        assert_eq!(broken(&mut server(), &bytes), code, "{what}");
        // However it is cut.
        let mut engine = server();
        let outcome = bytes.iter().try_for_each(|byte| feed(&mut engine, &[*byte]));
        assert_eq!(outcome, Err(Broken(code)), "{what}, byte by byte");
    }
    let interleaved = [framed(kind::HEADERS, 0, 1, &[]), framed(kind::PING, 0, 0, &[0; 8])].concat();
    assert_eq!(broken(&mut server(), &interleaved), Code::PROTOCOL_ERROR);
}

#[test]
fn who_does_not_greet_is_no_peer() {
    let mut engine = Engine::new(Role::Server, terms());
    assert_eq!(broken(&mut engine, b"GET / HTTP/1.1\r\n\r\n"), Code::PROTOCOL_ERROR);
    let mut engine = Engine::new(Role::Server, terms());
    feed(&mut engine, frame::PREFACE).unwrap();
    assert_eq!(broken(&mut engine, &request(1)), Code::PROTOCOL_ERROR);
    let mut engine = Engine::new(Role::Client, terms());
    assert_eq!(broken(&mut engine, &framed(kind::PING, 0, 0, &[0; 8])), Code::PROTOCOL_ERROR);
}

#[test]
fn settings_come_before_the_last_word_and_nothing_else_does() {
    let mut engine = Engine::new(Role::Server, terms());
    let broken = feed(&mut engine, b"GET / HTTP/1.1\r\n").unwrap_err();
    engine.break_off(broken.0);
    let kinds = |engine: &mut Engine| frames(&output(engine)).iter().map(|frame| frame.0).collect::<Vec<_>>();
    assert_eq!(kinds(&mut engine), [kind::SETTINGS, kind::WINDOW_UPDATE, kind::GOAWAY]);
    let mut engine = server();
    feed(&mut engine, &framed(kind::PING, 0, 0, &[0; 8]).repeat(100)).unwrap();
    engine.break_off(Code::ENHANCE_YOUR_CALM);
    assert_eq!(kinds(&mut engine), [kind::GOAWAY]);
}

#[test]
fn what_breaks_a_stream_breaks_no_other() {
    let block = |fields: &[(&str, &str)]| {
        let mut block = BytesMut::new();
        for (name, value) in fields {
            hpack::literal(&mut block, name.as_bytes(), value.as_bytes());
        }
        framed(kind::HEADERS, flag::END_HEADERS, 3, &block)
    };
    let malformed = block(&[(":method", "CONNECT"), (":authority", "a:80"), (":path", "/")]);
    let too_much = vec![0; frame::DEFAULT_FRAME as usize];
    let data = |flags, payload: &[u8]| framed(kind::DATA, flags, 3, payload);
    let cases: Vec<(&str, Vec<u8>, Code)> = vec![
        ("a malformed request", malformed, Code::PROTOCOL_ERROR),
        (
            "data behind the end",
            [request(3), data(flag::END_STREAM, b"x"), data(0, b"x")].concat(),
            Code::STREAM_CLOSED,
        ),
        (
            "more than the window",
            [request(3), data(0, &too_much).repeat(4)].concat(),
            Code::FLOW_CONTROL_ERROR,
        ),
        (
            "headers behind data",
            [request(3), data(0, b"x"), request(3)].concat(),
            Code::PROTOCOL_ERROR,
        ),
        (
            "a window of nothing",
            [request(3), framed(kind::WINDOW_UPDATE, 0, 3, &[0; 4])].concat(),
            Code::PROTOCOL_ERROR,
        ),
        (
            "a window overflown",
            [request(3), framed(kind::WINDOW_UPDATE, 0, 3, &[0x7f, 0xff, 0xff, 0xff])].concat(),
            Code::FLOW_CONTROL_ERROR,
        ),
    ];
    for (what, bytes, code) in cases {
        let mut engine = server();
        feed(&mut engine, &request(1)).unwrap();
        let good = accepted(&mut engine);
        feed(&mut engine, &bytes).unwrap();
        assert_eq!(resets(&mut engine), [(3, code.0)], "{what}");
        feed(&mut engine, &framed(kind::DATA, 0, 1, b"good")).unwrap();
        assert!(
            matches!(engine.poll_take(good, &cx()), Poll::Ready(Ok(pieces)) if pieces.len() == 4),
            "{what}"
        );
    }
}

#[test]
fn trailers_end_a_stream() {
    let mut engine = server();
    feed(&mut engine, &request(1)).unwrap();
    let key = accepted(&mut engine);
    let mut block = BytesMut::new();
    hpack::literal(&mut block, b"checksum", b"1");
    feed(&mut engine, &framed(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, 1, &block)).unwrap();
    assert!(matches!(engine.poll_take(key, &cx()), Poll::Ready(Ok(pieces)) if pieces.is_empty()));
    assert_eq!(resets(&mut engine), []);
}

#[test]
fn padding_counts_and_is_given_back() {
    let mut engine = server();
    feed(&mut engine, &request(1)).unwrap();
    let key = accepted(&mut engine);
    let padded = [&[200][..], b"data", &[0; 200]].concat();
    for _ in 0..2000 {
        feed(&mut engine, &framed(kind::DATA, flag::PADDED, 1, &padded)).unwrap();
        let Poll::Ready(Ok(pieces)) = engine.poll_take(key, &cx()) else {
            panic!()
        };
        assert_eq!(pieces.len(), 4);
        engine.give_back(key, 4);
    }
    assert_eq!(resets(&mut engine), [], "two thousand times 205 bytes are more than a window");
}

#[test]
fn a_header_list_too_large_is_answered_431_and_the_table_follows() {
    let mut engine = server();
    let mut block = BytesMut::from(&request_block()[..]);
    hpack::literal(&mut block, b"x", &[b'a'; 5000]);
    // Put into the table behind the large field: the next request refers to it.
    block.extend_from_slice(b"\x40\x01b\x01c");
    feed(&mut engine, &framed(kind::HEADERS, flag::END_HEADERS, 1, &block)).unwrap();
    let sent = frames(&output(&mut engine));
    assert_eq!(
        (sent[0].0, sent[0].1 & flag::END_STREAM, sent[0].2),
        (kind::HEADERS, flag::END_STREAM, 1)
    );
    let mut status = String::new();
    let read = hpack::Decoder::default().decode(&sent[0].3, |_, value| status = String::from_utf8(value.to_vec()).unwrap());
    assert_eq!((read, &*status), (Ok(()), "431"));
    let mut block = request_block();
    block.push(0xbe);
    feed(&mut engine, &framed(kind::HEADERS, flag::END_HEADERS, 3, &block)).unwrap();
    let Some(Incoming::Request(_, request)) = engine.accept() else {
        panic!()
    };
    assert_eq!(request.headers["b"], "c");
}

/// What floods is cut off, long before it has cost anything.
#[test]
fn floods_are_cut_off() {
    let many = |one: Vec<u8>| one.repeat(20_000);
    let opened = |flood: Vec<u8>| {
        let mut engine = server();
        feed(&mut engine, &request(1)).unwrap();
        let key = accepted(&mut engine);
        engine.respond(key, StatusCode::OK, &HeaderMap::new()).unwrap();
        broken(&mut engine, &flood)
    };
    let floods: Vec<(&str, Vec<u8>)> = vec![
        ("PING", many(framed(kind::PING, 0, 0, &[0; 8]))),
        ("SETTINGS", many(framed(kind::SETTINGS, 0, 0, &[]))),
        ("empty DATA", many(framed(kind::DATA, 0, 1, &[]))),
        ("PRIORITY", many(framed(kind::PRIORITY, 0, 1, &[0; 5]))),
        ("unknown frames", many(framed(99, 0, 0, &[]))),
        ("WINDOW_UPDATE", many(framed(kind::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]))),
        ("resets of what is gone", many(framed(kind::RST_STREAM, 0, 1, &[0; 4]))),
    ];
    for (what, flood) in floods {
        assert_eq!(opened(flood), Code::ENHANCE_YOUR_CALM, "{what}");
    }
    let continued = [
        framed(kind::HEADERS, 0, 3, &[]),
        framed(kind::CONTINUATION, 0, 3, &[]).repeat(20_000),
    ];
    assert_eq!(opened(continued.concat()), Code::ENHANCE_YOUR_CALM, "CONTINUATION without bytes");
    let continued = [
        framed(kind::HEADERS, 0, 3, &[]),
        framed(kind::CONTINUATION, 0, 3, &[0; 10_000]).repeat(20),
    ];
    assert_eq!(opened(continued.concat()), Code::ENHANCE_YOUR_CALM, "CONTINUATION without end");
}

#[test]
fn streams_opened_and_abandoned_are_cut_off() {
    let mut engine = server();
    let mut seen = 0;
    let outcome = (0..5000_u32).try_for_each(|n| {
        let id = 2 * n + 1;
        feed(&mut engine, &request(id))?;
        seen += usize::from(n % 2 == 0 && engine.accept().is_some());
        feed(&mut engine, &framed(kind::RST_STREAM, 0, id, &8_u32.to_be_bytes()))
    });
    assert_eq!(outcome, Err(Broken(Code::ENHANCE_YOUR_CALM)));
    assert!(seen <= 1000 && engine.active <= 1, "{seen}");
}

#[test]
fn honest_peers_stay_far_from_the_bounds() {
    let mut engine = server();
    // Twenty thousand short connections between two ticks: each asks, is answered, says a byte and ends.
    for n in 0..20_000_u32 {
        let id = 2 * n + 1;
        feed(&mut engine, &request(id)).unwrap();
        let key = accepted(&mut engine);
        engine.respond(key, StatusCode::OK, &HeaderMap::new()).unwrap();
        feed(&mut engine, &framed(kind::DATA, flag::END_STREAM, id, b"x")).unwrap();
        engine.send(key, Bytes::from_static(b"y")).unwrap();
        engine.finish(key).unwrap();
        output(&mut engine);
        engine.release(key);
    }
    // And a connection of small messages, each of which is acknowledged twice.
    feed(&mut engine, &request(40_001)).unwrap();
    let key = accepted(&mut engine);
    engine.respond(key, StatusCode::OK, &HeaderMap::new()).unwrap();
    for _ in 0..50_000 {
        engine.send(key, Bytes::from_static(b"y")).unwrap();
        output(&mut engine);
        for stream in [0, 40_001] {
            feed(&mut engine, &framed(kind::WINDOW_UPDATE, 0, stream, &[0, 0, 0, 1])).unwrap();
        }
    }
    assert_eq!(engine.streams.keys().len(), 1);
}

#[test]
fn an_answer_may_be_announced_and_must_not_be_early_data() {
    let status = |status: &str| {
        let mut block = BytesMut::new();
        hpack::literal(&mut block, b":status", status.as_bytes());
        framed(kind::HEADERS, flag::END_HEADERS, 1, &block)
    };
    let mut engine = client();
    let key = open(&mut engine);
    feed(&mut engine, &[status("100"), status("103"), status("200")].concat()).unwrap();
    assert!(matches!(engine.poll_answer(key, &cx()), Poll::Ready(Ok(answer)) if answer.status == 200));

    let mut engine = client();
    let key = open(&mut engine);
    output(&mut engine);
    feed(&mut engine, &framed(kind::DATA, 0, 1, b"early")).unwrap();
    assert_eq!(resets(&mut engine), [(1, Code::PROTOCOL_ERROR.0)]);
    assert!(matches!(
        engine.poll_answer(key, &cx()),
        Poll::Ready(Err(Cut::Here(Code::PROTOCOL_ERROR)))
    ));
}

#[test]
fn more_streams_than_allowed_are_refused() {
    let mut engine = server();
    for n in 0..10 {
        feed(&mut engine, &request(2 * n + 1)).unwrap();
    }
    assert_eq!(resets(&mut engine), [(17, Code::REFUSED_STREAM.0), (19, Code::REFUSED_STREAM.0)]);
}

#[test]
fn a_peer_that_does_not_read_its_answers_makes_us_keep_no_more_than_a_bound() {
    let mut engine = server();
    let mut most = 0;
    let outcome = (0..100_000).try_for_each(|_| {
        engine.tick();
        most = most.max(engine.control.len());
        feed(&mut engine, &framed(kind::PING, 0, 0, &[0; 8]))
    });
    assert_eq!(outcome, Err(Broken(Code::ENHANCE_YOUR_CALM)));
    assert!(most < 300 << 10, "{most}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Frames of every kind with whatever they hold: never a panic, and no more kept than windows allow.
    #[test]
    fn any_frames_are_survived(
        frames in proptest::collection::vec((0_u8..11, any::<u8>(), 0_u32..8, proptest::collection::vec(any::<u8>(), 0..60)), 0..60),
        cuts in proptest::collection::vec(1_usize..50, 1..10),
        server_side: bool,
    ) {
        let mut engine = if server_side { server() } else { client() };
        let mut keys = Vec::new();
        if !server_side {
            keys.extend([open(&mut engine), open(&mut engine)]);
        }
        let bytes: Vec<u8> = frames.iter().flat_map(|(kind, flags, stream, payload)| match kind {
            10 => request(stream | 1),
            kind => framed(*kind, *flags, *stream, payload),
        }).collect();
        let mut rest = &bytes[..];
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            rest = later;
            if feed(&mut engine, now).is_err() {
                break;
            }
            while let Some(incoming) = engine.accept() {
                if let Incoming::Request(key, _) = incoming {
                    let _ = engine.respond(key, StatusCode::OK, &HeaderMap::new());
                    let _ = engine.send(key, Bytes::from_static(b"hello"));
                    keys.push(key);
                }
            }
            for &key in &keys {
                if let Poll::Ready(Ok(pieces)) = engine.poll_take(key, &cx()) {
                    engine.give_back(key, pieces.len());
                }
            }
            output(&mut engine);
        }
        engine.lose();
        keys.into_iter().for_each(|key| engine.release(key));
        output(&mut engine);
    }
}
