use std::net::SocketAddr;

use proptest::prelude::*;

use super::{Speech, frame::Frame, table::Table};

const SYN: u8 = 2;
const ACK: u8 = 16;
const FIN: u8 = 1;
const RST: u8 = 4;

/// An Ethernet frame with a TCP segment.
fn segment(from: &str, to: &str, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let mut tcp = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    tcp.extend(sequence.to_be_bytes());
    tcp.extend([0, 0, 0, 0, 6 << 4, flags, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]);
    tcp.extend(payload);
    ip(from, to, 6, &tcp)
}

fn datagram(from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
    let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let mut udp = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    udp.extend((8 + payload.len() as u16).to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    ip(from, to, 17, &udp)
}

fn ip(from: SocketAddr, to: SocketAddr, protocol: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 12];
    match (from, to) {
        (SocketAddr::V4(from), SocketAddr::V4(to)) => {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((20 + body.len() as u16).to_be_bytes());
            frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            frame.extend(from.ip().octets());
            frame.extend(to.ip().octets());
        }
        (SocketAddr::V6(from), SocketAddr::V6(to)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            // A destination option of 8 bytes before the body.
            frame.extend((8 + body.len() as u16).to_be_bytes());
            frame.extend([60, 64]);
            frame.extend(from.ip().octets());
            frame.extend(to.ip().octets());
            frame.extend([protocol, 0, 1, 4, 0, 0, 0, 0]);
        }
        _ => panic!("one family"),
    }
    frame.extend(body);
    frame
}

fn table(frames: &[Vec<u8>]) -> Table {
    let mut table = Table::default();
    frames.iter().for_each(|frame| table.take(frame, false));
    table
}

const A: &str = "10.0.0.1:4000";
const B: &str = "10.0.0.2:80";

#[test]
fn a_marker_across_segments_is_found() {
    for (a, b) in [(A, B), ("[fd00::1]:4000", "[fd00::2]:80")] {
        let seen = table(&[
            segment(a, b, u32::MAX - 3, SYN, b""),
            segment(b, a, 900, SYN | ACK, b""),
            segment(a, b, u32::MAX - 2, ACK, b"one ma"),
            segment(b, a, 901, ACK, b"answer"),
            segment(a, b, 3, ACK | FIN, b"rker"),
        ])
        .seen();
        let [connection] = seen.connections.as_slice() else {
            panic!("{seen:?}")
        };
        assert_eq!((connection.client, connection.server), (a.parse().unwrap(), b.parse().unwrap()));
        assert_eq!(
            (connection.to_server.as_slice(), connection.to_client.as_slice()),
            (&b"one marker"[..], &b"answer"[..])
        );
        assert!(connection.opened && !connection.reset && connection.speech == Speech::Other);
        assert!(seen.contains(b"marker") && seen.contains(b"swer") && !seen.contains(b"markerans"));
    }
}

#[test]
fn order_and_repetition_do_not_matter() {
    let mut table = table(&[
        segment(A, B, 100, SYN, b""),
        segment(A, B, 105, ACK, b"efgh"),
        segment(A, B, 109, ACK, b"ij"),
        segment(A, B, 100, SYN, b""),
        segment(A, B, 101, ACK, b"abcdef"),
        segment(A, B, 101, ACK, b"abcdef"),
        segment(A, B, 103, ACK, b"cdefgh"),
    ]);
    assert_eq!(table.seen().connections.len(), 1);
    assert_eq!(table.seen().connections[0].to_server, b"abcdefghij");
    // Something else at the same place is not lost.
    table.take(&segment(A, B, 101, ACK, b"abXYef"), false);
    assert_eq!(table.seen().connections[0].to_server, b"abcdefghij");
    assert!(table.seen().contains(b"XY"));
}

#[test]
fn what_lies_beyond_a_gap_is_seen_too() {
    let seen = table(&[
        segment(A, B, 100, SYN, b""),
        segment(A, B, 101, ACK, b"\x16\x03\x01\x00\x01x"),
        segment(A, B, 200, ACK, b"secret"),
    ])
    .seen();
    assert!(seen.contains(b"secret"));
    assert_eq!(seen.connections[0].speech, Speech::Unknown);
}

#[test]
fn the_same_ends_may_connect_again() {
    let seen = table(&[
        segment(A, B, 100, SYN, b""),
        segment(A, B, 101, ACK, b"first"),
        segment(B, A, 700, ACK | RST, b""),
        segment(A, B, 5000, SYN, b""),
        segment(B, A, 9000, SYN | ACK, b""),
        segment(A, B, 5001, ACK, b"second"),
    ])
    .seen();
    let streams: Vec<_> = seen.connections.iter().map(|c| (c.to_server.as_slice(), c.reset)).collect();
    assert_eq!(streams, [(&b"first"[..], true), (&b"second"[..], false)]);
}

#[test]
fn a_connection_joined_midway_is_not_judged() {
    // Its answer comes first: the server is told all the same once it says SYN, ACK.
    let seen = table(&[
        segment(B, A, 9000, SYN | ACK, b""),
        segment(B, A, 9001, ACK, b"\x16\x03\x03\x00\x01x"),
    ])
    .seen();
    assert_eq!(
        (seen.connections[0].client, seen.connections[0].speech),
        (A.parse().unwrap(), Speech::Tls)
    );
    let seen = table(&[segment(A, B, 77, ACK, b"\x17\x03\x03\x00\x01x"), segment(A, B, 70, ACK, b"earlier")]).seen();
    assert_eq!(seen.connections[0].speech, Speech::Unknown);
    assert!(!seen.connections[0].opened && seen.contains(b"earlier"));
}

