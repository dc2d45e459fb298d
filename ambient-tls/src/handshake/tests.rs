#![cfg(feature = "aws-lc-rs")]

use std::io::{Read, Write};

use ambient_core::Identity;
use rustls::{AlertDescription, ClientConnection, Connection as Rustls, ServerConnection};

use super::*;
use crate::{
    Accepted, Opened, Sealed,
    test_ca::{CART, Ca, OURS, trust, verifier},
};

/// Which end is ours; the other is rustls', with its own record layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Ours {
    Client,
    Server,
}

pub(crate) const BOTH: [Ours; 2] = [Ours::Client, Ours::Server];

/// Our end at its beginning, and rustls'; each accepts those.
fn ends(ours: Ours, near: Accepted, far: Accepted) -> (Handshake, Rustls) {
    let ca = Ca::new();
    let trust = trust(&[(OURS, &ca)], &[]);
    let credential = ca.leaf(&[CART], |_| ());
    let nobody = || ServerName::try_from("10.0.2.2").unwrap();
    match ours {
        Ours::Client => {
            let client = verifier(&trust, near).client_config(&credential).unwrap();
            let server = verifier(&trust, far).server_config(&credential).unwrap();
            let peer = ServerConnection::new(server).unwrap().into();
            (Handshake::client(client, nobody()).unwrap(), peer)
        }
        Ours::Server => {
            let server = verifier(&trust, near).server_config(&credential).unwrap();
            let client = verifier(&trust, far).client_config(&credential).unwrap();
            let peer = ClientConnection::new(client, nobody()).unwrap().into();
            (Handshake::server(server).unwrap(), peer)
        }
    }
}

/// What rustls' end has to send.
pub(crate) fn said(peer: &mut Rustls) -> Vec<u8> {
    let mut bytes = Vec::new();
    while peer.wants_write() {
        peer.write_tls(&mut bytes).unwrap();
    }
    bytes
}

/// Lets rustls' end have all of it; gives the data that came.
pub(crate) fn hear(peer: &mut Rustls, mut bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let mut data = Vec::new();
    while !bytes.is_empty() {
        peer.read_tls(&mut bytes).unwrap();
        peer.process_new_packets()?;
        // An error says that there is nothing for now, or that it was cut.
        let _ = peer.reader().read_to_end(&mut data);
    }
    Ok(data)
}

/// Moves what both say until ours is done, in pieces of this size; gives what came behind the handshake.
fn shake(ours: &mut Handshake, peer: &mut Rustls, pieces: usize) -> Result<Vec<u8>, Error> {
    let (mut incoming, mut outgoing) = (Vec::new(), Vec::new());
    let mut way = std::collections::VecDeque::new();
    for _ in 0..100_000 {
        let done = ours.advance(&mut incoming, &mut outgoing);
        let heard = hear(peer, &std::mem::take(&mut outgoing));
        if done? {
            incoming.extend(way);
            return Ok(incoming);
        }
        heard?;
        way.extend(said(peer));
        incoming.extend(way.drain(..pieces.min(way.len())));
    }
    panic!("it never ends");
}

/// Both ends after the handshake.
pub(crate) fn pair(ours: Ours) -> (Records, Rustls) {
    let (mut handshake, mut peer) = ends(ours, Accepted::AnyTrusted, Accepted::AnyTrusted);
    let behind = shake(&mut handshake, &mut peer, usize::MAX).unwrap();
    assert!(behind.is_empty() && !peer.is_handshaking());
    (handshake.finish().unwrap().records, peer)
}

#[test]
fn a_handshake_is_done_however_its_bytes_come() {
    for ours in BOTH {
        for pieces in [1, 7, 4096, usize::MAX] {
            let (mut handshake, mut peer) = ends(ours, Accepted::AnyTrusted, Accepted::AnyTrusted);
            shake(&mut handshake, &mut peer, pieces).unwrap();
            let established = handshake.finish().unwrap();
            assert_eq!(established.alpn.as_deref(), Some(&b"h2"[..]));
            assert_eq!(established.peer_certificates.len(), 1, "{ours:?}");
        }
    }
}

#[test]
fn what_follows_on_the_handshake_is_left_for_the_records() {
    let (mut handshake, mut peer) = ends(Ours::Server, Accepted::AnyTrusted, Accepted::AnyTrusted);
    let (mut incoming, mut outgoing) = (said(&mut peer), Vec::new());
    assert!(!handshake.advance(&mut incoming, &mut outgoing).unwrap());
    hear(&mut peer, &outgoing).unwrap();
    // The client changes its keys and speaks in the flight that ends the handshake.
    peer.refresh_traffic_keys().unwrap();
    peer.writer().write_all(b"at once").unwrap();
    incoming.extend(said(&mut peer));
    assert!(handshake.advance(&mut incoming, &mut Vec::new()).unwrap());
    let mut records = handshake.finish().unwrap().records;
    let mut replies = Sealed::new();
    let Opened::Record { length, data } = records.open(&mut incoming, &mut replies).unwrap() else {
        panic!("the key update");
    };
    assert!(data.is_empty());
    incoming.drain(..length);
    let Opened::Record { data, .. } = records.open(&mut incoming, &mut replies).unwrap() else {
        panic!("the data");
    };
    assert_eq!(&incoming[data], b"at once");
    records.seal(&b"heard"[..].into(), &mut replies).unwrap();
    let replies: Vec<_> = replies.into_iter().flatten().collect();
    assert_eq!(hear(&mut peer, &replies).unwrap(), b"heard");
}