#[test]
fn tls_is_told_from_everything_else() {
    let hello = b"\x16\x03\x01\x00\x04abcd";
    let data = b"\x17\x03\x03\x00\x02ef";
    let speech = |bytes: &[u8]| {
        // One byte at a time, so that headers are cut too.
        let mut frames = vec![segment(A, B, 0, SYN, b"")];
        frames.extend(bytes.iter().enumerate().map(|(n, byte)| segment(A, B, 1 + n as u32, ACK, &[*byte])));
        table(&frames).seen().connections[0].speech
    };
    assert_eq!(speech(b""), Speech::Silent);
    assert_eq!(speech(hello), Speech::Tls);
    assert_eq!(speech(&[&hello[..], data, b"\x15\x03\x03\x00\x02\x02\x28"].concat()), Speech::Tls);
    assert_eq!(speech(&[&hello[..], &data[..4]].concat()), Speech::Tls);
    for other in [
        &b"GET / HTTP/1.1"[..],
        data,
        b"\x16\x02\x00\x00\x04abcd",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\x50\x00abcd",
        b"SSH-2.0",
    ] {
        assert_eq!(speech(other), Speech::Other, "{other:?}");
        assert_eq!(speech(&[&hello[..], b"PRI * HTTP/2.0"].concat()), Speech::Other);
    }
    // A direction in plaintext spoils the other one's TLS.
    let frames = [
        segment(A, B, 0, SYN, b""),
        segment(B, A, 0, SYN | ACK, b""),
        segment(A, B, 1, ACK, hello),
        segment(B, A, 1, ACK, b"HTTP/1.1 200"),
    ];
    assert_eq!(table(&frames).seen().connections[0].speech, Speech::Other);
}

#[test]
fn a_window_forgets_bytes_but_not_where_streams_stand() {
    let mut table = table(&[
        segment(A, B, 100, SYN, b""),
        segment(A, B, 101, ACK, b"\x16\x03\x01\x00\x04ab"),
        datagram(A, B, b"old"),
    ]);
    table.clear();
    assert!(table.seen().connections.is_empty() && !table.seen().contains(b"old") && table.seen().frames == 0);
    // A repetition of what passed before it cannot be compared any more, so it is kept, and judged no worse.
    table.take(&segment(A, B, 101, ACK, b"\x16\x03\x01\x00\x04ab"), false);
    table.take(&segment(A, B, 108, ACK, b"cd\x17\x03\x03\x00\x01x"), false);
    let seen = table.seen();
    assert_eq!(
        (seen.connections[0].to_server.as_slice(), seen.connections[0].speech),
        (&b"cd\x17\x03\x03\x00\x01x"[..], Speech::Tls)
    );
    assert!(!seen.connections[0].opened);
}

#[test]
fn frames_that_are_not_tcp_are_searched_too() {
    let mut table = table(&[datagram(A, B, b"in a datagram")]);
    let mut fragment = datagram(A, B, b"in a fragment");
    fragment[20] = 0x20;
    let mut cut = datagram(A, B, b"in a cut frame");
    cut[17] = 0xff;
    for frame in [&fragment, &cut, &[&[0; 12][..], &[8, 6], b"in an ARP frame"].concat()] {
        table.take(frame, false);
    }
    let seen = table.seen();
    assert_eq!(seen.datagrams.len(), 1);
    for text in ["in a datagram", "in a fragment", "in a cut frame", "in an ARP frame"] {
        assert!(seen.contains(text.as_bytes()), "{text}");
    }
}

#[test]
fn losses_are_counted_until_the_next_window() {
    let mut table = table(&[]);
    table.take(&datagram(A, B, b"x"), true);
    table.lost(3);
    assert_eq!((table.loss().dropped, table.loss().truncated), (3, 1));
    assert_eq!(
        table.loss().to_string(),
        "3 dropped by the kernel, 1 cut short, 0 over the window's limit"
    );
    table.clear();
    assert_eq!(table.loss(), super::Loss::default());
}

proptest! {
    #[test]
    fn any_way_to_cut_and_shuffle_gives_the_same_stream(
        bytes in prop::collection::vec(any::<u8>(), 1..400),
        cuts in prop::collection::vec((0usize..400, 1usize..60), 0..40),
        start in any::<u32>(),
        seed in any::<u64>(),
    ) {
        // Overlapping pieces at random places, and all of it in pieces of 37 bytes, in a random order.
        let regular = (0..bytes.len()).step_by(37).map(|at| (at, 37));
        let mut pieces: Vec<(usize, usize)> = cuts.into_iter().filter(|(at, _)| *at < bytes.len()).chain(regular).collect();
        let mut random = seed | 1;
        for n in (1..pieces.len()).rev() {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            pieces.swap(n, (random >> 33) as usize % (n + 1));
        }
        let mut table = table(&[segment(A, B, start, SYN, b"")]);
        for (at, length) in pieces {
            let piece = &bytes[at..(at + length).min(bytes.len())];
            table.take(&segment(A, B, start.wrapping_add(1 + at as u32), ACK, piece), false);
        }
        let seen = table.seen();
        prop_assert_eq!(&seen.connections[0].to_server, &bytes);
        prop_assert!(seen.connections[0].pieces.is_empty());
    }

    #[test]
    fn no_frame_is_too_strange(mut frame in prop::collection::vec(any::<u8>(), 0..200), kind in 0usize..3) {
        if let Some(field) = frame.get_mut(12..14) {
            field.copy_from_slice(&[[8, 0], [0x86, 0xdd], [8, 6]][kind]);
        }
        let _ = Frame::parse(&frame);
        table(&[frame]).seen();
    }
}