#[test]
fn a_refusal_is_told_by_an_alert() {
    let somebody: Identity = "spiffe://cluster.local/ns/shop/sa/stock".parse().unwrap();
    let (mut handshake, mut peer) = ends(Ours::Client, Accepted::any_of([somebody]), Accepted::AnyTrusted);
    let (mut incoming, mut outgoing) = (Vec::new(), Vec::new());
    handshake.advance(&mut incoming, &mut outgoing).unwrap();
    hear(&mut peer, &std::mem::take(&mut outgoing)).unwrap();
    incoming.extend(said(&mut peer));
    let error = handshake.advance(&mut incoming, &mut outgoing).unwrap_err();
    assert!(crate::PeerError::of(&error).is_some(), "{error}");
    let told = hear(&mut peer, &outgoing).unwrap_err();
    assert!(matches!(told, Error::AlertReceived(_)), "{told}");
    // Whoever asks again hears the same, and rustls nothing.
    outgoing.clear();
    // An error that is somebody else's equals none, not even itself.
    let again = handshake.advance(&mut incoming, &mut outgoing).unwrap_err();
    assert_eq!(again.to_string(), error.to_string());
    assert!(outgoing.is_empty());
    assert_eq!(handshake.finish().unwrap_err().to_string(), error.to_string());
}

#[test]
fn who_takes_away_what_has_come_has_the_handshake_fail() {
    let (mut handshake, mut peer) = ends(Ours::Server, Accepted::AnyTrusted, Accepted::AnyTrusted);
    let (mut incoming, mut outgoing) = (said(&mut peer), Vec::new());
    let rest = incoming.split_off(20);
    assert!(!handshake.advance(&mut incoming, &mut outgoing).unwrap());
    assert_eq!(incoming.len(), 20, "a part of a message is left");
    incoming.clear();
    let error = handshake.advance(&mut incoming, &mut outgoing).unwrap_err();
    assert!(matches!(error, Error::General(_)), "{error}");
    incoming.extend(rest);
    assert_eq!(handshake.advance(&mut incoming, &mut outgoing), Err(error));
}

#[test]
fn who_does_not_speak_tls_is_told_at_once() {
    for text in [&b"GET / HTTP/1.1\r\n"[..], b"\x16\x03\x01\xff\xff\x00", b"\x17\x03\x03\x00\x01\x00"] {
        let (mut handshake, _) = ends(Ours::Server, Accepted::AnyTrusted, Accepted::AnyTrusted);
        let mut outgoing = Vec::new();
        let error = handshake.advance(&mut text.to_vec(), &mut outgoing).unwrap_err();
        assert_eq!(outgoing.first(), Some(&21), "an alert: {error}");
    }
}

#[test]
fn a_handshake_message_is_not_waited_for_without_end() {
    let (mut handshake, _) = ends(Ours::Server, Accepted::AnyTrusted, Accepted::AnyTrusted);
    // A ClientHello of 16 MiB.
    let mut record = vec![22, 3, 1, 0x40, 0];
    record.extend([1, 0xff, 0xff, 0xff]);
    record.resize(HEAD + (1 << 14), 0);
    let mut incoming = Vec::new();
    let refused = (0..8).any(|_| {
        incoming.extend(&record);
        handshake.advance(&mut incoming, &mut Vec::new()).is_err()
    });
    assert!(refused && incoming.len() <= 6 * record.len());
}

#[test]
fn a_peer_that_refuses_late_is_heard() {
    // A client has finished before the server has looked at its certificate.
    let somebody: Identity = "spiffe://cluster.local/ns/shop/sa/stock".parse().unwrap();
    let (mut handshake, mut peer) = ends(Ours::Client, Accepted::AnyTrusted, Accepted::any_of([somebody]));
    let (mut incoming, mut outgoing) = (Vec::new(), Vec::new());
    handshake.advance(&mut incoming, &mut outgoing).unwrap();
    hear(&mut peer, &std::mem::take(&mut outgoing)).unwrap();
    incoming.extend(said(&mut peer));
    assert!(handshake.advance(&mut incoming, &mut outgoing).unwrap());
    let mut records = handshake.finish().unwrap().records;
    hear(&mut peer, &outgoing).unwrap_err();
    let error = records.open(&mut said(&mut peer), &mut Sealed::new()).unwrap_err();
    assert!(
        matches!(error, Error::AlertReceived(alert) if alert != AlertDescription::CloseNotify),
        "{error}"
    );
}

/// Two of our own ends after the handshake, the client's first.
pub(crate) fn both_ours() -> (Records, Records) {
    let ca = Ca::new();
    let trust = trust(&[(OURS, &ca)], &[]);
    let credential = ca.leaf(&[CART], |_| ());
    let verifier = verifier(&trust, Accepted::AnyTrusted);
    let nobody = ServerName::try_from("10.0.2.2").unwrap();
    let mut client = Handshake::client(verifier.client_config(&credential).unwrap(), nobody).unwrap();
    let mut server = Handshake::server(verifier.server_config(&credential).unwrap()).unwrap();
    let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
    loop {
        let near = client.advance(&mut to_client, &mut to_server).unwrap();
        let far = server.advance(&mut to_server, &mut to_client).unwrap();
        if near && far {
            return (client.finish().unwrap().records, server.finish().unwrap().records);
        }
    }
}
